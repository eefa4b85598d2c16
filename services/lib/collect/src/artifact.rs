//! Which images are artifacts of the cluster.

/// What the names of all artifacts begin with.
pub const PREFIX: &str = "cluster.local:5000/";

/// Whether an artifact is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Active,
    Archived,
    Empty,
}

/// The artifact that an image's name stands for: `artifact/shop-8f3a` for `cluster.local:5000/shop:shop-8f3a`. A name with a
/// digest stands for content and for no artifact, though it has a colon too.
pub fn parse_artifact_id(image: &str) -> Option<String> {
    let rest = image.strip_prefix(PREFIX)?;
    if rest.contains('@') {
        return None;
    }
    let (_, name) = rest.split_once(':')?;
    (!name.is_empty()).then(|| id_of_tag(name))
}

/// The artifact that a tag of the cluster's registry stands for.
pub fn id_of_tag(tag: &str) -> String {
    format!("artifact/{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn a_name_is_an_artifact_by_its_prefix_and_tag() {
        let digest = format!("cluster.local:5000/shop@sha256:{}", "ab".repeat(32));
        let both = format!("cluster.local:5000/shop:shop-1@sha256:{}", "ab".repeat(32));
        let cases = [
            ("cluster.local:5000/shop:shop-1",      Some("artifact/shop-1")),
            ("cluster.local:5000/team/shop:a",      Some("artifact/a")),
            ("cluster.local:5000/shop:a:b",         Some("artifact/a:b")),
            ("cluster.local:5000/shop:",            None),
            ("cluster.local:5000/shop",             None),
            ("cluster.local:5000/",                 None),
            ("cluster.local/shop:shop-1",           None),
            ("cluster.local:5001/shop:shop-1",      None),
            ("docker.io/cluster.local:5000/shop:a", None),
            ("docker.io/library/nginx:1.27",        None),
            ("",                                    None),
            (digest.as_str(),                       None),
            (both.as_str(),                         None),
        ];
        for (name, expected) in cases {
            assert_eq!(parse_artifact_id(name).as_deref(), expected, "{name}");
        }
    }
}

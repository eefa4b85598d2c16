//! Which images are artifacts of the cluster.

use berth_domain::holders;

/// Whether an artifact is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Active,
    Archived,
    Empty,
}

/// The artifact that an image's name stands for: `artifact/shop-8f3a` for `cluster.local:5000/shop:shop-8f3a`. A name that has
/// only a digest stands for content and for no artifact, though it has a colon too.
pub fn parse_artifact_id(image: &str) -> Option<String> {
    holders::parse_artifact_id(image).map(in_full)
}

/// An id as it is compared: `shop-8f3a`, also as a tag of the cluster's registry, stands for `artifact/shop-8f3a`.
pub fn in_full(id: &str) -> String {
    format!("artifact/{}", holders::artifact_key(id))
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
            (both.as_str(),                         Some("artifact/shop-1")),
        ];
        for (name, expected) in cases {
            assert_eq!(parse_artifact_id(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn an_id_is_the_same_with_and_without_its_prefix() {
        assert_eq!(in_full("shop-1"), "artifact/shop-1");
        assert_eq!(in_full("artifact/shop-1"), "artifact/shop-1");
    }
}

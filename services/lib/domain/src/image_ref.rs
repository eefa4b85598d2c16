//! Image references, normalized as the field does it: `nginx` is `docker.io/library/nginx:latest`.

use std::fmt;

/// The longest reference that is accepted.
pub const IMAGE_REF_MAX: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidImageRef {
    #[error("must not be empty")]
    Empty,
    #[error("is {length} bytes long, the limit is {IMAGE_REF_MAX}")]
    TooLong { length: usize },
    #[error("{0}")]
    Malformed(&'static str),
}

/// A full image reference: registry, repository, and a tag or a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl ImageRef {
    pub fn parse(text: &str) -> Result<Self, InvalidImageRef> {
        use InvalidImageRef::{Empty, Malformed, TooLong};
        if text.is_empty() {
            return Err(Empty);
        }
        if text.len() > IMAGE_REF_MAX {
            return Err(TooLong { length: text.len() });
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                if !is_digest(digest) {
                    return Err(Malformed("the digest must be `sha256:` and 64 hex digits"));
                }
                (rest, Some(digest.to_owned()))
            }
            None => (text, None),
        };
        let (registry, path) = match rest.split_once('/') {
            Some((first, path))
                if first.contains('.') || first.contains(':') || first == "localhost" =>
            {
                (first, path)
            }
            Some(_) | None => ("docker.io", rest),
        };
        let registry = if registry == "index.docker.io" {
            "docker.io"
        } else {
            registry
        };
        if !is_registry(registry) {
            return Err(Malformed("the registry must be `host` or `host:port`"));
        }
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) => {
                if !is_tag(tag) {
                    return Err(Malformed(
                        "the tag must be 1 to 128 of letters, digits, `_`, `.`, `-`, and begin with none of `.`, `-`",
                    ));
                }
                (path, Some(tag.to_owned()))
            }
            None => (path, None),
        };
        if !is_repository(path) {
            return Err(Malformed(
                "the repository must be lower-case letters and digits in parts joined by `/`, `.`, `_`, `__` or `-`",
            ));
        }
        let repository = if registry == "docker.io" && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }

    /// Host and port as in the name, as `docker.io` or `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `sha256:` and 64 hex digits.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether `text` is `sha256:` and 64 lower-case hex digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let host_ok = !host.is_empty()
        && host.split('.').all(|part| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        });
    host_ok && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128
        && text
            .bytes()
            .enumerate()
            .all(|(i, b)| word(b) || (i > 0 && matches!(b, b'.' | b'-')))
        && !text.is_empty()
}

fn is_repository(text: &str) -> bool {
    text.split('/').all(|part| {
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        let ends_ok =
            bytes.first().is_some_and(|&b| alnum(b)) && bytes.last().is_some_and(|&b| alnum(b));
        ends_ok
            && !["..", "._", "_.", "___", ".-", "-.", "_-", "-_"]
                .iter()
                .any(|bad| part.contains(bad))
            && bytes
                .iter()
                .all(|&b| alnum(b) || matches!(b, b'.' | b'_' | b'-'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn references_are_completed_as_the_field_does_it() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("nginx",                         "docker.io/library/nginx:latest"),
            ("nginx:1.27",                    "docker.io/library/nginx:1.27"),
            ("team/app",                      "docker.io/team/app:latest"),
            ("docker.io/nginx",               "docker.io/library/nginx:latest"),
            ("index.docker.io/nginx",         "docker.io/library/nginx:latest"),
            ("localhost/app",                 "localhost/app:latest"),
            ("127.0.0.1:5000/a/b:c",          "127.0.0.1:5000/a/b:c"),
            ("cluster.local:5000/app:web",    "cluster.local:5000/app:web"),
            ("ghcr.io/o/a__b/c-d.e:V_1.0-x",  "ghcr.io/o/a__b/c-d.e:V_1.0-x"),
            (&format!("nginx@{digest}"),      &format!("docker.io/library/nginx@{digest}")),
            (&format!("nginx:1@{digest}"),    &format!("docker.io/library/nginx:1@{digest}")),
        ];
        for (text, full) in cases {
            let parsed = ImageRef::parse(text).unwrap();
            assert_eq!(parsed.to_string(), full, "{text}");
            assert_eq!(ImageRef::parse(full), Ok(parsed), "the full form means itself");
        }
    }

    #[test]
    fn malformed_references_are_refused() {
        for bad in [
            "",
            "Nginx",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a b",
            "a@sha256:12",
            "a@md5:aa",
            ":5000/a",
            "host:99999/a",
            "host:0/a",
            "a/../b",
            "a\0b",
            "x:-t",
            "x:.t",
            "-a",
            "ho_st.x/a",
        ] {
            assert!(ImageRef::parse(bad).is_err(), "{bad:?} must be refused");
        }
        assert!(ImageRef::parse(&"a".repeat(513)).is_err());
    }
}

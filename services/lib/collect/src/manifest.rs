//! What a manifest or an index covers. What cannot be one covers nothing; whether a file is as it was written is for others
//! to say, by its digest.

use serde_json::Value;

use crate::digest::Digest;

/// As much as registries take for a manifest: what is larger is none.
pub const BYTES_MAX: u64 = 4 << 20;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place} names no digest")]
pub struct Unreadable {
    place: String,
}

/// Whether a content that begins so is compressed, and so no manifest.
pub fn is_compressed(beginning: &[u8]) -> bool {
    const GZIP: &[u8] = &[0x1f, 0x8b];
    const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    beginning.starts_with(GZIP) || beginning.starts_with(ZSTD)
}

/// The digests that a content names: configuration and layers of a manifest, manifests of an index. A digest in it that
/// cannot be read makes it unreadable: it could mean anything.
pub fn children(content: &[u8]) -> Result<Vec<Digest>, Unreadable> {
    let Ok(Value::Object(it)) = serde_json::from_slice(content) else {
        return Ok(vec![]);
    };
    let mut children = Vec::new();
    // `blobs` is that of an artifact manifest, `fsLayers` that of the first schema, `subject` what a referrer is about.
    for key in ["config", "subject"] {
        if let Some(Value::Object(named)) = it.get(key)
            && let Some(digest) = named.get("digest")
        {
            children.push(read(digest, || key.to_owned())?);
        }
    }
    for (key, field) in [
        ("layers", "digest"),
        ("manifests", "digest"),
        ("blobs", "digest"),
        ("fsLayers", "blobSum"),
    ] {
        let Some(Value::Array(named)) = it.get(key) else {
            continue;
        };
        for (place, entry) in named.iter().enumerate() {
            let digest = entry.get(field).unwrap_or(&Value::Null);
            // Anything may be a list of `layers`, as in an image's configuration; only a descriptor has a media type.
            if digest.is_null() && entry.get("mediaType").is_none() {
                continue;
            }
            children.push(read(digest, || format!("{key}[{place}]"))?);
        }
    }
    Ok(children)
}

fn read(digest: &Value, place: impl FnOnce() -> String) -> Result<Digest, Unreadable> {
    let digest = digest.as_str().and_then(|it| it.parse().ok());
    digest.ok_or_else(|| Unreadable { place: place() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    fn covered(text: &str) -> Vec<Digest> {
        children(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_manifest_covers_its_configuration_and_layers() {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{}"}},"layers":[{{"digest":"{}"}},{{"digest":"{}"}}]}}"#,
            digest(1),
            digest(2),
            digest(3)
        );
        assert_eq!(covered(&text), [digest(1), digest(2), digest(3)]);
    }

    #[test]
    fn an_index_covers_its_manifests_and_what_it_is_about() {
        let text = format!(
            r#"{{"manifests":[{{"digest":"{}"}}],"subject":{{"digest":"{}"}}}}"#,
            digest(4),
            digest(5)
        );
        assert_eq!(covered(&text), [digest(5), digest(4)]);
    }

    #[test]
    fn what_is_no_manifest_covers_nothing() {
        for text in [
            "",
            "{",
            "[]",
            "\u{0}\u{0}",
            r#"{"rootfs":{"diff_ids":["sha256:a"]},"config":{"Cmd":["x"]},"layers":["a"]}"#,
        ] {
            assert_eq!(covered(text), [], "{text}");
        }
    }

    #[test]
    fn a_digest_that_cannot_be_read_makes_all_unreadable() {
        for (text, place) in [
            (r#"{"config":{"digest":"sha256:12"}}"#, "config"),
            (r#"{"layers":[{"digest":7}]}"#, "layers[0]"),
            (r#"{"manifests":[{"mediaType":"a"}]}"#, "manifests[0]"),
        ] {
            let problem = children(text.as_bytes()).unwrap_err().to_string();
            assert_eq!(problem, format!("{place} names no digest"));
        }
    }

    #[test]
    fn layers_are_known_by_their_first_bytes() {
        assert!(is_compressed(&[0x1f, 0x8b, 8]));
        assert!(is_compressed(&[0x28, 0xb5, 0x2f, 0xfd, 0]));
        assert!(!is_compressed(b"{\"a\""));
        assert!(!is_compressed(&[]));
    }
}

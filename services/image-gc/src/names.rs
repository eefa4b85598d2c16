//! How the files of blobs and tombstones are named.

use std::time::{Duration, SystemTime};

use berth_collect::{Digest, verdict::Tombstone};

const MARK: &str = ".gc-tombstone.";

/// The end of the name of a tombstone, the whole one in a directory that belongs to one blob. Each claim has a token of its
/// own, so that none is ever made twice.
pub(crate) fn tombstone(of: &str, it: Tombstone) -> String {
    let since = it.at.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.unwrap_or_default().as_secs();
    format!("{MARK}{of}.{}.{seconds}", it.token)
}

/// What the name of a tombstone says.
pub(crate) fn read_tombstone(name: &str) -> Option<(&str, Tombstone)> {
    let rest = name.strip_prefix(MARK)?;
    let (rest, seconds) = rest.rsplit_once('.')?;
    let (of, token) = rest.rsplit_once('.')?;
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds.parse().ok()?))?;
    let token = token.parse().ok()?;
    Some((of, Tombstone { token, at }))
}

/// What a file of the flat directory is: a blob, or the tombstone of one.
pub(crate) fn read_flat(name: &str) -> Option<(Digest, Option<Tombstone>)> {
    match read_tombstone(name) {
        Some((of, it)) => Some((of.parse().ok()?, Some(it))),
        None => Some((name.parse().ok()?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tombstone_is_read_as_it_is_named() {
        let digest = Digest::from_bytes([0xab; 32]);
        let it = Tombstone {
            token: u64::MAX,
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        };
        let name = tombstone(&digest.to_string(), it);
        assert_eq!(read_flat(&name), Some((digest, Some(it))));
        assert_eq!(read_tombstone(&tombstone("data", it)), Some(("data", it)));
        assert_eq!(read_flat(&digest.to_string()), Some((digest, None)));
    }

    #[test]
    fn other_names_are_none_of_ours() {
        for name in [
            "",
            "upload-1",
            "sha256:12",
            ".gc-tombstone.",
            ".gc-tombstone.sha256:12.1.2",
            ".gc-tombstone.data.x.2",
            ".gc-tombstone.data.1.99999999999999999999",
        ] {
            assert_eq!(read_flat(name), None, "{name}");
        }
    }
}

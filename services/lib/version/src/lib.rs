//! Which build this is. Said by every program alike.

/// `0.1.0`; of a release with the beginning of its commit, as `0.1.0+0123456789ab`.
pub const VERSION: &str = env!("BERTH_VERSION");
/// The version and when it was built, for people.
pub const LONG: &str = env!("BERTH_VERSION_LONG");
/// The whole commit; empty where the build is no release.
pub const COMMIT: &str = env!("BERTH_COMMIT");
/// The day of the commit, as `2026-01-31`; empty where the build is no release.
pub const BUILD_DATE: &str = env!("BERTH_BUILD_DATE");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_that_is_no_release_says_so() {
        if COMMIT.is_empty() {
            assert_eq!(VERSION, env!("CARGO_PKG_VERSION"));
            assert_eq!(LONG, format!("{VERSION} (no release)"));
        } else {
            assert_eq!(
                VERSION,
                format!("{}+{}", env!("CARGO_PKG_VERSION"), &COMMIT[..12])
            );
            assert_eq!(LONG, format!("{VERSION} ({BUILD_DATE})"));
        }
    }
}

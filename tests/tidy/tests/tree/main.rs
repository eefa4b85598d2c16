//! The rules of the tree, each a test. A rule looks at texts and names, so that a made-up tree can break it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod dependencies;
mod documents;
mod generated;
mod limits;
mod lints;
mod sources;
mod workspace;

/// Fails with every complaint on a line of its own.
#[track_caller]
fn none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n  {}\n", complaints.join("\n  "));
}

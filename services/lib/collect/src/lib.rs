//! What a collection of images and blobs does with each object, and why: which goes, in which order, how far, when a run is
//! due and who does which part of it. It knows no disk, no clock and no wire.

pub mod artifact;
pub mod blobs;
pub mod digest;
pub mod images;
pub mod manifest;
pub mod plan;
pub mod schedule;
pub mod share;
pub mod verdict;

pub use artifact::{Status, parse_artifact_id};
pub use digest::Digest;
pub use verdict::{Action, Holder, HolderKind, Object, Why};

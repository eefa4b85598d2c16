//! Files into and out of a folder that nobody here trusts, as a tar stream: the root of a container, and the place that a
//! person copies to. Everything is opened by file descriptor below that root, so that no link and no renaming leads out of
//! it; memory is bounded by the depth of the tree. Blocking.

mod error;
mod incoming;
mod pack;
mod reader;
mod root;
mod unpack;

pub use error::CopyError;
pub use incoming::{Chunk, Incoming};
pub use pack::pack;
pub use unpack::{Options, Owner, Target, unpack};

/// How deep a tree may be, with its top: on the way out each level is an open directory, on the way in each one that the
/// archive tells of is kept by its whole path.
const DEPTH_MAX: usize = 256;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Files, symbolic links and hard links.
    pub files: u64,
    pub directories: u64,
    /// Content of files.
    pub bytes: u64,
    /// What a tree holds and a copy does not: sockets, pipes and devices, and what the kernel makes up below `/proc`.
    pub skipped: u64,
}

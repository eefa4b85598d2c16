//! containerd, 1.6 and later, as the runtime and the image store of a node. What a sandbox is and when a step runs, others
//! know; here is how each step is said to containerd.

mod archive;
mod client;
mod content;
mod exits;
mod files;
mod heat;
mod images;
mod lost_shims;
mod oci;
mod registry;
mod runtime;
mod settings;
mod spec;
mod unpack;
mod users;

pub use runtime::Containerd;
pub use settings::{PauseRootfs, SetUpError, Settings};

//! containerd, 1.6 and later, as the runtime and the image store of a node. What a sandbox is and when a step runs, others
//! know; here is how each step is said to containerd.

mod archive;
mod bundles;
mod client;
mod connection;
mod content;
mod drain;
mod ending;
mod errors;
mod exec;
mod exits;
mod export;
mod fetch;
mod fifos;
mod files;
mod heat;
mod holders;
mod images;
mod making;
mod mounts;
mod objects;
mod oci;
mod process;
mod pulls;
mod root;
mod runtime;
mod sessions;
mod settings;
mod shims;
mod spec;
mod uninstall;
mod unpack;
mod users;
mod walk;

pub use connection::Containerd;
pub use settings::{PauseRootfs, SetUpError, Settings};
pub use uninstall::{UninstallError, leave_cgroups, uninstall};

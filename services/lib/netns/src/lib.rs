//! The network of sandboxes on the kernel: a bridge, pinned namespaces, veth pairs, and one nftables table. Everything is
//! found again by names that come from the sandbox id. Which sandbox gets which address, others know.

mod error;
mod links;
mod namespaces;
mod network;
mod sockets;
mod table;

pub use error::NetnsError;
pub use network::{NetnsNetwork, Settings};

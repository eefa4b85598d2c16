//! The network of sandboxes on the kernel: a bridge that has the node's address, pinned namespaces, veth pairs that are
//! routed, and nftables tables. Everything is found again by names that come from the sandbox id. Which sandbox gets which
//! address, others know.

mod admit;
mod asked;
mod chains;
mod connect;
mod conntrack;
mod element;
mod error;
mod fence;
mod foreign;
mod ipv6;
mod legacy;
mod links;
mod named;
mod namespaces;
mod network;
mod nfnetlink;
mod others;
mod owned;
mod probes;
mod rules;
mod rules6;
mod slots;
mod sockets;
mod table;
mod ways;

pub use error::NetnsError;
pub use named::{NameSets, Opening, Owner};
pub use network::{NetnsNetwork, Settings};

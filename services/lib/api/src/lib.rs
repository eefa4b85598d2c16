//! The contract `berth.v1` in Rust: generated messages, clients and servers, and the way between them and the domain.

pub mod catalog;
pub mod collection;
mod connect;
mod credentials;
mod failures;
mod inbound;
mod outbound;
pub mod page;
pub mod plugins;
mod usage;

pub use connect::{
    CALL_WINDOW_BYTES, CONNECTION_WINDOW_BYTES, ConnectError, Target, TlsFiles, connect,
};
pub use failures::status;
pub use inbound::{Create, create_from_proto, protocol_from_proto, time_to_live};
pub use outbound::{Place, sandbox_to_proto, spec_to_proto};
pub use usage::usage_to_proto;

/// What `make proto` generates from `proto/berth/v1`.
#[rustfmt::skip]
#[allow(
    clippy::all,
    clippy::wildcard_imports,
    clippy::wildcard_enum_match_arm,
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    missing_debug_implementations,
    unreachable_pub,
    rustdoc::all,
    reason = "generated"
)]
pub mod v1 {
    include!("gen/berth.v1.rs");
}

/// The contract and all that it imports, for reflection and for JSON.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/berth.v1.binpb");

//! The only process that changes a sandbox. `ARCHITECTURE.md` at the root of the repository maps it.

mod app;
mod audit;
mod config;
mod crash;
mod execute;
mod failures;
mod image_users;
mod node;
mod ready;
mod registry;
mod rpc;
mod run;
mod sandbox;
mod spool;
mod sweep;

pub use app::App;
pub use config::{Config, Flags, load};

//! The only process that changes a sandbox. `ARCHITECTURE.md` at the root of the repository maps it.

mod app;
mod audit;
mod config;
mod execute;
mod failures;
mod node;
mod ready;
mod registry;
mod rpc;
mod run;
mod sandbox;
mod store_command;

pub use app::App;
pub use berth_store::StoreError;
pub use config::{Command, Config, Flags, load};
pub use store_command::{Outcome, StoreCommand};

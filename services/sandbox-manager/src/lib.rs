//! The only process that changes a sandbox. `ARCHITECTURE.md` at the root of the repository maps it.

mod app;
mod audit;
mod claim;
mod config;
mod execute;
mod failures;
mod fix;
mod node;
mod ready;
mod registry;
mod rpc;
mod run;
mod sandbox;

pub use app::App;
pub use config::{Config, Flags, load};

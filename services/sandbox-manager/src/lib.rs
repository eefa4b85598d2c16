//! The only process that changes a sandbox. `ARCHITECTURE.md` at the root of the repository maps it.

mod app;
mod audit;
mod claim;
mod collecting;
mod config;
mod console;
mod crash;
mod execute;
mod export;
mod failures;
mod figures;
mod fix;
mod image_users;
mod lifecycle;
mod log_writer;
mod logs;
mod node;
mod oom;
mod orphans;
mod places;
mod plugins;
mod probing;
mod ready;
mod registry;
mod rpc;
mod run;
mod sandbox;
mod slots;
mod spool;
mod store_command;
mod sweep;
mod taken_ports;

pub use app::{App, is_misconfigured, uninstall};
pub use berth_store::StoreError;
pub use config::{Command, Config, Flags, load};
pub use store_command::{Outcome, StoreCommand};

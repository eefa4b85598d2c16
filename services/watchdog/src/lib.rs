//! Removes what no record of the manager explains. What that is, the audit decides, and the manager does the looking and the
//! removing; this process knows when, waits between two looks, and says what came of it.

mod app;
mod config;
mod decide;
mod figures;
mod manager;
mod rpc;
mod run;

pub use app::App;
pub use config::{Config, Flags, load};

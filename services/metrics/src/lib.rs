//! What the sandboxes of a node use: it follows the manager, reads each sandbox's cgroups and link every second, keeps the last
//! minutes, and tells them. While the manager is away it goes on with the sandboxes that it knows.

mod app;
mod config;
mod export;
mod figures;
mod follow;
mod history;
mod rpc;
mod sampler;
mod series;
mod traffic;

pub use app::App;
pub use config::{Config, Flags, load};

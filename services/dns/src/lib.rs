//! The resolver of a node's sandboxes: it follows the manager, answers each sandbox with what its app may see, and hands
//! everything else on. While the manager is away it answers from what it knows.

mod app;
mod config;
mod egress;
mod figures;
mod follow;
mod forward;
mod known;
mod message;
mod openings;
mod places;
mod serve;
mod state_file;
mod upstream;
mod zone;

pub use app::App;
pub use config::{Config, Flags, load};

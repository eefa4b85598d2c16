//! A worker of the collection of images and blobs. Any number of them share the work by leases of the manager, which alone
//! says what may be deleted; without a manager a worker idles.

mod app;
mod catalog;
mod config;
mod directory;
mod duties;
mod facts;
mod figures;
mod follow;
mod manager;
mod members;
mod names;
mod rpc;
mod run;
mod state;
mod wire;

pub use app::App;
pub use config::{BlobLayout, Config, Flags, load};

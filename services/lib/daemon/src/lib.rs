//! What every process of Berth does alike: configuration, signals, beginning and end. Functions, not a framework.

mod config;
pub mod crash;
mod memory;
mod process;
mod program;
mod socket;
mod supervised;

pub use config::{ConfigError, SOCKET_PATH_MAX, check_socket, duration, key_value, load_config};
pub use memory::{kib_figures, resident_bytes};
pub use process::stop_signal;
pub use program::{EX_CONFIG, observed, refuse};
pub use socket::give_to_group;
pub use supervised::bound;

//! Cgroups by path, on v1 (also hybrid) and v2: made with limits, by hand or by systemd; read, removed. Which there should be,
//! others know.

mod hierarchy;
mod meter;
mod oom;
mod systemd;

pub use hierarchy::{CgroupError, Hierarchy};
pub use meter::Meter;
pub use systemd::{Systemd, SystemdError};

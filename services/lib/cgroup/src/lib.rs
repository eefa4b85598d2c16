//! Cgroups by path, on v1 (also hybrid) and v2: made with limits, read, removed. Which there should be, others know.

mod hierarchy;
mod meter;
mod oom;

pub use hierarchy::{CgroupError, Hierarchy};
pub use meter::Meter;

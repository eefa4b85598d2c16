//! Cgroups by path, on v1 (also hybrid) and v2: made with limits, read, removed. Which there should be, others know.

mod hierarchy;
mod oom;
mod reading;

pub use hierarchy::{CgroupError, Hierarchy};
pub use reading::{Meter, Pressure, Reading, Stall};

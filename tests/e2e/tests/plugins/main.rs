//! Processes beside the manager.

mod metrics;

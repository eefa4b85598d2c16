//! Processes beside the manager, and how a node is seen.

mod metrics;
mod sidecars;
mod telemetry;
mod upgrade;

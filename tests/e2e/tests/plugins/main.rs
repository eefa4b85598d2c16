//! Processes beside the manager, and how a node is seen.

mod chart;
mod metrics;
mod pod_spec;
mod sidecars;
mod telemetry;
mod upgrade;

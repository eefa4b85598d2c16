//! The life of sandboxes, whatever is asked and whatever dies.

mod bad_input;
mod bad_input_streams;
mod calls;
mod cgroups;
mod contract;
mod crash;
mod lifecycle;
mod lost_shims;
mod outage;
mod ready;
mod sandbox;

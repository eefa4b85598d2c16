//! The gRPC face: requests in, domain calls, answers out. Decides nothing about a sandbox.

pub(crate) mod deadline;
mod images;
mod node;
mod sandboxes;

pub(crate) use images::{ImageRpc, Imports};
pub(crate) use node::{About, NodeRpc};
pub(crate) use sandboxes::SandboxRpc;

use berth_domain::{Failure, Generation, SandboxId};
use tonic::Status;

fn parse_id(field: &str, text: &str) -> Result<SandboxId, Status> {
    SandboxId::parse(text).map_err(|error| refuse(Failure::invalid(field, error)))
}

/// 0 means any generation.
fn expected(generation: u64) -> Option<Generation> {
    (generation != 0).then_some(Generation(generation))
}

fn refuse(failure: Failure) -> Status {
    berth_api::status(failure)
}

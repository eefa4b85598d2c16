//! The gRPC face: requests in, domain calls, answers out. Decides nothing about a sandbox.

mod access;
mod attach;
mod catalog;
mod collections;
mod copy;
mod exec;
mod forward;
mod images;
mod leases;
mod logs;
mod network;
mod node;
mod orphans;
mod plugins;
mod pulls;
mod sandboxes;
mod watches;

pub(crate) use access::Streams;
pub(crate) use catalog::CatalogRpc;
pub(crate) use collections::CollectionRpc;
pub(crate) use images::{ImageRpc, Imports};
pub(crate) use leases::LeaseRpc;
pub(crate) use network::NetworkRpc;
pub(crate) use node::{About, NodeRpc};
pub(crate) use orphans::OrphanRpc;
pub(crate) use plugins::PluginRpc;
pub(crate) use pulls::Exports;
pub(crate) use sandboxes::SandboxRpc;

use berth_api::v1;
use berth_domain::{Failure, Generation, SandboxId};
use berth_platform::Denied;
use tonic::Status;

const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1000;

/// How many objects a page has at most; 0 asks for the default.
fn page_size(asked: u32) -> usize {
    match asked {
        0 => PAGE_DEFAULT,
        size => usize::try_from(size).unwrap_or(PAGE_MAX).min(PAGE_MAX),
    }
}

fn parse_id(field: &str, text: &str) -> Result<SandboxId, Status> {
    SandboxId::parse(text).map_err(|error| refuse(Failure::invalid(field, error)))
}

fn denied_to_proto(it: Denied) -> v1::DeniedTraffic {
    v1::DeniedTraffic {
        packets: it.packets,
        bytes: it.bytes,
        spoofed_packets: it.spoofed_packets,
        spoofed_bytes: it.spoofed_bytes,
    }
}

/// 0 means any generation.
fn expected(generation: u64) -> Option<Generation> {
    (generation != 0).then_some(Generation(generation))
}

fn refuse(failure: Failure) -> Status {
    berth_api::status(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_as_many_as_asked_for_up_to_its_bound() {
        let cases = [
            (0, 100),
            (1, 1),
            (1000, 1000),
            (1001, 1000),
            (u32::MAX, 1000),
        ];
        for (asked, expected) in cases {
            assert_eq!(page_size(asked), expected, "{asked}");
        }
    }
}

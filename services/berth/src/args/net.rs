//! What can be typed after `berth net`.

use berth_api::v1;
use clap::{Subcommand, ValueEnum};

/// Commands of `net`.
#[derive(Debug, Subcommand)]
pub(crate) enum Net {
    /// Show the subnet and how many of its addresses are held, rest and are free
    Ls,
    /// List the addresses that are held or were
    Leases {
        /// Only those in this state. Default: all
        #[arg(long, value_enum)]
        state: Option<LeaseStateArg>,
    },
    /// Show what the rules of the node allow and deny to each sandbox, and our rules in firewalls of others
    Rules {
        /// Only those of the sandbox with this id
        #[arg(value_name = "ID")]
        id: Option<String>,
    },
    /// Make an address free that rests, or whose owner has no record
    Release {
        /// IPv4 address
        #[arg(value_name = "ADDRESS", required_unless_present = "all_resting")]
        ip: Option<String>,
        /// Every address that was given back; those that are held stay held
        #[arg(long, conflicts_with = "ip")]
        all_resting: bool,
    },
    /// List the reserved subnets
    Subnets,
    /// Reserve a part of the node's subnet; the same identifier always gets the same one
    Reserve {
        /// Whose it is, as sandboxes name it in `network.subnet`
        identifier: String,
        /// Its size
        #[arg(long, value_name = "BITS")]
        prefix_length: u32,
    },
    /// Give a reserved subnet to everybody again
    Unreserve {
        /// Whose it is
        identifier: String,
    },
}

/// A state of a lease to filter by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LeaseStateArg {
    /// A record holds it
    Held,
    /// It was given back less than the cool-down ago
    Resting,
    /// It was given back, and its rest is over
    Free,
    /// It is held for an owner that has no record
    Unexplained,
}

impl From<LeaseStateArg> for v1::LeaseState {
    fn from(state: LeaseStateArg) -> Self {
        match state {
            LeaseStateArg::Held => Self::Held,
            LeaseStateArg::Resting => Self::Resting,
            LeaseStateArg::Free => Self::Free,
            LeaseStateArg::Unexplained => Self::Unexplained,
        }
    }
}

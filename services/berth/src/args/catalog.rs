//! What can be typed after `berth catalog`.

use std::path::PathBuf;

use berth_api::v1;
use clap::{Subcommand, ValueEnum};

/// Commands of `catalog`.
#[derive(Debug, Subcommand)]
pub(crate) enum Catalog {
    /// Put the entries of a file, one after another; each replaces the one of its kind and id
    Put {
        /// YAML or JSON (when it begins with `{`) with a list `entries`, as `catalog ls -o yaml` prints it; `-` is
        /// standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// List entries by kind and id
    Ls {
        /// Only this kind. Default: all
        #[arg(long, value_enum)]
        kind: Option<EntryKindArg>,
    },
    /// List the sandboxes that answer for services
    Endpoints {
        /// Only those of this app. Default: all
        #[arg(long)]
        app: Option<String>,
        /// Only those of this service, by its id. Default: all
        #[arg(long)]
        service: Option<String>,
    },
    /// Remove an entry
    Rm {
        /// Kind of the entry
        #[arg(value_enum)]
        kind: EntryKindArg,
        /// Id of the entry
        id: String,
    },
}

/// What an entry of the catalog is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EntryKindArg {
    /// An app
    App,
    /// Something that was built for an app
    Artifact,
    /// A name for addresses that are no sandbox
    Host,
    /// A name by which sandboxes of an app are found
    Service,
    /// A version of an app
    Version,
}

impl From<EntryKindArg> for v1::EntryKind {
    fn from(kind: EntryKindArg) -> Self {
        match kind {
            EntryKindArg::App => Self::App,
            EntryKindArg::Artifact => Self::Artifact,
            EntryKindArg::Host => Self::Host,
            EntryKindArg::Service => Self::Service,
            EntryKindArg::Version => Self::Version,
        }
    }
}

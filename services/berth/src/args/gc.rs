//! What can be typed after `berth gc` and `berth explain`.

use clap::Subcommand;

use super::values::parse_memory_bytes;

/// Commands of `gc`.
#[derive(Debug, Subcommand)]
pub(crate) enum Gc {
    /// Show what a run would do with each object now, and why; changes nothing
    Plan {
        #[command(flatten)]
        what: Collected,
        #[command(flatten)]
        worker: Worker,
    },
    /// Delete what nothing needs and wait until it is done; exit code 1 where something could not be read or deleted
    Run {
        #[command(flatten)]
        what: Collected,
        #[command(flatten)]
        worker: Worker,
    },
    /// List the workers that share the work, with the slices that each holds
    Workers,
    /// List the latest runs, newest first
    Ls,
}

/// What is collected, and how much of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Collected {
    /// Only images. Default, without --blobs: both
    #[arg(long)]
    pub(crate) images: bool,
    /// Only blobs. Default, without --images: both
    #[arg(long)]
    pub(crate) blobs: bool,
    /// Stop when so much is freed, the longest unused first, as `10GiB`. Default: all that is of no use
    #[arg(long, value_name = "BYTES", value_parser = parse_memory_bytes)]
    pub(crate) goal: Option<u64>,
}

/// Which worker is asked.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Worker {
    /// Where a worker of image-gc listens: `unix:/path`, `/path` or `http://host:port`. Default: where the workers say
    /// that the manager knows, else unix:/run/berth/image-gc.sock
    #[arg(long, env = "BERTH_GC_ADDRESS", value_name = "ADDRESS")]
    pub(crate) gc_address: Option<String>,
}

/// Commands of `explain`.
#[derive(Debug, Subcommand)]
pub(crate) enum Explain {
    /// Say in plain words who holds an image, or when it goes
    Image {
        /// Image reference
        image: String,
        #[command(flatten)]
        worker: Worker,
    },
}

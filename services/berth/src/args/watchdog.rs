//! What can be typed after `berth watchdog`.

use clap::Subcommand;

/// Commands of `watchdog`.
#[derive(Debug, Subcommand)]
pub(crate) enum Watchdog {
    /// List what a run would remove if it stays as it is; changes nothing
    Plan {
        #[command(flatten)]
        at: WatchdogAddress,
    },
    /// Run now and wait until it is done; exit code 1 where something could not be removed
    Run {
        #[command(flatten)]
        at: WatchdogAddress,
    },
    /// Show how the watchdog is and what its last run did
    Status {
        #[command(flatten)]
        at: WatchdogAddress,
    },
}

/// Which watchdog is asked.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WatchdogAddress {
    /// Where a watchdog listens: `unix:/path`, `/path` or `http://host:port`. Default: where those say that the manager
    /// knows, else unix:/run/berth/watchdog.sock
    #[arg(long, env = "BERTH_WATCHDOG_ADDRESS", value_name = "ADDRESS")]
    pub(crate) watchdog_address: Option<String>,
}

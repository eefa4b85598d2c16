//! What can be typed after `berth top` and `berth stats`.

use std::time::Duration;

use clap::ValueEnum;

use super::values::parse_timeout;

/// Arguments of `stats`.
#[derive(Debug, clap::Args)]
pub(crate) struct Stats {
    /// Id of the sandbox
    pub(crate) id: String,
    /// Show it again and again, until interrupted or the sandbox is gone
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Time between two looks, as `1s`; at least 100ms
    #[arg(long, value_name = "DURATION", requires = "watch", default_value = "1s", value_parser = parse_look)]
    pub(crate) interval: Duration,
}

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
pub(crate) struct Top {
    /// What the rows are ordered by, the largest first
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) sort: Order,
    /// Show the containers of each sandbox too
    #[arg(short, long)]
    pub(crate) containers: bool,
    /// Show one table and end. Default: so where standard output is no terminal and the form is `table`
    #[arg(long)]
    pub(crate) once: bool,
    /// Whole seconds between two looks, 1 to 900
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=900))]
    pub(crate) interval: u32,
    /// Where the metrics process listens: `unix:/path`, `/path` or `http://host:port`. Default: where it says that the manager
    /// knows, else unix:/run/berth/metrics.sock
    #[arg(long, env = "BERTH_METRICS_ADDRESS", value_name = "ADDRESS")]
    pub(crate) metrics_address: Option<String>,
}

/// An order of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Order {
    /// CPU that is used
    #[default]
    Cpu,
    /// Working set
    Memory,
    /// Bytes over the link, both ways
    Net,
    /// Bytes to and from block devices
    Io,
    /// Time that was waited for CPU, memory or block devices, whichever is most
    Pressure,
    /// State: what is not running first
    State,
    /// Id
    Name,
}

fn parse_look(text: &str) -> Result<Duration, String> {
    let interval = parse_timeout(text)?;
    if interval < Duration::from_millis(100) {
        return Err("at least 100ms".to_owned());
    }
    Ok(interval)
}

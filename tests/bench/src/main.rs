//! How long a Create takes, interleaved with `ctr run -d` of one container: same image, same containerd, same run.
//! Starts nothing by itself: `deploy/dev/bench` brings the node.

mod create;
mod peer;
mod statistics;

use std::path::PathBuf;

use clap::Parser;

/// Measures Create to RUNNING (pause + one app, bridged, port open) against `ctr run -d`.
#[derive(Debug, Parser)]
struct Arguments {
    /// The manager's address.
    #[arg(long, env = "BERTH_ADDRESS")]
    address: String,
    /// containerd's socket.
    #[arg(long, env = "CONTAINERD_ADDRESS")]
    containerd: PathBuf,
    /// containerd's namespace, which has the image.
    #[arg(long, env = "CONTAINERD_NAMESPACE")]
    namespace: String,
    /// Image with busybox.
    #[arg(long)]
    image: String,
    /// Rounds; each has one Create and one `ctr run -d`.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Where the figures go as JSON.
    #[arg(long)]
    output: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    create::measure(Arguments::parse()).await
}

//! How long a Create takes, interleaved with `ctr run -d` of one container: same image, same containerd, same run; and how
//! long an address takes, interleaved with a bare write; how long after an app listens its sandbox is RUNNING; what a packet
//! costs beside few and beside many sandboxes; and what sampling many sandboxes costs. Starts no node by itself:
//! `deploy/dev/bench` brings it.

mod create;
mod leases;
mod packets;
mod peer;
mod ready;
mod sampling;
mod statistics;

use std::path::PathBuf;

use clap::Parser;

#[derive(Debug, Parser)]
enum Bench {
    Create(Arguments),
    Leases(leases::Arguments),
    Packets(packets::Arguments),
    Ready(ready::Arguments),
    Sampling(sampling::Arguments),
}

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
    match Bench::parse() {
        Bench::Create(arguments) => create::measure(arguments).await,
        Bench::Leases(arguments) => leases::measure(arguments).await,
        Bench::Packets(arguments) => packets::measure(arguments),
        Bench::Ready(arguments) => ready::measure(arguments).await,
        Bench::Sampling(arguments) => sampling::measure(arguments).await,
    }
}

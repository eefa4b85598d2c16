//! The dns process: reads its configuration, answers, and stops when told to.

use std::process::ExitCode;

use berth_daemon::{observed, refuse, stop_signal};
use berth_plugin::farewell;
use berth_telemetry::Identity;
use clap::Parser as _;
use dns::{App, Config, Flags, load};

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let config = match load(&flags) {
        Ok(_) if flags.check => return ExitCode::SUCCESS,
        Ok(config) => config,
        Err(err) => return refuse("dns", &err),
    };
    let identity = Identity {
        service: "dns",
        socket: &config.socket,
    };
    let work = run(config.clone());
    observed(identity, &config.telemetry, work, |_| ExitCode::FAILURE).await
}

async fn run(config: Config) -> anyhow::Result<()> {
    // Nothing is under way that would have to be ended: who was not answered asks again.
    tokio::select! {
        ended = App::run(config.clone()) => ended,
        signal = stop_signal() => {
            tracing::info!(signal, "stopping");
            farewell(&config.target(), &config.plugin()).await;
            Ok(())
        }
    }
}

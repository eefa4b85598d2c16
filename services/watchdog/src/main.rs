//! The watchdog process: reads its configuration, watches, and stops when told to.

use std::process::ExitCode;

use clap::Parser as _;
use watchdog::{App, Config, Flags, load};

/// From `sysexits.h`: the configuration is at fault, so starting again will not help.
const EX_CONFIG: u8 = 78;

#[tokio::main]
async fn main() -> ExitCode {
    let config = match load(&Flags::parse()) {
        Ok(config) => config,
        #[expect(
            clippy::print_stderr,
            reason = "logging is set up after the configuration"
        )]
        Err(err) => {
            eprintln!("watchdog: invalid configuration: {err:#}");
            return ExitCode::from(EX_CONFIG);
        }
    };
    berth_daemon::init_telemetry();
    match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(error = format!("{err:#}"), "watchdog failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    // What it has asked for the manager ends; what it has not asked for the next start does.
    tokio::select! {
        ended = App::run(config) => ended,
        signal = berth_daemon::stop_signal() => {
            tracing::info!(signal, "stopping");
            Ok(())
        }
    }
}

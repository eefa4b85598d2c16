//! The watchdog process: reads its configuration, watches, and stops when told to.

use std::process::ExitCode;

use berth_telemetry::Identity;
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
    let identity = Identity {
        service: "watchdog",
        version: env!("CARGO_PKG_VERSION"),
        socket: &config.socket,
    };
    let telemetry = match berth_telemetry::start(identity, &config.telemetry) {
        Ok(telemetry) => telemetry,
        #[expect(clippy::print_stderr, reason = "there is no log output yet")]
        Err(err) => {
            eprintln!("watchdog: {err}");
            return match err.is_misconfigured() {
                true => ExitCode::from(EX_CONFIG),
                false => ExitCode::FAILURE,
            };
        }
    };
    let code = match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(error = format!("{err:#}"), "watchdog failed");
            ExitCode::FAILURE
        }
    };
    telemetry.finish().await;
    code
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

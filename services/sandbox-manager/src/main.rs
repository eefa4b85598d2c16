//! The sandbox-manager process: reads its configuration, serves, and stops when told to.

use std::{pin::pin, process::ExitCode};

use anyhow::Context as _;
use berth_daemon::{EX_CONFIG, observed, refuse, stop_signal};
use berth_telemetry::Identity;
use clap::Parser as _;
use sandbox_manager::{
    App, Command, Config, Flags, Outcome, StoreCommand, StoreError, is_misconfigured, load,
    uninstall,
};
use tokio_util::sync::CancellationToken;

/// From `sysexits.h`: the store's file is at fault, and somebody has to look at it.
const EX_DATAERR: u8 = 65;

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let config = match load(&flags) {
        Ok(_) if flags.check => return ExitCode::SUCCESS,
        Ok(config) => config,
        Err(err) => return refuse("sandbox-manager", &err),
    };
    match flags.command {
        Some(Command::Store(command)) => return on_store(&command, &config),
        Some(Command::Uninstall) => return on_uninstall(&config).await,
        None => {}
    }
    let identity = Identity {
        service: "sandbox-manager",
        socket: &config.socket,
    };
    let work = run(config.clone());
    observed(identity, &config.telemetry, work, exit_code).await
}

#[expect(clippy::print_stderr, reason = "somebody waits for the answer")]
fn on_store(command: &StoreCommand, config: &Config) -> ExitCode {
    match command.run(config) {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Lacking) => ExitCode::from(EX_DATAERR),
        Err(err) => {
            eprintln!("sandbox-manager: {err:#}");
            exit_code(&err)
        }
    }
}

#[expect(clippy::print_stderr, reason = "somebody waits for the answer")]
async fn on_uninstall(config: &Config) -> ExitCode {
    match uninstall(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("sandbox-manager: {err:#}");
            exit_code(&err)
        }
    }
}

fn exit_code(err: &anyhow::Error) -> ExitCode {
    let mut chain = err.chain().filter_map(|it| it.downcast_ref::<StoreError>());
    if chain.any(StoreError::is_about_the_file) {
        return ExitCode::from(EX_DATAERR);
    }
    match is_misconfigured(err) {
        true => ExitCode::from(EX_CONFIG),
        false => ExitCode::FAILURE,
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let grace = config.shutdown_grace;
    let stop = CancellationToken::new();
    let app = App::build(config, stop.clone()).await.context("starting")?;
    tracing::info!(socket = %app.socket().display(), "serving");

    let mut serving = pin!(app.serve());
    tokio::select! {
        ended = &mut serving => return ended,
        signal = stop_signal() => tracing::info!(signal, "stopping"),
    }
    stop.cancel();
    // Sandboxes go on without us, and the next start goes on with what was under way.
    match tokio::time::timeout(grace, serving).await {
        Ok(ended) => ended,
        Err(_) => {
            tracing::warn!("some plans are not at rest; the next start takes them up");
            Ok(())
        }
    }
}

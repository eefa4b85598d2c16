//! The image-gc process: reads its configuration, works with the others, and stops when told to.

use std::process::ExitCode;

use berth_daemon::{observed, refuse, stop_signal};
use berth_telemetry::Identity;
use clap::Parser as _;
use image_gc::{App, Config, Flags, load};

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let config = match load(&flags) {
        Ok(_) if flags.check => return ExitCode::SUCCESS,
        Ok(config) => config,
        Err(err) => return refuse("image-gc", &err),
    };
    let identity = Identity {
        service: "image-gc",
        socket: &config.socket,
    };
    let work = run(config.clone());
    observed(identity, &config.telemetry, work, |_| ExitCode::FAILURE).await
}

async fn run(config: Config) -> anyhow::Result<()> {
    let app = App::new(config)?;
    tokio::select! {
        ended = app.run() => ended,
        signal = stop_signal() => {
            tracing::info!(signal, "stopping");
            // The others take its part over at once, and not when its leases have ended.
            app.leave().await;
            Ok(())
        }
    }
}

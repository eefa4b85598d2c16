//! How a program begins and ends: a configuration that is refused, telemetry around its work, the code that it ends with.

use std::{fmt::Display, process::ExitCode};

use berth_telemetry::{Config, Identity};

use crate::supervised::keep_told;

/// From `sysexits.h`: the configuration is at fault, so starting again will not help.
pub const EX_CONFIG: u8 = 78;

/// Ends the program for its configuration.
#[expect(
    clippy::print_stderr,
    reason = "log output is set up after the configuration"
)]
pub fn refuse(program: &str, problem: &impl Display) -> ExitCode {
    eprintln!("{program}: invalid configuration: {problem:#}");
    ExitCode::from(EX_CONFIG)
}

/// Does the work of a process where it can be seen, and keeps systemd told. It is called once, inside of the runtime; `code` says what a failure means.
pub async fn observed<W: Future<Output = anyhow::Result<()>>>(
    identity: Identity<'_>,
    config: &Config,
    work: W,
    code: impl FnOnce(&anyhow::Error) -> ExitCode,
) -> ExitCode {
    let program = identity.service;
    let telemetry = match berth_telemetry::start(identity, config) {
        Ok(telemetry) => telemetry,
        #[expect(clippy::print_stderr, reason = "there is no log output yet")]
        Err(err) => {
            eprintln!("{program}: {err}");
            return match err.is_misconfigured() {
                true => ExitCode::from(EX_CONFIG),
                false => ExitCode::FAILURE,
            };
        }
    };
    let told = keep_told(identity.socket);
    let ended = tokio::select! {
        ended = work => ended,
        never = told => match never {},
    };
    let ended = match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(error = format!("{err:#}"), "{program} failed");
            code(&err)
        }
    };
    telemetry.finish().await;
    ended
}

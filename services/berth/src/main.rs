//! The `berth` command: reads its arguments, runs one command, ends with its exit code.
//! What a command does is in `commands`; where text goes is in `output`.

mod args;
mod commands;
mod errors;
mod output;
mod progress;
mod proto_json;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{args::Args, commands::Session};

/// What a shell reports for a program that SIGINT ended: 128 + 2.
const EXIT_INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let Args { global, command } = Args::parse();
    let goes_on = command.goes_on_alone();
    let session = Session::new(global);
    tokio::select! {
        ended = commands::run(&session, command) => match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => errors::report(&failure),
        },
        // The node owns the work: dropping the call ends the wait only.
        _ = tokio::signal::ctrl_c() => {
            if goes_on {
                output::complain("berth: interrupted; the node goes on with what was asked");
            }
            ExitCode::from(EXIT_INTERRUPTED)
        }
    }
}

//! The `berth` command: reads its arguments, runs one command, ends with its exit code.
//! What a command does is in `commands`; where text goes is in `output`.

mod args;
mod commands;
mod errors;
mod output;
mod progress;
mod proto_json;
mod terminal;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{args::Args, commands::Session};

/// What a shell reports for a program that SIGINT ended: 128 + 2.
const EXIT_INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(err) => {
            output::complain(&format!("berth: cannot start: {err}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(args));
    // A read of standard input cannot be cancelled, and dropping the runtime would wait for it.
    runtime.shutdown_background();
    code
}

async fn run(Args { global, command }: Args) -> ExitCode {
    let goes_on = command.goes_on_alone();
    let own_signals = command.hands_signals_on();
    let session = Session::new(global);
    tokio::select! {
        // In this order the handler is in place before the first word is printed.
        biased;
        // The node owns the work: dropping the call ends the wait only.
        _ = tokio::signal::ctrl_c(), if !own_signals => {
            if goes_on {
                output::complain("berth: interrupted; the node goes on with what was asked");
            }
            ExitCode::from(EXIT_INTERRUPTED)
        }
        ended = commands::run(&session, command) => match ended {
            Ok(code) => ExitCode::from(code),
            Err(failure) => errors::report(&failure),
        },
    }
}

//! Takes the output of one container from its shim and writes it as a log. containerd's shim starts it per task
//! (`binary:///…/log-writer?dir=DIR&limit=BYTES`) with the container's output on descriptors 3 and 4, and lets the task begin
//! when descriptor 5 is closed. A container never stands still or loses a reader, whatever becomes of the disk or of one of
//! the two processes.
//!
//! Compiled by `build.rs` to a static program. Cargo compiles it for its unit tests and lints only.
#![cfg_attr(test, allow(dead_code))]

#[path = "../../lib/logs/src/format.rs"]
#[allow(dead_code, unreachable_pub)]
mod format;
#[path = "../../lib/logs/src/lines.rs"]
#[allow(dead_code, unreachable_pub)]
mod lines;
#[path = "../../lib/logs/src/segments.rs"]
#[allow(dead_code, unreachable_pub)]
mod segments;

mod guardian;
#[allow(
    unsafe_code,
    reason = "two processes share it, which the language knows nothing of"
)]
mod shared;
#[allow(
    unsafe_code,
    reason = "the standard library does not have these system calls"
)]
mod system;
mod worker;

use std::{io, path::PathBuf, process::ExitCode};

use guardian::Next;
use shared::Shared;
use worker::{Birth, Ended};

const LIMIT_DEFAULT: u64 = 16 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> io::Result<()> {
    let signal = system::told_to_end()?;
    let [stdout, stderr, ready] = system::handed_over([3, 4, 5]);
    let settings = settings(std::env::args().skip(1));
    let (dir, limit) = settings.ok_or(io::ErrorKind::InvalidInput)?;
    let shared = Shared::new()?;
    system::call_process(guardian::NAME);
    drop(ready);
    let sources = [stdout, stderr];
    let mut birth = Birth::First;
    loop {
        match guardian::guard(shared, &sources, &signal, birth)? {
            Next::Exit => return Ok(()),
            Next::Work(line, birth) => match worker::work(shared, &dir, limit, &line, birth) {
                Ended::Finished => return Ok(()),
                Ended::Alone => {}
            },
        }
        birth = Birth::AfterGuardian;
    }
}

/// Reads `key value key value …`; `None` without a folder.
fn settings(mut arguments: impl Iterator<Item = String>) -> Option<(PathBuf, u64)> {
    let (mut dir, mut limit) = (None, LIMIT_DEFAULT);
    while let (Some(key), Some(value)) = (arguments.next(), arguments.next()) {
        match key.as_str() {
            "dir" => dir = Some(PathBuf::from(value)),
            "limit" => limit = value.parse().unwrap_or(LIMIT_DEFAULT),
            _ => {}
        }
    }
    Some((dir?, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_pairs_in_any_order() {
        let read = |text: &str| settings(text.split(' ').map(str::to_owned));
        assert_eq!(read("limit 7 dir /a"), Some(("/a".into(), 7)));
        assert_eq!(read("dir /a other x"), Some(("/a".into(), LIMIT_DEFAULT)));
        assert_eq!(read("limit 7"), None);
    }
}

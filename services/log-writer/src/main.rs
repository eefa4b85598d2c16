//! Takes the output of one container from its shim and keeps the end of it in bounded files.
//!
//! containerd's shim starts it per task (`binary:///…/log-writer?dir=DIR&limit=BYTES`) with the container's output on
//! descriptors 3 and 4, and lets the task begin when descriptor 5 is closed. It always reads, whatever becomes of the
//! files: a container must never stand still because a disk is full.

mod bounded;

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bounded::BoundedFile;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, read},
};
use signal_hook::consts::SIGTERM;

/// Told to end, it waits this long for output that is still on its way.
const DRAIN: Duration = Duration::from_secs(1);
const LIMIT_DEFAULT: u64 = 16 << 20;
const BUFFER: usize = 64 << 10;

fn main() -> ExitCode {
    let told_to_end = Arc::new(AtomicBool::new(false));
    if signal_hook::flag::register(SIGTERM, told_to_end.clone()).is_err() {
        return ExitCode::FAILURE;
    }
    let [stdout, stderr, ready] = handed_over();
    let mut file = settings(std::env::args().skip(1))
        .and_then(|(dir, limit)| BoundedFile::open(&dir, limit).ok());
    drop(ready);
    match copy(&[stdout, stderr], &told_to_end, |bytes| {
        keep(&mut file, bytes)
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The descriptors 3, 4 and 5.
#[expect(
    unsafe_code,
    reason = "descriptors by number are how the shim hands over its pipes"
)]
fn handed_over() -> [OwnedFd; 3] {
    // SAFETY: the shim hands these three over, and nothing else in this process owns them.
    [3, 4, 5].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
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

/// What cannot be written is dropped; the next bytes get their try.
fn keep(file: &mut Option<BoundedFile>, bytes: &[u8]) {
    if let Some(file) = file {
        let _ = file.write(bytes);
    }
}

/// Hands over what arrives until every source has ended, or until nothing arrives after it was told to end.
fn copy(
    sources: &[OwnedFd],
    told_to_end: &AtomicBool,
    mut hand_over: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut open: Vec<&OwnedFd> = sources.iter().collect();
    while !open.is_empty() {
        let patience = told_to_end.load(Ordering::Relaxed).then_some(DRAIN);
        let mut waiting: Vec<_> = open
            .iter()
            .map(|it| PollFd::new(it, PollFlags::IN))
            .collect();
        let patience = patience
            .map(|it| it.try_into())
            .transpose()
            .map_err(io::Error::other)?;
        match poll(&mut waiting, patience.as_ref()) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = waiting.iter().map(|it| !it.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        open.retain(|source| {
            if !ready.next().unwrap_or_default() {
                return true;
            }
            match read(source, buffer.as_mut_slice()) {
                Ok(0) => false,
                Ok(length) => {
                    hand_over(&buffer[..length]);
                    true
                }
                Err(Errno::INTR | Errno::AGAIN) => true,
                Err(_) => false,
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn everything_is_read_until_both_ends_are_closed() {
        let (out, mut out_end) = io::pipe().unwrap();
        let (err, mut err_end) = io::pipe().unwrap();
        let writer = std::thread::spawn(move || {
            for _ in 0..1000 {
                out_end.write_all(&[b'o'; 1000]).unwrap();
                err_end.write_all(&[b'e'; 100]).unwrap();
            }
        });
        let mut seen = [0_usize; 2];
        copy(
            &[out.into(), err.into()],
            &AtomicBool::new(false),
            |bytes| {
                for byte in bytes {
                    seen[usize::from(*byte == b'e')] += 1;
                }
            },
        )
        .unwrap();
        writer.join().unwrap();
        assert_eq!(seen, [1_000_000, 100_000]);
    }

    #[test]
    fn told_to_end_it_still_takes_what_is_there_though_an_end_stays_open() {
        let (out, mut end) = io::pipe().unwrap();
        end.write_all(b"the last line\n").unwrap();
        let mut seen = vec![];
        let told = AtomicBool::new(true);
        copy(&[out.into()], &told, |bytes| seen.extend_from_slice(bytes)).unwrap();
        assert_eq!(seen, b"the last line\n");
    }

    #[test]
    fn the_arguments_are_pairs_in_any_order() {
        let read = |text: &str| settings(text.split(' ').map(str::to_owned));
        assert_eq!(read("limit 7 dir /a"), Some(("/a".into(), 7)));
        assert_eq!(read("dir /a other x"), Some(("/a".into(), LIMIT_DEFAULT)));
        assert_eq!(read("limit 7"), None);
    }
}

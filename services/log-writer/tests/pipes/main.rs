//! The real program between pipes, as the shim starts it: what it is given, what can be read, and what it holds meanwhile.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod takeover;
mod writer;

use std::{
    fs,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use berth_logs::format::{GapReason, Kind, PARTIAL, TEXT_MAX, TRUNCATED};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::Signal,
};
use writer::{Entry, Writer, until};

const LIMIT: u64 = 16 << 20;
/// What each of the two processes may hold.
const MEMORY_KIB: u64 = 1536;

fn lines(range: std::ops::Range<u64>) -> Vec<u8> {
    range
        .flat_map(|it| format!("line {it}\n").into_bytes())
        .collect()
}

/// The numbers of all `line N` of a log, in the order in which they are there.
fn numbers(entries: &[Entry]) -> Vec<u64> {
    let line = |it: &Entry| {
        let text = std::str::from_utf8(&it.text).ok()?;
        text.strip_prefix("line ")?.parse().ok()
    };
    entries.iter().filter_map(line).collect()
}

/// Each number once, or within a gap.
fn assert_continuous(entries: &[Entry]) {
    let mut next = entries.first().map_or(0, |it| it.sequence);
    for entry in entries {
        assert_eq!(entry.sequence, next, "{entry:?}");
        next += entry.numbers();
    }
}

fn gaps(entries: &[Entry]) -> Vec<(GapReason, u64, u64)> {
    let gaps = entries.iter().filter_map(Entry::gap);
    gaps.map(|it| (it.reason, it.lines, it.bytes)).collect()
}

#[test]
fn lines_of_both_streams_are_tagged_and_numbered_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::start(dir.path(), LIMIT);
    writer.out.write_all(b"one\r\n!USER two\n").unwrap();
    writer.until_read(|it| it.len() == 2);
    writer.err.write_all(b"three\n!ERROR four\n\n").unwrap();
    writer.end();
    let entries = writer::read(dir.path());
    let seen: Vec<_> = entries
        .iter()
        .map(|it| (it.sequence, it.kind, it.flags, it.text.as_slice()))
        .collect();
    let expected: [(u64, Kind, u8, &[u8]); 5] = [
        (0, Kind::Stdout, 0, b"one"),
        (1, Kind::UserOob, 0, b"two"),
        (2, Kind::Stderr, 0, b"three"),
        (3, Kind::Error, 0, b"four"),
        (4, Kind::Stderr, 0, b""),
    ];
    assert_eq!(seen, expected);
    assert!(entries.is_sorted_by_key(|it| it.time_ns));
}

#[test]
fn a_flood_on_one_stream_keeps_nothing_of_the_other_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::start(dir.path(), 1 << 30);
    let mut flooded = writer.out.try_clone().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let flood = std::thread::spawn({
        let over = over.clone();
        move || {
            while !over.load(Ordering::Relaxed) {
                flooded.write_all(&[b'y', b'\n'].repeat(4096)).unwrap();
            }
        }
    });
    // More than waits on its way.
    let expected = lines(0..20_000);
    writer.err.write_all(&expected).unwrap();
    writer.until_read(|it| it.iter().any(|it| it.text.ends_with(b"19999")));
    over.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    writer.end();
    let entries = writer::read(dir.path());
    assert_continuous(&entries);
    assert_eq!(gaps(&entries), []);
    let errors = entries.iter().filter(|it| it.kind == Kind::Stderr);
    assert_eq!(errors.count(), 20_000);
}

#[test]
fn a_prompt_is_there_while_it_waits_and_its_line_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::start(dir.path(), LIMIT);
    writer.out.write_all(b"name: ").unwrap();
    writer.until_read(|it| it.len() == 1);
    writer.out.write_all(b"Bo\nlast words").unwrap();
    writer.end();
    let seen: Vec<_> = writer::read(dir.path())
        .into_iter()
        .map(|it| (it.flags & PARTIAL != 0, String::from_utf8(it.text).unwrap()))
        .collect();
    let expected = [(true, "name: "), (false, "Bo"), (false, "last words")];
    assert_eq!(seen, expected.map(|(partial, it)| (partial, it.to_owned())));
}

#[test]
fn a_line_of_100_mb_is_cut_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::start(dir.path(), LIMIT);
    for _ in 0..100 {
        writer.out.write_all(&[b'x'; 1_000_000]).unwrap();
    }
    writer.out.write_all(b"\nafter it\n").unwrap();
    writer.until_read(|it| it.last().is_some_and(|it| it.text == b"after it"));
    for (process, kib) in writer.peaks() {
        assert!(kib < MEMORY_KIB, "{process} held {kib} KiB");
        eprintln!("{process} held {kib} KiB at most");
    }
    writer.end();
    let mut entries = writer::read(dir.path());
    assert_continuous(&entries);
    assert_eq!(entries.pop().unwrap().text, b"after it");
    let last = entries.pop().unwrap();
    assert_eq!(last.flags, TRUNCATED);
    assert!(entries.iter().all(|it| it.flags == PARTIAL));
    let length: usize = entries.iter().map(|it| it.text.len()).sum();
    assert_eq!(length + last.text.len(), TEXT_MAX);
}

#[test]
fn garbage_is_kept_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = 1_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    let garbage: Vec<u8> = (0..1_000_000).map(|_| next()).collect();
    let mut writer = Writer::start(dir.path(), LIMIT);
    writer.out.write_all(&garbage).unwrap();
    writer.end();
    let trim = |line: &[u8]| {
        let kept = line.iter().rposition(|it| !b"\t\r".contains(it));
        line[..kept.map_or(0, |it| it + 1)].to_vec()
    };
    let mut expected: Vec<_> = garbage.split(|it| *it == b'\n').map(trim).collect();
    if garbage.ends_with(b"\n") {
        expected.pop();
    }
    let entries = writer::read(dir.path());
    assert_continuous(&entries);
    let mut seen = vec![vec![]];
    for entry in entries {
        seen.last_mut().unwrap().extend(entry.text);
        if entry.flags & PARTIAL == 0 {
            seen.push(vec![]);
        }
    }
    seen.pop();
    assert!(
        seen == expected,
        "{} lines, not {}",
        seen.len(),
        expected.len()
    );
}

#[test]
fn a_hundred_thousand_lines_of_one_write_are_all_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::start(dir.path(), LIMIT);
    writer.out.write_all(&lines(0..100_000)).unwrap();
    writer.end();
    let entries = writer::read(dir.path());
    assert_continuous(&entries);
    assert_eq!(numbers(&entries), (0..100_000).collect::<Vec<_>>());
}

#[test]
fn a_writer_that_comes_later_goes_on_with_the_numbers() {
    let dir = tempfile::tempdir().unwrap();
    for run in 0..3 {
        let mut writer = Writer::start(dir.path(), LIMIT);
        writer
            .out
            .write_all(&lines(run * 10..run * 10 + 10))
            .unwrap();
        writer.end();
    }
    let entries = writer::read(dir.path());
    assert_continuous(&entries);
    assert_eq!(numbers(&entries), (0..30).collect::<Vec<_>>());
}

/// A file system of that many bytes in memory.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn mount(at: &'a Path, bytes: u64) -> Self {
        let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        mount(
            "log-disk",
            at,
            "tmpfs",
            MountFlags::empty(),
            size.as_c_str(),
        )
        .unwrap();
        Self(at)
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_disk_that_others_fill_loses_lines_which_a_gap_counts() {
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::mount(place.path(), 8 << 20);
    let dir = place.path().join("log");
    let mut writer = Writer::start(&dir, LIMIT);
    writer.out.write_all(b"before\n").unwrap();
    writer.until_read(|it| it.len() == 1);
    let ballast = place.path().join("ballast");
    // As much as there is, but some 100 KiB.
    fs::write(&ballast, vec![0; (8 << 20) - (120 << 10)]).unwrap();
    const LINES: u64 = 100_000;
    writer.out.write_all(&lines(0..LINES)).unwrap();
    fs::remove_file(&ballast).unwrap();
    // The gap is told once there is room, without any more output.
    writer.until_read(|it| it.iter().any(|it| it.gap().is_some()));
    writer.out.write_all(b"after\n").unwrap();
    for (process, kib) in writer.peaks() {
        assert!(kib < MEMORY_KIB, "{process} held {kib} KiB");
    }
    writer.end();
    let entries = writer::read(&dir);
    assert_continuous(&entries);
    assert_eq!(entries.last().unwrap().text, b"after");
    let seen = numbers(&entries);
    assert!(seen.is_sorted(), "none is doubled");
    let lost: Vec<u64> = (0..LINES)
        .filter(|it| seen.binary_search(it).is_err())
        .collect();
    let bytes: u64 = lost
        .iter()
        .map(|it| format!("line {it}").len() as u64)
        .sum();
    let counted = gaps(&entries);
    assert!(
        counted.iter().all(|it| it.0 == GapReason::Disk),
        "{counted:?}"
    );
    assert_eq!(
        (
            counted.iter().map(|it| it.1).sum(),
            counted.iter().map(|it| it.2).sum()
        ),
        (lost.len() as u64, bytes)
    );
    assert!(
        lost.len() > 50_000,
        "the disk was full: {} lost",
        lost.len()
    );
    drop(disk);
}

#[test]
fn a_log_that_fills_its_disk_gives_its_oldest_lines_for_new_ones() {
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::mount(place.path(), 8 << 20);
    let dir = place.path().join("log");
    let mut writer = Writer::start(&dir, 64 << 20);
    writer.out.write_all(&lines(0..600_000)).unwrap();
    writer.end();
    let entries = writer::read(&dir);
    assert_continuous(&entries);
    assert_eq!(gaps(&entries), []);
    let seen = numbers(&entries);
    assert_eq!(seen.last(), Some(&599_999));
    assert!(seen.len() > 100_000, "{} are kept", seen.len());
    drop(disk);
}

#[test]
fn a_folder_that_cannot_be_made_stops_nobody_and_is_tried_again() {
    let place = tempfile::tempdir().unwrap();
    let obstacle = place.path().join("log");
    fs::write(&obstacle, "").unwrap();
    let dir = obstacle.join("app");
    let mut writer = Writer::start(&dir, LIMIT);
    writer.out.write_all(&lines(0..50_000)).unwrap();
    fs::remove_file(&obstacle).unwrap();
    writer.until_read(|it| it.iter().any(|it| it.gap().is_some()));
    writer.out.write_all(b"after\n").unwrap();
    writer.end();
    let entries = writer::read(&dir);
    assert_continuous(&entries);
    assert_eq!(entries[0].gap().unwrap().reason, GapReason::Disk);
    let kept = numbers(&entries).len() as u64;
    assert_eq!(entries[0].gap().unwrap().lines, 50_000 - kept);
    assert_eq!(entries.last().unwrap().text, b"after");
}

/// Kills the guardian (0) or the worker (1) ten times amidst their work, and reads what came of it.
fn kill_again_and_again(which: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::start(dir.path(), 256 << 20);
    let mut output = writer.out.try_clone().unwrap();
    let stop = AtomicBool::new(false);
    let mut seen_by_followers = vec![];
    let wrote = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                output.write_all(&lines(number..number + 7)).unwrap();
                number += 7;
            }
            number
        });
        let mut former = 0;
        for _ in 0..10 {
            let pair = until("there are two others", || {
                writer.pair().filter(|it| ![it.0, it.1].contains(&former))
            });
            former = [pair.0, pair.1][which];
            let seen = writer.size();
            until("they write", || {
                (writer.size() > seen + 100_000).then_some(())
            });
            // Whoever follows has read what is there in this moment: it must stay as it is.
            writer::kill(pair.1, Signal::STOP);
            seen_by_followers.push(writer.last_segment());
            writer::kill(former, Signal::KILL);
            if which == 0 {
                writer::kill(pair.1, Signal::CONT);
            }
        }
        stop.store(true, Ordering::Relaxed);
        writing.join().unwrap()
    });
    drop(output);
    writer.close();
    until("both have ended", || {
        let left = ["log-guardian", "log-writer"].map(|it| writer.processes(it));
        left.concat().is_empty().then_some(())
    });
    for (path, bytes) in seen_by_followers {
        let now = fs::read(&path).unwrap();
        assert!(now.starts_with(&bytes), "{} was changed", path.display());
    }
    let entries = writer::read(dir.path());
    assert_continuous(&entries);
    assert_eq!(gaps(&entries), []);
    assert_eq!(numbers(&entries), (0..wrote).collect::<Vec<_>>());
    let told = entries.iter().filter(|it| it.kind == Kind::System).count();
    assert!((1..=10).contains(&told), "{told} of ten");
}

#[test]
fn a_worker_that_is_killed_again_and_again_loses_nothing_and_says_so() {
    kill_again_and_again(1);
}

#[test]
fn a_guardian_that_is_killed_is_succeeded_by_its_worker_and_loses_nothing() {
    kill_again_and_again(0);
}

#[test]
fn a_disk_that_hangs_stops_nobody_and_a_gap_counts_what_was_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::start(dir.path(), LIMIT);
    let (_, worker) = until("there is a worker", || writer.pair());
    // Stopped, it takes nothing, as when a disk does not answer.
    writer::kill(worker, Signal::STOP);
    let begun = Instant::now();
    writer.out.write_all(&lines(0..200_000)).unwrap();
    assert!(
        begun.elapsed() > Duration::from_secs(1),
        "it was waited for"
    );
    writer::kill(worker, Signal::CONT);
    writer.until_read(|it| it.iter().any(|it| it.gap().is_some()));
    writer.out.write_all(b"after\n").unwrap();
    writer.end();
    let entries = writer::read(dir.path());
    assert_continuous(&entries);
    let [(GapReason::Disk, lost, bytes)] = gaps(&entries)[..] else {
        panic!("{:?}", gaps(&entries));
    };
    let kept = |it: &&Entry| it.kind == Kind::Stdout && it.text != b"after";
    let texts = entries.iter().filter(kept);
    let seen: usize = texts.clone().map(|it| it.text.len()).sum();
    let ends = texts.filter(|it| it.flags & PARTIAL == 0).count();
    // The line in which the gap begins has an end in the log that it had not before.
    let whole = (seen + ends) as u64 + bytes - lines(0..200_000).len() as u64;
    assert!(whole <= 1, "{seen} bytes of {ends} lines, and {bytes}");
    assert!(
        lost > 100_000 && bytes > lost,
        "{lost} lines, {bytes} bytes"
    );
    assert_eq!(entries.last().unwrap().text, b"after");
}

#[test]
fn told_to_end_it_takes_what_is_there_though_an_end_stays_open() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::start(dir.path(), LIMIT);
    writer.out.write_all(&lines(0..5000)).unwrap();
    writer::kill(writer.guardian(), Signal::TERM);
    writer.wait();
    assert_eq!(
        numbers(&writer::read(dir.path())),
        (0..5000).collect::<Vec<_>>()
    );
    assert_eq!(writer.processes("log-writer"), []);
}

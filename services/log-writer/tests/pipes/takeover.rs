//! One worker after another: what the one before leaves, and what the next one waits for.

use std::{
    fs::{self, File},
    io::Write as _,
};

use rustix::process::Signal;

use super::{Disk, Kind, LIMIT, gaps, lines, numbers, writer};
use writer::{Writer, until};

/// Children of the process that are dead and not taken leave of.
fn zombies(parent: i32) -> usize {
    let dead = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // Behind the name, which may have anything in it.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut words = rest.split_whitespace();
        (words.next()? == "Z" && words.next()?.parse() == Ok(parent)).then_some(())
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(dead).count()
}

#[test]
fn a_worker_that_was_killed_is_buried_though_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::start(dir.path(), LIMIT);
    let guardian = writer.guardian();
    let mut former = 0;
    for _ in 0..10 {
        let (_, worker) = until("there is another worker", || {
            writer.pair().filter(|it| it.1 != former)
        });
        writer::kill(worker, Signal::KILL);
        former = worker;
    }
    until("all are buried", || (zombies(guardian) == 0).then_some(()));
}

/// Whether the process waits for a lock.
fn waits(pid: i32) -> bool {
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let (arrow, pid) = ("->", pid.to_string());
    let of = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.contains(&arrow) && words.contains(&"FLOCK") && words.contains(&pid.as_str())
    };
    locks.lines().any(of)
}

#[test]
fn a_log_that_a_worker_of_before_still_holds_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    // As one whose write the disk has not answered yet.
    let former = File::open(dir.path()).unwrap();
    former.lock().unwrap();
    let mut writer = Writer::start(dir.path(), LIMIT);
    writer.out.write_all(&lines(0..100)).unwrap();
    until("it waits", || {
        let (_, worker) = writer.pair()?;
        waits(worker).then_some(())
    });
    assert!(writer::read(dir.path()).is_empty());
    drop(former);
    writer.end();
    let entries = writer::read(dir.path());
    assert_eq!(gaps(&entries), []);
    assert_eq!(numbers(&entries), (0..100).collect::<Vec<_>>());
}

#[test]
fn that_a_worker_was_replaced_is_said_once_there_is_room_for_it() {
    const PAGE: u64 = 4096;
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::mount(place.path(), 1 << 20);
    let dir = place.path().join("log");
    let mut writer = Writer::start(&dir, LIMIT);
    writer.out.write_all(b"before\n").unwrap();
    writer.until_read(|it| it.len() == 1);
    let ballast = place.path().join("ballast");
    fs::write(&ballast, vec![0; 1 << 20]).expect_err("it takes all that there is");
    // The last page gets no room for a line, and so none for longer words.
    writer.out.write_all(&lines(0..1000)).unwrap();
    until("the page is full", || {
        (writer.size() > PAGE - 50).then_some(())
    });
    let (_, worker) = until("there is a worker", || writer.pair());
    writer::kill(worker, Signal::KILL);
    // It lies in the way of what another one writes first.
    until("another has tried", || {
        let (_, other) = writer.pair()?;
        (other != worker && writer::sleeps(other)).then_some(())
    });
    fs::remove_file(&ballast).unwrap();
    writer.until_read(|it| it.iter().any(|it| it.gap().is_some()));
    writer.end();
    let entries = writer::read(&dir);
    let told = entries.iter().filter(|it| it.kind == Kind::System).count();
    assert_eq!(told, 1);
    drop(disk);
}

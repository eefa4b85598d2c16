//! Logs as a writer leaves them, for tests of readers.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::format::{Gap, GapReason, Kind, Record, SegmentHeader, segment_name};

/// A log that is written by hand.
pub(crate) struct Written {
    dir: TempDir,
    pub(crate) log: u64,
    pub(crate) next: u64,
    firsts: Vec<u64>,
}

pub(crate) fn time_of(sequence: u64) -> u64 {
    1_000_000 + sequence * 10
}

impl Written {
    pub(crate) fn new() -> Self {
        let mut new = Self {
            dir: tempfile::tempdir().unwrap(),
            log: 77,
            next: 0,
            firsts: vec![],
        };
        new.rotate();
        new
    }

    /// One segment for each number of lines.
    pub(crate) fn of(segments: &[u64]) -> Self {
        let mut new = Self::new();
        for (place, &lines) in segments.iter().enumerate() {
            if place > 0 {
                new.rotate();
            }
            new.lines(lines);
        }
        new
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub(crate) fn path(&self, segment: usize) -> PathBuf {
        self.dir.path().join(segment_name(self.firsts[segment]))
    }

    pub(crate) fn last(&self) -> PathBuf {
        self.path(self.firsts.len() - 1)
    }

    pub(crate) fn segments(&self) -> usize {
        self.firsts.len()
    }

    pub(crate) fn rotate(&mut self) {
        if self.firsts.last() == Some(&self.next) {
            return;
        }
        self.firsts.push(self.next);
        let header = SegmentHeader {
            log: self.log,
            first: self.next,
        };
        fs::write(self.last(), header.encode()).unwrap();
    }

    pub(crate) fn drop_oldest(&mut self) {
        fs::remove_file(self.path(0)).unwrap();
        self.firsts.remove(0);
    }

    /// The folder gets another log.
    pub(crate) fn replace(&mut self) {
        while !self.firsts.is_empty() {
            self.drop_oldest();
        }
        self.log += 1;
        self.next = 0;
        self.rotate();
    }

    pub(crate) fn lines(&mut self, count: u64) {
        for _ in 0..count {
            let text = format!("line {}", self.next);
            self.record(Kind::Stdout, text.as_bytes());
        }
    }

    pub(crate) fn record(&mut self, kind: Kind, body: &[u8]) {
        let bytes = self.encoded(kind, body);
        append(&self.last(), &bytes);
        self.next += match kind {
            Kind::Gap => Gap::decode(body).unwrap().lines.max(1),
            Kind::Stdout | Kind::Stderr | Kind::UserOob | Kind::Error | Kind::System => 1,
        };
    }

    pub(crate) fn gap(&mut self, lines: u64) {
        let gap = Gap {
            reason: GapReason::Writer,
            lines,
            bytes: 0,
        };
        self.record(Kind::Gap, &gap.encode());
    }

    /// The first bytes of the next line.
    pub(crate) fn half(&mut self, length: usize) {
        let bytes = self.encoded(Kind::Stdout, b"never whole");
        append(&self.last(), &bytes[..length.min(bytes.len() - 1)]);
    }

    /// As a writer does that finds half a record.
    pub(crate) fn cut(&mut self, length: u64) {
        let file = OpenOptions::new().write(true).open(self.last()).unwrap();
        file.set_len(length).unwrap();
    }

    pub(crate) fn length(&self) -> u64 {
        File::open(self.last()).unwrap().metadata().unwrap().len()
    }

    fn encoded(&self, kind: Kind, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![];
        Record {
            sequence: self.next,
            time_ns: time_of(self.next),
            kind,
            flags: 0,
            body,
        }
        .encode(&mut bytes);
        bytes
    }
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

//! What a container says, as its log has it: the end of what was said, and then what comes. Lines become bytes again;
//! what the node says and what is missing is left to who reads the log.

use std::{collections::VecDeque, io, path::PathBuf};

use berth_logs::{
    format::Kind,
    reader::{Content, Line, Read, Reader},
    tail::{Tail, begin_at},
};

/// Lines and parts of lines, of which a replay is.
const REPLAY_RECORDS: usize = 1000;
/// What is read at once ends when it has so many bytes.
const LOOK_BYTES: usize = 64 << 10;

/// Bytes that a container said on one of its streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) stderr: bool,
    pub(crate) bytes: Vec<u8>,
}

/// A reader of one log. Nothing of it waits for more to be written.
#[derive(Debug)]
pub(crate) struct Console {
    folder: PathBuf,
    reader: Reader,
    line_end: &'static [u8],
}

impl Console {
    /// With a terminal, a line ends as terminals have it.
    pub(crate) fn new(folder: PathBuf, tty: bool) -> Self {
        Self {
            reader: Reader::new(folder.clone()),
            folder,
            line_end: if tty { b"\r\n" } else { b"\n" },
        }
    }

    /// The last words, so many bytes at most; what comes later is told by [`Self::more`].
    pub(crate) fn replay(&mut self, bytes_max: usize) -> io::Result<Vec<Words>> {
        let tail = Tail::read(&self.folder, REPLAY_RECORDS, |it| stream(it.kind).is_some())?;
        let begin = begin_at(vec![tail], REPLAY_RECORDS).into_iter().flatten();
        for position in begin {
            self.reader = Reader::resume(self.folder.clone(), position);
        }
        last_of(bytes_max, || self.more())
    }

    /// Some of what has come since; empty where nothing has.
    pub(crate) fn more(&mut self) -> io::Result<Vec<Words>> {
        let (mut words, mut size) = (vec![], 0);
        while size < LOOK_BYTES {
            let Read::Entry(entry) = self.reader.read()? else {
                break;
            };
            let Content::Line(line) = entry.content else {
                continue;
            };
            if let Some(said) = self.words(line) {
                size += said.bytes.len();
                words.push(said);
            }
        }
        Ok(words)
    }

    fn words(&self, line: Line) -> Option<Words> {
        let stderr = stream(line.kind)?;
        let mut bytes = line.text;
        if !line.partial {
            bytes.extend_from_slice(self.line_end);
        }
        (!bytes.is_empty()).then_some(Words { stderr, bytes })
    }
}

/// The last of what there is, so many bytes at most. One who says more all the time is not waited for: behind as many words
/// as a replay can begin with, the rest is for who looks again.
fn last_of(
    bytes_max: usize,
    mut more: impl FnMut() -> io::Result<Vec<Words>>,
) -> io::Result<Vec<Words>> {
    let mut said: VecDeque<Words> = VecDeque::new();
    let (mut size, mut seen) = (0, 0);
    while seen < REPLAY_RECORDS {
        let more = more()?;
        let look: usize = more.iter().map(|it| it.bytes.len()).sum();
        seen += more.len();
        size += look;
        said.extend(more);
        while size > bytes_max {
            size -= said.pop_front().map_or(size, |it| it.bytes.len());
        }
        if look < LOOK_BYTES {
            break;
        }
    }
    Ok(said.into())
}

/// Whether it is of standard error; `None` where the container did not say it.
fn stream(kind: Kind) -> Option<bool> {
    match kind {
        Kind::Stdout | Kind::UserOob | Kind::Error => Some(false),
        Kind::Stderr => Some(true),
        Kind::System | Kind::Gap => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::written::LogFile;

    fn log() -> (tempfile::TempDir, PathBuf, LogFile) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("app");
        let log = LogFile::new(folder.clone());
        (dir, folder, log)
    }

    fn text(words: &[Words]) -> String {
        let bytes: Vec<u8> = words.iter().flat_map(|it| it.bytes.clone()).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_and_parts_of_lines_are_bytes_again_and_what_is_not_the_containers_is_left_out() {
        let (_dir, folder, mut log) = log();
        log.line(Kind::Stdout, "one");
        log.line(Kind::System, "it was pulled");
        log.part(Kind::Stdout, "$ ");
        let mut console = Console::new(folder.clone(), false);
        assert_eq!(text(&console.replay(1000).unwrap()), "one\n$ ");
        assert!(console.more().unwrap().is_empty());
        log.line(Kind::Stdout, "ls");
        log.line(Kind::Stderr, "oh");
        let more = console.more().unwrap();
        assert_eq!(text(&more), "ls\noh\n");
        let of_stderr: Vec<_> = more.iter().map(|it| it.stderr).collect();
        assert_eq!(of_stderr, [false, true]);
        let mut console = Console::new(folder, true);
        assert_eq!(
            text(&console.replay(1000).unwrap()),
            "one\r\n$ ls\r\noh\r\n"
        );
    }

    #[test]
    fn a_replay_is_bounded_and_what_follows_goes_over_segments_without_gap_or_repeat() {
        let (_dir, folder, mut log) = log();
        log.lines(100);
        let mut console = Console::new(folder, false);
        let replayed = text(&console.replay(80).unwrap());
        assert_eq!(replayed.lines().next(), Some("line 90"));
        assert_eq!(replayed.lines().last(), Some("line 99"));
        let mut expected = String::new();
        for number in 100..130 {
            if number % 10 == 0 {
                log.rotate();
            }
            log.lines(1);
            expected += &format!("line {number}\n");
        }
        assert_eq!(text(&console.more().unwrap()), expected);
        assert!(console.more().unwrap().is_empty());
    }

    #[test]
    fn a_replay_of_many_short_lines_has_the_last_of_them() {
        let (_dir, folder, mut log) = log();
        log.lines(1100);
        let replayed = text(&Console::new(folder, false).replay(1 << 20).unwrap());
        assert_eq!(replayed.lines().next(), Some("line 100"));
    }

    #[test]
    fn a_replay_does_not_wait_for_the_end_of_one_who_says_more_all_the_time() {
        let mut looks = 0;
        let more = || {
            looks += 1;
            let mut bytes = vec![b'.'; LOOK_BYTES];
            bytes.extend(looks.to_string().into_bytes());
            let stderr = false;
            Ok(vec![Words { stderr, bytes }])
        };
        let replayed = last_of(2 * LOOK_BYTES, more).unwrap();
        assert_eq!(looks, REPLAY_RECORDS);
        assert_eq!(replayed.len(), 1);
        assert!(text(&replayed).ends_with(&format!(".{REPLAY_RECORDS}")));
    }

    #[test]
    fn much_of_a_log_is_read_a_part_at_a_time() {
        let (_dir, folder, mut log) = log();
        let mut console = Console::new(folder, false);
        console.replay(10).unwrap();
        let long = "x".repeat(LOOK_BYTES / 2);
        for _ in 0..4 {
            log.line(Kind::Stdout, &long);
        }
        let sizes = [2, 2, 0];
        assert_eq!(sizes.map(|_| console.more().unwrap().len()), sizes);
    }

    #[test]
    fn a_log_that_is_not_begun_is_empty_and_read_once_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("app");
        let mut console = Console::new(folder.clone(), false);
        assert!(console.replay(10).unwrap().is_empty() && console.more().unwrap().is_empty());
        LogFile::new(folder).lines(1);
        assert_eq!(text(&console.more().unwrap()), "line 0\n");
    }
}

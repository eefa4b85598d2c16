//! How lines of logs look: whose they are, pieces of a line joined, nothing in them that acts on a terminal. It does not
//! know where lines come from.

use std::{collections::BTreeMap, fmt::Write as _};

use berth_api::v1::{LogEntry, LogGap, LogGapReason, LogLine, log_entry::Content};
use jiff::Timestamp;

/// The longest line that is put together before it is shown.
const JOINED_MAX: usize = 8 << 20;
/// Of the names of containers, in turns: those that are seen on dark and on light.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];
const FAINT: u8 = 2;

/// Where it goes.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    /// Standard output.
    Text(Vec<u8>),
    /// Standard error, so that standard output has what was written and nothing else.
    Note(String),
}

#[derive(Debug, Default)]
pub(super) struct Renderer {
    pub(super) terminal: bool,
    pub(super) colours: bool,
    pub(super) timestamps: bool,
    /// Whether lines say whose they are.
    pub(super) names: bool,
    /// Containers by the order in which they were seen.
    pub(super) seen: Vec<String>,
    /// Lines whose end has not come yet, by container and stream.
    pub(super) begun: BTreeMap<(String, i32), (LogEntry, Vec<u8>)>,
    /// Whose line a terminal shows without its end, as a prompt.
    pub(super) open: Option<(String, i32)>,
}

impl Renderer {
    pub(super) fn entry(&mut self, entry: &LogEntry) -> Vec<Piece> {
        match &entry.content {
            Some(Content::Line(line)) => self.line(entry, line),
            Some(Content::Gap(gap)) => {
                let mut pieces = Vec::from_iter(self.close());
                pieces.push(Piece::Note(format!(
                    "berth: {}: {}",
                    shown_name(&entry.container),
                    missing(gap)
                )));
                pieces
            }
            None => vec![],
        }
    }

    /// Lines whose end never came.
    pub(super) fn rest(&mut self) -> Vec<Piece> {
        let begun = std::mem::take(&mut self.begun);
        let lines = begun.into_values();
        let lines = lines.map(|(entry, text)| Piece::Text(self.shown(&entry, &text)));
        let mut pieces: Vec<_> = lines.collect();
        pieces.extend(self.close());
        pieces
    }

    /// Ends the line that is shown without its end.
    fn close(&mut self) -> Option<Piece> {
        self.open.take().map(|_| Piece::Text(b"\n".to_vec()))
    }

    fn line(&mut self, entry: &LogEntry, line: &LogLine) -> Vec<Piece> {
        let key = (entry.container.clone(), line.stream);
        if self.terminal {
            return self.at_once(entry, line, key);
        }
        let (first, mut text) = self.begun.remove(&key).unwrap_or_else(|| {
            let head = LogEntry {
                content: None,
                ..entry.clone()
            };
            (head, vec![])
        });
        text.extend(&line.text);
        if line.partial && text.len() < JOINED_MAX {
            self.begun.insert(key, (first, text));
            return vec![];
        }
        let mut pieces = vec![Piece::Text(self.shown(&first, &text))];
        pieces.extend(cut(entry, line));
        pieces
    }

    /// What there is of a line. The rest of one into which another came begins anew.
    fn at_once(&mut self, entry: &LogEntry, line: &LogLine, key: (String, i32)) -> Vec<Piece> {
        let goes_on = self.open.as_ref() == Some(&key);
        let mut pieces = vec![];
        if !goes_on {
            pieces.extend(self.close());
        }
        let mut shown = match goes_on {
            true => vec![],
            false => self.head(entry),
        };
        shown.extend(harmless(&line.text, self.colours).into_bytes());
        self.open = line.partial.then_some(key);
        if !line.partial {
            shown.push(b'\n');
        }
        pieces.push(Piece::Text(shown));
        pieces.extend(cut(entry, line));
        pieces
    }

    /// A whole line as a pipe gets it.
    fn shown(&mut self, entry: &LogEntry, text: &[u8]) -> Vec<u8> {
        let mut shown = self.head(entry);
        shown.extend(text);
        shown.push(b'\n');
        shown
    }

    /// What stands before a line.
    fn head(&mut self, entry: &LogEntry) -> Vec<u8> {
        let mut head = String::new();
        if self.timestamps {
            let time = entry.time.as_ref();
            let time = time.and_then(|it| Timestamp::new(it.seconds, it.nanos).ok());
            let time = time.unwrap_or(Timestamp::UNIX_EPOCH);
            // Writing to a text does not fail.
            let _ = write!(head, "{time:.9} ");
        }
        if self.names {
            let name = shown_name(&entry.container);
            let _ = match self.colour(&entry.container) {
                Some(colour) => write!(head, "\x1b[{colour}m{name} |\x1b[0m "),
                None => write!(head, "{name} | "),
            };
        }
        head.into_bytes()
    }

    fn colour(&mut self, container: &str) -> Option<u8> {
        if !self.colours {
            return None;
        }
        if container.is_empty() {
            return Some(FAINT);
        }
        let place = self.seen.iter().position(|it| it == container);
        let place = place.unwrap_or_else(|| {
            self.seen.push(container.to_owned());
            self.seen.len() - 1
        });
        Some(COLOURS[place % COLOURS.len()])
    }
}

/// Says that a line has lost its end.
fn cut(entry: &LogEntry, line: &LogLine) -> Option<Piece> {
    let name = shown_name(&entry.container);
    line.truncated.then(|| {
        Piece::Note(format!(
            "berth: {name}: the end of this line is lost: it was too long"
        ))
    })
}

fn shown_name(container: &str) -> &str {
    match container {
        "" => "@system",
        name => name,
    }
}

fn missing(gap: &LogGap) -> String {
    let reason = LogGapReason::try_from(gap.reason).unwrap_or_default();
    let why = match reason {
        LogGapReason::Replaced => {
            return "another log is in the place of the one that was read".to_owned();
        }
        LogGapReason::Disk => "the disk of the logs was full or failed",
        LogGapReason::Writer => "the process that writes the log was killed",
        LogGapReason::Damage => "what is on the disk cannot be read",
        LogGapReason::Dropped => "the log had reached its size, and its oldest lines were removed",
        LogGapReason::Unspecified => "the manager gives a reason that this version does not know",
    };
    let lines = match gap.lines {
        0 => "lines are missing".to_owned(),
        1 => "1 line is missing".to_owned(),
        lines => format!("{lines} lines are missing"),
    };
    match gap.bytes {
        0 => format!("{lines}: {why}"),
        bytes => format!("{lines} ({bytes} bytes): {why}"),
    }
}

/// Text that a terminal shows and does not obey: control characters and bytes that are no UTF-8 as `\x1b`. What only
/// colours stays, where colours are wanted, and ends with the line.
fn harmless(text: &[u8], colours: bool) -> String {
    let mut shown = String::new();
    let mut coloured = false;
    let mut rest = text;
    while !rest.is_empty() {
        if colours && let Some(length) = colour_length(rest) {
            // Of these bytes all are ASCII.
            shown.extend(rest[..length].iter().map(|it| char::from(*it)));
            coloured = true;
            rest = &rest[length..];
            continue;
        }
        let end = rest.len().min(4);
        let character = (1..=end).find_map(|it| str::from_utf8(&rest[..it]).ok()?.chars().next());
        match character {
            Some(it) if it == '\t' || !it.is_control() => {
                shown.push(it);
                rest = &rest[it.len_utf8()..];
            }
            Some(_) | None => {
                let length = character.map_or(1, char::len_utf8);
                for byte in &rest[..length] {
                    let _ = write!(shown, "\\x{byte:02x}");
                }
                rest = &rest[length..];
            }
        }
    }
    if coloured {
        shown.push_str("\x1b[0m");
    }
    shown
}

/// How long the sequence is that these bytes begin with and that only sets colours.
fn colour_length(text: &[u8]) -> Option<usize> {
    let parameters = text.strip_prefix(b"\x1b[")?;
    let is_parameter = |it: &u8| it.is_ascii_digit() || *it == b';';
    let end = parameters.iter().position(|it| !is_parameter(it))?;
    (parameters[end] == b'm').then_some(end + 3)
}

#[cfg(test)]
mod tests {
    use berth_api::v1::LogStream;

    use super::*;

    fn entry(container: &str, text: &[u8]) -> LogEntry {
        LogEntry {
            container: container.to_owned(),
            sequence: 7,
            time: Some(prost_types::Timestamp {
                seconds: 1_777_636_800,
                nanos: 5,
            }),
            content: Some(Content::Line(LogLine {
                stream: LogStream::Stdout.into(),
                text: text.to_vec(),
                ..LogLine::default()
            })),
        }
    }

    fn changed(mut entry: LogEntry, change: impl FnOnce(&mut LogLine)) -> LogEntry {
        if let Some(Content::Line(line)) = &mut entry.content {
            change(line);
        }
        entry
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.as_bytes().to_vec())
    }

    #[test]
    fn a_pipe_gets_the_bytes_as_they_were_written() {
        let mut renderer = Renderer::default();
        let raw = b"\x1b[2J\xff\r tab\t";
        let expected = [raw.as_slice(), b"\n"].concat();
        assert_eq!(renderer.entry(&entry("app", raw)), [Piece::Text(expected)]);
    }

    #[test]
    fn names_and_times_stand_before_lines_where_they_are_wanted() {
        let mut renderer = Renderer {
            names: true,
            timestamps: true,
            ..Renderer::default()
        };
        let time = "2026-05-01T12:00:00.000000005Z";
        let shown = renderer.entry(&entry("app", b"hello"));
        assert_eq!(shown, [text(&format!("{time} app | hello\n"))]);
        let shown = renderer.entry(&entry("", b"pulled"));
        assert_eq!(shown, [text(&format!("{time} @system | pulled\n"))]);
    }

    #[test]
    fn each_container_has_its_colour_and_keeps_it() {
        let mut renderer = Renderer {
            names: true,
            colours: true,
            terminal: true,
            ..Renderer::default()
        };
        let mut shown = |name| renderer.entry(&entry(name, b"x"));
        assert_eq!(shown("a"), [text("\x1b[36ma |\x1b[0m x\n")]);
        assert_eq!(shown("b"), [text("\x1b[33mb |\x1b[0m x\n")]);
        assert_eq!(shown("a"), [text("\x1b[36ma |\x1b[0m x\n")]);
        assert_eq!(shown(""), [text("\x1b[2m@system |\x1b[0m x\n")]);
    }

    #[test]
    #[rustfmt::skip]
    fn nothing_in_a_line_acts_on_a_terminal() {
        let cases: &[(&[u8], bool, &str)] = &[
            (b"plain \xc3\xa4\t!",          true,  "plain ä\t!"),
            (b"\x1b[2J\x1b[1;31mred",       true,  "\\x1b[2J\x1b[1;31mred\x1b[0m"),
            (b"\x1b[31mred\x1b[m",          false, "\\x1b[31mred\\x1b[m"),
            (b"\x1b]0;title\x07",           true,  "\\x1b]0;title\\x07"),
            (b"\x1b[31",                    true,  "\\x1b[31"),
            (b"a\rb\x7f\x08",               true,  "a\\x0db\\x7f\\x08"),
            (b"\xc2\x9b2J",                 true,  "\\xc2\\x9b2J"),
            (b"\xff\xc3",                   true,  "\\xff\\xc3"),
        ];
        for (raw, colours, expected) in cases {
            assert_eq!(harmless(raw, *colours), *expected, "{raw:?}");
        }
    }

    #[test]
    fn pieces_of_a_line_are_joined_also_when_another_stream_comes_between() {
        let mut renderer = Renderer::default();
        let piece = |text| changed(entry("app", text), |it| it.partial = true);
        assert_eq!(renderer.entry(&piece(b"a")), []);
        assert_eq!(renderer.entry(&piece(b"b")), []);
        let other = changed(entry("app", b"other"), |it| {
            it.stream = LogStream::Stderr.into();
        });
        assert_eq!(renderer.entry(&other), [text("other\n")]);
        assert_eq!(renderer.entry(&entry("app", b"c")), [text("abc\n")]);
        assert_eq!(renderer.entry(&piece(b"d")), []);
        assert_eq!(renderer.rest(), [text("d\n")]);
        assert_eq!(renderer.rest(), []);
    }

    #[test]
    fn a_terminal_shows_a_prompt_at_once_and_what_follows_behind_it() {
        let mut renderer = Renderer {
            terminal: true,
            names: true,
            ..Renderer::default()
        };
        let piece = |name, text| changed(entry(name, text), |it| it.partial = true);
        assert_eq!(renderer.entry(&piece("a", b"name? ")), [text("a | name? ")]);
        assert_eq!(renderer.entry(&piece("a", b"B")), [text("B")]);
        assert_eq!(renderer.entry(&entry("a", b"o")), [text("o\n")]);
        assert_eq!(renderer.entry(&piece("a", b"$ ")), [text("a | $ ")]);
        let shown = renderer.entry(&entry("b", b"other"));
        assert_eq!(shown, [text("\n"), text("b | other\n")]);
        assert_eq!(renderer.entry(&piece("a", b"ls")), [text("a | ls")]);
        assert_eq!(renderer.rest(), [text("\n")]);
        assert_eq!(renderer.rest(), []);
    }

    #[test]
    fn a_line_without_end_is_shown_in_parts_before_it_takes_all_memory() {
        let mut renderer = Renderer::default();
        let million = vec![b'x'; 1 << 20];
        let piece = changed(entry("app", &million), |it| it.partial = true);
        let shown = (0..8).flat_map(|_| renderer.entry(&piece)).count();
        assert_eq!(shown, 1);
    }

    #[test]
    #[rustfmt::skip]
    fn what_is_missing_is_said_in_words() {
        use LogGapReason::{Disk, Dropped, Replaced, Writer};
        let cases = [
            (Disk,     12, 3456, "berth: app: 12 lines are missing (3456 bytes): the disk of the logs was full or failed"),
            (Writer,   0,  0,    "berth: app: lines are missing: the process that writes the log was killed"),
            (Dropped,  1,  0,    "berth: app: 1 line is missing: the log had reached its size, and its oldest lines were removed"),
            (Replaced, 0,  0,    "berth: app: another log is in the place of the one that was read"),
        ];
        for (reason, lines, bytes, expected) in cases {
            let gap = LogGap { reason: reason.into(), lines, bytes };
            let entry = LogEntry { content: Some(Content::Gap(gap)), ..entry("app", b"") };
            assert_eq!(Renderer::default().entry(&entry), [Piece::Note(expected.to_owned())]);
        }
        let cut = changed(entry("app", b"long"), |it| it.truncated = true);
        let shown = Renderer::default().entry(&cut);
        let note = "berth: app: the end of this line is lost: it was too long";
        assert_eq!(shown, [text("long\n"), Piece::Note(note.to_owned())]);
    }
}

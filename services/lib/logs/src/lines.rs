//! How the output of a container becomes lines: where it is cut, what is trimmed, which words at the beginning say what kind it
//! is. It is told bytes and whether more of them are near; it knows no descriptor and no clock.

use crate::format::{Kind, PARTIAL, TEXT_MAX, TRUNCATED};

/// The longest text that is kept back for the rest of its line: a longer line is handed on in pieces of this size.
pub const PIECE: usize = 32 << 10;

const TAGS: [(&[u8], Kind); 2] = [(b"!USER ", Kind::UserOob), (b"!ERROR ", Kind::Error)];

/// Whether the rest of an unfinished line is near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    Soon,
    /// It is handed on for those who wait, as a prompt.
    Late,
    /// The output is over.
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    pub kind: Kind,
    pub flags: u8,
    pub text: &'a [u8],
}

/// How far the line is that a stream is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    stream: Kind,
    kind: Kind,
    /// Bytes of text that were handed on.
    handed: u32,
    begun: bool,
    /// The line has all that it may have; the rest is dropped.
    full: bool,
}

impl Line {
    #[must_use]
    pub fn new(stream: Kind) -> Self {
        Self {
            stream,
            kind: stream,
            handed: 0,
            begun: false,
            full: false,
        }
    }

    /// Takes from the beginning of `bytes` what can be handed on: how many bytes are done with, and the piece that they are,
    /// where they are one. `None` asks for more.
    pub fn take<'a>(&mut self, bytes: &'a [u8], more: More) -> Option<(usize, Option<Piece<'a>>)> {
        let end = bytes.iter().position(|it| *it == b'\n');
        if self.full {
            return match end {
                Some(end) => Some((end + 1, self.finish())),
                None => (!bytes.is_empty()).then_some((bytes.len(), None)),
            };
        }
        let (tag, kind) = self.tag(&bytes[..end.unwrap_or(bytes.len())]);
        let body = &bytes[tag..end.unwrap_or(bytes.len())];
        let text = trimmed(body);
        let over = end.is_some() || more == More::Never;
        let text = match (over || !text.is_empty(), body.len() < PIECE) {
            (true, _) => text,
            (false, true) => return None,
            // So much of it is no mere end of a line.
            (false, false) => body,
        };
        let room = TEXT_MAX - self.handed as usize;
        if room < text.len().min(PIECE) || room == 0 && !text.is_empty() {
            self.kind = kind;
            let piece = self.piece(&text[..room], TRUNCATED);
            self.full = true;
            return Some((tag + room, Some(piece)));
        }
        if text.len() > PIECE || !over && body.len() >= PIECE {
            let cut = boundary(text, PIECE.min(text.len()));
            return Some((tag + cut, Some(self.go_on(kind, &text[..cut]))));
        }
        if over {
            let nothing = end.is_none() && bytes.is_empty() && !self.begun;
            if nothing {
                return None;
            }
            self.kind = kind;
            let piece = self.piece(text, 0);
            self.finish();
            return Some((end.map_or(bytes.len(), |it| it + 1), Some(piece)));
        }
        if more == More::Soon || !self.begun && may_become_tag(bytes) {
            return None;
        }
        Some((tag + text.len(), Some(self.go_on(kind, text))))
    }

    /// Whether the line has pieces that are handed on and no end.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.begun
    }

    fn tag(&self, bytes: &[u8]) -> (usize, Kind) {
        if self.begun {
            return (0, self.kind);
        }
        let tag = TAGS.iter().find(|(tag, _)| bytes.starts_with(tag));
        tag.map_or((0, self.stream), |(tag, kind)| (tag.len(), *kind))
    }

    fn go_on<'a>(&mut self, kind: Kind, text: &'a [u8]) -> Piece<'a> {
        self.kind = kind;
        self.begun = true;
        self.handed += text.len() as u32;
        self.piece(text, PARTIAL)
    }

    fn piece<'a>(&self, text: &'a [u8], flags: u8) -> Piece<'a> {
        Piece {
            kind: self.kind,
            flags,
            text,
        }
    }

    fn finish<'a>(&mut self) -> Option<Piece<'a>> {
        *self = Self::new(self.stream);
        None
    }
}

fn trimmed(text: &[u8]) -> &[u8] {
    let kept = text.iter().rposition(|it| !b"\t\r\n".contains(it));
    &text[..kept.map_or(0, |it| it + 1)]
}

fn may_become_tag(bytes: &[u8]) -> bool {
    TAGS.iter().any(|(tag, _)| tag.starts_with(bytes))
}

/// The end of the last whole letter before `cut`, where the bytes are letters.
fn boundary(text: &[u8], cut: usize) -> usize {
    if cut == text.len() {
        return cut;
    }
    let continues = |at: usize| text[at] & 0b1100_0000 == 0b1000_0000;
    (cut.saturating_sub(3)..=cut)
        .rev()
        .find(|at| !continues(*at) && *at > 0)
        .unwrap_or(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of an output that arrives as `chunks`, each after a while of silence; the last one ends it.
    fn pieces(chunks: &[&[u8]]) -> Vec<(Kind, u8, Vec<u8>)> {
        let mut line = Line::new(Kind::Stdout);
        let (mut held, mut pieces) = (vec![], vec![]);
        let last = chunks.len() - 1;
        for (index, chunk) in chunks.iter().enumerate() {
            held.extend_from_slice(chunk);
            for more in [More::Soon, More::Late, More::Never] {
                if more == More::Never && index < last {
                    break;
                }
                while let Some((used, piece)) = line.take(&held, more) {
                    pieces.extend(piece.map(|it| (it.kind, it.flags, it.text.to_vec())));
                    held.drain(..used);
                }
            }
        }
        assert!(trimmed(&held).is_empty(), "left: {held:?}");
        pieces
    }

    #[test]
    #[rustfmt::skip]
    fn lines_are_cut_trimmed_and_tagged() {
        use Kind::{Error, Stdout, UserOob};
        /// What arrives, with a silence after each, and what is handed on.
        type Row<'a> = (&'a [&'a str], &'a [(Kind, u8, &'a str)]);
        let table: &[Row<'_>] = &[
            (&["one\ntwo\n"],             &[(Stdout, 0, "one"), (Stdout, 0, "two")]),
            (&["one\r\n\ttwo \t\r\r\n"],  &[(Stdout, 0, "one"), (Stdout, 0, "\ttwo ")]),
            (&["\n\r\n"],                 &[(Stdout, 0, ""), (Stdout, 0, "")]),
            (&["!USER hello\n"],          &[(UserOob, 0, "hello")]),
            (&["!ERROR bad\nfine\n"],     &[(Error, 0, "bad"), (Stdout, 0, "fine")]),
            (&["!ERROR \n"],              &[(Error, 0, "")]),
            (&["!ERROR\n"],               &[(Stdout, 0, "!ERROR")]),
            (&["!USERS\n !USER x\n"],     &[(Stdout, 0, "!USERS"), (Stdout, 0, " !USER x")]),
            (&["!USER !ERROR x\n"],       &[(UserOob, 0, "!ERROR x")]),
            // What has no end yet, at a time of silence and at the end of all.
            (&["name: ", "Bo\n"],         &[(Stdout, PARTIAL, "name: "), (Stdout, 0, "Bo")]),
            (&["a", "b", "\n"],           &[(Stdout, PARTIAL, "a"), (Stdout, PARTIAL, "b"), (Stdout, 0, "")]),
            (&["!ERR", "OR bad\n"],       &[(Error, 0, "bad")]),
            (&["!ERROR a", "!USER b\n"],  &[(Error, PARTIAL, "a"), (Error, 0, "!USER b")]),
            (&["10%\r", "20%\r", "\n"],   &[(Stdout, PARTIAL, "10%"), (Stdout, PARTIAL, "\r20%"), (Stdout, 0, "")]),
            (&["\t", "\n"],               &[(Stdout, 0, "")]),
            (&["last words", ""],         &[(Stdout, PARTIAL, "last words"), (Stdout, 0, "")]),
            (&["", "!USER", ""],          &[(Stdout, 0, "!USER")]),
            (&[""],                       &[]),
        ];
        for (chunks, expected) in table {
            let bytes: Vec<_> = chunks.iter().map(|it| it.as_bytes()).collect();
            let expected: Vec<_> = expected.iter().map(|it| (it.0, it.1, it.2.as_bytes().to_vec())).collect();
            assert_eq!(pieces(&bytes), expected, "{chunks:?}");
        }
    }

    #[test]
    fn nothing_is_handed_on_of_an_unfinished_line_while_the_rest_is_near() {
        let mut line = Line::new(Kind::Stderr);
        assert_eq!(line.take(b"half a li", More::Soon), None);
        let whole = Piece {
            kind: Kind::Stderr,
            flags: 0,
            text: b"half a line",
        };
        assert_eq!(
            line.take(b"half a line\nx", More::Soon),
            Some((12, Some(whole)))
        );
    }

    fn joined(pieces: &[(Kind, u8, Vec<u8>)]) -> Vec<u8> {
        pieces.iter().flat_map(|it| it.2.clone()).collect()
    }

    #[test]
    fn a_long_line_is_handed_on_in_pieces_and_cut_at_its_greatest_length() {
        for (length, truncated) in [
            (PIECE, false),
            (PIECE + 1, false),
            (TEXT_MAX, false),
            (TEXT_MAX + 1, true),
            (TEXT_MAX + PIECE, true),
            (3 * TEXT_MAX + 7, true),
        ] {
            for end in ["\n", ""] {
                let mut text = vec![b'x'; length];
                text.extend_from_slice(end.as_bytes());
                let mut of_one = pieces(&[b"!ERROR ", &text]);
                let last = of_one.pop().unwrap();
                let case = format!("{length} and {end:?}");
                assert!(
                    of_one
                        .iter()
                        .all(|it| it.1 == PARTIAL && it.2.len() <= PIECE),
                    "{case}"
                );
                assert_eq!(last.1, if truncated { TRUNCATED } else { 0 }, "{case}");
                of_one.push(last);
                assert!(of_one.iter().all(|it| it.0 == Kind::Error), "{case}");
                assert_eq!(joined(&of_one).len(), length.min(TEXT_MAX), "{case}");
            }
            let mut text = vec![b'x'; length];
            text.extend_from_slice(b"\nnext\n");
            let next = pieces(&[&text]).pop().unwrap();
            assert_eq!(next, (Kind::Stdout, 0, b"next".to_vec()), "{length}");
        }
    }

    #[test]
    fn no_letter_is_torn_between_pieces_and_bytes_that_are_none_are_kept() {
        let letters = "ä€🦀".repeat(PIECE);
        let of_letters = pieces(&[letters.as_bytes()]);
        assert!(of_letters.len() > 9);
        for (index, (_, _, text)) in of_letters.iter().enumerate() {
            assert!(std::str::from_utf8(text).is_ok(), "piece {index}");
        }
        for byte in [0_u8, b'\t', b'\r', 0x80, 0xbf, 0xff] {
            let text = vec![byte; PIECE * 3];
            let kept = joined(&pieces(&[&text, b"end\n"]));
            assert_eq!(kept.len(), text.len() + 3, "{byte:#x}");
        }
    }
}

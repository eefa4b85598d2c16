//! Where a reader of several logs goes on, as a text for others to keep. It names logs and numbers and nothing of the disk
//! or of a process, so it is good for as long as the log.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{format::crc32, reader::Position};

/// Of the text's form.
const VERSION: u8 = 1;
/// Longer texts are not ours: a sandbox has some tens of logs at most.
pub const TEXT_MAX: usize = 64 << 10;

/// Positions by the name of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor(pub BTreeMap<String, Position>);

impl Cursor {
    /// The text is good for the logs of `owner` only.
    pub fn to_text(&self, owner: &str) -> String {
        let mut bytes = vec![VERSION];
        for (name, position) in &self.0 {
            bytes.extend((name.len() as u32).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(position.log.to_le_bytes());
            bytes.extend(position.next.to_le_bytes());
        }
        bytes.extend(sum(&bytes, owner).to_le_bytes());
        bytes.iter().fold(String::new(), |mut text, byte| {
            // Writing to a text does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// `None` for what is no cursor of these logs.
    pub fn parse(text: &str, owner: &str) -> Option<Self> {
        if text.len() > TEXT_MAX || !text.len().is_multiple_of(2) {
            return None;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let bytes = text
            .as_bytes()
            .chunks(2)
            .map(|it| u8::try_from(digit(it[0])? << 4 | digit(it[1])?).ok());
        let bytes: Vec<u8> = bytes.collect::<Option<_>>()?;
        let (signed, told) = bytes.split_last_chunk()?;
        if sum(signed, owner) != u32::from_le_bytes(*told) {
            return None;
        }
        let (version, mut rest) = signed.split_first()?;
        if *version != VERSION {
            return None;
        }
        let mut positions = BTreeMap::new();
        while !rest.is_empty() {
            let (length, behind) = rest.split_first_chunk()?;
            let (name, behind) =
                behind.split_at_checked(u32::from_le_bytes(*length).try_into().ok()?)?;
            let (log, behind) = behind.split_first_chunk()?;
            let (next, behind) = behind.split_first_chunk()?;
            let position = Position {
                log: u64::from_le_bytes(*log),
                next: u64::from_le_bytes(*next),
            };
            positions.insert(str::from_utf8(name).ok()?.to_owned(), position);
            rest = behind;
        }
        Some(Self(positions))
    }
}

fn sum(bytes: &[u8], owner: &str) -> u32 {
    crc32(&[owner.as_bytes(), &[0], bytes].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor() -> Cursor {
        let position = |log, next| Position { log, next };
        Cursor(
            [
                ("@system".to_owned(), position(u64::MAX, 7)),
                ("app".to_owned(), position(1, u64::MAX)),
            ]
            .into(),
        )
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written_also_by_the_next_version_of_this_program() {
        let text = cursor().to_text("web");
        assert_eq!(Cursor::parse(&text, "web"), Some(cursor()));
        let kept = "01\
            070000004073797374656dffffffffffffffff0700000000000000\
            030000006170700100000000000000ffffffffffffffff\
            ";
        assert!(text.starts_with(kept), "{text}");
        let none = Cursor::default();
        assert_eq!(Cursor::parse(&none.to_text("web"), "web"), Some(none));
    }

    #[test]
    fn a_text_that_is_no_cursor_of_these_logs_is_refused() {
        let text = cursor().to_text("web");
        assert_eq!(Cursor::parse(&text, "other"), None);
        assert_eq!(Cursor::parse("", "web"), None);
        assert_eq!(Cursor::parse("zz", "web"), None);
        assert_eq!(Cursor::parse("ää", "web"), None);
        assert_eq!(Cursor::parse(&"0".repeat(1 << 20), "web"), None);
        for end in 0..text.len() {
            assert_eq!(Cursor::parse(&text[..end], "web"), None, "{end}");
            let mut changed = text.clone().into_bytes();
            changed[end] = if changed[end] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(Cursor::parse(&changed, "web"), None, "{end}");
        }
    }
}

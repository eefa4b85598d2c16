//! How a log lies on disk: a folder of segments, each a header and records, each record with its checksum. This file depends
//! on nothing but the core of the language, so that the log-writer can be compiled from it without Cargo.
//!
//! A record has a sequence number, one more than the record before it in the same log, over all streams. A gap stands for the
//! numbers of the lines that it counts, so that numbers tell what is missing.

/// The first bytes of a segment; the last one is the version of the format.
pub const MAGIC: [u8; 8] = *b"BERTHLG1";
pub const SEGMENT_HEADER: usize = 24;
pub const RECORD_HEADER: usize = 28;
/// The longest text of one record: longer lines are cut.
pub const TEXT_MAX: usize = 1 << 20;

/// The line was longer than `TEXT_MAX`; the rest of it is lost.
pub const TRUNCATED: u8 = 1;
/// The line goes on in the next record of the same kind, which may have no text: it is longer than what a writer holds back,
/// or its end was not near.
pub const PARTIAL: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Drawn when the log was begun; all its segments have it. A log with another one in the same place is another log.
    pub log: u64,
    /// Sequence number of the first record.
    pub first: u64,
}

impl SegmentHeader {
    #[must_use]
    pub fn encode(self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.log.to_le_bytes());
        bytes[16..].copy_from_slice(&self.first.to_le_bytes());
        bytes
    }

    /// `None` for what is too short or no segment of this version.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (log, rest) = rest.split_first_chunk()?;
        let first = rest.first_chunk()?;
        (*magic == MAGIC).then_some(Self {
            log: u64::from_le_bytes(*log),
            first: u64::from_le_bytes(*first),
        })
    }
}

/// The file name of a segment: names in order are segments in order.
#[must_use]
pub fn segment_name(first: u64) -> String {
    format!("{first:020}.log")
}

/// The first sequence number of the segment with this file name.
#[must_use]
pub fn parse_segment_name(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".log")?;
    (number.len() == 20 && number.bytes().all(|it| it.is_ascii_digit()))
        .then(|| number.parse().ok())?
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Stdout = 1,
    Stderr = 2,
    UserOob = 3,
    Error = 4,
    /// Written by the manager or the log-writer: what happened to the sandbox or to its log.
    System = 5,
    Gap = 6,
}

impl Kind {
    fn decode(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::UserOob,
            4 => Self::Error,
            5 => Self::System,
            6 => Self::Gap,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub sequence: u64,
    /// When it was read, in nanoseconds since 1970.
    pub time_ns: u64,
    pub kind: Kind,
    /// `TRUNCATED`, `PARTIAL`.
    pub flags: u8,
    /// The text of a line without its end, or a [`Gap`].
    pub body: &'a [u8],
}

impl Record<'_> {
    /// Appends the record to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let begun = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.time_ns.to_le_bytes());
        out.extend_from_slice(&[self.kind as u8, self.flags, 0, 0]);
        out.extend_from_slice(self.body);
        let sum = crc32(&out[begun + 4..]);
        out[begun..begun + 4].copy_from_slice(&sum.to_le_bytes());
    }

    /// How many sequence numbers it stands for.
    #[must_use]
    pub fn numbers(&self) -> u64 {
        match self.kind {
            Kind::Gap => Gap::decode(self.body).map_or(1, |it| it.lines.max(1)),
            Kind::Stdout | Kind::Stderr | Kind::UserOob | Kind::Error | Kind::System => 1,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// With the number of bytes that it takes.
    Record(Record<'a>, usize),
    /// The bytes end within a record: it is being written, or its writer died.
    Incomplete,
    /// These are not the bytes of a record.
    Damaged,
}

/// How many bytes the record takes that these bytes begin, by its header; at least the header, and no more than a record
/// can have.
#[must_use]
pub fn record_length(bytes: &[u8]) -> usize {
    let length = bytes.get(4..8).map_or(0, |it| {
        u32::from_le_bytes([it[0], it[1], it[2], it[3]]) as usize
    });
    RECORD_HEADER + length.min(TEXT_MAX)
}

/// Reads the record at the beginning of `bytes`.
#[must_use]
pub fn decode(bytes: &[u8]) -> Decoded<'_> {
    let Some((header, rest)) = bytes.split_first_chunk::<RECORD_HEADER>() else {
        return Decoded::Incomplete;
    };
    let four = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let eight = |at: usize| u64::from(four(at)) | u64::from(four(at + 4)) << 32;
    let length = four(4) as usize;
    if length > TEXT_MAX {
        return Decoded::Damaged;
    }
    let Some(body) = rest.get(..length) else {
        return Decoded::Incomplete;
    };
    let whole = RECORD_HEADER + length;
    let Some(kind) = Kind::decode(header[24]).filter(|_| crc32(&bytes[4..whole]) == four(0)) else {
        return Decoded::Damaged;
    };
    let record = Record {
        sequence: eight(8),
        time_ns: eight(16),
        kind,
        flags: header[25],
        body,
    };
    Decoded::Record(record, whole)
}

/// Lines that were written by the container and are not in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub reason: GapReason,
    /// Where lines could be counted; a gap without a count stands for one sequence number.
    pub lines: u64,
    /// Where bytes could be counted.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// The disk was full or failed.
    Disk = 1,
    /// The process that writes was killed.
    Writer = 2,
    /// What was on the disk is no record.
    Damage = 3,
    /// The log had reached its size, and its oldest lines were dropped. Never written: readers see it by the numbers.
    Dropped = 4,
}

impl Gap {
    #[must_use]
    pub fn encode(self) -> [u8; 17] {
        let mut bytes = [self.reason as u8; 17];
        bytes[1..9].copy_from_slice(&self.lines.to_le_bytes());
        bytes[9..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let (reason, rest) = body.split_first()?;
        let (lines, rest) = rest.split_first_chunk()?;
        let bytes = rest.first_chunk()?;
        Some(Self {
            reason: match reason {
                1 => GapReason::Disk,
                2 => GapReason::Writer,
                3 => GapReason::Damage,
                4 => GapReason::Dropped,
                _ => return None,
            },
            lines: u64::from_le_bytes(*lines),
            bytes: u64::from_le_bytes(*bytes),
        })
    }
}

/// The checksum of IEEE 802.3, as in zip and png.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum: u32, byte| {
        TABLE[usize::from(sum as u8 ^ byte)] ^ sum >> 8
    })
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                0xedb8_8320 ^ value >> 1
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: Record<'_> = Record {
        sequence: 0x0102_0304_0506_0708,
        time_ns: u64::MAX,
        kind: Kind::Error,
        flags: TRUNCATED | PARTIAL,
        body: b"out of paper",
    };

    fn encoded(record: Record<'_>) -> Vec<u8> {
        let mut bytes = vec![];
        record.encode(&mut bytes);
        bytes
    }

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // The check value that the catalogue of CRC algorithms gives for CRC-32/ISO-HDLC.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_what_follows_is_left() {
        let mut bytes = encoded(LINE);
        let length = bytes.len();
        bytes.extend_from_slice(b"next");
        assert_eq!(decode(&bytes), Decoded::Record(LINE, length));
    }

    #[test]
    fn a_record_that_is_cut_anywhere_is_incomplete() {
        let bytes = encoded(LINE);
        for length in 0..bytes.len() {
            assert_eq!(
                decode(&bytes[..length]),
                Decoded::Incomplete,
                "{length} bytes"
            );
        }
    }

    #[test]
    fn a_record_with_any_bit_changed_is_never_taken_for_a_record() {
        let bytes = encoded(LINE);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // A length that grew may ask for more bytes than there are.
            let taken = matches!(decode(&changed), Decoded::Record(..));
            assert!(!taken, "bit {bit}");
        }
    }

    #[test]
    fn a_gap_is_read_as_it_was_written_and_stands_for_its_lines() {
        for (lines, numbers) in [(0, 1), (1, 1), (70_000, 70_000)] {
            let gap = Gap {
                reason: GapReason::Disk,
                lines,
                bytes: 1 << 40,
            };
            assert_eq!(Gap::decode(&gap.encode()), Some(gap));
            let body = gap.encode();
            let record = Record {
                kind: Kind::Gap,
                body: &body,
                ..LINE
            };
            assert_eq!(record.numbers(), numbers);
        }
    }

    #[test]
    fn a_segment_says_which_log_it_belongs_to_and_where_it_begins() {
        let header = SegmentHeader { log: 7, first: 99 };
        assert_eq!(SegmentHeader::decode(&header.encode()), Some(header));
        assert_eq!(SegmentHeader::decode(&header.encode()[..23]), None);
        assert_eq!(SegmentHeader::decode(&[b'x'; SEGMENT_HEADER]), None);
    }

    #[test]
    fn a_segment_of_another_version_is_not_read() {
        let header = SegmentHeader { log: 7, first: 9 };
        let mut bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        bytes[7] = b'2';
        assert_eq!(SegmentHeader::decode(&bytes), None);
    }

    #[test]
    fn names_of_segments_sort_like_their_numbers() {
        assert!(segment_name(9) < segment_name(10));
        assert_eq!(parse_segment_name(&segment_name(u64::MAX)), Some(u64::MAX));
        for other in [
            "1.log",
            "00000000000000000001.tmp",
            "0000000000000000000x.log",
            "99999999999999999999.log",
        ] {
            assert_eq!(parse_segment_name(other), None, "{other}");
        }
    }
}

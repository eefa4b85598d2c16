//! The writing side of a log's folder: where the next bytes go, how they get there, what is removed for them. It keeps no count
//! of its own of what is written: its caller says where, so that the same bytes can be written again by another process.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::format::{
    Decoded, RECORD_HEADER, SEGMENT_HEADER, SegmentHeader, decode, parse_segment_name, segment_name,
};

const SEGMENT_LEAST: u64 = 64 << 10;
const SEGMENT_MOST: u64 = 1 << 20;
const SCAN: usize = 64 << 10;

/// The end of a log: where the next record goes, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Number of the first record of the last segment.
    pub segment: u64,
    /// Bytes of that segment. 0: it is to be made.
    pub length: u64,
    pub next: u64,
}

/// What the last segment ended with when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    Whole,
    /// Half of a record: its writer died. It was cut off.
    Torn,
    /// That many bytes were no record. They were cut off.
    Damaged(u64),
}

/// What could not be written.
#[derive(Debug)]
pub struct Unwritten {
    /// This many bytes are there.
    pub written: usize,
    pub source: io::Error,
}

#[derive(Debug)]
pub struct Segments {
    dir: PathBuf,
    log: u64,
    limit: u64,
    open: Option<(u64, File)>,
}

impl Segments {
    /// Finds the end of the log in `dir`, and makes the folder where there is none. A new log is called `log`; an old one
    /// keeps its own number. All segments together stay below `limit` bytes.
    pub fn open(dir: &Path, limit: u64, log: u64) -> io::Result<(Self, End, Tail)> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(dir)?;
        let mut it = Self::resume(dir, limit, log);
        let mut end = End {
            segment: 0,
            length: 0,
            next: 0,
        };
        let Some(last) = it.numbers()?.pop() else {
            return Ok((it, end, Tail::Whole));
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(it.path(last))?;
        let length = file.metadata()?.len();
        let (header, next, whole) = scan(&file, last)?;
        (end.segment, end.next) = (last, next);
        let Some(header) = header else {
            // Nothing in it can be read; the number of its log is only in it.
            fs::remove_file(it.path(last))?;
            return Ok((it, end, Tail::Damaged(length)));
        };
        it.log = header.log;
        end.length = whole;
        let tail = if whole == length {
            Tail::Whole
        } else {
            let torn = length - whole < RECORD_HEADER as u64 || is_torn(&file, whole, length)?;
            file.set_len(whole)?;
            if torn {
                Tail::Torn
            } else {
                Tail::Damaged(length - whole)
            }
        };
        it.open = Some((last, file));
        Ok((it, end, tail))
    }

    /// Goes on with a log whose end is known.
    #[must_use]
    pub fn resume(dir: &Path, limit: u64, log: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            log,
            limit,
            open: None,
        }
    }

    #[must_use]
    pub fn log(&self) -> u64 {
        self.log
    }

    /// Where that many bytes go whose first record is the next one.
    #[must_use]
    pub fn place(&self, end: End, bytes: usize) -> End {
        let full = end.length + bytes as u64 > self.segment_size();
        if end.length > SEGMENT_HEADER as u64 && full {
            begun_at(end.next)
        } else {
            end
        }
    }

    /// Writes the records at `place`. The same bytes can be written there again.
    pub fn write(&mut self, place: End, records: &[u8]) -> Result<(), Unwritten> {
        let none = |source| Unwritten { written: 0, source };
        let file = self.file(place).map_err(none)?;
        let mut offset = place.length.max(SEGMENT_HEADER as u64);
        let mut written = 0;
        while written < records.len() {
            match file.write_at(&records[written..], offset) {
                Ok(0) => {
                    let source = io::ErrorKind::WriteZero.into();
                    return Err(Unwritten { written, source });
                }
                Ok(more) => {
                    written += more;
                    offset += more as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Unwritten { written, source }),
            }
        }
        Ok(())
    }

    /// After a write that failed: removes what is not part of the log that ends at `end`.
    pub fn cut(&mut self, end: End) -> io::Result<()> {
        match &self.open {
            Some((segment, file)) if *segment == end.segment => file.set_len(end.length),
            Some((segment, _)) => {
                let path = self.path(*segment);
                self.open = None;
                fs::remove_file(path)
            }
            None => Ok(()),
        }
    }

    /// Removes the oldest segment that is older than `segment`: whether there was one.
    pub fn drop_before(&self, segment: u64) -> io::Result<bool> {
        match self.numbers()?.first() {
            Some(oldest) if *oldest < segment => fs::remove_file(self.path(*oldest)).map(|()| true),
            _ => Ok(false),
        }
    }

    fn file(&mut self, place: End) -> io::Result<&File> {
        let is_open = matches!(&self.open, Some((segment, _)) if *segment == place.segment);
        if !is_open || place.length <= SEGMENT_HEADER as u64 {
            self.open = None;
            if place.length <= SEGMENT_HEADER as u64 {
                self.make_room(place)?;
            }
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o640)
                .open(self.path(place.segment))?;
            if place.length <= SEGMENT_HEADER as u64 {
                let header = SegmentHeader {
                    log: self.log,
                    first: place.segment,
                };
                file.write_all_at(&header.encode(), 0).inspect_err(|_| {
                    // Without one it is no segment, and in the way of the order.
                    let _ = fs::remove_file(self.path(place.segment));
                })?;
            }
            self.open = Some((place.segment, file));
        }
        let (_, file) = self.open.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(file)
    }

    /// Removes old segments until there is room for another one.
    fn make_room(&self, place: End) -> io::Result<()> {
        let mut sizes = Vec::new();
        for number in self.numbers()? {
            if number != place.segment {
                sizes.push((number, fs::metadata(self.path(number))?.len()));
            }
        }
        let mut total: u64 = sizes.iter().map(|(_, size)| size).sum();
        for (number, size) in sizes {
            if total + self.segment_size() <= self.limit {
                break;
            }
            fs::remove_file(self.path(number))?;
            total -= size;
        }
        Ok(())
    }

    fn segment_size(&self) -> u64 {
        (self.limit / 8).clamp(SEGMENT_LEAST, SEGMENT_MOST)
    }

    /// The segments that there are, the oldest first.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            numbers.extend(name.to_str().and_then(parse_segment_name));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.dir.join(segment_name(segment))
    }
}

fn begun_at(number: u64) -> End {
    End {
        segment: number,
        length: 0,
        next: number,
    }
}

/// Reads a segment up to the first thing that is no record: the header, the number of the next record, and its place.
fn scan(mut file: &File, first: u64) -> io::Result<(Option<SegmentHeader>, u64, u64)> {
    let mut held = vec![0; SEGMENT_HEADER];
    let header = match file.read_exact(&mut held) {
        Ok(()) => SegmentHeader::decode(&held).filter(|it| it.first == first),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
        Err(error) => return Err(error),
    };
    if header.is_none() {
        return Ok((None, first, 0));
    }
    let (mut next, mut place) = (first, SEGMENT_HEADER as u64);
    held.clear();
    loop {
        let mut used = 0;
        let end = loop {
            match decode(&held[used..]) {
                Decoded::Record(record, length) if record.sequence >= next => {
                    next = record.sequence + record.numbers();
                    used += length;
                }
                Decoded::Record(..) | Decoded::Damaged => break true,
                Decoded::Incomplete => break false,
            }
        };
        place += used as u64;
        held.drain(..used);
        let read = if end {
            0
        } else {
            (&mut file).take(SCAN as u64).read_to_end(&mut held)?
        };
        if read == 0 {
            return Ok((header, next, place));
        }
    }
}

/// Whether what follows `whole` is half of a record.
fn is_torn(file: &File, whole: u64, length: u64) -> io::Result<bool> {
    let mut header = [0; RECORD_HEADER];
    file.read_exact_at(&mut header, whole)?;
    let body = u64::from(u32::from_le_bytes([
        header[4], header[5], header[6], header[7],
    ]));
    let incomplete = decode(&header) == Decoded::Incomplete;
    Ok(incomplete && whole + RECORD_HEADER as u64 + body > length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Kind, Record};

    const LIMIT: u64 = 1 << 20;

    fn record(sequence: u64, text: &[u8]) -> Vec<u8> {
        let mut bytes = vec![];
        let record = Record {
            sequence,
            time_ns: 1,
            kind: Kind::Stdout,
            flags: 0,
            body: text,
        };
        record.encode(&mut bytes);
        bytes
    }

    fn append(segments: &mut Segments, end: &mut End, text: &[u8]) {
        let bytes = record(end.next, text);
        let place = segments.place(*end, bytes.len());
        segments.write(place, &bytes).unwrap();
        *end = End {
            length: place.length.max(SEGMENT_HEADER as u64) + bytes.len() as u64,
            next: place.next + 1,
            ..place
        };
    }

    /// The numbers and texts of all segments in order.
    fn read(dir: &Path) -> Vec<(u64, Vec<u8>)> {
        let mut paths: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|it| it.unwrap().path())
            .collect();
        paths.sort();
        let mut records = vec![];
        for path in paths {
            let bytes = fs::read(&path).unwrap();
            assert!(SegmentHeader::decode(&bytes).is_some(), "{path:?}");
            let mut rest = &bytes[SEGMENT_HEADER..];
            while let Decoded::Record(it, length) = decode(rest) {
                records.push((it.sequence, it.body.to_vec()));
                rest = &rest[length..];
            }
            assert!(rest.is_empty(), "{path:?} ends with {} bytes", rest.len());
        }
        records
    }

    #[test]
    fn a_log_is_gone_on_with_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("a/b");
        for number in 0..5 {
            let (mut segments, mut end, tail) = Segments::open(&dir, LIMIT, 70 + number).unwrap();
            assert_eq!((end.next, tail), (number, Tail::Whole));
            assert_eq!(segments.log(), 70, "the number of the log stays");
            append(&mut segments, &mut end, b"text");
        }
        assert_eq!(read(&dir).len(), 5);
    }

    #[test]
    fn all_segments_together_stay_below_the_limit_and_the_newest_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (mut segments, mut end, _) = Segments::open(dir.path(), LIMIT, 1).unwrap();
        for number in 0..400_u64 {
            append(&mut segments, &mut end, &[b'x'; 10_000]);
            let total: u64 = fs::read_dir(dir.path())
                .unwrap()
                .map(|it| it.unwrap().metadata().unwrap().len())
                .sum();
            assert!(total <= LIMIT, "{total} bytes after {number}");
        }
        let numbers: Vec<_> = read(dir.path()).into_iter().map(|it| it.0).collect();
        assert!(numbers.len() > 75, "{} are kept", numbers.len());
        let expected: Vec<_> = (400 - numbers.len() as u64..400).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn a_segment_is_an_eighth_of_its_log_within_bounds_and_the_oldest_goes() {
        for (limit, size) in [
            (4 * SEGMENT_LEAST, SEGMENT_LEAST),
            (8 * SEGMENT_LEAST + 8, SEGMENT_LEAST + 1),
            (8 * SEGMENT_MOST - 8, SEGMENT_MOST - 1),
            (16 * SEGMENT_MOST, SEGMENT_MOST),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (mut segments, mut end, _) = Segments::open(dir.path(), limit, 1).unwrap();
            let fits = record(0, b"").len() + 4000;
            let first = (size as usize - SEGMENT_HEADER) / fits;
            while end.next * 4000 < limit + size {
                append(&mut segments, &mut end, &[b'x'; 4000]);
                let in_first = end.next <= first as u64;
                assert_eq!(end.segment == 0, in_first, "{} of {limit}", end.next);
            }
            let numbers = segments.numbers().unwrap();
            assert_eq!(numbers.len() as u64, limit / size, "{numbers:?} of {limit}");
            assert!(numbers[0] > 0, "{numbers:?} of {limit}");
        }
    }

    #[test]
    fn a_log_that_is_cut_anywhere_loses_the_torn_record_only() {
        let dir = tempfile::tempdir().unwrap();
        let (mut segments, mut end, _) = Segments::open(dir.path(), LIMIT, 1).unwrap();
        append(&mut segments, &mut end, b"first");
        append(&mut segments, &mut end, b"");
        let kept = end.length as usize;
        append(&mut segments, &mut end, b"the last one");
        let path = dir.path().join(segment_name(0));
        let bytes = fs::read(&path).unwrap();
        for length in kept..=bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            let (mut segments, mut end, tail) = Segments::open(dir.path(), LIMIT, 1).unwrap();
            let expected = if length == kept || length == bytes.len() {
                Tail::Whole
            } else {
                Tail::Torn
            };
            assert_eq!(tail, expected, "{length} bytes");
            append(&mut segments, &mut end, b"new");
            let records = read(dir.path());
            let numbers: Vec<_> = records.iter().map(|it| it.0).collect();
            let whole = if length == bytes.len() { 4 } else { 3 };
            assert_eq!(numbers, (0..whole).collect::<Vec<_>>(), "{length} bytes");
            assert_eq!(records.last().unwrap().1, b"new");
        }
    }

    #[test]
    fn what_is_no_record_is_cut_off_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let (mut segments, mut end, _) = Segments::open(dir.path(), LIMIT, 1).unwrap();
        append(&mut segments, &mut end, b"first");
        let kept = end.length;
        append(&mut segments, &mut end, b"second");
        append(&mut segments, &mut end, b"third");
        let path = dir.path().join(segment_name(0));
        let mut bytes = fs::read(&path).unwrap();
        bytes[kept as usize + RECORD_HEADER] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let (_, end, tail) = Segments::open(dir.path(), LIMIT, 1).unwrap();
        assert_eq!((end.next, end.length), (1, kept));
        assert_eq!(tail, Tail::Damaged(bytes.len() as u64 - kept));
        assert_eq!(read(dir.path()).len(), 1);

        fs::write(dir.path().join(segment_name(9)), b"short").unwrap();
        let (mut segments, mut end, tail) = Segments::open(dir.path(), LIMIT, 1).unwrap();
        assert_eq!((end.next, tail), (9, Tail::Damaged(5)));
        append(&mut segments, &mut end, b"ninth");
        assert_eq!(read(dir.path()).last().unwrap(), &(9, b"ninth".to_vec()));
    }

    #[test]
    fn the_same_bytes_written_again_are_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let (mut segments, end, _) = Segments::open(dir.path(), LIMIT, 1).unwrap();
        let bytes = record(0, b"once");
        segments
            .write(segments.place(end, bytes.len()), &bytes)
            .unwrap();
        let mut other = Segments::resume(dir.path(), LIMIT, 1);
        other.write(other.place(end, bytes.len()), &bytes).unwrap();
        assert_eq!(read(dir.path()), [(0, b"once".to_vec())]);
    }

    #[test]
    fn the_oldest_is_given_for_room_but_never_the_one_that_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (mut segments, mut end, _) = Segments::open(dir.path(), LIMIT, 1).unwrap();
        while end.segment == 0 {
            append(&mut segments, &mut end, &[b'x'; 10_000]);
        }
        assert!(segments.drop_before(end.segment).unwrap());
        assert_eq!(read(dir.path())[0].0, end.segment);
        assert!(!segments.drop_before(end.segment).unwrap());
    }

    #[test]
    fn what_a_failed_write_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut segments, mut end, _) = Segments::open(dir.path(), LIMIT, 1).unwrap();
        append(&mut segments, &mut end, b"first");
        let half = &record(end.next, b"second")[..20];
        segments.write(end, half).unwrap();
        segments.cut(end).unwrap();
        assert_eq!(read(dir.path()).len(), 1);
        segments.write(begun_at(end.next), half).unwrap();
        segments.cut(end).unwrap();
        assert_eq!(read(dir.path()).len(), 1);
    }
}

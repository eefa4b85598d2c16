//! One segment that is read while it may be written: record after record, never past what is whole.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
};

use crate::format::{
    Decoded, RECORD_HEADER, SEGMENT_HEADER, SegmentHeader, decode, parse_segment_name,
    record_length, segment_name,
};

/// How much is read at once, where a record does not ask for more.
const READ_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Segment {
    file: File,
    /// By its name.
    pub(crate) first: u64,
    /// `None` for what is no segment of this version of the format.
    pub(crate) header: Option<SegmentHeader>,
    /// Number of the record at `offset`, if the log lacks none.
    pub(crate) at: u64,
    /// Where the next record begins.
    offset: u64,
    /// What was read from `offset` on; what is before `begin` is done with.
    buffer: Vec<u8>,
    begin: usize,
    /// Whether no record of it was taken yet.
    pub(crate) fresh: bool,
}

impl Segment {
    /// `None` where it is not there, or has no whole header yet.
    pub(crate) fn open(folder: &Path, first: u64) -> io::Result<Option<Self>> {
        let file = match File::open(folder.join(segment_name(first))) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut header = [0; SEGMENT_HEADER];
        match file.read_exact_at(&mut header, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(Self {
            file,
            first,
            header: SegmentHeader::decode(&header),
            at: first,
            offset: SEGMENT_HEADER as u64,
            buffer: vec![],
            begin: 0,
            fresh: true,
        }))
    }

    /// The record that comes next, with the bytes that it takes.
    pub(crate) fn peek(&mut self) -> io::Result<Decoded<'_>> {
        if self.header.is_none() {
            return Ok(Decoded::Damaged);
        }
        self.fill(RECORD_HEADER)?;
        self.fill(record_length(&self.buffer[self.begin..]))?;
        Ok(decode(&self.buffer[self.begin..]))
    }

    /// Goes behind the record of which `peek` told.
    pub(crate) fn advance(&mut self, bytes: usize, next: u64) {
        self.begin += bytes;
        self.offset += bytes as u64;
        self.at = next;
        self.fresh = false;
    }

    /// Forgets what was read ahead: half a record may be cut off and another one be written in its place.
    pub(crate) fn forget(&mut self) {
        self.buffer = vec![];
        self.begin = 0;
    }

    /// How many bytes lie behind the last record that was taken.
    pub(crate) fn unread(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len().saturating_sub(self.offset))
    }

    pub(crate) fn is_shortened(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() < self.offset)
    }

    /// When it was last written, in nanoseconds since 1970.
    pub(crate) fn written_ns(&self) -> io::Result<u64> {
        let stat = self.file.metadata()?;
        let nanos = i128::from(stat.mtime()) * 1_000_000_000 + i128::from(stat.mtime_nsec());
        Ok(u64::try_from(nanos).unwrap_or_default())
    }

    /// Whether its name still leads to it.
    pub(crate) fn is_in_place(&self, folder: &Path) -> io::Result<bool> {
        let own = self.file.metadata()?;
        match std::fs::metadata(folder.join(segment_name(self.first))) {
            Ok(other) => Ok((own.dev(), own.ino()) == (other.dev(), other.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads until the buffer has so many bytes of which nothing is taken, or the file has no more.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        while self.buffer.len() - self.begin < wanted {
            self.buffer.drain(..self.begin);
            self.begin = 0;
            let had = self.buffer.len();
            self.buffer.resize(wanted.max(READ_BYTES), 0);
            let read = self
                .file
                .read_at(&mut self.buffer[had..], self.offset + had as u64);
            let read = match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
                read => read.map(Some),
            };
            self.buffer
                .truncate(had + read.as_ref().map_or(0, |it| it.unwrap_or(0)));
            if read? == Some(0) {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The segments of a folder by their first numbers; none where it is not there.
pub(crate) fn list(folder: &Path) -> io::Result<Vec<u64>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let mut firsts = vec![];
    for entry in entries {
        firsts.extend(entry?.file_name().to_str().and_then(parse_segment_name));
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// Which log a folder holds: that of its last segment.
pub(crate) fn log_of(folder: &Path, firsts: &[u64]) -> io::Result<Option<u64>> {
    for &first in firsts.iter().rev() {
        if let Some(header) = Segment::open(folder, first)?.and_then(|it| it.header) {
            return Ok(Some(header.log));
        }
    }
    Ok(None)
}

//! Reads one log from any position in it, while it is written, cut short and shortened at its old end. It holds one file
//! and the bytes of one record. What is missing is told by the numbers: as a gap, in its place.

use std::{io, path::PathBuf};

use crate::{
    format::{Decoded, Gap, GapReason, Kind, PARTIAL, Record, TRUNCATED},
    segment::{self, Segment},
};

/// Where a reader is in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub log: u64,
    /// Number of what it reads next.
    pub next: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub sequence: u64,
    /// In nanoseconds since 1970.
    pub time_ns: u64,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Line(Line),
    /// In place of what cannot be read.
    Gap(Gap),
    /// Another log is in the place of the one that was read; it is read from its beginning.
    Replaced,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub kind: Kind,
    pub truncated: bool,
    pub partial: bool,
    pub text: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    Entry(Entry),
    /// There is nothing more at this moment.
    End {
        /// Bytes of half a record, or of none. Where nobody writes any more they are lost.
        unread_bytes: u64,
    },
}

#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    position: Option<Position>,
    /// Entries before this time are passed over until one is not.
    since_ns: Option<u64>,
    segment: Option<Segment>,
    /// Bytes that were passed over since the last record.
    damaged_bytes: u64,
}

/// What a look at the next record leads to.
enum Look {
    Entry(Entry),
    Passed,
    Incomplete,
    Damaged,
}

impl Reader {
    /// Reads what is kept, from its beginning.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            position: None,
            since_ns: None,
            segment: None,
            damaged_bytes: 0,
        }
    }

    /// Goes on where another reader was.
    pub fn resume(folder: PathBuf, position: Position) -> Self {
        Self {
            position: Some(position),
            ..Self::new(folder)
        }
    }

    /// Reads from the first entry that is not older.
    pub fn since(folder: PathBuf, time_ns: u64) -> io::Result<Self> {
        let position = crate::tail::before(&folder, time_ns)?;
        Ok(Self {
            position,
            since_ns: Some(time_ns),
            ..Self::new(folder)
        })
    }

    /// Where it goes on; `None` while there is no log.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// The next entry. An error leaves the position where it is.
    pub fn read(&mut self) -> io::Result<Read> {
        loop {
            if self.segment.is_none() {
                match self.enter()? {
                    Some(Read::Entry(entry)) => return Ok(Read::Entry(entry)),
                    Some(end @ Read::End { .. }) => return Ok(end),
                    None => {}
                }
            }
            match self.look()? {
                Look::Entry(entry) => return Ok(Read::Entry(entry)),
                Look::Passed => {}
                Look::Incomplete => {
                    if let Some(end) = self.leave()? {
                        return Ok(end);
                    }
                }
                Look::Damaged => {
                    if let Some(read) = self.pass_damage()? {
                        return Ok(read);
                    }
                }
            }
        }
    }

    /// Opens the segment that the position is in. Returns what is to be told before it is read.
    fn enter(&mut self) -> io::Result<Option<Read>> {
        const END: Option<Read> = Some(Read::End { unread_bytes: 0 });
        let firsts = segment::list(&self.folder)?;
        let Some(log) = segment::log_of(&self.folder, &firsts)? else {
            return Ok(END);
        };
        let position = *self.position.get_or_insert(Position { log, next: 0 });
        if position.log != log {
            self.position = Some(Position { log, next: 0 });
            self.since_ns = None;
            self.damaged_bytes = 0;
            return Ok(Some(Read::Entry(Entry {
                sequence: 0,
                time_ns: self.oldest_ns(&firsts, log)?,
                content: Content::Replaced,
            })));
        }
        let begin = firsts.partition_point(|&first| first <= position.next);
        for &first in &firsts[begin.saturating_sub(1)..] {
            if let Some(segment) = self.open(first, log)? {
                self.segment = Some(segment);
                return Ok(None);
            }
        }
        Ok(END)
    }

    /// A segment, unless it is gone, not begun, or of another log.
    fn open(&self, first: u64, log: u64) -> io::Result<Option<Segment>> {
        let segment = Segment::open(&self.folder, first)?;
        Ok(segment.filter(|it| it.header.is_none_or(|it| it.log == log)))
    }

    /// The time of the oldest record.
    fn oldest_ns(&self, firsts: &[u64], log: u64) -> io::Result<u64> {
        for &first in firsts {
            if let Some(mut segment) = self.open(first, log)?
                && let Decoded::Record(record, _) = segment.peek()?
            {
                return Ok(record.time_ns);
            }
        }
        Ok(0)
    }

    fn look(&mut self) -> io::Result<Look> {
        let (Some(segment), Some(position)) = (&mut self.segment, &mut self.position) else {
            return Ok(Look::Passed);
        };
        let fresh = segment.fresh;
        let (record, bytes) = match segment.peek()? {
            Decoded::Record(record, bytes) => (record, bytes),
            Decoded::Incomplete => return Ok(Look::Incomplete),
            Decoded::Damaged => return Ok(Look::Damaged),
        };
        let (sequence, time_ns) = (record.sequence, record.time_ns);
        let next = sequence.saturating_add(record.numbers());
        if next <= position.next || self.since_ns.is_some_and(|since| time_ns < since) {
            position.next = position.next.max(next);
            segment.advance(bytes, next);
            return Ok(Look::Passed);
        }
        if sequence > position.next && self.since_ns.is_none() {
            let lines = sequence - position.next;
            let damaged = self.damaged_bytes > 0 || !fresh;
            let gap = Gap {
                reason: match damaged {
                    true => GapReason::Damage,
                    false => GapReason::Dropped,
                },
                lines,
                bytes: std::mem::take(&mut self.damaged_bytes),
            };
            let sequence = std::mem::replace(&mut position.next, sequence);
            return Ok(Look::Entry(Entry {
                sequence,
                time_ns,
                content: Content::Gap(gap),
            }));
        }
        let content = content(&record);
        position.next = next;
        segment.advance(bytes, next);
        self.since_ns = None;
        self.damaged_bytes = 0;
        Ok(Look::Entry(Entry {
            sequence,
            time_ns,
            content,
        }))
    }

    /// At the end of a segment: goes to the next one, or tells that there is none.
    fn leave(&mut self) -> io::Result<Option<Read>> {
        let Some(segment) = &mut self.segment else {
            return Ok(None);
        };
        segment.forget();
        if segment.is_shortened()? {
            self.segment = None;
            return Ok(None);
        }
        let later = self.later()?;
        // What was read ahead may have been cut off since, and it was written to until the later one was begun.
        if !self.is_at_end()? {
            return Ok(None);
        }
        if let Some(later) = later {
            self.damaged_bytes += self.unread()?;
            self.segment = Some(later);
            return Ok(None);
        }
        let Some(segment) = &self.segment else {
            return Ok(None);
        };
        if !segment.is_in_place(&self.folder)? && !segment::list(&self.folder)?.is_empty() {
            self.segment = None;
            return Ok(None);
        }
        // A log that lost its end, as in a power cut, goes on with numbers that were read once.
        if let Some(position) = &mut self.position {
            position.next = position.next.min(segment.at);
        }
        let unread_bytes = segment.unread()?;
        Ok(Some(Read::End { unread_bytes }))
    }

    /// Where bytes are no record, the rest of their segment is passed over.
    fn pass_damage(&mut self) -> io::Result<Option<Read>> {
        let Some(segment) = &mut self.segment else {
            return Ok(None);
        };
        // Bytes that are cut off and written anew while they are read look like damage.
        segment.forget();
        if !matches!(segment.peek()?, Decoded::Damaged) {
            return Ok(None);
        }
        segment.forget();
        if let Some(later) = self.later()? {
            self.damaged_bytes += self.unread()?.max(1);
            self.segment = Some(later);
            return Ok(None);
        }
        let (Some(segment), Some(position)) = (&self.segment, &mut self.position) else {
            return Ok(None);
        };
        if !segment.is_in_place(&self.folder)? && !segment::list(&self.folder)?.is_empty() {
            self.segment = None;
            return Ok(None);
        }
        if segment.at < position.next {
            // It was told before.
            return Ok(Some(Read::End { unread_bytes: 0 }));
        }
        // It cannot be counted until a segment follows, so it stands for one number until then.
        let gap = Gap {
            reason: GapReason::Damage,
            lines: segment.at - position.next,
            bytes: segment.unread()?,
        };
        let sequence = std::mem::replace(&mut position.next, segment.at.saturating_add(1));
        Ok(Some(Read::Entry(Entry {
            sequence,
            time_ns: segment.written_ns()?,
            content: Content::Gap(gap),
        })))
    }

    /// The segment behind the one that is read.
    fn later(&self) -> io::Result<Option<Segment>> {
        let (Some(segment), Some(position)) = (&self.segment, self.position) else {
            return Ok(None);
        };
        let firsts = segment::list(&self.folder)?;
        for &first in firsts.iter().filter(|&&it| it > segment.first) {
            if let Some(later) = self.open(first, position.log)? {
                return Ok(Some(later));
            }
        }
        Ok(None)
    }

    fn is_at_end(&mut self) -> io::Result<bool> {
        let Some(segment) = &mut self.segment else {
            return Ok(false);
        };
        let at_end = matches!(segment.peek()?, Decoded::Incomplete);
        if at_end {
            segment.forget();
        }
        Ok(at_end)
    }

    fn unread(&self) -> io::Result<u64> {
        self.segment.as_ref().map_or(Ok(0), Segment::unread)
    }
}

fn content(record: &Record<'_>) -> Content {
    match record.kind {
        Kind::Gap => Content::Gap(Gap::decode(record.body).unwrap_or(Gap {
            reason: GapReason::Damage,
            lines: 0,
            bytes: 0,
        })),
        kind @ (Kind::Stdout | Kind::Stderr | Kind::UserOob | Kind::Error | Kind::System) => {
            Content::Line(Line {
                kind,
                truncated: record.flags & TRUNCATED != 0,
                partial: record.flags & PARTIAL != 0,
                text: record.body.to_vec(),
            })
        }
    }
}

#[cfg(test)]
mod tests;

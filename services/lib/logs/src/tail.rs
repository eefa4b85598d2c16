//! Where to begin in a log so that only its end is read.

use std::{collections::VecDeque, io, path::Path};

use crate::{
    format::{Decoded, Record},
    reader::Position,
    segment::{self, Segment},
};

/// The last records of a log that somebody wants.
#[derive(Debug)]
pub struct Tail {
    log: u64,
    /// Time and number of each, in order.
    records: VecDeque<(u64, u64)>,
    /// Number of what is written next.
    end: u64,
}

impl Tail {
    /// Reads no more segments than it needs; `None` where there is no log.
    pub fn read(
        folder: &Path,
        count: usize,
        wanted: impl Fn(&Record<'_>) -> bool,
    ) -> io::Result<Option<Self>> {
        let firsts = segment::list(folder)?;
        let Some(log) = segment::log_of(folder, &firsts)? else {
            return Ok(None);
        };
        let mut end = None;
        let mut records = VecDeque::new();
        for &first in firsts.iter().rev() {
            let Some(mut segment) = open(folder, first, log)? else {
                continue;
            };
            let room = count - records.len();
            let mut found = VecDeque::new();
            while let Decoded::Record(record, bytes) = segment.peek()? {
                if wanted(&record) {
                    found.push_back((record.time_ns, record.sequence));
                    if found.len() > room {
                        found.pop_front();
                    }
                }
                let next = record.sequence.saturating_add(record.numbers());
                segment.advance(bytes, next);
            }
            end.get_or_insert(segment.at);
            found.append(&mut records);
            records = found;
            if records.len() >= count {
                break;
            }
        }
        let end = end.unwrap_or(0);
        Ok(Some(Self { log, records, end }))
    }
}

/// Where to begin in each of several logs so that the last `count` records of all together are read.
pub fn begin_at(tails: Vec<Option<Tail>>, count: usize) -> Vec<Option<Position>> {
    let mut tails = tails;
    let mut begins: Vec<Option<Position>> = tails
        .iter()
        .map(|tail| {
            tail.as_ref().map(|it| Position {
                log: it.log,
                next: it.end,
            })
        })
        .collect();
    for _ in 0..count {
        let newest = tails
            .iter_mut()
            .enumerate()
            .filter_map(|(place, tail)| Some((place, tail.as_mut()?)))
            .filter(|(_, tail)| !tail.records.is_empty())
            .max_by_key(|(_, tail)| tail.records.back().copied());
        let Some((place, (_, sequence))) =
            newest.and_then(|(place, tail)| Some((place, tail.records.pop_back()?)))
        else {
            break;
        };
        if let Some(begin) = &mut begins[place] {
            begin.next = sequence;
        }
    }
    begins
}

/// The last segment that begins before a time. `None` where all that is kept is younger.
pub(crate) fn before(folder: &Path, time_ns: u64) -> io::Result<Option<Position>> {
    let firsts = segment::list(folder)?;
    let Some(log) = segment::log_of(folder, &firsts)? else {
        return Ok(None);
    };
    for &first in firsts.iter().rev() {
        let Some(mut segment) = open(folder, first, log)? else {
            continue;
        };
        let begins_before = match segment.peek()? {
            Decoded::Record(record, _) => record.time_ns < time_ns,
            Decoded::Incomplete | Decoded::Damaged => false,
        };
        if begins_before {
            return Ok(Some(Position { log, next: first }));
        }
    }
    Ok(None)
}

fn open(folder: &Path, first: u64, log: u64) -> io::Result<Option<Segment>> {
    let segment = Segment::open(folder, first)?;
    Ok(segment.filter(|it| it.header.is_some_and(|it| it.log == log)))
}

//! The worker: makes records of what the guardian has put into memory, and writes them. Killed at any moment, it is replaced by
//! one that goes on from the shared progress.

use std::{
    fs::{DirBuilder, File},
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::{fs::DirBuilderExt as _, net::UnixStream},
    },
    path::Path,
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    format::{Decoded, Gap, GapReason, Kind, RECORD_HEADER, Record, SEGMENT_HEADER, decode},
    lines::{More, PIECE},
    segments::{End, Segments, Tail},
    shared::{BATCH, Progress, RING, Shared},
    system,
};

/// A line without an end is handed on after this time.
const IDLE: Duration = Duration::from_millis(200);
/// A disk that failed is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);
const REPLACED: &[u8] = b"log-writer: one of its two processes died and was replaced";
/// Of a disk that has no room, also by quota.
const ENOSPC: i32 = 28;
const EDQUOT: i32 = 122;

/// Why a worker comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Birth {
    First,
    AfterWorker,
    AfterGuardian,
}

pub(crate) enum Ended {
    /// All is written.
    Finished,
    /// The guardian has died.
    Alone,
}

struct Worker<'a> {
    shared: Shared,
    dir: &'a Path,
    limit: u64,
    /// `None` until the log is opened.
    segments: Option<Segments>,
    /// Of the log's folder: only who has it writes there.
    lock: Option<File>,
    line: &'a UnixStream,
    /// That one of the two was replaced is still to be written.
    replaced: bool,
    held: [Held; 2],
    /// The stream that comes first in a batch.
    first: usize,
    /// The disk has failed and is not tried before.
    retry_at: Option<Instant>,
    /// The disk has failed when all was to be over.
    gave_up: bool,
    view: Vec<u8>,
    batch: Vec<u8>,
}

/// The unfinished line of a stream that is held back.
#[derive(Clone, Copy, Default)]
struct Held {
    since: Option<Instant>,
    /// Up to here there is nothing to hand on before more comes.
    done: u64,
}

pub(crate) fn work(
    shared: Shared,
    dir: &Path,
    limit: u64,
    line: &UnixStream,
    birth: Birth,
) -> Ended {
    system::call_process(c"log-writer");
    let log = shared.progress().log;
    let mut it = Worker {
        shared,
        dir,
        limit,
        segments: log.map(|log| Segments::resume(dir, limit, log)),
        lock: None,
        line,
        replaced: birth != Birth::First,
        held: [Held::default(); 2],
        first: 1,
        retry_at: None,
        gave_up: false,
        view: Vec::with_capacity(RING),
        batch: Vec::with_capacity(BATCH),
    };
    if log.is_some() {
        // Without it the disk says why in a moment.
        let _ = it.lock();
    }
    it.write_announced();
    shared.tell_taken();
    it.let_guardian_know();
    let mut armed = false;
    loop {
        let now = Instant::now();
        let over = shared.over().load(SeqCst);
        let tries = it.tries(now, over);
        if tries && it.segments.is_none() {
            it.open();
            continue;
        }
        let before = shared.progress();
        let mut after = before;
        it.gather(&mut after, now, tries);
        if after != before {
            it.commit(after, tries);
            it.gave_up |= over && it.retry_at.is_some();
            it.let_guardian_know();
            armed = false;
        } else if over {
            shared.finished().store(true, SeqCst);
            return Ended::Finished;
        } else if !armed {
            // What comes after another look wakes.
            shared.worker_waits().store(true, SeqCst);
            armed = true;
        } else {
            armed = false;
            let wait = it.wait(now, after.lost.is_some());
            system::readable([Some(line.as_fd())], wait);
            if it.guardian_is_gone() && !shared.over().load(SeqCst) {
                return Ended::Alone;
            }
        }
    }
}

impl Worker<'_> {
    fn tries(&self, now: Instant, over: bool) -> bool {
        if over {
            !self.gave_up
        } else {
            self.retry_at.is_none_or(|it| now >= it)
        }
    }

    fn open(&mut self) {
        let name = RandomState::new().build_hasher().finish();
        let mut progress = self.shared.progress();
        let opened = self.lock();
        match opened.and_then(|()| Segments::open(self.dir, self.limit, name)) {
            Ok((segments, end, tail)) => {
                progress.log = Some(segments.log());
                progress.end = end;
                let found = match tail {
                    Tail::Whole => None,
                    Tail::Torn => Some((GapReason::Writer, 0)),
                    Tail::Damaged(bytes) => Some((GapReason::Damage, bytes)),
                };
                if let Some((reason, bytes)) = found {
                    lose(&mut progress, reason, 0, bytes);
                }
                self.shared.advance(progress);
                self.segments = Some(segments);
                self.retry_at = None;
            }
            Err(_) => self.fail(),
        }
    }

    /// Waits for a worker of before that its disk still holds: it would go on where it was once the disk lets it. To the
    /// guardian that is the disk's silence.
    fn lock(&mut self) -> io::Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o750).create(self.dir)?;
        let folder = File::open(self.dir)?;
        match folder.lock() {
            Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
            Ok(()) | Err(_) => self.lock = Some(folder),
        }
        Ok(())
    }

    fn fail(&mut self) {
        self.retry_at = Some(Instant::now() + RETRY);
        self.gave_up |= self.shared.over().load(SeqCst);
    }

    /// How long nothing has to be done unless something arrives.
    fn wait(&self, now: Instant, lost: bool) -> Option<Duration> {
        let held = self.held.iter().filter_map(|it| it.since);
        let retry = self.retry_at.filter(|_| lost);
        let until = held.map(|it| it + IDLE).chain(retry).min();
        until.map(|it| it.saturating_duration_since(now))
    }

    /// Makes records of what there is, as far as one batch goes.
    fn gather(&mut self, progress: &mut Progress, now: Instant, tries: bool) {
        self.batch.clear();
        if tries && let Some(gap) = progress.lost.take() {
            self.record(progress, Kind::Gap, 0, &gap.encode());
        }
        if tries && std::mem::take(&mut self.replaced) {
            self.record(progress, Kind::System, 0, REPLACED);
        }
        // In turn: a flood on one of them may fill the batch.
        self.first = 1 - self.first;
        for stream in [self.first, 1 - self.first] {
            self.gather_stream(stream, progress, now);
        }
    }

    fn gather_stream(&mut self, stream: usize, progress: &mut Progress, now: Instant) {
        // The end and the gap before the bytes: what is put later is not overlooked.
        let ended = self.shared.is_ended(stream);
        let gap = self.shared.gap(stream, progress.gaps[stream]);
        let mut view = std::mem::take(&mut self.view);
        let up_to = gap.map(|it| it.at);
        let begin = progress.taken[stream];
        self.shared.look(stream, begin, up_to, &mut view);
        let mut held = self.held[stream];
        let late = held.since.is_some_and(|it| now >= it + IDLE);
        let more = match (ended || gap.is_some(), late) {
            (true, _) => More::Never,
            (false, true) => More::Late,
            (false, false) => More::Soon,
        };
        let mut rest = view.as_slice();
        let has_room = loop {
            if self.batch.len() + RECORD_HEADER + PIECE > BATCH {
                break false;
            }
            let Some((used, piece)) = progress.lines[stream].take(rest, more) else {
                break true;
            };
            rest = &rest[used..];
            progress.taken[stream] += used as u64;
            if let Some(piece) = piece {
                self.record(progress, piece.kind, piece.flags, piece.text);
            }
        };
        let put = progress.taken[stream] + rest.len() as u64;
        if has_room && more == More::Late {
            held.done = put;
        }
        if progress.taken[stream] != begin || held.done == put {
            held.since = None;
        }
        if has_room && !rest.is_empty() && held.done != put {
            held.since.get_or_insert(now);
        }
        self.held[stream] = held;
        self.view = view;
        if let Some(gap) = gap.filter(|it| has_room && it.at == progress.taken[stream]) {
            progress.gaps[stream] += 1;
            let body = Gap {
                reason: gap.reason,
                lines: gap.lines,
                bytes: gap.bytes,
            };
            self.record(progress, Kind::Gap, 0, &body.encode());
        }
    }

    fn record(&mut self, progress: &mut Progress, kind: Kind, flags: u8, body: &[u8]) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let record = Record {
            sequence: progress.end.next,
            time_ns: since.map_or(0, |it| it.as_nanos() as u64),
            kind,
            flags,
            body,
        };
        record.encode(&mut self.batch);
        progress.end.next += record.numbers();
    }

    /// Writes the batch and makes `progress` true, which the batch leads to. What cannot be written is counted instead.
    fn commit(&mut self, mut progress: Progress, tries: bool) {
        let before = self.shared.progress().end;
        if self.batch.is_empty() {
            self.shared.advance(progress);
            return;
        }
        let Some(segments) = self.segments.as_ref().filter(|_| tries) else {
            self.replaced |= lose_records(&mut progress, before, 0, &self.batch);
            self.shared.advance(progress);
            return;
        };
        let place = segments.place(before, self.batch.len());
        progress.end = End {
            next: progress.end.next,
            ..behind(place, self.batch.len())
        };
        self.shared.announce(progress, place, &self.batch);
        self.write_announced();
    }

    /// Writes what is announced, also by a worker that died, and makes it true.
    fn write_announced(&mut self) {
        let Some((mut progress, place, records)) = self.shared.announced() else {
            return;
        };
        let before = self.shared.progress().end;
        let Some(segments) = &mut self.segments else {
            return;
        };
        let unwritten = loop {
            match segments.write(place, records) {
                Ok(()) => break None,
                Err(it) if is_full(&it.source) => {
                    if !segments.drop_before(before.segment).unwrap_or(false) {
                        break Some(it);
                    }
                }
                Err(it) => break Some(it),
            }
        };
        let Some(unwritten) = unwritten else {
            self.retry_at = None;
            self.shared.settle();
            return;
        };
        let mut kept = 0;
        while let Decoded::Record(_, length) = decode(&records[kept..unwritten.written]) {
            kept += length;
        }
        let end = if kept > 0 {
            behind(place, kept)
        } else {
            before
        };
        self.replaced |= lose_records(&mut progress, end, kept, records);
        // Where that fails, the next records go over it.
        let _ = segments.cut(progress.end);
        self.shared.advance(progress);
        self.fail();
    }

    fn let_guardian_know(&mut self) {
        if self.shared.guardian_waits().swap(false, SeqCst) {
            // A full line wakes as well; a dead guardian is seen by its end.
            let _ = (&mut self.line).write(&[0]);
        }
    }

    fn guardian_is_gone(&mut self) -> bool {
        let mut bytes = [0; 64];
        match (&mut self.line).read(&mut bytes) {
            Ok(length) => length == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

fn behind(place: End, bytes: usize) -> End {
    End {
        length: place.length.max(SEGMENT_HEADER as u64) + bytes as u64,
        ..place
    }
}

/// Counts what the records hold beyond the first `kept` bytes, behind which the log ends. Returns whether the word that one of
/// the two was replaced was among them, which is to be written again.
fn lose_records(progress: &mut Progress, end: End, kept: usize, records: &[u8]) -> bool {
    let (mut at, mut next, mut replaced) = (0, None, false);
    while let Decoded::Record(record, length) = decode(&records[at..]) {
        if at >= kept {
            next.get_or_insert(record.sequence);
            match (record.kind, Gap::decode(record.body)) {
                (Kind::Gap, Some(gap)) => lose(progress, gap.reason, gap.lines, gap.bytes),
                (Kind::System, _) => replaced = true,
                (_, _) => lose(progress, GapReason::Disk, 1, record.body.len() as u64),
            }
        }
        at += length;
    }
    progress.end = End {
        next: next.unwrap_or(progress.end.next),
        ..end
    };
    replaced
}

fn lose(progress: &mut Progress, reason: GapReason, lines: u64, bytes: u64) {
    let former = progress.lost.unwrap_or(Gap {
        reason,
        lines: 0,
        bytes: 0,
    });
    progress.lost = Some(Gap {
        reason: former.reason,
        lines: former.lines + lines,
        bytes: former.bytes + bytes,
    });
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOSPC | EDQUOT))
}

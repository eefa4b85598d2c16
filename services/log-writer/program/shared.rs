//! What guardian and worker share: a ring of bytes per stream, which the guardian fills, and how far the worker has come. It
//! outlives each of them, so that whoever takes over goes on where the other was killed.
//!
//! Every number has one writer. The worker's progress is one value, [`Progress`], which becomes true as a whole: it is written
//! into a place that nobody reads, and then `state` names that place.

use std::{
    cell::UnsafeCell,
    hash::{BuildHasher as _, RandomState},
    io,
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst},
};

use crate::{
    format::{Gap, GapReason, Kind},
    lines::{Line, PIECE},
    segments::End,
    system,
};

/// Bytes of a ring: a power of two, with room for a piece of a line and its tag.
pub(crate) const RING: usize = 64 << 10;
const _: () = assert!(RING.is_power_of_two() && RING >= PIECE + 1024);
/// The most that is written at once.
pub(crate) const BATCH: usize = 64 << 10;
/// Bytes of a mark.
const MARK: usize = 16;
/// No place is pending.
const NONE: u32 = 0xff;

/// How far the worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The number of the log, once it is opened; nothing can be written before.
    pub(crate) log: Option<u64>,
    pub(crate) end: End,
    /// Bytes of each stream that are done with.
    pub(crate) taken: [u64; 2],
    pub(crate) lines: [Line; 2],
    /// Gaps of each stream that are done with.
    pub(crate) gaps: [u64; 2],
    /// What is lost that no record tells yet.
    pub(crate) lost: Option<Gap>,
}

/// Records that are to be at `place` once the progress that goes with them is true.
#[derive(Clone, Copy, Debug)]
struct Batch {
    place: End,
    length: usize,
}

struct Stream {
    ring: UnsafeCell<[u8; RING]>,
    /// Bytes that were put into the ring.
    put: AtomicU64,
    /// Bytes that were taken, for the guardian; the truth is in `Progress`.
    taken: AtomicU64,
    ended: AtomicBool,
    /// The guardian reads that many bytes at this moment, or has done so since it last looked whether any were there; 0: it does
    /// not. Killed now, it may have taken them without counting them.
    reading: AtomicU64,
    /// Where it reads to, as `put`, and what was at the end of that place before.
    reading_at: AtomicU64,
    mark: UnsafeCell<[u8; MARK]>,
    /// Bytes and lines that the guardian has thrown away since the last gap.
    thrown_bytes: AtomicU64,
    thrown_lines: AtomicU64,
    /// The last gap: how many there were, where, and what is in it. Left alone until the worker has taken it.
    gap: AtomicU64,
    gap_at: AtomicU64,
    gap_bytes: AtomicU64,
    gap_lines: AtomicU64,
    gap_reason: AtomicU8,
    gaps_taken: AtomicU64,
}

struct Memory {
    streams: [Stream; 2],
    /// The place of `progress` that is true, and the one that shall be, or `NONE`, eight bits each.
    state: AtomicU32,
    progress: UnsafeCell<[Option<Progress>; 3]>,
    pending: UnsafeCell<Option<Batch>>,
    batch: UnsafeCell<[u8; BATCH]>,
    /// The worker waits for bytes; the guardian waits for room.
    worker_waits: AtomicBool,
    guardian_waits: AtomicBool,
    /// Nothing more will come: the worker writes what there is, and ends.
    over: AtomicBool,
    /// The worker has done that.
    finished: AtomicBool,
}

/// A gap that the guardian tells the worker of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thrown {
    pub(crate) at: u64,
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
    pub(crate) reason: GapReason,
}

#[derive(Clone, Copy)]
pub(crate) struct Shared(NonNull<Memory>);

impl Shared {
    pub(crate) fn new() -> io::Result<Self> {
        let it = Self(system::shared_memory(size_of::<Memory>())?.cast());
        let first = Progress {
            log: None,
            end: End {
                segment: 0,
                length: 0,
                next: 0,
            },
            taken: [0; 2],
            lines: [Line::new(Kind::Stdout), Line::new(Kind::Stderr)],
            gaps: [0; 2],
            lost: None,
        };
        // SAFETY: nobody else has the memory yet. Zeros are a `Memory`: of numbers, flags, bytes, and options that are
        // written here before anyone reads them.
        unsafe {
            it.memory().progress.get().write([Some(first), None, None]);
            it.memory().pending.get().write(None);
        }
        it.memory().state.store(NONE << 8, SeqCst);
        Ok(it)
    }

    fn memory(&self) -> &Memory {
        // SAFETY: it stays mapped as long as the process lives, and what changes in it is atomic or in a cell.
        unsafe { self.0.as_ref() }
    }

    fn stream(&self, stream: usize) -> &Stream {
        &self.memory().streams[stream]
    }

    pub(crate) fn over(&self) -> &AtomicBool {
        &self.memory().over
    }

    pub(crate) fn finished(&self) -> &AtomicBool {
        &self.memory().finished
    }

    pub(crate) fn worker_waits(&self) -> &AtomicBool {
        &self.memory().worker_waits
    }

    pub(crate) fn guardian_waits(&self) -> &AtomicBool {
        &self.memory().guardian_waits
    }
}

/// The guardian's side.
impl Shared {
    pub(crate) fn room(&self, stream: usize) -> usize {
        let it = self.stream(stream);
        RING - (it.put.load(SeqCst) - it.taken.load(SeqCst)) as usize
    }

    /// Lets `read` fill the next `held` bytes, or fewer where there is less room without a bend. It must fill all of them, or
    /// none: a guardian that is killed meanwhile leaves a mark by which the next one sees which of both it was.
    pub(crate) fn put(
        &self,
        stream: usize,
        held: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let it = self.stream(stream);
        let put = it.put.load(SeqCst);
        let begin = put as usize % RING;
        let length = held.max(1).min(self.room(stream)).min(RING - begin);
        // SAFETY: the worker reads what lies between taken and put only, and this is the rest.
        let room = unsafe {
            std::slice::from_raw_parts_mut(it.ring.get().cast::<u8>().add(begin), length)
        };
        let marked = length.min(MARK);
        let mark = mark(put);
        room[length - marked..].copy_from_slice(&mark[..marked]);
        // SAFETY: only a guardian uses it.
        unsafe { *it.mark.get() = mark };
        it.reading_at.store(put, SeqCst);
        it.reading.store(length as u64, SeqCst);
        let read = read(room);
        if let Ok(length) = read {
            it.put.store(put + length as u64, SeqCst);
        }
        it.reading.store(0, SeqCst);
        read
    }

    /// After a guardian was killed: counts what it had read. False where that cannot be known.
    pub(crate) fn recover(&self, stream: usize) -> bool {
        let it = self.stream(stream);
        let length = it.reading.swap(0, SeqCst) as usize;
        let put = it.put.load(SeqCst);
        if length == 0 || put != it.reading_at.load(SeqCst) {
            return true;
        }
        let begin = put as usize % RING;
        let marked = length.min(MARK);
        // SAFETY: as in `put`; there is no other guardian.
        let (room, mark) = unsafe {
            let ring = it.ring.get().cast::<u8>().add(begin);
            (std::slice::from_raw_parts(ring, length), *it.mark.get())
        };
        if room[length - marked..] != mark[..marked] {
            it.put.store(put + length as u64, SeqCst);
            return true;
        }
        // A short mark may be what was read.
        marked == MARK
    }

    pub(crate) fn end(&self, stream: usize) {
        self.stream(stream).ended.store(true, SeqCst);
    }

    pub(crate) fn throw_away(&self, stream: usize, bytes: &[u8]) {
        let it = self.stream(stream);
        let lines = bytes.iter().filter(|it| **it == b'\n').count();
        it.thrown_bytes.fetch_add(bytes.len() as u64, SeqCst);
        it.thrown_lines.fetch_add(lines as u64, SeqCst);
    }

    /// Whether the worker has taken all that it was given, gaps too.
    pub(crate) fn is_empty(&self, stream: usize) -> bool {
        let it = self.stream(stream);
        self.room(stream) == RING && it.gap.load(SeqCst) == it.gaps_taken.load(SeqCst)
    }

    /// Tells the worker of what was thrown away, unless it has not taken the gap before this one: it is told with the next.
    pub(crate) fn tell_gap(&self, stream: usize, reason: GapReason) {
        let it = self.stream(stream);
        if it.gap.load(SeqCst) != it.gaps_taken.load(SeqCst) {
            return;
        }
        it.gap_at.store(it.put.load(SeqCst), SeqCst);
        it.gap_bytes.store(it.thrown_bytes.swap(0, SeqCst), SeqCst);
        it.gap_lines.store(it.thrown_lines.swap(0, SeqCst), SeqCst);
        it.gap_reason.store(reason as u8, SeqCst);
        it.gap.fetch_add(1, SeqCst);
    }

    pub(crate) fn has_thrown(&self, stream: usize) -> bool {
        self.stream(stream).thrown_bytes.load(SeqCst) > 0
    }
}

/// Bytes that no output has at this place, but by a chance of one in 2^128.
fn mark(put: u64) -> [u8; MARK] {
    let hash = |part: u64| RandomState::new().hash_one((put, part));
    let mut mark = [0; MARK];
    mark[..8].copy_from_slice(&hash(0).to_le_bytes());
    mark[8..].copy_from_slice(&hash(1).to_le_bytes());
    mark
}

/// The worker's side.
impl Shared {
    pub(crate) fn progress(&self) -> Progress {
        let (now, _) = self.state();
        // SAFETY: nobody writes into the place that is true.
        let progress = unsafe { (*self.memory().progress.get())[now] };
        progress.expect("the place that is true was written")
    }

    /// Copies what there is of a stream from `taken` on.
    pub(crate) fn look(&self, stream: usize, taken: u64, up_to: Option<u64>, into: &mut Vec<u8>) {
        let it = self.stream(stream);
        let end = up_to.unwrap_or_else(|| it.put.load(SeqCst));
        into.clear();
        let (begin, length) = (taken as usize % RING, end.saturating_sub(taken) as usize);
        let first = length.min(RING - begin);
        // SAFETY: the guardian writes nothing between taken and put.
        unsafe {
            let ring = it.ring.get().cast::<u8>();
            into.extend_from_slice(std::slice::from_raw_parts(ring.add(begin), first));
            into.extend_from_slice(std::slice::from_raw_parts(ring, length - first));
        }
    }

    /// The gap of a stream after the first `gaps`.
    pub(crate) fn gap(&self, stream: usize, gaps: u64) -> Option<Thrown> {
        let it = self.stream(stream);
        (it.gap.load(SeqCst) > gaps).then(|| Thrown {
            at: it.gap_at.load(SeqCst),
            lines: it.gap_lines.load(SeqCst),
            bytes: it.gap_bytes.load(SeqCst),
            reason: if it.gap_reason.load(SeqCst) == GapReason::Writer as u8 {
                GapReason::Writer
            } else {
                GapReason::Disk
            },
        })
    }

    /// Whether the stream ends where it was put up to.
    pub(crate) fn is_ended(&self, stream: usize) -> bool {
        self.stream(stream).ended.load(SeqCst) || self.memory().over.load(SeqCst)
    }

    /// Makes `progress` true.
    pub(crate) fn advance(&self, progress: Progress) {
        let (now, pending) = self.state();
        let free = (0..3).find(|it| *it != now && Some(*it) != pending);
        self.write(free.unwrap_or(0), progress);
        self.settle_on(free.unwrap_or(0));
    }

    /// Announces that these records will be at `place`, and that `progress` will then be true. Whoever finds the announcement
    /// writes them.
    pub(crate) fn announce(&self, progress: Progress, place: End, records: &[u8]) {
        let (now, _) = self.state();
        let free = (now + 1) % 3;
        self.write(free, progress);
        // SAFETY: nothing is pending, so nobody reads these.
        unsafe {
            let batch = self.memory().batch.get().cast::<u8>();
            batch.copy_from_nonoverlapping(records.as_ptr(), records.len());
            *self.memory().pending.get() = Some(Batch {
                place,
                length: records.len(),
            });
        }
        let state = now as u32 | (free as u32) << 8;
        self.memory().state.store(state, SeqCst);
    }

    /// What is announced: the progress, the place and the records.
    pub(crate) fn announced(&self) -> Option<(Progress, End, &[u8])> {
        let (_, pending) = self.state();
        // SAFETY: what is announced stays as it is until it is settled, by the same process.
        unsafe {
            let progress = (*self.memory().progress.get())[pending?]?;
            let batch = (*self.memory().pending.get())?;
            let bytes = self.memory().batch.get().cast::<u8>();
            let records = std::slice::from_raw_parts(bytes, batch.length);
            Some((progress, batch.place, records))
        }
    }

    /// Makes true what is announced.
    pub(crate) fn settle(&self) {
        if let (_, Some(pending)) = self.state() {
            self.settle_on(pending);
        }
    }

    fn settle_on(&self, place: usize) {
        let state = place as u32 | NONE << 8;
        self.memory().state.store(state, SeqCst);
        self.tell_taken();
    }

    /// Tells the guardian how far the worker is; also after a worker was killed before it could.
    pub(crate) fn tell_taken(&self) {
        let progress = self.progress();
        for (it, index) in self.memory().streams.iter().zip(0..) {
            it.taken.store(progress.taken[index], SeqCst);
            it.gaps_taken.store(progress.gaps[index], SeqCst);
        }
    }

    fn write(&self, place: usize, progress: Progress) {
        // SAFETY: only the worker writes, and no place that is true or announced.
        unsafe { (*self.memory().progress.get())[place] = Some(progress) };
    }

    fn state(&self) -> (usize, Option<usize>) {
        let state = self.memory().state.load(SeqCst);
        let pending = state >> 8;
        (
            (state & 0xff) as usize,
            (pending != NONE).then_some(pending as usize),
        )
    }
}

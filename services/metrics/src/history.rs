//! The last minutes of one series, in little memory: a sample is written as what changed since the one before. Most figures of
//! most sandboxes do not change in most seconds.

use std::{collections::VecDeque, time::Duration};

/// A chunk begins with a whole sample, so that the oldest ones can go without a look at the others.
const CHUNK_SAMPLES: u16 = 60;

/// Samples of `N` figures, oldest first. `N` is at most 64.
#[derive(Clone, Debug)]
pub(crate) struct History<const N: usize> {
    keep: Duration,
    chunks: VecDeque<Chunk<N>>,
    last: Option<Sample<N>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample<const N: usize> {
    /// Milliseconds since some beginning; never less than that of the sample before.
    pub(crate) at: u64,
    pub(crate) figures: [u64; N],
}

#[derive(Clone, Debug)]
struct Chunk<const N: usize> {
    first: Sample<N>,
    last_at: u64,
    /// Samples after the first one.
    more: u16,
    changes: Vec<u8>,
}

impl<const N: usize> History<N> {
    /// One that forgets what is older than `keep`, by chunks.
    pub(crate) fn new(keep: Duration) -> Self {
        const { assert!(N <= 64) }
        Self {
            keep,
            chunks: VecDeque::new(),
            last: None,
        }
    }

    pub(crate) fn last(&self) -> Option<&Sample<N>> {
        self.last.as_ref()
    }

    /// Bytes that the samples take.
    pub(crate) fn size(&self) -> usize {
        let own = |it: &Chunk<N>| size_of::<Chunk<N>>() + it.changes.capacity();
        self.chunks.iter().map(own).sum()
    }

    /// Adds a sample. One that is older than the last one counts as of its time.
    pub(crate) fn push(&mut self, mut sample: Sample<N>) {
        let before = self.last.unwrap_or(sample);
        sample.at = sample.at.max(before.at);
        match self.chunks.back_mut() {
            Some(chunk) if chunk.more + 1 < CHUNK_SAMPLES => chunk.push(&before, &sample),
            full => {
                if let Some(full) = full {
                    full.changes.shrink_to_fit();
                }
                self.chunks.push_back(Chunk {
                    first: sample,
                    last_at: sample.at,
                    more: 0,
                    changes: vec![],
                });
            }
        }
        self.last = Some(sample);
        let keep = u64::try_from(self.keep.as_millis()).unwrap_or(u64::MAX);
        let oldest = sample.at.saturating_sub(keep);
        while self.chunks.front().is_some_and(|it| it.last_at < oldest) {
            self.chunks.pop_front();
        }
    }

    /// The samples from `from` to `to`, both included.
    pub(crate) fn range(&self, from: u64, to: u64) -> impl Iterator<Item = Sample<N>> {
        let chunks = self.chunks.iter();
        let chunks = chunks.skip_while(move |it| it.last_at < from);
        let chunks = chunks.take_while(move |it| it.first.at <= to);
        let samples = chunks.flat_map(Chunk::samples);
        samples.filter(move |it| (from..=to).contains(&it.at))
    }
}

impl<const N: usize> Chunk<N> {
    fn push(&mut self, before: &Sample<N>, sample: &Sample<N>) {
        put(&mut self.changes, sample.at - before.at);
        let pairs = || before.figures.iter().zip(&sample.figures).enumerate();
        let changed = pairs().filter(|(_, (old, new))| old != new);
        put(
            &mut self.changes,
            changed.fold(0, |bits, (number, _)| bits | 1 << number),
        );
        for (_, (old, new)) in pairs().filter(|(_, (old, new))| old != new) {
            put(&mut self.changes, zigzag(new.wrapping_sub(*old)));
        }
        self.last_at = sample.at;
        self.more += 1;
    }

    fn samples(&self) -> impl Iterator<Item = Sample<N>> {
        let (mut changes, mut sample) = (self.changes.iter(), self.first);
        let more = (0..self.more).map(move |_| {
            sample.at += take(&mut changes);
            let changed = take(&mut changes);
            for (number, figure) in sample.figures.iter_mut().enumerate() {
                if changed >> number & 1 == 1 {
                    *figure = figure.wrapping_add(unzigzag(take(&mut changes)));
                }
            }
            sample
        });
        std::iter::once(self.first).chain(more)
    }
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take<'a>(bytes: &mut impl Iterator<Item = &'a u8>) -> u64 {
    let (mut number, mut shift) = (0, 0);
    for byte in bytes {
        number |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 || shift > 63 {
            break;
        }
    }
    number
}

/// Small changes of either sign become small numbers.
fn zigzag(change: u64) -> u64 {
    let change = change.cast_signed();
    ((change << 1) ^ (change >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(at: u64, first: u64, second: u64) -> Sample<2> {
        Sample {
            at,
            figures: [first, second],
        }
    }

    proptest! {
        #[test]
        fn what_was_pushed_is_read_back(
            steps in prop::collection::vec((0_u64..5000, any::<u64>(), prop_oneof![Just(7), any::<u64>()]), 1..200),
            from in 0_u64..500_000,
            length in 0_u64..500_000,
        ) {
            let mut history = History::<2>::new(Duration::from_secs(3600 * 24));
            let (mut at, mut pushed) = (0, vec![]);
            for (step, first, second) in steps {
                at += step;
                pushed.push(sample(at, first, second));
                history.push(sample(at, first, second));
            }
            prop_assert_eq!(history.last(), pushed.last());
            prop_assert_eq!(history.range(0, u64::MAX).collect::<Vec<_>>(), pushed.clone());
            let to = from + length;
            pushed.retain(|it| (from..=to).contains(&it.at));
            prop_assert_eq!(history.range(from, to).collect::<Vec<_>>(), pushed);
        }
    }

    #[test]
    fn what_is_older_than_is_kept_goes_and_what_is_younger_stays() {
        let mut history = History::<2>::new(Duration::from_secs(900));
        for second in 0..2000 {
            history.push(sample(second * 1000, second, 0));
        }
        let kept: Vec<_> = history.range(0, u64::MAX).collect();
        let oldest = kept[0].at / 1000;
        assert!((1999 - 900 - 60..=1999 - 900).contains(&oldest), "{oldest}");
        assert_eq!(kept.len() as u64, 2000 - oldest);
    }

    #[test]
    fn seconds_in_which_nothing_happens_take_three_bytes_each() {
        let mut history = History::<24>::new(Duration::from_secs(900));
        for second in 0..900 {
            history.push(Sample {
                at: second * 1000,
                figures: [1 << 40; 24],
            });
        }
        let changes: usize = history.chunks.iter().map(|it| it.changes.len()).sum();
        assert_eq!(changes, (900 - 15) * 3);
        assert!(history.size() < 8192, "{}", history.size());
    }

    #[test]
    fn a_clock_that_goes_back_does_not_turn_the_order() {
        let mut history = History::<2>::new(Duration::from_secs(900));
        history.push(sample(5000, 1, 1));
        history.push(sample(3000, 2, 2));
        let times: Vec<_> = history.range(0, u64::MAX).map(|it| it.at).collect();
        assert_eq!(times, [5000, 5000]);
    }
}

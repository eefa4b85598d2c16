//! How the work of a collection is cut, so that any number of workers can share it: by digest, into slices of which each
//! is leased under a name of its own; and what becomes of a run as its slices are reported.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, SystemTime},
};

use crate::holders::Holder;

/// Objects that a run names of those that it deleted, and of those that it could not delete.
pub const NAMED_MAX: usize = 1000;
/// Objects that a run names of those that are in the way of its goal.
pub const LARGEST_MAX: usize = 10;
/// Runs of each kind that are kept.
pub const RUNS_KEPT: usize = 16;

/// So long a run waits for somebody who does what is left of it: a node is rebooted within it, and who looks at runs waits no
/// longer.
pub const ABANDONED_AFTER: Duration = Duration::from_secs(600);

/// A byte of a digest has as many values in each of them.
pub const SLICES: u8 = 64;

/// Since when runs are waiting for somebody.
#[derive(Clone, Debug, Default)]
pub struct Waiting(BTreeMap<u64, Duration>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CollectionKind {
    Images,
    Blobs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CollectionCause {
    #[default]
    Requested,
    Scheduled,
    Pressure,
}

/// A run over all slices. Which objects it has deleted is written down beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collection {
    pub id: u64,
    pub kind: CollectionKind,
    pub cause: CollectionCause,
    /// 0: all that is of no use.
    pub goal_bytes: u64,
    pub started_at: SystemTime,
    pub ended_at: Option<SystemTime>,
    pub slices_done: BTreeSet<Slice>,
    pub deleted_total: u64,
    pub deleted_bytes: u64,
    pub failed: BTreeMap<String, String>,
    pub failed_total: u64,
    pub objects_total: u64,
    pub retained_total: u64,
    pub aborted: String,
    /// It was ended since nobody was there to do what was left of it.
    pub abandoned: bool,
    pub goal_missed_bytes: u64,
    pub largest_held: Vec<HeldObject>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldObject {
    pub object: String,
    pub size_bytes: u64,
    pub holders: Vec<Holder>,
}

/// What a worker says of a slice that it is done with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceReport {
    pub objects_total: u64,
    pub retained_total: u64,
    pub failed: BTreeMap<String, String>,
    pub aborted: String,
    pub goal_missed_bytes: u64,
    pub largest_held: Vec<HeldObject>,
}

/// A part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slice(u8);

impl CollectionKind {
    pub const ALL: [CollectionKind; 2] = [CollectionKind::Images, CollectionKind::Blobs];

    pub fn as_str(self) -> &'static str {
        match self {
            CollectionKind::Images => "images",
            CollectionKind::Blobs => "blobs",
        }
    }

    /// The kind and the slice that a lease of this name is for.
    pub fn of_lease(name: &str) -> Option<(Self, Slice)> {
        let all = Self::ALL.into_iter();
        all.flat_map(|kind| Slice::all().map(move |slice| (kind, slice)))
            .find(|(kind, slice)| kind.lease(*slice) == name)
    }

    /// Name of the lease that its holder works on the slice under.
    pub fn lease(self, slice: Slice) -> String {
        format!("image-gc/{}/{slice}", self.as_str())
    }
}

impl Collection {
    pub fn new(
        id: u64,
        kind: CollectionKind,
        cause: CollectionCause,
        goal_bytes: u64,
        started_at: SystemTime,
    ) -> Self {
        Self {
            id,
            kind,
            cause,
            goal_bytes,
            started_at,
            ended_at: None,
            slices_done: BTreeSet::new(),
            deleted_total: 0,
            deleted_bytes: 0,
            failed: BTreeMap::new(),
            failed_total: 0,
            objects_total: 0,
            retained_total: 0,
            aborted: String::new(),
            abandoned: false,
            goal_missed_bytes: 0,
            largest_held: vec![],
        }
    }

    /// Takes up what was said of a slice, once; the run ends with the last one. Returns whether it was news.
    pub fn report(&mut self, slice: Slice, report: SliceReport, now: SystemTime) -> bool {
        if self.ended_at.is_some() || !self.slices_done.insert(slice) {
            return false;
        }
        self.objects_total += report.objects_total;
        self.retained_total += report.retained_total;
        self.failed_total += report.failed.len() as u64;
        let room = NAMED_MAX.saturating_sub(self.failed.len());
        self.failed.extend(report.failed.into_iter().take(room));
        if self.aborted.is_empty() {
            self.aborted = report.aborted;
        }
        // Each worker sees all slices, and the last one sees most of what was freed.
        self.goal_missed_bytes = report.goal_missed_bytes;
        self.largest_held = report.largest_held;
        self.largest_held.truncate(LARGEST_MAX);
        if self.slices_done.len() == usize::from(SLICES) {
            self.ended_at = Some(now);
        }
        true
    }

    /// Ends a run that nobody works on. Returns whether it was news.
    pub fn abandon(&mut self, now: SystemTime) -> bool {
        if self.ended_at.is_some() {
            return false;
        }
        self.ended_at = Some(now);
        self.abandoned = true;
        if self.aborted.is_empty() {
            let minutes = ABANDONED_AFTER.as_secs() / 60;
            let kind = self.kind.as_str();
            self.aborted = format!("no worker was there to collect {kind} for {minutes} minutes");
        }
        true
    }
}

impl Waiting {
    /// Looks at the runs that are under way, and the kinds that somebody holds a slice of; returns those that have waited too
    /// long.
    pub fn look(
        &mut self,
        runs: &[(u64, CollectionKind)],
        worked: &BTreeSet<CollectionKind>,
        now: Duration,
    ) -> Vec<u64> {
        let alone = runs.iter().filter(|(_, kind)| !worked.contains(kind));
        let since = alone.map(|(id, _)| (*id, self.0.get(id).copied().unwrap_or(now)));
        self.0 = since.collect();
        let is_over = |since: &Duration| now.saturating_sub(*since) >= ABANDONED_AFTER;
        let over = self.0.iter().filter(|(_, since)| is_over(since));
        over.map(|(id, _)| *id).collect()
    }
}

impl CollectionCause {
    pub const ALL: [CollectionCause; 3] = [
        CollectionCause::Requested,
        CollectionCause::Scheduled,
        CollectionCause::Pressure,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            CollectionCause::Requested => "requested",
            CollectionCause::Scheduled => "scheduled",
            CollectionCause::Pressure => "pressure",
        }
    }
}

impl Slice {
    /// `None` where there is no such slice.
    pub fn new(number: u32) -> Option<Self> {
        let number = u8::try_from(number).ok()?;
        (number < SLICES).then_some(Self(number))
    }

    /// The slice of a digest, as `sha256:8f...`; `None` where it is no digest.
    pub fn of(digest: &str) -> Option<Self> {
        let (_, hex) = digest.split_once(':')?;
        let byte = u8::from_str_radix(hex.get(..2)?, 16).ok()?;
        Some(Self(byte / (u8::MAX / SLICES + 1)))
    }

    pub fn all() -> impl Iterator<Item = Slice> {
        (0..SLICES).map(Self)
    }

    pub fn number(self) -> u32 {
        self.0.into()
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_first_byte_of_a_digest_is_in_one_slice_and_each_slice_has_as_many() {
        let mut bytes = vec![0; SLICES.into()];
        for byte in 0..=u8::MAX {
            let slice = Slice::of(&format!("sha256:{byte:02x}00")).unwrap();
            bytes[slice.number() as usize] += 1;
        }
        assert_eq!(bytes, vec![4; 64]);
    }

    #[test]
    fn what_is_no_digest_is_in_no_slice() {
        for text in ["", "sha256", "sha256:", "sha256:8", "sha256:zz", "8f00"] {
            assert_eq!(Slice::of(text), None, "{text}");
        }
        assert_eq!(Slice::new(63).map(Slice::number), Some(63));
        assert_eq!(Slice::new(64), None);
        assert_eq!(Slice::new(256), None);
    }

    #[test]
    fn a_slice_is_leased_under_its_kind_and_number() {
        let slice = Slice::of("sha256:1fab").unwrap();
        assert_eq!(CollectionKind::Images.lease(slice), "image-gc/images/07");
        assert_eq!(CollectionKind::Blobs.lease(slice), "image-gc/blobs/07");
        for kind in CollectionKind::ALL {
            for slice in Slice::all() {
                let lease = kind.lease(slice);
                assert_eq!(CollectionKind::of_lease(&lease), Some((kind, slice)));
            }
        }
        for other in ["image-gc/images/64", "image-gc/images/7", "images/07", ""] {
            assert_eq!(CollectionKind::of_lease(other), None, "{other}");
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
    }

    fn run() -> Collection {
        let (kind, cause) = (CollectionKind::Blobs, CollectionCause::Scheduled);
        Collection::new(7, kind, cause, 0, at(1))
    }

    fn failed(names: std::ops::Range<usize>) -> BTreeMap<String, String> {
        names.map(|it| (format!("{it:04}"), "why".into())).collect()
    }

    #[test]
    fn a_run_ends_with_its_last_slice_and_counts_each_slice_once() {
        let mut run = run();
        let report = SliceReport {
            objects_total: 3,
            retained_total: 2,
            ..SliceReport::default()
        };
        for slice in Slice::all() {
            assert_eq!(run.ended_at, None);
            assert!(run.report(slice, report.clone(), at(9)));
            assert!(
                !run.report(slice, report.clone(), at(10)),
                "it was said before"
            );
        }
        assert_eq!(run.ended_at, Some(at(9)));
        assert_eq!((run.objects_total, run.retained_total), (3 * 64, 2 * 64));
    }

    #[test]
    fn a_run_names_so_many_failures_counts_all_and_keeps_the_first_reason_to_abort() {
        let mut run = run();
        let reports = [(0..600, "first"), (600..1300, "second")];
        for (slice, (names, aborted)) in Slice::all().zip(reports) {
            let report = SliceReport {
                failed: failed(names),
                aborted: aborted.into(),
                goal_missed_bytes: 10 - u64::from(slice.0),
                ..SliceReport::default()
            };
            run.report(slice, report, at(2));
        }
        assert_eq!((run.failed.len(), run.failed_total), (NAMED_MAX, 1300));
        assert_eq!((run.aborted.as_str(), run.goal_missed_bytes), ("first", 9));
    }

    #[test]
    fn a_run_is_given_up_when_nobody_was_there_for_it_for_long() {
        use CollectionKind::{Blobs, Images};
        let (runs, minute) = ([(1, Images), (2, Blobs)], Duration::from_secs(60));
        let mut waiting = Waiting::default();
        let mut look = |worked: &[CollectionKind], minutes: u32| {
            waiting.look(&runs, &worked.iter().copied().collect(), minute * minutes)
        };
        assert_eq!(look(&[], 1), [0; 0]);
        assert_eq!(look(&[Blobs], 10), [0; 0]);
        assert_eq!(
            look(&[], 11),
            [1],
            "and the other was worked on a minute ago"
        );
        assert_eq!(look(&[Images], 20), [0; 0]);
        assert_eq!(look(&[], 21), [2]);
        assert_eq!(look(&[], 31), [1, 2]);

        let mut run = run();
        assert!(run.abandon(at(5)) && run.abandoned);
        assert_eq!(run.ended_at, Some(at(5)));
        let said = "no worker was there to collect blobs for 10 minutes";
        assert_eq!(run.aborted, said);
        assert!(!run.abandon(at(6)), "it has ended");
    }
}

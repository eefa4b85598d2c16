//! What the parts of a worker tell each other: which leases it holds, how the latest runs stand, what is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use berth_api::v1;
use berth_domain::collection::{CollectionKind, Slice};
use berth_plugin::{Beat, LastRun};
use tokio::sync::watch;

/// Seen by all parts; each part writes its own.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) membership: watch::Sender<Membership>,
    pub(crate) runs: watch::Sender<Runs>,
    pub(crate) said: watch::Sender<Said>,
}

/// The workers, as this one sees them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Membership {
    pub(crate) reachable: bool,
    /// Names of those that live, per kind that they collect.
    pub(crate) live: BTreeMap<CollectionKind, BTreeSet<String>>,
    /// The lease by which this worker lives.
    pub(crate) own: Option<Lease>,
    pub(crate) slices: BTreeMap<(CollectionKind, Slice), Lease>,
}

#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) name: String,
    pub(crate) token: u64,
    /// By this process's own clock, counted from before it asked: never later than the manager's.
    pub(crate) until: Instant,
}

impl Lease {
    pub(crate) fn reference(&self) -> v1::WorkLeaseRef {
        v1::WorkLeaseRef {
            name: self.name.clone(),
            token: self.token,
        }
    }
}

impl Membership {
    /// Until when a lease of a slice lasts as it was renewed since; `None` where it is lost, or ends within a margin.
    pub(crate) fn lasts(
        &self,
        of: (CollectionKind, Slice),
        token: u64,
        margin: Duration,
    ) -> Option<Instant> {
        let lease = self.slices.get(&of).filter(|it| it.token == token)?;
        let safe = Instant::now().checked_add(margin)? < lease.until;
        safe.then_some(lease.until)
    }

    /// The slices of a kind that this worker holds now.
    pub(crate) fn held(&self, kind: CollectionKind) -> BTreeMap<Slice, Lease> {
        let now = Instant::now();
        let of_kind = self
            .slices
            .iter()
            .filter(|((it, _), lease)| *it == kind && lease.until > now);
        of_kind
            .map(|((_, slice), lease)| (*slice, lease.clone()))
            .collect()
    }
}

/// The latest runs by id, as the manager tells them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs {
    /// Whether all that stood at the beginning is known.
    pub(crate) synced: bool,
    pub(crate) by_id: BTreeMap<u64, v1::Collection>,
}

impl Runs {
    pub(crate) fn of(
        &self,
        kind: CollectionKind,
    ) -> impl DoubleEndedIterator<Item = &v1::Collection> {
        let wire = crate::wire::kind_to_proto(kind);
        self.by_id.values().filter(move |it| it.kind() == wire)
    }
}

/// What is told about this worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    /// What is wrong, by what it is about.
    pub(crate) alarms: BTreeMap<&'static str, String>,
    pub(crate) next_scheduled: Option<SystemTime>,
}

impl State {
    /// What the manager is told of this worker.
    pub(crate) fn beat(&self) -> Beat {
        let alarms: Vec<_> = self.said.borrow().alarms.values().cloned().collect();
        let runs = self.runs.borrow();
        let ended = runs.by_id.values().filter(|it| it.ended_at.is_some());
        let last = ended.max_by_key(|it| it.ended_at.map(|it| (it.seconds, it.nanos)));
        let last_run = last.and_then(|it| {
            let (deleted, failed) = (it.deleted_total, it.failed_total);
            Some(LastRun {
                ended_at: SystemTime::try_from(it.ended_at?).ok()?,
                succeeded: it.aborted.is_empty() && failed == 0,
                result: match it.aborted.as_str() {
                    "" => format!("run {}: {deleted} deleted, {failed} failed", it.id),
                    why => format!("run {} deleted nothing: {why}", it.id),
                },
            })
        });
        Beat {
            problem: (!alarms.is_empty()).then(|| alarms.join("; ")),
            last_run,
        }
    }

    /// Tells a problem until it is over, and logs each once.
    pub(crate) fn alarm(&self, about: &'static str, problem: Option<String>) {
        self.said.send_if_modified(|said| {
            if said.alarms.get(about) == problem.as_ref() {
                return false;
            }
            match problem {
                Some(problem) => {
                    tracing::warn!(about, problem, "alarm");
                    said.alarms.insert(about, problem);
                }
                None => {
                    said.alarms.remove(about);
                    tracing::info!(about, "the alarm is over");
                }
            }
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_as_it_was_renewed_and_never_into_its_margin() {
        const MARGIN: Duration = Duration::from_secs(60);
        let slices: Vec<_> = Slice::all().take(2).collect();
        let (own, other) = (slices[0], slices[1]);
        let cases = [
            ("it lasts", own, 7, MARGIN * 2, true),
            ("it ends within the margin", own, 7, MARGIN / 2, false),
            ("it has been taken anew since", own, 8, MARGIN * 2, false),
            ("it is another's", other, 7, MARGIN * 2, false),
        ];
        for (case, slice, token, left, expected) in cases {
            let until = Instant::now() + left;
            let name = String::new();
            let lease = Lease { name, token, until };
            let membership = Membership {
                slices: [((CollectionKind::Blobs, slice), lease)].into(),
                ..Membership::default()
            };
            let lasts = membership.lasts((CollectionKind::Blobs, own), 7, MARGIN);
            assert_eq!(lasts, expected.then_some(until), "{case}");
        }
    }
}

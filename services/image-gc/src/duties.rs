//! What time brings about: of each kind one worker leads, and begins runs, when the disk is full, when the schedule says so, when
//! images were collected and blobs come next, and when the grace of tombstones is over.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use berth_api::v1::{self, CollectionCause, CollectionKind as Wire};
use berth_collect::{
    Action,
    plan::Usage,
    schedule::{self, LastRun},
    share,
};
use berth_domain::collection::CollectionKind;

use crate::{
    config::Config,
    facts::gather,
    manager::{Broken, Manager},
    members,
    state::{Membership, Runs, State},
    wire,
};

/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(500);

/// What the leading worker remembers from one look to the next.
#[derive(Debug, Default)]
struct Duties {
    leads: Option<Leads>,
    pressure_checked: Option<Instant>,
    /// When the grace of the next tombstone is over; looked up after each run of blobs.
    tombstones: Option<Tombstones>,
    /// The run of blobs after which they were looked up last.
    looked_after: Option<u64>,
    reaped: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Tombstones {
    due: SystemTime,
}

pub(crate) async fn attend(
    manager: &Manager,
    config: &Config,
    state: &State,
) -> Result<std::convert::Infallible, Broken> {
    let mut duties = Duties::default();
    loop {
        let leads = leads(config, &state.membership.borrow());
        let runs = state.runs.borrow().clone();
        tell_schedule(config, state, leads.first, &runs);
        if duties.leads != Some(leads.clone()) || !runs.synced {
            // Who comes to lead looks at once.
            duties = Duties {
                leads: Some(leads.clone()),
                ..Duties::default()
            };
        }
        if runs.synced {
            duties.look(manager, config, state, &leads, &runs).await?;
        }
        tokio::time::sleep(TICK).await;
    }
}

/// How full the file system of the data path is.
pub(crate) fn usage(path: &Path) -> std::io::Result<Usage> {
    let it = rustix::fs::statvfs(path)?;
    let used = it.f_blocks.saturating_sub(it.f_bfree);
    Ok(Usage {
        used: used.saturating_mul(it.f_frsize),
        capacity: used.saturating_add(it.f_bavail).saturating_mul(it.f_frsize),
    })
}

/// What this worker begins runs of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leads {
    kinds: BTreeSet<CollectionKind>,
    /// What the schedule and a full disk begin with: the blobs come after the images, where any worker collects images.
    first: CollectionKind,
}

fn leads(config: &Config, membership: &Membership) -> Leads {
    let is_led = |kind: &CollectionKind| {
        let live = membership.live.get(kind);
        membership.own.is_some() && live.is_some_and(|it| share::leads(&config.name, it))
    };
    let kinds = members::kinds(config).into_iter().filter(is_led).collect();
    let images = membership.live.get(&CollectionKind::Images);
    let any_images = config.collect_images || images.is_some_and(|it| !it.is_empty());
    let first = match any_images {
        true => CollectionKind::Images,
        false => CollectionKind::Blobs,
    };
    Leads { kinds, first }
}

/// Whether a run goes on that this worker has a part in.
fn is_under_way(config: &Config, runs: &Runs) -> bool {
    let own = members::kinds(config).into_iter();
    own.flat_map(|kind| runs.of(kind))
        .any(|it| it.ended_at.is_none())
}

fn tell_schedule(config: &Config, state: &State, first: CollectionKind, runs: &Runs) {
    let next = runs.synced.then(|| next_scheduled(config, first, runs));
    state.said.send_if_modified(|said| {
        let changed = said.next_scheduled != next;
        said.next_scheduled = next;
        changed
    });
}

fn next_scheduled(config: &Config, first: CollectionKind, runs: &Runs) -> SystemTime {
    let full = |it: &&v1::Collection| it.goal_bytes == 0;
    let last = runs.of(first).rev().find(full);
    let last = last.and_then(|it| {
        Some(LastRun {
            started: wire::time(it.started_at)?,
            aborted: !it.aborted.is_empty(),
        })
    });
    schedule::due(
        last,
        config.scheduled_gc_interval,
        config.pressure_check_interval,
        SystemTime::now(),
    )
}

impl Duties {
    async fn look(
        &mut self,
        manager: &Manager,
        config: &Config,
        state: &State,
        leads: &Leads,
        runs: &Runs,
    ) -> Result<(), Broken> {
        if leads.kinds.contains(&CollectionKind::Blobs) {
            self.follow_images(manager, config, runs).await?;
            self.reap(manager, config, runs).await?;
        }
        let first = leads.first;
        if !leads.kinds.contains(&first) || is_under_way(config, runs) {
            return Ok(());
        }
        let check = config.pressure_check_interval;
        if self.pressure_checked.is_none_or(|it| it.elapsed() >= check) {
            self.pressure_checked = Some(Instant::now());
            self.check_pressure(manager, config, state, first).await?;
        }
        let kind = wire::kind_to_proto(first);
        if next_scheduled(config, first, runs) <= SystemTime::now() {
            manager.start(kind, CollectionCause::Scheduled, 0).await?;
        }
        Ok(())
    }

    async fn check_pressure(
        &self,
        manager: &Manager,
        config: &Config,
        state: &State,
        first: CollectionKind,
    ) -> Result<(), Broken> {
        let usage = match usage(&config.data_path) {
            Ok(usage) => usage,
            Err(error) => {
                let path = config.data_path.display();
                let problem = format!("how full {path} is cannot be read: {error}");
                state.alarm("disk", Some(problem));
                return Ok(());
            }
        };
        state.alarm("disk", None);
        if let Some(goal) = config.marks().goal(usage) {
            let permille = usage.permille();
            tracing::info!(permille, goal, "the disk is fuller than the high mark");
            let kind = wire::kind_to_proto(first);
            manager.start(kind, CollectionCause::Pressure, goal).await?;
        }
        Ok(())
    }

    /// Blobs come after images, also where these could not be collected. Who asks for a run says himself of what.
    async fn follow_images(
        &self,
        manager: &Manager,
        config: &Config,
        runs: &Runs,
    ) -> Result<(), Broken> {
        let Some(images) = runs.of(CollectionKind::Images).next_back() else {
            return Ok(());
        };
        let blobs = runs.of(CollectionKind::Blobs).next_back();
        let followed = blobs.is_some_and(|it| it.id > images.id);
        if images.ended_at.is_none() || followed {
            return Ok(());
        }
        let goal = match images.cause() {
            CollectionCause::Scheduled => 0,
            CollectionCause::Pressure => {
                let above = usage(&config.data_path).map(|it| config.marks().above_low(it));
                match above {
                    // Nothing is missing; and 0 would mean all.
                    Ok(0) | Err(_) => return Ok(()),
                    Ok(goal) => goal,
                }
            }
            CollectionCause::Unspecified | CollectionCause::Requested => return Ok(()),
        };
        manager.start(Wire::Blobs, images.cause(), goal).await?;
        Ok(())
    }

    /// Begins a run for tombstones whose grace is over; its goal is what they are, so that nothing else goes with them.
    async fn reap(
        &mut self,
        manager: &Manager,
        config: &Config,
        runs: &Runs,
    ) -> Result<(), Broken> {
        let last = runs.of(CollectionKind::Blobs).next_back();
        if last.is_some_and(|it| it.ended_at.is_none()) {
            return Ok(());
        }
        let last = last.map_or(0, |it| it.id);
        let now = SystemTime::now();
        let is_due = self.tombstones.is_some_and(|it| it.due <= now);
        if self.looked_after == Some(last) && !is_due {
            return Ok(());
        }
        // What could not be removed is tried again, and not for ever without a rest.
        let rest = config.tombstone_grace.max(Duration::from_secs(1));
        if is_due && self.reaped.is_some_and(|it| it.elapsed() < rest) {
            return Ok(());
        }
        let Ok(facts) = gather(manager, config, CollectionKind::Blobs).await else {
            // The next run says what cannot be read.
            self.looked_after = Some(last);
            self.tombstones = None;
            return Ok(());
        };
        let buried = facts.objects.iter().filter(|it| it.buried.is_some());
        let due = buried.clone().filter(|it| it.action == Action::Delete);
        let bytes: Option<u64> = due.map(|it| it.size_bytes).reduce(u64::saturating_add);
        let next = buried.filter(|it| it.action == Action::Tombstone);
        let next = next.filter_map(|it| it.deletable_at).min();
        self.looked_after = Some(last);
        self.tombstones = next.map(|due| Tombstones { due });
        if let Some(bytes) = bytes {
            self.tombstones = Some(Tombstones { due: now });
            if self.reaped.is_none_or(|it| it.elapsed() >= rest) {
                self.reaped = Some(Instant::now());
                let goal = bytes.max(1);
                manager
                    .start(Wire::Blobs, CollectionCause::Scheduled, goal)
                    .await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Lease;

    const BOTH: [CollectionKind; 2] = CollectionKind::ALL;

    fn config(name: &str, images: bool, blobs: bool) -> Config {
        Config {
            name: name.to_owned(),
            collect_images: images,
            collect_blobs: blobs,
            ..Config::default()
        }
    }

    fn membership(workers: &[&Config]) -> Membership {
        let mut membership = Membership {
            own: Some(Lease {
                name: String::new(),
                token: 1,
                until: Instant::now(),
            }),
            ..Membership::default()
        };
        for worker in workers {
            for kind in members::kinds(worker) {
                let live = membership.live.entry(kind).or_default();
                live.insert(worker.name.clone());
            }
        }
        membership
    }

    #[test]
    fn each_kind_is_led_by_one_that_collects_it() {
        use CollectionKind::{Blobs, Images};
        let (both_a, both_b) = (config("a", true, true), config("b", true, true));
        let (blobs_a, images_b) = (config("a", false, true), config("b", true, false));
        let blobs_b = config("b", false, true);
        let cases = [
            (
                "both lead nothing twice",
                [&both_a, &both_b],
                Images,
                [&BOTH[..], &[]],
            ),
            (
                "the first has no images",
                [&blobs_a, &both_b],
                Images,
                [&[Blobs], &[Images]],
            ),
            (
                "each has its own",
                [&blobs_a, &images_b],
                Images,
                [&[Blobs], &[Images]],
            ),
            (
                "the second has no images",
                [&both_a, &blobs_b],
                Images,
                [&BOTH, &[]],
            ),
            (
                "nobody has images",
                [&blobs_a, &blobs_b],
                Blobs,
                [&[Blobs], &[]],
            ),
        ];
        for (case, workers, first, expected) in cases {
            let membership = membership(&workers);
            for (worker, kinds) in workers.into_iter().zip(expected) {
                let kinds = kinds.iter().copied().collect();
                let expected = Leads { kinds, first };
                assert_eq!(
                    leads(worker, &membership),
                    expected,
                    "{case}: {}",
                    worker.name
                );
            }
        }
        let unknown = Membership {
            own: None,
            ..membership(&[&both_a])
        };
        assert!(leads(&both_a, &unknown).kinds.is_empty());
    }

    #[test]
    fn a_run_of_a_kind_that_a_worker_does_not_collect_is_not_in_its_way() {
        let run = |id, kind: Wire, ended: bool| v1::Collection {
            id,
            kind: kind.into(),
            ended_at: ended.then(Default::default),
            ..v1::Collection::default()
        };
        let of_images = [run(1, Wire::Images, false), run(2, Wire::Blobs, true)];
        let runs = Runs {
            synced: true,
            by_id: of_images.into_iter().map(|it| (it.id, it)).collect(),
        };
        let cases = [
            ((true, true), true),
            ((true, false), true),
            ((false, true), false),
        ];
        for ((images, blobs), expected) in cases {
            let config = config("a", images, blobs);
            assert_eq!(is_under_way(&config, &runs), expected, "{images} {blobs}");
        }
    }
}

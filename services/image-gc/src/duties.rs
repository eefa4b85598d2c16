//! What time brings about: the one worker that leads begins runs, when the disk is full, when the schedule says so, when
//! images were collected and blobs come next, and when the grace of tombstones is over.

use std::{
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
    state::{Membership, Runs, State},
    wire,
};

/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(500);

/// What the leading worker remembers from one look to the next.
#[derive(Debug, Default)]
struct Duties {
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
        tell_schedule(config, state, &runs);
        if leads && runs.synced {
            duties.look(manager, config, state, &runs).await?;
        } else {
            // Who comes to lead looks at once.
            duties = Duties::default();
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

fn leads(config: &Config, membership: &Membership) -> bool {
    let live = membership.live.values().flatten().cloned().collect();
    membership.own.is_some() && share::leads(&config.name, &live)
}

fn tell_schedule(config: &Config, state: &State, runs: &Runs) {
    let next = runs.synced.then(|| next_scheduled(config, runs));
    state.said.send_if_modified(|said| {
        let changed = said.next_scheduled != next;
        said.next_scheduled = next;
        changed
    });
}

/// What the schedule begins a run with; the blobs come after the images.
fn first_kind(config: &Config) -> CollectionKind {
    match config.collect_images {
        true => CollectionKind::Images,
        false => CollectionKind::Blobs,
    }
}

fn next_scheduled(config: &Config, runs: &Runs) -> SystemTime {
    let full = |it: &&v1::Collection| it.goal_bytes == 0;
    let last = runs.of(first_kind(config)).rev().find(full);
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
        runs: &Runs,
    ) -> Result<(), Broken> {
        if config.collect_blobs {
            self.follow_images(manager, config, runs).await?;
            self.reap(manager, config, runs).await?;
        }
        let under_way = runs.by_id.values().any(|it| it.ended_at.is_none());
        let check = config.pressure_check_interval;
        if !under_way && self.pressure_checked.is_none_or(|it| it.elapsed() >= check) {
            self.pressure_checked = Some(Instant::now());
            self.check_pressure(manager, config, state).await?;
        }
        let kind = wire::kind_to_proto(first_kind(config));
        if !under_way && next_scheduled(config, runs) <= SystemTime::now() {
            manager.start(kind, CollectionCause::Scheduled, 0).await?;
        }
        Ok(())
    }

    async fn check_pressure(
        &self,
        manager: &Manager,
        config: &Config,
        state: &State,
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
            let kind = wire::kind_to_proto(first_kind(config));
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
        if images.ended_at.is_none() || followed || !config.collect_images {
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

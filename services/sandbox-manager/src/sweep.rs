//! What time alone brings about: sandboxes that expire, and DEAD records whose horizon is over. One sweep for all of them;
//! it goes by a list of its own and decides by what the record says when it writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use berth_domain::{Generation, SandboxId, SandboxRecord, Status, record::Ending};
use berth_platform::{Images, Network, Runtime};
use berth_store::{Change, Watch, WatchEnded};

use crate::{crash, failures::store_failure, registry::Registry};

/// The wall clock may be set: no end is waited for longer than this without a look at it.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// When which sandbox ends by itself.
#[derive(Debug, Default)]
struct Ends {
    by_time: BTreeSet<(SystemTime, SandboxId)>,
    by_id: BTreeMap<SandboxId, (SystemTime, Generation)>,
}

impl Ends {
    fn note(&mut self, record: &SandboxRecord) {
        self.forget(&record.id);
        let over =
            record.ending.is_some() || matches!(record.status, Status::Stopped | Status::Dead);
        if let Some(at) = record.expires_at.filter(|_| !over) {
            self.by_time.insert((at, record.id.clone()));
            self.by_id
                .insert(record.id.clone(), (at, record.generation));
        }
    }

    fn forget(&mut self, id: &SandboxId) {
        if let Some((at, _)) = self.by_id.remove(id) {
            self.by_time.remove(&(at, id.clone()));
        }
    }

    /// Those that have ended by `now`, the first first.
    fn due(&self, now: SystemTime) -> Vec<(SandboxId, Generation)> {
        self.by_time
            .iter()
            .take_while(|(at, _)| *at <= now)
            .filter_map(|(_, id)| Some((id.clone(), self.by_id.get(id)?.1)))
            .collect()
    }

    fn wait(&self, now: SystemTime) -> Duration {
        self.by_time
            .first()
            .and_then(|(at, _)| at.duration_since(now).ok())
            .unwrap_or(LONGEST_WAIT)
            .min(LONGEST_WAIT)
    }
}

/// Ends sandboxes whose time is over.
pub(crate) async fn expire<R: Runtime + Images, N: Network>(registry: Registry<R, N>) {
    while !registry.is_stopping() {
        match registry.store().snapshot_and_watch().await {
            Ok((records, _, watch)) => {
                let mut ends = Ends::default();
                records.iter().for_each(|it| ends.note(it));
                follow(&registry, ends, watch).await;
            }
            Err(error) => drop(store_failure(error)),
        }
        registry.pause(LONGEST_WAIT).await;
    }
}

/// Until the watch ends, or the manager.
async fn follow<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    mut ends: Ends,
    mut watch: Watch,
) {
    loop {
        let now = SystemTime::now();
        for (id, generation) in ends.due(now) {
            let expired = crash::around("sweep/expire", expire_one(registry, &id, generation, now));
            if expired.await {
                ends.forget(&id);
            }
        }
        let changed = tokio::select! {
            changed = watch.next() => changed,
            () = registry.pause(ends.wait(SystemTime::now())) => {
                if registry.is_stopping() {
                    return;
                }
                continue;
            }
        };
        match changed {
            Ok((_, Change::Upserted(record))) => ends.note(&record),
            Ok((_, Change::Removed { id, .. })) => ends.forget(&id),
            Ok((_, Change::EntryPut(_) | Change::EntryRemoved(_))) => {}
            Err(WatchEnded::Lagged | WatchEnded::Closed) => return,
        }
    }
}

/// Whether there is nothing left to do: the record is told to end, or says that it shall not.
async fn expire_one<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    id: &SandboxId,
    generation: Generation,
    now: SystemTime,
) -> bool {
    let written = registry
        .store()
        .update(id, generation, now, move |record| {
            let over =
                record.ending.is_some() || matches!(record.status, Status::Stopped | Status::Dead);
            // It may have been renewed meanwhile.
            if !over && record.expires_at.is_some_and(|at| at <= now) {
                record.ending = Some(Ending::Expire);
            }
        })
        .await;
    match written {
        Ok(record) => {
            if record.ending == Some(Ending::Expire) {
                registry.wake(id);
            }
            true
        }
        Err(berth_store::UpdateError::Gone | berth_store::UpdateError::NotAllowed(_)) => true,
        Err(berth_store::UpdateError::Store(error)) => {
            drop(store_failure(error));
            false
        }
    }
}

/// Removes records that have been DEAD for the horizon, and takes up what no task has: one that panicked has left it.
pub(crate) async fn purge<R: Runtime + Images, N: Network>(
    registry: Registry<R, N>,
    every: Duration,
    horizon: Duration,
) {
    loop {
        registry.pause(every).await;
        if registry.is_stopping() {
            return;
        }
        let Ok(records) = registry.store().all().await.map_err(store_failure) else {
            continue;
        };
        let now = SystemTime::now();
        for record in records {
            let at_rest = record.status == Status::Dead && record.ending.is_none();
            if !at_rest && !registry.is_at_work(&record.id) {
                registry.wake(&record.id);
            }
            let rested = now.duration_since(record.updated_at).unwrap_or_default();
            if at_rest && rested >= horizon {
                let purged =
                    registry.promise_end(&record.id, Some(record.generation), Ending::Delete);
                // What keeps it from being written is in the log, and the next round tries again.
                let _ = crash::around("sweep/purge", purged).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn record(id: &str, generation: u64, expires_at: Option<SystemTime>) -> SandboxRecord {
        let id = SandboxId::parse(id).unwrap();
        SandboxRecord {
            expires_at,
            ..SandboxRecord::new(id, Generation(generation), Arc::default(), vec![], at(0))
        }
    }

    fn due(ends: &Ends, now: u64) -> Vec<(String, u64)> {
        let due = ends.due(at(now)).into_iter();
        due.map(|(id, generation)| (id.to_string(), generation.0))
            .collect()
    }

    #[test]
    fn the_first_to_end_is_the_first_that_is_due() {
        let mut ends = Ends::default();
        ends.note(&record("late", 1, Some(at(9))));
        ends.note(&record("soon", 2, Some(at(5))));
        ends.note(&record("never", 3, None));
        assert_eq!(due(&ends, 4), []);
        assert_eq!(due(&ends, 5), [("soon".to_owned(), 2)]);
        assert_eq!(
            due(&ends, 99),
            [("soon".to_owned(), 2), ("late".to_owned(), 1)]
        );
    }

    #[test]
    fn a_change_of_the_record_replaces_what_was_noted() {
        let mut ends = Ends::default();
        ends.note(&record("web", 1, Some(at(5))));
        ends.note(&record("web", 1, Some(at(50))));
        assert_eq!(due(&ends, 49), []);
        ends.note(&record("web", 2, Some(at(7))));
        assert_eq!(due(&ends, 99), [("web".to_owned(), 2)]);
        let ending = SandboxRecord {
            ending: Some(Ending::Stop),
            ..record("web", 2, Some(at(7)))
        };
        ends.note(&ending);
        assert_eq!(due(&ends, 99), []);
    }

    #[test]
    fn no_end_is_waited_for_longer_than_the_clock_is_trusted() {
        let mut ends = Ends::default();
        assert_eq!(ends.wait(at(0)), LONGEST_WAIT);
        ends.note(&record("web", 1, Some(at(1000))));
        assert_eq!(ends.wait(at(0)), LONGEST_WAIT);
        assert_eq!(
            ends.wait(at(1000) - Duration::from_millis(5)),
            Duration::from_millis(5)
        );
    }
}

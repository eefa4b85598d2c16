//! Reads every sandbox, round after round, on a thread of its own: files of cgroups are read faster than they are waited for.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use berth_cgroup::{CgroupError, Meter};
use berth_domain::{
    cgroups,
    usage::{Traffic, Usage},
};

use crate::{
    figures::Figures,
    series::{Round, SharedBook, Watched},
    traffic,
};

/// How the rounds go.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    pub(crate) round_micros: AtomicU64,
    pub(crate) rounds: AtomicU64,
    pub(crate) missed: AtomicU64,
    pub(crate) open_files: AtomicU64,
    /// When the last round ended, in milliseconds of the clock, and how many sandboxes it found.
    pub(crate) ended_at_millis: AtomicU64,
    pub(crate) sampled: AtomicU64,
}

impl Pace {
    /// When the last round ended, and how many sandboxes it found. `None` before the first one.
    pub(crate) fn last(&self) -> Option<(SystemTime, u64)> {
        let ended = Duration::from_millis(self.ended_at_millis.load(Relaxed));
        let ended_at = UNIX_EPOCH.checked_add(ended)?;
        (!ended.is_zero()).then(|| (ended_at, self.sampled.load(Relaxed)))
    }

    /// When the round is due that follows the one of `due`, which ended at `now`. Those whose time has passed are left out.
    fn next(&self, due: Instant, interval: Duration, now: Instant) -> Instant {
        let mut next = due + interval;
        while next <= now {
            self.missed.fetch_add(1, Relaxed);
            next += interval;
        }
        next
    }
}

#[derive(Debug)]
pub(crate) struct Sampler {
    pub(crate) meter: Meter,
    pub(crate) book: SharedBook,
    pub(crate) pace: Arc<Pace>,
    /// What went wrong last, which is told once.
    pub(crate) trouble: String,
}

impl Sampler {
    /// Reads for ever.
    pub(crate) fn run(mut self, interval: Duration) {
        let mut next = Instant::now();
        loop {
            let began = Instant::now();
            self.round();
            let pace = &self.pace;
            let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            pace.round_micros.store(took, Relaxed);
            pace.rounds.fetch_add(1, Relaxed);
            next = pace.next(next, interval, Instant::now());
            #[expect(
                clippy::disallowed_methods,
                reason = "the time between two rounds is what is waited for"
            )]
            std::thread::sleep(next - Instant::now());
        }
    }

    pub(crate) fn round(&mut self) {
        let links = traffic::read().unwrap_or_else(|error| {
            self.tell(error.to_string());
            HashMap::new()
        });
        let book = self.book.clone();
        let watched = book
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .watched();
        let mut found = 0;
        for (id, it) in watched {
            match self.read(&it, &links) {
                Ok(Some(round)) => {
                    let mut book = book.write().unwrap_or_else(PoisonError::into_inner);
                    book.record(&id, it.generation, round);
                    found += 1;
                }
                // Not made yet, or gone already.
                Ok(None) => {}
                Err(error) => self.tell(error.to_string()),
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or_default();
        self.pace.sampled.store(found, Relaxed);
        self.pace.ended_at_millis.store(now, Relaxed);
        self.meter.end_round();
        self.pace
            .open_files
            .store(self.meter.open_files() as u64, Relaxed);
    }

    fn read(
        &mut self,
        watched: &Watched,
        links: &HashMap<String, Traffic>,
    ) -> Result<Option<Round>, CgroupError> {
        let Some(usage) = self.meter.read(&watched.cgroup)? else {
            return Ok(None);
        };
        let traffic = links.get(&watched.interface).copied();
        let mut containers = vec![];
        for name in &watched.containers {
            let path = cgroups::of_container(&watched.cgroup, name);
            if let Some(usage) = self.meter.read(&path)? {
                let traffic = None;
                containers.push((name.clone(), Figures { usage, traffic }));
            }
        }
        // cgroup v1 counts a kill where it happened, and v2 in all that is above it too.
        let below: u64 = containers.iter().map(|(_, it)| it.usage.oom_kills).sum();
        let usage = Usage {
            oom_kills: usage.oom_kills.max(below),
            ..usage
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let at = since.unwrap_or_default().as_millis();
        Ok(Some(Round {
            at: u64::try_from(at).unwrap_or(u64::MAX),
            whole: Figures { usage, traffic },
            containers,
        }))
    }

    fn tell(&mut self, trouble: String) {
        if self.trouble != trouble {
            tracing::warn!(error = trouble, "a reading failed");
            self.trouble = trouble;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_takes_too_long_leaves_out_those_whose_time_has_passed_and_they_are_counted() {
        const INTERVAL: Duration = Duration::from_secs(1);
        let due = Instant::now();
        for (took_millis, follows, missed) in
            [(999, 1, 0), (1000, 2, 1), (1999, 2, 1), (3500, 4, 3)]
        {
            let pace = Pace::default();
            let next = pace.next(due, INTERVAL, due + Duration::from_millis(took_millis));
            let told = (next - due, pace.missed.load(Relaxed));
            assert_eq!(told, (INTERVAL * follows, missed), "{took_millis}ms");
        }
    }
}

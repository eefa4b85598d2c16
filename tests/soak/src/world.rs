//! What all who take part share: the node, the journal of what was done, and the addresses that may be held.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_e2e::{TestNode, leftovers};
use tokio_util::sync::CancellationToken;
use tonic_types::StatusExt as _;

use crate::{
    model::{Circumstances, NO_ANSWER, Reason, TRANSPORT},
    weather::Weather,
};

/// Longer than the manager itself waits for anything.
const PATIENCE: Duration = Duration::from_secs(75);
/// Actions that are shown when something is wrong.
const SHOWN: usize = 50;

pub(crate) struct World {
    pub(crate) node: TestNode,
    pub(crate) weather: Weather,
    /// No new action begins.
    pub(crate) over: CancellationToken,
    /// Addresses of the subnet.
    capacity: usize,
    begun: Instant,
    journal: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<String, usize>>,
    holders: Mutex<Holders>,
}

/// An upper bound of the sandboxes that hold an address.
#[derive(Debug, Default)]
struct Holders {
    count: usize,
    /// When there last were as many as there are addresses.
    crowded: Option<Instant>,
}

impl World {
    pub(crate) fn new(node: TestNode, capacity: usize) -> Self {
        Self {
            node,
            weather: Weather::default(),
            over: CancellationToken::new(),
            capacity,
            begun: Instant::now(),
            journal: Mutex::default(),
            counts: Mutex::default(),
            holders: Mutex::default(),
        }
    }

    /// Writes down what was done and what came of it.
    pub(crate) fn note(&self, who: &str, what: &str, outcome: &str) {
        let at = self.begun.elapsed();
        lock(&self.journal).push(format!(
            "{:9.3} s  {who:8} {what}: {outcome}",
            at.as_secs_f64()
        ));
        *lock(&self.counts)
            .entry(format!("{what}: {outcome}"))
            .or_default() += 1;
    }

    /// As `note`, for what is different every time.
    pub(crate) fn remark(&self, who: &str, what: &str) {
        let at = self.begun.elapsed();
        lock(&self.journal).push(format!("{:9.3} s  {who:8} {what}", at.as_secs_f64()));
    }

    pub(crate) fn journal(&self) -> Vec<String> {
        lock(&self.journal).clone()
    }

    pub(crate) fn last_actions(&self) -> Vec<String> {
        let all = lock(&self.journal);
        all[all.len().saturating_sub(SHOWN)..].to_vec()
    }

    /// How often each thing came to each end.
    pub(crate) fn counts(&self) -> BTreeMap<String, usize> {
        lock(&self.counts).clone()
    }

    pub(crate) fn holds(&self, more: bool) {
        let mut holders = lock(&self.holders);
        if holders.count >= self.capacity {
            holders.crowded = Some(Instant::now());
        }
        if more {
            holders.count += 1;
        } else {
            holders.count -= 1;
        }
        if holders.count >= self.capacity {
            holders.crowded = Some(Instant::now());
        }
    }

    /// What there was between `from` and now.
    pub(crate) fn around(&self, from: Instant) -> Circumstances {
        let holders = lock(&self.holders);
        Circumstances {
            faults: self.weather.since(from),
            crowded: holders.count >= self.capacity || holders.crowded.is_some_and(|it| it >= from),
        }
    }

    /// The first process of a container, which no one but the kernel is asked for.
    pub(crate) fn first_process(&self, id: &str) -> Option<u32> {
        let instance = fs::read_to_string(self.node.home().join("instance")).ok()?;
        let cgroup = format!("berth/{}/{id}/app/cgroup.procs", instance.trim());
        leftovers::cgroup_roots()
            .into_iter()
            .find_map(|root: PathBuf| {
                let pids = fs::read_to_string(root.join(&cgroup)).ok()?;
                pids.lines()
                    .filter_map(|it| it.parse().ok())
                    .find(|pid| is_first(*pid))
            })
    }
}

/// Whether the process is number 1 where it lives.
fn is_first(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|it| it.strip_prefix("NSpid:"));
    numbers.is_some_and(|it| it.split_whitespace().next_back() == Some("1"))
}

/// When a process was started, in ticks since the boot: with its pid it is one of a kind.
pub(crate) fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Waits for an answer, and tells why there is none.
pub(crate) async fn answer<T>(
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, Reason> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(it)) => Ok(it),
        Ok(Err(status)) => Err(status
            .get_error_details()
            .error_info()
            .map_or_else(|| TRANSPORT.to_owned(), |it| it.reason.clone())),
        Err(_) => Err(NO_ANSWER.to_owned()),
    }
}

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

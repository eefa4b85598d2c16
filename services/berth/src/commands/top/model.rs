//! What `berth top` knows, from two streams: how sandboxes stand, and what they use. Rates are what two samples differ by.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use berth_api::v1::{self, SandboxStatus, watch_response::Event};
use serde::Serialize;

use super::super::sandboxes::{in_one_line, status_word};
use crate::args::Order;

/// The picture of the node.
#[derive(Debug, Default)]
pub(super) struct Board {
    states: BTreeMap<String, State>,
    /// Sandboxes of a former watch that the present one has not named yet.
    unconfirmed: BTreeSet<String>,
    synced: bool,
    used: BTreeMap<Key, Used>,
    /// Series of the round that is arriving.
    round: BTreeMap<Key, Used>,
    rounds: u64,
    /// Whether the last round was later than the one before: a reader may get the same samples twice.
    moved: bool,
}

/// After so many rounds without a sample there is nobody who uses anything: a metrics process that has just been started does
/// not know the sandboxes at first.
const IDLE_ROUNDS: u64 = 3;

/// Sandbox, and container: empty for the whole sandbox.
type Key = (String, String);

#[derive(Debug)]
struct State {
    status: SandboxStatus,
    word: &'static str,
    why: String,
    limits: v1::Resources,
}

#[derive(Clone, Debug)]
struct Used {
    generation: u64,
    sample: v1::UsageSample,
    rates: Rates,
}

/// Per second. Zero until there are two samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    /// CPUs that are kept busy.
    pub(super) cpu: f64,
    /// Share of time in which it had to wait because it had used up its share of the CPU.
    pub(super) throttled: f64,
    /// Bytes.
    pub(super) received: f64,
    /// Bytes.
    pub(super) sent: f64,
    /// Bytes.
    pub(super) read: f64,
    /// Bytes.
    pub(super) written: f64,
    /// Share of time that some process has waited for a CPU.
    pub(super) cpu_pressure: f64,
    /// For memory.
    pub(super) memory_pressure: f64,
    /// For block devices.
    pub(super) io_pressure: f64,
}

/// A line of the view.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) sandbox: String,
    /// Empty for the whole sandbox.
    pub(super) container: String,
    pub(super) status: &'static str,
    /// Reason and message of the state.
    pub(super) why: String,
    pub(super) memory_working_set: u64,
    /// 0: no limit.
    pub(super) memory_limit: u64,
    /// Thousandths of a CPU. 0: no limit.
    pub(super) cpu_limit_millis: u32,
    pub(super) pids: u64,
    pub(super) oom_kills: u64,
    #[serde(flatten)]
    pub(super) rates: Rates,
}

/// What all of the sandboxes use together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Total {
    pub(super) sandboxes: usize,
    pub(super) running: usize,
    pub(super) cpu: f64,
    pub(super) memory: u64,
}

impl Board {
    /// A watch begins: what it does not name until it is synced is gone.
    pub(super) fn watch_begins(&mut self) {
        self.unconfirmed = self.states.keys().cloned().collect();
        self.synced = false;
    }

    pub(super) fn seen(&mut self, event: Event) {
        match event {
            Event::Sandbox(it) if it.status() == SandboxStatus::Dead => self.forget(&it.id),
            Event::Sandbox(it) => {
                self.unconfirmed.remove(&it.id);
                let state = State {
                    status: it.status(),
                    word: status_word(&it),
                    why: in_one_line(&it.reason, &it.message),
                    limits: it.spec.and_then(|it| it.resources).unwrap_or_default(),
                };
                self.states.insert(it.id, state);
            }
            Event::Removed(it) => self.forget(&it.id),
            Event::Synced(_) => {
                for id in std::mem::take(&mut self.unconfirmed) {
                    self.forget(&id);
                }
                self.synced = true;
            }
        }
    }

    fn forget(&mut self, id: &str) {
        self.states.remove(id);
        self.unconfirmed.remove(id);
    }

    /// Takes a part of a round; after the last one, what the round did not name is gone.
    pub(super) fn measured(&mut self, part: v1::MonitorResponse) {
        for series in part.series {
            let Some(sample) = series.samples.into_iter().next_back() else {
                continue;
            };
            let key = (series.sandbox, series.container);
            let former = self.used.get(&key);
            let rates = match former.filter(|it| it.generation == series.generation) {
                Some(it) => rates(&it.sample, &sample).unwrap_or(it.rates),
                None => Rates::default(),
            };
            let generation = series.generation;
            let used = Used {
                generation,
                sample,
                rates,
            };
            self.round.insert(key, used);
        }
        if part.complete {
            let round = std::mem::take(&mut self.round);
            let before = newest(&self.used);
            self.moved = before.is_some() && newest(&round) > before;
            self.used = round;
            self.rounds += 1;
        }
    }

    /// The metrics process is asked anew: half a round of the former stream is none.
    pub(super) fn measuring_begins(&mut self) {
        self.round.clear();
    }

    /// Whether all sandboxes are known, and what they used between two moments, so that there are rates.
    pub(super) fn is_complete(&self) -> bool {
        let idle = self.used.is_empty() && self.rounds >= IDLE_ROUNDS;
        self.synced && (self.moved || idle)
    }

    pub(super) fn total(&self) -> Total {
        let mut total = Total::default();
        for (id, state) in &self.states {
            total.sandboxes += 1;
            total.running += usize::from(state.status == SandboxStatus::Running);
            if let Some(it) = self.used.get(&(id.clone(), String::new())) {
                total.cpu += it.rates.cpu;
                total.memory += working_set(&it.sample);
            }
        }
        total
    }

    /// The sandboxes that are not dead, in this order, each followed by its containers by name.
    pub(super) fn rows(&self, order: Order, reverse: bool, containers: bool) -> Vec<Row> {
        let mut sandboxes: Vec<Row> = self
            .states
            .iter()
            .map(|(id, it)| self.row(id, it))
            .collect();
        // Sorted by id already, and the sort keeps that among equals.
        sandboxes.sort_by(|a, b| {
            let by = compare(order, a, b);
            if reverse { by.reverse() } else { by }
        });
        if !containers {
            return sandboxes;
        }
        let followed = sandboxes.into_iter().flat_map(|row| {
            let from = (row.sandbox.clone(), String::new());
            let parts = self.used.range(from..);
            let parts: Vec<_> = parts
                .take_while(|((sandbox, _), _)| *sandbox == row.sandbox)
                .filter(|((_, container), _)| !container.is_empty())
                .map(|((sandbox, container), it)| Row {
                    container: container.clone(),
                    ..part(sandbox, it)
                })
                .collect();
            std::iter::once(row).chain(parts)
        });
        followed.collect()
    }

    fn row(&self, id: &str, state: &State) -> Row {
        let row = match self.used.get(&(id.to_owned(), String::new())) {
            Some(used) => part(id, used),
            None => Row {
                sandbox: id.to_owned(),
                ..nothing()
            },
        };
        Row {
            status: state.word,
            why: state.why.clone(),
            memory_limit: state.limits.memory_bytes,
            cpu_limit_millis: state.limits.cpu_millis,
            ..row
        }
    }
}

impl Rates {
    /// The resource that was waited for most, and the share of time.
    pub(super) fn pressure(&self) -> (&'static str, f64) {
        let all = [
            ("cpu", self.cpu_pressure),
            ("memory", self.memory_pressure),
            ("io", self.io_pressure),
        ];
        all.into_iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .unwrap_or(("cpu", 0.0))
    }
}

fn nothing() -> Row {
    Row {
        sandbox: String::new(),
        container: String::new(),
        status: "",
        why: String::new(),
        memory_working_set: 0,
        memory_limit: 0,
        cpu_limit_millis: 0,
        pids: 0,
        oom_kills: 0,
        rates: Rates::default(),
    }
}

fn part(sandbox: &str, used: &Used) -> Row {
    let usage = used.sample.usage.unwrap_or_default();
    Row {
        sandbox: sandbox.to_owned(),
        memory_working_set: usage.memory_working_set,
        pids: usage.pids,
        oom_kills: usage.oom_kills,
        rates: used.rates,
        ..nothing()
    }
}

/// When the latest of these was read.
fn newest(of: &BTreeMap<Key, Used>) -> Option<(i64, i32)> {
    let read_at = of.values().filter_map(|it| it.sample.measured_at);
    read_at.map(|it| (it.seconds, it.nanos)).max()
}

fn working_set(sample: &v1::UsageSample) -> u64 {
    sample.usage.unwrap_or_default().memory_working_set
}

fn compare(order: Order, a: &Row, b: &Row) -> Ordering {
    let most = |of: fn(&Row) -> f64| of(b).total_cmp(&of(a));
    match order {
        Order::Cpu => most(|it| it.rates.cpu),
        Order::Memory => b.memory_working_set.cmp(&a.memory_working_set),
        Order::Net => most(|it| it.rates.received + it.rates.sent),
        Order::Io => most(|it| it.rates.read + it.rates.written),
        Order::Pressure => most(|it| it.rates.pressure().1),
        Order::State => (a.status == "RUNNING", a.status).cmp(&(b.status == "RUNNING", b.status)),
        Order::Name => Ordering::Equal,
    }
}

/// None where no time has passed. A counter that went back counts from zero again, which no rate can be told from.
fn rates(former: &v1::UsageSample, now: &v1::UsageSample) -> Option<Rates> {
    let seconds = elapsed(former.measured_at.as_ref()?, now.measured_at.as_ref()?)?;
    let per_second =
        |then: u64, now: u64| now.checked_sub(then).map_or(0.0, |it| it as f64 / seconds);
    // Of times, which are in nanoseconds.
    let share = |then, now| per_second(then, now) / 1e9;
    let (a, b) = (former.usage?, now.usage?);
    let (link, link_now) = (
        former.network.unwrap_or_default(),
        now.network.unwrap_or_default(),
    );
    let (waited, waits) = (
        a.pressure.unwrap_or_default(),
        b.pressure.unwrap_or_default(),
    );
    Some(Rates {
        cpu: share(a.total_cpu_time, b.total_cpu_time),
        throttled: share(a.throttled_time, b.throttled_time),
        received: per_second(link.received_bytes, link_now.received_bytes),
        sent: per_second(link.sent_bytes, link_now.sent_bytes),
        read: per_second(a.io_read_bytes, b.io_read_bytes),
        written: per_second(a.io_written_bytes, b.io_written_bytes),
        cpu_pressure: share(waited.cpu_some, waits.cpu_some),
        memory_pressure: share(waited.memory_some, waits.memory_some),
        io_pressure: share(waited.io_some, waits.io_some),
    })
}

fn elapsed(then: &prost_types::Timestamp, now: &prost_types::Timestamp) -> Option<f64> {
    let seconds = (now.seconds.checked_sub(then.seconds)?) as f64;
    let elapsed = seconds + f64::from(now.nanos - then.nanos) / 1e9;
    (elapsed > 0.0).then_some(elapsed)
}

#[cfg(test)]
mod tests;

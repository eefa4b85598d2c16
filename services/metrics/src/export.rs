//! What sandboxes use, as metrics of this process: the latest sample of each, for whoever asks. What is gone from the book is
//! gone from the metrics.

use std::sync::{Arc, PoisonError, atomic::Ordering::Relaxed};

use berth_domain::usage::{Stall, Traffic, Usage};
use berth_telemetry::{Instrument, KeyValue, Observer, instruments as on};

use crate::{
    figures::Figures,
    sampler::Pace,
    series::{SharedBook, Span},
};

const NANOS: f64 = 1e9;

/// One figure of a sample: what tells it from its like, and its value.
type Tell = fn(&Figures, &mut dyn FnMut(&[(&'static str, &'static str)], f64));

/// Has the metrics of this process say what the book says.
pub(crate) fn observe(book: &SharedBook, pace: &Arc<Pace>) {
    if !berth_telemetry::counts() {
        return;
    }
    let wholes: [(&'static Instrument, Tell); 15] = [
        (&on::SANDBOX_CPU_TIME, cpu_time),
        (&on::SANDBOX_THROTTLED_TIME, |it, tell| {
            tell(&[], seconds(it.usage.throttled_time))
        }),
        (&on::SANDBOX_THROTTLED, |it, tell| {
            tell(&[], it.usage.throttled_periods as f64)
        }),
        (&on::SANDBOX_MEMORY, |it, tell| {
            tell(&[], it.usage.memory_usage as f64)
        }),
        (&on::SANDBOX_WORKING_SET, |it, tell| {
            tell(&[], it.usage.memory_working_set as f64)
        }),
        (&on::SANDBOX_MEMORY_PEAK, |it, tell| {
            tell(&[], it.usage.memory_peak as f64)
        }),
        (&on::SANDBOX_SWAP, |it, tell| {
            tell(&[], it.usage.swap_usage as f64)
        }),
        (&on::SANDBOX_OOM_KILLS, |it, tell| {
            tell(&[], it.usage.oom_kills as f64)
        }),
        (&on::SANDBOX_TASKS, |it, tell| {
            tell(&[], it.usage.pids as f64)
        }),
        (&on::SANDBOX_DISK_IO, |it, tell| {
            disk(it.usage.io_read_bytes, it.usage.io_written_bytes, tell)
        }),
        (&on::SANDBOX_DISK_OPERATIONS, |it, tell| {
            disk(it.usage.io_reads, it.usage.io_writes, tell)
        }),
        (&on::SANDBOX_NETWORK_IO, |it, tell| {
            link(it, |it| (it.received_bytes, it.sent_bytes), tell)
        }),
        (&on::SANDBOX_PACKETS, |it, tell| {
            link(it, |it| (it.received_packets, it.sent_packets), tell)
        }),
        (&on::SANDBOX_DROPS, |it, tell| {
            link(it, |it| (it.received_drops, it.sent_drops), tell)
        }),
        (&on::SANDBOX_STALLED_TIME, stalled_time),
    ];
    for (instrument, tell) in wholes {
        let book = book.clone();
        instrument.observe(move |it| each(&book, false, it, tell));
    }
    let containers: [(&'static Instrument, Tell); 4] = [
        (&on::CONTAINER_CPU_TIME, cpu_time),
        (&on::CONTAINER_MEMORY, |it, tell| {
            tell(&[], it.usage.memory_usage as f64)
        }),
        (&on::CONTAINER_WORKING_SET, |it, tell| {
            tell(&[], it.usage.memory_working_set as f64)
        }),
        (&on::CONTAINER_OOM_KILLS, |it, tell| {
            tell(&[], it.usage.oom_kills as f64)
        }),
    ];
    for (instrument, tell) in containers {
        let book = book.clone();
        instrument.observe(move |it| each(&book, true, it, tell));
    }
    let sampled = book.clone();
    on::SAMPLED.observe(move |it| {
        let book = sampled.read().unwrap_or_else(PoisonError::into_inner);
        it.see(book.size().0 as f64, &[]);
    });
    let of_rounds = pace.clone();
    on::ROUND_TIME
        .observe(move |it| it.see(of_rounds.round_micros.load(Relaxed) as f64 / 1e6, &[]));
    let of_rounds = pace.clone();
    on::ROUNDS_MISSED.observe(move |it| it.see(of_rounds.missed.load(Relaxed) as f64, &[]));
}

/// Tells one figure of each sandbox, or of each container of each.
fn each(book: &SharedBook, containers: bool, it: &Observer<'_>, tell: Tell) {
    let ids = book.read().unwrap_or_else(PoisonError::into_inner).ids();
    for id in ids {
        // Not longer than for one: the sampler waits for it.
        let read = book.read().unwrap_or_else(PoisonError::into_inner);
        let Some((_, taken)) = read.gather(&id, Span::Latest, containers) else {
            continue;
        };
        drop(read);
        for series in taken
            .iter()
            .filter(|it| it.container.is_some() == containers)
        {
            let Some((_, figures)) = series.samples.last() else {
                continue;
            };
            tell(figures, &mut |of, value| {
                let mut attributes = vec![KeyValue::new("berth.sandbox.id", id.clone())];
                let container = series.container.iter();
                attributes.extend(container.map(|it| KeyValue::new("container.name", it.clone())));
                attributes.extend(of.iter().map(|(key, value)| KeyValue::new(*key, *value)));
                it.see(value, &attributes);
            });
        }
    }
}

type Out<'a> = &'a mut dyn FnMut(&[(&'static str, &'static str)], f64);

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / NANOS
}

fn cpu_time(it: &Figures, tell: Out<'_>) {
    let Usage {
        user_cpu_time,
        kernel_cpu_time,
        ..
    } = it.usage;
    tell(&[("cpu.mode", "user")], seconds(user_cpu_time));
    tell(&[("cpu.mode", "system")], seconds(kernel_cpu_time));
}

fn disk(read: u64, written: u64, tell: Out<'_>) {
    tell(&[("disk.io.direction", "read")], read as f64);
    tell(&[("disk.io.direction", "write")], written as f64);
}

fn link(it: &Figures, of: fn(&Traffic) -> (u64, u64), tell: Out<'_>) {
    if let Some(traffic) = &it.traffic {
        let (received, sent) = of(traffic);
        tell(&[("network.io.direction", "receive")], received as f64);
        tell(&[("network.io.direction", "transmit")], sent as f64);
    }
}

fn stalled_time(it: &Figures, tell: Out<'_>) {
    let Some(pressure) = it.usage.pressure else {
        return;
    };
    let of = [
        ("cpu", pressure.cpu),
        ("memory", pressure.memory),
        ("io", pressure.io),
    ];
    for (resource, Stall { some, full }) in of {
        let resource = ("berth.resource", resource);
        tell(&[resource, ("berth.pressure", "some")], seconds(some));
        tell(&[resource, ("berth.pressure", "full")], seconds(full));
    }
}

//! What metrics say of runs, of what is wrong and of the disk. Each worker tells of all runs of the node.

use std::sync::Arc;

use berth_api::v1;
use berth_domain::collection::CollectionKind;
use berth_telemetry::{
    KeyValue,
    instruments::{
        DISK_CAPACITY, DISK_USED, GC_ALARMS, GC_DELETED, GC_FAILED, GC_FREED, GC_MISSED,
        GC_RUN_DURATION, GC_RUNS,
    },
};

use crate::{app::Shared, duties::usage, wire};

/// What a worker can have an alarm about.
const ALARMS: [&str; 4] = ["manager", "disk", "run", "goal"];

/// A run that has ended just now.
pub(crate) fn ended(run: &v1::Collection) {
    let Some(kind) = wire::kind_from_proto(run.kind()) else {
        return;
    };
    let of_kind = [kind_of(kind)];
    let cause = match run.cause() {
        v1::CollectionCause::Scheduled => "scheduled",
        v1::CollectionCause::Pressure => "pressure",
        v1::CollectionCause::Requested | v1::CollectionCause::Unspecified => "requested",
    };
    let result = if run.aborted.is_empty() {
        "done"
    } else {
        "aborted"
    };
    let [kind] = of_kind.clone();
    GC_RUNS.record(
        1.0,
        &[
            kind,
            KeyValue::new("berth.collection.cause", cause),
            KeyValue::new("berth.collection.result", result),
        ],
    );
    GC_DELETED.record(run.deleted_total as f64, &of_kind);
    GC_FREED.record(run.deleted_bytes as f64, &of_kind);
    GC_FAILED.record(run.failed_total as f64, &of_kind);
    let times = (wire::time(run.started_at), wire::time(run.ended_at));
    if let (Some(from), Some(to)) = times {
        // A clock that was set back measures nothing.
        let took = to.duration_since(from).unwrap_or_default();
        GC_RUN_DURATION.record(took.as_secs_f64(), &of_kind);
    }
}

pub(crate) fn word(kind: CollectionKind) -> &'static str {
    match kind {
        CollectionKind::Images => "images",
        CollectionKind::Blobs => "blobs",
    }
}

fn kind_of(kind: CollectionKind) -> KeyValue {
    KeyValue::new("berth.collection.kind", word(kind))
}

/// Has the metrics say how things stand.
pub(crate) fn observe(shared: &Arc<Shared>) {
    if !berth_telemetry::counts() {
        return;
    }
    for kind in CollectionKind::ALL {
        // A series from the beginning: of one that comes with its first value no rise is seen.
        for counter in [&GC_DELETED, &GC_FREED, &GC_FAILED] {
            counter.record(0.0, &[kind_of(kind)]);
        }
    }
    let alarms = shared.clone();
    GC_ALARMS.observe(move |it| {
        let said = alarms.state.said.borrow();
        for about in ALARMS {
            let rings = said.alarms.contains_key(about);
            it.see(
                f64::from(u8::from(rings)),
                &[KeyValue::new("berth.alarm", about)],
            );
        }
    });
    let runs = shared.clone();
    GC_MISSED.observe(move |it| {
        let runs = runs.state.runs.borrow();
        for kind in CollectionKind::ALL {
            let last = runs.of(kind).rfind(|it| it.ended_at.is_some());
            let missed = last.map_or(0, |it| it.goal_missed_bytes);
            it.see(missed as f64, &[kind_of(kind)]);
        }
    });
    let disk = shared.clone();
    DISK_USED.observe(move |it| {
        if let Ok(usage) = usage(&disk.config.data_path) {
            it.see(usage.used as f64, &[]);
        }
    });
    let disk = shared.clone();
    DISK_CAPACITY.observe(move |it| {
        if let Ok(usage) = usage(&disk.config.data_path) {
            it.see(usage.capacity as f64, &[]);
        }
    });
}

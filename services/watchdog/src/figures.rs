//! What metrics say of runs.

use std::time::{SystemTime, UNIX_EPOCH};

use berth_api::v1;
use berth_telemetry::{
    KeyValue,
    instruments::{
        WATCHDOG_DELETED, WATCHDOG_DURATION, WATCHDOG_FAILED, WATCHDOG_LAST_RUN, WATCHDOG_RUNS,
    },
};
use tokio::sync::watch;

use crate::app::Told;

/// A run that has ended just now.
pub(crate) fn ended(run: &v1::WatchdogRun) {
    let result = match run.problem.is_empty() {
        true => "done",
        false => "aborted",
    };
    WATCHDOG_RUNS.record(1.0, &[KeyValue::new("berth.watchdog.result", result)]);
    let each = [(&run.deleted, 1.0, 0.0), (&run.failed, 0.0, 1.0)];
    for (objects, deleted, failed) in each {
        for it in objects {
            // A kind that is met has both series: a rise from nothing is none that can be seen.
            let kind = [KeyValue::new("berth.object.kind", it.kind.clone())];
            WATCHDOG_DELETED.record(deleted, &kind);
            WATCHDOG_FAILED.record(failed, &kind);
        }
    }
    if let (Some(from), Some(to)) = (time(run.started_at), time(run.ended_at)) {
        // A clock that was set back measures nothing.
        let took = to.duration_since(from).unwrap_or_default();
        WATCHDOG_DURATION.record(took.as_secs_f64(), &[]);
    }
}

/// What is looked at when somebody asks.
pub(crate) fn observe(told: watch::Receiver<Told>) {
    WATCHDOG_LAST_RUN.observe(move |seen| {
        let ended_at = told.borrow().last.as_ref().and_then(|it| time(it.ended_at));
        if let Some(ended_at) = ended_at {
            let since = ended_at.duration_since(UNIX_EPOCH).unwrap_or_default();
            seen.see(since.as_secs_f64(), &[]);
        }
    });
}

fn time(it: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    SystemTime::try_from(it?).ok()
}

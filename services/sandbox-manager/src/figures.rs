//! What metrics say of the node's sandboxes, addresses and store: looked up now and then, and told to whoever asks in between.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_domain::{Failure, Status, record::ExitCause};
use berth_platform::{Images, Network, Runtime};
use berth_store::{LeaseCounts, StoreError};
use berth_telemetry::{
    Instrument, KeyValue, Observer,
    instruments::{
        ADDRESSES, CREATE_DURATION, EXITS, SANDBOX_TROUBLES, SANDBOXES_BY_STATUS, STORE_CHANGES,
        STORE_SIZE, WORK_LEASES,
    },
    spans,
};
use tracing::Span;

use crate::{registry::Registry, sandbox::Admitted};

/// Reads all records, which takes some milliseconds on a full node.
const BEAT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Figures {
    statuses: Vec<(Status, u64)>,
    leases: LeaseCounts,
    revision: u64,
    store_bytes: u64,
}

type Seen = Arc<Mutex<Option<Figures>>>;

/// Looks until the manager stops. Without anybody who sees metrics it does nothing.
pub(crate) async fn keep<R: Runtime + Images, N: Network>(
    registry: Registry<R, N>,
    store: PathBuf,
) {
    if !berth_telemetry::counts() {
        return;
    }
    let seen = Seen::default();
    observe(&seen);
    let of_troubles = registry.clone();
    SANDBOX_TROUBLES.observe(move |it| it.see(of_troubles.troubles().len() as f64, &[]));
    let of_leases = registry.clone();
    WORK_LEASES.observe(move |it| it.see(of_leases.collecting().leases("").len() as f64, &[]));
    while !registry.is_stopping() {
        match look(&registry, &store).await {
            Ok(figures) => *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(figures),
            Err(error) => tracing::warn!(%error, "the store cannot be measured"),
        }
        registry.pause(BEAT).await;
    }
}

async fn look<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    file: &PathBuf,
) -> Result<Figures, StoreError> {
    let store = registry.store();
    let records = store.all().await?;
    let count = |status| records.iter().filter(|it| it.status == status).count() as u64;
    Ok(Figures {
        statuses: Status::ALL.map(|it| (it, count(it))).to_vec(),
        leases: store.lease_counts().await?,
        revision: store.revision().await?,
        store_bytes: fs::metadata(file).map_or(0, |it| it.len()),
    })
}

fn observe(seen: &Seen) {
    let tell = |instrument: &'static Instrument, tell: fn(&Observer<'_>, &Figures)| {
        let seen = seen.clone();
        instrument.observe(move |it| {
            if let Some(figures) = &*seen.lock().unwrap_or_else(PoisonError::into_inner) {
                tell(it, figures);
            }
        });
    };
    tell(&SANDBOXES_BY_STATUS, |it, of| {
        for (status, count) in &of.statuses {
            it.see(
                *count as f64,
                &[KeyValue::new("berth.sandbox.status", status.as_str())],
            );
        }
    });
    tell(&ADDRESSES, |it, of| {
        let LeaseCounts {
            capacity,
            held,
            cooling,
        } = of.leases;
        let free = capacity.saturating_sub(held).saturating_sub(cooling);
        for (state, count) in [("held", held), ("cooling", cooling), ("free", free)] {
            it.see(count as f64, &[KeyValue::new("berth.address.state", state)]);
        }
    });
    tell(&STORE_SIZE, |it, of| it.see(of.store_bytes as f64, &[]));
    tell(&STORE_CHANGES, |it, of| it.see(of.revision as f64, &[]));
}

/// A Create has ended, in RUNNING or with a failure.
pub(crate) fn created(admitted: Option<Admitted>, failure: Option<&Failure>) {
    if let Some(failure) = failure {
        spans::fail(&Span::current(), failure.reason.as_str(), &failure.message);
    }
    // What a former manager has begun is no measure.
    if let Some(admitted) = admitted {
        let error = failure.map(|it| KeyValue::new("error.type", it.reason.as_str()));
        CREATE_DURATION.record(admitted.at.elapsed().as_secs_f64(), error.as_slice());
    }
}

/// A sandbox has ended by itself.
pub(crate) fn exited(cause: ExitCause) {
    EXITS.record(1.0, &[KeyValue::new("berth.exit.cause", word(cause))]);
}

fn word(it: ExitCause) -> &'static str {
    match it {
        ExitCause::Exit => "exit",
        ExitCause::Signal => "signal",
        ExitCause::Oom => "oom",
        ExitCause::RuntimeLost => "runtime_lost",
        ExitCause::Unknown => "unknown",
    }
}

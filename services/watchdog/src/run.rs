//! A run: two looks with a time between them, then what was the same orphan at both is asked to end, and removed.

use std::time::{Duration, Instant, SystemTime};

use berth_api::v1::{self, WatchdogCause};
use berth_domain::Reason;
use berth_plugin::{Seat, is_away};
use tonic::Status;

use crate::{
    config::Config,
    decide::{batches, confirmed, in_words, note, note_failure},
    manager::{Manager, is, unreachable},
};

/// How often a lease is asked for that another watchdog has.
const AGAIN: Duration = Duration::from_millis(250);
/// A watchdog on another socket that was killed has lost its lease by then, and one that runs has not.
const PATIENCE: u32 = 2;

/// Runs once. The status says why nothing, or not all, was done.
pub(crate) async fn run(
    config: &Config,
    seat: &Seat,
    cause: WatchdogCause,
) -> (v1::WatchdogRun, Result<(), Status>) {
    let mut run = v1::WatchdogRun {
        started_at: Some(SystemTime::now().into()),
        cause: cause.into(),
        ..v1::WatchdogRun::default()
    };
    let done = with_lease(config, seat, &mut run).await;
    // Whoever asked for the run is told who is away, also when that was killed in the middle of it.
    let done = done.map_err(|it| match is_away(&it) {
        true => unreachable(&config.target().address),
        false => it,
    });
    run.ended_at = Some(SystemTime::now().into());
    if let Err(status) = &done {
        status.message().clone_into(&mut run.problem);
    }
    let words = in_words(&run);
    match &done {
        Ok(()) if run.failed.is_empty() => {
            tracing::info!(cause = cause.as_str_name(), words, "ran")
        }
        Ok(()) => tracing::warn!(words, failed = ?run.failed, "ran"),
        Err(_) => tracing::warn!(words, "the run broke off"),
    }
    (run, done)
}

async fn with_lease(config: &Config, seat: &Seat, run: &mut v1::WatchdogRun) -> Result<(), Status> {
    let manager = Manager::connect(config).await?;
    manager.end_former_leases(seat).await?;
    let lease = acquire(&manager, config, seat.holder()).await?;
    let done = tokio::select! {
        done = look_and_remove(&manager, config, &lease, run) => done,
        // What is dropped half-way the manager ends.
        lost = manager.keep(&lease, config.lease_time) => Err(lost),
    };
    manager.release(lease).await;
    done
}

async fn acquire(
    manager: &Manager,
    config: &Config,
    holder: &str,
) -> Result<v1::WorkLeaseRef, Status> {
    let deadline = Instant::now() + config.lease_time * PATIENCE;
    loop {
        match manager.acquire(holder, config.lease_time).await {
            Err(status) if is(&status, Reason::WorkLeaseHeld) && Instant::now() < deadline => {
                tokio::time::sleep(AGAIN).await;
            }
            other => return other,
        }
    }
}

async fn look_and_remove(
    manager: &Manager,
    config: &Config,
    lease: &v1::WorkLeaseRef,
    run: &mut v1::WatchdogRun,
) -> Result<(), Status> {
    let first = manager.look().await?;
    run.first_look = number(first.len());
    if first.is_empty() {
        return Ok(());
    }
    tracing::info!(orphans = first.len(), grace = ?config.grace_window, "the first look is over");
    tokio::time::sleep(config.grace_window).await;
    let doomed = confirmed(&first, manager.look().await?);
    run.second_look = number(doomed.len());
    let batches = batches(&doomed);
    for batch in &batches {
        manager.end(lease, batch).await?;
    }
    // A task that has ended is another state of the same orphan, and its end may have taken others along.
    for batch in &batches {
        match manager.remove(lease, batch, config.object_timeout).await {
            Ok(answers) => note(run, batch, &answers),
            Err(status) if is(&status, Reason::WorkLeaseLost) => return Err(status),
            Err(status) => {
                note_failure(run, batch, status.message());
                tracing::warn!(error = status.message(), "some could not be removed");
            }
        }
    }
    Ok(())
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

//! Runs a plan: each step as soon as what it waits for is done. What to run is decided elsewhere.

use std::time::{Duration, Instant};

use berth_domain::{Failure, Phase, Plan, Step};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

/// Carries one step out. Every step can be repeated.
pub(crate) trait Execute: Sync {
    fn execute(&self, step: &Step) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// What a failed step means for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFailure {
    /// No further step begins; the caller undoes the plan.
    Stop,
    /// Steps that do not depend on it go on; the caller decides again.
    GoOn,
}

#[derive(Debug)]
pub(crate) enum Ended {
    Done,
    /// The first failure, and the step that it hit.
    Failed { step: Step, failure: Failure },
    Interrupted,
}

#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) ended: Ended,
    pub(crate) phases: Vec<Phase>,
}

/// Runs `plan` to its end, to its first failure, or until `interrupt`.
///
/// A step that has begun is never dropped half-way, unless it only waits: what it does on the node would go on without us.
pub(crate) async fn run<E: Execute>(
    plan: &Plan,
    executor: &E,
    on_failure: OnFailure,
    interrupt: &CancellationToken,
    origin: Instant,
) -> Ran {
    let steps = plan.steps();
    let halt = interrupt.child_token();
    let mut done = vec![false; steps.len()];
    let mut begun = vec![false; steps.len()];
    let mut running = FuturesUnordered::new();
    let mut phases = Vec::new();
    let mut failed: Option<(Step, Failure)> = None;
    loop {
        let halted = halt.is_cancelled();
        for (place, planned) in steps.iter().enumerate() {
            if !halted && !begun[place] && planned.after.iter().all(|&it| done[it]) {
                begun[place] = true;
                running.push(timed(place, &planned.step, executor, &halt, origin));
            }
        }
        let Some((place, start, took, outcome)) = running.next().await else { break };
        let step = &steps[place].step;
        phases.push(Phase {
            name: step.name().to_owned(),
            container: step.role().map(ToString::to_string).unwrap_or_default(),
            start,
            took,
        });
        match outcome {
            Some(Ok(())) => done[place] = true,
            Some(Err(failure)) => {
                tracing::warn!(%step, %failure, "a step failed");
                if on_failure == OnFailure::Stop {
                    halt.cancel();
                }
                failed.get_or_insert((step.clone(), failure));
            }
            None => {}
        }
    }
    let ended = match failed {
        Some((step, failure)) => Ended::Failed { step, failure },
        None if done.iter().all(|&it| it) => Ended::Done,
        None => Ended::Interrupted,
    };
    Ran { ended, phases }
}

/// Returns the step's place, its start, how long it took, and its outcome; `None` for one that was dropped while waiting.
async fn timed<E: Execute>(
    place: usize,
    step: &Step,
    executor: &E,
    halt: &CancellationToken,
    origin: Instant,
) -> (usize, Duration, Duration, Option<Result<(), Failure>>) {
    let start = Instant::now();
    let outcome = if step.only_waits() {
        tokio::select! {
            outcome = executor.execute(step) => Some(outcome),
            () = halt.cancelled() => None,
        }
    } else {
        Some(executor.execute(step).await)
    };
    (place, start - origin, start.elapsed(), outcome)
}

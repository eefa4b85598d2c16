//! Runs a plan: each step as soon as what it waits for is done. What to run is decided elsewhere.

use std::time::{Duration, Instant};

use berth_domain::{Failure, Phase, Plan, Role, Step};
use berth_telemetry::{KeyValue, instruments::STEP_DURATION, spans};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// Carries one step out. Every step can be repeated.
pub(crate) trait Execute: Sync {
    /// What the steps are for, as `create`.
    fn verb(&self) -> &'static str;

    /// A place that a step needs while it runs.
    type Turn: Send;

    /// Waits for the place. What waits has not begun.
    fn turn(&self, step: &Step) -> impl Future<Output = Self::Turn> + Send;

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
    Failed {
        step: Step,
        failure: Failure,
    },
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
                let container = planned.step.role().map(Role::to_string);
                let span = spans::step(planned.step.name(), container.as_deref());
                let step = timed(place, &planned.step, executor, &halt, origin);
                running.push(step.instrument(span));
            }
        }
        let Some((place, start, took, outcome)) = running.next().await else {
            break;
        };
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
    let _turn = tokio::select! {
        turn = executor.turn(step) => turn,
        () = halt.cancelled() => return (place, start - origin, start.elapsed(), None),
    };
    let outcome = if step.only_waits() {
        tokio::select! {
            outcome = executor.execute(step) => Some(outcome),
            () = halt.cancelled() => None,
        }
    } else {
        Some(executor.execute(step).await)
    };
    let took = start.elapsed();
    if let Some(outcome) = &outcome {
        measure(executor.verb(), step.name(), took, outcome);
    }
    (place, start - origin, took, outcome)
}

pub(crate) fn measure(
    verb: &'static str,
    step: &'static str,
    took: Duration,
    outcome: &Result<(), Failure>,
) {
    let mut attributes = vec![
        KeyValue::new("berth.sandbox.verb", verb),
        KeyValue::new("berth.sandbox.step", step),
    ];
    if let Err(failure) = outcome {
        attributes.push(KeyValue::new("error.type", failure.reason.as_str()));
        let span = tracing::Span::current();
        spans::fail(&span, failure.reason.as_str(), &failure.message);
    }
    STEP_DURATION.record(took.as_secs_f64(), &attributes);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use berth_domain::{ContainerName, ImageRef, Reason, Role};
    use tokio::sync::watch;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    /// Carries out nothing: a step ends at once, or when the test lets it.
    #[derive(Default)]
    struct FlakyExecutor {
        fails: BTreeSet<&'static str>,
        held: watch::Sender<BTreeSet<&'static str>>,
        /// What became of the steps: `begin …`, `end …`, `drop …`.
        events: watch::Sender<Vec<String>>,
    }

    impl FlakyExecutor {
        fn failing(fails: impl IntoIterator<Item = &'static str>) -> Self {
            Self {
                fails: fails.into_iter().collect(),
                ..Self::default()
            }
        }

        fn holding(self, held: impl IntoIterator<Item = &'static str>) -> Self {
            self.held.send_replace(held.into_iter().collect());
            self
        }

        fn free(&self, step: &str) {
            self.held.send_modify(|held| {
                held.remove(step);
            });
        }

        fn tell(&self, event: &str, step: &Step) {
            self.events
                .send_modify(|events| events.push(format!("{event} {step}")));
        }

        fn events(&self) -> Vec<String> {
            self.events.borrow().clone()
        }

        fn saw(&self, event: &str) -> bool {
            self.events.borrow().iter().any(|it| it == event)
        }

        async fn until(&self, event: &str) {
            let mut events = self.events.subscribe();
            let seen = events.wait_for(|events| events.iter().any(|it| it == event));
            let outcome = tokio::time::timeout(DEADLINE, seen).await.map(drop);
            assert!(outcome.is_ok(), "no `{event}` in {:?}", self.events());
        }
    }

    impl Execute for FlakyExecutor {
        type Turn = ();

        fn verb(&self) -> &'static str {
            "test"
        }

        async fn turn(&self, _: &Step) {}

        async fn execute(&self, step: &Step) -> Result<(), Failure> {
            self.tell("begin", step);
            let mut begun = Begun {
                executor: self,
                step,
                ended: false,
            };
            let name = step.to_string();
            let mut held = self.held.subscribe();
            drop(held.wait_for(|held| !held.contains(name.as_str())).await);
            begun.ended = true;
            self.tell("end", step);
            if self.fails.contains(name.as_str()) {
                return Err(Failure::new(Reason::RuntimeRefused, name));
            }
            Ok(())
        }
    }

    /// Tells of a step that is dropped half-way.
    struct Begun<'a> {
        executor: &'a FlakyExecutor,
        step: &'a Step,
        ended: bool,
    }

    impl Drop for Begun<'_> {
        fn drop(&mut self) {
            if !self.ended {
                self.executor.tell("drop", self.step);
            }
        }
    }

    /// Runs `plan` while `script` has its way.
    async fn ran(
        plan: &Plan,
        executor: &FlakyExecutor,
        on_failure: OnFailure,
        interrupt: &CancellationToken,
        script: impl Future<Output = ()>,
    ) -> Ran {
        let running = run(plan, executor, on_failure, interrupt, Instant::now());
        let both = async { tokio::join!(running, script).0 };
        match tokio::time::timeout(DEADLINE, both).await {
            Ok(ran) => ran,
            Err(_) => panic!("the plan does not end: {:?}", executor.events()),
        }
    }

    fn names(ran: &Ran) -> Vec<&str> {
        ran.phases.iter().map(|it| it.name.as_str()).collect()
    }

    fn failed_step(ran: &Ran) -> &Step {
        match &ran.ended {
            Ended::Failed { step, .. } => step,
            other @ (Ended::Done | Ended::Interrupted) => panic!("it ended {other:?}"),
        }
    }

    fn image() -> Step {
        Step::EnsureImage(ImageRef::parse("web").unwrap())
    }

    #[tokio::test]
    async fn steps_that_wait_for_nothing_in_common_run_at_the_same_time() {
        let mut plan = Plan::default();
        plan.add(Step::Prepare, []);
        let open = plan.add(Step::OpenNamespaces, []);
        plan.add(Step::AttachLink, [open]);
        let executor = FlakyExecutor::default().holding(["prepare", "open-namespaces"]);
        let interrupt = CancellationToken::new();
        let script = async {
            executor.until("begin prepare").await;
            executor.until("begin open-namespaces").await;
            assert!(!executor.saw("begin attach-link"));
            executor.free("open-namespaces");
            executor.until("end attach-link").await;
            assert!(!executor.saw("end prepare"));
            executor.free("prepare");
        };
        let ran = ran(&plan, &executor, OnFailure::Stop, &interrupt, script).await;
        assert!(matches!(ran.ended, Ended::Done), "{ran:?}");
    }

    #[tokio::test]
    async fn a_step_waits_for_all_that_it_is_behind() {
        let mut plan = Plan::default();
        let first = plan.add(Step::Prepare, []);
        let second = plan.add(Step::OpenNamespaces, []);
        plan.add(Step::AttachLink, [first, second]);
        let executor = FlakyExecutor::default().holding(["open-namespaces"]);
        let interrupt = CancellationToken::new();
        let script = async {
            executor.until("end prepare").await;
            executor.free("open-namespaces");
        };
        ran(&plan, &executor, OnFailure::Stop, &interrupt, script).await;
        let events = executor.events();
        let place = |event: &str| events.iter().position(|it| it == event);
        assert!(place("end open-namespaces").is_some());
        assert!(place("end open-namespaces") < place("begin attach-link"));
    }

    #[tokio::test]
    async fn after_a_failure_nothing_begins_and_what_has_begun_to_change_the_node_ends() {
        let mut plan = Plan::default();
        let prepare = plan.add(Step::Prepare, []);
        let open = plan.add(Step::OpenNamespaces, []);
        plan.add(image(), []);
        plan.add(Step::CreateContainer(Role::Pause), [prepare]);
        plan.add(Step::AttachLink, [open]);
        let wait = "ensure-image docker.io/library/web:latest";
        let executor =
            FlakyExecutor::failing(["prepare"]).holding(["prepare", "open-namespaces", wait]);
        let interrupt = CancellationToken::new();
        let script = async {
            for step in ["prepare", "open-namespaces", wait] {
                executor.until(&format!("begin {step}")).await;
            }
            executor.free("prepare");
            // The wait is dropped once the failure is known.
            executor.until(&format!("drop {wait}")).await;
            executor.free("open-namespaces");
        };
        let ran = ran(&plan, &executor, OnFailure::Stop, &interrupt, script).await;
        assert_eq!(failed_step(&ran), &Step::Prepare);
        assert!(executor.saw("end open-namespaces"));
        assert!(!executor.saw("drop open-namespaces"));
        assert!(!executor.saw("begin create-container pause"));
        assert!(!executor.saw("begin attach-link"));
        assert!(!interrupt.is_cancelled(), "the interrupt is the caller's");
    }

    #[tokio::test]
    async fn without_a_stop_everything_that_does_not_depend_on_the_failure_goes_on() {
        let mut plan = Plan::default();
        let stop = plan.add(Step::DetachLink, []);
        plan.add(Step::CloseNamespaces, [stop]);
        let delete = plan.add(Step::DeleteTask(Role::Pause), []);
        let remove = plan.add(Step::RemoveContainer(Role::Pause), [delete]);
        plan.add(Step::Release, [remove]);
        let executor = FlakyExecutor::failing(["detach-link"]).holding(["delete-task pause"]);
        let interrupt = CancellationToken::new();
        let script = async {
            executor.until("end detach-link").await;
            executor.free("delete-task pause");
        };
        let ran = ran(&plan, &executor, OnFailure::GoOn, &interrupt, script).await;
        assert_eq!(failed_step(&ran), &Step::DetachLink);
        assert!(executor.saw("end release"));
        assert!(!executor.saw("begin close-namespaces"));
    }

    #[tokio::test]
    async fn of_two_failures_the_first_is_told() {
        let mut plan = Plan::default();
        plan.add(Step::Prepare, []);
        plan.add(Step::OpenNamespaces, []);
        for on_failure in [OnFailure::Stop, OnFailure::GoOn] {
            let executor =
                FlakyExecutor::failing(["prepare", "open-namespaces"]).holding(["prepare"]);
            let interrupt = CancellationToken::new();
            let script = async {
                executor.until("begin prepare").await;
                executor.until("end open-namespaces").await;
                // The runner is polled again before the step that is freed here.
                tokio::task::yield_now().await;
                executor.free("prepare");
            };
            let ran = ran(&plan, &executor, on_failure, &interrupt, script).await;
            assert_eq!(failed_step(&ran), &Step::OpenNamespaces, "{on_failure:?}");
            assert!(executor.saw("end prepare"), "{on_failure:?}");
        }
    }

    #[tokio::test]
    async fn an_interrupt_drops_what_only_waits_and_lets_what_changes_the_node_end() {
        let mut plan = Plan::default();
        let prepare = plan.add(Step::Prepare, []);
        plan.add(Step::AwaitReady, []);
        plan.add(Step::CreateContainer(Role::Pause), [prepare]);
        let executor = FlakyExecutor::default().holding(["prepare", "await-ready"]);
        let interrupt = CancellationToken::new();
        let script = async {
            executor.until("begin prepare").await;
            executor.until("begin await-ready").await;
            interrupt.cancel();
            executor.until("drop await-ready").await;
            executor.free("prepare");
        };
        let ran = ran(&plan, &executor, OnFailure::Stop, &interrupt, script).await;
        assert!(matches!(ran.ended, Ended::Interrupted), "{ran:?}");
        assert!(executor.saw("end prepare"));
        assert!(!executor.saw("begin create-container pause"));
    }

    #[tokio::test]
    async fn a_failure_that_an_interrupt_meets_is_still_told() {
        let mut plan = Plan::default();
        plan.add(Step::Prepare, []);
        let executor = FlakyExecutor::failing(["prepare"]).holding(["prepare"]);
        let interrupt = CancellationToken::new();
        let script = async {
            executor.until("begin prepare").await;
            interrupt.cancel();
            executor.free("prepare");
        };
        let ran = ran(&plan, &executor, OnFailure::Stop, &interrupt, script).await;
        assert_eq!(failed_step(&ran), &Step::Prepare);
    }

    #[tokio::test]
    async fn an_interrupt_that_comes_too_late_changes_nothing() {
        let mut plan = Plan::default();
        plan.add(Step::Prepare, []);
        let executor = FlakyExecutor::default().holding(["prepare"]);
        let interrupt = CancellationToken::new();
        let script = async {
            executor.until("begin prepare").await;
            interrupt.cancel();
            executor.free("prepare");
        };
        let ran = ran(&plan, &executor, OnFailure::Stop, &interrupt, script).await;
        assert!(matches!(ran.ended, Ended::Done), "{ran:?}");
    }

    #[tokio::test]
    async fn nothing_begins_behind_an_interrupt() {
        let mut plan = Plan::default();
        plan.add(Step::Prepare, []);
        plan.add(Step::AwaitReady, []);
        let executor = FlakyExecutor::default();
        let interrupt = CancellationToken::new();
        interrupt.cancel();
        let ran = ran(&plan, &executor, OnFailure::GoOn, &interrupt, async {}).await;
        assert!(matches!(ran.ended, Ended::Interrupted), "{ran:?}");
        assert!(executor.events().is_empty());
        assert!(ran.phases.is_empty());
    }

    #[tokio::test]
    async fn an_empty_plan_is_done() {
        let executor = FlakyExecutor::default();
        let interrupt = CancellationToken::new();
        let plan = Plan::default();
        let ran = ran(&plan, &executor, OnFailure::Stop, &interrupt, async {}).await;
        assert!(matches!(ran.ended, Ended::Done), "{ran:?}");
    }

    #[tokio::test]
    async fn every_step_that_began_is_a_phase_with_its_container_and_its_times() {
        let mut plan = Plan::default();
        let app = Role::App(ContainerName::parse("app").unwrap());
        let prepare = plan.add(Step::Prepare, []);
        let create = plan.add(Step::CreateContainer(app), [prepare]);
        plan.add(Step::Release, [create]);
        let executor = FlakyExecutor::failing(["create-container app"]);
        let interrupt = CancellationToken::new();
        let ran = ran(&plan, &executor, OnFailure::Stop, &interrupt, async {}).await;
        assert_eq!(names(&ran), ["prepare", "create-container"]);
        let (first, second) = (&ran.phases[0], &ran.phases[1]);
        assert_eq!(
            (first.container.as_str(), second.container.as_str()),
            ("", "app")
        );
        assert!(second.start >= first.start + first.took, "{ran:?}");
    }
}

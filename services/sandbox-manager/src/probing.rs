//! The readiness probes of one sandbox, asked again and again while somebody waits for what they say.

mod program;

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_domain::{ContainerName, Probe, ProbeCheck, Sandbox, probe::Readiness};
use berth_platform::{Images, Network, Runtime};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio_util::task::TaskTracker;

use crate::{node::Node, ready::Failing};

/// What came of a try; `None` where the app could not be asked, which says nothing of it.
type Answer = Option<Result<(), String>>;
type Try = Pin<Box<dyn Future<Output = (usize, Answer)> + Send>>;

/// As many tries under way as there are probes: the next one of each begins when the one before it is over. Nothing is asked
/// while nobody waits in `changed`.
pub(crate) struct Probing<R, N> {
    node: Node<R, N>,
    /// Of what has to be seen to its end, whoever waits.
    tracker: TaskTracker,
    sandbox: Arc<Sandbox>,
    rounds: Vec<Round>,
    /// Never locked: whoever holds this may be shared between threads, and a future may not.
    under_way: Mutex<FuturesUnordered<Try>>,
}

struct Round {
    container: ContainerName,
    probe: Probe,
    readiness: Readiness,
}

impl<R: Runtime + Images, N: Network> Probing<R, N> {
    /// Begins with all of them `ready` or not; the first try of each comes after `first`.
    pub(crate) fn new(
        node: &Node<R, N>,
        tracker: &TaskTracker,
        sandbox: &Sandbox,
        ready: bool,
        first: impl Fn(&Probe) -> Duration,
    ) -> Self {
        let round = |(container, probe): (&ContainerName, &Probe)| Round {
            container: container.clone(),
            probe: probe.clone(),
            readiness: Readiness::new(ready),
        };
        let mut it = Self {
            node: node.clone(),
            tracker: tracker.clone(),
            sandbox: Arc::new(sandbox.clone()),
            rounds: sandbox.spec.probes().map(round).collect(),
            under_way: Mutex::default(),
        };
        let pauses: Vec<_> = it.rounds.iter().map(|it| first(&it.probe)).collect();
        for (place, pause) in pauses.into_iter().enumerate() {
            it.ask(place, pause);
        }
        it
    }

    /// Those that do not succeed.
    pub(crate) fn failing(&self) -> Vec<Failing> {
        let rounds = self.rounds.iter().filter(|it| !it.readiness.ready);
        let failing = |it: &Round| Failing {
            container: it.container.clone(),
            check: it.probe.check.clone(),
            answer: it.readiness.answer.clone(),
        };
        rounds.map(failing).collect()
    }

    /// Asks until one of them begins to succeed, or to fail. May be dropped at any time: what is under way goes on with the
    /// next call.
    pub(crate) async fn changed(&mut self) {
        while let Some((place, answer)) = self.under_way().next().await {
            let Some(Round {
                container,
                probe,
                readiness,
            }) = self.rounds.get_mut(place)
            else {
                continue;
            };
            if let Some(Err(answer)) = &answer {
                tracing::debug!(sandbox = %self.sandbox.id, %container, answer, "a probe failed");
            }
            let changed = answer.is_some_and(|it| readiness.note(probe, it));
            let pause = readiness.pause(probe);
            self.ask(place, pause);
            if changed {
                return;
            }
        }
        std::future::pending().await
    }

    fn under_way(&mut self) -> &mut FuturesUnordered<Try> {
        let under_way = self.under_way.get_mut();
        under_way.unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&mut self, place: usize, pause: Duration) {
        let Some(round) = self.rounds.get(place) else {
            return;
        };
        let (node, tracker) = (self.node.clone(), self.tracker.clone());
        let (sandbox, container) = (self.sandbox.clone(), round.container.clone());
        let Probe { check, timeout, .. } = round.probe.clone();
        self.under_way().push(Box::pin(async move {
            tokio::time::sleep(pause).await;
            let answer = match check {
                ProbeCheck::Exec { command } => {
                    let id = sandbox.id.clone();
                    program::ask(node.runtime, &tracker, id, container, command, timeout).await
                }
                ProbeCheck::HttpGet { .. } | ProbeCheck::TcpConnect { .. } => {
                    let asked = node.network.probe(&sandbox, &check);
                    Some(match tokio::time::timeout(timeout, asked).await {
                        Ok(answer) => answer.map_err(|it| it.to_string()),
                        Err(_) => Err(format!("no answer within {} ms", timeout.as_millis())),
                    })
                }
            };
            (place, answer)
        }));
    }
}

//! The readiness probes of one sandbox, asked again and again while somebody waits for what they say.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_domain::{ContainerName, Probe, Sandbox, probe::Readiness};
use berth_platform::Network;
use futures::{StreamExt as _, stream::FuturesUnordered};

use crate::ready::Failing;

type Try = Pin<Box<dyn Future<Output = (usize, Result<(), String>)> + Send>>;

/// As many tries under way as there are probes: the next one of each begins when the one before it is over. Nothing is asked
/// while nobody waits in `changed`.
pub(crate) struct Probing<N> {
    network: Arc<N>,
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

impl<N: Network> Probing<N> {
    /// Begins with all of them `ready` or not; the first try of each comes after `first`.
    pub(crate) fn new(
        network: &Arc<N>,
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
            network: network.clone(),
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
            if let Err(answer) = &answer {
                tracing::debug!(sandbox = %self.sandbox.id, %container, answer, "a probe failed");
            }
            let changed = readiness.note(probe, answer);
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
        let (network, sandbox) = (self.network.clone(), self.sandbox.clone());
        let Probe { check, timeout, .. } = round.probe.clone();
        self.under_way().push(Box::pin(async move {
            tokio::time::sleep(pause).await;
            let asked = network.probe(&sandbox, &check);
            let answer = match tokio::time::timeout(timeout, asked).await {
                Ok(answer) => answer.map_err(|it| it.to_string()),
                Err(_) => Err(format!("no answer within {} ms", timeout.as_millis())),
            };
            (place, answer)
        }));
    }
}

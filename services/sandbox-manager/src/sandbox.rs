//! The task of one sandbox: it looks at the record and at the node, decides, acts, publishes, and waits for a reason to
//! look again. It is the only one that changes the sandbox; requests only write down what is wanted.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{
    ExitCause, ExitRecord, Failure, Goal, Health, Observed, Phase, Plan, Reason, RestartPolicy,
    Role, Sandbox, SandboxId, SandboxRecord, Status, assess,
    decide::{self, Manner, decide, tear_down},
    record::Ending,
};
use berth_platform::{Images, Network, Runtime};
use berth_store::UpdateError;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    execute::{Executor, Found},
    failures::{runtime_failure, store_failure},
    ready::exit_record,
    registry::Shared,
    run::{Ended, OnFailure, Ran, run},
};

/// A sandbox at rest is looked at this often, in case that an event was lost.
const RESYNC: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// What the task knows, for whoever waits for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// The latest poke that this view takes into account.
    pub(crate) ticket: u64,
    pub(crate) record: Option<Arc<SandboxRecord>>,
    /// There is no record and nothing on the node.
    pub(crate) absent: bool,
    /// What keeps the task from getting on; it goes on trying.
    pub(crate) trouble: Option<Failure>,
}

/// When a Create was admitted, for the phases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admitted {
    pub(crate) at: Instant,
    pub(crate) took: Duration,
}

pub(crate) struct SandboxTask<R, N> {
    pub(crate) id: SandboxId,
    pub(crate) shared: Arc<Shared<R, N>>,
    pub(crate) pokes: mpsc::Receiver<()>,
    pub(crate) exits: Arc<Notify>,
    pub(crate) view: watch::Sender<View>,
}

enum Next {
    Again,
    /// At rest: until something happens, or the time is over.
    Wait(Duration),
    Over,
}

impl<R: Runtime + Images, N: Network> SandboxTask<R, N> {
    pub(crate) async fn drive(mut self) {
        let mut backoff = FIRST_BACKOFF;
        while !self.shared.stop.is_cancelled() {
            let ticket = self.shared.ticket(&self.id);
            let next = match self.turn(ticket).await {
                Ok(next) => {
                    backoff = FIRST_BACKOFF;
                    self.view
                        .send_if_modified(|view| view.trouble.take().is_some());
                    next
                }
                Err(trouble) => {
                    tracing::warn!(sandbox = %self.id, error = %trouble, "trying again");
                    self.view.send_modify(|view| {
                        view.ticket = ticket;
                        view.trouble = Some(trouble);
                    });
                    let wait = backoff;
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                    Next::Wait(wait)
                }
            };
            match next {
                Next::Again => {}
                Next::Wait(time) => tokio::select! {
                    _ = self.pokes.recv() => {}
                    () = self.exits.notified() => {}
                    () = tokio::time::sleep(time) => {}
                    () = self.shared.stop.cancelled() => {}
                },
                Next::Over => {
                    if self.shared.retire(&self.id, &mut self.pokes) {
                        return;
                    }
                }
            }
        }
    }

    /// One look and what follows from it.
    async fn turn(&mut self, ticket: u64) -> Result<Next, Failure> {
        let Some(record) = self
            .shared
            .store
            .get(&self.id)
            .await
            .map_err(store_failure)?
        else {
            return self.clear_unrecorded(ticket).await;
        };
        let current = Arc::new(record.clone());
        // One change: a new ticket must never be seen beside an old answer.
        self.view.send_modify(|view| {
            view.ticket = ticket;
            view.absent = false;
            view.record = Some(current);
        });
        let over = record.ending.is_some() || record.status == Status::Stopped;
        match record.status {
            _ if over => self.end(&record).await,
            Status::Pending => self.create(&record).await,
            Status::Running | Status::NotReady => self.look(&record).await,
            // It holds nothing, unless somebody left something under its id.
            Status::Stopped | Status::Dead => {
                self.clear(Some(&record), Manner::Graceful).await?;
                Ok(Next::Over)
            }
        }
    }

    fn show(&self, record: &SandboxRecord) {
        let record = Arc::new(record.clone());
        self.view.send_modify(|view| {
            view.absent = false;
            view.record = Some(record);
        });
    }

    /// Removes what an id holds that has no record.
    async fn clear_unrecorded(&self, ticket: u64) -> Result<Next, Failure> {
        self.clear(None, Manner::Graceful).await?;
        self.shared
            .node
            .runtime
            .forget_logs(&self.id)
            .await
            .map_err(runtime_failure)?;
        self.view.send_modify(|view| {
            *view = View {
                ticket,
                record: None,
                absent: true,
                trouble: None,
            };
        });
        Ok(Next::Over)
    }

    async fn create(&mut self, record: &SandboxRecord) -> Result<Next, Failure> {
        let admitted = self.shared.take_admitted(&self.id);
        let origin = admitted.map_or_else(Instant::now, |it| it.at);
        let interrupt = CancellationToken::new();
        let queued = Instant::now();
        let place = tokio::select! {
            place = self.shared.creates.acquire() => place,
            () = interrupted(&self.shared, &mut self.pokes, &self.view, record) => return Ok(Next::Again),
        };
        let mut phases = Vec::new();
        if let Some(it) = admitted {
            phases.push(phase("admit", Duration::ZERO, it.took));
            phases.push(phase("queue", queued - origin, queued.elapsed()));
        }
        // A record that was admitted a moment ago over nothing has nothing on the node yet. What is in the way all the
        // same is met by the step that needs its place, and cleared by the undo.
        let seen = match admitted {
            Some(_) => Observed::default(),
            None => self.shared.node.observe(&self.id).await?,
        };
        let plan = decide(Goal::Present, &record.spec, &seen);
        let sandbox = record.sandbox();
        let executor = Executor::new(
            &self.shared.node,
            &sandbox,
            &self.exits,
            self.view.subscribe(),
        );
        let ran = {
            let watching = interrupted(&self.shared, &mut self.pokes, &self.view, record);
            let running = run(&plan, &executor, OnFailure::Stop, &interrupt, origin);
            tokio::pin!(watching, running);
            tokio::select! {
                ran = &mut running => ran,
                () = &mut watching => {
                    interrupt.cancel();
                    running.await
                }
            }
        };
        drop(place);
        let found = executor.into_found();
        let Ran { ended, phases: ran } = ran;
        phases.extend(ran);
        match ended {
            Ended::Done => self.succeed(record, found, phases).await,
            Ended::Interrupted if self.shared.stop.is_cancelled() => Ok(Next::Again),
            Ended::Interrupted => {
                self.undo(record, &plan).await?;
                Ok(Next::Again)
            }
            Ended::Failed { step, failure } => {
                tracing::info!(sandbox = %self.id, %step, "undoing a failed Create");
                self.undo(record, &plan).await.inspect_err(|trouble| {
                    tracing::warn!(sandbox = %self.id, %trouble, "the undo is not complete");
                })?;
                self.bury(record, Some(failure), found.exit, phases).await
            }
        }
    }

    async fn succeed(
        &self,
        record: &SandboxRecord,
        found: Found,
        phases: Vec<Phase>,
    ) -> Result<Next, Failure> {
        let now = SystemTime::now();
        let written = self
            .shared
            .store
            .update(&self.id, record.generation, now, move |record| {
                record.images = found.images;
                record.phases = phases;
                for sighting in found.ports {
                    record
                        .ports
                        .retain(|it| (it.port, it.protocol) != (sighting.port, sighting.protocol));
                    record.ports.push(sighting);
                }
                // Whoever wants the end of it has been promised that.
                if record.ending.is_none() {
                    record.enter(Status::Running, "", "", now);
                }
            })
            .await;
        match written {
            Ok(record) => {
                let ending = record.ending.is_some();
                self.show(&record);
                Ok(if ending {
                    Next::Again
                } else {
                    Next::Wait(RESYNC)
                })
            }
            Err(UpdateError::Gone | UpdateError::NotAllowed(_)) => Ok(Next::Again),
            Err(UpdateError::Store(error)) => Err(store_failure(error)),
        }
    }

    /// Takes back what part of `plan` has run, and makes sure by looking where that does not succeed at once.
    async fn undo(&self, record: &SandboxRecord, plan: &Plan) -> Result<(), Failure> {
        match self.carry_out(&decide::undo(plan)).await {
            Ok(()) => Ok(()),
            Err(_) => self.clear_patiently(record).await,
        }
    }

    /// Clears until all is gone, or until somebody wants something else of the id.
    async fn clear_patiently(&self, record: &SandboxRecord) -> Result<(), Failure> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            match self.clear(Some(record), Manner::AtOnce).await {
                Ok(()) => return Ok(()),
                Err(trouble) if self.shared.stop.is_cancelled() => return Err(trouble),
                Err(trouble) => {
                    self.view.send_modify(|view| view.trouble = Some(trouble));
                    tokio::select! {
                        () = tokio::time::sleep(backoff) => {}
                        () = self.shared.stop.cancelled() => {}
                    }
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                }
            }
        }
    }

    /// Looks what there is and removes it.
    async fn clear(&self, record: Option<&SandboxRecord>, manner: Manner) -> Result<(), Failure> {
        let seen = self.shared.node.observe(&self.id).await?;
        let plan = tear_down(record.map(|it| it.spec.as_ref()), &seen, manner);
        self.carry_out(&plan).await
    }

    /// Runs a plan that only goes forward; fails with the first failure once all that could run has run.
    async fn carry_out(&self, plan: &Plan) -> Result<(), Failure> {
        if plan.is_empty() {
            return Ok(());
        }
        let sandbox = Sandbox::of_id(self.id.clone());
        let executor = Executor::new(
            &self.shared.node,
            &sandbox,
            &self.exits,
            self.view.subscribe(),
        );
        let never = CancellationToken::new();
        match run(plan, &executor, OnFailure::GoOn, &never, Instant::now())
            .await
            .ended
        {
            Ended::Done | Ended::Interrupted => Ok(()),
            Ended::Failed { step, failure } => Err(failure.with("held", step)),
        }
    }

    /// Tears a sandbox down that has ended or shall end, and closes its record.
    async fn end(&mut self, record: &SandboxRecord) -> Result<Next, Failure> {
        if !matches!(record.status, Status::Stopped | Status::Dead) {
            let (reason, message) = match record.ending {
                Some(Ending::Delete) => ("DELETE_REQUESTED", "it was told to go"),
                Some(Ending::Stop) | None => ("STOP_REQUESTED", "it was told to stop"),
            };
            self.write(record, move |it, now| {
                it.enter(Status::Stopped, reason, message, now)
            })
            .await?;
        }
        self.clear(Some(record), Manner::Graceful).await?;
        // A Delete may have come while a Stop was under way.
        let Some(record) = self
            .shared
            .store
            .get(&self.id)
            .await
            .map_err(store_failure)?
        else {
            return Ok(Next::Again);
        };
        if record.ending == Some(Ending::Delete) {
            self.shared
                .node
                .runtime
                .forget_logs(&self.id)
                .await
                .map_err(runtime_failure)?;
            self.shared
                .store
                .remove(&self.id, record.generation, SystemTime::now())
                .await
                .map_err(store_failure)?;
            let ticket = self.view.borrow().ticket;
            self.view.send_modify(|view| {
                *view = View {
                    ticket,
                    record: None,
                    absent: true,
                    trouble: None,
                };
            });
            return Ok(Next::Over);
        }
        self.bury(&record, None, None, vec![]).await
    }

    /// Writes down that nothing is left but the record.
    async fn bury(
        &self,
        record: &SandboxRecord,
        failure: Option<Failure>,
        exit: Option<ExitRecord>,
        phases: Vec<Phase>,
    ) -> Result<Next, Failure> {
        let now = SystemTime::now();
        let buried = self
            .shared
            .store
            .bury(&self.id, record.generation, now, move |record| {
                let (reason, message) = match &failure {
                    Some(it) => (it.reason.as_str().to_owned(), it.message.clone()),
                    None => (record.reason.clone(), record.message.clone()),
                };
                record.exit = record.exit.take().or(exit);
                if failure.is_some() {
                    record.failure = failure;
                    record.phases = phases;
                }
                record.ports.clear();
                // A Delete that came meanwhile still wants the record gone.
                if record.ending == Some(Ending::Stop) {
                    record.ending = None;
                }
                record.enter(Status::Dead, reason, message, now);
            })
            .await;
        match buried {
            Ok(_) | Err(UpdateError::Gone | UpdateError::NotAllowed(_)) => Ok(Next::Again),
            Err(UpdateError::Store(error)) => Err(store_failure(error)),
        }
    }

    /// Looks whether a sandbox that should run does.
    async fn look(&mut self, record: &SandboxRecord) -> Result<Next, Failure> {
        let seen = self.shared.node.observe(&self.id).await?;
        let lost = |role: Role| ExitRecord {
            role,
            code: 255,
            signal: None,
            at: SystemTime::now(),
            cause: ExitCause::RuntimeLost,
        };
        match assess(&record.spec, &seen) {
            Health::Stands => return Ok(Next::Wait(RESYNC)),
            Health::Exited { role, code, at } => {
                let sandbox = record.sandbox();
                let exit = exit_record(&self.shared.node, &sandbox, role, code, at).await;
                let message = exit.describe();
                self.write(record, move |it, now| {
                    it.exit = Some(exit);
                    it.enter(
                        Status::Stopped,
                        Reason::ContainerExited.as_str(),
                        message,
                        now,
                    );
                })
                .await?;
            }
            Health::Lost { role, what } => {
                let message = format!("container {role}: {what}");
                self.write(record, move |it, now| {
                    it.exit = Some(lost(role));
                    it.enter(Status::Stopped, "RUNTIME_LOST", message, now);
                })
                .await?;
            }
            Health::Gone => match record.spec.restart_policy {
                RestartPolicy::Always => {
                    let message = "the node lost it; it is being created again";
                    self.write(record, move |it, now| {
                        it.ports.clear();
                        it.enter(Status::Pending, "RUNTIME_LOST", message, now);
                    })
                    .await?;
                }
                RestartPolicy::Never => {
                    let message = "the node lost it, and its restart policy is `never`";
                    self.write(record, move |it, now| {
                        it.enter(Status::Stopped, "RUNTIME_LOST", message, now);
                    })
                    .await?;
                }
            },
        }
        Ok(Next::Again)
    }

    /// Changes the record of this generation; one that is gone or has moved on is looked at again.
    async fn write(
        &self,
        record: &SandboxRecord,
        change: impl FnOnce(&mut SandboxRecord, SystemTime) + Send + 'static,
    ) -> Result<(), Failure> {
        let now = SystemTime::now();
        let change = move |record: &mut SandboxRecord| change(record, now);
        match self
            .shared
            .store
            .update(&self.id, record.generation, now, change)
            .await
        {
            Ok(record) => {
                self.show(&record);
                Ok(())
            }
            Err(UpdateError::Gone | UpdateError::NotAllowed(_)) => Ok(()),
            Err(UpdateError::Store(error)) => Err(store_failure(error)),
        }
    }
}

/// Returns when the Create of `record` shall not go on: it is to end, it was replaced, or the manager stops. Until then it
/// shows what else is written down, such as a reported port.
async fn interrupted<R, N>(
    shared: &Shared<R, N>,
    pokes: &mut mpsc::Receiver<()>,
    view: &watch::Sender<View>,
    record: &SandboxRecord,
) {
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            poke = pokes.recv() => if poke.is_none() { return },
        }
        match shared.store.get(&record.id).await {
            Ok(Some(it)) if it.generation == record.generation && it.ending.is_none() => {
                view.send_modify(|view| view.record = Some(Arc::new(it)));
            }
            Ok(_) => return,
            // An unreadable store says nothing about what is wanted.
            Err(error) => drop(store_failure(error)),
        }
    }
}

fn phase(name: &str, start: Duration, took: Duration) -> Phase {
    Phase {
        name: name.to_owned(),
        container: String::new(),
        start,
        took,
    }
}

//! The task of one sandbox: it looks at the record and at the node, decides, acts, publishes, and waits for a reason to
//! look again. It is the only one that changes the sandbox; requests only write down what is wanted.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{
    ContainerName, ExitRecord, Failure, Generation, Goal, Health, Observed, Phase, Plan,
    PortSighting, Reason, RestartPolicy, Role, Sandbox, SandboxId, SandboxRecord, Status, assess,
    decide::{self, Manner, decide, tear_down},
    health,
    record::Ending,
};
use berth_platform::{Images, Network, Runtime};
use berth_store::UpdateError;
use berth_telemetry::spans::{self, Origin};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use crate::{
    crash,
    execute::{Executor, Found},
    failures::{network_failure, runtime_failure, shim_silent, store_failure},
    figures,
    oom::FormerKills,
    probing::Probing,
    ready::{exit_record, look_at_ports, oom_kills, standing},
    registry::Shared,
    run::{Ended, OnFailure, Ran, measure, run},
    view::View,
};

/// A sandbox at rest is looked at this often, in case that an event was lost.
const RESYNC: Duration = Duration::from_secs(60);
/// The ports of one that runs are looked at this often: one look costs some 0.3 ms and asks nobody but the kernel.
const PORT_LOOK: Duration = Duration::from_secs(5);
/// Why a sandbox is PENDING again that was RUNNING.
const RUNTIME_LOST: &str = "RUNTIME_LOST";
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// When a Create was admitted, for the phases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admitted {
    pub(crate) generation: Generation,
    pub(crate) at: Instant,
    pub(crate) took: Duration,
}

pub(crate) struct SandboxTask<R, N> {
    pub(crate) id: SandboxId,
    pub(crate) shared: Arc<Shared<R, N>>,
    pub(crate) pokes: mpsc::Receiver<()>,
    pub(crate) exits: Arc<Notify>,
    pub(crate) view: watch::Sender<View>,
    /// The last time that the node was asked for all of it.
    pub(crate) looked_at: Option<Instant>,
    /// What the kernel had killed for memory by then, in containers that went on.
    pub(crate) former_kills: FormerKills,
    /// The call whose wish is carried out.
    pub(crate) origin: Option<Origin>,
    /// While it is RUNNING or NOT_READY.
    pub(crate) probing: Option<Probing<R, N>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    /// By a request, the end of a container, or what it does itself.
    Called,
    /// Or by a probe that says something new.
    ByTime,
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
        let mut woken = Woken::Called;
        while !self.shared.stop.is_cancelled() {
            let ticket = self.shared.ticket(&self.id);
            self.origin = self.shared.take_origin(&self.id).or(self.origin.take());
            let next = match self.turn(ticket, woken).await {
                Ok(next) => {
                    backoff = FIRST_BACKOFF;
                    self.view.send_if_modified(|view| {
                        let news = view.trouble.take().is_some() || !view.looked;
                        view.looked = true;
                        news
                    });
                    next
                }
                Err(trouble) => {
                    tracing::warn!(sandbox = %self.id, error = %trouble, "trying again");
                    self.view.send_modify(|view| {
                        view.ticket = ticket;
                        view.meet(trouble);
                    });
                    self.looked_at = None;
                    let wait = backoff;
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                    Next::Wait(wait)
                }
            };
            woken = Woken::Called;
            if self.view.borrow().trouble.is_none() && !matches!(next, Next::Again) {
                self.origin = None;
            }
            match next {
                Next::Again => {}
                Next::Wait(time) => tokio::select! {
                    _ = self.pokes.recv() => {}
                    () = self.exits.notified() => {}
                    () = tokio::time::sleep(time) => woken = Woken::ByTime,
                    () = changed(self.probing.as_mut()) => woken = Woken::ByTime,
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
    async fn turn(&mut self, ticket: u64, woken: Woken) -> Result<Next, Failure> {
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
        if !matches!(record.status, Status::Running | Status::NotReady) {
            self.probing = None;
        }
        let over = record.ending.is_some() || record.status == Status::Stopped;
        match record.status {
            // Whatever else is wanted of it by now.
            Status::Pending if record.failure.is_some() => self.give_up(&record).await,
            _ if over => self.end(&record).await,
            Status::Pending => {
                let span = self.span("create", record.generation);
                self.create(&record).instrument(span).await
            }
            Status::Running | Status::NotReady => self.look(&record, woken).await,
            // It holds nothing, unless somebody left something under its id.
            Status::Stopped | Status::Dead => {
                self.clear("clear", Some(&record), Manner::Graceful).await?;
                Ok(Next::Over)
            }
        }
    }

    fn span(&self, verb: &'static str, generation: Generation) -> Span {
        spans::plan(verb, &self.id, generation.0, self.origin.as_ref())
    }

    fn show(&self, record: &SandboxRecord) {
        let record = Arc::new(record.clone());
        self.view.send_modify(|view| {
            view.absent = false;
            view.record = Some(record);
        });
    }

    /// Writes the difference between two records into the sandbox's own log.
    fn tell(&self, before: &SandboxRecord, after: &SandboxRecord) {
        if let Some(log) = self.shared.lifecycle.get() {
            log.tell(Some(before), after);
        }
    }

    /// Removes what an id holds that has no record.
    async fn clear_unrecorded(&self, ticket: u64) -> Result<Next, Failure> {
        self.clear("clear", None, Manner::Graceful).await?;
        self.forget_logs("clear").await?;
        self.view.send_modify(|view| view.leave(ticket));
        Ok(Next::Over)
    }

    async fn create(&mut self, record: &SandboxRecord) -> Result<Next, Failure> {
        let admitted = self.shared.take_admitted(&self.id, record.generation);
        let origin = admitted.map_or_else(Instant::now, |it| it.at);
        let interrupt = CancellationToken::new();
        let mut phases = Vec::new();
        if let Some(it) = admitted {
            phases.push(phase("admit", Duration::ZERO, it.took));
            measure("create", "admit", it.took, &Ok(()));
        }
        if let Some(log) = self.shared.lifecycle.get().filter(|_| admitted.is_some()) {
            log.tell(None, record);
        }
        // A record that was admitted a moment ago over nothing has nothing on the node yet. What is in the way all the
        // same is met by the step that needs its place, and cleared by the undo.
        let seen = match admitted {
            Some(_) => Observed::default(),
            None => self.shared.node.observe(&self.id).await?,
        };
        if let Some(role) = health::unknown(&seen) {
            return Err(shim_silent(role));
        }
        let plan = decide(Goal::Present, &record.spec, &seen);
        let sandbox = record.sandbox();
        let executor = Executor::new("create", &self.shared, &sandbox, &self.exits, &self.view)
            .holding(record);
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
        let mut found = executor.into_found();
        let Ran { ended, phases: ran } = ran;
        phases.extend(ran);
        match ended {
            Ended::Done => {
                self.complete(record, &mut found.images).await?;
                let next = self.succeed(record, found, phases).await?;
                figures::created(admitted, None);
                Ok(next)
            }
            Ended::Interrupted if self.shared.stop.is_cancelled() => {
                // The next manager goes on with it.
                self.write(record, move |it, _| add_phases(it, phases))
                    .await?;
                Ok(Next::Again)
            }
            Ended::Interrupted => {
                self.undo(record, &seen, &plan).await?;
                Ok(Next::Again)
            }
            // Nobody asked for it just now who could ask again.
            Ended::Failed { failure, .. }
                if record.reason == RUNTIME_LOST && failure.retry_after.is_some() =>
            {
                self.undo(record, &seen, &plan).await?;
                Err(failure)
            }
            Ended::Failed { step, failure } => {
                tracing::info!(sandbox = %self.id, %step, "undoing a failed Create");
                figures::created(admitted, Some(&failure));
                self.condemn(record, failure, found.exit, phases).await?;
                self.undo(record, &seen, &plan)
                    .await
                    .inspect_err(|trouble| {
                        tracing::warn!(sandbox = %self.id, %trouble, "the undo is not complete");
                    })?;
                self.bury("create", record).await
            }
        }
    }

    /// Writes down why the Create failed, before anything is taken back: from here on it is only undone, whoever does that.
    /// It is tried until that is written or the manager stops, on a full disk as well: the next look at a record that does
    /// not say so would bring it up once more.
    async fn condemn(
        &self,
        record: &SandboxRecord,
        failure: Failure,
        exit: Option<ExitRecord>,
        phases: Vec<Phase>,
    ) -> Result<(), Failure> {
        self.patiently(|| {
            let (failure, exit, phases) = (failure.clone(), exit.clone(), phases.clone());
            let written = self.write(record, move |it, now| {
                let (reason, message) = (failure.reason.as_str(), failure.message.clone());
                it.enter(Status::Pending, reason, message, now);
                it.failure = Some(failure);
                it.exit = exit;
                it.phases = phases;
            });
            crash::around("create/failed", written)
        })
        .await
    }

    /// Undoes a Create that is known to have failed, and of which a former manager may have undone a part.
    async fn give_up(&self, record: &SandboxRecord) -> Result<Next, Failure> {
        self.clear_patiently(record).await?;
        self.bury("create", record).await
    }

    /// Asks for the digests that a plan did not come by: what stood before it tells them itself.
    async fn complete(
        &self,
        record: &SandboxRecord,
        images: &mut BTreeMap<ContainerName, String>,
    ) -> Result<(), Failure> {
        let known = |name| images.contains_key(name);
        if record.spec.containers.iter().all(|it| known(&it.name)) {
            return Ok(());
        }
        let seen = self.shared.node.runtime.observe(&self.id).await;
        for (role, digest) in seen.map_err(runtime_failure)?.digests {
            if let Role::App(name) = role {
                images.entry(name).or_insert(digest);
            }
        }
        Ok(())
    }

    async fn succeed(
        &mut self,
        record: &SandboxRecord,
        found: Found,
        phases: Vec<Phase>,
    ) -> Result<Next, Failure> {
        self.lead_node_ports(record, &found.ports).await?;
        let now = SystemTime::now();
        let boot_id = self.shared.boot_id.clone();
        let (_, reason, message) = standing(&found.ports, &[]);
        let writing = self
            .shared
            .store
            .update(&self.id, record.generation, now, move |record| {
                record.boot_id = boot_id;
                record.images = found.images;
                add_phases(record, phases);
                found.ports.into_iter().for_each(|it| record.note_port(it));
                // Whoever wants the end of it has been promised that.
                if record.ending.is_none() {
                    record.enter(Status::Running, reason, message, now);
                }
            });
        match crash::around("create/running", writing).await {
            Ok(changed) => {
                self.tell(record, &changed);
                let record = changed;
                let ending = record.ending.is_some();
                self.show(&record);
                self.looked_at = Some(Instant::now());
                let (node, tracker) = (&self.shared.node, &self.shared.tracker);
                let sandbox = record.sandbox();
                self.probing = Some(Probing::new(node, tracker, &sandbox, true, |it| it.period));
                Ok(if ending { Next::Again } else { rest(&record) })
            }
            Err(UpdateError::Gone | UpdateError::NotAllowed(_)) => Ok(Next::Again),
            Err(UpdateError::Store(error)) => Err(store_failure(error)),
        }
    }

    /// Takes back what part of `plan` has run, and makes sure by looking where that does not succeed at once. What stood
    /// before the plan is not the plan's: an undo of it would leave what a former manager made.
    async fn undo(
        &self,
        record: &SandboxRecord,
        before: &Observed,
        plan: &Plan,
    ) -> Result<(), Failure> {
        if *before != Observed::default() {
            return self.clear_patiently(record).await;
        }
        match self.carry_out("undo", &decide::undo(plan)).await {
            Ok(()) => Ok(()),
            Err(_) => self.clear_patiently(record).await,
        }
    }

    /// Clears until all is gone, or until the manager stops.
    async fn clear_patiently(&self, record: &SandboxRecord) -> Result<(), Failure> {
        self.patiently(|| self.clear("undo", Some(record), Manner::AtOnce))
            .await
    }

    /// Does `work` until it succeeds, or until the manager stops, and shows what keeps it from that.
    async fn patiently<W>(&self, work: impl Fn() -> W) -> Result<(), Failure>
    where
        W: Future<Output = Result<(), Failure>>,
    {
        let mut backoff = FIRST_BACKOFF;
        loop {
            match work().await {
                Ok(()) => return Ok(()),
                Err(trouble) if self.shared.stop.is_cancelled() => return Err(trouble),
                Err(trouble) => {
                    self.view.send_modify(|view| view.meet(trouble));
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
    async fn clear(
        &self,
        verb: &'static str,
        record: Option<&SandboxRecord>,
        manner: Manner,
    ) -> Result<(), Failure> {
        let seen = self.shared.node.observe(&self.id).await?;
        let plan = tear_down(record.map(|it| it.spec.as_ref()), &seen, manner);
        self.carry_out(verb, &plan).await
    }

    async fn forget_logs(&self, verb: &str) -> Result<(), Failure> {
        if let Some(log) = self.shared.lifecycle.get() {
            // What is on its way would make the folder again.
            log.forget(&self.id).await;
        }
        let forgotten = self.shared.node.runtime.forget_logs(&self.id);
        crash::around(&format!("{verb}/forget-logs"), forgotten)
            .await
            .map_err(runtime_failure)
    }

    /// Runs a plan that only goes forward; fails with the first failure once all that could run has run.
    async fn carry_out(&self, verb: &'static str, plan: &Plan) -> Result<(), Failure> {
        if plan.is_empty() {
            return Ok(());
        }
        let sandbox = Sandbox::of_id(self.id.clone());
        let executor = Executor::new(verb, &self.shared, &sandbox, &self.exits, &self.view);
        let never = CancellationToken::new();
        let record = self.view.borrow().record.clone();
        let generation = record.map_or(Generation(0), |it| it.generation);
        // Within a Create it is a part of that.
        let span = match Span::current().is_none() {
            true => self.span(verb, generation),
            false => spans::plan(verb, &self.id, generation.0, None),
        };
        let running = run(plan, &executor, OnFailure::GoOn, &never, Instant::now());
        match running.instrument(span.clone()).await.ended {
            Ended::Done | Ended::Interrupted => Ok(()),
            Ended::Failed { step, failure } => {
                spans::fail(&span, failure.reason.as_str(), &failure.message);
                Err(failure.with("held", step))
            }
        }
    }

    /// Tears a sandbox down that has ended or shall end, and closes its record.
    async fn end(&mut self, record: &SandboxRecord) -> Result<Next, Failure> {
        let (verb, reason, message) = match record.ending {
            Some(Ending::Delete) => ("delete", "DELETE_REQUESTED", "it was told to go"),
            Some(Ending::Stop) => ("stop", "STOP_REQUESTED", "it was told to stop"),
            Some(Ending::Expire) => ("expire", "EXPIRED", "its time to live was over"),
            None => ("exit", "", ""),
        };
        if !matches!(record.status, Status::Stopped | Status::Dead) {
            let exit = self.exit_before(record).await?;
            let written = self.write(record, move |it, now| {
                it.exit = exit;
                it.enter(Status::Stopped, reason, message, now)
            });
            crash::around(&format!("{verb}/stopped"), written).await?;
        }
        self.clear(verb, Some(record), Manner::Graceful).await?;
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
            self.forget_logs(verb).await?;
            let now = SystemTime::now();
            let removed = self.shared.store.remove(&self.id, record.generation, now);
            crash::around(&format!("{verb}/remove-record"), removed)
                .await
                .map_err(store_failure)?;
            self.view.send_modify(|view| view.leave(view.ticket));
            return Ok(Next::Over);
        }
        self.bury(verb, &record).await
    }

    /// How it ended by itself before it was told to: the tear-down takes the cause along. A containerd that does not answer
    /// holds up nobody who wants it to end.
    async fn exit_before(&self, record: &SandboxRecord) -> Result<Option<ExitRecord>, Failure> {
        let Ok(seen) = self.shared.node.observe(&self.id).await else {
            return Ok(None);
        };
        match assess(&record.spec, &seen, self.is_of_another_boot(record)) {
            Health::Exited { role, code, at } => {
                self.exit_record(record, role, code, at).await.map(Some)
            }
            Health::Stands
            | Health::Unprepared
            | Health::Lost { .. }
            | Health::Unknown { .. }
            | Health::Gone => Ok(None),
        }
    }

    /// Writes down that nothing is left but the record.
    async fn bury(&self, verb: &str, record: &SandboxRecord) -> Result<Next, Failure> {
        let now = SystemTime::now();
        let buried = self
            .shared
            .store
            .bury(&self.id, record.generation, now, move |record| {
                record.ports.clear();
                // A Delete that came meanwhile still wants the record gone.
                if record.ending != Some(Ending::Delete) {
                    record.ending = None;
                }
                let (reason, message) = (record.reason.clone(), record.message.clone());
                record.enter(Status::Dead, reason, message, now);
            });
        match crash::around(&format!("{verb}/bury"), buried).await {
            Ok(buried) => {
                self.tell(record, &buried);
                Ok(Next::Again)
            }
            Err(UpdateError::Gone | UpdateError::NotAllowed(_)) => Ok(Next::Again),
            Err(UpdateError::Store(error)) => Err(store_failure(error)),
        }
    }

    /// Looks whether a sandbox that should run does, and whether it is reachable.
    async fn look(&mut self, record: &SandboxRecord, woken: Woken) -> Result<Next, Failure> {
        let began = Instant::now();
        let fresh = self.looked_at.is_some_and(|it| it.elapsed() < RESYNC);
        if woken == Woken::ByTime && fresh {
            return self.look_at_ports(record, began).await;
        }
        let seen = self.shared.node.observe(&self.id).await?;
        match assess(&record.spec, &seen, self.is_of_another_boot(record)) {
            Health::Stands => {
                self.looked_at = Some(Instant::now());
                let kills = oom_kills(&self.shared.node, &self.id).await?;
                self.former_kills.note(SystemTime::now(), kills);
                return self.look_at_ports(record, began).await;
            }
            Health::Unprepared => {
                tracing::warn!(sandbox = %self.id, "making its lease, cgroup and files again");
                let sandbox = record.sandbox();
                let prepared = self.shared.node.runtime.prepare(&sandbox).await;
                prepared.map_err(runtime_failure)?;
                return Ok(Next::Again);
            }
            Health::Exited { role, code, at } => {
                let exit = self.exit_record(record, role, code, at).await?;
                let message = exit.describe();
                figures::exited(exit.cause);
                let written = self.write(record, move |it, now| {
                    it.exit = Some(exit);
                    it.enter(
                        Status::Stopped,
                        Reason::ContainerExited.as_str(),
                        message,
                        now,
                    );
                });
                crash::around("exit/stopped", written).await?;
            }
            Health::Lost { role, what } => {
                let message = format!("container {role}: {what}");
                let written = self.write(record, move |it, now| {
                    it.exit = Some(ExitRecord::lost(role, now));
                    it.enter(Status::Stopped, RUNTIME_LOST, message, now);
                });
                crash::around("lost/stopped", written).await?;
            }
            Health::Unknown { role } => return Err(shim_silent(&role)),
            Health::Gone => match record.spec.restart_policy {
                RestartPolicy::Always => {
                    let message = "the node lost it; it is being created again";
                    let boot_id = self.shared.boot_id.clone();
                    let written = self.write(record, move |it, now| {
                        it.boot_id = boot_id;
                        it.restarts = it.restarts.saturating_add(1);
                        it.ports.clear();
                        it.phases.clear();
                        it.enter(Status::Pending, RUNTIME_LOST, message, now);
                    });
                    crash::around("gone/pending", written).await?;
                }
                RestartPolicy::Never => {
                    let message = "the node lost it, and its restart policy is `never`";
                    let written = self.write(record, move |it, now| {
                        it.enter(Status::Stopped, RUNTIME_LOST, message, now);
                    });
                    crash::around("gone/stopped", written).await?;
                }
            },
        }
        Ok(Next::Again)
    }

    /// Where either boot has no name, none is told from another.
    fn is_of_another_boot(&self, record: &SandboxRecord) -> bool {
        let (of, now) = (&record.boot_id, &self.shared.boot_id);
        !of.is_empty() && !now.is_empty() && of != now
    }

    async fn exit_record(
        &self,
        record: &SandboxRecord,
        role: Role,
        code: u32,
        at: SystemTime,
    ) -> Result<ExitRecord, Failure> {
        let former = self.former_kills.of(&role, at);
        let sandbox = record.sandbox();
        exit_record(&self.shared.node, &sandbox, role, code, at, former).await
    }

    /// RUNNING is a word about reachability: it is taken back while a port does not listen or a probe fails.
    async fn look_at_ports(
        &mut self,
        record: &SandboxRecord,
        began: Instant,
    ) -> Result<Next, Failure> {
        let node = &self.shared.node;
        let mut seen = look_at_ports(node, record).await?;
        let probing = self.probing.get_or_insert_with(|| {
            let was_ready = record.status == Status::Running;
            let at_once = |_: &_| Duration::ZERO;
            let tracker = &self.shared.tracker;
            Probing::new(node, tracker, &record.sandbox(), was_ready, at_once)
        });
        let failing = probing.failing();
        let (status, reason, message) = standing(&seen, &failing);
        let lost = (record.status, status) == (Status::Running, Status::NotReady);
        if lost && self.looked_at.is_none_or(|it| it < began) {
            // Its container may have ended, and then that is the news.
            self.looked_at = None;
            return Ok(Next::Again);
        }
        self.lead_node_ports(record, &seen).await?;
        seen.retain(|it| !record.ports.iter().any(|was| was.says_the_same(it)));
        let said = (record.status, record.reason.as_str(), &record.message);
        if !seen.is_empty() || said != (status, reason, &message) {
            let written = self.write(record, move |it, now| {
                seen.into_iter().for_each(|port| it.note_port(port));
                it.enter(status, reason, message, now);
            });
            crash::around("ports/status", written).await?;
        }
        Ok(rest(record))
    }

    /// Has node ports lead to where ports are listened on, where that is not where the record has it.
    async fn lead_node_ports(
        &self,
        record: &SandboxRecord,
        seen: &[PortSighting],
    ) -> Result<(), Failure> {
        let mut after = record.clone();
        seen.iter().for_each(|it| after.note_port(it.clone()));
        let (before, after) = (record.sandbox(), after.sandbox());
        if before.node_ports().eq(after.node_ports()) {
            return Ok(());
        }
        let led = self.shared.node.network.lead_node_ports(&after).await;
        led.map_err(network_failure)
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
            Ok(changed) => {
                self.tell(record, &changed);
                self.show(&changed);
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
        // Looked at first: the poke that told of it may have been taken by somebody who did not get to look.
        match shared.store.get(&record.id).await {
            Ok(Some(it)) if it.generation == record.generation && it.ending.is_none() => {
                view.send_modify(|view| view.record = Some(Arc::new(it)));
            }
            Ok(_) => return,
            // An unreadable store says nothing about what is wanted.
            Err(error) => drop(store_failure(error)),
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            poke = pokes.recv() => if poke.is_none() { return },
        }
    }
}

/// How long a sandbox that runs is left alone.
fn rest(record: &SandboxRecord) -> Next {
    Next::Wait(match record.spec.ports().next() {
        Some(_) => PORT_LOOK,
        None => RESYNC,
    })
}

/// When a probe says something new.
async fn changed<R: Runtime + Images, N: Network>(probing: Option<&mut Probing<R, N>>) {
    match probing {
        Some(it) => it.changed().await,
        None => std::future::pending().await,
    }
}

/// Puts the phases of a plan in place of former ones of the same step: an earlier manager may have made a part.
fn add_phases(record: &mut SandboxRecord, phases: Vec<Phase>) {
    let anew = |it: &Phase| {
        let mut all = phases.iter();
        all.any(|of| (&of.name, &of.container) == (&it.name, &it.container))
    };
    record.phases.retain(|it| !anew(it));
    record.phases.extend(phases);
}

fn phase(name: &str, start: Duration, took: Duration) -> Phase {
    Phase {
        name: name.to_owned(),
        container: String::new(),
        start,
        took,
    }
}

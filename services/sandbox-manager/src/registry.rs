//! Which sandboxes have a task, and how requests reach them: they write down what is wanted, poke, and watch.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{
    Failure, Generation, PortSighting, Reason, SandboxId, SandboxRecord, SandboxSpec, Status,
    record::Ending,
};
use berth_platform::{Images, Network, Runtime};
use berth_store::{AdmitError, Admitted as StoreAdmitted, Store, UpdateError};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    failures::{internal, store_failure},
    node::Node,
    sandbox::{Admitted, SandboxTask, View},
};

/// How often DEAD records are looked through.
const PURGE_EVERY: Duration = Duration::from_secs(5 * 60);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Creates that run at the same time; more of them only wait for the CPU.
    pub(crate) parallel_creates: usize,
    /// How long Delete and Stop wait when the caller sets no deadline.
    pub(crate) end_timeout: Duration,
    /// How long DEAD records stay.
    pub(crate) dead_horizon: Duration,
}

/// What all sandbox tasks share.
pub(crate) struct Shared<R, N> {
    pub(crate) node: Node<R, N>,
    pub(crate) store: Store,
    pub(crate) creates: Semaphore,
    pub(crate) stop: CancellationToken,
    limits: Limits,
    tasks: Mutex<BTreeMap<SandboxId, Handle>>,
    tracker: TaskTracker,
}

struct Handle {
    /// One place: a poke that waits covers every later one.
    poke: mpsc::Sender<()>,
    exits: Arc<Notify>,
    view: watch::Receiver<View>,
    ticket: Arc<AtomicU64>,
    admitted: Option<Admitted>,
}

impl<R, N> Shared<R, N> {
    fn tasks(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Handle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the latest poke.
    pub(crate) fn ticket(&self, id: &SandboxId) -> u64 {
        self.tasks()
            .get(id)
            .map_or(0, |it| it.ticket.load(Ordering::Acquire))
    }

    pub(crate) fn take_admitted(&self, id: &SandboxId) -> Option<Admitted> {
        self.tasks().get_mut(id).and_then(|it| it.admitted.take())
    }

    /// Forgets the task of `id` unless a poke has come meanwhile.
    pub(crate) fn retire(&self, id: &SandboxId, pokes: &mut mpsc::Receiver<()>) -> bool {
        let mut tasks = self.tasks();
        if pokes.try_recv().is_ok() {
            return false;
        }
        tasks.remove(id);
        true
    }
}

/// The sandboxes of this node.
pub(crate) struct Registry<R, N>(Arc<Shared<R, N>>);

impl<R, N> Clone for Registry<R, N> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R: Runtime + Images, N: Network> Registry<R, N> {
    pub(crate) fn new(
        node: Node<R, N>,
        store: Store,
        limits: Limits,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared {
            node,
            store,
            creates: Semaphore::new(limits.parallel_creates),
            stop,
            limits,
            tasks: Mutex::default(),
            tracker: TaskTracker::new(),
        }))
    }

    pub(crate) fn node(&self) -> &Node<R, N> {
        &self.0.node
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    /// Takes up every record, and follows the ends of tasks from here on.
    pub(crate) async fn start(&self) -> Result<(), Failure> {
        let records = self.0.store.all().await.map_err(store_failure)?;
        for record in records {
            if record.status != Status::Dead || record.ending.is_some() {
                self.poke(&record.id, None);
            }
        }
        self.0.tracker.spawn(self.clone().follow_exits());
        self.0.tracker.spawn(self.clone().purge());
        Ok(())
    }

    /// Waits until every task has come to rest. The stop token must be cancelled.
    pub(crate) async fn finish(&self) {
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }

    /// Runs something beside the sandboxes that `finish` waits for.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.tracker.spawn(work);
    }

    /// Wakes the task of `id`, making it where there is none, and returns the poke's number and the view to watch.
    fn poke(&self, id: &SandboxId, admitted: Option<Admitted>) -> (u64, watch::Receiver<View>) {
        let mut tasks = self.0.tasks();
        let handle = tasks.entry(id.clone()).or_insert_with(|| {
            let (poke, pokes) = mpsc::channel(1);
            let (sender, view) = watch::channel(View::default());
            let exits = Arc::new(Notify::new());
            let task = SandboxTask {
                id: id.clone(),
                shared: self.0.clone(),
                pokes,
                exits: exits.clone(),
                view: sender,
            };
            self.0.tracker.spawn(task.drive());
            Handle {
                poke,
                exits,
                view,
                ticket: Arc::default(),
                admitted: None,
            }
        });
        if admitted.is_some() {
            handle.admitted = admitted;
        }
        let ticket = handle.ticket.fetch_add(1, Ordering::AcqRel) + 1;
        // A full mailbox means that the task will look anyway.
        let _ = handle.poke.try_send(());
        (ticket, handle.view.clone())
    }

    /// Makes the record, or joins the one that stands, and returns it as accepted.
    pub(crate) async fn admit(
        &self,
        id: &SandboxId,
        spec: Arc<SandboxSpec>,
    ) -> Result<SandboxRecord, Failure> {
        let at = Instant::now();
        if self.0.stop.is_cancelled() {
            return Err(shutting_down());
        }
        match self.0.store.admit(id, spec, SystemTime::now()).await {
            Ok(StoreAdmitted::Begun(record)) => {
                self.poke(
                    id,
                    Some(Admitted {
                        at,
                        took: at.elapsed(),
                    }),
                );
                Ok(record)
            }
            Ok(StoreAdmitted::Joined(record)) => Ok(record),
            Err(AdmitError::Refused(failure)) => Err(failure),
            Err(AdmitError::Exhausted { capacity, held }) => Err(Failure::new(
                Reason::AddressesExhausted,
                format!("all {capacity} addresses of the subnet are held"),
            )
            .with("capacity", capacity)
            .with("held", held)),
            Err(AdmitError::Store(error)) => Err(store_failure(error)),
        }
    }

    /// Waits until the sandbox of this generation is RUNNING or has failed.
    pub(crate) async fn await_running(
        &self,
        id: &SandboxId,
        generation: Generation,
    ) -> Result<Arc<SandboxRecord>, Failure> {
        self.watch(id, |_, view| {
            let record = view.record.as_ref();
            let unreachable = || {
                let trouble = view.trouble.as_ref();
                trouble
                    .filter(|it| it.reason == Reason::RuntimeUnreachable)
                    .cloned()
                    .map(Err)
            };
            match record {
                None if view.absent => Some(Err(cancelled(id))),
                None => unreachable(),
                Some(it) if it.generation < generation => None,
                Some(it) if it.generation > generation => Some(Err(cancelled(id))),
                Some(it) => match it.status {
                    Status::Dead => Some(Err(it.failure.clone().unwrap_or_else(|| cancelled(id)))),
                    _ if it.ending.is_some() => Some(Err(cancelled(id))),
                    Status::Running => Some(Ok(it.clone())),
                    Status::Stopped => Some(Err(cancelled(id))),
                    Status::Pending | Status::NotReady => unreachable(),
                },
            }
        })
        .await
    }

    /// Ends the sandbox and returns its record, DEAD.
    pub(crate) async fn stop(
        &self,
        id: &SandboxId,
        expected: Option<Generation>,
    ) -> Result<Arc<SandboxRecord>, Failure> {
        let record = self.promise_end(id, expected, Ending::Stop).await?;
        let Some(record) = record else {
            return Err(not_found(id));
        };
        if record.status == Status::Dead {
            return Ok(Arc::new(record));
        }
        let generation = record.generation;
        let ended = self.watch(id, |ticket, view| match &view.record {
            Some(it) if it.generation > generation => Some(Err(cancelled(id))),
            Some(it) if it.generation == generation && it.status == Status::Dead => {
                Some(Ok(it.clone()))
            }
            None if view.absent && view.ticket >= ticket => Some(Err(not_found(id))),
            Some(_) | None => None,
        });
        self.bounded(id, ended).await
    }

    /// Removes the sandbox and its record; returns whether there was one.
    pub(crate) async fn delete(
        &self,
        id: &SandboxId,
        expected: Option<Generation>,
    ) -> Result<bool, Failure> {
        let record = self.promise_end(id, expected, Ending::Delete).await?;
        let generation = record.as_ref().map(|it| it.generation);
        let gone = self.watch(id, |ticket, view| match &view.record {
            // Without a record when it was asked, one that is there is somebody's new Create.
            Some(it) => generation
                .is_none_or(|of| it.generation > of)
                .then_some(Ok(())),
            None => (view.absent && view.ticket >= ticket).then_some(Ok(())),
        });
        self.bounded(id, gone).await?;
        Ok(record.is_some())
    }

    /// Writes down that the sandbox shall end. A Delete outranks a Stop; a DEAD record has nothing to stop.
    async fn promise_end(
        &self,
        id: &SandboxId,
        expected: Option<Generation>,
        ending: Ending,
    ) -> Result<Option<SandboxRecord>, Failure> {
        let store = &self.0.store;
        // The record may be replaced between the look and the write, but not for ever.
        for _ in 0..8 {
            let Some(record) = store.get(id).await.map_err(store_failure)? else {
                return Ok(None);
            };
            if let Some(expected) = expected.filter(|it| *it != record.generation) {
                return Err(generation_conflict(id, expected, record.generation));
            }
            if ending == Ending::Stop && record.status == Status::Dead {
                return Ok(Some(record));
            }
            let wanted = store.update(id, record.generation, SystemTime::now(), move |record| {
                if record.ending != Some(Ending::Delete) {
                    record.ending = Some(ending);
                }
            });
            match wanted.await {
                Ok(record) => return Ok(Some(record)),
                Err(UpdateError::Gone | UpdateError::NotAllowed(_)) => {}
                Err(UpdateError::Store(error)) => return Err(store_failure(error)),
            }
        }
        Err(internal("the record changes faster than it can be written"))
    }

    /// Takes the word of a reporter about a port.
    pub(crate) async fn report_port(
        &self,
        id: &SandboxId,
        expected: Option<Generation>,
        sighting: PortSighting,
    ) -> Result<(), Failure> {
        let unknown = || {
            Failure::new(
                Reason::ContainerNotFound,
                format!("sandbox {id} has no container {}", sighting.container),
            )
        };
        let record = self.0.store.get(id).await.map_err(store_failure)?;
        let live = |it: &SandboxRecord| !matches!(it.status, Status::Dead | Status::Stopped);
        let record = record.filter(live).ok_or_else(unknown)?;
        if record.spec.container(&sighting.container).is_none() {
            return Err(unknown());
        }
        if let Some(expected) = expected.filter(|it| *it != record.generation) {
            return Err(generation_conflict(id, expected, record.generation));
        }
        let change = move |record: &mut SandboxRecord| {
            let same = |it: &PortSighting| {
                (&it.container, it.port, it.protocol)
                    == (&sighting.container, sighting.port, sighting.protocol)
            };
            record.ports.retain(|it| !same(it));
            // Any reporter may name any port, but a record holds only so many.
            if record.ports.len() < PORT_SIGHTINGS_MAX {
                record.ports.push(sighting);
            }
        };
        match self
            .0
            .store
            .update(id, record.generation, SystemTime::now(), change)
            .await
        {
            Ok(_) => {
                self.poke(id, None);
                Ok(())
            }
            Err(UpdateError::Gone | UpdateError::NotAllowed(_)) => Err(not_found(id)),
            Err(UpdateError::Store(error)) => Err(store_failure(error)),
        }
    }

    /// Whether a plan may be running for the sandbox of this record.
    pub(crate) fn is_busy(&self, record: &SandboxRecord) -> bool {
        match record.status {
            Status::Pending | Status::Stopped => true,
            Status::Running | Status::NotReady | Status::Dead => record.ending.is_some(),
        }
    }

    /// Pokes the task of `id` and waits until `settled` has an answer.
    async fn watch<T>(
        &self,
        id: &SandboxId,
        settled: impl Fn(u64, &View) -> Option<Result<T, Failure>>,
    ) -> Result<T, Failure> {
        loop {
            let (ticket, mut view) = self.poke(id, None);
            loop {
                let answer = settled(ticket, &view.borrow_and_update());
                if let Some(answer) = answer {
                    return answer;
                }
                tokio::select! {
                    changed = view.changed() => if changed.is_err() { break },
                    () = self.0.stop.cancelled() => return Err(shutting_down()),
                }
            }
            // The task has retired; its last word may be the answer.
            if let Some(answer) = settled(ticket, &view.borrow()) {
                return answer;
            }
        }
    }

    /// Ends the wait for an end when it takes too long, with what is in its way.
    async fn bounded<T>(
        &self,
        id: &SandboxId,
        end: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.0.limits.end_timeout, end).await {
            Ok(answer) => answer,
            Err(_) => Err(self.overdue(id)),
        }
    }

    /// What a caller is told whose patience ends before the sandbox does.
    pub(crate) fn overdue(&self, id: &SandboxId) -> Failure {
        let trouble = self
            .0
            .tasks()
            .get(id)
            .and_then(|handle| handle.view.borrow().trouble.clone());
        match trouble {
            Some(it) if it.reason == Reason::RuntimeUnreachable => it,
            Some(it) => {
                let held = it.metadata.get("held").cloned().unwrap_or_default();
                Failure::new(
                    Reason::DeadlinePassed,
                    format!("sandbox {id} is not gone yet, the work goes on: {held}: {it}"),
                )
                .with("held", held)
            }
            None => Failure::new(
                Reason::DeadlinePassed,
                format!("sandbox {id} is not gone yet, the work goes on"),
            )
            .with("held", "containers that take their time to end"),
        }
    }

    async fn follow_exits(self) {
        let mut hints = self.0.node.runtime.follow_exits();
        loop {
            let hint = tokio::select! {
                hint = hints.recv() => hint,
                () = self.0.stop.cancelled() => return,
            };
            let Some(hint) = hint else { return };
            let tasks = self.0.tasks();
            match hint {
                Some(id) => tasks
                    .get(&id)
                    .into_iter()
                    .for_each(|it| it.exits.notify_one()),
                None => tasks.values().for_each(|it| it.exits.notify_one()),
            }
        }
    }

    /// Removes records that have been DEAD for the horizon.
    async fn purge(self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(PURGE_EVERY.min(self.0.limits.dead_horizon)) => {}
                () = self.0.stop.cancelled() => return,
            }
            let Ok(records) = self.0.store.all().await.map_err(store_failure) else {
                continue;
            };
            let now = SystemTime::now();
            for record in records {
                let rested = now.duration_since(record.updated_at).unwrap_or_default();
                if record.status == Status::Dead && rested >= self.0.limits.dead_horizon {
                    let generation = Some(record.generation);
                    if self
                        .promise_end(&record.id, generation, Ending::Delete)
                        .await
                        .is_ok()
                    {
                        self.poke(&record.id, None);
                    }
                }
            }
        }
    }
}

/// A record of one sandbox names at most 32 containers with 64 ports each.
const PORT_SIGHTINGS_MAX: usize = 2048;

pub(crate) fn not_found(id: &SandboxId) -> Failure {
    Failure::new(Reason::SandboxNotFound, format!("no sandbox {id}")).with("id", id)
}

fn cancelled(id: &SandboxId) -> Failure {
    Failure::new(
        Reason::CreateCancelled,
        format!("sandbox {id} was stopped or deleted before it was RUNNING"),
    )
}

fn shutting_down() -> Failure {
    Failure::new(Reason::ShuttingDown, "the manager is stopping")
        .retry_after(Duration::from_secs(2))
}

fn generation_conflict(id: &SandboxId, expected: Generation, actual: Generation) -> Failure {
    Failure::new(
        Reason::GenerationConflict,
        format!("sandbox {id} has generation {actual}, not {expected}"),
    )
    .with("expected", expected)
    .with("actual", actual)
}

#[cfg(test)]
mod tests;

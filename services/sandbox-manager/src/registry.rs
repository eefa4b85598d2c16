//! Which sandboxes have a task, and how requests reach them: they write down what is wanted, poke, and watch.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{
    Egress, Failure, Generation, ImageRef, NetworkPolicy, Protocol, Reason, Sandbox, SandboxId,
    SandboxRecord, SandboxSpec, Status, Violation,
};
use berth_platform::{Images, Network, Runtime};
use berth_store::{Admitted as StoreAdmitted, Arrival, Store, StoreError};
use berth_telemetry::spans::Origin;
use tokio::sync::{Notify, RwLock, Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    collecting::{self, Collecting},
    crash,
    failures::{admit_failure, exited, internal, network_failure, store_failure},
    lifecycle::LifecycleLog,
    node::Node,
    oom::FormerKills,
    sandbox::{Admitted, SandboxTask},
    sweep,
    view::{Doing, Trouble, View},
};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Tasks that are created at the same time; more of them only wait for the CPU.
    pub(crate) task_creations: usize,
    /// Sandboxes that have a record, however they are.
    pub(crate) sandboxes: u64,
    /// How long Delete and Stop wait when the caller sets no deadline.
    pub(crate) end_timeout: Duration,
    /// How long DEAD records stay.
    pub(crate) dead_horizon: Duration,
    /// How often they are looked through.
    pub(crate) purge_interval: Duration,
}

/// What a Create asks for beside the spec.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CreateTerms {
    pub(crate) expected: Option<Generation>,
    pub(crate) time_to_live: Option<Duration>,
}

/// What all sandbox tasks share.
pub(crate) struct Shared<R, N> {
    pub(crate) node: Node<R, N>,
    pub(crate) store: Store,
    pub(crate) task_creations: Semaphore,
    pub(crate) stop: CancellationToken,
    /// As the kernel names this boot.
    pub(crate) boot_id: String,
    /// Where sandboxes are told of; without it, nowhere.
    pub(crate) lifecycle: OnceLock<LifecycleLog>,
    /// Shared by admissions and by all else that takes hold of an image or a blob, alone for a removal: it looks who holds what
    /// it removes, and that stays true.
    images: RwLock<()>,
    collecting: Arc<Collecting>,
    limits: Limits,
    tasks: Mutex<BTreeMap<SandboxId, Handle>>,
    pub(crate) tracker: TaskTracker,
    /// Other addresses are given next than before, and no record says so.
    addresses: Notify,
}

struct Handle {
    /// One place: a poke that waits covers every later one.
    poke: mpsc::Sender<()>,
    exits: Arc<Notify>,
    view: watch::Receiver<View>,
    ticket: Arc<AtomicU64>,
    admitted: Option<Admitted>,
    /// The call that wants something of it.
    origin: Option<Origin>,
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

    /// What is known of the admission of this generation.
    pub(crate) fn take_admitted(&self, id: &SandboxId, generation: Generation) -> Option<Admitted> {
        let admitted = self.tasks().get_mut(id)?.admitted.take();
        admitted.filter(|it| it.generation == generation)
    }

    /// The latest call that wants something of the sandbox, once.
    pub(crate) fn take_origin(&self, id: &SandboxId) -> Option<Origin> {
        self.tasks().get_mut(id)?.origin.take()
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
        boot_id: String,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared {
            node,
            store,
            task_creations: Semaphore::new(limits.task_creations),
            stop,
            boot_id,
            lifecycle: OnceLock::new(),
            images: RwLock::default(),
            collecting: Arc::new(Collecting::new()),
            limits,
            tasks: Mutex::default(),
            tracker: TaskTracker::new(),
            addresses: Notify::new(),
        }))
    }

    /// From here on, what happens to a sandbox is written into its log.
    pub(crate) fn tell_lifecycle(&self, log: LifecycleLog) {
        // The first one stays.
        let _ = self.0.lifecycle.set(log);
    }

    pub(crate) fn node(&self) -> &Node<R, N> {
        &self.0.node
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn image_lock(&self) -> &RwLock<()> {
        &self.0.images
    }

    pub(crate) fn collecting(&self) -> &Arc<Collecting> {
        &self.0.collecting
    }

    /// Takes up every record, and follows the ends of tasks from here on.
    pub(crate) async fn start(&self) -> Result<(), Failure> {
        let records = crash::around("start/records", self.0.store.all()).await;
        let records = records.map_err(store_failure)?;
        // What has an address has a place in the rules of the node, before anybody is served.
        let placed = records.iter().filter(|it| !it.addresses.is_empty());
        let mut placed: Vec<_> = placed.map(SandboxRecord::sandbox).collect();
        placed.extend(self.unreadable().await.map_err(store_failure)?);
        let restored = self.node().network.restore(placed).await;
        restored.map_err(network_failure)?;
        for record in records {
            if record.status != Status::Dead || record.ending.is_some() {
                self.wake(&record.id);
            }
        }
        let Limits {
            purge_interval,
            dead_horizon,
            ..
        } = self.0.limits;
        self.spawn(self.clone().follow_exits());
        self.spawn(sweep::purge(self.clone(), purge_interval, dead_horizon));
        self.spawn(sweep::expire(self.clone()));
        self.spawn(collecting::give_up(self.clone()));
        Ok(())
    }

    /// The sandboxes whose record cannot be read. What they may reach is not known, so it is nothing; they are reached from
    /// the node as ever.
    async fn unreadable(&self) -> Result<Vec<Sandbox>, StoreError> {
        let unreadable = self.0.store.unreadable().await?;
        let leases = self.0.store.leases().await?;
        let subnets = self.0.store.subnets();
        let policy = NetworkPolicy {
            egress: Egress::Deny,
            ..NetworkPolicy::default()
        };
        let spec = Arc::new(SandboxSpec {
            network: policy,
            ..SandboxSpec::default()
        });
        let sandbox = |id: SandboxId| Sandbox {
            addresses: leases
                .iter()
                .filter(|it| it.owner == id && it.released_at.is_none())
                .flat_map(|it| subnets.addresses(it.address))
                .collect(),
            spec: spec.clone(),
            ..Sandbox::of_id(id)
        };
        let ids = unreadable.into_iter().filter_map(|it| it.sandbox);
        Ok(ids.map(sandbox).collect())
    }

    pub(crate) fn boot_id(&self) -> &str {
        &self.0.boot_id
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.0.stop.is_cancelled()
    }

    /// Ends when the manager stops.
    pub(crate) fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.stop.clone().cancelled_owned()
    }

    /// Tells whoever prepares for the addresses that are given next.
    pub(crate) fn addresses_changed(&self) {
        self.0.addresses.notify_one();
    }

    pub(crate) async fn until_addresses_change(&self) {
        self.0.addresses.notified().await;
    }

    /// Waits so long, or until the manager stops.
    pub(crate) async fn pause(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.0.stop.cancelled() => {}
        }
    }

    /// Makes the task of `id` look again.
    pub(crate) fn wake(&self, id: &SandboxId) {
        self.poke(id, None);
    }

    /// What keeps sandboxes from getting on.
    pub(crate) fn troubles(&self) -> Vec<(SandboxId, Trouble)> {
        let tasks = self.0.tasks();
        tasks
            .iter()
            .filter_map(|(id, it)| Some((id.clone(), it.view.borrow().trouble.clone()?)))
            .collect()
    }

    /// How many sandboxes were not seen yet.
    pub(crate) fn not_looked_at(&self) -> usize {
        let tasks = self.0.tasks();
        tasks.values().filter(|it| !it.view.borrow().looked).count()
    }

    /// What is being done for `id` at this moment.
    pub(crate) fn doing(&self, id: &SandboxId) -> Vec<Doing> {
        let tasks = self.0.tasks();
        let task = tasks.get(id);
        task.map(|it| it.view.borrow().doing.clone())
            .unwrap_or_default()
    }

    /// Whether the sandbox has a task that is not done with it.
    pub(crate) fn is_at_work(&self, id: &SandboxId) -> bool {
        self.0.tasks().contains_key(id)
    }

    /// What keeps this sandbox from getting on.
    pub(crate) fn trouble(&self, id: &SandboxId) -> Option<Failure> {
        let tasks = self.0.tasks();
        let trouble = tasks.get(id)?.view.borrow().trouble.clone();
        trouble.map(|it| it.failure)
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

    /// Does what a request has begun to its end, whether or not its caller waits to hear of it: a promise that was written
    /// down and that no task was told of would be nobody's.
    pub(crate) async fn see_through<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        let work = work.instrument(tracing::Span::current());
        let done = self.0.tracker.spawn(work).await;
        done.unwrap_or_else(|_| Err(internal("the work on this call broke off")))
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
                looked_at: None,
                former_kills: FormerKills::default(),
                probing: None,
                origin: None,
            };
            let guard = Forget {
                shared: self.0.clone(),
                id: id.clone(),
            };
            self.0.tracker.spawn(async move {
                let _guard = guard;
                task.drive().await;
            });
            Handle {
                poke,
                exits,
                view,
                ticket: Arc::default(),
                admitted: None,
                origin: None,
            }
        });
        if let Some(origin) = Origin::current() {
            handle.origin = Some(origin);
        }
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
        terms: CreateTerms,
    ) -> Result<SandboxRecord, Failure> {
        if self.0.stop.is_cancelled() {
            return Err(shutting_down());
        }
        let (registry, id) = (self.clone(), id.clone());
        self.see_through(async move { registry.promise_create(&id, spec, terms).await })
            .await
    }

    async fn promise_create(
        &self,
        id: &SandboxId,
        spec: Arc<SandboxSpec>,
        terms: CreateTerms,
    ) -> Result<SandboxRecord, Failure> {
        let at = Instant::now();
        let now = SystemTime::now();
        self.can_carry_out(&spec).await?;
        let mut arrival = Arrival {
            held_images: BTreeMap::new(),
            node_listens: self.node_listens(&spec).await?,
            expected: terms.expected,
            expires_at: terms.time_to_live.map(|it| now + it),
            boot_id: self.0.boot_id.clone(),
            records_max: Some(self.0.limits.sandboxes),
        };
        let admitted = {
            let _no_removal = self.0.images.read().await;
            arrival.held_images = self.images_here(&spec).await;
            let admitted = self.0.store.admit(id, spec, arrival, now);
            crash::around("create/promise", admitted).await
        };
        match admitted {
            Ok(StoreAdmitted::Begun(record)) => {
                let admitted = Admitted {
                    generation: record.generation,
                    at,
                    took: at.elapsed(),
                };
                self.poke(id, Some(admitted));
                Ok(record)
            }
            Ok(StoreAdmitted::Joined(record)) => Ok(record),
            Err(error) => Err(admit_failure(error)),
        }
    }

    /// Digests of the images of `spec` that are on the node. One that is not, or of which nobody can say, is held by its
    /// name until it is.
    async fn images_here(&self, spec: &SandboxSpec) -> BTreeMap<ImageRef, String> {
        let mut here = BTreeMap::new();
        for image in spec.images() {
            if let Ok(Some(digest)) = self.node().runtime.image_digest(image).await {
                here.insert(image.clone(), digest);
            }
        }
        here
    }

    /// Refuses what only the rules of a node carry out, on one that can have none.
    async fn can_carry_out(&self, spec: &SandboxSpec) -> Result<(), Failure> {
        let fields = spec.fenced_fields();
        if fields.is_empty() {
            return Ok(());
        }
        let fencing = self.node().network.fencing().await;
        if fencing.map_err(network_failure)?.is_some() {
            return Ok(());
        }
        let violation = |field| Violation {
            field,
            problem: "cannot be kept: the kernel of this node has no nftables NAT".to_owned(),
        };
        let violations = fields.into_iter().map(violation).collect();
        Err(Failure::of_violations(Reason::UnsupportedField, violations))
    }

    /// The ports on which programs of the node listen, as far as `spec` asks for some.
    async fn node_listens(&self, spec: &SandboxSpec) -> Result<BTreeSet<(Protocol, u16)>, Failure> {
        if spec.claimed_ports().next().is_none() {
            return Ok(BTreeSet::new());
        }
        let listens = self.node().network.node_listens().await;
        let listens = listens.map_err(network_failure)?.into_iter();
        Ok(listens.map(|it| (it.protocol, it.port)).collect())
    }

    /// Waits until the sandbox of this generation is RUNNING or has failed.
    pub(crate) async fn await_running(
        &self,
        id: &SandboxId,
        generation: Generation,
    ) -> Result<Arc<SandboxRecord>, Failure> {
        self.watch(id, |ticket, view| {
            let record = view.record.as_ref();
            let unreachable = || {
                let trouble = view.trouble.as_ref().map(|it| &it.failure);
                trouble
                    .filter(|it| it.reason == Reason::RuntimeUnreachable)
                    .cloned()
                    .map(Err)
            };
            match record {
                // Only a look behind our own question counts: before it there may have been nothing.
                None if view.absent && view.ticket >= ticket => Some(Err(cancelled(id))),
                None if view.absent => None,
                None => unreachable(),
                Some(it) if it.generation < generation => None,
                Some(it) if it.generation > generation => Some(Err(cancelled(id))),
                Some(it) => match it.status {
                    Status::Dead if it.failure.is_some() => it.failure.clone().map(Err),
                    // It was RUNNING: what has become of it since is not the Create's to say.
                    Status::Running | Status::NotReady if it.ending.is_none() => {
                        Some(Ok(it.clone()))
                    }
                    // It was so short that nobody saw it: its end tells more than that it was.
                    Status::Stopped | Status::Dead if it.exit.is_some() => {
                        it.exit.as_ref().map(|exit| Err(exited(exit, "as soon as")))
                    }
                    Status::Pending if it.ending.is_none() => unreachable(),
                    Status::Pending
                    | Status::Running
                    | Status::NotReady
                    | Status::Stopped
                    | Status::Dead => Some(Err(cancelled(id))),
                },
            }
        })
        .await
    }

    /// Waits until the sandbox of this generation has ended, is told to end, or the manager stops; says which.
    pub(crate) async fn until_over(&self, id: &SandboxId, generation: Generation) -> Failure {
        let over = self.watch(id, |ticket, view| {
            let over = match &view.record {
                None => view.absent && view.ticket >= ticket,
                Some(it) => {
                    let ended = matches!(it.status, Status::Stopped | Status::Dead);
                    it.generation > generation || ended || it.ending.is_some()
                }
            };
            over.then_some(Ok(()))
        });
        over.await.map_or_else(|failure| failure, |()| ending(id))
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
        patience: Option<Duration>,
        end: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let patience = patience.unwrap_or(self.0.limits.end_timeout);
        match tokio::time::timeout(patience, end).await {
            Ok(answer) => answer,
            Err(_) => Err(self.overdue(id)),
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
}

/// Forgets a task that ended without retiring: one that panicked must not keep its id.
struct Forget<R, N> {
    shared: Arc<Shared<R, N>>,
    id: SandboxId,
}

impl<R, N> Drop for Forget<R, N> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.tasks().remove(&self.id);
        }
    }
}

pub(crate) fn not_found(id: &SandboxId) -> Failure {
    Failure::new(Reason::SandboxNotFound, format!("no sandbox {id}")).with("id", id)
}

pub(crate) fn ending(id: &SandboxId) -> Failure {
    Failure::new(
        Reason::SandboxEnding,
        format!("sandbox {id} has ended or is ending"),
    )
}

fn cancelled(id: &SandboxId) -> Failure {
    Failure::new(
        Reason::CreateCancelled,
        format!("sandbox {id} was stopped or deleted before it was RUNNING"),
    )
}

pub(crate) fn shutting_down() -> Failure {
    Failure::new(Reason::ShuttingDown, "the manager is stopping")
        .retry_after(Duration::from_secs(2))
}

pub(crate) fn generation_conflict(
    id: &SandboxId,
    expected: Generation,
    actual: Generation,
) -> Failure {
    Failure::new(
        Reason::GenerationConflict,
        format!("sandbox {id} has generation {actual}, not {expected}"),
    )
    .with("expected", expected)
    .with("actual", actual)
}

mod ending;
mod reports;

pub(crate) use self::reports::{Meant, Word};

#[cfg(test)]
mod adopted;
#[cfg(test)]
mod half_written;
#[cfg(test)]
mod tests;

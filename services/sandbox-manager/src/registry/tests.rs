//! What requests get from the tasks of sandboxes, with a real store and the fake node. This file has what the tests stand
//! on: a manager's store and node, which outlive it, and waits that end.

mod create;
mod end;
mod ready;
mod restart;
mod running;

use std::{net::SocketAddr, sync::LazyLock};

use berth_domain::{
    ContainerName, Goal, ImageRef, Observed, Role, Step,
    decide::{self, decide, stands},
    record::Ending,
};
use berth_platform::{contract::Subject, fake::FakeNode};
use tempfile::TempDir;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);
/// Long beside everything that a test waits for: what only ends by this does not end in time.
const PORT_WAIT: Duration = Duration::from_secs(60);
const PORT: u16 = 8080;

/// What outlives a manager.
struct Ground {
    store: Store,
    node: FakeNode,
    _dir: TempDir,
}

/// One start of a manager.
struct Manager {
    registry: Registry<FakeNode, FakeNode>,
    node: FakeNode,
    stop: CancellationToken,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("test.redb");
        let store = Store::open(&file, "10.9.0.0/24".parse().unwrap(), Duration::ZERO).unwrap();
        let node = FakeNode::default();
        node.add_image(&image());
        Self {
            store,
            node,
            _dir: dir,
        }
    }

    async fn manager(&self) -> Manager {
        self.manager_with(limits()).await
    }

    async fn manager_with(&self, limits: Limits) -> Manager {
        let seams = Node {
            runtime: Arc::new(self.node.clone()),
            network: Arc::new(self.node.clone()),
        };
        let stop = CancellationToken::new();
        let registry = Registry::new(
            seams,
            self.store.clone(),
            limits,
            String::new(),
            stop.clone(),
        );
        within("the start", registry.start()).await.unwrap();
        Manager {
            registry,
            node: self.node.clone(),
            stop,
        }
    }

    async fn record(&self, id: &SandboxId) -> Option<SandboxRecord> {
        self.store.get(id).await.unwrap()
    }

    /// Waits for the record to be as asked, and returns it.
    async fn until(
        &self,
        what: &str,
        id: &SandboxId,
        state: impl Fn(&SandboxRecord) -> bool,
    ) -> SandboxRecord {
        let reached = async {
            loop {
                match self.record(id).await.filter(&state) {
                    Some(record) => return record,
                    None => tokio::time::sleep(POLL).await,
                }
            }
        };
        within(what, reached).await
    }

    async fn until_status(&self, id: &SandboxId, status: Status) -> SandboxRecord {
        let what = format!("{id} is {status}");
        self.until(&what, id, |it| it.status == status).await
    }

    /// Nothing is on the node, and no address is held.
    async fn assert_nothing_left(&self, case: &str) {
        assert_eq!(self.node.leftovers(), Vec::<String>::new(), "{case}");
        let counts = self.store.lease_counts().await.unwrap();
        assert_eq!(counts.held, 0, "{case}: addresses");
    }

    /// As above, and no record and no output either.
    async fn assert_gone(&self, id: &SandboxId, case: &str) {
        assert_eq!(self.record(id).await, None, "{case}");
        assert!(!self.node.has_logs(id), "{case}: output");
        self.assert_nothing_left(case).await;
    }
}

impl Manager {
    async fn admit(&self, id: &SandboxId) -> SandboxRecord {
        within(
            "the admission",
            self.registry.admit(id, spec(), CreateTerms::default()),
        )
        .await
        .unwrap()
    }

    async fn await_running(&self, record: &SandboxRecord) -> Result<Arc<SandboxRecord>, Failure> {
        let running = self.registry.await_running(&record.id, record.generation);
        within("an answer to the Create", running).await
    }

    /// As a Create that waits.
    async fn create(&self, id: &SandboxId) -> Result<Arc<SandboxRecord>, Failure> {
        let record = self.admit(id).await;
        self.await_running(&record).await
    }

    async fn delete(&self, id: &SandboxId) -> Result<bool, Failure> {
        within(
            "an answer to the Delete",
            self.registry.delete(id, None, None),
        )
        .await
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<Arc<SandboxRecord>, Failure> {
        within("an answer to the Stop", self.registry.stop(id, None, None)).await
    }

    /// Waits until the node has been asked for this.
    async fn until_called(&self, operation: &str) {
        let called = || {
            let calls = self.node.calls();
            calls.iter().any(|it| it.starts_with(operation))
        };
        until(operation, async || called()).await;
    }

    async fn stands(&self, record: &SandboxRecord) -> bool {
        let seen = self.registry.node().observe(&record.id).await.unwrap();
        stands(&record.spec, &seen)
    }

    /// Stops the manager as a signal does, and waits until it has come to rest.
    async fn shut_down(self) {
        self.stop.cancel();
        within("the tasks to rest", self.registry.finish()).await;
    }
}

fn limits() -> Limits {
    Limits {
        task_creations: 4,
        sandboxes: 1000,
        purge_interval: Duration::from_millis(20),
        end_timeout: DEADLINE,
        dead_horizon: Duration::from_secs(3600),
    }
}

fn web() -> &'static SandboxId {
    static WEB: LazyLock<SandboxId> = LazyLock::new(|| id("web"));
    &WEB
}

fn id(text: &str) -> SandboxId {
    SandboxId::parse(text).unwrap()
}

fn app() -> Role {
    Role::App(ContainerName::parse("app").unwrap())
}

fn image() -> ImageRef {
    ImageRef::parse("app").unwrap()
}

/// One container `app` that listens on one port.
fn spec() -> Arc<SandboxSpec> {
    changed_spec(|_| {})
}

fn changed_spec(change: impl FnOnce(&mut SandboxSpec)) -> Arc<SandboxSpec> {
    let subject = Subject {
        image: image(),
        addresses: vec!["10.9.0.2/24".parse().unwrap()],
    };
    let mut spec = SandboxSpec::clone(&subject.sandbox("web").spec);
    spec.port_wait_timeout = PORT_WAIT;
    change(&mut spec);
    Arc::new(spec)
}

/// A socket that others reach.
fn everywhere() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], PORT))
}

/// The steps that make a sandbox.
fn bring_up() -> Vec<Step> {
    steps_of(&decide(Goal::Present, &spec(), &Observed::default()))
}

/// The steps that take it away again.
fn tear_down() -> Vec<Step> {
    let plan = decide(Goal::Present, &spec(), &Observed::default());
    steps_of(&decide::undo(&plan))
}

fn steps_of(plan: &berth_domain::Plan) -> Vec<Step> {
    plan.steps().iter().map(|it| it.step.clone()).collect()
}

/// What the fake node is asked for to carry a step out for `id`.
fn operation(step: &Step, id: &SandboxId) -> String {
    match step {
        Step::EnsureImage(image) => format!("ensure {image}"),
        Step::Prepare => format!("prepare {id}"),
        Step::OpenNamespaces => format!("open_namespaces {id}"),
        Step::AttachLink => format!("attach_link {id}"),
        Step::CreateContainer(role) => format!("create_container {id} {role}"),
        Step::CreateTask(role) => format!("create_task {id} {role}"),
        Step::StartTask(role) => format!("start_task {id} {role}"),
        Step::AwaitReady => format!("listening {id}"),
        Step::StopTask { role, .. } => format!("stop_task {id} {role}"),
        Step::DeleteTask(role) => format!("delete_task {id} {role}"),
        Step::RemoveContainer(role) => format!("remove_container {id} {role}"),
        Step::DetachLink => format!("detach_link {id}"),
        Step::CloseNamespaces => format!("close_namespaces {id}"),
        Step::Release => format!("release {id}"),
    }
}

/// Waits until the node is at a step that hangs. A look at ports leaves no call: then at what goes before it.
async fn until_at(manager: &Manager, step: &Step, id: &SandboxId) {
    if *step != Step::AwaitReady {
        return manager.until_called(&operation(step, id)).await;
    }
    for role in [app(), Role::Pause] {
        let before = operation(&Step::StartTask(role), id);
        manager.until_called(&before).await;
    }
}

async fn until(what: &str, mut state: impl AsyncFnMut() -> bool) {
    let reached = async {
        while !state().await {
            tokio::time::sleep(POLL).await;
        }
    };
    within(what, reached).await;
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(done) => done,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

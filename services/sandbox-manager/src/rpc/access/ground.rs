//! What the tests of calls into a sandbox stand on: a real store, the fake node, and a sandbox that runs.

use std::{sync::Arc, time::Duration};

use berth_domain::{ContainerName, ImageRef, Role, SandboxId};
use berth_platform::{contract::Subject, fake::FakeNode};
use berth_store::Store;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::{
    node::Node,
    registry::{CreateTerms, Limits, Registry},
};

const LONG: Duration = Duration::from_secs(600);
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Ground {
    pub(crate) registry: Registry<FakeNode, FakeNode>,
    pub(crate) node: FakeNode,
    pub(crate) stop: CancellationToken,
    /// The root of the container of `web`.
    pub(crate) root: TempDir,
    _dir: TempDir,
}

impl Ground {
    /// With the sandbox `web`, whose container `app` listens on 8080.
    pub(crate) async fn new() -> Self {
        let (dir, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let subnet = "10.9.0.0/28".parse().unwrap();
        let store = Store::open(&dir.path().join("s"), subnet, LONG).unwrap();
        let node = FakeNode::default();
        let subject = Subject {
            image: ImageRef::parse("busybox").unwrap(),
            addresses: vec!["10.9.0.2/28".parse().unwrap()],
        };
        node.add_image(&subject.image);
        let seams = Node {
            runtime: Arc::new(node.clone()),
            network: Arc::new(node.clone()),
        };
        let limits = Limits {
            task_creations: 1,
            sandboxes: 1000,
            end_timeout: LONG,
            dead_horizon: LONG,
            purge_interval: LONG,
        };
        let stop = CancellationToken::new();
        let registry = Registry::new(seams, store, limits, String::new(), stop.clone());
        registry.start().await.unwrap();
        let spec = subject.sandbox("web").spec;
        let admitted = registry.admit(&web(), spec, CreateTerms::default()).await;
        let generation = admitted.unwrap().generation;
        registry.await_running(&web(), generation).await.unwrap();
        node.put_root(&web(), &app(), root.path());
        Self {
            registry,
            node,
            stop,
            root,
            _dir: dir,
        }
    }
}

pub(crate) fn web() -> SandboxId {
    SandboxId::parse("web").unwrap()
}

pub(crate) fn app() -> Role {
    Role::App(ContainerName::parse("app").unwrap())
}

pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info();
    info.map(|it| it.reason.clone()).unwrap_or_default()
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(DEADLINE, work).await;
    done.unwrap_or_else(|_| panic!("{what} does not come"))
}

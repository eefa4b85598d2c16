//! A record of which half is written, over a fake node and a real store.

use std::{path::Path, sync::Arc, time::Duration};

use berth_domain::{
    Container, ContainerName, ImageRef, Reason, Resources, SandboxId, SandboxSpec, Status,
};
use berth_platform::fake::FakeNode;
use berth_store::Store;
use redb::{Database, ReadableTable as _, TableDefinition};
use tokio_util::sync::CancellationToken;

use super::{CreateTerms, Limits, Registry};
use crate::node::Node;

const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");

type FakeRegistry = Registry<FakeNode, FakeNode>;

pub(super) fn id(text: &str) -> SandboxId {
    SandboxId::parse(text).unwrap()
}

pub(super) fn image() -> ImageRef {
    ImageRef::parse("app").unwrap()
}

pub(super) fn spec() -> Arc<SandboxSpec> {
    let app = Container {
        name: ContainerName::parse("app").unwrap(),
        image: image(),
        command: String::new(),
        args: None,
        directory: String::new(),
        env: vec![],
        ports: vec![],
        oom_score: 0,
        tty: false,
        stdin: false,
        config_files: vec![],
        shutdown_timeout: Duration::from_secs(10),
        resources: Resources::default(),
        readiness_probe: None,
    };
    Arc::new(SandboxSpec {
        containers: vec![app],
        ..SandboxSpec::default()
    })
}

pub(super) async fn start(node: &FakeNode, path: &Path) -> (FakeRegistry, CancellationToken) {
    let store = Store::open(path, "10.9.0.0/24".parse().unwrap(), Duration::ZERO).unwrap();
    let stop = CancellationToken::new();
    let limits = Limits {
        task_creations: 4,
        sandboxes: 1000,
        purge_interval: Duration::from_secs(60),
        end_timeout: Duration::from_secs(10),
        dead_horizon: Duration::from_secs(3600),
    };
    let node = Node {
        runtime: Arc::new(node.clone()),
        network: Arc::new(node.clone()),
    };
    let registry = Registry::new(node, store, limits, String::new(), stop.clone());
    registry.start().await.unwrap();
    (registry, stop)
}

async fn create(registry: &FakeRegistry, name: &str) {
    let record = registry
        .admit(&id(name), spec(), CreateTerms::default())
        .await
        .unwrap();
    let running = registry.await_running(&id(name), record.generation).await;
    assert_eq!(running.unwrap().status, Status::Running);
}

fn tear_record(path: &Path, id: &str) {
    let database = Database::open(path).unwrap();
    let txn = database.begin_write().unwrap();
    {
        let mut table = txn.open_table(RECORDS).unwrap();
        let bytes = table.get(id).unwrap().unwrap().value().to_vec();
        table.insert(id, &bytes[..bytes.len() / 2]).unwrap();
    }
    txn.commit().unwrap();
}

#[tokio::test]
async fn a_sandbox_whose_record_is_half_written_is_left_alone_until_it_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("berth.redb");
    let node = FakeNode::default();
    node.add_image(&image());
    let (registry, stop) = start(&node, &path).await;
    create(&registry, "web").await;
    create(&registry, "other").await;
    stop.cancel();
    registry.finish().await;
    drop(registry);
    tear_record(&path, "web");
    let before = node.leftovers();

    let (registry, stop) = start(&node, &path).await;
    let unreadable = registry.store().unreadable().await.unwrap();
    assert_eq!(unreadable[0].sandbox, Some(id("web")));
    create(&registry, "third").await;
    let refused = registry
        .admit(&id("web"), spec(), CreateTerms::default())
        .await
        .unwrap_err();
    let stopped = registry.stop(&id("web"), None, None).await.unwrap_err();
    let expected = Some(berth_domain::Generation(1));
    let deleted = registry
        .delete(&id("web"), expected, None)
        .await
        .unwrap_err();
    for failure in [refused, stopped, deleted] {
        assert_eq!(failure.reason, Reason::Internal);
        for part in ["record web", "cannot be read", "Delete"] {
            assert!(failure.message.contains(part), "{failure}");
        }
    }
    for object in &before {
        assert!(node.leftovers().contains(object), "{object} is gone");
    }

    assert!(registry.delete(&id("web"), None, None).await.unwrap());
    assert_eq!(registry.store().get(&id("web")).await.unwrap(), None);
    assert_eq!(registry.store().unreadable().await.unwrap(), []);
    let left = node.leftovers();
    assert!(!left.iter().any(|it| it.contains("web")), "{left:?}");
    assert_eq!(registry.store().lease_counts().await.unwrap().held, 2);
    assert!(!registry.delete(&id("web"), None, None).await.unwrap());
    create(&registry, "web").await;
    stop.cancel();
    registry.finish().await;
}

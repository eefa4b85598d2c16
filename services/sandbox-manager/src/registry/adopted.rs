//! What a manager takes up that another one began, over a fake node and a real store.

use std::{sync::Arc, time::Duration};

use berth_domain::{Port, Protocol, Reason, Status};
use berth_platform::fake::FakeNode;

use super::{
    CreateTerms,
    half_written::{id, image, spec, start},
};

#[tokio::test]
async fn a_create_that_was_taken_up_and_fails_leaves_nothing_on_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("berth.redb");
    let node = FakeNode::default();
    node.add_image(&image());
    node.listen_on("app", &[]);
    let mut deaf = spec();
    let changed = Arc::make_mut(&mut deaf);
    changed.port_wait_timeout = Duration::from_millis(300);
    changed.containers[0].ports = vec![Port {
        number: 8080,
        name: String::new(),
        protocol: Protocol::Tcp,
        kind: String::new(),
        node_port: None,
    }];

    let (registry, stop) = start(&node, &path).await;
    let terms = CreateTerms::default();
    let record = registry.admit(&id("web"), deaf, terms).await.unwrap();
    let waits = async {
        let started = || {
            let calls = node.calls();
            calls
                .iter()
                .filter(|it| it.starts_with("start_task"))
                .count()
        };
        while started() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waits)
        .await
        .expect("both tasks are started");
    stop.cancel();
    registry.finish().await;
    drop(registry);
    assert!(!node.leftovers().is_empty(), "the next manager finds it");

    let (registry, stop) = start(&node, &path).await;
    let failed = registry.await_running(&id("web"), record.generation).await;
    assert_eq!(failed.unwrap_err().reason, Reason::PortTimeout);
    let dead = registry.store().get(&id("web")).await.unwrap().unwrap();
    assert_eq!(dead.status, Status::Dead);
    assert_eq!(node.leftovers(), [""; 0]);
    stop.cancel();
    registry.finish().await;
}

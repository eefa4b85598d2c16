//! The fake node keeps the contract, and what a test can do to it does what its documentation says.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use berth_domain::{
    ContainerName, ContainerSeen, Extent, ImageRef, Role, Sandbox, SandboxId, TaskSeen,
};
use berth_platform::{
    ImageError, Images, Network, NetworkError, NetworkObjectKind, NetworkSeen, Runtime,
    RuntimeError, RuntimeObject, RuntimeObjectKind, RuntimeSeen,
    contract::{self, Subject, bring_up, clear},
    fake::FakeNode,
};
use tokio::sync::watch;

const DEADLINE: Duration = Duration::from_secs(5);

fn subject() -> Subject {
    Subject {
        image: ImageRef::parse("app").unwrap(),
        addresses: vec!["10.1.0.2/24".parse().unwrap()],
    }
}

fn node() -> FakeNode {
    let node = FakeNode::default();
    node.add_image(&subject().image);
    node
}

fn app() -> Role {
    Role::App(ContainerName::parse("app").unwrap())
}

async fn prepared(node: &FakeNode) -> Extent {
    let id = SandboxId::parse("web").unwrap();
    Runtime::observe(node, &id).await.unwrap().prepared
}

async fn sandbox_up(node: &FakeNode, id: &str) -> Sandbox {
    let sandbox = subject().sandbox(id);
    bring_up(node, node, &subject(), &sandbox).await;
    sandbox
}

async fn task(node: &FakeNode, id: &SandboxId, role: &Role) -> TaskSeen {
    let seen = Runtime::observe(node, id).await.unwrap();
    seen.containers[role].task
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    let node = node();
    contract::holds(&node, &node, &subject()).await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn a_task_that_has_ended_is_neither_created_nor_started_again() {
    let node = node();
    let sandbox = sandbox_up(&node, "web").await;
    node.exit(&sandbox.id, &app(), 3);
    let created = node.create_task(&sandbox, &app()).await;
    assert!(matches!(created, Err(RuntimeError::Refused { .. })));
    let started = node.start_task(&sandbox.id, &app()).await;
    assert!(matches!(started, Err(RuntimeError::Refused { .. })));
    node.delete_task(&sandbox.id, &app()).await.unwrap();
    node.create_task(&sandbox, &app()).await.unwrap();
}

#[tokio::test]
async fn a_container_that_the_spec_does_not_have_is_refused() {
    let node = node();
    let sandbox = sandbox_up(&node, "web").await;
    let other = Role::App(ContainerName::parse("other").unwrap());
    let outcome = node.create_container(&sandbox, &other).await;
    assert!(matches!(outcome, Err(RuntimeError::Refused { .. })));
}

#[tokio::test]
async fn an_exit_is_seen_and_hinted_at() {
    let node = node();
    let mut hints = node.follow_exits();
    let sandbox = sandbox_up(&node, "web").await;
    node.exit(&sandbox.id, &app(), 3);
    assert_eq!(hints.recv().await, Some(Some(sandbox.id.clone())));
    let seen = task(&node, &sandbox.id, &app()).await;
    assert!(matches!(seen, TaskSeen::Exited { code: 3, .. }), "{seen:?}");
    let readings = node.usage(&sandbox.id).await.unwrap();
    assert!(readings.iter().all(|it| it.usage.oom_kills == 0));

    node.exit_for_memory(&sandbox.id, &Role::Pause);
    let readings = node.usage(&sandbox.id).await.unwrap();
    let pause = readings.iter().find(|it| it.role == Role::Pause).unwrap();
    assert_eq!(pause.usage.oom_kills, 1);
}

#[tokio::test]
async fn a_stopped_task_ends_with_the_signal_that_asked_it() {
    let node = node();
    let sandbox = sandbox_up(&node, "web").await;
    node.stop_task(&sandbox.id, &app(), Duration::from_secs(3600))
        .await
        .unwrap();
    let seen = task(&node, &sandbox.id, &app()).await;
    assert!(matches!(seen, TaskSeen::Exited { code: 143, .. }));
}

#[tokio::test]
async fn declared_ports_listen_while_their_task_runs_and_others_in_their_place_where_set() {
    let node = node();
    let sandbox = sandbox_up(&node, "web").await;
    let listening = async || {
        let sockets = node.listening(&sandbox.id).await.unwrap();
        let text = sockets
            .iter()
            .map(|it| format!("{}:{}", it.address, it.port));
        text.collect::<Vec<_>>()
    };
    assert_eq!(listening().await, ["0.0.0.0:8080"]);
    node.listen_on("app", &[SocketAddr::from(([127, 0, 0, 1], 8080))]);
    assert_eq!(listening().await, ["127.0.0.1:8080"]);
    node.listen_on("app", &[]);
    assert!(listening().await.is_empty());
    node.listen_on("app", &["[::]:1".parse().unwrap()]);
    node.exit(&sandbox.id, &app(), 0);
    assert!(listening().await.is_empty());
}

#[tokio::test]
async fn planned_failures_hit_the_next_calls_of_one_verb_and_change_nothing() {
    let node = node();
    let sandbox = subject().sandbox("web");
    node.fail_next("prepare", 2);
    for _ in 0..2 {
        let outcome = node.prepare(&sandbox).await;
        assert!(matches!(outcome, Err(RuntimeError::Node { .. })));
    }
    assert!(node.is_empty());
    node.prepare(&sandbox).await.unwrap();

    node.fail_next("open_namespaces web", 1);
    let other = subject().sandbox("other");
    node.open_namespaces(&other).await.unwrap();
    let failed: Result<(), NetworkError> = node.open_namespaces(&sandbox).await;
    assert_eq!(failed.unwrap_err().operation, "open_namespaces web");
    node.open_namespaces(&sandbox).await.unwrap();

    node.fail_next("ensure", 1);
    let (progress, _) = watch::channel(vec![]);
    let outcome = node.ensure(&subject().image, &progress).await;
    assert!(matches!(
        outcome,
        Err(ImageError::RegistryUnreachable { .. })
    ));
}

#[tokio::test]
async fn a_lost_answer_is_an_error_although_the_work_is_done() {
    let node = node();
    let sandbox = subject().sandbox("web");
    node.fail_next_when_done("prepare", 1);
    let outcome = node.prepare(&sandbox).await;
    assert!(matches!(outcome, Err(RuntimeError::Unreachable { .. })));
    assert_eq!(prepared(&node).await, Extent::Whole);
}

#[tokio::test]
async fn a_call_that_hangs_does_nothing_until_it_is_let_go() {
    let node = node();
    let sandbox = Arc::new(subject().sandbox("web"));
    node.hang("prepare");
    let hanging = tokio::spawn({
        let (node, sandbox) = (node.clone(), sandbox.clone());
        async move { node.prepare(&sandbox).await }
    });
    let arrived = async {
        while node.calls() != ["prepare web"] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, arrived).await.unwrap();
    node.open_namespaces(&sandbox).await.unwrap();
    assert_eq!(prepared(&node).await, Extent::Nothing);
    assert!(!hanging.is_finished());
    node.release_hang();
    tokio::time::timeout(DEADLINE, hanging)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(prepared(&node).await, Extent::Whole);
}

#[tokio::test]
async fn a_containerd_that_is_away_answers_nothing_and_its_missed_exits_are_one_hint() {
    let node = node();
    let mut hints = node.follow_exits();
    let sandbox = sandbox_up(&node, "web").await;
    node.unreachable(true);
    let seen: Result<RuntimeSeen, _> = Runtime::observe(&node, &sandbox.id).await;
    assert!(matches!(seen, Err(RuntimeError::Unreachable { .. })));
    let images = node.list_images().await;
    assert!(matches!(images, Err(ImageError::Unreachable { .. })));
    assert_eq!(node.facts().await.version, None);
    assert!(Network::observe(&node, &sandbox.id).await.unwrap().link);
    node.exit(&sandbox.id, &app(), 1);
    assert!(hints.try_recv().is_err());

    node.unreachable(false);
    assert_eq!(hints.recv().await, Some(None));
    assert!(node.facts().await.version.is_some());
}

#[tokio::test]
async fn a_reboot_leaves_what_is_on_disk() {
    let node = node();
    let sandbox = sandbox_up(&node, "web").await;
    node.forget();
    let seen = Runtime::observe(&node, &sandbox.id).await.unwrap();
    let stored = ContainerSeen {
        stored: true,
        task: TaskSeen::Missing,
    };
    assert_eq!(seen.prepared, Extent::Part);
    assert!(seen.containers.values().all(|it| *it == stored));
    let network = Network::observe(&node, &sandbox.id).await.unwrap();
    assert_eq!(network, NetworkSeen::default());
    clear(&node, &node, &sandbox.id).await;
    sandbox_up(&node, "web").await;
}

#[tokio::test]
async fn output_is_kept_until_it_is_forgotten_and_is_no_leftover() {
    let node = node();
    let sandbox = sandbox_up(&node, "web").await;
    assert!(node.has_logs(&sandbox.id));
    assert!(!node.is_empty());
    clear(&node, &node, &sandbox.id).await;
    assert!(!node.has_logs(&sandbox.id));
    assert!(node.is_empty());
}

#[tokio::test]
async fn a_pull_finds_what_the_registry_has() {
    let node = FakeNode::default();
    let image = ImageRef::parse("web").unwrap();
    let (progress, layers) = watch::channel(vec![]);
    let missing = node.ensure(&image, &progress).await;
    assert!(matches!(missing, Err(ImageError::NotFound { .. })));
    node.publish(&image);
    let pulled = node.ensure(&image, &progress).await.unwrap();
    assert_eq!(pulled.name, "docker.io/library/web:latest");
    assert_eq!(layers.borrow()[0].current_bytes, pulled.size_bytes);
    assert_eq!(node.list_images().await.unwrap(), [pulled]);
    node.remove_image(&image).await.unwrap();
    assert_eq!(node.list_images().await.unwrap(), []);
    let again = node.remove_image(&image).await;
    assert!(matches!(again, Err(ImageError::NotFound { .. })));
}

#[tokio::test]
async fn an_archive_is_taken_whole_or_not_at_all() {
    let node = FakeNode::default();
    let file = tempfile("web\nteam/db:1\n");
    let images = node.import(file.path(), None, true).await.unwrap();
    let names: Vec<_> = images.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(
        names,
        ["docker.io/library/web:latest", "docker.io/team/db:1"]
    );
    assert!(images.iter().all(|it| it.pinned));

    let named = ImageRef::parse("mine:2").unwrap();
    let several = node.import(file.path(), Some(&named), false).await;
    assert!(matches!(several, Err(ImageError::ArchiveInvalid { .. })));
    for text in ["third\nNOT AN IMAGE\n", ""] {
        let bad = tempfile(text);
        let outcome = node.import(bad.path(), None, false).await;
        assert!(matches!(outcome, Err(ImageError::ArchiveInvalid { .. })));
    }
    assert_eq!(node.list_images().await.unwrap().len(), 2);

    let one = tempfile("web\n");
    let images = node.import(one.path(), Some(&named), false).await.unwrap();
    assert_eq!(images[0].name, "docker.io/library/mine:2");
    let gone = node.import("/nowhere/archive".as_ref(), None, false).await;
    assert!(matches!(gone, Err(ImageError::Node { .. })));
}

#[tokio::test]
async fn calls_are_told_in_order_with_what_they_are_about() {
    let node = node();
    let sandbox = sandbox_up(&node, "web").await;
    node.stop_task(&sandbox.id, &app(), Duration::ZERO)
        .await
        .unwrap();
    let expected = [
        "ensure docker.io/library/app:latest",
        "prepare web",
        "open_namespaces web",
        "attach_link web",
        "create_container web pause",
        "create_task web pause",
        "start_task web pause",
        "create_container web app",
        "create_task web app",
        "start_task web app",
        "stop_task web app",
    ];
    assert_eq!(node.calls(), expected);
}

#[tokio::test]
async fn what_no_verb_made_is_listed_and_removed_as_the_object_that_it_is() {
    let node = FakeNode::default();
    let stray = RuntimeObject {
        kind: RuntimeObjectKind::Cgroup,
        name: "berth/fake/Stray".to_owned(),
        sandbox: None,
        generation: None,
        role: None,
        made_at: None,
        serial: Some(7),
        strange: false,
        silent: false,
    };
    node.leave(stray.clone());
    let listed = Runtime::list(&node).await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&stray));
    assert!(!node.is_empty());
    let other = RuntimeObject {
        serial: Some(8),
        ..stray.clone()
    };
    let refused = Runtime::remove_object(&node, &other).await;
    assert!(matches!(refused, Err(RuntimeError::Refused { .. })));
    Runtime::remove_object(&node, &stray).await.unwrap();
    assert!(node.is_empty());
}

#[tokio::test]
async fn a_silent_shim_is_listed_as_such_and_nobody_learns_how_its_task_is() {
    let node = node();
    let sandbox = sandbox_up(&node, "web").await;
    node.silence(&sandbox.id, &app(), true);
    let seen = Runtime::observe(&node, &sandbox.id).await;
    assert!(matches!(seen, Err(RuntimeError::Unreachable { .. })));
    let objects = Runtime::list(&node).await.unwrap();
    let silent: Vec<_> = objects.iter().filter(|it| it.silent).collect();
    assert_eq!(silent.len(), 1, "{silent:#?}");
    assert_eq!(
        (silent[0].kind, &silent[0].role),
        (RuntimeObjectKind::Task, &Some(app()))
    );
    node.silence(&sandbox.id, &app(), false);
    assert!(Runtime::observe(&node, &sandbox.id).await.is_ok());
}

#[tokio::test]
async fn a_link_and_a_table_can_be_lost() {
    let node = node();
    let sandbox = sandbox_up(&node, "web").await;
    node.lose_link(&sandbox.id);
    assert!(!Network::observe(&node, &sandbox.id).await.unwrap().link);
    let kinds = async || {
        let objects = Network::list(&node).await.unwrap();
        objects.iter().map(|it| it.kind).collect::<Vec<_>>()
    };
    assert!(kinds().await.contains(&NetworkObjectKind::Table));
    node.lose_table();
    // Its place in the rules stays until the sandbox is told to end.
    let left = [NetworkObjectKind::Namespaces, NetworkObjectKind::Element];
    assert_eq!(kinds().await, left);
}

fn tempfile(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

//! What a fix removes and what it leaves, on the fake node with a real store.

use std::{sync::Arc, time::Duration};

use berth_domain::{
    ContainerName, Generation, ImageRef, Reason, Role, Sandbox, SandboxId, SandboxSpec, Status,
};
use berth_platform::{
    NetworkObject, NetworkObjectKind, RuntimeObject, RuntimeObjectKind,
    contract::{Subject, bring_up},
    fake::FakeNode,
};
use berth_store::Store;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    node::Node,
    registry::{CreateTerms, Limits},
};

const DEADLINE: Duration = Duration::from_secs(20);

mod orphans;

struct Bench {
    node: FakeNode,
    registry: Registry<FakeNode, FakeNode>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let node = FakeNode::default();
    node.add_image(&subject().image);
    let store = Store::open(
        &dir.path().join("berth.redb"),
        "10.1.0.0/24".parse().unwrap(),
        Duration::ZERO,
    );
    let limits = Limits {
        sandboxes: 1000,
        task_creations: 2,
        purge_interval: Duration::from_secs(60),
        end_timeout: DEADLINE,
        dead_horizon: Duration::from_secs(3600),
    };
    let seams = Node {
        runtime: Arc::new(node.clone()),
        network: Arc::new(node.clone()),
    };
    let stop = CancellationToken::new();
    Bench {
        registry: Registry::new(seams, store.unwrap(), limits, String::new(), stop.clone()),
        stop,
        node,
        _dir: dir,
    }
}

fn subject() -> Subject {
    Subject {
        image: ImageRef::parse("app").unwrap(),
        addresses: vec!["10.1.0.99/24".parse().unwrap()],
    }
}

fn id(text: &str) -> SandboxId {
    SandboxId::parse(text).unwrap()
}

fn app() -> Role {
    Role::App(ContainerName::parse("app").unwrap())
}

impl Bench {
    /// A sandbox with a record, RUNNING.
    async fn create(&self, name: &str) -> Generation {
        let spec: Arc<SandboxSpec> = subject().sandbox(name).spec;
        let record = self
            .registry
            .admit(&id(name), spec, CreateTerms::default())
            .await
            .unwrap();
        let running = self
            .registry
            .await_running(&id(name), record.generation)
            .await;
        running.unwrap().generation
    }

    /// A sandbox that runs and has no record.
    async fn abandon(&self, name: &str) -> Sandbox {
        let sandbox = subject().sandbox(name);
        bring_up(&self.node, &self.node, &subject(), &sandbox).await;
        sandbox
    }

    async fn fix(&self) -> Fixed {
        fix(&self.registry, Duration::ZERO).await.unwrap()
    }

    /// Waits until the record has this status.
    async fn reaches(&self, name: &str, status: Status) {
        let there = async {
            loop {
                let record = self.registry.store().get(&id(name)).await.unwrap();
                if record.is_some_and(|it| it.status == status) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, there).await.unwrap();
    }
}

fn stray(kind: RuntimeObjectKind, name: &str, sandbox: Option<&str>) -> RuntimeObject {
    RuntimeObject {
        kind,
        name: name.to_owned(),
        sandbox: sandbox.map(id),
        generation: None,
        role: sandbox.map(|_| app()),
        made_at: None,
        serial: Some(77),
        strange: false,
        silent: false,
    }
}

/// What became of the objects of a sandbox.
fn outcomes<'a>(fixed: &'a Fixed, sandbox: &str) -> Vec<&'a Option<Outcome>> {
    let of = |it: &&(Finding, Option<Outcome>)| it.0.object.sandbox == Some(id(sandbox));
    fixed.findings.iter().filter(of).map(|(_, it)| it).collect()
}

/// What became of the object of this name.
fn outcome_of<'a>(fixed: &'a Fixed, name: &str) -> &'a Outcome {
    let found = fixed.findings.iter().find(|(it, _)| it.object.name == name);
    let found = found.unwrap_or_else(|| panic!("no {name} in {fixed:#?}"));
    found.1.as_ref().unwrap()
}

#[tokio::test]
async fn an_audit_alone_changes_nothing() {
    let bench = bench();
    bench.create("web").await;
    bench.abandon("ghost").await;
    let before = bench.node.calls();
    let findings = audit(&bench.registry).await.unwrap();
    assert!(!is_clean(&findings));
    assert_eq!(bench.node.calls(), before);
}

#[tokio::test]
async fn a_sandbox_without_a_record_is_removed_whole_and_its_neighbour_is_not_touched() {
    let bench = bench();
    bench.create("web").await;
    bench.abandon("ghost").await;
    let fixed = bench.fix().await;
    let ghost = outcomes(&fixed, "ghost");
    assert!(ghost.len() >= 10, "{fixed:#?}");
    assert!(
        ghost.iter().all(|it| **it == Some(Outcome::Removed)),
        "{fixed:#?}"
    );
    assert!(outcomes(&fixed, "web").iter().all(|it| it.is_none()));
    assert!(fixed.clean);
    assert!(
        !bench.node.leftovers().iter().any(|it| it.contains("ghost")),
        "{:?}",
        bench.node.leftovers()
    );
    assert!(!bench.node.has_logs(&id("ghost")));
    let touched = |it: &String| it.contains("web") && !it.starts_with("create");
    let calls = bench.node.calls();
    let mut after = calls.iter().skip_while(|it| !it.contains("ghost"));
    assert!(!after.any(touched), "{calls:?}");
    bench.reaches("web", Status::Running).await;
}

#[tokio::test]
async fn what_runs_is_asked_to_end_before_anything_is_removed() {
    let bench = bench();
    bench.abandon("ghost").await;
    bench.fix().await;
    let calls = bench.node.calls();
    let place = |call: &str| {
        let found = calls.iter().position(|it| it.starts_with(call));
        found.unwrap_or_else(|| panic!("no {call} in {calls:?}"))
    };
    let asked = place("end_object sandbox.ghost.app");
    assert!(asked < place("delete_task ghost app"));
    let asks: Vec<_> = calls
        .iter()
        .filter(|it| it.starts_with("end_object"))
        .collect();
    assert_eq!(asks.len(), 2, "each task once, no shim beside: {asks:?}");
}

#[tokio::test]
async fn what_appears_between_the_two_looks_is_left_for_the_next_run() {
    let bench = bench();
    bench
        .node
        .leave(stray(RuntimeObjectKind::Cgroup, "old", None));
    let first = audit(&bench.registry).await.unwrap();
    bench
        .node
        .leave(stray(RuntimeObjectKind::Cgroup, "new", None));
    let fixed = fix_since(&bench.registry, &first).await.unwrap();
    assert_eq!(outcome_of(&fixed, "old"), &Outcome::Removed);
    assert_eq!(outcome_of(&fixed, "new"), &not_yet());
    assert!(!fixed.clean);
    assert_eq!(bench.node.leftovers(), ["Cgroup new"]);
    assert!(bench.fix().await.clean);
    assert!(bench.node.is_empty());
}

#[tokio::test]
async fn another_object_of_the_same_name_is_not_the_one_that_was_seen_first() {
    let bench = bench();
    let former = stray(RuntimeObjectKind::Lease, "lease", Some("ghost"));
    bench.node.leave(former.clone());
    let first = audit(&bench.registry).await.unwrap();
    berth_platform::Runtime::remove_object(&bench.node, &former)
        .await
        .unwrap();
    bench.node.leave(RuntimeObject {
        serial: Some(78),
        ..former
    });
    let fixed = fix_since(&bench.registry, &first).await.unwrap();
    assert_eq!(outcome_of(&fixed, "lease"), &not_yet());
    assert!(!bench.node.is_empty());
}

#[tokio::test]
async fn a_sandbox_that_is_created_meanwhile_keeps_what_is_its_own_by_then() {
    let bench = bench();
    bench
        .node
        .leave(stray(RuntimeObjectKind::Shim, "a", Some("a")));
    bench
        .node
        .leave(stray(RuntimeObjectKind::Shim, "web", Some("web")));
    bench.node.hang("remove_object a");
    let creating = async {
        while !bench.node.calls().contains(&"remove_object a".to_owned()) {
            tokio::task::yield_now().await;
        }
        bench.create("web").await;
        bench.node.release_hang();
    };
    let both = async { tokio::join!(bench.fix(), creating) };
    let (fixed, ()) = tokio::time::timeout(DEADLINE, both).await.unwrap();
    assert_eq!(outcome_of(&fixed, "a"), &Outcome::Removed);
    let web = outcome_of(&fixed, "web");
    assert!(
        matches!(web, Outcome::Left(why) if why.contains("RUNNING")),
        "{web:?}"
    );
    let calls = bench.node.calls();
    assert!(
        !calls.contains(&"remove_object web".to_owned()),
        "{calls:?}"
    );
    bench.reaches("web", Status::Running).await;
}

#[tokio::test]
async fn nothing_of_a_sandbox_is_touched_while_one_of_its_shims_is_silent() {
    let bench = bench();
    bench.abandon("ghost").await;
    bench.abandon("other").await;
    bench.node.silence(&id("ghost"), &app(), true);
    let before = bench.node.calls().len();
    let fixed = bench.fix().await;
    assert!(!fixed.clean);
    let left = outcomes(&fixed, "ghost");
    assert!(
        left.iter().all(|it| matches!(it, Some(Outcome::Left(_)))),
        "{fixed:#?}"
    );
    let calls = bench.node.calls();
    assert!(
        !calls[before..].iter().any(|it| it.contains("ghost")),
        "{calls:?}"
    );
    let gone = outcomes(&fixed, "other");
    assert!(gone.iter().all(|it| **it == Some(Outcome::Removed)));

    bench.node.silence(&id("ghost"), &app(), false);
    assert!(bench.fix().await.clean);
    assert!(bench.node.is_empty());
}

#[tokio::test]
async fn while_containerd_is_away_nothing_is_removed() {
    let bench = bench();
    bench.abandon("ghost").await;
    bench.node.unreachable(true);
    let before = bench.node.calls();
    let refused = fix(&bench.registry, Duration::ZERO).await.unwrap_err();
    assert_eq!(refused.reason, Reason::RuntimeUnreachable);
    assert_eq!(bench.node.calls(), before);
}

#[tokio::test]
async fn what_cannot_be_removed_says_why_and_keeps_nothing_else() {
    let bench = bench();
    bench.abandon("ghost").await;
    bench.abandon("other").await;
    bench.node.fail_next("detach_link ghost", usize::MAX);
    bench
        .node
        .leave(stray(RuntimeObjectKind::Mount, "/m", None));
    bench.node.fail_next("remove_object /m", usize::MAX);
    let fixed = bench.fix().await;
    assert!(!fixed.clean);
    let mount = outcome_of(&fixed, "/m");
    assert!(
        matches!(mount, Outcome::Failed(why) if why.contains("remove_object")),
        "{mount:?}"
    );
    let link = fixed
        .findings
        .iter()
        .find(|(it, _)| it.object.kind == Kind::Link && it.object.sandbox == Some(id("ghost")));
    let link = link.unwrap().1.clone();
    assert!(
        matches!(&link, Some(Outcome::Failed(why)) if why.contains("detach_link")),
        "{link:?}"
    );
    let containers = fixed
        .findings
        .iter()
        .filter(|(it, _)| it.object.kind == Kind::Container);
    for (container, outcome) in containers {
        assert_eq!(outcome, &Some(Outcome::Removed), "{container:?}");
    }
    assert!(!bench.node.leftovers().iter().any(|it| it.contains("other")));
}

#[tokio::test]
async fn what_a_dead_sandbox_holds_is_removed_and_its_record_and_output_stay() {
    let bench = bench();
    bench.create("web").await;
    bench.registry.stop(&id("web"), None, None).await.unwrap();
    let findings = audit(&bench.registry).await.unwrap();
    assert!(is_clean(&findings), "{findings:#?}");
    bench.abandon("web").await;
    let fixed = bench.fix().await;
    assert!(fixed.clean, "{fixed:#?}");
    assert!(bench.node.is_empty(), "{:?}", bench.node.leftovers());
    assert!(bench.node.has_logs(&id("web")));
    bench.reaches("web", Status::Dead).await;
}

#[tokio::test]
async fn a_former_generation_beside_a_sandbox_that_runs_is_removed_alone() {
    let bench = bench();
    let generation = bench.create("web").await;
    let former = RuntimeObject {
        generation: Some(Generation(generation.0 + 5)),
        ..stray(RuntimeObjectKind::Container, "sandbox.web.old", Some("web"))
    };
    bench.node.leave(former);
    let misnamed = NetworkObject {
        kind: NetworkObjectKind::Link,
        name: "bt-other".to_owned(),
        sandbox: Some(id("web")),
        made_at: None,
        serial: Some(9),
        strange: true,
    };
    bench.node.leave_in_network(misnamed);
    let before = bench.node.calls().len();
    let fixed = bench.fix().await;
    assert_eq!(outcome_of(&fixed, "sandbox.web.old"), &Outcome::Removed);
    assert_eq!(outcome_of(&fixed, "bt-other"), &Outcome::Removed);
    assert!(fixed.clean);
    assert_eq!(
        bench.node.calls()[before..],
        ["remove_object sandbox.web.old", "remove_object bt-other"]
    );
}

#[tokio::test]
async fn what_is_removed_object_by_object_goes_in_the_reverse_order_of_creation() {
    use RuntimeObjectKind::{
        Cgroup, Container, Directory, Lease, Logs, Mount, Shim, Snapshot, Task,
    };
    let bench = bench();
    for kind in [
        Lease, Logs, Directory, Cgroup, Mount, Snapshot, Container, Shim, Task,
    ] {
        bench.node.leave(RuntimeObject {
            // A lease that is not is of a pull.
            strange: kind == Lease,
            ..stray(kind, &format!("{kind:?}"), None)
        });
    }
    bench.node.leave_in_network(NetworkObject {
        kind: NetworkObjectKind::Namespaces,
        name: "Namespaces".to_owned(),
        sandbox: None,
        made_at: None,
        serial: Some(1),
        strange: false,
    });
    assert!(bench.fix().await.clean);
    let calls = bench.node.calls();
    let removed: Vec<_> = calls
        .iter()
        .filter_map(|it| it.strip_prefix("remove_object "))
        .collect();
    assert_eq!(
        removed,
        [
            "Task",
            "Shim",
            "Container",
            "Snapshot",
            "Namespaces",
            "Mount",
            "Cgroup",
            "Directory",
            "Logs",
            "Lease"
        ]
    );
}

#[tokio::test]
async fn a_sandbox_that_lost_its_link_is_missing_it_and_its_task_acts() {
    let bench = bench();
    bench.create("web").await;
    // Its task may look once more by itself: not before all that is asked here has been.
    bench.node.hang("observe web");
    bench.node.lose_link(&id("web"));
    let findings = audit(&bench.registry).await.unwrap();
    let missing: Vec<_> = findings
        .iter()
        .filter(|it| it.verdict == Verdict::Missing)
        .collect();
    assert_eq!(missing.len(), 1, "{missing:#?}");
    assert_eq!(missing[0].object.kind, Kind::Link);
    let fixed = bench.fix().await;
    let link = outcome_of(&fixed, "web");
    assert!(matches!(link, Outcome::Left(_)), "{link:?}");
    bench.node.release_hang();
    bench.reaches("web", Status::Dead).await;
}

#[tokio::test]
async fn a_table_that_is_gone_is_missing_and_nobody_pretends_to_make_it() {
    let bench = bench();
    bench.node.lose_table();
    let fixed = bench.fix().await;
    assert!(!fixed.clean);
    let table = outcome_of(&fixed, "berth-fake");
    assert!(
        matches!(table, Outcome::Left(why) if why.contains("start the manager")),
        "{table:?}"
    );
}

#[tokio::test]
async fn an_address_that_no_record_names_rests() {
    let bench = bench();
    let generation = bench.create("web").await;
    let store = bench.registry.store();
    let now = SystemTime::now();
    let record = store
        .update(&id("web"), generation, now, |it| it.addresses.clear())
        .await;
    record.unwrap();
    let fixed = bench.fix().await;
    assert!(fixed.clean, "{fixed:#?}");
    let address = fixed
        .findings
        .iter()
        .find(|(it, _)| it.object.kind == Kind::Address);
    assert_eq!(address.unwrap().1, Some(Outcome::Removed));
    assert_eq!(store.lease_counts().await.unwrap().held, 0);
}

#[tokio::test]
async fn the_seconds_between_the_looks_end_with_the_manager() {
    let bench = bench();
    bench
        .node
        .leave(stray(RuntimeObjectKind::Cgroup, "old", None));
    let stopping = async {
        tokio::task::yield_now().await;
        bench.stop.cancel();
    };
    let fixing = fix(&bench.registry, Duration::from_secs(3600));
    let both = async { tokio::join!(fixing, stopping).0 };
    let refused = tokio::time::timeout(DEADLINE, both).await.unwrap();
    assert_eq!(refused.unwrap_err().reason, Reason::ShuttingDown);
    assert!(!bench.node.is_empty());
}

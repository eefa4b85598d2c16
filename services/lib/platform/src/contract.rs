//! What every node must do, asked of the fake and of the real one: each function is one property, brings up what it
//! needs and takes it away again. Nothing here knows which node it asks; what breaks a property panics.

#![expect(
    clippy::unwrap_used,
    reason = "test code that several crates share: a panic is the verdict"
)]

mod access;
mod images;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{
    Container, ContainerName, ContainerSeen, Extent, Generation, ImageRef, Port, ProbeCheck,
    Protocol, Resources, Role, Sandbox, SandboxId, SandboxSpec, TaskSeen,
};
use ipnet::IpNet;
use tokio::sync::watch;

pub use access::{
    a_port_that_listens_is_connected_to_and_another_one_refuses,
    the_root_of_what_runs_is_opened_and_its_end_is_told,
};

pub use images::{
    an_image_that_is_exported_is_imported_as_it_was, an_image_that_is_not_there_is_not_exported,
};

use crate::{
    EndSignal, ImageError, Images, Network, NetworkObject, NetworkObjectKind, NetworkSeen, Runtime,
    RuntimeError, RuntimeObject, RuntimeObjectKind, RuntimeSeen,
};

mod exec;

pub use exec::programs_run_beside_what_runs;

const PORT: u16 = 8080;
const COMMAND: &str = "exec httpd -f -p 8080 -h /etc";
/// The first process of its own pid namespace does not hear a SIGTERM that it has no handler for, so this passes.
const GRACE: Duration = Duration::from_millis(200);
const DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// What a node needs to know to be asked.
#[derive(Clone, Debug)]
pub struct Subject {
    /// An image with a shell and `httpd` that is on the node, or can be pulled.
    pub image: ImageRef,
    /// Free addresses of the node's subnets, as one sandbox has them.
    pub addresses: Vec<IpNet>,
}

/// Asks for every property.
pub async fn holds<R: Runtime + Images, N: Network>(runtime: &R, network: &N, subject: &Subject) {
    // Each on the heap: all of them in one state machine would not fit on a thread's stack.
    Box::pin(an_image_that_is_there_is_listed(runtime, subject)).await;
    Box::pin(an_image_that_is_not_there_cannot_be_removed(runtime)).await;
    Box::pin(a_file_that_is_no_archive_is_refused(runtime)).await;
    Box::pin(an_image_that_is_exported_is_imported_as_it_was(
        runtime, subject,
    ))
    .await;
    Box::pin(an_image_that_is_not_there_is_not_exported(runtime)).await;
    Box::pin(
        the_steps_in_order_bring_a_sandbox_up_and_each_can_be_repeated(runtime, network, subject),
    )
    .await;
    Box::pin(what_is_not_there_is_removed_with_success(runtime, network)).await;
    Box::pin(what_is_not_known_is_seen_empty(runtime, network)).await;
    Box::pin(everything_made_is_listed_with_its_sandbox(
        runtime, network, subject,
    ))
    .await;
    Box::pin(what_the_instance_needs_is_there_and_is_not_removed(network)).await;
    Box::pin(
        a_task_that_is_asked_to_end_ends_and_stays_until_it_is_removed(runtime, network, subject),
    )
    .await;
    Box::pin(this_very_object_is_removed_and_no_other(
        runtime, network, subject,
    ))
    .await;
    Box::pin(a_stopped_task_has_ended_and_its_end_is_hinted_at(
        runtime, network, subject,
    ))
    .await;
    Box::pin(deleting_a_task_kills_what_runs(runtime, network, subject)).await;
    Box::pin(a_container_without_its_image_leaves_nothing(
        runtime, network, subject,
    ))
    .await;
    Box::pin(a_container_of_another_generation_is_refused(
        runtime, network, subject,
    ))
    .await;
    Box::pin(what_runs_has_usage(runtime, network, subject)).await;
    Box::pin(what_listens_is_shown(runtime, network, subject)).await;
    Box::pin(node_ports_are_led_where_a_sandbox_has_a_link(
        runtime, network, subject,
    ))
    .await;
    Box::pin(what_is_impossible_is_refused(runtime, network, subject)).await;
    Box::pin(denials_are_counted_while_the_rules_know_a_sandbox(
        runtime, network, subject,
    ))
    .await;
    Box::pin(the_root_of_what_runs_is_opened_and_its_end_is_told(
        runtime, network, subject,
    ))
    .await;
    Box::pin(a_port_that_listens_is_connected_to_and_another_one_refuses(
        runtime, network, subject,
    ))
    .await;
    Box::pin(programs_run_beside_what_runs(runtime, network, subject)).await;
}

pub async fn denials_are_counted_while_the_rules_know_a_sandbox<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("denied");
    assert_eq!(network.denied(&sandbox.id).await.unwrap(), None, "before");
    network.open_namespaces(&sandbox).await.unwrap();
    network.restore(vec![sandbox.clone()]).await.unwrap();
    let unlinked = network.denied(&sandbox.id).await.unwrap();
    assert_eq!(unlinked, None, "restored without a link");
    network.attach_link(&sandbox).await.unwrap();
    let counts = async || network.denied(&sandbox.id).await.unwrap().is_some();
    assert!(counts().await, "with a link");
    network.restore(vec![]).await.unwrap();
    assert!(!counts().await, "not restored");
    for _ in 0..2 {
        network.restore(vec![sandbox.clone()]).await.unwrap();
        assert!(counts().await, "restored");
    }
    network.detach_link(&sandbox.id).await.unwrap();
    assert!(!counts().await, "detached");
    clear(runtime, network, &sandbox.id).await;
}

pub async fn an_image_that_is_there_is_listed<R: Images>(runtime: &R, subject: &Subject) {
    let (progress, _) = watch::channel(vec![]);
    let ensured = runtime.ensure(&subject.image, &progress).await.unwrap();
    let again = runtime.ensure(&subject.image, &progress).await.unwrap();
    assert_eq!(ensured.digest, again.digest, "the digest of one image");
    assert!(
        ensured.digest.starts_with("sha256:"),
        "{} is no digest",
        ensured.digest
    );
    let listed = runtime.list_images().await.unwrap();
    let name = subject.image.to_string();
    assert!(
        listed.iter().any(|it| it.name == name),
        "{name} is not in {listed:?}"
    );
    let digest = runtime.image_digest(&subject.image).await.unwrap();
    assert_eq!(digest.as_ref(), Some(&ensured.digest));
    assert_eq!(runtime.image_digest(&missing_image()).await.unwrap(), None);
    let named = runtime.image_names().await.unwrap();
    let named = named.iter().map(|(name, it)| (name, &it.digest, it.pinned));
    let listed = listed.iter().map(|it| (&it.name, &it.digest, it.pinned));
    assert_eq!(named.collect::<BTreeSet<_>>(), listed.collect());
    runtime.collect().await.unwrap();
    let kept = runtime.list_images().await.unwrap();
    assert!(kept.iter().any(|it| it.name == name), "it has a name");
}

pub async fn an_image_that_is_not_there_cannot_be_removed<R: Images>(runtime: &R) {
    let image = missing_image();
    match runtime.remove_image(&image).await {
        Err(ImageError::NotFound { image: named, .. }) => assert_eq!(named, image.to_string()),
        other => panic!("removing an image that is missing gives {other:?}"),
    }
}

pub async fn a_file_that_is_no_archive_is_refused<R: Images>(runtime: &R) {
    let file = std::env::temp_dir().join(format!("berth-contract-{}", std::process::id()));
    std::fs::write(&file, "this is not an archive").unwrap();
    let before = image_names(runtime).await;
    let outcome = runtime.import(&file, None, false).await;
    std::fs::remove_file(&file).unwrap();
    assert!(
        matches!(outcome, Err(ImageError::ArchiveInvalid { .. })),
        "{outcome:?}"
    );
    assert_eq!(image_names(runtime).await, before, "an import that failed");
}

pub async fn the_steps_in_order_bring_a_sandbox_up_and_each_can_be_repeated<
    R: Runtime + Images,
    N: Network,
>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("contract-1");
    ensure(runtime, subject).await;
    for _ in 0..2 {
        runtime.prepare(&sandbox).await.unwrap();
    }
    for _ in 0..2 {
        network.open_namespaces(&sandbox).await.unwrap();
    }
    for _ in 0..2 {
        network.attach_link(&sandbox).await.unwrap();
    }
    for role in roles() {
        let first = runtime.create_container(&sandbox, &role).await.unwrap();
        let again = runtime.create_container(&sandbox, &role).await.unwrap();
        assert_eq!(first, again, "the digest of {role}");
    }
    assert_tasks(runtime, &sandbox.id, TaskSeen::Missing).await;
    let made = runtime.create_container(&sandbox, &app()).await.unwrap();
    let seen = runtime.observe(&sandbox.id).await.unwrap();
    assert_eq!(seen.digests, [(app(), made)].into(), "what stands tells it");
    for role in roles() {
        runtime.create_task(&sandbox, &role).await.unwrap();
        runtime.create_task(&sandbox, &role).await.unwrap();
    }
    assert_tasks(runtime, &sandbox.id, TaskSeen::Created).await;
    for role in roles() {
        runtime.start_task(&sandbox.id, &role).await.unwrap();
        runtime.start_task(&sandbox.id, &role).await.unwrap();
    }
    assert_tasks(runtime, &sandbox.id, TaskSeen::Running).await;
    // A step of a bring-up that runs again meets what runs.
    runtime.prepare(&sandbox).await.unwrap();
    network.open_namespaces(&sandbox).await.unwrap();
    network.attach_link(&sandbox).await.unwrap();
    for role in roles() {
        runtime.create_container(&sandbox, &role).await.unwrap();
        runtime.create_task(&sandbox, &role).await.unwrap();
    }
    assert_tasks(runtime, &sandbox.id, TaskSeen::Running).await;
    assert_eq!(
        network.observe(&sandbox.id).await.unwrap(),
        NetworkSeen {
            namespaces: Extent::Whole,
            link: true
        }
    );
    clear(runtime, network, &sandbox.id).await;
}

pub async fn what_is_not_there_is_removed_with_success<R: Runtime, N: Network>(
    runtime: &R,
    network: &N,
) {
    let id = SandboxId::parse("contract-2").unwrap();
    for _ in 0..2 {
        clear(runtime, network, &id).await;
    }
}

pub async fn what_is_not_known_is_seen_empty<R: Runtime, N: Network>(runtime: &R, network: &N) {
    let id = SandboxId::parse("contract-3").unwrap();
    assert_nothing_left(runtime, network, &id).await;
    assert_eq!(runtime.usage(&id).await.unwrap(), vec![]);
}

pub async fn everything_made_is_listed_with_its_sandbox<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    use RuntimeObjectKind::{Cgroup, Container, Directory, Lease, Logs, Shim, Snapshot, Task};
    let sandbox = subject.sandbox("contract-4");
    bring_up(runtime, network, subject, &sandbox).await;
    let mine = |it: &Option<SandboxId>| it.as_ref() == Some(&sandbox.id);

    let objects = runtime.list().await.unwrap();
    let objects: Vec<_> = objects.into_iter().filter(|it| mine(&it.sandbox)).collect();
    assert!(
        objects.iter().all(|it| !it.strange && !it.silent),
        "nothing is wrong with {objects:#?}"
    );
    for kind in [Lease, Cgroup, Directory, Snapshot, Logs] {
        assert!(
            objects.iter().any(|it| it.kind == kind),
            "no {kind:?} in {objects:#?}"
        );
    }
    for role in roles() {
        for kind in [Container, Task, Shim] {
            let it = objects
                .iter()
                .find(|it| it.kind == kind && it.role.as_ref() == Some(&role));
            assert!(it.is_some(), "no {kind:?} of {role} in {objects:#?}");
        }
    }
    for it in objects.iter().filter(|it| it.kind == Container) {
        assert_eq!(it.generation, Some(sandbox.generation), "{it:?}");
        assert!(it.made_at.is_some(), "{it:?} has an age");
    }
    let again = runtime.list().await.unwrap();
    let again: Vec<_> = again.into_iter().filter(|it| mine(&it.sandbox)).collect();
    let sorted = |list: &[RuntimeObject]| list.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(
        sorted(&again),
        sorted(&objects),
        "the same objects, seen twice"
    );

    let objects = network.list().await.unwrap();
    let kinds: BTreeSet<_> = objects
        .iter()
        .filter(|it| mine(&it.sandbox))
        .map(|it| it.kind)
        .collect();
    assert_eq!(
        kinds,
        BTreeSet::from([
            NetworkObjectKind::Namespaces,
            NetworkObjectKind::Link,
            NetworkObjectKind::Element,
        ]),
        "{objects:#?}"
    );
    clear(runtime, network, &sandbox.id).await;
}

pub async fn what_the_instance_needs_is_there_and_is_not_removed<N: Network>(network: &N) {
    let standing = network.standing();
    assert!(!standing.is_empty());
    for (kind, name) in standing {
        let own = |it: &NetworkObject| (it.kind, &it.name) == (kind, &name);
        let objects = network.list().await.unwrap();
        let object = objects.into_iter().find(own);
        let object = object.unwrap_or_else(|| panic!("no {kind:?} {name}"));
        assert!(network.remove_object(&object).await.is_err(), "{object:?}");
        assert!(
            network.list().await.unwrap().iter().any(own),
            "{object:?} stays"
        );
    }
}

pub async fn a_task_that_is_asked_to_end_ends_and_stays_until_it_is_removed<
    R: Runtime + Images,
    N: Network,
>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("contract-12");
    bring_up(runtime, network, subject, &sandbox).await;
    // The pause hears a SIGTERM at once.
    let object = listed(runtime, &sandbox.id, RuntimeObjectKind::Task, &Role::Pause)
        .await
        .unwrap();
    for _ in 0..2 {
        runtime
            .end_object(&object, EndSignal::Term, DEADLINE)
            .await
            .unwrap();
    }
    let seen = task(runtime, &sandbox.id, &Role::Pause).await;
    assert!(matches!(seen, TaskSeen::Exited { .. }), "{seen:?}");
    let app = task(runtime, &sandbox.id, &app()).await;
    assert_eq!(app, TaskSeen::Running, "nobody asked the other one");
    for _ in 0..2 {
        runtime.remove_object(&object).await.unwrap();
    }
    let seen = task(runtime, &sandbox.id, &Role::Pause).await;
    assert_eq!(seen, TaskSeen::Missing);
    clear(runtime, network, &sandbox.id).await;
}

pub async fn this_very_object_is_removed_and_no_other<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    use RuntimeObjectKind::{Cgroup, Container, Directory, Lease, Logs, Shim, Snapshot, Task};
    let sandbox = subject.sandbox("contract-13");
    bring_up(runtime, network, subject, &sandbox).await;
    let container = listed(runtime, &sandbox.id, Container, &app()).await;
    let container = container.unwrap();
    let mut former = container.clone();
    former.made_at = former.made_at.map(|it| it - DEADLINE);
    assert_refused("a former one", runtime.remove_object(&former).await);
    assert_tasks(runtime, &sandbox.id, TaskSeen::Running).await;

    let links = network.list().await.unwrap();
    let mine = |it: &Option<SandboxId>| it.as_ref() == Some(&sandbox.id);
    let links: Vec<_> = links.into_iter().filter(|it| mine(&it.sandbox)).collect();
    for kind in [Task, Shim, Container, Snapshot] {
        for role in roles().rev() {
            // The pause may do without a snapshot; a shim ends with its task.
            if let Some(object) = listed(runtime, &sandbox.id, kind, &role).await {
                for _ in 0..2 {
                    runtime.remove_object(&object).await.unwrap();
                }
            }
            assert_eq!(listed(runtime, &sandbox.id, kind, &role).await, None);
        }
    }
    for kind in [NetworkObjectKind::Link, NetworkObjectKind::Namespaces] {
        let object = links.iter().find(|it| it.kind == kind).unwrap();
        for _ in 0..2 {
            network.remove_object(object).await.unwrap();
        }
    }
    for kind in [Cgroup, Directory, Logs, Lease] {
        let objects = runtime.list().await.unwrap();
        for object in objects
            .iter()
            .filter(|it| mine(&it.sandbox) && it.kind == kind)
        {
            for _ in 0..2 {
                runtime.remove_object(object).await.unwrap();
            }
        }
    }
    assert_nothing_left(runtime, network, &sandbox.id).await;
}

/// Begins to follow the ends of tasks, which a node allows once.
pub async fn a_stopped_task_has_ended_and_its_end_is_hinted_at<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("contract-5");
    let mut hints = runtime.follow_exits();
    bring_up(runtime, network, subject, &sandbox).await;
    while hints.try_recv().is_ok() {}
    let before = SystemTime::now() - Duration::from_secs(1);
    for role in roles().rev() {
        for _ in 0..2 {
            runtime.stop_task(&sandbox.id, &role, GRACE).await.unwrap();
        }
        match task(runtime, &sandbox.id, &role).await {
            TaskSeen::Missing => {}
            TaskSeen::Exited { code, at } => {
                assert!(at >= before, "{role} ended before it was stopped");
                assert!([0, 137, 143].contains(&code), "{role} ended with {code}");
            }
            still @ (TaskSeen::Created | TaskSeen::Running | TaskSeen::Unknown) => {
                panic!("{role} is {still:?}")
            }
        }
    }
    let hinted =
        async { while hints.recv().await.expect("a stream") != Some(sandbox.id.clone()) {} };
    tokio::time::timeout(DEADLINE, hinted)
        .await
        .expect("no hint at the end of a task");
    clear(runtime, network, &sandbox.id).await;
}

pub async fn deleting_a_task_kills_what_runs<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("contract-6");
    bring_up(runtime, network, subject, &sandbox).await;
    for role in roles().rev() {
        runtime.delete_task(&sandbox.id, &role).await.unwrap();
    }
    assert_tasks(runtime, &sandbox.id, TaskSeen::Missing).await;
    // One that never ran goes as well.
    for role in roles() {
        runtime.create_task(&sandbox, &role).await.unwrap();
    }
    for role in roles().rev() {
        runtime.delete_task(&sandbox.id, &role).await.unwrap();
    }
    assert_tasks(runtime, &sandbox.id, TaskSeen::Missing).await;
    clear(runtime, network, &sandbox.id).await;
}

pub async fn a_container_without_its_image_leaves_nothing<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let mut sandbox = subject.sandbox("contract-7");
    let image = missing_image();
    let spec = Arc::make_mut(&mut sandbox.spec);
    spec.containers[0].image = image.clone();
    runtime.prepare(&sandbox).await.unwrap();
    match runtime.create_container(&sandbox, &app()).await {
        Err(RuntimeError::ImageMissing { image: named }) => assert_eq!(named, image.to_string()),
        other => panic!("an image that is missing gives {other:?}"),
    }
    let seen = runtime.observe(&sandbox.id).await.unwrap();
    assert!(seen.containers.is_empty(), "left: {:?}", seen.containers);
    clear(runtime, network, &sandbox.id).await;
}

pub async fn a_container_of_another_generation_is_refused<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("contract-8");
    ensure(runtime, subject).await;
    runtime.prepare(&sandbox).await.unwrap();
    for role in roles() {
        runtime.create_container(&sandbox, &role).await.unwrap();
    }
    let mut next = sandbox.clone();
    next.generation = Generation(sandbox.generation.0 + 1);
    for role in roles() {
        assert_refused(&role, runtime.create_container(&next, &role).await);
    }
    assert_tasks(runtime, &sandbox.id, TaskSeen::Missing).await;
    clear(runtime, network, &sandbox.id).await;
}

pub async fn what_runs_has_usage<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("contract-9");
    bring_up(runtime, network, subject, &sandbox).await;
    let readings = runtime.usage(&sandbox.id).await.unwrap();
    let measured: BTreeSet<_> = readings.iter().map(|it| it.role.clone()).collect();
    assert_eq!(measured, roles().collect(), "{readings:#?}");
    for it in &readings {
        assert!(it.usage.pids >= 1, "a container that runs: {it:#?}");
        assert!(it.usage.memory_usage > 0, "a container that runs: {it:#?}");
        assert!(it.usage.total_cpu_time >= it.usage.kernel_cpu_time);
        assert_eq!(it.usage.oom_kills, 0, "{it:#?}");
    }
    clear(runtime, network, &sandbox.id).await;
    assert_eq!(runtime.usage(&sandbox.id).await.unwrap(), vec![]);
}

pub async fn what_listens_is_shown<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("contract-10");
    bring_up(runtime, network, subject, &sandbox).await;
    let begun = Instant::now();
    loop {
        let sockets = network.listening(&sandbox.id).await.unwrap();
        let socket = sockets
            .iter()
            .find(|it| it.port == PORT && it.protocol == Protocol::Tcp);
        if let Some(socket) = socket {
            assert!(!socket.address.is_loopback(), "{socket:?}");
            let holders = runtime.socket_holders(&sandbox.id).await.unwrap();
            let holder = holders.get(&socket.inode);
            let holder = holder.unwrap_or_else(|| panic!("{socket:?} is not in {holders:?}"));
            assert_eq!(holder.role, app(), "{holder:?}");
            assert!(!holder.command.is_empty() && holder.pid > 0, "{holder:?}");
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "port {PORT} not in {sockets:?}");
        tokio::time::sleep(POLL).await;
    }
    let connects = |port| ProbeCheck::TcpConnect { port };
    network.probe(&sandbox, &connects(PORT)).await.unwrap();
    let refused = network.probe(&sandbox, &connects(PORT + 1)).await;
    refused.expect_err("nothing listens there");
    clear(runtime, network, &sandbox.id).await;
    assert!(
        runtime
            .socket_holders(&sandbox.id)
            .await
            .unwrap()
            .is_empty()
    );
}

pub async fn node_ports_are_led_where_a_sandbox_has_a_link<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("contract-14");
    network.lead_node_ports(&sandbox).await.unwrap_err();
    network.open_namespaces(&sandbox).await.unwrap();
    network.lead_node_ports(&sandbox).await.unwrap_err();
    network.attach_link(&sandbox).await.unwrap();
    for _ in 0..2 {
        network.lead_node_ports(&sandbox).await.unwrap();
    }
    clear(runtime, network, &sandbox.id).await;
}

pub async fn what_is_impossible_is_refused<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("contract-11");
    let id = &sandbox.id;
    ensure(runtime, subject).await;
    assert!(
        network.attach_link(&sandbox).await.is_err(),
        "a link of a sandbox without anything"
    );
    for role in roles() {
        assert_refused(&role, runtime.create_container(&sandbox, &role).await);
        assert_refused(&role, runtime.create_task(&sandbox, &role).await);
        assert_refused(&role, runtime.start_task(id, &role).await);
    }
    assert_nothing_left(runtime, network, id).await;

    runtime.prepare(&sandbox).await.unwrap();
    for role in roles() {
        runtime.create_container(&sandbox, &role).await.unwrap();
        assert_refused(&role, runtime.create_task(&sandbox, &role).await);
        assert_refused(&role, runtime.start_task(id, &role).await);
    }
    assert_refused("release", runtime.release(id).await);
    assert!(
        network.attach_link(&sandbox).await.is_err(),
        "a link without namespaces"
    );
    assert_tasks(runtime, id, TaskSeen::Missing).await;

    network.open_namespaces(&sandbox).await.unwrap();
    for role in roles() {
        runtime.create_task(&sandbox, &role).await.unwrap();
        assert_refused(&role, runtime.remove_container(id, &role).await);
    }
    assert_tasks(runtime, id, TaskSeen::Created).await;
    clear(runtime, network, id).await;
}

impl Subject {
    /// A sandbox with one app that listens.
    pub fn sandbox(&self, id: &str) -> Sandbox {
        let container = Container {
            name: ContainerName::parse("app").unwrap(),
            image: self.image.clone(),
            command: COMMAND.to_owned(),
            args: None,
            directory: String::new(),
            env: vec![],
            ports: vec![Port {
                number: PORT,
                name: String::new(),
                protocol: Protocol::Tcp,
                kind: String::new(),
                node_port: None,
            }],
            oom_score: 0,
            tty: false,
            stdin: false,
            config_files: vec![],
            shutdown_timeout: GRACE,
            resources: Resources::default(),
            readiness_probe: None,
        };
        Sandbox {
            id: SandboxId::parse(id).unwrap(),
            generation: Generation(1),
            spec: Arc::new(SandboxSpec {
                containers: vec![container],
                ..SandboxSpec::default()
            }),
            addresses: self.addresses.clone(),
            bound_ports: BTreeMap::new(),
        }
    }
}

/// Brings `sandbox` up in the order of a bring-up.
pub async fn bring_up<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
    sandbox: &Sandbox,
) {
    ensure(runtime, subject).await;
    runtime.prepare(sandbox).await.unwrap();
    network.open_namespaces(sandbox).await.unwrap();
    network.attach_link(sandbox).await.unwrap();
    for role in roles() {
        runtime.create_container(sandbox, &role).await.unwrap();
        runtime.create_task(sandbox, &role).await.unwrap();
        runtime.start_task(&sandbox.id, &role).await.unwrap();
    }
    assert_tasks(runtime, &sandbox.id, TaskSeen::Running).await;
}

/// Removes whatever there is of a sandbox, and makes sure of it.
pub async fn clear<R: Runtime, N: Network>(runtime: &R, network: &N, id: &SandboxId) {
    for role in roles().rev() {
        let grace = Duration::ZERO;
        runtime.stop_task(id, &role, grace).await.unwrap();
        runtime.delete_task(id, &role).await.unwrap();
        runtime.remove_container(id, &role).await.unwrap();
    }
    network.detach_link(id).await.unwrap();
    network.close_namespaces(id).await.unwrap();
    runtime.release(id).await.unwrap();
    runtime.forget_logs(id).await.unwrap();
    assert_nothing_left(runtime, network, id).await;
}

async fn ensure<R: Images>(runtime: &R, subject: &Subject) {
    let (progress, _) = watch::channel(vec![]);
    runtime.ensure(&subject.image, &progress).await.unwrap();
}

async fn image_names<R: Images>(runtime: &R) -> BTreeSet<String> {
    let listed = runtime.list_images().await.unwrap();
    listed.into_iter().map(|it| it.name).collect()
}

/// The object of this kind and container, where there is one.
async fn listed<R: Runtime>(
    runtime: &R,
    id: &SandboxId,
    kind: RuntimeObjectKind,
    role: &Role,
) -> Option<RuntimeObject> {
    let objects = runtime.list().await.unwrap();
    objects.into_iter().find(|it| {
        it.kind == kind && it.sandbox.as_ref() == Some(id) && it.role.as_ref() == Some(role)
    })
}

async fn task<R: Runtime>(runtime: &R, id: &SandboxId, role: &Role) -> TaskSeen {
    let seen = runtime.observe(id).await.unwrap();
    seen.containers.get(role).copied().unwrap_or_default().task
}

/// Both containers are stored, and their tasks are in this state.
async fn assert_tasks<R: Runtime>(runtime: &R, id: &SandboxId, task: TaskSeen) {
    let seen = runtime.observe(id).await.unwrap();
    let expected = roles()
        .map(|role| (role, ContainerSeen { stored: true, task }))
        .collect();
    assert_eq!(seen.prepared, Extent::Whole, "sandbox {id}");
    assert_eq!(seen.containers, expected, "sandbox {id}");
}

async fn assert_nothing_left<R: Runtime, N: Network>(runtime: &R, network: &N, id: &SandboxId) {
    assert_eq!(runtime.observe(id).await.unwrap(), RuntimeSeen::default());
    assert_eq!(network.observe(id).await.unwrap(), NetworkSeen::default());
    let objects = runtime.list().await.unwrap();
    for it in &objects {
        assert_ne!(it.sandbox.as_ref(), Some(id), "{it:?} is left");
    }
    let objects = network.list().await.unwrap();
    for it in &objects {
        assert_ne!(it.sandbox.as_ref(), Some(id), "{it:?} is left");
    }
}

fn assert_refused<T: fmt::Debug>(what: impl fmt::Display, outcome: Result<T, RuntimeError>) {
    assert!(
        matches!(outcome, Err(RuntimeError::Refused { .. })),
        "{what}: expected a refusal, not {outcome:?}"
    );
}

fn roles() -> impl DoubleEndedIterator<Item = Role> {
    [Role::Pause, app()].into_iter()
}

fn app() -> Role {
    Role::App(ContainerName::parse("app").unwrap())
}

/// A reference that no node has; nothing answers at its registry.
fn missing_image() -> ImageRef {
    ImageRef::parse("127.0.0.1:1/contract/missing:1").unwrap()
}

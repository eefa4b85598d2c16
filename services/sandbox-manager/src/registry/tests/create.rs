//! Creates: joined, left, interrupted, failing at every step.

use super::*;

#[tokio::test]
async fn a_create_that_joins_a_running_one_gets_the_same_generation() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.hang("prepare web");
    let first = manager.admit(web()).await;
    manager.until_called("prepare web").await;
    let second = manager.admit(web()).await;
    assert_eq!(first.generation, second.generation);
    let free = async { ground.node.release_hang() };
    let (one, two, ()) = tokio::join!(
        manager.await_running(&first),
        manager.await_running(&second),
        free
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(
        (one.status, one.generation),
        (Status::Running, first.generation)
    );
    assert_eq!(one, two);
    let prepared = ground.node.calls();
    let prepared = prepared.iter().filter(|it| *it == "prepare web");
    assert_eq!(prepared.count(), 1);
}

#[tokio::test]
async fn another_spec_does_not_join() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    manager.create(web()).await.unwrap();
    let other = changed_spec(|it| it.version = "2".into());
    let refused = manager
        .registry
        .admit(web(), other, CreateTerms::default())
        .await
        .unwrap_err();
    assert_eq!(refused.reason, Reason::SpecConflict);
    assert_eq!(refused.metadata["field"], "spec.version");
}

#[tokio::test]
async fn a_create_goes_on_without_its_caller() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.hang("start_task web app");
    let record = manager.admit(web()).await;
    tokio::select! {
        answer = manager.await_running(&record) => panic!("{answer:?}"),
        () = manager.until_called("start_task web app") => {}
    }
    ground.node.release_hang();
    let running = ground.until_status(web(), Status::Running).await;
    assert_eq!(running.generation, record.generation);
    assert!(manager.stands(&running).await);
}

#[tokio::test]
async fn a_sandbox_runs_with_what_its_plan_found_out() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let running = manager.create(web()).await.unwrap();
    assert_eq!(running.reason, "");
    assert_eq!(running.addresses.len(), 1);
    let digests: Vec<_> = running.images.values().collect();
    assert!(digests[0].starts_with("sha256:"), "{digests:?}");
    let ports: Vec<_> = running.ports.iter().map(|it| (it.port, it.bound)).collect();
    assert_eq!(ports, [(PORT, true)]);
    let phases: Vec<_> = running.phases.iter().map(|it| it.name.as_str()).collect();
    for step in bring_up() {
        assert!(phases.contains(&step.name()), "{step} in {phases:?}");
    }
    assert_eq!(phases[0], "admit");
}

#[tokio::test]
async fn a_create_that_fails_at_any_step_is_undone_and_says_why() {
    for step in bring_up() {
        for done in [false, true] {
            let case = format!("{step} failed, in effect: {done}");
            let ground = Ground::new();
            let manager = ground.manager().await;
            let fails = operation(&step, web());
            if done {
                ground.node.fail_next_when_done(&fails, 1);
            } else {
                ground.node.fail_next(&fails, 1);
            }
            let failure = manager.create(web()).await.unwrap_err();
            let expected = reason_of(&step, done);
            assert_eq!(failure.reason, expected, "{case}: {failure}");
            let worth_it = matches!(
                expected,
                Reason::RuntimeUnreachable | Reason::RegistryUnreachable
            );
            assert_eq!(failure.retry_after.is_some(), worth_it, "{case}");

            let dead = ground.until_status(web(), Status::Dead).await;
            assert_eq!(dead.reason, expected.as_str(), "{case}");
            assert_eq!(dead.failure, Some(failure), "{case}");
            assert_eq!((dead.ending, dead.exit.as_ref()), (None, None), "{case}");
            assert_eq!(dead.addresses, [], "{case}");
            ground.assert_nothing_left(&case).await;

            let second = manager.create(web()).await.unwrap();
            assert!(second.generation > dead.generation, "{case}");
            assert_eq!(second.failure, None, "{case}");
            assert!(manager.stands(&second).await, "{case}");
        }
    }
}

/// What a caller is told when a step fails, or when it is done and the answer is lost.
fn reason_of(step: &Step, done: bool) -> Reason {
    let of_network = matches!(
        step,
        Step::OpenNamespaces | Step::AttachLink | Step::AwaitReady
    );
    match (of_network, done) {
        (true, _) => Reason::NetworkFailed,
        (false, true) => Reason::RuntimeUnreachable,
        (false, false) if matches!(step, Step::EnsureImage(_)) => Reason::RegistryUnreachable,
        (false, false) => Reason::RuntimeRefused,
    }
}

#[tokio::test]
async fn an_undo_that_fails_goes_on_until_it_succeeds() {
    for step in tear_down() {
        let ground = Ground::new();
        let manager = ground.manager().await;
        ground.node.fail_next("listening web", 1);
        ground.node.fail_next(&operation(&step, web()), 3);
        let failure = manager.create(web()).await.unwrap_err();
        assert_eq!(failure.reason, Reason::NetworkFailed, "{step}: {failure}");
        assert!(failure.message.contains("listening"), "{step}: {failure}");
        ground.until_status(web(), Status::Dead).await;
        ground.assert_nothing_left(&step.to_string()).await;
    }
}

#[tokio::test]
async fn a_create_that_loses_containerd_says_so_at_once_and_is_undone_when_it_is_back() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.hang("create_task web app");
    let record = manager.admit(web()).await;
    manager.until_called("create_task web app").await;
    ground.node.unreachable(true);
    ground.node.release_hang();
    let failure = manager.await_running(&record).await.unwrap_err();
    assert_eq!(failure.reason, Reason::RuntimeUnreachable);
    assert!(failure.retry_after.is_some(), "it says when to try again");
    let pending = ground.record(web()).await.unwrap();
    assert_eq!(pending.status, Status::Pending, "unknown is not gone");

    ground.node.unreachable(false);
    let dead = ground.until_status(web(), Status::Dead).await;
    assert_eq!(dead.reason, "RUNTIME_UNREACHABLE");
    ground.assert_nothing_left("containerd is back").await;
}

#[tokio::test]
async fn an_exit_before_the_port_listens_fails_the_create_with_its_record() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.listen_on("app", &[]);
    let record = manager.admit(web()).await;
    let exits = async {
        let up = async || manager.stands(&record).await;
        until("the tasks run", up).await;
        ground.node.exit(web(), &app(), 7);
    };
    let (answer, ()) = tokio::join!(manager.await_running(&record), exits);
    let failure = answer.unwrap_err();
    assert_eq!(failure.reason, Reason::ContainerExited);
    assert_eq!(failure.metadata["exit_code"], "7");
    let waited = "before the sandbox was RUNNING; port 8080 (app) did not listen yet";
    assert!(failure.message.ends_with(waited), "{failure}");
    let dead = ground.until_status(web(), Status::Dead).await;
    let exit = dead.exit.unwrap();
    assert_eq!((exit.role, exit.code), (app(), 7));
    ground.assert_nothing_left("an exit").await;
}

#[tokio::test]
async fn a_port_that_does_not_listen_in_time_fails_the_create() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.listen_on("app", &[]);
    let spec = changed_spec(|it| it.port_wait_timeout = Duration::from_millis(10));
    let record = manager
        .registry
        .admit(web(), spec, CreateTerms::default())
        .await
        .unwrap();
    let failure = manager.await_running(&record).await.unwrap_err();
    assert_eq!(failure.reason, Reason::PortTimeout);
    ground.until_status(web(), Status::Dead).await;
    ground.assert_nothing_left("a port timeout").await;
}

#[tokio::test]
async fn a_dead_id_is_created_anew_with_another_spec() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let first = manager.create(web()).await.unwrap();
    manager.stop_sandbox(web()).await.unwrap();
    let other = changed_spec(|it| it.version = "2".into());
    let second = manager
        .registry
        .admit(web(), other, CreateTerms::default())
        .await
        .unwrap();
    assert!(second.generation > first.generation);
    let running = manager.await_running(&second).await.unwrap();
    assert_eq!(running.spec.version, "2");
    assert!(manager.stands(&running).await);
    // Who still waits for the first one is told that it is over.
    let late = manager.await_running(&first).await.unwrap_err();
    assert_eq!(late.reason, Reason::CreateCancelled);
}

#[tokio::test]
async fn what_is_in_the_way_of_a_create_is_cleared_and_the_next_one_runs() {
    let ground = Ground::new();
    // The store of a former life is lost, what it explained is not.
    let former = Ground::new();
    let lost = former.manager().await.admit(web()).await;
    let subject = Subject {
        image: image(),
        addresses: vec!["10.9.0.2/24".parse().unwrap()],
    };
    let mut sandbox = lost.sandbox();
    sandbox.generation = Generation(lost.generation.0 + 40);
    berth_platform::contract::bring_up(&ground.node, &ground.node, &subject, &sandbox).await;

    let manager = ground.manager().await;
    let failure = manager.create(web()).await.unwrap_err();
    assert_eq!(failure.reason, Reason::RuntimeRefused);
    ground.until_status(web(), Status::Dead).await;
    ground.assert_nothing_left("something in the way").await;
    manager.create(web()).await.unwrap();
}

#[tokio::test]
async fn creates_beyond_the_limit_queue_and_go_on_in_turn() {
    let ground = Ground::new();
    let one = Limits {
        task_creations: 1,
        ..limits()
    };
    let manager = ground.manager_with(one).await;
    ground.node.hang("create_task a pause");
    ground.node.hang("create_task a app");
    let first = manager.admit(&id("a")).await;
    manager.until_called("create_task a").await;
    let second = manager.admit(&id("b")).await;
    // One that waits in the queue can be ended without its turn.
    manager.admit(&id("c")).await;
    assert_eq!(manager.delete(&id("c")).await, Ok(true));
    let calls = ground.node.calls();
    assert!(
        !calls.iter().any(|it| it.starts_with("create_task b")),
        "{calls:?}"
    );
    ground.node.release_hang();
    manager.await_running(&first).await.unwrap();
    manager.await_running(&second).await.unwrap();
}

#[tokio::test]
async fn a_sandbox_in_the_network_of_the_node_comes_and_goes_without_a_link_or_an_address() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let spec = changed_spec(|it| it.host_network = true);
    let admitted = manager.registry.admit(web(), spec, CreateTerms::default());
    let record = manager
        .await_running(&admitted.await.unwrap())
        .await
        .unwrap();
    assert_eq!(
        (record.status, record.addresses.as_slice()),
        (Status::Running, &[][..])
    );
    let linked = |it: &String| it.starts_with("attach_link");
    assert!(!manager.node.calls().iter().any(linked));
    assert_eq!(ground.store.lease_counts().await.unwrap().held, 0);
    manager.shut_down().await;

    let manager = ground.manager().await;
    assert!(manager.stands(&record).await);
    ground.node.listen_on_node(berth_platform::ListeningSocket {
        inode: 1,
        protocol: Protocol::Tcp,
        address: std::net::Ipv4Addr::UNSPECIFIED.into(),
        port: 9999,
    });
    let taken = changed_spec(|it| {
        it.host_network = true;
        it.containers[0].ports[0].number = 9999;
    });
    let other = id("other");
    let refused = manager
        .registry
        .admit(&other, taken, CreateTerms::default());
    assert_eq!(refused.await.unwrap_err().reason, Reason::NodePortInUse);
    assert_eq!(manager.delete(web()).await, Ok(true));
    ground
        .assert_gone(web(), "in the network of the node")
        .await;
}

#[tokio::test]
async fn what_only_rules_carry_out_is_refused_by_a_node_that_can_have_none() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.without_rules();
    let admit = async |id, change: fn(&mut SandboxSpec)| {
        let spec = changed_spec(change);
        let admitted = manager.registry.admit(id, spec, CreateTerms::default());
        within("an answer", admitted).await
    };
    let published: fn(&mut SandboxSpec) = |it| it.containers[0].ports[0].node_port = Some(80);
    let asks = [
        ("spec.containers[0].ports[0].node_port", published),
        ("spec.network.egress", |it| it.network.egress = Egress::Deny),
        ("spec.network.allow_from", |it| {
            it.network.allow_from = vec!["app=web".into()];
        }),
    ];
    for (field, change) in asks {
        let refused = admit(web(), change).await.unwrap_err();
        assert_eq!(refused.reason, Reason::UnsupportedField);
        let fields: Vec<_> = refused.violations.iter().map(|it| &it.field).collect();
        assert_eq!(fields, [field]);
        assert_eq!(ground.record(web()).await, None);
    }
    admit(web(), |_| {}).await.unwrap();
}

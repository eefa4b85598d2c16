//! What the next manager makes of what the one before has left, wherever it was.

use berth_domain::RestartPolicy;
use berth_platform::contract;
use tokio::runtime::Runtime as Executor;

use super::*;

/// Dropping it is the death of the manager that it runs: no task gets on from where it stands.
fn executor() -> Executor {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Runs one manager until `moment`, kills it there, and lets what hung on the node get on.
fn killed<T>(ground: &Ground, moment: impl AsyncFnOnce(&Manager) -> T) -> T {
    let executor = executor();
    let outcome = executor.block_on(async {
        let manager = ground.manager().await;
        moment(&manager).await
    });
    drop(executor);
    ground.node.release_hang();
    outcome
}

#[test]
fn a_create_is_finished_wherever_its_manager_died() {
    for step in bring_up() {
        let ground = Ground::new();
        let promised = killed(&ground, async |manager| {
            ground.node.hang(&operation(&step, web()));
            let record = manager.admit(web()).await;
            until_at(manager, &step, web()).await;
            record
        });
        executor().block_on(async {
            let manager = ground.manager().await;
            let running = ground.until_status(web(), Status::Running).await;
            assert_eq!(running.generation, promised.generation, "{step}");
            assert_eq!(running.addresses, promised.addresses, "{step}");
            assert!(manager.stands(&running).await, "{step}");
            let digests: Vec<_> = running.images.values().collect();
            assert_eq!(
                digests.len(),
                1,
                "{step}: the digest of what was made before"
            );
            let joined = manager.create(web()).await.unwrap();
            assert_eq!(joined.generation, promised.generation, "{step}");
            assert_eq!(manager.delete(web()).await, Ok(true), "{step}");
            ground.assert_gone(web(), &step.to_string()).await;
        });
    }
}

#[test]
fn an_end_is_finished_wherever_its_manager_died() {
    let steps = tear_down();
    let operations = steps.iter().map(|it| operation(it, web()));
    for hang in operations.chain(["forget_logs web".to_owned()]) {
        for ending in [Ending::Stop, Ending::Delete] {
            if ending == Ending::Stop && hang.starts_with("forget_logs") {
                continue;
            }
            let case = format!("{ending:?}, died at {hang}");
            let ground = Ground::new();
            killed(&ground, async |manager| {
                manager.create(web()).await.unwrap();
                ground.node.hang(&hang);
                let end = async {
                    match ending {
                        Ending::Stop | Ending::Expire => drop(manager.stop_sandbox(web()).await),
                        Ending::Delete => drop(manager.delete(web()).await),
                    }
                };
                tokio::select! {
                    () = end => panic!("{case}: it has ended"),
                    () = manager.until_called(&hang) => {}
                }
            });
            executor().block_on(async {
                let _manager = ground.manager().await;
                match ending {
                    Ending::Stop | Ending::Expire => {
                        ground.until_status(web(), Status::Dead).await;
                        ground.assert_nothing_left(&case).await;
                    }
                    Ending::Delete => {
                        let gone = async || ground.record(web()).await.is_none();
                        until(&case, gone).await;
                        ground.assert_gone(web(), &case).await;
                    }
                }
            });
        }
    }
}

#[test]
fn a_create_whose_undo_was_cut_off_is_undone_and_its_reason_kept() {
    for step in tear_down() {
        let case = step.to_string();
        let ground = Ground::new();
        let promised = killed(&ground, async |manager| {
            ground.node.fail_next("listening web", 1);
            let hang = operation(&step, web());
            ground.node.hang(&hang);
            let record = manager.admit(web()).await;
            manager.until_called(&hang).await;
            record
        });
        executor().block_on(async {
            let pending = ground.record(web()).await.unwrap();
            let failure = pending.failure.unwrap();
            let ran = pending.phases.iter().any(|it| it.name == "await-ready");
            assert!(ran, "{case}: {:?}", pending.phases);
            assert_eq!(
                (pending.status, pending.reason.as_str()),
                (Status::Pending, failure.reason.as_str()),
                "{case}"
            );
            let manager = ground.manager().await;
            // Who asks again while it is undone joins it.
            let joined = manager.await_running(&promised).await.unwrap_err();
            assert_eq!(joined, failure, "{case}");
            let dead = ground.until_status(web(), Status::Dead).await;
            assert_eq!(dead.generation, promised.generation, "{case}");
            assert_eq!((dead.failure, dead.ending), (Some(failure), None), "{case}");
            assert_eq!(dead.phases, pending.phases, "{case}");
            ground.assert_nothing_left(&case).await;
            let calls = ground.node.calls();
            let started = calls
                .iter()
                .filter(|it| it.starts_with("start_task web app"));
            assert_eq!(started.count(), 1, "{case}: it runs once");
        });
    }
}

#[test]
fn what_is_asked_of_a_create_that_is_being_undone_waits_for_the_undo() {
    for ending in [None, Some(Ending::Stop), Some(Ending::Delete)] {
        let case = format!("{ending:?}");
        let ground = Ground::new();
        let hang = operation(&Step::Release, web());
        let promised = killed(&ground, async |manager| {
            ground.node.fail_next("listening web", 1);
            ground.node.hang(&hang);
            let record = manager.admit(web()).await;
            manager.until_called(&hang).await;
            record
        });
        executor().block_on(async {
            ground.node.hang(&hang);
            let manager = ground.manager().await;
            let asked = async {
                match ending {
                    None | Some(Ending::Expire) => drop(manager.create(web()).await.unwrap_err()),
                    Some(Ending::Stop) => drop(manager.stop_sandbox(web()).await.unwrap()),
                    Some(Ending::Delete) => assert!(manager.delete(web()).await.unwrap()),
                }
            };
            tokio::pin!(asked);
            let early = tokio::time::timeout(Duration::from_millis(100), &mut asked).await;
            assert!(early.is_err(), "{case}: it is not undone yet");
            ground.node.release_hang();
            asked.await;
            if ending == Some(Ending::Delete) {
                return ground.assert_gone(web(), &case).await;
            }
            let dead = ground.record(web()).await.unwrap();
            let failure = dead.failure.unwrap();
            assert_eq!(dead.generation, promised.generation, "{case}");
            assert_eq!(
                (dead.status, dead.reason.as_str(), dead.ending),
                (Status::Dead, failure.reason.as_str(), None),
                "{case}"
            );
            ground.assert_nothing_left(&case).await;
            let again = manager.create(web()).await.unwrap();
            assert!(again.generation > promised.generation, "{case}");
            assert_eq!(
                (&again.failure, again.reason.as_str()),
                (&None, ""),
                "{case}"
            );
        });
    }
}

#[tokio::test]
async fn a_manager_that_is_told_to_stop_leaves_a_create_to_the_next_one() {
    let ground = Ground::new();
    ground.node.listen_on("app", &[]);
    let first = ground.manager().await;
    let record = first.admit(web()).await;
    let up = async || first.stands(&record).await;
    until("the tasks run", up).await;
    let (answer, ()) = tokio::join!(first.await_running(&record), async { first.stop.cancel() });
    let refused = answer.unwrap_err();
    assert_eq!(refused.reason, Reason::ShuttingDown);
    assert!(refused.retry_after.is_some());
    first.shut_down().await;
    let calls = ground.node.calls();
    assert!(
        !calls.iter().any(|it| it.starts_with("stop_task")),
        "{calls:?}"
    );

    let second = ground.manager().await;
    ground.node.listen_on("app", &[everywhere()]);
    let running = second.await_running(&record).await.unwrap();
    assert_eq!(running.generation, record.generation);
    assert_eq!(ground.node.calls(), calls, "nothing is made anew");
    let digests: Vec<_> = running.images.values().collect();
    assert!(digests[0].starts_with("sha256:"), "{digests:?}");
    let phases: Vec<_> = running.phases.iter().map(|it| it.name.as_str()).collect();
    for step in bring_up() {
        let known = phases.iter().filter(|it| **it == step.name());
        let steps = bring_up();
        let wanted = steps.iter().filter(|it| it.name() == step.name());
        assert_eq!(known.count(), wanted.count(), "{step} in {phases:?}");
    }
}

#[tokio::test]
async fn what_stands_whole_becomes_running_only_when_its_port_listens() {
    let ground = Ground::new();
    ground.node.listen_on("app", &[]);
    let admitted = ground
        .store
        .admit(web(), spec(), Arrival::default(), SystemTime::now());
    let StoreAdmitted::Begun(record) = admitted.await.unwrap() else {
        panic!("the store is new");
    };
    let subject = Subject {
        image: image(),
        addresses: vec![record.addresses[0]],
    };
    contract::bring_up(&ground.node, &ground.node, &subject, &record.sandbox()).await;
    let calls = ground.node.calls();

    // Several looks find no port.
    let manager = ground.manager().await;
    let waiting = manager.registry.await_running(web(), record.generation);
    let early = tokio::time::timeout(Duration::from_millis(200), waiting).await;
    assert!(early.is_err(), "{early:?}");
    let pending = ground.record(web()).await.unwrap();
    assert_eq!(pending.status, Status::Pending);
    ground.node.listen_on("app", &[everywhere()]);
    let running = manager.await_running(&record).await.unwrap();
    assert_eq!(running.ports[0].port, PORT);
    assert_eq!(ground.node.calls(), calls, "nothing is made anew");
}

#[tokio::test]
async fn what_runs_is_taken_up_as_it_is() {
    let ground = Ground::new();
    let first = ground.manager().await;
    let before = first.create(web()).await.unwrap();
    first.shut_down().await;
    let calls = ground.node.calls();
    let second = ground.manager().await;
    let after = second.create(web()).await.unwrap();
    assert_eq!(after, before);
    // It is followed again.
    ground.node.exit(web(), &app(), 3);
    let dead = ground.until_status(web(), Status::Dead).await;
    assert_eq!(dead.exit.map(|it| it.code), Some(3));
    let calls_after = ground.node.calls();
    let made = calls_after[calls.len()..]
        .iter()
        .filter(|it| it.starts_with("create"));
    assert_eq!(made.count(), 0, "{calls_after:?}");
}

#[tokio::test]
async fn what_ended_or_vanished_while_no_manager_ran_is_seen_at_the_next_start() {
    for policy in [RestartPolicy::Always, RestartPolicy::Never] {
        let ground = Ground::new();
        let first = ground.manager().await;
        let spec = changed_spec(|it| it.restart_policy = policy);
        for name in ["exited", "lost"] {
            let admitted = first
                .registry
                .admit(&id(name), spec.clone(), CreateTerms::default())
                .await
                .unwrap();
            first.await_running(&admitted).await.unwrap();
        }
        let lost = ground.record(&id("lost")).await.unwrap();
        first.shut_down().await;
        // An exit is seen as long as the node was not restarted, so each has a manager of its own.
        ground.node.exit(&id("exited"), &app(), 3);
        let second = ground.manager().await;
        let dead = ground.until_status(&id("exited"), Status::Dead).await;
        assert_eq!(dead.exit.map(|it| it.code), Some(3));
        second.shut_down().await;
        ground.node.forget();
        let third = ground.manager().await;
        match policy {
            RestartPolicy::Always => {
                let whole = async || third.stands(&lost).await;
                until("it stands again", whole).await;
                let again = ground.until_status(&id("lost"), Status::Running).await;
                assert_eq!(again.addresses, lost.addresses);
                assert_eq!(again.generation, lost.generation);
            }
            RestartPolicy::Never => {
                let dead = ground.until_status(&id("lost"), Status::Dead).await;
                assert_eq!(dead.reason, "RUNTIME_LOST");
                ground.assert_nothing_left("a reboot").await;
            }
        }
    }
}

#[tokio::test]
async fn what_is_made_again_after_a_reboot_is_tried_until_containerd_answers() {
    let ground = Ground::new();
    let first = ground.manager().await;
    let spec = changed_spec(|it| it.restart_policy = RestartPolicy::Always);
    let admitted = first
        .registry
        .admit(web(), spec, CreateTerms::default())
        .await;
    let before = first.await_running(&admitted.unwrap()).await.unwrap();
    first.shut_down().await;
    ground.node.forget();
    ground
        .node
        .fail_next_when_done("create_container web app", 2);
    let second = ground.manager().await;
    until("it stands again", async || second.stands(&before).await).await;
    let again = ground.until_status(web(), Status::Running).await;
    assert_eq!(again.generation, before.generation);
}

#[tokio::test]
async fn a_boot_without_a_name_is_told_from_no_other() {
    let ground = Ground::new();
    let first = ground.manager().await;
    let record = first.create(web()).await.unwrap();
    first.shut_down().await;
    let former = |it: &mut SandboxRecord| it.boot_id = "former".into();
    let (generation, now) = (record.generation, SystemTime::now());
    ground
        .store
        .update(web(), generation, now, former)
        .await
        .unwrap();
    ground.node.exit(web(), &app(), 3);
    let _second = ground.manager().await;
    let dead = ground.until_status(web(), Status::Dead).await;
    assert_eq!(dead.exit.map(|it| it.code), Some(3));
}

#[tokio::test]
async fn a_record_that_no_task_has_is_taken_up_again() {
    let ground = Ground::new();
    let _manager = ground.manager().await;
    let admitted = ground
        .store
        .admit(web(), spec(), Arrival::default(), SystemTime::now());
    admitted.await.unwrap();
    ground.until_status(web(), Status::Running).await;
}

#[tokio::test]
async fn one_record_that_cannot_be_looked_at_holds_up_no_other() {
    let ground = Ground::new();
    let first = ground.manager().await;
    for name in ["a", "b"] {
        first.create(&id(name)).await.unwrap();
    }
    first.shut_down().await;
    ground.node.hang("observe a");
    ground.node.exit(&id("b"), &app(), 2);
    let second = ground.manager().await;
    ground.until_status(&id("b"), Status::Dead).await;
    second.create(&id("c")).await.unwrap();
}

//! What becomes of a sandbox that was RUNNING.

use berth_domain::{ExitCause, RestartPolicy};
use berth_store::{Change, Watch};

use super::*;

/// The statuses that the record of `id` enters, until `last`.
async fn statuses(changes: &mut Watch, id: &SandboxId, last: Status) -> Vec<Status> {
    let mut seen = vec![];
    let all = async {
        while seen.last() != Some(&last) {
            if let (_, Change::Upserted(record)) = changes.next().await.unwrap()
                && record.id == *id
                && seen.last() != Some(&record.status)
            {
                seen.push(record.status);
            }
        }
    };
    within(&format!("{id} is {last}"), all).await;
    seen
}

#[tokio::test]
async fn the_exit_of_a_container_ends_its_sandbox_and_is_recorded() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let running = manager.create(web()).await.unwrap();
    let (_, _, mut changes) = ground.store.snapshot_and_watch().await.unwrap();
    ground.node.exit(web(), &app(), 3);
    let mut entered = statuses(&mut changes, web(), Status::Dead).await;
    // What was seen of its ports may have been written meanwhile.
    entered.retain(|it| *it != Status::Running);
    assert_eq!(entered, [Status::Stopped, Status::Dead]);
    let dead = ground.record(web()).await.unwrap();
    assert_eq!(dead.generation, running.generation);
    assert_eq!(dead.reason, "CONTAINER_EXITED");
    let exit = dead.exit.unwrap();
    assert_eq!(
        (exit.role, exit.code, exit.cause),
        (app(), 3, ExitCause::Exit)
    );
    ground.assert_nothing_left("an exit").await;
    assert!(ground.node.has_logs(web()), "its output says why");
}

#[tokio::test]
async fn an_exit_for_memory_is_told_from_a_kill() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    manager.create(web()).await.unwrap();
    ground.node.exit_for_memory(web(), &app());
    let dead = ground.until_status(web(), Status::Dead).await;
    let exit = dead.exit.unwrap();
    assert_eq!((exit.code, exit.cause), (137, ExitCause::Oom));
}

#[tokio::test]
async fn a_worker_that_was_killed_for_memory_once_does_not_explain_a_later_kill() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    manager.create(web()).await.unwrap();
    ground.node.lose_worker_for_memory(web(), &app());
    // That a look was taken shows in that those before it failed; each poke that waits has one at once.
    ground.node.fail_next("usage web", 3);
    manager.registry.wake(web());
    let troubled = || !manager.registry.troubles().is_empty();
    until("it cannot be looked at", async || troubled()).await;
    until("it was looked at", async || !troubled()).await;
    let later = SystemTime::now() + Duration::from_secs(60);
    ground.node.exit_at(web(), &app(), 137, later);
    let dead = ground.until_status(web(), Status::Dead).await;
    assert_eq!(dead.exit.unwrap().cause, ExitCause::Signal);
}

#[tokio::test]
async fn a_lease_that_was_lost_is_made_again_below_what_runs() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let running = manager.create(web()).await.unwrap();
    ground.node.lose_lease(web());
    assert!(!manager.stands(&running).await);
    manager.registry.wake(web());
    until("it is whole again", async || manager.stands(&running).await).await;
    assert_eq!(ground.record(web()).await.as_ref(), Some(&*running));
}

#[tokio::test]
async fn a_create_whose_sandbox_has_ended_meanwhile_is_told_how() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let record = manager.admit(web()).await;
    ground.until_status(web(), Status::Running).await;
    ground.node.exit(web(), &app(), 7);
    ground.until_status(web(), Status::Dead).await;
    let failure = manager.await_running(&record).await.unwrap_err();
    assert_eq!(failure.reason, Reason::ContainerExited);
    assert_eq!(failure.metadata["exit_code"], "7");
}

#[tokio::test]
async fn of_two_exits_the_first_is_recorded() {
    // Both before anybody looks, and the second during the tear-down of the first.
    for hang in ["observe web", "stop_task web pause"] {
        let ground = Ground::new();
        let manager = ground.manager().await;
        manager.create(web()).await.unwrap();
        ground.node.hang(hang);
        ground.node.exit(web(), &app(), 3);
        if hang.starts_with("stop_task") {
            manager.until_called(hang).await;
        }
        ground.node.exit(web(), &Role::Pause, 4);
        ground.node.release_hang();
        let dead = ground.until_status(web(), Status::Dead).await;
        let exit = dead.exit.unwrap();
        assert_eq!((exit.role, exit.code), (app(), 3), "{hang}");
        ground.assert_nothing_left(hang).await;
    }
}

#[tokio::test]
async fn a_hanging_look_at_one_sandbox_holds_up_no_other() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    for name in ["a", "b"] {
        manager.create(&id(name)).await.unwrap();
    }
    ground.node.hang("observe a");
    ground.node.exit(&id("a"), &app(), 1);
    ground.node.exit(&id("b"), &app(), 2);
    ground.until_status(&id("b"), Status::Dead).await;
    manager.create(&id("c")).await.unwrap();
    assert_eq!(manager.delete(&id("c")).await, Ok(true));
    let hanging = ground.record(&id("a")).await.unwrap();
    assert_eq!(hanging.status, Status::Running, "unknown is not gone");
    ground.node.release_hang();
    ground.until_status(&id("a"), Status::Dead).await;
}

#[tokio::test]
async fn a_look_that_containerd_does_not_answer_changes_nothing() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let running = manager.create(web()).await.unwrap();
    ground.node.unreachable(true);
    ground.node.exit(web(), &app(), 3);
    // The task hears of the poke and looks in vain.
    let troubled = async || {
        let (_, view) = manager.registry.poke(web(), None);
        view.borrow().trouble.is_some()
    };
    until("a look in vain", troubled).await;
    assert_eq!(ground.record(web()).await.as_ref(), Some(&*running));
    ground.node.unreachable(false);
    let dead = ground.until_status(web(), Status::Dead).await;
    assert_eq!(dead.exit.map(|it| it.code), Some(3), "the missed exit");
}

#[tokio::test]
async fn what_the_node_has_lost_is_created_again_where_its_policy_says_so() {
    for policy in [RestartPolicy::Always, RestartPolicy::Never] {
        let ground = Ground::new();
        let manager = ground.manager().await;
        let spec = changed_spec(|it| it.restart_policy = policy);
        let record = manager
            .registry
            .admit(web(), spec, CreateTerms::default())
            .await
            .unwrap();
        let before = manager.await_running(&record).await.unwrap();
        let (_, _, mut changes) = ground.store.snapshot_and_watch().await.unwrap();
        ground.node.forget();
        match policy {
            RestartPolicy::Always => {
                let entered = statuses(&mut changes, web(), Status::Running).await;
                assert_eq!(entered, [Status::Pending, Status::Running]);
                let after = ground.record(web()).await.unwrap();
                assert_eq!(after.addresses, before.addresses);
                assert_eq!(after.generation, before.generation);
                assert!(manager.stands(&after).await);
            }
            RestartPolicy::Never => {
                let entered = statuses(&mut changes, web(), Status::Dead).await;
                assert_eq!(entered, [Status::Stopped, Status::Dead]);
                let dead = ground.record(web()).await.unwrap();
                assert_eq!(dead.reason, "RUNTIME_LOST");
                ground.assert_nothing_left("a reboot").await;
            }
        }
    }
}

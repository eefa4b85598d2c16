//! Deletes and Stops, from every state and against each other.

use super::*;

#[tokio::test]
async fn a_delete_interrupts_a_create_at_any_step_and_leaves_nothing() {
    for step in bring_up() {
        let ground = Ground::new();
        let manager = ground.manager().await;
        ground.node.hang(&operation(&step, web()));
        let record = manager.admit(web()).await;
        until_at(&manager, &step, web()).await;
        let script = async {
            let what = format!("{step}: the Delete is written down");
            let promised = |it: &SandboxRecord| it.ending == Some(Ending::Delete);
            ground.until(&what, web(), promised).await;
            // What only waits is dropped; what changes the node is seen to its end.
            if !step.only_waits() {
                ground.node.release_hang();
            }
        };
        let (deleted, created, ()) = tokio::join!(
            manager.delete(web()),
            manager.await_running(&record),
            script
        );
        assert_eq!(deleted, Ok(true), "{step}");
        let cancelled = created.unwrap_err();
        assert_eq!(
            cancelled.reason,
            Reason::CreateCancelled,
            "{step}: {cancelled}"
        );
        ground.assert_gone(web(), &step.to_string()).await;
    }
}

#[tokio::test]
async fn a_delete_of_what_runs_returns_when_all_is_gone() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    manager.create(web()).await.unwrap();
    assert_eq!(manager.delete(web()).await, Ok(true));
    ground.assert_gone(web(), "a Delete").await;
    assert_eq!(manager.delete(web()).await, Ok(false), "and again");
}

#[tokio::test]
async fn a_delete_of_an_id_without_a_record_clears_what_is_there() {
    let ground = Ground::new();
    let subject = Subject {
        image: image(),
        addresses: vec!["10.9.0.2/24".parse().unwrap()],
    };
    let sandbox = subject.sandbox("web");
    berth_platform::contract::bring_up(&ground.node, &ground.node, &subject, &sandbox).await;
    assert!(ground.node.has_logs(web()));
    let manager = ground.manager().await;
    assert_eq!(manager.delete(web()).await, Ok(false));
    ground.assert_gone(web(), "no record").await;
}

#[tokio::test]
async fn a_delete_goes_on_past_failures() {
    for step in tear_down() {
        let ground = Ground::new();
        let manager = ground.manager().await;
        manager.create(web()).await.unwrap();
        ground.node.fail_next(&operation(&step, web()), 2);
        assert_eq!(manager.delete(web()).await, Ok(true), "{step}");
        ground.assert_gone(web(), &step.to_string()).await;
    }
}

#[tokio::test]
async fn a_delete_or_stop_that_takes_too_long_says_what_is_held_and_goes_on() {
    let ground = Ground::new();
    let patience = Duration::from_secs(1);
    let manager = ground
        .manager_with(Limits {
            end_timeout: patience,
            ..limits()
        })
        .await;
    manager.create(web()).await.unwrap();
    ground.node.fail_next("detach_link web", 5);
    let late = manager.delete(web()).await.unwrap_err();
    assert_eq!(late.reason, Reason::DeadlinePassed);
    assert_eq!(late.metadata["held"], "detach-link");
    let gone = async || ground.record(web()).await.is_none();
    until("the record is gone", gone).await;
    ground.assert_gone(web(), "late").await;

    manager.create(web()).await.unwrap();
    ground.node.fail_next("detach_link web", 5);
    let late = manager.stop_sandbox(web()).await.unwrap_err();
    assert_eq!(late.reason, Reason::DeadlinePassed);
    assert_eq!(late.metadata["held"], "detach-link");
    let dead = async || {
        let record = ground.record(web()).await;
        record.is_some_and(|it| it.status == Status::Dead)
    };
    until("it is stopped", dead).await;
    // Whether it is late again is nothing to this test.
    let _ = manager.delete(web()).await;
    until("the record is gone", gone).await;
    ground.assert_gone(web(), "stopped late").await;
}

#[tokio::test]
async fn a_delete_without_containerd_says_so_and_is_carried_out_when_it_is_back() {
    let ground = Ground::new();
    let manager = ground
        .manager_with(Limits {
            end_timeout: Duration::from_secs(1),
            ..limits()
        })
        .await;
    manager.create(web()).await.unwrap();
    ground.node.unreachable(true);
    let refused = manager.delete(web()).await.unwrap_err();
    assert_eq!(refused.reason, Reason::RuntimeUnreachable);
    assert!(refused.retry_after.is_some());
    ground.node.unreachable(false);
    let gone = async || ground.record(web()).await.is_none();
    until("the record is gone", gone).await;
    ground.assert_gone(web(), "containerd is back").await;
}

#[tokio::test]
async fn a_stopped_sandbox_keeps_its_record_and_its_output_and_nothing_else() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let running = manager.create(web()).await.unwrap();
    let dead = manager.stop_sandbox(web()).await.unwrap();
    assert_eq!(
        (dead.status, dead.generation),
        (Status::Dead, running.generation)
    );
    assert_eq!(
        (dead.reason.as_str(), dead.ending),
        ("STOP_REQUESTED", None)
    );
    assert_eq!(dead.exit, None, "nothing exited by itself");
    ground.assert_nothing_left("a Stop").await;
    assert!(ground.node.has_logs(web()));
    let again = manager.stop_sandbox(web()).await.unwrap();
    assert_eq!(again, dead);
    assert_eq!(manager.delete(web()).await, Ok(true));
    ground.assert_gone(web(), "a Delete of the dead").await;
    let unknown = manager.stop_sandbox(web()).await.unwrap_err();
    assert_eq!(unknown.reason, Reason::SandboxNotFound);
}

#[tokio::test]
async fn a_delete_outranks_the_stop_that_is_under_way() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    manager.create(web()).await.unwrap();
    ground.node.hang("stop_task web app");
    let script = async {
        manager.until_called("stop_task web app").await;
        let promised = |it: &SandboxRecord| it.ending == Some(Ending::Delete);
        let free = async {
            ground
                .until("the Delete is written down", web(), promised)
                .await;
            ground.node.release_hang();
        };
        tokio::join!(manager.delete(web()), free).0
    };
    let (stopped, deleted) = tokio::join!(manager.stop_sandbox(web()), script);
    assert_eq!(deleted, Ok(true));
    assert_eq!(stopped.unwrap_err().reason, Reason::SandboxNotFound);
    ground.assert_gone(web(), "a Delete over a Stop").await;
}

#[tokio::test]
async fn another_generation_is_neither_stopped_nor_deleted() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let running = manager.create(web()).await.unwrap();
    let other = Some(Generation(running.generation.0 + 1));
    let stop = manager.registry.stop(web(), other, None).await.unwrap_err();
    let delete = manager
        .registry
        .delete(web(), other, None)
        .await
        .unwrap_err();
    for refused in [stop, delete] {
        assert_eq!(refused.reason, Reason::GenerationConflict);
        assert_eq!(refused.metadata["actual"], running.generation.to_string());
    }
    assert_eq!(ground.record(web()).await.as_ref(), Some(&*running));
    let own = manager
        .registry
        .delete(web(), Some(running.generation), None);
    assert_eq!(within("the Delete", own).await, Ok(true));
}

#[test]
fn a_create_after_a_delete_is_not_told_of_that_delete() {
    with_one_store_thread(async {
        let ground = Ground::new();
        let manager = ground.manager().await;
        // The id is being cleared, without a record, when the Create comes.
        ground.node.hang("forget_logs web");
        let clearing = manager.delete(web());
        let creating = async {
            manager.until_called("forget_logs web").await;
            let record = manager.admit(web()).await;
            let script = async {
                settle().await;
                // It is clear, and the task cannot look yet what else is wanted.
                let taken = StoreThread::take();
                ground.node.release_hang();
                settle().await;
                taken.give_back().await;
            };
            tokio::join!(manager.await_running(&record), script).0
        };
        let (cleared, created) = tokio::join!(clearing, creating);
        assert_eq!(cleared, Ok(false));
        assert_eq!(created.map(|it| it.status), Ok(Status::Running));
    });
}

/// Polls a call until it waits for the store, and gives it up.
async fn give_up<T>(call: impl Future<Output = T>) {
    let mut call = std::pin::pin!(call);
    for _ in 0..100 {
        assert!(
            futures::poll!(&mut call).is_pending(),
            "it cannot have an answer"
        );
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_promise_is_kept_whose_caller_went_away_while_it_was_written() {
    with_one_store_thread(async {
        let ground = Ground::new();
        let manager = ground.manager().await;
        let taken = StoreThread::take();
        let terms = CreateTerms::default();
        give_up(manager.registry.admit(web(), spec(), terms)).await;
        taken.give_back().await;
        ground.until_status(web(), Status::Running).await;

        manager.stop_sandbox(web()).await.unwrap();
        let taken = StoreThread::take();
        give_up(manager.registry.delete(web(), None, None)).await;
        taken.give_back().await;
        until("the record is gone", async || {
            ground.record(web()).await.is_none()
        })
        .await;
    });
}

#[tokio::test]
async fn a_stop_whose_sandbox_was_made_again_before_it_looked_has_succeeded() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let first = manager.create(web()).await.unwrap();
    let mut stop = std::pin::pin!(manager.stop_sandbox(web()));
    let ending = async |record: Option<SandboxRecord>| record.is_some_and(|it| it.ending.is_some());
    let promised = async {
        while !ending(ground.record(web()).await).await {
            assert!(futures::poll!(&mut stop).is_pending());
            tokio::time::sleep(POLL).await;
        }
    };
    within("the promise", promised).await;
    ground.until_status(web(), Status::Dead).await;
    let second = manager.create(web()).await.unwrap();
    assert!(second.generation > first.generation);
    let stopped = stop.await.unwrap();
    assert_eq!(
        (stopped.generation, stopped.status),
        (first.generation, Status::Dead)
    );
}

#[tokio::test]
async fn an_exit_that_came_before_the_stop_is_recorded() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let record = manager.create(web()).await.unwrap();
    manager.shut_down().await;
    ground.node.exit_for_memory(web(), &app());
    let stop = |it: &mut SandboxRecord| it.ending = Some(Ending::Stop);
    let (generation, now) = (record.generation, SystemTime::now());
    ground
        .store
        .update(web(), generation, now, stop)
        .await
        .unwrap();
    let _manager = ground.manager().await;
    let dead = ground.until_status(web(), Status::Dead).await;
    assert_eq!(dead.reason, "STOP_REQUESTED");
    assert_eq!(
        dead.exit.map(|it| it.cause),
        Some(berth_domain::ExitCause::Oom)
    );
}

/// Runs a test in which whoever takes the store's only thread stops everybody who wants to read or write.
fn with_one_store_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build();
    runtime.unwrap().block_on(test);
}

struct StoreThread {
    free: std::sync::mpsc::Sender<()>,
    taken: tokio::task::JoinHandle<bool>,
}

impl StoreThread {
    /// Whoever has asked for the thread before gets it before.
    fn take() -> Self {
        let (free, freed) = std::sync::mpsc::channel();
        let taken = tokio::task::spawn_blocking(move || freed.recv().is_err());
        Self { free, taken }
    }

    async fn give_back(self) {
        drop(self.free);
        within("the thread is free", self.taken).await.unwrap();
    }
}

/// Lets everything run that can run without a thread of the store.
async fn settle() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_dead_are_forgotten_after_the_horizon() {
    let ground = Ground::new();
    let manager = ground
        .manager_with(Limits {
            dead_horizon: Duration::from_millis(100),
            ..limits()
        })
        .await;
    manager.create(web()).await.unwrap();
    manager.stop_sandbox(web()).await.unwrap();
    let gone = async || ground.record(web()).await.is_none();
    until("the record is gone", gone).await;
    ground.assert_gone(web(), "the horizon").await;
}

#[tokio::test]
async fn an_address_is_given_back_last_of_all() {
    for step in tear_down() {
        let ground = Ground::new();
        let manager = ground.manager().await;
        manager.create(web()).await.unwrap();
        let at = operation(&step, web());
        ground.node.hang(&at);
        let patience = Some(Duration::ZERO);
        let late = manager.registry.delete(web(), None, patience).await;
        assert_eq!(late.unwrap_err().reason, Reason::DeadlinePassed);
        manager.until_called(&at).await;
        let held = async || ground.store.lease_counts().await.unwrap().held;
        assert_eq!(held().await, 1, "{step} is under way");
        // What it would have done is not done: the connections of the address are not forgotten, say.
        ground.node.fail_next(&at, 1);
        ground.node.release_hang();
        let again = async || {
            let calls = ground.node.calls().into_iter();
            calls.filter(|it| *it == at).count() > 1 || held().await == 0
        };
        until("another attempt", again).await;
        let calls = ground.node.calls().into_iter();
        assert!(
            calls.filter(|it| *it == at).count() > 1,
            "{step} was given up"
        );
        assert_eq!(manager.delete(web()).await.map(drop), Ok(()));
        ground.assert_gone(web(), &step.to_string()).await;
    }
}

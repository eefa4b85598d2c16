//! The same object by object, for the holder of a lease.

use berth_domain::{
    TaskSeen,
    work_leases::{Asked, LeaseRef},
};

use super::*;
use crate::orphans::{Answer, LEASE, end_orphans, remove_orphans};

const LIMIT: Duration = Duration::from_secs(10);

impl Bench {
    async fn lease(&self) -> LeaseRef {
        let asked = Asked {
            name: LEASE.to_owned(),
            holder: "one".to_owned(),
            time_to_live: Duration::from_secs(60),
            ..Asked::default()
        };
        let (collecting, store) = (self.registry.collecting(), self.registry.store());
        let lease = collecting.acquire(store, asked).await.unwrap();
        LeaseRef {
            name: lease.name,
            token: lease.token,
        }
    }

    /// Tokens of all that a sandbox has, whatever it is.
    async fn tokens(&self, sandbox: &str) -> Vec<String> {
        let found = audit(&self.registry).await.unwrap().into_iter();
        let own = found.filter(|it| it.object.sandbox == Some(id(sandbox)));
        own.map(|it| it.object.identity()).collect()
    }

    /// Waits until the node holds nothing.
    async fn is_emptied(&self) {
        let gone = async {
            while !self.node.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, gone).await.unwrap();
    }
}

#[tokio::test]
async fn orphans_are_asked_to_end_by_sigquit_and_then_removed_and_nothing_else_is() {
    let bench = bench();
    bench.create("web").await;
    bench.abandon("ghost").await;
    let lease = bench.lease().await;
    let (ghost, web) = (bench.tokens("ghost").await, bench.tokens("web").await);
    let gone = "task/1/2/3/none///nobody".to_owned();
    let asked = [ghost.clone(), web.clone(), vec![gone]].concat();
    let before = bench.node.calls().len();

    let ended = end_orphans(&bench.registry, &lease, &asked).await.unwrap();
    let explained = |it: &Answer| matches!(it, Answer::Explained(who) if who.contains("web"));
    let (of_ghost, rest) = ended.split_at(ghost.len());
    let (of_web, of_gone) = rest.split_at(web.len());
    assert!(of_ghost.iter().all(|it| *it == Answer::Orphan), "{ended:?}");
    assert!(of_web.iter().all(explained), "{ended:?}");
    assert_eq!(of_gone, [Answer::Gone]);
    let calls = bench.node.calls();
    assert!(
        calls[before..]
            .iter()
            .all(|it| it.starts_with("end_object") && it.contains("ghost")),
        "{calls:?}"
    );
    let seen = Runtime::observe(&bench.node, &id("ghost")).await.unwrap();
    let task = seen.containers[&app()].task;
    assert!(
        matches!(task, TaskSeen::Exited { code: 131, .. }),
        "{task:?}"
    );

    let asked = [ghost, web.clone()].concat();
    let removed = remove_orphans(&bench.registry, &lease, &asked, LIMIT).await;
    let removed = removed.unwrap();
    let (of_ghost, of_web) = removed.split_at(asked.len() - web.len());
    assert!(of_ghost.iter().all(|it| *it == Answer::Gone), "{removed:?}");
    assert!(of_web.iter().all(explained), "{removed:?}");
    assert!(!bench.node.leftovers().iter().any(|it| it.contains("ghost")));
    bench.reaches("web", Status::Running).await;
}

#[tokio::test]
async fn whoever_does_not_hold_the_lease_any_more_touches_nothing() {
    let bench = bench();
    bench.abandon("ghost").await;
    let lease = bench.lease().await;
    let tokens = bench.tokens("ghost").await;
    let before = bench.node.calls();
    bench
        .registry
        .collecting()
        .release(std::slice::from_ref(&lease));
    let ended = end_orphans(&bench.registry, &lease, &tokens).await;
    assert_eq!(ended.unwrap_err().reason, Reason::WorkLeaseLost);
    let removed = remove_orphans(&bench.registry, &lease, &tokens, LIMIT).await;
    assert_eq!(removed.unwrap_err().reason, Reason::WorkLeaseLost);
    assert_eq!(bench.node.calls(), before);
}

#[tokio::test]
async fn a_lease_that_is_lost_on_the_way_ends_the_removal_before_the_next_object() {
    let bench = bench();
    for name in ["a", "b"] {
        bench
            .node
            .leave(stray(RuntimeObjectKind::Shim, name, Some(name)));
    }
    let lease = bench.lease().await;
    let tokens = [bench.tokens("a").await, bench.tokens("b").await].concat();
    bench.node.hang("remove_object a");
    let losing = async {
        while !bench.node.calls().contains(&"remove_object a".to_owned()) {
            tokio::task::yield_now().await;
        }
        bench
            .registry
            .collecting()
            .release(std::slice::from_ref(&lease));
        bench.node.release_hang();
    };
    let removing = remove_orphans(&bench.registry, &lease, &tokens, LIMIT);
    let (removed, ()) = tokio::join!(removing, losing);
    assert_eq!(removed.unwrap_err().reason, Reason::WorkLeaseLost);
    assert_eq!(
        bench.node.leftovers(),
        ["Shim b"],
        "what had begun was ended"
    );
}

#[tokio::test]
async fn a_sandbox_that_takes_too_long_is_told_as_failed_and_is_gone_in_the_end() {
    let bench = bench();
    bench.abandon("ghost").await;
    let lease = bench.lease().await;
    let tokens = bench.tokens("ghost").await;
    bench.node.hang("detach_link ghost");
    let short = Duration::from_millis(50);
    let removing = remove_orphans(&bench.registry, &lease, &tokens, short);
    let removed = tokio::time::timeout(DEADLINE, removing).await;
    let removed = removed.expect("it has its limit").unwrap();
    let failed = |it: &Answer| matches!(it, Answer::Failed(why) if why == "it is still there");
    assert!(removed.iter().any(failed), "{removed:?}");
    assert!(bench.registry.is_at_work(&id("ghost")), "the work goes on");
    bench.node.release_hang();
    bench.is_emptied().await;
}

#[tokio::test]
async fn an_object_that_takes_too_long_is_told_as_failed_and_is_gone_in_the_end() {
    let bench = bench();
    for name in ["a", "b"] {
        bench
            .node
            .leave(stray(RuntimeObjectKind::Shim, name, Some(name)));
    }
    let lease = bench.lease().await;
    let tokens = [bench.tokens("a").await, bench.tokens("b").await].concat();
    bench.node.hang("remove_object a");
    let short = Duration::from_millis(50);
    let removed = remove_orphans(&bench.registry, &lease, &tokens, short).await;
    let removed = removed.unwrap();
    assert!(
        matches!(&removed[0], Answer::Failed(why) if why.contains("50ms")),
        "{removed:?}"
    );
    assert_eq!(
        removed[1],
        Answer::Gone,
        "it does not hold up the other one"
    );
    bench.node.release_hang();
    bench.is_emptied().await;
}

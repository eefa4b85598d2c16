//! Many sandboxes through the death of what runs them, and the removal of sandboxes that make it hard.

use std::{
    collections::BTreeMap,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, ExitCause, SandboxStatus, watch_response::Event};
use berth_e2e::{
    TestNode,
    faults::{is_alive, signal},
    node::{eventually, succeed},
    specs::{idle, shell, spec, web},
};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;

const MANY: usize = 50;
const AT_ONCE: usize = 8;

fn id(number: usize) -> String {
    format!("s-{number}")
}

/// A sandbox that uses a little of the CPU all the time.
fn restless() -> v1::SandboxSpec {
    spec([shell("app", "while sleep 1; do :; done", &[])])
}

async fn create_many(node: &TestNode) -> anyhow::Result<()> {
    futures::stream::iter(0..MANY)
        .map(|number| async move { node.create(&id(number), restless()).await })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    Ok(())
}

async fn delete_many(node: &TestNode) -> anyhow::Result<()> {
    futures::stream::iter(0..MANY)
        .map(|number| async move {
            // How long the manager waits by itself is not what is looked at here.
            let mut request = tonic::Request::new(v1::DeleteRequest {
                id: id(number),
                expected_generation: 0,
            });
            request.set_timeout(Duration::from_secs(180));
            node.sandboxes().delete(request).await
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    Ok(())
}

/// Tasks of the sandboxes that `create_many` made.
fn own_tasks(node: &TestNode) -> anyhow::Result<BTreeMap<String, u32>> {
    let mut tasks = node.tasks()?;
    tasks.retain(|container, _| container.starts_with("sandbox.s-"));
    Ok(tasks)
}

async fn assert_empty(node: &TestNode) -> anyhow::Result<()> {
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    Ok(())
}

/// CPU time by sandbox and container.
async fn cpu_times(node: &TestNode) -> anyhow::Result<BTreeMap<(String, String), u64>> {
    let mut times = BTreeMap::new();
    for number in 0..MANY {
        let request = v1::SnapshotRequest { id: id(number) };
        let reading = node.sandboxes().snapshot(request).await?.into_inner();
        for container in reading.containers {
            let usage = container.usage.unwrap_or_default();
            times.insert((id(number), container.name), usage.total_cpu_time);
        }
    }
    Ok(times)
}

/// Creates and deletes sandboxes until it is over, and counts those that came and went.
async fn churn(
    node: Arc<TestNode>,
    worker: usize,
    count: Arc<AtomicUsize>,
    over: CancellationToken,
) {
    let mut short = idle();
    short.containers[0].shutdown_timeout = Some(prost_types::Duration {
        seconds: 0,
        nanos: 10_000_000,
    });
    while !over.is_cancelled() {
        // Two ids by turns: one may be going still, by the will of a manager that was killed.
        for name in ["a", "b"] {
            let id = format!("x-{worker}-{name}");
            let created = node.create(&id, short.clone()).await;
            let deleted = node.delete(&id).await;
            if created.is_ok() && deleted.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            } else {
                let answers = || async { node.audit().await.is_ok() };
                let _ = eventually("the manager is back", Duration::from_secs(30), answers).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sandboxes_survive_ten_kills_of_the_manager_during_creates_and_deletes_of_others()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    create_many(&node).await?;
    let pids = own_tasks(&node)?;
    ensure!(pids.len() == 2 * MANY, "{pids:?}");
    let mut times = cpu_times(&node).await?;
    ensure!(times.len() == 2 * MANY, "{times:?}");

    let node = Arc::new(node);
    let (over, churned) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let workers: Vec<_> = (0..2)
        .map(|it| tokio::spawn(churn(node.clone(), it, churned.clone(), over.clone())))
        .collect();
    let mut restarts = vec![];
    for round in 0..10 {
        let before = churned.load(Ordering::Relaxed);
        let goes_on = || async { churned.load(Ordering::Relaxed) > before };
        eventually("sandboxes come and go", Duration::from_secs(30), goes_on).await?;
        node.end_manager().await?;
        restarts.push(node.up_timed().await?);
        ensure!(
            own_tasks(&node)? == pids,
            "round {round}: a container was started anew"
        );
        let later = cpu_times(&node).await?;
        for (container, before) in &times {
            let now = later.get(container);
            ensure!(
                now.is_some_and(|it| it >= before),
                "round {round}: the CPU time of {container:?} went from {before} to {now:?}"
            );
        }
        times = later;
    }
    over.cancel();
    for worker in workers {
        worker.await?;
    }
    let node = Arc::into_inner(node).context("all workers have ended")?;
    restarts.sort();
    eprintln!(
        "the API is back after {:?} (median of {}), at the most {:?}; {} other sandboxes came and went",
        restarts[restarts.len() / 2],
        restarts.len(),
        restarts[restarts.len() - 1],
        churned.load(Ordering::Relaxed),
    );

    let request = v1::ListRequest {
        page_size: 1000,
        ..v1::ListRequest::default()
    };
    let all = node.sandboxes().list(request).await?.into_inner().sandboxes;
    let running =
        |it: &&v1::Sandbox| it.status() == SandboxStatus::Running && it.id.starts_with("s-");
    ensure!(all.iter().filter(running).count() == MANY, "{all:#?}");
    for it in all.iter().filter(|it| it.id.starts_with("x-")) {
        node.delete(&it.id).await?;
    }
    let settled = || async { node.audit().await.is_ok_and(|it| it.clean) };
    eventually("the audit is clean", Duration::from_secs(10), settled).await?;
    delete_many(&node).await?;
    assert_empty(&node).await?;
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sandboxes_survive_the_death_of_containerd_and_the_one_that_ended_meanwhile_says_so()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    create_many(&node).await?;
    let mut pids = own_tasks(&node)?;
    let mut events = node
        .sandboxes()
        .watch(v1::WatchRequest::default())
        .await?
        .into_inner();
    while let Some(event) = events.message().await? {
        if matches!(event.event, Some(Event::Synced(_))) {
            break;
        }
    }
    node.end_containerd().await?;
    signal(pids["sandbox.s-7.app"], "KILL")?;
    // Of a sandbox that nobody asks about, and of which nobody can ask anything now.
    node.up().await?;
    let back = Instant::now();

    // Nothing but the stream tells: not one call is made until it has.
    let mut seen = vec![];
    let told = async {
        while let Some(event) = events.message().await? {
            if let Some(Event::Sandbox(it)) = event.event {
                ensure!(it.id == "s-7", "{it:#?}");
                seen.push(it.status());
                if it.status() == SandboxStatus::Dead {
                    return Ok(it);
                }
            }
        }
        anyhow::bail!("the stream has ended")
    };
    let dead = tokio::time::timeout(Duration::from_secs(30), told)
        .await
        .context("nobody says that s-7 has ended")??;
    let exit = dead.exit.clone().context("an exit record")?;
    eprintln!(
        "{:?} after containerd was back: {} is DEAD, {}: {}, cause {:?}, code {}",
        back.elapsed(),
        dead.id,
        dead.reason,
        dead.message,
        exit.cause(),
        exit.exit_code
    );
    ensure!(
        seen == [SandboxStatus::Stopped, SandboxStatus::Dead],
        "{seen:?}"
    );
    ensure!(exit.container == "app", "{exit:?}");
    // containerd itself forgets what has ended while it was away.
    let known = [ExitCause::Signal, ExitCause::RuntimeLost];
    ensure!(known.contains(&exit.cause()), "{exit:?}");

    pids.retain(|container, _| !container.starts_with("sandbox.s-7"));
    ensure!(own_tasks(&node)? == pids, "a container was started anew");
    let request = v1::ListRequest {
        page_size: 1000,
        ..v1::ListRequest::default()
    };
    let all = node.sandboxes().list(request).await?.into_inner().sandboxes;
    ensure!(all.len() == MANY - 1);
    for it in &all {
        ensure!(it.status() == SandboxStatus::Running, "{it:#?}");
    }
    node.assert_clean().await?;
    drop(events);
    delete_many(&node).await?;
    assert_empty(&node).await?;
    node.finish()
}

/// Deletes `web`, and looks whether it left something.
async fn delete_within(node: &TestNode, what: &str, limit: Duration) -> anyhow::Result<()> {
    let deleted = tokio::time::timeout(limit, node.delete("web")).await;
    let existed = deleted
        .with_context(|| format!("a Delete of a sandbox {what} has no end"))?
        .with_context(|| format!("a Delete of a sandbox {what}"))?;
    ensure!(existed, "there was a record");
    assert_empty(node).await
}

#[tokio::test]
async fn a_delete_outlasts_a_container_that_ignores_sigterm() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let deaf = "trap '' TERM; while :; do sleep 1; done";
    node.create("web", spec([shell("app", deaf, &[])])).await?;
    let pid = node.task("sandbox.web.app")?;
    delete_within(&node, "that ignores SIGTERM", Duration::from_secs(20)).await?;
    ensure!(!is_alive(pid));
    node.finish()
}

#[tokio::test]
async fn a_delete_ends_a_sandbox_whose_shims_do_not_answer() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    for stopped in ["sandbox.web.app", "sandbox.web_pause"] {
        // Its end is written down by the app itself, which shows that it got its SIGTERM.
        let polite = "trap 'echo farewell; exit 0' TERM; while :; do sleep 0.1; done";
        node.create("web", spec([shell("app", polite, &[])]))
            .await?;
        let (pid, shim) = (node.task(stopped)?, node.shim(stopped)?);
        signal(shim, "STOP")?;
        // Longer than containerd itself waits for a shim: what does not answer is not dead.
        let silent = || async { node.tasks().is_ok_and(|it| it.get(stopped) == Some(&0)) };
        eventually(
            "containerd knows that it is silent",
            Duration::from_secs(20),
            silent,
        )
        .await?;
        ensure!(node.get("web").await?.status() == SandboxStatus::Running);
        ensure!(
            is_alive(pid),
            "a shim that does not answer is no reason to end anything"
        );
        node.delete("web")
            .await
            .with_context(|| format!("the shim of {stopped} is stopped"))?;
        ensure!(!is_alive(pid) && !is_alive(shim), "{stopped} lives on");
        assert_empty(&node).await?;
    }
    node.finish()
}

#[tokio::test]
async fn what_a_killed_containerd_has_left_of_a_bundle_does_not_bar_the_id() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("other", idle()).await?;
    let bundles = node.rootfs("sandbox.other.app").join("../..");
    // Half made; and half removed, which is done under another name.
    for name in ["sandbox.web.web", ".sandbox.web.web"] {
        let left = bundles.join(name);
        std::fs::create_dir_all(left.join("rootfs"))?;
        std::fs::write(left.join("config.json"), "{}")?;
        for _ in 0..3 {
            node.create("web", web("hello", 8080)).await?;
            node.delete("web").await?;
        }
        ensure!(!left.exists(), "{name} is still there");
    }
    node.delete("other").await?;
    assert_empty(&node).await?;
    node.finish()
}

/// A process of the host that works in `folder`. Dropping it ends it.
struct Squatter(Child);

impl Squatter {
    fn in_folder(folder: &std::path::Path) -> anyhow::Result<Self> {
        let mut command = Command::new("sleep");
        command.arg("600").current_dir(folder).stdin(Stdio::null());
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Squatter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_delete_ends_a_sandbox_whose_root_file_system_is_busy() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", web("hello", 8080)).await?;
    let rootfs = node.rootfs("sandbox.web.web");
    let squatter = Squatter::in_folder(&rootfs.join("www"))?;
    delete_within(
        &node,
        "whose root file system is busy",
        Duration::from_secs(50),
    )
    .await?;
    ensure!(
        is_alive(squatter.0.id()),
        "nobody asked for the end of this one"
    );
    drop(squatter);
    node.finish()
}

#[tokio::test]
async fn a_delete_ends_a_sandbox_whose_namespaces_are_no_longer_pinned() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    for removed in [true, false] {
        node.create("web", web("hello", 8080)).await?;
        let pins = node.home().join("run/ns/web");
        for kind in ["net", "ipc", "uts"] {
            succeed(Command::new("umount").arg(pins.join(kind)))?;
            if removed {
                std::fs::remove_file(pins.join(kind))?;
            }
        }
        if removed {
            std::fs::remove_dir(&pins)?;
        }
        let what = if removed {
            "whose pins are gone"
        } else {
            "whose pins are mere files"
        };
        delete_within(&node, what, Duration::from_secs(20)).await?;
    }
    node.finish()
}

#[tokio::test]
async fn a_delete_ends_a_sandbox_whose_link_is_gone() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", web("hello", 8080)).await?;
    let audit = node.audit().await?;
    let link = audit.objects.iter().find(|it| it.kind == "link");
    let link = &link.context("a link")?.name;
    succeed(Command::new("ip").args(["link", "delete", "dev", link]))?;
    delete_within(&node, "whose link is gone", Duration::from_secs(20)).await?;
    node.finish()
}

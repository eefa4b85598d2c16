//! What the death of the manager or of containerd does to sandboxes: nothing.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, SandboxStatus};
use berth_e2e::{
    TestNode,
    faults::signal,
    node::eventually,
    specs::{idle, millis, web},
};
use tonic_types::StatusExt as _;

fn pids(node: &TestNode) -> anyhow::Result<Vec<String>> {
    let list = node.command("ctr").args(["t", "ls"]).output()?;
    let list = String::from_utf8(list.stdout)?;
    let mut pids: Vec<_> = list
        .lines()
        .skip(1)
        .filter_map(|it| it.split_whitespace().nth(1))
        .map(str::to_owned)
        .collect();
    pids.sort();
    Ok(pids)
}

#[tokio::test]
async fn a_sandbox_outlives_its_manager_and_is_taken_up_by_the_next() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let before = node.create("web", web("hello", 8080)).await?;
    let processes = pids(&node)?;
    node.kill_manager()?;
    node.up().await?;
    let after = node.get("web").await?;
    ensure!(after.generation == before.generation && after.addresses == before.addresses);
    ensure!(after.status() == SandboxStatus::Running, "{after:?}");
    ensure!(pids(&node)? == processes, "nothing was started anew");
    node.assert_clean().await?;
    node.delete("web").await?;
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    node.finish()
}

#[tokio::test]
async fn a_manager_killed_at_any_moment_of_a_create_leaves_nothing_behind() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    // A Create takes some 100 ms: these moments fall into all of its phases.
    for (number, delay) in (0..120).step_by(12).enumerate() {
        let id = format!("s-{number}");
        let mut sandboxes = node.sandboxes();
        let request = v1::CreateRequest {
            id: id.clone(),
            spec: Some(idle()),
            ..v1::CreateRequest::default()
        };
        let creating = tokio::spawn(async move { sandboxes.create(request).await });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        node.kill_manager()?;
        let _ = creating.await?;
        node.up().await?;
        let settled = || async {
            match node.get(&id).await {
                Ok(it) => it.status() == SandboxStatus::Running,
                // Killed before the record was durable: nobody was promised anything.
                Err(status) => status.code() == tonic::Code::NotFound,
            }
        };
        eventually(
            "what was begun is finished",
            Duration::from_secs(30),
            settled,
        )
        .await?;
        node.assert_clean()
            .await
            .with_context(|| format!("killed after {delay} ms"))?;
        node.delete(&id).await?;
        let audit = node.audit().await?;
        ensure!(
            audit.clean && audit.objects.is_empty(),
            "killed after {delay} ms: {audit:#?}"
        );
    }
    node.finish()
}

#[tokio::test]
async fn a_delete_that_its_manager_does_not_survive_is_finished_by_the_next() -> anyhow::Result<()>
{
    let node = TestNode::start().await?;
    // What does not hear SIGTERM is killed at once: the whole Delete takes some 200 ms.
    let mut spec = idle();
    spec.containers[0].shutdown_timeout = millis(0);
    let mut cut_short = 0;
    for (number, delay) in (0..200).step_by(25).enumerate() {
        let id = format!("s-{number}");
        node.create(&id, spec.clone()).await?;
        let mut sandboxes = node.sandboxes();
        let request = v1::DeleteRequest {
            id: id.clone(),
            expected_generation: 0,
        };
        let deleting = tokio::spawn(async move { sandboxes.delete(request).await });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        node.kill_manager()?;
        let answered = deleting.await?.is_ok();
        node.up().await?;
        let settled = || async {
            match node.get(&id).await {
                // Killed before the end was written down: nobody was promised anything.
                Ok(it) => it.status() == SandboxStatus::Running,
                Err(status) => status.code() == tonic::Code::NotFound,
            }
        };
        let what = format!("the Delete that was killed after {delay} ms is finished");
        eventually(&what, Duration::from_secs(30), settled).await?;
        node.assert_clean().await.context(what.clone())?;
        let gone = node.get(&id).await.is_err();
        cut_short += u32::from(gone && !answered);
        ensure!(gone || !answered, "{what}, but it was said to be");
        if !gone {
            node.delete(&id).await?;
        }
        let audit = node.audit().await?;
        ensure!(
            audit.clean && audit.objects.is_empty(),
            "{what}: {audit:#?}"
        );
    }
    ensure!(cut_short > 0, "no Delete was cut short");
    node.finish()
}

#[tokio::test]
async fn while_containerd_is_away_calls_say_so_and_all_goes_on_when_it_is_back()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", web("hello", 8080)).await?;
    let pid = std::fs::read_to_string(node.home().join("containerd.pid"))?;
    let killed = std::process::Command::new("kill")
        .args(["-9", pid.trim()])
        .status()?;
    ensure!(killed.success());
    let refused = node
        .create("other", idle())
        .await
        .err()
        .context("containerd is away")?;
    ensure!(refused.code() == tonic::Code::Unavailable, "{refused}");
    ensure!(
        refused.get_error_details().retry_info().is_some(),
        "it says when to try again"
    );
    let standing = node.get("web").await?;
    ensure!(
        standing.status() == SandboxStatus::Running,
        "unknown is not dead: {standing:?}"
    );
    node.up().await?;
    let back = || async { node.audit().await.is_ok() };
    eventually("containerd is seen again", Duration::from_secs(30), back).await?;
    node.delete("other").await?;
    node.assert_clean().await?;
    ensure!(node.get("web").await?.status() == SandboxStatus::Running);
    node.delete("web").await?;
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    node.finish()
}

#[tokio::test]
async fn while_containerd_hangs_nothing_is_taken_for_gone_and_all_that_was_asked_is_done_afterwards()
-> anyhow::Result<()> {
    let node = TestNode::start_with("containerd.call_timeout = \"1s\"\n", &[]).await?;
    node.create("web", web("hello", 8080)).await?;
    for id in ["ends", "goes", "stops"] {
        node.create(id, idle()).await?;
    }
    let app = node.task("sandbox.ends.app")?;
    signal(node.containerd_pid()?, "STOP")?;
    signal(app, "KILL")?;

    // Long enough to meet the limit of a call, and to say so.
    let patient = |id: &str| {
        let mut request = tonic::Request::new(v1::DeleteRequest {
            id: id.to_owned(),
            ..v1::DeleteRequest::default()
        });
        request.set_timeout(Duration::from_secs(5));
        request
    };
    let mut stop = tonic::Request::new(v1::StopRequest {
        id: "stops".to_owned(),
        ..v1::StopRequest::default()
    });
    stop.set_timeout(Duration::from_secs(5));
    let (mut delete, mut stops) = (node.sandboxes(), node.sandboxes());
    let (created, deleted, stopped, audited) = tokio::join!(
        node.create("other", idle()),
        delete.delete(patient("goes")),
        stops.stop(stop),
        node.audit(),
    );
    for (call, status) in [
        ("Create", created.err()),
        ("Delete", deleted.err()),
        ("Stop", stopped.err()),
        ("Audit", audited.err()),
    ] {
        let status = status.with_context(|| format!("{call}: containerd hangs"))?;
        let details = status.get_error_details();
        let reason = details.error_info().map(|it| it.reason.as_str());
        ensure!(
            status.code() == tonic::Code::Unavailable && reason == Some("RUNTIME_UNREACHABLE"),
            "{call}: {status:?}"
        );
        ensure!(details.retry_info().is_some(), "{call}: {details:?}");
    }
    for (id, status) in [
        ("web", SandboxStatus::Running),
        ("ends", SandboxStatus::Running),
        ("goes", SandboxStatus::Stopped),
        ("stops", SandboxStatus::Stopped),
        ("other", SandboxStatus::Pending),
    ] {
        let seen = node.get(id).await?;
        ensure!(seen.status() == status, "unknown is not dead: {seen:?}");
    }

    signal(node.containerd_pid()?, "CONT")?;
    let done = || async {
        let dead = |it: Result<v1::Sandbox, tonic::Status>| {
            it.is_ok_and(|it| it.status() == SandboxStatus::Dead)
        };
        let gone = node.get("goes").await.is_err();
        gone && dead(node.get("stops").await) && dead(node.get("ends").await)
    };
    eventually("what was asked is done", Duration::from_secs(60), done).await?;
    let ended = node.get("ends").await?.exit.context("it says how")?;
    ensure!(ended.cause() == v1::ExitCause::Signal, "{ended:?}");
    let other = || async { node.create("other", idle()).await.is_ok() };
    eventually("the Create succeeds", Duration::from_secs(60), other).await?;
    ensure!(node.get("web").await?.status() == SandboxStatus::Running);
    node.assert_clean().await?;
    for id in ["web", "ends", "stops", "other"] {
        node.delete(id).await?;
    }
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    node.finish()
}

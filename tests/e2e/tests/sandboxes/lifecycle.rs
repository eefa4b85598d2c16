//! The states of a sandbox and what moves it from one to the next, on real containerd.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, ExitCause, SandboxStatus};
use berth_e2e::{
    TestNode,
    node::eventually,
    specs::{idle, limits, shell, spec, web},
};
use tonic::Code;
use tonic_types::StatusExt as _;

const LONG: Duration = Duration::from_secs(30);

fn reason(status: &tonic::Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().cloned();
    info.map(|it| it.reason).unwrap_or_default()
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

async fn until(node: &TestNode, id: &str, status: SandboxStatus) -> anyhow::Result<v1::Sandbox> {
    let there = || async { node.get(id).await.is_ok_and(|it| it.status() == status) };
    eventually(&format!("{id} is {status:?}"), LONG, there).await?;
    Ok(node.get(id).await?)
}

/// Runs a line of shell inside a container.
fn inside(node: &TestNode, container: &str, line: &str) -> anyhow::Result<()> {
    let exec = [
        "t",
        "exec",
        "--exec-id",
        "test",
        container,
        "/bin/busybox",
        "sh",
        "-c",
        line,
    ];
    let output = node.command("ctr").args(exec).output()?;
    ensure!(output.status.success(), "{line}: {output:?}");
    Ok(())
}

#[tokio::test]
async fn a_sandbox_ends_when_its_time_is_over_unless_it_was_renewed() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let request = |id: &str, ttl| v1::CreateRequest {
        id: id.into(),
        spec: Some(idle()),
        time_to_live: seconds(ttl),
        ..v1::CreateRequest::default()
    };
    let created = node.sandboxes().create(request("long", 600)).await?;
    let long = created.into_inner().sandbox.unwrap_or_default();
    let end = long.expires_at.context("it has an end")?;

    // Of two who renew at once, one is told.
    let renew = |known| v1::RenewRequest {
        id: "long".into(),
        time_to_live: seconds(900),
        expected_expires_at: known,
        ..v1::RenewRequest::default()
    };
    let renewed = node.sandboxes().renew(renew(Some(end))).await?.into_inner();
    let renewed = renewed.sandbox.unwrap_or_default();
    ensure!(
        renewed
            .expires_at
            .is_some_and(|it| it.seconds >= end.seconds + 299),
        "{renewed:?}"
    );
    let late = node.sandboxes().renew(renew(Some(end))).await;
    let late = late.err().context("it was renewed meanwhile")?;
    ensure!(
        late.code() == Code::Aborted && reason(&late) == "EXPIRY_CONFLICT",
        "{late}"
    );

    // The end outlives the manager that was told of it.
    node.sandboxes().create(request("short", 3)).await?;
    node.kill_manager()?;
    node.up().await?;
    let dead = until(&node, "short", SandboxStatus::Dead).await?;
    ensure!(dead.reason == "EXPIRED" && dead.exit.is_none(), "{dead:?}");
    ensure!(node.get("long").await?.status() == SandboxStatus::Running);
    let over = v1::RenewRequest {
        id: "short".into(),
        ..v1::RenewRequest::default()
    };
    let over = node
        .sandboxes()
        .renew(over)
        .await
        .err()
        .context("it has ended")?;
    ensure!(reason(&over) == "SANDBOX_ENDING", "{over}");

    let endless = v1::RenewRequest {
        id: "long".into(),
        ..v1::RenewRequest::default()
    };
    let endless = node.sandboxes().renew(endless).await?.into_inner();
    ensure!(endless.sandbox.is_some_and(|it| it.expires_at.is_none()));
    node.assert_clean().await?;
    node.finish()
}

#[tokio::test]
async fn a_node_that_drains_takes_nothing_new_and_keeps_what_stands() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let stands = node.create("web", web("hello", 8080)).await?;
    let drain = |drain| v1::DrainRequest {
        drain,
        message: "kernel upgrade".into(),
    };
    let drained = node.node().drain(drain(true)).await?.into_inner();
    ensure!(drained.sandboxes == 1, "{drained:?}");
    // It is the node that drains, not the process.
    node.kill_manager()?;
    node.up().await?;
    let refused = node
        .create("other", idle())
        .await
        .err()
        .context("it drains")?;
    ensure!(refused.code() == Code::Unavailable && reason(&refused) == "NODE_DRAINING");
    ensure!(refused.get_error_details().retry_info().is_some());
    ensure!(refused.message().contains("kernel upgrade"), "{refused}");
    let joined = node.create("web", web("hello", 8080)).await?;
    ensure!(
        joined.generation == stands.generation,
        "what stands is answered for"
    );
    let status = node
        .node()
        .get_status(v1::GetStatusRequest {})
        .await?
        .into_inner();
    ensure!(
        status.draining && status.drain_message == "kernel upgrade",
        "{status:?}"
    );
    node.node().drain(drain(false)).await?;
    node.create("other", idle()).await?;
    let status = node
        .node()
        .get_status(v1::GetStatusRequest {})
        .await?
        .into_inner();
    let capacity = status.capacity.context("capacity")?;
    ensure!(
        capacity.sandboxes_held == 2 && capacity.cpu_millis >= 1000,
        "{capacity:?}"
    );
    ensure!(
        capacity.memory_bytes > capacity.memory_bytes_available,
        "{capacity:?}"
    );
    node.finish()
}

#[tokio::test]
async fn a_port_that_no_longer_listens_makes_a_sandbox_not_ready_until_it_does()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    // The shell is the first process and lives on when its server ends.
    let line = "httpd -f -p 8080 -h /etc & while :; do sleep 3600; done";
    node.create("web", spec([shell("web", line, &[8080])]))
        .await?;
    inside(&node, "sandbox.web.web", "kill -9 $(pidof httpd)")?;
    let lost = until(&node, "web", SandboxStatus::NotReady).await?;
    ensure!(
        lost.reason == "PORT_LOST" && lost.message.contains("8080 (web)"),
        "{lost:?}"
    );
    node.assert_clean().await?;
    inside(&node, "sandbox.web.web", "httpd -p 8080 -h /etc")?;
    let back = until(&node, "web", SandboxStatus::Running).await?;
    ensure!(
        back.reason.is_empty() && back.generation == lost.generation,
        "{back:?}"
    );
    node.delete("web").await?;
    node.finish()
}

#[tokio::test]
async fn who_is_killed_for_memory_is_told_whose_limit_it_was() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let hungry = "until test -e /tmp/go; do sleep 0.05; done; tail /dev/zero";
    let mut own = spec([shell("app", hungry, &[])]);
    own.containers[0].resources = Some(limits(0, 16 << 20, 0));
    let mut shared = spec([shell("app", hungry, &[])]);
    shared.resources = Some(limits(0, 24 << 20, 0));
    // Where systemd makes the cgroups they are units.
    for (id, spec, cgroup, unit) in [
        ("own", own, "/own/app", "-own.app.scope"),
        ("shared", shared, "/shared", "-shared.slice"),
    ] {
        node.create(id, spec).await?;
        inside(&node, &format!("sandbox.{id}.app"), "touch /tmp/go")?;
        let dead = until(&node, id, SandboxStatus::Dead).await?;
        let exit = dead.exit.clone().context("an exit record")?;
        ensure!(
            exit.cause() == ExitCause::Oom && exit.signal == 9,
            "{exit:?}"
        );
        let culprit = &exit.oom_cgroup;
        ensure!(
            culprit.ends_with(cgroup) || culprit.ends_with(unit),
            "{exit:?}"
        );
        ensure!(
            dead.message.contains("reached its limit"),
            "{}",
            dead.message
        );
    }
    node.finish()
}

#[tokio::test]
async fn a_delete_at_its_deadline_says_what_it_waits_for_and_goes_on() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let deaf = "trap '' TERM; while :; do sleep 1; done";
    let mut spec = spec([shell("app", deaf, &[])]);
    spec.containers[0].shutdown_timeout = seconds(6);
    node.create("deaf", spec).await?;
    let mut request = tonic::Request::new(v1::DeleteRequest {
        id: "deaf".into(),
        expected_generation: 0,
    });
    request.set_timeout(Duration::from_secs(2));
    let late = node
        .sandboxes()
        .delete(request)
        .await
        .err()
        .context("it takes longer")?;
    ensure!(
        late.code() == Code::DeadlineExceeded && reason(&late) == "DEADLINE_PASSED",
        "{late}"
    );
    let details = late.get_error_details();
    let held = details.precondition_failure().context("what is held")?;
    ensure!(
        held.violations[0].subject.contains("stop-task app"),
        "{held:?}"
    );
    let gone = || async {
        let got = node.get("deaf").await;
        got.is_err_and(|it| it.code() == Code::NotFound)
    };
    eventually("the Delete goes on by itself", LONG, gone).await?;
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    node.finish()
}

#[tokio::test]
async fn what_a_reboot_takes_away_is_made_again_unless_the_policy_says_never() -> anyhow::Result<()>
{
    let node = TestNode::start().await?;
    let always = node.create("always", web("again", 8080)).await?;
    let mut once = idle();
    once.restart_policy = v1::RestartPolicy::Never.into();
    node.create("never", once).await?;
    node.kill_manager()?;
    node.power_off()?;
    node.up().await?;
    let dead = until(&node, "never", SandboxStatus::Dead).await?;
    ensure!(
        dead.reason == "RUNTIME_LOST" && dead.exit.is_none(),
        "{dead:?}"
    );
    let made_again = || async {
        node.get("always")
            .await
            .is_ok_and(|it| it.status() == SandboxStatus::Running && it.revision > always.revision)
    };
    eventually("it runs again", LONG, made_again).await?;
    let again = node.get("always").await?;
    ensure!(again.addresses == always.addresses && again.generation == always.generation);
    node.assert_clean().await?;
    node.finish()
}

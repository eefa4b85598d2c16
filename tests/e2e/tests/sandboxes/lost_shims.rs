//! A shim that containerd lost when a caller went away in the middle of a start: it listens, and never answers.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::v1::SandboxStatus;
use berth_e2e::{TestNode, node::succeed, specs::idle};

/// Starts a shim as containerd does, but in a folder where nobody reads its log, which it waits for.
fn lose_shim(node: &TestNode, container: &str) -> anyhow::Result<()> {
    let bundle = node.home().join("lost").join(container);
    fs::create_dir_all(&bundle)?;
    fs::write(bundle.join("config.json"), "{}")?;
    succeed(Command::new("mkfifo").arg(bundle.join("log")))?;
    let address = node.variable("CONTAINERD_ADDRESS");
    let mut start = node.command("containerd-shim-runc-v2");
    start.args(["-namespace", node.variable("CONTAINERD_NAMESPACE")]);
    start.args(["-id", container, "-address", address]);
    start.args(["-publish-binary", "containerd", "start"]);
    start.current_dir(&bundle).stderr(Stdio::inherit());
    succeed(start).map(drop)
}

/// The shims of a container that work where `lose_shim` started them.
fn lost(node: &TestNode, container: &str) -> usize {
    let bundle = node.home().join("lost").join(container);
    let works_there =
        |process: &Path| fs::read_link(process.join("cwd")).is_ok_and(|it| it == bundle);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter(|it| works_there(&it.path())).count()
}

#[tokio::test]
async fn a_lost_shim_neither_holds_up_the_next_task_nor_stays() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let containers = ["sandbox.web_pause", "sandbox.web.app"];
    for container in containers {
        lose_shim(&node, container)?;
        ensure!(lost(&node, container) == 1, "{container} has lost its shim");
    }
    let create = node.create("web", idle());
    let created = tokio::time::timeout(Duration::from_secs(20), create).await;
    let created = created.context("the lost shim holds it up")??;
    ensure!(created.status() == SandboxStatus::Running, "{created:?}");
    for container in containers {
        ensure!(
            lost(&node, container) == 0,
            "that of {container} has stayed"
        );
    }
    node.assert_clean().await?;
    node.delete("web").await?;
    node.finish()
}

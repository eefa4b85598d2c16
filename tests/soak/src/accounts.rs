//! What must be left of it all, which is nothing: asked of Berth, of containerd, and of the kernel.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use berth_api::v1::{GetStatusRequest, ListRequest, SandboxStatus};
use berth_e2e::{
    TestNode,
    faults::processes,
    leftovers::cgroup_roots,
    node::{eventually, succeed},
};

/// File descriptors that a quiet manager may have more than another: the connections of clients that it has not seen end
/// yet, and the one to containerd while it is made anew.
const DESCRIPTORS: usize = 8;

/// Descriptors of the manager once nothing is under way.
pub(crate) async fn quiet_descriptors(node: &TestNode) -> anyhow::Result<usize> {
    // Warm: what is opened once and kept is open.
    node.audit().await?;
    let mut before = descriptors(node)?;
    let calm = || {
        let now = descriptors(node).unwrap_or_default();
        let same = now == before;
        before = now;
        async move { same }
    };
    eventually(
        "the descriptors come to rest",
        Duration::from_secs(10),
        calm,
    )
    .await?;
    descriptors(node)
}

fn descriptors(node: &TestNode) -> anyhow::Result<usize> {
    let dir = format!("/proc/{}/fd", node.manager_pid()?);
    Ok(fs::read_dir(dir)?.count())
}

/// Fails with what is left of sandboxes that were all deleted.
pub(crate) async fn balance(node: &TestNode, at_first: usize) -> anyhow::Result<()> {
    let audit = node.audit().await?;
    ensure!(
        audit.clean && audit.objects.is_empty(),
        "the audit: {audit:#?}"
    );
    let statuses = [
        SandboxStatus::Pending,
        SandboxStatus::Running,
        SandboxStatus::NotReady,
        SandboxStatus::Stopped,
        SandboxStatus::Dead,
    ];
    let request = ListRequest {
        statuses: statuses.map(Into::into).to_vec(),
        ..ListRequest::default()
    };
    let list = node.sandboxes().list(request).await?.into_inner();
    ensure!(list.sandboxes.is_empty(), "records: {:#?}", list.sandboxes);
    let status = node
        .node()
        .get_status(GetStatusRequest {})
        .await?
        .into_inner();
    let held = status.network.context("the network")?.held;
    ensure!(held == 0, "{held} addresses are held");

    let mut left = vec![];
    for what in ["tasks", "containers"] {
        let list = succeed(node.command("ctr").args([what, "ls", "-q"]))?;
        left.extend(list.lines().map(|it| format!("{what}: {it}")));
    }
    let instance = fs::read_to_string(node.home().join("instance"))?
        .trim()
        .to_owned();
    let leases = succeed(node.command("ctr").args(["leases", "ls", "-q"]))?;
    let own = format!("berth.{instance}.");
    let leases = leases.lines().filter(|it| it.starts_with(&own));
    left.extend(leases.map(|it| format!("lease: {it}")));
    let snapshots = succeed(node.command("ctr").args(["snapshots", "ls"]))?;
    let active = snapshots
        .lines()
        .filter(|it| it.trim_end().ends_with("Active"));
    left.extend(active.map(|it| format!("snapshot: {it}")));

    let namespace = format!("-namespace {} ", node.variable("CONTAINERD_NAMESPACE"));
    let logs = node.home().join("log").display().to_string();
    let helpers = processes()?.into_iter().filter(|(_, command)| {
        command.contains("containerd-shim") && command.contains(&namespace)
            || command.contains("log-writer") && command.contains(&logs)
    });
    left.extend(helpers.map(|(pid, command)| format!("process {pid}: {command}")));
    for dir in ["run/ns", "run/sandboxes", "log"] {
        left.extend(
            names(&node.home().join(dir))
                .into_iter()
                .map(|it| format!("{dir}: {it}")),
        );
    }
    for root in cgroup_roots() {
        let dir = root.join("berth").join(&instance);
        let below = names(&dir).into_iter().filter(|it| dir.join(it).is_dir());
        left.extend(below.map(|it| format!("cgroup: {}/{it}", dir.display())));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let bundles = node.home().join("containerd/state").display().to_string();
    let mounts = mounts.lines().filter(|it| it.contains(&bundles));
    left.extend(mounts.map(|it| format!("mount: {it}")));
    let links = succeed(std::process::Command::new("ip").args(["-o", "link"]))?;
    let alias = format!("alias berth {instance} ");
    let links = links
        .lines()
        .filter(|it| it.contains(&alias) && !it.contains("bridge"));
    left.extend(links.map(|it| format!("link: {it}")));
    ensure!(left.is_empty(), "left on the node: {left:#?}");

    let at_last = quiet_descriptors(node).await?;
    ensure!(
        at_last <= at_first + DESCRIPTORS,
        "the manager has {at_last} descriptors, {at_first} at first"
    );
    Ok(())
}

/// What a folder has, but for hidden files: those are the instance's own.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|it| it.file_name().to_string_lossy().into_owned())
        .filter(|it| !it.starts_with('.'))
        .collect()
}

//! A sandbox's life and its cgroups, on whichever version of them the kernel has. `make smoke-v2` runs this in a guest with
//! version 2.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, SandboxStatus};
use berth_domain::cgroups;
use berth_e2e::{
    TestNode, images,
    node::eventually,
    specs::{shell, spec},
};

/// A limit of each kind, as a caller asks for it.
fn limits(unit: u32) -> v1::Resources {
    v1::Resources {
        cpu_millis: 250 * unit,
        memory_bytes: u64::from(unit) * (16 << 20),
        memory_high_bytes: u64::from(unit) * (8 << 20),
        pids: 20 * unit,
    }
}

/// The same as the kernel has it: controller, file, value.
fn limits_in_files(version: u32, unit: u64) -> [(&'static str, &'static str, String); 4] {
    let [cpu, memory, high, pids] = [
        25_000 * unit,
        unit * (16 << 20),
        unit * (8 << 20),
        20 * unit,
    ]
    .map(|it| it.to_string());
    if version == 1 {
        [
            ("cpu", "cpu.cfs_quota_us", cpu),
            ("memory", "memory.limit_in_bytes", memory),
            ("memory", "memory.soft_limit_in_bytes", high),
            ("pids", "pids.max", pids),
        ]
    } else {
        [
            ("", "cpu.max", format!("{cpu} 100000")),
            ("", "memory.max", memory),
            ("", "memory.high", high),
            ("", "pids.max", pids),
        ]
    }
}

/// Every cgroup below that of the instance, in every hierarchy.
fn cgroups_below(parent: &str) -> Vec<PathBuf> {
    let below = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(below).into_iter().flatten().flatten();
    let mut places: Vec<_> = hierarchies.map(|it| it.path()).collect();
    places.push(below.to_owned());
    let found = places
        .iter()
        .flat_map(|it| fs::read_dir(it.join(parent)))
        .flatten()
        .flatten();
    found.map(|it| it.path()).filter(|it| it.is_dir()).collect()
}

#[tokio::test]
async fn a_life_is_limited_and_measured_by_its_cgroups_and_leaves_none() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let status = node.node().get_status(v1::GetStatusRequest {}).await?;
    let version = status.into_inner().runtime.unwrap_or_default();
    let version = version.cgroup_version;
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    ensure!(version == if unified { 2 } else { 1 }, "{version}");

    let archive = node.home().join("busybox.tar");
    fs::write(&archive, images::busybox())?;
    let name = "berth.local/smoke:1";
    node.berth(&[
        "images",
        "import",
        "--name",
        name,
        &archive.to_string_lossy(),
    ])?;
    let mut app = shell("app", "exec sleep 3600", &[]);
    app.image = name.into();
    app.resources = Some(limits(1));
    let mut wanted = spec([app]);
    wanted.resources = Some(limits(2));
    node.create("life", wanted).await?;
    let standing = node.get("life").await?;
    ensure!(standing.status() == SandboxStatus::Running, "{standing:?}");

    let own = standing.cgroup;
    let (parent, _) = own.rsplit_once('/').context("a parent")?;
    ensure!(!cgroups_below(parent).is_empty(), "{own}");
    let apps = cgroups::of_container(&own, "app");
    for (cgroup, unit) in [(&own, 2), (&apps, 1)] {
        for (controller, file, expected) in limits_in_files(version, unit) {
            let path = Path::new("/sys/fs/cgroup").join(controller);
            let path = path.join(cgroup).join(file);
            let value = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            ensure!(value.trim() == expected, "{}: {value}", path.display());
        }
    }
    let request = v1::SnapshotRequest { id: "life".into() };
    let usage = node.sandboxes().snapshot(request).await?.into_inner();
    let total = usage.total.context("a sum")?;
    ensure!(total.pids == 2, "the pause and the app: {total:?}");
    ensure!(total.memory_usage > 0 && total.total_cpu_time > 0);
    node.assert_clean().await?;

    let request = v1::StopRequest {
        id: "life".into(),
        ..v1::StopRequest::default()
    };
    let stopped = node.sandboxes().stop(request).await?.into_inner();
    let stopped = stopped.sandbox.context("the sandbox")?;
    ensure!(stopped.status() == SandboxStatus::Dead, "{stopped:?}");
    ensure!(
        cgroups_below(parent).is_empty(),
        "{:?}",
        cgroups_below(parent)
    );
    ensure!(node.delete("life").await?, "its record was there");

    let hungry = "until test -e /tmp/go; do :; done; tail /dev/zero";
    let mut app = shell("app", hungry, &[]);
    app.resources = Some(v1::Resources {
        memory_bytes: 16 << 20,
        ..v1::Resources::default()
    });
    node.create("hungry", spec([app])).await?;
    let mut go = node.command("ctr");
    go.args(["t", "exec", "--exec-id", "go", "sandbox.hungry.app"]);
    let go = go.args(["touch", "/tmp/go"]).output()?;
    ensure!(go.status.success(), "{go:?}");
    let dead = || async {
        let seen = node.get("hungry").await;
        seen.is_ok_and(|it| it.status() == SandboxStatus::Dead)
    };
    eventually("the sandbox is DEAD", Duration::from_secs(30), dead).await?;
    let exit = node.get("hungry").await?.exit.context("an exit record")?;
    ensure!(
        exit.cause() == v1::ExitCause::Oom && exit.container == "app",
        "{exit:?}"
    );
    node.delete("hungry").await?;

    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    ensure!(
        cgroups_below(parent).is_empty(),
        "{:?}",
        cgroups_below(parent)
    );
    node.finish()
}

#[tokio::test]
async fn a_kernel_without_nat_is_told_of_and_no_other() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let rules = node.home().join("nat.nft");
    fs::write(
        &rules,
        "table ip look { chain it { type nat hook postrouting priority 100; masquerade; }; }",
    )?;
    let mut nft = Command::new("nft");
    let translates = nft.arg("--check").arg("-f").arg(&rules);
    let translates = translates.stderr(Stdio::null()).status()?.success();
    let status = node.node().get_status(v1::GetStatusRequest {}).await?;
    let degraded = status.into_inner().degraded;
    let told = degraded.iter().any(|it| it.contains("no nftables NAT"));
    ensure!(told != translates, "{degraded:?}");
    node.finish()
}

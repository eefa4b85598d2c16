//! What nobody's record explains is found, with its owner, and removed; what is in use, in doubt or another's is not.

mod scene;
mod watchdog;

use std::{fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, AuditAction, AuditVerdict, SandboxStatus};
use berth_domain::SandboxId;
use berth_e2e::{
    TestNode,
    node::{eventually, programs},
    specs::{idle, web},
};

use scene::{Scene, run};

const SETTLE: &str = "100ms";

#[tokio::test]
async fn every_kind_of_orphan_is_found_and_removed_and_its_neighbour_goes_on_untouched()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let node = &scene.node;
    node.create("web", web("hello", 8080)).await?;
    let pid = scene.pid("sandbox.web.web")?;
    let planted = scene.plant().await?;
    let expected = &planted.expected;
    let found = scene.audit().await?;
    ensure!(!found.0.clean);
    for (kind, name, owner) in expected {
        let it = found.find(kind, name)?;
        ensure!(it.verdict() == AuditVerdict::Orphan, "{it:#?}");
        ensure!(it.sandbox == *owner, "{it:#?}");
        ensure!(it.action() == AuditAction::Unspecified, "{it:#?}");
    }
    for (container, sandbox) in [("sandbox.whole.app", "whole"), ("sandbox.shim.app", "shim")] {
        let name = format!("{container} pid {}", scene.shim(container)?);
        let it = found.find("shim", &name)?;
        ensure!(
            it.verdict() == AuditVerdict::Orphan && it.sandbox == sandbox && it.age.is_some(),
            "{it:#?}"
        );
    }
    let container = found.find("container", "sandbox.whole.app")?;
    ensure!(container.generation == 3 && container.age.is_some());
    let odd = found
        .of("web")
        .filter(|it| it.name != planted.odd_link && it.verdict() != AuditVerdict::Explained);
    let odd: Vec<_> = odd.collect();
    ensure!(odd.is_empty(), "{odd:#?}");
    ensure!(found.find("container", "sandbox.web.web").is_ok());
    ensure!(
        scene.pid("sandbox.whole.app").is_ok(),
        "an audit only looks"
    );

    let said = node.command("berth").args(["audit"]).output()?;
    let table = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(said.status.code() == Some(1), "not clean: {table}");
    for column in [
        "KIND",
        "SANDBOX",
        "GENERATION",
        "AGE",
        "VERDICT",
        "WHAT TO DO",
    ] {
        ensure!(table.contains(column), "{table}");
    }

    let fixed = node.berth(&["audit", "--fix", "--settle", SETTLE, "-o", "json"])?;
    let fixed: serde_json::Value = serde_json::from_str(&fixed)?;
    ensure!(fixed["clean"] == true, "{fixed:#}");
    let objects = fixed["objects"].as_array().context("objects")?;
    for (kind, name, _) in expected {
        let it = objects.iter().find(|it| {
            it["kind"] == *kind && it["name"].as_str().is_some_and(|it| it.ends_with(name))
        });
        let it = it.with_context(|| format!("no {kind} {name} in {fixed:#}"))?;
        ensure!(it["action"] == "AUDIT_ACTION_REMOVED", "{it:#}");
    }
    let after = scene.audit().await?;
    ensure!(after.0.clean, "{:#?}", after.0.objects);
    after.assert_in_order("web")?;
    ensure!(after.0.objects.iter().all(|it| it.sandbox == "web"));
    ensure!(scene.shim("sandbox.whole.app").is_err() && scene.shim("sandbox.shim.app").is_err());
    planted.assert_gone()?;
    ensure!(
        scene.pid("sandbox.web.web")? == pid,
        "the neighbour goes on"
    );
    ensure!(node.get("web").await?.status() == SandboxStatus::Running);
    node.delete("web").await?;
    let audit = scene.audit().await?;
    ensure!(
        audit.0.clean && audit.0.objects.is_empty(),
        "{:#?}",
        audit.0.objects
    );
    scene.finish()
}

#[tokio::test]
async fn what_another_instance_has_on_the_same_containerd_is_never_ours() -> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let socket = scene.node.variable("CONTAINERD_ADDRESS").to_owned();
    let other = TestNode::start_with("", &["--containerd", &socket]).await?;
    other.create("web", web("theirs", 8080)).await?;
    let other_instance = fs::read_to_string(other.home().join("instance"))?;
    // Their container in our namespace, with a task: a name tells the sandbox and not the instance.
    scene.run_by_hand(other_instance.trim(), "foreign")?;
    let theirs = scene.pid("sandbox.foreign.app")?;
    // And one of which containerd has nothing but the task: what it runs is in their cgroups.
    scene.run_by_hand(other_instance.trim(), "lost")?;
    let lost = scene.pid("sandbox.lost.app")?;
    scene.forget_container("sandbox.lost.app").await?;
    scene.node.create("mine", idle()).await?;
    scene.run_by_hand(&scene.instance, "ghost")?;

    let fixed = scene.fix().await?;
    let owners: Vec<_> = fixed
        .0
        .objects
        .iter()
        .map(|it| it.sandbox.as_str())
        .collect();
    ensure!(
        owners.iter().all(|it| ["mine", "ghost"].contains(it)),
        "{:#?}",
        fixed.0.objects
    );
    ensure!(fixed.0.clean && fixed.of("ghost").count() > 0);
    ensure!(
        scene.pid("sandbox.foreign.app")? == theirs,
        "it was not touched"
    );
    ensure!(
        Path::new("/proc").join(lost.to_string()).exists(),
        "nor was that"
    );
    let audit = other.audit().await?;
    let own: Vec<_> = audit
        .objects
        .iter()
        .filter(|it| it.sandbox == "web")
        .collect();
    ensure!(!own.is_empty());
    ensure!(
        own.iter().all(|it| it.verdict() == AuditVerdict::Explained),
        "{own:#?}"
    );
    ensure!(
        audit.objects.iter().all(|it| it.sandbox != "mine"),
        "{:#?}",
        audit.objects
    );
    ensure!(other.get("web").await?.status() == SandboxStatus::Running);

    scene.ctr(&["tasks", "rm", "--force", "sandbox.foreign.app"])?;
    run(
        "kill",
        &["-9", &scene.shim("sandbox.lost.app")?.to_string()],
    )?;
    let gone = || async { !Path::new("/proc").join(lost.to_string()).exists() };
    eventually("the lost task is gone", Duration::from_secs(20), gone).await?;
    other.finish()?;
    scene.finish()
}

#[tokio::test]
async fn an_orphan_that_appears_between_the_two_looks_is_left_for_the_next_run()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let (node, names) = (&scene.node, scene.names()?);
    let (old, new) = (
        names.files(&SandboxId::parse("old")?),
        names.files(&SandboxId::parse("new")?),
    );
    fs::create_dir_all(&old)?;
    let log = node.home().join("manager.log");
    let looked = || fs::read_to_string(&log).is_ok_and(|it| it.contains("the first look is over"));
    ensure!(!looked());
    let mut command = node.command("berth");
    command.args(["audit", "--fix", "--settle", "5s", "-o", "json"]);
    let fixing = command.stdout(Stdio::piped()).spawn()?;
    let first_look = || async { looked() };
    eventually(
        "the first look is over",
        Duration::from_secs(20),
        first_look,
    )
    .await?;
    fs::create_dir_all(&new)?;
    let said = fixing.wait_with_output()?;
    let fixed: serde_json::Value = serde_json::from_slice(&said.stdout)?;
    let action = |name: &str| {
        let objects = fixed["objects"].as_array()?;
        let own = objects.iter().find(|it| it["sandbox"] == name)?;
        own["action"].as_str()
    };
    ensure!(action("old") == Some("AUDIT_ACTION_REMOVED"), "{fixed:#}");
    ensure!(action("new") == Some("AUDIT_ACTION_LEFT"), "{fixed:#}");
    ensure!(fixed["clean"] == false && said.status.code() == Some(1));
    ensure!(!old.exists() && new.exists());
    ensure!(scene.fix().await?.0.clean && !new.exists());
    scene.finish()
}

#[tokio::test]
async fn a_sandbox_that_lost_its_lease_and_its_files_has_them_again_and_runs_on()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let (node, names) = (&scene.node, scene.names()?);
    node.create("web", idle()).await?;
    let pid = node.task("sandbox.web.app")?;
    let id = SandboxId::parse("web")?;
    scene.ctr(&["leases", "delete", &names.lease(&id)])?;
    fs::remove_dir_all(names.files(&id))?;
    let fixed = scene.fix().await?;
    for kind in ["lease", "directory"] {
        ensure!(fixed.find(kind, "web")?.verdict() == AuditVerdict::Missing);
    }
    let clean = || async { node.audit().await.is_ok_and(|it| it.clean) };
    eventually("it has all again", Duration::from_secs(20), clean).await?;
    ensure!(node.get("web").await?.status() == SandboxStatus::Running);
    ensure!(node.task("sandbox.web.app")? == pid, "it ran on");
    node.delete("web").await?;
    scene.finish()
}

#[tokio::test]
async fn a_sandbox_that_lost_its_link_is_missing_it_and_acts_when_it_is_told_to()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let (node, names) = (&scene.node, scene.names()?);
    node.create("web", idle()).await?;
    node.assert_clean().await?;
    run(
        "ip",
        &["link", "del", &names.link(&SandboxId::parse("web")?)],
    )?;
    let table = format!("berth-{}", scene.instance);
    run("nft", &["delete", "table", "inet", &table])?;
    let audit = scene.audit().await?;
    let link = audit.find("link", "web")?;
    ensure!(
        link.verdict() == AuditVerdict::Missing && link.sandbox == "web" && link.generation > 0,
        "{link:#?}"
    );
    let back = || async { run("nft", &["list", "table", "inet", &table]).is_ok() };
    eventually("the table is back", Duration::from_secs(10), back).await?;
    let fixed = scene.fix().await?;
    ensure!(!fixed.0.clean, "nothing is made in its place");
    ensure!(fixed.find("link", "web")?.action() == AuditAction::Left);
    let dead = || async {
        let found = node.get("web").await;
        found.is_ok_and(|it| it.status() == SandboxStatus::Dead)
    };
    eventually("its task has found out", Duration::from_secs(20), dead).await?;
    node.kill_manager()?;
    node.up().await?;
    let audit = scene.audit().await?;
    ensure!(
        audit.0.clean && audit.0.objects.is_empty(),
        "{:#?}",
        audit.0.objects
    );
    scene.finish()
}

#[tokio::test]
async fn a_shim_that_does_not_answer_is_unknown_and_nothing_of_its_sandbox_is_removed()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    scene.run_by_hand(&scene.instance, "ghost")?;
    let (pid, shim) = (
        scene.pid("sandbox.ghost.app")?,
        scene.shim("sandbox.ghost.app")?,
    );
    run("kill", &["-STOP", &shim.to_string()])?;
    let fixed = scene.fix().await;
    let untouched = Path::new("/proc").join(pid.to_string()).exists();
    run("kill", &["-CONT", &shim.to_string()])?;
    let fixed = fixed?;
    ensure!(!fixed.0.clean && untouched);
    let own: Vec<_> = fixed.of("ghost").collect();
    ensure!(own.len() > 2, "{own:#?}");
    for it in own {
        ensure!(
            it.verdict() == AuditVerdict::Unknown && it.action() == AuditAction::Left,
            "{it:#?}"
        );
    }
    let fixed = scene.fix().await?;
    ensure!(fixed.0.clean, "{:#?}", fixed.0.objects);
    ensure!(!Path::new("/proc").join(pid.to_string()).exists());
    scene.finish()
}

#[tokio::test]
async fn a_time_between_the_looks_that_is_too_long_is_refused() -> anyhow::Result<()> {
    use tonic_types::StatusExt as _;
    let scene = Scene::start().await?;
    ensure!(programs().join("berth").is_file());
    for seconds in [-1, 61] {
        let request = v1::AuditRequest {
            fix: true,
            settle: Some(prost_types::Duration { seconds, nanos: 0 }),
        };
        let refused = scene.node.node().audit(request).await;
        let refused = refused.err().context("it is out of bounds")?;
        let fields = refused.get_error_details();
        let fields = fields.bad_request().context("a field")?;
        ensure!(fields.field_violations[0].field == "settle", "{refused}");
    }
    scene.finish()
}

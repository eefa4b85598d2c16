//! What nobody's record explains is found, with its owner, and removed; what is in use, in doubt or another's is not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, AuditAction, AuditVerdict, SandboxStatus};
use berth_domain::{InstanceId, Names, SandboxId};
use berth_e2e::{
    TestNode,
    node::{eventually, programs, succeed},
    specs::{IMAGE, idle, web},
};
use containerd_client::{
    services::v1::{DeleteContainerRequest, containers_client::ContainersClient},
    tonic,
};

const SETTLE: &str = "100ms";
/// It ends at SIGTERM, which the first process of a pid namespace does not by itself.
const COMMAND: [&str; 3] = [
    "/bin/sh",
    "-c",
    "trap 'exit 0' TERM; while :; do sleep 1 & wait; done",
];

/// A node, and what is made beside its manager.
struct Scene {
    node: TestNode,
    instance: String,
}

impl Scene {
    async fn start() -> anyhow::Result<Self> {
        let node = TestNode::start().await?;
        let instance = fs::read_to_string(node.home().join("instance"))?;
        let instance = instance.trim().to_owned();
        Ok(Self { node, instance })
    }

    fn names(&self) -> anyhow::Result<Names> {
        Ok(Names {
            instance: InstanceId::parse(&self.instance)?,
            cgroup_parent: format!("berth/{}", self.instance),
            run_dir: self.node.home().join("run"),
            log_dir: self.node.home().join("log"),
        })
    }

    fn ctr(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.node.command("ctr");
        succeed(command.args(arguments))
    }

    /// Labels as the manager of `instance` gives them.
    fn labels(&self, instance: &str, sandbox: &str) -> Vec<String> {
        vec![
            format!("runtime.computer/instance={instance}"),
            format!("runtime.computer/entity-id=sandbox/{sandbox}"),
            "runtime.computer/generation=3".to_owned(),
        ]
    }

    /// Starts a container by hand, with a task, in the cgroups of `instance`.
    fn run_by_hand(&self, instance: &str, sandbox: &str) -> anyhow::Result<()> {
        let cgroup = format!("/berth/{instance}/{sandbox}/app");
        let mut arguments = vec!["run", "--detach", "--null-io", "--cgroup", &cgroup];
        let labels = self.labels(instance, sandbox);
        for label in &labels {
            arguments.extend(["--label", label, "--snapshotter-label", label]);
        }
        let id = format!("sandbox.{sandbox}.app");
        arguments.extend([IMAGE, &id]);
        arguments.extend(COMMAND);
        self.ctr(&arguments).map(drop)
    }

    /// Takes the record of a container away from under its task.
    async fn forget_container(&self, id: &str) -> anyhow::Result<()> {
        let socket = self.node.variable("CONTAINERD_ADDRESS").to_owned();
        let channel = containerd_client::connect(socket).await?;
        let namespace = self.node.variable("CONTAINERD_NAMESPACE").parse()?;
        let mut request = tonic::Request::new(DeleteContainerRequest { id: id.to_owned() });
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        ContainersClient::new(channel).delete(request).await?;
        Ok(())
    }

    /// Process of a task, as containerd tells it.
    fn pid(&self, container: &str) -> anyhow::Result<u32> {
        let tasks = self.ctr(&["tasks", "ls"])?;
        let line = tasks
            .lines()
            .find(|it| it.split_whitespace().next() == Some(container));
        let pid = line.and_then(|it| it.split_whitespace().nth(1));
        pid.with_context(|| format!("no task {container} in\n{tasks}"))?
            .parse()
            .context("a pid")
    }

    /// Process of the shim that runs `container`.
    fn shim(&self, container: &str) -> anyhow::Result<u32> {
        let namespace = self.node.variable("CONTAINERD_NAMESPACE");
        let own = format!("-namespace {namespace} -id {container} ");
        for entry in fs::read_dir("/proc")?.flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains("containerd-shim") && command.contains(&own) {
                return Ok(entry.file_name().to_string_lossy().parse()?);
            }
        }
        anyhow::bail!("no shim of {container}")
    }

    async fn audit(&self) -> anyhow::Result<Audit> {
        Ok(Audit(self.node.audit().await?))
    }

    async fn fix(&self) -> anyhow::Result<Audit> {
        let request = v1::AuditRequest {
            fix: true,
            settle: Some(Duration::from_millis(100).try_into()?),
        };
        Ok(Audit(self.node.node().audit(request).await?.into_inner()))
    }

    fn finish(self) -> anyhow::Result<()> {
        self.node.finish()
    }
}

struct Audit(v1::AuditResponse);

impl Audit {
    /// The object of this kind whose name ends so.
    fn find(&self, kind: &str, end: &str) -> anyhow::Result<&v1::AuditObject> {
        let mut objects = self.0.objects.iter();
        let found = objects.find(|it| it.kind == kind && it.name.ends_with(end));
        found.with_context(|| format!("no {kind} …{end} in {:#?}", self.0.objects))
    }

    fn assert_in_order(&self, sandbox: &str) -> anyhow::Result<()> {
        let own = self.0.objects.iter().filter(|it| it.sandbox == sandbox);
        let explained = |it: &v1::AuditObject| it.verdict() == AuditVerdict::Explained;
        let odd: Vec<_> = own.clone().filter(|it| !explained(it)).collect();
        ensure!(own.count() > 0 && odd.is_empty(), "of {sandbox}: {odd:#?}");
        Ok(())
    }

    fn of(&self, sandbox: &str) -> impl Iterator<Item = &v1::AuditObject> {
        let own = self.0.objects.iter();
        own.filter(move |it| it.sandbox == sandbox)
    }
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    succeed(Command::new(program).args(arguments)).map(drop)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The same cgroup in every hierarchy that knows the instance.
fn cgroups(instance: &str, name: &str) -> anyhow::Result<Vec<PathBuf>> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(&root)?.flatten().map(|it| it.path());
    let parents = hierarchies
        .chain([root])
        .map(|it| it.join("berth").join(instance));
    let known: Vec<_> = parents
        .filter(|it| it.is_dir())
        .map(|it| it.join(name))
        .collect();
    ensure!(!known.is_empty(), "no hierarchy knows the instance");
    Ok(known)
}

#[tokio::test]
async fn every_kind_of_orphan_is_found_and_removed_and_its_neighbour_goes_on_untouched()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let (node, names, instance) = (&scene.node, scene.names()?, scene.instance.clone());
    node.create("web", web("hello", 8080)).await?;
    let pid = scene.pid("sandbox.web.web")?;

    // A container with its task, its snapshot and its shim.
    scene.run_by_hand(&instance, "whole")?;
    // A task and a shim whose container is gone from containerd.
    scene.run_by_hand(&instance, "shim")?;
    scene.forget_container("sandbox.shim.app").await?;
    // A snapshot and a container under names that ours do not have.
    let labels = scene.labels(&instance, "layer");
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    scene.ctr(&["snapshots", "prepare", "odd-layer"])?;
    let label = [&["snapshots", "label", "odd-layer"], &labels[..]].concat();
    scene.ctr(&label)?;
    scene.ctr(&[
        "leases",
        "create",
        "--id",
        &names.lease(&SandboxId::parse("lease")?),
    ])?;
    let namespaces = names.namespaces(&SandboxId::parse("pins")?);
    fs::create_dir_all(&namespaces)?;
    let pin = namespaces.join("net");
    fs::write(&pin, "")?;
    run("mount", &["--bind", "/proc/self/ns/net", &text(&pin)])?;
    // One link under the name of its sandbox, and one under another.
    let veth = |name: &str, sandbox: &str| -> anyhow::Result<()> {
        let peer = format!("p{}", &name[1..]);
        run(
            "ip",
            &["link", "add", name, "type", "veth", "peer", "name", &peer],
        )?;
        let alias = format!("berth {instance} {sandbox}");
        run("ip", &["link", "set", name, "alias", &alias])
    };
    let link = names.link(&SandboxId::parse("link")?);
    veth(&link, "link")?;
    let odd_link = format!("odd{instance}");
    veth(&odd_link, "web")?;
    for cgroup in cgroups(&instance, "group")? {
        fs::create_dir_all(cgroup.join("inside"))?;
    }
    for cgroup in cgroups(&instance, "Not_An_Id")? {
        fs::create_dir_all(cgroup)?;
    }
    let dir = names.files(&SandboxId::parse("files")?);
    fs::create_dir_all(dir.join("deep"))?;
    fs::write(dir.join("deep/file"), "x")?;
    let logs = names.logs(&SandboxId::parse("logs")?);
    fs::create_dir_all(logs.join("app"))?;
    fs::write(logs.join("app/0"), "x")?;
    // A mount in the folder of a sandbox without a record: what is inside must live.
    let kept = node.home().join("kept");
    fs::create_dir_all(&kept)?;
    fs::write(kept.join("precious"), "x")?;
    let mounted = names.files(&SandboxId::parse("mount")?).join("inner");
    fs::create_dir_all(&mounted)?;
    run("mount", &["--bind", &text(&kept), &text(&mounted)])?;
    let bare = names.run_dir.join("bare mount");
    fs::create_dir_all(&bare)?;
    run("mount", &["-t", "tmpfs", "none", &text(&bare)])?;

    let expected = [
        ("container", "sandbox.whole.app", "whole"),
        ("task", "sandbox.whole.app", "whole"),
        ("snapshot", "sandbox.whole.app", "whole"),
        ("cgroup", "/whole", "whole"),
        ("mount", "sandbox.whole.app/rootfs", "whole"),
        ("task", "sandbox.shim.app", "shim"),
        ("cgroup", "/shim", "shim"),
        ("snapshot", "odd-layer", "layer"),
        ("lease", ".lease", "lease"),
        ("netns", "/ns/pins", "pins"),
        ("link", link.as_str(), "link"),
        ("link", odd_link.as_str(), "web"),
        ("cgroup", "/group", "group"),
        ("cgroup", "/Not_An_Id", ""),
        ("directory", "/sandboxes/files", "files"),
        ("logs", "/log/logs", "logs"),
        ("mount", "/sandboxes/mount/inner", "mount"),
        ("directory", "/sandboxes/mount", "mount"),
        ("mount", "/bare mount", ""),
    ];
    let found = scene.audit().await?;
    ensure!(!found.0.clean);
    for (kind, name, owner) in expected {
        let it = found.find(kind, name)?;
        ensure!(it.verdict() == AuditVerdict::Orphan, "{it:#?}");
        ensure!(it.sandbox == owner, "{it:#?}");
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
        .filter(|it| it.name != odd_link && it.verdict() != AuditVerdict::Explained);
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
            it["kind"] == kind && it["name"].as_str().is_some_and(|it| it.ends_with(name))
        });
        let it = it.with_context(|| format!("no {kind} {name} in {fixed:#}"))?;
        ensure!(it["action"] == "AUDIT_ACTION_REMOVED", "{it:#}");
    }
    let after = scene.audit().await?;
    ensure!(after.0.clean, "{:#?}", after.0.objects);
    after.assert_in_order("web")?;
    ensure!(after.0.objects.iter().all(|it| it.sandbox == "web"));
    ensure!(scene.shim("sandbox.whole.app").is_err() && scene.shim("sandbox.shim.app").is_err());
    ensure!(!dir.exists() && !logs.exists() && !namespaces.exists());
    ensure!(kept.join("precious").exists(), "a mount is not emptied");
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

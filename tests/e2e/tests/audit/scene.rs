//! A node, and what is made beside its manager by hand.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, AuditVerdict};
use berth_domain::{InstanceId, Names, SandboxId};
use berth_e2e::{TestNode, node::succeed, specs::IMAGE};
use containerd_client::{
    services::v1::{DeleteContainerRequest, containers_client::ContainersClient},
    tonic,
};

/// It ends at SIGTERM, which the first process of a pid namespace does not by itself.
const COMMAND: [&str; 3] = [
    "/bin/sh",
    "-c",
    "trap 'exit 0' TERM; while :; do sleep 1 & wait; done",
];

/// A node, and what is made beside its manager.
pub(crate) struct Scene {
    pub(crate) node: TestNode,
    pub(crate) instance: String,
}

impl Scene {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let node = TestNode::start().await?;
        let instance = fs::read_to_string(node.home().join("instance"))?;
        let instance = instance.trim().to_owned();
        Ok(Self { node, instance })
    }

    pub(crate) fn names(&self) -> anyhow::Result<Names> {
        Ok(Names {
            instance: InstanceId::parse(&self.instance)?,
            cgroup_parent: format!("berth/{}", self.instance),
            run_dir: self.node.home().join("run"),
            log_dir: self.node.home().join("log"),
        })
    }

    pub(crate) fn ctr(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.node.command("ctr");
        succeed(command.args(arguments))
    }

    /// Labels as the manager of `instance` gives them.
    pub(crate) fn labels(&self, instance: &str, sandbox: &str) -> Vec<String> {
        vec![
            format!("runtime.computer/instance={instance}"),
            format!("runtime.computer/entity-id=sandbox/{sandbox}"),
            "runtime.computer/generation=3".to_owned(),
        ]
    }

    /// Starts a container by hand, with a task, in the cgroups of `instance`.
    pub(crate) fn run_by_hand(&self, instance: &str, sandbox: &str) -> anyhow::Result<()> {
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
    pub(crate) async fn forget_container(&self, id: &str) -> anyhow::Result<()> {
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
    pub(crate) fn pid(&self, container: &str) -> anyhow::Result<u32> {
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
    pub(crate) fn shim(&self, container: &str) -> anyhow::Result<u32> {
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

    pub(crate) async fn audit(&self) -> anyhow::Result<Audit> {
        Ok(Audit(self.node.audit().await?))
    }

    pub(crate) async fn fix(&self) -> anyhow::Result<Audit> {
        let request = v1::AuditRequest {
            fix: true,
            settle: Some(Duration::from_millis(100).try_into()?),
        };
        Ok(Audit(self.node.node().audit(request).await?.into_inner()))
    }

    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.node.finish()
    }
}

pub(crate) struct Audit(pub(crate) v1::AuditResponse);

impl Audit {
    /// The object of this kind whose name ends so.
    pub(crate) fn find(&self, kind: &str, end: &str) -> anyhow::Result<&v1::AuditObject> {
        let mut objects = self.0.objects.iter();
        let found = objects.find(|it| it.kind == kind && it.name.ends_with(end));
        found.with_context(|| format!("no {kind} …{end} in {:#?}", self.0.objects))
    }

    pub(crate) fn assert_in_order(&self, sandbox: &str) -> anyhow::Result<()> {
        let own = self.0.objects.iter().filter(|it| it.sandbox == sandbox);
        let explained = |it: &v1::AuditObject| it.verdict() == AuditVerdict::Explained;
        let odd: Vec<_> = own.clone().filter(|it| !explained(it)).collect();
        ensure!(own.count() > 0 && odd.is_empty(), "of {sandbox}: {odd:#?}");
        Ok(())
    }

    pub(crate) fn of(&self, sandbox: &str) -> impl Iterator<Item = &v1::AuditObject> {
        let own = self.0.objects.iter();
        own.filter(move |it| it.sandbox == sandbox)
    }
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
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

/// What was made by hand, of each kind at least one.
pub(crate) struct Planted {
    /// Kind, end of the name, and sandbox of each orphan.
    pub(crate) expected: Vec<(&'static str, String, &'static str)>,
    /// A link that says that it is of the sandbox `web`.
    pub(crate) odd_link: String,
    gone: Vec<PathBuf>,
    kept: PathBuf,
}

impl Planted {
    pub(crate) fn assert_gone(&self) -> anyhow::Result<()> {
        let left: Vec<_> = self.gone.iter().filter(|it| it.exists()).collect();
        ensure!(left.is_empty(), "{left:?}");
        ensure!(
            self.kept.join("precious").exists(),
            "a mount is not emptied"
        );
        Ok(())
    }
}

impl Scene {
    /// Makes orphans of every kind.
    pub(crate) async fn plant(&self) -> anyhow::Result<Planted> {
        let (node, names, instance) = (&self.node, self.names()?, self.instance.clone());
        // A container with its task, its snapshot and its shim.
        self.run_by_hand(&instance, "whole")?;
        // A task and a shim whose container is gone from containerd.
        self.run_by_hand(&instance, "shim")?;
        self.forget_container("sandbox.shim.app").await?;
        // A snapshot and a container under names that ours do not have.
        let labels = self.labels(&instance, "layer");
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        self.ctr(&["snapshots", "prepare", "odd-layer"])?;
        let label = [&["snapshots", "label", "odd-layer"], &labels[..]].concat();
        self.ctr(&label)?;
        self.ctr(&[
            "leases",
            "create",
            "--id",
            &names.lease(&SandboxId::parse("lease")?),
        ])?;
        // Pinned namespaces, under another name than they were made.
        let pins = names.namespaces(&SandboxId::parse("pins")?);
        fs::create_dir_all(&pins)?;
        let pin = pins.join("net");
        fs::write(&pin, "")?;
        run("mount", &["--bind", "/proc/self/ns/net", &text(&pin)])?;
        let namespaces = names.namespaces(&SandboxId::parse("renamed")?);
        fs::rename(&pins, &namespaces)?;
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

        let expected = vec![
            ("container", "sandbox.whole.app".to_owned(), "whole"),
            ("task", "sandbox.whole.app".to_owned(), "whole"),
            ("snapshot", "sandbox.whole.app".to_owned(), "whole"),
            ("cgroup", "/whole".to_owned(), "whole"),
            ("mount", "sandbox.whole.app/rootfs".to_owned(), "whole"),
            ("task", "sandbox.shim.app".to_owned(), "shim"),
            ("cgroup", "/shim".to_owned(), "shim"),
            ("snapshot", "odd-layer".to_owned(), "layer"),
            ("lease", ".lease".to_owned(), "lease"),
            ("netns", "/ns/renamed".to_owned(), "renamed"),
            ("link", link, "link"),
            ("link", odd_link.clone(), "web"),
            ("cgroup", "/group".to_owned(), "group"),
            ("cgroup", "/Not_An_Id".to_owned(), ""),
            ("directory", "/sandboxes/files".to_owned(), "files"),
            ("logs", "/log/logs".to_owned(), "logs"),
            ("mount", "/sandboxes/mount/inner".to_owned(), "mount"),
            ("directory", "/sandboxes/mount".to_owned(), "mount"),
            ("mount", "/bare mount".to_owned(), ""),
        ];
        let gone = vec![dir, logs, namespaces];
        Ok(Planted {
            expected,
            odd_link,
            gone,
            kept,
        })
    }
}

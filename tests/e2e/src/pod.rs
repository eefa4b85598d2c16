//! A pod of the chart on a node of a test, run as a kubelet would: the images that are built here, volumes, containers,
//! probes. containerd keeps it in a namespace of its own, beside that of the sandboxes.

pub mod spec;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::{
    TestNode,
    node::{obtained, programs, root, succeed},
};

use spec::{CAPABILITIES, Place, runtime_spec};

/// Longer than any probe of the chart may fail at a start.
const START: Duration = Duration::from_secs(60);

/// What Helm makes of the chart for `values`.
pub fn rendered(values: &Value) -> anyhow::Result<Vec<Value>> {
    let mut command = Command::new(root().join("target/tools/helm/bin/python"));
    command.arg(root().join("deploy/dev/chart"));
    let mut child = command
        .args(["render", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("`make tools` installs Helm's engine")?;
    let mut input = child.stdin.take().context("a pipe")?;
    input.write_all(values.to_string().as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the chart does not render");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Makes the images of the chart from the programs under test; returns the folder of their archives.
pub fn images(names: &[&str], out: &Path) -> anyhow::Result<String> {
    let mut command = Command::new("python3");
    command.arg(root().join("deploy/images/build"));
    command.arg("--bin").arg(programs()).arg("--out").arg(out);
    command.args(["--strip", "--version", env!("CARGO_PKG_VERSION")]);
    succeed(command.args(names))
}

/// The pod of a DaemonSet on a node.
#[derive(Debug)]
pub struct Pod<'a> {
    node: &'a TestNode,
    namespace: String,
    home: PathBuf,
    pod: Value,
    volumes: BTreeMap<String, PathBuf>,
}

impl<'a> Pod<'a> {
    /// Lays out the volumes of the pod of the only DaemonSet in `objects`, and brings the images that it needs.
    pub fn prepare(node: &'a TestNode, objects: &[Value], images: &Path) -> anyhow::Result<Self> {
        let set = objects.iter().find(|it| it["kind"] == "DaemonSet");
        let pod = set.context("a DaemonSet")?["spec"]["template"]["spec"].clone();
        let instance = fs::read_to_string(node.home().join("instance"))?;
        let home = node.home().join("pod");
        let it = Self {
            node,
            namespace: format!("pods-{}", instance.trim()),
            volumes: volumes(&pod, objects, &home)?,
            home,
            pod,
        };
        for name in it.containers() {
            let archive = images.join(format!("{name}.tar"));
            it.ctr().args(["images", "import"]).arg(archive).run()?;
        }
        Ok(it)
    }

    pub fn containers(&self) -> Vec<String> {
        let all = self.pod["containers"].as_array().into_iter().flatten();
        all.filter_map(|it| it["name"].as_str().map(str::to_owned))
            .collect()
    }

    fn ctr(&self) -> Ctr {
        let mut command = self.node.command("ctr");
        command.env("CONTAINERD_NAMESPACE", &self.namespace);
        Ctr(command)
    }

    /// Starts every container, all at once as a kubelet does, and waits until the probes of all succeed.
    pub async fn start(&self) -> anyhow::Result<()> {
        let all_capabilities = bounding_set()?;
        for container in self.pod["containers"].as_array().into_iter().flatten() {
            self.run(container, &all_capabilities)
                .with_context(|| container["name"].to_string())?;
        }
        for container in self.pod["containers"].as_array().into_iter().flatten() {
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                let what = format!("{} {probe}", container["name"]);
                obtained(&what, START, || async { self.probe(container, probe) }).await?;
            }
        }
        Ok(())
    }

    fn run(&self, container: &Value, all_capabilities: &[String]) -> anyhow::Result<()> {
        let name = container["name"].as_str().context("a name")?;
        let image = container["image"].as_str().context("an image")?;
        let rootfs = self.home.join(name);
        fs::create_dir_all(&rootfs)?;
        let mount = ["images", "mount", "--rw", image];
        self.ctr().args(mount).arg(&rootfs).run()?;
        let seccomp = self.default_filter(image)?;
        let fields = [
            ("spec.nodeName", "node-of-the-pod".to_owned()),
            ("status.hostIP", "127.0.0.1".to_owned()),
            ("metadata.name", "berth-x7k2p".to_owned()),
            ("metadata.namespace", "sandboxes".to_owned()),
        ];
        let place = Place {
            volumes: &self.volumes,
            fields: &fields.into(),
            image: &self.image_config(image)?,
            rootfs: &rootfs,
            cgroup: &format!("/{}/{name}", self.namespace),
            all_capabilities,
            seccomp: &seccomp,
        };
        let spec = runtime_spec(&self.pod, container, &place)?;
        let file = self.home.join(format!("{name}.json"));
        fs::write(&file, spec.to_string())?;
        let log = format!("file://{}", self.log(name).display());
        let run = ["run", "--detach", "--log-uri", &log, "--config"];
        self.ctr().args(run).arg(&file).args([name]).run()?;
        Ok(())
    }

    /// Where a container's words are.
    pub fn log(&self, name: &str) -> PathBuf {
        self.home.join(format!("{name}.log"))
    }

    /// `config` of an image's document.
    fn image_config(&self, image: &str) -> anyhow::Result<Value> {
        let read = |digest: &str| -> anyhow::Result<Value> {
            let text = self.ctr().args(["content", "get", digest]).run()?;
            Ok(serde_json::from_str(&text)?)
        };
        let list = self.ctr().args(["images", "ls"]).run()?;
        let mut lines = list.lines().map(|it| it.split_whitespace());
        let digest = lines.find_map(|mut it| (it.next()? == image).then(|| it.nth(1))?);
        let manifest = read(digest.with_context(|| format!("no {image} in {list}"))?)?;
        let config = manifest["config"]["digest"].as_str().context("a config")?;
        Ok(read(config)?["config"].clone())
    }

    /// The filter that containerd gives by default.
    fn default_filter(&self, image: &str) -> anyhow::Result<Value> {
        let make = ["containers", "create", "--seccomp", image, "filter"];
        self.ctr().args(make).run()?;
        let info = self.ctr().args(["containers", "info", "filter"]).run()?;
        self.ctr().args(["containers", "rm", "filter"]).run()?;
        let filter = serde_json::from_str::<Value>(&info)?["Spec"]["linux"]["seccomp"].clone();
        ensure!(filter["syscalls"].is_array(), "no filter in {info}");
        Ok(filter)
    }

    fn probe(&self, container: &Value, probe: &str) -> anyhow::Result<()> {
        let name = container["name"].as_str().context("a name")?;
        let command = container[probe]["exec"]["command"].as_array();
        let command = command.with_context(|| format!("no {probe}"))?;
        let words: Vec<_> = command.iter().filter_map(Value::as_str).collect();
        if let Err(error) = self.exec(name, &words) {
            let log = fs::read_to_string(self.log(name)).unwrap_or_default();
            bail!("{error:#}; its log: {log}");
        }
        Ok(())
    }

    /// Runs a program in a container.
    pub fn exec(&self, name: &str, words: &[&str]) -> anyhow::Result<String> {
        let exec = ["tasks", "exec", "--exec-id", "exec", name];
        self.ctr().args(exec).args(words.iter().copied()).run()
    }

    /// Pid of a container's process on the node.
    pub fn pid(&self, name: &str) -> anyhow::Result<u32> {
        let list = self.ctr().args(["tasks", "ls"]).run()?;
        let mut lines = list.lines().map(|it| it.split_whitespace());
        let pid = lines.find_map(|mut it| (it.next()? == name).then(|| it.next())?);
        Ok(pid
            .with_context(|| format!("no {name} in {list}"))?
            .parse()?)
    }

    /// Ends every container as a kubelet does, with SIGTERM, and removes them. Fails where one needs more than that.
    pub async fn stop(&self) -> anyhow::Result<()> {
        for name in self.containers() {
            self.ctr().args(["tasks", "kill", &name]).run()?;
        }
        for name in self.containers() {
            let limit = self.pod["terminationGracePeriodSeconds"].as_u64();
            let limit = Duration::from_secs(limit.context("a grace")?);
            obtained(&format!("{name} ends"), limit, || async {
                self.ctr().args(["tasks", "rm", &name]).run()
            })
            .await?;
            self.ctr().args(["containers", "rm", &name]).run()?;
            self.remove_rootfs(&name)?;
        }
        Ok(())
    }

    fn remove_rootfs(&self, name: &str) -> anyhow::Result<()> {
        let rootfs = self.home.join(name);
        let unmount = ["images", "unmount", "--rm"];
        self.ctr().args(unmount).arg(&rootfs).run()?;
        Ok(())
    }
}

struct Ctr(Command);

impl Ctr {
    fn args<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Self {
        self.0.args(words);
        self
    }

    fn arg(mut self, word: impl AsRef<std::ffi::OsStr>) -> Self {
        self.0.arg(word);
        self
    }

    fn run(self) -> anyhow::Result<String> {
        succeed(self.0)
    }
}

/// Where each volume of a pod lies, made as a kubelet makes it.
fn volumes(
    pod: &Value,
    objects: &[Value],
    home: &Path,
) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut made = BTreeMap::new();
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let name = volume["name"].as_str().context("a volume's name")?;
        let path = if let Some(path) = volume["hostPath"]["path"].as_str() {
            match volume["hostPath"]["type"].as_str() {
                Some("DirectoryOrCreate") => fs::create_dir_all(path)?,
                Some("FileOrCreate") => {
                    let mut options = fs::OpenOptions::new();
                    options.append(true).create(true).open(path)?;
                }
                Some("Directory") => ensure!(Path::new(path).is_dir(), "{path} is not there"),
                other => bail!("{name}: a hostPath of the type {other:?}"),
            }
            path.into()
        } else if let Some(map) = volume["configMap"]["name"].as_str() {
            let found = objects
                .iter()
                .find(|it| it["kind"] == "ConfigMap" && it["metadata"]["name"] == map);
            let data = &found.with_context(|| format!("no ConfigMap {map}"))?["data"];
            let folder = home.join("volumes").join(name);
            fs::create_dir_all(&folder)?;
            for (file, text) in data.as_object().into_iter().flatten() {
                fs::write(folder.join(file), text.as_str().context("a text")?)?;
            }
            folder
        } else {
            bail!("{name}: a volume of this kind is not simulated");
        };
        made.insert(name.to_owned(), path);
    }
    Ok(made)
}

/// What this process may give away, which is all that a privileged container can have here.
fn bounding_set() -> anyhow::Result<Vec<String>> {
    let held = capability_bits(std::process::id(), "CapBnd")?;
    let names = CAPABILITIES.iter().enumerate();
    let held = names.filter(|(bit, _)| held >> bit & 1 == 1);
    Ok(held.map(|(_, it)| (*it).to_owned()).collect())
}

/// A set of capabilities of a process, as `/proc` has it.
pub fn capability_bits(pid: u32, set: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut lines = status.lines().filter_map(|it| it.split_once(":\t"));
    let bits = lines.find_map(|(key, value)| (key == set).then_some(value));
    Ok(u64::from_str_radix(bits.context(set.to_owned())?, 16)?)
}

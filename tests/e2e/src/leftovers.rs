//! What a node may have left on the host, looked for without asking Berth.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;

use crate::node::{on_host_of, succeed};

/// Where to look, learned while the node still stood.
#[derive(Debug)]
pub struct Leftovers {
    home: PathBuf,
    /// containerd's namespace, which has the instance id in its name.
    namespace: String,
    instance: String,
    /// Names of its links and tables, asked for while the home still says where they are.
    links: Command,
    tables: Command,
}

impl Leftovers {
    pub fn of(home: &Path, namespace: &str) -> anyhow::Result<Self> {
        let instance = fs::read_to_string(home.join("instance"))?.trim().to_owned();
        ensure!(
            !instance.is_empty() && !namespace.is_empty(),
            "the node has no name to look for"
        );
        Ok(Self {
            home: home.to_owned(),
            namespace: namespace.to_owned(),
            instance,
            links: on_host_of(home, "ip"),
            tables: on_host_of(home, "nft"),
        })
    }

    /// Fails with everything that is left.
    pub fn assert_none(mut self) -> anyhow::Result<()> {
        let mut left = vec![];
        left.extend(self.processes()?);
        left.extend(self.mounts()?);
        left.extend(self.cgroups());
        left.extend(self.links()?);
        left.extend(self.tables()?);
        left.extend(self.runtime_state());
        ensure!(left.is_empty(), "left on the host: {left:#?}");
        Ok(())
    }

    /// Those of the sandboxes, and of a pod with the processes themselves.
    fn namespaces(&self) -> [String; 2] {
        [self.namespace.clone(), format!("pods-{}", self.instance)]
    }

    /// Managers, containerds, shims and whatever else names the home or the namespace in its command.
    fn processes(&self) -> anyhow::Result<Vec<String>> {
        let home = self.home.to_string_lossy().into_owned();
        let mut left = vec![];
        for entry in fs::read_dir("/proc")?.flatten() {
            let Ok(command) = fs::read(entry.path().join("cmdline")) else {
                continue;
            };
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(&home)
                || self
                    .namespaces()
                    .iter()
                    .any(|it| command.contains(&format!("-namespace {it} ")))
            {
                left.push(format!(
                    "process {}: {command}",
                    entry.file_name().to_string_lossy()
                ));
            }
        }
        Ok(left)
    }

    fn mounts(&self) -> anyhow::Result<Vec<String>> {
        let home = self.home.to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(mounts
            .lines()
            .filter(|it| it.contains(&home))
            .map(|it| format!("mount {it}"))
            .collect())
    }

    fn cgroups(&self) -> Vec<String> {
        let mut left = vec![];
        for root in cgroup_roots() {
            let instance = &self.instance;
            let own = [
                format!("berth/{instance}"),
                format!("berth.slice/berth-{instance}.slice"),
            ];
            for name in own.into_iter().chain(self.namespaces()) {
                let path = root.join(name);
                if path.is_dir() {
                    left.push(format!("cgroup {}", path.display()));
                }
            }
        }
        left
    }

    fn links(&mut self) -> anyhow::Result<Vec<String>> {
        let links = succeed(self.links.args(["-j", "link"]))?;
        let links: Vec<serde_json::Value> = serde_json::from_str(&links)?;
        let bridge = format!("br-{}", self.instance);
        let alias = format!("berth {}", self.instance);
        let text = |link: &serde_json::Value, key: &str| {
            link.get(key)
                .and_then(|it| it.as_str())
                .unwrap_or_default()
                .to_owned()
        };
        Ok(links
            .iter()
            .filter(|it| text(it, "ifname") == bridge || text(it, "ifalias").starts_with(&alias))
            .map(|it| format!("link {}", text(it, "ifname")))
            .collect())
    }

    fn tables(&mut self) -> anyhow::Result<Vec<String>> {
        let tables = succeed(self.tables.args(["list", "tables"]))?;
        let own = format!("berth-{}", self.instance);
        let dashless = own.replace('-', "_");
        Ok(tables
            .lines()
            .filter(|it| it.contains(&own) || it.contains(&dashless))
            .map(|it| format!("nft {it}"))
            .collect())
    }

    /// runc keeps its state outside of containerd's folders.
    fn runtime_state(&self) -> Vec<String> {
        let root = Path::new("/run/containerd/runc");
        let dirs = self.namespaces().map(|it| fs::read_dir(root.join(it)));
        dirs.into_iter()
            .flatten()
            .flatten()
            .flatten()
            .map(|it| format!("runtime state {}", it.path().display()))
            .collect()
    }
}

/// The root of the one hierarchy of v2, or of each of v1, whichever this host has.
pub fn cgroup_roots() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let below = fs::read_dir(&root).into_iter().flatten().flatten();
    let below: Vec<_> = below.map(|it| it.path()).collect();
    std::iter::once(root).chain(below).collect()
}

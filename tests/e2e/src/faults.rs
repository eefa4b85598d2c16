//! What tests do to a node from outside: signals to its programs, and looks at its processes past Berth.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_api::v1;

use crate::{
    TestNode,
    node::{eventually, succeed},
};

impl TestNode {
    pub fn manager_pid(&self) -> anyhow::Result<u32> {
        self.pid_in("manager.pid")
    }

    pub fn containerd_pid(&self) -> anyhow::Result<u32> {
        self.pid_in("containerd.pid")
    }

    fn pid_in(&self, file: &str) -> anyhow::Result<u32> {
        let text = fs::read_to_string(self.home().join(file)).with_context(|| file.to_owned())?;
        text.trim().parse().with_context(|| file.to_owned())
    }

    /// Kills containerd with SIGKILL and returns when it is gone.
    pub async fn end_containerd(&self) -> anyhow::Result<()> {
        end(self.containerd_pid()?).await
    }

    /// Kills the manager with SIGKILL and returns when it is gone: until then `up` would take it for one that runs.
    pub async fn end_manager(&self) -> anyhow::Result<()> {
        end(self.manager_pid()?).await
    }

    /// Every task with the pid of its first process, as containerd tells it; a task that is unknown has pid 0.
    pub fn tasks(&self) -> anyhow::Result<BTreeMap<String, u32>> {
        let list = succeed(self.command("ctr").args(["tasks", "ls"]))?;
        let lines = list.lines().skip(1);
        let tasks = lines.filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        });
        Ok(tasks.collect())
    }

    /// Pid of the first process of a container.
    pub fn task(&self, container: &str) -> anyhow::Result<u32> {
        let tasks = self.tasks()?;
        let pid = tasks.get(container).copied();
        pid.with_context(|| format!("no task {container} in {tasks:?}"))
    }

    /// Pid of the shim of a container.
    pub fn shim(&self, container: &str) -> anyhow::Result<u32> {
        let own = format!(
            "-namespace {} -id {container} ",
            self.variable("CONTAINERD_NAMESPACE")
        );
        let found = processes()?
            .into_iter()
            .find(|(_, command)| command.contains("containerd-shim") && command.contains(&own));
        let (pid, _) = found.with_context(|| format!("no shim of {container}"))?;
        Ok(pid)
    }

    /// Folder of a container's root file system, as its shim has mounted it.
    pub fn rootfs(&self, container: &str) -> PathBuf {
        let bundles = self
            .home()
            .join("containerd/state/io.containerd.runtime.v2.task");
        let namespace = self.variable("CONTAINERD_NAMESPACE");
        bundles.join(namespace).join(container).join("rootfs")
    }

    /// As `up`, and tells how long the API took to answer from the moment at which the manager could be started.
    pub async fn up_timed(&self) -> anyhow::Result<Duration> {
        let mut command = self.up_command();
        let mut up = tokio::task::spawn_blocking(move || succeed(&mut command));
        let begun = Instant::now();
        let mut answered = None;
        while answered.is_none() {
            let asked = self.node().get_status(v1::GetStatusRequest {}).await;
            answered = asked.is_ok().then(|| begun.elapsed());
            ensure!(
                begun.elapsed() < Duration::from_secs(60),
                "the manager is not back"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (&mut up).await??;
        Ok(answered.unwrap_or_default())
    }

    /// Takes away what a reboot takes: processes, shims, pinned namespaces, links; and leaves what lies on disk.
    pub fn power_off(&self) -> anyhow::Result<()> {
        let namespace = self.variable("CONTAINERD_NAMESPACE").to_owned();
        let instance = std::fs::read_to_string(self.home().join("instance"))?;
        let instance = instance.trim();
        let script = format!(
            r#"
            shims=$(pgrep -f -- "[c]ontainerd-shim.* -namespace {namespace} ")
            kill -9 $(cat "{home}/containerd.pid")
            kill -9 $shims
            for procs in /sys/fs/cgroup/*/berth/{instance}/*/*/cgroup.procs /sys/fs/cgroup/berth/{instance}/*/*/cgroup.procs; do
                [ ! -e "$procs" ] || sed '/^0$/d' "$procs" | xargs -r kill -9 || true
            done
            for pin in {home}/run/ns/*/*; do umount -l "$pin"; done
            rm -rf {home}/run/ns
            for link in $(ip -j link | jq -r '.[] | select((.ifalias // "") | startswith("berth {instance} ")) | .ifname'); do
                [ "$link" = "br-{instance}" ] || ip link del "$link" || true
            done
            for rootfs in {home}/containerd/state/io.containerd.runtime.v2.task/{namespace}/*/rootfs; do umount -l "$rootfs" 2>/dev/null || true; done
            rm -rf {home}/containerd/state /run/containerd/runc/{namespace}
            "#,
            home = self.home().display(),
        );
        let output = Command::new("bash").args(["-uc", &script]).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    }
}

/// Every process that there is, with its command line.
pub fn processes() -> anyhow::Result<Vec<(u32, String)>> {
    let mut all = vec![];
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|it| it.parse().ok()) else {
            continue;
        };
        let Ok(command) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        all.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
    }
    Ok(all)
}

async fn end(pid: u32) -> anyhow::Result<()> {
    signal(pid, "KILL")?;
    let gone = || async { !is_alive(pid) };
    eventually("a killed process is gone", Duration::from_secs(10), gone).await
}

pub fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    succeed(Command::new("kill").args(["-s", name, &pid.to_string()])).map(drop)
}

/// Whether the process runs, and may have open what it has opened. A zombie does not, once the last of its threads is gone.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, state)) = stat.rsplit_once(") ") else {
        return false;
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    !state.starts_with(['Z', 'X']) || threads.is_ok_and(|it| it.count() > 1)
}

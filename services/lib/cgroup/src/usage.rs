//! What the kernel counts for a cgroup. What it does not count is 0.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use crate::hierarchy::{CgroupError, Hierarchy, Kind};

/// Times in nanoseconds, the rest in bytes and counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub total_cpu_time: u64,
    pub kernel_cpu_time: u64,
    pub memory_usage: u64,
    pub memory_peak: u64,
    pub swap_usage: u64,
    pub swap_peak: u64,
    pub pids: u64,
    /// Processes that the kernel killed for memory.
    pub oom_kills: u64,
}

impl Hierarchy {
    /// Whose limit the kernel enforced when it killed in the cgroup `inner` for memory: that of `inner`, else that of
    /// `outer`, each with a slash before it; empty where it was neither. `None` where it killed nobody.
    pub fn oom_culprit(&self, inner: &str, outer: &str) -> Result<Option<String>, CgroupError> {
        let reached = |path: &str| -> Result<bool, CgroupError> {
            Ok(match &self.kind {
                Kind::V1 { controllers, .. } => {
                    let failures = v1_file(controllers, "memory", path, "memory.failcnt")?;
                    number(&failures) > 0
                }
                // That of the cgroup alone: in `memory.events` it would be that of those below as well.
                Kind::V2 { root } => {
                    entry(&read(&root.join(path).join("memory.events.local"))?, "oom") > 0
                }
            })
        };
        if self.usage(inner)?.is_none_or(|it| it.oom_kills == 0) {
            return Ok(None);
        }
        for path in [inner, outer] {
            if reached(path)? {
                return Ok(Some(format!("/{path}")));
            }
        }
        Ok(Some(String::new()))
    }

    /// Reads the figures of a cgroup; `None` where it is gone.
    pub fn usage(&self, path: &str) -> Result<Option<Usage>, CgroupError> {
        if !self.exists(path) {
            return Ok(None);
        }
        match &self.kind {
            Kind::V1 { controllers, .. } => {
                let file =
                    |controller: &str, name: &str| v1_file(controllers, controller, path, name);
                let number = |controller: &str, name: &str| Ok(number(&file(controller, name)?));
                // Memory with swap cannot be below memory, but both are read at different times.
                let swap = |with: u64, without: u64| with.saturating_sub(without);
                let memory_usage = number("memory", "memory.usage_in_bytes")?;
                let memory_peak = number("memory", "memory.max_usage_in_bytes")?;
                let with_swap = number("memory", "memory.memsw.usage_in_bytes")?;
                let peak_with_swap = number("memory", "memory.memsw.max_usage_in_bytes")?;
                let oom = file("memory", "memory.oom_control")?;
                let total_cpu_time = number("cpuacct", "cpuacct.usage")?;
                // The kernel's share is counted in ticks, the total is measured: a young process can have more of the
                // share than of the whole.
                let kernel_cpu_time = number("cpuacct", "cpuacct.usage_sys")?.min(total_cpu_time);
                Ok(Some(Usage {
                    total_cpu_time,
                    kernel_cpu_time,
                    memory_usage,
                    memory_peak,
                    swap_usage: swap(with_swap, memory_usage),
                    swap_peak: swap(peak_with_swap, memory_peak),
                    pids: number("pids", "pids.current")?,
                    oom_kills: entry(&oom, "oom_kill"),
                }))
            }
            Kind::V2 { root } => {
                let dir = root.join(path);
                let number = |name: &str| Ok(number(&read(&dir.join(name))?));
                let cpu = read(&dir.join("cpu.stat"))?;
                let events = read(&dir.join("memory.events"))?;
                Ok(Some(Usage {
                    total_cpu_time: entry(&cpu, "usage_usec") * 1000,
                    kernel_cpu_time: entry(&cpu, "system_usec") * 1000,
                    memory_usage: number("memory.current")?,
                    memory_peak: number("memory.peak")?,
                    swap_usage: number("memory.swap.current")?,
                    swap_peak: number("memory.swap.peak")?,
                    pids: number("pids.current")?,
                    oom_kills: entry(&events, "oom_kill"),
                }))
            }
        }
    }
}

fn v1_file(
    controllers: &[(String, PathBuf)],
    controller: &str,
    path: &str,
    name: &str,
) -> Result<String, CgroupError> {
    let root = controllers.iter().find(|(it, _)| it == controller);
    root.map_or(Ok(String::new()), |(_, root)| {
        read(&root.join(path).join(name))
    })
}

/// A file that this kernel does not have, or no longer, is empty.
fn read(path: &Path) -> Result<String, CgroupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        // The cgroup went away between opening and reading.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
            Ok(String::new())
        }
        Err(error) => Err(CgroupError::failed("reading", path, error)),
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

/// The figure of `key` in lines of `key figure`.
fn entry(text: &str, key: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.map(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hierarchy::tests::v2_like;

    #[test]
    fn the_share_of_the_kernel_is_never_more_than_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("cpuacct");
        fs::create_dir_all(root.join("web")).unwrap();
        let hierarchy = Hierarchy {
            kind: Kind::V1 {
                controllers: vec![("cpuacct".into(), root.clone())],
                roots: [root.clone()].into(),
            },
        };
        for (total, kernel, share) in [("7", "4", 4), ("3", "4", 3)] {
            fs::write(root.join("web/cpuacct.usage"), total).unwrap();
            fs::write(root.join("web/cpuacct.usage_sys"), kernel).unwrap();
            let usage = hierarchy.usage("web").unwrap().unwrap();
            assert_eq!(usage.total_cpu_time.to_string(), total);
            assert_eq!(usage.kernel_cpu_time, share);
        }
    }

    #[test]
    fn figures_of_v2_are_read_in_the_documented_units() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = v2_like(dir.path());
        let files = [
            ("cpu.stat", "usage_usec 12\nuser_usec 7\nsystem_usec 5\n"),
            ("memory.current", "4096\n"),
            ("memory.swap.current", "1\n"),
            ("pids.current", "3\n"),
            (
                "memory.events",
                "low 0\noom 4\noom_kill 2\noom_group_kill 9\n",
            ),
        ];
        for (name, text) in files {
            fs::write(dir.path().join("berth/web").join(name), text).unwrap();
        }
        let expected = Usage {
            total_cpu_time: 12_000,
            kernel_cpu_time: 5_000,
            memory_usage: 4096,
            memory_peak: 0,
            swap_usage: 1,
            swap_peak: 0,
            pids: 3,
            oom_kills: 2,
        };
        assert_eq!(hierarchy.usage("berth/web").unwrap(), Some(expected));
        assert_eq!(hierarchy.usage("berth/other").unwrap(), None);
    }

    #[test]
    #[rustfmt::skip]
    fn the_cgroup_whose_limit_was_reached_is_told_from_the_one_in_which_the_kernel_killed() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = v2_like(dir.path());
        let app = dir.path().join("berth/web/app");
        fs::create_dir_all(&app).unwrap();
        let cases = [
            ("nobody was killed",        0, 0, 0, None),
            ("others were at the limit", 0, 1, 1, None),
            ("its own limit",            1, 1, 0, Some("/berth/web/app")),
            ("that of the sandbox",      1, 0, 1, Some("/berth/web")),
            ("that of the node",         1, 0, 0, Some("")),
        ];
        for (case, kills, own, outer, expected) in cases {
            fs::write(app.join("memory.events"), format!("oom 7\noom_kill {kills}\n")).unwrap();
            fs::write(app.join("memory.events.local"), format!("oom {own}\n")).unwrap();
            fs::write(dir.path().join("berth/web/memory.events.local"), format!("oom {outer}\n")).unwrap();
            let culprit = hierarchy.oom_culprit("berth/web/app", "berth/web").unwrap();
            assert_eq!(culprit.as_deref(), expected, "{case}");
        }
    }
}

//! The shims on this host: the processes that run containerd's tasks, and outlive it. They are found by their command
//! lines, and told from those of others by what they run.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{Role, SandboxId, names::parse_container_id};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::Deserialize;

const PROGRAM: &str = "containerd-shim";
/// In which the kernel counts the time of processes, on every architecture.
const TICKS_PER_SECOND: u64 = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shim {
    pub(crate) pid: u32,
    pub(crate) container: String,
    pub(crate) sandbox: SandboxId,
    pub(crate) role: Role,
    pub(crate) started_at: Option<SystemTime>,
}

/// Whose shims are looked for.
#[derive(Clone, Debug)]
pub(crate) struct Sought {
    /// containerd's socket.
    pub(crate) address: PathBuf,
    pub(crate) namespace: String,
    /// Cgroup above all containers of the instance, without slashes at its ends.
    pub(crate) cgroup_parent: String,
}

impl Sought {
    /// The shims of this containerd and namespace that run a container whose name could be ours.
    pub(crate) fn find(&self) -> io::Result<Vec<Shim>> {
        let address = resolved(&self.address);
        let booted_at = booted_at();
        let mut shims = vec![];
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|it| it.parse().ok()) else {
                continue;
            };
            // Processes come and go while they are listed.
            let Ok(command) = fs::read(entry.path().join("cmdline")) else {
                continue;
            };
            let Some(arguments) = parse_command(&command) else {
                continue;
            };
            if arguments.namespace != self.namespace || resolved(&arguments.address) != address {
                continue;
            }
            let Some((sandbox, role)) = parse_container_id(&arguments.id) else {
                continue;
            };
            let stat = Stat::of(pid);
            shims.push(Shim {
                pid,
                container: arguments.id,
                sandbox,
                role,
                started_at: booted_at.zip(stat).map(|(at, it)| at + it.since_boot),
            });
        }
        Ok(shims)
    }

    /// Whether what a shim runs is of this instance: by its bundle and, where that is gone, by its children's cgroups.
    pub(crate) fn is_ours(&self, shim: &Shim) -> bool {
        let bundle = fs::read_link(format!("/proc/{}/cwd", shim.pid));
        bundle.is_ok_and(|it| self.bundle_is_ours(&it)) || !self.children(shim.pid).is_empty()
    }

    /// Whether a bundle is of a container of this instance.
    pub(crate) fn bundle_is_ours(&self, bundle: &Path) -> bool {
        let text = fs::read(bundle.join("config.json")).unwrap_or_default();
        let spec = serde_json::from_slice::<Spec>(&text);
        spec.is_ok_and(|it| self.is_below_parent(&it.linux.cgroups_path))
    }

    /// Processes of containers of this instance that have `shim` as their parent.
    fn children(&self, shim: u32) -> Vec<u32> {
        let Ok(processes) = fs::read_dir("/proc") else {
            return vec![];
        };
        let pids = processes
            .flatten()
            .filter_map(|it| it.file_name().to_str()?.parse().ok());
        pids.filter(|&pid| Stat::of(pid).is_some_and(|it| it.parent == shim))
            .filter(|pid| {
                let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
                cgroups.is_ok_and(|it| {
                    it.lines()
                        .filter_map(|line| line.splitn(3, ':').nth(2))
                        .any(|path| self.is_below_parent(path))
                })
            })
            .collect()
    }

    fn is_below_parent(&self, cgroup: &str) -> bool {
        let inside = cgroup
            .trim_start_matches('/')
            .strip_prefix(&self.cgroup_parent);
        inside.is_some_and(|it| it.starts_with('/'))
    }

    /// Asks what the shim runs to end, or the shim itself where it runs nothing, and waits until it has; `false` when it
    /// has not within `limit`.
    pub(crate) fn end(&self, shim: &Shim, limit: Duration) -> io::Result<bool> {
        let children = self.children(shim.pid);
        let asked: Vec<Process> = match children.is_empty() {
            true => self.hold(shim)?.into_iter().collect(),
            false => children.into_iter().filter_map(Process::open).collect(),
        };
        signal_all(&asked, Signal::TERM, limit)
    }

    /// Kills the shim and what it runs, and waits until they are gone; `false` when they are not within `limit`.
    pub(crate) fn kill(&self, shim: &Shim, limit: Duration) -> io::Result<bool> {
        let Some(own) = self.hold(shim)? else {
            return Ok(true);
        };
        let children = self.children(shim.pid);
        let mut all: Vec<_> = children.into_iter().filter_map(Process::open).collect();
        all.push(own);
        signal_all(&all, Signal::KILL, limit)
    }

    /// Takes hold of this very process: a number is given out again when its process is gone.
    fn hold(&self, shim: &Shim) -> io::Result<Option<Process>> {
        let Some(process) = Process::open(shim.pid) else {
            return Ok(None);
        };
        let same = self.find()?.contains(shim);
        Ok(same.then_some(process))
    }
}

/// Parent of a process, by its number.
pub(crate) fn parent(pid: u32) -> Option<u32> {
    Stat::of(pid).map(|it| it.parent)
}

struct Process(rustix::fd::OwnedFd);

impl Process {
    /// `None` for one that is gone.
    fn open(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        pidfd_open(pid, PidfdFlags::empty()).ok().map(Self)
    }
}

/// Signals all, and waits until all are gone; `false` when they are not within `limit`.
fn signal_all(processes: &[Process], signal: Signal, limit: Duration) -> io::Result<bool> {
    for process in processes {
        match pidfd_send_signal(&process.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let deadline = Instant::now() + limit;
    for process in processes {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or_default();
            // It becomes readable when its process has ended.
            let mut end = [PollFd::new(&process.0, PollFlags::IN)];
            match poll(&mut end, Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(true)
}

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    namespace: String,
    id: String,
    address: PathBuf,
}

fn parse_command(command: &[u8]) -> Option<Arguments> {
    let mut words = command.split(|it| *it == 0).map(str::from_utf8);
    let program = Path::new(words.next()?.ok()?);
    if !program.file_name()?.to_str()?.starts_with(PROGRAM) {
        return None;
    }
    let words: Vec<&str> = words.map_while(Result::ok).collect();
    let value = |flag: &str| {
        let at = words
            .iter()
            .position(|it| it.trim_start_matches('-') == flag && it.starts_with('-'))?;
        let value = words.get(at + 1).filter(|it| !it.is_empty())?;
        Some((*value).to_owned())
    };
    Some(Arguments {
        namespace: value("namespace")?,
        id: value("id")?,
        address: value("address")?.into(),
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    since_boot: Duration,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // A program may have any name, also one with parentheses.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks: u64 = fields.get(19)?.parse().ok()?;
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            since_boot: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
        })
    }
}

fn booted_at() -> Option<SystemTime> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|it| it.strip_prefix("btime "))?;
    let seconds = seconds.trim().parse().ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// One spelling for a path that may go through links. A socket may be gone while its folder stands.
fn resolved(path: &Path) -> PathBuf {
    let whole = path.canonicalize().ok();
    let of_folder = || {
        let (dir, name) = (path.parent()?, path.file_name()?);
        Some(dir.canonicalize().ok()?.join(name))
    };
    whole.or_else(of_folder).unwrap_or_else(|| path.to_owned())
}

/// As much of an OCI spec as tells whose it is.
#[derive(Deserialize)]
struct Spec {
    linux: Linux,
}

#[derive(Deserialize)]
struct Linux {
    #[serde(rename = "cgroupsPath")]
    cgroups_path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sought(cgroup_parent: &str) -> Sought {
        Sought {
            address: "/run/c/containerd.sock".into(),
            namespace: "n".to_owned(),
            cgroup_parent: cgroup_parent.to_owned(),
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_shim_is_known_by_its_command_line() {
        let shim = "/usr/bin/containerd-shim-runc-v2";
        let cases = [
            (vec![shim, "-namespace", "n", "-id", "i", "-address", "/a"],             true),
            (vec!["containerd-shim-kata-v2", "--id", "i", "--namespace", "n", "-address", "/a", "-debug"], true),
            (vec![shim, "-id", "i", "-address", "/a"],                                false),
            (vec![shim, "-namespace", "n", "-id", "i", "-address"],                   false),
            (vec!["vi", shim, "-namespace", "n", "-id", "i", "-address", "/a"],       false),
            (vec!["/usr/bin/containerd", "-namespace", "n", "-id", "i", "-address", "/a"], false),
            (vec![""],                                                                false),
        ];
        let expected = Arguments { namespace: "n".into(), id: "i".into(), address: "/a".into() };
        for (words, is_shim) in cases {
            let command = words.join("\0") + "\0";
            let found = parse_command(command.as_bytes());
            assert_eq!(found.as_ref(), is_shim.then_some(&expected), "{words:?}");
        }
    }

    #[test]
    fn a_process_tells_its_parent_and_its_start_whatever_its_name_is() {
        let text = "6821 (a) b (c) S 1 6821 6821 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 11 0 12345 7 8";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.parent, 1);
        assert_eq!(stat.since_boot, Duration::from_millis(123_450));
        assert_eq!(Stat::parse("6821 (a"), None);
        let own = Stat::of(std::process::id()).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        let started_at = booted_at().unwrap() + own.since_boot;
        assert!(started_at <= SystemTime::now() + Duration::from_secs(2));
    }

    #[test]
    fn only_what_lies_below_the_parent_cgroup_is_ours() {
        let sought = sought("berth/a");
        for (cgroup, ours) in [
            ("/berth/a/web/app", true),
            ("berth/a/web", true),
            ("/berth/a", false),
            ("/berth/ab/web/app", false),
            ("/other/berth/a/web", false),
            ("/", false),
        ] {
            assert_eq!(sought.is_below_parent(cgroup), ours, "{cgroup}");
        }
    }

    #[test]
    fn a_bundle_tells_whose_container_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(dir.path().join("config.json"), text).unwrap();
        assert!(!sought("berth/a").bundle_is_ours(dir.path()), "no bundle");
        write(r#"{"linux": {"cgroupsPath": "/berth/a/web/app"}}"#);
        assert!(sought("berth/a").bundle_is_ours(dir.path()));
        assert!(!sought("berth/b").bundle_is_ours(dir.path()));
        write(r#"{"process": {}}"#);
        assert!(!sought("berth/a").bundle_is_ours(dir.path()));
    }

    #[test]
    fn a_path_through_a_link_is_the_same_path() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        let gone = |folder: &str| resolved(&dir.path().join(folder).join("containerd.sock"));
        assert_eq!(gone("link"), gone("real"));
        assert_ne!(gone("link"), gone("other"));
    }

    #[test]
    fn a_process_that_is_killed_is_waited_for() {
        let mut sleeper = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let process = [Process::open(sleeper.id()).unwrap()];
        let waits = signal_all(&process, Signal::CONT, Duration::from_millis(10)).unwrap();
        assert!(!waits, "it has no reason to end");
        assert!(signal_all(&process, Signal::TERM, Duration::from_secs(10)).unwrap());
        sleeper.wait().unwrap();
        assert!(signal_all(&process, Signal::TERM, Duration::from_secs(10)).unwrap());
    }
}

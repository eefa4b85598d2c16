//! The shims on this host: the processes that run containerd's tasks, and outlive it. They are found by their command
//! lines, and told from those of others by what they run. Here is what containerd cannot do with them: end one that does
//! not answer, that it has lost, or whose task has no container.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{Role, SandboxId, names::parse_container_id};
use berth_platform::EndSignal;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use sha2::{Digest as _, Sha256};

use crate::bundles::Bundles;

const PROGRAM: &str = "containerd-shim";
/// What the program of a shim is called with when it is not to serve: to start a shim, and to clean up after one.
const ACTIONS: [&str; 2] = ["start", "delete"];
/// Where shims listen, whatever containerd's own folders are.
const SOCKETS: &str = "/run/containerd/s";
/// How long a killed process may take to end, and containerd to clean up.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
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

/// The shims of one containerd, of one namespace, that run containers whose names could be ours.
#[derive(Clone, Debug)]
pub(crate) struct Shims {
    /// containerd's socket.
    pub(crate) address: PathBuf,
    pub(crate) namespace: String,
    pub(crate) bundles: Bundles,
}

impl Shims {
    pub(crate) fn find(&self) -> io::Result<Vec<Shim>> {
        let running = self.running()?.into_iter();
        Ok(running
            .filter_map(|(shim, work)| (work == Work::Serve).then_some(shim))
            .collect())
    }

    /// Those that serve this container and are ours.
    pub(crate) fn of(&self, container: &str) -> io::Result<Vec<Shim>> {
        let mut shims = self.find()?;
        shims.retain(|it| it.container == container && self.is_ours(it));
        Ok(shims)
    }

    /// Whether anything is at work for this container: its shim, or what starts one or cleans up after it.
    pub(crate) fn is_busy(&self, container: &str) -> io::Result<bool> {
        let mut running = self.running()?.into_iter();
        Ok(running.any(|(shim, _)| shim.container == container))
    }

    fn running(&self) -> io::Result<Vec<(Shim, Work)>> {
        let address = resolved(&self.address);
        let booted_at = booted_at();
        let entries = fs::read_dir("/proc")?.flatten();
        let pids = entries.filter_map(|it| it.file_name().to_str()?.parse().ok());
        Ok(pids
            .filter_map(|pid| self.read(pid, &address, booted_at))
            .collect())
    }

    /// What this process is; `None` for what is no shim of these. Processes come and go while they are looked at.
    fn read(
        &self,
        pid: u32,
        address: &Path,
        booted_at: Option<SystemTime>,
    ) -> Option<(Shim, Work)> {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments = parse_command(&command)?;
        if arguments.namespace != self.namespace || resolved(&arguments.address) != address {
            return None;
        }
        let (sandbox, role) = parse_container_id(&arguments.id)?;
        let shim = Shim {
            pid,
            container: arguments.id,
            sandbox,
            role,
            started_at: booted_at
                .zip(Stat::of(pid))
                .map(|(at, it)| at + it.since_boot),
        };
        Some((shim, arguments.work))
    }

    /// Whether this very process still is what it was: a number is given out again when its process is gone.
    pub(crate) fn is_there(&self, shim: &Shim) -> bool {
        let seen = self.read(shim.pid, &resolved(&self.address), booted_at());
        seen.is_some_and(|(it, _)| it == *shim)
    }

    /// Whether what a shim runs is of this instance: by its bundle and, where that is gone, by its children's cgroups.
    pub(crate) fn is_ours(&self, shim: &Shim) -> bool {
        let bundle = fs::read_link(format!("/proc/{}/cwd", shim.pid));
        bundle.is_ok_and(|it| self.bundles.is_ours(&it)) || !self.children(shim.pid).is_empty()
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
                        .any(|path| self.bundles.is_below_parent(path))
                })
            })
            .collect()
    }

    /// Asks what the shim runs to end, or the shim itself where it runs nothing, and waits until it has; `false` when it
    /// has not within `limit`.
    pub(crate) fn end(&self, shim: &Shim, by: EndSignal, limit: Duration) -> io::Result<bool> {
        let signal = match by {
            EndSignal::Term => Signal::TERM,
            EndSignal::Quit => Signal::QUIT,
        };
        let children = self.children(shim.pid);
        let asked: Vec<Process> = match children.is_empty() {
            true => self.hold(shim).into_iter().collect(),
            false => children.into_iter().filter_map(Process::open).collect(),
        };
        signal_all(&asked, signal, limit)
    }

    /// Kills the shim and what it runs, and waits until they are gone; `false` when they are not within `limit`.
    pub(crate) fn kill(&self, shim: &Shim, limit: Duration) -> io::Result<bool> {
        let Some(own) = self.hold(shim) else {
            return Ok(true);
        };
        let children = self.children(shim.pid);
        let mut all: Vec<_> = children.into_iter().filter_map(Process::open).collect();
        all.push(own);
        signal_all(&all, Signal::KILL, limit)
    }

    fn hold(&self, shim: &Shim) -> Option<Process> {
        let process = Process::open(shim.pid)?;
        self.is_there(shim).then_some(process)
    }

    /// Whether there is a socket of this container's shim, dead or alive: a look that costs nothing.
    pub(crate) fn may_listen(&self, container: &str) -> bool {
        self.socket(container).exists()
    }

    /// As every containerd since 1.4 names it. Under another name, none would be found here, and nothing else would change.
    fn socket(&self, container: &str) -> PathBuf {
        let path = self.address.join(&self.namespace).join(container);
        let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
        let name = digest
            .iter()
            .fold(String::new(), |it, byte| format!("{it}{byte:02x}"));
        Path::new(SOCKETS).join(name)
    }

    /// Kills every shim of a container of which containerd has no task, which the caller knows; returns how many there were.
    ///
    /// A caller that goes away while a task is made ends the start of its shim, at times between the shim's fork and its
    /// first answer. What stays listens under the container's name and never answers; containerd does not know of it, but
    /// hands it to the next task of that name, which then waits in vain. What containerd runs to clean up after a shim is
    /// left to its work, and comes first.
    pub(crate) fn end_lost(&self, container: &str) -> io::Result<usize> {
        let of_container = |work: Work| {
            let running = self.running()?.into_iter();
            let shims = running.filter(|(shim, it)| shim.container == container && *it == work);
            Ok::<_, io::Error>(
                shims
                    .filter_map(|(it, _)| self.hold(&it))
                    .collect::<Vec<_>>(),
            )
        };
        let cleaners = of_container(Work::Act)?;
        if !await_ends(&cleaners, ENDS_WITHIN)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let shims = of_container(Work::Serve)?;
        if !signal_all(&shims, Signal::KILL, ENDS_WITHIN)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(shims.len())
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
    await_ends(processes, limit)
}

fn await_ends(processes: &[Process], limit: Duration) -> io::Result<bool> {
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

/// What the program of a shim is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Serve,
    /// The start of a shim, or the cleaning up after one.
    Act,
}

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    namespace: String,
    id: String,
    address: PathBuf,
    work: Work,
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
    let last = words.iter().rfind(|it| !it.is_empty());
    let acts = last.is_some_and(|it| ACTIONS.contains(it));
    Some(Arguments {
        work: if acts { Work::Act } else { Work::Serve },
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shims() -> Shims {
        Shims {
            address: "/run/c.sock".into(),
            namespace: "berth".to_owned(),
            bundles: Bundles::below("berth/a"),
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_shim_is_known_by_its_command_line() {
        use Work::{Act, Serve};
        let shim = "/usr/bin/containerd-shim-runc-v2";
        let cases = [
            (vec![shim, "-namespace", "n", "-id", "i", "-address", "/a"],                                          Some(Serve)),
            (vec!["containerd-shim-kata-v2", "--id", "i", "--namespace", "n", "-address", "/a", "-debug"],         Some(Serve)),
            (vec![shim, "-namespace", "n", "-address", "/a", "-id", "i", "-bundle", "/b", "delete"],               Some(Act)),
            (vec![shim, "-namespace", "n", "-id", "i", "-address", "/a", "start", ""],                             Some(Act)),
            (vec![shim, "-id", "i", "-address", "/a"],                                                             None),
            (vec![shim, "-namespace", "n", "-id", "i", "-address"],                                                None),
            (vec!["vi", shim, "-namespace", "n", "-id", "i", "-address", "/a"],                                    None),
            (vec!["/usr/bin/containerd", "-namespace", "n", "-id", "i", "-address", "/a"],                         None),
            (vec![""],                                                                                             None),
        ];
        for (words, expected) in cases {
            let command = words.join("\0") + "\0";
            let found = parse_command(command.as_bytes());
            let expected = expected.map(|work| Arguments { namespace: "n".into(), id: "i".into(), address: "/a".into(), work });
            assert_eq!(found, expected, "{words:?}");
        }
    }

    #[test]
    fn the_socket_has_the_name_that_containerd_gives_it() {
        let expected =
            "/run/containerd/s/4add0920a5ceb129b1a0a3563f61da1194f7652d840f27c4944dd1c53e86db45";
        assert_eq!(shims().socket("sandbox.web.app"), Path::new(expected));
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

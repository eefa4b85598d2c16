//! Shims that containerd lost. A caller that goes away while a task is made ends the start of its shim, at times between the
//! shim's fork and its first answer. What stays listens under the container's name and never answers; containerd does not
//! know of it, but hands it to the next task of that name, which then waits in vain.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use sha2::{Digest as _, Sha256};

/// Where shims listen, whatever containerd's own folders are.
const SOCKETS: &str = "/run/containerd/s";
/// How long a killed process may take to end, and containerd to clean up.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Whose shim is meant.
#[derive(Clone, Debug)]
pub(crate) struct Sought {
    /// containerd's socket.
    pub(crate) address: PathBuf,
    pub(crate) namespace: String,
    pub(crate) container: String,
}

impl Sought {
    /// Whether there is a socket of such a shim, dead or alive: a look that costs nothing.
    pub(crate) fn may_exist(&self) -> bool {
        self.socket().exists()
    }

    /// As every containerd since 1.4 names it. Under another name, none would be found here, and nothing else would change.
    fn socket(&self) -> PathBuf {
        let path = self.address.join(&self.namespace).join(&self.container);
        let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
        let name = digest
            .iter()
            .fold(String::new(), |it, byte| format!("{it}{byte:02x}"));
        Path::new(SOCKETS).join(name)
    }

    /// Kills every such shim and waits for its end; returns how many there were. The caller knows that containerd has no
    /// task of that name. What containerd runs to clean up after a shim is left to its work, and comes first.
    pub(crate) fn end(&self) -> io::Result<usize> {
        for cleaner in self.find(Program::Action)? {
            await_end(&cleaner)?;
        }
        let shims = self.find(Program::Shim)?;
        for shim in &shims {
            match pidfd_send_signal(shim, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
            await_end(shim)?;
        }
        Ok(shims.len())
    }

    fn find(&self, program: Program) -> io::Result<Vec<OwnedFd>> {
        let mut found = vec![];
        for entry in fs::read_dir("/proc")?.flatten() {
            let number = entry.file_name().to_str().and_then(|it| it.parse().ok());
            let Some(pid) = number.and_then(Pid::from_raw) else {
                continue;
            };
            let seen = || {
                fs::read(entry.path().join("cmdline"))
                    .is_ok_and(|it| self.reads(&it) == Some(program))
            };
            if !seen() {
                continue;
            }
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            // Looked at again with the process in hand: a number alone may have become somebody else's.
            if seen() {
                found.push(process);
            }
        }
        Ok(found)
    }

    /// What a command line, as every containerd writes it, runs for this container.
    fn reads(&self, command: &[u8]) -> Option<Program> {
        let words: Vec<&[u8]> = command
            .split(|it| *it == 0)
            .filter(|it| !it.is_empty())
            .collect();
        let program = words.first()?.rsplit(|it| *it == b'/').next()?;
        let has = |flag: &str, value: &[u8]| {
            let at = words.iter().position(|it| *it == flag.as_bytes());
            at.and_then(|at| words.get(at + 1)) == Some(&value)
        };
        let ours = program.starts_with(b"containerd-shim")
            && has("-namespace", self.namespace.as_bytes())
            && has("-id", self.container.as_bytes())
            && has("-address", self.address.as_os_str().as_encoded_bytes());
        let action = words
            .last()
            .is_some_and(|it| [&b"start"[..], b"delete"].contains(it));
        match (ours, action) {
            (false, _) => None,
            (true, true) => Some(Program::Action),
            (true, false) => Some(Program::Shim),
        }
    }
}

/// The program of a shim is also that of what is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Shim,
    /// The start of a shim, or the cleaning up after one.
    Action,
}

fn await_end(process: &OwnedFd) -> io::Result<()> {
    let deadline = Instant::now() + ENDS_WITHIN;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sought() -> Sought {
        Sought {
            address: "/run/c.sock".into(),
            namespace: "berth".into(),
            container: "sandbox.web.app".into(),
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_shim_is_known_by_its_program_its_containerd_its_namespace_and_its_container() {
        use Program::{Action, Shim};
        let cases = [
            ("/usr/bin/containerd-shim-runc-v2 -namespace berth -id sandbox.web.app -address /run/c.sock",         Some(Shim)),
            ("containerd-shim-runc-v2 -address /run/c.sock -namespace berth -id sandbox.web.app",                  Some(Shim)),
            ("containerd-shim-runc-v2 -namespace berth -address /run/c.sock -id sandbox.web.app -bundle /b delete", Some(Action)),
            ("containerd-shim-runc-v2 -namespace berth -id sandbox.web.app -address /run/c.sock start",            Some(Action)),
            ("/usr/bin/containerd-shim-runc-v2 -namespace berth -id sandbox.web_pause -address /run/c.sock",       None),
            ("/usr/bin/containerd-shim-runc-v2 -namespace other -id sandbox.web.app -address /run/c.sock",         None),
            ("/usr/bin/containerd-shim-runc-v2 -namespace berth -id sandbox.web.app -address /run/other.sock",     None),
            ("/usr/bin/containerd-shim-runc-v2 -namespace berth -address /run/c.sock -id",                         None),
            ("/usr/bin/tail -namespace berth -id sandbox.web.app -address /run/c.sock",                            None),
            ("",                                                                                                   None),
        ];
        for (command, expected) in cases {
            let bytes = format!("{command} ").replace(' ', "\0").into_bytes();
            assert_eq!(sought().reads(&bytes), expected, "{command}");
        }
    }

    #[test]
    fn the_socket_has_the_name_that_containerd_gives_it() {
        let expected =
            "/run/containerd/s/4add0920a5ceb129b1a0a3563f61da1194f7652d840f27c4944dd1c53e86db45";
        assert_eq!(sought().socket(), Path::new(expected));
    }
}

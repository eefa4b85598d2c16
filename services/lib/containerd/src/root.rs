//! The root of a container that runs, as its first process sees it, with whatever is mounted below.

use std::{fs, io, os::fd::AsFd as _, os::unix::fs::MetadataExt as _, path::Path};

use berth_domain::{Role, SandboxId, names};
use berth_platform::{ContainerRoot, RuntimeError};
use containerd_client::{services::v1::GetRequest, types::v1::Status as TaskStatus};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, Mode, OFlags, openat},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{Containerd, client::found, errors::node, images::blocking};

impl Containerd {
    pub(crate) async fn open_root(
        &self,
        id: &SandboxId,
        role: &Role,
    ) -> Result<Option<ContainerRoot>, RuntimeError> {
        let container = names::container_id(id, role);
        let Some(number) = self.first_process(&container).await? else {
            return Ok(None);
        };
        let ipc = self.names().namespaces(id).join("ipc");
        let opened = blocking(move || open(number, &ipc));
        let opened = opened
            .await
            .map_err(|it| node("opening the root of a container", it))?;
        // The number may have been another process's by the time that it was opened: it was not, if it still is the task's.
        let same = self.first_process(&container).await? == Some(number);
        Ok(opened.filter(|it| same && !has_ended(it)))
    }

    /// The number of the first process of a task that runs.
    async fn first_process(&self, container: &str) -> Result<Option<u32>, RuntimeError> {
        let client = self.client();
        let request = GetRequest {
            container_id: container.to_owned(),
            exec_id: String::new(),
        };
        let got = client
            .call("looking for a task", client.tasks().get(request))
            .await;
        let process = found(got)?.and_then(|it| it.process);
        let runs = |status| {
            matches!(
                TaskStatus::try_from(status),
                Ok(TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing)
            )
        };
        Ok(process
            .filter(|it| runs(it.status) && it.pid != 0)
            .map(|it| it.pid))
    }
}

/// Opens the root of a process in the sandbox whose ipc namespace is pinned at `ipc`; `None` where there is no such process.
fn open(number: u32, ipc: &Path) -> io::Result<Option<ContainerRoot>> {
    let Some(pid) = i32::try_from(number).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    let ended = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(ended) => ended,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let process = Path::new("/proc").join(number.to_string());
    let namespace = |path: &Path| fs::metadata(path).map(|it| (it.dev(), it.ino()));
    // It may end at any moment, and everything below is gone with it.
    let Ok(found) = namespace(&process.join("ns/ipc")) else {
        return Ok(None);
    };
    if found != namespace(ipc)? {
        return Ok(None);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, process.join("root"), flags, Mode::empty());
    let (Ok(dir), Ok(status)) = (dir, fs::read_to_string(process.join("status"))) else {
        return Ok(None);
    };
    let (Some(uid), Some(gid)) = (effective(&status, "Uid:"), effective(&status, "Gid:")) else {
        return Err(io::Error::other("its status has no Uid and Gid"));
    };
    Ok(Some(ContainerRoot {
        dir,
        ended,
        uid,
        gid,
    }))
}

/// The effective one of a line of `/proc/<pid>/status`: real, effective, saved, file system.
fn effective(status: &str, key: &str) -> Option<u32> {
    let line = status.lines().find_map(|it| it.strip_prefix(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn has_ended(root: &ContainerRoot) -> bool {
    let mut ended = [PollFd::from_borrowed_fd(root.ended.as_fd(), PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // One that cannot be asked is not known to have ended.
    poll(&mut ended, Some(&at_once)).is_ok_and(|it| it > 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_root_is_that_of_a_process_that_lives_in_the_sandbox() {
        let own = Path::new("/proc/self/ns/ipc");
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let root = open(child.id(), own).unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(!has_ended(&root));
        let metadata = fs::File::from(root.dir.try_clone().unwrap())
            .metadata()
            .unwrap();
        assert_eq!(metadata.ino(), fs::metadata("/").unwrap().ino());
        // Of another sandbox.
        assert!(
            open(child.id(), Path::new("/proc/self/ns/net"))
                .unwrap()
                .is_none()
        );
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(has_ended(&root));
        assert!(open(child.id(), own).unwrap().is_none());
        assert!(open(0, own).unwrap().is_none() && open(u32::MAX, own).unwrap().is_none());
    }

    #[test]
    fn the_user_of_a_process_is_its_effective_one() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n";
        assert_eq!(effective(status, "Uid:"), Some(2));
        assert_eq!(effective(status, "Gid:"), Some(6));
        assert_eq!(effective("Uid:\t1\n", "Uid:"), None);
    }
}

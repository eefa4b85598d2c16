//! The shims of containers as the kernel shows them, for what containerd cannot do: end one that does not answer, let go of
//! a root file system that somebody is inside of, remove what a killed containerd left. When that is right, others know.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// Kills the shim of a container; `false` when none is found.
pub(crate) fn kill(namespace: &str, container: &str, cgroup: &str) -> io::Result<bool> {
    let Some(shim) = find(namespace, container, cgroup)? else {
        return Ok(false);
    };
    match pidfd_send_signal(&shim.process, Signal::KILL) {
        // It has ended meanwhile.
        Ok(()) | Err(Errno::SRCH) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Takes the root file system of a container out of the tree, whoever is inside of it; `false` when there is none to take.
pub(crate) fn detach_rootfs(namespace: &str, container: &str, cgroup: &str) -> io::Result<bool> {
    let Some(shim) = find(namespace, container, cgroup)? else {
        return Ok(false);
    };
    let rootfs = shim.bundle.join("rootfs");
    match unmount(&rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        // INVAL: nothing is mounted there, or not where this process could see it.
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What there was of the bundle of a container that has no task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remains {
    Nothing,
    Cleared,
    /// A shim is at work: containerd is not through with what a former call asked for.
    Busy,
}

/// Removes the bundle that containerd has left of a container.
///
/// Killed while it makes a bundle, it takes no notice of the half of it. Killed between giving a bundle another name and
/// removing it, it never comes back to that, and what has the other name bars the removal of the next bundle. What is left
/// bars every later one. Where bundles lie is known from those whose shims run.
pub(crate) fn clear_bundle(
    namespace: &str,
    container: &str,
    cgroup_parent: &str,
) -> io::Result<Remains> {
    let (mut bundles, mut busy) = (None, false);
    for entry in fs::read_dir("/proc")?.flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let Some(other) = container_of_shim(&command, namespace) else {
            continue;
        };
        busy |= other == container.as_bytes();
        let bundle = bundle(&entry.path());
        if fs::read(bundle.join("config.json")).is_ok_and(|it| is_below_cgroup(&it, cgroup_parent))
        {
            // Held open: the shim may end before we are through.
            bundles = File::open(bundle.join("..")).ok().or(bundles);
        }
    }
    let Some(bundles) = bundles else {
        return Ok(Remains::Nothing);
    };
    let bundles = PathBuf::from(format!("/proc/self/fd/{}", bundles.as_raw_fd()));
    let mut remains = Remains::Nothing;
    for name in [format!(".{container}"), container.to_owned()] {
        let path = bundles.join(name);
        if busy && path.is_dir() {
            return Ok(Remains::Busy);
        }
        // One that is mounted or has files does not go, and with it nothing does.
        let emptied = match fs::remove_dir(path.join("rootfs")) {
            Ok(()) => true,
            Err(error) => error.kind() == ErrorKind::NotFound && path.is_dir(),
        };
        if emptied {
            fs::remove_dir_all(&path)?;
            remains = Remains::Cleared;
        }
    }
    Ok(remains)
}

struct Shim {
    process: OwnedFd,
    /// Leads to the bundle whatever containerd calls it.
    bundle: PathBuf,
}

fn find(namespace: &str, container: &str, cgroup: &str) -> io::Result<Option<Shim>> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|it| it.parse().ok())
            .and_then(Pid::from_raw);
        let Some(pid) = pid else { continue };
        if !is_shim(&entry.path(), namespace, container, cgroup) {
            continue;
        }
        // Looked at again with the process in hand: a number alone may have become somebody else's.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        if is_shim(&entry.path(), namespace, container, cgroup) {
            let bundle = bundle(&entry.path());
            return Ok(Some(Shim { process, bundle }));
        }
    }
    Ok(None)
}

fn is_shim(process: &Path, namespace: &str, container: &str, cgroup: &str) -> bool {
    let command = fs::read(process.join("cmdline")).unwrap_or_default();
    is_shim_of(&command, namespace, container)
        // Another containerd of this host may have the same names, but not the same cgroup.
        && fs::read(bundle(process).join("config.json"))
            .is_ok_and(|it| is_in_cgroup(&it, cgroup))
}

/// A shim works in the bundle of its container.
fn bundle(process: &Path) -> PathBuf {
    process.join("cwd")
}

fn is_shim_of(command: &[u8], namespace: &str, container: &str) -> bool {
    container_of_shim(command, namespace) == Some(container.as_bytes())
}

/// The container of a shim by its command line, as every containerd writes it; `None` for what is no shim of `namespace`.
fn container_of_shim<'a>(command: &'a [u8], namespace: &str) -> Option<&'a [u8]> {
    let words: Vec<&[u8]> = command.split(|it| *it == 0).collect();
    let program = words.first()?.rsplit(|it| *it == b'/').next()?;
    let value = |flag: &str| {
        let at = words.iter().position(|it| *it == flag.as_bytes())?;
        words.get(at + 1).copied()
    };
    let ours = program.starts_with(b"containerd-shim")
        && value("-namespace") == Some(namespace.as_bytes());
    value("-id").filter(|_| ours)
}

/// Whether a bundle's configuration puts the container into this cgroup, given without a slash at its start.
fn is_in_cgroup(config: &[u8], cgroup: &str) -> bool {
    cgroup_in(config).is_some_and(|it| it == cgroup)
}

fn is_below_cgroup(config: &[u8], parent: &str) -> bool {
    let cgroup = cgroup_in(config);
    cgroup.is_some_and(|it| {
        it.strip_prefix(parent)
            .is_some_and(|it| it.starts_with('/'))
    })
}

fn cgroup_in(config: &[u8]) -> Option<String> {
    let config: serde_json::Value = serde_json::from_slice(config).ok()?;
    let path = config.pointer("/linux/cgroupsPath")?.as_str()?;
    Some(path.trim_start_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn a_shim_is_known_by_its_program_its_namespace_and_its_container() {
        let cases = [
            ("/usr/bin/containerd-shim-runc-v2 -namespace berth -id sandbox.web.app -address /run/c.sock", true),
            ("containerd-shim-runc-v2 -namespace berth -id sandbox.web.app",                               true),
            ("/usr/bin/containerd-shim-runc-v2 -namespace berth -id sandbox.web_pause",                    false),
            ("/usr/bin/containerd-shim-runc-v2 -namespace other -id sandbox.web.app",                      false),
            ("/usr/bin/containerd-shim-runc-v2 -namespace berth -id",                                      false),
            ("/usr/bin/tail -namespace berth -id sandbox.web.app",                                         false),
            ("",                                                                                           false),
        ];
        for (command, expected) in cases {
            let bytes = command.replace(' ', "\0").into_bytes();
            assert_eq!(is_shim_of(&bytes, "berth", "sandbox.web.app"), expected, "{command}");
        }
    }

    #[test]
    fn the_bundle_of_another_instance_is_not_ours() {
        let config = br#"{ "linux": { "cgroupsPath": "/berth/one/web/app" } }"#;
        assert!(is_in_cgroup(config, "berth/one/web/app"));
        assert!(!is_in_cgroup(config, "berth/two/web/app"));
        assert!(!is_in_cgroup(b"{}", "berth/one/web/app"));
        assert!(!is_in_cgroup(b"no json", ""));
        assert!(is_below_cgroup(config, "berth/one"));
        assert!(!is_below_cgroup(config, "berth/on"));
        assert!(!is_below_cgroup(config, "berth/two"));
    }
}

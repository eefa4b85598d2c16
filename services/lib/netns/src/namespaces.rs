//! Namespaces, pinned by bind mounts so that they outlive every process in them. All work in them is done by threads that
//! end afterwards: a thread that has left the namespaces of its process must never be used for anything else.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::fd::AsFd as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
};

use rustix::{
    mount::{UnmountFlags, mount_bind, unmount},
    system::sethostname,
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

use crate::error::NetnsError;

/// The pinned kinds, by the names that the kernel gives them.
const KINDS: [&str; 3] = ["net", "ipc", "uts"];

/// Whether all of them are pinned in `dir`.
pub(crate) fn are_open(dir: &Path) -> bool {
    // A name alone may be what a reboot left; the file system tells a namespace from a file.
    KINDS.iter().all(|kind| {
        rustix::fs::statfs(dir.join(kind)).is_ok_and(|it| it.f_type as u64 == NSFS_MAGIC)
    })
}

const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Makes the namespaces and pins them in `dir`, with `work` done inside before anything else runs there.
pub(crate) fn open<T: Send>(
    dir: &Path,
    host_name: &str,
    work: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    let kinds = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    make(dir, kinds, host_name, work)
}

/// As `open`, but pins the network of this process in the place of a new one.
pub(crate) fn open_in_own_network(dir: &Path, host_name: &str) -> Result<(), NetnsError> {
    let kinds = UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    make(dir, kinds, host_name, || Ok(()))
}

/// Whether what `dir` pins is the network of this process.
pub(crate) fn is_own_network(dir: &Path) -> Result<bool, NetnsError> {
    let of = |path: &Path| {
        let metadata = fs::metadata(path).map_err(NetnsError::file("reading", path))?;
        Ok((metadata.dev(), metadata.ino()))
    };
    Ok(of(&dir.join("net"))? == of(Path::new("/proc/self/ns/net"))?)
}

fn make<T: Send>(
    dir: &Path,
    kinds: UnshareFlags,
    host_name: &str,
    work: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    fs::create_dir_all(dir).map_err(NetnsError::file("making", dir))?;
    on_a_thread(|| {
        #[expect(unsafe_code, reason = "unshare can pull resources from under a thread")]
        // SAFETY: none of these flags takes file descriptors or memory from this thread.
        unsafe { unshare_unsafe(kinds) }.map_err(NetnsError::kernel("making namespaces"))?;
        sethostname(host_name.as_bytes()).map_err(NetnsError::kernel("setting the host name"))?;
        let done = work()?;
        for kind in KINDS {
            let pin = dir.join(kind);
            File::create(&pin).map_err(NetnsError::file("making", &pin))?;
            mount_bind(format!("/proc/thread-self/ns/{kind}"), &pin)
                .map_err(|it| NetnsError::file("pinning", &pin)(it.into()))?;
        }
        Ok(done)
    })
}

/// Gives the host inside of the namespaces that are pinned in `dir` another name.
pub(crate) fn rename_host(dir: &Path, host_name: &str) -> Result<(), NetnsError> {
    let pin = dir.join("uts");
    let namespace = File::open(&pin).map_err(NetnsError::file("opening", &pin))?;
    on_a_thread(|| {
        move_into_link_name_space(
            namespace.as_fd(),
            Some(LinkNameSpaceType::HostNameAndNISDomainName),
        )
        .map_err(NetnsError::kernel("entering the uts namespace"))?;
        sethostname(host_name.as_bytes()).map_err(NetnsError::kernel("setting the host name"))
    })
}

/// Does `work` in the network namespace that is pinned in `dir`.
pub(crate) fn inside<T: Send>(
    dir: &Path,
    work: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    let pin = dir.join("net");
    let namespace = File::open(&pin).map_err(NetnsError::file("opening", &pin))?;
    on_a_thread(|| {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(NetnsError::kernel("entering the network namespace"))?;
        work()
    })
}

/// Unpins what `dir` holds, and removes it. The kernel takes a namespace back when nobody is in it any more.
pub(crate) fn close(dir: &Path) -> Result<(), NetnsError> {
    for kind in KINDS {
        let pin = dir.join(kind);
        match unmount(&pin, UnmountFlags::DETACH) {
            // INVAL: it is a file and no mount.
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(NetnsError::file("unpinning", &pin)(error.into())),
        }
        ignore_missing(fs::remove_file(&pin)).map_err(NetnsError::file("removing", &pin))?;
    }
    ignore_missing(fs::remove_dir(dir)).map_err(NetnsError::file("removing", dir))
}

fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn on_a_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("namespace".into())
            .spawn_scoped(scope, work);
        let thread = thread.map_err(|source| NetnsError::Kernel {
            operation: "starting a thread",
            source,
        })?;
        match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

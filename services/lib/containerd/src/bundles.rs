//! The bundles of containers: the folders that containerd gives to its shims. They tell whose a shim is, hold root file
//! systems that somebody may be inside of, and stay where containerd was killed at work. When that is right, others know.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use berth_domain::cgroups;
use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};
use serde::Deserialize;

use crate::shims::{Shim, Shims};

/// Whose bundles are meant: those of containers below one cgroup.
#[derive(Clone, Debug)]
pub(crate) struct Bundles {
    cgroup_parent: String,
}

impl Bundles {
    pub(crate) fn below(cgroup_parent: &str) -> Self {
        Self {
            cgroup_parent: cgroup_parent.to_owned(),
        }
    }

    /// Whether a bundle is of a container of this instance.
    pub(crate) fn is_ours(&self, bundle: &Path) -> bool {
        let text = fs::read(bundle.join("config.json")).unwrap_or_default();
        let spec = serde_json::from_slice::<Spec>(&text);
        spec.is_ok_and(|it| self.is_below_parent(&it.linux.cgroups_path))
    }

    pub(crate) fn is_below_parent(&self, cgroup: &str) -> bool {
        cgroups::is_below(&self.cgroup_parent, cgroup)
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

impl Shims {
    /// Takes the root file system of a container out of the tree, whoever is inside of it; `false` when there is none to take.
    pub(crate) fn detach_rootfs(&self, container: &str) -> io::Result<bool> {
        let shims = self.of(container)?;
        let Some(bundle) = shims.iter().find_map(|it| self.open_bundle(it)) else {
            return Ok(false);
        };
        match unmount(
            place(&bundle).join("rootfs"),
            UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
        ) {
            Ok(()) => Ok(true),
            // INVAL: nothing is mounted there, or not where this process could see it.
            Err(Errno::INVAL | Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the bundle that containerd has left of a container.
    ///
    /// Killed while it makes a bundle, it takes no notice of the half of it. Killed between giving a bundle another name and
    /// removing it, it never comes back to that, and what has the other name bars the removal of the next bundle. What is left
    /// bars every later one. Where bundles lie is known from those whose shims run.
    pub(crate) fn clear_bundle(&self, container: &str) -> io::Result<Remains> {
        let shims = self.find()?;
        let mut ours = shims.iter().filter(|it| self.is_ours(it));
        // Held open: the shim may end before we are through.
        let bundles = ours.find_map(|it| File::open(place(&self.open_bundle(it)?).join("..")).ok());
        let Some(bundles) = bundles else {
            return Ok(Remains::Nothing);
        };
        let mut remains = Remains::Nothing;
        for name in [format!(".{container}"), container.to_owned()] {
            let path = place(&bundles).join(name);
            if path.is_dir() && self.is_busy(container)? {
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

    /// A shim works in the bundle of its container, which this leads to whatever containerd calls it.
    fn open_bundle(&self, shim: &Shim) -> Option<File> {
        let bundle = File::open(format!("/proc/{}/cwd", shim.pid)).ok()?;
        self.is_there(shim).then_some(bundle)
    }
}

/// A path to what lies in an open folder.
fn place(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
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

    #[test]
    fn a_bundle_tells_whose_container_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(dir.path().join("config.json"), text).unwrap();
        assert!(!Bundles::below("berth/a").is_ours(dir.path()), "no bundle");
        write(r#"{"linux": {"cgroupsPath": "/berth/a/web/app"}}"#);
        assert!(Bundles::below("berth/a").is_ours(dir.path()));
        assert!(!Bundles::below("berth/b").is_ours(dir.path()));
        write(r#"{"process": {}}"#);
        assert!(!Bundles::below("berth/a").is_ours(dir.path()));
    }
}

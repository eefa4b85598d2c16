//! The mounts of this host, as far as they are of this instance: roots of its containers, and what lies below its run folder.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use berth_domain::{Names, Role, SandboxId, names::parse_container_id};
use rustix::mount::{UnmountFlags, unmount};

/// The folder that containerd keeps the bundles of a namespace in.
const BUNDLES: &str = "io.containerd.runtime.v2.task";
const ROOTFS: &str = "rootfs";
/// The namespaces that are pinned per sandbox.
const PINS: [&str; 3] = ["net", "ipc", "uts"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The kernel gives each mount a number of its own.
    pub(crate) number: u64,
    pub(crate) point: PathBuf,
    pub(crate) file_system: String,
}

/// A mount of this instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnMount {
    pub(crate) mount: Mount,
    pub(crate) sandbox: Option<SandboxId>,
    pub(crate) role: Option<Role>,
    /// Nothing of Berth makes a mount there.
    pub(crate) strange: bool,
}

/// Everything that is mounted, as this process sees it.
pub(crate) fn all() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Whether anything is mounted at `dir` or below it.
pub(crate) fn any_in(dir: &Path) -> io::Result<bool> {
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(all()?.iter().any(|it| it.point.starts_with(&dir)))
}

/// Takes this very mount away. Gone is a success.
pub(crate) fn remove(point: &Path, number: u64) -> io::Result<bool> {
    let there: Vec<Mount> = all()?.into_iter().filter(|it| it.point == point).collect();
    // Only the last one at a place can be taken away.
    match there.last() {
        Some(last) if last.number == number => {
            unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
            Ok(true)
        }
        Some(_) if there.iter().any(|it| it.number == number) => Ok(false),
        Some(_) | None => Ok(true),
    }
}

/// Sorts out what is of this instance. `is_ours` says so of a bundle.
pub(crate) fn own(
    mounts: &[Mount],
    names: &Names,
    namespace: &str,
    is_ours: impl Fn(&Path) -> bool,
) -> Vec<OwnMount> {
    let run_dir = names
        .run_dir
        .canonicalize()
        .unwrap_or_else(|_| names.run_dir.clone());
    let mut pinned: Vec<&Path> = vec![];
    let mut found = vec![];
    for mount in mounts {
        if let Some((bundle, id, role)) = root_of(&mount.point, namespace) {
            if is_ours(bundle) {
                found.push(OwnMount {
                    mount: mount.clone(),
                    sandbox: Some(id),
                    role: Some(role),
                    strange: false,
                });
            }
            continue;
        }
        let Ok(inside) = mount.point.strip_prefix(&run_dir) else {
            continue;
        };
        if inside.as_os_str().is_empty() {
            continue;
        }
        if is_pin(inside, &mount.file_system) && !pinned.contains(&mount.point.as_path()) {
            pinned.push(&mount.point);
            continue;
        }
        let owner = inside.components().nth(1);
        let owner = owner.and_then(|it| SandboxId::parse(it.as_os_str().to_str()?).ok());
        found.push(OwnMount {
            mount: mount.clone(),
            sandbox: owner,
            role: None,
            strange: true,
        });
    }
    found
}

/// The bundle and the container whose root is mounted here.
fn root_of<'a>(point: &'a Path, namespace: &str) -> Option<(&'a Path, SandboxId, Role)> {
    if point.file_name()? != ROOTFS {
        return None;
    }
    let bundle = point.parent()?;
    let of_namespace = bundle.parent()?;
    let expected = Path::new(BUNDLES).join(namespace);
    if !of_namespace.ends_with(expected) {
        return None;
    }
    let (id, role) = parse_container_id(bundle.file_name()?.to_str()?)?;
    Some((bundle, id, role))
}

/// Whether a path below the run folder is that of a pinned namespace.
fn is_pin(inside: &Path, file_system: &str) -> bool {
    let parts: Vec<_> = inside.iter().filter_map(|it| it.to_str()).collect();
    matches!(parts[..], ["ns", _, kind] if PINS.contains(&kind)) && file_system == "nsfs"
}

fn parse(text: &str) -> Vec<Mount> {
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ');
        let number = left.next()?.parse().ok()?;
        let point = unescape(left.nth(3)?);
        let file_system = right.split(' ').next()?.to_owned();
        Some(Mount {
            number,
            point,
            file_system,
        })
    };
    text.lines().filter_map(line).collect()
}

/// The kernel writes a space as `\040`, and likewise what else would break a line.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = text.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    while let Some((&first, rest)) = bytes.split_first() {
        let octal = rest
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|it| str::from_utf8(it).ok())
            .and_then(|it| u8::from_str_radix(it, 8).ok());
        match octal {
            Some(byte) => {
                path.push(byte);
                bytes = &rest[3..];
            }
            None => {
                path.push(first);
                bytes = rest;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use berth_domain::{ContainerName, InstanceId};

    use super::*;

    const MOUNTS: &str = "\
        22 1 0:20 / / rw - ext4 /dev/vda rw\n\
        50 22 0:4 net:[1] /run/b/ns/web/net rw - nsfs nsfs rw\n\
        51 22 0:4 ipc:[2] /run/b/ns/web/ipc rw - nsfs nsfs rw\n\
        52 22 0:4 net:[3] /run/b/ns/web/net rw - nsfs nsfs rw\n\
        53 22 0:9 / /run/b/ns/web/uts rw - tmpfs tmpfs rw\n\
        54 22 0:9 / /run/b/sandboxes/web/a\\040b rw shared:1 - tmpfs tmpfs rw\n\
        55 22 0:9 / /run/b/other rw - tmpfs tmpfs rw\n\
        56 22 0:9 / /run/b rw - tmpfs tmpfs rw\n\
        57 22 0:9 / /run/bb/ns/web rw - tmpfs tmpfs rw\n\
        60 22 0:5 / /c/io.containerd.runtime.v2.task/n/sandbox.web.app/rootfs rw - overlay overlay rw\n\
        61 22 0:5 / /d/io.containerd.runtime.v2.task/n/sandbox.web.app/rootfs rw - overlay overlay rw\n\
        62 22 0:5 / /c/io.containerd.runtime.v2.task/m/sandbox.web.app/rootfs rw - overlay overlay rw\n\
        63 22 0:5 / /c/io.containerd.runtime.v2.task/n/foreign/rootfs rw - overlay overlay rw\n\
        64 22 0:5 / /c/io.containerd.runtime.v2.task/n/sandbox.web.app/other rw - overlay overlay rw\n";

    #[test]
    fn what_is_mounted_for_this_instance_is_told_from_everything_else() {
        let names = Names {
            instance: InstanceId::parse("a").unwrap(),
            cgroup_parent: "berth/a".to_owned(),
            run_dir: "/run/b".into(),
            log_dir: "/var/log/b".into(),
        };
        let is_ours = |bundle: &Path| bundle.starts_with("/c");
        let found = own(&parse(MOUNTS), &names, "n", is_ours);
        let web = SandboxId::parse("web").ok();
        let app = Some(Role::App(ContainerName::parse("app").unwrap()));
        let short: Vec<_> = found
            .iter()
            .map(|it| (it.mount.number, &it.sandbox, &it.role, it.strange))
            .collect();
        assert_eq!(
            short,
            [
                (52, &web, &None, true), // over a pin
                (53, &web, &None, true), // no namespace
                (54, &web, &None, true),
                (55, &None, &None, true),
                (60, &web, &app, false),
            ]
        );
        assert_eq!(found[2].mount.point, Path::new("/run/b/sandboxes/web/a b"));
    }

    #[test]
    fn paths_are_read_as_they_are() {
        for (text, path) in [
            ("/a", "/a"),
            ("/a\\040b\\134c\\011", "/a b\\c\t"),
            ("/a\\", "/a\\"),
            ("/a\\9", "/a\\9"),
        ] {
            assert_eq!(unescape(text), Path::new(path), "{text}");
        }
    }
}

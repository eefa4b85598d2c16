//! Which processes of a sandbox have which sockets open, read from `/proc`.

use std::{collections::BTreeMap, fs, path::Path};

use berth_cgroup::{CgroupError, Hierarchy};
use berth_domain::{ContainerName, Role, cgroups};
use berth_platform::SocketHolder;

/// It is asked for people who want to know who listens: what is beyond this does not make their day.
const PROCESSES_MAX: usize = 1024;
const SOCKETS_MAX: usize = 16 << 10;

/// The role of the container whose cgroup below that of its sandbox has this name.
pub(crate) fn role_of(sandbox: &str, name: &str) -> Option<Role> {
    match cgroups::parse_container(sandbox, name)? {
        "pause" => Some(Role::Pause),
        text => ContainerName::parse(text).ok().map(Role::App),
    }
}

/// Looks at the processes in the cgroups below `sandbox`, those that started first before their children.
pub(crate) fn find(
    hierarchy: &Hierarchy,
    sandbox: &str,
) -> Result<BTreeMap<u64, SocketHolder>, CgroupError> {
    let mut processes = vec![];
    for name in hierarchy.children(sandbox)? {
        if let Some(role) = role_of(sandbox, &name) {
            let ids = hierarchy.process_ids(&format!("{sandbox}/{name}"))?;
            processes.extend(ids.into_iter().map(|id| (role.clone(), id)));
        }
    }
    let mut found = BTreeMap::new();
    for (role, id) in processes.into_iter().take(PROCESSES_MAX) {
        // One that has ended meanwhile has nothing open.
        let process = Path::new("/proc").join(id.to_string());
        let Some(holder) = holder(role, &process) else {
            continue;
        };
        for inode in open_sockets(&process) {
            if found.len() == SOCKETS_MAX {
                return Ok(found);
            }
            found.entry(inode).or_insert_with(|| holder.clone());
        }
    }
    Ok(found)
}

fn holder(role: Role, process: &Path) -> Option<SocketHolder> {
    let command = fs::read(process.join("comm")).ok()?;
    let command = String::from_utf8_lossy(&command);
    let status = fs::read_to_string(process.join("status")).ok()?;
    let ids = status.lines().find_map(|it| it.strip_prefix("NSpid:"))?;
    // The last one is that of the innermost namespace.
    let pid = ids.split_whitespace().next_back()?.parse().ok()?;
    Some(SocketHolder {
        role,
        // A container calls its processes what it likes.
        command: command.trim_end_matches('\n').replace(
            |it: char| it.is_control() || it == char::REPLACEMENT_CHARACTER,
            "?",
        ),
        pid,
    })
}

fn open_sockets(process: &Path) -> impl Iterator<Item = u64> {
    let entries = fs::read_dir(process.join("fd"));
    let entries = entries.into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|it| {
        let target = fs::read_link(it.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?;
        inode.strip_suffix(']')?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::fs::MetadataExt as _};

    use super::*;

    #[test]
    fn a_process_is_named_with_the_sockets_that_it_has_open() {
        use std::os::fd::AsRawFd as _;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let path = format!("/proc/self/fd/{}", listener.as_raw_fd());
        let inode = fs::metadata(path).unwrap().ino();
        let own = Path::new("/proc/self");
        assert!(open_sockets(own).any(|it| it == inode));
        let holder = holder(Role::Pause, own).unwrap();
        assert!(!holder.command.is_empty());
        assert!(holder.pid > 0);
        drop(listener);
        assert!(!open_sockets(own).any(|it| it == inode));
        assert_eq!(open_sockets(Path::new("/proc/none")).count(), 0);
    }

    #[test]
    fn a_cgroup_that_is_no_containers_has_no_role() {
        assert_eq!(role_of("berth/a/x", "pause"), Some(Role::Pause));
        assert_eq!(role_of("berth/a/x", "web").unwrap().to_string(), "web");
        assert_eq!(role_of("berth/a/x", "web.slice"), None);
    }
}

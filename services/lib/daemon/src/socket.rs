//! Who may use the socket of a process.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

/// Gives a socket to its owner and, where there is such a group, to its members.
pub fn give_to_group(socket: &Path, group: &str) -> io::Result<()> {
    let groups = fs::read_to_string("/etc/group").ok();
    let group = groups.and_then(|it| group_id(&it, group));
    let mode = match group {
        Some(gid) => {
            chown(socket, None, Some(gid))?;
            0o660
        }
        None => 0o600,
    };
    fs::set_permissions(socket, fs::Permissions::from_mode(mode))
}

/// Number of a group by its line `name:password:number:members`.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::MetadataExt as _, net::UnixListener};

    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nberth-x:x:7:\nberth:x:42:anna\n";
        assert_eq!(group_id(groups, "berth"), Some(42));
        assert_eq!(group_id(groups, "bert"), None);
    }

    #[test]
    fn a_socket_belongs_to_its_group_where_there_is_one_and_else_to_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let groups = fs::read_to_string("/etc/group").unwrap();
        let own = rustix::process::getgid().as_raw();
        // Root may give the socket away, others only to a group of theirs.
        let may_give = rustix::process::geteuid().is_root();
        let other = groups.lines().find_map(|line| {
            let name = line.split(':').next()?;
            let gid = group_id(&groups, name)?;
            ((gid != own) == may_give).then_some((name, gid))
        });
        let (name, gid) = other.expect("a group that the socket can belong to");
        for (group, mode, gid) in [(name, 0o660, gid), ("no-such-group", 0o600, own)] {
            let socket = dir.path().join(group);
            let _listener = UnixListener::bind(&socket).unwrap();
            give_to_group(&socket, group).unwrap();
            let stat = fs::metadata(&socket).unwrap();
            assert_eq!(stat.permissions().mode() & 0o777, mode, "{group}");
            assert_eq!(stat.gid(), gid, "{group}");
        }
    }
}

//! Which of the node's sockets are those of a sandbox that shares the node's network: its processes are the ones in its ipc
//! namespace, which nobody else is in.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use berth_platform::ListeningSocket;

use crate::{error::NetnsError, sockets};

/// The listening sockets that processes in the ipc namespace pinned in `dir` have open.
pub(crate) fn listening(dir: &Path) -> Result<Vec<ListeningSocket>, NetnsError> {
    let pin = dir.join("ipc");
    let inside = fs::metadata(&pin).map_err(NetnsError::file("reading", &pin))?;
    let inside = (inside.dev(), inside.ino());
    let mut open = BTreeSet::new();
    for process in processes()? {
        // One that has ended meanwhile has nothing open.
        let ipc = fs::metadata(process.join("ns/ipc"));
        if ipc.is_ok_and(|it| (it.dev(), it.ino()) == inside) {
            open.extend(open_sockets(&process));
        }
    }
    Ok(of(sockets::listening()?, &open))
}

fn of(mut sockets: Vec<ListeningSocket>, open: &BTreeSet<u64>) -> Vec<ListeningSocket> {
    sockets.retain(|it| open.contains(&it.inode));
    sockets
}

fn processes() -> Result<impl Iterator<Item = PathBuf>, NetnsError> {
    let entries = fs::read_dir("/proc").map_err(NetnsError::file("listing", "/proc"))?;
    let names = entries.filter_map(Result::ok);
    Ok(names
        .filter(|it| it.file_name().as_encoded_bytes()[0].is_ascii_digit())
        .map(|it| it.path()))
}

/// The numbers of the sockets that a process has open.
fn open_sockets(process: &Path) -> impl Iterator<Item = u64> {
    let entries = fs::read_dir(process.join("fd"));
    let entries = entries.into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|it| {
        let target = fs::read_link(it.path()).ok()?;
        let number = target.to_str()?.strip_prefix("socket:[")?;
        number.strip_suffix(']')?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_socket_is_of_whoever_has_it_open() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let expected = BTreeSet::from([
            tcp.local_addr().unwrap().port(),
            udp.local_addr().unwrap().port(),
        ]);
        let ports = |process: &str| -> BTreeSet<u16> {
            let open = open_sockets(Path::new(process)).collect();
            let own = of(sockets::listening().unwrap(), &open).into_iter();
            own.map(|it| it.port).collect()
        };
        assert!(ports("/proc/self").is_superset(&expected));
        // The first process has none of ours.
        assert!(ports("/proc/1").is_disjoint(&expected));
        let own = Path::new("/proc").join(std::process::id().to_string());
        assert!(processes().unwrap().any(|it| it == own));
    }

    #[test]
    fn a_process_in_another_ipc_namespace_has_nothing_here() {
        let _tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ipc"), "").unwrap();
        assert_eq!(listening(dir.path()).unwrap(), []);
        listening(Path::new("/nowhere")).unwrap_err();
    }
}

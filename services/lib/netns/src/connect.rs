//! A connection from inside the network of a sandbox. The socket stays in the network that it was made in, whichever
//! thread uses it.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use berth_domain::Protocol;
use berth_platform::ConnectError;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream};

use crate::{error::NetnsError, namespaces, network::blocking, owned};

/// A loopback answers at once, or its listener's queue is full.
const PATIENCE: Duration = Duration::from_secs(5);

const LOOPBACKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Connects to `port` on the loopback of the network that is pinned in `dir`.
pub(crate) async fn connect(dir: &Path, port: u16) -> Result<TcpStream, ConnectError> {
    let mut last = ErrorKind::ConnectionRefused.into();
    for ip in LOOPBACKS {
        let dir = dir.to_owned();
        let socket = blocking(move || socket_for(&dir, ip, port)).await;
        let Some(socket) = socket.map_err(|it| ConnectError::Network(it.into()))? else {
            continue;
        };
        let answer = tokio::time::timeout(PATIENCE, socket.connect(SocketAddr::new(ip, port)));
        match answer
            .await
            .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
        {
            Ok(connected) => {
                // What people type and what programs ask is small.
                let _ = connected.set_nodelay(true);
                return Ok(connected);
            }
            // The first loopback says more about why: the second one is often not there.
            Err(error) if ip.is_ipv4() => last = error,
            Err(_) => {}
        }
    }
    Err(ConnectError::Refused { source: last })
}

/// A socket in that network; `None` where the port is nobody's whom the caller may reach.
fn socket_for(dir: &Path, ip: IpAddr, port: u16) -> Result<Option<TcpSocket>, NetnsError> {
    let family = match ip {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let make = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match socket_with(family, SocketType::STREAM, flags, None) {
            Ok(socket) => Ok(Some(socket)),
            // A kernel without IPv6.
            Err(rustix::io::Errno::AFNOSUPPORT) => Ok(None),
            Err(errno) => Err(NetnsError::kernel("making a socket")(errno)),
        }
    };
    let socket = if namespaces::is_own_network(dir)? {
        // The loopback of the node is everybody's; only the sandbox's own ports on it are meant.
        let listening = owned::listening(dir)?;
        let own = |it: &IpAddr| *it == ip || it.is_unspecified();
        let own = listening
            .iter()
            .any(|it| it.protocol == Protocol::Tcp && it.port == port && own(&it.address));
        if own { make()? } else { None }
    } else {
        namespaces::inside(dir, make)?
    };
    let socket = socket.map(std::net::TcpStream::from);
    Ok(socket.map(TcpSocket::from_std_stream))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A folder that pins the network and another ipc namespace than any.
    fn own_network(ipc: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/proc/self/ns/net", dir.path().join("net")).unwrap();
        std::os::unix::fs::symlink(ipc, dir.path().join("ipc")).unwrap();
        dir
    }

    async fn refused(dir: &Path, port: u16) -> ErrorKind {
        match connect(dir, port).await {
            Err(ConnectError::Refused { source }) => source.kind(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn on_the_network_of_the_node_only_own_ports_are_reached() {
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let six = TcpListener::bind("[::1]:0").unwrap();
        let port = |it: &TcpListener| it.local_addr().unwrap().port();
        let own = own_network("/proc/self/ns/ipc");
        for listener in [&four, &six] {
            let connected = connect(own.path(), port(listener)).await.unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert_eq!(
                connected.local_addr().unwrap(),
                accepted.peer_addr().unwrap()
            );
        }
        let foreign = own_network("/proc/self/ns/net");
        assert_eq!(
            refused(foreign.path(), port(&four)).await,
            ErrorKind::ConnectionRefused
        );
        let free = port(&four);
        drop(four);
        assert_eq!(
            refused(own.path(), free).await,
            ErrorKind::ConnectionRefused
        );
    }

    #[tokio::test]
    async fn a_network_that_is_not_there_is_an_error_of_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let outcome = connect(dir.path(), 80).await;
        assert!(
            matches!(outcome, Err(ConnectError::Network(_))),
            "{outcome:?}"
        );
    }
}

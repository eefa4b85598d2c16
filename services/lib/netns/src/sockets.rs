//! Which sockets listen: asked of the kernel's socket diagnosis, read from `/proc` where that is missing.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
};

use berth_domain::Protocol;
use berth_platform::ListeningSocket;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, sendto,
        socket_with,
    },
};

use crate::error::NetnsError;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x1 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// State LISTEN of TCP, and CLOSE, in which a bound UDP socket without a peer is.
const LISTEN: u8 = 10;
const CLOSE: u8 = 7;

/// What is asked for: a family, a transport, and the state that listens.
const KINDS: [(AddressFamily, Protocol); 4] = [
    (AddressFamily::INET, Protocol::Tcp),
    (AddressFamily::INET6, Protocol::Tcp),
    (AddressFamily::INET, Protocol::Udp),
    (AddressFamily::INET6, Protocol::Udp),
];

/// The listening sockets of the calling thread's network namespace.
pub(crate) fn listening() -> Result<Vec<ListeningSocket>, NetnsError> {
    match diagnose() {
        Ok(sockets) => Ok(sockets),
        Err(error) => {
            tracing::debug!(%error, "no socket diagnosis; reading /proc");
            from_proc()
        }
    }
}

fn diagnose() -> Result<Vec<ListeningSocket>, Errno> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut found = vec![];
    for (family, protocol) in KINDS {
        let request = request(family, protocol);
        let kernel = netlink::SocketAddrNetlink::new(0, 0);
        sendto(&socket, &request, SendFlags::empty(), &kernel)?;
        read_dump(&socket, protocol, &mut found)?;
    }
    Ok(found)
}

fn state_of(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => LISTEN,
        Protocol::Udp => CLOSE,
    }
}

/// `nlmsghdr` and `inet_diag_req_v2`.
fn request(family: AddressFamily, protocol: Protocol) -> Vec<u8> {
    const LENGTH: u32 = 72;
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    let mut bytes = Vec::with_capacity(LENGTH as usize);
    bytes.extend(LENGTH.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([
        u8::try_from(family.as_raw()).unwrap_or_default(),
        number,
        0,
        0,
    ]);
    bytes.extend((1_u32 << state_of(protocol)).to_ne_bytes());
    bytes.resize(LENGTH as usize, 0);
    bytes
}

fn read_dump(
    socket: &OwnedFd,
    protocol: Protocol,
    found: &mut Vec<ListeningSocket>,
) -> Result<(), Errno> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let (length, _) = recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, payload, next)) = split_message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = payload
                        .first_chunk()
                        .map_or(0, |it| i32::from_ne_bytes(*it));
                    return Err(Errno::from_raw_os_error(-code));
                }
                _ => found.extend(read_socket(payload, protocol)),
            }
            rest = next;
        }
    }
}

/// The first message's type and payload, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let payload = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload, next))
}

/// Reads an `inet_diag_msg`: family, state, two bytes, then ports and addresses in network order, and at the end the inode.
fn read_socket(payload: &[u8], protocol: Protocol) -> Option<ListeningSocket> {
    let family = *payload.first()?;
    let port = u16::from_be_bytes(*payload.get(4..)?.first_chunk()?);
    let source: &[u8; 16] = payload.get(8..)?.first_chunk()?;
    let address = if u16::from(family) == AddressFamily::INET.as_raw() {
        let [a, b, c, d, ..] = *source;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from(*source))
    };
    let inode = u32::from_ne_bytes(*payload.get(68..)?.first_chunk()?);
    let socket = ListeningSocket {
        protocol,
        address,
        port,
        inode: inode.into(),
    };
    (port != 0).then_some(socket)
}

fn from_proc() -> Result<Vec<ListeningSocket>, NetnsError> {
    let mut found = vec![];
    for (file, protocol) in [
        ("tcp", Protocol::Tcp),
        ("tcp6", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("udp6", Protocol::Udp),
    ] {
        let path = format!("/proc/thread-self/net/{file}");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // A kernel without IPv6 has no such file.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(NetnsError::file("reading", path)(error)),
        };
        found.extend(text.lines().filter_map(|line| read_line(line, protocol)));
    }
    Ok(found)
}

/// Reads `sl local_address rem_address st …`, where an address is words of hex in host order, `:`, and the port. The inode
/// is the tenth field.
fn read_line(line: &str, protocol: Protocol) -> Option<ListeningSocket> {
    let mut fields = line.split_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    let words: Vec<[u8; 4]> = (0..address.len() / 8)
        .map(|at| {
            Some(
                u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16)
                    .ok()?
                    .to_ne_bytes(),
            )
        })
        .collect::<Option<_>>()?;
    let address = match words.as_slice() {
        [word] => IpAddr::V4(Ipv4Addr::from(*word)),
        words => IpAddr::V6(Ipv6Addr::from(*words.concat().first_chunk()?)),
    };
    let listens = state == state_of(protocol) && port != 0;
    let socket = ListeningSocket {
        protocol,
        address,
        port,
        inode,
    };
    listens.then_some(socket)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{TcpListener, UdpSocket},
        os::fd::AsFd,
    };

    use super::*;

    fn inode(socket: impl AsFd) -> u64 {
        rustix::fs::fstat(socket).unwrap().st_ino
    }

    fn diagnosed() -> BTreeSet<ListeningSocket> {
        diagnose().unwrap().into_iter().collect()
    }

    fn read() -> BTreeSet<ListeningSocket> {
        from_proc().unwrap().into_iter().collect()
    }

    #[test]
    fn a_socket_is_found_by_diagnosis_and_by_proc_alike() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp6 = TcpListener::bind("[::1]:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own: BTreeSet<_> = [
            (Protocol::Tcp, tcp.local_addr().unwrap(), inode(&tcp)),
            (Protocol::Tcp, tcp6.local_addr().unwrap(), inode(&tcp6)),
            (Protocol::Udp, udp.local_addr().unwrap(), inode(&udp)),
        ]
        .map(|(protocol, it, inode)| ListeningSocket {
            protocol,
            address: it.ip(),
            port: it.port(),
            inode,
        })
        .into();
        let (asked, in_proc) = (diagnosed(), read());
        assert!(own.is_subset(&asked), "{own:?} in {asked:?}");
        assert!(own.is_subset(&in_proc), "{own:?} in {in_proc:?}");
        let port = tcp.local_addr().unwrap().port();
        drop(tcp);
        let closed = |it: &ListeningSocket| it.port != port || it.protocol != Protocol::Tcp;
        assert!(diagnosed().iter().all(closed));
        assert!(read().iter().all(closed));
    }

    #[test]
    fn a_connected_socket_does_not_listen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        let is_client = |it: &ListeningSocket| it.port == port && it.protocol == Protocol::Tcp;
        assert!(!diagnosed().iter().any(is_client));
        assert!(!read().iter().any(is_client));
    }

    #[test]
    fn a_torn_message_is_no_socket_and_no_panic() {
        let whole = request(AddressFamily::INET, Protocol::Tcp);
        for length in 0..whole.len() {
            let _ = split_message(&whole[..length]);
            let _ = read_socket(&whole[..length], Protocol::Tcp);
        }
        for line in [
            "",
            "a",
            "a b",
            "0: 0100007F:1F90",
            "0: Z:Z Z 0A 0 0 0 0 0 7",
            "0: 01:1 0 0A 0 0 0 0 0 7",
            "0: 0100007F:1F90 0 0A 0 0 0 0 0",
        ] {
            assert_eq!(read_line(line, Protocol::Tcp), None, "{line}");
        }
    }
}

//! Which declared ports are there: decided from what listens and what was said.

use std::{collections::BTreeSet, fmt, net::IpAddr, time::SystemTime};

use berth_domain::{ContainerName, Port, PortSighting, Protocol, SandboxSpec};
use berth_platform::ListeningSocket;

/// From here the kernel gives ports to UDP sockets that asked for none, which are those of clients.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32768..=60999;

/// A declared port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Declared<'a> {
    pub(crate) container: &'a ContainerName,
    pub(crate) port: &'a Port,
}

impl fmt::Display for Declared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        named(f, self.port.number, self.port.protocol, self.container)
    }
}

/// `80 (web)`, or `53/udp (dns)`.
pub(crate) fn named(
    f: &mut impl fmt::Write,
    port: u16,
    protocol: Protocol,
    container: &ContainerName,
) -> fmt::Result {
    match protocol {
        Protocol::Tcp => write!(f, "{port} ({container})"),
        Protocol::Udp => write!(f, "{port}/udp ({container})"),
    }
}

/// The declared ports, sorted into those that are there and those that are waited for.
#[derive(Debug)]
pub(crate) struct Sorted<'a> {
    pub(crate) seen: Vec<PortSighting>,
    pub(crate) missing: Vec<Declared<'a>>,
}

/// Sorts by what listens, then by what was taken in the place of a port before, then by what others said. `told` is what
/// the record has.
pub(crate) fn sort<'a>(
    spec: &'a SandboxSpec,
    sockets: &[ListeningSocket],
    told: &[PortSighting],
    now: SystemTime,
) -> Sorted<'a> {
    let (mut seen, mut missing) = (vec![], vec![]);
    for (container, port) in spec.ports() {
        let declared = Declared { container, port };
        let about = |it: &&PortSighting| {
            (it.port, it.protocol, &it.container) == (port.number, port.protocol, container)
        };
        let mut about = told.iter().filter(about);
        let is_own = |it: &PortSighting| it.source == PortSighting::OWN;
        let taken = about.clone().find_map(|it| match is_own(it) {
            true => it.bound_port,
            false => None,
        });
        let taken = taken.and_then(|it| Some((it, reached(sockets, port.protocol, it)?)));
        let reported = about.find(|it| !is_own(it) && it.bound && is_routable(&it.address));
        let itself = reached(sockets, port.protocol, port.number);
        match (itself, taken, reported) {
            (Some(socket), ..) => seen.push(sighting(declared, socket, None, now)),
            (None, Some((bound, socket)), _) => {
                seen.push(sighting(declared, socket, Some(bound), now));
            }
            (None, None, Some(report)) => seen.push(report.clone()),
            (None, None, None) => missing.push(declared),
        }
    }
    Sorted { seen, missing }
}

/// What is to be taken in the place of the one port that is missing: the only other one that others reach. A port that is
/// there on loopback has nothing in its place.
pub(crate) fn in_place_of(
    spec: &SandboxSpec,
    sockets: &[ListeningSocket],
    missing: &[Declared<'_>],
    now: SystemTime,
) -> Option<PortSighting> {
    let [declared] = missing else { return None };
    let is_it = |it: &ListeningSocket| {
        (it.port, it.protocol) == (declared.port.number, declared.port.protocol)
    };
    if sockets.iter().any(is_it) {
        return None;
    }
    let others = others(spec, sockets, missing);
    let numbers: BTreeSet<_> = others.iter().map(|it| it.port).collect();
    let other = others.first().filter(|_| numbers.len() == 1)?;
    Some(sighting(*declared, other, Some(other.port), now))
}

/// What others reach and nobody declared, of the protocols of which something is missing.
pub(crate) fn others<'a>(
    spec: &SandboxSpec,
    sockets: &'a [ListeningSocket],
    missing: &[Declared<'_>],
) -> Vec<&'a ListeningSocket> {
    let declared: BTreeSet<_> = spec
        .ports()
        .map(|(_, it)| (it.protocol, it.number))
        .collect();
    let other = |it: &&ListeningSocket| {
        !is_loopback(it.address) && !declared.contains(&(it.protocol, it.port))
    };
    of_interest(sockets, missing).filter(other).collect()
}

/// The sockets of the protocols of which something is missing, without those of clients.
pub(crate) fn of_interest<'a>(
    sockets: &'a [ListeningSocket],
    missing: &[Declared<'_>],
) -> impl Iterator<Item = &'a ListeningSocket> {
    let protocols: BTreeSet<_> = missing.iter().map(|it| it.port.protocol).collect();
    let expected: BTreeSet<_> = missing.iter().map(|it| it.port.number).collect();
    sockets.iter().filter(move |it| {
        let of_client = it.protocol == Protocol::Udp
            && EPHEMERAL.contains(&it.port)
            && !expected.contains(&it.port);
        protocols.contains(&it.protocol) && !of_client
    })
}

fn reached(sockets: &[ListeningSocket], protocol: Protocol, port: u16) -> Option<&ListeningSocket> {
    let mut sockets = sockets.iter();
    sockets.find(|it| (it.protocol, it.port) == (protocol, port) && !is_loopback(it.address))
}

fn sighting(
    declared: Declared<'_>,
    socket: &ListeningSocket,
    bound_port: Option<u16>,
    at: SystemTime,
) -> PortSighting {
    PortSighting {
        bound: true,
        address: socket.address.to_string(),
        bound_port,
        ..unseen(declared, at)
    }
}

/// That nothing is seen of a port.
pub(crate) fn unseen(declared: Declared<'_>, at: SystemTime) -> PortSighting {
    PortSighting {
        container: declared.container.clone(),
        port: declared.port.number,
        protocol: declared.port.protocol,
        bound: false,
        address: String::new(),
        source: PortSighting::OWN.to_owned(),
        at,
        bound_port: None,
    }
}

/// Also of an IPv4 address that a socket of IPv6 is bound to.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Of an address that somebody reported.
fn is_routable(address: &str) -> bool {
    !address.parse().is_ok_and(is_loopback)
}

//! Packets that no program of a sandbox would send by accident: made by hand, checksums and all.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::OwnedFd,
};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket,
    sockopt,
};

use crate::hosts::Place;

const UNREACHABLE: u8 = 3;
const UNREACHABLE6: u8 = 1;
/// Codes of [`UNREACHABLE`].
const PORT: u8 = 3;
const TOO_BIG: u8 = 4;
/// Code of [`UNREACHABLE6`].
const PORT6: u8 = 4;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// A socket beneath the transports, which sees every packet of its protocol that arrives at this place.
#[derive(Debug)]
pub struct Raw(OwnedFd);

/// A flow of datagrams as a host sees it that has sent one.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

impl Raw {
    pub fn icmp(place: &Place) -> anyhow::Result<Self> {
        Self::open(place, AddressFamily::INET, ipproto::ICMP)
    }

    pub fn icmp6(place: &Place) -> anyhow::Result<Self> {
        Self::open(place, AddressFamily::INET6, ipproto::ICMPV6)
    }

    /// Of IPv4.
    pub fn tcp(place: &Place) -> anyhow::Result<Self> {
        Self::open(place, AddressFamily::INET, ipproto::TCP)
    }

    fn open(place: &Place, family: AddressFamily, protocol: Protocol) -> anyhow::Result<Self> {
        place.within(move || Ok(Self(socket(family, SocketType::RAW, Some(protocol))?)))
    }

    /// Tells the host at `to` that the port of this flow of its own is not listened on.
    pub fn say_port_unreachable(&self, to: IpAddr, of: Flow) -> io::Result<()> {
        let message = match to {
            IpAddr::V4(_) => icmp(PORT, 0, &datagram(of)),
            // The kernel puts in the checksum.
            IpAddr::V6(_) => [&[UNREACHABLE6, PORT6, 0, 0, 0, 0, 0, 0], &*datagram(of)].concat(),
        };
        self.send(to, &message)
    }

    /// Tells the host at `to` that packets of this flow of its own must not be longer.
    pub fn say_too_big(&self, to: Ipv4Addr, of: Flow, longest: u16) -> io::Result<()> {
        self.send(to.into(), &icmp(TOO_BIG, longest, &datagram(of)))
    }

    /// Says to all on a link that this is a router.
    pub fn advertise_router(&self, link: u32) -> anyhow::Result<()> {
        const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
        const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        sockopt::set_ipv6_multicast_hops(&self.0, 255)?;
        let to = SocketAddrV6::new(ALL_NODES, 0, 0, link);
        sendto(&self.0, &ADVERTISEMENT, SendFlags::empty(), &to)?;
        Ok(())
    }

    /// Sends a segment of a connection, from this place.
    pub fn segment(
        &self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        sequence: u32,
        text: &str,
    ) -> io::Result<()> {
        const ACK_PUSH: u8 = 0x18;
        let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        segment.extend(sequence.to_be_bytes());
        segment.extend([0, 0, 0, 1, 5 << 4, ACK_PUSH, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(text.as_bytes());
        let length = u16::try_from(segment.len()).unwrap_or(u16::MAX);
        let pseudo = [
            &from.ip().octets()[..],
            &to.ip().octets(),
            &[0, TCP],
            &length.to_be_bytes(),
        ];
        let sum = checksum(&[&pseudo.concat(), &*segment].concat());
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        self.send((*to.ip()).into(), &segment)
    }

    /// Looks through what has arrived for a segment with this text, and returns its number.
    pub fn sequence_of(&self, text: &str) -> Option<u32> {
        /// Of IPv4, without options.
        const HEADER: usize = 20;
        let mut buffer = [0; 2048];
        while let Ok((length, _)) = recv(&self.0, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            let packet = &buffer[..length];
            if packet.windows(text.len()).any(|it| it == text.as_bytes()) {
                return Some(u32::from_be_bytes(
                    *packet.get(HEADER + 4..)?.first_chunk()?,
                ));
            }
        }
        None
    }

    fn send(&self, to: IpAddr, packet: &[u8]) -> io::Result<()> {
        sendto(&self.0, packet, SendFlags::empty(), &SocketAddr::new(to, 0))?;
        Ok(())
    }
}

fn icmp(code: u8, longest: u16, quoted: &[u8]) -> Vec<u8> {
    let [high, low] = longest.to_be_bytes();
    let mut message = [&[UNREACHABLE, code, 0, 0, 0, 0, high, low], quoted].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// An empty datagram of a flow, with the header of its network.
fn datagram(of: Flow) -> Vec<u8> {
    let mut packet = match (of.from.ip(), of.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, UDP, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (from, to) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 8, UDP, 64];
            for it in [from, to] {
                let IpAddr::V6(it) = it else { continue };
                header.extend(it.octets());
            }
            header
        }
    };
    packet.extend(of.from.port().to_be_bytes());
    packet.extend(of.to.port().to_be_bytes());
    packet.extend([0, 8, 0, 0]);
    packet
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|it| u16::from_be_bytes([it[0], *it.get(1).unwrap_or(&0)]));
    let sum: u32 = words.map(u32::from).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

//! One element of one set or map of ours: as text for `nft`, and as the bytes that the kernel keeps. Pure.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use berth_domain::Protocol;

/// Which of the instance's two tables: that for packets, or that for ARP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    Inet,
    Arp,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::Inet, Self::Arp];

    /// `NFPROTO_INET` and `NFPROTO_ARP`.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Arp => 3,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Arp => "arp",
        })
    }
}

/// A part of a key or of a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Address(Ipv4Addr),
    Address6(Ipv6Addr),
    Port(u16),
    Protocol(Protocol),
    Link(String),
    Hardware([u8; 6]),
    /// A number that packets carry from one rule to the next.
    Mark(u32),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) family: Family,
    pub(crate) set: String,
    pub(crate) key: Vec<Part>,
    /// Empty in a set.
    pub(crate) value: Vec<Part>,
}

impl Part {
    /// As the kernel's registers hold it. What is read from a packet has the order of the network, what is the kernel's own
    /// has that of the machine.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Address(it) => it.octets().to_vec(),
            Self::Address6(it) => it.octets().to_vec(),
            Self::Port(it) => it.to_be_bytes().to_vec(),
            Self::Protocol(Protocol::Tcp) => vec![6],
            Self::Protocol(Protocol::Udp) => vec![17],
            Self::Link(name) => {
                let mut bytes = name.as_bytes().to_vec();
                bytes.resize(16, 0);
                bytes
            }
            Self::Hardware(it) => it.to_vec(),
            Self::Mark(it) => it.to_ne_bytes().to_vec(),
        }
    }
}

/// As the kernel keeps a key or a value: a lone part has its own length, parts of several are padded to four bytes each.
pub(crate) fn bytes(parts: &[Part]) -> Vec<u8> {
    if let [lone] = parts {
        return lone.bytes();
    }
    let mut all = vec![];
    for part in parts {
        all.extend(part.bytes());
        all.resize(all.len().next_multiple_of(4), 0);
    }
    all
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(it) => write!(f, "{it}"),
            Self::Address6(it) => write!(f, "{it}"),
            Self::Port(it) => write!(f, "{it}"),
            Self::Protocol(Protocol::Tcp) => f.write_str("tcp"),
            Self::Protocol(Protocol::Udp) => f.write_str("udp"),
            Self::Link(name) => write!(f, "\"{name}\""),
            Self::Hardware([a, b, c, d, e, g]) => {
                write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
            Self::Mark(it) => write!(f, "{it:#x}"),
        }
    }
}

/// As in an `add element`: `key`, or `key : value`.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        joined(f, &self.key)?;
        if !self.value.is_empty() {
            f.write_str(" : ")?;
            joined(f, &self.value)?;
        }
        Ok(())
    }
}

fn joined(f: &mut fmt::Formatter<'_>, parts: &[Part]) -> fmt::Result {
    for (at, part) in parts.iter().enumerate() {
        if at > 0 {
            f.write_str(" . ")?;
        }
        write!(f, "{part}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn a_key_has_this_text_and_these_bytes() {
        let address = Part::Address(Ipv4Addr::new(10, 1, 0, 2));
        let address6 = Part::Address6("fd00::a01:2".parse().unwrap());
        let cases: [(&[Part], &str, &[u8]); 6] = [
            (&[Part::Port(80)], "80", &[0, 80]),
            (&[Part::Protocol(Protocol::Udp), Part::Port(53)], "udp . 53", &[17, 0, 0, 0, 0, 53, 0, 0]),
            (&[address.clone(), Part::Port(443)], "10.1.0.2 . 443", &[10, 1, 0, 2, 1, 187, 0, 0]),
            (&[Part::Hardware([2, 66, 10, 1, 0, 2]), address], "02:42:0a:01:00:02 . 10.1.0.2",
             &[2, 66, 10, 1, 0, 2, 0, 0, 10, 1, 0, 2]),
            (&[address6, Part::Port(443)], "fd00::a01:2 . 443",
             &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 1, 0, 2, 1, 187, 0, 0]),
            (&[Part::Link("bt01".into())], "\"bt01\"", b"bt01\0\0\0\0\0\0\0\0\0\0\0\0"),
        ];
        for (key, text, expected) in cases {
            let element = Element { family: Family::Inet, set: "x".into(), key: key.to_vec(), value: vec![] };
            assert_eq!(element.to_string(), text);
            assert_eq!(bytes(key), expected, "{text}");
        }
        assert_eq!(bytes(&[Part::Mark(7)]), 7_u32.to_ne_bytes());
    }
}

//! What a rule of others asks of a packet, read from its expressions as far as packets of sandboxes are told by it: link,
//! address, family. Whatever else is asked is asked, and nobody knows the answer.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::nfnetlink::attribute;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Whether the name of the link begins so, or is so where it ends with a zero.
    Link {
        side: Side,
        name: Vec<u8>,
    },
    Address {
        side: Side,
        net: IpNet,
    },
    /// As the kernel numbers it.
    Family(u8),
    Else,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    From,
    To,
}

const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// All packets that come from the addresses of a subnet by links that begin so, or go there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packets<'a> {
    pub(crate) side: Side,
    pub(crate) links: &'a str,
    pub(crate) subnet: IpNet,
}

impl Packets<'_> {
    /// Whether all of them are what is asked for.
    pub(crate) fn are(&self, asked: &Asked) -> bool {
        match asked {
            Asked::Link { side, name } => {
                *side == self.side && self.links.as_bytes().starts_with(name)
            }
            Asked::Address { side, net } => *side == self.side && net.contains(&self.subnet),
            Asked::Family(family) => match self.subnet {
                IpNet::V4(_) => *family == IPV4,
                IpNet::V6(_) => *family == IPV6,
            },
            Asked::Else => false,
        }
    }
}

/// Reads one expression behind the other: what is loaded is compared by a later one.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    loaded: Option<Loaded>,
    mask: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
enum Loaded {
    Link(Side),
    Address(Side, Width),
    Family,
}

#[derive(Clone, Copy, Debug)]
enum Width {
    Four,
    Sixteen,
}

impl Reader {
    /// What the rule asks with this expression, if it asks.
    pub(crate) fn read(&mut self, name: &str, content: &[u8]) -> Option<Asked> {
        match name {
            "meta" => {
                self.load(match number(content, 2) {
                    Some(6) => Some(Loaded::Link(Side::From)),
                    Some(7) => Some(Loaded::Link(Side::To)),
                    Some(15) => Some(Loaded::Family),
                    _ => None,
                });
                None
            }
            "payload" => {
                // Of the header of the network.
                let place = (number(content, 2) == Some(1)).then(|| number(content, 3));
                self.load(match place.flatten() {
                    Some(12) => Some(Loaded::Address(Side::From, Width::Four)),
                    Some(16) => Some(Loaded::Address(Side::To, Width::Four)),
                    Some(8) => Some(Loaded::Address(Side::From, Width::Sixteen)),
                    Some(24) => Some(Loaded::Address(Side::To, Width::Sixteen)),
                    _ => None,
                });
                None
            }
            "bitwise" => {
                self.mask = attribute(content, 4)
                    .and_then(|it| attribute(it, 1))
                    .map(<[u8]>::to_vec);
                None
            }
            "cmp" => Some(self.compare(content).unwrap_or(Asked::Else)),
            _ => Some(Asked::Else),
        }
    }

    fn load(&mut self, loaded: Option<Loaded>) {
        *self = Self { loaded, mask: None };
    }

    fn compare(&mut self, content: &[u8]) -> Option<Asked> {
        let value = attribute(attribute(content, 3)?, 1)?;
        if number(content, 2) != Some(0) {
            return None;
        }
        match self.loaded.take()? {
            Loaded::Link(side) => Some(Asked::Link {
                side,
                name: value.to_vec(),
            }),
            Loaded::Family => Some(Asked::Family(*value.first()?)),
            Loaded::Address(side, width) => {
                let ones = |mask: &[u8]| mask.iter().map(|it| it.count_ones()).sum::<u32>();
                let length = match self.mask.take() {
                    Some(mask) => ones(&mask),
                    None => u32::try_from(value.len() * 8).ok()?,
                };
                let address: IpAddr = match width {
                    Width::Four => padded::<4>(value)?.into(),
                    Width::Sixteen => padded::<16>(value)?.into(),
                };
                let net = IpNet::new(address, u8::try_from(length).ok()?).ok()?;
                Some(Asked::Address { side, net })
            }
        }
    }
}

fn number(content: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(
        *attribute(content, kind)?.first_chunk()?,
    ))
}

/// A prefix of whole bytes is loaded and compared as those alone.
fn padded<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    let mut all = [0; N];
    all.get_mut(..value.len())?.copy_from_slice(value);
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfnetlink::{nested, plain};

    fn loads(name: &'static str, numbers: &[(u16, u32)]) -> (&'static str, Vec<u8>) {
        let each = numbers.iter();
        let each = each.map(|(kind, number)| plain(*kind, &number.to_be_bytes()));
        (name, each.collect::<Vec<_>>().concat())
    }

    fn compares(op: u32, value: &[u8]) -> (&'static str, Vec<u8>) {
        let value = nested(3, &plain(1, value));
        ("cmp", [plain(2, &op.to_be_bytes()), value].concat())
    }

    #[test]
    #[rustfmt::skip]
    fn what_a_rule_asks_is_told_where_packets_of_sandboxes_are_told_by_it() {
        let meta = |key| loads("meta", &[(1, 1), (2, key)]);
        let payload = |offset, length| loads("payload", &[(1, 1), (2, 1), (3, offset), (4, length)]);
        let mask = |mask: &[u8]| ("bitwise", nested(4, &plain(1, mask)));
        let packets = |side, subnet: &str| Packets { side, links: "bt", subnet: subnet.parse().unwrap() };
        let from = packets(Side::From, "10.1.0.0/16");
        let to = packets(Side::To, "10.1.0.0/16");
        let from6 = packets(Side::From, "fd00::/64");
        type Case<'a> = (Vec<(&'a str, Vec<u8>)>, [bool; 3]);
        let cases: Vec<Case<'_>> = vec![
            (vec![], [true, true, true]),
            (vec![meta(6), compares(0, b"bt")], [true, false, true]),
            (vec![meta(7), compares(0, b"b")], [false, true, false]),
            (vec![meta(6), compares(0, b"bt01\0\0")], [false, false, false]),
            (vec![meta(6), compares(1, b"eth")], [false, false, false]),
            (vec![meta(15), compares(0, &[2])], [true, true, false]),
            (vec![meta(15), compares(0, &[10])], [false, false, true]),
            (vec![payload(12, 2), compares(0, &[10, 1])], [true, false, false]),
            (vec![payload(16, 4), mask(&[255, 0, 0, 0]), compares(0, &[10, 0, 0, 0])], [false, true, false]),
            (vec![payload(12, 4), mask(&[255, 255, 255, 0]), compares(0, &[10, 1, 0, 0])], [false, false, false]),
            (vec![payload(8, 8), compares(0, &[0xfd, 0, 0, 0, 0, 0, 0, 0])], [false, false, true]),
            (vec![meta(6), compares(0, b"bt"), payload(12, 2), compares(0, &[10, 1])], [true, false, false]),
            (vec![meta(6), ("lookup", vec![])], [false, false, false]),
            (vec![("ct", vec![]), compares(0, &[1])], [false, false, false]),
        ];
        for (expressions, expected) in cases {
            let mut reader = Reader::default();
            let asked = expressions.iter().filter_map(|(name, content)| reader.read(name, content));
            let asked: Vec<_> = asked.collect();
            let seen = [from, to, from6].map(|packets| asked.iter().all(|it| packets.are(it)));
            assert_eq!(seen, expected, "{asked:?}");
        }
    }
}

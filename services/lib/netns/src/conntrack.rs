//! Connections that the kernel remembers of an address: an old one would send packets to whoever has the address next.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::nfnetlink::{Nfnetlink, attribute, attributes, nested};

const CONNTRACK: u16 = 1;
const GET: u16 = CONNTRACK << 8 | 1;
const DELETE: u16 = CONNTRACK << 8 | 2;
/// `AF_INET` and `AF_INET6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ADDRESSES: u16 = 1;
const ZONE: u16 = 18;

/// Deletes every connection in which one of `addresses` takes part, on either side of a translation.
pub(crate) fn forget(socket: &mut Nfnetlink, addresses: &[IpAddr]) -> io::Result<()> {
    let addresses: BTreeSet<_> = addresses.iter().copied().collect();
    for family in [IPV4, IPV6] {
        if addresses.iter().all(|it| it.is_ipv6() != (family == IPV6)) {
            continue;
        }
        let mut doomed = vec![];
        socket.dump(GET, family, &[], |payload| {
            if takes_part(payload, &addresses) {
                doomed.push(name(payload));
            }
        })?;
        for body in doomed {
            match socket.ask_for(DELETE, family, &body) {
                // It has ended by itself.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
    }
    Ok(())
}

fn takes_part(connection: &[u8], addresses: &BTreeSet<IpAddr>) -> bool {
    [ORIGINAL, REPLY].iter().any(|&side| {
        let ends = attribute(connection, side).and_then(|it| attribute(it, ADDRESSES));
        // Its attributes are the source and the destination.
        attributes(ends.unwrap_or_default())
            .filter_map(|(_, it)| read(it))
            .any(|it| addresses.contains(&it))
    })
}

fn read(address: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(address).map(|it| Ipv4Addr::from(it).into());
    let six = || <[u8; 16]>::try_from(address).map(|it| Ipv6Addr::from(it).into());
    four.or_else(|_| six()).ok()
}

/// What names a connection, as the kernel gave it.
fn name(connection: &[u8]) -> Vec<u8> {
    let side = attribute(connection, ORIGINAL).unwrap_or_default();
    let zone = attribute(connection, ZONE);
    let zone = zone.map(|it| crate::nfnetlink::plain(ZONE, it));
    [nested(ORIGINAL, side), zone.unwrap_or_default()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfnetlink::plain;

    fn connection<const LENGTH: usize>(
        original: [[u8; LENGTH]; 2],
        reply: [[u8; LENGTH]; 2],
    ) -> Vec<u8> {
        // The numbers of the attributes are others in each family, and say nothing here.
        let side = |kind, [from, to]: [[u8; LENGTH]; 2]| {
            let ends = [plain(1, &from), plain(2, &to)].concat();
            nested(kind, &nested(ADDRESSES, &ends))
        };
        [side(ORIGINAL, original), side(REPLY, reply)].concat()
    }

    #[test]
    fn a_connection_is_of_an_address_on_either_side_of_a_translation() {
        let (client, node, own, other) = ([9, 0, 0, 1], [9, 0, 0, 2], [10, 0, 0, 2], [10, 0, 0, 3]);
        let addresses = BTreeSet::from([IpAddr::from(own)]);
        let cases = [
            ([client, node], [own, client], true),
            ([own, client], [client, node], true),
            ([client, node], [other, client], false),
            ([client, node], [node, client], false),
        ];
        for (original, reply, expected) in cases {
            let it = connection(original, reply);
            assert_eq!(takes_part(&it, &addresses), expected, "{original:?}");
            assert_eq!(attribute(&name(&it), ORIGINAL), attribute(&it, ORIGINAL));
        }
        let [client6, own6] = ["2001:db8::1", "fd00::2"].map(|it| it.parse::<Ipv6Addr>().unwrap());
        let it = connection(
            [client6.octets(), own6.octets()],
            [own6.octets(), client6.octets()],
        );
        assert!(takes_part(&it, &BTreeSet::from([own6.into()])) && !takes_part(&it, &addresses));
        for length in 0..connection([own, own], [own, own]).len() {
            let torn = &connection([own, own], [own, own])[..length];
            let _ = (takes_part(torn, &addresses), name(torn));
        }
    }
}

//! Connections that the kernel remembers of an address: an old one would send packets to whoever has the address next.

use std::{io, net::Ipv4Addr};

use crate::nfnetlink::{Nfnetlink, attribute, attributes, nested};

const CONNTRACK: u16 = 1;
const GET: u16 = CONNTRACK << 8 | 1;
const DELETE: u16 = CONNTRACK << 8 | 2;
/// `AF_INET`.
const IPV4: u8 = 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ADDRESSES: u16 = 1;
const ZONE: u16 = 18;

/// Deletes every connection in which one of `addresses` takes part, on either side of a translation.
pub(crate) fn forget(socket: &mut Nfnetlink, addresses: &[Ipv4Addr]) -> io::Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let mut doomed = vec![];
    socket.dump(GET, IPV4, &[], |payload| {
        if takes_part(payload, addresses) {
            doomed.push(name(payload));
        }
    })?;
    for body in doomed {
        match socket.ask_for(DELETE, IPV4, &body) {
            // It has ended by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

fn takes_part(connection: &[u8], addresses: &[Ipv4Addr]) -> bool {
    [ORIGINAL, REPLY].iter().any(|&side| {
        let ends = attribute(connection, side).and_then(|it| attribute(it, ADDRESSES));
        // Its attributes are the source and the destination.
        attributes(ends.unwrap_or_default())
            .filter_map(|(_, it)| Some(Ipv4Addr::from(*<&[u8; 4]>::try_from(it).ok()?)))
            .any(|it| addresses.contains(&it))
    })
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

    fn connection(original: [[u8; 4]; 2], reply: [[u8; 4]; 2]) -> Vec<u8> {
        let side = |kind, [from, to]: [[u8; 4]; 2]| {
            let ends = [plain(1, &from), plain(2, &to)].concat();
            nested(kind, &nested(ADDRESSES, &ends))
        };
        [side(ORIGINAL, original), side(REPLY, reply)].concat()
    }

    #[test]
    fn a_connection_is_of_an_address_on_either_side_of_a_translation() {
        let (client, node, own, other) = ([9, 0, 0, 1], [9, 0, 0, 2], [10, 0, 0, 2], [10, 0, 0, 3]);
        let addresses = [Ipv4Addr::from(own)];
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
        for length in 0..connection([own, own], [own, own]).len() {
            let torn = &connection([own, own], [own, own])[..length];
            let _ = (takes_part(torn, &addresses), name(torn));
        }
    }
}

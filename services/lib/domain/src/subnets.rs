//! Parts of the node's subnet that are kept for one owner each: where one can be, and what is left for all others. Networks
//! are compared as numbers, never as text.

use std::{collections::BTreeMap, net::Ipv4Addr, ops::RangeInclusive};

use ipnet::Ipv4Net;

use crate::ipam::{self, Span};

/// The parts by the identifier of their owner.
pub type Reserved = BTreeMap<String, Ipv4Net>;

/// How many parts there can be: a Create without one steps over them all.
pub const RESERVED_MAX: usize = 1024;
/// In bytes.
pub const IDENTIFIER_MAX: usize = 128;
/// The smallest part, by prefix length.
const SMALLEST: u8 = 30;

/// The prefix lengths that a part of `subnet` can have.
pub fn prefix_range(subnet: Ipv4Net) -> RangeInclusive<u8> {
    subnet.prefix_len() + 1..=SMALLEST
}

/// Says what is wrong with an identifier.
pub fn check_identifier(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if text.len() > IDENTIFIER_MAX {
        let length = text.len();
        return Err(format!(
            "is {length} bytes long, the limit is {IDENTIFIER_MAX}"
        ));
    }
    if text.contains(char::is_control) {
        return Err("must not contain control characters".to_owned());
    }
    Ok(())
}

/// The addresses that sandboxes can have of a part: none where the node has another subnet by now.
pub fn span(subnet: Ipv4Net, part: Ipv4Net) -> Span {
    let (own, of) = (ipam::span(subnet), whole(part));
    *own.start().max(of.start())..=*own.end().min(of.end())
}

/// The addresses of `subnet` that are in no part, in order.
pub fn open_spans(subnet: Ipv4Net, reserved: &Reserved) -> Vec<Span> {
    let all = ipam::span(subnet);
    let mut parts: Vec<Span> = reserved.values().map(|it| span(subnet, *it)).collect();
    parts.retain(|it| !it.is_empty());
    parts.sort_by_key(|it| *it.start());
    let mut open = vec![];
    let mut next = *all.start();
    for part in parts {
        if next < *part.start() {
            open.push(next..=part.start() - 1);
        }
        next = next.max(part.end() + 1);
    }
    if all.contains(&next) {
        open.push(next..=*all.end());
    }
    open
}

/// The lowest part of this size in which nothing is: no other part, none of the addresses in use, and none of those that no
/// sandbox can have.
pub fn find(
    subnet: Ipv4Net,
    prefix_length: u8,
    reserved: &Reserved,
    in_use: impl IntoIterator<Item = Ipv4Addr>,
) -> Option<Ipv4Net> {
    let (first, last) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
    let single = |it: u32| it..=it;
    let mut obstacles = vec![single(first), single(first + 1), single(last)];
    obstacles.extend(reserved.values().map(|it| whole(*it)));
    obstacles.extend(in_use.into_iter().map(|it| single(it.into())));
    obstacles.sort_by_key(|it| *it.start());

    let size = 1_u64 << (32 - u32::from(prefix_length));
    let mut candidate = u64::from(first);
    for obstacle in obstacles {
        let (begin, end) = (u64::from(*obstacle.start()), u64::from(*obstacle.end()));
        if end < candidate {
            continue;
        }
        if begin >= candidate + size {
            break;
        }
        candidate = (end + 1).next_multiple_of(size);
    }
    let fits = candidate + size <= u64::from(last) + 1;
    let network = u32::try_from(candidate).ok().filter(|_| fits)?;
    Ipv4Net::new(network.into(), prefix_length).ok()
}

fn whole(net: Ipv4Net) -> Span {
    net.network().into()..=net.broadcast().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn reserved(parts: &[&str]) -> Reserved {
        let parts = parts.iter().map(|it| ((*it).to_owned(), net(it)));
        parts.collect()
    }

    type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str], Option<&'a str>);

    #[test]
    #[rustfmt::skip]
    fn the_lowest_part_is_found_in_which_nothing_is() {
        let cases: &[Case] = &[
            ("that of the gateway is not one", &[],                                 &[],               Some("10.0.0.16/28")),
            ("another part is skipped",        &["10.0.0.16/28"],                   &[],               Some("10.0.0.32/28")),
            ("also a smaller one inside",      &["10.0.0.20/30"],                   &[],               Some("10.0.0.32/28")),
            ("and a larger one around",        &["10.0.0.0/25"],                    &[],               Some("10.0.0.128/28")),
            ("a gap is filled",                &["10.0.0.16/28", "10.0.0.48/28"],   &[],               Some("10.0.0.32/28")),
            ("an address in use is skipped",   &[],                                 &["10.0.0.31"],    Some("10.0.0.32/28")),
            ("its neighbour is no matter",     &[],                                 &["10.0.0.15"],    Some("10.0.0.16/28")),
            ("that of the last is not one",    &["10.0.0.0/25", "10.0.0.128/26", "10.0.0.192/27", "10.0.0.224/28"], &[], None),
            ("what lies outside is no matter", &["10.0.1.0/24", "9.0.0.0/8"],       &["10.0.1.1"],     Some("10.0.0.16/28")),
        ];
        for (case, parts, in_use, expected) in cases {
            let in_use = in_use.iter().map(|it| it.parse().unwrap());
            let found = find(net("10.0.0.0/24"), 28, &reserved(parts), in_use);
            assert_eq!(found, expected.map(net), "{case}");
        }
    }

    #[test]
    fn a_subnet_at_the_end_of_all_addresses_has_parts_like_any_other() {
        let subnet = net("255.255.255.0/24");
        let parts = reserved(&["255.255.255.0/25"]);
        let found = find(subnet, 26, &parts, []);
        assert_eq!(found, Some(net("255.255.255.128/26")));
        let parts = reserved(&["255.255.255.0/25", "255.255.255.128/26"]);
        assert_eq!(find(subnet, 26, &parts, []), None);
        let open = open_spans(subnet, &parts);
        assert_eq!(ipam::size(&open), 63, "{open:?}");
    }

    #[test]
    fn what_is_open_is_what_no_part_has() {
        let subnet = net("10.0.0.0/24");
        let spans = |parts: &[&str]| -> Vec<(u8, u8)> {
            let host = |it: &u32| it.to_be_bytes()[3];
            let open = open_spans(subnet, &reserved(parts));
            open.iter()
                .map(|it| (host(it.start()), host(it.end())))
                .collect()
        };
        assert_eq!(spans(&[]), [(2, 254)]);
        let parts = ["10.0.0.64/26", "10.0.0.32/28"];
        assert_eq!(spans(&parts), [(2, 31), (48, 63), (128, 254)]);
        assert_eq!(spans(&["10.0.0.0/25"]), [(128, 254)]);
        assert_eq!(spans(&["10.0.0.128/25"]), [(2, 127)]);
        assert_eq!(
            spans(&["10.0.0.0/16"]),
            [],
            "the node's subnet was larger once"
        );
        assert_eq!(spans(&["10.0.1.0/24"]), [(2, 254)], "or another one");
        assert!(span(subnet, net("10.0.1.0/24")).is_empty());
        assert_eq!(ipam::size(&[span(subnet, net("10.0.0.64/26"))]), 64);
    }

    #[test]
    fn an_identifier_is_a_line_of_text() {
        for good in ["web", "app/web 1", &"x".repeat(IDENTIFIER_MAX), "größe"] {
            check_identifier(good).unwrap();
        }
        for bad in ["", "a\nb", "\0", &"x".repeat(IDENTIFIER_MAX + 1)] {
            check_identifier(bad).unwrap_err();
        }
    }
}

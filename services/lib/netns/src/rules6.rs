//! What the instance's table holds for IPv6, where sandboxes have it: chains that those of all packets lead to, and the
//! elements of one sandbox. Pure. Each rule has its like among those of IPv4, which say why.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
};

use berth_domain::{Egress, SandboxSpec, ipam};
use ipnet::{IpNet, Ipv6Net};

use crate::{
    admit,
    element::Part,
    named,
    rules::{Fenced, hardware_address},
};

/// Counts what was refused of a sandbox, by its link: it has more than one address of this kind.
pub(crate) const DENIALS6: &str = "denials6";

/// The node's end of every link, and the way of a sandbox to everything: a link knows no other neighbour.
pub(crate) const NEXT_HOP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// To whom a sandbox calls when it looks for the hardware of [`NEXT_HOP`].
const NEXT_HOP_GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);

/// The prefix lengths of lists are multiples of this. A network of another length is listed as those of the next multiple
/// that it consists of, eight at most, so that a packet is looked up as often as with IPv4 and not four times so.
const STEP: u8 = 4;

/// What nobody beyond the node answers for, or answers with what no sandbox may know.
const FLOOR: [&str; 15] = [
    // IPv4 in other clothes: this node, or a translator beyond it, would take them off behind the rules.
    "::/96",
    "::ffff:0:0/96",
    "64:ff9b::7f00:0/104",
    "64:ff9b::a9fe:0/112",
    "64:ff9b::6464:64c8",
    "64:ff9b::a83f:8110",
    "64:ff9b::c000:c0",
    "2001::/32",
    "2002::/16",
    "fe80::/10",
    "fec0::/10",
    // The metadata and the credentials of clouds.
    "fd00:ec2::23",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
];

/// What the rules for IPv6 depend on.
#[derive(Clone, Debug)]
pub(crate) struct Frame6 {
    pub(crate) subnet: Ipv6Net,
    pub(crate) gateway: Ipv6Addr,
}

/// The pieces of text that have a place among the rules of all packets.
#[derive(Debug, Default)]
pub(crate) struct Text6 {
    /// Sets, maps and chains.
    pub(crate) own: String,
    /// At the beginning of the chains `from_sandbox`, `to_node`, `outward` and `inward`, and in `forward` before those.
    pub(crate) from_sandbox: String,
    pub(crate) to_node: String,
    pub(crate) forward: String,
    pub(crate) outward: String,
    pub(crate) inward: String,
    /// In the chains that translate.
    pub(crate) translate: String,
    pub(crate) departure: String,
}

/// The link-local address that the sandbox with this IPv4 address has: that which its hardware address gives (RFC 4291).
pub(crate) fn link_local(ip: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = hardware_address(ip);
    let pair = u16::from_be_bytes;
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        pair([a ^ 2, b]),
        pair([c, 0xff]),
        pair([0xfe, d]),
        pair([e, f]),
    )
}

/// Set, key and value of every element of IPv6 that stands for a sandbox; none where it has no such address.
pub(crate) fn elements(of: &Fenced) -> Vec<(String, Vec<Part>, Vec<Part>)> {
    let (Some(&v4), false) = (of.addresses.first(), of.addresses6.is_empty()) else {
        return vec![];
    };
    let mut all = vec![];
    let mut add = |set: &str, key: Vec<Part>, value: Vec<Part>| {
        all.push((set.to_owned(), key, value));
    };
    let link = || Part::Link(of.link.clone());
    add(DENIALS6, vec![link()], vec![]);
    for ip in of.addresses6.iter().copied().chain([link_local(v4)]) {
        let hardware = Part::Hardware(hardware_address(v4));
        add(
            "sources6",
            vec![link(), hardware, Part::Address6(ip)],
            vec![],
        );
    }
    for &ip in &of.addresses6 {
        let own = || vec![Part::Address6(ip)];
        match &of.egress {
            Egress::Open => {}
            Egress::Deny => add("closed6", own(), vec![]),
            Egress::Allow(list) => {
                add("listed6", own(), vec![]);
                for it in list {
                    let IpNet::V6(net) = it.net else { continue };
                    for net in in_steps(net) {
                        let mut key = vec![Part::Address6(ip), Part::Address6(net.network())];
                        let kind = match it.port {
                            None => "any6",
                            Some((protocol, port)) => {
                                key.extend([Part::Protocol(protocol), Part::Port(port)]);
                                "port6"
                            }
                        };
                        add(&format!("{kind}_{}", net.prefix_len()), key, vec![]);
                    }
                }
            }
        }
        for &label in &of.labels {
            add(
                "members6",
                vec![Part::Mark(label), Part::Address6(ip)],
                vec![],
            );
        }
        for (place, &label) in of.lets_in.iter().enumerate() {
            add(&format!("lets_in6_{place}"), own(), vec![Part::Mark(label)]);
        }
    }
    if let Some(&ip) = of.addresses6.first() {
        for &(protocol, outside, inside) in &of.node_ports {
            let key = vec![Part::Protocol(protocol), Part::Port(outside)];
            let value = vec![Part::Address6(ip), Part::Port(inside)];
            add("node_ports6", key, value);
        }
    }
    all
}

/// The networks of a length that is listed, of which this one consists.
fn in_steps(net: Ipv6Net) -> impl Iterator<Item = Ipv6Net> {
    let length = net.prefix_len().next_multiple_of(STEP);
    net.subnets(length)
        .expect("it is no shorter, and at most 128")
}

/// All sets and maps.
pub(crate) fn sets() -> Vec<String> {
    let plain = [
        "sources6",
        DENIALS6,
        "closed6",
        "listed6",
        "members6",
        "node_ports6",
    ];
    let plain = plain.into_iter().map(str::to_owned);
    let doors = (0..SandboxSpec::ALLOW_FROM_MAX).map(|it| format!("lets_in6_{it}"));
    let lists = lengths().flat_map(|it| [format!("any6_{it}"), format!("port6_{it}")]);
    plain.chain(doors).chain(lists).collect()
}

fn lengths() -> impl DoubleEndedIterator<Item = u8> {
    (0..=128 / STEP).map(|it| it * STEP)
}

/// `group` is that of the links of sandboxes; `reachable_from` are those who may open connections to them.
pub(crate) fn text(frame: &Frame6, group: u32, reachable_from: &[IpNet]) -> Text6 {
    let Frame6 { subnet, gateway } = frame;
    let (lists, allowed) = lists();
    let named_first = named::first_rules().replace("goto denied", "goto denied6");
    let named_last = named::last_rules();
    let (doors, let_in) = doors();
    let floor = FLOOR.join(", ");
    let six = |it: &IpNet| matches!(it, IpNet::V6(_)).then(|| it.to_string());
    let reachable: Vec<_> = reachable_from.iter().filter_map(six).collect();
    let answer = admit::answer(group, ("ip6", "6"), "", &floor, &reachable);
    let reachable = match reachable.is_empty() {
        true => String::new(),
        false => format!("\t\tip6 saddr {{ {} }} goto admit\n", reachable.join(", ")),
    };
    let own_error = "ct state related iifname . ether saddr . ct reply ip6 saddr @sources6 accept";
    let strange_error = format!(
        "iifgroup {group} ct state related iifname . ether saddr . ct original ip6 saddr != @sources6 goto denied6"
    );
    let discovery = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255";
    // What has an address of everywhere is known everywhere.
    let masquerade = match ipam::is_unique_local(*subnet) {
        true => format!("\t\tip6 saddr {subnet} oifgroup != {group} masquerade\n"),
        false => String::new(),
    };
    let own = format!(
        "\tset sources6 {{ type ifname . ether_addr . ipv6_addr; }}\n\
         \tset {DENIALS6} {{ type ifname; counter; }}\n\
         \tset closed6 {{ type ipv6_addr; }}\n\
         \tset listed6 {{ type ipv6_addr; }}\n\
         \tset members6 {{ type mark . ipv6_addr; }}\n\
         \tmap node_ports6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}\n\
         {doors}{lists}\
         \tchain from_sandbox6 {{\n\
         \t\ticmpv6 type {{ mld-listener-report, mld-listener-done, mld2-listener-report, nd-router-solicit }} drop\n\
         \t\tiifname . ether saddr . ip6 saddr != @sources6 goto spoofed\n\
         \t\t{discovery} ip6 daddr {{ {NEXT_HOP}, {NEXT_HOP_GROUP} }} accept\n\
         \t\ticmpv6 type {{ nd-router-advert, nd-redirect }} goto dropped\n\
         \t\tip6 saddr fe80::/10 goto denied6\n\
         \t\tip6 daddr ff00::/8 drop\n\
         \t\tip6 daddr {{ {floor} }} goto denied6\n\
         \t}}\n\
         {answer}\
         \tchain denied6 {{\n\
         \t\tiifname @{DENIALS6} goto refused\n\
         \t\tdrop\n\
         \t}}\n\
         \tchain to_node6 {{\n\
         \t\tct state established ct direction reply accept\n\
         \t\t{own_error}\n\
         \t\t{discovery} accept\n\
         \t\tip6 daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 goto admit\n\
         \t\tip6 daddr {gateway} icmpv6 type echo-request goto admit\n\
         \t\tgoto denied6\n\
         \t}}\n\
         \tchain outward6 {{\n\
         \t\tip6 saddr @closed6 goto denied6\n\
         \t\tip6 saddr @listed6 jump allow_list6\n\
         \t\toifgroup {group} goto sideways6\n\
         \t\tgoto admit\n\
         \t}}\n\
         \tchain allow_list6 {{\n\
         {named_first}{allowed}{named_last}\
         \t\tgoto denied6\n\
         \t}}\n\
         \tchain sideways6 {{\n\
         \t\tct status dnat goto admit\n\
         {let_in}\
         \t\tmeta mark set 0\n\
         \t\tgoto denied6\n\
         \t}}\n\
         \tchain inward6 {{\n\
         \t\tct status dnat goto admit\n\
         {reachable}\
         \t\tcounter drop\n\
         \t}}\n"
    );
    let leads_to = |chain: &str| format!("\t\tmeta nfproto ipv6 goto {chain}\n");
    Text6 {
        own,
        from_sandbox: leads_to("from_sandbox6"),
        to_node: leads_to("to_node6"),
        forward: format!(
            "\t\t{own_error}\n\
             \t\t{strange_error}\n\
             \t\tip6 daddr {subnet} iifgroup {group} oifgroup != {group} goto denied6\n\
             \t\tip6 daddr {subnet} oifgroup != {group} drop\n"
        ),
        outward: leads_to("outward6"),
        inward: leads_to("inward6"),
        // Neither loopback nor link-local addresses can be led anywhere: the kernel forwards none.
        translate:
            "\t\tip6 daddr != { ::1, fe80::/10 } fib daddr type local meta l4proto { tcp, udp } \
                    dnat ip6 addr . port to meta l4proto . th dport map @node_ports6\n"
                .to_owned(),
        departure: format!(
            "\t\tip6 saddr {subnet} oifgroup {group} ct status dnat snat ip6 to {gateway}\n\
             {masquerade}"
        ),
    }
}

/// What is at the place of [`Text6::from_sandbox`] where sandboxes have no IPv6.
pub(crate) fn closed() -> Text6 {
    Text6 {
        from_sandbox: "\t\tmeta nfproto ipv6 drop\n".to_owned(),
        ..Text6::default()
    }
}

/// The sets of the lists of destinations, and the rules that look them up: the longest first.
fn lists() -> (String, String) {
    let (mut lists, mut allowed) = (String::new(), String::new());
    for length in lengths().rev() {
        let mask = Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, length).netmask();
        let _ = write!(
            lists,
            "\tset any6_{length} {{ type ipv6_addr . ipv6_addr; }}\n\
             \tset port6_{length} {{ type ipv6_addr . ipv6_addr . inet_proto . inet_service; }}\n"
        );
        let _ = write!(
            allowed,
            "\t\tip6 saddr . ip6 daddr & {mask} . meta l4proto . th dport @port6_{length} return\n\
             \t\tip6 saddr . ip6 daddr & {mask} @any6_{length} return\n"
        );
    }
    (lists, allowed)
}

/// The maps of the labels that are let in, and the rules that look them up.
fn doors() -> (String, String) {
    let (mut doors, mut let_in) = (String::new(), String::new());
    for place in 0..SandboxSpec::ALLOW_FROM_MAX {
        let _ = writeln!(doors, "\tmap lets_in6_{place} {{ type ipv6_addr : mark; }}");
        let _ = writeln!(
            let_in,
            "\t\tmeta mark set ip6 daddr map @lets_in6_{place} \
             meta mark . ip6 saddr @members6 meta mark set 0 goto admit"
        );
    }
    (doors, let_in)
}

#[cfg(test)]
mod tests {
    use berth_domain::{Destination, Protocol};

    use super::*;

    fn fenced(egress: Egress) -> Fenced {
        Fenced {
            link: "bt01".into(),
            addresses: vec![Ipv4Addr::new(10, 1, 0, 2)],
            addresses6: vec!["fd00::a01:2".parse().unwrap()],
            egress,
            ..Fenced::default()
        }
    }

    /// The elements as `set key`, without those that every sandbox has.
    fn beyond_the_usual(fenced: &Fenced) -> Vec<String> {
        let all = fenced.elements().into_iter();
        let others = all.filter(|it| !["sources6", DENIALS6].contains(&it.set.as_str()));
        let six = others.filter(|it| it.set.contains('6'));
        six.map(|it| format!("{} {it}", it.set)).collect()
    }

    #[test]
    fn a_sandbox_sends_as_its_address_and_as_that_of_its_hardware_and_is_counted() {
        let elements = fenced(Egress::Open).elements().into_iter();
        let elements: Vec<_> = elements
            .map(|it| format!("{} {it}", it.set))
            .filter(|it| it.contains('6'))
            .collect();
        assert_eq!(
            elements,
            [
                "denials6 \"bt01\"",
                "sources6 \"bt01\" . 02:42:0a:01:00:02 . fd00::a01:2",
                "sources6 \"bt01\" . 02:42:0a:01:00:02 . fe80::42:aff:fe01:2",
            ]
        );
        let without = Fenced {
            addresses6: vec![],
            ..fenced(Egress::Deny)
        };
        assert_eq!(super::elements(&without), []);
    }

    #[test]
    #[rustfmt::skip]
    fn what_a_spec_asks_for_stands_in_these_elements() {
        let to = |net: &str, port| Destination { net: net.parse().unwrap(), port };
        let list = vec![
            to("2001:db8::/32", None), to("::/0", Some((Protocol::Udp, 123))), to("fd00:2::/31", None),
            to("10.0.0.0/8", None), to("fd00::7/128", Some((Protocol::Tcp, 80))),
        ];
        let ports = Fenced { node_ports: vec![(Protocol::Tcp, 8080, 80)], ..fenced(Egress::Open) };
        let labels = Fenced { labels: vec![3], lets_in: vec![4, 5], ..fenced(Egress::Open) };
        let cases: [(Fenced, &[&str]); 6] = [
            (fenced(Egress::Open), &[]),
            (fenced(Egress::Deny), &["closed6 fd00::a01:2"]),
            (fenced(Egress::Allow(list)), &[
                "any6_32 fd00::a01:2 . 2001:db8::",
                "any6_32 fd00::a01:2 . fd00:2::", "any6_32 fd00::a01:2 . fd00:3::",
                "listed6 fd00::a01:2",
                "port6_0 fd00::a01:2 . :: . udp . 123",
                "port6_128 fd00::a01:2 . fd00::7 . tcp . 80",
            ]),
            // Who lists IPv4 alone reaches nothing by IPv6.
            (fenced(Egress::Allow(vec![to("0.0.0.0/0", None)])), &["listed6 fd00::a01:2"]),
            (ports, &["node_ports6 tcp . 8080 : fd00::a01:2 . 80"]),
            (labels, &["lets_in6_0 fd00::a01:2 : 0x4", "lets_in6_1 fd00::a01:2 : 0x5", "members6 0x3 . fd00::a01:2"]),
        ];
        for (fenced, expected) in cases {
            assert_eq!(beyond_the_usual(&fenced), expected, "{fenced:?}");
            for (set, key, _) in super::elements(&fenced) {
                assert!(sets().contains(&set), "{key:?} is in no set");
            }
        }
    }

    #[test]
    fn a_network_of_any_length_is_eight_of_a_listed_one_at_most() {
        for length in 0..=128 {
            let net = Ipv6Net::new_assert("fd00::".parse().unwrap(), length).trunc();
            let all: Vec<_> = in_steps(net).collect();
            assert!((1..=8).contains(&all.len()), "{net}: {all:?}");
            assert!(all.iter().all(|it| it.prefix_len().is_multiple_of(STEP)));
            let addresses: u128 = all
                .iter()
                .map(|it| 1_u128.rotate_right(u32::from(it.prefix_len())))
                .fold(0, u128::wrapping_add);
            assert_eq!(
                addresses,
                1_u128.rotate_right(u32::from(length)),
                "all of {net}"
            );
            assert!(all.iter().all(|it| net.contains(it)), "and nothing else");
        }
    }

    #[test]
    fn every_set_is_declared_and_only_what_nobody_knows_is_masqueraded() {
        let frame = |subnet: &str| Frame6 {
            subnet: subnet.parse().unwrap(),
            gateway: "fd00::a01:1".parse().unwrap(),
        };
        let from = ["192.0.2.0/24", "2001:db8:1::/48"].map(|it| it.parse().unwrap());
        let local = text(&frame("fd00::/64"), 7, &from);
        for set in sets() {
            let declared = format!(" {set} {{ type ");
            assert!(local.own.contains(&declared), "{set} is declared");
        }
        assert!(
            local
                .own
                .contains("ip6 saddr { 2001:db8:1::/48 } goto admit")
        );
        assert!(local.departure.contains("masquerade"));
        let global = text(&frame("2001:db8::/64"), 7, &[]);
        assert!(!global.departure.contains("masquerade"));
        assert!(!global.own.contains("} goto admit\n\t\tcounter drop"));
        assert_eq!(closed().own, "");
    }
}

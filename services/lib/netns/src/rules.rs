//! What the instance's tables hold: the rules that all sandboxes share, as text, and the elements of one sandbox in their
//! sets and maps. Pure. The way of a packet through them is drawn in docs/network.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use berth_domain::{Egress, Protocol, Sandbox, SandboxSpec};
use ipnet::{IpNet, Ipv4Net};

use crate::{
    admit::{self, Abilities},
    element::{Element, Family, Part},
    named::{self, NAMERS, Owner},
    rules6::{self, Frame6},
};

/// Counts what was refused of a sandbox, by its address.
pub(crate) const DENIALS: &str = "denials";
/// Counts what a sandbox sent in another's name, by its link.
pub(crate) const SPOOFS: &str = "spoofs";

/// What no sandbox reaches: the node itself, and where clouds answer machines with what is theirs: link-local, then those of
/// Alibaba, Azure and Oracle.
const FLOOR: [&str; 5] = [
    "127.0.0.0/8",
    "169.254.0.0/16",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
];

/// What all rules of an instance depend on.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) instance: String,
    pub(crate) subnet: Ipv4Net,
    pub(crate) gateway: Ipv4Addr,
    /// Who beyond the node may open connections to the addresses of sandboxes.
    pub(crate) reachable_from: Vec<IpNet>,
    /// `None`: sandboxes have no IPv6.
    pub(crate) v6: Option<Frame6>,
    /// Connections that one sandbox may have opened at a time; 0 for no limit.
    pub(crate) connections_max: u32,
    pub(crate) abilities: Abilities,
}

/// What the rules need to know of one sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fenced {
    pub(crate) link: String,
    pub(crate) addresses: Vec<Ipv4Addr>,
    pub(crate) addresses6: Vec<Ipv6Addr>,
    /// Protocol, port of the node, port of the sandbox.
    pub(crate) node_ports: Vec<(Protocol, u16, u16)>,
    pub(crate) egress: Egress,
    /// The numbers of its labels, and of the labels that it lets in.
    pub(crate) labels: Vec<u32>,
    pub(crate) lets_in: Vec<u32>,
    /// Of a sandbox that reaches others by name.
    pub(crate) namer: Option<Owner>,
}

/// Numbers for labels, since packets carry no texts. A number is never given twice, so that no element of a sandbox that is
/// gone can be taken for another's.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    numbers: BTreeMap<String, (u32, usize)>,
    last: u32,
}

impl Labels {
    /// Takes note of one more user of each label.
    pub(crate) fn take(&mut self, labels: impl IntoIterator<Item = String>) -> Vec<u32> {
        let number = |label| {
            let (number, users) = self.numbers.entry(label).or_insert_with(|| {
                self.last += 1;
                (self.last, 0)
            });
            *users += 1;
            *number
        };
        labels.into_iter().map(number).collect()
    }

    /// Forgets one user of each number, and the labels that nobody uses any more.
    pub(crate) fn give_back(&mut self, numbers: &[u32]) {
        self.numbers.retain(|_, (number, users)| {
            *users -= numbers.iter().filter(|it| *it == number).count();
            *users > 0
        });
    }
}

impl Fenced {
    pub(crate) fn of(sandbox: &Sandbox, link: String, labels: &mut Labels) -> Self {
        let spec: &SandboxSpec = &sandbox.spec;
        let (mut addresses, mut addresses6) = (vec![], vec![]);
        for it in &sandbox.addresses {
            match it.addr() {
                IpAddr::V4(ip) => addresses.push(ip),
                IpAddr::V6(ip) => addresses6.push(ip),
            }
        }
        Self {
            link,
            addresses,
            addresses6,
            node_ports: sandbox.node_ports().collect(),
            egress: spec.network.egress.clone(),
            labels: labels.take(
                spec.labels
                    .iter()
                    .map(|(key, value)| format!("{key}={value}")),
            ),
            lets_in: labels.take(spec.network.allow_from.iter().cloned()),
            namer: (!spec.network.egress_names.is_empty()).then(|| Owner::of(sandbox.generation)),
        }
    }

    /// Every element that stands for this sandbox.
    pub(crate) fn elements(&self) -> BTreeSet<Element> {
        let mut all = BTreeSet::new();
        let mut add = |family, set: String, key: Vec<Part>, value: Vec<Part>| {
            all.insert(Element {
                family,
                set,
                key,
                value,
            });
        };
        let link = || Part::Link(self.link.clone());
        for &ip in &self.addresses {
            let source = vec![
                link(),
                Part::Hardware(hardware_address(ip)),
                Part::Address(ip),
            ];
            for family in Family::ALL {
                add(family, "sources".into(), source.clone(), vec![]);
            }
            let own = || vec![Part::Address(ip)];
            add(Family::Inet, DENIALS.into(), own(), vec![]);
            match &self.egress {
                Egress::Open => {}
                Egress::Deny => add(Family::Inet, "closed".into(), own(), vec![]),
                Egress::Allow(list) => {
                    add(Family::Inet, "listed".into(), own(), vec![]);
                    for it in list {
                        let IpNet::V4(net) = it.net else { continue };
                        let mut key = vec![Part::Address(ip), Part::Address(net.network())];
                        let kind = match it.port {
                            None => "any",
                            Some((protocol, port)) => {
                                key.extend([Part::Protocol(protocol), Part::Port(port)]);
                                "port"
                            }
                        };
                        let set = format!("{kind}{}", net.prefix_len());
                        add(Family::Inet, set, key, vec![]);
                    }
                }
            }
            for &label in &self.labels {
                let key = vec![Part::Mark(label), Part::Address(ip)];
                add(Family::Inet, "members".into(), key, vec![]);
            }
            for (place, &label) in self.lets_in.iter().enumerate() {
                let value = vec![Part::Mark(label)];
                add(Family::Inet, format!("lets_in{place}"), own(), value);
            }
        }
        // The node has each port once, so it leads to the first address.
        if let Some(&ip) = self.addresses.first() {
            for &(protocol, outside, inside) in &self.node_ports {
                let key = vec![Part::Protocol(protocol), Part::Port(outside)];
                let value = vec![Part::Address(ip), Part::Port(inside)];
                add(Family::Inet, "node_ports".into(), key, value);
            }
        }
        for (set, key, value) in rules6::elements(self) {
            add(Family::Inet, set, key, value);
        }
        if !self.addresses.is_empty() {
            add(Family::Inet, SPOOFS.into(), vec![link()], vec![]);
            if let Some(owner) = self.namer {
                let value = vec![Part::Mark(owner.number())];
                add(Family::Inet, NAMERS.into(), vec![link()], value);
            }
        }
        all
    }
}

/// `02:42` and the address: local, of one machine, unique among its sandboxes.
pub(crate) fn hardware_address(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x02, 0x42, a, b, c, d]
}

/// The group that all links of an instance are in from the moment when they are made, so that no link is ever without rules.
pub(crate) fn group(instance: &str) -> u32 {
    // FNV-1a. Group 0 is that of all other links.
    let hash = instance.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash.max(1)
}

pub(crate) fn table(instance: &str) -> String {
    format!("berth-{instance}")
}

/// The text that puts both tables, with these elements and what each has counted so far, in the place of what there is.
pub(crate) fn render<'a>(
    frame: &Frame,
    elements: impl IntoIterator<Item = &'a Element>,
    counted: &BTreeMap<Element, (u64, u64)>,
) -> String {
    let name = table(&frame.instance);
    let mut text = removal(&frame.instance);
    text += &rules(frame);
    let mut sets: BTreeMap<(Family, &str), Vec<String>> = BTreeMap::new();
    for element in elements {
        let (packets, bytes) = counted.get(element).copied().unwrap_or_default();
        let count = match packets {
            0 => String::new(),
            _ => format!(" counter packets {packets} bytes {bytes}"),
        };
        sets.entry((element.family, &element.set))
            .or_default()
            .push(format!("{element}{count}"));
    }
    for ((family, set), elements) in sets {
        let elements = elements.join(", ");
        let _ = writeln!(text, "add element {family} {name} {set} {{ {elements} }}");
    }
    text
}

/// The text that removes the tables, whether they are there or not.
pub(crate) fn removal(instance: &str) -> String {
    let name = table(instance);
    // `ip`: of version 0.1.0, whose table had no other rule than to masquerade.
    ["inet", "arp", "ip"]
        .iter()
        .map(|family| format!("table {family} {name}\ndelete table {family} {name}\n"))
        .collect()
}

/// All sets and maps for IPv4 and for ARP.
pub(crate) fn sets() -> Vec<(Family, String)> {
    let plain = [
        "sources",
        SPOOFS,
        DENIALS,
        "closed",
        "listed",
        "members",
        "node_ports",
        NAMERS,
    ];
    let plain = plain.into_iter().map(str::to_owned);
    let doors = (0..SandboxSpec::ALLOW_FROM_MAX).map(|it| format!("lets_in{it}"));
    let lists = (0..=32).flat_map(|it| [format!("any{it}"), format!("port{it}")]);
    let inet = plain.chain(doors).chain(lists).map(|it| (Family::Inet, it));
    inet.chain([(Family::Arp, "sources".to_owned())]).collect()
}

fn rules(frame: &Frame) -> String {
    let Frame {
        instance,
        subnet,
        gateway,
        reachable_from,
        v6,
        connections_max,
        abilities,
    } = frame;
    let (name, group) = (table(instance), group(instance));
    let version = env!("CARGO_PKG_VERSION");
    // No node port takes the name server from the sandboxes.
    let own_names = format!("ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept");
    let floor = FLOOR.join(", ");
    // About a connection that leads to its sender. One that is about those of others, which it would end or narrow, is denied.
    let own_error = "ct state related iifname . ether saddr . ct reply ip saddr @sources accept";
    let strange_error = format!(
        "iifgroup {group} ct state related iifname . ether saddr . ct original ip saddr != @sources goto denied"
    );
    let translate = "fib daddr type local meta l4proto { tcp, udp } \
                     dnat ip addr . port to meta l4proto . th dport map @node_ports";
    let mut lists = String::new();
    let mut allowed = String::new();
    // The longest first: who lists single hosts is served first.
    for length in (0..=32).rev() {
        let mask = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, length).netmask();
        let _ = write!(
            lists,
            "\tset any{length} {{ type ipv4_addr . ipv4_addr; }}\n\
             \tset port{length} {{ type ipv4_addr . ipv4_addr . inet_proto . inet_service; }}\n"
        );
        let _ = write!(
            allowed,
            "\t\tip saddr . ip daddr & {mask} . meta l4proto . th dport @port{length} return\n\
             \t\tip saddr . ip daddr & {mask} @any{length} return\n"
        );
    }
    let (named_sets, named_first) = (named::declarations(), named::first_rules());
    let named_last = named::last_rules();
    let mut doors = String::new();
    let mut let_in = String::new();
    for place in 0..SandboxSpec::ALLOW_FROM_MAX {
        let _ = writeln!(doors, "\tmap lets_in{place} {{ type ipv4_addr : mark; }}");
        let _ = writeln!(
            let_in,
            "\t\tmeta mark set ip daddr map @lets_in{place} \
             meta mark . ip saddr @members meta mark set 0 goto admit"
        );
    }
    let four = |it: &IpNet| matches!(it, IpNet::V4(_)).then(|| it.to_string());
    let reachable: Vec<_> = reachable_from.iter().filter_map(four).collect();
    let answer_first = match v6 {
        Some(_) => "\t\tmeta nfproto ipv6 goto answer6\n",
        None => "",
    };
    let known = admit::known(group);
    let answer = admit::answer(group, ("ip", ""), answer_first, &floor, &reachable);
    let shared = admit::shared(group, *connections_max, *abilities, v6.is_some());
    let reachable = match reachable.is_empty() {
        true => String::new(),
        false => format!("\t\tip saddr {{ {} }} goto admit\n", reachable.join(", ")),
    };
    let six = match v6 {
        Some(v6) => rules6::text(v6, group, reachable_from),
        None => rules6::closed(),
    };
    let translate6 = &six.translate;
    format!(
        "table inet {name} {{\n\
         \tcomment \"Berth {version}, instance {instance}\"\n\
         \tset sources {{ type ifname . ether_addr . ipv4_addr; }}\n\
         \tset {SPOOFS} {{ type ifname; counter; }}\n\
         \tset {DENIALS} {{ type ipv4_addr; counter; }}\n\
         \tset closed {{ type ipv4_addr; }}\n\
         \tset listed {{ type ipv4_addr; }}\n\
         \tset members {{ type mark . ipv4_addr; }}\n\
         \tmap node_ports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}\n\
         {doors}{lists}{named_sets}{shared}{}{answer}\
         \tchain prerouting {{\n\
         \t\ttype filter hook prerouting priority raw; policy accept;\n\
         \t\tiifgroup {group} jump from_sandbox\n\
         \t}}\n\
         \tchain from_sandbox {{\n\
         {}\
         \t\tiifname . ether saddr . ip saddr != @sources goto spoofed\n\
         \t\tip daddr 224.0.0.0/4 drop\n\
         \t\tip daddr {{ {floor} }} goto denied\n\
         \t}}\n\
         \tchain spoofed {{\n\
         \t\tiifname @{SPOOFS} drop\n\
         \t\tdrop\n\
         \t}}\n\
         \tchain denied {{\n\
         \t\tip saddr @{DENIALS} goto refused\n\
         \t\tdrop\n\
         \t}}\n\
         \tchain input {{\n\
         \t\ttype filter hook input priority filter; policy accept;\n\
         \t\tiifgroup {group} ct state invalid goto dropped\n\
         \t\tiifgroup {group} jump to_node\n\
         \t}}\n\
         \tchain to_node {{\n\
         {}\
         \t\tct state established ct direction reply accept\n\
         \t\t{own_error}\n\
         \t\tip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 goto admit\n\
         \t\tip daddr {gateway} icmp type echo-request goto admit\n\
         \t\tgoto denied\n\
         \t}}\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy accept;\n\
         {known}\
         \t\tiifgroup {group} ct state invalid goto dropped\n\
         \t\tiifgroup != {group} ct state related accept\n\
         \t\t{own_error}\n\
         \t\t{strange_error}\n\
         \t\tip daddr {subnet} iifgroup {group} oifgroup != {group} goto denied\n\
         \t\tip daddr {subnet} oifgroup != {group} drop\n\
         {}\
         \t\tiifgroup {group} jump outward\n\
         \t\tiifgroup != {group} oifgroup {group} jump inward\n\
         \t}}\n\
         \tchain outward {{\n\
         {}\
         \t\tip saddr @closed goto denied\n\
         \t\tip saddr @listed jump allow_list\n\
         \t\toifgroup {group} goto sideways\n\
         \t\tgoto admit\n\
         \t}}\n\
         \tchain allow_list {{\n\
         {named_first}{allowed}{named_last}\
         \t\tgoto denied\n\
         \t}}\n\
         \tchain sideways {{\n\
         \t\tct status dnat goto admit\n\
         {let_in}\
         \t\tmeta mark set 0\n\
         \t\tgoto denied\n\
         \t}}\n\
         \tchain inward {{\n\
         {}\
         \t\tct status dnat goto admit\n\
         {reachable}\
         \t\tcounter drop\n\
         \t}}\n\
         \tchain arrival {{\n\
         \t\ttype nat hook prerouting priority dstnat; policy accept;\n\
         \t\t{own_names}\n\
         \t\t{translate}\n\
         {translate6}\
         \t}}\n\
         \tchain origin {{\n\
         \t\ttype nat hook output priority -100; policy accept;\n\
         \t\t{own_names}\n\
         \t\t{translate}\n\
         {translate6}\
         \t}}\n\
         \tchain departure {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tip saddr 127.0.0.0/8 oifgroup {group} snat ip to {gateway}\n\
         \t\tip saddr {subnet} oifgroup {group} ct status dnat snat ip to {gateway}\n\
         \t\tip saddr {subnet} oifgroup != {group} masquerade\n\
         {}\
         \t}}\n\
         }}\n\
         table arp {name} {{\n\
         \tcomment \"Berth {version}, instance {instance}\"\n\
         \tset sources {{ type ifname . ether_addr . ipv4_addr; }}\n\
         \tchain input {{\n\
         \t\ttype filter hook input priority filter; policy accept;\n\
         \t\tiifgroup {group} iifname . arp saddr ether . arp saddr ip != @sources drop\n\
         \t}}\n\
         }}\n",
        six.own, six.from_sandbox, six.to_node, six.forward, six.outward, six.inward, six.departure
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use berth_domain::{Destination, Generation, NetworkPolicy, SandboxId};

    use super::*;

    fn fenced(egress: Egress) -> Fenced {
        Fenced {
            link: "bt01".into(),
            addresses: vec![Ipv4Addr::new(10, 1, 0, 2)],
            egress,
            ..Fenced::default()
        }
    }

    /// The elements as `set key`, without those that every sandbox has.
    fn beyond_the_usual(fenced: &Fenced) -> Vec<String> {
        let usual = ["sources", SPOOFS, DENIALS];
        let all = fenced.elements().into_iter();
        let others = all.filter(|it| !usual.contains(&it.set.as_str()));
        others.map(|it| format!("{} {it}", it.set)).collect()
    }

    #[test]
    fn every_sandbox_has_a_source_in_each_family_and_is_counted() {
        let elements = fenced(Egress::Open).elements().into_iter();
        let elements: Vec<_> = elements
            .map(|it| format!("{} {} {it}", it.family, it.set))
            .collect();
        assert_eq!(
            elements,
            [
                "inet denials 10.1.0.2",
                "inet sources \"bt01\" . 02:42:0a:01:00:02 . 10.1.0.2",
                "inet spoofs \"bt01\"",
                "arp sources \"bt01\" . 02:42:0a:01:00:02 . 10.1.0.2",
            ]
        );
        assert!(
            Fenced::default().elements().is_empty(),
            "without an address"
        );
    }

    #[test]
    #[rustfmt::skip]
    fn what_a_spec_asks_for_stands_in_these_elements() {
        let to = |net: &str, port| Destination { net: net.parse().unwrap(), port };
        let list = vec![to("10.0.0.0/8", None), to("0.0.0.0/0", Some((Protocol::Udp, 123)))];
        let ports = Fenced {
            node_ports: vec![(Protocol::Tcp, 8080, 80)],
            ..fenced(Egress::Open)
        };
        let labels = Fenced { labels: vec![3], lets_in: vec![4, 5], ..fenced(Egress::Open) };
        let named = Fenced { namer: Some(Owner::of(Generation(9))), ..fenced(Egress::Allow(vec![])) };
        let cases: [(Fenced, &[&str]); 6] = [
            (named, &["listed 10.1.0.2", "namers \"bt01\" : 0x9"]),
            (fenced(Egress::Open), &[]),
            (fenced(Egress::Deny), &["closed 10.1.0.2"]),
            (fenced(Egress::Allow(list)), &[
                "any8 10.1.0.2 . 10.0.0.0", "listed 10.1.0.2", "port0 10.1.0.2 . 0.0.0.0 . udp . 123",
            ]),
            (ports, &["node_ports tcp . 8080 : 10.1.0.2 . 80"]),
            (labels, &["lets_in0 10.1.0.2 : 0x4", "lets_in1 10.1.0.2 : 0x5", "members 0x3 . 10.1.0.2"]),
        ];
        for (fenced, expected) in cases {
            assert_eq!(beyond_the_usual(&fenced), expected, "{fenced:?}");
            for it in fenced.elements() {
                assert!(sets().contains(&(it.family, it.set.clone())), "{it} is in no set");
            }
        }
    }

    #[test]
    fn a_label_has_one_number_while_it_is_used_and_never_that_of_another() {
        let mut labels = Labels::default();
        let take = |labels: &mut Labels, of: &[&str]| labels.take(of.iter().map(|it| (*it).into()));
        let first = take(&mut labels, &["app=web", "tier=1"]);
        let second = take(&mut labels, &["app=web"]);
        assert_eq!(first[0], second[0]);
        labels.give_back(&first);
        assert_eq!(take(&mut labels, &["app=web"]), second, "somebody uses it");
        let again = take(&mut labels, &["tier=1"]);
        assert!(!first.contains(&again[0]), "nobody used it any more");
    }

    #[test]
    fn who_lets_a_label_in_and_who_has_it_share_its_number() {
        let mut labels = Labels::default();
        let mut sandbox = |id: &str, own: &[(&str, &str)], lets_in: &[&str]| {
            let own = own
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()));
            let spec = SandboxSpec {
                labels: own.collect(),
                network: NetworkPolicy {
                    allow_from: lets_in.iter().map(|it| (*it).into()).collect(),
                    ..NetworkPolicy::default()
                },
                ..SandboxSpec::default()
            };
            let sandbox = Sandbox {
                id: SandboxId::parse(id).unwrap(),
                generation: Generation(1),
                spec: Arc::new(spec),
                addresses: vec!["10.1.0.2/24".parse().unwrap()],
                bound_ports: BTreeMap::new(),
            };
            Fenced::of(&sandbox, id.to_owned(), &mut labels)
        };
        let front = sandbox("front", &[("app", "front")], &[]);
        let back = sandbox("back", &[("app", "back")], &["app=front"]);
        assert_eq!(front.labels, back.lets_in);
        assert_ne!(back.labels, back.lets_in);
    }

    #[test]
    fn the_text_replaces_all_and_keeps_what_was_counted() {
        let frame = Frame {
            instance: "a1".into(),
            subnet: "10.1.0.0/24".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 1, 0, 1),
            reachable_from: vec!["192.0.2.0/24".parse().unwrap()],
            v6: None,
            connections_max: 7,
            abilities: Abilities::ALL,
        };
        let elements = fenced(Egress::Deny).elements();
        let denials = elements.iter().find(|it| it.set == DENIALS).unwrap();
        let counted = [(denials.clone(), (5, 300))].into();
        let text = render(&frame, &elements, &counted);
        let place = |what: &str| {
            text.find(what)
                .unwrap_or_else(|| panic!("no {what} in {text}"))
        };
        let deleted = place("delete table inet berth-a1");
        assert!(deleted < place("set sources"));
        assert!(place("instance a1\"") < place("add element"));
        place("add element inet berth-a1 closed { 10.1.0.2 }");
        place("denials { 10.1.0.2 counter packets 5 bytes 300 }");
        place("ip saddr { 192.0.2.0/24 } goto admit");
        place(&format!("iifgroup {} jump from_sandbox", group("a1")));
        for (_, set) in sets() {
            assert!(
                text.contains(&format!(" {set} {{ type ")),
                "{set} is declared"
            );
        }
        place("\tchain from_sandbox {\n\t\tmeta nfproto ipv6 drop\n");
        let both = Frame {
            v6: Some(Frame6 {
                subnet: "fd00::/64".parse().unwrap(),
                gateway: "fd00::a01:1".parse().unwrap(),
            }),
            ..frame.clone()
        };
        let text = render(&both, [], &BTreeMap::new());
        assert!(!text.contains("ipv6 drop"));
        // Refused, it would end the connection whose window it has missed.
        let unplaced = format!(
            "iifgroup {} ct state invalid goto dropped\n",
            group(&frame.instance)
        );
        assert_eq!(text.matches(&unplaced).count(), 2, "{text}");
        for chain in ["from_sandbox", "to_node", "answer", "outward", "inward"] {
            let leads = format!("\tchain {chain} {{\n\t\tmeta nfproto ipv6 goto {chain}6\n");
            assert!(text.contains(&leads), "{chain} in {text}");
        }
        let alone = Frame {
            reachable_from: vec![],
            ..frame
        };
        assert!(!render(&alone, [], &BTreeMap::new()).contains("add element"));
        assert_ne!(group("a1"), group("a2"));
    }
}

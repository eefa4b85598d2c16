//! Addresses that names stand for, as elements that end by themselves in the instance's table: the resolver puts them in,
//! the rules let through what goes there. Which name is whose and how long an address lives, others know.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io,
    net::IpAddr,
    time::Duration,
};

use berth_domain::{Generation, NAME_SERVER_PORTS, Protocol};

use crate::{
    element::Family,
    nfnetlink::{Nfnetlink, Timed},
    rules,
};

/// The kernel's limit for each set. More than anybody puts in: what has ended has its place until it is collected.
const SET_SIZE: u32 = 131_072;
/// How often a change is tried again because an element has ended between two of its messages, and a list because others
/// change tables meanwhile.
const TRIES_MAX: usize = 8;
/// Elements of one batch.
const BATCH_MAX: usize = 4096;

/// By the family of the address and by whether there is a port: name and type of the set.
const SETS: [(&str, &str); 4] = [
    ("named", "mark . ipv4_addr"),
    ("named_port", "mark . ipv4_addr . inet_proto . inet_service"),
    ("named6", "mark . ipv6_addr"),
    (
        "named6_port",
        "mark . ipv6_addr . inet_proto . inet_service",
    ),
];
/// The number of every sandbox that reaches others by name, by its link.
pub(crate) const NAMERS: &str = "namers";

/// Whose an opening is: a number that no other sandbox of this node has at the time, nor the one that had its address or
/// its id before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner(u32);

/// A place that a sandbox may reach because a name stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Opening {
    pub owner: Owner,
    pub address: IpAddr,
    /// `None`: everything there.
    pub port: Option<(Protocol, u16)>,
}

/// The sets of one instance, for the process that puts addresses into them. All of it blocks.
#[derive(Debug)]
pub struct NameSets {
    socket: Nfnetlink,
    table: String,
}

impl Owner {
    /// Generations are numbers of the node, given once; packets carry 32 bits of them.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "two alike are four thousand million changes apart"
    )]
    pub fn of(generation: Generation) -> Self {
        Self(generation.0 as u32)
    }

    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

impl NameSets {
    /// Opens a socket in the network namespace of the calling thread, which needs `CAP_NET_ADMIN` there.
    pub fn open(instance: &str) -> io::Result<Self> {
        Ok(Self {
            socket: Nfnetlink::open()?,
            table: rules::table(instance),
        })
    }

    /// The number of the latest change that anybody made to any table.
    pub fn generation(&mut self) -> io::Result<u32> {
        self.socket.generation()
    }

    /// What is in the sets, with what is left of its life; nothing where there is no table.
    pub fn held(&mut self) -> io::Result<BTreeMap<Opening, Duration>> {
        held(&mut self.socket, &self.table)
    }

    /// Opens these for so long from this moment, whatever was left of their life before. All or, of each batch, none.
    pub fn place(&mut self, openings: &[(Opening, Duration)]) -> io::Result<()> {
        let timed: Vec<_> = openings.iter().map(|(it, life)| it.timed(*life)).collect();
        for batch in timed.chunks(BATCH_MAX) {
            again(|| self.socket.place(&self.table, batch))?;
        }
        Ok(())
    }

    /// Closes these, whether they are open or not.
    pub fn remove(&mut self, openings: &[Opening]) -> io::Result<()> {
        remove(&mut self.socket, &self.table, openings)
    }
}

impl Opening {
    fn set(&self) -> &'static str {
        let family = if self.address.is_ipv4() { 0 } else { 2 };
        SETS[family + usize::from(self.port.is_some())].0
    }

    /// As the kernel keeps it: parts of four bytes each, or of sixteen.
    fn key(&self) -> Vec<u8> {
        let mut key = self.owner.0.to_ne_bytes().to_vec();
        match self.address {
            IpAddr::V4(it) => key.extend(it.octets()),
            IpAddr::V6(it) => key.extend(it.octets()),
        }
        if let Some((protocol, port)) = self.port {
            let [high, low] = port.to_be_bytes();
            key.extend([protocol_number(protocol), 0, 0, 0, high, low, 0, 0]);
        }
        key
    }

    fn of_key(set: &str, key: &[u8]) -> Option<Self> {
        let (owner, rest) = key.split_first_chunk::<4>()?;
        let (address, rest): (IpAddr, _) = if set.starts_with("named6") {
            let (address, rest) = rest.split_first_chunk::<16>()?;
            ((*address).into(), rest)
        } else {
            let (address, rest) = rest.split_first_chunk::<4>()?;
            ((*address).into(), rest)
        };
        let port = match rest {
            [] => None,
            [6, 0, 0, 0, high, low, 0, 0] => {
                Some((Protocol::Tcp, u16::from_be_bytes([*high, *low])))
            }
            [17, 0, 0, 0, high, low, 0, 0] => {
                Some((Protocol::Udp, u16::from_be_bytes([*high, *low])))
            }
            _ => return None,
        };
        Some(Self {
            owner: Owner(u32::from_ne_bytes(*owner)),
            address,
            port,
        })
    }

    fn timed(&self, life: Duration) -> Timed {
        Timed {
            set: self.set(),
            key: self.key(),
            life,
        }
    }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// What is in the sets of `table`. A table of a version without such sets, or none, holds nothing.
pub(crate) fn held(socket: &mut Nfnetlink, table: &str) -> io::Result<BTreeMap<Opening, Duration>> {
    let mut found = BTreeMap::new();
    for (set, _) in SETS {
        let elements = match again(|| socket.elements(Family::Inet, table, set)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            elements => elements?,
        };
        found.extend(elements.into_iter().filter_map(|(key, it)| {
            let opening = Opening::of_key(set, &key)?;
            Some((opening, it.left.unwrap_or_default()))
        }));
    }
    Ok(found)
}

/// Takes out all that a sandbox had, which serves nobody else.
pub(crate) fn forget(socket: &mut Nfnetlink, table: &str, owner: Owner) -> io::Result<()> {
    let held = held(socket, table)?.into_keys();
    let own: Vec<_> = held.filter(|it| it.owner == owner).collect();
    remove(socket, table, &own)
}

fn remove(socket: &mut Nfnetlink, table: &str, openings: &[Opening]) -> io::Result<()> {
    // A life that is not over before the message behind.
    let briefly = Duration::from_secs(60);
    let timed: Vec<_> = openings.iter().map(|it| it.timed(briefly)).collect();
    for batch in timed.chunks(BATCH_MAX) {
        again(|| socket.remove_timed(table, batch))?;
    }
    Ok(())
}

/// Tries again what was refused because an element has ended meanwhile, or others have changed a table.
fn again<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 1;
    loop {
        match attempt() {
            Err(error)
                if tries < TRIES_MAX
                    && matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::Interrupted
                    ) =>
            {
                tries += 1;
            }
            done => return done,
        }
    }
}

/// The sets and the map, as they stand in the text of the table.
pub(crate) fn declarations() -> String {
    let mut text = format!("\tmap {NAMERS} {{ type ifname : mark; }}\n");
    for (set, kind) in SETS {
        let _ = writeln!(
            text,
            "\tset {set} {{ type {kind}; size {SET_SIZE}; flags timeout; }}"
        );
    }
    text
}

/// Before all that a list allows: who reaches others by name asks nobody but the node for names.
pub(crate) fn first_rules() -> String {
    let [plain, encrypted] = NAME_SERVER_PORTS;
    format!(
        "\t\tmeta l4proto {{ tcp, udp }} th dport {{ {plain}, {encrypted} }} meta mark set iifname map @{NAMERS} \
         goto denied\n"
    )
}

/// Behind what a list allows by network; behind it all is dropped, so that no packet keeps the mark.
pub(crate) fn last_rules() -> String {
    let mut text = String::new();
    for (set, kind) in SETS {
        let family = if kind.contains("ipv6") { "ip6" } else { "ip" };
        let port = match kind.contains("inet_proto") {
            true => " . meta l4proto . th dport",
            false => "",
        };
        let _ = writeln!(
            text,
            "\t\tmeta mark set iifname map @{NAMERS} meta mark . {family} daddr{port} @{set} meta mark set 0 return"
        );
    }
    text
}

/// The text that puts what was open back into tables that are made anew, as far as its owners are still there.
pub(crate) fn render(
    instance: &str,
    openings: &BTreeMap<Opening, Duration>,
    owners: &BTreeSet<Owner>,
) -> String {
    let table = rules::table(instance);
    let mut text = String::new();
    for (set, _) in SETS {
        let of_set = openings
            .iter()
            .filter(|(it, left)| it.set() == set && owners.contains(&it.owner) && !left.is_zero());
        let elements: Vec<_> = of_set.map(|(it, left)| element(it, *left)).collect();
        if !elements.is_empty() {
            let elements = elements.join(", ");
            let _ = writeln!(text, "add element inet {table} {set} {{ {elements} }}");
        }
    }
    text
}

fn element(it: &Opening, left: Duration) -> String {
    let port = match it.port {
        Some((protocol, port)) => format!(" . {protocol} . {port}"),
        None => String::new(),
    };
    let left = left.as_millis();
    format!("{:#x} . {}{port} timeout {left}ms", it.owner.0, it.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn openings() -> Vec<Opening> {
        let owner = Owner::of(Generation(7));
        let mut all = vec![];
        for address in ["192.0.2.7", "2001:db8::7"] {
            for port in [
                None,
                Some((Protocol::Tcp, 443)),
                Some((Protocol::Udp, 0x1234)),
            ] {
                let address = address.parse().unwrap();
                all.push(Opening {
                    owner,
                    address,
                    port,
                });
            }
        }
        all
    }

    #[test]
    fn an_opening_is_read_back_from_the_bytes_that_the_kernel_keeps() {
        for it in openings() {
            assert_eq!(Opening::of_key(it.set(), &it.key()), Some(it));
            let key = it.key();
            for length in 0..key.len() {
                let torn = Opening::of_key(it.set(), &key[..length]);
                assert!(torn.is_none_or(|torn| torn.port.is_none() && it.port.is_some()));
            }
        }
        let owner = 7_u32.to_ne_bytes();
        let tail = [192, 0, 2, 7, 6, 0, 0, 0, 1, 187, 0, 0];
        assert_eq!(openings()[1].key(), [&owner[..], &tail].concat());
    }

    #[test]
    fn two_generations_have_two_numbers_and_what_one_has_opened_is_not_the_others() {
        let (former, next) = (Owner::of(Generation(7)), Owner::of(Generation(8)));
        assert_ne!(former, next);
        let held = openings()
            .into_iter()
            .map(|it| (it, Duration::from_secs(9)))
            .collect();
        assert_eq!(render("a1", &held, &[next].into()), "");
        let kept = render("a1", &held, &[former, next].into());
        for expected in [
            "add element inet berth-a1 named { 0x7 . 192.0.2.7 timeout 9000ms }",
            "add element inet berth-a1 named_port { 0x7 . 192.0.2.7 . tcp . 443 timeout 9000ms, 0x7 . 192.0.2.7 . udp . 4660 timeout 9000ms }",
            "add element inet berth-a1 named6 { 0x7 . 2001:db8::7 timeout 9000ms }",
        ] {
            assert!(kept.contains(expected), "{expected} in {kept}");
        }
        let over = openings()
            .into_iter()
            .map(|it| (it, Duration::ZERO))
            .collect();
        assert_eq!(
            render("a1", &over, &[former].into()),
            "",
            "its life is over"
        );
    }
}

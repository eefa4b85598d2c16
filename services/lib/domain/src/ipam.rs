//! Which address a sandbox gets. Who holds one and since when is the store's business.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// How long a released address rests before it is given out again, unless no other is free.
pub const COOL_DOWN_DEFAULT: Duration = Duration::from_secs(30 * 60);

/// The largest and the smallest subnet, by prefix length.
pub const PREFIX_RANGE: std::ops::RangeInclusive<u8> = 8..=29;

/// The smallest IPv6 subnet, by prefix length: an IPv4 address has to find room behind it.
pub const PREFIX6_MAX: u8 = 96;

/// Global unicast, and unique local addresses.
const UNICAST6: [Ipv6Net; 2] = [
    Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3),
    UNIQUE_LOCAL,
];
const UNIQUE_LOCAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);

/// Where the sandboxes of a node have their addresses. Only the IPv4 ones are given out: an IPv6 address follows from one,
/// so that one lease holds both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnets {
    pub v4: Ipv4Net,
    /// `None`: the node has no IPv6 for sandboxes.
    pub v6: Option<Ipv6Net>,
}

impl Subnets {
    /// The addresses of the sandbox that has this one leased, IPv4 first.
    pub fn addresses(self, leased: Ipv4Addr) -> Vec<IpNet> {
        let v4 = Ipv4Net::new_assert(leased, self.v4.prefix_len());
        let v6 = self.v6.map(|it| Ipv6Net::from(address6(it, leased)));
        std::iter::once(v4.into())
            .chain(v6.map(IpNet::from))
            .collect()
    }

    pub fn contain(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(it) => self.v4.contains(&it),
            IpAddr::V6(it) => self.v6.is_some_and(|subnet| subnet.contains(&it)),
        }
    }

    /// The node's addresses on the bridge, IPv4 first.
    pub fn gateways(self) -> Vec<IpAddr> {
        let addresses = self.addresses(gateway(self.v4)).into_iter();
        addresses.map(|it| it.addr()).collect()
    }
}

impl From<Ipv4Net> for Subnets {
    fn from(v4: Ipv4Net) -> Self {
        Self { v4, v6: None }
    }
}

impl fmt::Display for Subnets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.v6 {
            Some(v6) => write!(f, "{} and {v6}", self.v4),
            None => write!(f, "{}", self.v4),
        }
    }
}

/// The IPv6 address of the sandbox, or node, that has this IPv4 one: the prefix of the subnet, and the IPv4 address behind it.
pub fn address6(subnet: Ipv6Net, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(subnet.network()) | u128::from(u32::from(address)))
}

/// Whether others beyond the node have no way to these addresses, and see the node's own instead.
pub fn is_unique_local(subnet: Ipv6Net) -> bool {
    UNIQUE_LOCAL.contains(&subnet)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSubnet6 {
    #[error("{0} has bits behind its prefix; write {trunc}", trunc = .0.trunc())]
    HostBits(Ipv6Net),
    #[error("the prefix of {0} must be at most /{PREFIX6_MAX}")]
    TooLong(Ipv6Net),
    #[error("{0} is neither global unicast (2000::/3) nor unique local (fc00::/7)")]
    NotUnicast(Ipv6Net),
}

/// Whether sandboxes can have their IPv6 addresses there.
pub fn check_subnet6(subnet: Ipv6Net) -> Result<(), BadSubnet6> {
    if subnet != subnet.trunc() {
        return Err(BadSubnet6::HostBits(subnet));
    }
    if subnet.prefix_len() > PREFIX6_MAX {
        return Err(BadSubnet6::TooLong(subnet));
    }
    match UNICAST6.iter().any(|it| it.contains(&subnet)) {
        true => Ok(()),
        false => Err(BadSubnet6::NotUnicast(subnet)),
    }
}

/// Addresses that are held, or were, with when each was released: `None` while it is held.
pub type Taken = BTreeMap<Ipv4Addr, Option<SystemTime>>;

/// Addresses in a row, both ends included. May be empty.
pub type Span = RangeInclusive<u32>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {capacity} addresses are held")]
pub struct Exhausted {
    pub capacity: u64,
}

/// The address of the node on the bridge: the first of the subnet.
pub fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + 1)
}

/// How many sandboxes can have an address: all but the network, the gateway and the last.
pub fn capacity(subnet: Ipv4Net) -> u64 {
    (1_u64 << (32 - subnet.prefix_len())).saturating_sub(3)
}

/// The addresses that sandboxes can have.
pub fn span(subnet: Ipv4Net) -> Span {
    u32::from(subnet.network()) + 2..=u32::from(subnet.broadcast()) - 1
}

/// How many addresses there are in these spans.
pub fn size<'a>(spans: impl IntoIterator<Item = &'a Span>) -> u64 {
    let size = |it: &Span| (u64::from(*it.end()) + 1).saturating_sub(u64::from(*it.start()));
    spans.into_iter().map(size).sum()
}

/// What is taken within a span, by address.
pub fn within<'a>(
    taken: &'a Taken,
    span: &Span,
) -> impl Iterator<Item = (Ipv4Addr, Option<SystemTime>)> + use<'a> {
    // A map cannot be asked for a range that ends before it begins.
    let range = (!span.is_empty())
        .then(|| taken.range(Ipv4Addr::from(*span.start())..=Ipv4Addr::from(*span.end())));
    range.into_iter().flatten().map(|(at, it)| (*at, *it))
}

/// Whether a released address has rested long enough. A clock that went backwards does not end a rest.
pub fn has_rested(released_at: SystemTime, now: SystemTime, cool_down: Duration) -> bool {
    now.duration_since(released_at)
        .is_ok_and(|rest| rest >= cool_down)
}

/// Chooses the lowest address of the spans that is free and rested, else the one that rests longest.
pub fn choose(
    spans: &[Span],
    taken: &Taken,
    now: SystemTime,
    cool_down: Duration,
) -> Result<Ipv4Addr, Exhausted> {
    let mut resting: Option<(SystemTime, Ipv4Addr)> = None;
    for span in spans {
        let mut candidate = *span.start();
        for (address, released_at) in within(taken, span) {
            if u32::from(address) > candidate {
                break;
            }
            if let Some(released_at) = released_at {
                if has_rested(released_at, now, cool_down) {
                    return Ok(address);
                }
                if resting.is_none_or(|(longest, _)| released_at < longest) {
                    resting = Some((released_at, address));
                }
            }
            candidate += 1;
        }
        if span.contains(&candidate) {
            return Ok(Ipv4Addr::from(candidate));
        }
    }
    resting.map(|(_, address)| address).ok_or(Exhausted {
        capacity: size(spans),
    })
}

/// The addresses that the next `count` choices give, as far as there are so many.
pub fn upcoming(
    spans: &[Span],
    taken: &Taken,
    now: SystemTime,
    cool_down: Duration,
    count: usize,
) -> Vec<Ipv4Addr> {
    let mut taken = taken.clone();
    let mut upcoming = vec![];
    while upcoming.len() < count {
        let Ok(address) = choose(spans, &taken, now, cool_down) else {
            break;
        };
        taken.insert(address, None);
        upcoming.push(address);
    }
    upcoming
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn ago(seconds: u64) -> Option<SystemTime> {
        Some(SystemTime::UNIX_EPOCH + NOW - Duration::from_secs(seconds))
    }

    #[expect(clippy::unwrap_in_result, reason = "a test may panic")]
    fn choose_in(subnet: &str, taken: &[(u8, Option<SystemTime>)]) -> Result<u8, Exhausted> {
        let subnet: Ipv4Net = subnet.parse().unwrap();
        let base = u32::from(subnet.network());
        let address = |host: u8| Ipv4Addr::from(base + u32::from(host));
        let taken = taken.iter().map(|&(host, it)| (address(host), it));
        choose(
            &[span(subnet)],
            &taken.collect(),
            SystemTime::UNIX_EPOCH + NOW,
            Duration::from_secs(60),
        )
        .map(|address| (u32::from(address) - base) as u8)
    }

    type Case<'a> = (&'a str, &'a [(u8, Option<SystemTime>)], u8);

    #[test]
    #[rustfmt::skip]
    fn the_lowest_free_and_rested_address_is_given() {
        let cases: &[Case] = &[
            ("an empty subnet begins at .2", &[],                                                 2),
            ("held ones are skipped",        &[(2, None), (3, None)],                             4),
            ("a gap is filled",              &[(2, None), (4, None)],                             3),
            ("a rested one is reused",       &[(2, ago(61)), (3, None)],                          2),
            ("a resting one is not",         &[(2, ago(59)), (3, None)],                          4),
            ("unless nothing else is free",  &[(2, None), (3, ago(5)), (4, ago(9)), (5, None), (6, None)], 4),
        ];
        for (case, taken, expected) in cases {
            assert_eq!(choose_in("10.0.0.0/29", taken), Ok(*expected), "{case}");
        }
    }

    #[test]
    fn a_full_subnet_is_exhausted_and_its_last_address_is_never_given() {
        let held: Vec<_> = (2..=6).map(|host| (host, None)).collect();
        assert_eq!(
            choose_in("10.0.0.0/29", &held),
            Err(Exhausted { capacity: 5 })
        );
    }

    #[test]
    #[rustfmt::skip]
    fn an_ipv6_address_is_the_prefix_with_the_ipv4_address_at_its_end() {
        let cases = [
            ("fd00::/8",              "10.87.0.2",       "fd00::a57:2"),
            ("fd12:3456:789a::/48",   "10.87.0.2",       "fd12:3456:789a::a57:2"),
            ("2001:db8:1:2::/64",     "192.168.255.254", "2001:db8:1:2::c0a8:fffe"),
            ("fd00:1:2:3:4:5::/96",   "10.0.0.2",        "fd00:1:2:3:4:5:a00:2"),
        ];
        for (subnet, v4, expected) in cases {
            let (subnet, v4): (Ipv6Net, Ipv4Addr) = (subnet.parse().unwrap(), v4.parse().unwrap());
            let address = address6(subnet, v4);
            assert_eq!(address.to_string(), expected);
            assert!(subnet.contains(&address));
        }
    }

    #[test]
    fn a_sandbox_has_its_ipv4_address_first_and_an_ipv6_one_where_the_node_has_them() {
        let v4: Ipv4Net = "10.87.0.0/16".parse().unwrap();
        let both = Subnets {
            v4,
            v6: Some("fd00:1::/64".parse().unwrap()),
        };
        let addresses = |of: Subnets| {
            let all = of.addresses([10, 87, 0, 2].into()).into_iter();
            all.map(|it| it.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(addresses(v4.into()), ["10.87.0.2/16"]);
        assert_eq!(addresses(both), ["10.87.0.2/16", "fd00:1::a57:2/128"]);
        let gateways: [IpAddr; 2] = [[10, 87, 0, 1].into(), "fd00:1::a57:1".parse().unwrap()];
        assert_eq!(both.gateways(), gateways);
        for it in gateways {
            assert!(both.contain(it));
            assert_eq!(Subnets::from(v4).contain(it), it.is_ipv4(), "{it}");
        }
        assert!(!both.contain("fd00:2::1".parse().unwrap()));
    }

    #[test]
    #[rustfmt::skip]
    fn a_subnet_of_ipv6_has_room_for_ipv4_and_can_be_routed() {
        let net = |text: &str| text.parse::<Ipv6Net>().unwrap();
        for good in ["fd00::/8", "fc00::/7", "fd00:1::/96", "2001:db8::/32", "2000::/3"] {
            assert_eq!(check_subnet6(net(good)), Ok(()), "{good}");
        }
        let cases = [
            ("fd00::1/64",   BadSubnet6::HostBits(net("fd00::1/64"))),
            ("fd00::/97",    BadSubnet6::TooLong(net("fd00::/97"))),
            ("fd00::/128",   BadSubnet6::TooLong(net("fd00::/128"))),
            ("fe80::/64",    BadSubnet6::NotUnicast(net("fe80::/64"))),
            ("ff00::/16",    BadSubnet6::NotUnicast(net("ff00::/16"))),
            ("::/0",         BadSubnet6::NotUnicast(net("::/0"))),
            ("::/96",        BadSubnet6::NotUnicast(net("::/96"))),
            ("f000::/4",     BadSubnet6::NotUnicast(net("f000::/4"))),
        ];
        for (text, expected) in cases {
            assert_eq!(check_subnet6(net(text)), Err(expected), "{text}");
        }
        assert!(is_unique_local(net("fd00:1::/64")) && !is_unique_local(net("2001:db8::/64")));
    }

    #[test]
    fn a_clock_that_went_backwards_does_not_end_a_rest() {
        let later = Some(SystemTime::UNIX_EPOCH + NOW + Duration::from_secs(900));
        assert_eq!(choose_in("10.0.0.0/29", &[(2, later)]), Ok(3));
    }

    #[test]
    fn what_is_coming_is_what_the_next_choices_give() {
        let spans = [span("10.1.0.0/29".parse().unwrap())];
        let address = |host| Ipv4Addr::new(10, 1, 0, host);
        let taken = [(2, None), (3, ago(5)), (5, ago(61))].map(|(host, it)| (address(host), it));
        let (taken, now) = (Taken::from(taken), SystemTime::UNIX_EPOCH + NOW);
        let upcoming = |count| upcoming(&spans, &taken, now, Duration::from_secs(60), count);
        assert_eq!(upcoming(2), [4, 5].map(address));
        assert_eq!(
            upcoming(9),
            [4, 5, 6, 3].map(address),
            "no more than there are"
        );
        assert!(upcoming(0).is_empty());
    }
}

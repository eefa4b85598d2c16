//! Which address a sandbox gets. Who holds one and since when is the store's business.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

use ipnet::Ipv4Net;

/// How long a released address rests before it is given out again, unless no other is free.
pub const COOL_DOWN_DEFAULT: Duration = Duration::from_secs(30 * 60);

/// The largest and the smallest subnet, by prefix length.
pub const PREFIX_RANGE: std::ops::RangeInclusive<u8> = 8..=29;

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

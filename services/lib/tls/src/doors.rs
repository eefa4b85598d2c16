//! How many connections there may be, and which one goes when one more wants in: of those that have not shown a certificate
//! the oldest of the host that has most of them, so that nobody can keep others out, of the rest the one that has been without
//! a call for longest, first among those of the same certificate.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
};

pub(crate) type Id = u64;
/// Tells certificates apart.
pub(crate) type Mark = [u8; 32];

#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    pub(crate) handshakes: usize,
    pub(crate) connections: usize,
    pub(crate) per_certificate: usize,
}

#[derive(Debug)]
pub(crate) struct Doors {
    most: Most,
    /// The oldest first.
    handshakes: VecDeque<(Id, IpAddr)>,
    open: BTreeMap<Id, Mark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Admitted { evicted: Option<Id> },
    Full,
}

impl Doors {
    pub(crate) fn new(most: Most) -> Self {
        Self {
            most,
            handshakes: VecDeque::new(),
            open: BTreeMap::new(),
        }
    }

    /// One that has shown nothing yet. Returns the one that has to go for it.
    pub(crate) fn arrive(&mut self, id: Id, peer: IpAddr) -> Option<Id> {
        self.handshakes.push_back((id, network(peer)));
        if self.handshakes.len() <= self.most.handshakes {
            return None;
        }
        let mut of = BTreeMap::new();
        for (_, peer) in &self.handshakes {
            *of.entry(*peer).or_insert(0) += 1;
        }
        let most = of.values().copied().max();
        let mut oldest_first = self.handshakes.iter();
        let oldest = oldest_first.position(|(_, peer)| of.get(peer).copied() == most)?;
        self.handshakes.remove(oldest).map(|(id, _)| id)
    }

    /// One whose certificate is known now. `idle_since` orders those that are without a call.
    pub(crate) fn admit<T: Ord>(
        &mut self,
        id: Id,
        mark: Mark,
        idle_since: impl Fn(Id) -> Option<T>,
    ) -> Admission {
        self.handshakes.retain(|it| it.0 != id);
        let longest = |open: &BTreeMap<Id, Mark>, of: Option<Mark>| {
            let candidates = open.iter().filter(|(_, it)| of.is_none_or(|of| of == **it));
            let idle = candidates.filter_map(|(id, _)| Some((idle_since(*id)?, *id)));
            idle.min().map(|(_, id)| id)
        };
        let same = self.open.values().filter(|it| **it == mark).count();
        let evicted = if same >= self.most.per_certificate {
            longest(&self.open, Some(mark)).ok_or(())
        } else if self.open.len() >= self.most.connections {
            longest(&self.open, None).ok_or(())
        } else {
            self.open.insert(id, mark);
            return Admission::Admitted { evicted: None };
        };
        let Ok(evicted) = evicted else {
            return Admission::Full;
        };
        self.open.remove(&evicted);
        self.open.insert(id, mark);
        Admission::Admitted {
            evicted: Some(evicted),
        }
    }

    pub(crate) fn leave(&mut self, id: Id) {
        self.handshakes.retain(|it| it.0 != id);
        self.open.remove(&id);
    }

    /// In the handshake, and behind it.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.handshakes.len(), self.open.len())
    }
}

/// Who has one address of IPv6 has as many as there are below its /64.
fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(it) => it.into(),
        IpAddr::V6(it) => match it.to_ipv4_mapped() {
            Some(it) => it.into(),
            None => Ipv6Addr::from_bits(it.to_bits() >> 64 << 64).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Most = Most {
        handshakes: 2,
        connections: 4,
        per_certificate: 3,
    };
    const A: Mark = [1; 32];
    const B: Mark = [2; 32];
    const NOT_IDLE: fn(Id) -> Option<u64> = |_| None;

    #[test]
    fn who_takes_long_to_show_a_certificate_makes_room_for_the_next() {
        let mut doors = Doors::new(MOST);
        let peer = "10.0.0.1".parse().unwrap();
        let arrived = [1, 2, 3].map(|it| doors.arrive(it, peer));
        assert_eq!(arrived, [None, None, Some(1)]);
        doors.leave(2);
        assert_eq!(doors.arrive(4, peer), None);
        let admitted = doors.admit(3, A, NOT_IDLE);
        assert_eq!(admitted, Admission::Admitted { evicted: None });
        assert_eq!(doors.arrive(5, peer), None);
        assert_eq!(doors.counts(), (2, 1));
    }

    #[test]
    fn a_host_that_opens_many_evicts_its_own_and_nobody_elses() {
        let many = Most {
            handshakes: 8,
            ..MOST
        };
        for (good, bad) in [
            ("10.0.0.1", "10.0.0.2"),
            ("fd00:0:0:1::1", "fd00:0:0:2::1"),
            ("10.0.0.1", "::ffff:10.0.0.2"),
        ] {
            let mut doors = Doors::new(many);
            assert_eq!(doors.arrive(0, good.parse().unwrap()), None);
            for id in 1..1000 {
                let mut peer: IpAddr = bad.parse().unwrap();
                if let IpAddr::V6(it) = peer
                    && it.to_ipv4_mapped().is_none()
                {
                    peer = Ipv6Addr::from_bits(it.to_bits() + u128::from(id)).into();
                }
                assert_ne!(doors.arrive(id, peer), Some(0), "{bad}");
            }
            assert_eq!(doors.counts(), (8, 0));
        }
    }

    #[test]
    #[rustfmt::skip]
    fn one_too_many_takes_the_place_of_the_longest_idle_one_or_is_refused() {
        let admitted = |evicted| Admission::Admitted { evicted };
        let all: fn(Id) -> Option<u64> = |it| Some(100 - it);
        let but_one: fn(Id) -> Option<u64> = |it| (it == 1).then_some(it);
        type Case = (&'static str, &'static [Mark], Mark, fn(Id) -> Option<u64>, Admission);
        let cases: &[Case] = &[
            ("room for all",                  &[A, A],       A, NOT_IDLE, admitted(None)),
            ("too many of one certificate",   &[A, A, B, A], A, all,      admitted(Some(3))),
            ("and all of them are busy",      &[A, B, A, A], A, but_one,  Admission::Full),
            ("too many of all",               &[A, A, B, A], B, all,      admitted(Some(3))),
            ("of another one than its own",   &[A, A, B, B], B, but_one,  admitted(Some(1))),
            ("and all are busy",              &[A, A, B, A], B, NOT_IDLE, Admission::Full),
        ];
        for (case, open, mark, idle, expected) in cases {
            let mut doors = Doors::new(MOST);
            for (id, mark) in open.iter().enumerate() {
                assert_eq!(doors.admit(id as Id, *mark, NOT_IDLE), admitted(None), "{case}");
            }
            assert_eq!(doors.admit(9, *mark, idle), *expected, "{case}");
            assert!(doors.counts().1 <= MOST.connections, "{case}");
        }
    }
}

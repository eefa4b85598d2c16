//! Which addresses are taken and which subnets are reserved: what the tables say, kept at hand, so that a Create need not
//! read them all. What a transaction changes is noted, and counts once it is durable.

use std::{net::Ipv4Addr, time::Duration, time::SystemTime};

use berth_domain::{
    ipam::{self, Exhausted, Span, Taken},
    subnets::{self, Reserved},
};
use ipnet::Ipv4Net;

use crate::{
    rows::{Lease, LeaseRow},
    store::LeaseCounts,
};

#[derive(Debug, Default)]
pub(crate) struct Addresses {
    taken: Taken,
    reserved: Reserved,
    noted: Vec<Noted>,
}

#[derive(Debug)]
enum Noted {
    Taken(Ipv4Addr, Option<SystemTime>),
    Untaken(Ipv4Addr),
    Reserved(String, Ipv4Net),
    Unreserved(String),
}

impl Addresses {
    pub(crate) fn of(leases: &[LeaseRow], reserved: Reserved) -> Self {
        let taken = leases.iter().map(|it| (it.address, it.released_at()));
        Self {
            taken: taken.collect(),
            reserved,
            noted: vec![],
        }
    }

    /// A transaction begins: what a former one has noted never became durable.
    pub(crate) fn begin(&mut self) {
        self.noted.clear();
    }

    pub(crate) fn note_lease(&mut self, lease: &Lease) {
        self.noted
            .push(Noted::Taken(lease.address, lease.released_at));
    }

    pub(crate) fn note_forgotten(&mut self, address: Ipv4Addr) {
        self.noted.push(Noted::Untaken(address));
    }

    pub(crate) fn note_reserved(&mut self, identifier: &str, net: Ipv4Net) {
        self.noted.push(Noted::Reserved(identifier.to_owned(), net));
    }

    pub(crate) fn note_unreserved(&mut self, identifier: &str) {
        self.noted.push(Noted::Unreserved(identifier.to_owned()));
    }

    /// What was noted is durable.
    pub(crate) fn settle(&mut self) {
        for it in self.noted.drain(..) {
            match it {
                Noted::Taken(address, released_at) => drop(self.taken.insert(address, released_at)),
                Noted::Untaken(address) => drop(self.taken.remove(&address)),
                Noted::Reserved(identifier, net) => drop(self.reserved.insert(identifier, net)),
                Noted::Unreserved(identifier) => drop(self.reserved.remove(&identifier)),
            }
        }
    }

    pub(crate) fn reserved(&self) -> &Reserved {
        &self.reserved
    }

    pub(crate) fn choose(
        &self,
        spans: &[Span],
        now: SystemTime,
        cool_down: Duration,
    ) -> Result<Ipv4Addr, Exhausted> {
        ipam::choose(spans, &self.taken, now, cool_down)
    }

    pub(crate) fn upcoming(
        &self,
        spans: &[Span],
        now: SystemTime,
        cool_down: Duration,
        count: usize,
    ) -> Vec<Ipv4Addr> {
        ipam::upcoming(spans, &self.taken, now, cool_down, count)
    }

    /// Finds room for a part of `subnet`.
    pub(crate) fn find_room(
        &self,
        subnet: Ipv4Net,
        prefix_length: u8,
        now: SystemTime,
        cool_down: Duration,
    ) -> Option<Ipv4Net> {
        let rests = |at: SystemTime| !ipam::has_rested(at, now, cool_down);
        let taken = self.taken.iter().filter(|(_, it)| it.is_none_or(rests));
        subnets::find(
            subnet,
            prefix_length,
            &self.reserved,
            taken.map(|(address, _)| *address),
        )
    }

    /// Counts what these spans have.
    pub(crate) fn count<'a>(
        &self,
        spans: impl IntoIterator<Item = &'a Span>,
        now: SystemTime,
        cool_down: Duration,
    ) -> LeaseCounts {
        let mut counts = LeaseCounts::default();
        for span in spans {
            counts.capacity += ipam::size([span]);
            for (_, released_at) in ipam::within(&self.taken, span) {
                match released_at {
                    None => counts.held += 1,
                    Some(at) if ipam::has_rested(at, now, cool_down) => {}
                    Some(_) => counts.cooling += 1,
                }
            }
        }
        counts
    }
}

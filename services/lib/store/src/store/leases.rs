//! Leases as whoever looks after a node sees them, and the way to make one free at once.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::SystemTime,
};

use berth_domain::{Generation, SandboxId, SandboxRecord};
use redb::ReadableTable as _;

use super::{Inner, Store};
use crate::{
    database::{LEASES, RECORDS},
    error::{ReleaseError, StoreError},
    rows::{self, Lease},
};

/// A lease, with what its owner's record says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    pub lease: Lease,
    pub state: LeaseState,
    /// When the record that holds it was admitted.
    pub held_since: Option<SystemTime>,
    /// When its rest is, or was, over.
    pub free_at: Option<SystemTime>,
    /// Empty: not known.
    pub boot_id: String,
    /// What the record that holds it has beside it.
    pub address6: Option<Ipv6Addr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    Held,
    Resting,
    /// It was given back, and its rest is over.
    Free,
    /// It is held for an owner that has no record.
    Unexplained,
}

impl Store {
    /// Every lease that can be read, by address.
    pub async fn lease_views(&self, now: SystemTime) -> Result<Vec<LeaseView>, StoreError> {
        self.blocking(move |inner| inner.lease_views(now)).await
    }

    /// Makes an address free that rests, or whose owner has no record. Returns the lease as it was.
    pub async fn release_lease(
        &self,
        address: Ipv4Addr,
        owner: SandboxId,
        generation: Generation,
    ) -> Result<Lease, ReleaseError> {
        self.blocking(move |inner| inner.release_lease(address, &owner, generation))
            .await
    }
}

impl Inner {
    fn lease_views(&self, now: SystemTime) -> Result<Vec<LeaseView>, StoreError> {
        let (rows, records, unreadable) = self.read(|txn| {
            let (records, unreadable) = rows::records(txn, None, usize::MAX)?;
            Ok((rows::leases(&txn.open_table(LEASES)?)?, records, unreadable))
        })?;
        let records: BTreeMap<_, _> = records.into_iter().map(|it| (it.id.clone(), it)).collect();
        let leases = rows.into_iter().filter_map(|it| it.lease.ok());
        let view = |lease: Lease| {
            let record = records.get(&lease.owner);
            let holder = record.filter(|it| holds(it, &lease));
            // A record that cannot be read may explain it.
            let unread = unreadable
                .iter()
                .any(|it| it.sandbox.as_ref() == Some(&lease.owner));
            let free_at = lease.released_at.map(|it| it + self.cool_down);
            LeaseView {
                state: match free_at {
                    Some(free_at) if free_at <= now => LeaseState::Free,
                    Some(_) => LeaseState::Resting,
                    None if holder.is_some() || unread => LeaseState::Held,
                    None => LeaseState::Unexplained,
                },
                held_since: holder.map(|it| it.created_at),
                free_at,
                boot_id: holder.map(|it| it.boot_id.clone()).unwrap_or_default(),
                address6: holder.and_then(address6),
                lease,
            }
        };
        Ok(leases.map(view).collect())
    }

    fn release_lease(
        &self,
        address: Ipv4Addr,
        owner: &SandboxId,
        generation: Generation,
    ) -> Result<Lease, ReleaseError> {
        self.write_aside(|txn| {
            let mut table = txn.open_table(LEASES).map_err(StoreError::from)?;
            let lease = match table.get(u32::from(address)).map_err(StoreError::from)? {
                None => return Err(ReleaseError::NotFound { address }),
                Some(bytes) => {
                    rows::lease(address, bytes.value()).map_err(StoreError::Unreadable)?
                }
            };
            let held = || ReleaseError::Held(lease.clone());
            if (&lease.owner, lease.generation) != (owner, generation) {
                return Err(ReleaseError::Conflict(lease));
            }
            let records = txn.open_table(RECORDS).map_err(StoreError::from)?;
            match rows::find(&records, owner) {
                Ok(Some(record)) if holds(&record, &lease) => return Err(held()),
                // It may explain the lease.
                Err(StoreError::Unreadable(_)) if lease.released_at.is_none() => {
                    return Err(held());
                }
                Ok(_) | Err(StoreError::Unreadable(_)) => {}
                Err(error) => return Err(error.into()),
            }
            table.remove(u32::from(address)).map_err(StoreError::from)?;
            Ok(lease)
        })
    }
}

fn address6(record: &SandboxRecord) -> Option<Ipv6Addr> {
    record.addresses.iter().find_map(|it| match it.addr() {
        IpAddr::V6(it) => Some(it),
        IpAddr::V4(_) => None,
    })
}

fn holds(record: &SandboxRecord, lease: &Lease) -> bool {
    record.generation == lease.generation
        && record.addresses.iter().any(|it| it.addr() == lease.address)
}

//! How addresses are taken and given back, leases as whoever looks after a node sees them, and the way to make one free at
//! once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::SystemTime,
};

use berth_domain::{Generation, SandboxId, SandboxRecord, SandboxSpec, ipam, subnets};
use ipnet::IpNet;
use redb::{ReadableTable, WriteTransaction};

use super::{Arrival, Inner, Store};
use crate::{
    database::{LEASES, RECORDS},
    error::{AdmitError, ReleaseError, StoreError},
    rows::{self, Lease},
};

type LeaseTable<'a> = redb::Table<'a, u32, &'static [u8]>;

/// A lease, with what its owner's record says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    pub lease: Lease,
    pub state: LeaseState,
    /// When the record that holds it was admitted.
    pub held_since: Option<SystemTime>,
    /// When its rest is, or was, over.
    pub free_at: Option<SystemTime>,
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

    /// Whether `release_lease` would make this address free. Returns the lease as it is.
    pub async fn may_release(
        &self,
        address: Ipv4Addr,
        owner: SandboxId,
        generation: Generation,
    ) -> Result<Lease, ReleaseError> {
        self.blocking(move |inner| inner.may_release(address, &owner, generation))
            .await
    }

    /// Makes an address free that rests, or whose owner has no record. Returns the lease as it was. No connection of its
    /// former owner may be left.
    pub async fn release_lease(
        &self,
        address: Ipv4Addr,
        owner: SandboxId,
        generation: Generation,
    ) -> Result<Lease, ReleaseError> {
        self.blocking(move |inner| inner.release_lease(address, &owner, generation))
            .await
    }

    /// The leases that are given back, whether or not their rest is over.
    pub async fn resting(&self) -> Result<Vec<Lease>, StoreError> {
        let leases = self.leases().await?.into_iter();
        Ok(leases.filter(|it| it.released_at.is_some()).collect())
    }

    /// Makes free what rests as these leases say, and returns how many did. No connection of their former owners may be left.
    pub async fn release_resting(&self, leases: Vec<Lease>) -> Result<u64, StoreError> {
        self.blocking(move |inner| inner.release_resting(&leases))
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
                address6: holder.and_then(address6),
                lease,
            }
        };
        Ok(leases.map(view).collect())
    }

    fn may_release(
        &self,
        address: Ipv4Addr,
        owner: &SandboxId,
        generation: Generation,
    ) -> Result<Lease, ReleaseError> {
        let found = self.read(|txn| {
            let (leases, records) = (txn.open_table(LEASES)?, txn.open_table(RECORDS)?);
            match releasable(&leases, &records, address, owner, generation) {
                Err(ReleaseError::Store(error)) => Err(error),
                found => Ok(found),
            }
        });
        found?
    }

    fn release_lease(
        &self,
        address: Ipv4Addr,
        owner: &SandboxId,
        generation: Generation,
    ) -> Result<Lease, ReleaseError> {
        self.write_aside(|txn| {
            let mut table = txn.open_table(LEASES).map_err(StoreError::from)?;
            let records = txn.open_table(RECORDS).map_err(StoreError::from)?;
            let lease = releasable(&table, &records, address, owner, generation)?;
            self.forget_lease(&mut table, address)?;
            Ok(lease)
        })
    }

    fn release_resting(&self, leases: &[Lease]) -> Result<u64, StoreError> {
        self.write_aside(|txn| {
            let mut table = txn.open_table(LEASES)?;
            let mut released = 0;
            for lease in leases {
                let row = table.get(u32::from(lease.address))?;
                let now = row.and_then(|it| rows::lease(lease.address, it.value()).ok());
                if lease.released_at.is_some() && now.as_ref() == Some(lease) {
                    self.forget_lease(&mut table, lease.address)?;
                    released += 1;
                }
            }
            Ok(released)
        })
    }

    /// Takes the address that the domain chooses.
    pub(super) fn lease(
        &self,
        txn: &WriteTransaction,
        id: &SandboxId,
        generation: Generation,
        spec: &SandboxSpec,
        arrival: &Arrival,
        now: SystemTime,
    ) -> Result<Vec<IpNet>, AdmitError> {
        let lease = Lease {
            address: self.choose(spec.network.subnet.as_deref(), now)?,
            owner: id.clone(),
            generation,
            released_at: None,
            boot_id: arrival.boot_id.clone(),
        };
        let mut table = txn.open_table(LEASES).map_err(StoreError::from)?;
        self.put_lease(&mut table, &lease)?;
        Ok(self.subnets.addresses(lease.address))
    }

    fn choose(&self, of: Option<&str>, now: SystemTime) -> Result<Ipv4Addr, AdmitError> {
        let addresses = self.addresses();
        let open = subnets::open_spans(self.subnets.v4, addresses.reserved());
        let reserved = ipam::capacity(self.subnets.v4) - ipam::size(&open);
        let spans = match of {
            None => open,
            Some(identifier) => match addresses.reserved().get(identifier) {
                Some(part) => vec![subnets::span(self.subnets.v4, *part)],
                None => {
                    let identifier = identifier.to_owned();
                    return Err(AdmitError::SubnetNotFound { identifier });
                }
            },
        };
        addresses
            .choose(&spans, now, self.cool_down)
            .map_err(|it| AdmitError::Exhausted {
                capacity: it.capacity,
                held: addresses.count(&spans, now, self.cool_down).held,
                subnet: of.map(str::to_owned),
                reserved,
            })
    }

    pub(super) fn put_lease(
        &self,
        table: &mut LeaseTable<'_>,
        lease: &Lease,
    ) -> Result<(), StoreError> {
        rows::put_lease(table, lease)?;
        self.addresses().note_lease(lease);
        Ok(())
    }

    fn forget_lease(
        &self,
        table: &mut LeaseTable<'_>,
        address: Ipv4Addr,
    ) -> Result<(), StoreError> {
        table.remove(u32::from(address))?;
        self.addresses().note_forgotten(address);
        Ok(())
    }

    /// Lets the addresses of `record` rest, as far as they are still its own.
    pub(super) fn release_leases(
        &self,
        txn: &WriteTransaction,
        record: &SandboxRecord,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        self.write_leases(txn, record, Some(now))
    }

    /// Writes the boot of `record` down with its addresses, as far as they are still its own.
    pub(super) fn renew_leases(
        &self,
        txn: &WriteTransaction,
        record: &SandboxRecord,
    ) -> Result<(), StoreError> {
        self.write_leases(txn, record, None)
    }

    fn write_leases(
        &self,
        txn: &WriteTransaction,
        record: &SandboxRecord,
        released_at: Option<SystemTime>,
    ) -> Result<(), StoreError> {
        let mut table = txn.open_table(LEASES)?;
        let addresses: BTreeSet<_> = record.addresses.iter().map(IpNet::addr).collect();
        for address in addresses {
            let IpAddr::V4(address) = address else {
                continue;
            };
            let held = match table.get(u32::from(address))? {
                Some(bytes) => rows::lease(address, bytes.value()),
                None => continue,
            };
            let own = match held {
                Ok(it) => {
                    let held = it.released_at.is_none();
                    held && (&it.owner, it.generation) == (&record.id, record.generation)
                }
                // Record and lease are always written together: what this record names was its own.
                Err(_) => true,
            };
            if own {
                let lease = Lease {
                    address,
                    owner: record.id.clone(),
                    generation: record.generation,
                    released_at,
                    boot_id: record.boot_id.clone(),
                };
                self.put_lease(&mut table, &lease)?;
            }
        }
        Ok(())
    }
}

/// The lease of this owner and generation, unless a record holds it, or may.
fn releasable(
    leases: &impl ReadableTable<u32, &'static [u8]>,
    records: &impl ReadableTable<&'static str, &'static [u8]>,
    address: Ipv4Addr,
    owner: &SandboxId,
    generation: Generation,
) -> Result<Lease, ReleaseError> {
    let lease = match leases.get(u32::from(address)).map_err(StoreError::from)? {
        None => return Err(ReleaseError::NotFound { address }),
        Some(bytes) => rows::lease(address, bytes.value()).map_err(StoreError::Unreadable)?,
    };
    if (&lease.owner, lease.generation) != (owner, generation) {
        return Err(ReleaseError::Conflict(lease));
    }
    match rows::find(records, owner) {
        Ok(Some(record)) if holds(&record, &lease) => Err(ReleaseError::Held(lease)),
        // It may explain the lease.
        Err(StoreError::Unreadable(_)) if lease.released_at.is_none() => {
            Err(ReleaseError::Held(lease))
        }
        Ok(_) | Err(StoreError::Unreadable(_)) => Ok(lease),
        Err(error) => Err(error.into()),
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

//! Parts of the node's subnet that are reserved for one owner each, until somebody releases them.

use std::{sync::PoisonError, time::SystemTime};

use berth_domain::subnets::{self, RESERVED_MAX};
use ipnet::Ipv4Net;
use redb::ReadableTable as _;

use super::{Inner, LeaseCounts, Store};
use crate::{
    database::SUBNETS,
    error::{ReserveError, StoreError, UnreserveError},
    rows,
};

/// A reserved subnet, with what is held of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetView {
    pub identifier: String,
    pub subnet: Ipv4Net,
    pub counts: LeaseCounts,
}

impl Store {
    /// Reserves a subnet of this size for `identifier`, or returns the one that it has, and whether it is new.
    pub async fn reserve_subnet(
        &self,
        identifier: String,
        prefix_length: u8,
        now: SystemTime,
    ) -> Result<(SubnetView, bool), ReserveError> {
        self.blocking(move |inner| inner.reserve_subnet(&identifier, prefix_length, now))
            .await
    }

    /// Gives the subnet of `identifier` to everybody again, unless an address of it is held. Returns it as it was.
    pub async fn unreserve_subnet(&self, identifier: String) -> Result<SubnetView, UnreserveError> {
        self.blocking(move |inner| inner.unreserve_subnet(&identifier))
            .await
    }

    /// The reserved subnets, by identifier.
    pub async fn reserved_subnets(&self, now: SystemTime) -> Vec<SubnetView> {
        self.blocking(move |inner| {
            // What is durable already is counted.
            let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let reserved = inner.addresses().reserved().clone();
            let views = reserved.into_iter();
            views
                .map(|(it, net)| inner.subnet_view(&it, net, now))
                .collect()
        })
        .await
    }
}

impl Inner {
    fn subnet_view(&self, identifier: &str, subnet: Ipv4Net, now: SystemTime) -> SubnetView {
        let span = subnets::span(self.subnets.v4, subnet);
        SubnetView {
            identifier: identifier.to_owned(),
            subnet,
            counts: self.addresses().count([&span], now, self.cool_down),
        }
    }

    fn reserve_subnet(
        &self,
        identifier: &str,
        prefix_length: u8,
        now: SystemTime,
    ) -> Result<(SubnetView, bool), ReserveError> {
        let (net, is_new) = self.write_aside(|txn| {
            let mut table = txn.open_table(SUBNETS).map_err(StoreError::from)?;
            let held = match table.get(identifier).map_err(StoreError::from)? {
                Some(bytes) => {
                    let net = rows::subnet(identifier, bytes.value());
                    Some(net.map_err(StoreError::Unreadable)?)
                }
                None => None,
            };
            if let Some(subnet) = held {
                return match subnet.prefix_len() == prefix_length {
                    true => Ok((subnet, false)),
                    false => Err(ReserveError::Conflict {
                        identifier: identifier.to_owned(),
                        subnet,
                    }),
                };
            }
            let mut addresses = self.addresses();
            let reserved = addresses.reserved().len();
            if reserved >= RESERVED_MAX {
                return Err(ReserveError::TooMany {
                    limit: RESERVED_MAX as u64,
                });
            }
            let room = addresses.find_room(self.subnets.v4, prefix_length, now, self.cool_down);
            let net = room.ok_or(ReserveError::Exhausted {
                prefix_length,
                reserved: reserved as u64,
            })?;
            rows::put_subnet(&mut table, identifier, net)?;
            addresses.note_reserved(identifier, net);
            Ok((net, true))
        })?;
        Ok((self.subnet_view(identifier, net, now), is_new))
    }

    fn unreserve_subnet(&self, identifier: &str) -> Result<SubnetView, UnreserveError> {
        let now = SystemTime::now();
        self.write_aside(|txn| {
            let mut table = txn.open_table(SUBNETS).map_err(StoreError::from)?;
            let Some(subnet) = self.addresses().reserved().get(identifier).copied() else {
                let identifier = identifier.to_owned();
                return Err(UnreserveError::NotFound { identifier });
            };
            let view = self.subnet_view(identifier, subnet, now);
            if view.counts.held > 0 {
                let held = view.counts.held;
                return Err(UnreserveError::InUse { subnet, held });
            }
            table.remove(identifier).map_err(StoreError::from)?;
            self.addresses().note_unreserved(identifier);
            Ok(view)
        })
    }
}

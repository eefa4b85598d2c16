//! The entries of the tables, one by one: an entry that cannot be read is told apart from a store that fails.

use std::{collections::VecDeque, net::Ipv4Addr, ops::Bound, time::SystemTime};

use berth_domain::{
    Generation, SandboxId, SandboxRecord,
    catalog::{Entry, Key, Kind},
    collection::Collection,
    subnets::{self, Reserved},
};
use ipnet::Ipv4Net;
use redb::{ReadTransaction, ReadableTable, WriteTransaction};

use crate::{
    database::{CHANGES, META, RECORDS, REVISION},
    error::{StoreError, Unreadable},
    store::catalog::Found,
    stored::{
        StoredChange, StoredCollection, StoredEntry, StoredLease, StoredRecord, StoredSubnet,
    },
    watch::Change,
};

/// Changes that a watch can resume over.
pub(crate) const CHANGES_KEPT: u64 = 4096;

/// An address that is held, or rests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub owner: SandboxId,
    pub generation: Generation,
    /// `None` while it is held.
    pub released_at: Option<SystemTime>,
    /// Boot of the node in which the owner's objects were made. Empty: not known.
    pub boot_id: String,
}

/// A row of the leases. One that cannot be read is held: giving its address out could give it to two.
#[derive(Debug)]
pub(crate) struct LeaseRow {
    pub(crate) address: Ipv4Addr,
    pub(crate) lease: Result<Lease, Unreadable>,
}

impl LeaseRow {
    pub(crate) fn released_at(&self) -> Option<SystemTime> {
        self.lease.as_ref().ok().and_then(|it| it.released_at)
    }
}

pub(crate) fn record(id: &str, bytes: &[u8]) -> Result<SandboxRecord, Unreadable> {
    let unreadable = |problem: String| Unreadable::record(id, problem);
    let stored: StoredRecord =
        serde_json::from_slice(bytes).map_err(|it| unreadable(it.to_string()))?;
    if stored.id() != id {
        return Err(unreadable(format!("it is the record of {}", stored.id())));
    }
    stored.try_into().map_err(unreadable)
}

pub(crate) fn lease(address: Ipv4Addr, bytes: &[u8]) -> Result<Lease, Unreadable> {
    let stored: StoredLease =
        serde_json::from_slice(bytes).map_err(|it| Unreadable::other("lease", address, it))?;
    let owner =
        SandboxId::parse(&stored.owner).map_err(|it| Unreadable::other("lease", address, it))?;
    Ok(Lease {
        address,
        owner,
        generation: Generation(stored.generation),
        released_at: stored.released_at,
        boot_id: stored.boot_id,
    })
}

pub(crate) fn change(at: u64, bytes: &[u8]) -> Result<Change, Unreadable> {
    let unreadable = |problem: String| Unreadable::other("change", at, problem);
    match serde_json::from_slice(bytes).map_err(|it| unreadable(it.to_string()))? {
        StoredChange::Upserted(record) => {
            let record = SandboxRecord::try_from(*record).map_err(unreadable)?;
            Ok(Change::Upserted(Box::new(record)))
        }
        StoredChange::Removed { id, generation } => Ok(Change::Removed {
            id: SandboxId::parse(&id).map_err(|it| unreadable(it.to_string()))?,
            generation: Generation(generation),
        }),
        StoredChange::EntryPut(entry) => {
            let entry = Entry::try_from(entry).map_err(unreadable)?;
            Ok(Change::EntryPut(Box::new(entry)))
        }
        StoredChange::EntryRemoved { kind, id } => {
            let kind = Kind::ALL.into_iter().find(|it| it.as_str() == kind);
            let kind = kind.ok_or_else(|| unreadable("it is of an unknown kind".to_owned()))?;
            Ok(Change::EntryRemoved(Key { kind, id }))
        }
    }
}

pub(crate) fn entry(key: &str, bytes: &[u8]) -> Result<Entry, Unreadable> {
    let unreadable = |problem: String| Unreadable::other("entry", key, problem);
    let stored: StoredEntry =
        serde_json::from_slice(bytes).map_err(|it| unreadable(it.to_string()))?;
    let entry = Entry::try_from(stored).map_err(unreadable)?;
    let own = entry.object.key().to_text();
    if own != key {
        return Err(unreadable(format!("it is the entry {own}")));
    }
    Ok(entry)
}

/// The entries that can be read, by kind and id, and those that cannot.
pub(crate) fn entries(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<(Vec<Entry>, Vec<Unreadable>), StoreError> {
    let (mut readable, mut unreadable) = (vec![], vec![]);
    for row in table.iter()? {
        let (key, bytes) = row?;
        match entry(key.value(), bytes.value()) {
            Ok(entry) => readable.push(entry),
            Err(entry) => unreadable.push(entry),
        }
    }
    Ok((readable, unreadable))
}

/// The entries of one kind or of all, behind a key, one at a time.
pub(crate) fn entries_after(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    kind: Option<Kind>,
    after: Option<&Key>,
) -> Result<impl Iterator<Item = Result<Result<Entry, Unreadable>, StoreError>>, StoreError> {
    let prefix = kind.map(|it| format!("{}/", it.as_str()));
    let first = prefix.clone().unwrap_or_default();
    let after = after.map(Key::to_text).filter(|it| *it >= first);
    let from = match &after {
        Some(after) => Bound::Excluded(after.as_str()),
        None => Bound::Included(first.as_str()),
    };
    let rows = table.range::<&str>((from, Bound::Unbounded))?;
    let read = rows.map(|row| {
        let (key, bytes) = row?;
        Ok((key.value().to_owned(), entry(key.value(), bytes.value())))
    });
    let of_kind = read.take_while(move |row: &Result<(String, _), StoreError>| {
        let of_kind = |(key, _): &(String, _)| {
            let prefix = prefix.as_deref().unwrap_or_default();
            key.starts_with(prefix)
        };
        row.as_ref().map_or(true, of_kind)
    });
    Ok(of_kind.map(|row| row.map(|(_, entry)| entry)))
}

pub(crate) fn find_entry(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &Key,
) -> Result<Found, StoreError> {
    let key = key.to_text();
    let Some(bytes) = table.get(key.as_str())? else {
        return Ok(Found::Nothing);
    };
    Ok(match entry(&key, bytes.value()) {
        Ok(entry) => Found::Entry(entry),
        Err(entry) => Found::Unreadable(entry),
    })
}

pub(crate) fn put_entry(
    table: &mut redb::Table<'_, &'static str, &'static [u8]>,
    entry: &Entry,
) -> Result<(), StoreError> {
    let key = entry.object.key().to_text();
    table.insert(key.as_str(), encode(&StoredEntry::from(entry)).as_slice())?;
    Ok(())
}

pub(crate) fn find(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    id: &SandboxId,
) -> Result<Option<SandboxRecord>, StoreError> {
    match table.get(id.as_str())? {
        Some(bytes) => record(id.as_str(), bytes.value())
            .map(Some)
            .map_err(StoreError::Unreadable),
        None => Ok(None),
    }
}

/// At most `limit` readable records behind `after`, by id, and what stands between them that is not readable.
pub(crate) fn records(
    txn: &ReadTransaction,
    after: Option<&SandboxId>,
    limit: usize,
) -> Result<(Vec<SandboxRecord>, Vec<Unreadable>), StoreError> {
    use std::ops::Bound::{Excluded, Unbounded};
    let table = txn.open_table(RECORDS)?;
    let begin = after.map_or(Unbounded, |it| Excluded(it.as_str()));
    let (mut readable, mut unreadable) = (vec![], vec![]);
    for entry in table.range::<&str>((begin, Unbounded))? {
        if readable.len() == limit {
            break;
        }
        let (id, bytes) = entry?;
        match record(id.value(), bytes.value()) {
            Ok(record) => readable.push(record),
            Err(entry) => unreadable.push(entry),
        }
    }
    Ok((readable, unreadable))
}

/// By address.
pub(crate) fn leases(
    table: &impl ReadableTable<u32, &'static [u8]>,
) -> Result<Vec<LeaseRow>, StoreError> {
    table
        .iter()?
        .map(|entry| {
            let (address, bytes) = entry?;
            let address = Ipv4Addr::from(address.value());
            let lease = lease(address, bytes.value());
            Ok(LeaseRow { address, lease })
        })
        .collect()
}

pub(crate) fn subnet(identifier: &str, bytes: &[u8]) -> Result<Ipv4Net, Unreadable> {
    let unreadable = |problem: String| Unreadable::other("subnet", identifier, problem);
    let stored: StoredSubnet =
        serde_json::from_slice(bytes).map_err(|it| unreadable(it.to_string()))?;
    subnets::check_identifier(identifier)
        .map_err(|it| unreadable(format!("its identifier {it}")))?;
    if stored.subnet != stored.subnet.trunc() {
        return Err(unreadable("it has bits behind its prefix".to_owned()));
    }
    Ok(stored.subnet)
}

/// The reserved subnets that can be read, and those that cannot.
pub(crate) fn subnets(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<(Reserved, Vec<Unreadable>), StoreError> {
    let (mut readable, mut unreadable) = (Reserved::new(), vec![]);
    for entry in table.iter()? {
        let (identifier, bytes) = entry?;
        match subnet(identifier.value(), bytes.value()) {
            Ok(net) => drop(readable.insert(identifier.value().to_owned(), net)),
            Err(entry) => unreadable.push(entry),
        }
    }
    Ok((readable, unreadable))
}

pub(crate) fn put_subnet(
    table: &mut redb::Table<'_, &'static str, &'static [u8]>,
    identifier: &str,
    subnet: Ipv4Net,
) -> Result<(), StoreError> {
    table.insert(identifier, encode(&StoredSubnet { subnet }).as_slice())?;
    Ok(())
}

pub(crate) fn collection(id: u64, bytes: &[u8]) -> Result<Collection, Unreadable> {
    let unreadable = |problem: String| Unreadable::other("collection", id, problem);
    let stored: StoredCollection =
        serde_json::from_slice(bytes).map_err(|it| unreadable(it.to_string()))?;
    let collection = Collection::try_from(stored).map_err(unreadable)?;
    if collection.id != id {
        let problem = format!("it is the collection {}", collection.id);
        return Err(Unreadable::other("collection", id, problem));
    }
    Ok(collection)
}

/// The collections that can be read, oldest first, and those that cannot.
pub(crate) fn collections(
    table: &impl ReadableTable<u64, &'static [u8]>,
) -> Result<(Vec<Collection>, Vec<Unreadable>), StoreError> {
    let (mut readable, mut unreadable) = (vec![], vec![]);
    for row in table.iter()? {
        let (id, bytes) = row?;
        match collection(id.value(), bytes.value()) {
            Ok(it) => readable.push(it),
            Err(entry) => unreadable.push(entry),
        }
    }
    Ok((readable, unreadable))
}

pub(crate) fn put_collection(
    table: &mut redb::Table<'_, u64, &'static [u8]>,
    it: &Collection,
) -> Result<(), StoreError> {
    table.insert(it.id, encode(&StoredCollection::from(it)).as_slice())?;
    Ok(())
}

/// `None` where a change behind `from` is not kept, cannot be read, or `from` was never reached.
pub(crate) fn past_changes(
    txn: &ReadTransaction,
    from: u64,
) -> Result<Option<VecDeque<(u64, Change)>>, StoreError> {
    let table = txn.open_table(CHANGES)?;
    let last = revision(txn)?;
    let first = table.first()?.map_or(last + 1, |(at, _)| at.value());
    if from > last || from + 1 < first {
        return Ok(None);
    }
    let mut past = VecDeque::new();
    for entry in table.range(from + 1..)? {
        let (at, bytes) = entry?;
        match change(at.value(), bytes.value()) {
            Ok(change) => past.push_back((at.value(), change)),
            // A reader must not miss one: it begins anew with all that stands.
            Err(entry) => {
                tracing::warn!(%entry, "a watch cannot be resumed");
                return Ok(None);
            }
        }
    }
    Ok(Some(past))
}

pub(crate) fn revision(txn: &ReadTransaction) -> Result<u64, StoreError> {
    Ok(txn
        .open_table(META)?
        .get(REVISION)?
        .map_or(0, |it| it.value()))
}

pub(crate) fn bump(txn: &WriteTransaction) -> Result<u64, StoreError> {
    let mut meta = txn.open_table(META)?;
    let next = meta.get(REVISION)?.map_or(0, |it| it.value()) + 1;
    meta.insert(REVISION, next)?;
    Ok(next)
}

/// Keeps the change for those who resume, and forgets the oldest.
pub(crate) fn note(txn: &WriteTransaction, at: u64, change: &Change) -> Result<(), StoreError> {
    let stored = match change {
        Change::Upserted(record) => {
            StoredChange::Upserted(Box::new(StoredRecord::from(record.as_ref())))
        }
        Change::Removed { id, generation } => StoredChange::Removed {
            id: id.to_string(),
            generation: generation.0,
        },
        Change::EntryPut(entry) => StoredChange::EntryPut(entry.as_ref().into()),
        Change::EntryRemoved(key) => StoredChange::EntryRemoved {
            kind: key.kind.as_str().to_owned(),
            id: key.id.clone(),
        },
    };
    let mut table = txn.open_table(CHANGES)?;
    table.insert(at, encode(&stored).as_slice())?;
    table.remove(at.saturating_sub(CHANGES_KEPT))?;
    Ok(())
}

pub(crate) fn put(
    table: &mut redb::Table<'_, &'static str, &'static [u8]>,
    record: &SandboxRecord,
) -> Result<(), StoreError> {
    table.insert(
        record.id.as_str(),
        encode(&StoredRecord::from(record)).as_slice(),
    )?;
    Ok(())
}

pub(crate) fn put_lease(
    table: &mut redb::Table<'_, u32, &'static [u8]>,
    lease: &Lease,
) -> Result<(), StoreError> {
    let stored = StoredLease {
        owner: lease.owner.to_string(),
        generation: lease.generation.0,
        released_at: lease.released_at,
        boot_id: lease.boot_id.clone(),
    };
    table.insert(u32::from(lease.address), encode(&stored).as_slice())?;
    Ok(())
}

pub(crate) fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("keys are texts and times lie behind 1970")
}

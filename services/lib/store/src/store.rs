//! What is changed together, a transaction each. Writers go one after another, so that changes are published in the order of their revisions. How a transaction is run, `transactions.rs` knows.

pub(crate) mod catalog;
pub(crate) mod collections;
pub(crate) mod images;
pub(crate) mod leases;
pub(crate) mod subnets;
mod transactions;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use berth_domain::{
    Admission, Generation, ImageRef, Protocol, SandboxId, SandboxRecord, SandboxSpec, Terms, admit,
    ipam::{self, Subnets},
    node_port_conflict,
    record::Ending,
};
use ipnet::{IpNet, Ipv4Net};
use redb::{Database, ReadableTable, ReadableTableMetadata as _, WriteTransaction};
use tokio::sync::broadcast;

use self::transactions::{Purpose, addresses};
use crate::{
    addresses::Addresses,
    database::{self, CATALOG, COLLECTIONS, LEASES, Lock, RECORDS, SETTINGS, SUBNETS},
    error::{AdmitError, StoreError, Unreadable, UpdateError},
    node_ports::NodePorts,
    reserve::Reserve,
    rows::{self, Lease, find, put, revision},
    watch::{Change, Watch},
};

/// Changes that a reader may fall behind.
const READER_LAG: usize = 1024;
/// Of the settings: why the node drains. Absent while it does not.
const DRAIN: &str = "drain";

/// The records of one manager. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    path: PathBuf,
    subnets: Subnets,
    cool_down: Duration,
    _lock: Lock,
    reserve: Reserve,
    /// Whether anything was written since room was last looked for, so that there may be some.
    written: AtomicBool,
    /// Empty only while it is opened anew after the disk failed.
    database: RwLock<Option<Database>>,
    /// Held from the beginning of a write until its change is published.
    writing: Mutex<()>,
    /// Changed while `writing` is held.
    node_ports: Mutex<NodePorts>,
    /// Follows each commit while the database is at hand for it.
    addresses: Mutex<Addresses>,
    changes: broadcast::Sender<(u64, Change)>,
}

/// What a Create brings beside its spec.
#[derive(Clone, Debug, Default)]
pub struct Arrival {
    /// The generation that the caller means to join.
    pub expected: Option<Generation>,
    pub expires_at: Option<SystemTime>,
    /// The boot in which it is made.
    pub boot_id: String,
    /// Ports on which programs of the node listen.
    pub node_listens: BTreeSet<(Protocol, u16)>,
    /// Digests of those images of its spec that are on the node.
    pub held_images: BTreeMap<ImageRef, String>,
    /// How many records there may be, those of sandboxes that have ended as well.
    pub records_max: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Admitted {
    Begun(SandboxRecord),
    Joined(SandboxRecord),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseCounts {
    pub capacity: u64,
    /// With those whose lease cannot be read.
    pub held: u64,
    /// Released less than the cool-down ago.
    pub cooling: u64,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.0.path)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store, making it where there is none. Fails where another process has it, where its file is damaged, or
    /// where a held address lies outside of `subnet`.
    pub fn open(path: &Path, subnet: Ipv4Net, cool_down: Duration) -> Result<Self, StoreError> {
        Self::open_within(path, subnet.into(), cool_down)
    }

    /// As `open`, where sandboxes may have IPv6 addresses beside.
    pub fn open_within(
        path: &Path,
        subnets: Subnets,
        cool_down: Duration,
    ) -> Result<Self, StoreError> {
        let lock = Lock::take(path)?;
        let database = database::open(path)?;
        let reserve = Reserve::of(path);
        if let Err(error) = reserve.fill() {
            tracing::warn!(%error, "no disk space can be held back for the store");
        }
        let store = Self(Arc::new(Inner {
            path: path.to_owned(),
            subnets,
            cool_down,
            _lock: lock,
            reserve,
            written: AtomicBool::new(true),
            database: RwLock::new(Some(database)),
            writing: Mutex::default(),
            node_ports: Mutex::default(),
            addresses: Mutex::default(),
            changes: broadcast::channel(READER_LAG).0,
        }));
        store.0.check_leases()?;
        let (records, _) = store.0.read(|txn| rows::records(txn, None, usize::MAX))?;
        store.0.check_addresses(&records)?;
        *store.0.node_ports() = NodePorts::of(&records);
        *store.0.addresses() = store.0.read(addresses)?;
        Ok(store)
    }

    /// The subnet that addresses are taken from.
    pub fn subnet(&self) -> Ipv4Net {
        self.0.subnets.v4
    }

    /// With that of the IPv6 addresses that belong to them.
    pub fn subnets(&self) -> Subnets {
        self.0.subnets
    }

    /// Decides over a Create and, where it begins, makes the record and takes its address in one transaction.
    pub async fn admit(
        &self,
        id: &SandboxId,
        spec: Arc<SandboxSpec>,
        arrival: Arrival,
        now: SystemTime,
    ) -> Result<Admitted, AdmitError> {
        let id = id.clone();
        self.blocking(move |inner| inner.admit(&id, &spec, &arrival, now))
            .await
    }

    /// Says why the node takes no new sandboxes from here on; `None` opens it again.
    pub async fn set_drain(&self, why: Option<String>) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.set_drain(why.as_deref()))
            .await
    }

    /// Why the node takes no new sandboxes; `None` while it does.
    pub async fn drain(&self) -> Result<Option<String>, StoreError> {
        self.blocking(|inner| inner.read(|txn| draining(&txn.open_table(SETTINGS)?)))
            .await
    }

    /// Changes the record of this id and generation, unless its status may not move so.
    pub async fn update(
        &self,
        id: &SandboxId,
        generation: Generation,
        now: SystemTime,
        change: impl FnOnce(&mut SandboxRecord) + Send + 'static,
    ) -> Result<SandboxRecord, UpdateError> {
        let id = id.clone();
        self.blocking(move |inner| inner.update(&id, generation, now, change, false))
            .await
    }

    /// As `update`, and releases the addresses.
    pub async fn bury(
        &self,
        id: &SandboxId,
        generation: Generation,
        now: SystemTime,
        change: impl FnOnce(&mut SandboxRecord) + Send + 'static,
    ) -> Result<SandboxRecord, UpdateError> {
        let id = id.clone();
        self.blocking(move |inner| inner.update(&id, generation, now, change, true))
            .await
    }

    /// Removes the record of this id and generation with its leases; returns whether there was one.
    pub async fn remove(
        &self,
        id: &SandboxId,
        generation: Generation,
        now: SystemTime,
    ) -> Result<bool, StoreError> {
        let id = id.clone();
        self.blocking(move |inner| inner.remove(&id, generation, now))
            .await
    }

    /// Puts a readable remnant in the place of a record that cannot be read: a new generation that holds the addresses
    /// of the old one and is told to be deleted. A record that can be read is returned as it is.
    pub async fn reclaim(
        &self,
        id: &SandboxId,
        now: SystemTime,
    ) -> Result<Option<SandboxRecord>, StoreError> {
        let id = id.clone();
        self.blocking(move |inner| inner.reclaim(&id, now)).await
    }

    /// Lets an address rest that is held for this owner and generation, unless a record explains it; returns whether it
    /// does rest.
    pub async fn release_unexplained(
        &self,
        address: Ipv4Addr,
        owner: &SandboxId,
        generation: Generation,
        now: SystemTime,
    ) -> Result<bool, StoreError> {
        let owner = owner.clone();
        self.blocking(move |inner| inner.release_unexplained(address, &owner, generation, now))
            .await
    }

    pub async fn get(&self, id: &SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
        let id = id.clone();
        self.blocking(move |inner| inner.read(|txn| find(&txn.open_table(RECORDS)?, &id)))
            .await
    }

    /// All records that can be read, by id.
    pub async fn all(&self) -> Result<Vec<SandboxRecord>, StoreError> {
        self.blocking(|inner| inner.read(|txn| rows::records(txn, None, usize::MAX)))
            .await
            .map(|(readable, _)| readable)
    }

    /// The records, leases, entries of the catalog, reserved subnets and collections that cannot be read. A change that cannot be read only ends a watch, and goes with time.
    pub async fn unreadable(&self) -> Result<Vec<Unreadable>, StoreError> {
        self.blocking(|inner| {
            inner.read(|txn| {
                let (_, mut unreadable) = rows::records(txn, None, usize::MAX)?;
                let leases = rows::leases(&txn.open_table(LEASES)?)?;
                unreadable.extend(leases.into_iter().filter_map(|it| it.lease.err()));
                unreadable.extend(rows::entries(&txn.open_table(CATALOG)?)?.1);
                unreadable.extend(rows::subnets(&txn.open_table(SUBNETS)?)?.1);
                unreadable.extend(rows::collections(&txn.open_table(COLLECTIONS)?)?.1);
                Ok(unreadable)
            })
        })
        .await
    }

    /// At most `limit` records behind `after` that can be read, by id, and the revision that they were read at.
    pub async fn list(
        &self,
        after: Option<SandboxId>,
        limit: usize,
    ) -> Result<(Vec<SandboxRecord>, u64), StoreError> {
        self.blocking(move |inner| {
            inner.read(|txn| {
                let (readable, _) = rows::records(txn, after.as_ref(), limit)?;
                Ok((readable, revision(txn)?))
            })
        })
        .await
    }

    /// Every address that is held or was, by address, where its lease can be read.
    pub async fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        let rows = self.lease_rows().await?;
        Ok(rows.into_iter().filter_map(|it| it.lease.ok()).collect())
    }

    /// Counts the addresses of the whole subnet.
    pub async fn lease_counts(&self) -> Result<LeaseCounts, StoreError> {
        self.blocking(|inner| {
            // What is durable already is counted.
            let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let span = ipam::span(inner.subnets.v4);
            let now = SystemTime::now();
            Ok(inner.addresses().count([&span], now, inner.cool_down))
        })
        .await
    }

    /// The addresses that the next `count` sandboxes are given that ask for no part of the subnet, as things stand.
    pub fn upcoming_addresses(&self, count: usize) -> Vec<Ipv4Addr> {
        let addresses = self.0.addresses();
        let open = berth_domain::subnets::open_spans(self.0.subnets.v4, addresses.reserved());
        addresses.upcoming(&open, SystemTime::now(), self.0.cool_down, count)
    }

    async fn lease_rows(&self) -> Result<Vec<rows::LeaseRow>, StoreError> {
        self.blocking(|inner| inner.read(|txn| rows::leases(&txn.open_table(LEASES)?)))
            .await
    }

    pub async fn revision(&self) -> Result<u64, StoreError> {
        self.blocking(|inner| inner.read(revision)).await
    }

    /// All records that can be read, the revision that they were read at, and a watch of everything that follows.
    pub async fn snapshot_and_watch(&self) -> Result<(Vec<SandboxRecord>, u64, Watch), StoreError> {
        self.blocking(|inner| {
            let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let changes = inner.changes.subscribe();
            let (all, at) = inner.read(|txn| {
                let (readable, _) = rows::records(txn, None, usize::MAX)?;
                Ok((readable, revision(txn)?))
            })?;
            Ok((
                all,
                at,
                Watch {
                    past: VecDeque::new(),
                    changes,
                },
            ))
        })
        .await
    }

    /// A watch of everything behind the revision `from`; `None` where that is no longer kept, cannot be read or was never
    /// reached.
    pub async fn watch(&self, from: u64) -> Result<Option<Watch>, StoreError> {
        self.blocking(move |inner| {
            let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let changes = inner.changes.subscribe();
            let past = inner.read(|txn| rows::past_changes(txn, from))?;
            Ok(past.map(|past| Watch { past, changes }))
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> T + Send + 'static,
    ) -> T {
        let inner = self.0.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going away, and with it whoever waits here.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

impl Inner {
    fn node_ports(&self) -> MutexGuard<'_, NodePorts> {
        self.node_ports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A port of the node belongs to one sandbox, or to a program of the node.
    fn check_node_ports(&self, spec: &SandboxSpec, arrival: &Arrival) -> Result<(), AdmitError> {
        let refused = |failure| Err(AdmitError::Refused(failure));
        if let Some((protocol, port, owner)) = self.node_ports().conflict(spec) {
            return refused(node_port_conflict(protocol, port, Some(owner)));
        }
        let listens = spec
            .claimed_ports()
            .find(|it| arrival.node_listens.contains(it));
        match listens {
            Some((protocol, port)) => refused(node_port_conflict(protocol, port, None)),
            None => Ok(()),
        }
    }

    fn check_leases(&self) -> Result<(), StoreError> {
        let rows = self.read(|txn| rows::leases(&txn.open_table(LEASES)?))?;
        let foreign = rows
            .iter()
            .filter_map(|it| it.lease.as_ref().ok())
            .find(|it| it.released_at.is_none() && !self.subnets.v4.contains(&it.address));
        match foreign {
            None => Ok(()),
            Some(it) => Err(StoreError::ForeignAddress {
                configured: self.subnets.to_string(),
                address: it.address.to_string(),
                owner: it.owner.to_string(),
            }),
        }
    }

    /// A record without an IPv6 address was made where there were none, and stays so. One that has another than the subnet
    /// gives would have it behind rules that know nothing of it.
    fn check_addresses(&self, records: &[SandboxRecord]) -> Result<(), StoreError> {
        let addresses = records
            .iter()
            .flat_map(|record| record.addresses.iter().map(move |it| (record, it.addr())));
        let mut foreign = addresses.filter(|(_, it)| it.is_ipv6() && !self.subnets.contain(*it));
        match foreign.next() {
            None => Ok(()),
            Some((record, address)) => Err(StoreError::ForeignAddress {
                configured: self.subnets.to_string(),
                address: address.to_string(),
                owner: record.id.to_string(),
            }),
        }
    }

    fn admit(
        &self,
        id: &SandboxId,
        spec: &Arc<SandboxSpec>,
        arrival: &Arrival,
        now: SystemTime,
    ) -> Result<Admitted, AdmitError> {
        self.write(Purpose::Begin, |txn, next| {
            let mut table = txn.open_table(RECORDS).map_err(StoreError::from)?;
            let terms = Terms {
                expected: arrival.expected,
                draining: draining(&txn.open_table(SETTINGS).map_err(StoreError::from)?)?,
            };
            let held = find(&table, id)?;
            match (admit(held.as_ref(), spec, &terms), held) {
                (Admission::Refuse(failure), _) => Err(AdmitError::Refused(failure)),
                (Admission::Join, Some(record)) => Ok((Admitted::Joined(record), None)),
                (Admission::Begin | Admission::Join, held) => {
                    self.check_node_ports(spec, arrival)?;
                    let records = table.len().map_err(StoreError::from)?;
                    let full = arrival.records_max.filter(|limit| records >= *limit);
                    if let (None, Some(limit)) = (&held, full) {
                        return Err(AdmitError::TooMany { limit });
                    }
                    let generation = Generation(next);
                    let addresses = match spec.host_network {
                        true => vec![],
                        false => self.lease(txn, id, generation, spec, arrival, now)?,
                    };
                    let record = SandboxRecord {
                        expires_at: arrival.expires_at,
                        boot_id: arrival.boot_id.clone(),
                        held_images: arrival.held_images.clone(),
                        ..SandboxRecord::new(id.clone(), generation, spec.clone(), addresses, now)
                    };
                    put(&mut table, &record)?;
                    images::note_uses(txn, None, Some(&record), now)?;
                    let change = Change::Upserted(Box::new(record.clone()));
                    Ok((Admitted::Begun(record), Some(change)))
                }
            }
        })
    }

    fn set_drain(&self, why: Option<&str>) -> Result<(), StoreError> {
        self.write_aside(|txn| {
            let mut table = txn.open_table(SETTINGS)?;
            match why {
                Some(why) => drop(table.insert(DRAIN, why)?),
                None => drop(table.remove(DRAIN)?),
            }
            Ok(())
        })
    }

    fn update(
        &self,
        id: &SandboxId,
        generation: Generation,
        now: SystemTime,
        change: impl FnOnce(&mut SandboxRecord),
        release: bool,
    ) -> Result<SandboxRecord, UpdateError> {
        let mut change = Some(change);
        let mut changed: Option<SandboxRecord> = None;
        self.write(Purpose::GoOn, |txn, next| {
            let mut table = txn.open_table(RECORDS).map_err(StoreError::from)?;
            let before = find(&table, id)?.filter(|it| it.generation == generation);
            let before = before.ok_or(UpdateError::Gone)?;
            // No other write comes between a first and a second run: the record is the same.
            let mut record = changed.clone().unwrap_or_else(|| before.clone());
            if let Some(change) = change.take() {
                change(&mut record);
                changed = Some(record.clone());
            }
            before
                .status
                .check_move(record.status)
                .map_err(UpdateError::NotAllowed)?;
            if release {
                self.release_leases(txn, &record, now)?;
                record.addresses.clear();
            } else if record.boot_id != before.boot_id {
                self.renew_leases(txn, &record)?;
            }
            if record == before {
                return Ok((record, None));
            }
            record.revision = next;
            record.updated_at = now;
            put(&mut table, &record)?;
            images::note_uses(txn, Some(&before), Some(&record), now)?;
            Ok((record.clone(), Some(Change::Upserted(Box::new(record)))))
        })
    }

    fn remove(
        &self,
        id: &SandboxId,
        generation: Generation,
        now: SystemTime,
    ) -> Result<bool, StoreError> {
        self.write(Purpose::GoOn, |txn, _| {
            let mut table = txn.open_table(RECORDS)?;
            let Some(record) = find(&table, id)?.filter(|it| it.generation == generation) else {
                return Ok((false, None));
            };
            self.release_leases(txn, &record, now)?;
            table.remove(id.as_str())?;
            images::note_uses(txn, Some(&record), None, now)?;
            let id = id.clone();
            Ok((true, Some(Change::Removed { id, generation })))
        })
    }

    fn release_unexplained(
        &self,
        address: Ipv4Addr,
        owner: &SandboxId,
        generation: Generation,
        now: SystemTime,
    ) -> Result<bool, StoreError> {
        self.write(Purpose::GoOn, |txn, _| {
            // A record that cannot be read may explain it.
            let record = find(&txn.open_table(RECORDS)?, owner)?;
            let explains = |it: &SandboxRecord| {
                it.generation == generation && it.addresses.iter().any(|net| net.addr() == address)
            };
            if record.as_ref().is_some_and(explains) {
                return Ok::<_, StoreError>((false, None));
            }
            let mut table = txn.open_table(LEASES)?;
            let leases = rows::leases(&table)?.into_iter();
            let held = leases.filter_map(|it| it.lease.ok()).find(|it| {
                (it.address, &it.owner, it.generation) == (address, owner, generation)
                    && it.released_at.is_none()
            });
            let Some(lease) = held else {
                return Ok((true, None));
            };
            let released_at = Some(now);
            let lease = Lease {
                released_at,
                ..lease
            };
            self.put_lease(&mut table, &lease)?;
            // What is written down of the owner is what it was.
            let change = match record {
                Some(record) => Change::Upserted(Box::new(record)),
                None => Change::Removed {
                    id: owner.clone(),
                    generation,
                },
            };
            Ok((true, Some(change)))
        })
    }

    fn reclaim(
        &self,
        id: &SandboxId,
        now: SystemTime,
    ) -> Result<Option<SandboxRecord>, StoreError> {
        self.write(Purpose::GoOn, |txn, next| {
            let mut table = txn.open_table(RECORDS)?;
            let problem = match find(&table, id) {
                Err(StoreError::Unreadable(entry)) => entry.problem,
                found => return Ok((found?, None)),
            };
            tracing::warn!(sandbox = %id, problem, "an unreadable record is replaced by a remnant");
            let generation = Generation(next);
            let addresses = self.take_over(txn, id, generation)?;
            let spec = Arc::default();
            let mut remnant = SandboxRecord::new(id.clone(), generation, spec, addresses, now);
            remnant.ending = Some(Ending::Delete);
            remnant.message = format!("its record could not be read: {problem}");
            put(&mut table, &remnant)?;
            let change = Change::Upserted(Box::new(remnant.clone()));
            Ok((Some(remnant), Some(change)))
        })
    }

    /// Makes all that `id` holds its own of this generation.
    fn take_over(
        &self,
        txn: &WriteTransaction,
        id: &SandboxId,
        generation: Generation,
    ) -> Result<Vec<IpNet>, StoreError> {
        let mut table = txn.open_table(LEASES)?;
        let leases = rows::leases(&table)?.into_iter();
        let held = leases
            .filter_map(|it| it.lease.ok())
            .filter(|it| it.owner == *id && it.released_at.is_none());
        let mut addresses = vec![];
        for lease in held {
            let address = lease.address;
            let lease = Lease {
                generation,
                ..lease
            };
            self.put_lease(&mut table, &lease)?;
            // One that has no IPv6 address loses nothing by a name for it.
            addresses.extend(self.subnets.addresses(address));
        }
        Ok(addresses)
    }
}

fn draining(
    table: &impl ReadableTable<&'static str, &'static str>,
) -> Result<Option<String>, StoreError> {
    Ok(table.get(DRAIN)?.map(|it| it.value().to_owned()))
}

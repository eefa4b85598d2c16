//! The transactions. Writers go one after another, so that changes are published in the order of their revisions.

use std::{
    collections::VecDeque,
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use berth_domain::{
    Admission, Generation, SandboxId, SandboxRecord, SandboxSpec, admit,
    ipam::{self, Taken},
};
use ipnet::{IpNet, Ipv4Net};
use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable, TableDefinition,
    WriteTransaction,
};
use tokio::sync::broadcast;

use crate::{
    error::{AdmitError, StoreError, UpdateError},
    stored::{StoredChange, StoredLease, StoredRecord},
    watch::{Change, Watch},
};

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");
const LEASES: TableDefinition<u32, &[u8]> = TableDefinition::new("leases");
const CHANGES: TableDefinition<u64, &[u8]> = TableDefinition::new("changes");

const REVISION: &str = "revision";
const SCHEMA: &str = "schema";
const KNOWN_SCHEMA: u64 = 1;
/// Changes that a watch can resume over.
const CHANGES_KEPT: u64 = 4096;
/// Changes that a reader may fall behind.
const READER_LAG: usize = 1024;

/// The records of one manager. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    path: PathBuf,
    subnet: Ipv4Net,
    cool_down: Duration,
    /// Empty only while it is opened anew after the disk failed.
    database: RwLock<Option<Database>>,
    /// Held from the beginning of a write until its change is published.
    writing: Mutex<()>,
    changes: broadcast::Sender<(u64, Change)>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Admitted {
    Begun(SandboxRecord),
    Joined(SandboxRecord),
}

/// An address that is held, or rests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub owner: SandboxId,
    pub generation: Generation,
    /// `None` while it is held.
    pub released_at: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseCounts {
    pub capacity: u64,
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
    /// Opens the store, making it where there is none. Fails where another process has it, or where a held address lies
    /// outside of `subnet`.
    pub fn open(path: &Path, subnet: Ipv4Net, cool_down: Duration) -> Result<Self, StoreError> {
        let database = open_database(path)?;
        let store = Self(Arc::new(Inner {
            path: path.to_owned(),
            subnet,
            cool_down,
            database: RwLock::new(Some(database)),
            writing: Mutex::default(),
            changes: broadcast::channel(READER_LAG).0,
        }));
        store.0.check_leases()?;
        Ok(store)
    }

    /// Decides over a Create and, where it begins, makes the record and takes its address in one transaction.
    pub async fn admit(
        &self,
        id: &SandboxId,
        spec: Arc<SandboxSpec>,
        now: SystemTime,
    ) -> Result<Admitted, AdmitError> {
        let id = id.clone();
        self.blocking(move |inner| inner.admit(&id, &spec, now))
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

    /// All records, by id.
    pub async fn all(&self) -> Result<Vec<SandboxRecord>, StoreError> {
        self.blocking(|inner| inner.read(|txn| records(txn, None, usize::MAX)))
            .await
    }

    /// At most `limit` records behind `after`, by id, and the revision that they were read at.
    pub async fn list(
        &self,
        after: Option<SandboxId>,
        limit: usize,
    ) -> Result<(Vec<SandboxRecord>, u64), StoreError> {
        self.blocking(move |inner| {
            inner.read(|txn| Ok((records(txn, after.as_ref(), limit)?, revision(txn)?)))
        })
        .await
    }

    /// Every address that is held or was, by address.
    pub async fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        self.blocking(|inner| inner.read(|txn| leases(&txn.open_table(LEASES)?)))
            .await
    }

    pub async fn lease_counts(&self) -> Result<LeaseCounts, StoreError> {
        let leases = self.leases().await?;
        let now = SystemTime::now();
        let rests = |at: SystemTime| {
            now.duration_since(at)
                .is_ok_and(|rest| rest < self.0.cool_down)
        };
        Ok(LeaseCounts {
            capacity: ipam::capacity(self.0.subnet),
            held: leases.iter().filter(|it| it.released_at.is_none()).count() as u64,
            cooling: leases
                .iter()
                .filter(|it| it.released_at.is_some_and(rests))
                .count() as u64,
        })
    }

    pub async fn revision(&self) -> Result<u64, StoreError> {
        self.blocking(|inner| inner.read(revision)).await
    }

    /// All records, the revision that they were read at, and a watch of everything that follows.
    pub async fn snapshot_and_watch(&self) -> Result<(Vec<SandboxRecord>, u64, Watch), StoreError> {
        self.blocking(|inner| {
            let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let changes = inner.changes.subscribe();
            let (all, at) =
                inner.read(|txn| Ok((records(txn, None, usize::MAX)?, revision(txn)?)))?;
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

    /// A watch of everything behind the revision `from`; `None` where that is no longer kept or was never reached.
    pub async fn watch(&self, from: u64) -> Result<Option<Watch>, StoreError> {
        self.blocking(move |inner| {
            let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let changes = inner.changes.subscribe();
            let past = inner.read(|txn| past_changes(txn, from))?;
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
    fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let done = {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            match database.as_ref() {
                Some(database) => database
                    .begin_read()
                    .map_err(StoreError::from)
                    .and_then(|it| work(&it)),
                None => Err(redb::Error::PreviousIo.into()),
            }
        };
        done.inspect_err(|error| self.mend(error))
    }

    /// Runs `work` in a transaction of its own, and publishes the change that it returns.
    fn write<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&WriteTransaction, u64) -> Result<(T, Option<Change>), E>,
    ) -> Result<T, E> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self.try_write(work);
        if let Err(Attempt::Store(error)) = &done {
            self.mend(error);
        }
        let (value, change) = done.map_err(|it| match it {
            Attempt::Refused(refused) => refused,
            Attempt::Store(error) => error.into(),
        })?;
        if let Some(change) = change {
            // Nobody may be watching.
            let _ = self.changes.send(change);
        }
        Ok(value)
    }

    #[expect(
        clippy::type_complexity,
        reason = "a value, and the change with its revision"
    )]
    fn try_write<T, E>(
        &self,
        work: impl FnOnce(&WriteTransaction, u64) -> Result<(T, Option<Change>), E>,
    ) -> Result<(T, Option<(u64, Change)>), Attempt<E>> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_ref() else {
            return Err(Attempt::Store(redb::Error::PreviousIo.into()));
        };
        let txn = database.begin_write().map_err(StoreError::from)?;
        let next = bump(&txn)?;
        let (value, change) = work(&txn, next).map_err(Attempt::Refused)?;
        let Some(change) = change else {
            txn.abort().map_err(StoreError::from)?;
            return Ok((value, None));
        };
        note(&txn, next, &change)?;
        txn.commit().map_err(StoreError::from)?;
        Ok((value, Some((next, change))))
    }

    /// Opens the database anew where its error has closed it.
    fn mend(&self, error: &StoreError) {
        if !error.needs_reopening() {
            return;
        }
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // The file has to be let go before it can be opened.
        drop(database.take());
        match open_database(&self.path) {
            Ok(opened) => *database = Some(opened),
            Err(error) => tracing::error!(%error, "the store cannot be opened again"),
        }
    }

    fn check_leases(&self) -> Result<(), StoreError> {
        let held = self.read(|txn| leases(&txn.open_table(LEASES)?))?;
        let foreign = held
            .iter()
            .find(|it| it.released_at.is_none() && !self.subnet.contains(&it.address));
        match foreign {
            None => Ok(()),
            Some(it) => Err(StoreError::ForeignAddress {
                configured: self.subnet.to_string(),
                address: it.address.to_string(),
                owner: it.owner.to_string(),
            }),
        }
    }

    fn admit(
        &self,
        id: &SandboxId,
        spec: &Arc<SandboxSpec>,
        now: SystemTime,
    ) -> Result<Admitted, AdmitError> {
        self.write(|txn, next| {
            let mut table = txn.open_table(RECORDS).map_err(StoreError::from)?;
            let held = find(&table, id)?;
            match (admit(held.as_ref(), spec), held) {
                (Admission::Refuse(failure), _) => Err(AdmitError::Refused(failure)),
                (Admission::Join, Some(record)) => Ok((Admitted::Joined(record), None)),
                (Admission::Begin | Admission::Join, _) => {
                    let generation = Generation(next);
                    let address = self.lease(txn, id, generation, now)?;
                    let record = SandboxRecord::new(
                        id.clone(),
                        generation,
                        spec.clone(),
                        vec![address],
                        now,
                    );
                    put(&mut table, &record)?;
                    let change = Change::Upserted(Box::new(record.clone()));
                    Ok((Admitted::Begun(record), Some(change)))
                }
            }
        })
    }

    /// Takes the address that the domain chooses.
    fn lease(
        &self,
        txn: &WriteTransaction,
        id: &SandboxId,
        generation: Generation,
        now: SystemTime,
    ) -> Result<IpNet, AdmitError> {
        let mut table = txn.open_table(LEASES).map_err(StoreError::from)?;
        let held = leases(&table)?;
        let inside = held.iter().filter(|it| self.subnet.contains(&it.address));
        let taken = inside.clone().map(|it| Taken {
            address: it.address,
            released_at: it.released_at,
        });
        let address = ipam::choose(self.subnet, taken, now, self.cool_down).map_err(|it| {
            let held = inside.filter(|it| it.released_at.is_none()).count() as u64;
            AdmitError::Exhausted {
                capacity: it.capacity,
                held,
            }
        })?;
        let lease = StoredLease {
            owner: id.to_string(),
            generation: generation.0,
            released_at: None,
        };
        table
            .insert(u32::from(address), encode(&lease).as_slice())
            .map_err(StoreError::from)?;
        Ok(ipnet::Ipv4Net::new_assert(address, self.subnet.prefix_len()).into())
    }

    fn update(
        &self,
        id: &SandboxId,
        generation: Generation,
        now: SystemTime,
        change: impl FnOnce(&mut SandboxRecord),
        release: bool,
    ) -> Result<SandboxRecord, UpdateError> {
        self.write(|txn, next| {
            let mut table = txn.open_table(RECORDS).map_err(StoreError::from)?;
            let before = find(&table, id)?.filter(|it| it.generation == generation);
            let before = before.ok_or(UpdateError::Gone)?;
            let mut record = before.clone();
            change(&mut record);
            before
                .status
                .check_move(record.status)
                .map_err(UpdateError::NotAllowed)?;
            if release {
                release_leases(txn, &record, now)?;
                record.addresses.clear();
            }
            if record == before {
                return Ok((record, None));
            }
            record.revision = next;
            record.updated_at = now;
            put(&mut table, &record)?;
            Ok((record.clone(), Some(Change::Upserted(Box::new(record)))))
        })
    }

    fn remove(
        &self,
        id: &SandboxId,
        generation: Generation,
        now: SystemTime,
    ) -> Result<bool, StoreError> {
        self.write(|txn, _| {
            let mut table = txn.open_table(RECORDS)?;
            let Some(record) = find(&table, id)?.filter(|it| it.generation == generation) else {
                return Ok((false, None));
            };
            release_leases(txn, &record, now)?;
            table.remove(id.as_str())?;
            Ok((
                true,
                Some(Change::Removed {
                    id: id.clone(),
                    generation,
                }),
            ))
        })
    }
}

impl Inner {
    fn release_unexplained(
        &self,
        address: Ipv4Addr,
        owner: &SandboxId,
        generation: Generation,
        now: SystemTime,
    ) -> Result<bool, StoreError> {
        self.write(|txn, _| {
            let record = find(&txn.open_table(RECORDS)?, owner)?;
            let explains = |it: &SandboxRecord| {
                it.generation == generation && it.addresses.iter().any(|net| net.addr() == address)
            };
            if record.as_ref().is_some_and(explains) {
                return Ok((false, None));
            }
            let mut table = txn.open_table(LEASES)?;
            let lease: Option<StoredLease> = match table.get(u32::from(address))? {
                Some(bytes) => Some(decode(&address, bytes.value())?),
                None => None,
            };
            let held = lease.filter(|it| {
                (it.owner.as_str(), it.generation) == (owner.as_str(), generation.0)
                    && it.released_at.is_none()
            });
            let Some(lease) = held else {
                return Ok((true, None));
            };
            let resting = StoredLease {
                released_at: Some(now),
                ..lease
            };
            table.insert(u32::from(address), encode(&resting).as_slice())?;
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
}

/// Why a write did not happen.
enum Attempt<E> {
    Refused(E),
    Store(StoreError),
}

impl<E> From<StoreError> for Attempt<E> {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    let database = Database::create(path).map_err(|error| {
        if matches!(error, redb::DatabaseError::DatabaseAlreadyOpen) {
            let path = path.to_owned();
            return StoreError::InUse { path };
        }
        error.into()
    })?;
    match schema(&database)? {
        Some(KNOWN_SCHEMA) => return Ok(database),
        Some(found) => {
            return Err(StoreError::NewerSchema {
                found,
                known: KNOWN_SCHEMA,
            });
        }
        None => {}
    }
    let txn = database.begin_write()?;
    txn.open_table(META)?.insert(SCHEMA, KNOWN_SCHEMA)?;
    txn.open_table(RECORDS)?;
    txn.open_table(LEASES)?;
    txn.open_table(CHANGES)?;
    txn.commit()?;
    Ok(database)
}

/// `None` for a database that has just been made.
fn schema(database: &Database) -> Result<Option<u64>, StoreError> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get(SCHEMA)?.map(|it| it.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn bump(txn: &WriteTransaction) -> Result<u64, StoreError> {
    let mut meta = txn.open_table(META)?;
    let next = meta.get(REVISION)?.map_or(0, |it| it.value()) + 1;
    meta.insert(REVISION, next)?;
    Ok(next)
}

fn revision(txn: &ReadTransaction) -> Result<u64, StoreError> {
    Ok(txn
        .open_table(META)?
        .get(REVISION)?
        .map_or(0, |it| it.value()))
}

/// Keeps the change for those who resume, and forgets the oldest.
fn note(txn: &WriteTransaction, at: u64, change: &Change) -> Result<(), StoreError> {
    let stored = match change {
        Change::Upserted(record) => {
            StoredChange::Upserted(Box::new(StoredRecord::from(record.as_ref())))
        }
        Change::Removed { id, generation } => StoredChange::Removed {
            id: id.to_string(),
            generation: generation.0,
        },
    };
    let mut table = txn.open_table(CHANGES)?;
    table.insert(at, encode(&stored).as_slice())?;
    table.remove(at.saturating_sub(CHANGES_KEPT))?;
    Ok(())
}

fn past_changes(
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
        let change = match decode(&at.value(), bytes.value())? {
            StoredChange::Upserted(record) => Change::Upserted(Box::new(record_of(*record)?)),
            StoredChange::Removed { id, generation } => Change::Removed {
                id: parse_id(&id)?,
                generation: Generation(generation),
            },
        };
        past.push_back((at.value(), change));
    }
    Ok(Some(past))
}

fn find(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    id: &SandboxId,
) -> Result<Option<SandboxRecord>, StoreError> {
    match table.get(id.as_str())? {
        Some(bytes) => record_of(decode(id, bytes.value())?).map(Some),
        None => Ok(None),
    }
}

fn records(
    txn: &ReadTransaction,
    after: Option<&SandboxId>,
    limit: usize,
) -> Result<Vec<SandboxRecord>, StoreError> {
    use std::ops::Bound::{Excluded, Unbounded};
    let table = txn.open_table(RECORDS)?;
    let begin = after.map_or(Unbounded, |it| Excluded(it.as_str()));
    table
        .range::<&str>((begin, Unbounded))?
        .take(limit)
        .map(|entry| {
            let (id, bytes) = entry?;
            record_of(decode(&id.value(), bytes.value())?)
        })
        .collect()
}

fn leases(table: &impl ReadableTable<u32, &'static [u8]>) -> Result<Vec<Lease>, StoreError> {
    table
        .iter()?
        .map(|entry| {
            let (address, bytes) = entry?;
            let address = Ipv4Addr::from(address.value());
            let lease: StoredLease = decode(&address, bytes.value())?;
            Ok(Lease {
                address,
                owner: parse_id(&lease.owner)?,
                generation: Generation(lease.generation),
                released_at: lease.released_at,
            })
        })
        .collect()
}

/// Lets the addresses of `record` rest, as far as they are still its own.
fn release_leases(
    txn: &WriteTransaction,
    record: &SandboxRecord,
    now: SystemTime,
) -> Result<(), StoreError> {
    let mut table = txn.open_table(LEASES)?;
    for net in &record.addresses {
        let IpAddr::V4(address) = net.addr() else {
            continue;
        };
        let lease: Option<StoredLease> = match table.get(u32::from(address))? {
            Some(bytes) => Some(decode(&address, bytes.value())?),
            None => None,
        };
        if let Some(lease) = lease
            && (lease.owner.as_str(), lease.generation) == (record.id.as_str(), record.generation.0)
        {
            let resting = StoredLease {
                released_at: Some(now),
                ..lease
            };
            table.insert(u32::from(address), encode(&resting).as_slice())?;
        }
    }
    Ok(())
}

fn put(
    table: &mut redb::Table<'_, &'static str, &'static [u8]>,
    record: &SandboxRecord,
) -> Result<(), StoreError> {
    table.insert(
        record.id.as_str(),
        encode(&StoredRecord::from(record)).as_slice(),
    )?;
    Ok(())
}

fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("keys are texts and times lie behind 1970")
}

fn decode<T: serde::de::DeserializeOwned>(
    key: &impl fmt::Display,
    bytes: &[u8],
) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::Unreadable {
        key: key.to_string(),
        problem: error.to_string(),
    })
}

fn record_of(stored: StoredRecord) -> Result<SandboxRecord, StoreError> {
    let key = stored.id().to_owned();
    stored
        .try_into()
        .map_err(|problem| StoreError::Unreadable { key, problem })
}

fn parse_id(text: &str) -> Result<SandboxId, StoreError> {
    SandboxId::parse(text).map_err(|error| StoreError::Unreadable {
        key: text.to_owned(),
        problem: error.to_string(),
    })
}

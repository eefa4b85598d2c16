//! The file: how it is made, locked, verified and opened. What goes wrong in it stays in here: an error, never a panic.

use std::{
    any::Any,
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, StorageBackend as _, TableDefinition,
    WriteTransaction,
    backends::{FileBackend, InMemoryBackend},
};

use crate::{
    error::StoreError,
    migrations::{self, KNOWN_SCHEMA},
};

pub(crate) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
pub(crate) const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");
pub(crate) const LEASES: TableDefinition<u32, &[u8]> = TableDefinition::new("leases");
pub(crate) const CHANGES: TableDefinition<u64, &[u8]> = TableDefinition::new("changes");
pub(crate) const CATALOG: TableDefinition<&str, &[u8]> = TableDefinition::new("catalog");
pub(crate) const SUBNETS: TableDefinition<&str, &[u8]> = TableDefinition::new("subnets");
pub(crate) const SETTINGS: TableDefinition<&str, &str> = TableDefinition::new("settings");
/// By name of the image; when the pin ends, in milliseconds since 1970, if it does.
pub(crate) const PINS: TableDefinition<&str, Option<u64>> = TableDefinition::new("pins");
/// By digest of the image, in milliseconds since 1970.
pub(crate) const USES: TableDefinition<&str, u64> = TableDefinition::new("uses");
pub(crate) const COLLECTIONS: TableDefinition<u64, &[u8]> = TableDefinition::new("collections");
/// What a collection has deleted, with its size.
pub(crate) const COLLECTED: TableDefinition<(u64, &str), u64> = TableDefinition::new("collected");

pub(crate) const REVISION: &str = "revision";
pub(crate) const SCHEMA: &str = "schema";

/// Keeps every other process from the store until it is dropped, also while its file is replaced.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    pub(crate) fn take(path: &Path) -> Result<Self, StoreError> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(beside(path, "lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(StoreError::InUse {
                path: path.to_owned(),
            }),
            Err(fs::TryLockError::Error(error)) => Err(error.into()),
        }
    }
}

/// The file of this purpose that belongs to the store at `path`.
pub(crate) fn beside(path: &Path, purpose: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(purpose);
    name.into()
}

/// Opens the store for the first time of this process: makes it where there is none, verifies every page that is in
/// use, and brings it to the known schema.
pub(crate) fn open(path: &Path) -> Result<Database, StoreError> {
    if !path.try_exists()? {
        let fresh = beside(path, "new");
        remove_if_there(&fresh)?;
        drop(make(&fresh, KNOWN_SCHEMA)?);
        put_in_place(&fresh, path)?;
    }
    let database = verified(path)?;
    let found = schema(&database, path)?;
    if found == KNOWN_SCHEMA {
        migrations::forget_former(path)?;
        return Ok(database);
    }
    // The file has to be let go before it can be copied whole.
    drop(database);
    migrations::keep_aside(path, found)?;
    let database = again(path)?;
    let txn = database.begin_write()?;
    migrations::run(&txn, found)?;
    txn.commit()?;
    tracing::info!(from = found, to = KNOWN_SCHEMA, "the store was migrated");
    Ok(database)
}

/// Opens a store that this process has verified before.
pub(crate) fn again(path: &Path) -> Result<Database, StoreError> {
    contain(path, || {
        Database::open(path).map_err(|error| not_opened(path, error))
    })
}

/// Makes the file of an empty store, in which `schema` has the word.
pub(crate) fn make(path: &Path, schema: u64) -> Result<Database, StoreError> {
    // What a specification holds is for nobody else's eyes, also where the folder was made by others.
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let database = Builder::new().create_with_backend(FileBackend::new(file)?)?;
    let txn = database.begin_write()?;
    make_tables(&txn, schema)?;
    txn.commit()?;
    Ok(database)
}

fn make_tables(txn: &WriteTransaction, schema: u64) -> Result<(), StoreError> {
    txn.open_table(META)?.insert(SCHEMA, schema)?;
    txn.open_table(RECORDS)?;
    txn.open_table(LEASES)?;
    txn.open_table(CHANGES)?;
    txn.open_table(SETTINGS)?;
    txn.open_table(CATALOG)?;
    txn.open_table(SUBNETS)?;
    txn.open_table(PINS)?;
    txn.open_table(USES)?;
    txn.open_table(COLLECTIONS)?;
    txn.open_table(COLLECTED)?;
    Ok(())
}

/// Moves `file` to `path`, durably: there is never a moment without the one or the other.
pub(crate) fn put_in_place(file: &Path, path: &Path) -> Result<(), StoreError> {
    File::open(file)?.sync_all()?;
    fs::rename(file, path)?;
    sync_folder(path)
}

pub(crate) fn sync_folder(path: &Path) -> Result<(), StoreError> {
    if let Some(folder) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn verified(path: &Path) -> Result<Database, StoreError> {
    let (builder, taken_back) = verifying();
    let database = contain(path, || {
        builder.open(path).map_err(|error| not_opened(path, error))
    })?;
    if taken_back.load(Ordering::Relaxed) {
        tracing::warn!(
            store = %path.display(),
            "the last change was not complete on disk and has been taken back"
        );
    }
    Ok(database)
}

/// A verified copy of the store in memory, in which anything may be done, and whether its last change was incomplete.
pub(crate) fn copied(path: &Path) -> Result<(Database, bool), StoreError> {
    let bytes = fs::read(path)?;
    // redb would take it for a new one.
    if bytes.is_empty() {
        return Err(damaged(path, "it is empty"));
    }
    let memory = InMemoryBackend::new();
    memory.set_len(bytes.len() as u64)?;
    memory.write(0, &bytes)?;
    drop(bytes);
    let (builder, taken_back) = verifying();
    let database = contain(path, || {
        builder
            .create_with_backend(memory)
            .map_err(|error| not_opened(path, error))
    })?;
    Ok((database, taken_back.load(Ordering::Relaxed)))
}

/// An open that reads every page in use. Without that redb trusts a file that was closed in order, and a flipped byte
/// in it is a wrong record, or a panic some day. The flag tells whether the last commit did not verify and the one
/// before it was taken.
fn verifying() -> (Builder, Arc<AtomicBool>) {
    let taken_back = Arc::new(AtomicBool::default());
    let mut builder = Builder::new();
    builder.set_check_integrity_on_open(true);
    builder.set_repair_callback({
        let taken_back = taken_back.clone();
        move |session| {
            // The only report between the begin, 0, and the second scan, 0.6, is that of a last commit in pieces.
            if (0.1..0.5).contains(&session.progress()) {
                taken_back.store(true, Ordering::Relaxed);
            }
        }
    });
    (builder, taken_back)
}

/// The schema of a store that this program can read.
pub(crate) fn schema(database: &Database, path: &Path) -> Result<u64, StoreError> {
    let found = contain(path, || match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get(SCHEMA)?.map(|it| it.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(StoreError::from(error)),
    })?;
    match found {
        None | Some(0) => Err(damaged(path, "it is a database, but no store of Berth")),
        Some(found) if found > KNOWN_SCHEMA => Err(StoreError::NewerSchema {
            path: path.to_owned(),
            found,
            known: KNOWN_SCHEMA,
        }),
        Some(found) => Ok(found),
    }
}

/// Runs `work` so that a panic inside of redb is an error like any other.
pub(crate) fn contain<T, E: From<StoreError>>(
    path: &Path,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done,
        Err(panic) => Err(damaged(path, &format!("a panic: {}", words(panic.as_ref()))).into()),
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without words")
}

pub(crate) fn damaged(path: &Path, problem: &str) -> StoreError {
    StoreError::Damaged {
        path: path.to_owned(),
        problem: problem.to_owned(),
    }
}

fn not_opened(path: &Path, error: DatabaseError) -> StoreError {
    let torn = |it: &io::Error| {
        matches!(
            it.kind(),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
        )
    };
    let error = redb::Error::from(error);
    if let redb::Error::DatabaseAlreadyOpen = error {
        let path = path.to_owned();
        return StoreError::InUse { path };
    }
    if let redb::Error::Corrupted(problem) = &error {
        return damaged(path, problem);
    }
    if let redb::Error::Io(error) = &error
        && torn(error)
    {
        return damaged(path, &error.to_string());
    }
    error.into()
}

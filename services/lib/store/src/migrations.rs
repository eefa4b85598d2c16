//! How a store of an older version becomes one of this version. Each migration leads from one schema to the next; all
//! that are needed run in one transaction, before anything else reads the store.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use redb::{ReadableTable as _, TableDefinition, WriteTransaction};
use serde_json::Value;

use crate::{
    database::{
        self, CATALOG, CHANGES, COLLECTED, COLLECTIONS, LEASES, META, PINS, RECORDS, SCHEMA,
        SETTINGS, SUBNETS, USES,
    },
    error::StoreError,
};

/// The schema of this program: each migration leads to one more.
pub(crate) const KNOWN_SCHEMA: u64 = 1 + MIGRATIONS.len() as u64;

type Migration = fn(&WriteTransaction) -> Result<(), StoreError>;

/// How long the store as it was before a migration is kept: long enough to notice, and for a night.
const FORMER_KEPT: Duration = Duration::from_secs(24 * 3600);

/// The first leads from schema 1 to 2, and so on. One that was released is never changed.
const MIGRATIONS: &[Migration] = &[ends_and_boots, catalog, subnets_and_boots, collections];

/// Brings a store from schema `from` to the known one.
pub(crate) fn run(txn: &WriteTransaction, from: u64) -> Result<(), StoreError> {
    let done = usize::try_from(from.saturating_sub(1)).unwrap_or(usize::MAX);
    for migration in MIGRATIONS.iter().skip(done) {
        migration(txn)?;
    }
    txn.open_table(META)?.insert(SCHEMA, KNOWN_SCHEMA)?;
    Ok(())
}

/// Keeps the file as it is before its migration.
pub(crate) fn keep_aside(path: &Path, schema: u64) -> Result<(), StoreError> {
    let copy = database::beside(path, "copy");
    if let Err(error) = fs::copy(path, &copy) {
        database::remove_if_there(&copy)?;
        return Err(error.into());
    }
    database::put_in_place(&copy, &former(path, schema))
}

/// Removes what was kept aside once nobody wants to go back any more. A manager that fails soon after its start is started
/// again within seconds, and is what somebody wants to go back from.
pub(crate) fn forget_former(path: &Path) -> Result<(), StoreError> {
    for schema in 1..KNOWN_SCHEMA {
        let former = former(path, schema);
        let made_at = fs::metadata(&former).and_then(|it| it.modified());
        let age = made_at.ok().and_then(|it| it.elapsed().ok());
        if age.is_some_and(|it| it >= FORMER_KEPT) {
            database::remove_if_there(&former)?;
        }
    }
    Ok(())
}

fn former(path: &Path, schema: u64) -> std::path::PathBuf {
    database::beside(path, &format!("schema-{schema}"))
}

/// 1 to 2: records have an end of their time to live and the boot that they were made in, exits the cgroup that ran out
/// of memory, and the node has settings.
fn ends_and_boots(txn: &WriteTransaction) -> Result<(), StoreError> {
    txn.open_table(SETTINGS)?;
    rewrite_records(txn, |record| {
        record.insert("expires_at".to_owned(), Value::Null);
        record.insert("boot_id".to_owned(), Value::from(""));
        if let Some(Value::Object(exit)) = record.get_mut("exit") {
            exit.insert("oom_cgroup".to_owned(), Value::from(""));
        }
    })
}

/// 2 to 3: there is a catalog.
fn catalog(txn: &WriteTransaction) -> Result<(), StoreError> {
    txn.open_table(CATALOG)?;
    Ok(())
}

/// 3 to 4: subnets are reserved, and leases have the boot of their sandbox.
fn subnets_and_boots(txn: &WriteTransaction) -> Result<(), StoreError> {
    txn.open_table(SUBNETS)?;
    let boots = {
        let table = txn.open_table(RECORDS)?;
        let mut boots = BTreeMap::new();
        for entry in table.iter()? {
            let (id, bytes) = entry?;
            if let Ok(record) = serde_json::from_slice::<Value>(bytes.value()) {
                let generation = record["generation"].as_u64();
                boots.insert(
                    (id.value().to_owned(), generation),
                    record["boot_id"].clone(),
                );
            }
        }
        boots
    };
    rewrite(txn, LEASES, |lease| {
        let owner = lease["owner"].as_str().unwrap_or_default().to_owned();
        let boot = boots.get(&(owner, lease["generation"].as_u64()));
        if let Value::Object(lease) = lease {
            let boot = boot.cloned().unwrap_or_else(|| Value::from(""));
            lease.insert("boot_id".to_owned(), boot);
        }
    })
}

/// 4 to 5: images are pinned and held, their uses are known, and collections are kept.
fn collections(txn: &WriteTransaction) -> Result<(), StoreError> {
    txn.open_table(PINS)?;
    txn.open_table(USES)?;
    txn.open_table(COLLECTIONS)?;
    txn.open_table(COLLECTED)?;
    rewrite_records(txn, |record| {
        let none = Value::Object(Fields::new());
        record.insert("held_images".to_owned(), none);
    })
}

type Fields = serde_json::Map<String, Value>;

/// Changes every record, where it lies and in the changes that are kept. What cannot be read stays as it is: it is
/// reported like any other unreadable entry.
fn rewrite_records(txn: &WriteTransaction, change: impl Fn(&mut Fields)) -> Result<(), StoreError> {
    rewrite(txn, RECORDS, |entry| {
        if let Value::Object(record) = entry {
            change(record);
        }
    })?;
    rewrite(txn, CHANGES, |entry| {
        if let Some(Value::Object(record)) = entry.get_mut("Upserted") {
            change(record);
        }
    })
}

fn rewrite<K: redb::Key + 'static>(
    txn: &WriteTransaction,
    table: TableDefinition<'static, K, &'static [u8]>,
    change: impl Fn(&mut Value),
) -> Result<(), StoreError> {
    let mut table = txn.open_table(table)?;
    let mut rewritten = vec![];
    for entry in table.iter()? {
        let (key, bytes) = entry?;
        if let Ok(mut value) = serde_json::from_slice::<Value>(bytes.value()) {
            change(&mut value);
            rewritten.push((
                K::as_bytes(&key.value()).as_ref().to_vec(),
                value.to_string(),
            ));
        }
    }
    for (key, text) in rewritten {
        table.insert(K::from_bytes(&key), text.as_bytes())?;
    }
    Ok(())
}

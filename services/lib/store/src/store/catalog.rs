//! The catalog: entries by kind and id, changed one at a time, each change with a revision of its own.

use std::{collections::VecDeque, sync::PoisonError};

use berth_domain::{
    SandboxRecord,
    catalog::{ENTRIES_MAX, Entry, Key, Object},
};
use redb::ReadableTableMetadata as _;

use super::{Inner, Purpose, Store};
use crate::{
    database::CATALOG,
    error::{CatalogError, StoreError, Unreadable},
    rows::{self, revision},
    watch::{Change, Watch},
};

/// All that can be read, at one moment, and what follows.
#[derive(Debug)]
pub struct Whole {
    pub records: Vec<SandboxRecord>,
    pub entries: Vec<Entry>,
    pub revision: u64,
    pub watch: Watch,
}

impl Store {
    /// Puts an entry in place of the one of its key. `expected` is the revision of the one that stands; `None` is any, or
    /// none.
    pub async fn put_entry(
        &self,
        object: Object,
        expected: Option<u64>,
    ) -> Result<Entry, CatalogError> {
        self.blocking(move |inner| inner.put_entry(&object, expected))
            .await
    }

    /// Removes an entry; returns whether there was one.
    pub async fn remove_entry(
        &self,
        key: Key,
        expected: Option<u64>,
    ) -> Result<bool, CatalogError> {
        self.blocking(move |inner| inner.remove_entry(&key, expected))
            .await
    }

    /// Every entry that can be read, by kind and id, and the revision that they were read at.
    pub async fn entries(&self) -> Result<(Vec<Entry>, u64), StoreError> {
        self.blocking(|inner| {
            inner.read(|txn| {
                let (readable, _) = rows::entries(&txn.open_table(CATALOG)?)?;
                Ok((readable, revision(txn)?))
            })
        })
        .await
    }

    /// All records and entries that can be read, and a watch of everything that follows.
    pub async fn whole_and_watch(&self) -> Result<Whole, StoreError> {
        self.blocking(|inner| {
            let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let changes = inner.changes.subscribe();
            let (records, entries, revision) = inner.read(|txn| {
                let (records, _) = rows::records(txn, None, usize::MAX)?;
                let (entries, _) = rows::entries(&txn.open_table(CATALOG)?)?;
                Ok((records, entries, revision(txn)?))
            })?;
            Ok(Whole {
                records,
                entries,
                revision,
                watch: Watch {
                    past: VecDeque::new(),
                    changes,
                },
            })
        })
        .await
    }
}

impl Inner {
    fn put_entry(&self, object: &Object, expected: Option<u64>) -> Result<Entry, CatalogError> {
        self.write(Purpose::Begin, |txn, next| {
            let mut table = txn.open_table(CATALOG).map_err(StoreError::from)?;
            let key = object.key();
            let found = rows::find_entry(&table, &key)?;
            check(&found, expected)?;
            match found {
                Found::Nothing if table.len().map_err(StoreError::from)? >= ENTRIES_MAX => {
                    return Err(CatalogError::Full { limit: ENTRIES_MAX });
                }
                Found::Entry(entry) if entry.object == *object => return Ok((entry, None)),
                // What cannot be read is replaced: that is the way out.
                Found::Nothing | Found::Entry(_) | Found::Unreadable(_) => {}
            }
            let entry = Entry {
                revision: next,
                object: object.clone(),
            };
            rows::put_entry(&mut table, &entry)?;
            Ok((entry.clone(), Some(Change::EntryPut(Box::new(entry)))))
        })
    }

    fn remove_entry(&self, key: &Key, expected: Option<u64>) -> Result<bool, CatalogError> {
        self.write(Purpose::GoOn, |txn, _| {
            let mut table = txn.open_table(CATALOG).map_err(StoreError::from)?;
            let found = rows::find_entry(&table, key)?;
            if matches!(found, Found::Nothing) {
                return Ok((false, None));
            }
            check(&found, expected)?;
            table
                .remove(key.to_text().as_str())
                .map_err(StoreError::from)?;
            Ok((true, Some(Change::EntryRemoved(key.clone()))))
        })
    }
}

/// What stands under a key.
pub(crate) enum Found {
    Nothing,
    Entry(Entry),
    Unreadable(Unreadable),
}

fn check(found: &Found, expected: Option<u64>) -> Result<(), CatalogError> {
    let actual = match found {
        Found::Nothing => 0,
        Found::Entry(it) => it.revision,
        Found::Unreadable(it) if expected.is_some() => {
            return Err(StoreError::Unreadable(it.clone()).into());
        }
        Found::Unreadable(_) => return Ok(()),
    };
    match expected {
        Some(expected) if expected != actual => Err(CatalogError::Conflict { expected, actual }),
        Some(_) | None => Ok(()),
    }
}

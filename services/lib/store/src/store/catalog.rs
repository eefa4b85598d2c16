//! The catalog: entries by kind and id, changed one at a time, each change with a revision of its own.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::PoisonError,
};

use berth_domain::{
    SandboxRecord,
    catalog::{ENTRIES_MAX, Entry, Key, Kind, Object},
};
use redb::{ReadTransaction, ReadableTableMetadata as _};
use tokio::sync::broadcast;

use super::{Inner, Purpose, Store};
use crate::{
    database::CATALOG,
    error::{CatalogError, StoreError, Unreadable},
    rows::{self, revision},
    watch::{Change, Watch},
};

/// Entries that follow one another, by kind and id, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryPage {
    pub entries: Vec<Entry>,
    /// Whether others come behind these.
    pub more: bool,
    pub revision: u64,
}

/// The records, and the entries that were asked for, at one moment.
#[derive(Debug)]
pub struct Placement {
    pub records: Vec<SandboxRecord>,
    pub entries: Vec<Entry>,
    pub revision: u64,
}

/// What endpoints are derived from.
const OF_ENDPOINTS: [Kind; 3] = [Kind::App, Kind::Service, Kind::Version];

impl Store {
    /// Puts an entry in place of the one of its key. `expected` is the revision of the one that stands; `None` is any, or
    /// none.
    pub async fn put_entry(
        &self,
        object: Object,
        expected: Option<u64>,
    ) -> Result<Entry, CatalogError> {
        self.blocking(move |inner| inner.put_entry(&object, expected, ENTRIES_MAX))
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

    /// At most so many of the entries that can be read, of one kind or of all, behind a key.
    pub async fn entries(
        &self,
        kind: Option<Kind>,
        after: Option<Key>,
        size: usize,
    ) -> Result<EntryPage, StoreError> {
        self.blocking(move |inner| {
            inner.read(|txn| {
                let table = txn.open_table(CATALOG)?;
                let mut page = EntryPage {
                    revision: revision(txn)?,
                    ..EntryPage::default()
                };
                for row in rows::entries_after(&table, kind, after.as_ref())? {
                    // What cannot be read is told elsewhere.
                    let Ok(entry) = row? else { continue };
                    if page.entries.len() == size {
                        page.more = true;
                        break;
                    }
                    page.entries.push(entry);
                }
                Ok(page)
            })
        })
        .await
    }

    /// The revision that stands, and a watch of everything that follows; it may repeat what led to that.
    pub async fn watch_from_here(&self) -> Result<(u64, Watch), StoreError> {
        self.blocking(|inner| {
            let changes = inner.subscribe();
            let stands = inner.read(revision)?;
            let past = VecDeque::new();
            Ok((stands, Watch { past, changes }))
        })
        .await
    }

    /// The records, and the entries that decide which endpoints they are: a page of endpoints costs no catalog.
    pub async fn placement(&self) -> Result<Placement, StoreError> {
        self.blocking(|inner| inner.read(placement)).await
    }

    /// The records and all entries that may ever decide on endpoints, and a watch of everything that follows; it may repeat
    /// what they have already.
    pub async fn placement_and_watch(&self) -> Result<(Placement, Watch), StoreError> {
        self.blocking(|inner| {
            let changes = inner.subscribe();
            let placement = inner.read(|txn| {
                let (records, _) = rows::records(txn, None, usize::MAX)?;
                let table = txn.open_table(CATALOG)?;
                let mut entries = vec![];
                for kind in OF_ENDPOINTS {
                    for row in rows::entries_after(&table, Some(kind), None)? {
                        entries.extend(row?);
                    }
                }
                Ok(Placement {
                    records,
                    entries,
                    revision: revision(txn)?,
                })
            })?;
            let past = VecDeque::new();
            Ok((placement, Watch { past, changes }))
        })
        .await
    }
}

fn placement(txn: &ReadTransaction) -> Result<Placement, StoreError> {
    let (records, _) = rows::records(txn, None, usize::MAX)?;
    let table = txn.open_table(CATALOG)?;
    let mut entries = vec![];
    let mut apps = BTreeSet::new();
    let versions: BTreeSet<_> = records.iter().map(|it| &it.spec.version).collect();
    for version in versions {
        let (kind, id) = (Kind::Version, version.clone());
        if let Found::Entry(entry) = rows::find_entry(&table, &Key { kind, id })? {
            if let Object::Version(it) = &entry.object {
                apps.insert(it.app.clone());
            }
            entries.push(entry);
        }
    }
    for id in apps {
        let kind = Kind::App;
        if let Found::Entry(entry) = rows::find_entry(&table, &Key { kind, id })? {
            entries.push(entry);
        }
    }
    for row in rows::entries_after(&table, Some(Kind::Service), None)? {
        entries.extend(row?);
    }
    Ok(Placement {
        records,
        entries,
        revision: revision(txn)?,
    })
}

impl Inner {
    /// What is durable by now is published, and what follows is seen.
    fn subscribe(&self) -> broadcast::Receiver<(u64, Change)> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.changes.subscribe()
    }

    fn put_entry(
        &self,
        object: &Object,
        expected: Option<u64>,
        limit: u64,
    ) -> Result<Entry, CatalogError> {
        self.write(Purpose::Begin, |txn, next| {
            let mut table = txn.open_table(CATALOG).map_err(StoreError::from)?;
            let key = object.key();
            let found = rows::find_entry(&table, &key)?;
            check(&found, expected)?;
            match found {
                Found::Nothing if table.len().map_err(StoreError::from)? >= limit => {
                    return Err(CatalogError::Full { limit });
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_domain::catalog::App;

    use super::*;

    #[test]
    fn a_full_catalog_takes_no_other_entry_and_changes_those_that_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let subnet = "10.9.0.0/28".parse().unwrap();
        let store = Store::open(&dir.path().join("s"), subnet, Duration::ZERO).unwrap();
        let app = |id: &str, name: &str| {
            Object::App(App {
                id: id.into(),
                name: name.into(),
            })
        };
        let put = |object: Object| store.0.put_entry(&object, None, 2);
        for id in ["a", "b"] {
            put(app(id, id)).unwrap();
        }
        let refused = put(app("c", "c")).unwrap_err();
        assert!(
            matches!(refused, CatalogError::Full { limit: 2 }),
            "{refused}"
        );
        put(app("a", "other")).unwrap();
        store.0.remove_entry(&app("b", "").key(), None).unwrap();
        put(app("c", "c")).unwrap();
    }
}

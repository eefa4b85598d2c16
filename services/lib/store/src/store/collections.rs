//! The runs of collections: the latest of each kind, and what each has deleted, counted once however often it is told; and
//! all that refers to images and blobs, for whoever wants to know who holds them.

use std::{collections::VecDeque, sync::PoisonError, time::SystemTime};

use berth_domain::{
    SandboxRecord,
    catalog::{Entry, Key, Kind},
    collection::{
        Collection, CollectionCause, CollectionKind, NAMED_MAX, RUNS_KEPT, Slice, SliceReport,
    },
    holders::UnreadEntry,
};
use redb::{ReadTransaction, ReadableTable, WriteTransaction};

use super::{Inner, Store};
use crate::{
    database::{CATALOG, COLLECTED, COLLECTIONS, RECORDS},
    error::StoreError,
    rows,
    watch::Watch,
};

/// A run, and the first objects that it has deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectionView {
    pub collection: Collection,
    pub deleted: Vec<String>,
}

/// What may refer to images and blobs.
#[derive(Debug)]
pub enum Reference {
    Record(Box<SandboxRecord>),
    Entry(Box<Entry>),
    Unreadable(UnreadEntry),
}

impl Store {
    /// Begins a run of a kind, unless one is under way, and returns the one that is; whether it was before.
    pub async fn begin_collection(
        &self,
        kind: CollectionKind,
        cause: CollectionCause,
        goal_bytes: u64,
        now: SystemTime,
    ) -> Result<(CollectionView, bool), StoreError> {
        self.blocking(move |inner| {
            inner.write_aside(|txn| begin(txn, kind, cause, goal_bytes, now))
        })
        .await
    }

    /// The latest runs, newest first.
    pub async fn collections(&self) -> Result<Vec<CollectionView>, StoreError> {
        self.blocking(|inner| {
            inner.read(|txn| {
                let (all, _) = rows::collections(&txn.open_table(COLLECTIONS)?)?;
                let table = txn.open_table(COLLECTED)?;
                all.into_iter().rev().map(|it| view(&table, it)).collect()
            })
        })
        .await
    }

    /// The runs that are under way, at most one of each kind.
    pub async fn collections_under_way(&self) -> Result<Vec<Collection>, StoreError> {
        self.blocking(|inner| {
            inner.read(|txn| {
                let (mut all, _) = rows::collections(&txn.open_table(COLLECTIONS)?)?;
                all.retain(|it| it.ended_at.is_none());
                Ok(all)
            })
        })
        .await
    }

    /// Counts objects, each with its size, as deleted by a run that is under way: each once.
    pub async fn count_collected(
        &self,
        collection: u64,
        objects: Vec<(String, u64)>,
    ) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.count_collected(collection, &objects))
            .await
    }

    /// Takes objects back that are there all the same.
    pub async fn uncount_collected(
        &self,
        collection: u64,
        objects: Vec<String>,
    ) -> Result<(), StoreError> {
        self.blocking(move |inner| inner.uncount_collected(collection, &objects))
            .await
    }

    /// The run as it stands.
    pub async fn collection(&self, id: u64) -> Result<Option<CollectionView>, StoreError> {
        self.blocking(move |inner| {
            inner.read(|txn| {
                let table = txn.open_table(COLLECTIONS)?;
                let Some(bytes) = table.get(id)? else {
                    return Ok(None);
                };
                let run = rows::collection(id, bytes.value()).map_err(StoreError::Unreadable)?;
                view(&txn.open_table(COLLECTED)?, run).map(Some)
            })
        })
        .await
    }

    /// Takes up the report of a slice. `None` where no such run is under way.
    pub async fn report_slice(
        &self,
        collection: u64,
        slice: Slice,
        report: SliceReport,
        now: SystemTime,
    ) -> Result<Option<CollectionView>, StoreError> {
        self.blocking(move |inner| {
            inner.write_aside(|txn| {
                let mut table = txn.open_table(COLLECTIONS)?;
                let Some(mut run) = running(&table, collection)? else {
                    return Ok::<_, StoreError>(None);
                };
                run.report(slice, report.clone(), now);
                rows::put_collection(&mut table, &run)?;
                let mut collected = txn.open_table(COLLECTED)?;
                if run.ended_at.is_some() {
                    name_few(&mut collected, collection)?;
                }
                view(&collected, run).map(Some)
            })
        })
        .await
    }

    /// Ends a run that nobody works on. `None` where no such run is under way.
    pub async fn abandon_collection(
        &self,
        collection: u64,
        now: SystemTime,
    ) -> Result<Option<CollectionView>, StoreError> {
        self.blocking(move |inner| {
            inner.write_aside(|txn| {
                let mut table = txn.open_table(COLLECTIONS)?;
                let Some(mut run) = running(&table, collection)? else {
                    return Ok::<_, StoreError>(None);
                };
                run.abandon(now);
                rows::put_collection(&mut table, &run)?;
                let mut collected = txn.open_table(COLLECTED)?;
                name_few(&mut collected, collection)?;
                view(&collected, run).map(Some)
            })
        })
        .await
    }

    /// Shows everything that may refer to an image or a blob, one after the other, and returns a watch of what changes from
    /// before the first of it on: some changes are in both.
    pub async fn references<T: Send + 'static>(
        &self,
        begin: impl Fn() -> T + Send + 'static,
        add: impl Fn(&mut T, Reference) + Send + 'static,
    ) -> Result<(T, Watch), StoreError> {
        self.blocking(move |inner| {
            let changes = {
                // What is durable by now is published.
                let _writing = inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
                inner.changes.subscribe()
            };
            let all = inner.read(|txn| {
                let mut all = begin();
                references(txn, |it| add(&mut all, it))?;
                Ok(all)
            })?;
            let past = VecDeque::new();
            Ok((all, Watch { past, changes }))
        })
        .await
    }
}

impl Inner {
    fn count_collected(
        &self,
        collection: u64,
        objects: &[(String, u64)],
    ) -> Result<(), StoreError> {
        self.write_aside(|txn| {
            let mut table = txn.open_table(COLLECTIONS)?;
            let Some(mut run) = running(&table, collection)? else {
                return Ok(());
            };
            let mut collected = txn.open_table(COLLECTED)?;
            for (object, size) in objects {
                let key = (collection, object.as_str());
                if collected.insert(key, size)?.is_none() {
                    run.deleted_total += 1;
                    run.deleted_bytes = run.deleted_bytes.saturating_add(*size);
                }
            }
            rows::put_collection(&mut table, &run)
        })
    }

    fn uncount_collected(&self, collection: u64, objects: &[String]) -> Result<(), StoreError> {
        // Most are not counted, and need no write to say so.
        let counted = self.read(|txn| {
            let table = txn.open_table(COLLECTED)?;
            for object in objects {
                if table.get((collection, object.as_str()))?.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        if !counted {
            return Ok(());
        }
        self.write_aside(|txn| {
            let mut table = txn.open_table(COLLECTIONS)?;
            let Some(mut run) = running(&table, collection)? else {
                return Ok(());
            };
            let mut collected = txn.open_table(COLLECTED)?;
            for object in objects {
                if let Some(size) = collected.remove((collection, object.as_str()))? {
                    run.deleted_total = run.deleted_total.saturating_sub(1);
                    run.deleted_bytes = run.deleted_bytes.saturating_sub(size.value());
                }
            }
            rows::put_collection(&mut table, &run)
        })
    }
}

fn begin(
    txn: &WriteTransaction,
    kind: CollectionKind,
    cause: CollectionCause,
    goal_bytes: u64,
    now: SystemTime,
) -> Result<(CollectionView, bool), StoreError> {
    let mut table = txn.open_table(COLLECTIONS)?;
    let mut collected = txn.open_table(COLLECTED)?;
    let (all, unreadable) = rows::collections(&table)?;
    let standing = all
        .iter()
        .find(|it| it.kind == kind && it.ended_at.is_none());
    if let Some(run) = standing {
        return Ok((view(&collected, run.clone())?, true));
    }
    let last = table.last()?.map_or(0, |(id, _)| id.value());
    let run = Collection::new(last + 1, kind, cause, goal_bytes, now);
    rows::put_collection(&mut table, &run)?;
    // The latest of a schedule tells when the next one is due, however many runs were begun by pressure since.
    let scheduled = |it: &&Collection| {
        it.kind == kind && it.cause == CollectionCause::Scheduled && it.goal_bytes == 0
    };
    let latest = all.iter().rev().find(scheduled).map(|it| it.id);
    let latest = latest.filter(|_| !scheduled(&&run));
    let same = all.iter().filter(|it| it.kind == kind);
    let same: Vec<_> = same.filter(|it| Some(it.id) != latest).collect();
    let surplus = (same.len() + 1).saturating_sub(RUNS_KEPT);
    let mut old: Vec<u64> = same.iter().take(surplus).map(|it| it.id).collect();
    if !unreadable.is_empty() {
        let readable = |id: u64| id == run.id || all.iter().any(|it| it.id == id);
        for row in table.iter()? {
            let id = row?.0.value();
            old.extend((!readable(id)).then_some(id));
        }
    }
    for id in old {
        table.remove(id)?;
        collected.retain_in((id, "")..(id + 1, ""), |_, _| false)?;
    }
    Ok((view(&collected, run)?, false))
}

/// The run of this id, while it is under way.
fn running(
    table: &impl ReadableTable<u64, &'static [u8]>,
    id: u64,
) -> Result<Option<Collection>, StoreError> {
    let Some(bytes) = table.get(id)? else {
        return Ok(None);
    };
    let run = rows::collection(id, bytes.value()).map_err(StoreError::Unreadable)?;
    Ok(Some(run).filter(|it| it.ended_at.is_none()))
}

fn view(
    collected: &impl ReadableTable<(u64, &'static str), u64>,
    collection: Collection,
) -> Result<CollectionView, StoreError> {
    let (from, to) = ((collection.id, ""), (collection.id + 1, ""));
    let rows = collected.range::<(u64, &str)>(from..to)?.take(NAMED_MAX);
    let deleted = rows
        .map(|row| Ok(row?.0.value().1.to_owned()))
        .collect::<Result<_, StoreError>>()?;
    Ok(CollectionView {
        collection,
        deleted,
    })
}

/// Forgets what nobody is told of a run that has ended.
fn name_few(
    collected: &mut redb::Table<'_, (u64, &'static str), u64>,
    collection: u64,
) -> Result<(), StoreError> {
    let mut seen = 0;
    collected.retain_in((collection, "")..(collection + 1, ""), |_, _| {
        seen += 1;
        seen <= NAMED_MAX
    })?;
    Ok(())
}

fn references(txn: &ReadTransaction, mut add: impl FnMut(Reference)) -> Result<(), StoreError> {
    for row in txn.open_table(RECORDS)?.iter()? {
        let (id, bytes) = row?;
        add(match rows::record(id.value(), bytes.value()) {
            Ok(record) => Reference::Record(Box::new(record)),
            Err(_) => Reference::Unreadable(UnreadEntry::Record(id.value().to_owned())),
        });
    }
    for row in txn.open_table(CATALOG)?.iter()? {
        let (key, bytes) = row?;
        let text = key.value();
        let unread = match rows::entry(text, bytes.value()) {
            Ok(entry) => {
                add(Reference::Entry(Box::new(entry)));
                continue;
            }
            // Without a kind it may be anything.
            Err(_) => Key::parse(text).unwrap_or(Key {
                kind: Kind::Version,
                id: text.to_owned(),
            }),
        };
        add(Reference::Unreadable(UnreadEntry::Catalog(unread)));
    }
    Ok(())
}

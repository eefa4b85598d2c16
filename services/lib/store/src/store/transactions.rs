//! How a transaction is run: on a database that its own errors close, and on a disk that may be full.

use std::sync::{PoisonError, atomic::Ordering};

use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, WriteTransaction,
};

use super::Inner;
use crate::{
    addresses::Addresses,
    database::{self, CHANGES, LEASES, SUBNETS, contain, damaged},
    error::{StoreError, WriteError},
    rows::{self, bump, note},
    watch::Change,
};

/// Changes that are kept when the disk is full, for readers that are about to resume.
const CHANGES_KEPT_WHEN_FULL: u64 = 64;
/// A read that meets a closed database is tried so often: on a full disk, many writes may fail one after the other.
const CLOSED_TRIES: usize = 16;

/// What a write is for, when the disk is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It begins something and leaves the reserve alone.
    Begin,
    /// It goes on with something, or ends it, and may use the reserve.
    GoOn,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let database = self
            .database
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.close(database);
    }
}

impl Inner {
    pub(super) fn read<T>(
        &self,
        work: impl Fn(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut done = self.try_read(&work);
        for _ in 1..CLOSED_TRIES {
            // A write beside this has failed and closed the database, which is open again.
            let closed = |it: &StoreError| it.found_it_closed();
            if !done.as_ref().is_err_and(closed) {
                break;
            }
            done = self.try_read(&work);
        }
        done
    }

    fn try_read<T>(
        &self,
        work: &impl Fn(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let done = contain(&self.path, || {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            match database.as_ref() {
                Some(database) => work(&database.begin_read()?),
                None => Err(redb::Error::PreviousIo.into()),
            }
        });
        done.map_err(|error| self.place(error))
            .inspect_err(|error| self.mend(error))
    }

    /// Runs `work` in a transaction of its own, and publishes the change that it returns. On a full disk it is run once
    /// more when room was made.
    pub(super) fn write<T, E: WriteError>(
        &self,
        purpose: Purpose,
        mut work: impl FnMut(&WriteTransaction, u64) -> Result<(T, Option<Change>), E>,
    ) -> Result<T, E> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = self.try_write(purpose, &mut work);
        let full = |error: &E| matches!(error.store(), Some(StoreError::Full { .. }));
        if done.as_ref().is_err_and(full) && self.make_room(purpose) {
            done = self.try_write(purpose, &mut work);
        }
        let (value, change) = done?;
        if let Some(change) = change {
            self.node_ports().follow(&change.1);
            // Nobody may be watching.
            let _ = self.changes.send(change);
        }
        Ok(value)
    }

    fn try_write<T, E: WriteError>(
        &self,
        purpose: Purpose,
        work: &mut impl FnMut(&WriteTransaction, u64) -> Result<(T, Option<Change>), E>,
    ) -> Result<(T, Option<(u64, Change)>), E> {
        let done = contain(&self.path, || {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            let Some(database) = database.as_ref() else {
                return Err(StoreError::from(redb::Error::PreviousIo).into());
            };
            let txn = database.begin_write().map_err(StoreError::from)?;
            self.addresses().begin();
            let next = bump(&txn)?;
            let (value, change) = work(&txn, next)?;
            let Some(change) = change else {
                txn.abort().map_err(StoreError::from)?;
                return Ok((value, None));
            };
            if purpose == Purpose::Begin {
                self.reserve.fill().map_err(StoreError::from)?;
            }
            note(&txn, next, &change)?;
            txn.commit().map_err(StoreError::from)?;
            self.addresses().settle();
            self.written.store(true, Ordering::Relaxed);
            Ok((value, Some((next, change))))
        });
        done.map_err(|error: E| self.placed(error))
    }

    fn placed<E: WriteError>(&self, error: E) -> E {
        match error.into_store() {
            Ok(error) => {
                let error = self.place(error);
                self.mend(&error);
                error.into()
            }
            Err(other) => other,
        }
    }

    /// Says which file it is that redb found damaged.
    fn place(&self, error: StoreError) -> StoreError {
        if let StoreError::Failed { source } = &error
            && let redb::Error::Corrupted(problem) = source
        {
            return damaged(&self.path, problem);
        }
        error
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
        self.close(database.take());
        let opened = database::again(&self.path).and_then(|opened| {
            // A commit that failed may be durable all the same.
            *self.addresses() = contain(&self.path, || addresses(&opened.begin_read()?))?;
            Ok(opened)
        });
        match opened {
            Ok(opened) => *database = Some(opened),
            Err(error) => tracing::error!(%error, "the store cannot be opened again"),
        }
    }

    /// Closes the database in order, as far as that can be done.
    fn close(&self, database: Option<Database>) {
        let closed = contain(&self.path, || {
            drop(database);
            Ok::<_, StoreError>(())
        });
        if let Err(error) = closed {
            tracing::error!(%error, "the store is not closed in order");
        }
    }

    /// Makes room on a full disk, as far as the purpose is worth it. Returns whether it is worth trying again.
    fn make_room(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::GoOn => {
                tracing::warn!("the disk of the store is full: using its reserve");
                self.reserve.give_up();
                self.forget_changes();
                true
            }
            // What was removed or forgotten has left pages in the file that nobody else can use.
            Purpose::Begin if self.written.swap(false, Ordering::Relaxed) => {
                self.forget_changes();
                self.compact()
            }
            Purpose::Begin => false,
        }
    }

    /// Forgets all but the latest changes, so that their pages can be used: who resumes from before begins anew.
    fn forget_changes(&self) {
        let done = contain(&self.path, || {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            let Some(database) = database.as_ref() else {
                return Err(StoreError::from(redb::Error::PreviousIo));
            };
            let txn = database.begin_write()?;
            {
                let mut table = txn.open_table(CHANGES)?;
                let last = table.last()?.map_or(0, |(at, _)| at.value());
                let forgotten = ..=last.saturating_sub(CHANGES_KEPT_WHEN_FULL);
                table.retain_in(forgotten, |_, _| false)?;
            }
            Ok(txn.commit()?)
        });
        if let Err(error) = done {
            tracing::warn!(%error, "old changes cannot be forgotten");
            self.mend(&error);
        }
    }

    /// Gives free pages back to the file system. Returns whether the file became smaller.
    fn compact(&self) -> bool {
        let done = contain(&self.path, || {
            let mut database = self
                .database
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            match database.as_mut() {
                Some(database) => Ok(database.compact()?),
                None => Err(StoreError::from(redb::Error::PreviousIo)),
            }
        });
        done.inspect_err(|error| {
            tracing::warn!(%error, "the store cannot be made smaller");
            self.mend(error);
        })
        .unwrap_or(false)
    }

    /// Runs `work` in a transaction for what is nobody's record: it has no revision and no watch. On a full disk it is run
    /// once more when room was made.
    pub(super) fn write_aside<T, E: WriteError>(
        &self,
        mut work: impl FnMut(&WriteTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self.try_write_aside(&mut work);
        let full = |error: &E| matches!(error.store(), Some(StoreError::Full { .. }));
        if done.as_ref().is_err_and(full) && self.make_room(Purpose::GoOn) {
            return self.try_write_aside(&mut work);
        }
        done
    }

    fn try_write_aside<T, E: WriteError>(
        &self,
        work: &mut impl FnMut(&WriteTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let done = contain(&self.path, || {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            let Some(database) = database.as_ref() else {
                return Err(StoreError::from(redb::Error::PreviousIo).into());
            };
            let txn = database.begin_write().map_err(StoreError::from)?;
            self.addresses().begin();
            let value = work(&txn)?;
            txn.commit().map_err(StoreError::from)?;
            self.addresses().settle();
            Ok(value)
        });
        done.map_err(|error: E| self.placed(error))
    }
}

pub(super) fn addresses(txn: &ReadTransaction) -> Result<Addresses, StoreError> {
    let leases = rows::leases(&txn.open_table(LEASES)?)?;
    let (reserved, unreadable) = rows::subnets(&txn.open_table(SUBNETS)?)?;
    for entry in unreadable {
        tracing::warn!(%entry, "its addresses are kept for nobody");
    }
    Ok(Addresses::of(&leases, reserved))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_domain::catalog::{App, Object};

    use super::*;
    use crate::Store;

    #[tokio::test]
    async fn on_a_full_disk_a_watch_is_resumed_over_a_few_changes_and_not_over_one_more() {
        let dir = tempfile::tempdir().unwrap();
        let subnet = "10.9.0.0/28".parse().unwrap();
        let store = Store::open(&dir.path().join("s"), subnet, Duration::ZERO).unwrap();
        let last = CHANGES_KEPT_WHEN_FULL + 2;
        for number in 1..=last {
            let app = App {
                id: "a".into(),
                name: format!("a-{number}"),
            };
            store.put_entry(Object::App(app), None).await.unwrap();
        }
        let oldest = last - CHANGES_KEPT_WHEN_FULL;
        assert!(store.watch(oldest - 1).await.unwrap().is_some());
        assert!(store.0.make_room(Purpose::GoOn));
        assert!(store.watch(oldest - 1).await.unwrap().is_none());
        let mut resumed = store.watch(oldest).await.unwrap().unwrap();
        assert_eq!(resumed.next().await.unwrap().0, oldest + 1);
    }
}

//! What is kept of images: pins, and when each digest was last used; and the number that tells this start of the manager
//! from all others.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use berth_domain::{SandboxRecord, Status, holders::Pin};
use redb::{ReadTransaction, ReadableTable as _, ReadableTableMetadata as _, WriteTransaction};

use super::{Inner, Store};
use crate::{
    database::{PINS, SETTINGS, USES},
    error::{PinError, StoreError},
};

/// Pins are read as a whole for each look at who holds an image.
const PINS_MAX: u64 = 1024;
/// Of the settings: a number that grows with each start.
const EPOCH: &str = "epoch";

impl Store {
    /// Pins an image by its full name, in the place of the pin that it has. Those that have ended are forgotten.
    pub async fn pin_image(&self, pin: Pin, now: SystemTime) -> Result<(), PinError> {
        self.blocking(move |inner| inner.pin_image(&pin, now)).await
    }

    /// Takes a pin away; returns whether there was one that holds.
    pub async fn unpin_image(&self, image: String, now: SystemTime) -> Result<bool, StoreError> {
        self.blocking(move |inner| {
            inner.write_aside(|txn| {
                let mut table = txn.open_table(PINS)?;
                let former = table.remove(image.as_str())?;
                let former = former.map(|it| pin(&image, it.value()));
                Ok::<_, StoreError>(former.is_some_and(|it| it.holds_at(now)))
            })
        })
        .await
    }

    /// The pins, by name, with those that have ended.
    pub async fn pins(&self) -> Result<Vec<Pin>, StoreError> {
        self.blocking(|inner| inner.read(pins)).await
    }

    /// When a sandbox last took hold of a digest or let go of it.
    pub async fn last_uses(&self) -> Result<BTreeMap<String, SystemTime>, StoreError> {
        self.blocking(|inner| {
            inner.read(|txn| {
                let table = txn.open_table(USES)?;
                let rows = table.iter()?.map(|row| {
                    let (digest, at) = row?;
                    Ok((digest.value().to_owned(), of_millis(at.value())))
                });
                rows.collect()
            })
        })
        .await
    }

    /// Forgets the uses of all digests but these.
    pub async fn forget_uses(&self, kept: BTreeSet<String>) -> Result<(), StoreError> {
        self.blocking(move |inner| {
            inner.write_aside(|txn| {
                let mut table = txn.open_table(USES)?;
                table.retain(|digest, _| kept.contains(digest))?;
                Ok::<_, StoreError>(())
            })
        })
        .await
    }

    /// A number that is larger than that of every former call, also where the store was made of an old export: then it is the
    /// clock that grows.
    pub async fn next_epoch(&self, now: SystemTime) -> Result<u32, StoreError> {
        self.blocking(move |inner| {
            inner.write_aside(|txn| {
                let mut table = txn.open_table(SETTINGS)?;
                let former = table.get(EPOCH)?.and_then(|it| it.value().parse().ok());
                let next = former.map_or(1, |it: u32| it.saturating_add(1));
                let seconds = u32::try_from(millis(now) / 1000).unwrap_or_default();
                let next = next.max(seconds);
                table.insert(EPOCH, next.to_string().as_str())?;
                Ok::<_, StoreError>(next)
            })
        })
        .await
    }
}

impl Inner {
    fn pin_image(&self, pin: &Pin, now: SystemTime) -> Result<(), PinError> {
        self.write_aside(|txn| {
            let mut table = txn.open_table(PINS).map_err(StoreError::from)?;
            let over = |ends: Option<u64>| ends.is_some_and(|it| of_millis(it) <= now);
            table
                .retain(|_, ends| !over(ends))
                .map_err(StoreError::from)?;
            table
                .insert(pin.image.as_str(), pin.expires_at.map(millis))
                .map_err(StoreError::from)?;
            if table.len().map_err(StoreError::from)? > PINS_MAX {
                return Err(PinError::Full { limit: PINS_MAX });
            }
            Ok(())
        })
    }
}

fn pins(txn: &ReadTransaction) -> Result<Vec<Pin>, StoreError> {
    let table = txn.open_table(PINS)?;
    let rows = table.iter()?.map(|row| {
        let (image, ends) = row?;
        Ok(pin(image.value(), ends.value()))
    });
    rows.collect()
}

fn pin(image: &str, ends: Option<u64>) -> Pin {
    Pin {
        image: image.to_owned(),
        expires_at: ends.map(of_millis),
    }
}

/// Writes down that a sandbox took hold of images, or let go of them.
pub(crate) fn note_uses(
    txn: &WriteTransaction,
    before: Option<&SandboxRecord>,
    after: Option<&SandboxRecord>,
    now: SystemTime,
) -> Result<(), StoreError> {
    let (before, after) = (digests(before), digests(after));
    if before == after {
        return Ok(());
    }
    let mut table = txn.open_table(USES)?;
    for digest in before.symmetric_difference(&after) {
        table.insert(*digest, millis(now))?;
    }
    Ok(())
}

fn digests(record: Option<&SandboxRecord>) -> BTreeSet<&str> {
    let holding = record.filter(|it| it.status != Status::Dead).into_iter();
    let all = holding.flat_map(|it| it.held_images.values().chain(it.images.values()));
    all.map(String::as_str).collect()
}

fn millis(at: SystemTime) -> u64 {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn of_millis(millis: u64) -> SystemTime {
    // Later than any clock goes.
    let most = Duration::from_secs(1 << 36);
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis).min(most)
}

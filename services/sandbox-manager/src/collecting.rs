//! The manager's part in a collection: leases on its slices, claims on what it deletes, and the look at who holds it. A commit
//! looks again while nobody is admitted, nothing is put into the catalog or pinned, and no pull begins.

mod abandoned;
mod deletions;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{
    Failure, ImageRef, Reason,
    claims::{Claim, Claimed, Claims},
    collection::{Collection, CollectionCause, CollectionKind, Slice, SliceReport},
    holders::{Arriving, Holder, Holders, Standing},
    work_leases::{Asked, LeaseRef, NotAcquired, WorkLease, WorkLeases},
};
use berth_platform::{ImageInfo, Images, Network, Runtime};
use berth_store::{Change, CollectionView, Reference, Store, Watch, WatchEnded};
use tokio::sync::{MappedMutexGuard, MutexGuard as AsyncGuard, OnceCell, broadcast};

pub(crate) use self::{
    abandoned::give_up,
    deletions::{Answer, Outcome},
};
use crate::{
    crash,
    failures::{image_failure, store_failure},
    registry::Registry,
};

/// Changes of runs that a reader may fall behind; each may have two thousand names.
const READER_LAG: usize = 64;
/// What is known in memory, and forgotten by a restart.
#[derive(Debug)]
pub(crate) struct Collecting {
    began: Instant,
    /// Taken with the first lease.
    epoch: OnceCell<u32>,
    leases: Mutex<WorkLeases>,
    claims: Mutex<Claims>,
    arriving: Mutex<Arrivals>,
    /// Made for the first look of a run, and kept until none is under way.
    index: tokio::sync::Mutex<Option<Index>>,
    runs: broadcast::Sender<CollectionView>,
}

#[derive(Debug, Default)]
struct Arrivals {
    all: BTreeMap<u64, Arriving>,
    begun: u64,
}

/// Who holds what, by all that the store has, and its changes since.
#[derive(Debug)]
struct Index {
    holders: Holders,
    watch: Watch,
}

/// Something that brings images, and holds them until it is dropped.
#[derive(Debug)]
pub(crate) struct Arrival {
    collecting: Arc<Collecting>,
    number: u64,
}

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Collecting {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            epoch: OnceCell::new(),
            leases: Mutex::default(),
            claims: Mutex::default(),
            arriving: Mutex::default(),
            index: tokio::sync::Mutex::new(None),
            runs: broadcast::channel(READER_LAG).0,
        }
    }

    /// The time that leases know.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// What a time of a lease is on the clock.
    pub(crate) fn on_clock(&self, at: Duration) -> SystemTime {
        let (now, clock) = (self.now(), SystemTime::now());
        match at.checked_sub(now) {
            Some(ahead) => clock + ahead,
            None => clock.checked_sub(now - at).unwrap_or(clock),
        }
    }

    pub(crate) async fn acquire(&self, store: &Store, asked: Asked) -> Result<WorkLease, Failure> {
        let epoch = self.epoch.get_or_try_init(|| async {
            let epoch = store.next_epoch(SystemTime::now()).await;
            epoch.map_err(store_failure)
        });
        let epoch = *epoch.await?;
        let name = asked.name.clone();
        let acquired = lock(&self.leases).acquire(epoch, asked, self.now());
        acquired.map_err(|it| match it {
            NotAcquired::Held(lease) => {
                let message = format!("{name} is leased by {}", lease.holder);
                let expires_at = jiff::Timestamp::try_from(self.on_clock(lease.expires_at));
                let expires_at = expires_at.map(|it| it.to_string()).unwrap_or_default();
                Failure::new(Reason::WorkLeaseHeld, message)
                    .with("lease", name)
                    .with("holder", lease.holder)
                    .with("expires_at", expires_at)
            }
            NotAcquired::Exhausted => {
                let limit = berth_domain::work_leases::LEASES_MAX;
                let message = format!("{limit} leases are held, as many as can be");
                Failure::new(Reason::WorkLeasesExhausted, message).with("limit", limit)
            }
        })
    }

    pub(crate) fn renew(&self, leases: &[LeaseRef]) -> (Vec<WorkLease>, Vec<String>) {
        lock(&self.leases).renew(leases, self.now())
    }

    pub(crate) fn release(&self, leases: &[LeaseRef]) {
        lock(&self.leases).release(leases);
        self.forget_claims();
    }

    pub(crate) fn leases(&self, prefix: &str) -> Vec<WorkLease> {
        lock(&self.leases).list(prefix, self.now())
    }

    pub(crate) fn held(&self, lease: &LeaseRef) -> Result<WorkLease, Failure> {
        let held = lock(&self.leases).held(lease, self.now()).cloned();
        held.ok_or_else(|| {
            let message = format!("the lease {} is not the caller's", lease.name);
            Failure::new(Reason::WorkLeaseLost, message).with("lease", &lease.name)
        })
    }

    /// Claims end with their leases.
    fn forget_claims(&self) {
        let (leases, now) = (lock(&self.leases), self.now());
        lock(&self.claims).retain(|it| leases.held(&it.lease, now).is_some());
    }

    fn give_back(&self, tokens: &[u64]) -> Vec<(u64, Option<Claim>)> {
        let mut claims = lock(&self.claims);
        let given = tokens.iter().map(|token| (*token, claims.take(*token)));
        given.collect()
    }

    pub(crate) fn follow_runs(&self) -> broadcast::Receiver<CollectionView> {
        self.runs.subscribe()
    }

    /// Shows a run as it stands to whoever watches; there may be nobody.
    fn tell(&self, run: CollectionView) {
        let _ = self.runs.send(run);
    }

    fn arriving(&self) -> Vec<Arriving> {
        let all = lock(&self.arriving);
        let all: BTreeSet<_> = all.all.values().cloned().collect();
        all.into_iter().collect()
    }

    /// The index, with all that is durable by now.
    async fn index(&self, store: &Store) -> Result<MappedMutexGuard<'_, Holders>, Failure> {
        let mut index = self.index.lock().await;
        let current = index.as_mut().is_some_and(|it| it.catch_up().is_ok());
        if !current {
            *index = None;
            let (holders, watch) = store
                .references(Holders::default, take_up)
                .await
                .map_err(store_failure)?;
            let mut fresh = Index { holders, watch };
            // What it has missed by now is more than it can have missed: the next look begins anew.
            let _ = fresh.catch_up();
            *index = Some(fresh);
        }
        AsyncGuard::try_map(index, |it| it.as_mut().map(|it| &mut it.holders))
            .map_err(|_| crate::failures::internal("there is no index"))
    }
}

impl Index {
    fn catch_up(&mut self) -> Result<(), WatchEnded> {
        while let Some((_, change)) = self.watch.ready()? {
            match change {
                Change::Upserted(record) => self.holders.place(&record),
                Change::Removed { id, .. } => self.holders.forget(&id),
                Change::EntryPut(entry) => self.holders.put_entry(&entry),
                Change::EntryRemoved(key) => self.holders.remove(&key),
            }
        }
        Ok(())
    }
}

fn take_up(holders: &mut Holders, it: Reference) {
    match it {
        Reference::Record(record) => holders.place(&record),
        Reference::Entry(entry) => holders.put_entry(&entry),
        Reference::Unreadable(entry) => holders.note_unread(entry),
    }
}

impl Arrival {
    /// The images are here: whoever claimed one of them before claimed what was there then.
    pub(crate) fn has_brought(&self, images: &[ImageInfo]) {
        let mut claims = lock(&self.collecting.claims);
        for image in images {
            claims.break_image(&image.name, Some(&image.digest));
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        lock(&self.collecting.arriving).all.remove(&self.number);
    }
}

impl<R: Runtime + Images, N: Network> Registry<R, N> {
    /// Holds what is about to come. It waits for a commit that is under way, so that what comes is not deleted by it.
    pub(crate) async fn begin_arrival(&self, arriving: Arriving) -> Arrival {
        let collecting = self.collecting();
        let _no_commit = self.image_lock().read().await;
        let mut arrivals = lock(&collecting.arriving);
        arrivals.begun += 1;
        let number = arrivals.begun;
        if let Arriving::Pull(image) = &arriving {
            lock(&collecting.claims).break_image(&image.to_string(), image.digest());
        }
        arrivals.all.insert(number, arriving);
        Arrival {
            collecting: collecting.clone(),
            number,
        }
    }

    /// What holds images at this moment and is in no index.
    pub(crate) async fn standing(&self) -> Result<Standing, Failure> {
        let images = self.node().runtime.image_names().await;
        Ok(Standing {
            images: images.map_err(image_failure)?,
            pins: self.store().pins().await.map_err(store_failure)?,
            arriving: self.collecting().arriving(),
        })
    }

    /// Who holds each of the images of the node, by digest.
    pub(crate) async fn image_holders(
        &self,
    ) -> Result<BTreeMap<String, BTreeSet<Holder>>, Failure> {
        let standing = self.standing().await?;
        let digests = standing.images.values().map(|it| it.digest.as_str());
        let digests = digests.collect();
        let index = self.collecting().index(self.store()).await?;
        let holders = index.of_digests(&digests, &standing, SystemTime::now());
        drop(index);
        self.forget_index().await?;
        Ok(holders)
    }

    /// Digest of the image, where it is here, and who holds it.
    pub(crate) async fn holders_of_image(
        &self,
        image: &ImageRef,
    ) -> Result<(String, Vec<Holder>), Failure> {
        let standing = self.standing().await?;
        let named = standing.images.get(&image.to_string());
        let digest = match (named, image.digest()) {
            (Some(it), _) => it.digest.clone(),
            (None, Some(digest)) => digest.to_owned(),
            (None, None) => return Ok((String::new(), vec![])),
        };
        let index = self.collecting().index(self.store()).await?;
        let holders = index.of_digest(&digest, &standing, SystemTime::now());
        drop(index);
        self.forget_index().await?;
        Ok((digest, holders))
    }

    /// Gives claims back, and says which of them are worth nothing: they had ended, or something holds the blob by now.
    pub(crate) async fn release_claims(&self, tokens: &[u64]) -> Result<Vec<u64>, Failure> {
        let mut lost = Vec::new();
        let index = self.collecting().index(self.store()).await?;
        for (token, claim) in self.collecting().give_back(tokens) {
            let stands = claim.is_some_and(|it| match it.object {
                Claimed::Blob { digest } => {
                    index.is_as_at(it.catalog_revision) && index.of_blob(&digest).is_empty()
                }
                Claimed::Image { .. } => true,
            });
            lost.extend((!stands).then_some(token));
        }
        drop(index);
        self.forget_index().await?;
        Ok(lost)
    }

    pub(crate) async fn holders_of_blob(&self, digest: &str) -> Result<Vec<Holder>, Failure> {
        let index = self.collecting().index(self.store()).await?;
        let holders = index.of_blob(digest);
        drop(index);
        self.forget_index().await?;
        Ok(holders)
    }

    /// Gives the memory of the index back where no run is under way.
    async fn forget_index(&self) -> Result<(), Failure> {
        let running = self.store().collections_under_way().await;
        if running.map_err(store_failure)?.is_empty() {
            *self.collecting().index.lock().await = None;
        }
        Ok(())
    }

    /// Begins a run, or joins the one that is under way; says which.
    pub(crate) async fn start_collection(
        &self,
        kind: CollectionKind,
        cause: CollectionCause,
        goal_bytes: u64,
    ) -> Result<(CollectionView, bool), Failure> {
        let now = SystemTime::now();
        let begun = self.store().begin_collection(kind, cause, goal_bytes, now);
        let begun = crash::around("collection/begin", begun).await;
        let (view, joined) = begun.map_err(store_failure)?;
        if !joined {
            if kind == CollectionKind::Images {
                self.forget_uses().await;
            }
            let _ = self.collecting().runs.send(view.clone());
        }
        Ok((view, joined))
    }

    /// Forgets when images were used that are not here any more.
    async fn forget_uses(&self) {
        let Ok(images) = self.node().runtime.image_names().await else {
            return;
        };
        let kept = images.into_values().map(|it| it.digest).collect();
        if let Err(error) = self.store().forget_uses(kept).await {
            let _ = store_failure(error);
        }
    }

    async fn run_under_way(&self, id: u64, kind: CollectionKind) -> Result<Collection, Failure> {
        let running = self.store().collections_under_way().await;
        let mut running = running.map_err(store_failure)?.into_iter();
        running
            .find(|it| it.id == id && it.kind == kind)
            .ok_or_else(|| no_run(id))
    }

    /// Takes up that a slice is done.
    pub(crate) async fn report_slice(
        &self,
        collection: u64,
        lease: &LeaseRef,
        slice: Slice,
        report: SliceReport,
    ) -> Result<(), Failure> {
        let (kind, of_lease) = of_lease(lease)?;
        if slice != of_lease {
            let problem = format!("must be that of the lease {}", lease.name);
            return Err(Failure::invalid("slice", problem));
        }
        self.collecting().held(lease)?;
        self.run_under_way(collection, kind).await?;
        let now = SystemTime::now();
        let reported = self.store().report_slice(collection, slice, report, now);
        let reported = crash::around("collection/report", reported).await;
        let view = reported.map_err(store_failure)?;
        let view = view.ok_or_else(|| no_run(collection))?;
        let _ = self.collecting().runs.send(view);
        self.forget_index().await
    }
}

fn of_lease(lease: &LeaseRef) -> Result<(CollectionKind, Slice), Failure> {
    CollectionKind::of_lease(&lease.name)
        .ok_or_else(|| Failure::invalid("lease.name", "must be that of a slice"))
}

fn no_run(id: u64) -> Failure {
    let message = format!("no run {id} of this kind is under way");
    Failure::new(Reason::CollectionNotFound, message).with("collection", id)
}

#[cfg(test)]
mod tests;

//! The manager's part in a collection: leases on its slices, claims on what it deletes, and the look at who holds it. A commit
//! looks again while nobody is admitted, nothing is put into the catalog or pinned, and no pull begins.

mod abandoned;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{
    Failure, ImageRef, Reason,
    claims::{Claim, Claimed, Claims, NoClaim, Verdict, judge_blob, judge_image},
    collection::{Collection, CollectionCause, CollectionKind, Slice, SliceReport},
    holders::{Arriving, Holder, HolderKind, Holders, Standing},
    work_leases::{Asked, LeaseRef, NotAcquired, WorkLease, WorkLeases},
};
use berth_platform::{ImageError, ImageInfo, Images, Network, Runtime};
use berth_store::{Change, CollectionView, Reference, Store, Watch, WatchEnded};
use tokio::sync::{MappedMutexGuard, MutexGuard as AsyncGuard, OnceCell, broadcast};

pub(crate) use self::abandoned::give_up;
use crate::{
    crash,
    failures::{image_failure, store_failure},
    registry::Registry,
};

/// Changes of runs that a reader may fall behind; each may have two thousand names.
const READER_LAG: usize = 64;
/// Removals of an image that containerd may leave without an answer. Admissions wait meanwhile, for a containerd that they need
/// as well.
const REMOVALS_MAX: u32 = 5;
const REMOVAL_PAUSE: Duration = Duration::from_millis(500);

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

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Granted { token: u64, expires_at: SystemTime },
    Held(Vec<Holder>),
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    Held(Vec<Holder>),
    Failed(String),
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

    /// Claims objects for the holder of the lease of their slice.
    pub(crate) async fn claim_deletions(
        &self,
        collection: u64,
        lease: LeaseRef,
        objects: Vec<(Claimed, u64)>,
        catalog_revision: u64,
    ) -> Result<Vec<Answer>, Failure> {
        let (kind, slice) = of_lease(&lease)?;
        let collecting = self.collecting();
        for (place, (object, _)) in objects.iter().enumerate() {
            if object.kind() != kind || Slice::of(object.digest()) != Some(slice) {
                let problem = format!("must be in the slice of the lease {}", lease.name);
                return Err(Failure::invalid(format!("objects[{place}]"), problem));
            }
        }
        let held = collecting.held(&lease)?;
        self.run_under_way(collection, kind).await?;
        // It begins before the look: whoever comes during the look finds a claim to break.
        let tokens = self.begin_claims(collection, &lease, &objects, catalog_revision)?;
        let looked = self
            .look(collection, kind, &objects, catalog_revision)
            .await;
        let held_by = match looked {
            Ok(Some(held_by)) => held_by,
            Ok(None) => {
                collecting.give_back(&tokens);
                return Ok(vec![Answer::Held(vec![]); objects.len()]);
            }
            Err(failure) => {
                collecting.give_back(&tokens);
                return Err(failure);
            }
        };
        let expires_at = collecting.on_clock(held.expires_at);
        let mut claims = lock(&collecting.claims);
        let answers = tokens.into_iter().zip(held_by).zip(objects);
        let answers = answers.map(|((token, holders), (object, _))| {
            if !holders.is_empty() {
                claims.take(token);
                return Answer::Held(holders);
            }
            match claims.get(token) {
                Some(_) => Answer::Granted { token, expires_at },
                None => Answer::Held(vec![Holder::new(HolderKind::Pull, object.name())]),
            }
        });
        Ok(answers.collect())
    }

    fn begin_claims(
        &self,
        collection: u64,
        lease: &LeaseRef,
        objects: &[(Claimed, u64)],
        catalog_revision: u64,
    ) -> Result<Vec<u64>, Failure> {
        let collecting = self.collecting();
        collecting.forget_claims();
        let epoch = collecting.epoch.get().copied().unwrap_or_default();
        let mut claims = lock(&collecting.claims);
        let mut tokens = vec![];
        for (object, size_bytes) in objects {
            let claim = Claim {
                lease: lease.clone(),
                collection,
                object: object.clone(),
                size_bytes: *size_bytes,
                catalog_revision,
            };
            match claims.begin(epoch, claim) {
                Ok(token) => tokens.push(token),
                Err(problem @ (NoClaim::TooMany | NoClaim::Exhausted)) => {
                    for token in tokens {
                        claims.take(token);
                    }
                    return Err(Failure::invalid("objects", problem));
                }
            }
        }
        Ok(tokens)
    }

    /// Who holds each of the objects; `None` where the catalog says more than the caller knows. One that is there was not
    /// deleted, whatever was counted.
    async fn look(
        &self,
        collection: u64,
        kind: CollectionKind,
        objects: &[(Claimed, u64)],
        catalog_revision: u64,
    ) -> Result<Option<Vec<Vec<Holder>>>, Failure> {
        let standing = match kind {
            CollectionKind::Images => self.standing().await?,
            CollectionKind::Blobs => Standing::default(),
        };
        let there = |it: &&Claimed| match it {
            Claimed::Image { name, .. } => standing.images.contains_key(name),
            Claimed::Blob { .. } => true,
        };
        let there = objects.iter().map(|(it, _)| it).filter(there);
        let there = there.map(|it| it.name().to_owned()).collect();
        let uncounted = self.store().uncount_collected(collection, there).await;
        uncounted.map_err(store_failure)?;
        let index = self.collecting().index(self.store()).await?;
        if kind == CollectionKind::Blobs && !index.is_as_at(catalog_revision) {
            return Ok(None);
        }
        let digests = objects.iter().map(|(it, _)| it.digest()).collect();
        let found = match kind {
            CollectionKind::Images => index.of_digests(&digests, &standing, SystemTime::now()),
            CollectionKind::Blobs => BTreeMap::new(),
        };
        let holders = objects.iter().map(|(object, _)| match object {
            Claimed::Blob { digest } => index.of_blob(digest),
            Claimed::Image { digest, .. } => {
                let holders = found.get(digest).into_iter().flatten();
                holders.cloned().collect()
            }
        });
        Ok(Some(holders.collect()))
    }

    /// Commits claims. It goes on to its end when its caller has gone.
    pub(crate) async fn commit_deletions(
        &self,
        lease: LeaseRef,
        tokens: Vec<u64>,
    ) -> Result<Vec<Outcome>, Failure> {
        let registry = self.clone();
        self.see_through(async move { registry.commit(&lease, &tokens).await })
            .await
    }

    async fn commit(&self, lease: &LeaseRef, tokens: &[u64]) -> Result<Vec<Outcome>, Failure> {
        let (kind, _) = of_lease(lease)?;
        self.collecting().held(lease)?;
        // Made before anybody has to wait for it.
        drop(self.collecting().index(self.store()).await?);
        let claims: Vec<_> = {
            let claims = lock(&self.collecting().claims);
            let of_lease = |it: &&Claim| it.lease == *lease;
            let claim = |it: &u64| claims.get(*it).filter(of_lease).map(|it| it.collection);
            tokens.iter().map(claim).collect()
        };
        let mut runs: BTreeSet<u64> = claims.into_iter().flatten().collect();
        let running = self.store().collections_under_way().await;
        let running = running.map_err(store_failure)?;
        runs.retain(|run| running.iter().any(|it| it.id == *run));
        let outcomes = match kind {
            CollectionKind::Images => {
                let mut outcomes = vec![];
                for token in tokens {
                    outcomes.push(self.commit_image(lease, *token, &runs).await);
                }
                if outcomes.contains(&Outcome::Committed)
                    && let Err(error) = self.node().runtime.collect().await
                {
                    // The names are gone, and containerd collects by itself too.
                    let _ = image_failure(error);
                }
                outcomes
            }
            CollectionKind::Blobs => self.commit_blobs(lease, tokens, &runs).await?,
        };
        for run in runs {
            self.tell_run(run).await;
        }
        Ok(outcomes)
    }

    /// Shows a run as it stands to whoever watches.
    async fn tell_run(&self, run: u64) {
        match self.store().collection(run).await {
            Ok(view) => view
                .into_iter()
                .for_each(|it| drop(self.collecting().runs.send(it))),
            Err(error) => drop(store_failure(error)),
        }
    }

    /// Ends the claim and returns it, where it stands and its lease is held.
    fn take_claim(&self, lease: &LeaseRef, token: u64, runs: &BTreeSet<u64>) -> Option<Claim> {
        let collecting = self.collecting();
        collecting.held(lease).ok()?;
        let mut claims = lock(&collecting.claims);
        claims.get(token).filter(|it| it.lease == *lease)?;
        claims
            .take(token)
            .filter(|it| runs.contains(&it.collection))
    }

    async fn commit_image(&self, lease: &LeaseRef, token: u64, runs: &BTreeSet<u64>) -> Outcome {
        let _alone = self.image_lock().write().await;
        let Some(claim) = self.take_claim(lease, token, runs) else {
            return ended();
        };
        let Claimed::Image { name, digest } = &claim.object else {
            return ended();
        };
        let done = async {
            let standing = self.standing().await?;
            let index = self.collecting().index(self.store()).await?;
            let holders = index.of_digest(digest, &standing, SystemTime::now());
            drop(index);
            match judge_image(digest, standing.images.get(name), holders) {
                Verdict::Held(holders) => Ok(Outcome::Held(holders)),
                Verdict::Changed(problem) => Ok(Outcome::Failed(problem.to_owned())),
                Verdict::Delete => self.delete_image(&claim, name).await,
            }
        };
        done.await
            .unwrap_or_else(|failure: Failure| Outcome::Failed(failure.to_string()))
    }

    /// Counts the image, then removes it: what is counted and there all the same is taken back by who finds it.
    async fn delete_image(&self, claim: &Claim, name: &str) -> Result<Outcome, Failure> {
        let image = ImageRef::parse(name).map_err(|it| Failure::invalid("image", it))?;
        let counted = vec![(name.to_owned(), claim.size_bytes)];
        let counted = self.store().count_collected(claim.collection, counted);
        let counted = crash::around("collection/count", counted).await;
        counted.map_err(store_failure)?;
        let removed = crash::around("collection/remove", self.remove_for_sure(&image)).await;
        let outcome = match removed {
            Ok(true) => return Ok(Outcome::Committed),
            Ok(false) => Outcome::Failed("it is gone already".to_owned()),
            // It may be gone: who finds it once more takes it back.
            Err(error @ ImageError::Unreachable { .. }) => {
                return Ok(Outcome::Failed(image_failure(error).to_string()));
            }
            Err(error) => Outcome::Failed(image_failure(error).to_string()),
        };
        let uncounted = vec![name.to_owned()];
        let uncounted = self.store().uncount_collected(claim.collection, uncounted);
        uncounted.await.map_err(store_failure)?;
        Ok(outcome)
    }

    /// Removes a name, and returns whether it was there. Without an answer it is asked again: a removal that is still on its way
    /// would take the image from whoever is admitted after this.
    async fn remove_for_sure(&self, image: &ImageRef) -> Result<bool, ImageError> {
        let mut unanswered = 0;
        loop {
            match self.node().runtime.remove_image(image).await {
                Ok(()) => return Ok(true),
                Err(ImageError::NotFound { .. }) => return Ok(unanswered > 0),
                Err(ImageError::Unreachable { .. }) if unanswered < REMOVALS_MAX => {
                    unanswered += 1;
                    tokio::time::sleep(REMOVAL_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A blob that is committed is the worker's to remove: no path leads to it any more.
    async fn commit_blobs(
        &self,
        lease: &LeaseRef,
        tokens: &[u64],
        runs: &BTreeSet<u64>,
    ) -> Result<Vec<Outcome>, Failure> {
        let _alone = self.image_lock().write().await;
        let index = self.collecting().index(self.store()).await?;
        let mut outcomes = vec![];
        let mut counted: BTreeMap<u64, Vec<(String, u64)>> = BTreeMap::new();
        for token in tokens {
            let Some(claim) = self.take_claim(lease, *token, runs) else {
                outcomes.push(ended());
                continue;
            };
            let digest = claim.object.digest();
            let current = index.is_as_at(claim.catalog_revision);
            outcomes.push(match judge_blob(index.of_blob(digest), current) {
                Verdict::Held(holders) => Outcome::Held(holders),
                Verdict::Changed(problem) => Outcome::Failed(problem.to_owned()),
                Verdict::Delete => {
                    let of_run = counted.entry(claim.collection).or_default();
                    of_run.push((digest.to_owned(), claim.size_bytes));
                    Outcome::Committed
                }
            });
        }
        drop(index);
        for (run, objects) in counted {
            let counted = self.store().count_collected(run, objects);
            let counted = crash::around("collection/count", counted).await;
            counted.map_err(store_failure)?;
        }
        Ok(outcomes)
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

fn ended() -> Outcome {
    Outcome::Failed("the claim has ended".to_owned())
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

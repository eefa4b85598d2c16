//! The right to delete: a claim is granted where nobody holds its object, and a commit looks again while nobody can come to
//! hold it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use berth_domain::{
    Failure, ImageRef,
    claims::{Claim, Claimed, NoClaim, Verdict, judge_blob, judge_image},
    collection::{CollectionKind, Slice},
    holders::{Holder, HolderKind, Standing},
    work_leases::LeaseRef,
};
use berth_platform::{ImageError, Images, Network, Runtime};

use super::{lock, of_lease};
use crate::{
    crash,
    failures::{image_failure, store_failure},
    registry::Registry,
};

/// Removals of an image that containerd may leave without an answer. Admissions wait meanwhile, for a containerd that they need
/// as well.
const REMOVALS_MAX: u32 = 5;
const REMOVAL_PAUSE: Duration = Duration::from_millis(500);

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

impl<R: Runtime + Images, N: Network> Registry<R, N> {
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
}

fn ended() -> Outcome {
    Outcome::Failed("the claim has ended".to_owned())
}

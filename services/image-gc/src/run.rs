//! Carries a run out: this worker's slices of it. Each object is claimed from the manager, which alone says what goes.

mod blobs;
mod images;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use berth_api::v1;
use berth_collect::{
    Object,
    plan::{Goal, Plan, plan},
};
use berth_domain::{
    Reason,
    collection::{CollectionKind, Slice},
};
use berth_plugin::{chain, is_away};
use berth_telemetry::spans;
use tonic::Status;
use tracing::Instrument as _;

use crate::{
    config::Config,
    directory::Links,
    facts::{Facts, Incomplete, gather},
    figures,
    manager::{Broken, Manager, is, within, within_deletions},
    state::{Lease, State},
    wire,
};

/// What a report may have.
const FAILED_MAX: usize = 1000;
const ABORTED_BYTES_MAX: usize = 1024;
/// A catalog that changes all the time does not keep a run from its end.
const PLANS_MAX: usize = 3;
/// What the manager says of a claim or a commit where the catalog is not the one that a plan was made from.
const CATALOG_CHANGED: &str = "the catalog has changed";

/// Works off what the manager tells, until it is away.
pub(crate) async fn work(
    manager: &Manager,
    config: &Config,
    state: &State,
) -> Result<std::convert::Infallible, Broken> {
    let mut runs = state.runs.subscribe();
    let mut membership = state.membership.subscribe();
    // The manager takes a report before it tells of it.
    let mut reported: BTreeSet<(u64, Slice)> = BTreeSet::new();
    loop {
        let under_way: Vec<_> = {
            let runs = runs.borrow_and_update();
            let open = runs.by_id.values().filter(|it| it.ended_at.is_none());
            open.cloned().collect()
        };
        reported.retain(|(id, _)| under_way.iter().any(|it| it.id == *id));
        for run in under_way {
            let Some(kind) = wire::kind_from_proto(run.kind()) else {
                continue;
            };
            let mut slices = membership.borrow_and_update().held(kind);
            slices.retain(|slice, _| {
                !run.slices_done.contains(&slice.number()) && !reported.contains(&(run.id, *slice))
            });
            if slices.is_empty() {
                continue;
            }
            let done = carry_out(manager, config, state, kind, run.id, slices).await?;
            reported.extend(done.into_iter().map(|it| (run.id, it)));
        }
        // Slices that were another's are seen with the next change of the leases, which comes each second.
        tokio::select! {
            _ = runs.changed() => {}
            _ = membership.changed() => {}
        }
    }
}

/// What became of a slice.
#[derive(Debug, Default)]
struct Outcome {
    total: u64,
    deleted: u64,
    failed: BTreeMap<String, String>,
    aborted: String,
    /// Something was refused since the catalog has changed: it stays until a plan is made anew.
    stale: bool,
}

/// What a part of the work ends a slice with.
#[derive(Debug)]
enum Stop {
    /// The slice is another's, or the run is over.
    Abandoned,
    Away(Status),
    Failed(String),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Self {
        if is_away(&status) {
            return Self::Away(status);
        }
        let over = [Reason::WorkLeaseLost, Reason::CollectionNotFound];
        match over.into_iter().any(|it| is(&status, it)) {
            true => Self::Abandoned,
            false => Self::Failed(status.message().to_owned()),
        }
    }
}

/// One slice of a run, and all that is needed to act on it.
#[derive(Debug)]
struct Work<'a> {
    manager: &'a Manager,
    config: &'a Config,
    state: &'a State,
    run: u64,
    slice: Slice,
    lease: &'a Lease,
    links: Arc<Links>,
    /// Of the plan that the slice is from; 0 for images, which the manager judges by itself.
    catalog_revision: u64,
}

/// Carries slices out, and those anew for which the catalog changed in between; returns those that were reported.
async fn carry_out(
    manager: &Manager,
    config: &Config,
    state: &State,
    kind: CollectionKind,
    run: u64,
    mut slices: BTreeMap<Slice, Lease>,
) -> Result<Vec<Slice>, Broken> {
    let mut done = Vec::new();
    let mut before: BTreeMap<Slice, u64> = BTreeMap::new();
    for plans_left in (0..PLANS_MAX).rev() {
        let facts = match gather(manager, config, kind).await {
            Ok(facts) => Ok(facts),
            Err(Incomplete::Call { status, .. }) if is_away(&status) => return Err(status.into()),
            Err(error) => Err(chain(&error)),
        };
        // After the facts: what the others have deleted since is off the goal, and not in the way of a plan.
        let Some(now) = standing(manager, kind, run).await? else {
            return Ok(done);
        };
        let (facts, problem) = match facts {
            Ok(facts) => (facts, String::new()),
            Err(problem) => (Facts::default(), problem),
        };
        let (links, catalog_revision) = (facts.links.clone(), facts.catalog_revision);
        let (mut shares, plan) = match problem.is_empty() {
            true => planned(facts.objects, &now, &slices),
            false => (Shares::new(), Plan::default()),
        };
        let mut stale = BTreeMap::new();
        let span = spans::collect(figures::word(kind), run);
        for (slice, lease) in slices {
            let objects = shares.remove(&slice).unwrap_or_default();
            let deleted = before.get(&slice).copied().unwrap_or_default();
            let mut outcome = Outcome {
                total: deleted.saturating_add(objects.len() as u64),
                deleted,
                aborted: problem.clone(),
                ..Outcome::default()
            };
            let work = Work {
                manager,
                config,
                state,
                run,
                slice,
                lease: &lease,
                links: links.clone(),
                catalog_revision,
            };
            let ended = match kind {
                CollectionKind::Images => {
                    work.images(objects, &mut outcome)
                        .instrument(span.clone())
                        .await
                }
                CollectionKind::Blobs => {
                    work.blobs(objects, &mut outcome)
                        .instrument(span.clone())
                        .await
                }
            };
            match ended {
                Ok(()) if outcome.stale && plans_left > 0 => {
                    tracing::info!(run, %slice, "the catalog has changed; the slice is planned anew");
                    before.insert(slice, outcome.deleted);
                    stale.insert(slice, lease);
                    continue;
                }
                Ok(()) => {}
                Err(Stop::Abandoned) => {
                    tracing::info!(run, %slice, "the slice is another's");
                    continue;
                }
                Err(Stop::Away(status)) => return Err(status.into()),
                Err(Stop::Failed(problem)) => outcome.aborted = problem,
            }
            berth_daemon::crash::point(|| "image-gc/report".to_owned());
            done.extend(report(manager, run, slice, &lease, outcome, &plan).await?);
        }
        slices = stale;
        if slices.is_empty() {
            break;
        }
    }
    Ok(done)
}

/// A run as it stands, unless it has ended.
async fn standing(
    manager: &Manager,
    kind: CollectionKind,
    run: u64,
) -> Result<Option<v1::Collection>, Status> {
    let kind = wire::kind_to_proto(kind).into();
    let request = v1::ListCollectionsRequest { kind };
    let listed = within(manager.collections().list_collections(request)).await?;
    let mut collections = listed.collections.into_iter();
    Ok(collections.find(|it| it.id == run && it.ended_at.is_none()))
}

type Shares = BTreeMap<Slice, Vec<Object>>;

/// The plan over all slices, which is the same for all workers, cut into slices.
fn planned(
    mut objects: Vec<Object>,
    run: &v1::Collection,
    own: &BTreeMap<Slice, Lease>,
) -> (Shares, Plan) {
    let goal = Goal::left(run.goal_bytes, run.deleted_bytes);
    if goal != Goal::All {
        // What is counted in a slice of this worker's own and is still there was left by a worker or a manager that died.
        let is_own = |it: &Object| Slice::of(&it.digest).is_some_and(|it| own.contains_key(&it));
        let gone: BTreeSet<_> = run.deleted.iter().collect();
        objects.retain(|it| is_own(it) || !gone.contains(&it.name));
    }
    let mut plan = plan(objects, goal);
    let mut shares = Shares::new();
    for object in std::mem::take(&mut plan.objects) {
        // What has no digest is in no slice, and nobody's to delete.
        if let Some(slice) = Slice::of(&object.digest) {
            shares.entry(slice).or_default().push(object);
        }
    }
    (shares, plan)
}

/// Reports a slice; none where it is another's by now.
async fn report(
    manager: &Manager,
    run: u64,
    slice: Slice,
    lease: &Lease,
    outcome: Outcome,
    plan: &Plan,
) -> Result<Option<Slice>, Status> {
    let Outcome {
        total,
        deleted,
        failed,
        aborted,
        stale: _,
    } = outcome;
    for (object, problem) in &failed {
        tracing::warn!(run, object, problem, "cannot be deleted");
    }
    if !aborted.is_empty() {
        tracing::warn!(run, %slice, problem = aborted, "nothing more of the slice is deleted");
    }
    let request = v1::ReportSliceRequest {
        collection: run,
        lease: Some(lease.reference()),
        slice: slice.number(),
        objects_total: total,
        // What has failed stays as well.
        retained_total: total.saturating_sub(deleted),
        failed: failed.into_iter().take(FAILED_MAX).collect(),
        aborted: cut(aborted),
        goal_missed_bytes: plan.missed_bytes,
        largest_held: plan.largest.iter().map(wire::held_to_proto).collect(),
    };
    match within(manager.collections().report_slice(request)).await {
        Ok(_) => Ok(Some(slice)),
        Err(status) if is_away(&status) => Err(status),
        Err(status) => {
            tracing::warn!(run, %slice, error = status.message(), "the report is not taken");
            Ok(None)
        }
    }
}

fn cut(mut text: String) -> String {
    let mut end = ABORTED_BYTES_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

impl Work<'_> {
    /// Claims objects; beside each is its claim, or who holds it.
    async fn claim(
        &self,
        objects: impl IntoIterator<Item = v1::Deletable>,
    ) -> Result<Vec<v1::DeletionClaim>, Stop> {
        let request = v1::ClaimDeletionsRequest {
            collection: self.run,
            lease: Some(self.lease.reference()),
            objects: objects.into_iter().collect(),
            catalog_revision: self.catalog_revision,
        };
        let answer = within_deletions(self.manager.collections().claim_deletions(request)).await?;
        Ok(answer.claims)
    }

    async fn commit(&self, tokens: Vec<u64>) -> Result<Vec<v1::DeletionOutcome>, Stop> {
        if tokens.is_empty() {
            return Ok(vec![]);
        }
        let lease = Some(self.lease.reference());
        let request = v1::CommitDeletionsRequest { lease, tokens };
        let answer = within_deletions(self.manager.collections().commit_deletions(request)).await?;
        Ok(answer.outcomes)
    }
}

/// A claim that nobody is against, and that was not granted: the catalog has changed.
fn is_stale(claim: &v1::DeletionClaim) -> bool {
    !granted(claim) && claim.holders.is_empty()
}

/// A claim that was granted has a token.
fn granted(claim: &v1::DeletionClaim) -> bool {
    claim.token != 0
}

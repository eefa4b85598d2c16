//! What whoever watches over the node has ended and removed, object by object: the audit's verdicts and the way of a fix, as the
//! holder of a lease.

use std::{collections::BTreeMap, time::Duration};

use berth_domain::{Failure, work_leases::LeaseRef};
use berth_orphans::{Finding, Verdict};
use berth_platform::{EndSignal, Images, Network, Runtime};

use crate::{
    fix::{Outcome, Terms, end, look, outcome, remove},
    registry::Registry,
};

/// One watchdog at a time has it.
pub(crate) const LEASE: &str = "watchdog";
/// Between the question and the kill.
const GRACE: Duration = Duration::from_secs(5);

/// What is said to the token of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Orphan,
    Gone,
    Explained(String),
    Failed(String),
}

/// Asks everything of these that runs to end.
pub(crate) async fn end_orphans<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    lease: &LeaseRef,
    tokens: &[String],
) -> Result<Vec<Answer>, Failure> {
    registry.collecting().held(lease)?;
    let seen = by_token(look(registry).await?);
    let doomed: Vec<Finding> = orphans(&seen, tokens).cloned().collect();
    end(registry, &doomed, EndSignal::Quit, GRACE).await?;
    let answer = |token: &String| match seen.get(token) {
        None => Answer::Gone,
        Some(it) if is_orphan(it) => Answer::Orphan,
        Some(it) => Answer::Explained(it.explanation.clone()),
    };
    Ok(tokens.iter().map(answer).collect())
}

/// Removes those of these that are orphans yet.
pub(crate) async fn remove_orphans<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    lease: &LeaseRef,
    tokens: &[String],
    limit: Duration,
) -> Result<Vec<Answer>, Failure> {
    registry.collecting().held(lease)?;
    let seen = by_token(look(registry).await?);
    let doomed: Vec<Finding> = orphans(&seen, tokens).cloned().collect();
    let terms = Terms {
        limit,
        lease: Some(lease.clone()),
    };
    let failures = remove(registry, &doomed, &terms).await?;
    let last = look(registry).await?;
    let answer = |token: &String| {
        let Some(it) = seen.get(token) else {
            return Answer::Gone;
        };
        match outcome(registry, &doomed, &failures, &last, it) {
            None => Answer::Explained(it.explanation.clone()),
            Some(_) if !is_orphan(it) => Answer::Explained(it.explanation.clone()),
            Some(Outcome::Removed) => Answer::Gone,
            Some(Outcome::Left(why)) => Answer::Explained(why),
            Some(Outcome::Failed(error)) => Answer::Failed(error),
        }
    };
    Ok(tokens.iter().map(answer).collect())
}

fn is_orphan(it: &Finding) -> bool {
    it.verdict == Verdict::Orphan && it.fix.removes()
}

fn by_token(findings: Vec<Finding>) -> BTreeMap<String, Finding> {
    let keyed = findings.into_iter().map(|it| (it.object.identity(), it));
    keyed.collect()
}

/// In the order of removal.
fn orphans<'a>(
    seen: &'a BTreeMap<String, Finding>,
    tokens: &[String],
) -> impl Iterator<Item = &'a Finding> {
    let asked = tokens.iter().filter_map(|it| seen.get(it));
    let mut orphans: Vec<_> = asked.filter(|it| is_orphan(it)).collect();
    orphans.sort_by(|a, b| a.object.cmp(&b.object));
    orphans.dedup();
    orphans.into_iter()
}

//! Removes what no record explains: two looks, then what runs is asked to end, and after one more look the rest goes. What is
//! to be done is decided in `orphans`; what has a sandbox id and no record is removed by the task of that id.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{
    Failure, Generation, SandboxId, spec::STOP_GRACE_DEFAULT, work_leases::LeaseRef,
};
use berth_orphans::{Finding, Fix, Kind, Look, Object, Verdict, confirmed, is_clean, judge};
use berth_platform::{EndSignal, Images, Network, Runtime, RuntimeObjectKind};
use futures::{StreamExt as _, stream};

use crate::{
    audit::{audit, promise, to_network, to_runtime},
    crash,
    failures::{internal, network_failure, runtime_failure, store_failure},
    registry::{Registry, shutting_down},
};

/// Sandboxes that are cleared, and tasks that are ended, at the same time.
const AT_ONCE: usize = 16;
/// How long the task of a sandbox gets to clear it: a grace for each container, and the kills.
const CLEAR_LIMIT: Duration = Duration::from_secs(60);
/// A task that met trouble tries again within this time.
const RETRY_LIMIT: Duration = Duration::from_secs(6);
const CLEAR_POLL: Duration = Duration::from_millis(100);

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Removed,
    /// It is there, for this reason.
    Left(String),
    Failed(String),
}

#[derive(Debug)]
pub(crate) struct Fixed {
    /// As the objects were at the last look before anything was done, and what became of those that were not in order.
    pub(crate) findings: Vec<(Finding, Option<Outcome>)>,
    /// Whether nothing is out of order any more.
    pub(crate) clean: bool,
}

/// Audits, and removes what is the same orphan at two looks that lie `settle` apart.
pub(crate) async fn fix<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    settle: Duration,
) -> Result<Fixed, Failure> {
    let first = audit(registry).await?;
    let orphans = first.iter().filter(|it| it.fix.removes()).count();
    if orphans > 0 {
        tracing::info!(orphans, ?settle, "the first look is over");
        registry.pause(settle).await;
    }
    fix_since(registry, &first).await
}

/// Takes the second look, and removes what is the same orphan as at the first.
async fn fix_since<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    first: &[Finding],
) -> Result<Fixed, Failure> {
    let second = look(registry).await?;
    for finding in &second {
        if let Fix::Wake(id) = &finding.fix {
            registry.wake(id);
        }
    }
    let doomed = confirmed(first, &second);
    let (failures, last) = if doomed.is_empty() {
        (vec![], second.clone())
    } else {
        end(registry, &doomed, EndSignal::Term, STOP_GRACE_DEFAULT).await?;
        let still = confirmed(&doomed, &look(registry).await?);
        let failures = remove(registry, &still, &Terms::default()).await?;
        (failures, look(registry).await?)
    };
    let findings = second.into_iter().map(|finding| {
        let outcome = outcome(registry, &doomed, &failures, &last, &finding);
        (finding, outcome)
    });
    let mut findings: Vec<_> = findings.collect();
    let known = |it: &Finding| {
        findings
            .iter()
            .any(|(known, _)| same(&known.object, &it.object))
    };
    let newcomers: Vec<Finding> = last
        .iter()
        .filter(|it| !is_clean(std::slice::from_ref(*it)) && !known(it))
        .cloned()
        .collect();
    findings.extend(newcomers.into_iter().map(|it| {
        let outcome = match it.verdict {
            Verdict::Orphan => not_yet(),
            Verdict::Explained | Verdict::InProgress | Verdict::Missing | Verdict::Unknown => {
                Outcome::Left(it.fix.to_string())
            }
        };
        (it, Some(outcome))
    }));
    Ok(Fixed {
        findings,
        clean: is_clean(&last),
    })
}

/// On which terms objects are removed.
pub(crate) struct Terms {
    /// How long an object, or all that a sandbox holds, may take.
    pub(crate) limit: Duration,
    /// Nothing more is removed when it is not held any more.
    pub(crate) lease: Option<LeaseRef>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            limit: CLEAR_LIMIT,
            lease: None,
        }
    }
}

impl Terms {
    fn stand<R: Runtime + Images, N: Network>(
        &self,
        registry: &Registry<R, N>,
    ) -> Result<(), Failure> {
        match &self.lease {
            Some(lease) => registry.collecting().held(lease).map(drop),
            None => Ok(()),
        }
    }
}

/// An audit, unless the manager stops.
pub(crate) async fn look<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
) -> Result<Vec<Finding>, Failure> {
    if registry.is_stopping() {
        return Err(shutting_down());
    }
    audit(registry).await
}

/// Asks everything that runs to end, and waits for that.
pub(crate) async fn end<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    doomed: &[Finding],
    signal: EndSignal,
    grace: Duration,
) -> Result<(), Failure> {
    let tasks = || doomed.iter().filter(|it| it.object.kind == Kind::Task);
    let asked = |it: &Object| {
        tasks().any(|task| (&task.object.sandbox, &task.object.role) == (&it.sandbox, &it.role))
    };
    // A shim whose task is asked is not asked too: many programs take a second SIGTERM for impatience.
    let runs = |it: &&Object| it.kind == Kind::Task || it.kind == Kind::Shim && !asked(it);
    let mut objects = vec![];
    for object in doomed.iter().map(|it| &it.object).filter(runs) {
        if unexplained(registry, object).await?.is_ok() {
            objects.extend(to_runtime(object));
        }
    }
    let ends = objects.into_iter().map(|object| async move {
        let runtime = &registry.node().runtime;
        let name = match (object.kind, &object.role) {
            (RuntimeObjectKind::Task, Some(role)) => format!("fix/end-task {role}"),
            (RuntimeObjectKind::Task, None) => "fix/end-task".to_owned(),
            _ => "fix/end-shim".to_owned(),
        };
        let ended = runtime.end_object(&object, signal, grace);
        // Whoever does not hear it is killed afterwards, if that is still right.
        if let Err(error) = crash::around(&name, ended).await {
            drop(runtime_failure(error));
        }
    });
    stream::iter(ends)
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>()
        .await;
    Ok(())
}

/// Removes what was an orphan at the last look, and returns what could not be removed, and why.
pub(crate) async fn remove<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    doomed: &[Finding],
    terms: &Terms,
) -> Result<Vec<(Object, Outcome)>, Failure> {
    let ids: BTreeSet<&SandboxId> = doomed.iter().filter_map(|it| cleared_by(it)).collect();
    let ids: Vec<&SandboxId> = ids.into_iter().collect();
    let mut stuck = BTreeSet::new();
    for some in ids.chunks(AT_ONCE) {
        terms.stand(registry)?;
        stuck.extend(clear(registry, some, terms.limit, true).await?);
    }
    // Much of what would be removed alone has gone along.
    let doomed = match ids.is_empty() {
        true => doomed.to_vec(),
        false => confirmed(doomed, &look(registry).await?),
    };
    let (mut kept, mut removed) = (vec![], false);
    for finding in doomed.iter().filter(|it| it.fix == Fix::Remove) {
        if registry.is_stopping() {
            return Err(shutting_down());
        }
        terms.stand(registry)?;
        let object = &finding.object;
        match unexplained(registry, object).await? {
            Err(explanation) => kept.push((object.clone(), Outcome::Left(explanation))),
            Ok(()) => match crash::around(
                &format!("fix/remove {}", object.kind),
                remove_within(registry, object, terms.limit),
            )
            .await
            {
                Ok(()) => removed = true,
                Err(failure) => kept.push((object.clone(), Outcome::Failed(failure.to_string()))),
            },
        }
    }
    // What was in the way of a sandbox's task may be gone.
    let stuck: Vec<&SandboxId> = stuck.iter().filter(|_| removed).collect();
    for some in stuck.chunks(AT_ONCE) {
        clear(registry, some, RETRY_LIMIT, false).await?;
    }
    Ok(kept)
}

/// Has the tasks of these sandboxes clear them, and returns those that hold something yet when the time is over or, where
/// that is asked for, as soon as their tasks are done or in trouble.
async fn clear<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    ids: &[&SandboxId],
    limit: Duration,
    until_stuck: bool,
) -> Result<BTreeSet<SandboxId>, Failure> {
    for id in ids {
        registry.wake(id);
    }
    let deadline = Instant::now() + limit;
    loop {
        let findings = look(registry).await?;
        let left: BTreeSet<SandboxId> = findings
            .iter()
            .filter_map(|it| cleared_by(it))
            .filter(|it| ids.contains(it))
            .cloned()
            .collect();
        let over = |it: &SandboxId| !registry.is_at_work(it) || registry.trouble(it).is_some();
        let hopeless = left.iter().all(over) && (until_stuck || left.is_empty());
        if hopeless || Instant::now() >= deadline {
            return Ok(left);
        }
        registry.pause(CLEAR_POLL).await;
    }
}

fn cleared_by(finding: &Finding) -> Option<&SandboxId> {
    match &finding.fix {
        Fix::Clear(id) => Some(id),
        Fix::Nothing | Fix::AskAgain | Fix::Wake(_) | Fix::Remove | Fix::Restart => None,
    }
}

/// Whether this object alone is still to be removed by the record as it is at this moment; else why not.
async fn unexplained<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    object: &Object,
) -> Result<Result<(), String>, Failure> {
    let record = match &object.sandbox {
        Some(id) => registry.store().get(id).await.map_err(store_failure)?,
        None => None,
    };
    let look = Look {
        promises: record.iter().map(|it| promise(registry, it)).collect(),
        objects: vec![object.clone()],
        ..Look::default()
    };
    let mut findings = judge(&look).into_iter();
    let own = findings.find(|it| it.object == *object);
    Ok(match own {
        Some(it) if it.verdict == Verdict::Orphan => Ok(()),
        Some(it) => Err(it.explanation),
        None => Err("a record explains it".to_owned()),
    })
}

/// A step that has begun is not dropped half-way: what takes longer goes on, and is told as failed.
async fn remove_within<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    object: &Object,
    limit: Duration,
) -> Result<(), Failure> {
    let (own, object) = (registry.clone(), object.clone());
    let removal = registry.see_through(async move { remove_one(&own, &object).await });
    match tokio::time::timeout(limit, removal).await {
        Ok(done) => done,
        Err(_) => Err(internal(&format!(
            "it is not gone within {limit:?}; the work on it goes on"
        ))),
    }
}

async fn remove_one<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    object: &Object,
) -> Result<(), Failure> {
    tracing::info!(kind = %object.kind, name = object.name, "removing what no record explains");
    let node = registry.node();
    if let Some(object) = to_runtime(object) {
        let removed = node.runtime.remove_object(&object).await;
        return removed.map_err(runtime_failure);
    }
    if let Some(object) = to_network(object) {
        let removed = node.network.remove_object(&object).await;
        return removed.map_err(network_failure);
    }
    let lease = || -> Option<(Ipv4Addr, &SandboxId, Generation)> {
        let address = object.name.parse().ok()?;
        Some((address, object.sandbox.as_ref()?, object.generation?))
    };
    let Some((address, owner, generation)) = lease() else {
        return Err(internal("nothing removes an object of this kind"));
    };
    let now = SystemTime::now();
    let released = registry
        .store()
        .release_unexplained(address, owner, generation, now);
    match released.await.map_err(store_failure)? {
        true => Ok(()),
        false => Err(internal("a record explains the address")),
    }
}

/// What to tell of a finding, by the last look.
pub(crate) fn outcome<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    doomed: &[Finding],
    failures: &[(Object, Outcome)],
    last: &[Finding],
    finding: &Finding,
) -> Option<Outcome> {
    let object = &finding.object;
    match finding.verdict {
        Verdict::Explained | Verdict::InProgress => return None,
        Verdict::Missing | Verdict::Unknown => return Some(Outcome::Left(finding.fix.to_string())),
        Verdict::Orphan => {}
    }
    if !doomed.contains(finding) {
        return Some(not_yet());
    }
    let Some(there) = last.iter().find(|it| same(&it.object, object)) else {
        return Some(Outcome::Removed);
    };
    let failed = failures.iter().find(|(it, _)| it == object);
    Some(match failed {
        Some((_, outcome)) => outcome.clone(),
        None if there.verdict != Verdict::Orphan => Outcome::Left(there.explanation.clone()),
        None => {
            let trouble = object.sandbox.as_ref().and_then(|it| registry.trouble(it));
            let words = trouble.map(|it| it.to_string());
            Outcome::Failed(words.unwrap_or_else(|| "it is still there".to_owned()))
        }
    })
}

fn not_yet() -> Outcome {
    Outcome::Left("it was not seen twice; the next run removes it".to_owned())
}

/// Whether it is the same thing, whatever is known of it beside.
fn same(one: &Object, other: &Object) -> bool {
    let of = |it: &Object| (it.kind, it.sandbox.clone(), it.made_at, it.serial);
    of(one) == of(other) && one.name == other.name
}

#[cfg(test)]
mod tests;

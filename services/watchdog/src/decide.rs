//! What follows from two looks, and what is told of a run.

use std::{collections::BTreeSet, time::Duration};

use berth_api::v1::{self, OrphanOutcome};
use berth_domain::Reason;
use tonic::Status;

use crate::manager::is;

/// As many as a call may name.
const BATCH: usize = 256;
/// What a task of the manager was at, or a disk did not give, is often over by then.
const SOON: Duration = Duration::from_secs(1);
/// A manager is back within seconds of its restart.
const BACK: Duration = Duration::from_secs(1);

/// The orphans of a look, in the order of removal.
pub(crate) fn orphans(audit: v1::AuditResponse) -> Vec<v1::AuditObject> {
    let objects = audit.objects.into_iter();
    objects.filter(|it| !it.token.is_empty()).collect()
}

/// The orphans of the second look that were the same orphans at the first.
pub(crate) fn confirmed(
    first: &[v1::AuditObject],
    second: Vec<v1::AuditObject>,
) -> Vec<v1::AuditObject> {
    let seen: BTreeSet<&str> = first.iter().map(|it| it.token.as_str()).collect();
    let again = second.into_iter();
    again
        .filter(|it| seen.contains(it.token.as_str()))
        .collect()
}

/// The objects in calls: what is of one sandbox is in one, as far as a call has room, and the order of removal stays.
pub(crate) fn batches(objects: &[v1::AuditObject]) -> Vec<Vec<&v1::AuditObject>> {
    let mut by_sandbox: Vec<(&str, Vec<&v1::AuditObject>)> = vec![];
    for object in objects {
        match by_sandbox.iter_mut().find(|(it, _)| *it == object.sandbox) {
            Some((_, own)) => own.push(object),
            None => by_sandbox.push((&object.sandbox, vec![object])),
        }
    }
    let mut batches: Vec<Vec<&v1::AuditObject>> = vec![];
    for (_, own) in by_sandbox {
        match batches.last_mut() {
            Some(last) if last.len() + own.len() <= BATCH => last.extend(own),
            Some(_) | None => batches.extend(own.chunks(BATCH).map(<[_]>::to_vec)),
        }
    }
    let place = |it: &&v1::AuditObject| objects.iter().position(|other| std::ptr::eq(other, *it));
    for batch in &mut batches {
        batch.sort_by_key(place);
    }
    batches
}

/// Adds what became of objects to what is told of a run.
pub(crate) fn note(
    run: &mut v1::WatchdogRun,
    objects: &[&v1::AuditObject],
    answers: &[v1::OrphanAnswer],
) {
    for object in objects {
        let answer = answers.iter().find(|it| it.token == object.token);
        let (outcome, reason) = match answer {
            Some(it) => (it.outcome(), it.message.clone()),
            None => (
                OrphanOutcome::Failed,
                "the manager said nothing of it".to_owned(),
            ),
        };
        match outcome {
            OrphanOutcome::Gone => deleted(run, object),
            OrphanOutcome::Explained => run.left.push(told(object, reason)),
            OrphanOutcome::Failed | OrphanOutcome::Orphan | OrphanOutcome::Unspecified => {
                failed(run, object, reason);
            }
        }
    }
}

fn deleted(run: &mut v1::WatchdogRun, object: &v1::AuditObject) {
    if object.kind == "container" {
        run.deleted_containers.push(object.name.clone());
    }
    run.deleted.push(told(object, String::new()));
}

fn failed(run: &mut v1::WatchdogRun, object: &v1::AuditObject, reason: String) {
    if object.kind == "container" {
        let failed = &mut run.failed_containers;
        failed.insert(object.name.clone(), reason.clone());
    }
    run.failed.push(told(object, reason));
}

/// Adds that a call about objects failed.
pub(crate) fn note_failure(run: &mut v1::WatchdogRun, objects: &[&v1::AuditObject], error: &str) {
    for object in objects {
        failed(run, object, error.to_owned());
    }
}

fn told(object: &v1::AuditObject, reason: String) -> v1::WatchdogObject {
    v1::WatchdogObject {
        kind: object.kind.clone(),
        name: object.name.clone(),
        sandbox: object.sandbox.clone(),
        reason,
    }
}

/// What a run leaves to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// Objects that it was to remove, or all that it broke off before.
    Part,
    /// All, since another watchdog has the lease.
    ToAnother,
    /// All, until the manager is back.
    ToManager,
}

pub(crate) fn left(run: &v1::WatchdogRun, done: &Result<(), Status>) -> Left {
    match done {
        Ok(()) if run.failed.is_empty() && run.left.is_empty() => Left::Nothing,
        Err(status) if is(status, Reason::WorkLeaseHeld) => Left::ToAnother,
        Err(status) if is(status, Reason::ManagerUnreachable) => Left::ToManager,
        Ok(()) | Err(_) => Left::Part,
    }
}

/// How many runs one after another have left something, with this one.
pub(crate) fn unsettled(left: Left, before: u32) -> u32 {
    match left {
        Left::Nothing => 0,
        Left::Part => before.saturating_add(1),
        Left::ToAnother | Left::ToManager => before,
    }
}

/// How long to wait after a run: when so many have left something, each time twice as long.
pub(crate) fn pause(
    left: Left,
    unsettled: u32,
    lease_time: Duration,
    interval: Duration,
) -> Duration {
    let pause = match left {
        Left::Nothing => interval,
        Left::Part => SOON.saturating_mul(2u32.saturating_pow(unsettled.saturating_sub(1))),
        Left::ToAnother => lease_time,
        Left::ToManager => BACK,
    };
    pause.min(interval)
}

/// A run in one line.
pub(crate) fn in_words(run: &v1::WatchdogRun) -> String {
    if !run.problem.is_empty() {
        return run.problem.clone();
    }
    let (deleted, failed, left) = (run.deleted.len(), run.failed.len(), run.left.len());
    match run.first_look {
        0 => "no orphans".to_owned(),
        seen => format!("of {seen} orphans {deleted} deleted, {failed} failed, {left} left"),
    }
}

#[cfg(test)]
mod tests {
    use berth_domain::Failure;

    use super::*;

    fn object(kind: &str, name: &str, sandbox: &str) -> v1::AuditObject {
        v1::AuditObject {
            kind: kind.to_owned(),
            name: name.to_owned(),
            sandbox: sandbox.to_owned(),
            token: format!("{kind}/{name}"),
            ..v1::AuditObject::default()
        }
    }

    fn names<'a>(objects: impl IntoIterator<Item = &'a v1::AuditObject>) -> Vec<&'a str> {
        objects.into_iter().map(|it| it.name.as_str()).collect()
    }

    #[test]
    fn only_what_has_a_token_is_an_orphan_and_only_the_same_one_twice_is_removed() {
        let explained = v1::AuditObject {
            token: String::new(),
            ..object("task", "web", "web")
        };
        let look = |objects: &[&v1::AuditObject]| {
            orphans(v1::AuditResponse {
                objects: objects.iter().map(|&it| it.clone()).collect(),
                clean: false,
            })
        };
        let (old, new) = (object("task", "old", ""), object("task", "new", ""));
        let anew = v1::AuditObject {
            token: "another".to_owned(),
            ..old.clone()
        };
        assert_eq!(names(&look(&[&explained, &old])), ["old"]);
        assert_eq!(
            names(&confirmed(&look(&[&old]), look(&[&old, &new]))),
            ["old"]
        );
        assert_eq!(names(&confirmed(&look(&[&old]), look(&[&anew]))), [""; 0]);
        assert_eq!(names(&confirmed(&look(&[]), look(&[&old]))), [""; 0]);
        assert_eq!(names(&confirmed(&look(&[&old]), look(&[]))), [""; 0]);
    }

    #[test]
    fn what_a_run_leaves_is_told_by_its_objects_and_by_why_it_broke_off() {
        let object = object("directory", "left", "a");
        let told = || vec![told(&object, "why".to_owned())];
        let clean = v1::WatchdogRun::default();
        let kept = v1::WatchdogRun {
            left: told(),
            ..clean.clone()
        };
        let failed = v1::WatchdogRun {
            failed: told(),
            ..clean.clone()
        };
        let broken = |reason| Err(berth_api::status(Failure::new(reason, "why")));
        let cases = [
            (&clean, Ok(()), Left::Nothing),
            (&kept, Ok(()), Left::Part),
            (&failed, Ok(()), Left::Part),
            (&clean, broken(Reason::WorkLeaseHeld), Left::ToAnother),
            // Also a manager that was started again knows the lease no more.
            (&clean, broken(Reason::WorkLeaseLost), Left::Part),
            (&clean, broken(Reason::ManagerUnreachable), Left::ToManager),
            (&clean, broken(Reason::RuntimeUnreachable), Left::Part),
            (&clean, Err(Status::deadline_exceeded("late")), Left::Part),
        ];
        for (run, done, expected) in cases {
            assert_eq!(left(run, &done), expected, "{run:?} {done:?}");
        }
    }

    #[test]
    fn what_was_left_is_looked_at_again_soon_and_ever_less_often() {
        let seconds = Duration::from_secs;
        let after = |left, unsettled| pause(left, unsettled, seconds(3), seconds(300)).as_secs();
        let pauses = [1, 2, 3, 9, 10, 40, u32::MAX].map(|it| after(Left::Part, it));
        assert_eq!(pauses, [1, 2, 4, 256, 300, 300, 300]);
        let others = [Left::Nothing, Left::ToAnother, Left::ToManager].map(|it| after(it, 40));
        assert_eq!(others, [300, 3, 1]);
        let all = [Left::Nothing, Left::Part, Left::ToAnother, Left::ToManager];
        assert_eq!(all.map(|it| unsettled(it, 7)), [0, 8, 7, 7]);
        let often = [Left::Part, Left::ToAnother].map(|it| pause(it, 3, seconds(9), seconds(2)));
        assert_eq!(often, [seconds(2); 2]);
    }

    #[test]
    fn what_is_of_one_sandbox_goes_together_and_in_the_order_of_removal() {
        let objects = [
            object("task", "a1", "a"),
            object("task", "b1", "b"),
            object("container", "a2", "a"),
            object("link", "n1", ""),
        ];
        let batches = batches(&objects);
        assert_eq!(batches.len(), 1);
        assert_eq!(names(batches[0].iter().copied()), ["a1", "b1", "a2", "n1"]);
    }

    #[test]
    fn a_call_names_no_more_than_it_may_and_parts_no_sandbox_that_fits() {
        let of = |sandbox: &str, count: usize| -> Vec<_> {
            let objects = (0..count).map(|it| object("task", &format!("{sandbox}{it}"), sandbox));
            objects.collect()
        };
        let objects = [of("a", 200), of("b", 100), of("c", 300)].concat();
        let sizes: Vec<_> = batches(&objects).iter().map(Vec::len).collect();
        assert_eq!(sizes, [200, 100, 256, 44]);
        assert!(batches(&[]).is_empty());
    }

    #[test]
    fn each_object_is_told_with_what_became_of_it_and_containers_by_their_ids() {
        let answer = |token: &str, outcome: OrphanOutcome, message: &str| v1::OrphanAnswer {
            token: token.to_owned(),
            outcome: outcome.into(),
            message: message.to_owned(),
        };
        let objects = [
            object("container", "gone", "a"),
            object("container", "stuck", "b"),
            object("link", "kept", "c"),
            object("mount", "unsaid", ""),
        ];
        let objects: Vec<_> = objects.iter().collect();
        let mut run = v1::WatchdogRun {
            first_look: 5,
            ..v1::WatchdogRun::default()
        };
        let answers = [
            answer("container/gone", OrphanOutcome::Gone, ""),
            answer("container/stuck", OrphanOutcome::Failed, "no"),
            answer("link/kept", OrphanOutcome::Explained, "of sandbox c"),
        ];
        note(&mut run, &objects, &answers);
        note_failure(&mut run, &objects[..1], "away");
        let list = |it: &[v1::WatchdogObject]| -> Vec<_> {
            it.iter()
                .map(|it| format!("{} {}", it.name, it.reason))
                .collect()
        };
        assert_eq!(list(&run.deleted), ["gone "]);
        let failed = [
            "stuck no",
            "unsaid the manager said nothing of it",
            "gone away",
        ];
        assert_eq!(list(&run.failed), failed);
        assert_eq!(list(&run.left), ["kept of sandbox c"]);
        assert_eq!(run.deleted_containers, ["gone"]);
        assert_eq!(run.failed_containers["stuck"], "no");
        assert_eq!(in_words(&run), "of 5 orphans 1 deleted, 3 failed, 1 left");
    }
}

//! Two looks against each other: what changed between them is no reason to remove anything.

use std::collections::BTreeMap;

use crate::{Finding, Promise, Verdict};

/// The records around a list of objects: read before it and after it. A record that changed meanwhile may have had a
/// plan that the list saw half of.
pub fn steady(before: Vec<Promise>, after: Vec<Promise>) -> Vec<Promise> {
    let mut gone: BTreeMap<_, _> = before.into_iter().map(|it| (it.id.clone(), it)).collect();
    let mut promises: Vec<Promise> = after
        .into_iter()
        .map(|mut promise| {
            let same = gone.remove(&promise.id).as_ref() == Some(&promise);
            promise.busy |= !same;
            promise
        })
        .collect();
    promises.extend(gone.into_values().map(|mut promise| {
        promise.busy = true;
        promise
    }));
    promises
}

/// The orphans of the second look that were the same orphans at the first, and that a fix removes.
pub fn confirmed(first: &[Finding], second: &[Finding]) -> Vec<Finding> {
    let is_orphan = |it: &&Finding| it.verdict == Verdict::Orphan && it.fix.removes();
    let same = |it: &&Finding| {
        let mut first = first.iter().filter(is_orphan);
        first.any(|former| former.object == it.object)
    };
    second
        .iter()
        .filter(is_orphan)
        .filter(same)
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use berth_domain::{Generation, Status};

    use super::*;
    use crate::{
        Kind, Look, Object, judge,
        judge::tests::{object, promise},
    };

    #[test]
    fn a_record_that_came_went_or_changed_around_a_look_may_have_a_plan() {
        let running = promise(Status::Running, false);
        let newer = Promise {
            generation: Generation(8),
            ..running.clone()
        };
        let pending = promise(Status::Pending, true);
        let busy = |before: &[&Promise], after: &[&Promise]| -> Vec<bool> {
            let own = |list: &[&Promise]| list.iter().map(|&it| it.clone()).collect();
            let promises = steady(own(before), own(after));
            promises.iter().map(|it| it.busy).collect()
        };
        assert_eq!(busy(&[&running], &[&running]), [false]);
        assert_eq!(busy(&[], &[&running]), [true], "it came");
        assert_eq!(busy(&[&running], &[]), [true], "it went");
        assert_eq!(busy(&[&running], &[&newer]), [true], "it was replaced");
        assert_eq!(busy(&[&pending], &[&running]), [true], "it got on");
    }

    fn findings(objects: &[Object]) -> Vec<Finding> {
        judge(&Look {
            objects: objects.to_vec(),
            ..Look::default()
        })
    }

    #[test]
    fn only_the_same_orphan_at_both_looks_is_confirmed() {
        let first = object(Kind::Container, "db", Some(3));
        assert_eq!(
            confirmed(&findings(&[]), &findings(std::slice::from_ref(&first))),
            []
        );
        assert_eq!(
            confirmed(&findings(std::slice::from_ref(&first)), &findings(&[])),
            []
        );
        let both = findings(std::slice::from_ref(&first));
        assert_eq!(confirmed(&both, &both), both);
        let age = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let others = [
            Object {
                name: "other".into(),
                ..first.clone()
            },
            Object {
                sandbox: None,
                ..first.clone()
            },
            Object {
                generation: Some(Generation(4)),
                ..first.clone()
            },
            Object {
                made_at: age(5),
                ..first.clone()
            },
            Object {
                serial: Some(5),
                ..first.clone()
            },
        ];
        assert_eq!(first.identity(), first.clone().identity());
        for other in others {
            assert_ne!(first.identity(), other.identity(), "{other:?}");
            let second = findings(std::slice::from_ref(&other));
            assert_eq!(confirmed(&both, &second), [], "{other:?}");
        }
    }

    #[test]
    fn what_is_unknown_at_either_look_is_never_confirmed() {
        let sound = object(Kind::Task, "db", Some(3));
        let silent = Object {
            silent: true,
            ..sound.clone()
        };
        let (sound, silent) = (findings(&[sound]), findings(&[silent]));
        assert_eq!(confirmed(&sound, &silent), []);
        assert_eq!(confirmed(&silent, &sound), []);
    }
}

//! The order, the goal and the marks.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::verdict::{HolderKind, Tombstone};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn object(name: &str, action: Action, last_used: u64, size_bytes: u64) -> Object {
    Object {
        name: name.to_owned(),
        digest: name.to_owned(),
        size_bytes,
        frees_bytes: size_bytes,
        last_used: at(last_used),
        holders: vec![],
        action,
        why: Why::Unreferenced,
        deletable_at: None,
        buried: None,
    }
}

fn buried(name: &str, action: Action, since: u64, size_bytes: u64) -> Object {
    let tombstone = Tombstone {
        token: 1,
        at: at(since),
    };
    Object {
        buried: Some(tombstone),
        ..object(name, action, 99, size_bytes)
    }
}

fn actions(plan: &Plan) -> Vec<(&str, Action)> {
    let told = plan.objects.iter().map(|it| (it.name.as_str(), it.action));
    told.collect()
}

#[test]
fn tombstones_go_first_then_the_longest_unused_then_the_larger() {
    use Action::{Delete, Keep, Tombstone};
    let objects = vec![
        object("kept", Keep, 0, 9),
        object("new", Delete, 30, 99),
        object("old-small", Delete, 10, 1),
        object("old-large", Delete, 10, 5),
        buried("buried-late", Tombstone, 60, 1),
        buried("buried", Delete, 50, 1),
    ];
    let plan = plan(objects, Goal::All);
    let names: Vec<_> = plan.objects.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "buried",
            "buried-late",
            "old-large",
            "old-small",
            "new",
            "kept"
        ]
    );
}

#[test]
#[rustfmt::skip]
fn a_goal_takes_the_beginning_of_the_order_and_no_more() {
    use Action::{Delete, Keep, Later, Tombstone};
    let objects = || vec![
        object("a", Delete, 10, 5), object("b", Delete, 20, 5), object("c", Delete, 30, 5), object("held", Keep, 0, 50),
    ];
    let cases = [
        (Goal::All,       [Delete, Delete, Delete], 0),
        (Goal::Bytes(0),  [Later,  Later,  Later],  0),
        (Goal::Bytes(1),  [Delete, Later,  Later],  0),
        (Goal::Bytes(5),  [Delete, Later,  Later],  0),
        (Goal::Bytes(6),  [Delete, Delete, Later],  0),
        (Goal::Bytes(15), [Delete, Delete, Delete], 0),
        (Goal::Bytes(16), [Delete, Delete, Delete], 1),
    ];
    for (goal, expected, missed) in cases {
        let plan = plan(objects(), goal);
        let expected: Vec<_> = ["a", "b", "c"].into_iter().zip(expected).chain([("held", Keep)]).collect();
        let mut found = actions(&plan);
        found.sort_unstable_by_key(|it| it.0);
        assert_eq!((found, plan.missed_bytes), (expected, missed), "{goal:?}");
    }
    let with_tombstones = [vec![buried("x", Tombstone, 1, 5), buried("y", Delete, 0, 5)], objects()].concat();
    let plan = plan(with_tombstones, Goal::Bytes(3));
    assert_eq!(actions(&plan)[..3], [("y", Delete), ("x", Tombstone), ("a", Later)], "tombstones count, and are not spared");
}

#[test]
fn a_missed_goal_is_explained_by_the_largest_in_use() {
    let holder = Arc::new(Holder::new(HolderKind::Sandbox, "web"));
    let held = |number: u64| Object {
        holders: vec![holder.clone()],
        ..object(&format!("{number:02}"), Action::Keep, 0, number)
    };
    let mut objects: Vec<_> = (1..=12).map(held).collect();
    objects.push(object("not ours", Action::Keep, 0, 99));
    let missed = plan(objects.clone(), Goal::Bytes(1));
    let largest: Vec<_> = missed.largest.iter().map(|it| it.size_bytes).collect();
    assert_eq!(largest, (3..=12).rev().collect::<Vec<_>>());
    assert_eq!(plan(objects, Goal::All).largest, []);
}

#[test]
fn what_a_run_has_freed_is_off_its_goal() {
    assert_eq!(Goal::left(0, 7), Goal::All);
    assert_eq!(Goal::left(10, 7), Goal::Bytes(3));
    assert_eq!(Goal::left(10, 17), Goal::Bytes(0));
}

#[test]
#[rustfmt::skip]
fn what_is_to_be_freed_follows_from_the_marks() {
    let marks = Marks { high: 80, low: 70 };
    let cases = [
        (80, 100, None), (81, 100, Some(11)), (100, 100, Some(30)), (0, 0, None), (1, 0, Some(1)),
        (u64::MAX, u64::MAX, Some(u64::MAX - (u128::from(u64::MAX) * 70 / 100) as u64)),
    ];
    for (used, capacity, expected) in cases {
        assert_eq!(marks.goal(Usage { used, capacity }), expected, "{used} of {capacity}");
    }
    assert_eq!(Usage { used: 1, capacity: 3 }.permille(), 333);
    assert_eq!(Usage { used: 1, capacity: 0 }.permille(), 0);
}

proptest! {
    #[test]
    fn all_who_plan_come_to_the_same_and_no_smaller_beginning_would_do(
        sizes in proptest::collection::vec((1..50_u64, 0..9_u64), 0..30),
        goal in 0..600_u64,
        turn in 0..30_usize,
    ) {
        let mut objects: Vec<_> = sizes.iter().enumerate()
            .map(|(number, (size, used))| object(&format!("{number:02}"), Action::Delete, *used, *size))
            .collect();
        let one = plan(objects.clone(), Goal::Bytes(goal));
        let by = turn.min(objects.len());
        objects.rotate_left(by);
        prop_assert_eq!(&one, &plan(objects, Goal::Bytes(goal)));
        let goes: Vec<_> = one.objects.iter().take_while(|it| it.action == Action::Delete).collect();
        prop_assert!(one.objects[goes.len()..].iter().all(|it| it.action == Action::Later));
        let freed: u64 = goes.iter().map(|it| it.frees_bytes).sum();
        prop_assert!(freed + one.missed_bytes >= goal);
        if let Some(last) = goes.last() {
            prop_assert!(freed - last.frees_bytes < goal, "the last one was needed");
        }
    }
}

//! The verdict of each file, and what is kept by what.

use super::*;
use proptest::prelude::*;

const HOUR: u64 = 3600;
const NOW: u64 = 1000 * HOUR;
const AGES: Ages = Ages {
    blob: Duration::from_secs(HOUR),
    tombstone: Duration::from_secs(600),
};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn digest(byte: u8) -> Digest {
    Digest::from_bytes([byte; 32])
}

fn live(byte: u8, age: u64) -> Found {
    Found {
        digest: digest(byte),
        size_bytes: 10,
        modified: at(NOW - age),
        buried: None,
        links_buried: false,
    }
}

fn buried(byte: u8, ago: u64, token: u64) -> Found {
    let at = at(NOW - ago);
    Found {
        buried: Some(Tombstone { token, at }),
        ..live(byte, 99 * HOUR)
    }
}

fn holder() -> Arc<Holder> {
    Arc::new(Holder::new(HolderKind::Artifact, "artifact/a"))
}

#[test]
#[rustfmt::skip]
fn each_file_gets_exactly_this_verdict() {
    use Action::{Delete, Keep, Later, Restore, Tombstone};
    let linkless = Found { links_buried: true, ..live(1, 2 * HOUR) };
    let ahead = Found { modified: at(NOW + HOUR), ..live(1, 0) };
    let cases = [
        ("needed",                      live(1, 2 * HOUR), true,  Keep,      "artifact/a holds it"),
        ("needed and young",            live(1, 0),        true,  Keep,      "artifact/a holds it"),
        ("needed, its links are away",  linkless.clone(),  true,  Restore,   "artifact/a holds it"),
        ("young",                       live(1, HOUR - 1), false, Later,     "nothing needs it, but it is young"),
        ("written in the future",       ahead,             false, Later,     "nothing needs it, but it is young"),
        ("old",                         live(1, HOUR),     false, Delete,    "nothing needs it"),
        ("old, its links are away",     linkless,          false, Delete,    "nothing needs it"),
        ("buried just now",             buried(1, 0, 7),   false, Tombstone, "nothing needs it; no path leads to it until its grace has passed"),
        ("buried for its grace",        buried(1, 600, 7), false, Delete,    "nothing needs it, and its grace has passed"),
        ("buried and needed",           buried(1, 600, 7), true,  Restore,   "artifact/a holds it"),
    ];
    for (case, found, needed, action, why) in cases {
        let mut blobs = Blobs::new(vec![found], vec![]);
        if needed { assert!(blobs.hold(&digest(1), &holder())) }
        let objects = blobs.judge(at(NOW), AGES);
        assert_eq!((objects[0].action, objects[0].why.to_string()), (action, why.to_owned()), "{case}");
    }
}

#[test]
#[rustfmt::skip]
fn a_tombstone_goes_at_once_only_beside_a_whole_copy_that_is_old_enough() {
    use Action::{Delete, Keep, Later, Tombstone};
    let partial = |age| Found { size_bytes: 9, ..live(1, age) };
    let ahead = Found { modified: at(NOW + HOUR), ..live(1, 0) };
    let cases = [
        ("a whole one",                live(1, HOUR),     true,  60,  (Keep,   Delete,    Some(NOW))),
        ("a young one",                live(1, HOUR - 1), true,  60,  (Keep,   Tombstone, Some(NOW + 1))),
        ("one of the future",          ahead,             true,  60,  (Keep,   Tombstone, Some(NOW + 2 * HOUR))),
        ("a part",                     partial(HOUR),     true,  60,  (Keep,   Tombstone, None)),
        ("a young part",               partial(0),        true,  60,  (Keep,   Tombstone, None)),
        ("a whole one, unneeded",      live(1, HOUR),     false, 60,  (Delete, Delete,    Some(NOW))),
        ("a young one, unneeded",      live(1, 0),        false, 60,  (Later,  Tombstone, Some(NOW + 540))),
        ("a part, unneeded",           partial(0),        false, 60,  (Later,  Tombstone, Some(NOW + 540))),
        ("a part after the grace",     partial(0),        false, 600, (Later,  Delete,    Some(NOW))),
        ("needed, after the grace",    partial(0),        true,  600, (Keep,   Tombstone, None)),
    ];
    for (case, copy, needed, ago, expected) in cases {
        let mut blobs = Blobs::new(vec![buried(1, ago, 7), copy], vec![]);
        if needed { blobs.hold(&digest(1), &holder()); }
        let objects = blobs.judge(at(NOW), AGES);
        let (gone, here): (Vec<_>, Vec<_>) = objects.iter().partition(|it| it.buried.is_some());
        assert_eq!((here[0].action, gone[0].action, gone[0].deletable_at), (expected.0, expected.1, expected.2.map(at)), "{case}");
    }
}

#[test]
fn one_of_several_tombstones_comes_back() {
    let mut blobs = Blobs::new(vec![buried(1, 60, 8), buried(1, 90, 7)], vec![]);
    blobs.hold(&digest(1), &holder());
    let objects = blobs.judge(at(NOW), AGES);
    let found = objects
        .iter()
        .map(|it| (it.buried.unwrap().token, it.action));
    assert_eq!(
        found.collect::<Vec<_>>(),
        [(7, Action::Restore), (8, Action::Tombstone)]
    );
}

#[test]
fn what_an_index_covers_is_kept_through_its_manifests() {
    let mut blobs = Blobs::new((1..=5).map(|it| live(it, 2 * HOUR)).collect(), vec![]);
    blobs.hold(&digest(1), &holder());
    // Of the manifests of the index one is not here; and it names itself.
    assert_eq!(
        blobs.cover(&digest(1), vec![digest(2), digest(9), digest(1)]),
        [digest(2)]
    );
    assert_eq!(
        blobs.cover(&digest(2), vec![digest(3), digest(4)]),
        [digest(3), digest(4)]
    );
    let objects = blobs.judge(at(NOW), AGES);
    let goes = objects.iter().filter(|it| it.action == Action::Delete);
    assert_eq!(
        goes.map(|it| it.digest.clone()).collect::<Vec<_>>(),
        [digest(5).to_string()]
    );
    let why = objects[2].why.to_string();
    assert_eq!(why, format!("manifest {} holds it", digest(2)));
}

#[test]
fn what_cannot_be_looked_at_stays_and_is_told() {
    let blobs = Blobs::new(vec![], vec![(digest(1), "no permission".to_owned())]);
    let objects = blobs.judge(at(NOW), AGES);
    assert_eq!(objects[0].action, Action::Keep);
    assert_eq!(
        objects[0].why.to_string(),
        "it cannot be read: no permission"
    );
}

proptest! {
    #[test]
    fn no_copy_of_a_needed_blob_goes_but_one_beside_another(
        files in proptest::collection::vec((0..4_u8, 0..3 * HOUR, proptest::option::of(0..4_u64)), 0..12),
        needed in proptest::collection::btree_set(0..4_u8, 0..4),
    ) {
        let found: Vec<_> = files.iter().map(|&(byte, age, token)| match token {
            None => live(byte, age),
            Some(token) => buried(byte, age, token),
        }).collect();
        let mut blobs = Blobs::new(found.clone(), vec![]);
        for &it in &needed { blobs.hold(&digest(it), &holder()); }
        let objects = blobs.judge(at(NOW), AGES);
        for byte in needed {
            let name = digest(byte).to_string();
            let of_it: Vec<_> = objects.iter().filter(|it| it.name == name).collect();
            if of_it.is_empty() { continue }
            let stays = of_it.iter().filter(|it| matches!(it.action, Action::Keep | Action::Restore)).count();
            prop_assert_eq!(stays, 1, "a path leads to it in the end: {:?}", of_it);
        }
        for it in &objects {
            if it.action == Action::Delete && it.buried.is_none() {
                prop_assert!(it.holders.is_empty() && it.last_used <= at(NOW - HOUR));
            }
        }
    }
}

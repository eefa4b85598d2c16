//! What is kept of images and of their collections, over a start and through an export.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_domain::{
    ImageRef, SandboxId, SandboxRecord, SandboxSpec, Status,
    collection::{CollectionCause, CollectionKind, NAMED_MAX, RUNS_KEPT, Slice, SliceReport},
    holders::Pin,
};
use berth_store::{Admitted, Arrival, PinError, Store, check, export, import};

const BLOBS: CollectionKind = CollectionKind::Blobs;
const IMAGES: CollectionKind = CollectionKind::Images;

fn open(path: &Path) -> Store {
    Store::open(path, "10.9.0.0/28".parse().unwrap(), Duration::ZERO).unwrap()
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn pin(image: &str, ends: Option<u64>) -> Pin {
    Pin {
        image: image.into(),
        expires_at: ends.map(at),
    }
}

async fn begin(store: &Store, kind: CollectionKind) -> (u64, bool) {
    let begun = store.begin_collection(kind, CollectionCause::Requested, 0, at(1));
    let (view, joined) = begun.await.unwrap();
    (view.collection.id, joined)
}

async fn end(store: &Store, run: u64) {
    for slice in Slice::all() {
        let report = SliceReport::default();
        let reported = store.report_slice(run, slice, report, at(2)).await;
        assert!(reported.unwrap().is_some());
    }
}

async fn admit(store: &Store, held: &[(&str, &str)], now: SystemTime) -> SandboxRecord {
    let held = held.iter();
    let held = held.map(|(image, digest)| (ImageRef::parse(image).unwrap(), (*digest).to_owned()));
    let arrival = Arrival {
        held_images: held.collect(),
        ..Arrival::default()
    };
    let id = SandboxId::parse("web").unwrap();
    let spec: Arc<SandboxSpec> = Arc::default();
    match store.admit(&id, spec, arrival, now).await.unwrap() {
        Admitted::Begun(record) | Admitted::Joined(record) => record,
    }
}

#[tokio::test]
async fn pins_are_kept_over_a_start_and_those_that_have_ended_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = open(&path);
    for number in 0..1024 {
        let it = pin(&number.to_string(), (number > 0).then_some(100));
        store.pin_image(it, at(1)).await.unwrap();
    }
    let more = store.pin_image(pin("more", None), at(99)).await;
    assert!(
        matches!(more, Err(PinError::Full { limit: 1024 })),
        "{more:?}"
    );
    store.pin_image(pin("0", Some(500)), at(99)).await.unwrap();
    store.pin_image(pin("more", None), at(100)).await.unwrap();
    drop(store);
    let store = open(&path);
    let expected = [pin("0", Some(500)), pin("more", None)];
    assert_eq!(store.pins().await.unwrap(), expected);
    assert!(store.unpin_image("0".into(), at(499)).await.unwrap());
    assert!(!store.unpin_image("0".into(), at(499)).await.unwrap());
    store.pin_image(pin("0", Some(500)), at(99)).await.unwrap();
    assert!(
        !store.unpin_image("0".into(), at(500)).await.unwrap(),
        "it had ended"
    );
    assert_eq!(store.pins().await.unwrap(), [pin("more", None)]);
}

#[tokio::test]
async fn a_digest_is_used_when_a_sandbox_takes_hold_of_it_and_when_it_lets_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = open(&path);
    let record = admit(&store, &[("one", "sha256:1")], at(10)).await;
    let uses = |pairs: &[(&str, u64)]| {
        let pairs = pairs.iter();
        pairs
            .map(|(it, when)| ((*it).to_owned(), at(*when)))
            .collect::<BTreeMap<_, _>>()
    };
    assert_eq!(store.last_uses().await.unwrap(), uses(&[("sha256:1", 10)]));
    let update = |now, change: fn(&mut SandboxRecord)| {
        let store = store.clone();
        let (id, generation) = (record.id.clone(), record.generation);
        async move { store.update(&id, generation, now, change).await.unwrap() }
    };
    update(at(20), |it| {
        let two = ImageRef::parse("two").unwrap();
        it.held_images.insert(two, "sha256:2".to_owned());
    })
    .await;
    let expected = uses(&[("sha256:1", 10), ("sha256:2", 20)]);
    assert_eq!(store.last_uses().await.unwrap(), expected);
    update(at(30), |it| it.message = "nothing else".to_owned()).await;
    assert_eq!(store.last_uses().await.unwrap(), expected);
    update(at(40), |it| it.status = Status::Dead).await;
    drop(store);
    let store = open(&path);
    let expected = uses(&[("sha256:1", 40), ("sha256:2", 40)]);
    assert_eq!(store.last_uses().await.unwrap(), expected);
    let removed = store.remove(&record.id, record.generation, at(50)).await;
    assert!(removed.unwrap());
    assert_eq!(
        store.last_uses().await.unwrap(),
        expected,
        "it held nothing any more"
    );
    let kept = ["sha256:2".to_owned()].into();
    store.forget_uses(kept).await.unwrap();
    assert_eq!(store.last_uses().await.unwrap(), uses(&[("sha256:2", 40)]));
}

#[tokio::test]
async fn a_record_that_is_removed_alive_lets_go_of_its_images() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s"));
    let record = admit(&store, &[("one", "sha256:1")], at(10)).await;
    let removed = store.remove(&record.id, record.generation, at(20)).await;
    assert!(removed.unwrap());
    let uses = store.last_uses().await.unwrap();
    assert_eq!(uses["sha256:1"], at(20));
}

#[tokio::test]
async fn an_epoch_is_larger_than_each_before_it_whatever_the_clock_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut last = 0;
    for now in [100, 100, 50, 1000] {
        let epoch = open(&path).next_epoch(at(now)).await.unwrap();
        assert!(epoch > last && u64::from(epoch) >= now, "{epoch} at {now}");
        last = epoch;
    }
}

#[tokio::test]
async fn one_run_of_a_kind_is_under_way_and_it_goes_on_after_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = open(&path);
    let first = begin(&store, BLOBS).await;
    assert_eq!(first, (1, false));
    assert_eq!(begin(&store, BLOBS).await, (1, true));
    assert_eq!(begin(&store, IMAGES).await, (2, false));
    let slice = Slice::new(7).unwrap();
    let report = SliceReport {
        objects_total: 5,
        ..SliceReport::default()
    };
    let reported = store.report_slice(1, slice, report.clone(), at(2)).await;
    assert!(reported.unwrap().is_some());
    drop(store);
    let store = open(&path);
    assert_eq!(begin(&store, BLOBS).await, (1, true));
    let again = store.report_slice(1, slice, report, at(3)).await;
    let run = again.unwrap().unwrap().collection;
    assert_eq!((run.slices_done.len(), run.objects_total), (1, 5));
    let rest = Slice::all().filter(|it| *it != slice);
    for slice in rest {
        let report = SliceReport::default();
        store.report_slice(1, slice, report, at(9)).await.unwrap();
    }
    let runs = store.collections().await.unwrap();
    let ends: Vec<_> = runs
        .iter()
        .map(|it| (it.collection.id, it.collection.ended_at))
        .collect();
    assert_eq!(ends, [(2, None), (1, Some(at(9)))]);
    let late = store.report_slice(1, slice, SliceReport::default(), at(10));
    assert_eq!(late.await.unwrap(), None, "it has ended");
    assert_eq!(begin(&store, BLOBS).await, (3, false));
}

#[tokio::test]
async fn what_a_run_deletes_is_counted_once_and_can_be_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = open(&path);
    let (run, _) = begin(&store, BLOBS).await;
    let count = |names: &[&str]| {
        let objects = names.iter().map(|it| ((*it).to_owned(), 10)).collect();
        let store = store.clone();
        async move { store.count_collected(run, objects).await.unwrap() }
    };
    count(&["b", "a"]).await;
    count(&["a", "c"]).await;
    let uncounted = vec!["b".to_owned(), "never".to_owned()];
    store.uncount_collected(run, uncounted).await.unwrap();
    drop(store);
    let store = open(&path);
    let view = store.collection(run).await.unwrap().unwrap();
    assert_eq!(view.deleted, ["a", "c"]);
    let totals = (view.collection.deleted_total, view.collection.deleted_bytes);
    assert_eq!(totals, (2, 20));
    end(&store, run).await;
    let late = vec![("d".to_owned(), 1)];
    store.count_collected(run, late).await.unwrap();
    let view = store.collection(run).await.unwrap().unwrap();
    assert_eq!(view.deleted, ["a", "c"], "the run has ended");
}

#[tokio::test]
async fn the_latest_runs_of_each_kind_are_kept_and_name_a_part_of_what_they_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = open(&path);
    let (images, _) = begin(&store, IMAGES).await;
    for number in 0..RUNS_KEPT + 2 {
        let (run, joined) = begin(&store, BLOBS).await;
        assert!(!joined);
        if number + 2 >= RUNS_KEPT {
            let many = (0..NAMED_MAX + 5).map(|it| (format!("{it:05}"), 1));
            store.count_collected(run, many.collect()).await.unwrap();
        }
        end(&store, run).await;
    }
    let runs = store.collections().await.unwrap();
    let (blobs, others): (Vec<_>, Vec<_>) = runs.iter().partition(|it| it.collection.kind == BLOBS);
    assert_eq!(blobs.len(), RUNS_KEPT);
    assert_eq!(others[0].collection.id, images, "it is of another kind");
    let newest = blobs[0];
    assert_eq!(newest.deleted.len(), NAMED_MAX);
    assert_eq!(newest.collection.deleted_total, NAMED_MAX as u64 + 5);
    drop(store);
    let checked = check(&path).unwrap();
    assert_eq!(checked.collections, RUNS_KEPT as u64 + 1);
}

#[tokio::test]
async fn the_latest_run_of_a_schedule_stays_however_many_others_follow() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s"));
    for cause in [CollectionCause::Scheduled; 2]
        .into_iter()
        .chain([CollectionCause::Pressure; RUNS_KEPT + 1])
    {
        let begun = store.begin_collection(BLOBS, cause, 0, at(1)).await;
        end(&store, begun.unwrap().0.collection.id).await;
    }
    let runs = store.collections().await.unwrap();
    let ids: Vec<_> = runs.iter().map(|it| it.collection.id).collect();
    let newest = 2 + RUNS_KEPT as u64 + 1;
    let expected = (newest + 1 - RUNS_KEPT as u64..=newest).rev().chain([2]);
    assert_eq!(ids, expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn an_export_has_pins_uses_and_runs_and_an_import_makes_them_again() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let store = open(&old);
    store.pin_image(pin("one", Some(500)), at(1)).await.unwrap();
    admit(&store, &[("one", "sha256:1")], at(10)).await;
    let (run, _) = begin(&store, IMAGES).await;
    let counted = vec![("one".to_owned(), 10)];
    store.count_collected(run, counted).await.unwrap();
    let seen = |store: Store| async move {
        let record = store.all().await.unwrap().remove(0);
        (
            store.pins().await.unwrap(),
            store.last_uses().await.unwrap(),
            store.collections().await.unwrap(),
            record.held_images,
        )
    };
    let before = seen(store).await;
    let mut text = vec![];
    export(&old, &mut text).unwrap();
    import(&new, text.as_slice(), false).unwrap();
    let checked = check(&new).unwrap();
    assert_eq!((checked.pins, checked.uses, checked.collections), (1, 1, 1));
    assert_eq!(checked.unreadable, []);
    assert_eq!(seen(open(&new)).await, before);
}

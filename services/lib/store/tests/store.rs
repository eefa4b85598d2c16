//! What the store promises: one owner per address, no forbidden move, nothing lost, changes in order.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_domain::{
    Failure, Generation, Reason, SandboxId, SandboxRecord, SandboxSpec, Status, ipam::Subnets,
};
use berth_store::{
    AdmitError, Admitted, Arrival, Change, Store, StoreError, UpdateError, WatchEnded,
};
use ipnet::Ipv4Net;

fn id(text: &str) -> SandboxId {
    SandboxId::parse(text).unwrap()
}

fn spec(label: &str) -> Arc<SandboxSpec> {
    let labels = [("label".to_owned(), label.to_owned())].into();
    Arc::new(SandboxSpec {
        labels,
        ..SandboxSpec::default()
    })
}

fn subnet(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn open(dir: &Path) -> Store {
    Store::open(
        &dir.join("test.redb"),
        subnet("10.9.0.0/24"),
        Duration::from_secs(60),
    )
    .unwrap()
}

fn address(record: &SandboxRecord) -> String {
    record.addresses.iter().map(ToString::to_string).collect()
}

async fn begin(store: &Store, name: &str) -> SandboxRecord {
    match store
        .admit(&id(name), spec("a"), Arrival::default(), SystemTime::now())
        .await
        .unwrap()
    {
        Admitted::Begun(record) => record,
        Admitted::Joined(record) => panic!("{record:?} was there"),
    }
}

async fn enter(
    store: &Store,
    record: &SandboxRecord,
    status: Status,
) -> Result<SandboxRecord, UpdateError> {
    let now = SystemTime::now();
    let change = move |it: &mut SandboxRecord| it.enter(status, "", "", now);
    match status {
        Status::Dead => store.bury(&record.id, record.generation, now, change).await,
        Status::Pending | Status::NotReady | Status::Running | Status::Stopped => {
            store
                .update(&record.id, record.generation, now, change)
                .await
        }
    }
}

#[tokio::test]
async fn no_more_records_are_begun_than_there_may_be_and_those_of_the_ended_count() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let admit = async |name| {
        let arrival = Arrival {
            records_max: Some(2),
            ..Arrival::default()
        };
        store
            .admit(&id(name), spec("a"), arrival, SystemTime::now())
            .await
    };
    let Admitted::Begun(first) = admit("first").await.unwrap() else {
        panic!("it is new");
    };
    admit("second").await.unwrap();
    let joined = admit("first").await;
    assert!(matches!(joined, Ok(Admitted::Joined(_))), "{joined:?}");
    let full = admit("third").await.unwrap_err();
    assert!(matches!(full, AdmitError::TooMany { limit: 2 }), "{full}");
    let dead = enter(&store, &first, Status::Dead).await.unwrap();
    let full = admit("third").await.unwrap_err();
    assert!(matches!(full, AdmitError::TooMany { limit: 2 }), "{full}");
    let now = SystemTime::now();
    store.remove(&dead.id, dead.generation, now).await.unwrap();
    admit("third").await.unwrap();
}

#[tokio::test]
async fn a_create_begins_once_and_is_joined_by_its_like() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let begun = begin(&store, "web").await;
    assert_eq!(
        (begun.status, address(&begun).as_str()),
        (Status::Pending, "10.9.0.2/24")
    );
    let again = store
        .admit(&id("web"), spec("a"), Arrival::default(), SystemTime::now())
        .await
        .unwrap();
    assert_eq!(again, Admitted::Joined(begun.clone()));
    let other = store
        .admit(&id("web"), spec("b"), Arrival::default(), SystemTime::now())
        .await
        .unwrap_err();
    assert!(
        matches!(
            &other,
            AdmitError::Refused(Failure {
                reason: Reason::SpecConflict,
                ..
            })
        ),
        "{other:?}"
    );
    assert_eq!(store.get(&id("web")).await.unwrap(), Some(begun));
    assert_eq!(
        store.revision().await.unwrap(),
        1,
        "what changes nothing has no revision"
    );
}

#[tokio::test]
async fn concurrent_creates_never_share_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let names: Vec<_> = (0..64).map(|number| format!("s-{number}")).collect();
    let begun = names.iter().map(|name| begin(&store, name));
    let records = futures::future::join_all(begun).await;
    let addresses: BTreeSet<_> = records.iter().map(address).collect();
    assert_eq!(addresses.len(), names.len());
}

#[tokio::test]
async fn a_dead_id_is_taken_anew_under_a_higher_generation() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let first = begin(&store, "web").await;
    enter(&store, &first, Status::Dead).await.unwrap();
    let second = begin(&store, "web").await;
    assert!(second.generation > first.generation);
    let stale = enter(&store, &first, Status::Running).await.unwrap_err();
    assert!(matches!(stale, UpdateError::Gone), "{stale:?}");
    assert_eq!(store.get(&id("web")).await.unwrap(), Some(second));
}

#[tokio::test]
async fn a_move_that_the_table_refuses_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let record = begin(&store, "web").await;
    let stopped = enter(&store, &record, Status::Stopped).await.unwrap();
    let refused = enter(&store, &record, Status::Running).await.unwrap_err();
    assert!(matches!(refused, UpdateError::NotAllowed(_)), "{refused:?}");
    assert_eq!(store.get(&id("web")).await.unwrap(), Some(stopped));
}

#[tokio::test]
async fn an_address_rests_after_its_release_until_no_other_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.redb");
    let store = Store::open(&path, subnet("10.9.0.0/29"), Duration::from_secs(60)).unwrap();
    let first = begin(&store, "s-0").await;
    enter(&store, &first, Status::Dead).await.unwrap();
    let mut given = vec![];
    for number in 1..=5 {
        given.push(address(&begin(&store, &format!("s-{number}")).await));
    }
    assert_eq!(given[0], "10.9.0.3/29", "the released one rests");
    assert_eq!(
        given[4], "10.9.0.2/29",
        "and is given out when it is the last"
    );
    let counts = store.lease_counts().await.unwrap();
    assert_eq!((counts.capacity, counts.held, counts.cooling), (5, 5, 0));
    let full = store
        .admit(&id("s-6"), spec("a"), Arrival::default(), SystemTime::now())
        .await
        .unwrap_err();
    assert!(
        matches!(
            full,
            AdmitError::Exhausted {
                capacity: 5,
                held: 5,
                subnet: None,
                reserved: 0,
            }
        ),
        "{full:?}"
    );
    assert_eq!(store.get(&id("s-6")).await.unwrap(), None);
}

#[tokio::test]
async fn the_death_of_an_old_generation_does_not_release_what_a_new_one_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.redb");
    let store = Store::open(&path, subnet("10.9.0.0/29"), Duration::ZERO).unwrap();
    let old = begin(&store, "web").await;
    enter(&store, &old, Status::Dead).await.unwrap();
    let new = begin(&store, "web").await;
    assert_eq!(
        address(&old),
        address(&new),
        "without a rest the lowest is given out again"
    );
    assert!(
        !store
            .remove(&old.id, old.generation, SystemTime::now())
            .await
            .unwrap()
    );
    assert_eq!(store.lease_counts().await.unwrap().held, 1);
    assert!(
        store
            .remove(&new.id, new.generation, SystemTime::now())
            .await
            .unwrap()
    );
    assert_eq!(store.lease_counts().await.unwrap().held, 0);
}

#[tokio::test]
async fn a_watch_sees_every_change_once_and_in_order_and_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let record = begin(&store, "web").await;
    let (standing, at, mut watch) = store.snapshot_and_watch().await.unwrap();
    assert_eq!((standing, at), (vec![record.clone()], 1));
    let running = enter(&store, &record, Status::Running).await.unwrap();
    assert!(
        store
            .remove(&record.id, record.generation, SystemTime::now())
            .await
            .unwrap()
    );
    let expected = [
        (2, Change::Upserted(Box::new(running))),
        (
            3,
            Change::Removed {
                id: id("web"),
                generation: Generation(1),
            },
        ),
    ];
    for change in &expected {
        assert_eq!(watch.next().await.as_ref(), Ok(change));
    }
    let mut resumed = store.watch(1).await.unwrap().unwrap();
    for change in &expected {
        assert_eq!(resumed.next().await.as_ref(), Ok(change));
    }
    assert!(
        store.watch(4).await.unwrap().is_none(),
        "a revision that was never reached"
    );
}

#[tokio::test]
async fn a_watch_from_a_forgotten_revision_is_refused_and_a_slow_reader_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // The bounds of `docs/limits.md`, which the store has for itself.
    let (changes_kept, reader_lag) = (4096, 1024);
    let record = begin(&store, "web").await;
    let follow = async || store.watch(1).await.unwrap();
    let (mut slow, mut slower) = (follow().await.unwrap(), follow().await.unwrap());
    let change = async |number: u64| {
        let change = move |it: &mut SandboxRecord| it.message = number.to_string();
        let changed = store.update(&record.id, record.generation, SystemTime::now(), change);
        assert_eq!(changed.await.unwrap().revision, number);
    };
    for number in 2..=1 + reader_lag {
        change(number).await;
    }
    assert_eq!(slow.next().await.unwrap().0, 2, "as many as wait for it");
    change(2 + reader_lag).await;
    assert_eq!(slow.next().await.unwrap().0, 3);
    assert_eq!(slower.next().await, Err(WatchEnded::Lagged));
    for number in 3 + reader_lag..=1 + changes_kept {
        change(number).await;
    }
    let mut resumed = follow().await.unwrap();
    assert_eq!(resumed.next().await.unwrap().0, 2, "as many as are kept");
    change(2 + changes_kept).await;
    assert!(follow().await.is_none(), "one is forgotten");
    assert!(store.watch(2).await.unwrap().is_some());
}

#[tokio::test]
async fn all_is_there_after_the_store_was_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let web = begin(&store, "web").await;
    let other = begin(&store, "a").await;
    let path = dir.path().join("test.redb");
    let twice = Store::open(&path, subnet("10.9.0.0/24"), Duration::ZERO).unwrap_err();
    assert!(matches!(twice, StoreError::InUse { .. }), "{twice:?}");
    drop(store);
    let foreign = Store::open(&path, subnet("10.8.0.0/24"), Duration::ZERO).unwrap_err();
    assert!(
        matches!(foreign, StoreError::ForeignAddress { .. }),
        "{foreign:?}"
    );
    let store = open(dir.path());
    assert_eq!(store.all().await.unwrap(), vec![other.clone(), web.clone()]);
    assert_eq!(store.list(None, 1).await.unwrap(), (vec![other.clone()], 2));
    assert_eq!(store.list(Some(other.id), 5).await.unwrap(), (vec![web], 2));
}

#[tokio::test]
async fn a_lease_holds_both_addresses_and_one_that_is_held_keeps_its_subnet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.redb");
    let open = |v6: Option<&str>| {
        let subnets = Subnets {
            v4: subnet("10.9.0.0/24"),
            v6: v6.map(|it| it.parse().unwrap()),
        };
        Store::open_within(&path, subnets, Duration::ZERO)
    };
    let addresses = |record: &SandboxRecord| {
        let all = record.addresses.iter();
        all.map(ToString::to_string).collect::<Vec<_>>()
    };
    let store = open(None).unwrap();
    let before = begin(&store, "before").await;
    assert_eq!(addresses(&before), ["10.9.0.2/24"]);
    drop(store);

    let store = open(Some("fd00:1::/64")).unwrap();
    let kept = store.get(&before.id).await.unwrap().unwrap();
    assert_eq!(kept, before, "it has what it was admitted with");
    let both = begin(&store, "both").await;
    assert_eq!(addresses(&both), ["10.9.0.3/24", "fd00:1::a09:3/128"]);
    let leases = store.leases().await.unwrap();
    assert_eq!(leases.len(), 2, "one for both");
    let views = store.lease_views(SystemTime::now()).await.unwrap();
    let six: Vec<_> = views.iter().map(|it| it.address6).collect();
    assert_eq!(six, [None, Some("fd00:1::a09:3".parse().unwrap())]);
    drop(store);

    for other in [None, Some("fd00:2::/64")] {
        let refused = open(other).unwrap_err();
        let StoreError::ForeignAddress { address, owner, .. } = &refused else {
            panic!("{refused:?} with {other:?}");
        };
        let named = (address.as_str(), owner.as_str());
        assert_eq!(named, ("fd00:1::a09:3", "both"));
    }
    // It is in this one as well.
    let store = open(Some("fd00:1::/48")).unwrap();
    let now = SystemTime::now();
    assert!(store.remove(&both.id, both.generation, now).await.unwrap());
    drop(store);
    let store = open(None).unwrap();
    let next = begin(&store, "next").await;
    assert_eq!(
        addresses(&next),
        ["10.9.0.3/24"],
        "the lease was given back"
    );
}

/// Needs the right to mount.
#[tokio::test]
async fn a_full_disk_is_told_as_such_and_nothing_is_lost_when_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, c"size=8m").unwrap();
    let mounted = Mounted(dir.path());
    let store = open(mounted.0);
    let first = begin(&store, "web").await;
    let ballast = mounted.0.join("ballast");
    let full = std::fs::write(&ballast, vec![1; 16 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let mut written = BTreeSet::from(["web".to_owned()]);
    let mut refused = None;
    for number in 0..100 {
        let name = format!("s-{number}");
        let mut big = SandboxSpec::default();
        big.labels.insert("big".into(), "x".repeat(200_000));
        match store
            .admit(
                &id(&name),
                Arc::new(big),
                Arrival::default(),
                SystemTime::now(),
            )
            .await
        {
            Ok(_) => drop(written.insert(name)),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    assert!(
        matches!(&refused, Some(AdmitError::Store(StoreError::Full { .. }))),
        "{refused:?}"
    );
    std::fs::remove_file(&ballast).unwrap();
    let there: BTreeSet<_> = store
        .all()
        .await
        .unwrap()
        .iter()
        .map(|it| it.id.to_string())
        .collect();
    assert_eq!(there, written);
    enter(&store, &first, Status::Running).await.unwrap();
    drop(store);
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn an_address_that_no_record_explains_can_be_released_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let record = begin(&store, "web").await;
    let now = SystemTime::now();
    let held = store.leases().await.unwrap()[0].clone();
    let release = |generation| {
        let owner = record.id.clone();
        let store = store.clone();
        async move {
            let released = store.release_unexplained(held.address, &owner, generation, now);
            released.await.unwrap()
        }
    };
    assert!(!release(record.generation).await, "a record explains it");
    assert_eq!(store.lease_counts().await.unwrap().held, 1);

    let forgets = |record: &mut SandboxRecord| record.addresses.clear();
    let forgotten = store.update(&record.id, record.generation, now, forgets);
    forgotten.await.unwrap();
    let other = Generation(record.generation.0 + 1);
    assert!(release(other).await, "of that generation it is not held");
    assert_eq!(store.lease_counts().await.unwrap().held, 1);
    assert!(release(record.generation).await);
    let counts = store.lease_counts().await.unwrap();
    assert_eq!((counts.held, counts.cooling), (0, 1));
    assert!(release(record.generation).await, "a second time is as good");
}

#[tokio::test]
async fn the_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    begin(&store, "web").await;
    let file = std::fs::metadata(dir.path().join("test.redb")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
}

//! Entries that cannot be read.

use std::time::SystemTime;

use berth_domain::record::Ending;
use berth_store::{AdmitError, Change, StoreError, UpdateError};

use super::{
    CHANGES, NEVER, addresses, admit, file, id, names, open, put_lease, put_record, run,
    tear_record, with,
};

#[tokio::test]
async fn one_unreadable_entry_keeps_no_other_from_working() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let store = open(&path);
    for name in ["a", "b", "c", "d"] {
        run(&store, name).await;
    }
    let c = store.get(&id("c")).await.unwrap();
    drop(store);
    tear_record(&path, "b");
    put_record(&path, "d", b"\xff\x00");
    put_lease(&path, [10, 9, 0, 6], b"{\"owner\":");
    with(&path, |txn| {
        let mut table = txn.open_table(CHANGES).unwrap();
        table.insert(7, &b"{\"Upserted\":{"[..]).unwrap();
    });

    let store = open(&path);
    assert_eq!(names(&store.all().await.unwrap()), ["a", "c"]);
    assert_eq!(names(&store.list(None, 2).await.unwrap().0), ["a", "c"]);
    let (standing, _, mut watch) = store.snapshot_and_watch().await.unwrap();
    assert_eq!(names(&standing), ["a", "c"]);
    let unreadable = store.unreadable().await.unwrap();
    let keys: Vec<_> = unreadable.iter().map(|it| it.key.as_str()).collect();
    assert_eq!(keys, ["record b", "record d", "lease 10.9.0.6"]);
    assert_eq!(unreadable[0].sandbox, Some(id("b")));

    assert_eq!(store.get(&id("c")).await.unwrap(), c);
    let error = store.get(&id("b")).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unreadable(it) if it.key == "record b"),
        "{error}"
    );
    let error = admit(&store, "b").await.unwrap_err();
    assert!(
        matches!(error, AdmitError::Store(StoreError::Unreadable(_))),
        "{error}"
    );
    let b = id("b");
    let error = store.update(&b, NEVER, SystemTime::now(), |_| {}).await;
    let error = error.unwrap_err();
    assert!(
        matches!(error, UpdateError::Store(StoreError::Unreadable(_))),
        "{error}"
    );

    assert!(store.watch(6).await.unwrap().is_none(), "it would miss one");
    assert!(store.watch(7).await.unwrap().is_some());
    assert_eq!(store.leases().await.unwrap().len(), 4);
    assert_eq!(store.lease_counts().await.unwrap().held, 5);
    let e = run(&store, "e").await;
    assert_eq!(addresses(&e), ["10.9.0.7"], "the one in between is held");
    let (_, change) = watch.next().await.unwrap();
    assert!(matches!(change, Change::Upserted(it) if it.id == id("e")));
}

#[tokio::test]
async fn a_half_written_record_is_reclaimed_with_its_addresses_and_can_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let store = open(&path);
    let old = run(&store, "web").await;
    drop(store);
    tear_record(&path, "web");

    let store = open(&path);
    let (_, _, mut watch) = store.snapshot_and_watch().await.unwrap();
    let now = SystemTime::now();
    let remnant = store.reclaim(&id("web"), now).await.unwrap().unwrap();
    assert!(remnant.generation > old.generation);
    assert_eq!(remnant.addresses, old.addresses);
    assert_eq!(remnant.ending, Some(Ending::Delete));
    assert_eq!(
        store.get(&id("web")).await.unwrap().as_ref(),
        Some(&remnant)
    );
    let (_, change) = watch.next().await.unwrap();
    assert_eq!(change, Change::Upserted(Box::new(remnant.clone())));
    assert_eq!(store.unreadable().await.unwrap(), []);
    let lease = &store.leases().await.unwrap()[0];
    assert_eq!(lease.generation, remnant.generation);

    let again = store.reclaim(&id("web"), now).await.unwrap();
    assert_eq!(again.as_ref(), Some(&remnant), "what can be read stays");
    assert_eq!(store.reclaim(&id("other"), now).await.unwrap(), None);
    assert!(!store.remove(&old.id, old.generation, now).await.unwrap());
    assert!(
        store
            .remove(&old.id, remnant.generation, now)
            .await
            .unwrap()
    );
    let counts = store.lease_counts().await.unwrap();
    assert_eq!((counts.held, counts.cooling), (0, 1));
}

#[tokio::test]
async fn a_lease_that_cannot_be_read_rests_when_the_record_that_names_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let store = open(&path);
    let web = run(&store, "web").await;
    drop(store);
    put_lease(&path, [10, 9, 0, 2], b"");
    let store = open(&path);
    assert_eq!(store.lease_counts().await.unwrap().held, 1);
    let now = SystemTime::now();
    assert!(store.remove(&web.id, web.generation, now).await.unwrap());
    let counts = store.lease_counts().await.unwrap();
    assert_eq!((counts.held, counts.cooling), (0, 1));
    assert_eq!(store.unreadable().await.unwrap(), []);
}

#[tokio::test]
async fn a_record_under_a_foreign_id_is_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let store = open(&path);
    run(&store, "web").await;
    drop(store);
    let bytes = with(&path, |txn| {
        use redb::ReadableTable as _;
        let table = txn.open_table(super::RECORDS).unwrap();
        table.get("web").unwrap().unwrap().value().to_vec()
    });
    put_record(&path, "other", &bytes);
    let store = open(&path);
    assert_eq!(names(&store.all().await.unwrap()), ["web"]);
    let unreadable = store.unreadable().await.unwrap();
    assert_eq!(unreadable[0].key, "record other");
    assert!(unreadable[0].problem.contains("web"), "{unreadable:?}");
}

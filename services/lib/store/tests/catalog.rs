//! The catalog and the leases as people see them: compare-and-set, one order of changes with the records, nothing lost.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_domain::{
    Generation, ImageRef, SandboxId, SandboxRecord, SandboxSpec, Status,
    catalog::{
        App, Artifact, ArtifactStatus, Entry, Host, Kind, Object, Service, ServicePort, Version,
    },
    spec::Protocol,
};
use berth_store::{
    AdmitError, Admitted, Arrival, CatalogError, Change, ImportError, LeaseState, ReleaseError,
    Store, check, export, import,
};

const COOL_DOWN: Duration = Duration::from_secs(60);

fn open(path: &Path) -> Store {
    Store::open(path, "10.9.0.0/28".parse().unwrap(), COOL_DOWN).unwrap()
}

fn app(id: &str, name: &str) -> Object {
    Object::App(App {
        id: id.into(),
        name: name.into(),
    })
}

fn one_of_each() -> Vec<Object> {
    let port = ServicePort {
        name: "http".into(),
        port: 80,
        target_port: 8080,
        protocol: Protocol::Udp,
    };
    vec![
        app("shop", "Shop"),
        Object::Artifact(Artifact {
            id: "artifact/shop-8f3a".into(),
            status: ArtifactStatus::Empty,
            blobs: vec![format!("sha256:{:064}", 2)],
        }),
        Object::Host(Host {
            id: "db".into(),
            app: Some("shop".into()),
            name: "db.example.org".into(),
            addresses: vec![[10, 1, 2, 3].into(), "fd00::1".parse().unwrap()],
        }),
        Object::Service(Service {
            id: "web".into(),
            app: "shop".into(),
            name: "web".into(),
            labels: [("tier".into(), "web".into())].into(),
            ports: vec![port],
        }),
        Object::Version(Version {
            id: "shop/1".into(),
            app: "shop".into(),
            image: Some(ImageRef::parse("cluster.local:5000/shop:shop-8f3a").unwrap()),
            artifact: Some("artifact/shop-8f3a".into()),
            static_artifact: Some(format!("sha256:{:064}", 1)),
        }),
    ]
}

async fn entries(store: &Store) -> Vec<Entry> {
    let page = store.entries(None, None, 100).await.unwrap();
    assert!(!page.more);
    page.entries
}

async fn begin(store: &Store, id: &str) -> SandboxRecord {
    let arrival = Arrival {
        boot_id: "this-boot".into(),
        ..Arrival::default()
    };
    let spec = Arc::new(SandboxSpec::default());
    let id = SandboxId::parse(id).unwrap();
    match store
        .admit(&id, spec, arrival, SystemTime::now())
        .await
        .unwrap()
    {
        Admitted::Begun(record) | Admitted::Joined(record) => record,
    }
}

#[tokio::test]
async fn an_entry_is_replaced_by_whoever_knows_its_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s"));
    let first = store.put_entry(app("a", "one"), None).await.unwrap();
    let same = store.put_entry(app("a", "one"), None).await.unwrap();
    assert_eq!(same, first, "nothing has changed");
    let conflict = |error: CatalogError| match error {
        CatalogError::Conflict { expected, actual } => (expected, actual),
        other @ (CatalogError::Full { .. } | CatalogError::Store(_)) => panic!("{other}"),
    };
    let late = store.put_entry(app("a", "two"), Some(first.revision + 1));
    assert_eq!(conflict(late.await.unwrap_err()), (2, 1));
    let second = store.put_entry(app("a", "two"), Some(first.revision)).await;
    let second = second.unwrap();
    assert!(second.revision > first.revision);
    let none = store.put_entry(app("b", "b"), Some(9)).await.unwrap_err();
    assert_eq!(conflict(none), (9, 0));
    let key = app("a", "").key();
    let late = store.remove_entry(key.clone(), Some(first.revision)).await;
    assert_eq!(conflict(late.unwrap_err()), (1, 2));
    assert!(store.remove_entry(key.clone(), Some(2)).await.unwrap());
    assert!(!store.remove_entry(key, None).await.unwrap());
    assert_eq!(entries(&store).await, []);
}

#[tokio::test]
async fn entries_and_records_change_in_one_order_that_a_watch_resumes_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = open(&path);
    let entry = store.put_entry(app("a", "a"), None).await.unwrap();
    let record = begin(&store, "web").await;
    store.remove_entry(app("a", "").key(), None).await.unwrap();
    let (all, watch) = store.placement_and_watch().await.unwrap();
    assert_eq!((all.records.len(), all.entries.len()), (1, 0));
    assert_eq!(all.revision, 3);
    drop(watch);
    drop(store);
    let mut watch = open(&path).watch(0).await.unwrap().unwrap();
    let expected = [
        (1, Change::EntryPut(Box::new(entry))),
        (2, Change::Upserted(Box::new(record))),
        (3, Change::EntryRemoved(app("a", "").key())),
    ];
    for expected in expected {
        assert_eq!(watch.next().await.unwrap(), expected);
    }
}

#[tokio::test]
async fn entries_outlive_a_restart_an_export_and_an_import() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let store = open(&old);
    for object in one_of_each() {
        store.put_entry(object, None).await.unwrap();
    }
    let stand = entries(&store).await;
    drop(store);
    let objects: Vec<_> = stand.iter().map(|it| it.object.clone()).collect();
    assert_eq!(objects, one_of_each(), "by kind and id");
    assert_eq!(entries(&open(&old)).await, stand);
    assert_eq!(check(&old).unwrap().entries, 5);
    let mut text = vec![];
    export(&old, &mut text).unwrap();
    assert_eq!(import(&new, text.as_slice(), false).unwrap().entries, 5);
    assert_eq!(entries(&open(&new)).await, stand);
    let again = import(&new, text.as_slice(), false).unwrap_err();
    assert!(matches!(again, ImportError::NotEmpty { .. }), "{again}");
    let wrong = String::from_utf8(text)
        .unwrap()
        .replace("app/shop", "app/x");
    let error = import(&dir.path().join("none"), wrong.as_bytes(), false).unwrap_err();
    assert!(
        matches!(error, ImportError::Line { number: 2, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn entries_are_read_page_by_page_of_one_kind_or_of_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s"));
    let mut all: Vec<_> = one_of_each().iter().map(Object::key).collect();
    for object in one_of_each() {
        store.put_entry(object, None).await.unwrap();
    }
    for id in ["a", "z"] {
        store.put_entry(app(id, id), None).await.unwrap();
        all.push(app(id, id).key());
    }
    all.sort();
    for kind in Kind::ALL.into_iter().map(Some).chain([None]) {
        let expected = all
            .iter()
            .filter(|it| kind.is_none_or(|kind| kind == it.kind));
        for size in 1..=all.len() {
            let (mut found, mut after) = (vec![], None);
            loop {
                let page = store.entries(kind, after, size).await.unwrap();
                assert!(page.entries.len() <= size && page.revision == 7);
                found.extend(page.entries.iter().map(|it| it.object.key()));
                after = found.last().cloned();
                if !page.more {
                    break;
                }
                assert_eq!(page.entries.len(), size);
            }
            assert!(
                found.iter().eq(expected.clone()),
                "{kind:?} by {size}: {found:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_page_of_endpoints_has_of_the_catalog_what_its_sandboxes_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s"));
    for object in one_of_each() {
        store.put_entry(object, None).await.unwrap();
    }
    store.put_entry(app("other", ""), None).await.unwrap();
    let keys = async || -> Vec<_> {
        let entries = store.placement().await.unwrap().entries;
        entries.iter().map(|it| it.object.key().to_text()).collect()
    };
    begin(&store, "none").await;
    assert_eq!(keys().await, ["service/web"]);
    let spec = Arc::new(SandboxSpec {
        version: "shop/1".into(),
        ..SandboxSpec::default()
    });
    let (id, now) = (SandboxId::parse("web").unwrap(), SystemTime::now());
    let admitted = store.admit(&id, spec, Arrival::default(), now).await;
    admitted.unwrap();
    assert_eq!(keys().await, ["version/shop/1", "app/shop", "service/web"]);
    let (all, _) = store.placement_and_watch().await.unwrap();
    assert_eq!(all.entries.len(), 4, "whatever sandboxes may come to name");
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_is_named_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = open(&path);
    store.put_entry(app("a", "a"), None).await.unwrap();
    store.put_entry(app("b", "b"), None).await.unwrap();
    drop(store);
    let database = redb::Database::open(&path).unwrap();
    let txn = database.begin_write().unwrap();
    let table = redb::TableDefinition::<&str, &[u8]>::new("catalog");
    let torn: &[u8] = b"{\"revis";
    txn.open_table(table)
        .unwrap()
        .insert("app/a", torn)
        .unwrap();
    txn.commit().unwrap();
    drop(database);
    assert_eq!(check(&path).unwrap().unreadable[0].key, "entry app/a");
    let store = open(&path);
    assert_eq!(store.unreadable().await.unwrap()[0].key, "entry app/a");
    assert_eq!(entries(&store).await.len(), 1);
    let known = store.put_entry(app("a", "a"), Some(1)).await;
    assert!(matches!(known, Err(CatalogError::Store(_))), "{known:?}");
    store.put_entry(app("a", "a"), None).await.unwrap();
    assert_eq!(store.unreadable().await.unwrap(), []);
}

#[tokio::test]
async fn a_lease_tells_what_it_is_and_only_one_that_nobody_holds_is_made_free() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s"));
    let record = begin(&store, "web").await;
    let lease = store.leases().await.unwrap().remove(0);
    let release = |generation: Generation| {
        store.release_lease(lease.address, lease.owner.clone(), generation)
    };
    let now = SystemTime::now();
    let state = async |at: SystemTime| {
        let views = store.lease_views(at).await.unwrap();
        views.first().map(|it| it.state)
    };
    let view = store.lease_views(now).await.unwrap().remove(0);
    assert_eq!(view.state, LeaseState::Held);
    assert_eq!(view.held_since, Some(record.created_at));
    assert_eq!(view.lease.boot_id, "this-boot");
    let held = release(record.generation).await.unwrap_err();
    assert!(matches!(held, ReleaseError::Held(it) if it == lease));
    let other = release(Generation(99)).await.unwrap_err();
    assert!(matches!(other, ReleaseError::Conflict(it) if it == lease));

    let removed = store.remove(&record.id, record.generation, now).await;
    assert!(removed.unwrap());
    assert_eq!(state(now).await, Some(LeaseState::Resting));
    assert_eq!(state(now + COOL_DOWN).await, Some(LeaseState::Free));
    let next = begin(&store, "next").await;
    assert_ne!(next.addresses, record.addresses, "it rests");
    release(record.generation).await.unwrap();
    let gone = release(record.generation).await.unwrap_err();
    assert!(matches!(gone, ReleaseError::NotFound { .. }), "{gone}");
    let third = begin(&store, "third").await;
    assert_eq!(third.addresses, record.addresses, "its rest was ended");
    let late = release(record.generation).await.unwrap_err();
    assert!(
        matches!(late, ReleaseError::Conflict(it) if it.owner == third.id),
        "a late release takes nothing from the next owner"
    );
    assert_eq!(third.status, Status::Pending);
}

#[tokio::test]
async fn a_subnet_that_is_used_up_is_free_again_when_all_is_deleted_and_released() {
    for (subnet, all) in [("10.9.0.0/28", 13), ("10.9.0.0/24", 253)] {
        let dir = tempfile::tempdir().unwrap();
        let subnet = subnet.parse().unwrap();
        let store = Store::open(&dir.path().join("s"), subnet, COOL_DOWN).unwrap();
        for round in 0..2 {
            for number in 0..all {
                begin(&store, &format!("s-{round}-{number}")).await;
            }
            let counts = store.lease_counts().await.unwrap();
            assert_eq!((counts.capacity, counts.held), (all, all), "round {round}");
            let (id, now) = (SandboxId::parse("more").unwrap(), SystemTime::now());
            let full = store.admit(&id, Arc::default(), Arrival::default(), now);
            match full.await.unwrap_err() {
                AdmitError::Exhausted { capacity, held, .. } => {
                    assert_eq!((capacity, held), (all, all))
                }
                error @ (AdmitError::Refused(_)
                | AdmitError::SubnetNotFound { .. }
                | AdmitError::TooMany { .. }
                | AdmitError::Store(_)) => panic!("{error}"),
            }
            for record in store.all().await.unwrap() {
                let removed = store.remove(&record.id, record.generation, now).await;
                assert!(removed.unwrap());
            }
            assert_eq!(store.lease_counts().await.unwrap().cooling, all);
            let resting = store.resting().await.unwrap();
            assert_eq!(store.release_resting(resting).await.unwrap(), all);
            assert_eq!(store.leases().await.unwrap(), []);
        }
    }
}

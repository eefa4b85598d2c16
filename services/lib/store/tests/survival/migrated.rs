//! Stores of other versions.

use std::{
    fs,
    io::Read as _,
    path::Path,
    time::{Duration, SystemTime},
};

use berth_domain::Status;
use berth_store::StoreError;
use redb::ReadableTable as _;
use serde_json::Value;

use super::{
    CHANGES, LEASES, META, RECORDS, addresses, file, id, names, open, put_record, run, schema,
    try_open, with,
};

/// Written by the last program of schema 1: a record in each status, a lease that rests, and one that was removed.
const SCHEMA_1: &[u8] = include_bytes!("../fixtures/schema-1.redb.gz");

fn put_schema_1(path: &Path) -> Vec<u8> {
    let mut bytes = vec![];
    flate2::read::GzDecoder::new(SCHEMA_1)
        .read_to_end(&mut bytes)
        .unwrap();
    fs::write(path, &bytes).unwrap();
    bytes
}

/// Every record in the file, as it lies there and as it lies in changes.
fn stored(path: &Path) -> Vec<Value> {
    with(path, |txn| {
        let mut all = vec![];
        for entry in txn.open_table(RECORDS).unwrap().iter().unwrap() {
            all.push(serde_json::from_slice(entry.unwrap().1.value()).unwrap());
        }
        for entry in txn.open_table(CHANGES).unwrap().iter().unwrap() {
            let mut change: Value = serde_json::from_slice(entry.unwrap().1.value()).unwrap();
            if let Some(record) = change.get_mut("Upserted") {
                all.push(record.take());
            }
        }
        all
    })
}

#[tokio::test]
async fn a_store_of_schema_1_is_brought_up_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let before = put_schema_1(&path);
    let store = open(&path);
    let records = store.all().await.unwrap();
    let found: Vec<_> = records
        .iter()
        .map(|it| (it.id.as_str(), it.status))
        .collect();
    let expected = [
        ("dead", Status::Dead),
        ("not-ready", Status::NotReady),
        ("pending", Status::Pending),
        ("running", Status::Running),
        ("stopped", Status::Stopped),
    ];
    assert_eq!(found, expected);
    let stopped = store.get(&id("stopped")).await.unwrap().unwrap();
    assert_eq!(stopped.exit.unwrap().code, 137);
    assert_eq!(store.unreadable().await.unwrap(), []);
    assert_eq!(store.revision().await.unwrap(), 15);
    let counts = store.lease_counts().await.unwrap();
    assert_eq!(counts.held, 4);
    let mut resumed = store.watch(0).await.unwrap().unwrap();
    for at in 1..=15 {
        assert_eq!(resumed.next().await.unwrap().0, at);
    }
    drop(store);

    assert_eq!(schema(&path), 5);
    let stored = stored(&path);
    assert!(stored.len() > records.len());
    let mut exits = 0;
    for record in stored {
        assert_eq!(record.get("expires_at"), Some(&Value::Null));
        assert_eq!(record.get("boot_id"), Some(&Value::from("")));
        assert_eq!(record.get("held_images"), Some(&serde_json::json!({})));
        if !record["exit"].is_null() {
            exits += 1;
            assert_eq!(record["exit"].get("oom_cgroup"), Some(&Value::from("")));
        }
    }
    assert_eq!(exits, 5);

    let former = dir.path().join("berth.redb.schema-1");
    assert_eq!(fs::read(&former).unwrap().len(), before.len());
    assert_eq!(schema(&former), 1);
    drop(open(&path));
    assert!(former.exists(), "somebody may want to go back");
    let days_ago = SystemTime::now() - Duration::from_secs(3 * 24 * 3600);
    let file = fs::File::options().append(true).open(&former).unwrap();
    file.set_modified(days_ago).unwrap();
    drop(open(&path));
    assert!(!former.exists(), "nobody wants to any more");
}

#[tokio::test]
async fn a_lease_of_schema_3_learns_its_boot_from_the_record_that_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let store = open(&path);
    let gone = run(&store, "gone").await;
    let held = run(&store, "held").await;
    let now = SystemTime::now();
    let boot = |it: &mut berth_domain::SandboxRecord| it.boot_id = "a-boot".to_owned();
    let updated = store.update(&held.id, held.generation, now, boot);
    updated.await.unwrap();
    store.remove(&gone.id, gone.generation, now).await.unwrap();
    drop(store);
    with(&path, |txn| {
        let mut leases = txn.open_table(LEASES).unwrap();
        let rows = leases.iter().unwrap().map(|it| {
            let (address, bytes) = it.unwrap();
            let mut lease: Value = serde_json::from_slice(bytes.value()).unwrap();
            lease.as_object_mut().unwrap().remove("boot_id").unwrap();
            (address.value(), lease.to_string())
        });
        for (address, lease) in rows.collect::<Vec<_>>() {
            leases.insert(address, lease.as_bytes()).unwrap();
        }
        let subnets = redb::TableDefinition::<&str, &[u8]>::new("subnets");
        assert!(txn.delete_table(subnets).unwrap());
        txn.open_table(META).unwrap().insert("schema", 3).unwrap();
    });
    let store = open(&path);
    let leases = store.leases().await.unwrap().into_iter();
    let boots: Vec<_> = leases.map(|it| (it.owner, it.boot_id)).collect();
    let expected = [(gone.id, String::new()), (held.id, "a-boot".to_owned())];
    assert_eq!(boots, expected);
    let reserved = store.reserve_subnet("team".to_owned(), 28, now).await;
    assert!(reserved.unwrap().1, "subnets can be reserved");
}

#[tokio::test]
async fn a_store_of_schema_4_keeps_pins_uses_and_collections_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let store = open(&path);
    run(&store, "held").await;
    drop(store);
    with(&path, |txn| {
        let pins = redb::TableDefinition::<&str, Option<u64>>::new("pins");
        let uses = redb::TableDefinition::<&str, u64>::new("uses");
        let collections = redb::TableDefinition::<u64, &[u8]>::new("collections");
        let collected = redb::TableDefinition::<(u64, &str), u64>::new("collected");
        assert!(txn.delete_table(pins).unwrap() && txn.delete_table(uses).unwrap());
        assert!(txn.delete_table(collections).unwrap() && txn.delete_table(collected).unwrap());
        let mut records = txn.open_table(RECORDS).unwrap();
        let bytes = records.get("held").unwrap().unwrap().value().to_vec();
        let mut record: Value = serde_json::from_slice(&bytes).unwrap();
        record
            .as_object_mut()
            .unwrap()
            .remove("held_images")
            .unwrap();
        let text = record.to_string();
        records.insert("held", text.as_bytes()).unwrap();
        txn.open_table(META).unwrap().insert("schema", 4).unwrap();
    });
    let store = open(&path);
    assert!(store.get(&id("held")).await.unwrap().is_some());
    assert_eq!(store.pins().await.unwrap(), []);
    assert!(store.last_uses().await.unwrap().is_empty());
    assert_eq!(store.collections().await.unwrap(), []);
    drop(store);
    assert_eq!(stored(&path)[0]["held_images"], serde_json::json!({}));
}

#[tokio::test]
async fn a_migration_leaves_an_unreadable_record_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    put_schema_1(&path);
    put_record(&path, "running", b"{\"id\":\"runn");
    let store = open(&path);
    assert_eq!(
        names(&store.all().await.unwrap()),
        ["dead", "not-ready", "pending", "stopped"]
    );
    assert_eq!(store.unreadable().await.unwrap()[0].key, "record running");
    let now = std::time::SystemTime::now();
    let remnant = store.reclaim(&id("running"), now).await.unwrap().unwrap();
    assert_eq!(addresses(&remnant), ["10.9.0.3"]);
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_with_both_schemas_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path());
    let store = open(&path);
    run(&store, "web").await;
    drop(store);
    let known = schema(&path);
    with(&path, |txn| {
        let mut meta = txn.open_table(META).unwrap();
        meta.insert("schema", known + 1).unwrap();
    });
    let error = try_open(&path).unwrap_err();
    assert!(
        matches!(error, StoreError::NewerSchema { found, known: ours, .. } if found == known + 1 && ours == known),
        "{error:?}"
    );
    let said = error.to_string();
    for part in [path.to_str().unwrap(), "schema 6", "up to 5", "newer"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(schema(&path), known + 1, "it is left as it was");
}

#[tokio::test]
async fn an_export_of_schema_1_is_migrated_when_it_is_imported() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old.redb"), dir.path().join("new.redb"));
    let before = put_schema_1(&old);
    let checked = berth_store::check(&old).unwrap();
    assert_eq!((checked.schema, checked.records), (1, 5));
    let mut text = vec![];
    assert_eq!(berth_store::export(&old, &mut text).unwrap().records, 5);
    assert_eq!(fs::read(&old).unwrap(), before, "it was only looked at");
    berth_store::import(&new, text.as_slice(), false).unwrap();
    let (old, new) = (open(&old), open(&new));
    assert_eq!(new.all().await.unwrap(), old.all().await.unwrap());
}

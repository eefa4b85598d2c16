//! What the store makes of entries, files and disks that are not as they should be.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod broken;
mod damaged;
mod full;
mod migrated;
mod offline;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_domain::{
    Container, ContainerName, Generation, ImageRef, Resources, SandboxId, SandboxRecord,
    SandboxSpec, Status,
};
use berth_store::{AdmitError, Admitted, Arrival, Store, StoreError};
use ipnet::Ipv4Net;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");
const LEASES: TableDefinition<u32, &[u8]> = TableDefinition::new("leases");
const CHANGES: TableDefinition<u64, &[u8]> = TableDefinition::new("changes");

fn id(text: &str) -> SandboxId {
    SandboxId::parse(text).unwrap()
}

fn file(dir: &Path) -> PathBuf {
    dir.join("berth.redb")
}

fn try_open(path: &Path) -> Result<Store, StoreError> {
    let subnet = Ipv4Net::new_assert([10, 9, 0, 0].into(), 16);
    Store::open(path, subnet, Duration::from_secs(60))
}

fn open(path: &Path) -> Store {
    try_open(path).unwrap()
}

fn spec() -> Arc<SandboxSpec> {
    let app = Container {
        name: ContainerName::parse("app").unwrap(),
        image: ImageRef::parse("nginx:1").unwrap(),
        command: "/bin/app".into(),
        args: None,
        directory: String::new(),
        env: (0..20).map(|it| format!("VARIABLE_{it}=value")).collect(),
        ports: vec![],
        oom_score: 0,
        tty: false,
        stdin: false,
        config_files: vec![],
        shutdown_timeout: Duration::from_secs(10),
        resources: Resources::default(),
        readiness_probe: None,
    };
    Arc::new(SandboxSpec {
        containers: vec![app],
        ..SandboxSpec::default()
    })
}

async fn admit(store: &Store, name: &str) -> Result<SandboxRecord, AdmitError> {
    match store
        .admit(&id(name), spec(), Arrival::default(), SystemTime::now())
        .await?
    {
        Admitted::Begun(record) | Admitted::Joined(record) => Ok(record),
    }
}

async fn run(store: &Store, name: &str) -> SandboxRecord {
    let record = admit(store, name).await.unwrap();
    let now = SystemTime::now();
    store
        .update(&record.id, record.generation, now, move |it| {
            it.enter(Status::Running, "", "", now)
        })
        .await
        .unwrap()
}

fn with<T>(path: &Path, work: impl FnOnce(&redb::WriteTransaction) -> T) -> T {
    let database = Database::open(path).unwrap();
    let txn = database.begin_write().unwrap();
    let done = work(&txn);
    txn.commit().unwrap();
    done
}

fn put_record(path: &Path, id: &str, bytes: &[u8]) {
    with(path, |txn| {
        let mut table = txn.open_table(RECORDS).unwrap();
        table.insert(id, bytes).unwrap();
    });
}

/// Keeps the first half of a record.
fn tear_record(path: &Path, id: &str) {
    let half = with(path, |txn| {
        let table = txn.open_table(RECORDS).unwrap();
        let bytes = table.get(id).unwrap().unwrap().value().to_vec();
        bytes[..bytes.len() / 2].to_vec()
    });
    put_record(path, id, &half);
}

fn put_lease(path: &Path, address: [u8; 4], bytes: &[u8]) {
    with(path, |txn| {
        let mut table = txn.open_table(LEASES).unwrap();
        table.insert(u32::from_be_bytes(address), bytes).unwrap();
    });
}

fn schema(path: &Path) -> u64 {
    let database = Database::open(path).unwrap();
    let meta = database.begin_read().unwrap().open_table(META).unwrap();
    meta.get("schema").unwrap().unwrap().value()
}

fn addresses(record: &SandboxRecord) -> Vec<String> {
    record
        .addresses
        .iter()
        .map(|it| it.addr().to_string())
        .collect()
}

fn names(records: &[SandboxRecord]) -> Vec<&str> {
    records.iter().map(|it| it.id.as_str()).collect()
}

/// No generation that any record has.
const NEVER: Generation = Generation(u64::MAX);

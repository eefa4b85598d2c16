//! A disk without room. Needs the right to mount.

use std::{fs, path::Path, sync::Arc, time::SystemTime};

use berth_domain::{SandboxRecord, SandboxSpec, Status, record::Ending};
use berth_store::{AdmitError, Admitted, Arrival, Store, StoreError};

use super::{admit, file, id, open};

/// A tmpfs of so many MiB, until it is dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn of(size: &std::ffi::CStr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, size).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn ballast(&self) -> std::path::PathBuf {
        self.path().join("ballast")
    }

    /// Takes all room that is left.
    fn fill(&self) {
        let full = fs::write(self.ballast(), vec![1; 64 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let detach = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(self.path(), detach).unwrap();
    }
}

async fn admit_until_full(store: &Store) -> Vec<SandboxRecord> {
    admit_of_size_until_full(store, 0).await
}

async fn admit_of_size_until_full(store: &Store, size: usize) -> Vec<SandboxRecord> {
    let mut admitted = vec![];
    let mut spec = SandboxSpec::clone(&super::spec());
    spec.version = "x".repeat(size);
    let spec = Arc::new(spec);
    loop {
        let id = id(&format!("s-{}", admitted.len()));
        match store
            .admit(&id, spec.clone(), Arrival::default(), SystemTime::now())
            .await
        {
            Ok(Admitted::Begun(record)) => admitted.push(record),
            Ok(Admitted::Joined(record)) => panic!("{record:?} was there"),
            Err(AdmitError::Store(StoreError::Full { .. })) => return admitted,
            Err(error) => panic!("{error:?}"),
        }
        assert!(admitted.len() < 20_000, "the disk is never full");
    }
}

async fn delete(store: &Store, record: &SandboxRecord) {
    let (id, generation, now) = (&record.id, record.generation, SystemTime::now());
    let ending = |it: &mut SandboxRecord| it.ending = Some(Ending::Delete);
    let told = store.update(id, generation, now, ending).await.unwrap();
    assert_eq!(told.ending, Some(Ending::Delete));
    let stopped = move |it: &mut SandboxRecord| it.enter(Status::Stopped, "", "", now);
    let stopped = store.update(id, generation, now, stopped).await.unwrap();
    assert_eq!(stopped.status, Status::Stopped);
    assert!(store.remove(id, generation, now).await.unwrap());
}

#[tokio::test]
async fn a_full_disk_refuses_what_begins_and_lets_everything_else_go_on() {
    let disk = Disk::of(c"size=6m");
    let store = open(&file(disk.path()));
    let first = admit(&store, "first").await.unwrap();
    let admitted = admit_until_full(&store).await;
    assert!(admitted.len() > 10, "{}", admitted.len());

    let (standing, _, mut watch) = store.snapshot_and_watch().await.unwrap();
    assert_eq!(standing.len(), admitted.len() + 1);
    assert_eq!(store.get(&first.id).await.unwrap().as_ref(), Some(&first));
    let joined = admit(&store, "first").await.unwrap();
    assert_eq!(joined, first, "it writes nothing, so it needs no room");
    let now = SystemTime::now();
    let running = store
        .update(&first.id, first.generation, now, move |it| {
            it.enter(Status::Running, "", "", now)
        })
        .await
        .unwrap();
    let (at, _) = watch.next().await.unwrap();
    assert_eq!(at, running.revision);

    store.set_drain(Some("no room".to_owned())).await.unwrap();
    for record in &admitted {
        delete(&store, record).await;
        for _ in 0..3 {
            watch.next().await.unwrap();
        }
    }
    assert_eq!(store.all().await.unwrap(), [running]);
}

#[tokio::test]
async fn a_store_on_a_full_disk_can_be_opened_and_goes_on_when_there_is_room() {
    let disk = Disk::of(c"size=10m");
    let path = file(disk.path());
    let store = open(&path);
    let first = admit(&store, "first").await.unwrap();
    disk.fill();
    let admitted = admit_until_full(&store).await;
    delete(&store, &first).await;
    let reserve = disk.path().join("berth.redb.reserve");
    assert_eq!(fs::metadata(&reserve).unwrap().len(), 0, "it was needed");
    // Whoever filled the disk takes what was given up as well.
    disk.fill();
    drop(store);

    let store = open(&path);
    assert_eq!(store.all().await.unwrap().len(), admitted.len());
    fs::remove_file(disk.ballast()).unwrap();
    let more = admit(&store, "more").await.unwrap();
    assert!(fs::metadata(&reserve).unwrap().len() > 1 << 20);
    assert_eq!(store.get(&id("more")).await.unwrap(), Some(more));
}

#[tokio::test]
async fn what_was_removed_on_a_full_disk_makes_room_for_what_begins() {
    // The changes that the Deletes leave are more than the reserve could take.
    let disk = Disk::of(c"size=20m");
    let store = open(&file(disk.path()));
    let admitted = admit_of_size_until_full(&store, 20_000).await;
    let (go, stay) = admitted.split_at(admitted.len() - 10);
    for record in go {
        delete(&store, record).await;
    }
    for number in 0..50 {
        admit(&store, &format!("t-{number}")).await.unwrap();
    }
    assert_eq!(store.all().await.unwrap().len(), stay.len() + 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reads_know_nothing_of_writes_that_meet_a_full_disk() {
    let disk = Disk::of(c"size=6m");
    let store = open(&file(disk.path()));
    let first = admit(&store, "first").await.unwrap();
    disk.fill();
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (store, id, over) = (store.clone(), first.id.clone(), over.clone());
            let runtime = tokio::runtime::Handle::current();
            std::thread::spawn(move || {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    runtime.block_on(store.get(&id)).unwrap();
                }
            })
        })
        .collect();
    admit_until_full(&store).await;
    for number in 0..200 {
        let refused = admit(&store, &format!("more-{number}")).await;
        assert!(
            matches!(refused, Err(AdmitError::Store(StoreError::Full { .. }))),
            "{refused:?}"
        );
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
}

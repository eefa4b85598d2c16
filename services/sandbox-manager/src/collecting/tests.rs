//! The right to delete, with a real store and the fake node: who comes between a claim and its commit wins.

use berth_domain::{
    SandboxId, Status,
    catalog::{Artifact, ArtifactStatus, Object, Version},
    collection::Waiting,
    holders::{HolderKind, Pin},
};
use berth_platform::{contract::Subject, fake::FakeNode};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    node::Node,
    registry::{CreateTerms, Limits},
};

const DEADLINE: Duration = Duration::from_secs(20);
const IMAGES: CollectionKind = CollectionKind::Images;
const BLOBS: CollectionKind = CollectionKind::Blobs;

/// What outlives a manager.
struct Ground {
    store: Store,
    node: FakeNode,
    _dir: TempDir,
}

/// One start of a manager, and the run and the lease that its worker has.
struct Manager {
    registry: Registry<FakeNode, FakeNode>,
    node: FakeNode,
}

struct Worker {
    run: u64,
    lease: LeaseRef,
}

impl Ground {
    fn new() -> Self {
        // In memory: it is the order of writes that is tried, and not the disk.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = dir.path().join("s");
        let subnet = "10.9.0.0/24".parse().unwrap();
        Self {
            store: Store::open(&file, subnet, Duration::ZERO).unwrap(),
            node: FakeNode::default(),
            _dir: dir,
        }
    }

    async fn manager(&self) -> Manager {
        let limits = Limits {
            sandboxes: 1000,
            task_creations: 2,
            purge_interval: DEADLINE,
            end_timeout: DEADLINE,
            dead_horizon: DEADLINE,
        };
        let seams = Node {
            runtime: Arc::new(self.node.clone()),
            network: Arc::new(self.node.clone()),
        };
        let stop = CancellationToken::new();
        let registry = Registry::new(seams, self.store.clone(), limits, String::new(), stop);
        registry.start().await.unwrap();
        Manager {
            registry,
            node: self.node.clone(),
        }
    }
}

impl Manager {
    /// A worker of the slice that this digest is in.
    async fn worker(&self, kind: CollectionKind, digest: &str) -> Worker {
        self.worker_for(kind, digest, "worker", DEADLINE)
            .await
            .unwrap()
    }

    async fn worker_for(
        &self,
        kind: CollectionKind,
        digest: &str,
        holder: &str,
        time_to_live: Duration,
    ) -> Result<Worker, Failure> {
        let started = self
            .registry
            .start_collection(kind, CollectionCause::Requested, 0);
        let run = started.await?.0.collection.id;
        let asked = Asked {
            name: kind.lease(Slice::of(digest).unwrap()),
            holder: holder.into(),
            time_to_live,
            attributes: BTreeMap::new(),
        };
        let collecting = self.registry.collecting();
        let lease = collecting.acquire(self.registry.store(), asked).await?;
        let (name, token) = (lease.name, lease.token);
        let lease = LeaseRef { name, token };
        Ok(Worker { run, lease })
    }

    async fn claim(&self, worker: &Worker, object: Claimed) -> Answer {
        let objects = vec![(object, 10)];
        let lease = worker.lease.clone();
        let claimed = self
            .registry
            .claim_deletions(worker.run, lease, objects, u64::MAX);
        claimed.await.unwrap().remove(0)
    }

    async fn token(&self, worker: &Worker, object: Claimed) -> u64 {
        match self.claim(worker, object).await {
            Answer::Granted { token, .. } => token,
            Answer::Held(holders) => panic!("held by {holders:?}"),
        }
    }

    async fn commit(&self, worker: &Worker, token: u64) -> Outcome {
        let lease = worker.lease.clone();
        let committed = self.registry.commit_deletions(lease, vec![token]).await;
        committed.unwrap().remove(0)
    }

    async fn admit(&self, image: &ImageRef) -> berth_domain::SandboxRecord {
        let subject = Subject {
            image: image.clone(),
            addresses: vec!["10.9.0.2/24".parse().unwrap()],
        };
        let spec = subject.sandbox("web").spec;
        let terms = CreateTerms::default();
        self.registry.admit(&web(), spec, terms).await.unwrap()
    }

    async fn runs(&self, record: &berth_domain::SandboxRecord) -> Arc<berth_domain::SandboxRecord> {
        let running = self.registry.await_running(&record.id, record.generation);
        let running = tokio::time::timeout(DEADLINE, running).await;
        running.expect("it settles").expect("it runs")
    }

    async fn digest(&self, image: &ImageRef) -> String {
        let digest = self.node.image_digest(image).await.unwrap();
        digest.expect("it is here")
    }

    async fn is_here(&self, image: &ImageRef) -> bool {
        self.node.image_digest(image).await.unwrap().is_some()
    }

    async fn deleted(&self, run: u64) -> (Vec<String>, u64) {
        let view = self.registry.store().collection(run).await.unwrap();
        let view = view.expect("it is kept");
        (view.deleted, view.collection.deleted_total)
    }

    async fn put(&self, object: Object) {
        let _no_deletion = self.registry.image_lock().read().await;
        let put = self.registry.store().put_entry(object, None).await;
        put.unwrap();
    }
}

fn image(text: &str) -> ImageRef {
    ImageRef::parse(text).unwrap()
}

fn web() -> SandboxId {
    SandboxId::parse("web").unwrap()
}

fn claimed(image: &ImageRef, digest: &str) -> Claimed {
    Claimed::Image {
        name: image.to_string(),
        digest: digest.into(),
    }
}

fn blob(number: u8) -> String {
    format!("sha256:00{}", format!("{number:02x}").repeat(31))
}

fn version(id: &str, blob: &str) -> Object {
    Object::Version(Version {
        id: id.into(),
        app: "app".into(),
        static_artifact: Some(blob.into()),
        ..Version::default()
    })
}

fn kinds(outcome: &Outcome) -> Vec<HolderKind> {
    match outcome {
        Outcome::Held(holders) => holders.iter().map(|it| it.kind).collect(),
        Outcome::Committed | Outcome::Failed(_) => panic!("{outcome:?}"),
    }
}

fn reason<T: std::fmt::Debug>(result: Result<T, Failure>) -> Reason {
    result.unwrap_err().reason
}

#[tokio::test]
async fn an_image_that_nothing_holds_is_deleted_and_counted() {
    let ground = Ground::new();
    let (manager, app) = (ground.manager().await, image("app"));
    ground.node.add_image(&app);
    let digest = manager.digest(&app).await;
    let worker = manager.worker(IMAGES, &digest).await;
    let token = manager.token(&worker, claimed(&app, &digest)).await;
    assert!(manager.is_here(&app).await, "a claim deletes nothing");
    assert_eq!(manager.commit(&worker, token).await, Outcome::Committed);
    assert!(!manager.is_here(&app).await);
    let once = (vec![app.to_string()], 1);
    assert_eq!(manager.deleted(worker.run).await, once);
    let again = manager.commit(&worker, token).await;
    assert_eq!(again, Outcome::Failed("the claim has ended".into()));
    assert_eq!(manager.deleted(worker.run).await, once);
}

#[tokio::test]
async fn a_create_that_comes_between_the_claim_and_its_commit_keeps_the_image() {
    let ground = Ground::new();
    let (manager, app, alias) = (ground.manager().await, image("app"), image("alias"));
    ground.node.add_image(&app);
    let digest = manager.digest(&app).await;
    ground.node.name_image(&alias, &digest);
    let worker = manager.worker(IMAGES, &digest).await;
    let token = manager.token(&worker, claimed(&app, &digest)).await;
    let record = manager.admit(&alias).await;
    assert_eq!(
        record.held_images[&alias], digest,
        "it is held from here on"
    );
    let outcome = manager.commit(&worker, token).await;
    assert_eq!(kinds(&outcome), [HolderKind::Sandbox]);
    assert!(manager.is_here(&app).await);
    manager.runs(&record).await;
    let held = manager.claim(&worker, claimed(&app, &digest)).await;
    assert_eq!(
        held,
        Answer::Held(vec![Holder::new(HolderKind::Sandbox, "web")])
    );
    assert_eq!(manager.deleted(worker.run).await, (vec![], 0));
}

#[tokio::test]
async fn a_create_that_comes_after_the_commit_pulls_again_and_holds_what_it_pulled() {
    let ground = Ground::new();
    let (manager, app) = (ground.manager().await, image("app"));
    ground.node.add_image(&app);
    ground.node.publish(&app);
    let digest = manager.digest(&app).await;
    let worker = manager.worker(IMAGES, &digest).await;
    let token = manager.token(&worker, claimed(&app, &digest)).await;
    assert_eq!(manager.commit(&worker, token).await, Outcome::Committed);
    let record = manager.admit(&app).await;
    assert!(record.held_images.is_empty(), "it is held by name");
    let running = manager.runs(&record).await;
    assert_eq!(running.held_images[&app], digest);
    assert!(manager.is_here(&app).await);
    let uses = ground.store.last_uses().await.unwrap();
    assert!(uses.contains_key(&digest));
    manager.registry.stop(&web(), None, None).await.unwrap();
    let record = ground.store.get(&web()).await.unwrap().unwrap();
    assert_eq!(record.status, Status::Dead);
    let token = manager.token(&worker, claimed(&app, &digest)).await;
    assert_eq!(manager.commit(&worker, token).await, Outcome::Committed);
}

#[tokio::test]
async fn a_create_waits_for_a_commit_that_is_under_way() {
    let ground = Ground::new();
    let (manager, app) = (ground.manager().await, image("app"));
    ground.node.add_image(&app);
    ground.node.publish(&app);
    let digest = manager.digest(&app).await;
    let worker = manager.worker(IMAGES, &digest).await;
    let token = manager.token(&worker, claimed(&app, &digest)).await;
    ground.node.hang("remove_image");
    let create = async {
        let removal = format!("remove_image {app}");
        while !ground.node.calls().contains(&removal) {
            tokio::task::yield_now().await;
        }
        let admission = manager.admit(&app);
        tokio::pin!(admission);
        for _ in 0..200 {
            assert!(futures::poll!(&mut admission).is_pending());
            tokio::task::yield_now().await;
        }
        ground.node.release_hang();
        admission.await
    };
    let both = async { tokio::join!(manager.commit(&worker, token), create) };
    let (outcome, record) = tokio::time::timeout(DEADLINE, both).await.unwrap();
    assert_eq!(outcome, Outcome::Committed);
    manager.runs(&record).await;
    assert!(manager.is_here(&app).await, "pulled again");
}

#[tokio::test]
async fn a_blob_that_was_found_of_no_use_by_an_older_catalog_is_neither_claimed_nor_committed() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let digest = blob(1);
    let worker = manager.worker(BLOBS, &digest).await;
    let object = || Claimed::Blob {
        digest: digest.clone(),
    };
    let claim = async |revision| {
        let (lease, objects) = (worker.lease.clone(), vec![(object(), 10)]);
        let claimed = manager
            .registry
            .claim_deletions(worker.run, lease, objects, revision);
        claimed.await.unwrap().remove(0)
    };
    let revision = async || {
        let page = manager.registry.store().entries(None, None, 1).await;
        page.unwrap().revision
    };
    let before = revision().await;
    let Answer::Granted { token, .. } = claim(before).await else {
        panic!("nothing holds it");
    };
    // A manifest that leads to it, for all that the manager knows.
    manager.put(version("v", &blob(2))).await;
    let outcome = manager.commit(&worker, token).await;
    assert_eq!(outcome, Outcome::Failed("the catalog has changed".into()));
    assert_eq!(claim(before).await, Answer::Held(vec![]));
    let Answer::Granted { token, .. } = claim(revision().await).await else {
        panic!("nothing holds it");
    };
    manager.put(version("w", &blob(3))).await;
    let lost = manager.registry.release_claims(&[token]).await.unwrap();
    assert_eq!(lost, [token], "who buried it by this claim brings it back");
}

#[tokio::test]
async fn an_entry_of_the_catalog_that_comes_between_keeps_an_image_and_a_blob() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let managed = image("cluster.local:5000/app:web");
    ground.node.add_image(&managed);
    let digest = manager.digest(&managed).await;
    let worker = manager.worker(IMAGES, &digest).await;
    let token = manager.token(&worker, claimed(&managed, &digest)).await;
    let (held, free) = (blob(1), blob(2));
    let of_blobs = manager.worker(BLOBS, &held).await;
    let mut tokens = vec![];
    for digest in [&held, &free] {
        let digest = digest.clone();
        tokens.push(manager.token(&of_blobs, Claimed::Blob { digest }).await);
    }
    let artifact = |status| {
        Object::Artifact(Artifact {
            id: "artifact/web".into(),
            status,
            blobs: vec![held.clone()],
        })
    };
    manager.put(artifact(ArtifactStatus::Active)).await;
    let outcome = manager.commit(&worker, token).await;
    assert_eq!(kinds(&outcome), [HolderKind::Artifact]);
    let lease = of_blobs.lease.clone();
    let outcomes = manager.registry.commit_deletions(lease, tokens).await;
    let outcomes = outcomes.unwrap();
    assert_eq!(kinds(&outcomes[0]), [HolderKind::Artifact]);
    assert_eq!(outcomes[1], Outcome::Committed);
    assert_eq!(manager.deleted(of_blobs.run).await, (vec![free], 1));
    manager.put(artifact(ArtifactStatus::Archived)).await;
    let token = manager.token(&worker, claimed(&managed, &digest)).await;
    assert_eq!(manager.commit(&worker, token).await, Outcome::Committed);
}

#[tokio::test]
async fn a_pin_a_pull_and_an_import_that_come_between_keep_the_image() {
    let ground = Ground::new();
    let (manager, app) = (ground.manager().await, image("app"));
    ground.node.add_image(&app);
    ground.node.publish(&app);
    let digest = manager.digest(&app).await;
    let worker = manager.worker(IMAGES, &digest).await;
    let token = manager.token(&worker, claimed(&app, &digest)).await;
    manager.registry.pin_image(&app, None).await.unwrap();
    let outcome = manager.commit(&worker, token).await;
    assert_eq!(kinds(&outcome), [HolderKind::Pin]);
    let unpinned = ground.store.unpin_image(app.to_string(), SystemTime::now());
    assert!(unpinned.await.unwrap());

    let token = manager.token(&worker, claimed(&app, &digest)).await;
    let arrival = manager.registry.begin_arrival(Arriving::Import).await;
    let outcome = manager.commit(&worker, token).await;
    assert_eq!(kinds(&outcome), [HolderKind::Pull]);
    drop(arrival);

    // A pull that has come and gone has brought an image that nobody claimed.
    let token = manager.token(&worker, claimed(&app, &digest)).await;
    let pull = Arriving::Pull(image("alias"));
    let arrival = manager.registry.begin_arrival(pull).await;
    ground.node.name_image(&image("alias"), &digest);
    let brought = ground.node.list_images().await.unwrap();
    arrival.has_brought(&brought);
    drop(arrival);
    let outcome = manager.commit(&worker, token).await;
    assert_eq!(outcome, Outcome::Failed("the claim has ended".into()));
    assert!(manager.is_here(&app).await);
}

#[tokio::test]
async fn an_image_that_is_gone_or_another_by_now_is_not_deleted() {
    let ground = Ground::new();
    let (manager, app, gone) = (ground.manager().await, image("app"), image("gone"));
    ground.node.add_image(&app);
    let digest = manager.digest(&app).await;
    ground.node.name_image(&gone, &digest);
    let worker = manager.worker(IMAGES, &digest).await;
    let token = manager.token(&worker, claimed(&app, &digest)).await;
    let of_gone = manager.token(&worker, claimed(&gone, &digest)).await;
    ground.node.name_image(&app, &blob(7));
    manager.registry.remove_image(&gone).await.unwrap();
    for (token, problem) in [
        (token, "its name stands for another image by now"),
        (of_gone, "it is gone already"),
    ] {
        let outcome = manager.commit(&worker, token).await;
        assert_eq!(outcome, Outcome::Failed(problem.into()));
    }
    assert!(manager.is_here(&app).await);
    assert_eq!(manager.deleted(worker.run).await, (vec![], 0));
}

#[tokio::test]
async fn a_lease_that_is_lost_claims_and_commits_nothing() {
    let ground = Ground::new();
    let (manager, app) = (ground.manager().await, image("app"));
    ground.node.add_image(&app);
    let digest = manager.digest(&app).await;
    let first = manager.worker(IMAGES, &digest).await;
    let token = manager.token(&first, claimed(&app, &digest)).await;
    let other = manager.worker_for(IMAGES, &digest, "other", DEADLINE);
    assert_eq!(reason(other.await.map(|it| it.run)), Reason::WorkLeaseHeld);
    manager
        .registry
        .collecting()
        .release(std::slice::from_ref(&first.lease));
    let second = manager.worker_for(IMAGES, &digest, "other", DEADLINE);
    let second = second.await.unwrap();
    assert!(second.lease.token > first.lease.token);
    let lease = first.lease.clone();
    let late = manager.registry.commit_deletions(lease, vec![token]).await;
    assert_eq!(reason(late), Reason::WorkLeaseLost);
    let foreign = manager.commit(&second, token).await;
    assert_eq!(foreign, Outcome::Failed("the claim has ended".into()));
    let objects = vec![(claimed(&app, &digest), 1)];
    let lease = first.lease.clone();
    let late = manager
        .registry
        .claim_deletions(first.run, lease, objects, u64::MAX);
    assert_eq!(reason(late.await), Reason::WorkLeaseLost);
    assert!(manager.is_here(&app).await);
}

#[tokio::test]
async fn a_restart_forgets_claims_refuses_old_tokens_and_goes_on_with_the_run() {
    let ground = Ground::new();
    let app = image("app");
    ground.node.add_image(&app);
    let before = ground.manager().await;
    let digest = before.digest(&app).await;
    let old = before.worker(IMAGES, &digest).await;
    let token = before.token(&old, claimed(&app, &digest)).await;

    let after = ground.manager().await;
    let lease = old.lease.clone();
    let late = after.registry.commit_deletions(lease, vec![token]).await;
    assert_eq!(reason(late), Reason::WorkLeaseLost);
    let new = after.worker(IMAGES, &digest).await;
    assert_eq!(new.run, old.run, "the run goes on");
    assert!(new.lease.token > old.lease.token, "tokens never repeat");
    let outcome = after.commit(&new, token).await;
    assert_eq!(outcome, Outcome::Failed("the claim has ended".into()));
    assert!(after.is_here(&app).await);
    let again = after.token(&new, claimed(&app, &digest)).await;
    assert!(again > token);
    assert_eq!(after.commit(&new, again).await, Outcome::Committed);
}

#[tokio::test]
async fn what_was_counted_and_is_there_all_the_same_is_counted_once_in_the_end() {
    let ground = Ground::new();
    let (manager, app) = (ground.manager().await, image("app"));
    ground.node.add_image(&app);
    let digest = manager.digest(&app).await;
    let worker = manager.worker(IMAGES, &digest).await;
    // As a manager that died between the two.
    let counted = vec![(app.to_string(), 10)];
    ground
        .store
        .count_collected(worker.run, counted)
        .await
        .unwrap();
    let token = manager.token(&worker, claimed(&app, &digest)).await;
    assert_eq!(manager.deleted(worker.run).await, (vec![], 0));
    ground.node.fail_next("remove_image", 1);
    let failed = manager.commit(&worker, token).await;
    assert!(matches!(failed, Outcome::Failed(_)), "{failed:?}");
    assert_eq!(manager.deleted(worker.run).await, (vec![], 0));
    let token = manager.token(&worker, claimed(&app, &digest)).await;
    ground.node.fail_next_when_done("remove_image", 1);
    assert_eq!(manager.commit(&worker, token).await, Outcome::Committed);
    let once = (vec![app.to_string()], 1);
    assert_eq!(manager.deleted(worker.run).await, once);
}

#[tokio::test]
async fn only_what_is_in_the_slice_of_the_lease_can_be_claimed_and_only_in_its_run() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let held = blob(1);
    let worker = manager.worker(BLOBS, &held).await;
    let other = format!("sha256:ff{}", "0".repeat(62));
    let cases = [
        (
            worker.run,
            Claimed::Blob { digest: other },
            Reason::InvalidField,
        ),
        (
            worker.run,
            claimed(&image("app"), &held),
            Reason::InvalidField,
        ),
        (
            worker.run + 1,
            Claimed::Blob {
                digest: held.clone(),
            },
            Reason::CollectionNotFound,
        ),
    ];
    for (run, object, expected) in cases {
        let objects = vec![(object, 1)];
        let lease = worker.lease.clone();
        let refused = manager
            .registry
            .claim_deletions(run, lease, objects, u64::MAX)
            .await;
        assert_eq!(reason(refused), expected);
    }
    let report = SliceReport::default();
    let wrong = Slice::new(5).unwrap();
    let refused = manager
        .registry
        .report_slice(worker.run, &worker.lease, wrong, report);
    assert_eq!(reason(refused.await), Reason::InvalidField);
}

#[tokio::test]
async fn a_look_that_fails_grants_nothing() {
    let ground = Ground::new();
    let (manager, app) = (ground.manager().await, image("app"));
    ground.node.add_image(&app);
    let digest = manager.digest(&app).await;
    let worker = manager.worker(IMAGES, &digest).await;
    let token = manager.token(&worker, claimed(&app, &digest)).await;
    ground.node.unreachable(true);
    let failed = manager.commit(&worker, token).await;
    assert!(matches!(failed, Outcome::Failed(_)), "{failed:?}");
    let lease = worker.lease.clone();
    let objects = vec![(claimed(&app, &digest), 1)];
    let refused = manager
        .registry
        .claim_deletions(worker.run, lease, objects, u64::MAX);
    assert_eq!(reason(refused.await), Reason::RuntimeUnreachable);
    ground.node.unreachable(false);
    assert!(manager.is_here(&app).await);
}

#[tokio::test]
async fn the_index_follows_the_store_and_is_forgotten_with_the_last_run() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let digest = blob(1);
    let worker = manager.worker(BLOBS, &digest).await;
    let object = || Claimed::Blob {
        digest: digest.clone(),
    };
    manager.token(&worker, object()).await;
    // More than a reader may fall behind: it begins anew.
    for number in 0..1100 {
        manager.put(version(&format!("v{number}"), &blob(2))).await;
    }
    manager.put(version("last", &digest)).await;
    let held = manager.claim(&worker, object()).await;
    assert_eq!(
        held,
        Answer::Held(vec![Holder::new(HolderKind::Version, "last")])
    );
    let key = version("last", &digest).key();
    ground.store.remove_entry(key, None).await.unwrap();
    manager.token(&worker, object()).await;
    let collecting = manager.registry.collecting();
    assert!(collecting.index.lock().await.is_some());
    for slice in Slice::all() {
        let asked = Asked {
            name: BLOBS.lease(slice),
            holder: "worker".into(),
            time_to_live: DEADLINE,
            attributes: BTreeMap::new(),
        };
        let lease = collecting.acquire(&ground.store, asked).await.unwrap();
        let (name, token) = (lease.name, lease.token);
        let lease = LeaseRef { name, token };
        let report = SliceReport::default();
        let reported = manager
            .registry
            .report_slice(worker.run, &lease, slice, report);
        reported.await.unwrap();
    }
    assert!(collecting.index.lock().await.is_none());
    let lease = worker.lease.clone();
    let late = manager
        .registry
        .claim_deletions(worker.run, lease, vec![(object(), 1)], u64::MAX);
    assert_eq!(reason(late.await), Reason::CollectionNotFound);
}

#[tokio::test]
async fn only_an_image_that_is_here_is_pinned() {
    let ground = Ground::new();
    let (manager, app) = (ground.manager().await, image("app"));
    let missing = manager.registry.pin_image(&app, None).await;
    assert_eq!(reason(missing), Reason::ImageNotFound);
    ground.node.add_image(&app);
    let day = Duration::from_secs(24 * 3600);
    let ends = manager.registry.pin_image(&app, Some(day)).await.unwrap();
    let expected = Pin {
        image: app.to_string(),
        expires_at: ends,
    };
    let pins = ground.store.pins().await.unwrap();
    assert_eq!(pins.len(), 1);
    assert_eq!(pins[0].image, expected.image);
    assert!(pins[0].holds_at(SystemTime::now()));
    let digest = manager.digest(&app).await;
    let (found, holders) = manager.registry.holders_of_image(&app).await.unwrap();
    assert_eq!((found, holders[0].kind), (digest, HolderKind::Pin));
}

mod full;
mod random;

#[tokio::test]
async fn a_run_that_nobody_works_on_is_given_up_and_another_one_can_begin() {
    let (ground, digest) = (Ground::new(), format!("sha256:{}", "ab".repeat(32)));
    let manager = ground.manager().await;
    let (registry, mut waiting) = (&manager.registry, Waiting::default());
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let worker = manager.worker(IMAGES, &digest).await;
    let mut told = registry.collecting().follow_runs();
    for at in [0, 60] {
        let looked = registry.give_up_runs(&mut waiting, minutes(at)).await;
        looked.unwrap();
        let running = ground.store.collections_under_way().await.unwrap();
        assert_eq!(running[0].id, worker.run, "a worker holds a slice");
    }
    registry.collecting().release(&[worker.lease]);
    for at in [60, 69, 70] {
        assert!(told.is_empty(), "it waits until {at}");
        let looked = registry.give_up_runs(&mut waiting, minutes(at)).await;
        looked.unwrap();
    }
    let run = told.try_recv().unwrap().collection;
    assert!(run.abandoned && run.ended_at.is_some(), "{run:?}");
    assert!(run.aborted.contains("no worker"), "{run:?}");
    let next = manager.worker(IMAGES, &digest).await;
    assert_ne!(next.run, worker.run);
}

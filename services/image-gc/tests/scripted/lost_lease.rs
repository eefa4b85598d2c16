//! A lease of a slice that is lost between a claim and what it is for.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_api::v1::{self, entry::Object};
use futures::StreamExt as _;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use crate::{
    Worker, digest,
    manager::{Events, Script},
};

const DEADLINE: Duration = Duration::from_secs(30);
const TOKEN: u64 = 7;

/// A manager with one run of blobs, which takes the lease of a slice away while it answers the first claim of it.
#[derive(Clone, Debug)]
struct Taker {
    leases: Arc<Mutex<BTreeMap<String, v1::WorkLease>>>,
    claims: watch::Sender<usize>,
    /// How often the worker has looked who is there.
    looks: watch::Sender<usize>,
    run: watch::Sender<v1::Collection>,
    released: watch::Sender<Vec<u64>>,
}

impl Script for Taker {
    fn entries(&self, request: v1::ListEntriesRequest) -> v1::ListEntriesResponse {
        let artifacts = request.kind() == v1::EntryKind::Artifact;
        let entry = v1::Entry {
            revision: 1,
            object: Some(Object::Artifact(v1::Artifact {
                id: "artifact/a".into(),
                ..v1::Artifact::default()
            })),
        };
        v1::ListEntriesResponse {
            entries: artifacts.then_some(entry).into_iter().collect(),
            revision: 1,
            ..v1::ListEntriesResponse::default()
        }
    }

    fn acquire(&self, request: v1::AcquireWorkLeaseRequest) -> v1::WorkLease {
        let mut leases = self.leases.lock().unwrap();
        let lease = leases.entry(request.name.clone()).or_insert(v1::WorkLease {
            name: request.name,
            token: 1,
            ..v1::WorkLease::default()
        });
        lease.holder = request.holder;
        lease.attributes = request.attributes;
        lease.clone()
    }

    fn leases(&self) -> Vec<v1::WorkLease> {
        self.looks.send_modify(|it| *it += 1);
        self.leases.lock().unwrap().values().cloned().collect()
    }

    fn latest_runs(&self) -> Vec<v1::Collection> {
        vec![self.run.borrow().clone()]
    }

    fn runs(&self) -> Events<v1::WatchCollectionsResponse> {
        let runs = WatchStream::new(self.run.subscribe());
        Box::pin(runs.map(|it| {
            let collection = Some(it);
            Ok(v1::WatchCollectionsResponse { collection })
        }))
    }

    fn claim(&self, request: v1::ClaimDeletionsRequest) -> Vec<v1::DeletionClaim> {
        self.claims.send_modify(|it| *it += 1);
        let name = request.lease.unwrap_or_default().name;
        if *self.claims.borrow() == 1 {
            let mut leases = self.leases.lock().unwrap();
            leases.get_mut(&name).unwrap().token = 2;
            drop(leases);
            // By the second look from now on the worker knows what it has lost.
            let mut looks = self.looks.subscribe();
            let seen = *looks.borrow();
            let known = looks.wait_for(|it| *it > seen + 3);
            tokio::task::block_in_place(|| {
                let known = tokio::time::timeout(DEADLINE, known);
                let known = tokio::runtime::Handle::current().block_on(known);
                assert!(known.is_ok(), "the worker looks no more");
            });
        }
        let claim = v1::DeletionClaim {
            token: TOKEN,
            ..v1::DeletionClaim::default()
        };
        vec![claim; request.objects.len()]
    }

    fn release(&self, request: v1::ReleaseDeletionsRequest) {
        self.released.send_modify(|it| it.extend(request.tokens));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn claims_under_a_lease_that_is_lost_are_given_back_and_the_blob_keeps_its_path() {
    let run = v1::Collection {
        id: 1,
        kind: v1::CollectionKind::Blobs.into(),
        ..v1::Collection::default()
    };
    let taker = Taker {
        leases: Arc::default(),
        claims: watch::Sender::default(),
        looks: watch::Sender::default(),
        run: watch::Sender::new(run),
        released: watch::Sender::default(),
    };
    let (home, blob) = (tempfile::tempdir().unwrap(), digest(1));
    let path = home.path().join("blobs").join(&blob);
    let mut released = taker.released.subscribe();
    let settings = ["collect_images=false", "lease_time=2s"];
    let _worker = Worker::start(home.path(), &[blob], taker.clone(), &settings);
    let given_back = released.wait_for(|it| !it.is_empty());
    let given_back = tokio::time::timeout(DEADLINE, given_back).await;
    let given_back = given_back.expect("it is given back").unwrap().clone();
    assert_eq!(given_back, [TOKEN]);
    assert_eq!(*taker.claims.borrow(), 1, "before it is claimed anew");
    assert!(path.exists());
}

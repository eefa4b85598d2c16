//! A catalog that changes under the plan of a worker, as often as a test says.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
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

/// More plans are not made of one slice.
const PLANS_MAX: usize = 3;
const DEADLINE: Duration = Duration::from_secs(30);

/// How the manager takes a changed catalog for a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refuses {
    Claims,
    Commits,
}

#[derive(Debug)]
struct Seen {
    refuses: Refuses,
    refusals_left: usize,
    revision: u64,
    /// The revision of each request for claims.
    claimed_by: Vec<u64>,
    leases: BTreeMap<String, v1::WorkLease>,
}

/// A manager with one run of blobs, and no more than that needs.
#[derive(Clone, Debug)]
struct Fickle {
    seen: Arc<Mutex<Seen>>,
    run: watch::Sender<v1::Collection>,
    reports: watch::Sender<Vec<v1::ReportSliceRequest>>,
}

impl Fickle {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no holder panics")
    }
}

impl Seen {
    fn refuses(&mut self, what: Refuses) -> bool {
        let refused = self.refuses == what && self.refusals_left > 0;
        self.refusals_left -= usize::from(refused);
        refused
    }
}

impl Script for Fickle {
    fn entries(&self, request: v1::ListEntriesRequest) -> v1::ListEntriesResponse {
        let artifacts = request.kind() == v1::EntryKind::Artifact;
        let artifact = v1::Artifact {
            id: "artifact/a".into(),
            ..v1::Artifact::default()
        };
        let entry = v1::Entry {
            revision: 1,
            object: Some(Object::Artifact(artifact)),
        };
        let mut seen = self.seen();
        // The pages after the first are of a later revision.
        seen.revision += 1;
        v1::ListEntriesResponse {
            entries: artifacts.then_some(entry).into_iter().collect(),
            next_page_token: String::new(),
            revision: if artifacts { 100 } else { 200 } + seen.revision,
        }
    }

    fn acquire(&self, request: v1::AcquireWorkLeaseRequest) -> v1::WorkLease {
        let lease = v1::WorkLease {
            name: request.name.clone(),
            holder: request.holder,
            token: 1,
            attributes: request.attributes,
            ..v1::WorkLease::default()
        };
        self.seen().leases.insert(request.name, lease.clone());
        lease
    }

    fn leases(&self) -> Vec<v1::WorkLease> {
        self.seen().leases.values().cloned().collect()
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
        let mut seen = self.seen();
        seen.claimed_by.push(request.catalog_revision);
        let claim = v1::DeletionClaim {
            token: if seen.refuses(Refuses::Claims) { 0 } else { 7 },
            ..v1::DeletionClaim::default()
        };
        vec![claim; request.objects.len()]
    }

    fn commit(&self, request: v1::CommitDeletionsRequest) -> Vec<v1::DeletionOutcome> {
        let refused = self.seen().refuses(Refuses::Commits);
        let problem = if refused {
            "the catalog has changed"
        } else {
            ""
        };
        let outcome = v1::DeletionOutcome {
            committed: !refused,
            problem: problem.into(),
            ..v1::DeletionOutcome::default()
        };
        vec![outcome; request.tokens.len()]
    }

    fn report(&self, request: v1::ReportSliceRequest) {
        self.reports.send_modify(|it| it.push(request));
    }
}

/// Has a worker carry a run out over one file; returns the revisions of the claims, and the report of the file's slice.
async fn carried_out(
    file: &str,
    refuses: Refuses,
    refusals: usize,
    home: &Path,
) -> (Vec<u64>, v1::ReportSliceRequest) {
    let seen = Seen {
        refuses,
        refusals_left: refusals,
        revision: 0,
        claimed_by: vec![],
        leases: BTreeMap::new(),
    };
    let run = v1::Collection {
        id: 1,
        kind: v1::CollectionKind::Blobs.into(),
        ..v1::Collection::default()
    };
    let fickle = Fickle {
        seen: Arc::new(Mutex::new(seen)),
        run: watch::Sender::new(run),
        reports: watch::Sender::default(),
    };
    let mut reports = fickle.reports.subscribe();
    let settings = ["collect_images=false", "tombstone_grace=0s"];
    let _worker = Worker::start(home, &[file.to_owned()], fickle.clone(), &settings);
    let all = reports.wait_for(|it| it.iter().any(|it| it.objects_total > 0));
    let all = tokio::time::timeout(DEADLINE, all).await;
    let all = all.expect("the slice is reported").unwrap().clone();
    let report = all.into_iter().find(|it| it.objects_total > 0).unwrap();
    let claimed_by = fickle.seen().claimed_by.clone();
    (claimed_by, report)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_changed_catalog_refuses_is_planned_anew_and_is_no_failure() {
    let blob = digest(1);
    let tombstone = format!(".gc-tombstone.{blob}.5.1");
    let cases = [
        (&blob, Refuses::Claims, 0, 1, 1),
        (&blob, Refuses::Claims, 2, 3, 1),
        (&blob, Refuses::Claims, 99, PLANS_MAX, 1),
        (&tombstone, Refuses::Claims, 2, 3, 0),
        (&tombstone, Refuses::Commits, 2, 3, 0),
        (&tombstone, Refuses::Commits, 99, PLANS_MAX, 1),
    ];
    for (file, refuses, refusals, plans, retained) in cases {
        let case = format!("{file}: {refusals} {refuses:?}");
        let home = tempfile::tempdir().unwrap();
        let (claimed_by, report) = carried_out(file, refuses, refusals, home.path()).await;
        assert_eq!(claimed_by.len(), plans, "{case}: {claimed_by:?}");
        let first_pages = claimed_by.iter().all(|it| (100..200).contains(it));
        let fresh = claimed_by.is_sorted_by(|one, next| one < next);
        assert!(first_pages && fresh, "{case}: {claimed_by:?}");
        assert_eq!(report.failed.len(), 0, "{case}: {report:?}");
        assert_eq!(report.aborted, "", "{case}");
        assert_eq!(report.retained_total, retained, "{case}: {report:?}");
        // What is refused stays under the name that it had.
        let gone = !home.path().join("blobs").join(file).exists();
        assert_eq!(gone, refusals < PLANS_MAX, "{case}");
    }
}

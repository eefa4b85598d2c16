//! A manager whose catalog changes under the plan of a worker, as often as a test says.

#![expect(clippy::unwrap_used, reason = "a test ends with what goes wrong")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    pin::Pin,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_api::v1::{
    self, catalog_service_server as catalog, collection_service_server as collections,
    entry::Object, lease_service_server as leases, node_service_server as node,
};
use futures::{Stream, StreamExt as _, stream};
use tokio::{net::UnixListener, sync::watch, task::JoinSet};
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status, transport::Server};

/// More plans are not made of one slice.
const PLANS_MAX: usize = 3;
const DEADLINE: Duration = Duration::from_secs(30);

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

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

fn none<T>() -> Answer<T> {
    Err(Status::unimplemented("it is not asked for this"))
}

#[tonic::async_trait]
impl catalog::CatalogService for Fickle {
    type WatchCatalogStream = Events<v1::WatchCatalogResponse>;
    type WatchEndpointsStream = Events<v1::WatchEndpointsResponse>;

    async fn list_entries(
        &self,
        request: Request<v1::ListEntriesRequest>,
    ) -> Answer<v1::ListEntriesResponse> {
        let artifacts = request.into_inner().kind() == v1::EntryKind::Artifact;
        let artifact = v1::Artifact {
            id: "artifact/a".into(),
            ..v1::Artifact::default()
        };
        let entry = v1::Entry {
            revision: 1,
            object: Some(Object::Artifact(artifact)),
        };
        let mut seen = self.seen.lock().expect("no holder panics");
        // The pages after the first are of a later revision.
        seen.revision += 1;
        Ok(Response::new(v1::ListEntriesResponse {
            entries: artifacts.then_some(entry).into_iter().collect(),
            next_page_token: String::new(),
            revision: if artifacts { 100 } else { 200 } + seen.revision,
        }))
    }

    async fn watch_catalog(
        &self,
        _request: Request<v1::WatchCatalogRequest>,
    ) -> Answer<Self::WatchCatalogStream> {
        Ok(Response::new(Box::pin(stream::pending())))
    }

    async fn put_entry(
        &self,
        _request: Request<v1::PutEntryRequest>,
    ) -> Answer<v1::PutEntryResponse> {
        none()
    }

    async fn delete_entry(
        &self,
        _request: Request<v1::DeleteEntryRequest>,
    ) -> Answer<v1::DeleteEntryResponse> {
        none()
    }

    async fn list_endpoints(
        &self,
        _request: Request<v1::ListEndpointsRequest>,
    ) -> Answer<v1::ListEndpointsResponse> {
        none()
    }

    async fn watch_endpoints(
        &self,
        _request: Request<v1::WatchEndpointsRequest>,
    ) -> Answer<Self::WatchEndpointsStream> {
        none()
    }
}

#[tonic::async_trait]
impl node::NodeService for Fickle {
    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Answer<v1::GetStatusResponse> {
        Ok(Response::new(v1::GetStatusResponse {
            node_id: "node-1".into(),
            instance_id: "instance-1".into(),
            ..v1::GetStatusResponse::default()
        }))
    }

    async fn drain(&self, _request: Request<v1::DrainRequest>) -> Answer<v1::DrainResponse> {
        none()
    }

    async fn audit(&self, _request: Request<v1::AuditRequest>) -> Answer<v1::AuditResponse> {
        none()
    }
}

#[tonic::async_trait]
impl leases::LeaseService for Fickle {
    async fn acquire_work_lease(
        &self,
        request: Request<v1::AcquireWorkLeaseRequest>,
    ) -> Answer<v1::AcquireWorkLeaseResponse> {
        let request = request.into_inner();
        let lease = v1::WorkLease {
            name: request.name.clone(),
            holder: request.holder,
            token: 1,
            attributes: request.attributes,
            ..v1::WorkLease::default()
        };
        let mut seen = self.seen.lock().expect("no holder panics");
        seen.leases.insert(request.name, lease.clone());
        let lease = Some(lease);
        Ok(Response::new(v1::AcquireWorkLeaseResponse { lease }))
    }

    async fn renew_work_leases(
        &self,
        request: Request<v1::RenewWorkLeasesRequest>,
    ) -> Answer<v1::RenewWorkLeasesResponse> {
        let seen = self.seen.lock().expect("no holder panics");
        let renewed = request.into_inner().leases.into_iter();
        let renewed = renewed.filter_map(|it| seen.leases.get(&it.name).cloned());
        Ok(Response::new(v1::RenewWorkLeasesResponse {
            renewed: renewed.collect(),
            lost: vec![],
        }))
    }

    async fn release_work_leases(
        &self,
        _request: Request<v1::ReleaseWorkLeasesRequest>,
    ) -> Answer<v1::ReleaseWorkLeasesResponse> {
        none()
    }

    async fn list_work_leases(
        &self,
        _request: Request<v1::ListWorkLeasesRequest>,
    ) -> Answer<v1::ListWorkLeasesResponse> {
        let leases = self
            .seen
            .lock()
            .expect("no holder panics")
            .leases
            .values()
            .cloned()
            .collect();
        Ok(Response::new(v1::ListWorkLeasesResponse { leases }))
    }
}

#[tonic::async_trait]
impl collections::CollectionService for Fickle {
    type WatchCollectionsStream = Events<v1::WatchCollectionsResponse>;

    async fn watch_collections(
        &self,
        _request: Request<v1::WatchCollectionsRequest>,
    ) -> Answer<Self::WatchCollectionsStream> {
        let runs = WatchStream::new(self.run.subscribe());
        let runs = runs.map(|it| {
            let collection = Some(it);
            Ok(v1::WatchCollectionsResponse { collection })
        });
        Ok(Response::new(Box::pin(runs)))
    }

    async fn start_collection(
        &self,
        _request: Request<v1::StartCollectionRequest>,
    ) -> Answer<v1::StartCollectionResponse> {
        none()
    }

    async fn list_collections(
        &self,
        _request: Request<v1::ListCollectionsRequest>,
    ) -> Answer<v1::ListCollectionsResponse> {
        let collections = vec![self.run.borrow().clone()];
        Ok(Response::new(v1::ListCollectionsResponse { collections }))
    }

    async fn claim_deletions(
        &self,
        request: Request<v1::ClaimDeletionsRequest>,
    ) -> Answer<v1::ClaimDeletionsResponse> {
        let request = request.into_inner();
        let mut seen = self.seen.lock().expect("no holder panics");
        seen.claimed_by.push(request.catalog_revision);
        let refused = seen.refuses == Refuses::Claims && seen.refusals_left > 0;
        seen.refusals_left -= usize::from(refused);
        let claim = v1::DeletionClaim {
            token: if refused { 0 } else { 7 },
            ..v1::DeletionClaim::default()
        };
        Ok(Response::new(v1::ClaimDeletionsResponse {
            claims: vec![claim; request.objects.len()],
        }))
    }

    async fn commit_deletions(
        &self,
        request: Request<v1::CommitDeletionsRequest>,
    ) -> Answer<v1::CommitDeletionsResponse> {
        let mut seen = self.seen.lock().expect("no holder panics");
        let refused = seen.refuses == Refuses::Commits && seen.refusals_left > 0;
        seen.refusals_left -= usize::from(refused);
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
        Ok(Response::new(v1::CommitDeletionsResponse {
            outcomes: vec![outcome; request.into_inner().tokens.len()],
        }))
    }

    async fn release_deletions(
        &self,
        _request: Request<v1::ReleaseDeletionsRequest>,
    ) -> Answer<v1::ReleaseDeletionsResponse> {
        Ok(Response::new(v1::ReleaseDeletionsResponse::default()))
    }

    async fn report_slice(
        &self,
        request: Request<v1::ReportSliceRequest>,
    ) -> Answer<v1::ReportSliceResponse> {
        let report = request.into_inner();
        self.reports.send_modify(|it| it.push(report));
        Ok(Response::new(v1::ReportSliceResponse {}))
    }

    async fn list_holders(
        &self,
        _request: Request<v1::ListHoldersRequest>,
    ) -> Answer<v1::ListHoldersResponse> {
        none()
    }
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has a worker carry a run out over one file; returns the revisions of the claims, and the report of the file's slice.
async fn carried_out(
    file: &str,
    refuses: Refuses,
    refusals: usize,
    directory: &Path,
) -> (Vec<u64>, v1::ReportSliceRequest) {
    let (manager, socket) = (directory.join("manager"), directory.join("gc"));
    let blobs = directory.join("blobs");
    fs::create_dir(&blobs).unwrap();
    fs::File::create(blobs.join(file))
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    let seen = Arc::new(Mutex::new(Seen {
        refuses,
        refusals_left: refusals,
        revision: 0,
        claimed_by: vec![],
        leases: BTreeMap::new(),
    }));
    let run = v1::Collection {
        id: 1,
        kind: v1::CollectionKind::Blobs.into(),
        ..v1::Collection::default()
    };
    let fickle = Fickle {
        seen: seen.clone(),
        run: watch::Sender::new(run),
        reports: watch::Sender::default(),
    };
    let mut reports = fickle.reports.subscribe();
    let listener = UnixListenerStream::new(UnixListener::bind(&manager).unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(
        Server::builder()
            .add_service(catalog::CatalogServiceServer::new(fickle.clone()))
            .add_service(collections::CollectionServiceServer::new(fickle.clone()))
            .add_service(node::NodeServiceServer::new(fickle.clone()))
            .add_service(leases::LeaseServiceServer::new(fickle))
            .serve_with_incoming(listener),
    );
    let set = |key: &str, value: &str| ["--set".to_owned(), format!("{key}={value}")];
    let worker = Command::new(env!("CARGO_BIN_EXE_image-gc"))
        .args(set("manager_address", manager.to_str().unwrap()))
        .args(set("socket", socket.to_str().unwrap()))
        .args(set("blob_dir", blobs.to_str().unwrap()))
        .args(set("collect_images", "false"))
        .args(set("blob_age", "0s"))
        .args(set("tombstone_grace", "0s"))
        .spawn();
    let _worker = Killed(worker.unwrap());
    let all = reports.wait_for(|it| it.iter().any(|it| it.objects_total > 0));
    let all = tokio::time::timeout(DEADLINE, all).await;
    let all = all.expect("the slice is reported").unwrap().clone();
    let report = all.into_iter().find(|it| it.objects_total > 0).unwrap();
    let claimed_by = seen.lock().expect("no holder panics").claimed_by.clone();
    (claimed_by, report)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_changed_catalog_refuses_is_planned_anew_and_is_no_failure() {
    let blob = format!("sha256:{:064x}", 1);
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

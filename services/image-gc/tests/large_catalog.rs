//! A catalog that is far larger than what a worker may keep of it.

use std::{fs, pin::Pin, process::Command, time::Duration};

use berth_api::v1::{
    self, catalog_service_server as catalog, collection_service_server as collections,
    entry::Object, image_gc_service_client::ImageGcServiceClient, image_service_server as images,
    lease_service_server as leases, node_service_server as node,
};
use futures::{Stream, stream};
use tokio::{net::UnixListener, task::JoinSet};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

const ARTIFACTS: usize = 100_000;
const BLOBS_EACH: usize = 10;
/// Blobs that are there; every second one is needed by an artifact.
const HERE: usize = 1000;
/// The names of the blobs alone are 70 MiB in the catalog.
const GROWTH_MAX: u64 = 32 << 20;

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A manager with a catalog that is made up page by page, and nothing else.
#[derive(Clone, Copy, Debug)]
struct Librarian;

fn none<T>() -> Answer<T> {
    Err(Status::unimplemented("it is not asked for this"))
}

fn quiet<T: Send + 'static>() -> Answer<Events<T>> {
    Ok(Response::new(Box::pin(stream::pending())))
}

fn digest(number: usize) -> String {
    format!("sha256:{number:064x}")
}

fn artifact(number: usize) -> v1::Entry {
    // The needed ones are spread over the catalog.
    let first = number * BLOBS_EACH;
    let mut blobs: Vec<_> = (first..first + BLOBS_EACH)
        .map(|it| digest(HERE + it))
        .collect();
    let step = ARTIFACTS / HERE;
    if number.is_multiple_of(step) && (number / step).is_multiple_of(2) {
        blobs[0] = digest(number / step);
    }
    let artifact = v1::Artifact {
        id: format!("artifact/{number}"),
        blobs,
        ..v1::Artifact::default()
    };
    v1::Entry {
        revision: 1,
        object: Some(Object::Artifact(artifact)),
    }
}

#[tonic::async_trait]
impl catalog::CatalogService for Librarian {
    type WatchCatalogStream = Events<v1::WatchCatalogResponse>;
    type WatchEndpointsStream = Events<v1::WatchEndpointsResponse>;

    async fn list_entries(
        &self,
        request: Request<v1::ListEntriesRequest>,
    ) -> Answer<v1::ListEntriesResponse> {
        let request = request.into_inner();
        let first: usize = request.page_token.parse().unwrap_or(0);
        let artifacts = request.kind() == v1::EntryKind::Artifact;
        let all = if artifacts { ARTIFACTS } else { 0 };
        let end = all.min(first + request.page_size as usize);
        Ok(Response::new(v1::ListEntriesResponse {
            entries: (first..end).map(artifact).collect(),
            next_page_token: match end < all {
                true => end.to_string(),
                false => String::new(),
            },
            revision: 1,
        }))
    }

    async fn watch_catalog(
        &self,
        _request: Request<v1::WatchCatalogRequest>,
    ) -> Answer<Self::WatchCatalogStream> {
        quiet()
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
impl node::NodeService for Librarian {
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
impl leases::LeaseService for Librarian {
    async fn acquire_work_lease(
        &self,
        request: Request<v1::AcquireWorkLeaseRequest>,
    ) -> Answer<v1::AcquireWorkLeaseResponse> {
        let lease = v1::WorkLease {
            name: request.into_inner().name,
            token: 1,
            ..v1::WorkLease::default()
        };
        let lease = Some(lease);
        Ok(Response::new(v1::AcquireWorkLeaseResponse { lease }))
    }

    async fn renew_work_leases(
        &self,
        request: Request<v1::RenewWorkLeasesRequest>,
    ) -> Answer<v1::RenewWorkLeasesResponse> {
        let renewed = request.into_inner().leases.into_iter();
        let renewed = renewed.map(|it| v1::WorkLease {
            name: it.name,
            ..v1::WorkLease::default()
        });
        Ok(Response::new(v1::RenewWorkLeasesResponse {
            renewed: renewed.collect(),
            lost: vec![],
        }))
    }

    async fn release_work_leases(
        &self,
        _request: Request<v1::ReleaseWorkLeasesRequest>,
    ) -> Answer<v1::ReleaseWorkLeasesResponse> {
        Ok(Response::new(v1::ReleaseWorkLeasesResponse {}))
    }

    async fn list_work_leases(
        &self,
        _request: Request<v1::ListWorkLeasesRequest>,
    ) -> Answer<v1::ListWorkLeasesResponse> {
        Ok(Response::new(v1::ListWorkLeasesResponse::default()))
    }
}

#[tonic::async_trait]
impl collections::CollectionService for Librarian {
    type WatchCollectionsStream = Events<v1::WatchCollectionsResponse>;

    async fn watch_collections(
        &self,
        _request: Request<v1::WatchCollectionsRequest>,
    ) -> Answer<Self::WatchCollectionsStream> {
        quiet()
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
        none()
    }

    async fn claim_deletions(
        &self,
        _request: Request<v1::ClaimDeletionsRequest>,
    ) -> Answer<v1::ClaimDeletionsResponse> {
        none()
    }

    async fn commit_deletions(
        &self,
        _request: Request<v1::CommitDeletionsRequest>,
    ) -> Answer<v1::CommitDeletionsResponse> {
        none()
    }

    async fn release_deletions(
        &self,
        _request: Request<v1::ReleaseDeletionsRequest>,
    ) -> Answer<v1::ReleaseDeletionsResponse> {
        none()
    }

    async fn report_slice(
        &self,
        _request: Request<v1::ReportSliceRequest>,
    ) -> Answer<v1::ReportSliceResponse> {
        none()
    }

    async fn list_holders(
        &self,
        _request: Request<v1::ListHoldersRequest>,
    ) -> Answer<v1::ListHoldersResponse> {
        none()
    }
}

#[tonic::async_trait]
impl images::ImageService for Librarian {
    type PullImageStream = Events<v1::PullImageResponse>;

    async fn list_images(
        &self,
        _request: Request<v1::ListImagesRequest>,
    ) -> Answer<v1::ListImagesResponse> {
        let image = |name: String| v1::Image {
            name,
            digest: digest(0),
            ..v1::Image::default()
        };
        let images = ["artifact/7", "docker.io/x:1"]
            .map(|it| image(it.replace("artifact/", "cluster.local:5000/shop:")));
        let images = images.into();
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn import_image(
        &self,
        _request: Request<Streaming<v1::ImportImageRequest>>,
    ) -> Answer<v1::ImportImageResponse> {
        none()
    }

    async fn pull_image(
        &self,
        _request: Request<v1::PullImageRequest>,
    ) -> Answer<Self::PullImageStream> {
        none()
    }

    async fn remove_image(
        &self,
        _request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        none()
    }

    async fn pin_image(
        &self,
        _request: Request<v1::PinImageRequest>,
    ) -> Answer<v1::PinImageResponse> {
        none()
    }

    async fn unpin_image(
        &self,
        _request: Request<v1::UnpinImageRequest>,
    ) -> Answer<v1::UnpinImageResponse> {
        none()
    }

    type ExportImageStream = Events<v1::ExportImageResponse>;

    async fn export_image(
        &self,
        _request: Request<v1::ExportImageRequest>,
    ) -> Answer<Self::ExportImageStream> {
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

#[tokio::test(flavor = "multi_thread")]
async fn of_a_catalog_of_100000_artifacts_only_what_is_here_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, socket) = (dir.path().join("manager"), dir.path().join("gc"));
    let blobs = dir.path().join("blobs");
    fs::create_dir(&blobs).unwrap();
    for number in 0..HERE {
        // Larger than any manifest, so that nobody looks into it.
        let file = fs::File::create(blobs.join(digest(number))).unwrap();
        file.set_len(5 << 20).unwrap();
    }
    let listener = UnixListenerStream::new(UnixListener::bind(&manager).unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(
        Server::builder()
            .add_service(catalog::CatalogServiceServer::new(Librarian))
            .add_service(collections::CollectionServiceServer::new(Librarian))
            .add_service(images::ImageServiceServer::new(Librarian))
            .add_service(node::NodeServiceServer::new(Librarian))
            .add_service(leases::LeaseServiceServer::new(Librarian))
            .serve_with_incoming(listener),
    );
    let set = |key: &str, value: &str| ["--set".to_owned(), format!("{key}={value}")];
    let worker = Command::new(env!("CARGO_BIN_EXE_image-gc"))
        .args(set("manager_address", manager.to_str().unwrap()))
        .args(set("socket", socket.to_str().unwrap()))
        .args(set("blob_dir", blobs.to_str().unwrap()))
        .args(set("blob_age", "0s"))
        .spawn();
    let _worker = Killed(worker.unwrap());

    let address = format!("unix:{}", socket.display());
    let ready = async {
        loop {
            if let Ok(channel) = berth_api::connect(&address).await {
                let mut client = ImageGcServiceClient::new(channel);
                let status = client.get_image_gc_status(v1::GetImageGcStatusRequest {});
                let status = status.await.unwrap().into_inner();
                if status.leases.is_empty() && status.manager_reachable {
                    return (client, status.memory_rss_bytes);
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ready = tokio::time::timeout(Duration::from_secs(20), ready).await;
    let (mut client, before) = ready.expect("the worker is there");
    let request = v1::ImageGcServicePlanRequest::default();
    let mut answers = client.plan(request).await.unwrap().into_inner();
    let (mut stay, mut go, mut images) = (0, 0, 0);
    while let Some(it) = answers.message().await.unwrap() {
        match (it.kind(), it.verdict()) {
            (v1::CollectionKind::Images, v1::GcVerdict::Keep) => images += 1,
            (v1::CollectionKind::Blobs, v1::GcVerdict::Keep) => stay += 1,
            (v1::CollectionKind::Blobs, v1::GcVerdict::Delete) => go += 1,
            _ => panic!("{it:?}"),
        }
    }
    assert_eq!((stay, go, images), (HERE / 2, HERE / 2, 2));
    let status = client.get_image_gc_status(v1::GetImageGcStatusRequest {});
    let after = status.await.unwrap().into_inner().memory_rss_bytes;
    let growth = after.saturating_sub(before);
    assert!(growth < GROWTH_MAX, "{before} bytes, then {after}");
}

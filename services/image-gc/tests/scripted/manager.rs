//! The services of a manager that a worker asks; what a test does not script is the least that goes.

use std::pin::Pin;

use berth_api::v1::{
    self, catalog_service_server as catalog, collection_service_server as collections,
    image_service_server as images, lease_service_server as leases, node_service_server as node,
};
use futures::{Stream, stream};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

type Answer<T> = Result<Response<T>, Status>;
pub(crate) type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a test says.
pub(crate) trait Script: Clone + Send + Sync + 'static {
    fn entries(&self, request: v1::ListEntriesRequest) -> v1::ListEntriesResponse;

    fn images(&self) -> Vec<v1::Image> {
        vec![]
    }

    fn acquire(&self, request: v1::AcquireWorkLeaseRequest) -> v1::WorkLease {
        v1::WorkLease {
            name: request.name,
            token: 1,
            ..v1::WorkLease::default()
        }
    }

    fn leases(&self) -> Vec<v1::WorkLease> {
        vec![]
    }

    fn latest_runs(&self) -> Vec<v1::Collection> {
        vec![]
    }

    fn runs(&self) -> Events<v1::WatchCollectionsResponse> {
        Box::pin(stream::pending())
    }

    fn claim(&self, _request: v1::ClaimDeletionsRequest) -> Vec<v1::DeletionClaim> {
        vec![]
    }

    fn commit(&self, _request: v1::CommitDeletionsRequest) -> Vec<v1::DeletionOutcome> {
        vec![]
    }

    fn release(&self, _request: v1::ReleaseDeletionsRequest) {}

    fn report(&self, _request: v1::ReportSliceRequest) {}
}

#[derive(Clone)]
pub(crate) struct Scripted<S>(S);

impl<S: Script> Scripted<S> {
    pub(crate) async fn serve(
        script: S,
        listener: UnixListener,
    ) -> Result<(), tonic::transport::Error> {
        let it = Self(script);
        Server::builder()
            .add_service(catalog::CatalogServiceServer::new(it.clone()))
            .add_service(collections::CollectionServiceServer::new(it.clone()))
            .add_service(images::ImageServiceServer::new(it.clone()))
            .add_service(node::NodeServiceServer::new(it.clone()))
            .add_service(leases::LeaseServiceServer::new(it))
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
    }
}

fn none<T>() -> Answer<T> {
    Err(Status::unimplemented("it is not asked for this"))
}

#[tonic::async_trait]
impl<S: Script> catalog::CatalogService for Scripted<S> {
    type WatchCatalogStream = Events<v1::WatchCatalogResponse>;
    type WatchEndpointsStream = Events<v1::WatchEndpointsResponse>;

    async fn list_entries(
        &self,
        request: Request<v1::ListEntriesRequest>,
    ) -> Answer<v1::ListEntriesResponse> {
        Ok(Response::new(self.0.entries(request.into_inner())))
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
impl<S: Script> node::NodeService for Scripted<S> {
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
impl<S: Script> leases::LeaseService for Scripted<S> {
    async fn acquire_work_lease(
        &self,
        request: Request<v1::AcquireWorkLeaseRequest>,
    ) -> Answer<v1::AcquireWorkLeaseResponse> {
        let lease = Some(self.0.acquire(request.into_inner()));
        Ok(Response::new(v1::AcquireWorkLeaseResponse { lease }))
    }

    async fn renew_work_leases(
        &self,
        request: Request<v1::RenewWorkLeasesRequest>,
    ) -> Answer<v1::RenewWorkLeasesResponse> {
        let held = self.0.leases();
        let mut answer = v1::RenewWorkLeasesResponse::default();
        for asked in request.into_inner().leases {
            match held.iter().find(|it| it.name == asked.name) {
                Some(known) if known.token != asked.token => answer.lost.push(asked.name),
                Some(known) => answer.renewed.push(known.clone()),
                None => answer.renewed.push(v1::WorkLease {
                    name: asked.name,
                    ..v1::WorkLease::default()
                }),
            }
        }
        Ok(Response::new(answer))
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
        let leases = self.0.leases();
        Ok(Response::new(v1::ListWorkLeasesResponse { leases }))
    }
}

#[tonic::async_trait]
impl<S: Script> collections::CollectionService for Scripted<S> {
    type WatchCollectionsStream = Events<v1::WatchCollectionsResponse>;

    async fn watch_collections(
        &self,
        _request: Request<v1::WatchCollectionsRequest>,
    ) -> Answer<Self::WatchCollectionsStream> {
        Ok(Response::new(self.0.runs()))
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
        let collections = self.0.latest_runs();
        Ok(Response::new(v1::ListCollectionsResponse { collections }))
    }

    async fn claim_deletions(
        &self,
        request: Request<v1::ClaimDeletionsRequest>,
    ) -> Answer<v1::ClaimDeletionsResponse> {
        let claims = self.0.claim(request.into_inner());
        Ok(Response::new(v1::ClaimDeletionsResponse { claims }))
    }

    async fn commit_deletions(
        &self,
        request: Request<v1::CommitDeletionsRequest>,
    ) -> Answer<v1::CommitDeletionsResponse> {
        let outcomes = self.0.commit(request.into_inner());
        Ok(Response::new(v1::CommitDeletionsResponse { outcomes }))
    }

    async fn release_deletions(
        &self,
        request: Request<v1::ReleaseDeletionsRequest>,
    ) -> Answer<v1::ReleaseDeletionsResponse> {
        self.0.release(request.into_inner());
        Ok(Response::new(v1::ReleaseDeletionsResponse::default()))
    }

    async fn report_slice(
        &self,
        request: Request<v1::ReportSliceRequest>,
    ) -> Answer<v1::ReportSliceResponse> {
        self.0.report(request.into_inner());
        Ok(Response::new(v1::ReportSliceResponse {}))
    }

    async fn list_holders(
        &self,
        _request: Request<v1::ListHoldersRequest>,
    ) -> Answer<v1::ListHoldersResponse> {
        none()
    }
}

#[tonic::async_trait]
impl<S: Script> images::ImageService for Scripted<S> {
    type PullImageStream = Events<v1::PullImageResponse>;

    async fn list_images(
        &self,
        _request: Request<v1::ListImagesRequest>,
    ) -> Answer<v1::ListImagesResponse> {
        let images = self.0.images();
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

//! `CollectionService`.

use std::pin::Pin;

use berth_api::{
    collection::{
        claim_tokens_from_proto, collection_cause_from_proto, collection_kind_from_proto,
        collection_to_proto, deletables_from_proto, holder_to_proto, lease_ref_from_proto,
        optional_kind_from_proto, slice_from_proto, slice_report_from_proto,
    },
    v1::{self, collection_service_server::CollectionService},
};
use berth_domain::{Failure, ImageRef, collection::CollectionKind, image_ref::is_digest};
use berth_platform::{Images, Network, Runtime};
use berth_store::CollectionView;
use futures::StreamExt as _;
use tokio_stream::{
    Stream,
    wrappers::{BroadcastStream, errors::BroadcastStreamRecvError},
};
use tonic::{Request, Response, Status};

use super::{refuse, watches::too_slow};
use crate::{
    collecting::{Answer, Outcome},
    failures::store_failure,
    registry::Registry,
};

pub(crate) struct CollectionRpc<R, N> {
    pub(crate) registry: Registry<R, N>,
}

impl<R: Runtime + Images, N: Network> CollectionRpc<R, N> {
    /// Newest first.
    async fn latest(&self, kind: Option<CollectionKind>) -> Result<Vec<v1::Collection>, Status> {
        let all = self.registry.store().collections().await;
        let all = all.map_err(|it| refuse(store_failure(it)))?.into_iter();
        let wanted = all.filter(|it| is_of(it, kind));
        Ok(wanted.map(render).collect())
    }
}

fn is_of(it: &CollectionView, kind: Option<CollectionKind>) -> bool {
    kind.is_none_or(|kind| kind == it.collection.kind)
}

fn render(it: CollectionView) -> v1::Collection {
    collection_to_proto(it.collection, it.deleted)
}

#[tonic::async_trait]
impl<R: Runtime + Images, N: Network> CollectionService for CollectionRpc<R, N> {
    async fn start_collection(
        &self,
        request: Request<v1::StartCollectionRequest>,
    ) -> Result<Response<v1::StartCollectionResponse>, Status> {
        let request = request.into_inner();
        let kind = collection_kind_from_proto(request.kind).map_err(refuse)?;
        let cause = collection_cause_from_proto(request.cause).map_err(refuse)?;
        let goal = request.goal_bytes;
        let started = self.registry.start_collection(kind, cause, goal).await;
        let (view, joined) = started.map_err(refuse)?;
        Ok(Response::new(v1::StartCollectionResponse {
            collection: Some(render(view)),
            joined,
        }))
    }

    type WatchCollectionsStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchCollectionsResponse, Status>> + Send>>;

    async fn watch_collections(
        &self,
        request: Request<v1::WatchCollectionsRequest>,
    ) -> Result<Response<Self::WatchCollectionsStream>, Status> {
        let kind = optional_kind_from_proto(request.into_inner().kind).map_err(refuse)?;
        let changes = BroadcastStream::new(self.registry.collecting().follow_runs());
        let latest = self.latest(kind).await?.into_iter().map(Some);
        let first = latest.chain([None]);
        let first = first.map(|collection| Ok(v1::WatchCollectionsResponse { collection }));
        let changes = changes.filter_map(move |change| {
            let change = match change {
                Ok(view) if is_of(&view, kind) => Some(Ok(v1::WatchCollectionsResponse {
                    collection: Some(render(view)),
                })),
                Ok(_) => None,
                Err(BroadcastStreamRecvError::Lagged(_)) => Some(Err(too_slow())),
            };
            std::future::ready(change)
        });
        // A reader that was told to begin anew is told nothing else.
        let changes = changes.scan(false, |over, change| {
            let item = (!*over).then_some(change);
            *over = item.as_ref().is_some_and(Result::is_err);
            std::future::ready(item)
        });
        let stream = futures::stream::iter(first).chain(changes);
        let stream = stream.take_until(self.registry.stopping());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn list_collections(
        &self,
        request: Request<v1::ListCollectionsRequest>,
    ) -> Result<Response<v1::ListCollectionsResponse>, Status> {
        let kind = optional_kind_from_proto(request.into_inner().kind).map_err(refuse)?;
        let collections = self.latest(kind).await?;
        Ok(Response::new(v1::ListCollectionsResponse { collections }))
    }

    async fn claim_deletions(
        &self,
        request: Request<v1::ClaimDeletionsRequest>,
    ) -> Result<Response<v1::ClaimDeletionsResponse>, Status> {
        let request = request.into_inner();
        let lease = lease_ref_from_proto(request.lease).map_err(refuse)?;
        let objects = deletables_from_proto(request.objects).map_err(refuse)?;
        let run = request.collection;
        let claimed = self
            .registry
            .claim_deletions(run, lease, objects, request.catalog_revision)
            .await;
        let claims = claimed.map_err(refuse)?.into_iter().map(|it| match it {
            Answer::Granted { token, expires_at } => v1::DeletionClaim {
                token,
                expires_at: Some(expires_at.into()),
                holders: vec![],
            },
            Answer::Held(holders) => v1::DeletionClaim {
                token: 0,
                expires_at: None,
                holders: holders.into_iter().map(holder_to_proto).collect(),
            },
        });
        let claims = claims.collect();
        Ok(Response::new(v1::ClaimDeletionsResponse { claims }))
    }

    async fn commit_deletions(
        &self,
        request: Request<v1::CommitDeletionsRequest>,
    ) -> Result<Response<v1::CommitDeletionsResponse>, Status> {
        let request = request.into_inner();
        let lease = lease_ref_from_proto(request.lease).map_err(refuse)?;
        let tokens = claim_tokens_from_proto(request.tokens).map_err(refuse)?;
        if tokens.is_empty() {
            return Err(refuse(Failure::invalid("tokens", "must be at least one")));
        }
        let outcomes = self.registry.commit_deletions(lease, tokens).await;
        let outcomes = outcomes.map_err(refuse)?.into_iter().map(|it| {
            let mut outcome = v1::DeletionOutcome::default();
            match it {
                Outcome::Committed => outcome.committed = true,
                Outcome::Held(holders) => {
                    outcome.problem = "something holds it by now".to_owned();
                    outcome.holders = holders.into_iter().map(holder_to_proto).collect();
                }
                Outcome::Failed(problem) => outcome.problem = problem,
            }
            outcome
        });
        let outcomes = outcomes.collect();
        Ok(Response::new(v1::CommitDeletionsResponse { outcomes }))
    }

    async fn release_deletions(
        &self,
        request: Request<v1::ReleaseDeletionsRequest>,
    ) -> Result<Response<v1::ReleaseDeletionsResponse>, Status> {
        let tokens = claim_tokens_from_proto(request.into_inner().tokens).map_err(refuse)?;
        let lost = self.registry.release_claims(&tokens).await;
        let lost = lost.map_err(refuse)?;
        Ok(Response::new(v1::ReleaseDeletionsResponse { lost }))
    }

    async fn report_slice(
        &self,
        request: Request<v1::ReportSliceRequest>,
    ) -> Result<Response<v1::ReportSliceResponse>, Status> {
        let mut request = request.into_inner();
        let lease = lease_ref_from_proto(request.lease.take()).map_err(refuse)?;
        let slice = slice_from_proto(request.slice).map_err(refuse)?;
        let run = request.collection;
        let report = slice_report_from_proto(request).map_err(refuse)?;
        let reported = self.registry.report_slice(run, &lease, slice, report).await;
        reported.map_err(refuse)?;
        Ok(Response::new(v1::ReportSliceResponse {}))
    }

    async fn list_holders(
        &self,
        request: Request<v1::ListHoldersRequest>,
    ) -> Result<Response<v1::ListHoldersResponse>, Status> {
        let v1::ListHoldersRequest { image, digest } = request.into_inner();
        let (digest, holders) = if image.is_empty() {
            if !is_digest(&digest) {
                let problem = "must be `sha256:` and 64 hexadecimal digits in lower case";
                return Err(refuse(Failure::invalid("digest", problem)));
            }
            let holders = self.registry.holders_of_blob(&digest).await;
            (digest, holders.map_err(refuse)?)
        } else {
            let image = ImageRef::parse(&image);
            let image = image.map_err(|it| refuse(Failure::invalid("image", it)))?;
            let found = self.registry.holders_of_image(&image).await;
            found.map_err(refuse)?
        };
        Ok(Response::new(v1::ListHoldersResponse {
            digest,
            holders: holders.into_iter().map(holder_to_proto).collect(),
        }))
    }
}

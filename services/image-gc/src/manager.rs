//! The calls to the manager, each within a time.

use std::time::Duration;

use berth_api::{
    Target,
    v1::{
        self, catalog_service_client::CatalogServiceClient,
        collection_service_client::CollectionServiceClient,
        image_service_client::ImageServiceClient, lease_service_client::LeaseServiceClient,
        node_service_client::NodeServiceClient,
    },
};
use berth_domain::Reason;
use berth_plugin::Seat;
use tonic::{Response, Status, transport::Channel};
use tonic_types::StatusExt as _;

/// A manager that does not answer for so long is away.
const LIMIT: Duration = Duration::from_secs(30);
/// A claim or a commit of many images waits for the runtime, and each deletion takes it a while.
const LIMIT_OF_DELETIONS: Duration = Duration::from_secs(300);
/// A page of the catalog, and the list of the images of a node with thousands.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A connection.
#[derive(Clone, Debug)]
pub(crate) struct Manager(Channel);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("no `manager_address` is configured")]
    Nowhere,
    #[error("the manager is not reachable")]
    Connect(#[from] berth_api::ConnectError),
    #[error("{}", .0.message())]
    Call(Box<Status>),
    #[error("the manager has ended a stream")]
    Ended,
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

impl Manager {
    pub(crate) async fn connect(target: &Target) -> Result<Self, Broken> {
        if target.address.is_empty() {
            return Err(Broken::Nowhere);
        }
        Ok(Self(target.connect().await?))
    }

    pub(crate) fn leases(&self) -> LeaseServiceClient<Channel> {
        LeaseServiceClient::new(self.0.clone())
    }

    /// Gives back what the workers held that had this seat before.
    pub(crate) async fn end_former_leases(&self, prefix: &str, seat: &Seat) -> Result<(), Status> {
        berth_plugin::end_former_leases(self.leases(), prefix, seat).await
    }

    pub(crate) fn collections(&self) -> CollectionServiceClient<Channel> {
        let client = CollectionServiceClient::new(self.0.clone());
        client.max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn images(&self) -> ImageServiceClient<Channel> {
        let client = ImageServiceClient::new(self.0.clone());
        client.max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn catalog(&self) -> CatalogServiceClient<Channel> {
        let client = CatalogServiceClient::new(self.0.clone());
        client.max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn node(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.0.clone())
    }

    /// Begins a run, or joins the one that is under way.
    pub(crate) async fn start(
        &self,
        kind: v1::CollectionKind,
        cause: v1::CollectionCause,
        goal_bytes: u64,
    ) -> Result<v1::Collection, Status> {
        let request = v1::StartCollectionRequest {
            kind: kind.into(),
            cause: cause.into(),
            goal_bytes,
        };
        let answer = within(self.collections().start_collection(request)).await?;
        answer
            .collection
            .ok_or_else(|| Status::internal("the manager's answer has no collection"))
    }
}

/// Waits for an answer as long as a manager may take that is there.
pub(crate) async fn within<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    within_limit(LIMIT, call).await
}

/// As [`within`], for the calls that claim and commit deletions.
pub(crate) async fn within_deletions<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    within_limit(LIMIT_OF_DELETIONS, call).await
}

async fn within_limit<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::unavailable("the manager does not answer")),
    }
}

pub(crate) fn is(status: &Status, reason: Reason) -> bool {
    let details = status.get_error_details();
    let named = details.error_info().map(|it| it.reason.as_str());
    named == Some(reason.as_str())
}

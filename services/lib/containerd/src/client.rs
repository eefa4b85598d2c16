//! The connection to containerd: its services with the headers that they ask for, and its errors told apart.

use std::{future::Future, path::Path, time::Duration};

use berth_platform::{ImageError, RuntimeError};
use containerd_client::services::v1::{
    containers_client::ContainersClient, content_client::ContentClient, diff_client::DiffClient,
    events_client::EventsClient, images_client::ImagesClient, leases_client::LeasesClient,
    namespaces_client::NamespacesClient, snapshots::snapshots_client::SnapshotsClient,
    tasks_client::TasksClient, version_client::VersionClient,
};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::settings::SetUpError;

const ANSWER_MAX: usize = 64 << 20;
/// Unpacking a layer takes as long as the layer is large.
pub(crate) const LONG_CALL: Duration = Duration::from_secs(15 * 60);

pub(crate) type Service = InterceptedService<Channel, Headers>;

/// What containerd wants to know with every call.
#[derive(Clone, Debug)]
pub(crate) struct Headers {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request
                .metadata_mut()
                .insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

/// A connection that is made anew whenever containerd is back. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    headers: Headers,
    timeout: Duration,
}

/// Why a call did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{operation}")]
pub(crate) struct CallError {
    pub(crate) operation: &'static str,
    #[source]
    pub(crate) status: Status,
}

macro_rules! services {
    ($($name:ident: $client:ident),* $(,)?) => {
        $(pub(crate) fn $name(&self) -> $client<Service> {
            $client::with_interceptor(self.channel.clone(), self.headers.clone())
                .max_decoding_message_size(ANSWER_MAX)
        })*
    };
}

impl Client {
    pub(crate) fn new(
        address: &Path,
        namespace: &str,
        timeout: Duration,
    ) -> Result<Self, SetUpError> {
        let address = format!("unix:{}", address.display());
        let endpoint = Endpoint::try_from(address.clone());
        let endpoint = endpoint.map_err(|_| SetUpError::Address { address })?;
        let invalid = |_| SetUpError::Namespace {
            namespace: namespace.to_owned(),
        };
        let namespace = namespace.parse().map_err(invalid)?;
        Ok(Self {
            channel: endpoint.connect_lazy(),
            headers: Headers {
                namespace,
                lease: None,
            },
            timeout,
        })
    }

    /// The same connection, with what its calls make held by a lease.
    pub(crate) fn with_lease(&self, lease: &str) -> Self {
        // Names of leases are of our own making.
        let lease = lease.parse().ok();
        Self {
            headers: Headers {
                lease,
                ..self.headers.clone()
            },
            ..self.clone()
        }
    }

    /// The lease of these calls.
    pub(crate) fn lease(&self) -> Option<&str> {
        self.headers.lease.as_ref().and_then(|it| it.to_str().ok())
    }

    services! {
        containers: ContainersClient,
        content: ContentClient,
        diff: DiffClient,
        events: EventsClient,
        images: ImagesClient,
        leases: LeasesClient,
        namespaces: NamespacesClient,
        snapshots: SnapshotsClient,
        tasks: TasksClient,
        version: VersionClient,
    }

    /// Waits for the answer as long as calls may take.
    pub(crate) async fn call<T>(
        &self,
        operation: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        within(self.timeout, operation, answer).await
    }

    /// Waits for the answer of a call whose work is as large as an image.
    pub(crate) async fn long_call<T>(
        &self,
        operation: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        within(LONG_CALL, operation, answer).await
    }
}

pub(crate) async fn within<T>(
    limit: Duration,
    operation: &'static str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(CallError { operation, status }),
        Err(_) => {
            let text = format!("no answer within {limit:?}");
            Err(CallError {
                operation,
                status: Status::unavailable(text),
            })
        }
    }
}

impl CallError {
    pub(crate) fn is(&self, code: Code) -> bool {
        self.status.code() == code
    }

    /// Whether containerd may not have got the call, or not have finished it.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(
            self.status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
        ) || self.status.message().contains("transport error")
    }
}

/// What a call comes to when "not found" is an answer.
pub(crate) fn found<T>(result: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match result {
        Ok(it) => Ok(Some(it)),
        Err(error) if error.is(Code::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a call comes to when something that is there already is as good; `None` for that.
pub(crate) fn made<T>(result: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match result {
        Ok(it) => Ok(Some(it)),
        Err(error) if error.is(Code::AlreadyExists) => Ok(None),
        Err(error) => Err(error),
    }
}

impl From<CallError> for RuntimeError {
    fn from(error: CallError) -> Self {
        let operation = error.operation;
        if error.is_unreachable() {
            Self::Unreachable {
                operation,
                source: error.status.into(),
            }
        } else {
            Self::Refused {
                operation,
                message: error.status.message().to_owned(),
            }
        }
    }
}

impl From<CallError> for ImageError {
    fn from(error: CallError) -> Self {
        let operation = error.operation;
        if error.is_unreachable() {
            Self::Unreachable {
                operation,
                source: error.status.into(),
            }
        } else {
            Self::Refused {
                operation,
                message: error.status.message().to_owned(),
            }
        }
    }
}

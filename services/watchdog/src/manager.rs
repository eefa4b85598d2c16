//! The calls to the manager, each within a time.

use std::time::Duration;

use berth_api::v1::{
    self, lease_service_client::LeaseServiceClient, node_service_client::NodeServiceClient,
    orphan_service_client::OrphanServiceClient,
};
use berth_domain::{Failure, Reason};
use berth_plugin::Seat;
use tonic::{Code, Response, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{config::Config, decide};

/// One watchdog at a time has it.
const LEASE: &str = "watchdog";
/// A manager that does not answer for so long is away. A look at a node with thousands of sandboxes takes seconds.
const LIMIT: Duration = Duration::from_secs(60);
const LIMIT_OF_LEASES: Duration = Duration::from_secs(5);
/// Of the list of a node with a hundred thousand sandboxes.
const MESSAGE_BYTES_MAX: usize = 512 << 20;

/// A connection.
#[derive(Clone, Debug)]
pub(crate) struct Manager(Channel);

impl Manager {
    pub(crate) async fn connect(config: &Config) -> Result<Self, Status> {
        let target = config.target();
        let connected = tokio::time::timeout(LIMIT_OF_LEASES, target.connect()).await;
        match connected {
            Ok(Ok(channel)) => Ok(Self(channel)),
            Ok(Err(_)) | Err(_) => Err(unreachable(&target.address)),
        }
    }

    /// The orphans of a look.
    pub(crate) async fn look(&self) -> Result<Vec<v1::AuditObject>, Status> {
        let client = NodeServiceClient::new(self.0.clone());
        let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
        let audit = within(LIMIT, client.audit(v1::AuditRequest::default())).await?;
        Ok(decide::orphans(audit))
    }

    /// Has those that run asked to end, and waits for that.
    pub(crate) async fn end(
        &self,
        lease: &v1::WorkLeaseRef,
        objects: &[&v1::AuditObject],
    ) -> Result<(), Status> {
        let request = v1::EndOrphansRequest {
            lease: Some(lease.clone()),
            tokens: objects.iter().map(|it| it.token.clone()).collect(),
        };
        let mut client = OrphanServiceClient::new(self.0.clone());
        // They are asked sixteen at a time, and each has 5 s.
        let limit = LIMIT + Duration::from_secs(5) * u32::try_from(objects.len() / 16).unwrap_or(0);
        within(limit, client.end_orphans(request)).await.map(drop)
    }

    pub(crate) async fn remove(
        &self,
        lease: &v1::WorkLeaseRef,
        objects: &[&v1::AuditObject],
        each: Duration,
    ) -> Result<Vec<v1::OrphanAnswer>, Status> {
        let request = v1::RemoveOrphansRequest {
            lease: Some(lease.clone()),
            tokens: objects.iter().map(|it| it.token.clone()).collect(),
            object_timeout: each.try_into().ok(),
        };
        let mut client = OrphanServiceClient::new(self.0.clone());
        let limit = LIMIT + each * u32::try_from(objects.len()).unwrap_or(u32::MAX);
        let answer = within(limit, client.remove_orphans(request)).await?;
        Ok(answer.answers)
    }

    pub(crate) async fn acquire(
        &self,
        holder: &str,
        time: Duration,
    ) -> Result<v1::WorkLeaseRef, Status> {
        let request = v1::AcquireWorkLeaseRequest {
            name: LEASE.to_owned(),
            holder: holder.to_owned(),
            time_to_live: time.try_into().ok(),
            ..v1::AcquireWorkLeaseRequest::default()
        };
        let acquired = self.leases().acquire_work_lease(request).await;
        let lease = acquired?.into_inner().lease.unwrap_or_default();
        Ok(v1::WorkLeaseRef {
            name: lease.name,
            token: lease.token,
        })
    }

    /// Keeps a lease, and returns when it is lost.
    pub(crate) async fn keep(&self, lease: &v1::WorkLeaseRef, time: Duration) -> Status {
        loop {
            tokio::time::sleep(time / 3).await;
            let request = v1::RenewWorkLeasesRequest {
                leases: vec![lease.clone()],
            };
            let renewed = within(time / 3, self.leases().renew_work_leases(request)).await;
            match renewed {
                Ok(it) if it.lost.is_empty() => {}
                // The manager says so to whoever acts under it, and knows it better.
                Err(error) if error.code() == Code::DeadlineExceeded => {}
                Ok(_) => {
                    let message = "another watchdog has the lease";
                    let failure = Failure::new(Reason::WorkLeaseLost, message);
                    return berth_api::status(failure.with("lease", LEASE));
                }
                Err(error) => return error,
            }
        }
    }

    pub(crate) async fn release(&self, lease: v1::WorkLeaseRef) {
        let leases = vec![lease];
        let request = v1::ReleaseWorkLeasesRequest { leases };
        let released = within(LIMIT_OF_LEASES, self.leases().release_work_leases(request)).await;
        if let Err(status) = released {
            tracing::warn!(error = status.message(), "the lease is left to its end");
        }
    }

    /// Gives back the lease where a watchdog has it that had this seat before.
    pub(crate) async fn end_former_leases(&self, seat: &Seat) -> Result<(), Status> {
        berth_plugin::end_former_leases(self.leases(), LEASE, seat).await
    }

    fn leases(&self) -> LeaseServiceClient<Channel> {
        LeaseServiceClient::new(self.0.clone())
    }
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("the manager does not answer")),
    }
}

pub(crate) fn unreachable(address: &str) -> Status {
    let failure = Failure::new(Reason::ManagerUnreachable, "the manager is not reachable");
    berth_api::status(failure.with("manager", address))
}

pub(crate) fn is(status: &Status, reason: Reason) -> bool {
    let details = status.get_error_details();
    let named = details.error_info().map(|it| it.reason.as_str());
    named == Some(reason.as_str())
}

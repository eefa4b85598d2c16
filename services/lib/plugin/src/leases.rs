//! Leases of a process that is gone.

use std::time::Duration;

use berth_api::v1::{self, lease_service_client::LeaseServiceClient};
use tonic::{Status, transport::Channel};

/// As many leases as the contract allows in a message.
const BATCH: usize = 256;

/// A manager that does not answer for so long is away.
const LIMIT: Duration = Duration::from_secs(5);

/// Gives back what a process held that is proven to be gone, so that nobody waits for the end of its leases. What it has asked
/// for and was not yet answered is refused by its tokens.
pub async fn end_leases_of(
    leases: LeaseServiceClient<Channel>,
    prefix: &str,
    former: &str,
) -> Result<(), Status> {
    match tokio::time::timeout(LIMIT, end(leases, prefix, former)).await {
        Ok(ended) => ended,
        Err(_) => Err(Status::deadline_exceeded("the manager does not answer")),
    }
}

async fn end(
    mut leases: LeaseServiceClient<Channel>,
    prefix: &str,
    former: &str,
) -> Result<(), Status> {
    let request = v1::ListWorkLeasesRequest {
        prefix: prefix.to_owned(),
    };
    let listed = leases.list_work_leases(request).await?.into_inner().leases;
    let of_it = listed.into_iter().filter(|it| it.holder == former);
    let of_it = of_it.map(|it| v1::WorkLeaseRef {
        name: it.name,
        token: it.token,
    });
    let of_it: Vec<_> = of_it.collect();
    for some in of_it.chunks(BATCH) {
        let leases_of_it = some.to_vec();
        let request = v1::ReleaseWorkLeasesRequest {
            leases: leases_of_it,
        };
        leases.release_work_leases(request).await?;
    }
    Ok(())
}

//! Leases of processes that are gone.

use std::time::Duration;

use berth_api::v1::{self, lease_service_client::LeaseServiceClient};
use tonic::{Status, transport::Channel};

use crate::Seat;

/// As many leases as the contract allows in a message.
const BATCH: usize = 256;

/// A manager that does not answer for so long is away.
const LIMIT: Duration = Duration::from_secs(5);

/// Gives back what the processes held that had this seat before, which is the proof that they are gone: so nobody waits for
/// the end of their leases. What they have asked for and was not yet answered is refused by its token.
pub async fn end_former_leases(
    leases: LeaseServiceClient<Channel>,
    prefix: &str,
    seat: &Seat,
) -> Result<(), Status> {
    match tokio::time::timeout(LIMIT, end(leases, prefix, seat)).await {
        Ok(ended) => ended,
        Err(_) => Err(Status::deadline_exceeded("the manager does not answer")),
    }
}

async fn end(
    mut leases: LeaseServiceClient<Channel>,
    prefix: &str,
    seat: &Seat,
) -> Result<(), Status> {
    let request = v1::ListWorkLeasesRequest {
        prefix: prefix.to_owned(),
    };
    let listed = leases.list_work_leases(request).await?.into_inner().leases;
    let of_them = listed.into_iter().filter(|it| seat.is_former(&it.holder));
    let of_them = of_them.map(|it| v1::WorkLeaseRef {
        name: it.name,
        token: it.token,
    });
    let of_them: Vec<_> = of_them.collect();
    for some in of_them.chunks(BATCH) {
        let request = v1::ReleaseWorkLeasesRequest {
            leases: some.to_vec(),
        };
        leases.release_work_leases(request).await?;
    }
    Ok(())
}

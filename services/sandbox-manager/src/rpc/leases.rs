//! `LeaseService`.

use berth_api::{
    collection::{acquire_from_proto, lease_refs_from_proto, lease_to_proto},
    v1::{self, lease_service_server::LeaseService},
};
use berth_domain::work_leases::WorkLease;
use berth_platform::{Images, Network, Runtime};
use tonic::{Request, Response, Status};

use super::refuse;
use crate::registry::Registry;

pub(crate) struct LeaseRpc<R, N> {
    pub(crate) registry: Registry<R, N>,
}

impl<R: Runtime + Images, N: Network> LeaseRpc<R, N> {
    fn render(&self, lease: WorkLease) -> v1::WorkLease {
        lease_to_proto(lease, |at| self.registry.collecting().on_clock(at))
    }
}

#[tonic::async_trait]
impl<R: Runtime + Images, N: Network> LeaseService for LeaseRpc<R, N> {
    async fn acquire_work_lease(
        &self,
        request: Request<v1::AcquireWorkLeaseRequest>,
    ) -> Result<Response<v1::AcquireWorkLeaseResponse>, Status> {
        let asked = acquire_from_proto(request.into_inner()).map_err(refuse)?;
        let (store, collecting) = (self.registry.store(), self.registry.collecting());
        let lease = collecting.acquire(store, asked).await.map_err(refuse)?;
        Ok(Response::new(v1::AcquireWorkLeaseResponse {
            lease: Some(self.render(lease)),
        }))
    }

    async fn renew_work_leases(
        &self,
        request: Request<v1::RenewWorkLeasesRequest>,
    ) -> Result<Response<v1::RenewWorkLeasesResponse>, Status> {
        let leases = lease_refs_from_proto(request.into_inner().leases).map_err(refuse)?;
        let (renewed, lost) = self.registry.collecting().renew(&leases);
        Ok(Response::new(v1::RenewWorkLeasesResponse {
            renewed: renewed.into_iter().map(|it| self.render(it)).collect(),
            lost,
        }))
    }

    async fn release_work_leases(
        &self,
        request: Request<v1::ReleaseWorkLeasesRequest>,
    ) -> Result<Response<v1::ReleaseWorkLeasesResponse>, Status> {
        let leases = lease_refs_from_proto(request.into_inner().leases).map_err(refuse)?;
        self.registry.collecting().release(&leases);
        Ok(Response::new(v1::ReleaseWorkLeasesResponse {}))
    }

    async fn list_work_leases(
        &self,
        request: Request<v1::ListWorkLeasesRequest>,
    ) -> Result<Response<v1::ListWorkLeasesResponse>, Status> {
        let leases = self
            .registry
            .collecting()
            .leases(&request.into_inner().prefix);
        let leases = leases.into_iter().map(|it| self.render(it)).collect();
        Ok(Response::new(v1::ListWorkLeasesResponse { leases }))
    }
}

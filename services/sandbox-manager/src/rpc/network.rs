//! `NetworkService`.

use std::{net::Ipv4Addr, time::SystemTime};

use berth_api::{
    spec_to_proto,
    v1::{self, network_service_server::NetworkService},
};
use berth_domain::{Failure, Generation, Protocol, Reason, SandboxId, SandboxRecord, subnets};
use berth_platform::{ForeignAccept, Images, Network, Runtime, RuntimeObject, RuntimeObjectKind};
use berth_store::{Lease, LeaseState, LeaseView, SubnetView};
use tonic::{Request, Response, Status};

use super::{denied_to_proto, page_size, parse_id, refuse};
use crate::{
    failures::{
        network_failure, release_failure, reserve_failure, runtime_failure, store_failure,
        unreserve_failure,
    },
    registry::Registry,
};

pub(crate) struct NetworkRpc<R, N> {
    pub(crate) registry: Registry<R, N>,
    pub(crate) bridge: String,
}

impl<R: Runtime + Images, N: Network> NetworkRpc<R, N> {
    async fn views(&self) -> Result<Vec<LeaseView>, Status> {
        let views = self.registry.store().lease_views(SystemTime::now()).await;
        views.map_err(|it| refuse(store_failure(it)))
    }

    async fn subnets(&self) -> Vec<v1::ReservedSubnet> {
        let store = self.registry.store();
        let subnets = store.reserved_subnets(SystemTime::now()).await;
        subnets.iter().map(render_subnet).collect()
    }

    async fn forget_connections(&self, addresses: Vec<Ipv4Addr>) -> Result<(), Status> {
        let network = &self.registry.node().network;
        let forgotten = network.forget_connections(addresses).await;
        forgotten.map_err(|it| refuse(network_failure(it)))
    }

    /// Refuses while something of the lease's owner lives on the node, whatever records say.
    async fn look_for(&self, lease: &Lease) -> Result<(), Status> {
        let objects = self.registry.node().runtime.list().await;
        let objects = objects.map_err(|it| refuse(runtime_failure(it)))?;
        let lives = |it: &&RuntimeObject| {
            let own = it.sandbox.as_ref() == Some(&lease.owner)
                && it.generation.is_none_or(|it| it == lease.generation);
            own && matches!(
                it.kind,
                RuntimeObjectKind::Container | RuntimeObjectKind::Task | RuntimeObjectKind::Shim
            )
        };
        let Some(found) = objects.iter().find(lives) else {
            return Ok(());
        };
        let message = format!(
            "{} is no record's, but {} of sandbox {} is on the node: `berth audit` tells what is left",
            lease.address, found.name, lease.owner
        );
        let failure = Failure::new(Reason::LeaseHeld, message)
            .with("owner", &lease.owner)
            .with("generation", lease.generation)
            .with("container", &found.name);
        Err(refuse(failure))
    }

    /// What stands for one sandbox.
    async fn rules_of(&self, record: &SandboxRecord) -> Result<v1::SandboxRules, Status> {
        let network = &self.registry.node().network;
        let denied = network.denied(&record.id).await;
        let denied = denied.map_err(|it| refuse(network_failure(it)))?;
        let spec = spec_to_proto(&record.spec);
        let sandbox = record.sandbox();
        let node_ports = sandbox.node_ports();
        let node_ports = node_ports.map(|(protocol, node_port, port)| v1::NodePortRule {
            protocol: match protocol {
                Protocol::Tcp => v1::Protocol::Tcp,
                Protocol::Udp => v1::Protocol::Udp,
            }
            .into(),
            node_port: node_port.into(),
            port: port.into(),
        });
        let addresses = record.addresses.iter().map(|it| it.addr().to_string());
        Ok(v1::SandboxRules {
            sandbox: record.id.to_string(),
            generation: record.generation.0,
            link: network.link_name(&record.id),
            addresses: addresses.collect(),
            node_ports: node_ports.collect(),
            network: spec.network,
            labels: spec.labels,
            denied: denied.map(denied_to_proto),
        })
    }
}

#[tonic::async_trait]
impl<R: Runtime + Images, N: Network> NetworkService for NetworkRpc<R, N> {
    async fn list_leases(
        &self,
        request: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesResponse>, Status> {
        let request = request.into_inner();
        let state = v1::LeaseState::try_from(request.state).map_err(|_| {
            let problem = format!("{} is not a state", request.state);
            refuse(Failure::invalid("state", problem))
        })?;
        // The last address of the page before.
        let after: Option<Ipv4Addr> = match request.page_token.as_str() {
            "" => None,
            text => Some(parse_address("page_token", text)?),
        };
        let size = page_size(request.page_size);
        let views = self.views().await?;
        let wanted = views.iter().filter(|it| {
            after.is_none_or(|after| it.lease.address > after)
                && (state == v1::LeaseState::Unspecified || state == in_proto(it.state))
        });
        let mut leases: Vec<_> = wanted.take(size + 1).map(render).collect();
        let more = leases.len() > size;
        leases.truncate(size);
        let last = leases.last().map(|it| it.address.clone());
        Ok(Response::new(v1::ListLeasesResponse {
            next_page_token: last.filter(|_| more).unwrap_or_default(),
            leases,
        }))
    }

    async fn count_leases(
        &self,
        _request: Request<v1::CountLeasesRequest>,
    ) -> Result<Response<v1::CountLeasesResponse>, Status> {
        let store = self.registry.store();
        let counts = store.lease_counts().await;
        let counts = counts.map_err(|it| refuse(store_failure(it)))?;
        let taken = counts.held + counts.cooling;
        let subnets = store.subnets();
        Ok(Response::new(v1::CountLeasesResponse {
            subnet: subnets.v4.to_string(),
            subnet6: subnets.v6.map(|it| it.to_string()).unwrap_or_default(),
            bridge: self.bridge.clone(),
            capacity: counts.capacity,
            held: counts.held,
            resting: counts.cooling,
            free: counts.capacity.saturating_sub(taken),
            subnets: self.subnets().await,
        }))
    }

    async fn release_lease(
        &self,
        request: Request<v1::ReleaseLeaseRequest>,
    ) -> Result<Response<v1::ReleaseLeaseResponse>, Status> {
        let request = request.into_inner();
        let address = parse_address("address", &request.address)?;
        let owner = parse_id("expected_owner", &request.expected_owner)?;
        let generation = match request.expected_generation {
            0 => {
                return Err(refuse(Failure::invalid(
                    "expected_generation",
                    "must be given",
                )));
            }
            number => Generation(number),
        };
        let views = self.views().await?;
        let store = self.registry.store();
        // What the kernel tracks is forgotten first: once the address is free, it may be the next owner's.
        let may = store.may_release(address, owner.clone(), generation).await;
        let lease = may.map_err(|it| refuse(release_failure(it)))?;
        self.look_for(&lease).await?;
        self.forget_connections(vec![address]).await?;
        let former = store.release_lease(address, owner, generation).await;
        let former = former.map_err(|it| refuse(release_failure(it)))?;
        self.registry.addresses_changed();
        tracing::warn!(
            %address, owner = %former.owner, generation = %former.generation,
            "an address was made free by force"
        );
        // What was seen before is told, unless something came between.
        let seen = views.iter().find(|it| it.lease == former).map(render);
        Ok(Response::new(v1::ReleaseLeaseResponse { former: seen }))
    }

    async fn release_resting_leases(
        &self,
        _request: Request<v1::ReleaseRestingLeasesRequest>,
    ) -> Result<Response<v1::ReleaseRestingLeasesResponse>, Status> {
        let store = self.registry.store();
        let failed = |it| refuse(store_failure(it));
        let resting = store.resting().await.map_err(failed)?;
        let addresses = resting.iter().map(|it| it.address).collect();
        self.forget_connections(addresses).await?;
        let released = store.release_resting(resting).await.map_err(failed)?;
        self.registry.addresses_changed();
        tracing::warn!(
            released,
            "all addresses that rested were made free by force"
        );
        Ok(Response::new(v1::ReleaseRestingLeasesResponse { released }))
    }

    async fn reserve_subnet(
        &self,
        request: Request<v1::ReserveSubnetRequest>,
    ) -> Result<Response<v1::ReserveSubnetResponse>, Status> {
        let request = request.into_inner();
        let identifier = parse_identifier(request.identifier)?;
        let store = self.registry.store();
        let sizes = subnets::prefix_range(store.subnet());
        let prefix_length = u8::try_from(request.prefix_length);
        let prefix_length = prefix_length.ok().filter(|it| sizes.contains(it));
        let prefix_length = prefix_length.ok_or_else(|| {
            let (largest, smallest) = (sizes.start(), sizes.end());
            let problem = format!(
                "must be {largest} to {smallest}, a part of the node's {}",
                store.subnet()
            );
            refuse(Failure::invalid("prefix_length", problem))
        })?;
        let now = SystemTime::now();
        let reserved = store.reserve_subnet(identifier, prefix_length, now).await;
        let (subnet, created) = reserved.map_err(|it| refuse(reserve_failure(it)))?;
        self.registry.addresses_changed();
        Ok(Response::new(v1::ReserveSubnetResponse {
            subnet: Some(render_subnet(&subnet)),
            created,
        }))
    }

    async fn list_subnets(
        &self,
        _request: Request<v1::ListSubnetsRequest>,
    ) -> Result<Response<v1::ListSubnetsResponse>, Status> {
        Ok(Response::new(v1::ListSubnetsResponse {
            subnets: self.subnets().await,
        }))
    }

    async fn release_subnet(
        &self,
        request: Request<v1::ReleaseSubnetRequest>,
    ) -> Result<Response<v1::ReleaseSubnetResponse>, Status> {
        let identifier = parse_identifier(request.into_inner().identifier)?;
        let former = self.registry.store().unreserve_subnet(identifier).await;
        let former = former.map_err(|it| refuse(unreserve_failure(it)))?;
        self.registry.addresses_changed();
        Ok(Response::new(v1::ReleaseSubnetResponse {
            former: Some(render_subnet(&former)),
        }))
    }

    async fn list_rules(
        &self,
        request: Request<v1::ListRulesRequest>,
    ) -> Result<Response<v1::ListRulesResponse>, Status> {
        let request = request.into_inner();
        let id = |field, text: &str| match text {
            "" => Ok(None),
            text => parse_id(field, text).map(Some),
        };
        let only = id("sandbox", &request.sandbox)?;
        // The last sandbox of the page before.
        let after: Option<SandboxId> = id("page_token", &request.page_token)?;
        let records = self.registry.store().all().await;
        let mut records = records.map_err(|it| refuse(store_failure(it)))?;
        records.retain(|it| only.as_ref().is_none_or(|only| it.id == *only));
        if let Some(id) = only.filter(|_| records.is_empty()) {
            let message = format!("no sandbox has the id {id}");
            return Err(refuse(Failure::new(Reason::SandboxNotFound, message)));
        }
        records.retain(|it| {
            !it.addresses.is_empty() && after.as_ref().is_none_or(|after| it.id > *after)
        });
        records.sort_by(|one, other| one.id.cmp(&other.id));
        let more = records.len() > page_size(request.page_size);
        records.truncate(page_size(request.page_size));
        let mut sandboxes = vec![];
        for record in &records {
            sandboxes.push(self.rules_of(record).await?);
        }
        let fencing = self.registry.node().network.fencing().await;
        let fencing = fencing.map_err(|it| refuse(network_failure(it)))?;
        let (table, accepts) = fencing
            .map(|it| (it.table, (it.stands, it.accepts)))
            .unzip();
        let (stands, accepts) = accepts.unwrap_or_default();
        let last = records.last().map(|it| it.id.to_string());
        Ok(Response::new(v1::ListRulesResponse {
            table: table.map(|name| v1::RuleTable {
                name,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                stands,
            }),
            foreign_accepts: accepts.into_iter().map(accept_to_proto).collect(),
            sandboxes,
            next_page_token: last.filter(|_| more).unwrap_or_default(),
        }))
    }
}

fn accept_to_proto(it: ForeignAccept) -> v1::ForeignAccept {
    v1::ForeignAccept {
        family: it.family,
        table: it.table,
        chain: it.chain,
        comment: it.comment,
        packets: it.packets,
        bytes: it.bytes,
    }
}

fn parse_address(field: &str, text: &str) -> Result<Ipv4Addr, Status> {
    let address = text.parse();
    address.map_err(|_| refuse(Failure::invalid(field, "must be an IPv4 address")))
}

fn parse_identifier(text: String) -> Result<String, Status> {
    let checked = subnets::check_identifier(&text);
    checked.map_err(|it| refuse(Failure::invalid("identifier", it)))?;
    Ok(text)
}

fn render_subnet(it: &SubnetView) -> v1::ReservedSubnet {
    let counts = &it.counts;
    v1::ReservedSubnet {
        identifier: it.identifier.clone(),
        subnet: it.subnet.to_string(),
        capacity: counts.capacity,
        held: counts.held,
        resting: counts.cooling,
        free: counts.capacity - counts.held - counts.cooling,
    }
}

fn in_proto(state: LeaseState) -> v1::LeaseState {
    match state {
        LeaseState::Held => v1::LeaseState::Held,
        LeaseState::Resting => v1::LeaseState::Resting,
        LeaseState::Free => v1::LeaseState::Free,
        LeaseState::Unexplained => v1::LeaseState::Unexplained,
    }
}

fn render(it: &LeaseView) -> v1::AddressLease {
    v1::AddressLease {
        address: it.lease.address.to_string(),
        owner: it.lease.owner.to_string(),
        generation: it.lease.generation.0,
        state: in_proto(it.state).into(),
        held_since: it.held_since.map(Into::into),
        released_at: it.lease.released_at.map(Into::into),
        free_at: it.free_at.map(Into::into),
        address6: it.address6.map(|it| it.to_string()).unwrap_or_default(),
        boot_id: it.lease.boot_id.clone(),
    }
}

#[cfg(test)]
mod tests;

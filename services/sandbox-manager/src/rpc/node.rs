//! `NodeService`.

use std::{sync::Arc, time::Instant};

use berth_api::v1::{self, node_service_server::NodeService};
use berth_domain::Status as SandboxStatus;
use berth_orphans::{Finding, Kind, Verdict, is_clean};
use berth_platform::{Images, Network, Runtime};
use tonic::{Request, Response, Status};

use super::refuse;
use crate::{audit::audit, failures::store_failure, registry::Registry};

/// What the process knows of itself.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) node_id: Arc<str>,
    pub(crate) instance_id: String,
    pub(crate) bridge: String,
    pub(crate) subnet: String,
    pub(crate) started: Instant,
    /// What this host does not allow, found at start.
    pub(crate) degraded: Vec<String>,
}

pub(crate) struct NodeRpc<R, N> {
    pub(crate) registry: Registry<R, N>,
    pub(crate) about: About,
}

#[tonic::async_trait]
impl<R: Runtime + Images, N: Network> NodeService for NodeRpc<R, N> {
    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let About {
            node_id,
            instance_id,
            bridge,
            subnet,
            started,
            degraded,
        } = &self.about;
        let store = self.registry.store();
        let facts = self.registry.node().runtime.facts().await;
        let records = store.all().await.map_err(|it| refuse(store_failure(it)))?;
        let leases = store
            .lease_counts()
            .await
            .map_err(|it| refuse(store_failure(it)))?;
        let revision = store
            .revision()
            .await
            .map_err(|it| refuse(store_failure(it)))?;
        let sandboxes = SandboxStatus::ALL
            .iter()
            .map(|status| v1::StatusCount {
                status: status.to_string(),
                count: records.iter().filter(|it| it.status == *status).count() as u64,
            })
            .collect();
        let uptime = started.elapsed();
        Ok(Response::new(v1::GetStatusResponse {
            node_id: node_id.to_string(),
            instance_id: instance_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: uptime.try_into().ok(),
            memory_rss_bytes: resident_bytes(),
            runtime: Some(v1::RuntimeStatus {
                address: facts.address,
                namespace: facts.namespace,
                reachable: facts.version.is_some(),
                version: facts.version.unwrap_or_default(),
                handler: facts.handler,
                cgroup_version: facts.cgroup_version,
            }),
            network: Some(v1::NetworkStatus {
                bridge: bridge.clone(),
                subnet: subnet.clone(),
                capacity: leases.capacity,
                held: leases.held,
                cooling: leases.cooling,
            }),
            sandboxes,
            degraded: [degraded.as_slice(), &facts.degraded].concat(),
            revision,
        }))
    }

    async fn audit(
        &self,
        _request: Request<v1::AuditRequest>,
    ) -> Result<Response<v1::AuditResponse>, Status> {
        let findings = audit(&self.registry).await.map_err(refuse)?;
        let clean = is_clean(&findings);
        let objects = findings.into_iter().map(render).collect();
        Ok(Response::new(v1::AuditResponse { objects, clean }))
    }
}

fn render(finding: Finding) -> v1::AuditObject {
    let kind = match finding.object.kind {
        Kind::Container => "container",
        Kind::Task => "task",
        Kind::Snapshot => "snapshot",
        Kind::Lease => "lease",
        Kind::Namespaces => "netns",
        Kind::Link => "link",
        Kind::Address => "address",
        Kind::Cgroup => "cgroup",
        Kind::Directory => "directory",
        Kind::Record => "record",
    };
    let verdict = match finding.verdict {
        Verdict::Explained => v1::AuditVerdict::Explained,
        Verdict::Orphan => v1::AuditVerdict::Orphan,
        Verdict::Missing => v1::AuditVerdict::Missing,
        Verdict::InProgress => v1::AuditVerdict::InProgress,
    };
    v1::AuditObject {
        kind: kind.to_owned(),
        name: finding.object.name,
        sandbox: finding
            .object
            .sandbox
            .map(|it| it.to_string())
            .unwrap_or_default(),
        verdict: verdict.into(),
        explanation: finding.explanation,
    }
}

/// Resident memory of this process; 0 where the kernel does not tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|it| it.split_whitespace().next())
        .and_then(|it| it.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

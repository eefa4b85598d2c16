//! `NodeService`.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use berth_api::v1::{self, node_service_server::NodeService};
use berth_calls::Trail;
use berth_domain::{Failure, Reason, SandboxRecord, Status as SandboxStatus, ipam::Subnets};
use berth_orphans::{Finding, Verdict, is_clean};
use berth_platform::{Images, Network, Runtime};
use berth_store::LeaseCounts;
use berth_tls::Held;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

use super::refuse;
use crate::{
    audit::audit,
    crash,
    failures::store_failure,
    fix::{Fixed, Outcome, fix},
    plugins::PluginBook,
    registry::{Registry, shutting_down},
    taken_ports,
};

/// As the manager's texts for people are.
const DRAIN_MESSAGE_MAX: usize = 256;
const TROUBLES_MAX: usize = 100;
/// Most of what is in the making is done or undone after that.
const SETTLE_DEFAULT: Duration = Duration::from_secs(5);
/// A call that waits longer should be two calls.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// What the process knows of itself.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) node_id: Arc<str>,
    pub(crate) instance_id: String,
    pub(crate) bridge: String,
    pub(crate) subnets: Subnets,
    pub(crate) started: Instant,
}

pub(crate) struct NodeRpc<R, N> {
    pub(crate) registry: Registry<R, N>,
    pub(crate) about: About,
    pub(crate) plugins: Arc<PluginBook>,
    pub(crate) trail: Trail,
    /// Of the TLS port, where there is one.
    pub(crate) certificates: Option<Held>,
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
            subnets,
            started,
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
        let drain = store.drain().await;
        let drain = drain.map_err(|it| refuse(store_failure(it)))?;
        let unreadable = store.unreadable().await;
        let unreadable = unreadable.map_err(|it| refuse(store_failure(it)))?;
        let troubles = self.registry.troubles().into_iter();
        let troubles = troubles.map(|(id, it)| v1::Trouble {
            sandbox: id.to_string(),
            reason: it.failure.reason.as_str().to_owned(),
            message: it.failure.message,
            since: Some(it.since.into()),
            attempts: it.attempts,
        });
        let troubles = troubles.chain(unreadable.into_iter().map(|it| v1::Trouble {
            message: format!("its record cannot be read: {}", it.problem),
            sandbox: it.key,
            reason: Reason::Internal.as_str().to_owned(),
            since: None,
            attempts: 0,
        }));
        let network = &self.registry.node().network;
        // What cannot be looked at says nothing of the rest.
        let taken = taken_ports::told(&**network, &records).await;
        let taken = taken.unwrap_or_else(|error| {
            tracing::warn!(%error, cause = %error.source, "who listens on ports of the node");
            vec![]
        });
        let certificates = self.certificates.as_ref();
        let certificates = certificates.map(|it| it.problems(SystemTime::now()));
        let trail = self.trail.problem().into_iter().collect();
        let uptime = started.elapsed();
        Ok(Response::new(v1::GetStatusResponse {
            node_id: node_id.to_string(),
            instance_id: instance_id.clone(),
            version: berth_version::VERSION.to_owned(),
            uptime: uptime.try_into().ok(),
            memory_rss_bytes: berth_daemon::resident_bytes(),
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
                subnet: subnets.v4.to_string(),
                capacity: leases.capacity,
                held: leases.held,
                cooling: leases.cooling,
                subnet6: subnets.v6.map(|it| it.to_string()).unwrap_or_default(),
            }),
            sandboxes,
            degraded: [
                network.degraded(),
                taken,
                facts.degraded,
                certificates.unwrap_or_default(),
                trail,
            ]
            .concat(),
            revision,
            capacity: Some(capacity(&records, leases)),
            draining: drain.is_some(),
            drain_message: drain.unwrap_or_default(),
            troubles: troubles.take(TROUBLES_MAX).collect(),
            boot_id: self.registry.boot_id().to_owned(),
            not_looked_at: self.registry.not_looked_at() as u64,
            plugins: self.plugins.list(),
        }))
    }

    async fn drain(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainResponse>, Status> {
        let request = request.into_inner();
        check_message(&request.message).map_err(refuse)?;
        let why = request.drain.then_some(request.message);
        let store = self.registry.store();
        let failed = |it| refuse(store_failure(it));
        crash::around("drain/write", store.set_drain(why))
            .await
            .map_err(failed)?;
        let records = store.all().await.map_err(failed)?;
        let live = records.iter().filter(|it| it.status != SandboxStatus::Dead);
        Ok(Response::new(v1::DrainResponse {
            sandboxes: live.count() as u64,
        }))
    }

    async fn audit(
        &self,
        request: Request<v1::AuditRequest>,
    ) -> Result<Response<v1::AuditResponse>, Status> {
        let v1::AuditRequest { fix: fixes, settle } = request.into_inner();
        let settle = settle.map(|it| Duration::try_from(it).ok());
        let settle = settle_time(settle).map_err(refuse)?;
        let Fixed { findings, clean } = if fixes {
            let (answer, answered) = oneshot::channel();
            let registry = self.registry.clone();
            // A caller that goes away must not leave it half done.
            self.registry.spawn(async move {
                let _ = answer.send(fix(&registry, settle).await);
            });
            let fixed = answered.await.map_err(|_| refuse(shutting_down()))?;
            fixed.map_err(refuse)?
        } else {
            let findings = audit(&self.registry).await.map_err(refuse)?;
            Fixed {
                clean: is_clean(&findings),
                findings: findings.into_iter().map(|it| (it, None)).collect(),
            }
        };
        let now = SystemTime::now();
        let objects = findings
            .into_iter()
            .map(|(finding, outcome)| render(finding, outcome, now));
        Ok(Response::new(v1::AuditResponse {
            objects: objects.collect(),
            clean,
        }))
    }
}

/// Why the node is drained.
fn check_message(text: &str) -> Result<(), Failure> {
    if text.len() > DRAIN_MESSAGE_MAX {
        let problem = format!("must have at most {DRAIN_MESSAGE_MAX} bytes");
        return Err(Failure::invalid("message", problem));
    }
    Ok(())
}

/// The inner `None` is a time that runs backwards.
fn settle_time(asked: Option<Option<Duration>>) -> Result<Duration, Failure> {
    match asked {
        None => Ok(SETTLE_DEFAULT),
        Some(Some(it)) if it <= SETTLE_MAX => Ok(it),
        Some(_) => {
            let problem = format!("must be from 0 s to {} s", SETTLE_MAX.as_secs());
            Err(Failure::invalid("settle", problem))
        }
    }
}

fn render(finding: Finding, outcome: Option<Outcome>, now: SystemTime) -> v1::AuditObject {
    let object = finding.object;
    let is_removed = finding.verdict == Verdict::Orphan && finding.fix.removes();
    let token = is_removed.then(|| object.identity());
    let verdict = match finding.verdict {
        Verdict::Explained => v1::AuditVerdict::Explained,
        Verdict::Orphan => v1::AuditVerdict::Orphan,
        Verdict::Missing => v1::AuditVerdict::Missing,
        Verdict::InProgress => v1::AuditVerdict::InProgress,
        Verdict::Unknown => v1::AuditVerdict::Unknown,
    };
    let (action, action_message) = match outcome {
        None => (v1::AuditAction::Unspecified, String::new()),
        Some(Outcome::Removed) => (v1::AuditAction::Removed, String::new()),
        Some(Outcome::Left(why)) => (v1::AuditAction::Left, why),
        Some(Outcome::Failed(error)) => (v1::AuditAction::Failed, error),
    };
    // A clock that was set back makes it young, not older than time.
    let age = |at: SystemTime| now.duration_since(at).unwrap_or_default();
    v1::AuditObject {
        kind: object.kind.to_string(),
        name: object.name,
        sandbox: object.sandbox.map(|it| it.to_string()).unwrap_or_default(),
        verdict: verdict.into(),
        explanation: finding.explanation,
        generation: object.generation.map(|it| it.0).unwrap_or_default(),
        age: object.made_at.and_then(|it| age(it).try_into().ok()),
        todo: finding.fix.to_string(),
        action: action.into(),
        action_message,
        token: token.unwrap_or_default(),
    }
}

fn capacity(records: &[SandboxRecord], leases: LeaseCounts) -> v1::NodeCapacity {
    let live = records.iter().filter(|it| it.status != SandboxStatus::Dead);
    let (mut cpu, mut memory) = (0_u64, 0_u64);
    for (own_cpu, own_memory) in live.map(|it| it.spec.promised()) {
        cpu = cpu.saturating_add(own_cpu);
        memory = memory.saturating_add(own_memory);
    }
    let node = berth_daemon::kib_figures("/proc/meminfo");
    let figure = |key: &str| node.get(key).copied().unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    v1::NodeCapacity {
        cpu_millis: cpus as u64 * 1000,
        cpu_millis_promised: cpu,
        memory_bytes: figure("MemTotal"),
        memory_bytes_promised: memory,
        memory_bytes_available: figure("MemAvailable"),
        sandboxes: leases.capacity,
        sandboxes_held: leases.held,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_node_is_drained_and_how_long_an_audit_settles_have_bounds() {
        assert!(check_message(&"x".repeat(DRAIN_MESSAGE_MAX)).is_ok());
        let long = check_message(&"x".repeat(DRAIN_MESSAGE_MAX + 1)).unwrap_err();
        assert_eq!(long.violations[0].field, "message");
        assert_eq!(settle_time(Some(Some(SETTLE_MAX))).unwrap(), SETTLE_MAX);
        let over = SETTLE_MAX + Duration::from_nanos(1);
        let long = settle_time(Some(Some(over))).unwrap_err();
        assert_eq!(long.violations[0].field, "settle");
    }
}

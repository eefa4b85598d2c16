//! Every object of this instance with its verdict: gathers, and leaves the judging to `orphans`.

use berth_domain::{Failure, decide::roles};
use berth_orphans::{Finding, Kind, Object, Promise, judge};
use berth_platform::{
    Images, Network, NetworkObject, NetworkObjectKind, Runtime, RuntimeObject, RuntimeObjectKind,
};

use crate::{
    failures::{network_failure, runtime_failure, store_failure},
    registry::Registry,
};

/// Objects are listed before records, so that a sandbox born in between cannot look orphaned.
pub(crate) async fn audit<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
) -> Result<Vec<Finding>, Failure> {
    let node = registry.node();
    let (runtime, network) = tokio::join!(node.runtime.list(), node.network.list());
    let runtime = runtime
        .map_err(runtime_failure)?
        .into_iter()
        .map(of_runtime);
    let network = network
        .map_err(network_failure)?
        .into_iter()
        .map(of_network);
    let leases = registry.store().leases().await.map_err(store_failure)?;
    let leases = leases
        .into_iter()
        .filter(|it| it.released_at.is_none())
        .map(|it| Object {
            kind: Kind::Address,
            name: it.address.to_string(),
            sandbox: Some(it.owner),
            generation: Some(it.generation),
            role: None,
        });
    let objects: Vec<Object> = runtime.chain(network).chain(leases).collect();
    let records = registry.store().all().await.map_err(store_failure)?;
    let promises: Vec<Promise> = records
        .iter()
        .map(|record| Promise {
            id: record.id.clone(),
            generation: record.generation,
            status: record.status,
            busy: registry.is_busy(record),
            roles: roles(&record.spec).collect(),
            addresses: record
                .addresses
                .iter()
                .map(|it| it.addr().to_string())
                .collect(),
        })
        .collect();
    Ok(judge(&promises, &objects))
}

fn of_runtime(it: RuntimeObject) -> Object {
    let kind = match it.kind {
        RuntimeObjectKind::Container => Kind::Container,
        RuntimeObjectKind::Task => Kind::Task,
        RuntimeObjectKind::Snapshot => Kind::Snapshot,
        RuntimeObjectKind::Lease => Kind::Lease,
        RuntimeObjectKind::Cgroup => Kind::Cgroup,
        RuntimeObjectKind::Directory => Kind::Directory,
    };
    Object {
        kind,
        name: it.name,
        sandbox: it.sandbox,
        generation: it.generation,
        role: it.role,
    }
}

fn of_network(it: NetworkObject) -> Object {
    let kind = match it.kind {
        NetworkObjectKind::Namespaces => Kind::Namespaces,
        NetworkObjectKind::Link => Kind::Link,
    };
    Object {
        kind,
        name: it.name,
        sandbox: it.sandbox,
        generation: None,
        role: None,
    }
}

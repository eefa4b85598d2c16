//! Every object of this instance with its verdict: gathers, and leaves the judging to `orphans`.

use berth_domain::{Failure, decide::roles};
use berth_orphans::{Finding, Kind, Look, Object, Promise, judge, steady};
use berth_platform::{
    Images, Network, NetworkObject, NetworkObjectKind, Runtime, RuntimeObject, RuntimeObjectKind,
};
use berth_store::Lease;

use crate::{
    failures::{network_failure, runtime_failure, store_failure},
    registry::Registry,
};

/// Records are read before and after the objects: a sandbox that comes, goes or gets on meanwhile is not judged by half.
pub(crate) async fn audit<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
) -> Result<Vec<Finding>, Failure> {
    let node = registry.node();
    let before = promises(registry).await?;
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
        .map(of_lease);
    let standing = node.network.standing().into_iter();
    let unreadable = registry.store().unreadable().await.map_err(store_failure)?;
    let look = Look {
        objects: runtime.chain(network).chain(leases).collect(),
        promises: steady(before, promises(registry).await?),
        unreadable: unreadable.into_iter().filter_map(|it| it.sandbox).collect(),
        standing: standing
            .map(|(kind, name)| (kind_of_network(kind), name))
            .collect(),
    };
    Ok(judge(&look))
}

async fn promises<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
) -> Result<Vec<Promise>, Failure> {
    let records = registry.store().all().await.map_err(store_failure)?;
    let promise = |record| promise(registry, record);
    Ok(records.iter().map(promise).collect())
}

/// What a record promises at this moment.
pub(crate) fn promise<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    record: &berth_domain::SandboxRecord,
) -> Promise {
    Promise {
        id: record.id.clone(),
        generation: record.generation,
        status: record.status,
        busy: registry.is_busy(record),
        roles: roles(&record.spec).collect(),
        has_link: !record.spec.host_network,
        addresses: record
            .addresses
            .iter()
            // The others follow from these, and have no lease.
            .filter(|it| it.addr().is_ipv4())
            .map(|it| it.addr().to_string())
            .collect(),
    }
}

fn of_runtime(it: RuntimeObject) -> Object {
    let kind = match it.kind {
        RuntimeObjectKind::Container => Kind::Container,
        RuntimeObjectKind::Task => Kind::Task,
        RuntimeObjectKind::Shim => Kind::Shim,
        RuntimeObjectKind::Snapshot => Kind::Snapshot,
        RuntimeObjectKind::Lease => Kind::Lease,
        RuntimeObjectKind::Cgroup => Kind::Cgroup,
        RuntimeObjectKind::Mount => Kind::Mount,
        RuntimeObjectKind::Directory => Kind::Directory,
        RuntimeObjectKind::Logs => Kind::Logs,
    };
    Object {
        kind,
        name: it.name,
        sandbox: it.sandbox,
        generation: it.generation,
        role: it.role,
        made_at: it.made_at,
        serial: it.serial,
        strange: it.strange,
        silent: it.silent,
    }
}

fn kind_of_network(kind: NetworkObjectKind) -> Kind {
    match kind {
        NetworkObjectKind::Namespaces => Kind::Namespaces,
        NetworkObjectKind::Link => Kind::Link,
        NetworkObjectKind::Element => Kind::Element,
        NetworkObjectKind::Table => Kind::Table,
        NetworkObjectKind::Bridge => Kind::Bridge,
    }
}

fn of_network(it: NetworkObject) -> Object {
    Object {
        kind: kind_of_network(it.kind),
        name: it.name,
        sandbox: it.sandbox,
        generation: None,
        role: None,
        made_at: it.made_at,
        serial: it.serial,
        strange: it.strange,
        silent: false,
    }
}

fn of_lease(it: Lease) -> Object {
    Object {
        kind: Kind::Address,
        name: it.address.to_string(),
        sandbox: Some(it.owner),
        generation: Some(it.generation),
        role: None,
        made_at: None,
        serial: None,
        strange: false,
        silent: false,
    }
}

/// The object as the runtime listed it; `None` for one that is not the runtime's.
pub(crate) fn to_runtime(object: &Object) -> Option<RuntimeObject> {
    let kind = match object.kind {
        Kind::Container => RuntimeObjectKind::Container,
        Kind::Task => RuntimeObjectKind::Task,
        Kind::Shim => RuntimeObjectKind::Shim,
        Kind::Snapshot => RuntimeObjectKind::Snapshot,
        Kind::Lease => RuntimeObjectKind::Lease,
        Kind::Cgroup => RuntimeObjectKind::Cgroup,
        Kind::Mount => RuntimeObjectKind::Mount,
        Kind::Directory => RuntimeObjectKind::Directory,
        Kind::Logs => RuntimeObjectKind::Logs,
        Kind::Link
        | Kind::Element
        | Kind::Namespaces
        | Kind::Address
        | Kind::Table
        | Kind::Bridge
        | Kind::Record => return None,
    };
    let it = object.clone();
    Some(RuntimeObject {
        kind,
        name: it.name,
        sandbox: it.sandbox,
        generation: it.generation,
        role: it.role,
        made_at: it.made_at,
        serial: it.serial,
        strange: it.strange,
        silent: it.silent,
    })
}

/// The object as the network listed it; `None` for one that is not the network's.
pub(crate) fn to_network(object: &Object) -> Option<NetworkObject> {
    let kind = match object.kind {
        Kind::Link => NetworkObjectKind::Link,
        Kind::Element => NetworkObjectKind::Element,
        Kind::Namespaces => NetworkObjectKind::Namespaces,
        Kind::Table => NetworkObjectKind::Table,
        Kind::Bridge => NetworkObjectKind::Bridge,
        Kind::Task
        | Kind::Shim
        | Kind::Container
        | Kind::Snapshot
        | Kind::Mount
        | Kind::Cgroup
        | Kind::Directory
        | Kind::Logs
        | Kind::Lease
        | Kind::Address
        | Kind::Record => return None,
    };
    let it = object.clone();
    Some(NetworkObject {
        kind,
        name: it.name,
        sandbox: it.sandbox,
        made_at: it.made_at,
        serial: it.serial,
        strange: it.strange,
    })
}

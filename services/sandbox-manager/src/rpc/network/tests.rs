//! The calls on addresses, with a real store and the fake node: records are put where they are needed.

use std::{sync::Arc, time::Duration};

use berth_domain::{NetworkPolicy, SandboxId, SandboxSpec};
use berth_platform::fake::FakeNode;
use berth_store::{AdmitError, Admitted, Arrival, LeaseCounts, Store};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::{failures::admit_failure, node::Node, registry::Limits};

const COOL_DOWN: Duration = Duration::from_secs(600);

struct Ground {
    network: NetworkRpc<FakeNode, FakeNode>,
    node: FakeNode,
    store: Store,
    _dir: TempDir,
}

fn ground() -> Ground {
    let dir = tempfile::tempdir().unwrap();
    let subnet = "10.9.0.0/28".parse().unwrap();
    let store = Store::open(&dir.path().join("s"), subnet, COOL_DOWN).unwrap();
    let node = FakeNode::default();
    let seams = Node {
        runtime: Arc::new(node.clone()),
        network: Arc::new(node.clone()),
    };
    let limits = Limits {
        task_creations: 1,
        sandboxes: 1000,
        end_timeout: COOL_DOWN,
        dead_horizon: COOL_DOWN,
        purge_interval: COOL_DOWN,
    };
    let stop = CancellationToken::new();
    let registry = Registry::new(seams, store.clone(), limits, String::new(), stop);
    Ground {
        network: NetworkRpc {
            registry,
            bridge: "br".into(),
        },
        node,
        store,
        _dir: dir,
    }
}

impl Ground {
    async fn hold(&self, name: &str, subnet: Option<&str>) -> Result<(), AdmitError> {
        let network = NetworkPolicy {
            subnet: subnet.map(str::to_owned),
            ..NetworkPolicy::default()
        };
        let spec = SandboxSpec {
            network,
            ..SandboxSpec::default()
        };
        let (id, now) = (SandboxId::parse(name).unwrap(), SystemTime::now());
        let admitted = self
            .store
            .admit(&id, Arc::new(spec), Arrival::default(), now);
        assert!(matches!(admitted.await?, Admitted::Begun(_)));
        Ok(())
    }

    /// Gives back what all sandboxes hold.
    async fn remove_all(&self) {
        for record in self.store.all().await.unwrap() {
            let now = SystemTime::now();
            let removed = self.store.remove(&record.id, record.generation, now);
            assert!(removed.await.unwrap());
        }
    }

    async fn release(&self, lease: &berth_store::Lease) -> Result<(), Status> {
        let request = v1::ReleaseLeaseRequest {
            address: lease.address.to_string(),
            expected_owner: lease.owner.to_string(),
            expected_generation: lease.generation.0,
        };
        let released = self.network.release_lease(Request::new(request));
        released.await.map(drop)
    }

    async fn release_resting(&self) -> Result<u64, Status> {
        let request = Request::new(v1::ReleaseRestingLeasesRequest {});
        let released = self.network.release_resting_leases(request).await?;
        Ok(released.into_inner().released)
    }

    async fn reserve(
        &self,
        identifier: &str,
        prefix_length: u32,
    ) -> Result<v1::ReserveSubnetResponse, Status> {
        let request = v1::ReserveSubnetRequest {
            identifier: identifier.to_owned(),
            prefix_length,
        };
        let reserved = self.network.reserve_subnet(Request::new(request));
        reserved.await.map(Response::into_inner)
    }

    async fn release_subnet(&self, identifier: &str) -> Result<Option<v1::ReservedSubnet>, Status> {
        let request = v1::ReleaseSubnetRequest {
            identifier: identifier.to_owned(),
        };
        let released = self.network.release_subnet(Request::new(request)).await?;
        Ok(released.into_inner().former)
    }

    async fn counts(&self) -> LeaseCounts {
        self.store.lease_counts().await.unwrap()
    }

    /// What the kernel was told to forget so far.
    fn forgotten(&self) -> Vec<String> {
        let calls = self.node.calls().into_iter();
        let calls = calls.filter_map(|it| Some(it.strip_prefix("forget_connections ")?.to_owned()));
        calls.collect()
    }
}

/// Code, reason and metadata, sorted.
fn told(status: &Status) -> (Code, String, Vec<(String, String)>) {
    let details = status.get_error_details();
    let info = details.error_info().expect("every error has it");
    let mut metadata: Vec<_> = info.metadata.clone().into_iter().collect();
    metadata.sort();
    (status.code(), info.reason.clone(), metadata)
}

fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|it| it.field_violations.clone());
    let violations = violations.unwrap_or_default().into_iter();
    violations.map(|it| it.field).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |it: &str| it.to_owned();
    pairs
        .iter()
        .map(|(key, value)| (owned(key), owned(value)))
        .collect()
}

#[tokio::test]
async fn an_address_is_made_free_after_its_connections_are_forgotten_and_not_without() {
    let ground = ground();
    ground.hold("web", None).await.unwrap();
    let lease = ground.store.leases().await.unwrap().remove(0);
    let held = ground.release(&lease).await.unwrap_err();
    assert_eq!(told(&held).1, "LEASE_HELD");
    assert!(ground.forgotten().is_empty(), "its connections are in use");
    ground.remove_all().await;
    ground.node.fail_next("forget_connections", 1);
    let failed = ground.release(&lease).await.unwrap_err();
    assert_eq!(told(&failed).1, "NETWORK_FAILED");
    assert_eq!(ground.counts().await.cooling, 1, "it still rests");
    ground.release(&lease).await.unwrap();
    assert_eq!(ground.forgotten(), ["10.9.0.2", "10.9.0.2"]);
    assert_eq!(ground.store.leases().await.unwrap(), []);
}

#[tokio::test]
async fn an_address_is_not_made_free_while_something_of_its_owner_is_on_the_node() {
    let ground = ground();
    ground.hold("web", None).await.unwrap();
    let lease = ground.store.leases().await.unwrap().remove(0);
    ground.remove_all().await;
    let object = RuntimeObject {
        kind: RuntimeObjectKind::Container,
        name: "sandbox.web_app".into(),
        sandbox: Some(lease.owner.clone()),
        generation: Some(lease.generation),
        role: None,
        made_at: None,
        serial: None,
        strange: false,
        silent: false,
    };
    ground.node.leave(object.clone());
    let held = ground.release(&lease).await.unwrap_err();
    let generation = lease.generation.to_string();
    let figures = pairs(&[
        ("container", "sandbox.web_app"),
        ("generation", &generation),
        ("owner", "web"),
    ]);
    let expected = (Code::FailedPrecondition, "LEASE_HELD".to_owned(), figures);
    assert_eq!(told(&held), expected);
    assert!(ground.forgotten().is_empty(), "its connections are in use");
    ground.node.unreachable(true);
    let unknown = ground.release(&lease).await.unwrap_err();
    assert_eq!(told(&unknown).1, "RUNTIME_UNREACHABLE");
    ground.node.unreachable(false);

    let removed = Runtime::remove_object(&ground.node, &object);
    removed.await.unwrap();
    // Of another life of this id, which has an address of its own.
    ground.node.leave(RuntimeObject {
        generation: Some(Generation(lease.generation.0 + 1)),
        ..object
    });
    ground.release(&lease).await.unwrap();
    assert_eq!(ground.store.leases().await.unwrap(), []);
}

#[tokio::test]
async fn a_subnet_that_is_used_up_says_so_and_is_free_again_when_the_cool_down_is_overridden() {
    let ground = ground();
    for round in 0..2 {
        for number in 0..13 {
            ground
                .hold(&format!("s-{round}-{number}"), None)
                .await
                .unwrap();
        }
        let full = ground.hold("more", None).await.unwrap_err();
        let full = refuse(admit_failure(full));
        let figures = pairs(&[("capacity", "13"), ("held", "13"), ("reserved", "0")]);
        assert_eq!(
            told(&full),
            (
                Code::ResourceExhausted,
                "ADDRESSES_EXHAUSTED".into(),
                figures
            )
        );
        assert_eq!(
            ground.release_resting().await.unwrap(),
            0,
            "held ones stay held"
        );
        ground.remove_all().await;
        assert_eq!(ground.counts().await.cooling, 13);
        ground.node.fail_next("forget_connections", 1);
        let failed = ground.release_resting().await.unwrap_err();
        assert_eq!(told(&failed).1, "NETWORK_FAILED");
        assert_eq!(ground.counts().await.cooling, 13, "they still rest");
        assert_eq!(ground.release_resting().await.unwrap(), 13);
        assert_eq!(ground.store.leases().await.unwrap(), []);
    }
    assert!(
        ground
            .forgotten()
            .iter()
            .any(|it| it.split(' ').count() == 13)
    );
}

#[tokio::test]
async fn a_subnet_is_reserved_counted_and_released() {
    let ground = ground();
    let reserved = ground.reserve("team", 30).await.unwrap();
    let expected = v1::ReservedSubnet {
        identifier: "team".into(),
        subnet: "10.9.0.4/30".into(),
        capacity: 4,
        held: 0,
        resting: 0,
        free: 4,
    };
    assert_eq!(
        (reserved.subnet, reserved.created),
        (Some(expected.clone()), true)
    );
    ground.hold("web", Some("team")).await.unwrap();
    let expected = v1::ReservedSubnet {
        held: 1,
        free: 3,
        ..expected
    };
    let again = ground.reserve("team", 30).await.unwrap();
    assert_eq!(
        (again.subnet, again.created),
        (Some(expected.clone()), false)
    );
    let counts = ground
        .network
        .count_leases(Request::new(v1::CountLeasesRequest {}));
    let counts = counts.await.unwrap().into_inner();
    assert_eq!((counts.capacity, counts.held, counts.free), (13, 1, 12));
    assert_eq!(counts.subnets, std::slice::from_ref(&expected));
    let listed = ground
        .network
        .list_subnets(Request::new(v1::ListSubnetsRequest {}));
    assert_eq!(
        listed.await.unwrap().into_inner().subnets,
        std::slice::from_ref(&expected)
    );

    let in_use = ground.release_subnet("team").await.unwrap_err();
    let figures = pairs(&[("held", "1"), ("subnet", "10.9.0.4/30")]);
    assert_eq!(
        told(&in_use),
        (Code::FailedPrecondition, "SUBNET_IN_USE".into(), figures)
    );
    ground.remove_all().await;
    let former = ground.release_subnet("team").await.unwrap();
    assert_eq!(
        former,
        Some(v1::ReservedSubnet {
            held: 0,
            resting: 1,
            ..expected
        })
    );
    let gone = ground.release_subnet("team").await.unwrap_err();
    assert_eq!(told(&gone).0, Code::NotFound);
}

#[tokio::test]
async fn what_cannot_be_reserved_is_refused_by_its_field_or_with_its_figures() {
    let ground = ground();
    let long = "x".repeat(129);
    let cases = [
        ("", 30, "identifier"),
        ("a\nb", 30, "identifier"),
        (&long, 30, "identifier"),
        ("team", 0, "prefix_length"),
        ("team", 28, "prefix_length"),
        ("team", 31, "prefix_length"),
        ("team", 300, "prefix_length"),
    ];
    for (identifier, prefix_length, field) in cases {
        let refused = ground.reserve(identifier, prefix_length).await.unwrap_err();
        assert_eq!(told(&refused).1, "INVALID_FIELD");
        assert_eq!(fields(&refused), [field], "{identifier:?} {prefix_length}");
    }
    let none = ground.reserve("team", 29).await.unwrap_err();
    let figures = pairs(&[("prefix_length", "29"), ("reserved", "0")]);
    assert_eq!(
        told(&none),
        (Code::ResourceExhausted, "SUBNETS_EXHAUSTED".into(), figures)
    );
    ground.reserve("team", 30).await.unwrap();
    let other = ground.reserve("team", 29).await.unwrap_err();
    let figures = pairs(&[("identifier", "team"), ("subnet", "10.9.0.4/30")]);
    assert_eq!(
        told(&other),
        (Code::AlreadyExists, "SUBNET_CONFLICT".into(), figures)
    );
    for number in 0..4 {
        ground
            .hold(&format!("t-{number}"), Some("team"))
            .await
            .unwrap();
    }
    let full = refuse(admit_failure(
        ground.hold("t", Some("team")).await.unwrap_err(),
    ));
    let figures = pairs(&[("capacity", "4"), ("held", "4"), ("subnet", "team")]);
    assert_eq!(
        told(&full),
        (
            Code::ResourceExhausted,
            "ADDRESSES_EXHAUSTED".into(),
            figures
        )
    );
    let unknown = refuse(admit_failure(
        ground.hold("t", Some("x")).await.unwrap_err(),
    ));
    let figures = pairs(&[("identifier", "x")]);
    assert_eq!(
        told(&unknown),
        (Code::NotFound, "SUBNET_NOT_FOUND".into(), figures)
    );
}

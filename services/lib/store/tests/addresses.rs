//! Whose an address is: reserved subnets, node ports, boots of leases, and what is kept at hand of it all.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_domain::{
    Container, ContainerName, Failure, Generation, ImageRef, NetworkPolicy, Port, Protocol, Reason,
    Resources, SandboxId, SandboxRecord, SandboxSpec, Status, subnets::RESERVED_MAX,
};
use berth_store::{
    AdmitError, Admitted, Arrival, ImportError, LeaseCounts, ReserveError, Store, UnreserveError,
    check, export, import,
};
use ipnet::Ipv4Net;

const COOL_DOWN: Duration = Duration::from_secs(600);

struct Ground {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            path: dir.path().join("s"),
            _dir: dir,
        }
    }

    fn open(&self) -> Store {
        open(&self.path, "10.9.0.0/24")
    }
}

fn open(path: &Path, subnet: &str) -> Store {
    Store::open(path, net(subnet), COOL_DOWN).unwrap()
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn id(text: &str) -> SandboxId {
    SandboxId::parse(text).unwrap()
}

/// A sandbox that takes its address from the subnet of `identifier`.
fn of(identifier: &str) -> SandboxSpec {
    let network = NetworkPolicy {
        subnet: Some(identifier.to_owned()),
        ..NetworkPolicy::default()
    };
    SandboxSpec {
        network,
        ..SandboxSpec::default()
    }
}

/// A sandbox with one port that a port of the node leads to.
fn published(protocol: Protocol, node_port: u16) -> SandboxSpec {
    let port = Port {
        number: 80,
        name: String::new(),
        protocol,
        kind: String::new(),
        node_port: Some(node_port),
    };
    SandboxSpec {
        containers: vec![with_ports(vec![port])],
        ..SandboxSpec::default()
    }
}

fn with_ports(ports: Vec<Port>) -> Container {
    Container {
        name: ContainerName::parse("app").unwrap(),
        image: ImageRef::parse("app").unwrap(),
        command: String::new(),
        args: None,
        directory: String::new(),
        env: vec![],
        ports,
        oom_score: 0,
        tty: false,
        stdin: false,
        config_files: vec![],
        shutdown_timeout: Duration::ZERO,
        resources: Resources::default(),
        readiness_probe: None,
    }
}

async fn admit(store: &Store, name: &str, spec: SandboxSpec) -> Result<SandboxRecord, AdmitError> {
    let arrival = Arrival {
        boot_id: "this-boot".to_owned(),
        ..Arrival::default()
    };
    let (spec, now) = (Arc::new(spec), SystemTime::now());
    match store.admit(&id(name), spec, arrival, now).await? {
        Admitted::Begun(record) => Ok(record),
        Admitted::Joined(record) => panic!("{record:?} was there"),
    }
}

async fn address(store: &Store, name: &str, spec: SandboxSpec) -> Ipv4Addr {
    let record = admit(store, name, spec).await.unwrap();
    record.addresses[0]
        .to_string()
        .parse::<Ipv4Net>()
        .unwrap()
        .addr()
}

async fn remove(store: &Store, name: &str) {
    let record = store.get(&id(name)).await.unwrap().unwrap();
    let removed = store.remove(&record.id, record.generation, SystemTime::now());
    assert!(removed.await.unwrap());
}

async fn reserve(store: &Store, identifier: &str, prefix: u8) -> Result<Ipv4Net, ReserveError> {
    let now = SystemTime::now();
    let reserved = store.reserve_subnet(identifier.to_owned(), prefix, now);
    Ok(reserved.await?.0.subnet)
}

async fn reserved(store: &Store) -> Vec<(String, Ipv4Net, LeaseCounts)> {
    let views = store.reserved_subnets(SystemTime::now()).await;
    let views = views.into_iter();
    views
        .map(|it| (it.identifier, it.subnet, it.counts))
        .collect()
}

#[tokio::test]
async fn the_same_identifier_gets_the_same_subnet_also_after_a_restart() {
    let ground = Ground::new();
    let store = ground.open();
    let now = SystemTime::now();
    let first = store.reserve_subnet("a".to_owned(), 28, now).await.unwrap();
    assert_eq!((first.0.subnet, first.1), (net("10.9.0.16/28"), true));
    let again = store.reserve_subnet("a".to_owned(), 28, now).await.unwrap();
    assert_eq!((again.0, again.1), (first.0, false));
    assert_eq!(reserve(&store, "b", 28).await.unwrap(), net("10.9.0.32/28"));
    drop(store);
    let store = ground.open();
    assert_eq!(reserve(&store, "b", 28).await.unwrap(), net("10.9.0.32/28"));
    assert_eq!(reserve(&store, "a", 28).await.unwrap(), net("10.9.0.16/28"));
    let other = reserve(&store, "a", 27).await.unwrap_err();
    assert!(
        matches!(&other, ReserveError::Conflict { subnet, .. } if *subnet == net("10.9.0.16/28")),
        "{other:?}"
    );
    assert_eq!(reserve(&store, "c", 28).await.unwrap(), net("10.9.0.48/28"));
}

#[tokio::test]
async fn a_subnet_is_reserved_only_where_no_address_is_held_or_rests() {
    let ground = Ground::new();
    let store = ground.open();
    for number in 2..=40 {
        admit(&store, &format!("s-{number}"), SandboxSpec::default())
            .await
            .unwrap();
    }
    // 10.9.0.40 rests.
    remove(&store, "s-40").await;
    assert_eq!(reserve(&store, "a", 29).await.unwrap(), net("10.9.0.48/29"));
    let resting = store.resting().await.unwrap();
    assert_eq!(store.release_resting(resting).await.unwrap(), 1);
    assert_eq!(reserve(&store, "b", 29).await.unwrap(), net("10.9.0.40/29"));
    let none = reserve(&store, "c", 25).await.unwrap_err();
    assert!(
        matches!(
            none,
            ReserveError::Exhausted {
                prefix_length: 25,
                reserved: 2
            }
        ),
        "the second half has the last address: {none:?}"
    );
}

#[tokio::test]
async fn only_who_names_a_subnet_gets_addresses_of_it_until_it_is_used_up() {
    let ground = Ground::new();
    let store = open(&ground.path, "10.9.0.0/28");
    assert_eq!(
        reserve(&store, "team", 30).await.unwrap(),
        net("10.9.0.4/30")
    );
    let mut open = vec![];
    for number in 0..9 {
        let spec = SandboxSpec::default();
        open.push(address(&store, &format!("s-{number}"), spec).await.octets()[3]);
    }
    assert_eq!(open, [2, 3, 8, 9, 10, 11, 12, 13, 14]);
    match admit(&store, "more", SandboxSpec::default())
        .await
        .unwrap_err()
    {
        AdmitError::Exhausted {
            capacity,
            held,
            subnet,
            reserved,
        } => {
            assert_eq!((capacity, held, subnet, reserved), (9, 9, None, 4));
        }
        error @ (AdmitError::Refused(_)
        | AdmitError::SubnetNotFound { .. }
        | AdmitError::TooMany { .. }
        | AdmitError::Store(_)) => {
            panic!("{error}")
        }
    }
    let mut own = vec![];
    for number in 0..4 {
        own.push(
            address(&store, &format!("t-{number}"), of("team"))
                .await
                .octets()[3],
        );
    }
    assert_eq!(own, [4, 5, 6, 7]);
    match admit(&store, "more", of("team")).await.unwrap_err() {
        AdmitError::Exhausted {
            capacity,
            held,
            subnet,
            ..
        } => {
            assert_eq!((capacity, held, subnet.as_deref()), (4, 4, Some("team")));
        }
        error @ (AdmitError::Refused(_)
        | AdmitError::SubnetNotFound { .. }
        | AdmitError::TooMany { .. }
        | AdmitError::Store(_)) => {
            panic!("{error}")
        }
    }
    let unknown = admit(&store, "more", of("other")).await.unwrap_err();
    assert!(
        matches!(&unknown, AdmitError::SubnetNotFound { identifier } if identifier == "other"),
        "{unknown:?}"
    );
    assert_eq!(
        store.get(&id("more")).await.unwrap(),
        None,
        "nothing half made"
    );
    let counts = store.lease_counts().await.unwrap();
    assert_eq!((counts.capacity, counts.held), (13, 13), "all of the node");
    remove(&store, "t-1").await;
    let own = LeaseCounts {
        capacity: 4,
        held: 3,
        cooling: 1,
    };
    assert_eq!(
        reserved(&store).await,
        [("team".to_owned(), net("10.9.0.4/30"), own)]
    );
    let again = address(&store, "t-5", of("team")).await;
    assert_eq!(
        again,
        Ipv4Addr::new(10, 9, 0, 5),
        "it rests, and no other is free"
    );
}

#[tokio::test]
async fn a_subnet_is_released_when_nothing_of_it_is_held_and_is_everybodys_then() {
    let ground = Ground::new();
    let store = open(&ground.path, "10.9.0.0/28");
    reserve(&store, "team", 30).await.unwrap();
    let held = address(&store, "t", of("team")).await;
    let release = || store.unreserve_subnet("team".to_owned());
    let refused = release().await.unwrap_err();
    assert!(
        matches!(refused, UnreserveError::InUse { held: 1, subnet } if subnet == net("10.9.0.4/30")),
        "{refused:?}"
    );
    remove(&store, "t").await;
    let former = release().await.unwrap();
    assert_eq!(
        (former.subnet, former.counts.cooling),
        (net("10.9.0.4/30"), 1)
    );
    let gone = release().await.unwrap_err();
    assert!(matches!(gone, UnreserveError::NotFound { .. }), "{gone:?}");
    let mut given = BTreeSet::new();
    for number in 0..12 {
        let spec = SandboxSpec::default();
        given.insert(address(&store, &format!("s-{number}"), spec).await);
    }
    assert!(!given.contains(&held), "it still rests");
    drop(store);
    assert_eq!(reserved(&open(&ground.path, "10.9.0.0/28")).await, []);
}

#[tokio::test]
async fn there_are_only_so_many_subnets() {
    let ground = Ground::new();
    let store = open(&ground.path, "10.0.0.0/8");
    for number in 0..RESERVED_MAX {
        reserve(&store, &format!("n-{number}"), 30).await.unwrap();
    }
    let full = reserve(&store, "more", 30).await.unwrap_err();
    assert!(
        matches!(full, ReserveError::TooMany { limit } if limit == RESERVED_MAX as u64),
        "{full:?}"
    );
    reserve(&store, "n-0", 30).await.unwrap();
}

#[tokio::test]
async fn a_subnet_of_a_former_subnet_of_the_node_has_no_address_and_can_be_released() {
    let ground = Ground::new();
    let store = ground.open();
    reserve(&store, "team", 26).await.unwrap();
    drop(store);
    let store = open(&ground.path, "10.10.0.0/24");
    assert_eq!(reserved(&store).await[0].2, LeaseCounts::default());
    let none = admit(&store, "t", of("team")).await.unwrap_err();
    assert!(
        matches!(none, AdmitError::Exhausted { capacity: 0, .. }),
        "{none:?}"
    );
    store.unreserve_subnet("team".to_owned()).await.unwrap();
}

#[tokio::test]
async fn subnets_outlive_an_export_and_an_import_which_compares_them_as_networks() {
    let ground = Ground::new();
    let store = ground.open();
    reserve(&store, "a", 28).await.unwrap();
    reserve(&store, "b", 26).await.unwrap();
    let all = reserved(&store).await;
    drop(store);
    assert_eq!(check(&ground.path).unwrap().subnets, 2);
    let mut text = vec![];
    export(&ground.path, &mut text).unwrap();
    let other = Ground::new();
    assert_eq!(
        import(&other.path, text.as_slice(), false).unwrap().subnets,
        2
    );
    let again = import(&other.path, text.as_slice(), false).unwrap_err();
    assert!(matches!(again, ImportError::NotEmpty { .. }), "{again}");
    assert_eq!(reserved(&other.open()).await, all);

    let text = String::from_utf8(text).unwrap();
    for (wrong, problem) in [
        ("10.9.0.96/27", "overlaps"),
        ("10.9.0.0/20", "overlaps"),
        ("10.9.0.1/28", "bits behind its prefix"),
        ("10.9.0.300/28", ""),
    ] {
        let wrong = text.replace("10.9.0.16/28", wrong);
        let error = import(&Ground::new().path, wrong.as_bytes(), false).unwrap_err();
        let ImportError::Line { problem: found, .. } = &error else {
            panic!("{error}");
        };
        assert!(found.contains(problem), "{found}");
    }
}

#[tokio::test]
async fn a_subnet_that_cannot_be_read_is_named() {
    let ground = Ground::new();
    let store = ground.open();
    reserve(&store, "a", 28).await.unwrap();
    drop(store);
    let database = redb::Database::open(&ground.path).unwrap();
    let txn = database.begin_write().unwrap();
    let table = redb::TableDefinition::<&str, &[u8]>::new("subnets");
    let torn: &[u8] = b"{\"subnet\":\"10.9.0.1/28\"}";
    txn.open_table(table).unwrap().insert("b", torn).unwrap();
    txn.commit().unwrap();
    drop(database);
    let store = ground.open();
    assert_eq!(store.unreadable().await.unwrap()[0].key, "subnet b");
    let unreadable = reserve(&store, "b", 28).await.unwrap_err();
    assert!(
        matches!(unreadable, ReserveError::Store(_)),
        "{unreadable:?}"
    );
    assert_eq!(reserved(&store).await.len(), 1);
}

#[tokio::test]
async fn a_lease_keeps_the_boot_in_which_its_sandbox_was_made_last() {
    let ground = Ground::new();
    let store = ground.open();
    let record = admit(&store, "web", SandboxSpec::default()).await.unwrap();
    let boot = async || store.leases().await.unwrap()[0].boot_id.clone();
    assert_eq!(boot().await, "this-boot");
    let now = SystemTime::now();
    let change = |it: &mut SandboxRecord| it.boot_id = "next-boot".to_owned();
    let updated = store.update(&record.id, record.generation, now, change);
    let updated = updated.await.unwrap();
    assert_eq!(
        updated.addresses, record.addresses,
        "they are used again exactly"
    );
    assert_eq!(boot().await, "next-boot");
    remove(&store, "web").await;
    assert_eq!(boot().await, "next-boot", "also while it rests");
    drop(store);
    assert_eq!(
        ground.open().leases().await.unwrap()[0].boot_id,
        "next-boot"
    );
}

#[tokio::test]
async fn what_is_held_is_known_again_after_a_restart() {
    let ground = Ground::new();
    let store = ground.open();
    for name in ["a", "b", "c"] {
        admit(&store, name, SandboxSpec::default()).await.unwrap();
    }
    remove(&store, "b").await;
    let before = store.lease_counts().await.unwrap();
    drop(store);
    let store = ground.open();
    assert_eq!(store.lease_counts().await.unwrap(), before);
    let next = address(&store, "d", SandboxSpec::default()).await;
    assert_eq!(next, Ipv4Addr::new(10, 9, 0, 5), "one rests, two are held");
}

#[tokio::test]
async fn only_what_rests_as_it_was_seen_is_made_free() {
    let ground = Ground::new();
    let store = open(&ground.path, "10.9.0.0/29");
    for number in 0..5 {
        admit(&store, &format!("s-{number}"), SandboxSpec::default())
            .await
            .unwrap();
    }
    remove(&store, "s-0").await;
    remove(&store, "s-1").await;
    let seen = store.resting().await.unwrap();
    assert_eq!(seen.len(), 2);
    // Both are given out again meanwhile, and one comes back.
    admit(&store, "t-0", SandboxSpec::default()).await.unwrap();
    admit(&store, "t-1", SandboxSpec::default()).await.unwrap();
    remove(&store, "t-1").await;
    assert_eq!(store.release_resting(seen).await.unwrap(), 0);
    let held = store.leases().await.unwrap();
    assert_eq!(
        store.release_resting(held).await.unwrap(),
        1,
        "held ones stay held"
    );
    let counts = store.lease_counts().await.unwrap();
    assert_eq!((counts.held, counts.cooling), (4, 0));
}

fn owner(error: &AdmitError) -> Option<&str> {
    match error {
        AdmitError::Refused(Failure {
            reason: Reason::NodePortInUse,
            metadata,
            ..
        }) => metadata.get("owner").map(String::as_str),
        AdmitError::Refused(_)
        | AdmitError::Exhausted { .. }
        | AdmitError::SubnetNotFound { .. }
        | AdmitError::TooMany { .. }
        | AdmitError::Store(_) => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_port_of_the_node_has_one_owner_until_its_end() {
    use Protocol::{Tcp, Udp};
    let ground = Ground::new();
    let store = ground.open();
    let web = admit(&store, "web", published(Tcp, 8080)).await.unwrap();
    let taken = admit(&store, "next", published(Tcp, 8080))
        .await
        .unwrap_err();
    assert_eq!(owner(&taken), Some("web"));
    admit(&store, "udp", published(Udp, 8080)).await.unwrap();
    admit(&store, "other", published(Tcp, 8081)).await.unwrap();
    drop(store);
    let store = ground.open();
    let taken = admit(&store, "next", published(Tcp, 8080))
        .await
        .unwrap_err();
    assert_eq!(owner(&taken), Some("web"), "also after a restart");
    assert_eq!(store.get(&id("next")).await.unwrap(), None);
    let now = SystemTime::now();
    let dead = move |it: &mut SandboxRecord| it.enter(Status::Dead, "", "", now);
    store
        .bury(&web.id, web.generation, now, dead)
        .await
        .unwrap();
    admit(&store, "next", published(Tcp, 8080)).await.unwrap();
    let taken = admit(&store, "web", published(Tcp, 8080))
        .await
        .unwrap_err();
    assert_eq!(owner(&taken), Some("next"), "the former owner has no claim");
}

/// A sandbox in the network of the node that listens on these ports.
fn shared(ports: &[(Protocol, u16)]) -> SandboxSpec {
    let port = |&(protocol, number): &(Protocol, u16)| Port {
        number,
        name: String::new(),
        protocol,
        kind: String::new(),
        node_port: None,
    };
    SandboxSpec {
        host_network: true,
        containers: vec![with_ports(ports.iter().map(port).collect())],
        ..SandboxSpec::default()
    }
}

#[tokio::test]
async fn a_sandbox_in_the_network_of_the_node_has_no_address_and_owns_its_ports_there() {
    use Protocol::{Tcp, Udp};
    let ground = Ground::new();
    let store = ground.open();
    let ports = [(Tcp, 80), (Udp, 53)];
    let host = admit(&store, "host", shared(&ports)).await.unwrap();
    assert_eq!(host.addresses, []);
    assert_eq!(store.leases().await.unwrap(), []);
    let cases = [
        ("the same port", shared(&[(Tcp, 80)])),
        ("one of two", shared(&[(Tcp, 81), (Udp, 53)])),
        ("a node port", published(Tcp, 80)),
    ];
    for (case, spec) in cases {
        let taken = admit(&store, "next", spec).await.unwrap_err();
        assert_eq!(owner(&taken), Some("host"), "{case}");
    }
    admit(&store, "udp", shared(&[(Udp, 80)])).await.unwrap();
    admit(&store, "own", spec_with(Tcp, 80)).await.unwrap();
    admit(&store, "web", published(Tcp, 8080)).await.unwrap();
    let taken = admit(&store, "next", shared(&[(Tcp, 8080)]))
        .await
        .unwrap_err();
    assert_eq!(owner(&taken), Some("web"));
    drop(store);
    let store = ground.open();
    let taken = admit(&store, "next", published(Udp, 53)).await.unwrap_err();
    assert_eq!(owner(&taken), Some("host"), "also after a restart");

    let now = SystemTime::now();
    let enter = |status| move |it: &mut SandboxRecord| it.enter(status, "", "", now);
    let stopped = enter(Status::Stopped);
    store
        .update(&host.id, host.generation, now, stopped)
        .await
        .unwrap();
    let taken = admit(&store, "next", published(Tcp, 80)).await.unwrap_err();
    assert_eq!(
        owner(&taken),
        Some("host"),
        "its processes may still be there"
    );
    let dead = enter(Status::Dead);
    store
        .bury(&host.id, host.generation, now, dead)
        .await
        .unwrap();
    admit(&store, "next", published(Tcp, 80)).await.unwrap();
}

/// A sandbox with a network of its own that listens on this port.
fn spec_with(protocol: Protocol, number: u16) -> SandboxSpec {
    SandboxSpec {
        host_network: false,
        ..shared(&[(protocol, number)])
    }
}

#[tokio::test]
async fn a_port_on_which_a_program_of_the_node_listens_is_nobodys() {
    let ground = Ground::new();
    let store = ground.open();
    let arrival = Arrival {
        node_listens: [(Protocol::Tcp, 8080)].into(),
        ..Arrival::default()
    };
    let begin = |name: &str, spec: SandboxSpec| {
        let now = SystemTime::now();
        let (id, arrival) = (id(name), arrival.clone());
        let store = store.clone();
        async move { store.admit(&id, Arc::new(spec), arrival, now).await }
    };
    let taken = begin("web", published(Protocol::Tcp, 8080))
        .await
        .unwrap_err();
    assert_eq!(owner(&taken), None);
    assert_eq!(store.lease_counts().await.unwrap().held, 0);
    let taken = begin("web", shared(&[(Protocol::Tcp, 8080)]))
        .await
        .unwrap_err();
    assert_eq!(owner(&taken), None);
    let udp = begin("web", published(Protocol::Udp, 8080)).await.unwrap();
    assert!(
        matches!(udp, Admitted::Begun(it) if it.generation > Generation(0)),
        "it listens on the other transport"
    );
}

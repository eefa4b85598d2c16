//! What sandboxes belong to and are found by, and which of them answers for a service at a moment. Endpoints follow from
//! the catalog and the sandboxes; nothing here is stored.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    egress::Lookup,
    id::{Generation, SandboxId},
    image_ref::ImageRef,
    lifecycle::Status,
    record::{BoundPorts, SandboxRecord},
    spec::Protocol,
};

/// What apps have built in years, and few enough that who watches can keep their names.
pub const ENTRIES_MAX: u64 = 100_000;

/// In the order in which entries are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    App,
    Artifact,
    Host,
    Service,
    Version,
}

/// What tells an entry from all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub id: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of its last change.
    pub revision: u64,
    pub object: Object,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    App(App),
    Artifact(Artifact),
    Host(Host),
    Service(Service),
    Version(Version),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    pub id: String,
    pub name: String,
}

/// Addresses that are no sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub id: String,
    /// `None`: every sandbox of the node sees it.
    pub app: Option<String>,
    /// In lower case, without the dot at its end.
    pub name: String,
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub id: String,
    pub app: String,
    /// One label of a domain name.
    pub name: String,
    /// A sandbox must have them all.
    pub labels: BTreeMap<String, String>,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// May be empty.
    pub name: String,
    pub port: u16,
    pub target_port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    pub id: String,
    pub app: String,
    pub image: Option<ImageRef>,
    pub artifact: Option<String>,
    /// Digest of a blob.
    pub static_artifact: Option<String>,
}

/// Something that was built for an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    pub id: String,
    pub status: ArtifactStatus,
    /// Digests of what its manifest names.
    pub blobs: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArtifactStatus {
    #[default]
    Active,
    Archived,
    Empty,
}

/// What of a sandbox decides who finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub id: SandboxId,
    pub generation: Generation,
    pub version: String,
    pub labels: BTreeMap<String, String>,
    pub status: Status,
    /// Those that it holds: none when it is DEAD.
    pub addresses: Vec<IpAddr>,
    /// Which names of others it may ask for.
    pub lookup: Lookup,
    /// What is listened on in the place of its declared ports.
    pub bound_ports: BoundPorts,
}

/// A sandbox that answers for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub service: String,
    pub app: String,
    pub name: String,
    pub sandbox: SandboxId,
    pub generation: Generation,
    pub address: IpAddr,
    /// Its first IPv6 address, where it has one.
    pub address6: Option<Ipv6Addr>,
    pub ports: Vec<ServicePort>,
}

/// Id of the service and of the sandbox.
pub type EndpointKey = (String, SandboxId);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointChange {
    Stands(Endpoint),
    /// As it was.
    Gone(Endpoint),
}

/// The entries by kind and id, as far as they decide who finds whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    apps: BTreeMap<String, App>,
    hosts: BTreeMap<String, Host>,
    services: BTreeMap<String, Service>,
    /// App by version.
    versions: BTreeMap<String, String>,
}

impl Catalog {
    pub fn put(&mut self, object: Object) {
        match object {
            Object::App(it) => drop(self.apps.insert(it.id.clone(), it)),
            Object::Artifact(_) => {}
            Object::Host(it) => drop(self.hosts.insert(it.id.clone(), it)),
            Object::Service(it) => drop(self.services.insert(it.id.clone(), it)),
            Object::Version(it) => drop(self.versions.insert(it.id, it.app)),
        }
    }

    pub fn remove(&mut self, key: &Key) {
        match key.kind {
            Kind::App => drop(self.apps.remove(&key.id)),
            Kind::Artifact => {}
            Kind::Host => drop(self.hosts.remove(&key.id)),
            Kind::Service => drop(self.services.remove(&key.id)),
            Kind::Version => drop(self.versions.remove(&key.id)),
        }
    }

    /// The app that a sandbox of this version belongs to, where the catalog has both.
    pub fn app_of(&self, version: &str) -> Option<&str> {
        let app = self.versions.get(version)?;
        self.apps.contains_key(app).then_some(app.as_str())
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values()
    }

    /// The services that a sandbox answers for, as its endpoints, by id of the service.
    pub fn endpoints_of(&self, it: &Placed) -> Vec<Endpoint> {
        let (Status::Running, Some(&address)) = (it.status, it.addresses.first()) else {
            return vec![];
        };
        let Some(app) = self.app_of(&it.version) else {
            return vec![];
        };
        let address6 = it.addresses.iter().find_map(|it| match it {
            IpAddr::V6(it) => Some(*it),
            IpAddr::V4(_) => None,
        });
        let answers = |service: &&Service| {
            service.app == app
                && service
                    .labels
                    .iter()
                    .all(|(key, value)| it.labels.get(key) == Some(value))
        };
        let endpoint = |service: &Service| Endpoint {
            service: service.id.clone(),
            app: service.app.clone(),
            name: service.name.clone(),
            sandbox: it.id.clone(),
            generation: it.generation,
            address,
            address6,
            ports: service
                .ports
                .iter()
                .map(|port| ServicePort {
                    target_port: it
                        .bound_ports
                        .get(&(port.protocol, port.target_port))
                        .copied()
                        .unwrap_or(port.target_port),
                    ..port.clone()
                })
                .collect(),
        };
        self.services().filter(answers).map(endpoint).collect()
    }
}

/// The endpoints of a node, kept in step with what they follow from.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    catalog: Catalog,
    sandboxes: BTreeMap<SandboxId, Placed>,
    standing: BTreeMap<EndpointKey, Endpoint>,
}

impl Endpoints {
    pub fn new(entries: impl IntoIterator<Item = Object>, sandboxes: Vec<Placed>) -> Self {
        let mut all = Self::default();
        entries.into_iter().for_each(|it| all.catalog.put(it));
        for it in sandboxes {
            all.place(it);
        }
        all
    }

    /// By service and sandbox.
    pub fn standing(&self) -> &BTreeMap<EndpointKey, Endpoint> {
        &self.standing
    }

    pub fn place(&mut self, it: Placed) -> Vec<EndpointChange> {
        let id = it.id.clone();
        self.sandboxes.insert(id.clone(), it);
        self.settle(&id)
    }

    pub fn forget(&mut self, id: &SandboxId, generation: Generation) -> Vec<EndpointChange> {
        // A late word about a former sandbox of this id says nothing about the one that stands.
        if self.sandboxes.get(id).map(|it| it.generation) == Some(generation) {
            self.sandboxes.remove(id);
        }
        self.settle(id)
    }

    pub fn put(&mut self, object: Object) -> Vec<EndpointChange> {
        let key = object.key();
        self.catalog.put(object);
        self.settle_those_of(&key)
    }

    pub fn remove(&mut self, key: &Key) -> Vec<EndpointChange> {
        self.catalog.remove(key);
        self.settle_those_of(key)
    }

    /// Settles whom an entry may concern: there may be far more entries than sandboxes.
    fn settle_those_of(&mut self, key: &Key) -> Vec<EndpointChange> {
        let concerned = |it: &&Placed| match key.kind {
            Kind::App | Kind::Service => true,
            Kind::Version => it.version == key.id,
            Kind::Artifact | Kind::Host => false,
        };
        let concerned = self.sandboxes.values().filter(concerned);
        let ids: Vec<_> = concerned.map(|it| it.id.clone()).collect();
        ids.iter().flat_map(|id| self.settle(id)).collect()
    }

    fn settle(&mut self, id: &SandboxId) -> Vec<EndpointChange> {
        let wanted = match self.sandboxes.get(id) {
            Some(it) => self.catalog.endpoints_of(it),
            None => vec![],
        };
        let mut changes = vec![];
        self.standing.retain(|(_, sandbox), it| {
            let same = |new: &Endpoint| (&new.service, &new.app) == (&it.service, &it.app);
            let stays = sandbox != id || wanted.iter().any(same);
            if !stays {
                changes.push(EndpointChange::Gone(it.clone()));
            }
            stays
        });
        for it in wanted {
            let key = (it.service.clone(), it.sandbox.clone());
            if self.standing.insert(key, it.clone()).as_ref() != Some(&it) {
                changes.push(EndpointChange::Stands(it));
            }
        }
        changes
    }
}

impl Kind {
    pub const ALL: [Kind; 5] = [
        Kind::App,
        Kind::Artifact,
        Kind::Host,
        Kind::Service,
        Kind::Version,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::App => "app",
            Kind::Artifact => "artifact",
            Kind::Host => "host",
            Kind::Service => "service",
            Kind::Version => "version",
        }
    }
}

impl Key {
    /// As `service/web`: sorted as entries are listed.
    pub fn to_text(&self) -> String {
        format!("{}/{}", self.kind.as_str(), self.id)
    }

    pub fn parse(text: &str) -> Option<Self> {
        let (kind, id) = text.split_once('/')?;
        let kind = Kind::ALL.into_iter().find(|it| it.as_str() == kind)?;
        Some(Self {
            kind,
            id: id.to_owned(),
        })
    }
}

impl Object {
    pub fn key(&self) -> Key {
        let (kind, id) = match self {
            Object::App(it) => (Kind::App, &it.id),
            Object::Artifact(it) => (Kind::Artifact, &it.id),
            Object::Host(it) => (Kind::Host, &it.id),
            Object::Service(it) => (Kind::Service, &it.id),
            Object::Version(it) => (Kind::Version, &it.id),
        };
        Key {
            kind,
            id: id.clone(),
        }
    }
}

impl Placed {
    pub fn of(record: &SandboxRecord) -> Self {
        Self {
            id: record.id.clone(),
            generation: record.generation,
            version: record.spec.version.clone(),
            labels: record.spec.labels.clone(),
            status: record.status,
            addresses: record.addresses.iter().map(ipnet::IpNet::addr).collect(),
            lookup: Lookup::of(&record.spec.network),
            bound_ports: record.bound_ports(),
        }
    }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for; `name` is in lower case, without the last dot.
pub fn parse_reverse(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut labels = labels.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = labels.next()?.parse().ok()?;
        }
        return labels
            .next()
            .is_none()
            .then(|| Ipv4Addr::from(octets).into());
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let digits: Vec<_> = labels.split('.').rev().collect();
    let single = digits.len() == 32 && digits.iter().all(|it| it.len() == 1);
    let bits = u128::from_str_radix(&digits.concat(), 16).ok()?;
    single.then(|| Ipv6Addr::from(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(id: &str) -> Object {
        Object::App(App {
            id: id.into(),
            name: id.into(),
        })
    }

    fn version(id: &str, app: &str) -> Object {
        Object::Version(Version {
            id: id.into(),
            app: app.into(),
            ..Version::default()
        })
    }

    fn service(id: &str, app: &str, labels: &[(&str, &str)]) -> Object {
        Object::Service(Service {
            id: id.into(),
            app: app.into(),
            name: "web".into(),
            labels: texts(labels),
            ports: vec![],
        })
    }

    fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pair = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        pairs.iter().map(pair).collect()
    }

    fn placed(version: &str, labels: &[(&str, &str)], status: Status) -> Placed {
        Placed {
            id: SandboxId::parse("a-1").unwrap(),
            generation: Generation(7),
            version: version.into(),
            labels: texts(labels),
            status,
            addresses: vec![[10, 0, 0, 2].into(), [10, 0, 0, 3].into()],
            lookup: Lookup::Any,
            bound_ports: BoundPorts::new(),
        }
    }

    fn catalog() -> Vec<Object> {
        vec![
            app("a"),
            app("b"),
            version("a-v1", "a"),
            version("b-v1", "b"),
            version("lost", "no-such-app"),
            service("a-all", "a", &[]),
            service("a-web", "a", &[("tier", "web")]),
            service("a-both", "a", &[("tier", "web"), ("zone", "x")]),
            service("b-web", "b", &[("tier", "web")]),
        ]
    }

    #[test]
    #[rustfmt::skip]
    fn a_running_sandbox_answers_for_the_services_of_its_app_whose_labels_it_has() {
        use Status::{Dead, NotReady, Pending, Running, Stopped};
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Status, &'a [&'a str]);
        let web = &[("tier", "web")];
        let both = &[("tier", "web"), ("zone", "x"), ("other", "y")];
        let cases: &[Case<'_>] = &[
            ("a-v1", &[],                Running,  &["a-all"]),
            ("a-v1", web,                Running,  &["a-all", "a-web"]),
            ("a-v1", both,               Running,  &["a-all", "a-both", "a-web"]),
            ("a-v1", &[("tier", "db")],  Running,  &["a-all"]),
            ("b-v1", both,               Running,  &["b-web"]),
            ("none", web,                Running,  &[]),
            ("lost", web,                Running,  &[]),
            ("",     web,                Running,  &[]),
            ("a-v1", web,                Pending,  &[]),
            ("a-v1", web,                NotReady, &[]),
            ("a-v1", web,                Stopped,  &[]),
            ("a-v1", web,                Dead,     &[]),
        ];
        for (version, labels, status, expected) in cases {
            let it = placed(version, labels, *status);
            let all = Endpoints::new(catalog(), vec![it]);
            let found: Vec<_> = all.standing().values().map(|it| it.service.as_str()).collect();
            assert_eq!(found, *expected, "{version} {labels:?} {status}");
            for it in all.standing().values() {
                assert_eq!((it.address, it.generation), ([10, 0, 0, 2].into(), Generation(7)));
            }
        }
        let six: [Ipv6Addr; 2] = ["fd00::a00:2", "fd00::a00:3"].map(|it| it.parse().unwrap());
        let mut addresses: Vec<IpAddr> = vec![[10, 0, 0, 2].into()];
        addresses.extend(six.map(IpAddr::from));
        let both = Placed { addresses, ..placed("a-v1", &[], Running) };
        for it in Endpoints::new(catalog(), vec![both]).standing().values() {
            assert_eq!((it.address, it.address6), ([10, 0, 0, 2].into(), Some(six[0])));
        }
        let without = Placed { addresses: vec![], ..placed("a-v1", web, Running) };
        assert!(Endpoints::new(catalog(), vec![without]).standing().is_empty());
    }

    #[test]
    fn an_endpoint_leads_to_where_its_sandbox_really_listens() {
        let port = |protocol, target_port| ServicePort {
            name: String::new(),
            port: 80,
            target_port,
            protocol,
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let mut all = Endpoints::new(catalog(), vec![]);
        all.put(Object::Service(Service {
            id: "b-web".into(),
            app: "b".into(),
            name: "web".into(),
            labels: BTreeMap::new(),
            ports: vec![port(tcp, 8080), port(udp, 8080), port(tcp, 8081)],
        }));
        let mut it = placed("b-v1", &[], Status::Running);
        it.bound_ports.insert((tcp, 8080), 9000);
        let changes = all.place(it);
        let [EndpointChange::Stands(stands)] = changes.as_slice() else {
            panic!("{changes:?}");
        };
        let expected = [port(tcp, 9000), port(udp, 8080), port(tcp, 8081)];
        assert_eq!(stands.ports, expected);
    }

    #[test]
    fn each_change_tells_what_came_and_what_went_and_nothing_else() {
        let mut all = Endpoints::new(catalog(), vec![]);
        let web = placed("b-v1", &[("tier", "web")], Status::Running);
        let stands = |generation| Endpoint {
            service: "b-web".into(),
            app: "b".into(),
            name: "web".into(),
            sandbox: web.id.clone(),
            generation: Generation(generation),
            address: [10, 0, 0, 2].into(),
            address6: None,
            ports: vec![],
        };
        let gone = |generation| EndpointChange::Gone(stands(generation));
        assert_eq!(all.place(web.clone()), [EndpointChange::Stands(stands(7))]);
        assert_eq!(all.place(web.clone()), []);
        assert_eq!(all.put(app("c")), []);
        let key = version("b-v1", "b").key();
        assert_eq!(all.remove(&key), [gone(7)]);
        assert_eq!(
            all.put(version("b-v1", "b")),
            [EndpointChange::Stands(stands(7))]
        );
        let next = Placed {
            generation: Generation(8),
            ..web.clone()
        };
        assert_eq!(all.place(next), [EndpointChange::Stands(stands(8))]);
        assert_eq!(all.forget(&web.id, Generation(7)), [], "it is of before");
        assert_eq!(all.forget(&web.id, Generation(8)), [gone(8)]);
        assert_eq!(all.standing(), Endpoints::default().standing());
    }

    #[test]
    fn a_key_is_read_back_from_its_text() {
        for object in catalog() {
            let key = object.key();
            assert_eq!(Key::parse(&key.to_text()), Some(key));
        }
        let odd = version("a/b", "a").key();
        assert_eq!(Key::parse(&odd.to_text()), Some(odd));
        assert_eq!(Key::parse("thing/a"), None);
    }

    #[test]
    #[rustfmt::skip]
    fn the_address_of_a_reverse_name_is_read() {
        let long = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        let cases = [
            ("2.0.87.10.in-addr.arpa",   Some("10.87.0.2")),
            ("0.87.10.in-addr.arpa",     None),
            ("1.2.0.87.10.in-addr.arpa", None),
            ("256.0.87.10.in-addr.arpa", None),
            ("a.0.87.10.in-addr.arpa",   None),
            ("in-addr.arpa",             None),
            (long,                       Some("fd00::1")),
            ("1.0.ip6.arpa",             None),
            ("app.berth",                None),
        ];
        for (name, expected) in cases {
            let expected = expected.map(|it| it.parse().unwrap());
            assert_eq!(parse_reverse(name), expected, "{name}");
        }
    }
}

//! The catalog between the contract and the domain. What is read here can be kept.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use berth_domain::{
    BoundPorts, Failure, Generation, Lookup, NamePattern, NamedDestination, Protocol, Reason,
    SandboxId, Status, Violation,
    catalog::{
        App, Artifact, ArtifactStatus, Endpoint, Entry, Host, Key, Kind, Object, Placed, Service,
        ServicePort, Version,
    },
    id::check_name,
    image_ref::{ImageRef, is_digest},
};

use crate::{
    inbound::{is_host_name, protocol_from_proto},
    outbound::{named_to_proto, protocol_to_proto},
    v1,
};

const NAME_MAX: usize = 63;
/// As the version in a spec.
const VERSION_MAX: usize = 256;
const LABELS_MAX: usize = 64;
const LABEL_KEY_MAX: usize = 128;
const LABEL_VALUE_MAX: usize = 1024;
const PORTS_MAX: usize = 64;
const ADDRESSES_MAX: usize = 64;
const ARTIFACT_ID_MAX: usize = 256;
const BLOBS_MAX: usize = 512;

/// Reads what an entry says; fields are named from the request.
pub fn object_from_proto(entry: Option<v1::Entry>) -> Result<Object, Failure> {
    use v1::entry::Object as Wire;
    let Some(object) = entry.and_then(|it| it.object) else {
        return Err(Failure::invalid(
            "entry.object",
            "must be one of app, version, service, host, artifact",
        ));
    };
    let mut check = Check::default();
    let object = match object {
        Wire::App(it) => {
            check.name("entry.app.id", &it.id);
            if it.name.len() > NAME_MAX {
                check.wrong(
                    "entry.app.name",
                    format!("must have at most {NAME_MAX} bytes"),
                );
            }
            let name = if it.name.is_empty() {
                it.id.clone()
            } else {
                it.name
            };
            Object::App(App { id: it.id, name })
        }
        Wire::Version(it) => check.version(it),
        Wire::Artifact(it) => check.artifact(it),
        Wire::Service(it) => check.service(it),
        Wire::Host(it) => check.host(it),
    };
    match check.0 {
        wrong if wrong.is_empty() => Ok(object),
        wrong => Err(Failure::of_violations(Reason::InvalidField, wrong)),
    }
}

/// The kind of an entry; `None` is any.
pub fn kind_from_proto(number: i32) -> Result<Option<Kind>, Failure> {
    match v1::EntryKind::try_from(number) {
        Ok(v1::EntryKind::Unspecified) => Ok(None),
        Ok(v1::EntryKind::App) => Ok(Some(Kind::App)),
        Ok(v1::EntryKind::Artifact) => Ok(Some(Kind::Artifact)),
        Ok(v1::EntryKind::Host) => Ok(Some(Kind::Host)),
        Ok(v1::EntryKind::Service) => Ok(Some(Kind::Service)),
        Ok(v1::EntryKind::Version) => Ok(Some(Kind::Version)),
        Err(_) => Err(Failure::invalid("kind", format!("{number} is not a kind"))),
    }
}

/// Which entry a message means.
pub fn key_from_proto(kind: i32, id: String) -> Result<Key, Failure> {
    let kind = kind_from_proto(kind)?;
    let kind = kind.ok_or_else(|| Failure::invalid("kind", "must be given"))?;
    if id.is_empty() {
        return Err(Failure::invalid("id", "must not be empty"));
    }
    Ok(Key { kind, id })
}

pub fn kind_to_proto(kind: Kind) -> v1::EntryKind {
    match kind {
        Kind::App => v1::EntryKind::App,
        Kind::Artifact => v1::EntryKind::Artifact,
        Kind::Host => v1::EntryKind::Host,
        Kind::Service => v1::EntryKind::Service,
        Kind::Version => v1::EntryKind::Version,
    }
}

/// Renders an entry.
pub fn entry_to_proto(it: &Entry) -> v1::Entry {
    use v1::entry::Object as Wire;
    let object = match it.object.clone() {
        Object::App(App { id, name }) => Wire::App(v1::App { id, name }),
        Object::Version(it) => Wire::Version(v1::Version {
            id: it.id,
            app: it.app,
            image: it.image.map(|it| it.to_string()).unwrap_or_default(),
            artifact: it.artifact.unwrap_or_default(),
            static_artifact: it.static_artifact.unwrap_or_default(),
        }),
        Object::Artifact(it) => Wire::Artifact(v1::Artifact {
            id: it.id,
            status: match it.status {
                ArtifactStatus::Active => v1::ArtifactStatus::Active,
                ArtifactStatus::Archived => v1::ArtifactStatus::Archived,
                ArtifactStatus::Empty => v1::ArtifactStatus::Empty,
            }
            .into(),
            blobs: it.blobs,
        }),
        Object::Service(it) => Wire::Service(v1::Service {
            ports: it.ports.iter().map(port_to_proto).collect(),
            id: it.id,
            app: it.app,
            name: it.name,
            labels: it.labels.into_iter().collect(),
        }),
        Object::Host(it) => Wire::Host(v1::Host {
            id: it.id,
            app: it.app.unwrap_or_default(),
            name: it.name,
            addresses: it.addresses.iter().map(ToString::to_string).collect(),
        }),
    };
    v1::Entry {
        revision: it.revision,
        object: Some(object),
    }
}

/// Renders an endpoint.
pub fn endpoint_to_proto(it: &Endpoint) -> v1::Endpoint {
    v1::Endpoint {
        service: it.service.clone(),
        app: it.app.clone(),
        name: it.name.clone(),
        sandbox: it.sandbox.to_string(),
        generation: it.generation.0,
        address: it.address.to_string(),
        address6: it.address6.map(|it| it.to_string()).unwrap_or_default(),
        ports: it.ports.iter().map(port_to_proto).collect(),
    }
}

/// What of a sandbox, as a watch tells it, decides who finds it. `None` for one that this version cannot read.
pub fn placed_from_proto(it: v1::Sandbox) -> Option<Placed> {
    let status = match it.status() {
        v1::SandboxStatus::Pending => Status::Pending,
        v1::SandboxStatus::NotReady => Status::NotReady,
        v1::SandboxStatus::Running => Status::Running,
        v1::SandboxStatus::Stopped => Status::Stopped,
        v1::SandboxStatus::Dead => Status::Dead,
        v1::SandboxStatus::Unspecified => return None,
    };
    let spec = it.spec.unwrap_or_default();
    let addresses = it.addresses.iter().map(|it| {
        let address = it.address.split('/').next().unwrap_or_default();
        address.parse().ok()
    });
    Some(Placed {
        id: SandboxId::parse(&it.id).ok()?,
        generation: Generation(it.generation),
        version: spec.version,
        labels: spec.labels.into_iter().collect(),
        status,
        addresses: addresses.collect::<Option<_>>()?,
        lookup: lookup_from_proto(&spec.network.unwrap_or_default()),
        bound_ports: it.ports.iter().filter_map(bound_port).collect(),
    })
}

/// What of a port says that another one is listened on in its place.
fn bound_port(it: &v1::PortState) -> Option<((Protocol, u16), u16)> {
    let protocol = protocol_from_proto("", it.protocol).ok()?;
    let bound = u16::try_from(it.bound_port).ok().filter(|it| *it != 0)?;
    Some(((protocol, u16::try_from(it.port).ok()?), bound))
}

/// Renders what `placed_from_proto` reads of ports.
pub fn bound_ports_to_proto(it: &BoundPorts) -> Vec<v1::PortState> {
    let state = |(&(protocol, port), &bound_port): (&(Protocol, u16), &u16)| v1::PortState {
        port: port.into(),
        protocol: protocol_to_proto(protocol).into(),
        bound_port: bound_port.into(),
        ..v1::PortState::default()
    };
    it.iter().map(state).collect()
}

/// Which names of others a sandbox of this policy may ask for. A rule that this version cannot read allows none.
fn lookup_from_proto(it: &v1::NetworkPolicy) -> Lookup {
    match v1::EgressMode::try_from(it.egress) {
        Ok(v1::EgressMode::Unspecified | v1::EgressMode::Open) => Lookup::Any,
        Ok(v1::EgressMode::Allow) => {
            let mut by_name = it.egress_rules.iter().filter(|it| !it.dns_name.is_empty());
            let names: Vec<_> = by_name.clone().filter_map(named_from_proto).collect();
            match by_name.next() {
                None if it.egress_rules.is_empty() => Lookup::Nothing,
                None => Lookup::Any,
                Some(_) => Lookup::Named(names.into()),
            }
        }
        Ok(v1::EgressMode::Deny) | Err(_) => Lookup::Nothing,
    }
}

fn named_from_proto(it: &v1::EgressRule) -> Option<NamedDestination> {
    let protocol = protocol_from_proto("", it.protocol).ok()?;
    let port = u16::try_from(it.port).ok()?;
    Some(NamedDestination {
        name: NamePattern::parse(&it.dns_name).ok()?,
        port: (port != 0).then_some((protocol, port)),
    })
}

/// The policy that allows to ask for these names, without the networks that it may allow to reach.
pub fn lookup_to_proto(it: &Lookup) -> Option<v1::NetworkPolicy> {
    let (mode, egress_rules) = match it {
        Lookup::Any => return None,
        Lookup::Nothing => (v1::EgressMode::Deny, vec![]),
        Lookup::Named(rules) => {
            let rules = rules.iter().map(named_to_proto).collect();
            (v1::EgressMode::Allow, rules)
        }
    };
    Some(v1::NetworkPolicy {
        egress: mode.into(),
        egress_rules,
        allow_from: vec![],
        subnet: String::new(),
    })
}

fn port_to_proto(it: &ServicePort) -> v1::ServicePort {
    v1::ServicePort {
        name: it.name.clone(),
        port: it.port.into(),
        target_port: it.target_port.into(),
        protocol: protocol_to_proto(it.protocol).into(),
    }
}

#[derive(Default)]
struct Check(Vec<Violation>);

impl Check {
    fn wrong(&mut self, field: impl Into<String>, problem: impl ToString) {
        self.0.push(Violation {
            field: field.into(),
            problem: problem.to_string(),
        });
    }

    fn name(&mut self, field: &str, text: &str) {
        if let Err(problem) = check_name(text, NAME_MAX) {
            self.wrong(field, problem);
        }
    }

    fn version(&mut self, it: v1::Version) -> Object {
        if !(1..=VERSION_MAX).contains(&it.id.len()) {
            self.wrong(
                "entry.version.id",
                format!("must have 1 to {VERSION_MAX} bytes"),
            );
        }
        self.name("entry.version.app", &it.app);
        let image = match it.image.as_str() {
            "" => None,
            text => ImageRef::parse(text)
                .map_err(|problem| self.wrong("entry.version.image", problem))
                .ok(),
        };
        if it.artifact.len() > ARTIFACT_ID_MAX {
            self.wrong(
                "entry.version.artifact",
                format!("must have at most {ARTIFACT_ID_MAX} bytes"),
            );
        }
        if !it.static_artifact.is_empty() {
            self.digest("entry.version.static_artifact", &it.static_artifact);
        }
        let given = |text: String| (!text.is_empty()).then_some(text);
        Object::Version(Version {
            id: it.id,
            app: it.app,
            image,
            artifact: given(it.artifact),
            static_artifact: given(it.static_artifact),
        })
    }

    fn artifact(&mut self, it: v1::Artifact) -> Object {
        if !(1..=ARTIFACT_ID_MAX).contains(&it.id.len()) {
            self.wrong(
                "entry.artifact.id",
                format!("must have 1 to {ARTIFACT_ID_MAX} bytes"),
            );
        }
        if it.blobs.len() > BLOBS_MAX {
            self.wrong(
                "entry.artifact.blobs",
                format!("must be at most {BLOBS_MAX}"),
            );
        }
        for (place, digest) in it.blobs.iter().take(BLOBS_MAX).enumerate() {
            self.digest(&format!("entry.artifact.blobs[{place}]"), digest);
        }
        let status = match v1::ArtifactStatus::try_from(it.status) {
            Ok(v1::ArtifactStatus::Unspecified | v1::ArtifactStatus::Active) => {
                ArtifactStatus::Active
            }
            Ok(v1::ArtifactStatus::Archived) => ArtifactStatus::Archived,
            Ok(v1::ArtifactStatus::Empty) => ArtifactStatus::Empty,
            Err(_) => {
                self.wrong(
                    "entry.artifact.status",
                    format!("{} is not a status", it.status),
                );
                ArtifactStatus::Active
            }
        };
        Object::Artifact(Artifact {
            id: it.id,
            status,
            blobs: it.blobs,
        })
    }

    fn digest(&mut self, field: &str, text: &str) {
        if !is_digest(text) {
            self.wrong(
                field,
                "must be `sha256:` and 64 hexadecimal digits in lower case",
            );
        }
    }

    fn service(&mut self, it: v1::Service) -> Object {
        self.name("entry.service.id", &it.id);
        self.name("entry.service.app", &it.app);
        self.name("entry.service.name", &it.name);
        let labels = self.labels(it.labels);
        if it.ports.len() > PORTS_MAX {
            self.wrong(
                "entry.service.ports",
                format!("must be at most {PORTS_MAX}"),
            );
        }
        let mut names = BTreeSet::new();
        let mut ports = vec![];
        for (place, it) in it.ports.into_iter().take(PORTS_MAX).enumerate() {
            let field = format!("entry.service.ports[{place}]");
            if !it.name.is_empty() {
                self.name(&format!("{field}.name"), &it.name);
            }
            if !names.insert(it.name.clone()) {
                self.wrong(format!("{field}.name"), "is that of another port");
            }
            let port = self.port(&format!("{field}.port"), it.port);
            let target_port = match it.target_port {
                0 => port,
                number => self.port(&format!("{field}.target_port"), number),
            };
            let protocol = protocol_from_proto(&format!("{field}.protocol"), it.protocol);
            let protocol = protocol.unwrap_or_else(|failure| {
                self.0.extend(failure.violations);
                Protocol::default()
            });
            ports.push(ServicePort {
                name: it.name,
                port,
                target_port,
                protocol,
            });
        }
        Object::Service(Service {
            id: it.id,
            app: it.app,
            name: it.name,
            labels,
            ports,
        })
    }

    fn labels(&mut self, labels: HashMap<String, String>) -> BTreeMap<String, String> {
        let field = "entry.service.labels";
        if labels.len() > LABELS_MAX {
            self.wrong(field, format!("must be at most {LABELS_MAX}"));
        }
        let fits = |(key, value): (&String, &String)| {
            (1..=LABEL_KEY_MAX).contains(&key.len()) && value.len() <= LABEL_VALUE_MAX
        };
        if !labels.iter().all(fits) {
            let problem = format!(
                "must have keys of 1 to {LABEL_KEY_MAX} bytes and values of at most {LABEL_VALUE_MAX}"
            );
            self.wrong(field, problem);
        }
        labels.into_iter().collect()
    }

    fn port(&mut self, field: &str, number: u32) -> u16 {
        let port = u16::try_from(number).ok().filter(|it| *it != 0);
        port.unwrap_or_else(|| {
            self.wrong(field, "must be 1 to 65535");
            0
        })
    }

    fn host(&mut self, it: v1::Host) -> Object {
        self.name("entry.host.id", &it.id);
        if !it.app.is_empty() {
            self.name("entry.host.app", &it.app);
        }
        let name = it.name.strip_suffix('.').unwrap_or(&it.name);
        let name = name.to_ascii_lowercase();
        if !is_host_name(&name) {
            self.wrong(
                "entry.host.name",
                "must be a domain name like `db.example.org`",
            );
        }
        if !(1..=ADDRESSES_MAX).contains(&it.addresses.len()) {
            self.wrong(
                "entry.host.addresses",
                format!("must be 1 to {ADDRESSES_MAX}"),
            );
        }
        let mut addresses: Vec<IpAddr> = vec![];
        for (place, text) in it.addresses.iter().take(ADDRESSES_MAX).enumerate() {
            match text.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => self.wrong(
                    format!("entry.host.addresses[{place}]"),
                    "must be an IPv4 or IPv6 address",
                ),
            }
        }
        Object::Host(Host {
            id: it.id,
            app: (!it.app.is_empty()).then_some(it.app),
            name,
            addresses,
        })
    }
}

#[cfg(test)]
mod tests {
    use v1::entry::Object as Wire;

    use super::*;

    fn entry(object: Wire) -> Option<v1::Entry> {
        Some(v1::Entry {
            revision: 0,
            object: Some(object),
        })
    }

    fn version(id: &str, app: &str) -> v1::Version {
        v1::Version {
            id: id.into(),
            app: app.into(),
            ..v1::Version::default()
        }
    }

    fn digest(number: u8) -> String {
        format!("sha256:{number:064x}")
    }

    fn service() -> v1::Service {
        v1::Service {
            id: "web".into(),
            app: "shop".into(),
            name: "web".into(),
            ..v1::Service::default()
        }
    }

    fn port(name: &str, port: u32, target_port: u32) -> v1::ServicePort {
        v1::ServicePort {
            name: name.into(),
            port,
            target_port,
            protocol: 0,
        }
    }

    fn host(name: &str, addresses: &[&str]) -> Wire {
        Wire::Host(v1::Host {
            id: "db".into(),
            app: String::new(),
            name: name.into(),
            addresses: addresses.iter().map(|it| (*it).to_owned()).collect(),
        })
    }

    #[test]
    fn an_entry_is_read_with_its_defaults_and_rendered_the_same() {
        let ports = vec![port("http", 80, 8080), port("", 443, 0)];
        let labels = [("tier".to_owned(), "web".to_owned())].into();
        let objects = [
            Wire::App(v1::App {
                id: "shop".into(),
                name: "Shop".into(),
            }),
            Wire::Version(v1::Version {
                image: "cluster.local:5000/shop:shop-8f3a".into(),
                artifact: "artifact/shop-8f3a".into(),
                static_artifact: digest(1),
                ..version("shop/1", "shop")
            }),
            Wire::Version(version("shop/2", "shop")),
            Wire::Artifact(v1::Artifact {
                id: "artifact/shop-8f3a".into(),
                status: v1::ArtifactStatus::Archived.into(),
                blobs: vec![digest(2), digest(3)],
            }),
            Wire::Service(v1::Service {
                labels,
                ports,
                ..service()
            }),
            host("DB.example.org.", &["10.1.2.3", "fd00::1"]),
        ];
        for object in objects {
            let object = object_from_proto(entry(object)).unwrap();
            let rendered = entry_to_proto(&Entry {
                revision: 7,
                object: object.clone(),
            });
            assert_eq!(rendered.revision, 7);
            assert_eq!(object_from_proto(Some(rendered)), Ok(object.clone()));
            match object {
                Object::Service(it) => {
                    let targets: Vec<_> = it.ports.iter().map(|it| it.target_port).collect();
                    assert_eq!(targets, [8080, 443]);
                }
                Object::Host(it) => assert_eq!(it.name, "db.example.org"),
                Object::Version(it) if it.id == "shop/1" => {
                    assert!(it.image.is_some() && it.artifact.is_some());
                }
                Object::Artifact(it) => assert_eq!(it.status, ArtifactStatus::Archived),
                Object::App(_) | Object::Version(_) => {}
            }
        }
    }

    #[test]
    #[rustfmt::skip]
    fn what_cannot_be_kept_is_refused_by_its_field() {
        let app = |id: &str, name: &str| Wire::App(v1::App { id: id.into(), name: name.into() });
        let versioned = |change: fn(&mut v1::Version)| {
            let mut it = version("1", "a");
            change(&mut it);
            Wire::Version(it)
        };
        let artifact = |id: &str, blobs: Vec<String>| Wire::Artifact(v1::Artifact { id: id.into(), status: 0, blobs });
        let version = |id: &str, app: &str| Wire::Version(version(id, app));
        let named = |name: &str| Wire::Service(v1::Service { name: name.into(), ..service() });
        let ported = |ports: Vec<v1::ServicePort>| Wire::Service(v1::Service { ports, ..service() });
        let long = "x".repeat(64);
        let cases = [
            (app("", ""),                                         "entry.app.id"),
            (app("A", ""),                                        "entry.app.id"),
            (app("a", &long),                                     "entry.app.name"),
            (version("", "a"),                                    "entry.version.id"),
            (version(&"x".repeat(257), "a"),                      "entry.version.id"),
            (version("1", ""),                                    "entry.version.app"),
            (versioned(|it| it.image = "A".into()),               "entry.version.image"),
            (versioned(|it| it.artifact = "x".repeat(257)),       "entry.version.artifact"),
            (versioned(|it| it.static_artifact = "x".into()),     "entry.version.static_artifact"),
            (artifact("", vec![]),                                "entry.artifact.id"),
            (artifact(&"x".repeat(257), vec![]),                  "entry.artifact.id"),
            (artifact("a", vec![digest(1); 513]),                 "entry.artifact.blobs"),
            (artifact("a", vec![digest(1), "sha256:1".into()]),   "entry.artifact.blobs[1]"),
            (Wire::Artifact(v1::Artifact { id: "a".into(), status: 4, blobs: vec![] }), "entry.artifact.status"),
            (named("a.b"),                                        "entry.service.name"),
            (named("_a"),                                         "entry.service.name"),
            (named("Web"),                                        "entry.service.name"),
            (named(&long),                                        "entry.service.name"),
            (ported(vec![port("", 0, 0)]),                        "entry.service.ports[0].port"),
            (ported(vec![port("", 80, 65536)]),                   "entry.service.ports[0].target_port"),
            (ported(vec![port("a", 80, 0), port("a", 81, 0)]),    "entry.service.ports[1].name"),
            (ported(vec![port("a b", 80, 0)]),                    "entry.service.ports[0].name"),
            (ported(vec![port("", 1, 1); 65]),                    "entry.service.ports"),
            (host("", &["10.0.0.1"]),                             "entry.host.name"),
            (host("a..b", &["10.0.0.1"]),                         "entry.host.name"),
            (host("a", &[]),                                      "entry.host.addresses"),
            (host("a", &["10.0.0.1", "10.0.0.256"]),              "entry.host.addresses[1]"),
        ];
        for (object, field) in cases {
            let failure = object_from_proto(entry(object.clone())).unwrap_err();
            assert_eq!(failure.violations[0].field, field, "{object:?}");
        }
        let labels = [(String::new(), String::new())].into();
        let labelled = Wire::Service(v1::Service { labels, ..service() });
        let failure = object_from_proto(entry(labelled)).unwrap_err();
        assert_eq!(failure.violations[0].field, "entry.service.labels");
        type Make = fn(usize) -> Wire;
        fn labelled_as(labels: impl IntoIterator<Item = (String, String)>) -> Wire {
            Wire::Service(v1::Service { labels: labels.into_iter().collect(), ..service() })
        }
        let edges: [(&str, usize, Make); 12] = [
            ("entry.app.id",             NAME_MAX,        |n| Wire::App(v1::App { id: "a".repeat(n), name: String::new() })),
            ("entry.app.name",           NAME_MAX,        |n| Wire::App(v1::App { id: "a".into(), name: "a".repeat(n) })),
            ("entry.service.name",       NAME_MAX,        |n| Wire::Service(v1::Service { name: "a".repeat(n), ..service() })),
            ("entry.version.id",         VERSION_MAX,     |n| Wire::Version(self::version(&"a".repeat(n), "a"))),
            ("entry.version.artifact",   ARTIFACT_ID_MAX, |n| Wire::Version(v1::Version { artifact: "a".repeat(n), ..self::version("1", "a") })),
            ("entry.artifact.id",        ARTIFACT_ID_MAX, |n| Wire::Artifact(v1::Artifact { id: "a".repeat(n), status: 0, blobs: vec![] })),
            ("entry.artifact.blobs",     BLOBS_MAX,       |n| Wire::Artifact(v1::Artifact { id: "a".into(), status: 0, blobs: (0..n).map(|it| format!("sha256:{it:064x}")).collect() })),
            ("entry.service.labels",     LABELS_MAX,      |n| labelled_as((0..n).map(|it| (it.to_string(), String::new())))),
            ("entry.service.labels",     LABEL_KEY_MAX,   |n| labelled_as([("a".repeat(n), String::new())])),
            ("entry.service.labels",     LABEL_VALUE_MAX, |n| labelled_as([("a".into(), "b".repeat(n))])),
            ("entry.service.ports",      PORTS_MAX,       |n| Wire::Service(v1::Service { ports: (1..=n).map(|it| port(&format!("p{it}"), it.try_into().unwrap(), 0)).collect(), ..service() })),
            ("entry.host.addresses",     ADDRESSES_MAX,   |n| Wire::Host(v1::Host { id: "a".into(), app: String::new(), name: "a".into(), addresses: (0..n).map(|it| format!("10.0.0.{it}")).collect() })),
        ];
        for (field, most, make) in edges {
            let taken = object_from_proto(entry(make(most)));
            assert!(taken.is_ok(), "{field}: {taken:?}");
            let failure = object_from_proto(entry(make(most + 1))).unwrap_err();
            assert_eq!(failure.violations[0].field, field);
        }
        assert!(object_from_proto(None).is_err());
        assert!(kind_from_proto(9).is_err());
        assert!(key_from_proto(0, "a".into()).is_err());
    }
}

//! What is known, in a file: a dns that starts while no manager is there answers from it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use berth_api::{
    catalog::{
        bound_ports_to_proto, entry_to_proto, lookup_to_proto, object_from_proto, placed_from_proto,
    },
    v1,
};
use berth_domain::{
    Status,
    catalog::{Entry, Placed},
};
use prost::Message as _;

use crate::{
    follow::subnets_from_proto,
    known::{Fact, Known},
};

/// Tells the file from any other, and its layout from another one: 1 did not say what a sandbox may ask for.
const BEGIN: &[u8] = b"berth-dns 2\n";

pub(crate) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("known")
}

/// Puts the file in place of the former one, whole or not at all. A power failure may lose it: the manager is there
/// again then, too.
pub(crate) fn save(path: &Path, known: &Known) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, encode(known))?;
    fs::rename(&fresh, path)
}

/// What the file says; nothing where it is missing or cannot be read.
pub(crate) fn load(path: &Path) -> Known {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "what was known cannot be read");
            }
            return Known::default();
        }
    };
    decode(&bytes).unwrap_or_else(|| {
        tracing::warn!(path = %path.display(), "what was known cannot be read");
        Known::default()
    })
}

fn encode(known: &Known) -> Vec<u8> {
    let subnets = known.subnets;
    let status = v1::GetStatusResponse {
        instance_id: known.instance.clone(),
        network: Some(v1::NetworkStatus {
            subnet: subnets.map(|it| it.v4.to_string()).unwrap_or_default(),
            subnet6: subnets
                .and_then(|it| it.v6)
                .map(|it| it.to_string())
                .unwrap_or_default(),
            ..v1::NetworkStatus::default()
        }),
        ..v1::GetStatusResponse::default()
    };
    let sandboxes = v1::ListResponse {
        sandboxes: known.sandboxes.values().map(sandbox).collect(),
        revision: known.sandboxes_revision,
        ..v1::ListResponse::default()
    };
    let entry = |object: &_| {
        entry_to_proto(&Entry {
            revision: 0,
            object: Clone::clone(object),
        })
    };
    let entries = v1::ListEntriesResponse {
        entries: known.entries.values().map(entry).collect(),
        revision: known.catalog_revision,
        ..v1::ListEntriesResponse::default()
    };
    let mut bytes = BEGIN.to_vec();
    bytes.extend(status.encode_length_delimited_to_vec());
    bytes.extend(sandboxes.encode_length_delimited_to_vec());
    bytes.extend(entries.encode_length_delimited_to_vec());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Known> {
    let mut rest = bytes.strip_prefix(BEGIN)?;
    let status = v1::GetStatusResponse::decode_length_delimited(&mut rest).ok()?;
    let sandboxes = v1::ListResponse::decode_length_delimited(&mut rest).ok()?;
    let entries = v1::ListEntriesResponse::decode_length_delimited(&mut rest).ok()?;
    let network = status.network.unwrap_or_default();
    let mut known = Known {
        subnets: match network.subnet.as_str() {
            "" => None,
            _ => Some(subnets_from_proto(&network)?),
        },
        instance: status.instance_id,
        ..Known::default()
    };
    let all = sandboxes.sandboxes.into_iter().map(placed_from_proto);
    known.learn(
        Fact::Sandboxes(all.collect::<Option<_>>()?),
        sandboxes.revision,
    );
    let all = entries.entries.into_iter();
    let all = all.map(|it| object_from_proto(Some(it)).ok());
    known.learn(Fact::Entries(all.collect::<Option<_>>()?), entries.revision);
    Some(known)
}

/// Of a sandbox only what decides who finds it: specs may hold secrets.
fn sandbox(it: &Placed) -> v1::Sandbox {
    let status = match it.status {
        Status::Pending => v1::SandboxStatus::Pending,
        Status::NotReady => v1::SandboxStatus::NotReady,
        Status::Running => v1::SandboxStatus::Running,
        Status::Stopped => v1::SandboxStatus::Stopped,
        Status::Dead => v1::SandboxStatus::Dead,
    };
    let address = |it: &std::net::IpAddr| v1::NetworkAddress {
        address: it.to_string(),
        subnet: String::new(),
    };
    v1::Sandbox {
        id: it.id.to_string(),
        generation: it.generation.0,
        spec: Some(v1::SandboxSpec {
            version: it.version.clone(),
            labels: it.labels.clone().into_iter().collect(),
            network: lookup_to_proto(&it.lookup),
            ..v1::SandboxSpec::default()
        }),
        status: status.into(),
        addresses: it.addresses.iter().map(address).collect(),
        ports: bound_ports_to_proto(&it.bound_ports),
        ..v1::Sandbox::default()
    }
}

#[cfg(test)]
mod tests {
    use berth_domain::{
        Generation, Lookup, NamePattern, NamedDestination, Protocol, SandboxId,
        catalog::{App, Host, Object, Service, ServicePort, Version},
        ipam::Subnets,
    };

    use super::*;

    fn known() -> Known {
        let text = str::to_owned;
        let named = |port: Option<u16>| NamedDestination {
            name: NamePattern::parse("*.example.org").unwrap(),
            port: port.map(|port| (Protocol::Tcp, port)),
        };
        let sandbox = |id: &str, status| Placed {
            id: SandboxId::parse(id).unwrap(),
            generation: Generation(7),
            version: text("shop/1"),
            labels: [(text("tier"), text("web"))].into(),
            status,
            addresses: vec![[10, 9, 0, 2].into(), "fd00::a09:2".parse().unwrap()],
            lookup: match status {
                Status::Pending => Lookup::Nothing,
                Status::Running => Lookup::Named([named(None), named(Some(443))].into()),
                Status::NotReady | Status::Stopped | Status::Dead => Lookup::Any,
            },
            bound_ports: match status {
                Status::Running => [((Protocol::Udp, 8080), 9000)].into(),
                Status::Pending | Status::NotReady | Status::Stopped | Status::Dead => [].into(),
            },
        };
        let port = ServicePort {
            name: text("http"),
            port: 80,
            target_port: 8080,
            protocol: Protocol::Udp,
        };
        let entries = vec![
            Object::App(App {
                id: text("shop"),
                name: text("Shop"),
            }),
            Object::Version(Version {
                id: text("shop/1"),
                app: text("shop"),
                ..Version::default()
            }),
            Object::Host(Host {
                id: text("db"),
                app: Some(text("shop")),
                name: text("db.example.org"),
                addresses: vec!["fd00::1".parse().unwrap()],
            }),
            Object::Service(Service {
                id: text("web"),
                app: text("shop"),
                name: text("web"),
                labels: [(text("tier"), text("web"))].into(),
                ports: vec![port],
            }),
        ];
        let mut known = Known {
            subnets: Some(Subnets {
                v4: "10.9.0.0/24".parse().unwrap(),
                v6: Some("fd00::/64".parse().unwrap()),
            }),
            instance: text("a1"),
            ..Known::default()
        };
        let all = Status::ALL.map(|it| sandbox(&it.as_str().to_lowercase().replace('_', "-"), it));
        known.learn(Fact::Sandboxes(all.to_vec()), 41);
        known.learn(Fact::Entries(entries), 42);
        known
    }

    #[test]
    fn what_was_known_is_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        assert_eq!(load(&path), Known::default());
        for known in [known(), Known::default()] {
            save(&path, &known).unwrap();
            assert_eq!(load(&path), known);
        }
    }

    #[test]
    fn a_file_that_was_cut_or_is_another_one_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let whole = encode(&known());
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(load(&path), Known::default(), "{length} bytes");
        }
        let mut former = whole;
        former[..BEGIN.len()].copy_from_slice(b"berth-dns 1\n");
        for other in [b"something else".as_slice(), &former] {
            fs::write(&path, other).unwrap();
            assert_eq!(load(&path), Known::default());
        }
    }
}

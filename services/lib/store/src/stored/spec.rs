//! How specs lie on disk.

use std::{collections::BTreeMap, time::Duration};

use berth_domain::{
    ConfigFile, Container, ContainerName, Destination, Egress, ImageRef, NamePattern,
    NamedDestination, NetworkPolicy, Port, Probe, ProbeCheck, Protocol, Resources, RestartPolicy,
    Route, SandboxSpec, StaticHost,
};
use serde::{Deserialize, Serialize};

use super::say;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredSpec {
    labels: BTreeMap<String, String>,
    version: String,
    log_entity: String,
    log_attributes: BTreeMap<String, String>,
    port_wait_timeout: Duration,
    restart: StoredRestart,
    routes: Vec<StoredRoute>,
    static_hosts: Vec<StoredHost>,
    containers: Vec<StoredContainer>,
    resources: StoredResources,
    #[serde(default)]
    host_network: bool,
    #[serde(default)]
    network: StoredPolicy,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct StoredPolicy {
    egress: StoredEgress,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    egress_names: Vec<StoredNamed>,
    allow_from: Vec<String>,
    #[serde(default)]
    subnet: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
enum StoredEgress {
    #[default]
    Open,
    Deny,
    Allow(Vec<StoredDestination>),
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredDestination {
    net: ipnet::IpNet,
    port: Option<(StoredProtocol, u16)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredNamed {
    name: String,
    port: Option<(StoredProtocol, u16)>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum StoredRestart {
    Always,
    Never,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredRoute {
    destination: ipnet::Ipv4Net,
    gateway: Option<std::net::Ipv4Addr>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredHost {
    host: String,
    ip: std::net::IpAddr,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredContainer {
    name: String,
    image: String,
    command: String,
    args: Option<Vec<String>>,
    directory: String,
    env: Vec<String>,
    ports: Vec<StoredPort>,
    oom_score: i32,
    #[serde(default)]
    tty: bool,
    #[serde(default)]
    stdin: bool,
    config_files: Vec<StoredFile>,
    shutdown_timeout: Duration,
    resources: StoredResources,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    readiness_probe: Option<StoredProbe>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredProbe {
    check: StoredCheck,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    success_threshold: u32,
    failure_threshold: u32,
}

#[derive(Debug, Serialize, Deserialize)]
enum StoredCheck {
    HttpGet {
        port: u16,
        path: String,
        host: String,
    },
    TcpConnect {
        port: u16,
    },
    Exec {
        command: Vec<String>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredPort {
    number: u16,
    name: String,
    protocol: StoredProtocol,
    kind: String,
    #[serde(default)]
    node_port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum StoredProtocol {
    Tcp,
    Udp,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredFile {
    path: String,
    data: StoredData,
    mode: u32,
}

/// Most files are text, which JSON holds in a third of the space.
#[derive(Debug, Serialize, Deserialize)]
enum StoredData {
    Text(String),
    Bytes(Vec<u8>),
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredResources {
    cpu_millis: Option<u32>,
    memory_bytes: Option<u64>,
    memory_high_bytes: Option<u64>,
    pids: Option<u32>,
}

impl From<&SandboxSpec> for StoredSpec {
    fn from(it: &SandboxSpec) -> Self {
        Self {
            labels: it.labels.clone(),
            version: it.version.clone(),
            log_entity: it.log_entity.clone(),
            log_attributes: it.log_attributes.clone(),
            port_wait_timeout: it.port_wait_timeout,
            restart: match it.restart_policy {
                RestartPolicy::Always => StoredRestart::Always,
                RestartPolicy::Never => StoredRestart::Never,
            },
            routes: it
                .routes
                .iter()
                .map(|it| StoredRoute {
                    destination: it.destination,
                    gateway: it.gateway,
                })
                .collect(),
            static_hosts: it
                .static_hosts
                .iter()
                .map(|it| StoredHost {
                    host: it.host.clone(),
                    ip: it.ip,
                })
                .collect(),
            containers: it.containers.iter().map(StoredContainer::from).collect(),
            resources: it.resources.into(),
            host_network: it.host_network,
            network: (&it.network).into(),
        }
    }
}

impl From<&Container> for StoredContainer {
    fn from(it: &Container) -> Self {
        Self {
            name: it.name.to_string(),
            image: it.image.to_string(),
            command: it.command.clone(),
            args: it.args.clone(),
            directory: it.directory.clone(),
            env: it.env.clone(),
            ports: it
                .ports
                .iter()
                .map(|it| StoredPort {
                    number: it.number,
                    name: it.name.clone(),
                    protocol: it.protocol.into(),
                    kind: it.kind.clone(),
                    node_port: it.node_port,
                })
                .collect(),
            oom_score: it.oom_score,
            tty: it.tty,
            stdin: it.stdin,
            config_files: it
                .config_files
                .iter()
                .map(|it| StoredFile {
                    path: it.path.clone(),
                    data: match std::str::from_utf8(&it.data) {
                        Ok(text) => StoredData::Text(text.to_owned()),
                        Err(_) => StoredData::Bytes(it.data.clone()),
                    },
                    mode: it.mode,
                })
                .collect(),
            shutdown_timeout: it.shutdown_timeout,
            resources: it.resources.into(),
            readiness_probe: it.readiness_probe.as_ref().map(StoredProbe::from),
        }
    }
}

impl From<&Probe> for StoredProbe {
    fn from(it: &Probe) -> Self {
        Self {
            check: match it.check.clone() {
                ProbeCheck::HttpGet { port, path, host } => {
                    StoredCheck::HttpGet { port, path, host }
                }
                ProbeCheck::TcpConnect { port } => StoredCheck::TcpConnect { port },
                ProbeCheck::Exec { command } => StoredCheck::Exec { command },
            },
            initial_delay: it.initial_delay,
            period: it.period,
            timeout: it.timeout,
            success_threshold: it.success_threshold,
            failure_threshold: it.failure_threshold,
        }
    }
}

impl From<StoredProbe> for Probe {
    fn from(it: StoredProbe) -> Self {
        Self {
            check: match it.check {
                StoredCheck::HttpGet { port, path, host } => {
                    ProbeCheck::HttpGet { port, path, host }
                }
                StoredCheck::TcpConnect { port } => ProbeCheck::TcpConnect { port },
                StoredCheck::Exec { command } => ProbeCheck::Exec { command },
            },
            initial_delay: it.initial_delay,
            period: it.period,
            timeout: it.timeout,
            success_threshold: it.success_threshold,
            failure_threshold: it.failure_threshold,
        }
    }
}

impl From<Resources> for StoredResources {
    fn from(it: Resources) -> Self {
        let Resources {
            cpu_millis,
            memory_bytes,
            memory_high_bytes,
            pids,
        } = it;
        Self {
            cpu_millis,
            memory_bytes,
            memory_high_bytes,
            pids,
        }
    }
}

impl From<StoredResources> for Resources {
    fn from(it: StoredResources) -> Self {
        let StoredResources {
            cpu_millis,
            memory_bytes,
            memory_high_bytes,
            pids,
        } = it;
        Self {
            cpu_millis,
            memory_bytes,
            memory_high_bytes,
            pids,
        }
    }
}

impl From<Protocol> for StoredProtocol {
    fn from(it: Protocol) -> Self {
        match it {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

impl From<StoredProtocol> for Protocol {
    fn from(it: StoredProtocol) -> Self {
        match it {
            StoredProtocol::Tcp => Self::Tcp,
            StoredProtocol::Udp => Self::Udp,
        }
    }
}

pub(super) fn name(text: &str) -> Result<ContainerName, String> {
    ContainerName::parse(text).map_err(|it| format!("container `{text}`: {it}"))
}

impl TryFrom<StoredSpec> for SandboxSpec {
    type Error = String;

    fn try_from(it: StoredSpec) -> Result<Self, String> {
        Ok(Self {
            labels: it.labels,
            version: it.version,
            log_entity: it.log_entity,
            log_attributes: it.log_attributes,
            port_wait_timeout: it.port_wait_timeout,
            restart_policy: match it.restart {
                StoredRestart::Always => RestartPolicy::Always,
                StoredRestart::Never => RestartPolicy::Never,
            },
            routes: it
                .routes
                .into_iter()
                .map(|it| Route {
                    destination: it.destination,
                    gateway: it.gateway,
                })
                .collect(),
            static_hosts: it
                .static_hosts
                .into_iter()
                .map(|it| StaticHost {
                    host: it.host,
                    ip: it.ip,
                })
                .collect(),
            containers: it
                .containers
                .into_iter()
                .map(Container::try_from)
                .collect::<Result<_, _>>()?,
            resources: it.resources.into(),
            host_network: it.host_network,
            network: it.network.try_into()?,
        })
    }
}

impl From<&NetworkPolicy> for StoredPolicy {
    fn from(it: &NetworkPolicy) -> Self {
        let destination = |it: &Destination| StoredDestination {
            net: it.net,
            port: it.port.map(|(protocol, port)| (protocol.into(), port)),
        };
        Self {
            egress: match &it.egress {
                Egress::Open => StoredEgress::Open,
                Egress::Deny => StoredEgress::Deny,
                Egress::Allow(list) => StoredEgress::Allow(list.iter().map(destination).collect()),
            },
            egress_names: it.egress_names.iter().map(StoredNamed::from).collect(),
            allow_from: it.allow_from.clone(),
            subnet: it.subnet.clone(),
        }
    }
}

impl From<&NamedDestination> for StoredNamed {
    fn from(it: &NamedDestination) -> Self {
        Self {
            name: it.name.to_string(),
            port: it.port.map(|(protocol, port)| (protocol.into(), port)),
        }
    }
}

impl TryFrom<StoredNamed> for NamedDestination {
    type Error = String;

    fn try_from(it: StoredNamed) -> Result<Self, String> {
        Ok(Self {
            name: NamePattern::parse(&it.name).map_err(say)?,
            port: it.port.map(|(protocol, port)| (protocol.into(), port)),
        })
    }
}

impl TryFrom<StoredPolicy> for NetworkPolicy {
    type Error = String;

    fn try_from(it: StoredPolicy) -> Result<Self, String> {
        let destination = |it: StoredDestination| Destination {
            net: it.net,
            port: it.port.map(|(protocol, port)| (protocol.into(), port)),
        };
        Ok(Self {
            egress: match it.egress {
                StoredEgress::Open => Egress::Open,
                StoredEgress::Deny => Egress::Deny,
                StoredEgress::Allow(list) => {
                    Egress::Allow(list.into_iter().map(destination).collect())
                }
            },
            egress_names: it
                .egress_names
                .into_iter()
                .map(NamedDestination::try_from)
                .collect::<Result<_, _>>()?,
            allow_from: it.allow_from,
            subnet: it.subnet,
        })
    }
}

impl TryFrom<StoredContainer> for Container {
    type Error = String;

    fn try_from(it: StoredContainer) -> Result<Self, String> {
        Ok(Self {
            name: name(&it.name)?,
            image: ImageRef::parse(&it.image).map_err(say)?,
            command: it.command,
            args: it.args,
            directory: it.directory,
            env: it.env,
            ports: it
                .ports
                .into_iter()
                .map(|it| Port {
                    number: it.number,
                    name: it.name,
                    protocol: it.protocol.into(),
                    kind: it.kind,
                    node_port: it.node_port,
                })
                .collect(),
            oom_score: it.oom_score,
            tty: it.tty,
            stdin: it.stdin,
            config_files: it
                .config_files
                .into_iter()
                .map(|it| ConfigFile {
                    path: it.path,
                    data: match it.data {
                        StoredData::Text(text) => text.into_bytes(),
                        StoredData::Bytes(bytes) => bytes,
                    },
                    mode: it.mode,
                })
                .collect(),
            shutdown_timeout: it.shutdown_timeout,
            resources: it.resources.into(),
            readiness_probe: it.readiness_probe.map(Into::into),
        })
    }
}

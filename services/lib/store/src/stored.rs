//! How records lie on disk: JSON whose field names are this file's, so that a renamed field elsewhere loses nothing.

mod catalog;
mod collection;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_domain::{
    ConfigFile, Container, ContainerName, Destination, Egress, ExitCause, ExitRecord, Failure,
    Generation, ImageRef, NamePattern, NamedDestination, NetworkPolicy, Phase, Port, PortSighting,
    Probe, ProbeCheck, Protocol, Reason, Resources, RestartPolicy, Role, Route, SandboxId,
    SandboxRecord, SandboxSpec, StaticHost, Status, Violation, record::Ending,
};
use serde::{Deserialize, Serialize};

pub(crate) use catalog::StoredEntry;
pub(crate) use collection::StoredCollection;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredRecord {
    id: String,
    generation: u64,
    revision: u64,
    spec: StoredSpec,
    status: String,
    reason: String,
    message: String,
    since: SystemTime,
    created_at: SystemTime,
    updated_at: SystemTime,
    ending: Option<StoredEnding>,
    addresses: Vec<ipnet::IpNet>,
    #[serde(default)]
    held_images: BTreeMap<String, String>,
    images: BTreeMap<String, String>,
    exit: Option<StoredExit>,
    failure: Option<StoredFailure>,
    phases: Vec<StoredPhase>,
    ports: Vec<StoredSighting>,
    expires_at: Option<SystemTime>,
    boot_id: String,
    #[serde(default)]
    restarts: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredLease {
    pub(crate) owner: String,
    pub(crate) generation: u64,
    pub(crate) released_at: Option<SystemTime>,
    #[serde(default)]
    pub(crate) boot_id: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredSubnet {
    pub(crate) subnet: ipnet::Ipv4Net,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum StoredChange {
    Upserted(Box<StoredRecord>),
    Removed { id: String, generation: u64 },
    EntryPut(StoredEntry),
    EntryRemoved { kind: String, id: String },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum StoredEnding {
    Stop,
    Expire,
    Delete,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredSpec {
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

#[derive(Debug, Serialize, Deserialize)]
struct StoredExit {
    /// `pause`, which no app container can be called, or the name of an app container.
    role: String,
    code: u32,
    signal: Option<u32>,
    at: SystemTime,
    cause: StoredCause,
    oom_cgroup: String,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum StoredCause {
    Exit,
    Signal,
    Oom,
    RuntimeLost,
    Unknown,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredFailure {
    reason: String,
    message: String,
    metadata: BTreeMap<String, String>,
    violations: Vec<(String, String)>,
    retry_after: Option<Duration>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredPhase {
    name: String,
    container: String,
    start: Duration,
    took: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredSighting {
    container: String,
    port: u16,
    protocol: StoredProtocol,
    bound: bool,
    address: String,
    source: String,
    at: SystemTime,
    #[serde(default)]
    bound_port: Option<u16>,
}

impl StoredRecord {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

impl From<&SandboxRecord> for StoredRecord {
    fn from(it: &SandboxRecord) -> Self {
        Self {
            id: it.id.to_string(),
            generation: it.generation.0,
            revision: it.revision,
            spec: it.spec.as_ref().into(),
            status: it.status.as_str().to_owned(),
            reason: it.reason.clone(),
            message: it.message.clone(),
            since: it.since,
            created_at: it.created_at,
            updated_at: it.updated_at,
            ending: it.ending.map(|it| match it {
                Ending::Stop => StoredEnding::Stop,
                Ending::Expire => StoredEnding::Expire,
                Ending::Delete => StoredEnding::Delete,
            }),
            addresses: it.addresses.clone(),
            held_images: it
                .held_images
                .iter()
                .map(|(image, digest)| (image.to_string(), digest.clone()))
                .collect(),
            images: it
                .images
                .iter()
                .map(|(name, digest)| (name.to_string(), digest.clone()))
                .collect(),
            exit: it.exit.as_ref().map(|it| StoredExit {
                role: it.role.to_string(),
                code: it.code,
                signal: it.signal,
                at: it.at,
                cause: match it.cause {
                    ExitCause::Exit => StoredCause::Exit,
                    ExitCause::Signal => StoredCause::Signal,
                    ExitCause::Oom => StoredCause::Oom,
                    ExitCause::RuntimeLost => StoredCause::RuntimeLost,
                    ExitCause::Unknown => StoredCause::Unknown,
                },
                oom_cgroup: it.oom_cgroup.clone(),
            }),
            failure: it.failure.as_ref().map(|it| StoredFailure {
                reason: it.reason.as_str().to_owned(),
                message: it.message.clone(),
                metadata: it.metadata.clone(),
                violations: it
                    .violations
                    .iter()
                    .map(|it| (it.field.clone(), it.problem.clone()))
                    .collect(),
                retry_after: it.retry_after,
            }),
            phases: it
                .phases
                .iter()
                .map(|it| StoredPhase {
                    name: it.name.clone(),
                    container: it.container.clone(),
                    start: it.start,
                    took: it.took,
                })
                .collect(),
            ports: it
                .ports
                .iter()
                .map(|it| StoredSighting {
                    container: it.container.to_string(),
                    port: it.port,
                    protocol: it.protocol.into(),
                    bound: it.bound,
                    address: it.address.clone(),
                    source: it.source.clone(),
                    at: it.at,
                    bound_port: it.bound_port,
                })
                .collect(),
            expires_at: it.expires_at,
            boot_id: it.boot_id.clone(),
            restarts: it.restarts,
        }
    }
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

fn say(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn name(text: &str) -> Result<ContainerName, String> {
    ContainerName::parse(text).map_err(|it| format!("container `{text}`: {it}"))
}

impl TryFrom<StoredRecord> for SandboxRecord {
    type Error = String;

    fn try_from(it: StoredRecord) -> Result<Self, String> {
        Ok(Self {
            id: SandboxId::parse(&it.id).map_err(say)?,
            generation: Generation(it.generation),
            revision: it.revision,
            spec: Arc::new(it.spec.try_into()?),
            status: Status::parse(&it.status).ok_or_else(|| format!("status `{}`", it.status))?,
            reason: it.reason,
            message: it.message,
            since: it.since,
            created_at: it.created_at,
            updated_at: it.updated_at,
            ending: it.ending.map(|it| match it {
                StoredEnding::Stop => Ending::Stop,
                StoredEnding::Expire => Ending::Expire,
                StoredEnding::Delete => Ending::Delete,
            }),
            addresses: it.addresses,
            held_images: it
                .held_images
                .into_iter()
                .map(|(image, digest)| {
                    let image = ImageRef::parse(&image);
                    Ok((image.map_err(|it| format!("held image: {it}"))?, digest))
                })
                .collect::<Result<_, String>>()?,
            images: it
                .images
                .into_iter()
                .map(|(container, digest)| Ok((name(&container)?, digest)))
                .collect::<Result<_, String>>()?,
            exit: it.exit.map(TryInto::try_into).transpose()?,
            failure: it.failure.map(TryInto::try_into).transpose()?,
            phases: it
                .phases
                .into_iter()
                .map(|it| Phase {
                    name: it.name,
                    container: it.container,
                    start: it.start,
                    took: it.took,
                })
                .collect(),
            ports: it
                .ports
                .into_iter()
                .map(|it| {
                    Ok(PortSighting {
                        container: name(&it.container)?,
                        port: it.port,
                        protocol: it.protocol.into(),
                        bound: it.bound,
                        address: it.address,
                        source: it.source,
                        at: it.at,
                        bound_port: it.bound_port,
                    })
                })
                .collect::<Result<_, String>>()?,
            expires_at: it.expires_at,
            boot_id: it.boot_id,
            restarts: it.restarts,
        })
    }
}

impl TryFrom<StoredExit> for ExitRecord {
    type Error = String;

    fn try_from(it: StoredExit) -> Result<Self, String> {
        Ok(Self {
            role: match it.role.as_str() {
                "pause" => Role::Pause,
                text => Role::App(name(text)?),
            },
            code: it.code,
            signal: it.signal,
            at: it.at,
            cause: match it.cause {
                StoredCause::Exit => ExitCause::Exit,
                StoredCause::Signal => ExitCause::Signal,
                StoredCause::Oom => ExitCause::Oom,
                StoredCause::RuntimeLost => ExitCause::RuntimeLost,
                StoredCause::Unknown => ExitCause::Unknown,
            },
            oom_cgroup: it.oom_cgroup,
        })
    }
}

impl TryFrom<StoredFailure> for Failure {
    type Error = String;

    fn try_from(it: StoredFailure) -> Result<Self, String> {
        Ok(Self {
            reason: Reason::parse(&it.reason).ok_or_else(|| format!("reason `{}`", it.reason))?,
            message: it.message,
            metadata: it.metadata,
            violations: it
                .violations
                .into_iter()
                .map(|(field, problem)| Violation { field, problem })
                .collect(),
            retry_after: it.retry_after,
        })
    }
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

#[cfg(test)]
mod tests;

//! How records lie on disk: JSON whose field names are this file's, so that a renamed field elsewhere loses nothing.

mod catalog;
mod collection;
mod spec;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_domain::{
    ExitCause, ExitRecord, Failure, Generation, ImageRef, Phase, PortSighting, Reason, Role,
    SandboxId, SandboxRecord, Status, Violation, record::Ending,
};
use serde::{Deserialize, Serialize};

pub(crate) use catalog::StoredEntry;
pub(crate) use collection::StoredCollection;
pub(crate) use spec::StoredProtocol;
use spec::{StoredSpec, name};

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

fn say(error: impl std::fmt::Display) -> String {
    error.to_string()
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

#[cfg(test)]
mod tests;

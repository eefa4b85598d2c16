//! How entries of the catalog lie on disk.

use std::{collections::BTreeMap, net::IpAddr};

use berth_domain::{
    ImageRef,
    catalog::{App, Artifact, ArtifactStatus, Entry, Host, Object, Service, ServicePort, Version},
};
use serde::{Deserialize, Serialize};

use super::{StoredProtocol, say};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredEntry {
    revision: u64,
    object: StoredObject,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum StoredObject {
    App {
        id: String,
        name: String,
    },
    Host {
        id: String,
        app: Option<String>,
        name: String,
        addresses: Vec<IpAddr>,
    },
    Service {
        id: String,
        app: String,
        name: String,
        labels: BTreeMap<String, String>,
        ports: Vec<StoredServicePort>,
    },
    Version {
        id: String,
        app: String,
        #[serde(default)]
        image: Option<String>,
        #[serde(default)]
        artifact: Option<String>,
        #[serde(default)]
        static_artifact: Option<String>,
    },
    Artifact {
        id: String,
        status: StoredArtifactStatus,
        blobs: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum StoredArtifactStatus {
    Active,
    Archived,
    Empty,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredServicePort {
    name: String,
    port: u16,
    target_port: u16,
    protocol: StoredProtocol,
}

impl From<&Entry> for StoredEntry {
    fn from(it: &Entry) -> Self {
        let port = |it: &ServicePort| StoredServicePort {
            name: it.name.clone(),
            port: it.port,
            target_port: it.target_port,
            protocol: it.protocol.into(),
        };
        let object = match it.object.clone() {
            Object::App(App { id, name }) => StoredObject::App { id, name },
            Object::Host(it) => StoredObject::Host {
                id: it.id,
                app: it.app,
                name: it.name,
                addresses: it.addresses,
            },
            Object::Service(it) => StoredObject::Service {
                id: it.id,
                app: it.app,
                name: it.name,
                labels: it.labels,
                ports: it.ports.iter().map(port).collect(),
            },
            Object::Version(it) => StoredObject::Version {
                id: it.id,
                app: it.app,
                image: it.image.map(|it| it.to_string()),
                artifact: it.artifact,
                static_artifact: it.static_artifact,
            },
            Object::Artifact(it) => StoredObject::Artifact {
                id: it.id,
                status: it.status.into(),
                blobs: it.blobs,
            },
        };
        Self {
            revision: it.revision,
            object,
        }
    }
}

impl TryFrom<StoredEntry> for Entry {
    type Error = String;

    fn try_from(it: StoredEntry) -> Result<Self, String> {
        let port = |it: StoredServicePort| ServicePort {
            name: it.name,
            port: it.port,
            target_port: it.target_port,
            protocol: it.protocol.into(),
        };
        let object = match it.object {
            StoredObject::App { id, name } => Object::App(App { id, name }),
            StoredObject::Host {
                id,
                app,
                name,
                addresses,
            } => Object::Host(Host {
                id,
                app,
                name,
                addresses,
            }),
            StoredObject::Service {
                id,
                app,
                name,
                labels,
                ports,
            } => Object::Service(Service {
                id,
                app,
                name,
                labels,
                ports: ports.into_iter().map(port).collect(),
            }),
            StoredObject::Version {
                id,
                app,
                image,
                artifact,
                static_artifact,
            } => Object::Version(Version {
                id,
                app,
                image: image
                    .map(|it| ImageRef::parse(&it))
                    .transpose()
                    .map_err(say)?,
                artifact,
                static_artifact,
            }),
            StoredObject::Artifact { id, status, blobs } => Object::Artifact(Artifact {
                id,
                status: status.into(),
                blobs,
            }),
        };
        Ok(Self {
            revision: it.revision,
            object,
        })
    }
}

impl From<ArtifactStatus> for StoredArtifactStatus {
    fn from(it: ArtifactStatus) -> Self {
        match it {
            ArtifactStatus::Active => Self::Active,
            ArtifactStatus::Archived => Self::Archived,
            ArtifactStatus::Empty => Self::Empty,
        }
    }
}

impl From<StoredArtifactStatus> for ArtifactStatus {
    fn from(it: StoredArtifactStatus) -> Self {
        match it {
            StoredArtifactStatus::Active => Self::Active,
            StoredArtifactStatus::Archived => Self::Archived,
            StoredArtifactStatus::Empty => Self::Empty,
        }
    }
}

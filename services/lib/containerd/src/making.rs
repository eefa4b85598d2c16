//! How the containers of a sandbox are made: what containerd is told of them, and the layer that an app writes to.

use std::collections::HashMap;

use berth_domain::{ContainerName, Role, Sandbox, SandboxId, cgroups::Driver, names};
use berth_platform::RuntimeError;
use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, GetContainerRequest, container,
        snapshots::{MountsRequest, PrepareSnapshotRequest},
    },
    types::Mount,
};
use prost_types::Any;
use tonic::Code;

use crate::{
    Containerd,
    client::{CallError, Client, found, made},
    content,
    errors::{of_image, refused},
    images::{blocking, target_of},
    settings::PauseRootfs,
    spec, users,
};

const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const RUNC_OPTIONS_TYPE: &str = "containerd.runc.v1.Options";

/// Options of `io.containerd.runc.v2`, as far as they are used.
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
    #[prost(bool, tag = "9")]
    systemd_cgroup: bool,
}

impl Containerd {
    /// Labels of a container: the caller's, then the system's, which win.
    fn labels(&self, sandbox: &Sandbox, role: &Role) -> HashMap<String, String> {
        let spec = &sandbox.spec;
        let mut labels: HashMap<String, String> = spec.labels.clone().into_iter().collect();
        let mut set = |key: &str, value: String| drop(labels.insert(key.to_owned(), value));
        for (key, value) in spec::marks(self.names().instance.as_str(), &sandbox.id) {
            set(&key, value);
        }
        set(names::LABEL_GENERATION, sandbox.generation.to_string());
        if !spec.version.is_empty() {
            set(names::LABEL_VERSION_ENTITY, spec.version.clone());
        }
        match role {
            Role::Pause => {
                set(names::LABEL_SANDBOX_VERSION, sandbox.generation.to_string());
                set(names::LABEL_CONTAINER_KIND, "sandbox".to_owned());
                let entity = match spec.log_entity.as_str() {
                    "" => sandbox.id.to_string(),
                    text => text.to_owned(),
                };
                set(names::LABEL_LOG_ENTITY, entity);
                for (at, net) in sandbox.addresses.iter().enumerate() {
                    let number = if at == 0 {
                        String::new()
                    } else {
                        at.to_string()
                    };
                    set(
                        &format!("{}{number}", names::LABEL_IP),
                        net.addr().to_string(),
                    );
                }
            }
            Role::App(name) => {
                if let Some(container) = spec.container(name) {
                    let timeout = container.shutdown_timeout;
                    set(
                        names::LABEL_SHUTDOWN_TIMEOUT,
                        format!("{}s", timeout.as_secs_f64()),
                    );
                }
            }
        }
        labels
    }

    fn runtime_of(&self) -> container::Runtime {
        use prost::Message as _;
        let settings = &self.0.settings;
        let options = RuncOptions {
            binary_name: settings.runtime_binary.clone().unwrap_or_default(),
            systemd_cgroup: settings.cgroup_driver == Driver::Systemd,
        };
        let options = (options != RuncOptions::default()).then(|| Any {
            type_url: RUNC_OPTIONS_TYPE.to_owned(),
            value: options.encode_to_vec(),
        });
        container::Runtime {
            name: settings.handler.clone(),
            options,
        }
    }

    /// Makes the writable layer of a container; one that is there is as good.
    pub(crate) async fn prepare_snapshot(
        &self,
        client: &Client,
        id: &SandboxId,
        key: &str,
        parent: String,
    ) -> Result<Vec<Mount>, CallError> {
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter().to_owned(),
            key: key.to_owned(),
            parent,
            labels: HashMap::from(spec::marks(self.names().instance.as_str(), id)),
        };
        let prepared = client
            .call("making a snapshot", client.snapshots().prepare(request))
            .await;
        match made(prepared)? {
            Some(answer) => Ok(answer.mounts),
            None => self.mounts(key).await,
        }
    }

    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>, CallError> {
        let client = self.client();
        let request = MountsRequest {
            snapshotter: self.snapshotter().to_owned(),
            key: key.to_owned(),
        };
        let answer = client
            .call("mounting a snapshot", client.snapshots().mounts(request))
            .await?;
        Ok(answer.mounts)
    }

    pub(crate) async fn create_pause(&self, sandbox: &Sandbox) -> Result<String, RuntimeError> {
        let id = &sandbox.id;
        let key = names::pause_container_id(id);
        let client = self.client().with_lease(&self.names().lease(id));
        let places = self.places(id, &Role::Pause);
        let root = self.0.pause_root.display().to_string();
        let mut container = Container {
            id: key.clone(),
            ..Container::default()
        };
        let spec = match self.0.settings.pause_rootfs {
            PauseRootfs::Shared => spec::pause(self.0.host, &places, &root),
            PauseRootfs::Snapshot => {
                let image = berth_domain::ImageRef::parse(&self.0.settings.pause_image);
                let image = image.map_err(|it| refused("reading the pause image's name", it))?;
                let local = self.local_image(&image).await.map_err(of_image)?;
                let (_, resolved) = local.ok_or(RuntimeError::ImageMissing {
                    image: image.to_string(),
                })?;
                self.prepare_snapshot(&client, id, &key, resolved.snapshot())
                    .await?;
                container.snapshotter = self.snapshotter().to_owned();
                container.snapshot_key.clone_from(&key);
                spec::pause(self.0.host, &places, "rootfs")
            }
        };
        container.image.clone_from(&self.0.settings.pause_image);
        self.store(&client, sandbox, &Role::Pause, container, &spec)
            .await?;
        Ok(String::new())
    }

    pub(crate) async fn create_app(
        &self,
        sandbox: &Sandbox,
        name: &ContainerName,
    ) -> Result<String, RuntimeError> {
        let id = &sandbox.id;
        let wanted = sandbox.spec.container(name);
        let wanted = wanted.ok_or_else(|| refused("making a container", "the spec has none"))?;
        let missing = || RuntimeError::ImageMissing {
            image: wanted.image.to_string(),
        };
        let local = self.local_image(&wanted.image).await.map_err(of_image)?;
        let (stored, resolved) = local.ok_or_else(missing)?;
        let key = names::app_container_id(id, name);
        let client = self.client().with_lease(&self.names().lease(id));
        // All of the image stays as long as the sandbox, also when its name comes to stand for another one.
        let target = target_of(&stored).digest;
        content::hold(&client, "content", &target).await?;
        let prepared = self
            .prepare_snapshot(&client, id, &key, resolved.snapshot())
            .await;
        let mounts = match prepared {
            Err(error) if error.is(Code::NotFound) && error.status.message().contains("parent") => {
                return Err(missing());
            }
            other => other?,
        };
        let process = resolved.config.config.clone().unwrap_or_default();
        let user = process.user.clone();
        let user = blocking(move || {
            let layers = users::layers(&mounts);
            let (passwd, group) = (
                users::read_from(&layers, "etc/passwd"),
                users::read_from(&layers, "etc/group"),
            );
            users::resolve(&user, &passwd, &group)
        })
        .await
        .map_err(|it| refused("finding the user of the image", it))?;
        let places = self.places(id, &Role::App(name.clone()));
        let spec = spec::app(self.0.host, &places, sandbox, wanted, &process, &user)
            .map_err(|it| refused("making a container", it))?;
        let container = Container {
            id: key.clone(),
            image: wanted.image.to_string(),
            snapshotter: self.snapshotter().to_owned(),
            snapshot_key: key,
            labels: [(
                names::LABEL_IMAGE_DIGEST.to_owned(),
                resolved.digest.clone(),
            )]
            .into(),
            ..Container::default()
        };
        let mut labels = self
            .store(&client, sandbox, &Role::App(name.clone()), container, &spec)
            .await?;
        // One that stands may have been made before its image's name came to mean another one.
        let made_from = labels.remove(names::LABEL_IMAGE_DIGEST);
        Ok(made_from.unwrap_or_else(|| resolved.digest.clone()))
    }

    /// Stores a container, and returns the labels of the one that stands. One of the same generation is as good, one of
    /// another is refused.
    async fn store(
        &self,
        client: &Client,
        sandbox: &Sandbox,
        role: &Role,
        container: Container,
        spec: &serde_json::Value,
    ) -> Result<HashMap<String, String>, RuntimeError> {
        let id = container.id.clone();
        let mut labels = self.labels(sandbox, role);
        labels.extend(container.labels);
        let container = Container {
            labels: labels.clone(),
            runtime: Some(self.runtime_of()),
            spec: Some(Any {
                type_url: SPEC_TYPE.to_owned(),
                value: spec.to_string().into_bytes(),
            }),
            ..container
        };
        let request = CreateContainerRequest {
            container: Some(container),
        };
        let created = client
            .call("making a container", client.containers().create(request))
            .await;
        if made(created)?.is_some() {
            return Ok(labels);
        }
        let request = GetContainerRequest { id: id.clone() };
        let got = client
            .call("looking for a container", client.containers().get(request))
            .await;
        let labels = found(got)?
            .and_then(|it| it.container)
            .unwrap_or_default()
            .labels;
        let own = |key: &str, value: &str| labels.get(key).is_some_and(|it| it == value);
        if own(names::LABEL_GENERATION, &sandbox.generation.to_string())
            && own(names::LABEL_INSTANCE, self.names().instance.as_str())
        {
            return Ok(labels);
        }
        Err(refused(
            "making a container",
            format!("{id} was made for another generation"),
        ))
    }
}

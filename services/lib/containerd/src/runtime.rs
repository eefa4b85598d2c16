//! The verbs of the runtime. Each asks containerd for what a step means, and can be repeated.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use berth_cgroup::{CgroupError, Hierarchy};
use berth_domain::{
    ContainerName, ContainerSeen, Extent, Role, Sandbox, SandboxId, TaskSeen, names,
};
use berth_platform::{
    ArchiveLimits, ContainerReading, ImageError, Runtime, RuntimeError, RuntimeFacts,
    RuntimeObject, RuntimeSeen, Usage,
};
use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, CreateRequest as CreateLeaseRequest, CreateTaskRequest,
        DeleteContainerRequest, DeleteTaskRequest, GetContainerRequest, GetRequest, KillRequest,
        ListContainersRequest, ListRequest as ListLeasesRequest, StartRequest, WaitRequest,
        container,
        snapshots::{ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest},
    },
    types::{Mount, v1::Status as TaskStatus},
};
use prost_types::Any;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tonic::Code;

use crate::{
    bundles::{Bundles, Remains},
    client::{CallError, Client, found, made, within},
    content::delete_lease,
    exits, files,
    heat::Heat,
    images::{Known, blocking, time},
    registry::Registries,
    settings::{PauseRootfs, SetUpError, Settings},
    shims::Shims,
    spec::{self, Host, Places},
    unpack::remove_snapshot,
    users,
};

pub(crate) const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;
/// How long a killed process may take until the kernel has let it go.
const KILLED: Duration = Duration::from_secs(10);
/// How long containerd may take to forget a task whose shim has gone; its own limit for that is 5 s.
const FORMER_TASK: Duration = Duration::from_secs(10);
const FORMER_TASK_RETRY: Duration = Duration::from_millis(20);
/// How often the end of processes is looked for that nobody tells the end of.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const FACTS_TIMEOUT: Duration = Duration::from_secs(2);
const HINTS: usize = 256;
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const RUNC_OPTIONS_TYPE: &str = "containerd.runc.v1.Options";

/// One containerd as runtime and image store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Containerd(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    client: Client,
    cgroups: Hierarchy,
    host: Host,
    pause_root: PathBuf,
    known: Known,
    registries: Registries,
    heat: Heat,
    /// What was made before was made by a former manager.
    connected_at: SystemTime,
    /// Whether containerd has been told of our namespace.
    greeted: Mutex<bool>,
}

/// Options of `io.containerd.runc.v2`, as far as they are used.
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
}

impl Containerd {
    /// Gets ready for a containerd that may not run yet.
    pub fn connect(settings: Settings) -> Result<Self, SetUpError> {
        let client = Client::new(
            &settings.address,
            &settings.namespace,
            settings.call_timeout,
        )?;
        let cgroups = Hierarchy::detect()?;
        let pause_root = files::pause_root(&settings.state_dir, settings.pause_program);
        let pause_root = pause_root.map_err(|source| SetUpError::PauseRootfs {
            path: settings.state_dir.clone(),
            source,
        })?;
        let host = Host {
            cgroup_version: cgroups.version(),
            negative_oom_score: may_lower_oom_score(),
        };
        Ok(Self(Arc::new(Inner {
            client,
            cgroups,
            host,
            pause_root,
            known: Known::default(),
            registries: Registries::new(settings.plain_http_registries.clone())?,
            heat: if settings.warm_cgroup_lock {
                Heat::start()
            } else {
                Heat::off()
            },
            connected_at: SystemTime::now(),
            greeted: Mutex::new(false),
            settings,
        })))
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn known(&self) -> &Known {
        &self.0.known
    }

    pub(crate) fn registries(&self) -> &Registries {
        &self.0.registries
    }

    pub(crate) fn snapshotter(&self) -> &str {
        &self.0.settings.snapshotter
    }

    pub(crate) fn archive_limits(&self) -> ArchiveLimits {
        self.0.settings.archive_limits
    }

    pub(crate) fn cgroups(&self) -> &Hierarchy {
        &self.0.cgroups
    }

    pub(crate) fn names(&self) -> &berth_domain::Names {
        &self.0.settings.names
    }

    fn places(&self, id: &SandboxId, role: &Role) -> Places {
        let names = self.names();
        Places {
            namespaces: names.namespaces(id),
            files: names.files(id),
            cgroup: names.container_cgroup(id, role),
        }
    }

    /// Our containers of one sandbox, by role.
    async fn containers(&self, id: &SandboxId) -> Result<BTreeMap<Role, Container>, CallError> {
        let filter = format!(
            "labels.\"{}\"==\"{}\",labels.\"{}\"==\"{}\"",
            names::LABEL_ENTITY_ID,
            names::entity_id(id),
            names::LABEL_INSTANCE,
            self.names().instance
        );
        let client = self.client();
        let request = ListContainersRequest {
            filters: vec![filter],
        };
        let list = client
            .call("listing containers", client.containers().list(request))
            .await?;
        let role = |it: &Container| {
            names::parse_container_id(&it.id)
                .filter(|(of, _)| of == id)
                .map(|(_, role)| role)
        };
        Ok(list
            .containers
            .into_iter()
            .filter_map(|it| Some((role(&it)?, it)))
            .collect())
    }

    async fn task(&self, container: &str) -> Result<TaskSeen, RuntimeError> {
        let client = self.client();
        let request = GetRequest {
            container_id: container.to_owned(),
            exec_id: String::new(),
        };
        let got = client
            .call("looking for a task", client.tasks().get(request))
            .await;
        let Some(process) = found(got)?.and_then(|it| it.process) else {
            return Ok(TaskSeen::Missing);
        };
        match TaskStatus::try_from(process.status) {
            Ok(TaskStatus::Created) => Ok(TaskSeen::Created),
            Ok(TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing) => {
                Ok(TaskSeen::Running)
            }
            Ok(TaskStatus::Stopped) => Ok(TaskSeen::Exited {
                code: process.exit_status,
                at: time(process.exited_at),
            }),
            // Its shim did not say.
            Ok(TaskStatus::Unknown) | Err(_) => Ok(TaskSeen::Unknown),
        }
    }

    /// Our snapshots of one sandbox.
    async fn snapshots(&self, id: &SandboxId) -> Result<Vec<String>, CallError> {
        let filter = format!(
            "labels.\"{}\"==\"{}\",labels.\"{}\"==\"{}\"",
            names::LABEL_INSTANCE,
            self.names().instance,
            names::LABEL_ENTITY_ID,
            names::entity_id(id)
        );
        let request = ListSnapshotsRequest {
            snapshotter: self.snapshotter().to_owned(),
            filters: vec![filter],
        };
        let listing = async {
            let mut parts = self.client().snapshots().list(request).await?.into_inner();
            let mut keys = vec![];
            while let Some(part) = parts.message().await? {
                keys.extend(part.info.into_iter().map(|it| it.name));
            }
            Ok(tonic::Response::new(keys))
        };
        self.client().call("listing snapshots", listing).await
    }

    async fn lease_exists(&self, id: &SandboxId) -> Result<bool, CallError> {
        let client = self.client();
        let request = ListLeasesRequest {
            filters: vec![format!("id==\"{}\"", self.names().lease(id))],
        };
        let list = client
            .call("looking for a lease", client.leases().list(request))
            .await?;
        Ok(!list.leases.is_empty())
    }

    async fn make_lease(&self, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        let client = self.client();
        let labels = spec::marks(self.names().instance.as_str(), &sandbox.id);
        let request = CreateLeaseRequest {
            id: self.names().lease(&sandbox.id),
            labels: HashMap::from(labels),
        };
        let created = client
            .call("making a lease", client.leases().create(request))
            .await;
        Ok(made(created).map(drop)?)
    }

    /// Makes our namespace known and ours, once per process and before anything is changed in it: names of containers
    /// tell the sandbox and not the instance, so that two managers in one namespace would take each other's for theirs.
    async fn greet(&self) -> Result<(), RuntimeError> {
        use containerd_client::services::v1::{
            CreateNamespaceRequest, GetNamespaceRequest, Namespace, UpdateNamespaceRequest,
        };
        if *self
            .0
            .greeted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
        {
            return Ok(());
        }
        let client = self.client();
        let name = self.0.settings.namespace.clone();
        let instance = self.names().instance.to_string();
        let own = Some(Namespace {
            name: name.clone(),
            labels: [(names::LABEL_INSTANCE.to_owned(), instance.clone())].into(),
        });
        let request = CreateNamespaceRequest {
            namespace: own.clone(),
        };
        let mut namespaces = client.namespaces();
        let created = client
            .call("making the namespace", namespaces.create(request))
            .await;
        if made(created)?.is_none() {
            let request = GetNamespaceRequest { name: name.clone() };
            let got = client
                .call("reading the namespace", namespaces.get(request))
                .await?;
            let labels = got.namespace.unwrap_or_default().labels;
            match labels.get(names::LABEL_INSTANCE) {
                Some(owner) if *owner == instance => {}
                Some(owner) => {
                    return Err(refused(
                        "taking the namespace",
                        format!(
                            "containerd's namespace {name} belongs to instance {owner}; \
                             give this one a namespace of its own (containerd.namespace)"
                        ),
                    ));
                }
                None => {
                    let request = UpdateNamespaceRequest {
                        namespace: own,
                        update_mask: Some(prost_types::FieldMask {
                            paths: vec![format!("labels.{}", names::LABEL_INSTANCE)],
                        }),
                    };
                    client
                        .call("marking the namespace", namespaces.update(request))
                        .await?;
                }
            }
        }
        *self
            .0
            .greeted
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        Ok(())
    }

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
        let options = self.0.settings.runtime_binary.as_ref().map(|binary| {
            let options = RuncOptions {
                binary_name: binary.clone(),
            };
            Any {
                type_url: RUNC_OPTIONS_TYPE.to_owned(),
                value: options.encode_to_vec(),
            }
        });
        container::Runtime {
            name: self.0.settings.handler.clone(),
            options,
        }
    }

    /// Makes the writable layer of a container; one that is there is as good.
    async fn prepare_snapshot(
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

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>, CallError> {
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

    pub(crate) fn shims(&self) -> Shims {
        let settings = &self.0.settings;
        Shims {
            address: settings.address.clone(),
            namespace: settings.namespace.clone(),
            bundles: Bundles::below(&settings.names.cgroup_parent),
        }
    }

    /// Ends a shim of this name that containerd does not know of, so that it is not handed to the next task, nor left over.
    /// Returns whether there may have been one.
    async fn end_lost_shim(&self, container: &str) -> Result<bool, RuntimeError> {
        let (shims, of) = (self.shims(), container.to_owned());
        if !shims.may_listen(container) || self.task(container).await? != TaskSeen::Missing {
            return Ok(false);
        }
        let ended = blocking(move || shims.end_lost(&of)).await;
        let ended = ended.map_err(|it| node("ending a lost shim", it))?;
        if ended > 0 {
            tracing::warn!(container, ended, "ended a shim that containerd had lost");
        }
        Ok(true)
    }

    /// Whether a former manager stored this container.
    async fn is_inherited(&self, container: &str) -> Result<bool, RuntimeError> {
        let found = self.container(container).await?;
        Ok(found.is_some_and(|it| time(it.created_at) < self.0.connected_at))
    }

    async fn create_pause(&self, sandbox: &Sandbox) -> Result<String, RuntimeError> {
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

    async fn create_app(
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
        let (_, resolved) = local.ok_or_else(missing)?;
        let key = names::app_container_id(id, name);
        let client = self.client().with_lease(&self.names().lease(id));
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

    pub(crate) async fn kill(&self, container: &str, signal: u32) -> Result<(), CallError> {
        let client = self.client();
        let request = KillRequest {
            container_id: container.to_owned(),
            signal,
            // Of what shares the pid namespace only the first process has a parent that matters.
            all: signal == SIGKILL,
            ..KillRequest::default()
        };
        match client
            .call("signalling a task", client.tasks().kill(request))
            .await
        {
            // It has ended, or was never there.
            Err(error) if error.is(Code::NotFound) || error.is(Code::FailedPrecondition) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Ends a shim that has no task: one stays when the caller of a removal went away before its answer, and containerd
    /// neither tells of it nor gives its name to another.
    async fn dismiss_shim(&self, container: &str) -> Result<(), CallError> {
        let client = self.client();
        let request = DeleteTaskRequest {
            container_id: container.to_owned(),
        };
        let removed = client
            .call("dismissing a shim", client.tasks().delete(request))
            .await;
        found(removed).map(drop)
    }

    /// Waits until the task has ended; `false` when it has not within `limit`.
    pub(crate) async fn wait(&self, container: &str, limit: Duration) -> Result<bool, CallError> {
        let client = self.client();
        let request = WaitRequest {
            container_id: container.to_owned(),
            exec_id: String::new(),
        };
        let begun = Instant::now();
        let waited = within(
            limit,
            "waiting for the end of a task",
            client.tasks().wait(request),
        )
        .await;
        match waited {
            Ok(_) => Ok(true),
            Err(error) if error.is(Code::NotFound) => Ok(true),
            Err(_) if begun.elapsed() >= limit => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Kills the task and waits until it has ended.
    pub(crate) async fn finish(&self, container: &str) -> Result<(), RuntimeError> {
        self.kill(container, SIGKILL).await?;
        if self.wait(container, KILLED).await? {
            return Ok(());
        }
        Err(refused(
            "ending a task",
            format!("{container} was killed {KILLED:?} ago and still runs"),
        ))
    }

    /// Ends a task whose shim does not answer: its processes are reached through their cgroup, with their grace, and the
    /// shim by its pid. When a shim is gone, containerd removes what is left of its task.
    async fn end_without_shim(
        &self,
        id: &SandboxId,
        role: &Role,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let container = names::container_id(id, role);
        let cgroup = self.names().container_cgroup(id, role);
        let cgroups = &self.0.cgroups;
        if !grace.is_zero() {
            cgroups.signal(&cgroup, Signal::TERM).map_err(of_cgroup)?;
            let deadline = Instant::now() + grace;
            while cgroups.has_processes(&cgroup).map_err(of_cgroup)? && Instant::now() < deadline {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            if self.task(&container).await? != TaskSeen::Unknown {
                return self.finish(&container).await;
            }
        }
        tracing::warn!(container, "its shim does not answer and is killed");
        cgroups.signal(&cgroup, Signal::KILL).map_err(of_cgroup)?;
        let (shims, of) = (self.shims(), container.clone());
        let serving = blocking(move || shims.of(&of)).await;
        let serving = serving.map_err(|it| node("looking for a shim", it))?;
        if serving.is_empty() {
            return Err(silent("ending a task", &container));
        }
        self.kill_shims(serving).await?;
        let deadline = Instant::now() + KILLED;
        while self.task(&container).await? != TaskSeen::Missing {
            if Instant::now() >= deadline {
                let what = format!("the shim of {container} was killed {KILLED:?} ago");
                return Err(refused(
                    "ending a task",
                    format!("{what} and its task is there"),
                ));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Removes what a killed containerd has left of a bundle.
    async fn clear_bundle(&self, container: &str) -> Result<Remains, RuntimeError> {
        let (shims, of) = (self.shims(), container.to_owned());
        let remains = blocking(move || shims.clear_bundle(&of))
            .await
            .map_err(|it| node("removing a former bundle", it))?;
        if remains == Remains::Cleared {
            tracing::warn!(container, "removed the bundle that containerd had left");
        }
        Ok(remains)
    }

    /// Lets go of the root file system of a task that has ended; `false` when there is nothing to let go of.
    async fn detach_rootfs(&self, container: &str) -> Result<bool, RuntimeError> {
        let (shims, of) = (self.shims(), container.to_owned());
        blocking(move || shims.detach_rootfs(&of))
            .await
            .map_err(|it| node("letting go of a root file system", it))
    }
}

impl Runtime for Containerd {
    async fn observe(&self, id: &SandboxId) -> Result<RuntimeSeen, RuntimeError> {
        let (containers, snapshots, lease) = tokio::join!(
            self.containers(id),
            self.snapshots(id),
            self.lease_exists(id)
        );
        let mut seen = RuntimeSeen {
            prepared: Extent::of(&[
                lease?,
                self.0.cgroups.exists(&self.names().cgroup(id)),
                self.names().files(id).exists(),
            ]),
            ..RuntimeSeen::default()
        };
        let containers = containers?;
        for (role, container) in &containers {
            if let Some(digest) = container.labels.get(names::LABEL_IMAGE_DIGEST) {
                seen.digests.insert(role.clone(), digest.clone());
            }
        }
        let tasks = containers.values().map(|it| self.task(&it.id));
        let tasks = futures::future::try_join_all(tasks).await?;
        for (role, task) in containers.into_keys().zip(tasks) {
            seen.containers
                .insert(role, ContainerSeen { stored: true, task });
        }
        for key in snapshots? {
            if let Some((_, role)) = names::parse_container_id(&key) {
                seen.containers.entry(role).or_default().stored = true;
            }
        }
        Ok(seen)
    }

    async fn prepare(&self, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        self.greet().await?;
        let (inner, on_disk) = (self.0.clone(), sandbox.clone());
        let local = blocking(move || {
            let path = inner.settings.names.cgroup(&on_disk.id);
            inner
                .cgroups
                .create(&path, &on_disk.spec.resources)
                .map_err(of_cgroup)?;
            files::write(&inner.settings, &on_disk)
                .map_err(|it| node("writing the files of a sandbox", it))
        });
        let (lease, local) = tokio::join!(self.make_lease(sandbox), local);
        lease.and(local)
    }

    async fn create_container(
        &self,
        sandbox: &Sandbox,
        role: &Role,
    ) -> Result<String, RuntimeError> {
        if !self.names().files(&sandbox.id).exists() {
            return Err(refused("making a container", "the sandbox is not prepared"));
        }
        match role {
            Role::Pause => self.create_pause(sandbox).await,
            Role::App(name) => self.create_app(sandbox, name).await,
        }
    }

    async fn create_task(&self, sandbox: &Sandbox, role: &Role) -> Result<(), RuntimeError> {
        let _warm = self.0.heat.warm();
        let id = &sandbox.id;
        let container = names::container_id(id, role);
        let shared = *role == Role::Pause && self.0.settings.pause_rootfs == PauseRootfs::Shared;
        let rootfs = if shared {
            vec![]
        } else {
            self.mounts(&container).await?
        };
        let output = match role {
            Role::Pause => String::new(),
            Role::App(name) => {
                let dir = self.names().logs(id).join(name.as_str());
                spec::output(
                    &self.0.settings.log_writer.display().to_string(),
                    &dir.display().to_string(),
                    self.0.settings.log_limit_bytes,
                )
            }
        };
        let request = CreateTaskRequest {
            container_id: container.clone(),
            rootfs,
            stdout: output.clone(),
            stderr: output,
            ..CreateTaskRequest::default()
        };
        let client = self.client();
        let deadline = Instant::now() + FORMER_TASK;
        let (mut disturbed, mut cleared) = (false, false);
        loop {
            disturbed |= self.end_lost_shim(&container).await?;
            let created = client
                .call("making a task", client.tasks().create(request.clone()))
                .await;
            if let Err(error) = &created
                && error.is(Code::Unknown)
                && !cleared
            {
                match self.clear_bundle(&container).await? {
                    Remains::Nothing => {}
                    Remains::Cleared => {
                        cleared = true;
                        continue;
                    }
                    Remains::Busy if Instant::now() < deadline => {
                        tokio::time::sleep(FORMER_TASK_RETRY).await;
                        continue;
                    }
                    Remains::Busy => {}
                }
            }
            // A former manager that was killed while it asked for this task leaves containerd cleaning up, and refusing the
            // name meanwhile with a code that says nothing: no refusal is believed for a while.
            if let Err(error) = &created
                && !error.is_unreachable()
                && !error.is(Code::AlreadyExists)
                && Instant::now() < deadline
                && (disturbed || self.is_inherited(&container).await?)
            {
                tokio::time::sleep(FORMER_TASK_RETRY).await;
                continue;
            }
            if made(created)?.is_some() {
                return Ok(());
            }
            match self.task(&container).await? {
                TaskSeen::Created | TaskSeen::Running => return Ok(()),
                // A former shim has the name, and no task any more.
                TaskSeen::Missing if Instant::now() < deadline => {
                    self.dismiss_shim(&container).await?;
                    tokio::time::sleep(FORMER_TASK_RETRY).await;
                }
                TaskSeen::Missing => {
                    return Err(refused(
                        "making a task",
                        format!("containerd does not forget a former one of {container}"),
                    ));
                }
                TaskSeen::Unknown => return Err(silent("making a task", &container)),
                TaskSeen::Exited { .. } => {
                    return Err(refused(
                        "making a task",
                        format!("{container} has one that has ended"),
                    ));
                }
            }
        }
    }

    async fn start_task(&self, id: &SandboxId, role: &Role) -> Result<(), RuntimeError> {
        let _warm = self.0.heat.warm();
        let container = names::container_id(id, role);
        let client = self.client();
        let request = StartRequest {
            container_id: container.clone(),
            exec_id: String::new(),
        };
        match client
            .call("starting a task", client.tasks().start(request))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) => match self.task(&container).await {
                Ok(TaskSeen::Running) => Ok(()),
                Ok(
                    TaskSeen::Missing
                    | TaskSeen::Created
                    | TaskSeen::Exited { .. }
                    | TaskSeen::Unknown,
                )
                | Err(_) => Err(error.into()),
            },
        }
    }

    async fn stop_task(
        &self,
        id: &SandboxId,
        role: &Role,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        self.greet().await?;
        let container = names::container_id(id, role);
        match self.task(&container).await? {
            TaskSeen::Missing | TaskSeen::Exited { .. } => return Ok(()),
            TaskSeen::Created | TaskSeen::Running => {}
            TaskSeen::Unknown => return self.end_without_shim(id, role, grace).await,
        }
        if !grace.is_zero() {
            self.kill(&container, SIGTERM).await?;
            if self.wait(&container, grace).await? {
                return Ok(());
            }
        }
        self.finish(&container).await
    }

    async fn delete_task(&self, id: &SandboxId, role: &Role) -> Result<(), RuntimeError> {
        self.greet().await?;
        let container = names::container_id(id, role);
        let client = self.client();
        let delete = async || {
            let request = DeleteTaskRequest {
                container_id: container.clone(),
            };
            found(
                client
                    .call("removing a task", client.tasks().delete(request))
                    .await,
            )
        };
        let Err(error) = delete().await else {
            return Ok(());
        };
        if error.is_unreachable() {
            return Err(error.into());
        }
        // The code does not tell why: some shims call it unknown that something still runs.
        match self.task(&container).await? {
            TaskSeen::Created | TaskSeen::Running => {
                self.finish(&container).await?;
                Ok(delete().await.map(drop)?)
            }
            // What keeps a task that has ended is somebody inside of its root file system.
            TaskSeen::Exited { .. } if self.detach_rootfs(&container).await? => {
                Ok(delete().await.map(drop)?)
            }
            TaskSeen::Exited { .. } | TaskSeen::Missing | TaskSeen::Unknown => Err(error.into()),
        }
    }

    async fn remove_container(&self, id: &SandboxId, role: &Role) -> Result<(), RuntimeError> {
        self.greet().await?;
        let container = names::container_id(id, role);
        if self.task(&container).await? != TaskSeen::Missing {
            return Err(refused(
                "removing a container",
                format!("{container} has a task"),
            ));
        }
        self.dismiss_shim(&container).await?;
        self.end_lost_shim(&container).await?;
        let client = self.client();
        let request = DeleteContainerRequest {
            id: container.clone(),
        };
        let deleted = client
            .call("removing a container", client.containers().delete(request))
            .await;
        found(deleted)?;
        if *role != Role::Pause || self.0.settings.pause_rootfs == PauseRootfs::Snapshot {
            remove_snapshot(client, self.snapshotter(), &container).await?;
        }
        Ok(())
    }

    async fn release(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.greet().await?;
        let containers = self.containers(id).await?;
        if let Some(container) = containers.values().next() {
            let what = format!("{} is still there", container.id);
            return Err(refused("releasing a sandbox", what));
        }
        self.remove_cgroup(&self.names().cgroup(id)).await?;
        let dir = self.names().files(id);
        blocking(move || {
            files::remove(&dir).map_err(|it| node("removing the files of a sandbox", it))
        })
        .await?;
        Ok(delete_lease(self.client(), &self.names().lease(id), false).await?)
    }

    async fn forget_logs(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let dir = self.names().logs(id);
        blocking(move || files::remove(&dir).map_err(|it| node("removing output", it))).await
    }

    async fn usage(&self, id: &SandboxId) -> Result<Vec<ContainerReading>, RuntimeError> {
        let (inner, id) = (self.0.clone(), id.clone());
        blocking(move || {
            let names = &inner.settings.names;
            let mut readings = vec![];
            for name in inner
                .cgroups
                .children(&names.cgroup(&id))
                .map_err(of_cgroup)?
            {
                let role = match name.as_str() {
                    "pause" => Role::Pause,
                    text => match ContainerName::parse(text) {
                        Ok(name) => Role::App(name),
                        Err(_) => continue,
                    },
                };
                let path = names.container_cgroup(&id, &role);
                if let Some(it) = inner.cgroups.usage(&path).map_err(of_cgroup)? {
                    let measured_at = SystemTime::now();
                    readings.push(ContainerReading {
                        role,
                        measured_at,
                        usage: usage_of(it),
                    });
                }
            }
            Ok(readings)
        })
        .await
    }

    async fn oom_cgroup(
        &self,
        id: &SandboxId,
        role: &Role,
    ) -> Result<Option<String>, RuntimeError> {
        let inner = self.names().container_cgroup(id, role);
        let (shared, outer) = (self.0.clone(), self.names().cgroup(id));
        blocking(move || {
            shared
                .cgroups
                .oom_culprit(&inner, &outer)
                .map_err(of_cgroup)
        })
        .await
    }

    async fn list(&self) -> Result<Vec<RuntimeObject>, RuntimeError> {
        self.objects().await
    }

    async fn end_object(
        &self,
        object: &RuntimeObject,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        self.end(object, grace).await
    }

    async fn remove_object(&self, object: &RuntimeObject) -> Result<(), RuntimeError> {
        self.remove(object).await
    }

    fn follow_exits(&self) -> mpsc::Receiver<Option<SandboxId>> {
        let (sender, receiver) = mpsc::channel(HINTS);
        let namespace = self.0.settings.namespace.clone();
        tokio::spawn(exits::follow(self.client().clone(), namespace, sender));
        receiver
    }

    async fn facts(&self) -> RuntimeFacts {
        let mut version = self.client().version();
        let version = within(FACTS_TIMEOUT, "asking for the version", version.version(()));
        let settings = &self.0.settings;
        let mut degraded = vec![];
        if !self.0.host.negative_oom_score {
            degraded.push(
                "no CAP_SYS_RESOURCE: negative OOM scores are left at 0, also that of the pause"
                    .to_owned(),
            );
        }
        if self.0.host.cgroup_version == 1 {
            degraded.push("cgroup v1: memory_high_bytes is set as the soft limit".to_owned());
        }
        RuntimeFacts {
            address: settings.address.display().to_string(),
            namespace: settings.namespace.clone(),
            version: version.await.ok().map(|it| it.version),
            handler: settings.handler.clone(),
            cgroup_version: self.0.host.cgroup_version,
            degraded,
        }
    }
}

fn usage_of(it: berth_cgroup::Usage) -> Usage {
    Usage {
        total_cpu_time: it.total_cpu_time,
        kernel_cpu_time: it.kernel_cpu_time,
        memory_usage: it.memory_usage,
        memory_peak: it.memory_peak,
        swap_usage: it.swap_usage,
        swap_peak: it.swap_peak,
        pids: it.pids,
        oom_kills: it.oom_kills,
    }
}

pub(crate) fn refused(operation: &'static str, message: impl ToString) -> RuntimeError {
    RuntimeError::Refused {
        operation,
        message: message.to_string(),
    }
}

fn silent(operation: &'static str, container: &str) -> RuntimeError {
    RuntimeError::Unreachable {
        operation,
        source: format!("the shim of {container} does not answer").into(),
    }
}

pub(crate) fn node(operation: &'static str, source: std::io::Error) -> RuntimeError {
    RuntimeError::Node {
        operation,
        source: source.into(),
    }
}

pub(crate) fn of_cgroup(error: CgroupError) -> RuntimeError {
    RuntimeError::Node {
        operation: "changing a cgroup",
        source: error.into(),
    }
}

fn of_image(error: ImageError) -> RuntimeError {
    match error {
        ImageError::Unreachable { operation, source } => {
            RuntimeError::Unreachable { operation, source }
        }
        ImageError::NotFound { image, .. } => RuntimeError::ImageMissing { image },
        ImageError::Refused { operation, message } => RuntimeError::Refused { operation, message },
        other @ (ImageError::RegistryUnreachable { .. }
        | ImageError::RegistryDenied { .. }
        | ImageError::Corrupt { .. }
        | ImageError::ArchiveInvalid { .. }
        | ImageError::ArchiveTooLarge { .. }
        | ImageError::DiskLow { .. }
        | ImageError::PlatformMissing { .. }
        | ImageError::Node { .. }) => refused("looking for an image", other),
    }
}

/// Whether a process of this host may be made less likely to be killed for memory. The shims have the rights of
/// containerd, which are taken to be ours.
fn may_lower_oom_score() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|it| {
        it.effective
            .contains(rustix::thread::CapabilitySet::SYS_RESOURCE)
    })
}

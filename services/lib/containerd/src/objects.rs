//! Everything of this instance that containerd and the kernel hold for its containers: listed, each with what tells it from
//! a later object of its name, and removed as the very object that was listed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use berth_cgroup::CgroupError;
use berth_domain::{Generation, Resources, Role, SandboxId, cgroups, names};
use berth_platform::{EndSignal, RuntimeError, RuntimeObject, RuntimeObjectKind};
use containerd_client::{
    services::v1::{
        Container, DeleteContainerRequest, DeleteTaskRequest, GetContainerRequest,
        ListContainersRequest, ListRequest as ListLeasesRequest, ListTasksRequest,
        snapshots::{Info, ListSnapshotsRequest, StatSnapshotRequest},
    },
    types::v1::{Process, Status as TaskStatus},
};

use crate::{
    Containerd,
    client::found,
    content::{LEASE_LIFE, delete_lease},
    ending::KILLED,
    errors::{node, of_cgroup, of_systemd, refused},
    files::{self, Entry},
    images::blocking,
    mounts::{self, OwnMount},
    shims::{self, Shim},
    unpack::remove_snapshot,
};
use rustix::process::Signal;

/// How long a cgroup may stay busy after its last task.
const CGROUP_BUSY: Duration = Duration::from_secs(5);
const CGROUP_RETRY: Duration = Duration::from_millis(20);
/// systemd says that a slice starts, and not when it has.
const SLICE_STARTS: Duration = Duration::from_secs(10);
const SLICE_LOOK: Duration = Duration::from_millis(1);

/// What is known of a container of ours.
#[derive(Clone, Copy, Debug)]
struct Known {
    generation: Option<Generation>,
    made_at: Option<SystemTime>,
}

impl Known {
    fn of(container: &Container) -> Self {
        let generation = container.labels.get(names::LABEL_GENERATION);
        Self {
            generation: generation.and_then(|it| it.parse().ok()).map(Generation),
            made_at: stamp(container.created_at),
        }
    }
}

/// What only the kernel tells.
struct Host {
    shims: Vec<Shim>,
    mounts: Vec<OwnMount>,
    cgroups: Vec<(String, Option<fs::Metadata>)>,
    directories: Vec<Entry>,
    logs: Vec<Entry>,
}

impl Containerd {
    pub(crate) async fn objects(&self) -> Result<Vec<RuntimeObject>, RuntimeError> {
        let client = self.client();
        let mut of_tasks = client.tasks();
        let (containers, tasks, snapshots, leases, host) = tokio::join!(
            self.own_containers(),
            client.call("listing tasks", of_tasks.list(ListTasksRequest::default())),
            self.own_snapshots(),
            self.own_leases(),
            self.on_host(),
        );
        let (containers, host) = (containers?, host?);
        let mut own: BTreeMap<String, Known> = containers
            .iter()
            .map(|it| (it.id.clone(), Known::of(it)))
            .collect();
        let (shims, foreign) = self.sort_out(host.shims, &mut own).await?;

        let mut objects: Vec<_> = containers.iter().map(of_container).collect();
        let tasks = tasks?.tasks;
        // The list has a container's id in this field.
        let of_shims = |id: &str| shims.iter().any(|it| it.container == id);
        let own_task = |it: &&Process| {
            own.contains_key(&it.id) || !foreign.contains(&it.id) && of_shims(&it.id)
        };
        objects.extend(tasks.iter().filter(own_task).map(|it| RuntimeObject {
            silent: TaskStatus::try_from(it.status).unwrap_or(TaskStatus::Unknown)
                == TaskStatus::Unknown,
            ..of_known(RuntimeObjectKind::Task, &it.id, own.get(&it.id))
        }));
        objects.extend(shims.iter().map(|shim| RuntimeObject {
            name: format!("{} pid {}", shim.container, shim.pid),
            made_at: shim.started_at,
            serial: Some(shim.pid.into()),
            strange: is_passed_over(shim, &shims, &tasks),
            ..of_known(
                RuntimeObjectKind::Shim,
                &shim.container,
                own.get(&shim.container),
            )
        }));
        objects.extend(snapshots?.iter().map(|it| of_snapshot(it, &own)));
        objects.extend(leases?);
        objects.extend(host.mounts.into_iter().map(of_mount));
        objects.extend(host.cgroups.into_iter().map(|(path, metadata)| {
            let made_at = metadata.as_ref().and_then(files::made_at);
            let serial = metadata.as_ref().map(files::inode);
            let name = path.rsplit('/').next().unwrap_or_default();
            let sandbox = self.names().parse_cgroup(name);
            let it = by_name(RuntimeObjectKind::Cgroup, path, "", made_at, serial);
            RuntimeObject { sandbox, ..it }
        }));
        let directories = host
            .directories
            .into_iter()
            .map(|it| (RuntimeObjectKind::Directory, self.names().files_dir(), it));
        let logs = host
            .logs
            .into_iter()
            .map(|it| (RuntimeObjectKind::Logs, self.names().log_dir.clone(), it));
        objects.extend(directories.chain(logs).map(|(kind, dir, entry)| {
            let path = dir.join(&entry.name).display().to_string();
            by_name(kind, path, &entry.name, entry.made_at, Some(entry.inode))
        }));
        Ok(objects)
    }

    /// Asks a task or what a shim runs to end.
    pub(crate) async fn end(
        &self,
        object: &RuntimeObject,
        signal: EndSignal,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        if object.kind == RuntimeObjectKind::Shim {
            let (shims, shim) = (self.shims(), shim_of(object)?);
            let ended = blocking(move || shims.end(&shim, signal, grace)).await;
            return ended
                .map(drop)
                .map_err(|it| node("asking a shim to end", it));
        }
        if object.kind == RuntimeObjectKind::Task && self.is_there(object).await? {
            self.kill(&object.name, signal.number()).await?;
            self.wait(&object.name, grace).await?;
        }
        Ok(())
    }

    pub(crate) async fn remove(&self, object: &RuntimeObject) -> Result<(), RuntimeError> {
        if object.silent {
            let what = format!("{} does not say how it is", object.name);
            return Err(refused("removing an object", what));
        }
        match object.kind {
            RuntimeObjectKind::Task => self.remove_task(object).await,
            RuntimeObjectKind::Shim => {
                let shim = shim_of(object)?;
                self.kill_shims(vec![shim]).await
            }
            RuntimeObjectKind::Container => {
                if !self.is_there(object).await? {
                    return Ok(());
                }
                self.remove_task_of(&object.name).await?;
                let client = self.client();
                let request = DeleteContainerRequest {
                    id: object.name.clone(),
                };
                let mut service = client.containers();
                let deleted = client.call("removing a container", service.delete(request));
                Ok(found(deleted.await).map(drop)?)
            }
            RuntimeObjectKind::Snapshot => {
                if self.is_there(object).await? {
                    remove_snapshot(self.client(), self.snapshotter(), &object.name).await?;
                }
                Ok(())
            }
            RuntimeObjectKind::Lease => {
                if self.is_there(object).await? {
                    delete_lease(self.client(), &object.name, false).await?;
                }
                Ok(())
            }
            RuntimeObjectKind::Mount => {
                let (point, number) = (PathBuf::from(&object.name), object.serial.unwrap_or(0));
                let gone = blocking(move || mounts::remove(&point, number)).await;
                match gone.map_err(|it| node("unmounting", it))? {
                    true => Ok(()),
                    false => Err(refused("unmounting", "something is mounted over it")),
                }
            }
            RuntimeObjectKind::Cgroup => {
                self.check_very(object).await?;
                self.remove_cgroup(&object.name).await
            }
            RuntimeObjectKind::Directory | RuntimeObjectKind::Logs => {
                self.check_very(object).await?;
                let dir = PathBuf::from(&object.name);
                let removed = blocking(move || files::remove(&dir)).await;
                removed.map_err(|it| node("removing a folder", it))
            }
        }
    }

    /// Makes the cgroup, or sets the limits of the one that is there.
    pub(crate) async fn make_cgroup(
        &self,
        path: String,
        limits: Resources,
    ) -> Result<(), RuntimeError> {
        let hierarchy = self.cgroups().clone();
        let Some(unit) = cgroups::unit(&path) else {
            return blocking(move || hierarchy.create(&path, &limits).map_err(of_cgroup)).await;
        };
        let systemd = &self.0.systemd;
        let parents = self.names().cgroup_parent.as_str();
        if !hierarchy.exists(parents) {
            for unit in parents.split('/') {
                systemd.start_parent(unit).await.map_err(of_systemd)?;
            }
        }
        let started = systemd.start_slice(unit, &limits).await;
        started.map_err(of_systemd)?;
        let deadline = Instant::now() + SLICE_STARTS;
        while !hierarchy.exists(&path) {
            if Instant::now() >= deadline {
                let what = format!("systemd has started {unit}, and {path} is not there");
                return Err(refused("making a cgroup", what));
            }
            tokio::time::sleep(SLICE_LOOK).await;
        }
        Ok(())
    }

    /// Removes the cgroup with all below it, and kills what still runs there.
    pub(crate) async fn remove_cgroup(&self, path: &str) -> Result<(), RuntimeError> {
        if let Some(unit) = cgroups::unit(path) {
            // A stop asks first, and waits for who does not listen.
            let (cgroups, path) = (self.cgroups().clone(), path.to_owned());
            blocking(move || cgroups.signal(&path, Signal::KILL).map_err(of_cgroup)).await?;
            let stopped = self.0.systemd.stop_slice(unit).await;
            stopped.map_err(of_systemd)?;
        }
        let deadline = Instant::now() + CGROUP_BUSY;
        loop {
            let (cgroups, path) = (self.cgroups().clone(), path.to_owned());
            let removed = blocking(move || Ok::<_, RuntimeError>(cgroups.remove(&path))).await?;
            match removed {
                Ok(()) => return Ok(()),
                Err(CgroupError::Busy { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(CGROUP_RETRY).await;
                }
                Err(error) => return Err(of_cgroup(error)),
            }
        }
    }

    async fn remove_task(&self, object: &RuntimeObject) -> Result<(), RuntimeError> {
        if self.container(&object.name).await?.is_some() {
            return match self.is_there(object).await? {
                true => self.remove_task_of(&object.name).await,
                false => Ok(()),
            };
        }
        // containerd does nothing to a task without a container, and lets go of it when its shim has ended.
        let (shims, name) = (self.shims(), object.name.clone());
        let serving = blocking(move || shims.of(&name)).await;
        self.kill_shims(serving.map_err(|it| node("looking for shims", it))?)
            .await
    }

    /// Kills the task of a container, and removes it.
    async fn remove_task_of(&self, container: &str) -> Result<(), RuntimeError> {
        self.finish(container).await?;
        let client = self.client();
        let request = DeleteTaskRequest {
            container_id: container.to_owned(),
        };
        let mut service = client.tasks();
        let deleted = client.call("removing a task", service.delete(request));
        Ok(found(deleted.await).map(drop)?)
    }

    pub(crate) async fn kill_shims(&self, serving: Vec<Shim>) -> Result<(), RuntimeError> {
        let shims = self.shims();
        let killed = blocking(move || {
            let mut gone = true;
            for shim in &serving {
                gone &= shims.kill(shim, KILLED)?;
            }
            Ok::<_, io::Error>(gone)
        });
        match killed.await.map_err(|it| node("killing a shim", it))? {
            true => Ok(()),
            false => {
                let what = format!("it was killed {KILLED:?} ago and still runs");
                Err(refused("killing a shim", what))
            }
        }
    }

    /// Whether this very object of containerd is still there. Another one in its place is refused.
    async fn is_there(&self, object: &RuntimeObject) -> Result<bool, RuntimeError> {
        let made_at = match object.kind {
            RuntimeObjectKind::Container | RuntimeObjectKind::Task => {
                let container = self.container(&object.name).await?;
                container.map(|it| stamp(it.created_at))
            }
            RuntimeObjectKind::Snapshot => {
                let client = self.client();
                let request = StatSnapshotRequest {
                    snapshotter: self.snapshotter().to_owned(),
                    key: object.name.clone(),
                };
                let mut service = client.snapshots();
                let got = client.call("looking for a snapshot", service.stat(request));
                let info = found(got.await)?.and_then(|it| it.info);
                info.map(|it| stamp(it.created_at))
            }
            RuntimeObjectKind::Lease => {
                let leases = self.own_leases().await?;
                let same = leases.into_iter().find(|it| it.name == object.name);
                same.map(|it| it.made_at)
            }
            RuntimeObjectKind::Shim
            | RuntimeObjectKind::Mount
            | RuntimeObjectKind::Cgroup
            | RuntimeObjectKind::Directory
            | RuntimeObjectKind::Logs => None,
        };
        match made_at {
            None => Ok(false),
            Some(at) if at == object.made_at => Ok(true),
            Some(_) => Err(another(&object.name)),
        }
    }

    /// Refuses where another folder or cgroup has taken the place of this one.
    async fn check_very(&self, object: &RuntimeObject) -> Result<(), RuntimeError> {
        let host = self.on_host().await?;
        let same = |entries: Vec<Entry>, dir: &Path| {
            let place = Path::new(&object.name);
            let mut entries = entries.into_iter();
            entries
                .find(|it| dir.join(&it.name) == place)
                .map(|it| it.inode)
        };
        let inode = match object.kind {
            RuntimeObjectKind::Directory => same(host.directories, &self.names().files_dir()),
            RuntimeObjectKind::Logs => same(host.logs, &self.names().log_dir),
            RuntimeObjectKind::Cgroup => {
                let mut cgroups = host.cgroups.into_iter();
                let own = cgroups.find(|(path, _)| *path == object.name);
                own.and_then(|(_, metadata)| metadata.as_ref().map(files::inode))
            }
            RuntimeObjectKind::Container
            | RuntimeObjectKind::Task
            | RuntimeObjectKind::Shim
            | RuntimeObjectKind::Snapshot
            | RuntimeObjectKind::Lease
            | RuntimeObjectKind::Mount => None,
        };
        match inode {
            Some(inode) if Some(inode) != object.serial => Err(another(&object.name)),
            Some(_) | None => Ok(()),
        }
    }

    pub(crate) async fn container(&self, id: &str) -> Result<Option<Container>, RuntimeError> {
        let client = self.client();
        let request = GetContainerRequest { id: id.to_owned() };
        let mut service = client.containers();
        let got = client.call("looking for a container", service.get(request));
        Ok(found(got.await)?.and_then(|it| it.container))
    }

    async fn own_containers(&self) -> Result<Vec<Container>, RuntimeError> {
        let instance = &self.names().instance;
        let own = format!("labels.\"{}\"==\"{instance}\"", names::LABEL_INSTANCE);
        self.containers_by(vec![own]).await
    }

    /// Containers that match any of the filters.
    async fn containers_by(&self, filters: Vec<String>) -> Result<Vec<Container>, RuntimeError> {
        let client = self.client();
        let request = ListContainersRequest { filters };
        let mut service = client.containers();
        let list = client.call("listing containers", service.list(request));
        Ok(list.await?.containers)
    }

    async fn own_snapshots(&self) -> Result<Vec<Info>, RuntimeError> {
        let instance = &self.names().instance;
        let request = ListSnapshotsRequest {
            snapshotter: self.snapshotter().to_owned(),
            filters: vec![format!(
                "labels.\"{}\"==\"{instance}\"",
                names::LABEL_INSTANCE
            )],
        };
        let listing = async {
            let mut parts = self.client().snapshots().list(request).await?.into_inner();
            let mut infos = vec![];
            while let Some(part) = parts.message().await? {
                infos.extend(part.info);
            }
            Ok(tonic::Response::new(infos))
        };
        Ok(self.client().call("listing snapshots", listing).await?)
    }

    async fn own_leases(&self) -> Result<Vec<RuntimeObject>, RuntimeError> {
        let client = self.client();
        let request = ListLeasesRequest { filters: vec![] };
        let mut service = client.leases();
        let list = client.call("listing leases", service.list(request));
        let (of_import, now) = (self.names().import_lease_prefix(), SystemTime::now());
        let prefix = format!("berth.{}.", self.names().instance);
        let own = list.await?.leases.into_iter().filter_map(|lease| {
            let made_at = stamp(lease.created_at);
            let of_kind = |owner: &str| {
                by_name(
                    RuntimeObjectKind::Lease,
                    lease.id.clone(),
                    owner,
                    made_at,
                    None,
                )
            };
            if lease.id.starts_with(&of_import) {
                let age = made_at.and_then(|it| now.duration_since(it).ok());
                return Some(RuntimeObject {
                    strange: age.is_some_and(|it| it > LEASE_LIFE),
                    ..of_kind("")
                });
            }
            let object = of_kind(lease.id.strip_prefix(&prefix)?);
            Some(RuntimeObject {
                strange: object.sandbox.is_none(),
                ..object
            })
        });
        Ok(own.collect())
    }

    /// Tells our shims from those of others that use this containerd's namespace too: by the label of the container and,
    /// where containerd has none of this name, by what the shim runs. Returns ours, and the containers of others.
    async fn sort_out(
        &self,
        shims: Vec<Shim>,
        own: &mut BTreeMap<String, Known>,
    ) -> Result<(Vec<Shim>, BTreeSet<String>), RuntimeError> {
        let doubtful: Vec<&str> = shims
            .iter()
            .map(|it| it.container.as_str())
            .filter(|it| !own.contains_key(*it))
            .collect();
        let mut foreign = BTreeSet::new();
        if !doubtful.is_empty() {
            let filters = doubtful.iter().map(|it| format!("id==\"{it}\"")).collect();
            for container in self.containers_by(filters).await? {
                let instance = container.labels.get(names::LABEL_INSTANCE);
                if instance.is_some_and(|it| it == self.names().instance.as_str()) {
                    own.insert(container.id.clone(), Known::of(&container));
                } else {
                    foreign.insert(container.id);
                }
            }
        }
        let (known, unknown): (Vec<_>, Vec<_>) = shims
            .into_iter()
            .filter(|it| !foreign.contains(&it.container))
            .partition(|it| own.contains_key(&it.container));
        let all = self.shims();
        let proven = blocking(move || {
            let proven = unknown.into_iter().filter(|it| all.is_ours(it));
            Ok::<_, RuntimeError>(proven.collect::<Vec<_>>())
        });
        let mut all = known;
        all.extend(proven.await?);
        Ok((all, foreign))
    }

    async fn on_host(&self) -> Result<Host, RuntimeError> {
        let (names, cgroups, shims) = (self.names().clone(), self.cgroups().clone(), self.shims());
        blocking(move || {
            let parent = &names.cgroup_parent;
            let children = cgroups.children(parent).map_err(of_cgroup)?;
            let listing = |it| node("listing what the kernel holds", it);
            let all = mounts::all().map_err(listing)?;
            let is_ours = |bundle: &Path| shims.bundles.is_ours(bundle);
            Ok(Host {
                shims: shims.find().map_err(listing)?,
                mounts: mounts::own(&all, &names, &shims.namespace, is_ours),
                cgroups: children
                    .into_iter()
                    .map(|name| format!("{parent}/{name}"))
                    .map(|path| {
                        let metadata = cgroups.metadata(&path);
                        (path, metadata)
                    })
                    .collect(),
                directories: files::entries(&names.files_dir()).map_err(listing)?,
                logs: files::entries(&names.log_dir).map_err(listing)?,
            })
        })
        .await
    }
}

/// Whether containerd runs the task of this shim's container by another shim.
fn is_passed_over(shim: &Shim, shims: &[Shim], tasks: &[Process]) -> bool {
    let task = tasks.iter().find(|it| it.id == shim.container);
    let serving = task.and_then(|it| shims::parent(it.pid));
    let mut others = shims
        .iter()
        .filter(|it| it.container == shim.container && it.pid != shim.pid);
    others.any(|it| Some(it.pid) == serving)
}

fn of_container(container: &Container) -> RuntimeObject {
    let known = Known::of(container);
    let object = of_known(RuntimeObjectKind::Container, &container.id, Some(&known));
    marked(object, &container.labels)
}

fn of_snapshot(info: &Info, own: &BTreeMap<String, Known>) -> RuntimeObject {
    let object = RuntimeObject {
        made_at: stamp(info.created_at),
        ..of_known(RuntimeObjectKind::Snapshot, &info.name, own.get(&info.name))
    };
    marked(object, &info.labels)
}

/// What no verb would look for, under its name, belongs to the sandbox that its mark says.
fn marked(object: RuntimeObject, labels: &HashMap<String, String>) -> RuntimeObject {
    let entity = labels.get(names::LABEL_ENTITY_ID);
    let marked = entity.and_then(|it| names::parse_entity_id(it));
    if object.sandbox.is_some() && object.sandbox == marked {
        return object;
    }
    RuntimeObject {
        sandbox: marked,
        role: None,
        strange: true,
        ..object
    }
}

fn of_known(kind: RuntimeObjectKind, id: &str, known: Option<&Known>) -> RuntimeObject {
    let (sandbox, role) = names::parse_container_id(id).unzip();
    RuntimeObject {
        kind,
        name: id.to_owned(),
        sandbox,
        generation: known.and_then(|it| it.generation),
        role,
        made_at: known.and_then(|it| it.made_at),
        serial: None,
        strange: false,
        silent: false,
    }
}

fn of_mount(it: OwnMount) -> RuntimeObject {
    RuntimeObject {
        kind: RuntimeObjectKind::Mount,
        name: it.mount.point.display().to_string(),
        sandbox: it.sandbox,
        generation: None,
        role: it.role,
        made_at: None,
        serial: Some(it.mount.number),
        strange: it.strange,
        silent: false,
    }
}

fn by_name(
    kind: RuntimeObjectKind,
    name: String,
    owner: &str,
    made_at: Option<SystemTime>,
    serial: Option<u64>,
) -> RuntimeObject {
    RuntimeObject {
        kind,
        name,
        sandbox: SandboxId::parse(owner)
            .ok()
            .filter(|it| it.as_str() == owner),
        generation: None,
        role: None,
        made_at,
        serial,
        strange: false,
        silent: false,
    }
}

/// The process that a listed shim stands for.
fn shim_of(object: &RuntimeObject) -> Result<Shim, RuntimeError> {
    let pid = object.serial.and_then(|it| u32::try_from(it).ok());
    let owner: Option<(u32, SandboxId, Role)> = pid
        .zip(object.sandbox.clone())
        .zip(object.role.clone())
        .map(|((pid, sandbox), role)| (pid, sandbox, role));
    let Some((pid, sandbox, role)) = owner else {
        return Err(refused("looking for a shim", "it is no shim of ours"));
    };
    Ok(Shim {
        pid,
        container: names::container_id(&sandbox, &role),
        sandbox,
        role,
        started_at: object.made_at,
    })
}

fn another(name: &str) -> RuntimeError {
    refused(
        "removing an object",
        format!("{name} is another one than was looked at"),
    )
}

fn stamp(at: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    at.filter(|it| it.seconds > 0)?.try_into().ok()
}

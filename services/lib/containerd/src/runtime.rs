//! The verbs of the runtime. Each asks containerd for what a step means, and can be repeated.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{
    ContainerSeen, Extent, Role, Sandbox, SandboxId, TaskSeen, cgroups::Driver, names,
};
use berth_platform::{
    ContainerReading, ContainerRoot, EndSignal, ExecCommand, ExecError, ExecExit, ExecIo, Runtime,
    RuntimeError, RuntimeFacts, RuntimeObject, RuntimeSeen, SocketHolder,
};
use containerd_client::{
    services::v1::{
        Container, CreateRequest as CreateLeaseRequest, CreateTaskRequest, DeleteContainerRequest,
        DeleteTaskRequest, GetRequest, ListContainersRequest, ListRequest as ListLeasesRequest,
        StartRequest, snapshots::ListSnapshotsRequest,
    },
    types::v1::Status as TaskStatus,
};
use tokio::sync::mpsc;
use tonic::Code;

use crate::{
    bundles::Remains,
    client::{CallError, found, made, within},
    connection::Containerd,
    content::delete_lease,
    ending::SIGTERM,
    errors::{node, of_cgroup, refused, silent},
    exits, fifos, files, holders,
    images::{blocking, time},
    settings::PauseRootfs,
    spec,
    unpack::remove_snapshot,
};

/// How long containerd may take to forget a task whose shim has gone; its own limit for that is 5 s.
const FORMER_TASK: Duration = Duration::from_secs(10);
const FORMER_TASK_RETRY: Duration = Duration::from_millis(20);
const FACTS_TIMEOUT: Duration = Duration::from_secs(2);
const HINTS: usize = 256;

impl Containerd {
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

    pub(crate) async fn task(&self, container: &str) -> Result<TaskSeen, RuntimeError> {
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

    /// Whether a former manager stored this container.
    async fn is_inherited(&self, container: &str) -> Result<bool, RuntimeError> {
        let found = self.container(container).await?;
        Ok(found.is_some_and(|it| time(it.created_at) < self.0.connected_at))
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
        let path = self.names().cgroup(&sandbox.id);
        let local = async {
            self.make_cgroup(path, sandbox.spec.resources).await?;
            let written = blocking(move || {
                files::write(&inner.settings, &on_disk)
                    .map_err(|it| node("writing the files of a sandbox", it))
            });
            written.await
        };
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
        let (mut terminal, mut stdin) = (false, String::new());
        if let Role::App(name) = role
            && let Some(wanted) = sandbox.spec.container(name)
        {
            terminal = wanted.tty;
            if wanted.stdin {
                let path = self.stdin_of(id, name);
                stdin = path.display().to_string();
                blocking(move || fifos::make_lasting(&path))
                    .await
                    .map_err(|it| node("making the pipe of a container's input", it))?;
            }
        }
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
            stdin,
            stdout: output.clone(),
            stderr: if terminal { String::new() } else { output },
            terminal,
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

    async fn root(
        &self,
        id: &SandboxId,
        role: &Role,
    ) -> Result<Option<ContainerRoot>, RuntimeError> {
        self.open_root(id, role).await
    }

    async fn usage(&self, id: &SandboxId) -> Result<Vec<ContainerReading>, RuntimeError> {
        let (inner, id) = (self.0.clone(), id.clone());
        blocking(move || {
            let names = &inner.settings.names;
            let (mut readings, sandbox) = (vec![], names.cgroup(&id));
            for name in inner.cgroups.children(&sandbox).map_err(of_cgroup)? {
                let Some(role) = holders::role_of(&sandbox, &name) else {
                    continue;
                };
                let path = names.container_cgroup(&id, &role);
                if let Some(it) = inner.cgroups.usage(&path).map_err(of_cgroup)? {
                    let measured_at = SystemTime::now();
                    readings.push(ContainerReading {
                        role,
                        measured_at,
                        usage: it,
                    });
                }
            }
            Ok(readings)
        })
        .await
    }

    async fn socket_holders(
        &self,
        id: &SandboxId,
    ) -> Result<BTreeMap<u64, SocketHolder>, RuntimeError> {
        let (inner, id) = (self.0.clone(), id.clone());
        blocking(move || {
            let cgroup = inner.settings.names.cgroup(&id);
            holders::find(&inner.cgroups, &cgroup).map_err(of_cgroup)
        })
        .await
    }

    async fn oom_cgroup(
        &self,
        id: &SandboxId,
        role: &Role,
        former: u64,
    ) -> Result<Option<String>, RuntimeError> {
        let inner = self.names().container_cgroup(id, role);
        let (shared, outer) = (self.0.clone(), self.names().cgroup(id));
        blocking(move || {
            shared
                .cgroups
                .oom_culprit(&inner, &outer, former)
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
        signal: EndSignal,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        self.end(object, signal, grace).await
    }

    async fn remove_object(&self, object: &RuntimeObject) -> Result<(), RuntimeError> {
        self.remove(object).await
    }

    async fn exec(
        &self,
        id: &SandboxId,
        role: &Role,
        command: &ExecCommand,
        io: ExecIo,
    ) -> Result<ExecExit, ExecError> {
        self.run_exec(id, role, command, io).await
    }

    async fn attach(
        &self,
        id: &SandboxId,
        role: &Role,
        io: ExecIo,
    ) -> Result<Option<u32>, ExecError> {
        self.run_attach(id, role, io).await
    }

    async fn end_former_execs(&self) -> Result<usize, RuntimeError> {
        self.end_former().await
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
        let makes_cgroups = async {
            settings.cgroup_driver == Driver::Cgroupfs
                || self.0.systemd.answers(FACTS_TIMEOUT).await
        };
        let (version, makes_cgroups) = tokio::join!(version, makes_cgroups);
        let mut degraded = vec![];
        if !makes_cgroups {
            degraded.push(
                "cgroup.driver: systemd does not answer over the bus: no sandbox is created or removed until it does"
                    .to_owned(),
            );
        }
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
            version: version.ok().map(|it| it.version),
            handler: settings.handler.clone(),
            cgroup_version: self.0.host.cgroup_version,
            degraded,
        }
    }
}

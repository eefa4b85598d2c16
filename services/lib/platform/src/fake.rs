//! A node in memory that refuses what a real one refuses. It knows no rule of the manager: any caller may ask for
//! anything in any order. Operations go by the name of their verb (`create_task`), or by verb and object
//! (`create_task web app`); the reading verbs of the network are `observe_network` and `list_network`.

mod access;
mod controls;
mod exec;
mod faults;
mod images;
mod network;
mod objects;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use berth_domain::{
    ContainerSeen, Extent, Generation, ImageRef, InstanceId, Names, Protocol, Role, Sandbox,
    SandboxId, TaskSeen, usage::Usage,
};
use tokio::sync::{mpsc, watch};

use crate::{
    ContainerReading, ContainerRoot, EndSignal, ExecCommand, ExecError, ExecExit, ExecIo,
    ImageError, ImageInfo, LayerProgress, ListeningSocket, NetworkObject, Progress, Runtime,
    RuntimeError, RuntimeFacts, RuntimeObject, RuntimeObjectKind, RuntimeSeen, SocketHolder,
};

const TERMINATED: u32 = 128 + 15;
const KILLED: u32 = 128 + 9;
const HINTS: usize = 4096;
const TABLE: &str = "berth-fake";

/// A node whose clones are the same node.
#[derive(Clone, Debug, Default)]
pub struct FakeNode {
    state: Arc<Mutex<State>>,
    /// Operations that do not get on while they are in here.
    hung: watch::Sender<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct State {
    sandboxes: BTreeMap<SandboxId, Held>,
    images: BTreeMap<String, ImageInfo>,
    registry: BTreeSet<String>,
    /// By container name, in place of the declared ports.
    listens: BTreeMap<String, Vec<(Protocol, SocketAddr)>>,
    faults: Vec<Planned>,
    calls: Vec<String>,
    followers: Vec<mpsc::Sender<Option<SandboxId>>>,
    unreachable: bool,
    /// Objects that no verb made.
    strays: Vec<RuntimeObject>,
    network_strays: Vec<NetworkObject>,
    /// Containers whose shim does not answer.
    silent: BTreeSet<(SandboxId, Role)>,
    table_lost: bool,
    /// Its kernel has no rules.
    fenceless: bool,
    node_listens: Vec<ListeningSocket>,
    /// How many containers were made so far.
    made: u64,
    access: access::Access,
    /// Programs that run beside the containers' own.
    execs: usize,
    /// Programs that a former process left running.
    former_execs: usize,
}

/// What there is of one sandbox.
#[derive(Debug, Default)]
struct Held {
    lease: bool,
    /// The parent cgroup and the folder of files, which a reboot takes away.
    files: bool,
    namespaces: bool,
    link: bool,
    /// It has its place in the rules of the node.
    fenced: bool,
    logs: bool,
    containers: BTreeMap<Role, Stored>,
}

#[derive(Debug)]
struct Stored {
    generation: Generation,
    digest: String,
    /// Those that it declares.
    ports: Vec<(Protocol, u16)>,
    task: TaskSeen,
    oom_kills: u64,
    made_at: SystemTime,
    /// Tells it from one that was made earlier.
    serial: u64,
}

#[derive(Debug)]
struct Planned {
    operation: String,
    times: usize,
    fault: Fault,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Nothing is done.
    Failed,
    /// It is done, and nobody hears of it.
    AnswerLost,
    Unreachable,
}

/// An error that stands for a fault of the node.
trait FromFault: Sized {
    const OVER_CONTAINERD: bool;

    fn from_fault(fault: Fault, operation: &'static str, about: &str) -> Self;
}

/// What a test arranges and looks at.
impl FakeNode {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plan(&self, operation: &str, times: usize, fault: Fault) {
        let operation = operation.to_owned();
        self.state().faults.push(Planned {
            operation,
            times,
            fault,
        });
    }

    /// Writes the call down and carries it out.
    async fn change<T, E: FromFault>(
        &self,
        operation: &'static str,
        about: impl fmt::Display,
        effect: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        let about = about.to_string();
        self.state().calls.push(format!("{operation} {about}"));
        self.call(operation, &about, effect).await
    }

    async fn call<T, E: FromFault>(
        &self,
        operation: &'static str,
        about: &str,
        effect: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        // A call to a real node lets others run.
        tokio::task::yield_now().await;
        let free = |hung: &BTreeSet<String>| !hung.iter().any(|it| names(it, operation, about));
        let mut hung = self.hung.subscribe();
        drop(hung.wait_for(free).await);
        let mut state = self.state();
        let fault = if state.unreachable && E::OVER_CONTAINERD {
            Some(Fault::Unreachable)
        } else {
            state.fault(operation, about)
        };
        match fault {
            None => effect(&mut state),
            Some(fault @ Fault::AnswerLost) => {
                effect(&mut state)?;
                Err(E::from_fault(fault, operation, about))
            }
            Some(fault @ (Fault::Failed | Fault::Unreachable)) => {
                Err(E::from_fault(fault, operation, about))
            }
        }
    }
}

impl Runtime for FakeNode {
    async fn observe(&self, id: &SandboxId) -> Result<RuntimeSeen, RuntimeError> {
        self.call("observe", id.as_str(), |state| {
            let Some(held) = state.sandboxes.get(id) else {
                return Ok(RuntimeSeen::default());
            };
            if state.silent.iter().any(|(of, _)| of == id) {
                return Err(RuntimeError::Unreachable {
                    operation: "observe",
                    source: "a shim does not say how its task is".into(),
                });
            }
            let containers = held.containers.iter().map(|(role, stored)| {
                let task = stored.task;
                (role.clone(), ContainerSeen { stored: true, task })
            });
            let apps = held.containers.iter();
            let apps = apps.filter(|(role, _)| **role != Role::Pause);
            Ok(RuntimeSeen {
                prepared: Extent::of(&[held.lease, held.files]),
                containers: containers.collect(),
                digests: apps
                    .map(|(role, stored)| (role.clone(), stored.digest.clone()))
                    .collect(),
            })
        })
        .await
    }

    async fn prepare(&self, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        self.change("prepare", &sandbox.id, |state| {
            let held = state.sandboxes.entry(sandbox.id.clone()).or_default();
            (held.lease, held.files) = (true, true);
            Ok(())
        })
        .await
    }

    async fn create_container(
        &self,
        sandbox: &Sandbox,
        role: &Role,
    ) -> Result<String, RuntimeError> {
        const OPERATION: &str = "create_container";
        let about = format!("{} {role}", sandbox.id);
        self.change(OPERATION, &about, |state| {
            let held = state
                .sandboxes
                .get(&sandbox.id)
                .filter(|held| held.lease && held.files);
            let Some(held) = held else {
                return refuse(OPERATION, &about, "the sandbox is not prepared");
            };
            if let Some(stored) = held.containers.get(role) {
                return if stored.generation == sandbox.generation {
                    Ok(stored.digest.clone())
                } else {
                    refuse(OPERATION, &about, "it was made for another generation")
                };
            }
            let (digest, ports) = match role {
                Role::Pause => (digest_of("pause"), vec![]),
                Role::App(name) => {
                    let Some(container) = sandbox.spec.container(name) else {
                        return refuse(OPERATION, &about, "the spec has no such container");
                    };
                    let image = container.image.to_string();
                    let Some(info) = state.images.get(&image) else {
                        return Err(RuntimeError::ImageMissing { image });
                    };
                    let ports = container.ports.iter();
                    let ports = ports.map(|it| (it.protocol, it.number)).collect();
                    (info.digest.clone(), ports)
                }
            };
            state.made += 1;
            let stored = Stored {
                generation: sandbox.generation,
                digest: digest.clone(),
                ports,
                task: TaskSeen::Missing,
                oom_kills: 0,
                made_at: SystemTime::now(),
                serial: state.made,
            };
            let held = state.sandboxes.entry(sandbox.id.clone()).or_default();
            held.containers.insert(role.clone(), stored);
            Ok(digest)
        })
        .await
    }

    async fn create_task(&self, sandbox: &Sandbox, role: &Role) -> Result<(), RuntimeError> {
        const OPERATION: &str = "create_task";
        let about = format!("{} {role}", sandbox.id);
        self.change(OPERATION, &about, |state| {
            let held = state.sandboxes.entry(sandbox.id.clone()).or_default();
            let Some(stored) = held.containers.get_mut(role) else {
                return refuse(OPERATION, &about, "there is no such container");
            };
            if !held.namespaces {
                return refuse(OPERATION, &about, "the namespaces are not open");
            }
            if !held.files {
                return refuse(OPERATION, &about, "the sandbox's files are gone");
            }
            match stored.task {
                TaskSeen::Missing => {
                    (stored.task, stored.oom_kills) = (TaskSeen::Created, 0);
                    held.logs = true;
                    Ok(())
                }
                TaskSeen::Created | TaskSeen::Running => Ok(()),
                TaskSeen::Exited { .. } | TaskSeen::Unknown => {
                    refuse(OPERATION, &about, "a task that has ended is there")
                }
            }
        })
        .await
    }

    async fn start_task(&self, id: &SandboxId, role: &Role) -> Result<(), RuntimeError> {
        const OPERATION: &str = "start_task";
        let about = format!("{id} {role}");
        self.change(OPERATION, &about, |state| match state.task(id, role) {
            Some(task @ TaskSeen::Created) => {
                *task = TaskSeen::Running;
                Ok(())
            }
            Some(TaskSeen::Running) => Ok(()),
            None | Some(TaskSeen::Missing | TaskSeen::Exited { .. } | TaskSeen::Unknown) => {
                refuse(OPERATION, &about, "there is no task to start")
            }
        })
        .await
    }

    async fn stop_task(
        &self,
        id: &SandboxId,
        role: &Role,
        _grace: Duration,
    ) -> Result<(), RuntimeError> {
        self.change("stop_task", format!("{id} {role}"), |state| {
            if let Some(task @ (TaskSeen::Created | TaskSeen::Running)) = state.task(id, role) {
                *task = exited(TERMINATED);
                state.hint(Some(id));
            }
            Ok(())
        })
        .await
    }

    async fn delete_task(&self, id: &SandboxId, role: &Role) -> Result<(), RuntimeError> {
        self.change("delete_task", format!("{id} {role}"), |state| {
            if let Some(task) = state.task(id, role) {
                let lived = matches!(task, TaskSeen::Created | TaskSeen::Running);
                *task = TaskSeen::Missing;
                if lived {
                    state.hint(Some(id));
                }
            }
            Ok(())
        })
        .await
    }

    async fn remove_container(&self, id: &SandboxId, role: &Role) -> Result<(), RuntimeError> {
        const OPERATION: &str = "remove_container";
        let about = format!("{id} {role}");
        self.change(OPERATION, &about, |state| {
            match state.task(id, role).map(|task| *task) {
                None | Some(TaskSeen::Missing) => {}
                Some(
                    TaskSeen::Created
                    | TaskSeen::Running
                    | TaskSeen::Exited { .. }
                    | TaskSeen::Unknown,
                ) => {
                    return refuse(OPERATION, &about, "it has a task");
                }
            }
            if let Some(held) = state.sandboxes.get_mut(id) {
                held.containers.remove(role);
            }
            Ok(())
        })
        .await
    }

    async fn release(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        const OPERATION: &str = "release";
        self.change(OPERATION, id, |state| {
            let Some(held) = state.sandboxes.get_mut(id) else {
                return Ok(());
            };
            if !held.containers.is_empty() {
                return refuse(OPERATION, id.as_str(), "the sandbox has containers");
            }
            (held.lease, held.files) = (false, false);
            Ok(())
        })
        .await
    }

    async fn forget_logs(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.change("forget_logs", id, |state| {
            if let Some(held) = state.sandboxes.get_mut(id) {
                held.logs = false;
            }
            Ok(())
        })
        .await
    }

    async fn root(
        &self,
        id: &SandboxId,
        role: &Role,
    ) -> Result<Option<ContainerRoot>, RuntimeError> {
        let about = format!("{id} {role}");
        self.call("root", &about, |state| state.root(id, role))
            .await
    }

    async fn usage(&self, id: &SandboxId) -> Result<Vec<ContainerReading>, RuntimeError> {
        self.call("usage", id.as_str(), |state| {
            let containers = state.sandboxes.get(id).map(|held| &held.containers);
            // The cgroup of a task that has ended stays until the task is deleted.
            let measured = containers
                .into_iter()
                .flatten()
                .filter(|(_, stored)| stored.task != TaskSeen::Missing);
            Ok(measured
                .map(|(role, stored)| ContainerReading {
                    role: role.clone(),
                    measured_at: SystemTime::now(),
                    usage: stored.usage(),
                })
                .collect())
        })
        .await
    }

    async fn socket_holders(
        &self,
        id: &SandboxId,
    ) -> Result<BTreeMap<u64, SocketHolder>, RuntimeError> {
        self.call("socket_holders", id.as_str(), |state| {
            let held = state.sandboxes.get(id).into_iter();
            let sockets = held.flat_map(|it| it.held_sockets(&state.listens));
            let holder = |(socket, role): (ListeningSocket, Role)| {
                let command = format!("{role}d");
                let pid = 1;
                (socket.inode, SocketHolder { role, command, pid })
            };
            Ok(sockets.map(holder).collect())
        })
        .await
    }

    async fn oom_cgroup(
        &self,
        id: &SandboxId,
        role: &Role,
        former: u64,
    ) -> Result<Option<String>, RuntimeError> {
        self.call("oom_cgroup", &format!("{id} {role}"), |state| {
            let held = state.sandboxes.get(id);
            let stored = held.and_then(|held| held.containers.get(role));
            let killed = stored.is_some_and(|it| it.oom_kills > former);
            Ok(killed.then(|| format!("/{}", node_names().container_cgroup(id, role))))
        })
        .await
    }

    async fn list(&self) -> Result<Vec<RuntimeObject>, RuntimeError> {
        self.call("list", "", |state| Ok(state.runtime_objects()))
            .await
    }

    async fn end_object(
        &self,
        object: &RuntimeObject,
        signal: EndSignal,
        _grace: Duration,
    ) -> Result<(), RuntimeError> {
        self.change("end_object", &object.name, |state| {
            if !matches!(
                object.kind,
                RuntimeObjectKind::Task | RuntimeObjectKind::Shim
            ) || !state.runtime_objects().contains(object)
            {
                return Ok(());
            }
            if let (Some(id), Some(role)) = (&object.sandbox, &object.role)
                && let Some(task @ (TaskSeen::Created | TaskSeen::Running)) = state.task(id, role)
            {
                *task = exited(128 + signal.number());
                state.hint(Some(id));
            }
            Ok(())
        })
        .await
    }

    async fn remove_object(&self, object: &RuntimeObject) -> Result<(), RuntimeError> {
        const OPERATION: &str = "remove_object";
        self.change(OPERATION, &object.name, |state| {
            if let Some(at) = state.strays.iter().position(|it| it == object) {
                state.strays.remove(at);
                return Ok(());
            }
            let objects = state.runtime_objects();
            if !objects.contains(object) {
                let same = |it: &RuntimeObject| (it.kind, &it.name) == (object.kind, &object.name);
                return match objects.iter().any(same) {
                    true => refuse(OPERATION, &object.name, "it is another one"),
                    false => Ok(()),
                };
            }
            let held = object
                .sandbox
                .as_ref()
                .and_then(|id| state.sandboxes.get_mut(id));
            let Some(held) = held else { return Ok(()) };
            match object.kind {
                RuntimeObjectKind::Task | RuntimeObjectKind::Shim => {
                    let stored = object
                        .role
                        .as_ref()
                        .and_then(|it| held.containers.get_mut(it));
                    if let Some(stored) = stored {
                        stored.task = TaskSeen::Missing;
                    }
                }
                RuntimeObjectKind::Container | RuntimeObjectKind::Snapshot => {
                    if let Some(role) = &object.role {
                        held.containers.remove(role);
                    }
                }
                RuntimeObjectKind::Lease => held.lease = false,
                RuntimeObjectKind::Cgroup | RuntimeObjectKind::Directory => held.files = false,
                RuntimeObjectKind::Logs => held.logs = false,
                RuntimeObjectKind::Mount => {}
            }
            Ok(())
        })
        .await
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
        self.change("end_former_execs", "", |state| {
            Ok(std::mem::take(&mut state.former_execs))
        })
        .await
    }

    fn follow_exits(&self) -> mpsc::Receiver<Option<SandboxId>> {
        let (hints, followed) = mpsc::channel(HINTS);
        self.state().followers.push(hints);
        followed
    }

    async fn facts(&self) -> RuntimeFacts {
        let reachable = !self.state().unreachable;
        RuntimeFacts {
            address: "memory".to_owned(),
            namespace: "fake".to_owned(),
            version: reachable.then(|| "fake".to_owned()),
            handler: "fake".to_owned(),
            cgroup_version: 2,
            degraded: vec![],
        }
    }
}

impl State {
    /// The task's state, where its container is stored.
    fn task(&mut self, id: &SandboxId, role: &Role) -> Option<&mut TaskSeen> {
        let stored = self.sandboxes.get_mut(id)?.containers.get_mut(role)?;
        Some(&mut stored.task)
    }

    fn exit(&mut self, id: &SandboxId, role: &Role, code: u32, oom_kills: u64, at: SystemTime) {
        let stored = self
            .sandboxes
            .get_mut(id)
            .and_then(|held| held.containers.get_mut(role))
            .filter(|stored| stored.task == TaskSeen::Running);
        let Some(stored) = stored else {
            panic!("no task of {id} {role} runs");
        };
        stored.task = TaskSeen::Exited { code, at };
        stored.oom_kills += oom_kills;
        self.hint(Some(id));
    }

    /// Tells whoever follows, unless the stream of events is cut.
    fn hint(&mut self, id: Option<&SandboxId>) {
        self.settle();
        if !self.unreachable {
            self.followers.retain(|it| !it.is_closed());
            for follower in &self.followers {
                drop(follower.try_send(id.cloned()));
            }
        }
    }

    fn fault(&mut self, operation: &str, about: &str) -> Option<Fault> {
        let planned = self
            .faults
            .iter_mut()
            .find(|it| it.times > 0 && names(&it.operation, operation, about))?;
        planned.times -= 1;
        Some(planned.fault)
    }

    fn keep_image(&mut self, image: &ImageRef, pin: bool) -> ImageInfo {
        let name = image.to_string();
        let now = SystemTime::now();
        let fresh = ImageInfo {
            digest: digest_of(&name),
            size_bytes: 1 << 20,
            created_at: now,
            updated_at: now,
            pinned: false,
            name: name.clone(),
        };
        let info = self.images.entry(name).or_insert(fresh);
        info.updated_at = now;
        info.pinned |= pin;
        info.clone()
    }

    fn pull(&mut self, image: &ImageRef, progress: &Progress) -> Result<ImageInfo, ImageError> {
        if !self.registry.contains(&image.to_string()) {
            return Err(ImageError::NotFound {
                image: image.to_string(),
                source: None,
            });
        }
        let info = self.keep_image(image, false);
        progress.send_replace(vec![LayerProgress {
            digest: info.digest.clone(),
            current_bytes: info.size_bytes,
            total_bytes: info.size_bytes,
        }]);
        Ok(info)
    }
}

impl Held {
    fn sockets(
        &self,
        listens: &BTreeMap<String, Vec<(Protocol, SocketAddr)>>,
    ) -> Vec<ListeningSocket> {
        let held = self.held_sockets(listens).into_iter();
        held.map(|(socket, _)| socket).collect()
    }

    /// With who has them open.
    fn held_sockets(
        &self,
        listens: &BTreeMap<String, Vec<(Protocol, SocketAddr)>>,
    ) -> Vec<(ListeningSocket, Role)> {
        let running = self
            .containers
            .iter()
            .filter(|(_, stored)| stored.task == TaskSeen::Running);
        let addresses = running.flat_map(|(role, stored)| {
            let everywhere = |&(protocol, port): &(Protocol, u16)| {
                (protocol, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
            };
            let declared = || stored.ports.iter().map(everywhere).collect();
            let sockets = listens.get(&role.to_string()).cloned();
            let sockets: Vec<_> = sockets.unwrap_or_else(declared);
            sockets.into_iter().map(|it| (it, role.clone()))
        });
        let numbered = addresses.zip(1..);
        numbered
            .map(|(((protocol, it), role), inode)| {
                let socket = ListeningSocket {
                    protocol,
                    address: it.ip(),
                    port: it.port(),
                    inode,
                };
                (socket, role)
            })
            .collect()
    }
}

impl Stored {
    fn usage(&self) -> Usage {
        let runs = self.task == TaskSeen::Running;
        Usage {
            total_cpu_time: 2_000_000,
            user_cpu_time: 1_000_000,
            kernel_cpu_time: 1_000_000,
            memory_usage: if runs { 1 << 20 } else { 0 },
            memory_peak: 1 << 20,
            pids: u64::from(runs),
            oom_kills: self.oom_kills,
            ..Usage::default()
        }
    }
}

fn refuse<T>(operation: &'static str, about: &str, why: &str) -> Result<T, RuntimeError> {
    Err(RuntimeError::Refused {
        operation,
        message: format!("{about}: {why}"),
    })
}

/// Whether `pattern` is the operation, or the operation and what it is about.
fn names(pattern: &str, operation: &str, about: &str) -> bool {
    match pattern.strip_prefix(operation) {
        Some("") => true,
        Some(rest) => rest.strip_prefix(' ') == Some(about),
        None => false,
    }
}

fn exited(code: u32) -> TaskSeen {
    TaskSeen::Exited {
        code,
        at: SystemTime::now(),
    }
}

fn read_archive(bytes: &[u8], name: Option<&ImageRef>) -> Result<Vec<ImageRef>, ImageError> {
    let invalid = |what: String| ImageError::ArchiveInvalid { what };
    let text = str::from_utf8(bytes).map_err(|error| invalid(error.to_string()))?;
    let images: Result<Vec<_>, _> = text.lines().map(ImageRef::parse).collect();
    let images = images.map_err(|error| invalid(error.to_string()))?;
    match (images.as_slice(), name) {
        ([], _) => Err(invalid("it has no image".to_owned())),
        ([_], Some(name)) => Ok(vec![name.clone()]),
        (_, Some(_)) => Err(invalid("one name does not name several images".to_owned())),
        (_, None) => Ok(images),
    }
}

/// A digest that looks like one and is the same for the same name.
fn digest_of(name: &str) -> String {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    format!("sha256:{}", format!("{:016x}", hasher.finish()).repeat(4))
}

fn node_names() -> Names {
    Names {
        instance: InstanceId::parse("fake").expect("the name is well-formed"),
        cgroup_parent: "berth/fake".to_owned(),
        run_dir: "/run/fake".into(),
        log_dir: "/var/log/fake".into(),
    }
}

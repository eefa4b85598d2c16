//! Containers, at the height of a step. Every verb can be repeated; "did not answer" is never "is gone".

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    time::{Duration, SystemTime},
};

use berth_domain::{ContainerSeen, Extent, Generation, Role, Sandbox, SandboxId, usage::Usage};
use tokio::sync::mpsc;

use crate::{ExecCommand, ExecError, ExecExit, ExecIo, Source};

pub trait Runtime: Send + Sync + 'static {
    /// What there is of one sandbox, found by its id alone.
    fn observe(
        &self,
        id: &SandboxId,
    ) -> impl Future<Output = Result<RuntimeSeen, RuntimeError>> + Send;

    /// Makes the lease, the parent cgroup with the limits of the sandbox, and the folder of files.
    fn prepare(&self, sandbox: &Sandbox) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Makes the container's snapshot and record, and returns the digest of its image's manifest. The image of an app
    /// must be on the node. A container with this id that was made for another generation is refused.
    fn create_container(
        &self,
        sandbox: &Sandbox,
        role: &Role,
    ) -> impl Future<Output = Result<String, RuntimeError>> + Send;

    /// Makes the task, which does not run yet. The namespaces of the sandbox must be open.
    fn create_task(
        &self,
        sandbox: &Sandbox,
        role: &Role,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    fn start_task(
        &self,
        id: &SandboxId,
        role: &Role,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// SIGTERM, SIGKILL when `grace` is over, and returns when the task has ended. A task that is gone is a success.
    fn stop_task(
        &self,
        id: &SandboxId,
        role: &Role,
        grace: Duration,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Removes the task, killing what still runs of it. A task that is gone is a success.
    fn delete_task(
        &self,
        id: &SandboxId,
        role: &Role,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Removes the container's record and snapshot. One that is gone is a success.
    fn remove_container(
        &self,
        id: &SandboxId,
        role: &Role,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Takes back what `prepare` made.
    fn release(&self, id: &SandboxId) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Removes the sandbox's output. Gone is a success.
    fn forget_logs(&self, id: &SandboxId) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Opens the root of a container whose task runs, as its first process sees it; `None` where no task runs.
    fn root(
        &self,
        id: &SandboxId,
        role: &Role,
    ) -> impl Future<Output = Result<Option<ContainerRoot>, RuntimeError>> + Send;

    /// Reads the figures of every container of the sandbox; one whose cgroup is gone is left out.
    fn usage(
        &self,
        id: &SandboxId,
    ) -> impl Future<Output = Result<Vec<ContainerReading>, RuntimeError>> + Send;

    /// Which processes in the sandbox's cgroups have sockets open, by the inode of the socket; of several the first one. What
    /// more than a sandbox reasonably has is left out.
    fn socket_holders(
        &self,
        id: &SandboxId,
    ) -> impl Future<Output = Result<BTreeMap<u64, SocketHolder>, RuntimeError>> + Send;

    /// The cgroup whose limit the kernel enforced when it killed the container for memory, empty where it was none of the
    /// sandbox's; `None` where it did not, beyond the `former` kills that did not end it. Asked before the task is removed: it
    /// takes the answer along.
    fn oom_cgroup(
        &self,
        id: &SandboxId,
        role: &Role,
        former: u64,
    ) -> impl Future<Output = Result<Option<String>, RuntimeError>> + Send;

    /// Everything that this instance holds, and nothing that another one does.
    fn list(&self) -> impl Future<Output = Result<Vec<RuntimeObject>, RuntimeError>> + Send;

    /// Asks this very task, or what this very shim runs, to end, and waits until it has or `grace` is over. Nothing is
    /// killed. One that is gone, and an object of another kind, is a success.
    fn end_object(
        &self,
        object: &RuntimeObject,
        signal: EndSignal,
        grace: Duration,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Removes this very object, as it was listed, and kills what still runs of it. One that is gone is a success; another
    /// one in its place is refused.
    fn remove_object(
        &self,
        object: &RuntimeObject,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Runs a program in a container that runs, and returns when it has ended and nothing of it is left but what it has
    /// started in the background. It goes on until then, so it must not be dropped: who has enough drops the other end of
    /// the output, and the program is ended by SIGHUP and, 2 s later, SIGKILL, with all of its session.
    fn exec(
        &self,
        id: &SandboxId,
        role: &Role,
        command: &ExecCommand,
        io: ExecIo,
    ) -> impl Future<Output = Result<ExecExit, ExecError>> + Send;

    /// Brings the container's own program what `io` says, until the container has ended, and returns its exit status; `None`
    /// where nobody takes the output any more. Where its task is gone and nobody saw it end, that is an error. Of the output
    /// there is only what was taken: what the container says is in its log.
    /// Nothing of the container ends with it, its input neither.
    fn attach(
        &self,
        id: &SandboxId,
        role: &Role,
        io: ExecIo,
    ) -> impl Future<Output = Result<Option<u32>, ExecError>> + Send;

    /// Ends the programs that `exec` of a former process has left running, and returns how many there were. Called once,
    /// before any `exec`, and again after it has failed.
    fn end_former_execs(&self) -> impl Future<Output = Result<usize, RuntimeError>> + Send;

    /// Starts to follow the ends of tasks. Each message is a hint to look at a sandbox again; `None` means that hints
    /// may have been lost and every sandbox wants a look. Called once.
    fn follow_exits(&self) -> mpsc::Receiver<Option<SandboxId>>;

    fn facts(&self) -> impl Future<Output = RuntimeFacts> + Send;
}

/// What the runtime holds for one sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeSeen {
    /// Any of lease, cgroup and folder.
    pub prepared: Extent,
    pub containers: BTreeMap<Role, ContainerSeen>,
    /// Digest of the manifest that a container was made from, as `create_container` returned it. Only of apps, and of those
    /// that tell.
    pub digests: BTreeMap<Role, String>,
}

/// The root of a container that ran when it was opened.
#[derive(Debug)]
pub struct ContainerRoot {
    /// A place to open from, not to read.
    pub dir: OwnedFd,
    /// Becomes readable when the first process of the task has ended.
    pub ended: OwnedFd,
    /// Whom that process is run by, as the node numbers users.
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerReading {
    pub role: Role,
    pub measured_at: SystemTime,
    pub usage: Usage,
}

/// A process that has a socket open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketHolder {
    pub role: Role,
    /// As the kernel shortens it.
    pub command: String,
    /// As the container knows it.
    pub pid: i32,
}

/// One object of this instance, whether a record explains it or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuntimeObject {
    pub kind: RuntimeObjectKind,
    pub name: String,
    /// As its name or label says; `None` where neither can be read.
    pub sandbox: Option<SandboxId>,
    pub generation: Option<Generation>,
    pub role: Option<Role>,
    /// `None` where neither containerd nor the kernel tells.
    pub made_at: Option<SystemTime>,
    /// What tells it from a later object of its name: a process id, an inode, the number of a mount.
    pub serial: Option<u64>,
    /// It carries the marks of its sandbox, and no verb looks for it under its name; or it outlived what it was made for. A
    /// lease that is neither and names no sandbox is of a pull or an import.
    pub strange: bool,
    /// Whoever runs it did not answer.
    pub silent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuntimeObjectKind {
    Container,
    Task,
    /// The process that runs a task.
    Shim,
    Snapshot,
    Lease,
    Cgroup,
    /// A mount of a container's root, or one below the run folder that nobody is known to have made.
    Mount,
    /// The folder of a sandbox's files.
    Directory,
    /// The folder of a sandbox's output.
    Logs,
}

/// What is known of the runtime below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeFacts {
    pub address: String,
    pub namespace: String,
    /// `None` while it does not answer.
    pub version: Option<String>,
    pub handler: String,
    pub cgroup_version: u32,
    /// What this host does not allow, a sentence each.
    pub degraded: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// It may or may not have done what was asked.
    #[error("the runtime does not answer: {operation}")]
    Unreachable {
        operation: &'static str,
        source: Source,
    },
    #[error("{operation} was refused: {message}")]
    Refused {
        operation: &'static str,
        message: String,
    },
    #[error("image {image} is not on the node")]
    ImageMissing { image: String },
    /// The node itself failed: a file, a folder, a cgroup.
    #[error("{operation} failed")]
    Node {
        operation: &'static str,
        source: Source,
    },
}

/// By what a program is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndSignal {
    Term,
    /// By which most programs say what they were at.
    Quit,
}

impl EndSignal {
    pub fn number(self) -> u32 {
        match self {
            Self::Term => 15,
            Self::Quit => 3,
        }
    }
}

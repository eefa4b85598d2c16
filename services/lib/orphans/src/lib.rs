//! Which object no record explains, which a record misses, and what helps. Decided once, for every caller: the audit, and
//! whoever removes what is left. How objects are found and removed, others know.

mod judge;
mod looks;

use std::{collections::BTreeSet, fmt, time::SystemTime};

use berth_domain::{Generation, Role, SandboxId, Status};

pub use judge::{is_clean, judge};
pub use looks::{confirmed, steady};

/// What an object is. In the order of removal, which is that of creation backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Task,
    /// The process that runs a task.
    Shim,
    Container,
    Snapshot,
    Link,
    /// What stands for a sandbox in the nftables tables of the instance.
    Element,
    /// The pinned namespaces of one sandbox.
    Namespaces,
    Mount,
    Cgroup,
    /// The folder of files of one sandbox.
    Directory,
    /// The folder with the output of one sandbox.
    Logs,
    /// What keeps an image's content in containerd: for a sandbox, or while it is pulled or imported.
    Lease,
    Address,
    /// The nftables table of the instance.
    Table,
    /// The bridge of the instance.
    Bridge,
    Record,
}

impl Kind {
    pub const ALL: [Self; 16] = [
        Self::Task,
        Self::Shim,
        Self::Container,
        Self::Snapshot,
        Self::Link,
        Self::Element,
        Self::Namespaces,
        Self::Mount,
        Self::Cgroup,
        Self::Directory,
        Self::Logs,
        Self::Lease,
        Self::Address,
        Self::Table,
        Self::Bridge,
        Self::Record,
    ];

    /// Whether the task of a sandbox finds objects of this kind by the id alone, and removes them with the rest.
    fn goes_with_its_sandbox(self) -> bool {
        match self {
            Self::Task
            | Self::Container
            | Self::Snapshot
            | Self::Link
            | Self::Namespaces
            | Self::Cgroup
            | Self::Directory
            | Self::Logs
            | Self::Lease => true,
            Self::Shim
            | Self::Element
            | Self::Mount
            | Self::Address
            | Self::Table
            | Self::Bridge
            | Self::Record => false,
        }
    }
}

/// The name that callers see.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Task => "task",
            Self::Shim => "shim",
            Self::Container => "container",
            Self::Snapshot => "snapshot",
            Self::Link => "link",
            Self::Element => "nft-element",
            Self::Namespaces => "netns",
            Self::Mount => "mount",
            Self::Cgroup => "cgroup",
            Self::Directory => "directory",
            Self::Logs => "logs",
            Self::Lease => "lease",
            Self::Address => "address",
            Self::Table => "table",
            Self::Bridge => "bridge",
            Self::Record => "record",
        })
    }
}

/// One object as it was found. Two that are equal are the same object, seen twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub kind: Kind,
    pub name: String,
    pub sandbox: Option<SandboxId>,
    /// `None` where the object does not tell.
    pub generation: Option<Generation>,
    /// The container that it is of, where it is of one.
    pub role: Option<Role>,
    /// `None` where neither containerd nor the kernel tells.
    pub made_at: Option<SystemTime>,
    /// What tells it from a later object of its name, beside its age: a process id, an inode, the number of a link.
    pub serial: Option<u64>,
    /// It is marked as the sandbox's, and no step would look for it under its name; or it outlived what it was made for.
    pub strange: bool,
    /// Whoever runs it did not answer, which says nothing about how it is.
    pub silent: bool,
}

impl Object {
    /// A text that this object has and no other one, also not a later one of its name.
    pub fn identity(&self) -> String {
        let Self {
            kind,
            name,
            sandbox,
            generation,
            role,
            made_at,
            serial,
            strange,
            silent,
        } = self;
        // What was made before 1970 was not made by us.
        let nanos = |it: &SystemTime| it.duration_since(SystemTime::UNIX_EPOCH).ok();
        let made_at = made_at.as_ref().and_then(nanos);
        let words = [
            Some(kind.to_string()),
            serial.map(|it| it.to_string()),
            made_at.map(|it| it.as_nanos().to_string()),
            generation.map(|it| it.0.to_string()),
            sandbox.as_ref().map(SandboxId::to_string),
            role.as_ref().map(Role::to_string),
            strange.then(|| "strange".to_owned()),
            silent.then(|| "silent".to_owned()),
        ];
        // None of them has a slash in it, and the name is the last one.
        let words = words.map(Option::unwrap_or_default);
        format!("{}/{name}", words.join("/"))
    }
}

/// What a record promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    pub id: SandboxId,
    pub generation: Generation,
    pub status: Status,
    /// Whether a plan may be running for it.
    pub busy: bool,
    pub roles: Vec<Role>,
    /// Whether it has a link, and what stands for it in the rules; without, it has the network of the node.
    pub has_link: bool,
    pub addresses: Vec<String>,
}

/// Everything that is judged together. The objects are those of one instance.
#[derive(Clone, Debug, Default)]
pub struct Look {
    pub promises: Vec<Promise>,
    /// Sandboxes that have a record, which cannot be read: it explains what they hold, though not by how much.
    pub unreadable: BTreeSet<SandboxId>,
    pub objects: Vec<Object>,
    /// What the instance as a whole must have, with or without sandboxes.
    pub standing: Vec<(Kind, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Explained,
    /// No record explains it.
    Orphan,
    /// A record needs it, and it is not there.
    Missing,
    /// A plan may be running for its sandbox.
    InProgress,
    /// Its owner did not answer. That is no proof of anything.
    Unknown,
}

/// What helps, as a value that can be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fix {
    Nothing,
    /// It is asked again when its owner answers.
    AskAgain,
    /// The task of the sandbox looks, and acts upon what it finds.
    Wake(SandboxId),
    /// The task of the sandbox removes all that its id holds.
    Clear(SandboxId),
    /// This very object is removed.
    Remove,
    /// The manager makes it when it starts.
    Restart,
}

impl Fix {
    /// Whether carrying it out takes anything away.
    pub fn removes(&self) -> bool {
        match self {
            Self::Clear(_) | Self::Remove => true,
            Self::Nothing | Self::AskAgain | Self::Wake(_) | Self::Restart => false,
        }
    }
}

/// What to do, in words; empty for nothing.
impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::AskAgain => f.write_str("look again when it answers"),
            Self::Wake(id) => write!(f, "sandbox {id} looks at itself and acts"),
            Self::Clear(id) => write!(f, "--fix removes all that {id} holds"),
            Self::Remove => f.write_str("--fix removes it"),
            Self::Restart => f.write_str("start the manager again, it makes it"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub object: Object,
    pub verdict: Verdict,
    pub explanation: String,
    pub fix: Fix,
}

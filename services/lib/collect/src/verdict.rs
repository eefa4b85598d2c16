//! The words of a plan: what happens to an object, and why.

use std::{fmt, sync::Arc, time::SystemTime};

/// What a run does with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Something holds it, or it is none of ours.
    Keep,
    /// It is too young, or the goal is reached without it.
    Later,
    Delete,
    /// A blob that no path leads to, until its grace has passed.
    Tombstone,
    /// A blob that no path leads to, or no link, and that something needs.
    Restore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolderKind {
    Sandbox,
    Version,
    Artifact,
    Pin,
    Pull,
    Manager,
    /// A manifest or an index that something holds.
    Manifest,
    /// One that this program has no word for: it holds all the same.
    Other,
}

/// Who holds an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub kind: HolderKind,
    /// Empty for a pin and for the manager.
    pub id: String,
    /// The end of a pin.
    pub until: Option<SystemTime>,
}

impl Holder {
    pub fn new(kind: HolderKind, id: impl Into<String>) -> Self {
        Self {
            kind,
            id: id.into(),
            until: None,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Holder { kind, id, .. } = self;
        match kind {
            HolderKind::Sandbox => write!(f, "sandbox {id}"),
            HolderKind::Version => write!(f, "version {id}"),
            HolderKind::Artifact => f.write_str(id),
            HolderKind::Pin => f.write_str("a pin"),
            HolderKind::Pull => f.write_str("a pull that is under way"),
            HolderKind::Manager => f.write_str("the manager itself"),
            HolderKind::Manifest => write!(f, "manifest {id}"),
            HolderKind::Other => write!(f, "something named `{id}`"),
        }
    }
}

/// The reason of an [`Action`]; its text is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Held(Arc<Holder>),
    /// Another name of the same content is held.
    HeldAs {
        holder: Arc<Holder>,
        name: String,
    },
    NotOurs,
    Wanted {
        artifact: String,
        empty: bool,
    },
    YoungOrphan {
        artifact: String,
    },
    Orphan {
        artifact: String,
    },
    Archived {
        artifact: String,
    },
    /// It is named by its digest only, and no artifact has that.
    Unnamed,
    YoungUnnamed,
    YoungBlob,
    Unreferenced,
    GoalReached,
    /// A tombstone within its grace.
    Grace,
    GraceOver,
    /// The path of a tombstone's blob leads to another copy.
    Superseded,
    /// The path leads to a file that may be no whole copy.
    BesideAnother,
    Unreadable {
        problem: String,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(holder) => write!(f, "{holder} holds it"),
            Self::HeldAs { holder, name } => write!(f, "{holder} holds its content, as {name}"),
            Self::NotOurs => f.write_str("it is no artifact of the cluster"),
            Self::Wanted { artifact, empty } => {
                let status = if *empty { "empty" } else { "active" };
                write!(f, "{artifact} is {status}")
            }
            Self::YoungOrphan { artifact } => {
                write!(f, "the catalog has no {artifact}, but the image is young")
            }
            Self::Orphan { artifact } => write!(f, "the catalog has no {artifact}"),
            Self::Archived { artifact } => write!(f, "{artifact} is archived"),
            Self::Unnamed => f.write_str("no artifact that is wanted has its digest"),
            Self::YoungUnnamed => {
                f.write_str("no artifact that is wanted has its digest, but the image is young")
            }
            Self::YoungBlob => f.write_str("nothing needs it, but it is young"),
            Self::Unreferenced => f.write_str("nothing needs it"),
            Self::GoalReached => f.write_str("the goal is reached without it"),
            Self::Grace => {
                f.write_str("nothing needs it; no path leads to it until its grace has passed")
            }
            Self::GraceOver => f.write_str("nothing needs it, and its grace has passed"),
            Self::Superseded => f.write_str("it has been written anew since"),
            Self::BesideAnother => {
                f.write_str("it stays beside a file of its name that may not be whole yet")
            }
            Self::Unreadable { problem } => write!(f, "it cannot be read: {problem}"),
        }
    }
}

/// An image or a blob with what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Name of the image, or digest of the blob.
    pub name: String,
    pub digest: String,
    pub size_bytes: u64,
    /// What its deletion frees: nothing, where another name keeps the content.
    pub frees_bytes: u64,
    /// Or else made.
    pub last_used: SystemTime,
    pub holders: Vec<Arc<Holder>>,
    pub action: Action,
    pub why: Why,
    /// When it could go, where that is known.
    pub deletable_at: Option<SystemTime>,
    /// Of a tombstone: it goes before anything else, and counts for a goal.
    pub buried: Option<Tombstone>,
}

/// What a blob was renamed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tombstone {
    /// Of the claim that it was made under.
    pub token: u64,
    pub at: SystemTime,
}

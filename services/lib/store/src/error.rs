//! What can go wrong with the store, told apart by what a caller can do about it.

use std::{fmt, io, net::Ipv4Addr, path::PathBuf};

use berth_domain::{Failure, NotAllowed, SandboxId};
use ipnet::Ipv4Net;

use crate::rows::Lease;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the file system of the store is full")]
    Full { source: redb::Error },
    #[error("{} is in use by another process: a manager that runs, or a `store` command", path.display())]
    InUse { path: PathBuf },
    #[error("there is no store at {}", path.display())]
    Missing { path: PathBuf },
    #[error(
        "{} is damaged: {problem}. `sandbox-manager store check` looks at it, `store export` saves what can be read, \
         `store import --replace` puts that in its place and keeps the damaged file aside",
        path.display()
    )]
    Damaged { path: PathBuf, problem: String },
    #[error(
        "{} has schema {found}, this program knows schemas up to {known}: run the version of Berth that wrote it, or a \
         newer one",
        path.display()
    )]
    NewerSchema {
        path: PathBuf,
        found: u64,
        known: u64,
    },
    #[error("the subnet is {configured}, but {address} is held by sandbox {owner}")]
    ForeignAddress {
        configured: String,
        address: String,
        owner: String,
    },
    #[error("the {0}")]
    Unreadable(Unreadable),
    #[error("the store failed")]
    Failed { source: redb::Error },
}

/// An entry that is there and cannot be read. It keeps no other entry from working.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Which entry it is: `record web`, `lease 10.87.0.2`, `change 17`.
    pub key: String,
    pub problem: String,
    /// The sandbox whose record it is: what this one holds on the node is explained, though not by how much.
    pub sandbox: Option<SandboxId>,
}

impl Unreadable {
    pub(crate) fn record(id: &str, problem: impl fmt::Display) -> Self {
        Self {
            key: format!("record {id}"),
            problem: problem.to_string(),
            sandbox: SandboxId::parse(id).ok(),
        }
    }

    pub(crate) fn other(kind: &str, key: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self {
            key: format!("{kind} {key}"),
            problem: problem.to_string(),
            sandbox: None,
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, problem, .. } = self;
        write!(f, "{key} cannot be read: {problem}")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    #[error(transparent)]
    Refused(Failure),
    #[error("all {capacity} addresses of the subnet are held")]
    Exhausted {
        capacity: u64,
        held: u64,
        /// Of whom the part is that is used up; `None` where it is what is nobody's.
        subnet: Option<String>,
        /// How many addresses are kept in parts.
        reserved: u64,
    },
    #[error("no subnet is reserved for {identifier:?}")]
    SubnetNotFound { identifier: String },
    #[error("the node has {limit} sandboxes, as many as it may have")]
    TooMany { limit: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// There is no record of this id and generation.
    #[error("the record is gone or was replaced")]
    Gone,
    #[error(transparent)]
    NotAllowed(NotAllowed),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("the entry has revision {actual}, not {expected}")]
    Conflict { expected: u64, actual: u64 },
    #[error("the catalog has {limit} entries, as many as it can have")]
    Full { limit: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("{limit} images are pinned, as many as can be")]
    Full { limit: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    #[error("{address} was never given out")]
    NotFound { address: Ipv4Addr },
    /// With the lease as it is.
    #[error("{} is held by sandbox {}", .0.address, .0.owner)]
    Held(Lease),
    /// With the lease as it is.
    #[error("{} is of generation {} of sandbox {}", .0.address, .0.generation, .0.owner)]
    Conflict(Lease),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    #[error("{subnet} is reserved for {identifier:?}, which has another size")]
    Conflict { identifier: String, subnet: Ipv4Net },
    #[error("the node's subnet has no room for another subnet with a prefix of /{prefix_length}")]
    Exhausted { prefix_length: u8, reserved: u64 },
    #[error("{limit} subnets are reserved, as many as there can be")]
    TooMany { limit: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, thiserror::Error)]
pub enum UnreserveError {
    #[error("no subnet is reserved for {identifier:?}")]
    NotFound { identifier: String },
    #[error("sandboxes hold {held} addresses of {subnet}")]
    InUse { subnet: Ipv4Net, held: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An error of a write, which may be the store's own.
pub(crate) trait WriteError: From<StoreError> {
    fn store(&self) -> Option<&StoreError>;
    fn into_store(self) -> Result<StoreError, Self>;
}

impl WriteError for StoreError {
    fn store(&self) -> Option<&StoreError> {
        Some(self)
    }

    fn into_store(self) -> Result<StoreError, Self> {
        Ok(self)
    }
}

impl WriteError for AdmitError {
    fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            Self::Refused(_)
            | Self::Exhausted { .. }
            | Self::SubnetNotFound { .. }
            | Self::TooMany { .. } => None,
        }
    }

    fn into_store(self) -> Result<StoreError, Self> {
        match self {
            Self::Store(error) => Ok(error),
            Self::Refused(_)
            | Self::Exhausted { .. }
            | Self::SubnetNotFound { .. }
            | Self::TooMany { .. } => Err(self),
        }
    }
}

impl WriteError for UpdateError {
    fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            Self::Gone | Self::NotAllowed(_) => None,
        }
    }

    fn into_store(self) -> Result<StoreError, Self> {
        match self {
            Self::Store(error) => Ok(error),
            Self::Gone | Self::NotAllowed(_) => Err(self),
        }
    }
}

impl WriteError for CatalogError {
    fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            Self::Conflict { .. } | Self::Full { .. } => None,
        }
    }

    fn into_store(self) -> Result<StoreError, Self> {
        match self {
            Self::Store(error) => Ok(error),
            Self::Conflict { .. } | Self::Full { .. } => Err(self),
        }
    }
}

impl WriteError for PinError {
    fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            Self::Full { .. } => None,
        }
    }

    fn into_store(self) -> Result<StoreError, Self> {
        match self {
            Self::Store(error) => Ok(error),
            Self::Full { .. } => Err(self),
        }
    }
}

impl WriteError for ReleaseError {
    fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            Self::NotFound { .. } | Self::Held(_) | Self::Conflict(_) => None,
        }
    }

    fn into_store(self) -> Result<StoreError, Self> {
        match self {
            Self::Store(error) => Ok(error),
            Self::NotFound { .. } | Self::Held(_) | Self::Conflict(_) => Err(self),
        }
    }
}

impl WriteError for ReserveError {
    fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            Self::Conflict { .. } | Self::Exhausted { .. } | Self::TooMany { .. } => None,
        }
    }

    fn into_store(self) -> Result<StoreError, Self> {
        match self {
            Self::Store(error) => Ok(error),
            Self::Conflict { .. } | Self::Exhausted { .. } | Self::TooMany { .. } => Err(self),
        }
    }
}

impl WriteError for UnreserveError {
    fn store(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            Self::NotFound { .. } | Self::InUse { .. } => None,
        }
    }

    fn into_store(self) -> Result<StoreError, Self> {
        match self {
            Self::Store(error) => Ok(error),
            Self::NotFound { .. } | Self::InUse { .. } => Err(self),
        }
    }
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        let source = error.into();
        let full = matches!(&source, redb::Error::Io(error)
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded));
        if full {
            Self::Full { source }
        } else {
            Self::Failed { source }
        }
    }
}

impl StoreError {
    /// Whether the database refuses everything until it is opened anew.
    pub(crate) fn needs_reopening(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Damaged { .. } => true,
            Self::Failed { source } => {
                matches!(source, redb::Error::Io(_) | redb::Error::PreviousIo)
            }
            Self::InUse { .. }
            | Self::Missing { .. }
            | Self::NewerSchema { .. }
            | Self::ForeignAddress { .. }
            | Self::Unreadable(_) => false,
        }
    }

    /// Whether another call's error had closed the database before this one.
    pub(crate) fn found_it_closed(&self) -> bool {
        matches!(
            self,
            Self::Failed {
                source: redb::Error::PreviousIo
            }
        )
    }

    /// Whether starting again will not help before somebody has looked at the file.
    pub fn is_about_the_file(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::NewerSchema { .. } => true,
            Self::Full { .. }
            | Self::InUse { .. }
            | Self::Missing { .. }
            | Self::ForeignAddress { .. }
            | Self::Unreadable(_)
            | Self::Failed { .. } => false,
        }
    }
}

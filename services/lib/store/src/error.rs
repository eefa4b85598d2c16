//! What can go wrong with the store, told apart by what a caller can do about it.

use std::{io, path::PathBuf};

use berth_domain::{Failure, NotAllowed};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the file system of the store is full")]
    Full { source: redb::Error },
    #[error("{} is open in another process", path.display())]
    InUse { path: PathBuf },
    #[error("the store has schema {found}, this program knows {known}")]
    NewerSchema { found: u64, known: u64 },
    #[error("the subnet is {configured}, but {address} is held by sandbox {owner}")]
    ForeignAddress {
        configured: String,
        address: String,
        owner: String,
    },
    #[error("the entry {key} of the store cannot be read: {problem}")]
    Unreadable { key: String, problem: String },
    #[error("the store failed")]
    Failed { source: redb::Error },
}

#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    #[error(transparent)]
    Refused(Failure),
    #[error("all {capacity} addresses of the subnet are held")]
    Exhausted { capacity: u64, held: u64 },
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
            Self::Full { .. } => true,
            Self::Failed { source } => {
                matches!(source, redb::Error::Io(_) | redb::Error::PreviousIo)
            }
            Self::InUse { .. }
            | Self::NewerSchema { .. }
            | Self::ForeignAddress { .. }
            | Self::Unreadable { .. } => false,
        }
    }
}

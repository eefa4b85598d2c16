//! What goes wrong while files are copied, told apart by what a person does about it.

use std::{io, path::PathBuf};

use rustix::io::Errno;

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{} does not exist", path.display())]
    NotFound { path: PathBuf },
    /// What it is, or where it lies, does not allow it.
    #[error("{} {problem}", path.display())]
    Refused { path: PathBuf, problem: String },
    #[error("{}: no space is left for it", path.display())]
    Full { path: PathBuf },
    /// The archive is broken, or asks for what is not done.
    #[error("entry `{entry}` {problem}")]
    Archive { entry: String, problem: String },
    /// Whoever sends or takes the archive has gone.
    #[error("the archive broke off")]
    Stream { source: io::Error },
    #[error("{operation} {} failed", path.display())]
    Node {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl CopyError {
    pub(crate) fn refused(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Refused {
            path: path.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn archive(entry: &[u8], problem: impl Into<String>) -> Self {
        Self::Archive {
            entry: String::from_utf8_lossy(entry).into_owned(),
            problem: problem.into(),
        }
    }

    /// What the kernel said to `operation` on `path`.
    pub(crate) fn of(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(Errno) -> Self {
        let path = path.into();
        move |errno| {
            let problem = match errno {
                Errno::NOENT => return Self::NotFound { path },
                Errno::NOSPC | Errno::DQUOT => return Self::Full { path },
                Errno::ROFS => "is on a file system that is read-only",
                Errno::NOTDIR => "is no directory, or leads over something that is none",
                Errno::ISDIR | Errno::NOTEMPTY => "is a directory",
                Errno::LOOP => "leads over a symbolic link that is not followed",
                Errno::XDEV => "leads out of where the copy may go",
                Errno::EXIST => "exists",
                Errno::ACCESS | Errno::PERM => "is not permitted",
                Errno::NAMETOOLONG => "has a name that is too long",
                Errno::BUSY => "is mounted from elsewhere and cannot be replaced",
                Errno::FBIG => "would be larger than a file may be",
                Errno::MLINK => "has as many links as a file may have",
                Errno::INVAL => "has a name that its file system does not take",
                errno => {
                    return Self::Node {
                        operation,
                        path,
                        source: errno.into(),
                    };
                }
            };
            Self::refused(path, problem)
        }
    }

    pub(crate) fn of_io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match Errno::from_io_error(&source) {
            Some(errno) => Self::of(operation, path)(errno),
            None => Self::Node {
                operation,
                path,
                source,
            },
        }
    }

    pub(crate) fn stream(source: io::Error) -> Self {
        Self::Stream { source }
    }
}

//! What the kernel refuses.

use std::{io, path::PathBuf};

use berth_platform::NetworkError;

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("{operation}")]
    Netlink {
        operation: String,
        source: rtnetlink::Error,
    },
    #[error("{operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{operation}")]
    Kernel {
        operation: &'static str,
        source: io::Error,
    },
    #[error("running {program}")]
    Program {
        program: &'static str,
        source: io::Error,
    },
    /// Something of this name exists and is not ours to change.
    #[error("{what}")]
    Foreign { what: String },
    /// Starting again will not help.
    #[error("{setting}: {problem}")]
    Misconfigured {
        setting: &'static str,
        problem: String,
    },
    /// A program for tables of rules has said no.
    #[error("{program} refused: {message}")]
    Refused {
        program: &'static str,
        message: String,
    },
    #[error(
        "network.subnet6 is {subnet}, but this kernel has no IPv6: it was started with ipv6.disable=1, or is built without"
    )]
    NoIpv6 { subnet: ipnet::Ipv6Net },
}

impl NetnsError {
    pub(crate) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            operation,
            path,
            source,
        }
    }

    pub(crate) fn rules(operation: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Kernel { operation, source }
    }

    pub(crate) fn executing(program: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Program { program, source }
    }

    pub(crate) fn kernel(operation: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |source| Self::Kernel {
            operation,
            source: source.into(),
        }
    }
}

impl From<NetnsError> for NetworkError {
    fn from(error: NetnsError) -> Self {
        let operation = error.to_string();
        let source = match error {
            NetnsError::Netlink { source, .. } => source.into(),
            NetnsError::File { source, .. }
            | NetnsError::Kernel { source, .. }
            | NetnsError::Program { source, .. } => source.into(),
            NetnsError::Foreign { what } => what.into(),
            NetnsError::Refused { message, .. } => message.into(),
            NetnsError::NoIpv6 { .. } => "no IPv6".into(),
            NetnsError::Misconfigured { problem, .. } => problem.into(),
        };
        NetworkError { operation, source }
    }
}

//! What each seam says when it is to fail.

use super::{Fault, FromFault};
use crate::{ConnectError, ImageError, NetworkError, ProbeError, RuntimeError};

impl FromFault for RuntimeError {
    const OVER_CONTAINERD: bool = true;

    fn from_fault(fault: Fault, operation: &'static str, about: &str) -> Self {
        match fault {
            Fault::Failed => RuntimeError::Node {
                operation,
                source: format!("the test wants no {operation} {about}").into(),
            },
            Fault::AnswerLost | Fault::Unreachable => RuntimeError::Unreachable {
                operation,
                source: "the connection is gone".into(),
            },
        }
    }
}

impl FromFault for ImageError {
    const OVER_CONTAINERD: bool = true;

    fn from_fault(fault: Fault, operation: &'static str, about: &str) -> Self {
        match fault {
            Fault::Failed if matches!(operation, "ensure" | "pull") => {
                ImageError::RegistryUnreachable {
                    image: about.to_owned(),
                    source: "the test wants no registry".into(),
                }
            }
            Fault::Failed => ImageError::Node {
                operation,
                source: format!("the test wants no {operation} {about}").into(),
            },
            Fault::AnswerLost | Fault::Unreachable => ImageError::Unreachable {
                operation,
                source: "the connection is gone".into(),
            },
        }
    }
}

impl FromFault for ProbeError {
    const OVER_CONTAINERD: bool = false;

    fn from_fault(_: Fault, operation: &'static str, about: &str) -> Self {
        ProbeError(format!("the test wants {operation} {about} to fail"))
    }
}

impl FromFault for NetworkError {
    const OVER_CONTAINERD: bool = false;

    fn from_fault(_: Fault, operation: &'static str, about: &str) -> Self {
        NetworkError {
            operation: format!("{operation} {about}"),
            source: "the test wants it to fail".into(),
        }
    }
}

impl FromFault for ConnectError {
    const OVER_CONTAINERD: bool = NetworkError::OVER_CONTAINERD;

    fn from_fault(fault: Fault, operation: &'static str, about: &str) -> Self {
        Self::Network(NetworkError::from_fault(fault, operation, about))
    }
}

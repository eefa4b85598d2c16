//! Errors of the runtime, from what a verb met.

use berth_cgroup::{CgroupError, SystemdError};
use berth_platform::{ImageError, RuntimeError};

pub(crate) fn refused(operation: &'static str, message: impl ToString) -> RuntimeError {
    RuntimeError::Refused {
        operation,
        message: message.to_string(),
    }
}

pub(crate) fn silent(operation: &'static str, container: &str) -> RuntimeError {
    RuntimeError::Unreachable {
        operation,
        source: format!("the shim of {container} does not answer").into(),
    }
}

pub(crate) fn node(operation: &'static str, source: std::io::Error) -> RuntimeError {
    RuntimeError::Node {
        operation,
        source: source.into(),
    }
}

pub(crate) fn of_cgroup(error: CgroupError) -> RuntimeError {
    RuntimeError::Node {
        operation: "changing a cgroup",
        source: error.into(),
    }
}

pub(crate) fn of_systemd(error: SystemdError) -> RuntimeError {
    match error {
        SystemdError::Connect(_) | SystemdError::Slow { .. } => RuntimeError::Unreachable {
            operation: "having systemd change a cgroup",
            source: error.into(),
        },
        SystemdError::Failed { .. } => RuntimeError::Node {
            operation: "having systemd change a cgroup",
            source: error.into(),
        },
    }
}

pub(crate) fn of_image(error: ImageError) -> RuntimeError {
    match error {
        ImageError::Unreachable { operation, source } => {
            RuntimeError::Unreachable { operation, source }
        }
        ImageError::NotFound { image, .. } => RuntimeError::ImageMissing { image },
        ImageError::Refused { operation, message } => RuntimeError::Refused { operation, message },
        other @ (ImageError::RegistryUnreachable { .. }
        | ImageError::RegistryDenied { .. }
        | ImageError::RegistryBusy { .. }
        | ImageError::RegistryProtocol { .. }
        | ImageError::RegistryUntrusted { .. }
        | ImageError::PullStalled { .. }
        | ImageError::CredentialsUnreadable { .. }
        | ImageError::Incomplete { .. }
        | ImageError::Corrupt { .. }
        | ImageError::ArchiveInvalid { .. }
        | ImageError::ArchiveTooLarge { .. }
        | ImageError::DiskLow { .. }
        | ImageError::PlatformMissing { .. }
        | ImageError::Node { .. }) => refused("looking for an image", other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_systemd_that_is_slow_is_unreachable_and_may_answer_later() {
        let slow = SystemdError::Slow {
            method: "StopUnit",
            unit: "berth-a.slice".into(),
        };
        let error = of_systemd(slow);
        assert!(
            matches!(error, RuntimeError::Unreachable { .. }),
            "{error:?}"
        );
    }
}

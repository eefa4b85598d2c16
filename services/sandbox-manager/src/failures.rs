//! What a caller is told when a layer below fails. The causes go to the log here, and nowhere else.

use std::{error::Error, time::Duration};

use berth_domain::{ExitRecord, Failure, Reason, Role, Violation};
use berth_platform::{ExecError, ImageError, NetworkError, RuntimeError};
use berth_store::{
    AdmitError, CatalogError, PinError, ReleaseError, ReserveError, StoreError, UnreserveError,
};

/// containerd is usually back within seconds of a restart.
pub(crate) const RETRY_RUNTIME: Duration = Duration::from_secs(2);
/// A registry that failed once is worth another try soon.
const RETRY_REGISTRY: Duration = Duration::from_secs(5);

pub(crate) fn runtime_failure(error: RuntimeError) -> Failure {
    log(&error);
    let message = error.to_string();
    match error {
        RuntimeError::Unreachable { .. } => {
            Failure::new(Reason::RuntimeUnreachable, message).retry_after(RETRY_RUNTIME)
        }
        RuntimeError::Refused { .. } => Failure::new(Reason::RuntimeRefused, message),
        RuntimeError::ImageMissing { image } => {
            Failure::new(Reason::ImageNotFound, message).with("image", image)
        }
        RuntimeError::Node { source, .. } => {
            Failure::new(Reason::RuntimeRefused, format!("{message}: {source}"))
        }
    }
}

pub(crate) fn exec_failure(error: ExecError) -> Failure {
    let message = error.to_string();
    match error {
        ExecError::NotRunning { container } | ExecError::Gone { container } => {
            Failure::new(Reason::ContainerNotRunning, message).with("container", container)
        }
        ExecError::User { problem } => Failure::invalid("start.user", problem),
        ExecError::NotStarted { why, .. } => {
            Failure::new(Reason::ExecNotStarted, message).with("why", why.as_str())
        }
        ExecError::Runtime(error) => runtime_failure(error),
    }
}

/// A container is neither known to run nor known to have ended.
pub(crate) fn shim_silent(role: &Role) -> Failure {
    let message = format!("the shim of container {role} does not answer");
    Failure::new(Reason::RuntimeUnreachable, message).retry_after(RETRY_RUNTIME)
}

/// A container has ended `when` the sandbox was RUNNING, or before.
pub(crate) fn exited(exit: &ExitRecord, when: &str) -> Failure {
    let message = format!("{} {when} the sandbox was RUNNING", exit.describe());
    let failure = Failure::new(Reason::ContainerExited, message)
        .with("container", &exit.role)
        .with("exit_code", exit.code);
    match exit.signal {
        Some(signal) => failure.with("signal", signal),
        None => failure,
    }
}

pub(crate) fn image_failure(error: ImageError) -> Failure {
    log(&error);
    let message = error.to_string();
    match error {
        ImageError::NotFound { image, .. } => {
            Failure::new(Reason::ImageNotFound, message).with("image", image)
        }
        ImageError::RegistryUnreachable { image, .. } => {
            Failure::new(Reason::RegistryUnreachable, message)
                .with("image", image)
                .retry_after(RETRY_REGISTRY)
        }
        ImageError::RegistryDenied { image, .. } => {
            Failure::new(Reason::RegistryDenied, message).with("image", image)
        }
        ImageError::RegistryBusy {
            image, retry_after, ..
        } => Failure::new(Reason::RegistryBusy, message)
            .with("image", image)
            .retry_after(retry_after.unwrap_or(RETRY_REGISTRY)),
        ImageError::RegistryProtocol { image, .. } => {
            Failure::new(Reason::RegistryProtocol, message).with("image", image)
        }
        ImageError::RegistryUntrusted { image, .. } => {
            Failure::new(Reason::RegistryUntrusted, message).with("image", image)
        }
        ImageError::PullStalled { image, after } => Failure::new(Reason::PullStalled, message)
            .with("image", image)
            .with("timeout_ms", after.as_millis())
            .retry_after(RETRY_REGISTRY),
        ImageError::CredentialsUnreadable { file, .. } => {
            Failure::new(Reason::CredentialsUnreadable, message).with("file", file.display())
        }
        ImageError::Incomplete { image, digest } => Failure::new(Reason::ImageIncomplete, message)
            .with("image", image)
            .with("digest", digest),
        ImageError::Corrupt { image, .. } => {
            Failure::new(Reason::ImageCorrupt, message).with("image", image)
        }
        ImageError::ArchiveInvalid { .. } => Failure::new(Reason::ArchiveInvalid, message),
        ImageError::ArchiveTooLarge { limit_bytes } => {
            Failure::new(Reason::ArchiveTooLarge, message).with("limit_bytes", limit_bytes)
        }
        ImageError::DiskLow {
            free_bytes,
            reserve_bytes,
        } => Failure::new(Reason::DiskLow, message)
            .with("free_bytes", free_bytes)
            .with("reserve_bytes", reserve_bytes),
        ImageError::PlatformMissing { image, platform } => {
            Failure::new(Reason::PlatformMissing, message)
                .with("image", image)
                .with("platform", platform)
        }
        ImageError::Unreachable { .. } => {
            Failure::new(Reason::RuntimeUnreachable, message).retry_after(RETRY_RUNTIME)
        }
        ImageError::Refused { .. } => Failure::new(Reason::RuntimeRefused, message),
        ImageError::Node { source, .. } => {
            Failure::new(Reason::RuntimeRefused, format!("{message}: {source}"))
        }
    }
}

pub(crate) fn network_failure(error: NetworkError) -> Failure {
    log(&error);
    Failure::new(Reason::NetworkFailed, format!("{error}: {}", error.source))
}

pub(crate) fn store_failure(error: StoreError) -> Failure {
    log(&error);
    match error {
        StoreError::Full { .. } => Failure::new(Reason::StoreFull, "the store's disk is full"),
        StoreError::Unreadable(entry) if entry.sandbox.is_some() => internal(&format!(
            "the {entry}; Delete of that id, without an expected generation, removes it with all that it holds"
        )),
        StoreError::Unreadable(entry) => internal(&format!("the {entry}")),
        StoreError::Damaged { .. } => internal(
            "the store's file is damaged; the manager's log and `sandbox-manager store check` say how",
        ),
        StoreError::InUse { .. }
        | StoreError::Missing { .. }
        | StoreError::NewerSchema { .. }
        | StoreError::ForeignAddress { .. }
        | StoreError::Failed { .. } => internal("the store failed"),
    }
}

/// The node is not asked for more than its configuration allows.
pub(crate) fn host_network_disabled() -> Failure {
    let setting = "network.allow_host_network";
    let violation = Violation {
        field: "spec.host_network".to_owned(),
        problem: format!("is not allowed by the node's setting `{setting}`"),
    };
    Failure::of_violations(Reason::DisabledOnNode, vec![violation]).with("setting", setting)
}

pub(crate) fn admit_failure(error: AdmitError) -> Failure {
    let message = error.to_string();
    match error {
        AdmitError::Refused(failure) => failure,
        AdmitError::Exhausted {
            capacity,
            held,
            subnet,
            reserved,
        } => {
            let (message, key, value) = match subnet {
                Some(it) => {
                    let message =
                        format!("all {capacity} addresses of the subnet of {it:?} are held");
                    (message, "subnet", it)
                }
                None => (message, "reserved", reserved.to_string()),
            };
            Failure::new(Reason::AddressesExhausted, message)
                .with("capacity", capacity)
                .with("held", held)
                .with(key, value)
        }
        AdmitError::SubnetNotFound { identifier } => {
            Failure::new(Reason::SubnetNotFound, message).with("identifier", identifier)
        }
        AdmitError::TooMany { limit } => {
            Failure::new(Reason::SandboxesExhausted, message).with("limit", limit)
        }
        AdmitError::Store(error) => store_failure(error),
    }
}

pub(crate) fn reserve_failure(error: ReserveError) -> Failure {
    let message = error.to_string();
    match error {
        ReserveError::Conflict { identifier, subnet } => {
            Failure::new(Reason::SubnetConflict, message)
                .with("identifier", identifier)
                .with("subnet", subnet)
        }
        ReserveError::Exhausted {
            prefix_length,
            reserved,
        } => Failure::new(Reason::SubnetsExhausted, message)
            .with("prefix_length", prefix_length)
            .with("reserved", reserved),
        ReserveError::TooMany { limit } => Failure::new(Reason::SubnetsExhausted, message)
            .with("limit", limit)
            .with("reserved", limit),
        ReserveError::Store(error) => store_failure(error),
    }
}

pub(crate) fn unreserve_failure(error: UnreserveError) -> Failure {
    let message = error.to_string();
    match error {
        UnreserveError::NotFound { identifier } => {
            Failure::new(Reason::SubnetNotFound, message).with("identifier", identifier)
        }
        UnreserveError::InUse { subnet, held } => Failure::new(Reason::SubnetInUse, message)
            .with("subnet", subnet)
            .with("held", held),
        UnreserveError::Store(error) => store_failure(error),
    }
}

pub(crate) fn catalog_failure(error: CatalogError) -> Failure {
    let message = error.to_string();
    match error {
        CatalogError::Conflict { expected, actual } => {
            Failure::new(Reason::RevisionConflict, message)
                .with("expected", expected)
                .with("actual", actual)
        }
        CatalogError::Full { limit } => {
            Failure::new(Reason::CatalogFull, message).with("limit", limit)
        }
        CatalogError::Store(error) => store_failure(error),
    }
}

pub(crate) fn pin_failure(error: PinError) -> Failure {
    let message = error.to_string();
    match error {
        PinError::Full { limit } => {
            Failure::new(Reason::ImagePinsExhausted, message).with("limit", limit)
        }
        PinError::Store(error) => store_failure(error),
    }
}

pub(crate) fn release_failure(error: ReleaseError) -> Failure {
    let message = error.to_string();
    match error {
        ReleaseError::NotFound { address } => {
            Failure::new(Reason::LeaseNotFound, message).with("address", address)
        }
        ReleaseError::Held(lease) => Failure::new(Reason::LeaseHeld, message)
            .with("owner", lease.owner)
            .with("generation", lease.generation),
        ReleaseError::Conflict(lease) => Failure::new(Reason::GenerationConflict, message)
            .with("owner", lease.owner)
            .with("actual", lease.generation),
        ReleaseError::Store(error) => store_failure(error),
    }
}

/// A bug, or a node that is broken in a way that nobody foresaw. The cause is in the log.
pub(crate) fn internal(message: &str) -> Failure {
    Failure::new(Reason::Internal, message)
}

fn log(error: &dyn Error) {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        chain = format!("{chain}: {cause}");
        source = cause.source();
    }
    tracing::warn!(error = chain, "an operation failed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn what_is_full_is_told_by_its_reason_and_its_limit() {
        let full = || StoreError::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
        let cases = [
            (pin_failure(PinError::Full { limit: 7 }),             "IMAGE_PINS_EXHAUSTED", Some("7")),
            (catalog_failure(CatalogError::Full { limit: 7 }),     "CATALOG_FULL",         Some("7")),
            (reserve_failure(ReserveError::TooMany { limit: 7 }),  "SUBNETS_EXHAUSTED",    Some("7")),
            (admit_failure(AdmitError::TooMany { limit: 7 }),      "SANDBOXES_EXHAUSTED",  Some("7")),
            (store_failure(full()),                                "STORE_FULL",           None),
            (pin_failure(full().into()),                           "STORE_FULL",           None),
            (catalog_failure(full().into()),                       "STORE_FULL",           None),
            (reserve_failure(full().into()),                       "STORE_FULL",           None),
            (unreserve_failure(full().into()),                     "STORE_FULL",           None),
            (release_failure(full().into()),                       "STORE_FULL",           None),
            (admit_failure(full().into()),                         "STORE_FULL",           None),
        ];
        for (failure, reason, limit) in cases {
            assert_eq!(failure.reason.as_str(), reason);
            let told = failure.metadata.get("limit").map(String::as_str);
            assert_eq!(told, limit, "{reason}");
            let code = berth_api::status(failure).code();
            assert_eq!(code, tonic::Code::ResourceExhausted, "{reason}");
        }
    }
}

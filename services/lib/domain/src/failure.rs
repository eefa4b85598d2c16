//! Why a request was refused or failed, in the words of the contract; how it travels is the API's business.

use std::{collections::BTreeMap, fmt, time::Duration};

macro_rules! reasons {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// The reasons of `ErrorReason` in the contract, one to one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason { $($variant),* }

        impl Reason {
            pub const ALL: &[Reason] = &[$(Reason::$variant),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$variant => $name),* }
            }
        }
    };
}

reasons! {
    InvalidField = "INVALID_FIELD",
    UnsupportedField = "UNSUPPORTED_FIELD",
    SpecTooLarge = "SPEC_TOO_LARGE",
    SpecConflict = "SPEC_CONFLICT",
    GenerationConflict = "GENERATION_CONFLICT",
    SandboxNotFound = "SANDBOX_NOT_FOUND",
    SandboxEnding = "SANDBOX_ENDING",
    CreateCancelled = "CREATE_CANCELLED",
    ContainerNotFound = "CONTAINER_NOT_FOUND",
    AddressesExhausted = "ADDRESSES_EXHAUSTED",
    ImageNotFound = "IMAGE_NOT_FOUND",
    RegistryUnreachable = "REGISTRY_UNREACHABLE",
    RegistryDenied = "REGISTRY_DENIED",
    ImageCorrupt = "IMAGE_CORRUPT",
    ArchiveInvalid = "ARCHIVE_INVALID",
    PlatformMissing = "PLATFORM_MISSING",
    ImageInUse = "IMAGE_IN_USE",
    PortTimeout = "PORT_TIMEOUT",
    ContainerExited = "CONTAINER_EXITED",
    RuntimeUnreachable = "RUNTIME_UNREACHABLE",
    RuntimeRefused = "RUNTIME_REFUSED",
    NetworkFailed = "NETWORK_FAILED",
    StoreFull = "STORE_FULL",
    RevisionUnknown = "REVISION_UNKNOWN",
    DeadlinePassed = "DEADLINE_PASSED",
    ShuttingDown = "SHUTTING_DOWN",
    Internal = "INTERNAL",
    NodeDraining = "NODE_DRAINING",
    ExpiryConflict = "EXPIRY_CONFLICT",
    ArchiveTooLarge = "ARCHIVE_TOO_LARGE",
    DiskLow = "DISK_LOW",
    ImportStalled = "IMPORT_STALLED",
    RevisionConflict = "REVISION_CONFLICT",
    CatalogFull = "CATALOG_FULL",
    LeaseNotFound = "LEASE_NOT_FOUND",
    LeaseHeld = "LEASE_HELD",
    NodePortInUse = "NODE_PORT_IN_USE",
    SubnetNotFound = "SUBNET_NOT_FOUND",
    SubnetConflict = "SUBNET_CONFLICT",
    SubnetInUse = "SUBNET_IN_USE",
    SubnetsExhausted = "SUBNETS_EXHAUSTED",
    DisabledOnNode = "DISABLED_ON_NODE",
    ProbeFailed = "PROBE_FAILED",
    LogReadersExhausted = "LOG_READERS_EXHAUSTED",
    LogUnreadable = "LOG_UNREADABLE",
    PathNotFound = "PATH_NOT_FOUND",
    PathRefused = "PATH_REFUSED",
    TarInvalid = "TAR_INVALID",
    NoSpace = "NO_SPACE",
    PortUnreachable = "PORT_UNREACHABLE",
    ContainerNotRunning = "CONTAINER_NOT_RUNNING",
    StreamsExhausted = "STREAMS_EXHAUSTED",
    ExecLimit = "EXEC_LIMIT",
    ExecNotStarted = "EXEC_NOT_STARTED",
    WorkLeaseHeld = "WORK_LEASE_HELD",
    WorkLeaseLost = "WORK_LEASE_LOST",
    WorkLeasesExhausted = "WORK_LEASES_EXHAUSTED",
    CollectionNotFound = "COLLECTION_NOT_FOUND",
    CollectionAborted = "COLLECTION_ABORTED",
    ManagerUnreachable = "MANAGER_UNREACHABLE",
    ImagePinsExhausted = "IMAGE_PINS_EXHAUSTED",
    RegistryBusy = "REGISTRY_BUSY",
    RegistryProtocol = "REGISTRY_PROTOCOL",
    RegistryUntrusted = "REGISTRY_UNTRUSTED",
    PullStalled = "PULL_STALLED",
    CredentialsUnreadable = "CREDENTIALS_UNREADABLE",
    ImageIncomplete = "IMAGE_INCOMPLETE",
    CallsExhausted = "CALLS_EXHAUSTED",
    PluginsExhausted = "PLUGINS_EXHAUSTED",
    PluginReplaced = "PLUGIN_REPLACED",
    RoleDenied = "ROLE_DENIED",
    SandboxesExhausted = "SANDBOXES_EXHAUSTED",
}

impl Reason {
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == text)
    }
}

/// A refused or failed request as its caller is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: Reason,
    pub message: String,
    /// Keys are named by the reason's documentation.
    pub metadata: BTreeMap<String, String>,
    pub violations: Vec<Violation>,
    pub retry_after: Option<Duration>,
}

/// A field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path from the request, as `spec.containers[0].ports[1].port`.
    pub field: String,
    pub problem: String,
}

impl Failure {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            metadata: BTreeMap::new(),
            violations: vec![],
            retry_after: None,
        }
    }

    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// A request of which one field breaks a rule.
    pub fn invalid(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self::of_violations(
            Reason::InvalidField,
            vec![Violation {
                field: field.into(),
                problem: problem.to_string(),
            }],
        )
    }

    /// A request whose fields break rules; the message names them all.
    pub fn of_violations(reason: Reason, violations: Vec<Violation>) -> Self {
        let message = violations
            .iter()
            .map(|it| format!("{} {}", it.field, it.problem))
            .collect::<Vec<_>>()
            .join("; ");
        Self {
            violations,
            ..Self::new(reason, message)
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_read_back_from_its_name() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(reason));
        }
        assert_eq!(Reason::parse("SOMETHING_ELSE"), None);
    }
}

//! How a failure is told: what went wrong, each violation, one hint what to do, and the exit code.
//! It does not know which command failed.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use berth_api::{ConnectError, v1::ErrorReason};
use berth_copy::CopyError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{output, proto_json::ReadError};

const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
/// As shells have it of programs that they cannot start.
const EXIT_NOT_EXECUTABLE: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{}", .0.message())]
    Call(Box<Status>),
    #[error("cannot reach the manager at {address}")]
    Unreachable {
        address: String,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("no worker of image-gc answers at {address}")]
    NoWorker {
        address: String,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("the metrics process does not answer at {address}")]
    NoMetrics {
        address: String,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("{0} is away: {1}")]
    Lost(&'static str, String),
    #[error("no watchdog answers at {address}")]
    NoWatchdog {
        address: String,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("nothing answers at {address}")]
    NoProcess {
        address: String,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("{} is {status}", health_of(service))]
    NotServing {
        service: String,
        status: &'static str,
    },
    #[error("the run could not remove {0} objects")]
    NotRemoved(usize),
    #[error("{0} runs could not read or delete all")]
    NotCollected(usize),
    #[error(transparent)]
    Address(ConnectError),
    #[error("cannot read {}", shown(path))]
    File { path: PathBuf, source: io::Error },
    #[error("{} is not a CreateRequest", shown(path))]
    NotARequest { path: PathBuf, source: ReadError },
    #[error("{} is no list of entries", shown(path))]
    NotACatalog { path: PathBuf, source: ReadError },
    #[error("{0} was never given out")]
    NoLease(String),
    #[error(
        "the manager is on another node, and {0} is asked on its own: run this there, or name an address of it"
    )]
    Elsewhere(String),
    #[error("the manager's answer lacks the field `{0}`")]
    Incomplete(&'static str),
    #[error("cannot write {}", shown(path))]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("an archive is not for a terminal")]
    Terminal,
    #[error("the manager ended the stream")]
    StreamEnded,
    #[error("one of SRC and DST must be `ID:PATH`, the other one a path here")]
    Sides,
    #[error("the path and --container name two containers")]
    TwoContainers,
    #[error(transparent)]
    Copy(CopyError),
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("{0} objects of this node are not as their records say")]
    NotClean(usize),
    #[error("cannot print")]
    Output(#[from] io::Error),
    #[error("several failed")]
    Several(Vec<Failure>),
}

fn health_of(service: &str) -> String {
    match service {
        "" => "the process".to_owned(),
        name => format!("`{name}`"),
    }
}

fn shown(path: &Path) -> String {
    if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// Tells a failure on standard error and returns the exit code for it.
pub(crate) fn report(failure: &Failure) -> ExitCode {
    if reader_is_gone(failure) {
        return ExitCode::SUCCESS;
    }
    tell(failure);
    ExitCode::from(exit_code(failure))
}

/// Tells a failure on standard error and goes on.
pub(crate) fn tell(failure: &Failure) {
    lines(failure)
        .iter()
        .for_each(|line| output::complain(line));
}

/// The reason of a refused call, when this version of the contract knows it.
pub(crate) fn reason(status: &Status) -> Option<ErrorReason> {
    known_reason(&status.get_error_details())
}

/// Whoever read the output has seen enough.
fn reader_is_gone(failure: &Failure) -> bool {
    matches!(failure, Failure::Output(err) if err.kind() == io::ErrorKind::BrokenPipe)
}

fn exit_code(failure: &Failure) -> u8 {
    match failure {
        Failure::Call(status) if reason(status) == Some(ErrorReason::ExecNotStarted) => {
            let details = status.get_error_details();
            let why = details.error_info().and_then(|it| it.metadata.get("why"));
            match why.map(String::as_str) {
                Some("not_found") => EXIT_NOT_FOUND,
                Some("not_executable") => EXIT_NOT_EXECUTABLE,
                Some(_) | None => EXIT_FAILED,
            }
        }
        Failure::Call(status) if status.code() == Code::InvalidArgument => EXIT_USAGE,
        Failure::NotARequest { .. }
        | Failure::NotACatalog { .. }
        | Failure::Address(_)
        | Failure::Sides
        | Failure::Terminal
        | Failure::TwoContainers => EXIT_USAGE,
        Failure::Several(failures) => {
            // 2 says that no repetition helps: it must be true of all.
            failures.iter().map(exit_code).min().unwrap_or(EXIT_FAILED)
        }
        Failure::Call(_)
        | Failure::Unreachable { .. }
        | Failure::File { .. }
        | Failure::Unwritable { .. }
        | Failure::Incomplete(_)
        | Failure::Elsewhere(_)
        | Failure::StreamEnded
        | Failure::Copy(_)
        | Failure::Listen { .. }
        | Failure::NoLease(_)
        | Failure::NotClean(_)
        | Failure::Lost(..)
        | Failure::NoMetrics { .. }
        | Failure::NoWorker { .. }
        | Failure::NoWatchdog { .. }
        | Failure::NoProcess { .. }
        | Failure::NotServing { .. }
        | Failure::NotRemoved(_)
        | Failure::NotCollected(_)
        | Failure::Output(_) => EXIT_FAILED,
    }
}

fn lines(failure: &Failure) -> Vec<String> {
    match failure {
        Failure::Call(status) => call_lines(status),
        Failure::Several(failures) => failures.iter().flat_map(lines).collect(),
        Failure::Unreachable { .. } => vec![
            chain(failure),
            "hint: is sandbox-manager running? Say where it listens with --address or BERTH_ADDRESS"
                .to_owned(),
        ],
        Failure::NotARequest { .. } => vec![
            chain(failure),
            "hint: the fields are those of CreateRequest: `id`, `spec`, `wait`; `berth get ID -o yaml` \
             shows the spec of a sandbox that stands"
                .to_owned(),
        ],
        Failure::NotACatalog { .. } => vec![
            chain(failure),
            "hint: it is an object with the list `entries`, as `berth catalog ls -o yaml` prints it"
                .to_owned(),
        ],
        Failure::NoLease(_) => vec![
            chain(failure),
            "hint: see all with `berth net leases`".to_owned(),
        ],
        Failure::NotClean(_) => vec![
            chain(failure),
            "hint: the column WHAT TO DO says why; objects of a running plan settle by themselves, so look again"
                .to_owned(),
        ],
        Failure::NoWorker { .. } => vec![
            chain(failure),
            "hint: is image-gc running? `berth gc workers` lists those that the manager knows; say where one listens with \
             --gc-address or BERTH_GC_ADDRESS"
                .to_owned(),
        ],
        Failure::NoMetrics { .. } => vec![
            chain(failure),
            "hint: is it running? Say where it listens with --metrics-address or BERTH_METRICS_ADDRESS; `berth stats` asks \
             the manager, and needs no other process"
                .to_owned(),
        ],
        Failure::NoWatchdog { .. } => vec![
            chain(failure),
            "hint: is watchdog running? `berth node status` lists what the manager knows; say where it listens with \
                --watchdog-address or BERTH_WATCHDOG_ADDRESS"
                .to_owned(),
        ],
        Failure::NoProcess { .. } => vec![
            chain(failure),
            "hint: --address says which process is asked, as unix:/run/berth/dns.sock".to_owned(),
        ],
        Failure::NotRemoved(_) => vec![
            chain(failure),
            "hint: each has its reason above; the next run tries again".to_owned(),
        ],
        Failure::NotCollected(_) => vec![
            chain(failure),
            "hint: nothing that could not be read was deleted; `berth gc ls` keeps the reasons".to_owned(),
        ],
        Failure::Terminal => vec![
            chain(failure),
            "hint: write it to a file with -f FILE, or into a pipe".to_owned(),
        ],
        Failure::Address(_)
        | Failure::File { .. }
        | Failure::Unwritable { .. }
        | Failure::Incomplete(_)
        | Failure::Elsewhere(_)
        | Failure::StreamEnded
        | Failure::Sides
        | Failure::TwoContainers
        | Failure::Copy(_)
        | Failure::Listen { .. }
        | Failure::Lost(..)
        | Failure::NotServing { .. }
        | Failure::Output(_) => vec![chain(failure)],
    }
}

/// The failure and its causes. A cause whose words are already there is not repeated.
fn chain(failure: &Failure) -> String {
    let mut text = format!("berth: {failure}");
    let mut cause = failure.source();
    while let Some(err) = cause {
        let words = err.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = err.source();
    }
    text
}

fn call_lines(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    // tonic's own deadline, on either side of the wire, ends as CANCELLED; nothing else cancels a call.
    if details.error_info().is_none()
        && matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
    {
        return vec![
            "berth: no answer within --timeout".to_owned(),
            format!("hint: {}", hint(ErrorReason::DeadlinePassed)),
        ];
    }
    let mut lines = vec![format!("berth: {}", in_words(status))];
    if let Some(request) = details.bad_request() {
        let violations = request.field_violations.iter();
        lines.extend(violations.map(|it| format!("  {}: {}", it.field, it.description)));
    }
    if let Some(failure) = details.precondition_failure() {
        let violations = failure.violations.iter();
        lines.extend(violations.map(|it| format!("  {}: {}", it.subject, it.description)));
    }
    if let Some(failure) = details.quota_failure() {
        let violations = failure.violations.iter();
        lines.extend(violations.map(|it| format!("  {}: {}", it.subject, it.description)));
    }
    let retry = details.retry_info().and_then(|it| it.retry_delay);
    match (known_reason(&details).map(hint), retry) {
        (Some(hint), None) => lines.push(format!("hint: {hint}")),
        (Some(hint), Some(delay)) => {
            lines.push(format!(
                "hint: {hint}; try again after {}",
                output::precise_duration(delay)
            ));
        }
        (None, Some(delay)) => {
            lines.push(format!(
                "hint: try again after {}",
                output::precise_duration(delay)
            ));
        }
        (None, None) if status.code() == Code::Unavailable => {
            lines.push(
                "hint: the manager went away or does not listen there; see --address and BERTH_ADDRESS"
                    .to_owned(),
            );
        }
        (None, None) => (),
    }
    lines
}

/// The message, and the causes of a failure that happened on this side of the wire.
fn in_words(status: &Status) -> String {
    let mut text = match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    };
    let mut cause = status.source();
    while let Some(err) = cause {
        let words = err.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = err.source();
    }
    text
}

fn known_reason(details: &ErrorDetails) -> Option<ErrorReason> {
    let name = &details.error_info()?.reason;
    ErrorReason::from_str_name(&format!("ERROR_REASON_{name}"))
}

/// What to do about a refusal.
fn hint(reason: ErrorReason) -> &'static str {
    match reason {
        ErrorReason::Unspecified => "this version of berth does not know the reason",
        ErrorReason::InvalidField => "correct the fields and try again",
        ErrorReason::UnsupportedField => {
            "leave the fields out: this version of the manager does not carry them out"
        }
        ErrorReason::SpecTooLarge => "put large files into the image, not into the spec",
        ErrorReason::SpecConflict => {
            "see what stands with `berth get ID -o yaml`; choose another id or remove it with `berth rm ID`"
        }
        ErrorReason::GenerationConflict => {
            "the sandbox was created anew meanwhile; look with `berth get ID` and decide again"
        }
        ErrorReason::SandboxNotFound => "see all ids with `berth ls --all`",
        ErrorReason::SandboxEnding => {
            "wait until it is gone, `berth events -f ID` shows it, and create it again"
        }
        ErrorReason::CreateCancelled => {
            "somebody stopped or removed it meanwhile; create it again when that was not meant"
        }
        ErrorReason::ContainerNotFound => "see the container ids with `berth get ID`",
        ErrorReason::SandboxesExhausted => {
            "remove those that are not needed (`berth ls --all` shows the ended too), or raise the manager's `sandboxes_max`"
        }
        ErrorReason::AddressesExhausted => {
            "remove sandboxes that are not needed (`berth ls --all`) or give the manager a larger subnet"
        }
        ErrorReason::ImageNotFound => {
            "check the name; see the node's images with `berth images ls`, bring one with `berth images import FILE`"
        }
        ErrorReason::RegistryUnreachable => {
            "check that the registry answers; one without https must be in the manager's \
             `containerd.plain_http_registries`"
        }
        ErrorReason::RegistryDenied => {
            "give credentials with `berth images pull --username USER --password-stdin`, or put them into the manager's \
             `pull.credentials_file`"
        }
        ErrorReason::RegistryBusy => {
            "it limits how much it gives; credentials often raise the limit, mirrors help too"
        }
        ErrorReason::RegistryProtocol => {
            "check that it is a registry, and what stands between it and the node: proxies, mirrors"
        }
        ErrorReason::RegistryUntrusted => {
            "name the certificates of its authority in the manager's `pull.registries.HOST.ca_file`"
        }
        ErrorReason::PullStalled => {
            "check the network between the node and the registry, or raise the manager's `pull.no_progress_timeout`"
        }
        ErrorReason::CredentialsUnreadable => {
            "mend the file of the manager's `pull.credentials_file`; its log says what is wrong with it"
        }
        ErrorReason::ImageIncomplete => "pull or import it again: `berth images pull IMAGE`",
        ErrorReason::ImageCorrupt => {
            "build or push the image again: its content is not what its digest promises"
        }
        ErrorReason::ArchiveInvalid => {
            "make the archive with `docker save` or `skopeo copy ... oci-archive:FILE` and copy it whole"
        }
        ErrorReason::PlatformMissing => "use an image that is built for this node's platform",
        ErrorReason::ImageInUse => {
            "remove the sandboxes that use it first; `berth images ls` names them"
        }
        ErrorReason::PortTimeout => {
            "check that the program listens on the declared ports, or raise `portWaitTimeout` of the spec"
        }
        ErrorReason::ProbeFailed => {
            "check what the app answers to its readiness probe, or give it longer with `portWaitTimeout` of the spec"
        }
        ErrorReason::ContainerExited => {
            "check the command, its arguments and its environment; `berth get ID` shows how it ended"
        }
        ErrorReason::RuntimeUnreachable => {
            "check that containerd runs; `berth node status` names its socket"
        }
        ErrorReason::RuntimeRefused => {
            "check the command and the working directory; containerd's log has the whole story"
        }
        ErrorReason::NetworkFailed => {
            "see what the node lacks with `berth node status`; the manager's log has the cause"
        }
        ErrorReason::ExecLimit => {
            "wait until others have ended, or raise the manager's `exec.per_sandbox` or `exec.per_node`"
        }
        ErrorReason::ExecNotStarted => {
            "check the program, the folder and what the image has; no shell is involved unless you name one"
        }
        ErrorReason::WorkLeaseHeld => "wait until its holder gives it back, or until it ends",
        ErrorReason::WorkLeaseLost => "take the lease again, and look at its work again",
        ErrorReason::WorkLeasesExhausted => "release leases that nobody works under",
        ErrorReason::CallsExhausted => {
            "try again in a moment, or raise the manager's `calls.unary_max` or `calls.streams_max`"
        }
        ErrorReason::PluginsExhausted => "see with `berth node status` which processes beat",
        ErrorReason::PluginReplaced => {
            "another process runs under this name and instance; give one of them another instance"
        }
        ErrorReason::RoleDenied => {
            "show a certificate with one of these roles; docs/access-control.md has who may call what"
        }
        ErrorReason::ImagePinsExhausted => "take pins away with `berth images unpin`",
        ErrorReason::CollectionNotFound => "see the latest runs with `berth gc ls`",
        ErrorReason::CollectionAborted => "mend what cannot be read; nothing is deleted meanwhile",
        ErrorReason::ManagerUnreachable => {
            "check that the manager runs, and the `manager` setting of the process that was asked"
        }
        ErrorReason::StoreFull => "make room on the file system of the manager's state directory",
        ErrorReason::RevisionUnknown => {
            "leave --from out to begin with the sandboxes as they stand"
        }
        ErrorReason::DeadlinePassed => {
            "the node goes on with the work; look with `berth get ID` or allow more with --timeout"
        }
        ErrorReason::ShuttingDown => "the manager is stopping; try again when it is back",
        ErrorReason::NodeDraining => {
            "choose another node, or let this one take sandboxes again with `berth node undrain`"
        }
        ErrorReason::ExpiryConflict => {
            "somebody renewed it meanwhile; `berth get ID` shows when it ends"
        }
        ErrorReason::Internal => "this is a bug in Berth; its cause is in the manager's log",
        ErrorReason::ArchiveTooLarge => {
            "push the image to a registry and pull it, or raise the manager's `import.max_bytes`"
        }
        ErrorReason::DiskLow => {
            "remove images that are not needed (`berth images ls`), or make room where the manager keeps its state"
        }
        ErrorReason::NodePortInUse => {
            "choose another node port, or remove the sandbox or stop the program that has it"
        }
        ErrorReason::ImportStalled => {
            "the archive came too slowly: copy it near the node and import it from a file"
        }
        ErrorReason::RevisionConflict => {
            "somebody changed the entry meanwhile; look with `berth catalog ls` and decide again"
        }
        ErrorReason::CatalogFull => {
            "remove entries that nobody needs with `berth catalog rm KIND ID`"
        }
        ErrorReason::LeaseNotFound => "see all leases with `berth net leases`",
        ErrorReason::LeaseHeld => "delete the sandbox that holds it with `berth rm ID`",
        ErrorReason::SubnetNotFound => {
            "see the reserved subnets with `berth net subnets`, reserve one with `berth net reserve`"
        }
        ErrorReason::SubnetConflict => {
            "release it with `berth net unreserve` before it is reserved with another size"
        }
        ErrorReason::SubnetInUse => {
            "remove the sandboxes with addresses of it first; `berth net leases` names them"
        }
        ErrorReason::SubnetsExhausted => {
            "release subnets that nobody needs (`berth net subnets`), or ask for a smaller one"
        }
        ErrorReason::DisabledOnNode => {
            "leave the field out, choose another node, or change the setting of this one"
        }
        ErrorReason::LogReadersExhausted => "end other readers of logs, or try again later",
        ErrorReason::LogUnreadable => {
            "look at the disk of `log_dir`; the logs of the other containers can be read with -c"
        }
        ErrorReason::PathNotFound => {
            "the path is one in the container; a directory that is copied into must be there"
        }
        ErrorReason::PathRefused => {
            "choose another path, or remove what is in the way inside of the container"
        }
        ErrorReason::TarInvalid => {
            "make the archive again, without devices, sparse files and names with `..`"
        }
        ErrorReason::NoSpace => {
            "make room on that file system of the container, or copy to another one"
        }
        ErrorReason::PortUnreachable => {
            "check that the program listens on 127.0.0.1, ::1 or all addresses; `berth get ID` shows its ports"
        }
        ErrorReason::ContainerNotRunning => {
            "programs run and files are copied only while the container runs; `berth get ID` shows how it ended"
        }
        ErrorReason::StreamsExhausted => "wait until some of what is open has ended",
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use tonic::TimeoutExpired;

    use super::*;

    fn refused(code: Code, reason: &str) -> Failure {
        let details = ErrorDetails::with_error_info(reason, "berth.v1", []);
        Status::with_error_details(code, "refused", details).into()
    }

    #[test]
    fn every_reason_has_a_hint_of_its_own() {
        let reasons: Vec<_> = (0..)
            .map_while(|it| ErrorReason::try_from(it).ok())
            .collect();
        assert!(reasons.contains(&ErrorReason::Internal), "{reasons:?}");
        let mut hints = BTreeSet::new();
        for reason in reasons {
            let name = reason
                .as_str_name()
                .strip_prefix("ERROR_REASON_")
                .expect("all have it");
            let told = lines(&refused(Code::Unknown, name));
            assert_eq!(told.len(), 2, "{told:?}");
            assert!(told[1].starts_with("hint: "), "{told:?}");
            assert!(hints.insert(told[1].clone()), "{name} shares its hint");
        }
    }

    #[test]
    fn each_violation_has_its_line() {
        let mut details = ErrorDetails::with_error_info("INVALID_FIELD", "berth.v1", []);
        details.add_bad_request_violation("spec.containers[0].name", "is empty");
        details.add_bad_request_violation("id", "has upper case");
        let status =
            Status::with_error_details(Code::InvalidArgument, "the request is invalid", details);
        let failure = Failure::from(status);
        assert_eq!(
            lines(&failure),
            [
                "berth: the request is invalid",
                "  spec.containers[0].name: is empty",
                "  id: has upper case",
                "hint: correct the fields and try again",
            ]
        );
        assert_eq!(exit_code(&failure), EXIT_USAGE);
    }

    #[test]
    fn a_delay_is_told_with_the_hint() {
        let mut details = ErrorDetails::with_error_info("SHUTTING_DOWN", "berth.v1", []);
        details.set_retry_info(Some(Duration::from_secs(2)));
        let status = Status::with_error_details(Code::Unavailable, "stopping", details);
        let told = lines(&status.into());
        assert!(told[1].ends_with("try again after 2.00s"), "{told:?}");
    }

    #[test]
    fn an_unknown_reason_is_told_without_a_hint() {
        let told = lines(&refused(Code::Internal, "OF_A_LATER_VERSION"));
        assert_eq!(told, ["berth: refused"]);
    }

    #[test]
    fn an_unreachable_manager_is_named_with_the_way_to_name_another() {
        let failure = Failure::Unreachable {
            address: "unix:/nowhere".to_owned(),
            source: Box::new(io::Error::from(io::ErrorKind::ConnectionRefused)),
        };
        let told = lines(&failure);
        assert_eq!(
            told[0],
            "berth: cannot reach the manager at unix:/nowhere: connection refused"
        );
        assert!(
            told[1].contains("--address") && told[1].contains("BERTH_ADDRESS"),
            "{told:?}"
        );
        assert_eq!(exit_code(&failure), EXIT_FAILED);
    }

    #[test]
    fn a_timeout_of_this_side_names_the_argument() {
        let status = Status::from_error(Box::new(TimeoutExpired(())));
        let told = lines(&status.into());
        assert_eq!(told[0], "berth: no answer within --timeout");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let gone = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(reader_is_gone(&gone));
        assert!(!reader_is_gone(&Failure::from(io::Error::from(
            io::ErrorKind::StorageFull
        ))));
    }

    #[test]
    fn several_failures_are_all_told() {
        let failure = Failure::Several(vec![
            refused(Code::InvalidArgument, "INVALID_FIELD"),
            Failure::StreamEnded,
        ]);
        assert_eq!(lines(&failure).len(), 3);
        assert_eq!(exit_code(&failure), EXIT_FAILED);
    }
}

//! A failure as gRPC tells it: a code, a message, and `google.rpc` details.

use std::collections::HashMap;

use berth_domain::{Failure, Reason};
use tonic::{Code, Status};
use tonic_types::{
    ErrorDetails, FieldViolation, PreconditionViolation, QuotaViolation, StatusExt as _,
};

const DOMAIN: &str = "berth.v1";
const VIOLATIONS_MAX: usize = 16;
const TEXT_MAX: usize = 1024;
/// Of all texts of an answer, each as often as it is told. They travel in headers, the details in Base64, and peers refuse
/// headers of more than 8 KiB (gRPC's C core) or 16 KiB (hyper).
const TEXTS_MAX: usize = 5 << 10;
/// What is left for a field, and for what is wrong with it, or it is not named.
const LEAST: usize = 32;

fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidField
        | Reason::UnsupportedField
        | Reason::SpecTooLarge
        | Reason::ArchiveInvalid
        | Reason::TarInvalid
        | Reason::ArchiveTooLarge => Code::InvalidArgument,
        Reason::SpecConflict | Reason::SubnetConflict => Code::AlreadyExists,
        Reason::GenerationConflict
        | Reason::CreateCancelled
        | Reason::ExpiryConflict
        | Reason::RevisionConflict
        | Reason::ImportStalled
        | Reason::WorkLeaseHeld
        | Reason::PluginReplaced
        | Reason::WorkLeaseLost => Code::Aborted,
        Reason::SandboxNotFound
        | Reason::ContainerNotFound
        | Reason::LeaseNotFound
        | Reason::SubnetNotFound
        | Reason::ImageNotFound
        | Reason::PathNotFound
        | Reason::CollectionNotFound => Code::NotFound,
        Reason::SandboxEnding
        | Reason::PlatformMissing
        | Reason::ImageInUse
        | Reason::NodePortInUse
        | Reason::PortTimeout
        | Reason::ProbeFailed
        | Reason::ContainerExited
        | Reason::LeaseHeld
        | Reason::SubnetInUse
        | Reason::DisabledOnNode
        | Reason::PathRefused
        | Reason::PortUnreachable
        | Reason::ExecNotStarted
        | Reason::ContainerNotRunning
        | Reason::CollectionAborted
        | Reason::RegistryProtocol
        | Reason::RegistryUntrusted
        | Reason::CredentialsUnreadable
        | Reason::ImageIncomplete
        | Reason::RuntimeRefused => Code::FailedPrecondition,
        Reason::AddressesExhausted
        | Reason::SubnetsExhausted
        | Reason::CatalogFull
        | Reason::ExecLimit
        | Reason::StoreFull
        | Reason::NoSpace
        | Reason::StreamsExhausted
        | Reason::DiskLow
        | Reason::LogReadersExhausted
        | Reason::WorkLeasesExhausted
        | Reason::PluginsExhausted
        | Reason::ImagePinsExhausted
        | Reason::SandboxesExhausted
        | Reason::CallsExhausted => Code::ResourceExhausted,
        Reason::RegistryUnreachable
        | Reason::RegistryBusy
        | Reason::PullStalled
        | Reason::RuntimeUnreachable
        | Reason::ShuttingDown
        | Reason::ManagerUnreachable
        | Reason::NodeDraining => Code::Unavailable,
        Reason::RegistryDenied | Reason::RoleDenied => Code::PermissionDenied,
        Reason::ImageCorrupt | Reason::LogUnreadable => Code::DataLoss,
        Reason::RevisionUnknown => Code::OutOfRange,
        Reason::DeadlinePassed => Code::DeadlineExceeded,
        Reason::NetworkFailed | Reason::Internal => Code::Internal,
    }
}

/// Renders a failure. Texts that are too long are cut, and what does not fit into headers is left out.
pub fn status(failure: Failure) -> Status {
    let message = cut(&failure.message, TEXT_MAX);
    // Once in the details, and once with three bytes for each that is not ASCII, but not in Base64.
    let plain = message.bytes().filter(|it| it.is_ascii_graphic()).count();
    let encoded = plain + 3 * (message.len() - plain);
    let mut room = TEXTS_MAX - message.len() - encoded * 3 / 4;
    let mut violations = vec![];
    for it in failure.violations.iter().take(VIOLATIONS_MAX) {
        let most = TEXT_MAX.min(room / 2);
        if most < LEAST {
            break;
        }
        let (field, problem) = (cut(&it.field, most), cut(&it.problem, most));
        room = room.saturating_sub(field.len() + problem.len());
        violations.push(FieldViolation::new(field, problem));
    }
    let mut fits = |texts: &[&str]| {
        let left = room.checked_sub(texts.iter().map(|it| it.len()).sum());
        room = left.unwrap_or(room);
        left.is_some()
    };
    let metadata: HashMap<String, String> = failure
        .metadata
        .iter()
        .map(|(key, value)| (key.clone(), cut(value, TEXT_MAX)))
        .filter(|(key, value)| fits(&[key, value]))
        .collect();
    let value = |key: &str| metadata.get(key).cloned().unwrap_or_default();
    let mut details = ErrorDetails::new();
    if failure.reason == Reason::AddressesExhausted {
        let figures = format!(
            "{} of {} addresses are held",
            value("held"),
            value("capacity")
        );
        if fits(&[&figures]) {
            details.set_quota_failure(vec![QuotaViolation::new("addresses", figures)]);
        }
    }
    let precondition = if failure.reason == Reason::ImageInUse {
        let (holder, image) = (value("holder"), value("image"));
        let text = format!("{holder} uses {image}");
        Some(("IMAGE_IN_USE", holder, text))
    } else if failure.reason == Reason::DeadlinePassed && metadata.contains_key("held") {
        let held = value("held");
        let text = format!("{held} is not gone yet");
        Some(("STILL_HELD", held, text))
    } else {
        None
    };
    if let Some((kind, subject, text)) = precondition
        && fits(&[&subject, &text])
    {
        let violation = PreconditionViolation::new(kind, subject, text);
        details.set_precondition_failure(vec![violation]);
    }
    if !violations.is_empty() {
        details.set_bad_request(violations);
    }
    if let Some(delay) = failure.retry_after {
        details.set_retry_info(Some(delay));
    }
    details.set_error_info(failure.reason.as_str(), DOMAIN, metadata);
    Status::with_error_details(code(failure.reason), message, details)
}

fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most)
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or_default();
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::v1::ErrorReason;

    #[test]
    fn the_reasons_of_the_contract_are_those_of_the_domain() {
        for &reason in Reason::ALL {
            let name = format!("ERROR_REASON_{}", reason.as_str());
            assert!(
                ErrorReason::from_str_name(&name).is_some(),
                "{name} is not in the contract"
            );
        }
        let published = (1..1000)
            .filter(|number| ErrorReason::try_from(*number).is_ok())
            .count();
        assert_eq!(published, Reason::ALL.len());
    }

    #[test]
    fn a_failure_travels_with_its_reason_fields_and_delay() {
        let failure = Failure::invalid("spec.x", "is wrong")
            .with("key", "value")
            .retry_after(Duration::from_secs(2));
        let status = status(failure);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "spec.x is wrong");
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("INVALID_FIELD", "berth.v1")
        );
        assert_eq!(info.metadata["key"], "value");
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "spec.x");
        let delay = details.retry_info().and_then(|it| it.retry_delay);
        assert_eq!(delay, Some(Duration::from_secs(2)));
    }

    fn of_violations(number: usize, field: &str, problem: &str) -> Failure {
        let violations = (0..number).map(|_| berth_domain::Violation {
            field: field.to_owned(),
            problem: problem.to_owned(),
        });
        Failure::of_violations(Reason::InvalidField, violations.collect())
    }

    #[test]
    fn an_answer_fits_into_a_header_however_much_was_wrong() {
        let long = "ä".repeat(2000);
        let full = |reason, text: &str, keys: &[&str]| {
            keys.iter()
                .fold(Failure::new(reason, &long), |failure, key| {
                    failure.with(key, text)
                })
        };
        for failure in [
            of_violations(5000, &long, &long),
            of_violations(5000, "a", &long),
            of_violations(5000, &"a".repeat(190), "b"),
            of_violations(1, &long, &long),
            full(Reason::Internal, &long, &["a", "b", "c", "d", "e"]),
            full(
                Reason::Internal,
                &"a".repeat(300),
                &["a", "b", "c", "d", "e", "f", "g"],
            ),
            full(Reason::ImageInUse, &"a".repeat(1024), &["holder", "image"]),
            full(Reason::ImageInUse, &"a".repeat(400), &["holder", "image"]),
            full(Reason::DeadlinePassed, &"a".repeat(1024), &["held"]),
        ] {
            let wrong = failure.violations.len();
            let status = status(failure);
            let told = status.get_error_details();
            let told = told.bad_request().map_or(0, |it| it.field_violations.len());
            assert_eq!(told == 0, wrong == 0, "the first is told");
            let response = status.into_http::<()>();
            let headers = response.headers().iter();
            // As HTTP/2 counts them.
            let size: usize = headers
                .map(|(name, it)| name.as_str().len() + it.len() + 32)
                .sum();
            assert!(size <= 8 << 10, "{size}");
        }
    }

    #[test]
    fn so_many_fields_are_named_and_so_much_of_each_text_is_told() {
        let told = |failure: Failure| {
            let details = status(failure).get_error_details();
            let violations = details.bad_request().unwrap().field_violations.clone();
            (violations.len(), violations[0].description.clone())
        };
        assert_eq!(told(of_violations(VIOLATIONS_MAX, "a", "b")).0, 16);
        assert_eq!(told(of_violations(VIOLATIONS_MAX + 1, "a", "b")).0, 16);
        let whole = "x".repeat(1024);
        assert_eq!(told(of_violations(1, "a", &whole)).1, whole);
        assert_eq!(
            told(of_violations(1, "a", &format!("{whole}y"))).1,
            format!("{whole}…")
        );
    }
}

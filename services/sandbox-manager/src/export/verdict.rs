//! What a refusal of the receiver says: whether the batch or the receiver is what is wrong.

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same batch would be refused again, whatever becomes of the receiver.
    Batch,
    /// It takes nothing at the moment, from us at least.
    Receiver,
    /// It cannot be told: a receiver that has broken says so, and one that breaks at a certain line or size as well.
    Either,
}

pub(super) fn verdict(status: &Status) -> Verdict {
    match status.code() {
        Code::InvalidArgument => Verdict::Batch,
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Aborted
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::Unimplemented => Verdict::Receiver,
        // It says when it has room again; without that, the batch is too large for it.
        Code::ResourceExhausted if status.get_details_retry_info().is_some() => Verdict::Receiver,
        Code::ResourceExhausted
        | Code::Internal
        | Code::Unknown
        | Code::DataLoss
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::AlreadyExists
        | Code::Ok => Verdict::Either,
    }
}

/// What a call would have said.
pub(super) fn of_http(code: u16) -> Status {
    let told = match code {
        400 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 | 405 => Code::Unimplemented,
        413 => Code::ResourceExhausted,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(told, format!("the receiver answers HTTP {code}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn an_answer_over_http_is_judged_as_one_over_grpc() {
        for (code, expected) in [
            (400, Verdict::Batch),
            (404, Verdict::Receiver),
            (413, Verdict::Either),
            (429, Verdict::Receiver),
            (500, Verdict::Either),
            (503, Verdict::Receiver),
        ] {
            assert_eq!(verdict(&of_http(code)), expected, "{code}");
        }
    }

    #[test]
    fn what_is_wrong_follows_from_the_code_and_from_whether_room_is_promised() {
        let cases = [
            (Status::invalid_argument(""), Verdict::Batch),
            (Status::unavailable(""), Verdict::Receiver),
            (Status::unauthenticated(""), Verdict::Receiver),
            (
                Status::resource_exhausted("larger than max"),
                Verdict::Either,
            ),
            (Status::internal(""), Verdict::Either),
            (Status::unknown("h2 broke off"), Verdict::Either),
        ];
        for (status, expected) in cases {
            assert_eq!(verdict(&status), expected, "{status:?}");
        }
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
        let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
        assert_eq!(verdict(&status), Verdict::Receiver);
    }
}

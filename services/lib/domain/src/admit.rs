//! Whether a Create may begin, joins one that is there, or is refused.

use crate::{
    failure::{Failure, Reason},
    lifecycle::Status,
    record::SandboxRecord,
    spec::SandboxSpec,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Nobody holds the id, or only a DEAD record: make a new generation.
    Begin,
    /// The same spec is there or on its way.
    Join,
    Refuse(Failure),
}

/// Decides over a Create of `spec` under an id that `held` holds.
pub fn admit(held: Option<&SandboxRecord>, spec: &SandboxSpec) -> Admission {
    let Some(record) = held else {
        return Admission::Begin;
    };
    let ending = record.ending.is_some() || record.status == Status::Stopped;
    match record.status {
        Status::Dead if record.ending.is_none() => Admission::Begin,
        _ if ending => Admission::Refuse(
            Failure::new(
                Reason::SandboxEnding,
                format!(
                    "sandbox {} is being torn down; create it again after that",
                    record.id
                ),
            )
            .retry_after(std::time::Duration::from_secs(1)),
        ),
        Status::Dead | Status::Pending | Status::NotReady | Status::Running | Status::Stopped => {
            match record.spec.difference(spec) {
                None => Admission::Join,
                Some(field) => Admission::Refuse(
                    Failure::new(
                        Reason::SpecConflict,
                        format!(
                            "sandbox {} exists with another spec: {field} differs",
                            record.id
                        ),
                    )
                    .with("field", field),
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use super::*;
    use crate::{
        id::{Generation, SandboxId},
        record::Ending,
        spec::tests::{container, spec},
    };

    fn outcome(held: Option<(Status, Option<Ending>)>, same_spec: bool) -> &'static str {
        let asked = spec([container("web", &[80])]);
        let other = spec([container("web", &[81])]);
        let record = held.map(|(status, ending)| {
            let id = SandboxId::parse("web").unwrap();
            let now = SystemTime::UNIX_EPOCH;
            let spec = Arc::new(asked.clone());
            let record = SandboxRecord::new(id, Generation(1), spec, vec![], now);
            SandboxRecord {
                status,
                ending,
                ..record
            }
        });
        match admit(record.as_ref(), if same_spec { &asked } else { &other }) {
            Admission::Begin => "begin",
            Admission::Join => "join",
            Admission::Refuse(failure) => failure.reason.as_str(),
        }
    }

    #[test]
    #[rustfmt::skip]
    fn each_case_is_admitted_like_this() {
        use {Ending::{Delete, Stop}, Status::{Dead, NotReady, Pending, Running, Stopped}};
        let cases = [
            (None,                          "begin",          "begin"),
            (Some((Pending,  None)),        "join",           "SPEC_CONFLICT"),
            (Some((Running,  None)),        "join",           "SPEC_CONFLICT"),
            (Some((NotReady, None)),        "join",           "SPEC_CONFLICT"),
            (Some((Stopped,  None)),        "SANDBOX_ENDING", "SANDBOX_ENDING"),
            (Some((Dead,     None)),        "begin",          "begin"),
            (Some((Pending,  Some(Stop))),  "SANDBOX_ENDING", "SANDBOX_ENDING"),
            (Some((Running,  Some(Delete))),"SANDBOX_ENDING", "SANDBOX_ENDING"),
            (Some((Dead,     Some(Delete))),"SANDBOX_ENDING", "SANDBOX_ENDING"),
        ];
        for (held, same, other) in cases {
            assert_eq!(outcome(held, true), same, "{held:?}, the same spec");
            assert_eq!(outcome(held, false), other, "{held:?}, another spec");
        }
    }
}

//! Whether a Create may begin, joins one that is there, or is refused.

use std::time::Duration;

use crate::{
    failure::{Failure, Reason},
    id::{Generation, SandboxId},
    lifecycle::Status,
    record::SandboxRecord,
    spec::{Protocol, SandboxSpec},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Nobody holds the id, or only a DEAD record: make a new generation.
    Begin,
    /// The same spec is there or on its way.
    Join,
    Refuse(Failure),
}

/// What a Create asks for beside its spec, and what the node has to say to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The generation that the caller means to join.
    pub expected: Option<Generation>,
    /// Why the node takes no new sandboxes; `None` while it does.
    pub draining: Option<String>,
}

/// A drain takes minutes; who has only this node may ask again.
const RETRY_DRAINING: Duration = Duration::from_secs(30);

/// Decides over a Create of `spec` under an id that `held` holds.
pub fn admit(held: Option<&SandboxRecord>, spec: &SandboxSpec, terms: &Terms) -> Admission {
    let actual = held.map(|it| it.generation).unwrap_or_default();
    match (by_spec(held, spec), terms) {
        (
            _,
            Terms {
                expected: Some(it), ..
            },
        ) if *it != actual => Admission::Refuse(generation_conflict(*it, actual)),
        // It is there, but DEAD: what begins would have another generation.
        (
            Admission::Begin,
            Terms {
                expected: Some(it), ..
            },
        ) => Admission::Refuse(generation_conflict(*it, actual)),
        (
            Admission::Begin,
            Terms {
                draining: Some(why),
                ..
            },
        ) => Admission::Refuse(
            Failure::new(
                Reason::NodeDraining,
                format!("the node takes no new sandboxes: {why}"),
            )
            .with("why", why)
            .retry_after(RETRY_DRAINING),
        ),
        (other, _) => other,
    }
}

/// A port of the node that is not free: a sandbox has it, or a program of the node listens on it.
pub fn node_port_conflict(protocol: Protocol, port: u16, owner: Option<&SandboxId>) -> Failure {
    let holder = owner.map_or_else(
        || "a program of the node listens on it".to_owned(),
        |id| format!("sandbox {id} has it"),
    );
    let failure = Failure::new(
        Reason::NodePortInUse,
        format!("node port {port}/{protocol} is taken: {holder}"),
    )
    .with("node_port", port)
    .with("protocol", protocol);
    match owner {
        Some(id) => failure.with("owner", id),
        None => failure,
    }
}

fn generation_conflict(expected: Generation, actual: Generation) -> Failure {
    Failure::new(
        Reason::GenerationConflict,
        format!("there is no sandbox of generation {expected} to join"),
    )
    .with("expected", expected)
    .with("actual", actual)
}

fn by_spec(held: Option<&SandboxRecord>, spec: &SandboxSpec) -> Admission {
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
            .retry_after(Duration::from_secs(1)),
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
        record::Ending,
        spec::tests::{container, spec},
    };

    fn outcome(
        held: Option<(Status, Option<Ending>)>,
        same_spec: bool,
        terms: &Terms,
    ) -> &'static str {
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
        let asked = if same_spec { &asked } else { &other };
        match admit(record.as_ref(), asked, terms) {
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
            let terms = Terms::default();
            assert_eq!(outcome(held, true, &terms), same, "{held:?}, the same spec");
            assert_eq!(outcome(held, false, &terms), other, "{held:?}, another spec");
            // A node that drains begins nothing and answers everything else as ever.
            let terms = Terms { draining: Some("upgrade".into()), ..Terms::default() };
            let drained = |it| if it == "begin" { "NODE_DRAINING" } else { it };
            assert_eq!(outcome(held, true, &terms), drained(same), "{held:?}, draining");
            // Who means the generation that is there begins nothing either; who means another one is told.
            let terms = Terms { expected: Some(Generation(1)), ..Terms::default() };
            let joined = |it| if it == "begin" { "GENERATION_CONFLICT" } else { it };
            assert_eq!(outcome(held, true, &terms), joined(same), "{held:?}, of this generation");
            let terms = Terms { expected: Some(Generation(2)), ..Terms::default() };
            assert_eq!(outcome(held, true, &terms), "GENERATION_CONFLICT", "{held:?}");
        }
    }
}

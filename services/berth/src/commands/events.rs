//! The command `events`: the sandboxes as they stand and each change.

use berth_api::v1::{
    self, ErrorReason, sandbox_service_client::SandboxServiceClient, watch_response::Event,
};
use tonic::Status;

use super::{
    Session,
    sandboxes::{bare_addresses, in_one_line, status_word},
};
use crate::{
    args::Events,
    errors::{self, Failure},
    output,
    proto_json::ProtoJson,
};

pub(super) async fn watch(session: &Session, args: Events) -> Result<(), Failure> {
    let Events { follow, from, id } = args;
    let id = id.unwrap_or_default();
    let mut client = SandboxServiceClient::new(session.connect().await?);
    let mut reading = Reading::from(from);
    loop {
        let request = v1::WatchRequest {
            from_revision: reading.revision,
            id: id.clone(),
        };
        let ended = match client.watch(session.request(request)).await {
            Err(status) => status,
            Ok(response) => {
                let mut events = response.into_inner();
                loop {
                    match events.message().await {
                        Ok(None) => return Err(Failure::StreamEnded),
                        Err(status) => break status,
                        Ok(Some(event)) => {
                            reading.seen(event.revision);
                            session.output.event(&ProtoJson(&event), || line(&event))?;
                            if !follow && matches!(event.event, Some(Event::Synced(_))) {
                                return Ok(());
                            }
                        }
                    }
                }
            }
        };
        // A resumed watch has no `synced`, so without -f it would have no end.
        if !follow {
            return Err(ended.into());
        }
        reading = reading.resume(ended)?;
        output::complain(&format!(
            "berth: REVISION_UNKNOWN: the watch fell behind; watching again from revision {}",
            reading.revision
        ));
    }
}

/// How far a watch has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    /// Last revision that was seen.
    revision: u64,
    /// Whether this watch brought anything.
    moved: bool,
    /// Whether the revision was seen, not given by the caller.
    own: bool,
}

impl Reading {
    fn from(revision: u64) -> Self {
        Self {
            revision,
            moved: false,
            own: false,
        }
    }

    fn seen(&mut self, revision: u64) {
        *self = Self {
            revision,
            moved: true,
            own: true,
        };
    }

    /// Where to go on after the watch ended. A revision of the caller's that the manager refuses is his to correct.
    fn resume(self, ended: Status) -> Result<Self, Failure> {
        match errors::reason(&ended) {
            Some(ErrorReason::RevisionUnknown) if self.moved => Ok(Self {
                moved: false,
                ..self
            }),
            Some(ErrorReason::RevisionUnknown) if self.own && self.revision > 0 => Ok(Self {
                revision: 0,
                ..self
            }),
            Some(_) | None => Err(ended.into()),
        }
    }
}

/// One line per event; that the beginning is over is for programs.
fn line(event: &v1::WatchResponse) -> Option<String> {
    let text = match event.event.as_ref()? {
        Event::Sandbox(sandbox) => format!(
            "{:<9} {:<24} {:<15} {}",
            status_word(sandbox),
            sandbox.id,
            bare_addresses(sandbox),
            in_one_line(&sandbox.reason, &sandbox.message),
        ),
        Event::Removed(removed) => format!("{:<9} {}", "removed", removed.id),
        Event::Synced(_) => return None,
    };
    Some(format!("{:>8} {}", event.revision, text.trim_end()))
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn unknown() -> Status {
        let details = ErrorDetails::with_error_info("REVISION_UNKNOWN", "berth.v1", []);
        Status::with_error_details(Code::OutOfRange, "revision 7 is not kept", details)
    }

    #[test]
    fn a_watch_that_fell_behind_goes_on_from_its_revision_then_from_the_beginning() {
        let mut reading = Reading::from(0);
        reading.seen(7);
        let resumed = reading.resume(unknown()).expect("it goes on");
        assert_eq!((resumed.revision, resumed.moved), (7, false));
        let anew = resumed.resume(unknown()).expect("it begins again");
        assert_eq!(anew.revision, 0);
        assert!(anew.resume(unknown()).is_err(), "nothing is left to try");
    }

    #[test]
    fn a_revision_of_the_caller_is_not_replaced() {
        assert!(Reading::from(7).resume(unknown()).is_err());
    }

    #[test]
    fn another_failure_ends_the_watch() {
        let mut reading = Reading::from(0);
        reading.seen(7);
        assert!(reading.resume(Status::unavailable("gone")).is_err());
    }

    #[test]
    fn each_change_is_one_line() {
        let sandbox = v1::Sandbox {
            id: "web".to_owned(),
            status: v1::SandboxStatus::Dead.into(),
            reason: "STOP_REQUESTED".to_owned(),
            ..Default::default()
        };
        let event = |event| v1::WatchResponse {
            revision: 12,
            event: Some(event),
        };
        let told = line(&event(Event::Sandbox(sandbox))).expect("it is told");
        assert_eq!(
            told.split_whitespace().collect::<Vec<_>>(),
            ["12", "DEAD", "web", "STOP_REQUESTED"]
        );
        assert_eq!(line(&event(Event::Synced(v1::WatchSynced {}))), None);
    }
}

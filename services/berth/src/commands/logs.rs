//! The command `logs`: what containers have written, and each new line. A follower goes on by its cursor when the
//! manager is back.

mod render;

use std::{io::IsTerminal as _, time::Duration};

use berth_api::v1::{self, ErrorReason, sandbox_service_client::SandboxServiceClient};
use jiff::Timestamp;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use self::render::{Piece, Renderer};
use super::Session;
use crate::{
    args::Logs,
    errors::{self, Failure},
    output,
    proto_json::ProtoJson,
};

/// How long to wait before the manager is asked again, the first time and at most.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LAST_WAIT: Duration = Duration::from_secs(2);

pub(super) async fn stream(session: &Session, args: Logs) -> Result<(), Failure> {
    let terminal = std::io::stdout().is_terminal();
    let mut reading = Reading {
        session,
        renderer: Renderer {
            terminal,
            colours: terminal && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty()),
            timestamps: args.timestamps,
            names: args.containers.len() != 1,
            ..Renderer::default()
        },
        request: request(args),
        moved: false,
    };
    let mut wait = FIRST_WAIT;
    loop {
        reading.moved = false;
        let ended = reading.until_end().await;
        let Err(failure) = ended else {
            return reading.finish();
        };
        if reading.moved {
            wait = FIRST_WAIT;
        }
        // What has shown something goes on by its cursor; before that, a failure is the answer.
        let resumes = reading.request.follow && !reading.request.cursor.is_empty();
        if resumes && is_gone(&failure) {
            return reading.finish();
        }
        if !(resumes && is_away(&failure)) {
            reading.finish()?;
            return Err(failure);
        }
        if wait == FIRST_WAIT {
            output::complain("berth: the manager is away; going on when it is back");
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LAST_WAIT);
    }
}

fn request(args: Logs) -> v1::StreamLogsRequest {
    let Logs {
        id,
        follow,
        containers,
        streams,
        tail,
        since,
        timestamps: _,
    } = args;
    let since = since.map(|it| it.time(Timestamp::now()));
    v1::StreamLogsRequest {
        id,
        containers,
        streams: streams
            .into_iter()
            .map(|it| v1::LogStream::from(it).into())
            .collect(),
        follow,
        tail_lines: tail,
        since: since.map(|it| prost_types::Timestamp {
            seconds: it.as_second(),
            nanos: it.subsec_nanosecond(),
        }),
        cursor: String::new(),
    }
}

struct Reading<'a> {
    session: &'a Session,
    renderer: Renderer,
    /// What is asked for next.
    request: v1::StreamLogsRequest,
    /// Whether this call has brought anything.
    moved: bool,
}

impl Reading<'_> {
    async fn until_end(&mut self) -> Result<(), Failure> {
        let mut client = SandboxServiceClient::new(self.session.connect().await?)
            .max_decoding_message_size(16 << 20);
        let request = self.session.request(self.request.clone());
        let mut responses = client.stream_logs(request).await?.into_inner();
        while let Some(response) = responses.message().await? {
            self.moved = true;
            self.show(&response.entries)?;
            self.request = v1::StreamLogsRequest {
                cursor: response.cursor,
                tail_lines: None,
                since: None,
                ..std::mem::take(&mut self.request)
            };
        }
        Ok(())
    }

    fn show(&mut self, entries: &[v1::LogEntry]) -> Result<(), Failure> {
        if !self.session.output.is_for_people() {
            for entry in entries {
                self.session.output.event(&ProtoJson(entry), || None)?;
            }
            return Ok(());
        }
        print(entries.iter().flat_map(|it| self.renderer.entry(it)))
    }

    /// Shows what was kept back.
    fn finish(&mut self) -> Result<(), Failure> {
        print(self.renderer.rest())
    }
}

fn print(pieces: impl IntoIterator<Item = Piece>) -> Result<(), Failure> {
    let mut text = vec![];
    for piece in pieces {
        match piece {
            Piece::Text(bytes) => text.extend(bytes),
            Piece::Note(note) => {
                output::print_bytes(&std::mem::take(&mut text))?;
                output::complain(&note);
            }
        }
    }
    Ok(output::print_bytes(&text)?)
}

/// Whether the manager may be back in a moment.
fn is_away(failure: &Failure) -> bool {
    if let Failure::Call(status) = failure {
        return is_broken_off(status);
    }
    matches!(failure, Failure::Unreachable { .. })
}

/// Whether the manager stops or has died. What it says itself has a reason; what tonic says of a connection has none.
fn is_broken_off(status: &Status) -> bool {
    match errors::reason(status) {
        Some(reason) => reason == ErrorReason::ShuttingDown,
        None => {
            let of_the_connection = matches!(
                status.code(),
                Code::Unavailable | Code::Unknown | Code::Internal
            );
            of_the_connection && status.get_error_details().error_info().is_none()
        }
    }
}

fn is_gone(failure: &Failure) -> bool {
    matches!(failure, Failure::Call(status)
        if errors::reason(status) == Some(ErrorReason::SandboxNotFound))
}

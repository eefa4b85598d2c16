//! A manager that answers by a script.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};

use berth_api::v1::{
    self, image_service_server as images, import_image_request::Part, node_service_server as node,
    sandbox_service_server as sandboxes, watch_response::Event,
};
use futures::{Stream, StreamExt as _, stream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// How many sandboxes it has.
pub(crate) const SANDBOXES: u32 = 250;

pub(crate) const CHATTER_WORDS: usize = 40_000;
pub(crate) const CHATTER_BYTES: usize = 100;

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers as it is told by the ids and remembers what it was asked.
#[derive(Clone, Default)]
pub(crate) struct ScriptedManager {
    pub(crate) created: Arc<Mutex<Vec<v1::CreateRequest>>>,
    pub(crate) watched_from: Arc<Mutex<Vec<u64>>>,
    pub(crate) logs_asked: Arc<Mutex<Vec<v1::StreamLogsRequest>>>,
    /// A word of `chatter` was taken from it, or a call came that takes for ever.
    pub(crate) chatted: Arc<tokio::sync::Notify>,
}

fn sandbox(id: &str) -> v1::Sandbox {
    v1::Sandbox {
        id: id.to_owned(),
        status: v1::SandboxStatus::Running.into(),
        addresses: vec![v1::NetworkAddress {
            address: "10.87.0.2/16".to_owned(),
            subnet: "berth0".to_owned(),
        }],
        ..Default::default()
    }
}

impl ScriptedManager {
    fn chatter(&self) -> impl Stream<Item = Result<v1::ExecResponse, Status>> + use<> {
        use v1::exec_response::Event;
        let chatted = self.chatted.clone();
        let words = stream::iter(0..CHATTER_WORDS).then(move |_| {
            chatted.notify_one();
            async {
                // Each is a message of its own on its way.
                tokio::task::yield_now().await;
                Event::Stdout(vec![b'x'; CHATTER_BYTES])
            }
        });
        let started = stream::iter([Event::Started(v1::ExecStarted::default())]);
        let ended = stream::iter([Event::Ended(v1::ExecEnded::default())]);
        let all = started.chain(words).chain(ended);
        all.map(|event| Ok(v1::ExecResponse { event: Some(event) }))
    }
}

fn refused(code: Code, reason: &str, message: &str) -> Status {
    Status::with_error_details(
        code,
        message,
        ErrorDetails::with_error_info(reason, "berth.v1", []),
    )
}

#[tonic::async_trait]
impl sandboxes::SandboxService for ScriptedManager {
    async fn create(&self, request: Request<v1::CreateRequest>) -> Answer<v1::CreateResponse> {
        let request = request.into_inner();
        self.created
            .lock()
            .expect("no holder panics")
            .push(request.clone());
        match request.id.as_str() {
            "Bad" => {
                let mut details = ErrorDetails::with_error_info("INVALID_FIELD", "berth.v1", []);
                details.add_bad_request_violation("id", "has upper case");
                Err(Status::with_error_details(
                    Code::InvalidArgument,
                    "invalid",
                    details,
                ))
            }
            "slow" => std::future::pending().await,
            id => Ok(Response::new(v1::CreateResponse {
                sandbox: Some(sandbox(id)),
            })),
        }
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        match request.into_inner().id.as_str() {
            "stuck" => Err(refused(
                Code::Unavailable,
                "RUNTIME_UNREACHABLE",
                "no containerd",
            )),
            id => Ok(Response::new(v1::DeleteResponse {
                existed: id != "gone",
            })),
        }
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Answer<v1::StopResponse> {
        let sandbox = sandbox(&request.into_inner().id);
        Ok(Response::new(v1::StopResponse {
            sandbox: Some(sandbox),
        }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::GetResponse> {
        match request.into_inner().id.as_str() {
            "none" => Err(refused(
                Code::NotFound,
                "SANDBOX_NOT_FOUND",
                "no sandbox `none`",
            )),
            id => Ok(Response::new(v1::GetResponse {
                sandbox: Some(v1::Sandbox {
                    running_steps: vec!["ensure-image nginx 3 of 9 MiB".to_owned()],
                    ..sandbox(id)
                }),
            })),
        }
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListResponse> {
        let begin: u32 = request.into_inner().page_token.parse().unwrap_or_default();
        let end = (begin + 100).min(SANDBOXES);
        Ok(Response::new(v1::ListResponse {
            sandboxes: (begin..end)
                .map(|it| sandbox(&format!("s{it:03}")))
                .collect(),
            next_page_token: if end < SANDBOXES {
                end.to_string()
            } else {
                String::new()
            },
            revision: 1,
        }))
    }

    type WatchStream = Events<v1::WatchResponse>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Answer<Self::WatchStream> {
        let from = request.into_inner().from_revision;
        self.watched_from
            .lock()
            .expect("no holder panics")
            .push(from);
        let event = |revision, event| {
            Ok(v1::WatchResponse {
                revision,
                event: Some(event),
            })
        };
        let unknown = || refused(Code::OutOfRange, "REVISION_UNKNOWN", "fell behind");
        let events = match from {
            0 => stream::iter(vec![
                event(1, Event::Sandbox(sandbox("web"))),
                event(2, Event::Synced(v1::WatchSynced {})),
                event(3, Event::Sandbox(sandbox("web"))),
                Err(unknown()),
            ])
            .boxed(),
            3 => {
                let removed = v1::SandboxRemoved {
                    id: "web".to_owned(),
                    generation: 1,
                };
                stream::iter(vec![event(4, Event::Removed(removed))])
                    .chain(stream::pending())
                    .boxed()
            }
            _ => return Err(unknown()),
        };
        Ok(Response::new(events))
    }

    async fn snapshot(
        &self,
        request: Request<v1::SnapshotRequest>,
    ) -> Answer<v1::SnapshotResponse> {
        let total = v1::ResourceUsage {
            pids: 2,
            ..Default::default()
        };
        Ok(Response::new(v1::SnapshotResponse {
            id: request.into_inner().id,
            total: Some(total),
            ..Default::default()
        }))
    }

    async fn set_port_status(
        &self,
        _: Request<v1::SetPortStatusRequest>,
    ) -> Answer<v1::SetPortStatusResponse> {
        Ok(Response::new(v1::SetPortStatusResponse {}))
    }

    async fn copy_to(
        &self,
        _: Request<Streaming<v1::CopyToRequest>>,
    ) -> Answer<v1::CopyToResponse> {
        Err(Status::unimplemented("not scripted"))
    }

    type CopyFromStream = Events<v1::CopyFromResponse>;

    async fn copy_from(&self, _: Request<v1::CopyFromRequest>) -> Answer<Self::CopyFromStream> {
        Err(Status::unimplemented("not scripted"))
    }

    type PortForwardStream = Events<v1::PortForwardResponse>;

    async fn port_forward(
        &self,
        _: Request<Streaming<v1::PortForwardRequest>>,
    ) -> Answer<Self::PortForwardStream> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Answer<v1::RenewResponse> {
        let request = request.into_inner();
        let seconds = request.time_to_live.map(|it| it.seconds);
        let expires_at = seconds.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 });
        Ok(Response::new(v1::RenewResponse {
            sandbox: Some(v1::Sandbox {
                expires_at,
                ..sandbox(&request.id)
            }),
        }))
    }

    type StreamLogsStream = Events<v1::StreamLogsResponse>;

    async fn stream_logs(
        &self,
        request: Request<v1::StreamLogsRequest>,
    ) -> Answer<Self::StreamLogsStream> {
        let request = request.into_inner();
        self.logs_asked
            .lock()
            .expect("no holder panics")
            .push(request.clone());
        let lines = |texts: &[&str], cursor: &str| {
            Ok(v1::StreamLogsResponse {
                entries: texts.iter().map(|it| log_line(it)).collect(),
                cursor: cursor.to_owned(),
                at_end: true,
            })
        };
        let away = || {
            Err(refused(
                Code::Unavailable,
                "SHUTTING_DOWN",
                "it is stopping",
            ))
        };
        let responses = match (request.id.as_str(), request.cursor.as_str()) {
            ("none", _) => return Err(refused(Code::NotFound, "SANDBOX_NOT_FOUND", "none")),
            ("away", "") => vec![away()],
            ("gone", "1") => return Err(refused(Code::NotFound, "SANDBOX_NOT_FOUND", "gone")),
            (_, "") if request.follow => vec![lines(&["one", "two"], "1"), away()],
            (_, "1") => vec![lines(&["three"], "2"), Err(Status::unknown("h2 broke off"))],
            (_, "2") => vec![lines(&["four"], "3")],
            _ => vec![lines(&["one"], "1"), lines(&[], "1")],
        };
        Ok(Response::new(stream::iter(responses).boxed()))
    }

    type AttachStream = Events<v1::AttachResponse>;

    /// The container of the sandbox `slow` takes for ever.
    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachRequest>>,
    ) -> Answer<Self::AttachStream> {
        use v1::{attach_request::Action, attach_response::Event};
        let first = request.into_inner().message().await?;
        let Some(Action::Start(start)) = first.and_then(|it| it.action) else {
            return Err(Status::invalid_argument("no start"));
        };
        if start.id == "slow" {
            self.chatted.notify_one();
            std::future::pending::<()>().await;
        }
        let ended = v1::AttachEnded {
            exit_code: 5,
            ..Default::default()
        };
        let events = [
            Event::Started(v1::AttachStarted::default()),
            Event::Stdout(b"said before\n".to_vec()),
            Event::Ended(ended),
        ];
        let answers = events.map(|event| Ok(v1::AttachResponse { event: Some(event) }));
        Ok(Response::new(stream::iter(answers).boxed()))
    }

    type ExecStream = Events<v1::ExecResponse>;

    /// Says what it was asked to run and all input, and ends with the number that the program is called. The one called `chatter`
    /// says much in small pieces.
    async fn exec(&self, request: Request<Streaming<v1::ExecRequest>>) -> Answer<Self::ExecStream> {
        use v1::{exec_request::Action, exec_response::Event};
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|it| it.action);
        let Some(Action::Start(start)) = first else {
            return Err(Status::invalid_argument("no start"));
        };
        if start.argv[0] == "chatter" {
            return Ok(Response::new(self.chatter().boxed()));
        }
        let Ok(exit_code) = start.argv[0].parse() else {
            let mut details = ErrorDetails::new();
            let why = [("why".to_owned(), "not_found".to_owned())];
            details.set_error_info("EXEC_NOT_STARTED", "berth.v1", why);
            let message = "the program was not started";
            return Err(Status::with_error_details(
                Code::FailedPrecondition,
                message,
                details,
            ));
        };
        let mut said = format!("{} {}\n", start.id, start.argv.join(" ")).into_bytes();
        let answer = |event| Ok(v1::ExecResponse { event: Some(event) });
        let started = stream::iter([answer(Event::Started(v1::ExecStarted::default()))]);
        let rest = stream::once(async move {
            while let Ok(Some(message)) = requests.message().await {
                match message.action {
                    Some(Action::Stdin(bytes)) => said.extend(bytes),
                    _ => break,
                }
            }
            let ended = v1::ExecEnded {
                exit_code,
                ..Default::default()
            };
            let events = [
                Event::Stdout(said),
                Event::Stderr(b"not well\n".to_vec()),
                Event::Ended(ended),
            ];
            stream::iter(events.map(answer))
        });
        Ok(Response::new(started.chain(rest.flatten()).boxed()))
    }
}

fn log_line(text: &str) -> v1::LogEntry {
    let line = v1::LogLine {
        stream: v1::LogStream::Stdout.into(),
        text: text.as_bytes().to_vec(),
        ..Default::default()
    };
    v1::LogEntry {
        container: "app".to_owned(),
        content: Some(v1::log_entry::Content::Line(line)),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl node::NodeService for ScriptedManager {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::GetStatusResponse> {
        Ok(Response::new(v1::GetStatusResponse {
            version: "9.9.9".to_owned(),
            ..Default::default()
        }))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Answer<v1::DrainResponse> {
        let sandboxes = if request.into_inner().drain { 3 } else { 0 };
        Ok(Response::new(v1::DrainResponse { sandboxes }))
    }

    async fn audit(&self, request: Request<v1::AuditRequest>) -> Answer<v1::AuditResponse> {
        let request = request.into_inner();
        if request.fix {
            let removed = v1::AuditObject {
                kind: "netns".to_owned(),
                name: format!("after {:?}", request.settle.map(|it| it.seconds)),
                verdict: v1::AuditVerdict::Orphan.into(),
                action: v1::AuditAction::Removed.into(),
                ..Default::default()
            };
            return Ok(Response::new(v1::AuditResponse {
                objects: vec![removed],
                clean: true,
            }));
        }
        let orphan = v1::AuditObject {
            kind: "netns".to_owned(),
            name: "n1".to_owned(),
            verdict: v1::AuditVerdict::Orphan.into(),
            ..Default::default()
        };
        Ok(Response::new(v1::AuditResponse {
            objects: vec![orphan],
            clean: false,
        }))
    }
}

#[tonic::async_trait]
impl images::ImageService for ScriptedManager {
    async fn list_images(
        &self,
        _: Request<v1::ListImagesRequest>,
    ) -> Answer<v1::ListImagesResponse> {
        Ok(Response::new(v1::ListImagesResponse { images: vec![] }))
    }

    async fn import_image(
        &self,
        request: Request<Streaming<v1::ImportImageRequest>>,
    ) -> Answer<v1::ImportImageResponse> {
        let mut parts = request.into_inner();
        let mut image = v1::Image::default();
        while let Some(message) = parts.message().await? {
            match message.part {
                Some(Part::Header(header)) => image.name = header.name,
                Some(Part::Chunk(chunk)) => image.size_bytes += chunk.len() as u64,
                None => return Err(Status::invalid_argument("an empty message")),
            }
            if image.name == "unwanted" {
                return Err(refused(
                    Code::InvalidArgument,
                    "ARCHIVE_INVALID",
                    "no archive",
                ));
            }
        }
        Ok(Response::new(v1::ImportImageResponse {
            images: vec![image],
        }))
    }

    type PullImageStream = Events<v1::PullImageResponse>;

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Answer<Self::PullImageStream> {
        use v1::pull_image_response::Event;

        let request = request.into_inner();
        if request.image == "private" {
            let shown = request.credentials.unwrap_or_default();
            let shown = (shown.username, shown.password, shown.token);
            let shown = (shown.0.as_str(), shown.1.as_str(), shown.2.as_str());
            if !matches!(shown, ("me", "open sesame", "") | ("", "", "sesame")) {
                return Err(refused(Code::PermissionDenied, "REGISTRY_DENIED", "no"));
            }
        }
        let image = v1::Image {
            name: request.image,
            ..Default::default()
        };
        let layer = v1::LayerProgress {
            digest: "sha256:ab".to_owned(),
            current_bytes: 1,
            total_bytes: 2,
        };
        let events = [
            Event::Progress(v1::PullProgress {
                layers: vec![layer],
            }),
            Event::Image(image),
        ];
        let events = events.map(|it| Ok(v1::PullImageResponse { event: Some(it) }));
        Ok(Response::new(stream::iter(events).boxed()))
    }

    type ExportImageStream = Events<v1::ExportImageResponse>;

    /// An archive of 3 MB; the one of `torn` breaks off.
    async fn export_image(
        &self,
        request: Request<v1::ExportImageRequest>,
    ) -> Answer<Self::ExportImageStream> {
        let torn = request.into_inner().image == "torn";
        let chunk = |it: u8| {
            Ok(v1::ExportImageResponse {
                chunk: vec![it; 1_000_000],
            })
        };
        let last = if torn {
            Err(refused(
                Code::FailedPrecondition,
                "IMAGE_INCOMPLETE",
                "it is not complete",
            ))
        } else {
            chunk(3)
        };
        Ok(Response::new(
            stream::iter([chunk(1), chunk(2), last]).boxed(),
        ))
    }

    async fn remove_image(
        &self,
        _: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        Err(refused(
            Code::FailedPrecondition,
            "IMAGE_IN_USE",
            "it is in use",
        ))
    }

    async fn pin_image(
        &self,
        request: Request<v1::PinImageRequest>,
    ) -> Answer<v1::PinImageResponse> {
        let request = request.into_inner();
        let ends = |it: prost_types::Duration| prost_types::Timestamp {
            seconds: it.seconds,
            nanos: 0,
        };
        Ok(Response::new(v1::PinImageResponse {
            image: request.image,
            expires_at: request.time_to_live.map(ends),
        }))
    }

    async fn unpin_image(
        &self,
        request: Request<v1::UnpinImageRequest>,
    ) -> Answer<v1::UnpinImageResponse> {
        let existed = request.into_inner().image == "nginx";
        Ok(Response::new(v1::UnpinImageResponse { existed }))
    }
}

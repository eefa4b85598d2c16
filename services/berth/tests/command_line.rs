//! The `berth` program against a scripted manager: what it sends, what it prints, how it ends.
//! It does not know what a real manager decides.

use std::{
    collections::BTreeSet,
    pin::Pin,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_api::v1::{
    self, image_service_server as images, import_image_request::Part, node_service_server as node,
    sandbox_service_server as sandboxes, watch_response::Event,
};
use futures::{Stream, StreamExt as _, stream};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::UnixListener,
    process::Command,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

const SANDBOXES: u32 = 250;
/// A program that has not ended by then never will.
const PATIENCE: Duration = Duration::from_secs(20);

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers as it is told by the ids and remembers what it was asked.
#[derive(Clone, Default)]
struct ScriptedManager {
    created: Arc<Mutex<Vec<v1::CreateRequest>>>,
    watched_from: Arc<Mutex<Vec<u64>>>,
    logs_asked: Arc<Mutex<Vec<v1::StreamLogsRequest>>>,
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

    type ExecStream = Events<v1::ExecResponse>;

    /// Says what it was asked to run and all input, and ends with the number that the program is called.
    async fn exec(&self, request: Request<Streaming<v1::ExecRequest>>) -> Answer<Self::ExecStream> {
        use v1::{exec_request::Action, exec_response::Event};
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|it| it.action);
        let Some(Action::Start(start)) = first else {
            return Err(Status::invalid_argument("no start"));
        };
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

        let image = v1::Image {
            name: request.into_inner().image,
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
}

/// A scripted manager that listens in a folder of its own.
struct Node {
    folder: tempfile::TempDir,
    manager: ScriptedManager,
}

impl Node {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("manager.sock")).expect("a socket");
        let manager = ScriptedManager::default();
        let server = tonic::transport::Server::builder()
            .add_service(sandboxes::SandboxServiceServer::new(manager.clone()))
            .add_service(node::NodeServiceServer::new(manager.clone()))
            .add_service(images::ImageServiceServer::new(manager.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(server);
        Self { folder, manager }
    }

    fn berth(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        let address = format!("unix:{}", self.folder.path().join("manager.sock").display());
        command
            .env("BERTH_ADDRESS", address)
            .args(args)
            .kill_on_drop(true);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    async fn run(&self, args: &[&str]) -> Ended {
        ended(self.berth(args).output()).await
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).expect("room for a file");
        path.display().to_string()
    }
}

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).expect(&self.stdout)
    }
}

async fn ended(output: impl Future<Output = std::io::Result<Output>>) -> Ended {
    let output = tokio::time::timeout(PATIENCE, output)
        .await
        .expect("it ends")
        .expect("it starts");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

#[tokio::test]
async fn run_prints_the_id_and_the_address() {
    let node = Node::start();
    let run = node
        .run(&[
            "run", "--id", "web", "--port", "80", "nginx", "--", "-g", "x",
        ])
        .await;
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (Some(0), "web 10.87.0.2\n")
    );
    assert_eq!(run.stderr, "waiting for web\n", "no bars in a pipe");
    let created = node.manager.created.lock().expect("no holder panics");
    let container = &created[0].spec.as_ref().expect("a spec").containers[0];
    assert_eq!(
        (container.args.as_slice(), container.ports[0].port),
        (["-g", "x"].map(String::from).as_slice(), 80)
    );
}

#[tokio::test]
async fn create_reads_a_file_and_lets_the_argument_win() {
    let node = Node::start();
    let yaml = node.file(
        "web.yaml",
        b"id: web\nwait: WAIT_FOR_RUNNING\nspec: {version: a}\n",
    );
    let create = node
        .run(&["create", "-f", &yaml, "--wait", "accepted", "-o", "json"])
        .await;
    assert_eq!(
        (create.code, create.json()["id"].as_str()),
        (Some(0), Some("web"))
    );
    let created = node.manager.created.lock().expect("no holder panics");
    assert_eq!(created[0].wait(), v1::WaitFor::Accepted);
}

#[tokio::test]
async fn create_refuses_a_file_with_a_field_that_is_not_in_the_contract() {
    let node = Node::start();
    let json = node.file("web.json", br#"{"id": "web", "spce": {}}"#);
    let create = node.run(&["create", "-f", &json]).await;
    assert_eq!(create.code, Some(2));
    assert!(create.stderr.contains("spce"), "{}", create.stderr);
    assert!(
        node.manager
            .created
            .lock()
            .expect("no holder panics")
            .is_empty()
    );
}

#[tokio::test]
async fn create_reads_standard_input() {
    use tokio::io::AsyncWriteExt as _;

    let node = Node::start();
    let mut child = node
        .berth(&["create", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("berth");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(b"id: web").await.expect("it reads");
    drop(stdin);
    let create = ended(child.wait_with_output()).await;
    assert_eq!(
        (create.code, create.stdout.as_str()),
        (Some(0), "web 10.87.0.2\n")
    );
}

#[tokio::test]
async fn exec_carries_input_and_output_and_ends_with_the_code_of_the_program() {
    use tokio::io::AsyncWriteExt as _;

    let node = Node::start();
    let mut child = node
        .berth(&["exec", "-i", "-t", "web", "--", "7", "-x"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("berth");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(b"typed\n").await.expect("it reads");
    drop(stdin);
    let exec = ended(child.wait_with_output()).await;
    assert_eq!(
        (exec.code, exec.stdout.as_str()),
        (Some(7), "web 7 -x\ntyped\n")
    );
    assert!(exec.stderr.contains("not well\n"), "{}", exec.stderr);
    let no_terminal = "Unable to use a TTY - input is not a terminal or the right kind of file\n";
    assert!(exec.stderr.contains(no_terminal), "{}", exec.stderr);
}

#[tokio::test]
async fn exec_of_a_program_that_is_not_there_ends_with_127() {
    let exec = Node::start().run(&["exec", "web", "--", "nope"]).await;
    assert_eq!((exec.code, exec.stdout.as_str()), (Some(127), ""));
    let told = "berth: the program was not started\nhint: check the program";
    assert!(exec.stderr.contains(told), "{}", exec.stderr);
}

#[tokio::test]
async fn a_refused_field_is_named_and_ends_with_2() {
    let run = Node::start().run(&["run", "--id", "Bad", "nginx"]).await;
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""));
    assert!(
        run.stderr.contains("\n  id: has upper case\nhint: "),
        "{}",
        run.stderr
    );
}

#[tokio::test]
async fn a_missing_sandbox_ends_with_1_and_a_hint() {
    let get = Node::start().run(&["get", "none"]).await;
    assert_eq!(get.code, Some(1));
    assert_eq!(
        get.stderr,
        "berth: no sandbox `none`\nhint: see all ids with `berth ls --all`\n"
    );
}

#[tokio::test]
async fn ls_walks_all_pages() {
    let list = Node::start().run(&["ls", "-o", "json"]).await.json();
    let sandboxes = list["sandboxes"].as_array().expect("a list");
    let ids: BTreeSet<_> = sandboxes
        .iter()
        .filter_map(|it| it["id"].as_str())
        .collect();
    assert_eq!(
        (sandboxes.len(), ids.len()),
        (SANDBOXES as usize, SANDBOXES as usize)
    );
}

#[tokio::test]
async fn get_prints_the_sandbox_itself_in_each_format() {
    let node = Node::start();
    let json = node.run(&["get", "web", "-o", "json"]).await.json();
    assert_eq!(json["addresses"][0]["address"], "10.87.0.2/16");
    assert_eq!(json["status"], "SANDBOX_STATUS_RUNNING");
    let yaml = node.run(&["-o", "yaml", "get", "web"]).await.stdout;
    assert!(yaml.starts_with("id: web\n"), "{yaml}");
    let table = node.run(&["get", "web"]).await.stdout;
    assert!(
        table.contains("RUNNING") && table.contains("10.87.0.2/16 on berth0"),
        "{table}"
    );
}

#[tokio::test]
async fn rm_removes_what_it_can_and_tells_the_rest() {
    let remove = Node::start().run(&["rm", "web", "stuck", "gone"]).await;
    assert_eq!(remove.stdout, "web removed\ngone was not there\n");
    assert_eq!(remove.code, Some(1));
    assert!(
        remove.stderr.starts_with("berth: no containerd\nhint: "),
        "{}",
        remove.stderr
    );
}

#[tokio::test]
async fn stats_prints_zeros_too() {
    let stats = Node::start()
        .run(&["stats", "web", "-o", "json"])
        .await
        .json();
    assert_eq!(
        (&stats["id"], &stats["total"]["pids"]),
        (&"web".into(), &"2".into())
    );
    assert_eq!(stats["total"]["totalCpuTime"], "0");
}

#[tokio::test]
async fn an_audit_that_is_not_clean_ends_with_1_and_is_printed() {
    let audit = Node::start().run(&["audit", "-o", "json"]).await;
    assert_eq!(
        (audit.code, &audit.json()["clean"]),
        (Some(1), &false.into())
    );
    assert_eq!(
        audit.json()["objects"][0]["verdict"],
        "AUDIT_VERDICT_ORPHAN"
    );
}

#[tokio::test]
async fn an_audit_that_fixes_all_ends_with_0_and_says_what_it_did() {
    let node = Node::start();
    for (arguments, settle) in [
        (&["audit", "--fix", "-o", "json"][..], "after None"),
        (
            &["audit", "--fix", "--settle", "2s", "-o", "json"],
            "after Some(2)",
        ),
    ] {
        let audit = node.run(arguments).await;
        let object = audit.json()["objects"][0].clone();
        assert_eq!((audit.code, &object["name"]), (Some(0), &settle.into()));
        assert_eq!(object["action"], "AUDIT_ACTION_REMOVED");
    }
    let usage = node.run(&["audit", "--settle", "2s"]).await;
    assert_eq!(
        usage.code,
        Some(2),
        "a look alone has nothing to settle for"
    );
}

#[tokio::test]
async fn version_does_without_a_manager() {
    let node = Node::start();
    assert_eq!(
        node.run(&["version", "-o", "json"]).await.json()["server"],
        "9.9.9"
    );
    let alone = node
        .run(&["version", "-o", "json", "--address", "/nowhere"])
        .await;
    assert_eq!(
        (alone.code, &alone.json()["server"]),
        (Some(0), &serde_json::Value::Null)
    );
}

#[tokio::test]
async fn a_manager_that_is_not_there_is_named() {
    let list = Node::start()
        .run(&["ls", "--address", "unix:/nowhere"])
        .await;
    assert_eq!(list.code, Some(1));
    assert!(
        list.stderr
            .contains("cannot reach the manager at unix:/nowhere"),
        "{}",
        list.stderr
    );
    assert!(list.stderr.contains("BERTH_ADDRESS"), "{}", list.stderr);
}

#[tokio::test]
async fn a_deadline_ends_the_wait() {
    let run = Node::start()
        .run(&["run", "--id", "slow", "--timeout", "100ms", "nginx"])
        .await;
    assert_eq!(run.code, Some(1));
    assert!(
        run.stderr.contains("berth: no answer within --timeout"),
        "{}",
        run.stderr
    );
}

#[tokio::test]
async fn an_archive_is_imported_whole() {
    let node = Node::start();
    let archive = node.file("a.tar", &vec![7; 3_000_001]);
    let import = node
        .run(&["images", "import", &archive, "--name", "n", "-o", "json"])
        .await;
    let image = &import.json()["images"][0];
    assert_eq!(
        (&image["name"], &image["sizeBytes"]),
        (&"n".into(), &"3000001".into())
    );
}

#[tokio::test]
async fn a_refused_archive_is_told_in_the_words_of_the_manager() {
    let node = Node::start();
    let archive = node.file("a.tar", &vec![7; 8_000_000]);
    let import = node
        .run(&["images", "import", &archive, "--name", "unwanted"])
        .await;
    assert_eq!(import.code, Some(2));
    assert!(
        import.stderr.contains("berth: no archive\nhint: "),
        "{}",
        import.stderr
    );
}

#[tokio::test]
async fn a_pull_ends_with_the_image() {
    let pull = Node::start()
        .run(&["images", "pull", "nginx", "-o", "json"])
        .await;
    assert_eq!(
        (pull.json()["name"].as_str(), pull.stderr.as_str()),
        (Some("nginx"), "pulling nginx\n")
    );
}

#[tokio::test]
async fn events_end_when_all_that_stands_was_told() {
    let events = Node::start().run(&["events", "-o", "json"]).await;
    assert_eq!((events.code, events.stdout.lines().count()), (Some(0), 2));
    assert!(
        events
            .stdout
            .lines()
            .all(|it| serde_json::from_str::<serde_json::Value>(it).is_ok())
    );
}

#[tokio::test]
async fn a_refused_revision_of_the_caller_is_a_failure() {
    let events = Node::start().run(&["events", "-f", "--from", "77"]).await;
    assert_eq!(events.code, Some(1));
    assert!(events.stderr.contains("--from"), "{}", events.stderr);
}

#[tokio::test]
async fn followed_events_go_on_after_a_gap_until_the_interrupt() {
    let node = Node::start();
    let mut child = node.berth(&["events", "-f"]).spawn().expect("berth");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    for expected in ["1 RUNNING", "3 RUNNING", "4 removed"] {
        let line = tokio::time::timeout(PATIENCE, lines.next_line())
            .await
            .expect("in time");
        let line = line.expect("text").expect("a line");
        assert!(line.trim_start().starts_with(expected), "{line}");
    }
    let id = child.id().expect("it runs").to_string();
    let kill = Command::new("kill")
        .args(["-INT", &id])
        .status()
        .await
        .expect("kill");
    assert!(kill.success());
    let events = ended(child.wait_with_output()).await;
    assert_eq!(events.code, Some(130));
    assert!(
        events.stderr.contains("REVISION_UNKNOWN"),
        "{}",
        events.stderr
    );
    assert_eq!(
        *node.manager.watched_from.lock().expect("no holder panics"),
        [0, 3]
    );
}

#[tokio::test]
async fn an_interrupt_does_not_wait_for_standard_input() {
    let node = Node::start();
    let mut child = node
        .berth(&["images", "import", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("berth");
    // `wait` would close it.
    let _stdin = child.stdin.take();
    // The line on standard error is written after the signal's handler is in place.
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line())
        .await
        .expect("in time");
    assert_eq!(line.expect("text").as_deref(), Some("importing -"));
    let id = child.id().expect("it runs").to_string();
    let kill = Command::new("kill")
        .args(["-INT", &id])
        .status()
        .await
        .expect("kill");
    assert!(kill.success());
    let status = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .expect("it ends");
    assert_eq!(status.expect("a status").code(), Some(130));
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_failure() {
    let node = Node::start();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let child = node.berth(&["ls"]).stdout(writer).spawn().expect("berth");
    let list = ended(child.wait_with_output()).await;
    assert_eq!((list.code, list.stderr.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn logs_ask_for_what_is_wanted_and_print_what_was_written() {
    let node = Node::start();
    let asked = [
        "logs",
        "web",
        "-c",
        "app",
        "--stream",
        "stderr",
        "--tail",
        "5",
        "--since",
        "2026-05-01T12:00:00Z",
    ];
    let logs = node.run(&asked).await;
    assert_eq!(
        (logs.code, logs.stdout.as_str(), logs.stderr.as_str()),
        (Some(0), "one\n", "")
    );
    let request = node.manager.logs_asked.lock().expect("no holder panics")[0].clone();
    let since = prost_types::Timestamp {
        seconds: 1_777_636_800,
        nanos: 0,
    };
    assert_eq!(
        request,
        v1::StreamLogsRequest {
            id: "web".to_owned(),
            containers: vec!["app".to_owned()],
            streams: vec![v1::LogStream::Stderr.into()],
            tail_lines: Some(5),
            since: Some(since),
            ..Default::default()
        }
    );
    let json = node.run(&["logs", "web", "-o", "json"]).await;
    let line = &json.json()["line"];
    assert_eq!(line["stream"], "LOG_STREAM_STDOUT");
    assert_eq!(line["text"], "b25l");
}

#[tokio::test]
async fn a_follower_goes_on_by_its_cursor_when_the_manager_is_back() {
    let node = Node::start();
    let logs = node.run(&["logs", "-f", "web", "--tail", "2"]).await;
    assert_eq!(logs.code, Some(0), "{}", logs.stderr);
    let lines = ["one", "two", "three", "four"].map(|it| format!("app | {it}\n"));
    assert_eq!(logs.stdout, lines.concat());
    let away = "the manager is away";
    assert_eq!(logs.stderr.matches(away).count(), 2, "{}", logs.stderr);
    let asked = node.manager.logs_asked.lock().expect("no holder panics");
    let asked: Vec<_> = asked
        .iter()
        .map(|it| (it.cursor.as_str(), it.tail_lines, it.follow))
        .collect();
    let expected = [("", Some(2), true), ("1", None, true), ("2", None, true)];
    assert_eq!(asked, expected);
}

#[tokio::test]
async fn a_follower_ends_when_its_sandbox_is_gone_and_fails_when_it_never_was_there() {
    let node = Node::start();
    let gone = node.run(&["logs", "-f", "gone", "-c", "app"]).await;
    assert_eq!((gone.code, gone.stdout.as_str()), (Some(0), "one\ntwo\n"));
    let none = node.run(&["logs", "-f", "none"]).await;
    assert_eq!(none.code, Some(1));
    assert!(none.stderr.contains("none"), "{}", none.stderr);
    let away = node.run(&["logs", "-f", "away"]).await;
    assert_eq!(away.code, Some(1), "it has shown nothing yet");
}

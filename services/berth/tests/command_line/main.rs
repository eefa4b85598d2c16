//! The `berth` program against a scripted manager: what it sends, what it prints, how it ends.
//! It does not know what a real manager decides.

mod health;
mod manager;

use std::{
    collections::BTreeSet,
    process::{Output, Stdio},
    time::Duration,
};

use berth_api::v1::{
    self, image_service_server as images, node_service_server as node,
    sandbox_service_server as sandboxes,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::UnixListener,
    process::Command,
};
use tokio_stream::wrappers::UnixListenerStream;

use manager::{CHATTER_BYTES, CHATTER_WORDS, SANDBOXES, ScriptedManager};

/// A program that has not ended by then never will.
const PATIENCE: Duration = Duration::from_secs(20);

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
async fn attach_prints_what_is_said_and_ends_as_the_container_does() {
    let attach = Node::start().run(&["attach", "web"]).await;
    assert_eq!(
        (attach.code, attach.stdout.as_str()),
        (Some(5), "said before\n")
    );
}

#[tokio::test]
async fn an_interrupt_does_not_wait_for_a_container_to_be_attached_to() {
    let node = Node::start();
    let child = { node.berth(&["attach", "slow"]) }.spawn().expect("berth");
    node.manager.chatted.notified().await;
    let pid = child.id().expect("it runs").to_string();
    let interrupt = Command::new("kill").args(["-INT", &pid]).status().await;
    assert!(interrupt.expect("kill").success());
    assert_eq!(ended(child.wait_with_output()).await.code, Some(130));
}

#[tokio::test]
async fn many_small_words_wait_for_who_reads_them_late() {
    let node = Node::start();
    let exec = node.berth(&["exec", "web", "--", "chatter"]);
    let child = { exec }.spawn().expect("berth");
    node.manager.chatted.notified().await;
    // Nobody reads, until no more of it goes anywhere.
    let quiet = Duration::from_millis(300);
    let more = async || tokio::time::timeout(quiet, node.manager.chatted.notified()).await;
    while more().await.is_ok() {}
    let exec = ended(child.wait_with_output()).await;
    let said = exec.stdout.len();
    assert_eq!(
        (exec.code, said, exec.stderr.as_str()),
        (Some(0), CHATTER_WORDS * CHATTER_BYTES, "")
    );
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
async fn a_pin_says_when_it_ends_and_an_unpin_whether_there_was_one() {
    let node = Node::start();
    let pinned = node.run(&["images", "pin", "--for", "24h", "nginx"]).await;
    assert_eq!(pinned.stdout, "nginx pinned until 1970-01-02T00:00:00Z\n");
    let pinned = node.run(&["images", "pin", "nginx"]).await;
    assert_eq!(pinned.stdout, "nginx pinned\n");
    let unpinned = node.run(&["images", "unpin", "nginx", "-o", "json"]).await;
    assert_eq!(unpinned.json()["existed"].as_bool(), Some(true));
    let unpinned = node.run(&["images", "unpin", "redis"]).await;
    assert_eq!(unpinned.stdout, "redis was not pinned\n");
}

#[tokio::test]
async fn credentials_come_from_standard_input_and_from_nowhere_else() {
    use tokio::io::AsyncWriteExt as _;

    let node = Node::start();
    for (flags, secret, expected) in [
        (
            &["-u", "me", "--password-stdin"][..],
            "open sesame\n",
            Some(0),
        ),
        (&["-u", "me", "--password-stdin"], "rice", Some(1)),
        (&["--token-stdin"], "sesame", Some(0)),
        (&[], "", Some(1)),
        (&["-u", "me"], "", Some(2)),
        (&["--password-stdin"], "", Some(2)),
        (
            &["-u", "me", "--password-stdin", "--token-stdin"],
            "",
            Some(2),
        ),
    ] {
        let arguments = [&["images", "pull", "private"], flags].concat();
        let mut child = node
            .berth(&arguments)
            .stdin(Stdio::piped())
            .spawn()
            .expect("berth");
        let mut stdin = child.stdin.take().expect("it is piped");
        // One that is used wrongly does not read.
        let _ = stdin.write_all(secret.as_bytes()).await;
        drop(stdin);
        let pull = ended(child.wait_with_output()).await;
        assert_eq!(pull.code, expected, "{flags:?}: {}", pull.stderr);
        let said = format!("{}{}", pull.stdout, pull.stderr);
        assert!(!said.contains("sesame") && !said.contains("rice"), "{said}");
    }
}

#[tokio::test]
async fn an_export_is_a_file_when_it_is_whole_and_nothing_before() {
    let node = Node::start();
    let file = node.file("out.tar", b"what was there");
    let torn = node.run(&["images", "export", "torn", "-f", &file]).await;
    assert_eq!(torn.code, Some(1), "{}", torn.stderr);
    assert!(
        torn.stderr.contains("berth: it is not complete"),
        "{}",
        torn.stderr
    );
    let left = || {
        std::fs::read_dir(node.folder.path())
            .expect("a folder")
            .count()
    };
    let before = left();
    assert_eq!(std::fs::read(&file).expect("a file"), b"what was there");

    let export = node
        .run(&["images", "export", "whole", "-f", &file, "-o", "json"])
        .await;
    assert_eq!(export.json()["bytes"], 3_000_000, "{}", export.stderr);
    let bytes = std::fs::read(&file).expect("a file");
    assert_eq!((bytes.len(), bytes[0], bytes[2_999_999]), (3_000_000, 1, 3));
    assert_eq!(left(), before, "no part of it is left");
    let piped = node.run(&["images", "export", "whole"]).await;
    assert_eq!((piped.code, piped.stdout.len()), (Some(0), 3_000_000));
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

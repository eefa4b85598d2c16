//! Callers that attach to a container's own program, on a real node.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use berth_api::v1::{
    self, AttachStarted, attach_request::Action, attach_response::Event,
    sandbox_service_client::SandboxServiceClient,
};
use berth_e2e::{TestNode, exec, node::eventually, specs};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tonic_types::StatusExt as _;

const LIMIT: Duration = Duration::from_secs(20);

struct Attached {
    requests: mpsc::Sender<v1::AttachRequest>,
    answers: Streaming<v1::AttachResponse>,
    started: AttachStarted,
    said: String,
}

impl Attached {
    async fn to(node: &TestNode, id: &str) -> Result<Self, Status> {
        let start = v1::AttachStart {
            id: id.into(),
            stdin: true,
            ..v1::AttachStart::default()
        };
        Self::start(node, start).await
    }

    async fn start(node: &TestNode, start: v1::AttachStart) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(4);
        let first = v1::AttachRequest {
            action: Some(Action::Start(start)),
        };
        requests.try_send(first).expect("the channel is empty");
        // A connection of its own: one that reads nothing fills what the calls of a connection share.
        let channel = berth_api::connect(node.variable("BERTH_ADDRESS")).await;
        let channel = channel.map_err(|it| Status::unavailable(it.to_string()))?;
        let mut client = SandboxServiceClient::new(channel);
        let call = client.attach(ReceiverStream::new(receiver)).await?;
        let mut answers = call.into_inner();
        let first = answers.message().await?.and_then(|it| it.event);
        let Some(Event::Started(started)) = first else {
            return Err(Status::internal(format!("it begins with {first:?}")));
        };
        Ok(Self {
            requests,
            answers,
            started,
            said: String::new(),
        })
    }

    async fn send(&self, action: Action) -> anyhow::Result<()> {
        let message = v1::AttachRequest {
            action: Some(action),
        };
        Ok(self.requests.send(message).await?)
    }

    async fn types(&self, text: &str) -> anyhow::Result<()> {
        self.send(Action::Stdin(text.as_bytes().to_vec())).await
    }

    /// Waits until this was said, behind what was waited for before.
    async fn reads(&mut self, text: &str) -> anyhow::Result<()> {
        let reading = async {
            loop {
                if let Some(at) = self.said.find(text) {
                    self.said.drain(..at + text.len());
                    return Ok(());
                }
                let answer = self.answers.message().await?.context("it ended")?;
                if let Some(Event::Stdout(bytes)) = answer.event {
                    self.said += &String::from_utf8_lossy(&bytes);
                }
            }
        };
        let read = tokio::time::timeout(LIMIT, reading).await;
        read.unwrap_or_else(|_| bail!("{text:?} was not said, but {:?}", self.said))
    }

    async fn end(&mut self) -> anyhow::Result<v1::AttachEnded> {
        loop {
            let answer = self.answers.message().await?.context("no end was told")?;
            if let Some(Event::Ended(ended)) = answer.event {
                return Ok(ended);
            }
        }
    }
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info();
    info.map_or(String::new(), |it| it.reason.clone())
}

/// A shell on a terminal, as a person has it.
fn terminal() -> v1::SandboxSpec {
    specs::spec([v1::Container {
        tty: true,
        stdin: true,
        ..specs::shell("app", "exec env PS1='ready> ' sh", &[])
    }])
}

#[tokio::test]
async fn a_shell_answers_who_is_attached_over_callers_that_leave_and_managers_that_die()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", terminal()).await?;
    let mut first = Attached::to(&node, "web").await?;
    let AttachStarted { tty, stdin } = first.started;
    ensure!(tty && stdin, "{:?}", first.started);
    first.reads("ready> ").await?;
    first.types("echo sum $((40+2))\n").await?;
    first.reads("echo sum $((40+2))").await?;
    first.reads("sum 42\r\n").await?;
    first.reads("ready> ").await?;
    let size = v1::TerminalSize {
        columns: 44,
        rows: 11,
    };
    first.send(Action::Resize(size)).await?;
    first.types("busybox stty size\n").await?;
    first.reads("11 44\r\n").await?;
    drop(first);

    node.kill_manager()?;
    node.up().await?;
    let mut second = Attached::to(&node, "web").await?;
    second.reads("sum 42\r\n").await?;
    second.reads("11 44\r\n").await?;
    second.types("echo again $((20+3))\n").await?;
    second.reads("again 23\r\n").await?;
    let mut beside = Attached::to(&node, "web").await?;
    beside.types("exit 7\n").await?;
    for attached in [&mut second, &mut beside] {
        let ended = attached.end().await?;
        ensure!((ended.exit_code, ended.signal) == (7, 0), "{ended:?}");
    }
    node.delete("web").await?;
    node.assert_clean().await?;
    let left = files(&node.home().join("run"), "stdin")?;
    ensure!(left.is_empty(), "pipes of input are left: {left:?}");
    node.finish()
}

#[tokio::test]
async fn who_is_attached_learns_how_a_container_ended_while_containerd_was_away()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", terminal()).await?;
    let mut attached = Attached::to(&node, "web").await?;
    attached.reads("ready> ").await?;
    node.end_containerd().await?;
    // Its input is a pipe of the shim's, which lives.
    attached.types("echo last $((40+2)); exit 7\n").await?;
    attached.reads("last 42\r\n").await?;
    node.up().await?;
    let ended = attached.end().await?;
    ensure!((ended.exit_code, ended.signal) == (7, 0), "{ended:?}");
    node.delete("web").await?;
    node.assert_clean().await?;
    node.finish()
}

/// The paths below a folder in which this name is.
fn files(folder: &Path, name: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![];
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == name {
            found.push(entry.path());
        }
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path(), name)?);
        }
    }
    Ok(found)
}

#[tokio::test]
async fn a_container_that_asked_for_no_input_gets_none() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", specs::idle()).await?;
    let mut attached = Attached::to(&node, "web").await?;
    ensure!(
        !attached.started.tty && !attached.started.stdin,
        "{:?}",
        attached.started
    );
    attached.types("for nobody\n").await?;
    let (stopped, ended) = tokio::join!(node.stop("web"), attached.end());
    stopped?;
    let ended = ended?;
    ensure!((ended.exit_code, ended.signal) == (137, 9), "{ended:?}");
    node.delete("web").await?;
    node.finish()
}

/// A container that says so many numbered lines once it is told to, and then that it has.
fn speaker(lines: u32) -> v1::SandboxSpec {
    let wait = "while ! test -e /tmp/go; do sleep 0.05; done";
    let line = format!("{wait}; seq 1 {lines}; touch /tmp/said; exec sleep 3600");
    specs::spec([specs::shell("app", &line, &[])])
}

const LINES: u32 = 300_000;

/// Reads all lines of a speaker, each of which comes once.
async fn all_lines(attached: &mut Attached) -> anyhow::Result<()> {
    let reading = async {
        let (mut next, mut rest) = (1, vec![]);
        while next <= LINES {
            let answer = attached.answers.message().await?.context("it ended")?;
            let Some(Event::Stdout(bytes)) = answer.event else {
                continue;
            };
            rest.extend(bytes);
            while let Some(end) = rest.iter().position(|it| *it == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                ensure!(line == format!("{next}\n").as_bytes(), "{next}: {line:?}");
                next += 1;
            }
        }
        Ok(())
    };
    tokio::time::timeout(LIMIT, reading).await?
}

#[tokio::test]
async fn who_reads_nothing_slows_neither_the_container_nor_others_and_misses_nothing()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", speaker(LINES)).await?;
    let mut slow = Attached::to(&node, "web").await?;
    let mut readers = vec![];
    for _ in 0..3 {
        readers.push(Attached::to(&node, "web").await?);
    }
    exec::run(&node, exec::shell("web", "touch /tmp/go")).await?;
    futures::future::try_join_all(readers.iter_mut().map(all_lines)).await?;
    let said = exec::run(&node, exec::shell("web", "test -e /tmp/said")).await?;
    ensure!(said.ended.exit_code == 0, "the container waits");
    all_lines(&mut slow).await?;

    // One that comes later gets the last of it.
    let mut late = Attached::to(&node, "web").await?;
    late.reads(&format!("{LINES}\n")).await?;
    node.delete("web").await?;
    node.assert_clean().await?;
    node.finish()
}

#[tokio::test]
async fn who_reads_nothing_holds_up_neither_a_stop_of_the_manager_nor_a_delete()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", speaker(LINES)).await?;
    let said = async || {
        let said = exec::run(&node, exec::shell("web", "test -e /tmp/said")).await;
        said.is_ok_and(|it| it.ended.exit_code == 0)
    };
    let mut slow = Attached::to(&node, "web").await?;
    exec::run(&node, exec::shell("web", "touch /tmp/go")).await?;
    eventually("all is said", LIMIT, said).await?;
    node.signal_manager("-TERM", LIMIT)?;
    let ended = tokio::time::timeout(LIMIT, slow.end()).await?;
    ensure!(ended.is_err(), "the container has not ended: {ended:?}");

    node.up().await?;
    let slow = Attached::to(&node, "web").await?;
    node.delete("web").await?;
    drop(slow);
    node.assert_clean().await?;
    node.finish()
}

#[tokio::test]
async fn what_cannot_be_attached_to_is_refused_with_its_reason() -> anyhow::Result<()> {
    let node = TestNode::start_with("[exec]\nper_sandbox = 1\n", &[]).await?;
    node.create("web", specs::idle()).await?;
    let refused = async |start: v1::AttachStart| {
        let refused = Attached::start(&node, start).await.err();
        refused.map(|it| reason(&it)).context("it was attached")
    };
    let web = || v1::AttachStart {
        id: "web".into(),
        ..v1::AttachStart::default()
    };
    let mut of = web();
    of.id = "nobody".into();
    ensure!(refused(of).await? == "SANDBOX_NOT_FOUND");
    let mut of = web();
    of.container = "db".into();
    ensure!(refused(of).await? == "CONTAINER_NOT_FOUND");
    let mut of = web();
    of.expected_generation = 7;
    ensure!(refused(of).await? == "GENERATION_CONFLICT");
    let mut of = web();
    of.terminal_size = Some(v1::TerminalSize::default());
    ensure!(refused(of).await? == "INVALID_FIELD");

    let first = Attached::to(&node, "web").await?;
    ensure!(refused(web()).await? == "EXEC_LIMIT");
    drop(first);
    let again = async || Attached::to(&node, "web").await.is_ok();
    eventually("its place is free again", LIMIT, again).await?;

    let mut deaf = specs::idle();
    deaf.containers[0].stdin = true;
    let status = node.create("deaf", deaf).await.err().context("it runs")?;
    ensure!(reason(&status) == "INVALID_FIELD", "{status:?}");
    node.stop("web").await?;
    ensure!(refused(web()).await? == "SANDBOX_ENDING");
    node.delete("web").await?;
    node.assert_clean().await?;
    node.finish()
}

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
use berth_e2e::{TestNode, specs};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const LIMIT: Duration = Duration::from_secs(20);

struct Attached {
    requests: mpsc::Sender<v1::AttachRequest>,
    answers: Streaming<v1::AttachResponse>,
    started: AttachStarted,
    said: String,
}

impl Attached {
    async fn to(node: &TestNode, id: &str) -> anyhow::Result<Self> {
        let (requests, receiver) = mpsc::channel(4);
        let start = v1::AttachStart {
            id: id.into(),
            stdin: true,
            ..v1::AttachStart::default()
        };
        let message = |action| v1::AttachRequest {
            action: Some(action),
        };
        requests.send(message(Action::Start(start))).await?;
        let mut client = SandboxServiceClient::new(node.channel.clone());
        let call = client.attach(ReceiverStream::new(receiver)).await?;
        let mut answers = call.into_inner();
        let first = answers.message().await?.and_then(|it| it.event);
        let Some(Event::Started(started)) = first else {
            bail!("it begins with {first:?}");
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

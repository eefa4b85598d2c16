//! A caller of Exec, for tests: sends what it is told and keeps what comes back. And what is left of programs.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail};
use berth_api::v1::{self, exec_request::Action, exec_response::Event};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{TestNode, node::succeed};

/// A program that runs.
#[derive(Debug)]
pub struct Exec {
    pub exec_id: String,
    /// Closing it is the end of input.
    requests: Option<mpsc::Sender<v1::ExecRequest>>,
    answers: Streaming<v1::ExecResponse>,
    pub taken: u64,
}

/// What a program said, and how it ended.
#[derive(Debug, Default)]
pub struct Said {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub ended: v1::ExecEnded,
}

impl Said {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A shell line in the container of a sandbox.
pub fn shell(id: &str, line: &str) -> v1::ExecStart {
    v1::ExecStart {
        id: id.into(),
        argv: ["/bin/sh", "-c", line].map(str::to_owned).into(),
        ..v1::ExecStart::default()
    }
}

impl Exec {
    pub async fn start(node: &TestNode, start: v1::ExecStart) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(4);
        let first = v1::ExecRequest {
            action: Some(Action::Start(start)),
        };
        requests.try_send(first).expect("the channel is empty");
        let call = node.sandboxes().exec(ReceiverStream::new(receiver)).await?;
        let mut answers = call.into_inner();
        let first = answers.message().await?.and_then(|it| it.event);
        let Some(Event::Started(v1::ExecStarted { exec_id })) = first else {
            return Err(Status::internal(format!("it begins with {first:?}")));
        };
        Ok(Self {
            exec_id,
            requests: Some(requests),
            answers,
            taken: 0,
        })
    }

    pub async fn send(&self, action: Action) -> anyhow::Result<()> {
        let requests = self.requests.as_ref().context("input has ended")?;
        let message = v1::ExecRequest {
            action: Some(action),
        };
        requests.send(message).await.context("nobody takes input")
    }

    pub fn sender(&self) -> Option<mpsc::Sender<v1::ExecRequest>> {
        self.requests.clone()
    }

    pub fn end_input(&mut self) {
        self.requests = None;
    }

    pub async fn next(&mut self) -> anyhow::Result<Event> {
        let answer = self.answers.message().await?.context("no end was told")?;
        answer.event.context("an empty message")
    }

    /// Reads standard output until it has this in it.
    pub async fn until(&mut self, text: &str) -> anyhow::Result<String> {
        let mut all = String::new();
        while !all.contains(text) {
            match self.next().await? {
                Event::Stdout(bytes) => all.push_str(&String::from_utf8_lossy(&bytes)),
                Event::Ended(ended) => bail!("no {text:?} in {all:?}: {ended:?}"),
                Event::Started(_) | Event::Stderr(_) | Event::StdinTaken(_) => {}
            }
        }
        Ok(all)
    }

    /// Reads to the end, which must be the last word.
    pub async fn finish(&mut self) -> anyhow::Result<Said> {
        let mut said = Said::default();
        loop {
            match self.next().await? {
                Event::Stdout(bytes) => said.stdout.extend(bytes),
                Event::Stderr(bytes) => said.stderr.extend(bytes),
                Event::StdinTaken(it) => self.taken = it.bytes,
                Event::Started(_) => bail!("it began twice"),
                Event::Ended(ended) => {
                    said.ended = ended;
                    break;
                }
            }
        }
        match self.answers.message().await? {
            None => Ok(said),
            Some(more) => bail!("after the end comes {more:?}"),
        }
    }
}

/// Runs a program to its end.
pub async fn run(node: &TestNode, start: v1::ExecStart) -> anyhow::Result<Said> {
    Exec::start(node, start).await?.finish().await
}

/// The folders of programs that run, or were left.
pub fn pipes(node: &TestNode) -> Vec<PathBuf> {
    let entries = fs::read_dir(node.home().join("run/exec"));
    let entries = entries.into_iter().flatten().flatten();
    entries.map(|it| it.path()).collect()
}

/// What runs in a container, by its command lines, as containerd lists it.
pub fn processes(node: &TestNode, container: &str) -> anyhow::Result<Vec<String>> {
    let mut ctr = node.command("ctr");
    ctr.args(["t", "ps", container]);
    let listed = succeed(ctr)?;
    let pids = listed
        .lines()
        .skip(1)
        .filter_map(|it| it.split_whitespace().next());
    let line = |pid: &str| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = line.split(|it| *it == 0).map(String::from_utf8_lossy);
        Some(words.collect::<Vec<_>>().join(" ").trim().to_owned())
    };
    Ok(pids.filter_map(line).filter(|it| !it.is_empty()).collect())
}

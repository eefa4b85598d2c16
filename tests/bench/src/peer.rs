//! The peer: containerd's own client, as a user would call it.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

#[derive(Debug)]
pub(crate) struct Ctr<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) namespace: &'a str,
}

impl Ctr<'_> {
    /// One container without a network of its own: `ctr run -d`.
    pub(crate) fn run(&self, image: &str, id: &str, command: &[&str]) -> anyhow::Result<Duration> {
        let mut arguments = vec!["run", "-d", image, id];
        arguments.extend(command);
        self.timed(&arguments)
    }

    /// What every call of the client costs: its start, the connection, one small request.
    pub(crate) fn overhead(&self) -> anyhow::Result<Duration> {
        self.timed(&["version"])
    }

    pub(crate) fn remove(&self, id: &str) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.timed(&["tasks", "delete", "-f", id])?;
        self.timed(&["containers", "delete", id])?;
        Ok(begun.elapsed())
    }

    fn timed(&self, arguments: &[&str]) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let Output { status, stderr, .. } = Command::new("ctr")
            .arg("--address")
            .arg(self.socket)
            .args(["--namespace", self.namespace])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .context("starting ctr")?;
        let took = begun.elapsed();
        ensure!(
            status.success(),
            "ctr {arguments:?}: {}",
            String::from_utf8_lossy(&stderr)
        );
        Ok(took)
    }
}

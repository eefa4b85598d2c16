//! A probe that runs a program in the container.

use std::{sync::Arc, time::Duration};

use berth_domain::{ContainerName, Role, SandboxId};
use berth_platform::{ExecCommand, ExecError, ExecIo, ExecOutput, Images, Runtime};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::Answer;

/// What of its output is told, in bytes.
const TOLD_BYTES: usize = 256;
const WAITING: usize = 4;

/// Runs it, and returns when it has ended: one that takes too long is ended first. A task of its own sees to that, so this may
/// be dropped.
pub(super) async fn ask<R: Runtime + Images>(
    runtime: Arc<R>,
    tracker: &TaskTracker,
    id: SandboxId,
    container: ContainerName,
    argv: Vec<String>,
    timeout: Duration,
) -> Answer {
    let command = ExecCommand {
        argv,
        ..ExecCommand::default()
    };
    // Nobody sends: its input has ended.
    let (_, input) = mpsc::channel(1);
    let (said, mut output) = mpsc::channel(WAITING);
    let running = tracker.spawn(async move {
        let io = ExecIo {
            input,
            output: said,
        };
        let role = Role::App(container);
        runtime.exec(&id, &role, &command, io).await
    });
    let listened = tokio::time::timeout(timeout, listen(&mut output)).await;
    // This ends a program that still runs.
    drop(output);
    let Ok(exit) = running.await else {
        return None;
    };
    let Ok(told) = listened else {
        return Some(Err(format!("no end within {} ms", timeout.as_millis())));
    };
    match exit {
        Ok(exit) if exit.code == 0 => Some(Ok(())),
        Ok(exit) => Some(Err(in_words(exit.code, &told))),
        Err(ExecError::Runtime(_)) => None,
        Err(
            error @ (ExecError::NotRunning { .. }
            | ExecError::Gone { .. }
            | ExecError::User { .. }
            | ExecError::NotStarted { .. }),
        ) => Some(Err(error.to_string())),
    }
}

/// The beginning of what it says, until its end.
async fn listen(output: &mut mpsc::Receiver<ExecOutput>) -> Vec<u8> {
    let mut told = vec![];
    while let Some(word) = output.recv().await {
        match word {
            ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes) => {
                let room = TOLD_BYTES - told.len();
                told.extend(bytes.into_iter().take(room));
            }
            ExecOutput::Started { .. } | ExecOutput::Taken(_) => {}
        }
    }
    told
}

fn in_words(code: u32, told: &[u8]) -> String {
    let told = String::from_utf8_lossy(told);
    let told: Vec<_> = told.split_whitespace().collect();
    match told.join(" ").as_str() {
        "" => format!("exit code {code}"),
        told => format!("exit code {code}: {told}"),
    }
}

//! What every node must do about programs beside a container's own.

use std::time::Duration;

use berth_domain::{Sandbox, SandboxId};
use tokio::sync::mpsc;

use super::{DEADLINE, Subject, app, bring_up, clear};
use crate::{
    ExecCommand, ExecError, ExecExit, ExecInput, ExecIo, ExecOutput, Images, Network, NotStarted,
    Runtime,
};

/// Nobody reads what a program says, for as long.
const LONG: Duration = Duration::from_secs(60);

/// The other ends of what a program is given.
struct Caller {
    input: mpsc::Sender<ExecInput>,
    output: mpsc::Receiver<ExecOutput>,
}

impl Caller {
    async fn until_started(&mut self) {
        let first = tokio::time::timeout(DEADLINE, self.output.recv()).await;
        assert!(
            matches!(first, Ok(Some(ExecOutput::Started { .. }))),
            "{first:?}"
        );
    }

    /// All that comes on standard output.
    async fn read(&mut self) -> Vec<u8> {
        let mut all = vec![];
        while let Some(word) = self.output.recv().await {
            if let ExecOutput::Stdout(bytes) = word {
                all.extend(bytes);
            }
        }
        all
    }

    /// How much of the input was taken, by the end.
    async fn taken(&mut self) -> u64 {
        let mut all = 0;
        while let Some(word) = self.output.recv().await {
            if let ExecOutput::Taken(bytes) = word {
                all = bytes;
            }
        }
        all
    }
}

/// How often a program ends in the moment in which the last of its input is told.
const CLOSE_CALLS: usize = 20;

fn io() -> (ExecIo, Caller) {
    let (input, taken) = mpsc::channel(4);
    let (said, output) = mpsc::channel(4);
    let io = ExecIo {
        input: taken,
        output: said,
    };
    (io, Caller { input, output })
}

fn shell(line: &str) -> ExecCommand {
    ExecCommand {
        argv: ["/bin/sh", "-c", line].map(str::to_owned).into(),
        stdin: true,
        ..ExecCommand::default()
    }
}

pub async fn programs_run_beside_what_runs<R: Runtime + Images, N: Network>(
    runtime: &R,
    network: &N,
    subject: &Subject,
) {
    let sandbox = subject.sandbox("contract-exec");
    bring_up(runtime, network, subject, &sandbox).await;
    an_exit_code_and_output_come_back(runtime, &sandbox).await;
    input_goes_through_and_its_end_is_seen(runtime, &sandbox).await;
    what_was_taken_is_told_before_the_end(runtime, &sandbox).await;
    a_signal_ends_a_program(runtime, &sandbox).await;
    a_program_whose_caller_has_gone_is_ended(runtime, &sandbox).await;
    what_cannot_be_started_says_why(runtime, &sandbox).await;
    who_is_attached_learns_how_the_container_ends_and_ends_nothing(runtime, &sandbox).await;
    bring_up_again(runtime, &sandbox).await;
    a_program_ends_with_its_container(runtime, &sandbox).await;
    let ended = runtime.end_former_execs().await.unwrap();
    assert_eq!(ended, 0, "programs of this very process are no former ones");
    clear(runtime, network, &sandbox.id).await;
}

/// Runs a program beside what its caller does.
async fn run<R: Runtime, T>(
    runtime: &R,
    sandbox: &Sandbox,
    line: &str,
    caller: impl AsyncFnOnce(Caller) -> T,
) -> (Result<ExecExit, ExecError>, T) {
    let (role, command, (io, other)) = (app(), shell(line), io());
    let run = runtime.exec(&sandbox.id, &role, &command, io);
    let both = async { tokio::join!(run, caller(other)) };
    tokio::time::timeout(LONG, both).await.unwrap()
}

async fn an_exit_code_and_output_come_back<R: Runtime>(runtime: &R, sandbox: &Sandbox) {
    let (exit, ()) = run(runtime, sandbox, "exit 7", async |mut it| {
        it.until_started().await;
        it.read().await;
    })
    .await;
    let expected = ExecExit {
        code: 7,
        output_cut: false,
        container_ended: false,
    };
    assert_eq!(exit.unwrap(), expected);
    let (exit, said) = run(runtime, sandbox, "echo hello", async |mut it| {
        it.read().await
    })
    .await;
    assert_eq!((exit.unwrap().code, said.as_slice()), (0, &b"hello\n"[..]));
}

async fn input_goes_through_and_its_end_is_seen<R: Runtime>(runtime: &R, sandbox: &Sandbox) {
    let (exit, said) = run(runtime, sandbox, "exec cat", async |mut it| {
        it.until_started().await;
        it.input
            .send(ExecInput::Bytes(b"one ".to_vec()))
            .await
            .unwrap();
        it.input
            .send(ExecInput::Bytes(b"two".to_vec()))
            .await
            .unwrap();
        it.input.send(ExecInput::End).await.unwrap();
        it.read().await
    })
    .await;
    assert_eq!((exit.unwrap().code, said.as_slice()), (0, &b"one two"[..]));
}

async fn what_was_taken_is_told_before_the_end<R: Runtime>(runtime: &R, sandbox: &Sandbox) {
    for _ in 0..CLOSE_CALLS {
        let (exit, taken) = run(runtime, sandbox, "exec cat", async |mut it| {
            it.until_started().await;
            for word in [ExecInput::Bytes(b"some".to_vec()), ExecInput::End] {
                it.input.send(word).await.unwrap();
            }
            it.taken().await
        })
        .await;
        assert_eq!((exit.unwrap().code, taken), (0, 4));
    }
}

async fn a_signal_ends_a_program<R: Runtime>(runtime: &R, sandbox: &Sandbox) {
    let (exit, ()) = run(runtime, sandbox, "exec sleep 3600", async |mut it| {
        it.until_started().await;
        it.input.send(ExecInput::Signal(15)).await.unwrap();
        it.read().await;
    })
    .await;
    assert_eq!(exit.unwrap().code, 128 + 15);
}

async fn a_program_whose_caller_has_gone_is_ended<R: Runtime>(runtime: &R, sandbox: &Sandbox) {
    let (exit, ()) = run(runtime, sandbox, "exec sleep 3600", async |mut it| {
        it.until_started().await;
    })
    .await;
    assert_eq!(exit.unwrap().code, 128 + 1);
}

async fn what_cannot_be_started_says_why<R: Runtime>(runtime: &R, sandbox: &Sandbox) {
    let attempt = async |command: &ExecCommand| {
        let (io, _caller) = io();
        runtime.exec(&sandbox.id, &app(), command, io).await
    };
    let missing = ExecCommand {
        argv: vec!["/there/is/none".to_owned()],
        ..ExecCommand::default()
    };
    let outcome = attempt(&missing).await;
    let not_found = NotStarted::NotFound;
    assert!(
        matches!(&outcome, Err(ExecError::NotStarted { why, .. }) if *why == not_found),
        "{outcome:?}"
    );
    let stranger = ExecCommand {
        user: "nobody-knows".to_owned(),
        ..shell("exit 0")
    };
    let outcome = attempt(&stranger).await;
    assert!(
        matches!(outcome, Err(ExecError::User { .. })),
        "{outcome:?}"
    );
    let elsewhere = SandboxId::parse("contract-none").unwrap();
    let (io, _caller) = io();
    let outcome = runtime.exec(&elsewhere, &app(), &shell("exit 0"), io).await;
    assert!(
        matches!(outcome, Err(ExecError::NotRunning { .. })),
        "{outcome:?}"
    );
}

async fn who_is_attached_learns_how_the_container_ends_and_ends_nothing<R: Runtime>(
    runtime: &R,
    sandbox: &Sandbox,
) {
    let (role, (io, gone)) = (app(), io());
    drop(gone);
    let left = runtime.attach(&sandbox.id, &role, io).await.unwrap();
    assert_eq!(left, None, "nobody listens");
    let (role, (io, mut other)) = (app(), self::io());
    let attached = runtime.attach(&sandbox.id, &role, io);
    let ending = async {
        other
            .input
            .send(ExecInput::Bytes(b"typed".to_vec()))
            .await
            .unwrap();
        let word = other.output.recv().await;
        assert_eq!(
            word,
            Some(ExecOutput::Taken(5)),
            "it was not ended by who left"
        );
        let role = app();
        let stopped = runtime.stop_task(&sandbox.id, &role, Duration::ZERO);
        stopped.await.unwrap();
    };
    let both = async { tokio::join!(attached, ending) };
    let (status, ()) = tokio::time::timeout(LONG, both).await.unwrap();
    assert!(matches!(status.unwrap(), Some(129..)), "a signal ended it");
}

async fn bring_up_again<R: Runtime>(runtime: &R, sandbox: &Sandbox) {
    let role = app();
    runtime.delete_task(&sandbox.id, &role).await.unwrap();
    runtime.create_task(sandbox, &role).await.unwrap();
    runtime.start_task(&sandbox.id, &role).await.unwrap();
}

async fn a_program_ends_with_its_container<R: Runtime>(runtime: &R, sandbox: &Sandbox) {
    let (exit, ()) = run(runtime, sandbox, "exec sleep 3600", async |mut it| {
        it.until_started().await;
        let role = app();
        let stopped = runtime.stop_task(&sandbox.id, &role, Duration::ZERO);
        stopped.await.unwrap();
        it.read().await;
    })
    .await;
    let exit = exit.unwrap();
    assert!(exit.container_ended, "{exit:?}");
}

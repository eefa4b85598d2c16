//! Exec: what a caller sends goes to the program, what it says goes to the caller, its end is the last word. The program is
//! carried by a task of the registry: a caller that goes away ends the program, not what ends it.

use std::{error::Error as _, pin::Pin, time::Duration};

use berth_api::v1::{self, exec_request::Action, exec_response::Event};
use berth_domain::{Failure, Reason, Role, SandboxId, SandboxRecord, Status as SandboxStatus};
use berth_platform::{
    ExecCommand, ExecExit, ExecInput, ExecIo, ExecOutput, Images, Network, Runtime, TerminalSize,
};
use futures::StreamExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Response, Status, Streaming};

use super::{
    SandboxRpc,
    access::{container_of, record_of},
    expected, parse_id, refuse,
};
use crate::{failures::exec_failure, places::Full, registry::shutting_down};

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<v1::ExecResponse, Status>> + Send>>;

/// How long a caller may take to say what to run.
const START: Duration = Duration::from_secs(10);
/// How many messages wait on each way, beside the one in hand.
const WAITING: usize = 4;
const STDIN_MAX: usize = 64 << 10;
const WORDS_MAX: usize = 1024;
/// As the kernel bounds one of them.
const WORDS_BYTES_MAX: usize = 128 << 10;
const PATH_MAX: usize = 4096;
const USER_MAX: usize = 256;
const SIDE_MAX: u32 = 4096;
const SIZE_DEFAULT: TerminalSize = TerminalSize {
    columns: 80,
    rows: 24,
};

pub(super) async fn exec<R: Runtime + Images, N: Network>(
    rpc: &SandboxRpc<R, N>,
    mut requests: Streaming<v1::ExecRequest>,
) -> Result<Response<Answers>, Status> {
    let Some(Action::Start(start)) = first(&mut requests).await?.action else {
        return Err(no_start());
    };
    let id = parse_id("start.id", &start.id)?;
    let command = command(&start).map_err(refuse)?;
    let expected = expected(start.expected_generation);
    let record = record_of(&rpc.registry, &id, expected).await;
    let record = record.map_err(refuse)?;
    let role = role(&record, &start.container).map_err(refuse)?;
    let place = rpc.execs.take(&id).map_err(|it| refuse(full(&id, it)))?;

    let registry = &rpc.registry;
    let (input, sent) = mpsc::channel(WAITING);
    let (said, output) = mpsc::channel(WAITING);
    let (answers, taken) = mpsc::channel(WAITING);
    let (wrong, faults) = mpsc::channel(1);
    let (begun, begin) = oneshot::channel();
    let (runtime, stopping) = (registry.node().runtime.clone(), registry.stopping());
    let stopped = registry.stopping();
    registry.spawn(async move {
        let _place = place;
        let io = ExecIo {
            input: sent,
            output: said,
        };
        let running = async { runtime.exec(&id, &role, &command, io).await };
        let forwarding = forward(output, &answers, begun, faults, stopping);
        let (exit, outcome) = tokio::join!(running, forwarding);
        let last = match (exit, outcome) {
            (_, Err(failure)) => Err(refuse(failure)),
            (Ok(exit), Ok(None)) => Ok(event(Event::Ended(ended(exit)))),
            (Err(error), Ok(None)) => Err(refuse(exec_failure(error))),
            (Err(error), Ok(Some(begun))) => {
                let _ = begun.send(Err(exec_failure(error)));
                return;
            }
            // A program that was never told of has not ended either.
            (Ok(_), Ok(Some(_))) => return,
        };
        tell_last(&answers, last, stopped).await;
    });
    let stopping = registry.stopping();
    registry.spawn(async move {
        tokio::select! {
            () = take_input(requests, &input, wrong) => {}
            () = input.closed() => {}
            () = async { stopping.await; input.closed().await } => {}
        }
    });
    match begin.await {
        Ok(Ok(())) => Ok(Response::new(Box::pin(ReceiverStream::new(taken)))),
        Ok(Err(failure)) => Err(refuse(failure)),
        Err(_) => Err(refuse(shutting_down())),
    }
}

/// The first message of a caller, which is to say what is meant.
pub(super) async fn first<T>(requests: &mut Streaming<T>) -> Result<T, Status> {
    match tokio::time::timeout(START, requests.message()).await {
        Ok(first) => first?.ok_or_else(no_start),
        Err(_) => {
            let problem = format!("must come within {START:?}");
            Err(refuse(Failure::invalid("start", problem)))
        }
    }
}

pub(super) fn no_start() -> Status {
    refuse(Failure::invalid("start", "must be the first message"))
}

/// Tells how it ended. A caller that does not read holds up no stop.
pub(super) async fn tell_last<T>(
    answers: &mpsc::Sender<Result<T, Status>>,
    last: Result<T, Status>,
    stopped: impl Future<Output = ()>,
) {
    tokio::select! {
        room = answers.reserve() => if let Ok(room) = room {
            room.send(last);
        },
        () = stopped => drop(answers.try_send(last)),
    }
}

type Begun = oneshot::Sender<Result<(), Failure>>;

/// Hands on what the program says until it says no more or nobody listens. Returns what has to be told in place of its end,
/// or who still waits for its start.
async fn forward(
    mut output: mpsc::Receiver<ExecOutput>,
    answers: &mpsc::Sender<Result<v1::ExecResponse, Status>>,
    begun: Begun,
    mut faults: mpsc::Receiver<Failure>,
    stopping: impl Future<Output = ()>,
) -> Result<Option<Begun>, Failure> {
    let mut begun = Some(begun);
    let mut stopping = std::pin::pin!(stopping);
    loop {
        let word = tokio::select! {
            word = output.recv() => word,
            () = answers.closed() => return Ok(None),
            () = &mut stopping => return Err(shutting_down()),
            Some(failure) = faults.recv() => return Err(failure),
        };
        let said = match word {
            None => return Ok(begun),
            Some(ExecOutput::Started { exec_id }) => {
                if let Some(begun) = begun.take() {
                    let _ = begun.send(Ok(()));
                }
                Event::Started(v1::ExecStarted { exec_id })
            }
            Some(ExecOutput::Stdout(bytes)) => Event::Stdout(bytes),
            Some(ExecOutput::Stderr(bytes)) => Event::Stderr(bytes),
            Some(ExecOutput::Taken(bytes)) => Event::StdinTaken(v1::StdinTaken { bytes }),
        };
        tokio::select! {
            sent = answers.send(Ok(event(said))) => if sent.is_err() {
                return Ok(None);
            },
            () = &mut stopping => return Err(shutting_down()),
            Some(failure) = faults.recv() => return Err(failure),
        }
    }
}

/// Takes what the caller sends, until there is no more of it or something is wrong with it.
async fn take_input(
    mut requests: impl Stream<Item = Result<v1::ExecRequest, Status>> + Unpin,
    input: &mpsc::Sender<ExecInput>,
    wrong: mpsc::Sender<Failure>,
) {
    loop {
        let word = match requests.next().await {
            Some(Ok(message)) => input_of(message.action),
            None => return,
            Some(Err(status)) => match unreadable(&status) {
                Some(failure) => Err(failure),
                // Its caller is gone: the program is ended, and must not take that for the end of its input.
                None => return input.closed().await,
            },
        };
        match word {
            Ok(word) => {
                if input.send(word).await.is_err() {
                    return;
                }
            }
            Err(failure) => {
                let _ = wrong.send(failure).await;
                // The program is ended; what it never got is not the end of its input.
                return input.closed().await;
            }
        }
    }
}

fn input_of(action: Option<Action>) -> Result<ExecInput, Failure> {
    match action {
        Some(Action::Stdin(it)) => bytes(it),
        Some(Action::StdinEnd(v1::StdinEnd {})) => Ok(ExecInput::End),
        Some(Action::Resize(it)) => size("resize", it).map(ExecInput::Resize),
        Some(Action::Signal(v1::ExecSignal { number })) if (1..=64).contains(&number) => {
            Ok(ExecInput::Signal(number))
        }
        Some(Action::Signal(_)) => Err(Failure::invalid("signal.number", "must be 1 to 64")),
        Some(Action::Start(_)) => Err(Failure::invalid("start", "must be the first message only")),
        None => Err(Failure::invalid("action", "must be given")),
    }
}

/// What is wrong with a message that cannot be taken in. How a caller goes away is seen by what it is sent.
pub(super) fn unreadable(status: &Status) -> Option<Failure> {
    let code = status.code();
    if code == Code::OutOfRange {
        let problem = format!("is too large, must have at most {STDIN_MAX} bytes");
        return Some(Failure::invalid("stdin", problem));
    }
    // A connection that breaks has a cause beside it.
    let unread = code == Code::Internal && status.source().is_none();
    unread.then(|| Failure::invalid("action", "cannot be read"))
}

pub(super) fn bytes(bytes: Vec<u8>) -> Result<ExecInput, Failure> {
    if bytes.len() > STDIN_MAX {
        let problem = format!("has {} bytes, must have at most {STDIN_MAX}", bytes.len());
        return Err(Failure::invalid("stdin", problem));
    }
    Ok(ExecInput::Bytes(bytes))
}

/// The container that is meant, of a sandbox that has not ended.
pub(super) fn role(record: &SandboxRecord, container: &str) -> Result<Role, Failure> {
    let ended = matches!(record.status, SandboxStatus::Stopped | SandboxStatus::Dead);
    if ended || record.ending.is_some() {
        let message = format!("sandbox {} has ended or is ending", record.id);
        return Err(Failure::new(Reason::SandboxEnding, message));
    }
    container_of(record, "start.container", container)
}

pub(super) fn full(id: &SandboxId, Full { of, limit }: Full) -> Failure {
    let whose = match of {
        "sandbox" => format!("sandbox {id}"),
        _ => "this node".to_owned(),
    };
    let message = format!("{whose} runs {limit} programs, and may run no more");
    let failure = Failure::new(Reason::ExecLimit, message);
    failure.with("scope", of).with("limit", limit)
}

fn command(start: &v1::ExecStart) -> Result<ExecCommand, Failure> {
    let invalid = |field: &str, problem: String| Err(Failure::invalid(field, problem));
    for (field, words) in [("start.argv", &start.argv), ("start.env", &start.env)] {
        if words.len() > WORDS_MAX {
            return invalid(field, format!("must have at most {WORDS_MAX} entries"));
        }
        if words.iter().any(|it| it.contains('\0')) {
            return invalid(field, "must not have the byte 0 in it".to_owned());
        }
    }
    let bytes: usize = start
        .argv
        .iter()
        .chain(&start.env)
        .map(|it| it.len() + 1)
        .sum();
    if bytes > WORDS_BYTES_MAX {
        let problem = format!("has with `env` {bytes} bytes, must have at most {WORDS_BYTES_MAX}");
        return invalid("start.argv", problem);
    }
    if start.argv.first().is_none_or(String::is_empty) {
        return invalid("start.argv", "must begin with a program".to_owned());
    }
    let pair = |line: &String| line.split_once('=').is_some_and(|(key, _)| !key.is_empty());
    if let Some(at) = start.env.iter().position(|it| !pair(it)) {
        return invalid(
            &format!("start.env[{at}]"),
            "must be `KEY=VALUE`".to_owned(),
        );
    }
    let directory = &start.directory;
    let is_path = directory.starts_with('/') && !directory.contains('\0');
    let fits = directory.is_empty() || is_path && directory.len() <= PATH_MAX;
    if !fits {
        let problem = format!("must be an absolute path of at most {PATH_MAX} bytes");
        return invalid("start.directory", problem);
    }
    if start.user.len() > USER_MAX || start.user.contains('\0') {
        let problem = format!("must be a user of at most {USER_MAX} bytes");
        return invalid("start.user", problem);
    }
    let terminal = match (start.tty, start.terminal_size) {
        (false, _) => None,
        (true, None) => Some(SIZE_DEFAULT),
        (true, Some(it)) => Some(size("start.terminal_size", it)?),
    };
    Ok(ExecCommand {
        argv: start.argv.clone(),
        env: start.env.clone(),
        directory: directory.clone(),
        user: start.user.clone(),
        terminal,
        stdin: start.stdin,
    })
}

pub(super) fn size(field: &str, it: v1::TerminalSize) -> Result<TerminalSize, Failure> {
    let side = |name: &str, number: u32| {
        let fits = (1..=SIDE_MAX).contains(&number);
        let number = u16::try_from(number).ok().filter(|_| fits);
        let problem = format!("must be 1 to {SIDE_MAX}");
        number.ok_or_else(|| Failure::invalid(format!("{field}.{name}"), problem))
    };
    Ok(TerminalSize {
        columns: side("columns", it.columns)?,
        rows: side("rows", it.rows)?,
    })
}

fn ended(exit: ExecExit) -> v1::ExecEnded {
    let signal = (129..=192).contains(&exit.code).then(|| exit.code - 128);
    v1::ExecEnded {
        exit_code: exit.code,
        signal: signal.unwrap_or(0),
        output_cut: exit.output_cut,
        container_ended: exit.container_ended,
    }
}

fn event(event: Event) -> v1::ExecResponse {
    v1::ExecResponse { event: Some(event) }
}

#[cfg(test)]
mod tests;

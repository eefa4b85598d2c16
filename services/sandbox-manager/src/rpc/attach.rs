//! Attach: what the container's own program says, from a bounded part of what it said before, and what its callers type.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use berth_api::v1::{self, attach_request::Action, attach_response::Event};
use berth_domain::{ExitCause, Failure, Role, SandboxRecord};
use berth_logs::merge::Unreadable;
use berth_platform::{
    EXEC_CHUNK_BYTES, ExecError, ExecInput, ExecIo, ExecOutput, Images, Network, Runtime,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Response, Status, Streaming};

use super::{SandboxRpc, access::record_of, exec, expected, logs, parse_id, refuse};
use crate::{
    console::{Console, Words},
    failures::{exec_failure, internal},
    logs::LogReaders,
    registry::{Registry, shutting_down},
};

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<v1::AttachResponse, Status>> + Send>>;

const WAITING: usize = 4;
/// Of what was said before, in bytes.
const REPLAY: usize = 64 << 10;
/// How often the log is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A log that was silent for so long since its container ended has its last words.
const SILENCE: Duration = Duration::from_secs(1);
/// Longer than a log-writer takes for what is left in its pipes. Behind it the log is told as far as it is there.
const LAST_WORDS_MAX: Duration = Duration::from_secs(10);

pub(super) async fn attach<R: Runtime + Images, N: Network>(
    rpc: &SandboxRpc<R, N>,
    mut requests: Streaming<v1::AttachRequest>,
) -> Result<Response<Answers>, Status> {
    let Some(Action::Start(start)) = exec::first(&mut requests).await?.action else {
        return Err(exec::no_start());
    };
    let id = parse_id("start.id", &start.id)?;
    let expected = expected(start.expected_generation);
    let record = record_of(&rpc.registry, &id, expected).await;
    let record = record.map_err(refuse)?;
    let role = exec::role(&record, &start.container).map_err(refuse)?;
    let size = start.terminal_size;
    let size = size.map(|it| exec::size("start.terminal_size", it));
    let size = size.transpose().map_err(refuse)?;
    let container = match &role {
        Role::App(name) => record.spec.container(name),
        Role::Pause => None,
    };
    let Some(container) = container else {
        return Err(refuse(internal("a container without a spec")));
    };
    let (tty, stdin) = (container.tty, container.stdin && start.stdin);
    let place = rpc.execs.take(&id);
    let place = place.map_err(|it| refuse(exec::full(&id, it)))?;
    let folder = rpc.logs.folder(&id).join(container.name.as_str());
    let console = Console::new(folder, tty);
    let log = Log {
        readers: rpc.logs.clone(),
        name: container.name.to_string(),
    };

    let registry = &rpc.registry;
    let (input, sent) = mpsc::channel(WAITING);
    let (said, output) = mpsc::channel(WAITING);
    let (answers, taken) = mpsc::channel(WAITING);
    let (wrong, faults) = mpsc::channel(1);
    if let Some(size) = size.filter(|_| tty) {
        // The channel is empty and its other end is here.
        let _ = input.try_send(ExecInput::Resize(size));
    }
    let (runtime, stopping) = (registry.node().runtime.clone(), registry.stopping());
    let stopped = registry.stopping();
    let (records, former) = (registry.clone(), record);
    registry.spawn(async move {
        let _place = place;
        let started = v1::AttachStarted { tty, stdin };
        let _ = answers.send(Ok(response(Event::Started(started)))).await;
        let io = ExecIo {
            input: sent,
            output: said,
        };
        let running = async { runtime.attach(&id, &role, io).await };
        let telling = tell(&log, console, output, &answers, faults, stopping);
        let (exit, told) = tokio::join!(running, telling);
        let exit = match exit {
            Err(error @ ExecError::Gone { .. }) => {
                let code = recorded(&records, &former, &role).await;
                code.map(Some).ok_or(error)
            }
            exit => exit,
        };
        let last = match (exit, told) {
            (_, Err(failure)) => Err(refuse(failure)),
            (Err(error), Ok(())) => Err(refuse(exec_failure(error))),
            (Ok(None), Ok(())) => return,
            (Ok(Some(code)), Ok(())) => {
                let signal = (129..=192).contains(&code).then(|| code - 128);
                let ended = v1::AttachEnded {
                    exit_code: code,
                    signal: signal.unwrap_or(0),
                };
                Ok(response(Event::Ended(ended)))
            }
        };
        exec::tell_last(&answers, last, stopped).await;
    });
    let stopping = registry.stopping();
    registry.spawn(async move {
        tokio::select! {
            () = take_input(requests, &input, stdin, wrong) => {}
            () = input.closed() => {}
            () = stopping => {}
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(taken))))
}

/// How the container ended, as its record has it: it is written before the task is removed.
async fn recorded<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    former: &SandboxRecord,
    role: &Role,
) -> Option<u32> {
    let record = record_of(registry, &former.id, Some(former.generation));
    let record = record.await.ok()?;
    // Made again, it has another program.
    let exit = record.exit.filter(|_| record.restarts == former.restarts);
    let exit = exit.filter(|it| it.role == *role)?;
    match exit.cause {
        ExitCause::Exit | ExitCause::Signal | ExitCause::Oom => Some(exit.code),
        ExitCause::RuntimeLost | ExitCause::Unknown => None,
    }
}

/// When a container has ended, and when its log was heard since.
#[derive(Clone, Copy, Debug)]
struct LastWords {
    ended: Instant,
    heard: Instant,
}

impl LastWords {
    fn are_over(self, now: Instant) -> bool {
        now - self.heard >= SILENCE || now - self.ended >= LAST_WORDS_MAX
    }
}

/// Tells what the container says until it has ended or nobody listens; dropping `output` ends the rest.
async fn tell(
    log: &Log,
    console: Console,
    mut output: mpsc::Receiver<ExecOutput>,
    answers: &mpsc::Sender<Result<v1::AttachResponse, Status>>,
    mut faults: mpsc::Receiver<Failure>,
    stopping: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let mut stopping = std::pin::pin!(stopping);
    let (mut console, words) = tokio::select! {
        looked = log.look(console, |it| it.replay(REPLAY)) => looked?,
        () = &mut stopping => return Err(shutting_down()),
    };
    let mut news = events(words);
    let mut last_words: Option<LastWords> = None;
    loop {
        for event in news.drain(..) {
            tokio::select! {
                sent = answers.send(Ok(response(event))) => if sent.is_err() {
                    return Ok(());
                },
                () = &mut stopping => return Err(shutting_down()),
                Some(failure) = faults.recv() => return Err(failure),
            }
        }
        tokio::select! {
            word = output.recv(), if last_words.is_none() => match word {
                Some(ExecOutput::Taken(bytes)) => {
                    news.push(Event::StdinTaken(v1::StdinTaken { bytes }));
                }
                Some(_) => {}
                None => {
                    let now = Instant::now();
                    last_words = Some(LastWords { ended: now, heard: now });
                }
            },
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = answers.closed() => return Ok(()),
            () = &mut stopping => return Err(shutting_down()),
            Some(failure) = faults.recv() => return Err(failure),
        }
        let (looked, words) = tokio::select! {
            looked = log.look(console, Console::more) => looked?,
            () = &mut stopping => return Err(shutting_down()),
        };
        console = looked;
        news.extend(events(words));
        if let Some(last) = &mut last_words {
            let now = Instant::now();
            if !news.is_empty() {
                last.heard = now;
            } else if last.are_over(now) {
                return Ok(());
            }
        }
    }
}

/// As few messages as the order of the streams allows: many small ones would be a flood to HTTP/2.
fn events(words: Vec<Words>) -> Vec<Event> {
    let of_one_stream = words.chunk_by(|one, next| one.stderr == next.stderr);
    let events = of_one_stream.flat_map(|words| {
        let wrap = match words.first() {
            Some(Words { stderr: true, .. }) => Event::Stderr,
            Some(_) | None => Event::Stdout,
        };
        let bytes: Vec<u8> = words.iter().flat_map(|it| &it.bytes).copied().collect();
        let chunks = bytes.chunks(EXEC_CHUNK_BYTES);
        chunks.map(|it| wrap(it.to_vec())).collect::<Vec<_>>()
    });
    events.collect()
}

/// The log that is read.
struct Log {
    readers: Arc<LogReaders>,
    name: String,
}

impl Log {
    /// Looks at it, on a disk of this node.
    async fn look(
        &self,
        mut console: Console,
        read: impl FnOnce(&mut Console) -> io::Result<Vec<Words>> + Send + 'static,
    ) -> Result<(Console, Vec<Words>), Failure> {
        let read = move || read(&mut console).map(|words| (console, words));
        let looked = self.readers.read(read).await?;
        looked.map_err(|source| {
            let log = self.name.clone();
            logs::unreadable(Unreadable { log, source })
        })
    }
}

async fn take_input(
    mut requests: Streaming<v1::AttachRequest>,
    input: &mpsc::Sender<ExecInput>,
    stdin: bool,
    wrong: mpsc::Sender<Failure>,
) {
    loop {
        let word = match requests.message().await {
            Ok(Some(message)) => match message.action {
                Some(Action::Stdin(_)) if !stdin => continue,
                Some(Action::Stdin(bytes)) => exec::bytes(bytes),
                Some(Action::Resize(it)) => exec::size("resize", it).map(ExecInput::Resize),
                Some(Action::Start(_)) => {
                    Err(Failure::invalid("start", "must be the first message only"))
                }
                None => Err(Failure::invalid("action", "must be given")),
            },
            Ok(None) => return,
            Err(status) => match exec::unreadable(&status) {
                Some(failure) => Err(failure),
                None => return,
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
                return;
            }
        }
    }
}

fn response(event: Event) -> v1::AttachResponse {
    v1::AttachResponse { event: Some(event) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_heard_out_until_it_is_silent_or_has_taken_too_long() {
        let ended = Instant::now();
        let cases = [
            (0, 0, false),
            (0, 999, false),
            (0, 1000, true),
            (900, 1899, false),
            (900, 1900, true),
            (9900, 9999, false),
            (9900, 10_000, true),
        ];
        for (heard, now, over) in cases {
            let at = |ms| ended + Duration::from_millis(ms);
            let last = LastWords {
                ended,
                heard: at(heard),
            };
            assert_eq!(last.are_over(at(now)), over, "{heard}, {now}");
        }
    }

    #[test]
    fn lines_of_one_stream_go_together_up_to_the_size_of_a_message() {
        let words = |stderr, text: &str| Words {
            stderr,
            bytes: text.as_bytes().to_vec(),
        };
        let long = "x".repeat(EXEC_CHUNK_BYTES);
        let said = vec![
            words(false, "one\n"),
            words(false, "two\n"),
            words(true, "oh\n"),
            words(false, "three\n"),
            words(false, &long),
        ];
        let bytes = |text: &str| text.as_bytes().to_vec();
        let (begin, end) = long.split_at(EXEC_CHUNK_BYTES - 6);
        let expected = vec![
            Event::Stdout(bytes("one\ntwo\n")),
            Event::Stderr(bytes("oh\n")),
            Event::Stdout(bytes(&format!("three\n{begin}"))),
            Event::Stdout(bytes(end)),
        ];
        assert_eq!(events(said), expected);
        assert_eq!(events(vec![]), []);
    }
}

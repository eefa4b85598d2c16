//! The command `exec`: carries input, output, keys and signals between the terminal and a program of the node.

use berth_api::v1::{
    self, exec_request::Action, exec_response::Event, sandbox_service_client::SandboxServiceClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::Session;
use crate::{
    args::{Exec, Pair},
    errors::Failure,
    output,
    terminal::{self, Raw},
};

const WAITING: usize = 4;
pub(super) const CHUNK_BYTES: usize = 16 << 10;
/// What is sent and not taken: with no more of it no signal waits behind the input.
pub(super) const WINDOW_BYTES: u64 = 256 << 10;
/// So many Ctrl-C end the call also where the program takes no notice.
const INTERRUPTS_MAX: u32 = 3;
const SIGINT: u32 = 2;
const SIGTERM: u8 = 15;
const SIGHUP: u8 = 1;

/// Returns the exit code of the program.
pub(super) async fn run(session: &Session, args: Exec) -> Result<u8, Failure> {
    // They are in place before the program can be.
    let mut signals = Signals::listen()?;
    let has_terminal = terminal::is_there();
    let tty = args.tty && (has_terminal || !args.interactive);
    if args.tty && !tty {
        output::complain("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    let interactive = args.interactive;
    let start = v1::ExecStart {
        id: args.id,
        container: args.container.unwrap_or_default(),
        argv: args.command,
        env: args
            .env
            .into_iter()
            .map(|Pair { key, value }| format!("{key}={value}"))
            .collect(),
        directory: args.workdir.unwrap_or_default(),
        user: args.user.unwrap_or_default(),
        tty,
        terminal_size: terminal::size().filter(|_| tty),
        stdin: interactive,
        expected_generation: 0,
    };
    let mut client = SandboxServiceClient::new(session.connect().await?);
    let (requests, receiver) = mpsc::channel(WAITING);
    let first = message(Action::Start(start));
    // The channel is empty and its other end is here.
    let _ = requests.send(first).await;
    let request = session.request(ReceiverStream::new(receiver));
    let answers = tokio::select! {
        answers = client.exec(request) => answers?.into_inner(),
        code = signals.ending() => return Ok(code),
    };
    let raw = (tty && interactive && has_terminal)
        .then(Raw::enter)
        .transpose()?;
    let (taken, window) = watch::channel(0);
    let feeding = async {
        feed(&requests, interactive, window).await;
        std::future::pending::<()>().await;
    };
    let signalling = signals.hand_on(&requests, tty);
    let ended = tokio::select! {
        ended = receive(answers, &taken) => ended,
        () = feeding => Err(Failure::StreamEnded),
        code = signalling => return Ok(code),
    };
    // Before anything is told on it.
    drop(raw);
    let ended = ended?;
    if ended.output_cut {
        output::complain(
            "berth: what the program left running holds its output open; it is not waited for",
        );
    }
    if ended.container_ended {
        output::complain("berth: the container has ended");
    }
    Ok(u8::try_from(ended.exit_code).unwrap_or(u8::MAX))
}

/// Prints what the program says, until its end.
async fn receive(
    mut answers: Streaming<v1::ExecResponse>,
    taken: &watch::Sender<u64>,
) -> Result<v1::ExecEnded, Failure> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(answer) = answers.message().await? {
        match answer.event {
            Some(Event::Stdout(bytes)) => {
                stdout.write_all(&bytes).await?;
                stdout.flush().await?;
            }
            Some(Event::Stderr(bytes)) => {
                stderr.write_all(&bytes).await?;
                stderr.flush().await?;
            }
            Some(Event::StdinTaken(it)) => drop(taken.send(it.bytes)),
            Some(Event::Ended(it)) => return Ok(it),
            Some(Event::Started(_)) | None => {}
        }
    }
    Err(Failure::StreamEnded)
}

/// Sends standard input and its end, no faster than the program takes it.
async fn feed(
    requests: &mpsc::Sender<v1::ExecRequest>,
    interactive: bool,
    mut window: watch::Receiver<u64>,
) {
    if !interactive {
        return;
    }
    let mut stdin = tokio::io::stdin();
    let mut sent = 0_u64;
    loop {
        let room = |taken: &u64| sent.saturating_sub(*taken) < WINDOW_BYTES;
        if window.wait_for(room).await.is_err() {
            return;
        }
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        // What cannot be read has ended.
        let read = stdin.read_buf(&mut chunk).await.unwrap_or(0);
        let action = match read {
            0 => Action::StdinEnd(v1::StdinEnd {}),
            _ => Action::Stdin(chunk),
        };
        if requests.send(message(action)).await.is_err() || read == 0 {
            return;
        }
        sent += u64::try_from(read).unwrap_or_default();
    }
}

fn message(action: Action) -> v1::ExecRequest {
    v1::ExecRequest {
        action: Some(action),
    }
}

pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    resize: Signal,
}

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            resize: signal(SignalKind::window_change())?,
        })
    }

    /// Waits for a signal that ends this command, and returns the exit code then.
    pub(super) async fn ending(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 128 + 2,
            _ = self.terminate.recv() => 128 + SIGTERM,
            _ = self.hang_up.recv() => 128 + SIGHUP,
        }
    }

    /// Brings Ctrl-C and new sizes to the program, and returns when a signal is for this command: also while there is no room
    /// for what it has to say.
    async fn hand_on(&mut self, requests: &mpsc::Sender<v1::ExecRequest>, tty: bool) -> u8 {
        let (mut interrupts, mut resized, mut handed_on) = (0, false, 0);
        loop {
            let waits = resized || handed_on < interrupts;
            tokio::select! {
                biased;
                _ = self.terminate.recv() => return 128 + SIGTERM,
                _ = self.hang_up.recv() => return 128 + SIGHUP,
                _ = self.interrupt.recv() => {
                    interrupts += 1;
                    if interrupts == INTERRUPTS_MAX {
                        return 128 + 2;
                    }
                }
                _ = self.resize.recv(), if tty => resized = true,
                room = requests.reserve(), if waits => {
                    let action = if handed_on < interrupts {
                        handed_on += 1;
                        Some(Action::Signal(v1::ExecSignal { number: SIGINT }))
                    } else {
                        resized = false;
                        terminal::size().map(Action::Resize)
                    };
                    // One that does not take it has ended, which is told elsewhere.
                    if let (Ok(room), Some(action)) = (room, action) {
                        room.send(message(action));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::process::{Signal as Number, getpid, kill_process};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn interrupt() {
        kill_process(getpid(), Number::INT).unwrap();
    }

    /// One test, since all of this process get its signals.
    #[tokio::test]
    async fn two_interrupts_reach_the_program_and_the_third_ends_the_call_whatever_is_taken() {
        let mut signals = Signals::listen().unwrap();
        let (requests, mut taken) = mpsc::channel(1);
        let program = async {
            for _ in 0..2 {
                interrupt();
                let signal = v1::ExecSignal { number: SIGINT };
                assert_eq!(taken.recv().await, Some(message(Action::Signal(signal))));
            }
            interrupt();
        };
        let both = async { tokio::join!(signals.hand_on(&requests, false), program) };
        let (code, ()) = tokio::time::timeout(PATIENCE, both).await.unwrap();
        assert_eq!(code, 130);

        let mut signals = Signals::listen().unwrap();
        let stuck = message(Action::StdinEnd(v1::StdinEnd {}));
        requests.try_send(stuck).unwrap();
        let interrupting = async {
            loop {
                interrupt();
                tokio::task::yield_now().await;
            }
        };
        let both = async {
            tokio::select! {
                code = signals.hand_on(&requests, false) => code,
                () = interrupting => unreachable!(),
            }
        };
        let code = tokio::time::timeout(PATIENCE, both).await.unwrap();
        assert_eq!(code, 130);
    }
}

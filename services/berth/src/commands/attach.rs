//! The command `attach`: the terminal becomes that of the container's own program, until it ends or two keys leave it.

use berth_api::v1::{
    self, attach_request::Action, attach_response::Event,
    sandbox_service_client::SandboxServiceClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    Session,
    exec::{self, Signals},
};
use crate::{
    args::Attach,
    errors::Failure,
    output,
    terminal::{self, Raw},
};

const WAITING: usize = 4;
/// Ctrl-P Ctrl-Q, as docker has it.
const LEAVE: [u8; 2] = [0x10, 0x11];

/// Returns the exit code of the container, or 0 where it was left.
pub(super) async fn run(session: &Session, args: Attach) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    let start = v1::AttachStart {
        id: args.id,
        container: args.container.unwrap_or_default(),
        stdin: !args.no_stdin,
        terminal_size: terminal::size(),
        expected_generation: 0,
    };
    let mut client = SandboxServiceClient::new(session.connect().await?);
    let (requests, receiver) = mpsc::channel(WAITING);
    // The channel is empty and its other end is here.
    let _ = requests.send(message(Action::Start(start))).await;
    let request = session.request(ReceiverStream::new(receiver));
    let attaching = async {
        let mut answers = client.attach(request).await?.into_inner();
        let first = answers.message().await?.and_then(|it| it.event);
        Ok::<_, Failure>((answers, first))
    };
    let (answers, first) = tokio::select! {
        attached = attaching => attached?,
        code = signals.ending() => return Ok(code),
    };
    let Some(Event::Started(started)) = first else {
        return Err(Failure::Incomplete("started"));
    };
    let keys = started.stdin && terminal::is_there();
    let raw = (keys && started.tty).then(Raw::enter).transpose()?;
    let (taken, window) = watch::channel(0);
    let feeding = async {
        if started.stdin && feed(&requests, window, started.tty && keys).await {
            return;
        }
        // What is said goes on without input.
        std::future::pending().await
    };
    let resizing = resize(&requests, started.tty);
    let code = tokio::select! {
        ended = receive(answers, &taken) => ended.map(|it| u8::try_from(it.exit_code).unwrap_or(u8::MAX)),
        () = feeding => Ok(0),
        resized = resizing => resized.map(|()| 0),
        code = signals.ending() => Ok(code),
    };
    // Before anything is told on it.
    drop(raw);
    if keys && started.tty && matches!(code, Ok(0)) {
        output::complain("");
    }
    code
}

async fn receive(
    mut answers: Streaming<v1::AttachResponse>,
    taken: &watch::Sender<u64>,
) -> Result<v1::AttachEnded, Failure> {
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

/// Sends standard input; returns whether its keys left the container.
async fn feed(
    requests: &mpsc::Sender<v1::AttachRequest>,
    mut window: watch::Receiver<u64>,
    leaves: bool,
) -> bool {
    let mut stdin = tokio::io::stdin();
    let (mut sent, mut keys) = (0_u64, Keys::default());
    loop {
        let room = |taken: &u64| sent.saturating_sub(*taken) < exec::WINDOW_BYTES;
        if window.wait_for(room).await.is_err() {
            return false;
        }
        let mut chunk = Vec::with_capacity(exec::CHUNK_BYTES);
        // What cannot be read has ended.
        let read = stdin.read_buf(&mut chunk).await.unwrap_or(0);
        if read == 0 {
            return false;
        }
        let left = leaves && keys.leave(&mut chunk);
        sent += u64::try_from(chunk.len()).unwrap_or_default();
        let gone = !chunk.is_empty() && requests.send(message(Action::Stdin(chunk))).await.is_err();
        if left || gone {
            return left;
        }
    }
}

/// Looks for the keys that leave.
#[derive(Debug, Default)]
struct Keys {
    half: bool,
}

impl Keys {
    /// Whether the keys are in the chunk, which is then cut before them. The first of them waits for the next.
    fn leave(&mut self, chunk: &mut Vec<u8>) -> bool {
        let mut kept = Vec::with_capacity(chunk.len() + 1);
        for &byte in chunk.iter() {
            if std::mem::take(&mut self.half) {
                if byte == LEAVE[1] {
                    *chunk = kept;
                    return true;
                }
                kept.push(LEAVE[0]);
            }
            if byte == LEAVE[0] {
                self.half = true;
            } else {
                kept.push(byte);
            }
        }
        *chunk = kept;
        false
    }
}

async fn resize(requests: &mpsc::Sender<v1::AttachRequest>, tty: bool) -> Result<(), Failure> {
    let mut resized = signal(SignalKind::window_change())?;
    loop {
        let told = resized.recv().await;
        if let Some(size) = terminal::size().filter(|_| tty && told.is_some()) {
            // One that does not take it has ended, which is told elsewhere.
            let _ = requests.send(message(Action::Resize(size))).await;
        }
    }
}

fn message(action: Action) -> v1::AttachRequest {
    v1::AttachRequest {
        action: Some(action),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn two_keys_leave_and_all_others_go_on() {
        type Case<'a> = (&'a [&'a [u8]], &'a [u8], bool);
        let cases: [Case<'_>; 6] = [
            (&[b"ab"],                  b"ab",         false),
            (&[b"a\x10\x11b"],          b"a",          true),
            (&[b"a\x10", b"\x11"],      b"a",          true),
            (&[b"a\x10", b"b"],         b"a\x10b",     false),
            (&[b"\x10\x10\x11"],        b"\x10",       true),
            (&[b"\x11\x11"],            b"\x11\x11",   false),
        ];
        for (chunks, expected, leaves) in cases {
            let (mut keys, mut sent, mut left) = (Keys::default(), vec![], false);
            for chunk in chunks {
                let mut chunk = chunk.to_vec();
                left = keys.leave(&mut chunk);
                sent.extend(chunk);
            }
            assert_eq!((sent.as_slice(), left), (expected, leaves), "{chunks:?}");
        }
    }
}

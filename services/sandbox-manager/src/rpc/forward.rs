//! `PortForward`: one connection into the network of a sandbox, carried by one stream.

use berth_api::v1::{
    self, port_forward_request::Part as Request, port_forward_response::Part as Response,
};
use berth_domain::{Failure, Reason, SandboxId, Status as SandboxStatus};
use berth_platform::{ConnectError, Images, Network, Runtime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use super::{
    access::{Streams, check_bytes, first, next, out_of_place, record_of},
    expected, parse_id, refuse,
};
use crate::{
    failures::network_failure,
    registry::{Registry, ending},
};

const BUFFER: usize = 64 << 10;
/// Messages that wait for a slow caller.
const ANSWERS_AHEAD: usize = 4;

type Answer = Result<v1::PortForwardResponse, Status>;

pub(crate) async fn port_forward<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    connections: &Streams,
    mut messages: impl Stream<Item = Result<v1::PortForwardRequest, Status>> + Unpin + Send + 'static,
) -> Result<ReceiverStream<Answer>, Status> {
    let start = match first(&mut messages).await?.and_then(|it| it.part) {
        Some(Request::Start(start)) => start,
        Some(Request::Data(_) | Request::End(_)) | None => {
            return Err(out_of_place("start", "must be the first message"));
        }
    };
    let id = parse_id("start.id", &start.id)?;
    let port = u16::try_from(start.port).ok().filter(|it| *it != 0);
    let port = port.ok_or_else(|| out_of_place("start.port", "must be 1 to 65535"))?;
    let record = record_of(registry, &id, expected(start.expected_generation)).await;
    let record = record.map_err(refuse)?;
    let has_ended = matches!(record.status, SandboxStatus::Stopped | SandboxStatus::Dead);
    if has_ended || record.ending.is_some() {
        return Err(refuse(ending(&id)));
    }
    let ticket = connections.enter(&id).map_err(refuse)?;
    let connected = registry.node().network.connect(&id, port).await;
    let socket = connected.map_err(|error| match error {
        ConnectError::Refused { source } => unreachable(&id, port, &source),
        ConnectError::Network(error) => refuse(network_failure(error)),
    })?;
    let (sender, answers) = mpsc::channel(ANSWERS_AHEAD);
    let over = registry.clone();
    registry.spawn(async move {
        let _ticket = ticket;
        let generation = record.generation;
        let outcome = tokio::select! {
            carried = carry(socket, &mut messages, &sender) => {
                carried.map_err(|it| it.into_status(&id, port))
            }
            () = sender.closed() => return,
            failure = over.until_over(&id, generation) => Err(refuse(failure)),
        };
        if let Err(status) = outcome {
            // A caller who does not read does not hold up the end.
            let _ = sender.try_send(Err(status));
        }
    });
    Ok(ReceiverStream::new(answers))
}

/// Why a connection broke.
enum Broken {
    /// By what its caller sent.
    Caller(Status),
    App(std::io::Error),
    /// Its caller has gone.
    Gone,
}

impl Broken {
    fn into_status(self, id: &SandboxId, port: u16) -> Status {
        match self {
            Self::Caller(status) => status,
            Self::App(error) => unreachable(id, port, &error),
            Self::Gone => Status::cancelled("the caller has gone"),
        }
    }
}

/// Carries both ways until both have ended.
async fn carry(
    socket: TcpStream,
    messages: &mut (impl Stream<Item = Result<v1::PortForwardRequest, Status>> + Unpin),
    sender: &mpsc::Sender<Answer>,
) -> Result<(), Broken> {
    let (from_app, to_app) = socket.into_split();
    answer(sender, Response::Connected(v1::PortForwardConnected {})).await?;
    tokio::try_join!(hear(from_app, sender), tell(messages, to_app))?;
    Ok(())
}

async fn hear(mut app: OwnedReadHalf, sender: &mpsc::Sender<Answer>) -> Result<(), Broken> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = app.read(&mut buffer).await.map_err(Broken::App)?;
        if read == 0 {
            return answer(sender, Response::End(v1::EndOfData {})).await;
        }
        answer(sender, Response::Data(buffer[..read].to_vec())).await?;
    }
}

async fn answer(sender: &mpsc::Sender<Answer>, part: Response) -> Result<(), Broken> {
    let message = v1::PortForwardResponse { part: Some(part) };
    sender.send(Ok(message)).await.map_err(|_| Broken::Gone)
}

async fn tell(
    messages: &mut (impl Stream<Item = Result<v1::PortForwardRequest, Status>> + Unpin),
    mut app: OwnedWriteHalf,
) -> Result<(), Broken> {
    while let Some(message) = next(messages, "data").await.map_err(Broken::Caller)? {
        match message.part {
            Some(Request::Data(bytes)) => {
                check_bytes("data", &bytes).map_err(Broken::Caller)?;
                app.write_all(&bytes).await.map_err(Broken::App)?;
            }
            Some(Request::End(_)) => break,
            Some(Request::Start(_)) => {
                return Err(Broken::Caller(out_of_place("start", "must come once")));
            }
            None => return Err(Broken::Caller(out_of_place("part", "must be set"))),
        }
    }
    // An app that has closed its end already needs no word of ours.
    let _ = app.shutdown().await;
    Ok(())
}

fn unreachable(id: &SandboxId, port: u16, error: &std::io::Error) -> Status {
    let message = match error.kind() == std::io::ErrorKind::ConnectionRefused {
        true => format!("nothing listens on port {port} of sandbox {id}: connection refused"),
        false => format!("the connection to port {port} of sandbox {id} broke: {error}"),
    };
    let failure = Failure::new(Reason::PortUnreachable, message);
    refuse(failure.with("port", port))
}

#[cfg(test)]
mod tests;

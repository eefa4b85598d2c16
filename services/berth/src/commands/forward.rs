//! `port-forward`: listens here, and carries each connection into the network of a sandbox by a call of its own.

use std::{net::SocketAddr, sync::Arc};

use berth_api::v1::{
    self, ErrorReason, port_forward_request::Part as Request,
    port_forward_response::Part as Response, sandbox_service_client::SandboxServiceClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::Session;
use crate::{
    args::{Forward, PortForward},
    errors::{self, Failure},
    output,
};

const BUFFER: usize = 64 << 10;
const MESSAGES_AHEAD: usize = 4;

pub(super) async fn forward(session: &Session, args: PortForward) -> Result<(), Failure> {
    let mut client = SandboxServiceClient::new(session.connect().await?);
    let request = session.request(v1::GetRequest {
        id: args.id.clone(),
    });
    let sandbox = client.get(request).await?.into_inner().sandbox;
    let sandbox = sandbox.ok_or(Failure::Incomplete("sandbox"))?;
    let mut listeners = vec![];
    for Forward { local, remote } in &args.ports {
        let address = SocketAddr::new(args.listen, *local);
        let in_use = |source| Failure::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(in_use)?;
        let bound = listener.local_addr().map_err(in_use)?;
        listeners.push((listener, *remote));
        output::print(&format!("{bound} -> {}:{remote}", args.id))?;
    }
    let session = Arc::new(session.clone());
    let mut tasks = JoinSet::new();
    for (listener, port) in listeners {
        let start = v1::PortForwardStart {
            id: args.id.clone(),
            port: port.into(),
            // A sandbox that is made anew under this id is another one.
            expected_generation: sandbox.generation,
        };
        tasks.spawn(listen(session.clone(), listener, start));
    }
    match tasks.join_next().await {
        Some(Ok(failure)) => Err(failure),
        Some(Err(error)) => Err(Failure::Output(std::io::Error::other(error))),
        None => Ok(()),
    }
}

/// Takes connections until the sandbox is no more.
async fn listen(
    session: Arc<Session>,
    listener: TcpListener,
    start: v1::PortForwardStart,
) -> Failure {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(carry(session.clone(), socket, start.clone()));
                }
                Err(source) => {
                    let address = SocketAddr::from(([0, 0, 0, 0], 0));
                    let address = listener.local_addr().unwrap_or(address);
                    return Failure::Listen { address, source };
                }
            },
            Some(ended) = connections.join_next() => {
                if let Ok(Err(failure)) = ended {
                    if is_final(&failure) {
                        return failure;
                    }
                    errors::tell(&failure);
                }
            }
        }
    }
}

/// Whether no later connection can do better.
fn is_final(failure: &Failure) -> bool {
    let Failure::Call(status) = failure else {
        return false;
    };
    matches!(
        errors::reason(status),
        Some(
            ErrorReason::SandboxNotFound
                | ErrorReason::SandboxEnding
                | ErrorReason::GenerationConflict
                | ErrorReason::InvalidField
        )
    )
}

async fn carry(
    session: Arc<Session>,
    socket: TcpStream,
    start: v1::PortForwardStart,
) -> Result<(), Failure> {
    let _ = socket.set_nodelay(true);
    // A channel of its own: in a shared one a reader that does not read holds up the others.
    let mut client = SandboxServiceClient::new(session.connect().await?);
    let (messages, receiver) = mpsc::channel(MESSAGES_AHEAD);
    let send = async |part| {
        let message = v1::PortForwardRequest { part: Some(part) };
        messages.send(message).await.is_ok()
    };
    send(Request::Start(start)).await;
    let call = client.port_forward(ReceiverStream::new(receiver));
    let answers = call.await?.into_inner();
    let (reader, writer) = socket.into_split();
    let telling = async {
        tell(reader, &messages).await;
        // Not before the other side has ended, too: the end of the calls' messages is no more than `end`.
        std::future::pending::<()>().await
    };
    tokio::select! {
        heard = hear(answers, writer) => heard,
        () = telling => Ok(()),
    }
}

/// What comes from here goes to the app, and its end, however it came.
async fn tell(mut from: OwnedReadHalf, messages: &mpsc::Sender<v1::PortForwardRequest>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or_default();
        let part = match read {
            0 => Request::End(v1::EndOfData {}),
            read => Request::Data(buffer[..read].to_vec()),
        };
        let message = v1::PortForwardRequest { part: Some(part) };
        if messages.send(message).await.is_err() || read == 0 {
            return;
        }
    }
}

/// What the app says comes out here, until both have ended.
async fn hear(
    mut answers: Streaming<v1::PortForwardResponse>,
    mut to: OwnedWriteHalf,
) -> Result<(), Failure> {
    let mut ended = false;
    while let Some(answer) = answers.message().await? {
        match answer.part {
            Some(Response::Data(bytes)) => {
                // Whoever connected here has gone: so is the connection.
                if to.write_all(&bytes).await.is_err() {
                    return Ok(());
                }
            }
            Some(Response::End(_)) => {
                ended = true;
                let _ = to.shutdown().await;
            }
            Some(Response::Connected(_)) | None => {}
        }
    }
    if ended {
        Ok(())
    } else {
        Err(Failure::StreamEnded)
    }
}

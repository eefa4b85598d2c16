//! `cp`: a tar stream between a path here and a path in a container. What arrives here is unpacked by the same rules as on
//! the node: a container cannot make files outside of the destination.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use berth_api::v1::{
    self, CopyTarget, copy_from_response::Part as FromPart, copy_to_request::Part as ToPart,
    sandbox_service_client::SandboxServiceClient,
};
use berth_copy::{Chunk, CopyError, Incoming, Options, Owner, Target, Totals, pack, unpack};
use tokio::{
    io::AsyncReadExt as _,
    sync::mpsc,
    task::{JoinError, spawn_blocking},
};
use tokio_stream::wrappers::ReceiverStream;

use super::Session;
use crate::{
    args::{Copy, Side},
    errors::Failure,
    output,
};

const CHUNK_BYTES: usize = 128 << 10;
const CHUNKS_AHEAD: usize = 4;

pub(super) async fn copy(session: &Session, args: Copy) -> Result<(), Failure> {
    let told = match (&args.from, &args.to) {
        (
            Side::Here(from),
            Side::There {
                id,
                container,
                path,
            },
        ) => {
            let start = v1::CopyToStart {
                id: id.clone(),
                container: container_of(&args, container.as_deref())?,
                path: path.clone(),
                target: match is_stream(from) {
                    true => CopyTarget::Into.into(),
                    false => CopyTarget::As.into(),
                },
                expected_generation: 0,
                keep_existing: args.keep_existing,
                keep_owner: args.archive,
            };
            upload(session, start, from, args.follow_link).await?
        }
        (
            Side::There {
                id,
                container,
                path,
            },
            Side::Here(to),
        ) => {
            let request = v1::CopyFromRequest {
                id: id.clone(),
                container: container_of(&args, container.as_deref())?,
                path: path.clone(),
                expected_generation: 0,
                follow_link: args.follow_link,
            };
            download(session, request, to, &args).await?
        }
        (Side::Here(_), Side::Here(_)) | (Side::There { .. }, Side::There { .. }) => {
            return Err(Failure::Sides);
        }
    };
    if told.skipped > 0 {
        let what = "sockets, pipes, devices or directories of the kernel are not in the copy";
        output::complain(&format!("berth: {} {what}", told.skipped));
    }
    Ok(())
}

fn container_of(args: &Copy, written: Option<&str>) -> Result<String, Failure> {
    match (args.container.as_deref(), written) {
        (Some(one), Some(other)) if one != other => Err(Failure::TwoContainers),
        (one, other) => Ok(one.or(other).unwrap_or_default().to_owned()),
    }
}

fn is_stream(path: &Path) -> bool {
    path == Path::new("-")
}

async fn upload(
    session: &Session,
    start: v1::CopyToStart,
    from: &Path,
    follow: bool,
) -> Result<Totals, Failure> {
    let mut client = SandboxServiceClient::new(session.connect().await?);
    let (parts, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let message = |part| v1::CopyToRequest { part: Some(part) };
    let call = async {
        let request = session.request(ReceiverStream::new(receiver));
        Ok(client.copy_to(request).await?.into_inner())
    };
    let feed = async {
        // While it is there, a failure ends the call and never looks like the end of the archive.
        let open = parts;
        if open.send(message(ToPart::Start(start))).await.is_err() {
            return Ok(Totals::default());
        }
        if is_stream(from) {
            send_stdin(&open).await.map_err(|source| Failure::File {
                path: from.to_owned(),
                source,
            })?;
            return Ok(Totals::default());
        }
        let (path, sink) = (here(from)?, Outgoing(open.clone()));
        let packed = spawn_blocking(move || {
            let sink = BufWriter::with_capacity(CHUNK_BYTES, sink);
            pack(root()?.as_fd(), &path, follow, sink)
        });
        match joined(packed.await)? {
            // The manager has hung up; its answer says why.
            Err(CopyError::Stream { .. }) => Ok(Totals::default()),
            packed => packed.map_err(Failure::Copy),
        }
    };
    let (_, sent) = tokio::try_join!(call, feed)?;
    Ok(sent)
}

async fn send_stdin(parts: &mpsc::Sender<v1::CopyToRequest>) -> io::Result<()> {
    let mut stdin = tokio::io::stdin();
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        stdin.read_buf(&mut chunk).await?;
        if chunk.is_empty() {
            return Ok(());
        }
        let part = Some(ToPart::Chunk(chunk));
        if parts.send(v1::CopyToRequest { part }).await.is_err() {
            return Ok(());
        }
    }
}

struct Outgoing(mpsc::Sender<v1::CopyToRequest>);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = bytes.len().min(CHUNK_BYTES);
        let part = Some(ToPart::Chunk(bytes[..sent].to_vec()));
        match self.0.blocking_send(v1::CopyToRequest { part }) {
            Ok(()) => Ok(sent),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn download(
    session: &Session,
    request: v1::CopyFromRequest,
    to: &Path,
    args: &Copy,
) -> Result<Totals, Failure> {
    let mut client = SandboxServiceClient::new(session.connect().await?);
    let request = session.request(request);
    let mut parts = client.copy_from(request).await?.into_inner();
    let (chunks, mut receiver) = mpsc::channel(CHUNKS_AHEAD);
    let work = match is_stream(to) {
        true => spawn_blocking(move || {
            let mut stdout = io::stdout().lock();
            io::copy(
                &mut Incoming::new(move || receiver.blocking_recv()),
                &mut stdout,
            )?;
            stdout.flush()?;
            Ok(())
        }),
        false => {
            let path = here(to)?;
            let options = Options {
                target: Target::As,
                owner: match args.archive {
                    true => Owner::Archived,
                    false => Owner::Caller,
                },
                overwrite: !args.keep_existing,
            };
            spawn_blocking(move || {
                let archive = Incoming::new(move || receiver.blocking_recv());
                let unpacked = root().and_then(|it| unpack(it.as_fd(), &path, options, archive));
                unpacked.map(drop).map_err(Failure::Copy)
            })
        }
    };
    let mut done = None;
    while done.is_none() {
        // What was made of it so far is left as it is, but for the file that is half there.
        let part = match parts.message().await {
            Ok(part) => part.and_then(|it| it.part),
            Err(status) => {
                drop(chunks);
                let _ = work.await;
                return Err(status.into());
            }
        };
        let sent = match part {
            Some(FromPart::Chunk(bytes)) => chunks.send(Chunk::Bytes(bytes)).await,
            Some(FromPart::Done(it)) => {
                done = Some(it);
                chunks.send(Chunk::End).await
            }
            None => return Err(Failure::StreamEnded),
        };
        if sent.is_err() {
            break;
        }
    }
    joined(work.await)??;
    let done = done.unwrap_or_default();
    Ok(Totals {
        skipped: done.skipped,
        ..Totals::default()
    })
}

fn joined<T>(ended: Result<T, JoinError>) -> Result<T, Failure> {
    ended.map_err(|error| Failure::Output(io::Error::other(error)))
}

fn root() -> Result<File, CopyError> {
    File::open("/").map_err(|source| CopyError::Node {
        operation: "opening",
        path: "/".into(),
        source,
    })
}

/// A path from the root, as it was written: a slash or a dot at its end means something.
fn here(path: &Path) -> Result<PathBuf, Failure> {
    let unreadable = |source| Failure::File {
        path: path.to_owned(),
        source,
    };
    let folder = std::env::current_dir().map_err(unreadable)?;
    // `.` is the folder itself, without a name of its own.
    match path.as_os_str().as_bytes() {
        b"" => Err(unreadable(io::ErrorKind::NotFound.into())),
        _ => Ok(folder.join(path)),
    }
}

//! `CopyTo` and `CopyFrom`: between a caller's stream and a thread that works on the root of a container.

use std::{
    io::{self, BufWriter, Write},
    os::fd::AsFd as _,
    path::PathBuf,
    time::Duration,
};

use berth_api::v1::{
    self, CopyTarget, copy_from_response::Part as FromPart, copy_to_request::Part as ToPart,
};
use berth_copy::{Chunk, CopyError, Incoming, Options, Owner, Target, Totals, pack, unpack};
use berth_domain::{Failure, Reason};
use berth_platform::{ContainerRoot, Images, Network, Runtime};
use tokio::{sync::mpsc, task::JoinError};
use tokio_stream::Stream;
use tonic::Status;

use super::{
    access::{
        Streams, check_bytes, container_of, first, next, out_of_place, over, record_of, root_of,
    },
    expected, parse_id, refuse,
};
use crate::{failures::internal, registry::Registry};

/// Messages that wait for the slower side.
const CHUNKS_AHEAD: usize = 4;
const CHUNK_SENT: usize = 128 << 10;
const PATH_MAX: usize = 4096;
/// How long the thread of a copy that is over is waited for, so that nothing half made is there when its caller hears of it.
const TIDYING: Duration = Duration::from_secs(1);

pub(crate) async fn copy_to<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    copies: &Streams,
    mut messages: impl Stream<Item = Result<v1::CopyToRequest, Status>> + Unpin,
) -> Result<v1::CopyToResponse, Status> {
    let start = match first(&mut messages).await?.and_then(|it| it.part) {
        Some(ToPart::Start(start)) => start,
        Some(ToPart::Chunk(_)) | None => {
            return Err(out_of_place("start", "must be the first message"));
        }
    };
    let id = parse_id("start.id", &start.id)?;
    let path = path_of("start.path", &start.path)?;
    let target = match CopyTarget::try_from(start.target) {
        Ok(CopyTarget::Unspecified | CopyTarget::Into) => Target::Into,
        Ok(CopyTarget::As) => Target::As,
        Err(_) => return Err(out_of_place("start.target", "must be INTO or AS")),
    };
    let record = record_of(registry, &id, expected(start.expected_generation)).await;
    let record = record.map_err(refuse)?;
    let role = container_of(&record, "start.container", &start.container).map_err(refuse)?;
    let ticket = copies.enter(&id).map_err(refuse)?;
    let root = root_of(registry, &id, &role).await.map_err(refuse)?;
    let ContainerRoot {
        dir,
        ended,
        uid,
        gid,
    } = root;
    let options = Options {
        target,
        owner: match start.keep_owner {
            true => Owner::Archived,
            false => Owner::Given { uid, gid },
        },
        overwrite: !start.keep_existing,
    };
    let (chunks, mut incoming) = mpsc::channel(CHUNKS_AHEAD);
    let mut work = tokio::task::spawn_blocking(move || {
        let _ticket = ticket;
        unpack(
            dir.as_fd(),
            &path,
            options,
            Incoming::new(move || incoming.blocking_recv()),
        )
    });
    let status = {
        let feeding = feed(&mut messages, chunks);
        let over = over(ended, registry.stopping(), id, role);
        tokio::pin!(feeding, over);
        tokio::select! {
            biased;
            done = &mut work => return answer(done),
            fed = &mut feeding => match fed {
                Err(status) => status,
                Ok(()) => tokio::select! {
                    done = &mut work => return answer(done),
                    failure = over => refuse(failure),
                },
            },
            failure = &mut over => refuse(failure),
        }
    };
    let _ = tokio::time::timeout(TIDYING, work).await;
    Err(status)
}

fn answer(
    done: Result<Result<Totals, CopyError>, JoinError>,
) -> Result<v1::CopyToResponse, Status> {
    let done = done.map_err(|_| refuse(internal("the work on this copy broke off")))?;
    let totals = done.map_err(|it| refuse(copy_failure(it)))?;
    Ok(v1::CopyToResponse {
        files: totals.files,
        directories: totals.directories,
        bytes: totals.bytes,
    })
}

/// Hands the archive on to its thread, with its end.
async fn feed(
    messages: &mut (impl Stream<Item = Result<v1::CopyToRequest, Status>> + Unpin),
    chunks: mpsc::Sender<Chunk>,
) -> Result<(), Status> {
    while let Some(message) = next(messages, "chunk").await? {
        let bytes = match message.part {
            Some(ToPart::Chunk(bytes)) => bytes,
            Some(ToPart::Start(_)) => return Err(out_of_place("start", "must come once")),
            None => return Err(out_of_place("part", "must be set")),
        };
        check_bytes("chunk", &bytes)?;
        if chunks.send(Chunk::Bytes(bytes)).await.is_err() {
            return Ok(());
        }
    }
    let _ = chunks.send(Chunk::End).await;
    Ok(())
}

pub(crate) async fn copy_from<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    copies: &Streams,
    request: v1::CopyFromRequest,
) -> Result<impl Stream<Item = Result<v1::CopyFromResponse, Status>> + Send + 'static, Status> {
    let id = parse_id("id", &request.id)?;
    let path = path_of("path", &request.path)?;
    let record = record_of(registry, &id, expected(request.expected_generation)).await;
    let record = record.map_err(refuse)?;
    let role = container_of(&record, "container", &request.container).map_err(refuse)?;
    let ticket = copies.enter(&id).map_err(refuse)?;
    let root = root_of(registry, &id, &role).await.map_err(refuse)?;
    let ContainerRoot { dir, ended, .. } = root;
    let (sender, parts) = mpsc::channel(CHUNKS_AHEAD);
    // It ends by itself when nobody takes what it sends.
    drop(tokio::task::spawn_blocking(move || {
        let _ticket = ticket;
        let sink = BufWriter::with_capacity(CHUNK_SENT, Outgoing(sender.clone()));
        let last = match pack(dir.as_fd(), &path, request.follow_link, sink) {
            Ok(totals) => Ok(v1::CopyFromResponse {
                part: Some(FromPart::Done(v1::CopyFromDone {
                    files: totals.files,
                    directories: totals.directories,
                    bytes: totals.bytes,
                    skipped: totals.skipped,
                })),
            }),
            Err(error) => Err(refuse(copy_failure(error))),
        };
        let _ = sender.blocking_send(last);
    }));
    let over = Box::pin(over(ended, registry.stopping(), id, role));
    let stream = futures::stream::unfold(Some((parts, over)), |state| async move {
        let (mut parts, mut over) = state?;
        tokio::select! {
            biased;
            failure = &mut over => Some((Err(refuse(failure)), None)),
            part = parts.recv() => Some((part?, Some((parts, over)))),
        }
    });
    Ok(stream)
}

struct Outgoing(mpsc::Sender<Result<v1::CopyFromResponse, Status>>);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = bytes.len().min(CHUNK_SENT);
        let part = Some(FromPart::Chunk(bytes[..sent].to_vec()));
        let message = Ok(v1::CopyFromResponse { part });
        match self.0.blocking_send(message) {
            Ok(()) => Ok(sent),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn path_of(field: &str, text: &str) -> Result<PathBuf, Status> {
    let problem = match text {
        "" => "must be set",
        text if text.len() > PATH_MAX => "must have at most 4096 bytes",
        text if text.contains('\0') => "must have no zero byte",
        text => return Ok(text.into()),
    };
    Err(out_of_place(field, problem))
}

fn copy_failure(error: CopyError) -> Failure {
    let message = error.to_string();
    match error {
        CopyError::NotFound { path } => {
            Failure::new(Reason::PathNotFound, message).with("path", path.display())
        }
        CopyError::Refused { path, .. } => {
            Failure::new(Reason::PathRefused, message).with("path", path.display())
        }
        CopyError::Full { path } => {
            Failure::new(Reason::NoSpace, message).with("path", path.display())
        }
        CopyError::Archive { entry, .. } => {
            Failure::new(Reason::TarInvalid, message).with("entry", entry)
        }
        // Its caller is the one who broke it off, and hears nothing of this.
        CopyError::Stream { .. } => Failure::new(Reason::TarInvalid, message).with("entry", ""),
        CopyError::Node { source, .. } => {
            tracing::warn!(error = message, cause = %source, "a copy failed");
            internal(&format!("{message}: {source}"))
        }
    }
}

#[cfg(test)]
mod tests;

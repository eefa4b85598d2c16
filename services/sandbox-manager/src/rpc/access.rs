//! What the calls that reach into a sandbox share: which container is meant, how many of them are open, and what ends them.

use std::time::Duration;

use berth_domain::{Failure, Generation, Reason, Role, SandboxId, SandboxRecord};
use berth_platform::{ContainerRoot, Images, Network, Runtime};
use tokio::io::unix::AsyncFd;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status};

use super::refuse;
use crate::{
    failures::{internal, runtime_failure, store_failure},
    places::{Full, Place, Places},
    registry::{Registry, generation_conflict, not_found, shutting_down},
};

/// At a time, of one sandbox and of all.
const COPIES_EACH_MAX: usize = 4;
const COPIES_MAX: usize = 16;
const CONNECTIONS_EACH_MAX: usize = 256;
const CONNECTIONS_MAX: usize = 4096;
/// The largest message of a stream.
pub(crate) const CHUNK_MAX: usize = 1 << 20;
/// Whoever opens a stream knows what for.
const FIRST_MESSAGE: Duration = Duration::from_secs(30);

/// What is open of one kind of calls.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    /// As messages and metadata say it.
    what: &'static str,
    places: Places,
}

impl Streams {
    /// A copy keeps a thread of the manager.
    pub(crate) fn copies() -> Self {
        Self::new("copies", COPIES_EACH_MAX, COPIES_MAX)
    }

    /// A connection keeps a socket and some buffers.
    pub(crate) fn connections() -> Self {
        Self::new("connections", CONNECTIONS_EACH_MAX, CONNECTIONS_MAX)
    }

    fn new(what: &'static str, per_sandbox: usize, in_all: usize) -> Self {
        Self {
            what,
            places: Places::new(per_sandbox, in_all),
        }
    }

    /// Counts one more until the place is dropped.
    pub(crate) fn enter(&self, id: &SandboxId) -> Result<Place, Failure> {
        self.places.take(id).map_err(|Full { of, limit }| {
            let whose = match of {
                "sandbox" => format!("sandbox {id}"),
                _ => "this node".to_owned(),
            };
            let what = self.what;
            let message = format!("{whose} has {limit} {what} open already, and cannot have more");
            let failure = Failure::new(Reason::StreamsExhausted, message);
            failure.with("limit", limit).with("what", what)
        })
    }
}

/// The first message of a stream; `None` where there is none.
pub(crate) async fn first<T>(
    messages: &mut (impl Stream<Item = Result<T, Status>> + Unpin),
) -> Result<Option<T>, Status> {
    match tokio::time::timeout(FIRST_MESSAGE, next(messages, "start")).await {
        Ok(message) => message,
        Err(_) => {
            let problem = format!("must come within {FIRST_MESSAGE:?}");
            Err(refuse(Failure::invalid("start", problem)))
        }
    }
}

/// The next message of a stream; `None` at its end. `field` is what makes a message large.
pub(crate) async fn next<T>(
    messages: &mut (impl Stream<Item = Result<T, Status>> + Unpin),
    field: &str,
) -> Result<Option<T>, Status> {
    match messages.next().await {
        // Larger than any message may be.
        Some(Err(status)) if status.code() == Code::OutOfRange => {
            let problem = format!("is too large, must have 1 to {CHUNK_MAX} bytes");
            Err(out_of_place(field, &problem))
        }
        message => message.transpose(),
    }
}

/// Refuses a message without bytes and one with too many.
pub(crate) fn check_bytes(field: &str, bytes: &[u8]) -> Result<(), Status> {
    if (1..=CHUNK_MAX).contains(&bytes.len()) {
        return Ok(());
    }
    let problem = format!("has {} bytes, must have 1 to {CHUNK_MAX}", bytes.len());
    Err(refuse(Failure::invalid(field, problem)))
}

pub(crate) fn out_of_place(field: &str, problem: &str) -> Status {
    refuse(Failure::invalid(field, problem))
}

/// The record of a sandbox, of the generation that the caller means.
pub(crate) async fn record_of<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    id: &SandboxId,
    expected: Option<Generation>,
) -> Result<SandboxRecord, Failure> {
    let record = registry.store().get(id).await.map_err(store_failure)?;
    let record = record.ok_or_else(|| not_found(id))?;
    match expected.filter(|it| *it != record.generation) {
        Some(expected) => Err(generation_conflict(id, expected, record.generation)),
        None => Ok(record),
    }
}

/// The container that is meant: the one of this name, or the only one.
pub(crate) fn container_of(
    record: &SandboxRecord,
    field: &str,
    name: &str,
) -> Result<Role, Failure> {
    let containers = &record.spec.containers;
    let known = || {
        let names: Vec<_> = containers.iter().map(|it| it.name.as_str()).collect();
        names.join(", ")
    };
    let found = match (name, containers.as_slice()) {
        ("", [only]) => Some(only),
        ("", _) => {
            let problem = format!("must be set: sandbox {} has {}", record.id, known());
            return Err(Failure::invalid(field, problem));
        }
        (name, all) => all.iter().find(|it| it.name.as_str() == name),
    };
    match found {
        Some(it) => Ok(Role::App(it.name.clone())),
        None => Err(Failure::new(
            Reason::ContainerNotFound,
            format!(
                "sandbox {} has no container {name}: it has {}",
                record.id,
                known()
            ),
        )),
    }
}

/// Opens the root of a container that runs.
pub(crate) async fn root_of<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    id: &SandboxId,
    role: &Role,
) -> Result<ContainerRoot, Failure> {
    let root = registry.node().runtime.root(id, role).await;
    let root = root.map_err(runtime_failure)?;
    root.ok_or_else(|| not_running(id, role, "does not run"))
}

fn not_running(id: &SandboxId, role: &Role, how: &str) -> Failure {
    let message = format!("container {role} of sandbox {id} {how}");
    Failure::new(Reason::ContainerNotRunning, message).with("container", role)
}

/// Waits until what a call works with is no more, and says why.
pub(crate) async fn over(
    ended: std::os::fd::OwnedFd,
    stopping: impl Future<Output = ()>,
    id: SandboxId,
    role: Role,
) -> Failure {
    #[expect(
        deprecated,
        reason = "an owned descriptor stays the one that it is, which is all that its successor asks for"
    )]
    let ended = match AsyncFd::new(ended) {
        Ok(ended) => ended,
        Err(error) => {
            tracing::warn!(%error, "the end of a container cannot be waited for");
            return internal("the end of the container cannot be waited for");
        }
    };
    tokio::select! {
        _ = ended.readable() => not_running(&id, &role, "has ended"),
        () = stopping => shutting_down(),
    }
}

#[cfg(test)]
pub(crate) mod ground;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_open_and_a_dropped_ticket_makes_room() {
        let streams = Streams::new("things", 2, 3);
        let id = |text: &str| SandboxId::parse(text).unwrap();
        let first = streams.enter(&id("a")).unwrap();
        let _second = streams.enter(&id("a")).unwrap();
        let refused = streams.enter(&id("a")).unwrap_err();
        assert_eq!(refused.reason, Reason::StreamsExhausted);
        assert_eq!(
            refused.message,
            "sandbox a has 2 things open already, and cannot have more"
        );
        let third = streams.enter(&id("b")).unwrap();
        let refused = streams.enter(&id("b")).unwrap_err();
        assert!(
            refused.message.starts_with("this node has 3 things"),
            "{refused}"
        );
        drop(first);
        streams.enter(&id("a")).unwrap();
        drop(third);
        streams.enter(&id("c")).unwrap();
    }
}

//! What a person reaches of a sandbox of the fake: the root of its containers, and ports whose app answers what it hears.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
};

use berth_domain::{Protocol, Role, SandboxId, TaskSeen};

use super::{FakeNode, State};
use crate::{ConnectError, ContainerRoot, NetworkError, RuntimeError};

#[derive(Debug, Default)]
pub(super) struct Access {
    roots: BTreeMap<(SandboxId, Role), PathBuf>,
    /// Kept while the task runs: the other ends hear of it when one is dropped.
    alive: BTreeMap<(SandboxId, Role), Vec<UnixStream>>,
}

impl FakeNode {
    /// Makes this folder the root of a container. Without one its root is a place in which nothing can be made.
    pub fn put_root(&self, id: &SandboxId, role: &Role, folder: &Path) {
        let key = (id.clone(), role.clone());
        self.state().access.roots.insert(key, folder.to_owned());
    }
}

impl State {
    fn runs(&self, id: &SandboxId, role: &Role) -> bool {
        let stored = self
            .sandboxes
            .get(id)
            .and_then(|it| it.containers.get(role));
        stored.is_some_and(|it| it.task == TaskSeen::Running)
    }

    /// Lets go of what lasts as long as a task runs.
    pub(super) fn settle(&mut self) {
        let mut alive = std::mem::take(&mut self.access.alive);
        alive.retain(|(id, role), _| self.runs(id, role));
        self.access.alive = alive;
    }

    pub(super) fn root(
        &mut self,
        id: &SandboxId,
        role: &Role,
    ) -> Result<Option<ContainerRoot>, RuntimeError> {
        if !self.runs(id, role) {
            return Ok(None);
        }
        let key = (id.clone(), role.clone());
        let folder = self.access.roots.get(&key).cloned();
        let folder = folder.unwrap_or_else(|| "/proc/self/fdinfo".into());
        let opened = File::open(&folder).and_then(|dir| Ok((dir, UnixStream::pair()?)));
        let (dir, (kept, ended)) = opened.map_err(|it| RuntimeError::Node {
            operation: "root",
            source: it.into(),
        })?;
        self.access.alive.entry(key).or_default().push(kept);
        Ok(Some(ContainerRoot {
            dir: dir.into(),
            ended: OwnedFd::from(ended),
            uid: 0,
            gid: 0,
        }))
    }

    pub(super) fn connect(&mut self, id: &SandboxId, port: u16) -> Result<TcpStream, ConnectError> {
        let held = self.sandboxes.get(id).filter(|it| it.namespaces);
        let Some(held) = held else {
            return Err(ConnectError::Network(NetworkError {
                operation: format!("connect {id}"),
                source: "the namespaces are not open".into(),
            }));
        };
        let listens = held.sockets(&self.listens);
        let listens = listens
            .iter()
            .any(|it| it.protocol == Protocol::Tcp && it.port == port);
        if !listens {
            return Err(ConnectError::Refused {
                source: io::ErrorKind::ConnectionRefused.into(),
            });
        }
        echo().map_err(|source| ConnectError::Refused { source })
    }
}

/// A connection to an app that says what it hears, and ends when it has heard the end.
fn echo() -> io::Result<TcpStream> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let caller = TcpStream::connect(listener.local_addr()?)?;
    let (app, _) = listener.accept()?;
    caller.set_nonblocking(true)?;
    std::thread::spawn(move || {
        let _ = io::copy(&mut &app, &mut &app);
        let _ = app.shutdown(Shutdown::Write);
    });
    Ok(caller)
}

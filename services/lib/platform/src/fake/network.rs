//! The network of the fake node.

use std::net::Ipv4Addr;

use berth_domain::{Extent, ProbeCheck, Protocol, Sandbox, SandboxId};
use tokio::net::TcpStream;

use super::{FakeNode, TABLE};
use crate::{
    ConnectError, Denied, FencingSeen, ListeningSocket, Network, NetworkError, NetworkObject,
    NetworkObjectKind, NetworkSeen, ProbeError,
};

impl Network for FakeNode {
    async fn observe(&self, id: &SandboxId) -> Result<NetworkSeen, NetworkError> {
        self.call("observe_network", id.as_str(), |state| {
            let held = state.sandboxes.get(id);
            Ok(held.map_or_else(NetworkSeen::default, |held| NetworkSeen {
                namespaces: Extent::of(&[held.namespaces]),
                link: held.link,
            }))
        })
        .await
    }

    async fn open_namespaces(&self, sandbox: &Sandbox) -> Result<(), NetworkError> {
        self.change("open_namespaces", &sandbox.id, |state| {
            let held = state.sandboxes.entry(sandbox.id.clone()).or_default();
            held.namespaces = true;
            Ok(())
        })
        .await
    }

    async fn attach_link(&self, sandbox: &Sandbox) -> Result<(), NetworkError> {
        self.change("attach_link", &sandbox.id, |state| {
            match state.sandboxes.get_mut(&sandbox.id) {
                Some(held) if held.namespaces => {
                    (held.link, held.fenced) = (true, true);
                    Ok(())
                }
                Some(_) | None => Err(NetworkError {
                    operation: format!("attach_link {}", sandbox.id),
                    source: "the namespaces are not open".into(),
                }),
            }
        })
        .await
    }

    async fn detach_link(&self, id: &SandboxId) -> Result<(), NetworkError> {
        self.change("detach_link", id, |state| {
            if let Some(held) = state.sandboxes.get_mut(id) {
                (held.link, held.fenced) = (false, false);
            }
            Ok(())
        })
        .await
    }

    async fn close_namespaces(&self, id: &SandboxId) -> Result<(), NetworkError> {
        self.change("close_namespaces", id, |state| {
            if let Some(held) = state.sandboxes.get_mut(id) {
                (held.namespaces, held.fenced) = (false, false);
            }
            Ok(())
        })
        .await
    }

    async fn forget_connections(&self, addresses: Vec<Ipv4Addr>) -> Result<(), NetworkError> {
        let words: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        self.change("forget_connections", words.join(" "), |_| Ok(()))
            .await
    }

    async fn restore(&self, sandboxes: Vec<Sandbox>) -> Result<(), NetworkError> {
        self.call("restore", "", |state| {
            for (id, held) in &mut state.sandboxes {
                held.fenced = held.link && sandboxes.iter().any(|it| it.id == *id);
            }
            Ok(())
        })
        .await
    }

    async fn denied(&self, id: &SandboxId) -> Result<Option<Denied>, NetworkError> {
        self.call("denied", id.as_str(), |state| {
            let held = state.sandboxes.get(id);
            Ok(held.filter(|it| it.fenced).map(|_| Denied::default()))
        })
        .await
    }

    async fn connect(&self, id: &SandboxId, port: u16) -> Result<TcpStream, ConnectError> {
        let connected = self.call("connect", id.as_str(), |state| state.connect(id, port));
        let refused = |source| ConnectError::Refused { source };
        TcpStream::from_std(connected.await?).map_err(refused)
    }

    async fn node_listens(&self) -> Result<Vec<ListeningSocket>, NetworkError> {
        self.call("node_listens", "", |state| Ok(state.node_listens.clone()))
            .await
    }

    async fn listening(&self, id: &SandboxId) -> Result<Vec<ListeningSocket>, NetworkError> {
        self.call("listening", id.as_str(), |state| {
            match state.sandboxes.get(id) {
                Some(held) if held.namespaces => Ok(held.sockets(&state.listens)),
                Some(_) | None => Err(NetworkError {
                    operation: format!("listening {id}"),
                    source: "the namespaces are not open".into(),
                }),
            }
        })
        .await
    }

    async fn lead_node_ports(&self, sandbox: &Sandbox) -> Result<(), NetworkError> {
        let ways = sandbox.node_ports();
        let ways: Vec<_> = ways.map(|(_, from, to)| format!("{from}={to}")).collect();
        let about = format!("{} {}", sandbox.id, ways.join(" "));
        self.change("lead_node_ports", &about, |state| {
            match state.sandboxes.get(&sandbox.id) {
                Some(held) if held.link => Ok(()),
                Some(_) | None => Err(NetworkError {
                    operation: format!("lead_node_ports {about}"),
                    source: "it has no link".into(),
                }),
            }
        })
        .await
    }

    async fn probe(&self, sandbox: &Sandbox, check: &ProbeCheck) -> Result<(), ProbeError> {
        self.call("probe", sandbox.id.as_str(), |state| {
            let port = match check {
                ProbeCheck::HttpGet { port, .. } | ProbeCheck::TcpConnect { port } => port,
                ProbeCheck::Exec { .. } => return Err(ProbeError::of_program()),
            };
            let held = state.sandboxes.get(&sandbox.id);
            let sockets = held.map(|it| it.sockets(&state.listens));
            let reached = |it: &ListeningSocket| {
                (it.protocol, it.port) == (Protocol::Tcp, *port) && !it.address.is_loopback()
            };
            match sockets.unwrap_or_default().iter().any(reached) {
                true => Ok(()),
                false => Err(ProbeError("the connection was refused".to_owned())),
            }
        })
        .await
    }

    async fn list(&self) -> Result<Vec<NetworkObject>, NetworkError> {
        self.call("list_network", "", |state| {
            let mut objects = state.network_objects();
            if !state.table_lost {
                objects.push(NetworkObject {
                    kind: NetworkObjectKind::Table,
                    name: TABLE.to_owned(),
                    sandbox: None,
                    made_at: None,
                    serial: None,
                    strange: false,
                });
            }
            Ok(objects)
        })
        .await
    }

    fn degraded(&self) -> Vec<String> {
        vec![]
    }

    async fn fencing(&self) -> Result<Option<FencingSeen>, NetworkError> {
        self.call("fencing", "", |state| {
            Ok((!state.fenceless).then(|| FencingSeen {
                table: TABLE.to_owned(),
                stands: !state.table_lost,
                accepts: vec![],
            }))
        })
        .await
    }

    fn link_name(&self, id: &SandboxId) -> String {
        format!("bt-{id}")
    }

    fn standing(&self) -> Vec<(NetworkObjectKind, String)> {
        vec![(NetworkObjectKind::Table, TABLE.to_owned())]
    }

    async fn remove_object(&self, object: &NetworkObject) -> Result<(), NetworkError> {
        self.change("remove_object", &object.name, |state| {
            if let Some(at) = state.network_strays.iter().position(|it| it == object) {
                state.network_strays.remove(at);
                return Ok(());
            }
            let refused = |why: &str| NetworkError {
                operation: format!("remove_object {}", object.name),
                source: why.into(),
            };
            if matches!(
                object.kind,
                NetworkObjectKind::Table | NetworkObjectKind::Bridge
            ) {
                return Err(refused("the instance needs it"));
            }
            let objects = state.network_objects();
            if !objects.contains(object) {
                let same = |it: &NetworkObject| (it.kind, &it.name) == (object.kind, &object.name);
                return match objects.iter().any(same) {
                    true => Err(refused("it is another one")),
                    false => Ok(()),
                };
            }
            let id = object.sandbox.as_ref();
            if let Some(held) = id.and_then(|id| state.sandboxes.get_mut(id)) {
                match object.kind {
                    NetworkObjectKind::Namespaces => held.namespaces = false,
                    NetworkObjectKind::Link => (held.link, held.fenced) = (false, false),
                    NetworkObjectKind::Element => held.fenced = false,
                    NetworkObjectKind::Table | NetworkObjectKind::Bridge => {}
                }
            }
            Ok(())
        })
        .await
    }
}

//! The network of sandboxes, at the height of a step. Every verb can be repeated.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    time::SystemTime,
};

use berth_domain::{Extent, ProbeCheck, Protocol, Sandbox, SandboxId};
use tokio::net::TcpStream;

use crate::Source;

pub trait Network: Send + Sync + 'static {
    /// What there is of one sandbox, found by its id alone.
    fn observe(
        &self,
        id: &SandboxId,
    ) -> impl Future<Output = Result<NetworkSeen, NetworkError>> + Send;

    /// Makes and pins the net, ipc and uts namespaces; the host name is the id.
    fn open_namespaces(
        &self,
        sandbox: &Sandbox,
    ) -> impl Future<Output = Result<(), NetworkError>> + Send;

    /// Makes the veth pair, with the addresses and routes of the sandbox inside, its node ports, and its place in the node's
    /// rules. The namespaces must be open.
    fn attach_link(
        &self,
        sandbox: &Sandbox,
    ) -> impl Future<Output = Result<(), NetworkError>> + Send;

    /// Removes the veth pair with what stands for it in the node's rules, and makes the kernel forget the connections of its
    /// addresses. One that is gone is a success.
    fn detach_link(&self, id: &SandboxId) -> impl Future<Output = Result<(), NetworkError>> + Send;

    /// Unpins the namespaces. Gone is a success.
    fn close_namespaces(
        &self,
        id: &SandboxId,
    ) -> impl Future<Output = Result<(), NetworkError>> + Send;

    /// The sockets that listen inside the sandbox: TCP in state LISTEN, UDP bound without a peer.
    fn listening(
        &self,
        id: &SandboxId,
    ) -> impl Future<Output = Result<Vec<ListeningSocket>, NetworkError>> + Send;

    /// Has the node ports of a sandbox with a link lead to where its ports are really listened on.
    fn lead_node_ports(
        &self,
        sandbox: &Sandbox,
    ) -> impl Future<Output = Result<(), NetworkError>> + Send;

    /// Asks an app of the sandbox as any neighbour does who reaches its first address; in the network of the node, by
    /// 127.0.0.1. It takes as long as it takes.
    fn probe(
        &self,
        sandbox: &Sandbox,
        check: &ProbeCheck,
    ) -> impl Future<Output = Result<(), ProbeError>> + Send;

    /// Connects to a TCP port on the loopback of the sandbox, 127.0.0.1 before ::1. Where that is the loopback of the node,
    /// only ports on which processes of the sandbox listen are reached. The namespaces must be open.
    fn connect(
        &self,
        id: &SandboxId,
        port: u16,
    ) -> impl Future<Output = Result<TcpStream, ConnectError>> + Send;

    /// Makes the kernel forget the connections of these addresses, which no link may have.
    fn forget_connections(
        &self,
        addresses: Vec<Ipv4Addr>,
    ) -> impl Future<Output = Result<(), NetworkError>> + Send;

    /// Makes the node's rules anew, for exactly those of these sandboxes that have a link: what a former process left of them
    /// is not known.
    fn restore(
        &self,
        sandboxes: Vec<Sandbox>,
    ) -> impl Future<Output = Result<(), NetworkError>> + Send;

    /// What was dropped of what a sandbox sent; `None` for one without a link, and where nobody counts.
    fn denied(
        &self,
        id: &SandboxId,
    ) -> impl Future<Output = Result<Option<Denied>, NetworkError>> + Send;

    /// The sockets of the node's own programs that listen.
    fn node_listens(
        &self,
    ) -> impl Future<Output = Result<Vec<ListeningSocket>, NetworkError>> + Send;

    /// Everything that this instance holds, and nothing that another one does.
    fn list(&self) -> impl Future<Output = Result<Vec<NetworkObject>, NetworkError>> + Send;

    /// What this node does not allow, a sentence each, as of now.
    fn degraded(&self) -> Vec<String>;

    /// The rules as a whole; `None` on a node that can have none, where node ports lead nowhere and no policy is kept.
    fn fencing(&self) -> impl Future<Output = Result<Option<FencingSeen>, NetworkError>> + Send;

    /// The node's end of the link of a sandbox, whether it is there or not.
    fn link_name(&self, id: &SandboxId) -> String;

    /// What the instance as a whole must have, by kind and name, with or without sandboxes.
    fn standing(&self) -> Vec<(NetworkObjectKind, String)>;

    /// Removes this very object, as it was listed. One that is gone is a success; another one in its place, and what the
    /// instance as a whole must have, is refused.
    fn remove_object(
        &self,
        object: &NetworkObject,
    ) -> impl Future<Output = Result<(), NetworkError>> + Send;
}

/// What the network holds for one sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkSeen {
    /// The pinned namespaces, and the folder for them.
    pub namespaces: Extent,
    pub link: bool,
}

/// What a sandbox sent and the node dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Denied {
    pub packets: u64,
    pub bytes: u64,
    /// In the name of an address that is not its own.
    pub spoofed_packets: u64,
    pub spoofed_bytes: u64,
}

/// The rules of the instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FencingSeen {
    pub table: String,
    /// Whether it is there.
    pub stands: bool,
    pub accepts: Vec<ForeignAccept>,
}

/// A rule of ours in the firewall of somebody else, that lets the packets of sandboxes pass to where our rules decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignAccept {
    /// `ip` or `ip6`.
    pub family: String,
    pub table: String,
    pub chain: String,
    /// Names the instance, the direction and the subnet.
    pub comment: String,
    /// What it had let pass when the tables were last looked at.
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListeningSocket {
    pub protocol: Protocol,
    pub address: IpAddr,
    pub port: u16,
    /// By which processes have it open.
    pub inode: u64,
}

/// One object of this instance, whether a record explains it or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkObject {
    pub kind: NetworkObjectKind,
    pub name: String,
    pub sandbox: Option<SandboxId>,
    /// `None` where the kernel does not tell.
    pub made_at: Option<SystemTime>,
    /// What tells it from a later object of its name: an inode, the number of a link.
    pub serial: Option<u64>,
    /// It carries the mark of its sandbox, and no verb looks for it under its name.
    pub strange: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkObjectKind {
    Namespaces,
    Link,
    /// What stands for a sandbox in the rules of the node.
    Element,
    /// The table of the instance.
    Table,
    /// The bridge of the instance.
    Bridge,
}

/// What an app answered that is no success, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ProbeError(pub String);

impl ProbeError {
    /// What no network answers.
    pub fn of_program() -> Self {
        Self("a program is not asked over the network".to_owned())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody accepts connections there.
    #[error("nothing accepts a connection")]
    Refused { source: io::Error },
    #[error(transparent)]
    Network(NetworkError),
}

#[derive(Debug, thiserror::Error)]
#[error("{operation} failed")]
pub struct NetworkError {
    pub operation: String,
    pub source: Source,
}

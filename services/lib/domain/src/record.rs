//! What is promised to a caller and kept until it is given back.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;

use crate::{
    failure::Failure,
    id::{ContainerName, Generation, SandboxId},
    image_ref::ImageRef,
    lifecycle::Status,
    spec::{Protocol, SandboxSpec},
    step::Role,
};

/// What the steps of a sandbox need to know of it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub id: SandboxId,
    pub generation: Generation,
    pub spec: Arc<SandboxSpec>,
    /// With the prefix length of the subnet.
    pub addresses: Vec<IpNet>,
    /// What is listened on in the place of a declared port.
    pub bound_ports: BoundPorts,
}

/// Of declared ports, which other ones are listened on in their place.
pub type BoundPorts = BTreeMap<(Protocol, u16), u16>;

/// One sandbox: what was asked for and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxRecord {
    pub id: SandboxId,
    pub generation: Generation,
    /// Revision of the last change.
    pub revision: u64,
    pub spec: Arc<SandboxSpec>,
    pub status: Status,
    /// Empty while all is well.
    pub reason: String,
    pub message: String,
    pub since: SystemTime,
    pub created_at: SystemTime,
    pub updated_at: SystemTime,
    /// Set before the first effect of an end, so that a restart goes on with it.
    pub ending: Option<Ending>,
    /// Held until nothing of the sandbox is left.
    pub addresses: Vec<IpNet>,
    /// Digests that the images of the spec were seen to have, from its admission on: held until it is DEAD.
    pub held_images: BTreeMap<ImageRef, String>,
    /// Manifest digest by container.
    pub images: BTreeMap<ContainerName, String>,
    pub exit: Option<ExitRecord>,
    /// Why the Create failed; told to everybody who joins it.
    pub failure: Option<Failure>,
    pub phases: Vec<Phase>,
    pub ports: Vec<PortSighting>,
    /// When it is stopped by itself.
    pub expires_at: Option<SystemTime>,
    /// Boot of the node in which its objects were made: what the kernel held in another one is gone. Empty: not known.
    pub boot_id: String,
    /// How often it was made again under this generation.
    pub restarts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The record stays, DEAD.
    Stop,
    /// As Stop, because its time was over.
    Expire,
    /// The record goes with the last object.
    Delete,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitRecord {
    pub role: Role,
    /// 128 + signal where a signal ended it.
    pub code: u32,
    pub signal: Option<u32>,
    pub at: SystemTime,
    pub cause: ExitCause,
    /// The cgroup whose limit the kernel enforced; empty where it was none of the sandbox's.
    pub oom_cgroup: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCause {
    Exit,
    Signal,
    Oom,
    RuntimeLost,
    /// It has ended, and its runtime does not know how.
    Unknown,
}

/// How long one step of a Create took; steps overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    pub name: String,
    pub container: String,
    pub start: Duration,
    pub took: Duration,
}

/// What was last seen, or reported by one source, of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSighting {
    pub container: ContainerName,
    pub port: u16,
    pub protocol: Protocol,
    pub bound: bool,
    pub address: String,
    pub source: String,
    pub at: SystemTime,
    /// What is listened on in the place of `port`.
    pub bound_port: Option<u16>,
}

impl PortSighting {
    /// The source of what the manager sees by itself.
    pub const OWN: &str = "manager";

    /// Whether both are of one source about one port.
    pub fn is_about_the_same(&self, other: &Self) -> bool {
        let about = |it: &Self| (it.port, it.protocol);
        about(self) == about(other)
            && self.container == other.container
            && self.source == other.source
    }

    /// Whether both say the same, whenever it was said.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let said = |it: &Self| Self {
            at: SystemTime::UNIX_EPOCH,
            ..it.clone()
        };
        said(self) == said(other)
    }
}

impl Sandbox {
    /// A sandbox of which only the id is known: enough for every step that removes.
    pub fn of_id(id: SandboxId) -> Self {
        Self {
            id,
            generation: Generation::default(),
            spec: Arc::default(),
            addresses: vec![],
            bound_ports: BoundPorts::new(),
        }
    }

    /// Protocol, port of the node, and the port that it leads to.
    pub fn node_ports(&self) -> impl Iterator<Item = (Protocol, u16, u16)> {
        self.spec.node_ports().map(|(protocol, node_port, port)| {
            let bound = self.bound_ports.get(&(protocol, port));
            (protocol, node_port, bound.copied().unwrap_or(port))
        })
    }
}

impl SandboxRecord {
    pub fn new(
        id: SandboxId,
        generation: Generation,
        spec: Arc<SandboxSpec>,
        addresses: Vec<IpNet>,
        now: SystemTime,
    ) -> Self {
        Self {
            id,
            generation,
            revision: generation.0,
            spec,
            status: Status::Pending,
            reason: String::new(),
            message: String::new(),
            since: now,
            created_at: now,
            updated_at: now,
            ending: None,
            addresses,
            held_images: BTreeMap::new(),
            images: BTreeMap::new(),
            exit: None,
            failure: None,
            phases: vec![],
            ports: vec![],
            expires_at: None,
            boot_id: String::new(),
            restarts: 0,
        }
    }

    pub fn sandbox(&self) -> Sandbox {
        Sandbox {
            id: self.id.clone(),
            generation: self.generation,
            spec: self.spec.clone(),
            addresses: self.addresses.clone(),
            bound_ports: self.bound_ports(),
        }
    }

    /// What is listened on in the place of declared ports.
    pub fn bound_ports(&self) -> BoundPorts {
        let own = |it: &&PortSighting| it.source == PortSighting::OWN;
        let bound = |it: &PortSighting| Some(((it.protocol, it.port), it.bound_port?));
        self.ports.iter().filter(own).filter_map(bound).collect()
    }

    /// Puts what is seen or reported in the place of what the same source said of the port before.
    pub fn note_port(&mut self, sighting: PortSighting) {
        self.ports.retain(|it| !it.is_about_the_same(&sighting));
        self.ports.push(sighting);
    }

    /// Moves to `status`; entering it anew sets `since`.
    pub fn enter(
        &mut self,
        status: Status,
        reason: impl Into<String>,
        message: impl Into<String>,
        now: SystemTime,
    ) {
        if self.status != status {
            self.since = now;
        }
        self.status = status;
        self.reason = reason.into();
        self.message = message.into();
    }
}

impl ExitRecord {
    /// Reads an exit status as containerd gives it: above 128 a signal ended the process. Without a time nobody waited
    /// for it, and the status means nothing.
    pub fn from_status(
        role: Role,
        code: u32,
        at: Option<SystemTime>,
        oom: Option<String>,
        now: SystemTime,
    ) -> Self {
        let signal = (129..=192).contains(&code).then(|| code - 128);
        let cause = match (at, signal) {
            (None, _) => ExitCause::Unknown,
            // 137 alone is signal 9, whoever sent it.
            (Some(_), Some(9)) if oom.is_some() => ExitCause::Oom,
            (Some(_), Some(_)) => ExitCause::Signal,
            (Some(_), None) => ExitCause::Exit,
        };
        let oom_cgroup = match cause {
            ExitCause::Oom => oom.unwrap_or_default(),
            ExitCause::Exit | ExitCause::Signal | ExitCause::RuntimeLost | ExitCause::Unknown => {
                String::new()
            }
        };
        Self {
            role,
            code,
            signal,
            at: at.unwrap_or(now),
            cause,
            oom_cgroup,
        }
    }

    /// The end of a container that nobody saw end.
    pub fn lost(role: Role, now: SystemTime) -> Self {
        Self {
            role,
            code: 255,
            signal: None,
            at: now,
            cause: ExitCause::RuntimeLost,
            oom_cgroup: String::new(),
        }
    }

    /// The exit in words.
    pub fn describe(&self) -> String {
        let who = match &self.role {
            Role::Pause => "the pause container".to_owned(),
            Role::App(name) => format!("container {name}"),
        };
        match (self.cause, self.signal) {
            (ExitCause::Oom, _) if self.oom_cgroup.is_empty() => {
                format!("{who} was killed for memory: the node ran out of it")
            }
            (ExitCause::Oom, _) => {
                format!(
                    "{who} was killed for memory: {} reached its limit",
                    self.oom_cgroup
                )
            }
            (ExitCause::RuntimeLost, _) => format!("{who} was lost by its runtime"),
            (ExitCause::Unknown, _) => format!("{who} ended, and its runtime does not know how"),
            (ExitCause::Signal | ExitCause::Exit, Some(signal)) => {
                format!("{who} was ended by signal {signal}")
            }
            (ExitCause::Signal | ExitCause::Exit, None) => {
                format!("{who} exited with code {}", self.code)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sandbox(id: &str, spec: SandboxSpec) -> Sandbox {
        Sandbox {
            id: SandboxId::parse(id).unwrap(),
            generation: Generation(1),
            spec: Arc::new(spec),
            addresses: vec![],
            bound_ports: BoundPorts::new(),
        }
    }

    #[test]
    fn a_port_of_the_node_leads_to_what_is_listened_on() {
        let mut spec = crate::spec::tests::spec([crate::spec::tests::container("web", &[80, 81])]);
        for (port, node_port) in spec.containers[0].ports.iter_mut().zip([8000, 8001]) {
            port.node_port = Some(node_port);
        }
        let now = SystemTime::UNIX_EPOCH;
        let id = SandboxId::parse("web").unwrap();
        let mut record = SandboxRecord::new(id, Generation(1), Arc::new(spec), vec![], now);
        let said = |source: &str, bound_port| PortSighting {
            container: ContainerName::parse("web").unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
            bound: true,
            address: String::new(),
            source: source.to_owned(),
            at: now,
            bound_port,
        };
        record.note_port(said("sidecar", None));
        record.note_port(said(PortSighting::OWN, Some(9000)));
        let ways: Vec<_> = record.sandbox().node_ports().collect();
        let tcp = Protocol::Tcp;
        assert_eq!(ways, [(tcp, 8000, 9000), (tcp, 8001, 81)]);
        record.note_port(said(PortSighting::OWN, None));
        assert_eq!(record.ports.len(), 2, "one of each source");
        assert_eq!(record.bound_ports(), BoundPorts::new());
    }

    #[test]
    #[rustfmt::skip]
    fn an_exit_status_tells_code_signal_and_cause() {
        let at = Some(SystemTime::UNIX_EPOCH);
        let cases = [
            (0,   at,   false, None,     ExitCause::Exit),
            (7,   at,   false, None,     ExitCause::Exit),
            (7,   at,   true,  None,     ExitCause::Exit),
            (128, at,   false, None,     ExitCause::Exit),
            (143, at,   false, Some(15), ExitCause::Signal),
            (137, at,   false, Some(9),  ExitCause::Signal),
            (137, at,   true,  Some(9),  ExitCause::Oom),
            (255, at,   false, None,     ExitCause::Exit),
            (255, None, false, None,     ExitCause::Unknown),
            (137, None, true,  Some(9),  ExitCause::Unknown),
        ];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
        for (code, at, oom, signal, cause) in cases {
            let cgroup = oom.then(|| "/berth/web".to_owned());
            let exit = ExitRecord::from_status(Role::Pause, code, at, cgroup, now);
            assert_eq!((exit.signal, exit.cause), (signal, cause), "{code}, oom {oom}");
            assert_eq!(exit.at, at.unwrap_or(now));
            assert_eq!(exit.oom_cgroup.is_empty(), cause != ExitCause::Oom);
        }
    }
}

//! What a caller asks for, already checked: a value of these types can be carried out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};

use crate::{egress::NamedDestination, id::ContainerName, image_ref::ImageRef, probe::Probe};

/// How long a port may take when the spec does not say.
pub const PORT_WAIT_DEFAULT: Duration = Duration::from_secs(15);
/// Time between SIGTERM and SIGKILL when the spec does not say.
pub const STOP_GRACE_DEFAULT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxSpec {
    pub labels: BTreeMap<String, String>,
    pub version: String,
    /// Empty: the sandbox id.
    pub log_entity: String,
    pub log_attributes: BTreeMap<String, String>,
    /// It has the node's network: no address, no link and no rules of its own, and its ports are the node's.
    pub host_network: bool,
    pub port_wait_timeout: Duration,
    pub restart_policy: RestartPolicy,
    pub routes: Vec<Route>,
    pub static_hosts: Vec<StaticHost>,
    pub containers: Vec<Container>,
    pub resources: Resources,
    pub network: NetworkPolicy,
}

/// What a sandbox may reach, and which sandboxes may reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPolicy {
    pub egress: Egress,
    /// What an [`Egress::Allow`] allows by name, beside its networks; empty with any other.
    pub egress_names: Vec<NamedDestination>,
    /// Labels as `key=value`: a sandbox that has one of them may open connections to this one.
    pub allow_from: Vec<String>,
    /// Whose part of the node's subnet the address is taken from; `None`: from what is nobody's.
    pub subnet: Option<String>,
}

/// Where a sandbox may open connections to, beside the name server of the node. The node itself, link-local addresses and
/// other sandboxes are none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Egress {
    #[default]
    Open,
    Deny,
    Allow(Vec<Destination>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Without host bits.
    pub net: IpNet,
    /// `None`: everything there.
    pub port: Option<(Protocol, u16)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    #[default]
    Always,
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub destination: Ipv4Net,
    /// `None`: the node's address on the bridge.
    pub gateway: Option<Ipv4Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticHost {
    pub host: String,
    pub ip: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub name: ContainerName,
    pub image: ImageRef,
    /// Empty: the image's entrypoint and command.
    pub command: String,
    /// Replaces the image's command where `Some`.
    pub args: Option<Vec<String>>,
    /// Empty: the image's.
    pub directory: String,
    /// `KEY=value`, in the caller's order.
    pub env: Vec<String>,
    pub ports: Vec<Port>,
    pub oom_score: i32,
    /// It has a terminal.
    pub tty: bool,
    /// Its input is kept open for whoever attaches. Only with a terminal.
    pub stdin: bool,
    pub config_files: Vec<ConfigFile>,
    pub shutdown_timeout: Duration,
    pub resources: Resources,
    /// What must succeed for the sandbox to be RUNNING.
    pub readiness_probe: Option<Probe>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub number: u16,
    pub name: String,
    pub protocol: Protocol,
    /// What is spoken there, as `http`.
    pub kind: String,
    /// The port of the node that leads here.
    pub node_port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    pub path: String,
    pub data: Vec<u8>,
    pub mode: u32,
}

/// Limits that the kernel enforces; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_millis: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub memory_high_bytes: Option<u64>,
    pub pids: Option<u32>,
}

impl SandboxSpec {
    /// How many labels a sandbox can let in: each is a place in the rules of the node.
    pub const ALLOW_FROM_MAX: usize = 4;

    /// Protocol, port of the node, and the port that it leads to.
    pub fn node_ports(&self) -> impl Iterator<Item = (Protocol, u16, u16)> {
        let ports = self.containers.iter().flat_map(|it| &it.ports);
        ports.filter_map(|it| Some((it.protocol, it.node_port?, it.number)))
    }

    /// The ports of the node that nobody else may have while it lives.
    pub fn claimed_ports(&self) -> impl Iterator<Item = (Protocol, u16)> {
        let ports = self.containers.iter().flat_map(|it| &it.ports);
        ports.filter_map(|it| {
            let own = self.host_network.then_some(it.number);
            Some((it.protocol, it.node_port.or(own)?))
        })
    }

    /// The paths of those fields that only the rules of a node carry out.
    pub fn fenced_fields(&self) -> Vec<String> {
        let mut fields = vec![];
        for (container, it) in self.containers.iter().enumerate() {
            for (port, it) in it.ports.iter().enumerate() {
                if it.node_port.is_some() {
                    fields.push(format!(
                        "spec.containers[{container}].ports[{port}].node_port"
                    ));
                }
            }
        }
        if self.network.egress != Egress::Open {
            fields.push("spec.network.egress".to_owned());
        }
        if !self.network.allow_from.is_empty() {
            fields.push("spec.network.allow_from".to_owned());
        }
        fields
    }

    /// CPU in thousandths and memory in bytes that its limits allow it: those of the sandbox, else the sum of its
    /// containers'. What has no limit was promised nothing.
    pub fn promised(&self) -> (u64, u64) {
        let sum = |own: Option<u64>, of: fn(&Resources) -> Option<u64>| {
            own.unwrap_or_else(|| {
                let limits = self.containers.iter().filter_map(|it| of(&it.resources));
                limits.fold(0, u64::saturating_add)
            })
        };
        (
            sum(self.resources.cpu_millis.map(u64::from), |it| {
                it.cpu_millis.map(u64::from)
            }),
            sum(self.resources.memory_bytes, |it| it.memory_bytes),
        )
    }

    pub fn container(&self, name: &ContainerName) -> Option<&Container> {
        self.containers
            .iter()
            .find(|container| &container.name == name)
    }

    /// The images of the app containers, each once.
    pub fn images(&self) -> BTreeSet<&ImageRef> {
        self.containers
            .iter()
            .map(|container| &container.image)
            .collect()
    }

    /// The declared ports, which RUNNING waits for, with their container.
    pub fn ports(&self) -> impl Iterator<Item = (&ContainerName, &Port)> {
        self.containers.iter().flat_map(|container| {
            let ports = container.ports.iter();
            ports.map(move |port| (&container.name, port))
        })
    }

    /// The readiness probes, which RUNNING waits for, with their container.
    pub fn probes(&self) -> impl Iterator<Item = (&ContainerName, &Probe)> {
        let containers = self.containers.iter();
        containers.filter_map(|it| Some((&it.name, it.readiness_probe.as_ref()?)))
    }

    /// Returns the path of the first field that `self` and `other` disagree about.
    pub fn difference(&self, other: &SandboxSpec) -> Option<String> {
        macro_rules! compare {
            ($a:expr, $b:expr, $prefix:expr, [$($field:ident),* $(,)?]) => {
                $(if $a.$field != $b.$field {
                    return Some(format!("{}{}", $prefix, stringify!($field)));
                })*
            };
        }
        compare!(
            self,
            other,
            "spec.",
            [
                labels,
                version,
                log_entity,
                log_attributes,
                host_network,
                port_wait_timeout,
                restart_policy,
                routes,
                static_hosts,
                resources,
                network,
            ]
        );
        for (i, (a, b)) in self.containers.iter().zip(&other.containers).enumerate() {
            compare!(
                a,
                b,
                format!("spec.containers[{i}]."),
                [
                    name,
                    image,
                    command,
                    args,
                    directory,
                    env,
                    ports,
                    oom_score,
                    tty,
                    stdin,
                    config_files,
                    shutdown_timeout,
                    resources,
                    readiness_probe,
                ]
            );
        }
        (self.containers.len() != other.containers.len()).then(|| "spec.containers".to_owned())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn container(name: &str, ports: &[u16]) -> Container {
        Container {
            name: ContainerName::parse(name).unwrap(),
            image: ImageRef::parse(name).unwrap(),
            command: String::new(),
            args: None,
            directory: String::new(),
            env: vec![],
            ports: ports
                .iter()
                .map(|&number| Port {
                    number,
                    name: String::new(),
                    protocol: Protocol::Tcp,
                    kind: String::new(),
                    node_port: None,
                })
                .collect(),
            oom_score: 0,
            tty: false,
            stdin: false,
            config_files: vec![],
            shutdown_timeout: STOP_GRACE_DEFAULT,
            resources: Resources::default(),
            readiness_probe: None,
        }
    }

    pub(crate) fn spec(containers: impl IntoIterator<Item = Container>) -> SandboxSpec {
        SandboxSpec {
            labels: BTreeMap::new(),
            version: String::new(),
            log_entity: String::new(),
            log_attributes: BTreeMap::new(),
            host_network: false,
            port_wait_timeout: PORT_WAIT_DEFAULT,
            restart_policy: RestartPolicy::Always,
            routes: vec![],
            static_hosts: vec![],
            containers: containers.into_iter().collect(),
            resources: Resources::default(),
            network: NetworkPolicy::default(),
        }
    }

    #[test]
    fn the_first_difference_of_two_specs_is_named_by_its_path() {
        let asked = spec([container("web", &[80]), container("db", &[])]);
        assert_eq!(asked.difference(&asked), None);
        let other = spec([container("web", &[80]), container("db", &[5432])]);
        assert_eq!(
            asked.difference(&other).as_deref(),
            Some("spec.containers[1].ports")
        );
        let fewer = spec([container("web", &[80])]);
        assert_eq!(asked.difference(&fewer).as_deref(), Some("spec.containers"));
        let mut labelled = asked.clone();
        labelled.labels.insert("a".into(), "b".into());
        assert_eq!(asked.difference(&labelled).as_deref(), Some("spec.labels"));
    }
}

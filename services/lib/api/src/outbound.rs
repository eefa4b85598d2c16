//! From the domain to the contract.

use std::time::Duration;

use berth_domain::{
    Container, Destination, Egress, ExitCause, ExitRecord, NamedDestination, Names, NetworkPolicy,
    PortSighting, Probe, ProbeCheck, Protocol, Resources, RestartPolicy, SandboxRecord,
    SandboxSpec, Status, names,
};

use crate::v1::{self, probe::Check};

/// Where the sandboxes of an answer are.
#[derive(Clone, Debug)]
pub struct Place {
    pub node_id: String,
    pub bridge: String,
    pub names: Names,
}

/// Renders a record.
pub fn sandbox_to_proto(record: &SandboxRecord, place: &Place) -> v1::Sandbox {
    let status = match record.status {
        Status::Pending => v1::SandboxStatus::Pending,
        Status::NotReady => v1::SandboxStatus::NotReady,
        Status::Running => v1::SandboxStatus::Running,
        Status::Stopped => v1::SandboxStatus::Stopped,
        Status::Dead => v1::SandboxStatus::Dead,
    };
    let address = |net: &ipnet::IpNet| v1::NetworkAddress {
        address: net.to_string(),
        subnet: place.bridge.clone(),
    };
    let container = |it: &Container| v1::ContainerStatus {
        name: it.name.to_string(),
        container_id: names::app_container_id(&record.id, &it.name),
        image: it.image.to_string(),
        image_digest: record.images.get(&it.name).cloned().unwrap_or_default(),
    };
    let phase = |it: &berth_domain::Phase| v1::Phase {
        name: it.name.clone(),
        container: it.container.clone(),
        start: duration(it.start),
        took: duration(it.took),
    };
    v1::Sandbox {
        id: record.id.to_string(),
        generation: record.generation.0,
        revision: record.revision,
        spec: Some(spec_to_proto(&record.spec)),
        status: status.into(),
        reason: record.reason.clone(),
        message: record.message.clone(),
        since: Some(record.since.into()),
        created_at: Some(record.created_at.into()),
        updated_at: Some(record.updated_at.into()),
        addresses: record.addresses.iter().map(address).collect(),
        containers: record.spec.containers.iter().map(container).collect(),
        exit: record.exit.as_ref().map(exit_to_proto),
        phases: record.phases.iter().map(phase).collect(),
        ports: record.ports.iter().map(port_to_proto).collect(),
        node_id: place.node_id.clone(),
        expires_at: record.expires_at.map(Into::into),
        restarts: record.restarts,
        running_steps: vec![],
        cgroup: place.names.cgroup(&record.id),
        host_interface: match record.spec.host_network {
            true => String::new(),
            false => place.names.link(&record.id),
        },
    }
}

fn exit_to_proto(it: &ExitRecord) -> v1::ExitRecord {
    let cause = match it.cause {
        ExitCause::Exit => v1::ExitCause::Exit,
        ExitCause::Signal => v1::ExitCause::Signal,
        ExitCause::Oom => v1::ExitCause::Oom,
        ExitCause::RuntimeLost => v1::ExitCause::RuntimeLost,
        ExitCause::Unknown => v1::ExitCause::Unknown,
    };
    v1::ExitRecord {
        container: it.role.to_string(),
        exit_code: it.code,
        signal: it.signal.unwrap_or_default(),
        at: Some(it.at.into()),
        cause: cause.into(),
        oom_cgroup: it.oom_cgroup.clone(),
    }
}

fn port_to_proto(it: &PortSighting) -> v1::PortState {
    let status = if it.bound {
        v1::PortStatus::Bound
    } else {
        v1::PortStatus::Unbound
    };
    v1::PortState {
        container: it.container.to_string(),
        port: it.port.into(),
        protocol: protocol_to_proto(it.protocol).into(),
        status: status.into(),
        address: it.address.clone(),
        source: it.source.clone(),
        at: Some(it.at.into()),
        bound_port: it.bound_port.unwrap_or_default().into(),
    }
}

/// Renders a spec.
pub fn spec_to_proto(spec: &SandboxSpec) -> v1::SandboxSpec {
    let restart_policy = match spec.restart_policy {
        RestartPolicy::Always => v1::RestartPolicy::Always,
        RestartPolicy::Never => v1::RestartPolicy::Never,
    };
    let route = |it: &berth_domain::Route| v1::Route {
        destination: it.destination.to_string(),
        gateway: it.gateway.map(|it| it.to_string()).unwrap_or_default(),
    };
    let host = |it: &berth_domain::StaticHost| v1::StaticHost {
        host: it.host.clone(),
        ip: it.ip.to_string(),
    };
    v1::SandboxSpec {
        labels: spec.labels.clone().into_iter().collect(),
        version: spec.version.clone(),
        log_entity: spec.log_entity.clone(),
        log_attributes: spec.log_attributes.clone().into_iter().collect(),
        host_network: spec.host_network,
        port_wait_timeout: duration(spec.port_wait_timeout),
        restart_policy: restart_policy.into(),
        routes: spec.routes.iter().map(route).collect(),
        volumes: vec![],
        static_hosts: spec.static_hosts.iter().map(host).collect(),
        containers: spec.containers.iter().map(container_to_proto).collect(),
        resources: resources_to_proto(spec.resources),
        network: network_to_proto(&spec.network),
    }
}

fn network_to_proto(it: &NetworkPolicy) -> Option<v1::NetworkPolicy> {
    let rule = |it: &Destination| v1::EgressRule {
        cidr: it.net.to_string(),
        // A rule without a port is for all protocols.
        protocol: it.port.map_or(0, |it| protocol_to_proto(it.0).into()),
        port: it.port.map_or(0, |it| it.1.into()),
        dns_name: String::new(),
    };
    let (mode, rules) = match &it.egress {
        Egress::Open => (v1::EgressMode::Open, vec![]),
        Egress::Deny => (v1::EgressMode::Deny, vec![]),
        Egress::Allow(list) => (v1::EgressMode::Allow, list.iter().map(rule).collect()),
    };
    let rules = rules.into_iter();
    let rules = rules
        .chain(it.egress_names.iter().map(named_to_proto))
        .collect();
    (*it != NetworkPolicy::default()).then(|| v1::NetworkPolicy {
        egress: mode.into(),
        egress_rules: rules,
        allow_from: it.allow_from.clone(),
        subnet: it.subnet.clone().unwrap_or_default(),
    })
}

/// Renders a rule by name.
pub(crate) fn named_to_proto(it: &NamedDestination) -> v1::EgressRule {
    v1::EgressRule {
        cidr: String::new(),
        protocol: it.port.map_or(0, |it| protocol_to_proto(it.0).into()),
        port: it.port.map_or(0, |it| it.1.into()),
        dns_name: it.name.to_string(),
    }
}

fn container_to_proto(it: &Container) -> v1::Container {
    let port = |it: &berth_domain::Port| v1::Port {
        port: it.number.into(),
        name: it.name.clone(),
        protocol: protocol_to_proto(it.protocol).into(),
        r#type: it.kind.clone(),
        node_port: it.node_port.unwrap_or_default().into(),
    };
    let file = |it: &berth_domain::ConfigFile| v1::ConfigFile {
        path: it.path.clone(),
        data: it.data.clone(),
        mode: format!("{:04o}", it.mode),
    };
    v1::Container {
        name: it.name.to_string(),
        image: it.image.to_string(),
        privileged: false,
        tty: it.tty,
        stdin: it.stdin,
        command: it.command.clone(),
        args: it.args.clone().unwrap_or_default(),
        directory: it.directory.clone(),
        env: it.env.clone(),
        ports: it.ports.iter().map(port).collect(),
        mounts: vec![],
        oom_score: it.oom_score,
        config_files: it.config_files.iter().map(file).collect(),
        shutdown_timeout: duration(it.shutdown_timeout),
        resources: resources_to_proto(it.resources),
        readiness_probe: it.readiness_probe.as_ref().map(probe_to_proto),
    }
}

fn probe_to_proto(it: &Probe) -> v1::Probe {
    let check = match it.check.clone() {
        ProbeCheck::HttpGet { port, path, host } => Check::HttpGet(v1::HttpGetProbe {
            port: port.into(),
            path,
            host,
        }),
        ProbeCheck::TcpConnect { port } => {
            Check::TcpConnect(v1::TcpConnectProbe { port: port.into() })
        }
        ProbeCheck::Exec { command } => Check::Exec(v1::ExecProbe { command }),
    };
    v1::Probe {
        check: Some(check),
        initial_delay: duration(it.initial_delay),
        period: duration(it.period),
        timeout: duration(it.timeout),
        success_threshold: it.success_threshold,
        failure_threshold: it.failure_threshold,
    }
}

pub(crate) fn protocol_to_proto(it: Protocol) -> v1::Protocol {
    match it {
        Protocol::Tcp => v1::Protocol::Tcp,
        Protocol::Udp => v1::Protocol::Udp,
    }
}

fn resources_to_proto(it: Resources) -> Option<v1::Resources> {
    (it != Resources::default()).then(|| v1::Resources {
        cpu_millis: it.cpu_millis.unwrap_or_default(),
        memory_bytes: it.memory_bytes.unwrap_or_default(),
        memory_high_bytes: it.memory_high_bytes.unwrap_or_default(),
        pids: it.pids.unwrap_or_default(),
    })
}

fn duration(it: Duration) -> Option<prost_types::Duration> {
    it.try_into().ok()
}

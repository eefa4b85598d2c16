//! From the contract to the domain: every rule of a request, each broken one reported by the path of its field.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use berth_domain::{
    ConfigFile, Container, ContainerName, Egress, Failure, Generation, ImageRef, NetworkPolicy,
    Port, Protocol, Reason, Resources, RestartPolicy, SandboxId, SandboxSpec, Violation,
    id::check_name,
    names::LABEL_PREFIX,
    spec::{PORT_WAIT_DEFAULT, STOP_GRACE_DEFAULT},
};
use ipnet::Ipv4Net;
use prost::Message as _;

use crate::v1;

const SPEC_MAX: usize = 256 << 10;
const LABELS_MAX: usize = 64;
const LABEL_KEY_MAX: usize = 128;
const LABEL_VALUE_MAX: usize = 1024;
const NAME_MAX: usize = 63;
const TEXT_MAX: usize = 256;
const ROUTES_MAX: usize = 64;
const HOSTS_MAX: usize = 256;
const HOST_NAME_MAX: usize = 253;
const CONTAINERS_MAX: usize = 32;
const COMMAND_MAX: usize = 128 << 10;
const ENV_MAX: usize = 1024;
const PORTS_MAX: usize = 64;
const FILES_MAX: usize = 64;
const FILE_MAX: usize = 64 << 10;
/// The kernel's PATH_MAX, with its end mark.
const PATH_MAX: usize = 4095;
const PORT_WAIT_MIN: Duration = Duration::from_millis(10);
const HOUR: Duration = Duration::from_secs(3600);
const MODE_DEFAULT: u32 = 0o644;
const CPU_MILLIS: std::ops::RangeInclusive<u32> = 10..=1_024_000;
const MEMORY_MIN: u64 = 4 << 20;
const PIDS_MAX: u32 = 4_194_304;
/// Each is an element in the node's tables, which other sandboxes share.
const EGRESS_RULES_MAX: usize = 256;

/// A Create that can be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    pub id: SandboxId,
    pub spec: SandboxSpec,
    pub wait_for_running: bool,
    /// `None`: for ever.
    pub time_to_live: Option<Duration>,
    /// The generation that the caller means to join.
    pub expected_generation: Option<Generation>,
}

/// Checks a whole request and reports everything that is wrong with it. `subnet` is where the sandbox gets its address.
pub fn create_from_proto(request: v1::CreateRequest, subnet: Ipv4Net) -> Result<Create, Failure> {
    let size = request
        .spec
        .as_ref()
        .map_or(0, v1::SandboxSpec::encoded_len);
    if size > SPEC_MAX {
        return Err(Failure::of_violations(
            Reason::SpecTooLarge,
            vec![Violation {
                field: "spec".to_owned(),
                problem: format!("has {size} bytes, the limit is {SPEC_MAX}"),
            }],
        )
        .with("limit_bytes", SPEC_MAX)
        .with("size_bytes", size));
    }
    let mut check = Check::within(subnet);
    let id = check.take("id", SandboxId::parse(&request.id));
    let wait_for_running = match v1::WaitFor::try_from(request.wait) {
        Ok(v1::WaitFor::Unspecified | v1::WaitFor::Running) => true,
        Ok(v1::WaitFor::Accepted) => false,
        Err(_) => {
            check.wrong("wait", "must be ACCEPTED or RUNNING");
            true
        }
    };
    let time_to_live = match time_to_live(request.time_to_live) {
        Ok(it) => it,
        Err(failure) => {
            check.violations.extend(failure.violations);
            None
        }
    };
    let expected_generation = match request.expected_generation {
        0 => None,
        number => Some(Generation(number)),
    };
    let spec = match request.spec {
        Some(spec) => Some(check.spec(spec)),
        None => {
            check.wrong("spec", "must not be empty");
            None
        }
    };
    check.finish()?;
    match (id, spec) {
        (Some(id), Some(spec)) => Ok(Create {
            id,
            spec,
            wait_for_running,
            time_to_live,
            expected_generation,
        }),
        // What is missing was reported.
        _ => Err(Failure::invalid("id", "must not be empty")),
    }
}

/// Reads how long a sandbox lives; unset is for ever.
pub fn time_to_live(it: Option<prost_types::Duration>) -> Result<Option<Duration>, Failure> {
    let Some(it) = it else { return Ok(None) };
    match Duration::try_from(it) {
        Ok(it) if TIME_TO_LIVE.contains(&it) => Ok(Some(it)),
        Ok(_) | Err(_) => Err(Failure::invalid("time_to_live", "must be 1 s to 10 years")),
    }
}

const TIME_TO_LIVE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(10 * 366 * 24 * 3600);

/// Reads the transport of a port; unspecified is TCP.
pub fn protocol_from_proto(field: &str, number: i32) -> Result<Protocol, Failure> {
    match v1::Protocol::try_from(number) {
        Ok(v1::Protocol::Unspecified | v1::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(v1::Protocol::Udp) => Ok(Protocol::Udp),
        Err(_) => Err(Failure::invalid(field, "must be TCP or UDP")),
    }
}

struct Check {
    subnet: Ipv4Net,
    violations: Vec<Violation>,
    unsupported: Vec<Violation>,
    ports: BTreeSet<(u16, Protocol)>,
    node_ports: BTreeSet<(u16, Protocol)>,
}

impl Check {
    fn within(subnet: Ipv4Net) -> Self {
        Self {
            subnet,
            violations: vec![],
            unsupported: vec![],
            ports: BTreeSet::new(),
            node_ports: BTreeSet::new(),
        }
    }

    fn finish(self) -> Result<(), Failure> {
        if !self.violations.is_empty() {
            return Err(Failure::of_violations(
                Reason::InvalidField,
                self.violations,
            ));
        }
        if !self.unsupported.is_empty() {
            return Err(Failure::of_violations(
                Reason::UnsupportedField,
                self.unsupported,
            ));
        }
        Ok(())
    }

    fn wrong(&mut self, field: impl Into<String>, problem: impl ToString) {
        self.violations.push(Violation {
            field: field.into(),
            problem: problem.to_string(),
        });
    }

    fn unsupported(&mut self, field: String, is_set: bool) {
        if is_set {
            let problem = "is not supported by this version".to_owned();
            self.unsupported.push(Violation { field, problem });
        }
    }

    fn take<T, E: ToString>(&mut self, field: impl Into<String>, it: Result<T, E>) -> Option<T> {
        it.map_err(|problem| self.wrong(field, problem)).ok()
    }

    fn count(&mut self, field: &str, number: usize, limit: usize) {
        if number > limit {
            self.wrong(field, format!("has {number} entries, the limit is {limit}"));
        }
    }

    /// A text that ends up where NUL ends a text.
    fn text(&mut self, field: &str, text: &str, limit: usize) {
        if text.len() > limit {
            self.wrong(
                field,
                format!("is {} bytes long, the limit is {limit}", text.len()),
            );
        }
        if text.contains('\0') {
            self.wrong(field, "must not contain a NUL byte");
        }
    }

    fn absolute_path(&mut self, field: &str, path: &str) {
        self.text(field, path, PATH_MAX);
        let plain = |part: &str| !matches!(part, "" | "." | "..");
        let well_formed = path
            .strip_prefix('/')
            .is_some_and(|it| it.split('/').all(plain));
        if !well_formed && !path.contains('\0') {
            self.wrong(
                field,
                "must be an absolute path without `.`, `..` and empty parts",
            );
        }
    }

    fn optional_name(&mut self, field: String, text: &str) {
        if !text.is_empty() {
            self.take(field, check_name(text, NAME_MAX));
        }
    }

    fn duration(
        &mut self,
        field: &str,
        given: Option<prost_types::Duration>,
        default: Duration,
        limits: std::ops::RangeInclusive<Duration>,
    ) -> Duration {
        let Some(given) = given else { return default };
        match Duration::try_from(given) {
            Ok(it) if limits.contains(&it) => it,
            Ok(_) | Err(_) => {
                let (least, most) = (limits.start().as_millis(), limits.end().as_millis());
                self.wrong(field, format!("must be {least} ms to {most} ms"));
                default
            }
        }
    }

    fn spec(&mut self, it: v1::SandboxSpec) -> SandboxSpec {
        let labels = self.labels("spec.labels", it.labels);
        if let Some(key) = labels.keys().find(|it| it.starts_with(LABEL_PREFIX)) {
            let problem = format!("must not begin with `{LABEL_PREFIX}`");
            self.wrong(format!("spec.labels[{key}]"), problem);
        }
        let log_attributes = self.labels("spec.log_attributes", it.log_attributes);
        self.text("spec.version", &it.version, TEXT_MAX);
        self.text("spec.log_entity", &it.log_entity, TEXT_MAX);
        self.unsupported("spec.volumes".into(), !it.volumes.is_empty());
        let given = it
            .port_wait_timeout
            .filter(|it| (it.seconds, it.nanos) != (0, 0));
        let port_wait_timeout = self.duration(
            "spec.port_wait_timeout",
            given,
            PORT_WAIT_DEFAULT,
            PORT_WAIT_MIN..=HOUR,
        );
        let restart_policy = match v1::RestartPolicy::try_from(it.restart_policy) {
            Ok(v1::RestartPolicy::Unspecified | v1::RestartPolicy::Always) => RestartPolicy::Always,
            Ok(v1::RestartPolicy::Never) => RestartPolicy::Never,
            Err(_) => {
                self.wrong("spec.restart_policy", "must be ALWAYS or NEVER");
                RestartPolicy::Always
            }
        };
        self.count("spec.routes", it.routes.len(), ROUTES_MAX);
        let routes = it
            .routes
            .iter()
            .enumerate()
            .filter_map(|(at, it)| self.route(at, it));
        let routes = routes.collect();
        self.count("spec.static_hosts", it.static_hosts.len(), HOSTS_MAX);
        let hosts = it.static_hosts.into_iter().enumerate();
        let static_hosts = hosts
            .filter_map(|(at, it)| self.static_host(at, it))
            .collect();
        if it.containers.is_empty() {
            self.wrong("spec.containers", "must have at least one container");
        }
        self.count("spec.containers", it.containers.len(), CONTAINERS_MAX);
        let mut names = BTreeSet::new();
        for (at, container) in it.containers.iter().enumerate() {
            if !names.insert(container.name.clone()) {
                let problem = format!("`{}` is the name of two containers", container.name);
                self.wrong(format!("spec.containers[{at}].name"), problem);
            }
        }
        let resources = self.resources("spec.resources", it.resources);
        let containers = it.containers.into_iter().enumerate();
        let containers = containers
            .filter_map(|(at, it)| self.container(at, it, &resources, port_wait_timeout))
            .collect();
        let network = self.network(it.network.unwrap_or_default());
        let spec = SandboxSpec {
            labels,
            version: it.version,
            log_entity: it.log_entity,
            log_attributes,
            host_network: it.host_network,
            port_wait_timeout,
            restart_policy,
            routes,
            static_hosts,
            containers,
            resources,
            network,
        };
        if spec.host_network {
            self.beside_host_network(&spec);
        }
        spec
    }

    /// What only a network of its own can have.
    fn beside_host_network(&mut self, spec: &SandboxSpec) {
        let NetworkPolicy {
            egress,
            // Refused beside any other egress than a list.
            egress_names: _,
            allow_from,
            subnet,
        } = &spec.network;
        let mut given = vec![];
        let mut note = |field: String, is_set: bool| given.extend(is_set.then_some(field));
        note("spec.routes".into(), !spec.routes.is_empty());
        note("spec.network.egress".into(), *egress != Egress::Open);
        note("spec.network.allow_from".into(), !allow_from.is_empty());
        note("spec.network.subnet".into(), subnet.is_some());
        for (at, container) in spec.containers.iter().enumerate() {
            for (number, port) in container.ports.iter().enumerate() {
                let field = format!("spec.containers[{at}].ports[{number}].node_port");
                note(field, port.node_port.is_some());
            }
        }
        for field in given {
            self.wrong(field, "must not be set beside `spec.host_network`");
        }
    }

    fn labels(&mut self, field: &str, it: HashMap<String, String>) -> BTreeMap<String, String> {
        self.count(field, it.len(), LABELS_MAX);
        let it: BTreeMap<_, _> = it.into_iter().collect();
        for (key, value) in &it {
            if key.is_empty() {
                self.wrong(field, "has an empty key");
            }
            // Where a label is one text, the first `=` ends its key.
            if key.contains('=') {
                self.wrong(format!("{field}[{key}]"), "has a key with `=`");
            }
            self.text(&format!("{field}[{key}]"), key, LABEL_KEY_MAX);
            self.text(&format!("{field}[{key}]"), value, LABEL_VALUE_MAX);
        }
        it
    }

    fn container(
        &mut self,
        at: usize,
        it: v1::Container,
        whole: &Resources,
        port_wait: Duration,
    ) -> Option<Container> {
        let of = |field: &str| format!("spec.containers[{at}].{field}");
        let name = self.take(of("name"), ContainerName::parse(&it.name));
        let image = self.take(of("image"), ImageRef::parse(&it.image));
        self.unsupported(of("privileged"), it.privileged);
        if it.stdin && !it.tty {
            self.wrong(of("stdin"), "needs `tty`");
        }
        self.unsupported(of("mounts"), !it.mounts.is_empty());
        self.text(&of("command"), &it.command, COMMAND_MAX);
        if !it.command.is_empty() && !it.args.is_empty() {
            self.wrong(of("args"), "cannot be combined with `command`");
        }
        for (i, argument) in it.args.iter().enumerate() {
            self.text(&of(&format!("args[{i}]")), argument, COMMAND_MAX);
        }
        if !it.directory.is_empty() && it.directory != "/" {
            self.absolute_path(&of("directory"), &it.directory);
        }
        self.count(&of("env"), it.env.len(), ENV_MAX);
        for (i, line) in it.env.iter().enumerate() {
            let field = of(&format!("env[{i}]"));
            self.text(&field, line, COMMAND_MAX);
            if line.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
                self.wrong(field, "must be `KEY=value`");
            }
        }
        self.count(&of("ports"), it.ports.len(), PORTS_MAX);
        let ports = it.ports.into_iter().enumerate();
        let ports = ports
            .filter_map(|(i, it)| self.port(&of(&format!("ports[{i}]")), it))
            .collect();
        if !(-1000..=1000).contains(&it.oom_score) {
            self.wrong(of("oom_score"), "must be -1000 to 1000");
        }
        self.count(&of("config_files"), it.config_files.len(), FILES_MAX);
        let mut paths = BTreeSet::new();
        for (i, file) in it.config_files.iter().enumerate() {
            if !paths.insert(file.path.clone()) {
                let problem = format!("`{}` is the path of two files", file.path);
                self.wrong(of(&format!("config_files[{i}].path")), problem);
            }
        }
        let files = it.config_files.into_iter().enumerate();
        let config_files = files
            .map(|(i, it)| self.config_file(&of(&format!("config_files[{i}]")), it))
            .collect();
        let shutdown_timeout = self.duration(
            &of("shutdown_timeout"),
            it.shutdown_timeout,
            STOP_GRACE_DEFAULT,
            Duration::ZERO..=HOUR,
        );
        let field = of("readiness_probe");
        let readiness_probe = it
            .readiness_probe
            .and_then(|it| self.probe(&field, it, port_wait));
        let resources = self.resources(&of("resources"), it.resources);
        self.within_the_whole(&of("resources"), &resources, whole);
        Some(Container {
            name: name?,
            image: image?,
            command: it.command,
            args: (!it.args.is_empty()).then_some(it.args),
            directory: it.directory,
            env: it.env,
            ports,
            oom_score: it.oom_score,
            tty: it.tty,
            stdin: it.stdin,
            config_files,
            shutdown_timeout,
            resources,
            readiness_probe,
        })
    }

    fn port(&mut self, field: &str, it: v1::Port) -> Option<Port> {
        let number = u16::try_from(it.port).ok().filter(|it| *it != 0);
        let number = self.take(format!("{field}.port"), number.ok_or("must be 1 to 65535"));
        self.optional_name(format!("{field}.name"), &it.name);
        self.text(&format!("{field}.type"), &it.r#type, NAME_MAX);
        let protocol = match protocol_from_proto(&format!("{field}.protocol"), it.protocol) {
            Ok(it) => it,
            Err(failure) => {
                self.violations.extend(failure.violations);
                return None;
            }
        };
        let number = number?;
        if !self.ports.insert((number, protocol)) {
            self.wrong(
                format!("{field}.port"),
                format!("{number} is declared twice"),
            );
        }
        let node_port = match u16::try_from(it.node_port) {
            Ok(0) => None,
            Ok(node_port) => Some(node_port),
            Err(_) => {
                self.wrong(format!("{field}.node_port"), "must be at most 65535");
                None
            }
        };
        if let Some(node_port) = node_port
            && !self.node_ports.insert((node_port, protocol))
        {
            self.wrong(
                format!("{field}.node_port"),
                format!("{node_port} leads to two ports"),
            );
        }
        Some(Port {
            number,
            name: it.name,
            protocol,
            kind: it.r#type,
            node_port,
        })
    }

    fn config_file(&mut self, field: &str, it: v1::ConfigFile) -> ConfigFile {
        self.absolute_path(&format!("{field}.path"), &it.path);
        if it.data.len() > FILE_MAX {
            let problem = format!("has {} bytes, the limit is {FILE_MAX}", it.data.len());
            self.wrong(format!("{field}.data"), problem);
        }
        let mode = match it.mode.as_str() {
            "" => Some(MODE_DEFAULT),
            text => {
                let digits = text.bytes().all(|it| matches!(it, b'0'..=b'7'));
                let mode = u32::from_str_radix(text, 8)
                    .ok()
                    .filter(|it| digits && *it <= 0o7777);
                self.take(
                    format!("{field}.mode"),
                    mode.ok_or("must be octal permissions like `0640`"),
                )
            }
        };
        ConfigFile {
            path: it.path,
            data: it.data,
            mode: mode.unwrap_or(MODE_DEFAULT),
        }
    }

    fn resources(&mut self, field: &str, it: Option<v1::Resources>) -> Resources {
        let it = it.unwrap_or_default();
        if it.cpu_millis != 0 && !CPU_MILLIS.contains(&it.cpu_millis) {
            let problem = format!(
                "must be 0 or {} to {}",
                CPU_MILLIS.start(),
                CPU_MILLIS.end()
            );
            self.wrong(format!("{field}.cpu_millis"), problem);
        }
        for (name, bytes) in [
            ("memory_bytes", it.memory_bytes),
            ("memory_high_bytes", it.memory_high_bytes),
        ] {
            if bytes != 0 && !(MEMORY_MIN..=i64::MAX as u64).contains(&bytes) {
                let problem = format!("must be 0 or at least {MEMORY_MIN} (4 MiB)");
                self.wrong(format!("{field}.{name}"), problem);
            }
        }
        if it.memory_bytes != 0 && it.memory_high_bytes > it.memory_bytes {
            self.wrong(
                format!("{field}.memory_high_bytes"),
                "must not be above `memory_bytes`",
            );
        }
        if it.pids > PIDS_MAX {
            self.wrong(format!("{field}.pids"), format!("must be 0 to {PIDS_MAX}"));
        }
        let some = |it: u64| (it != 0).then_some(it);
        Resources {
            cpu_millis: (it.cpu_millis != 0).then_some(it.cpu_millis),
            memory_bytes: some(it.memory_bytes),
            memory_high_bytes: some(it.memory_high_bytes),
            pids: (it.pids != 0).then_some(it.pids),
        }
    }

    /// A limit above that of the sandbox limits nothing, and cgroup v1 refuses it.
    fn within_the_whole(&mut self, field: &str, own: &Resources, whole: &Resources) {
        let cpu = |it: &Resources| it.cpu_millis.map(u64::from);
        for (name, own, whole) in [
            ("cpu_millis", cpu(own), cpu(whole)),
            ("memory_bytes", own.memory_bytes, whole.memory_bytes),
        ] {
            if let (Some(own), Some(whole)) = (own, whole)
                && own > whole
            {
                let problem =
                    format!("must not be above `spec.resources.{name}`, which is {whole}");
                self.wrong(format!("{field}.{name}"), problem);
            }
        }
    }
}

pub(crate) fn is_host_name(text: &str) -> bool {
    let label = |it: &str| {
        (1..=63).contains(&it.len())
            && !it.starts_with('-')
            && !it.ends_with('-')
            && it.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.len() <= HOST_NAME_MAX && text.split('.').all(label)
}

#[cfg(test)]
mod edges;
mod network;
mod probes;
#[cfg(test)]
mod tests;

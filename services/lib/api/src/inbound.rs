//! From the contract to the domain: every rule of a request, each broken one reported by the path of its field.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use berth_domain::{
    ConfigFile, Container, ContainerName, Destination, Egress, Failure, Generation, ImageRef,
    NAME_SERVER_PORTS, NamePattern, NamedDestination, NetworkPolicy, Port, Protocol, Reason,
    Resources, RestartPolicy, Route, SandboxId, SandboxSpec, StaticHost, Violation,
    id::check_name,
    ipam,
    names::LABEL_PREFIX,
    spec::{PORT_WAIT_DEFAULT, STOP_GRACE_DEFAULT},
    subnets::check_identifier,
};
use ipnet::{IpNet, Ipv4Net};
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
            .filter_map(|(at, it)| self.container(at, it, &resources))
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

    fn network(&mut self, it: v1::NetworkPolicy) -> NetworkPolicy {
        let field = "spec.network.egress_rules";
        self.count(field, it.egress_rules.len(), EGRESS_RULES_MAX);
        let listed = !it.egress_rules.is_empty();
        let rules = it.egress_rules.iter().take(EGRESS_RULES_MAX).enumerate();
        let (mut nets, mut egress_names) = (vec![], vec![]);
        let by_name = it.egress_rules.iter().any(|it| !it.dns_name.is_empty());
        for (at, it) in rules {
            let field = format!("{field}[{at}]");
            if by_name && NAME_SERVER_PORTS.iter().any(|&port| it.port == port.into()) {
                let problem = "is that of name servers, which a policy with names does not allow";
                self.wrong(format!("{field}.port"), problem);
            }
            match it.dns_name.is_empty() {
                true => nets.extend(self.destination(&field, it)),
                false => egress_names.extend(self.named(&field, it)),
            }
        }
        let egress = match v1::EgressMode::try_from(it.egress) {
            Ok(v1::EgressMode::Allow) => Egress::Allow(nets),
            Ok(_) if listed => {
                self.wrong(field, "needs the egress ALLOW");
                Egress::Open
            }
            Ok(v1::EgressMode::Unspecified | v1::EgressMode::Open) => Egress::Open,
            Ok(v1::EgressMode::Deny) => Egress::Deny,
            Err(_) => {
                self.wrong("spec.network.egress", "must be OPEN, DENY or ALLOW");
                Egress::Open
            }
        };
        let field = "spec.network.allow_from";
        self.count(field, it.allow_from.len(), SandboxSpec::ALLOW_FROM_MAX);
        let mut seen = BTreeSet::new();
        for (at, label) in it.allow_from.iter().enumerate() {
            let field = format!("{field}[{at}]");
            self.text(&field, label, LABEL_KEY_MAX + 1 + LABEL_VALUE_MAX);
            if label.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
                self.wrong(&field, "must be `key=value`");
            }
            if !seen.insert(label) {
                self.wrong(field, "is there twice");
            }
        }
        let subnet = (!it.subnet.is_empty()).then_some(it.subnet);
        if let Some(identifier) = &subnet {
            self.take("spec.network.subnet", check_identifier(identifier));
        }
        NetworkPolicy {
            egress,
            egress_names,
            allow_from: it.allow_from,
            subnet,
        }
    }

    fn destination(&mut self, field: &str, it: &v1::EgressRule) -> Option<Destination> {
        let net = match it.cidr.parse::<IpNet>() {
            Ok(net) if net == net.trunc() => Some(net),
            Ok(_) | Err(_) => {
                let problem =
                    "must be an IPv4 or IPv6 network without host bits, like `10.1.0.0/16`";
                self.wrong(format!("{field}.cidr"), problem);
                None
            }
        };
        let port = self.rule_port(field, it)?;
        Some(Destination { net: net?, port })
    }

    fn named(&mut self, field: &str, it: &v1::EgressRule) -> Option<NamedDestination> {
        if !it.cidr.is_empty() {
            self.wrong(format!("{field}.cidr"), "is there beside a name");
        }
        let name = match NamePattern::parse(&it.dns_name) {
            Ok(name) => Some(name),
            Err(problem) => {
                self.wrong(format!("{field}.dns_name"), problem.to_string());
                None
            }
        };
        let port = self.rule_port(field, it)?;
        Some(NamedDestination { name: name?, port })
    }

    /// `None` where it is wrong.
    #[expect(clippy::option_option, reason = "a rule without a port is a rule")]
    fn rule_port(&mut self, field: &str, it: &v1::EgressRule) -> Option<Option<(Protocol, u16)>> {
        let protocol = protocol_from_proto(&format!("{field}.protocol"), it.protocol);
        let protocol = match protocol {
            Ok(it) => it,
            Err(failure) => {
                self.violations.extend(failure.violations);
                return None;
            }
        };
        match u16::try_from(it.port) {
            Ok(0) if it.protocol != 0 => {
                let problem = "is needed beside a protocol";
                self.wrong(format!("{field}.port"), problem);
                None
            }
            Ok(0) => Some(None),
            Ok(port) => Some(Some((protocol, port))),
            Err(_) => {
                self.wrong(format!("{field}.port"), "must be at most 65535");
                None
            }
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

    fn route(&mut self, at: usize, it: &v1::Route) -> Option<Route> {
        let field = format!("spec.routes[{at}].destination");
        let destination = match it.destination.parse::<Ipv4Net>() {
            Ok(net) if net.trunc() == net => Some(net),
            Ok(net) => {
                let problem = format!("has bits behind its prefix; write {}", net.trunc());
                self.wrong(field, problem);
                None
            }
            Err(_) => {
                self.wrong(field, "must be an IPv4 network like `10.1.0.0/16`");
                None
            }
        };
        let field = format!("spec.routes[{at}].gateway");
        let gateway = match it.gateway.as_str() {
            "" => None,
            text => self.gateway(&field, text),
        };
        Some(Route {
            destination: destination?,
            gateway,
        })
    }

    /// The node is the only neighbour of a sandbox.
    fn gateway(&mut self, field: &str, text: &str) -> Option<Ipv4Addr> {
        let problem = "must be an IPv4 address";
        let gateway = self.take(field, text.parse::<Ipv4Addr>().map_err(|_| problem))?;
        let node = ipam::gateway(self.subnet);
        if gateway == node {
            return Some(gateway);
        }
        self.wrong(field, format!("must be the node's address {node}"));
        None
    }

    fn static_host(&mut self, at: usize, it: v1::StaticHost) -> Option<StaticHost> {
        if !is_host_name(&it.host) {
            let problem = "must be a host name: labels of letters, digits and `-`, joined by `.`";
            self.wrong(format!("spec.static_hosts[{at}].host"), problem);
        }
        let ip = it
            .ip
            .parse::<IpAddr>()
            .map_err(|_| "must be an IPv4 or IPv6 address");
        let ip = self.take(format!("spec.static_hosts[{at}].ip"), ip)?;
        Some(StaticHost { host: it.host, ip })
    }

    fn container(&mut self, at: usize, it: v1::Container, whole: &Resources) -> Option<Container> {
        let of = |field: &str| format!("spec.containers[{at}].{field}");
        let name = self.take(of("name"), ContainerName::parse(&it.name));
        let image = self.take(of("image"), ImageRef::parse(&it.image));
        self.unsupported(of("privileged"), it.privileged);
        self.unsupported(of("tty"), it.tty);
        self.unsupported(of("stdin"), it.stdin);
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
            config_files,
            shutdown_timeout,
            resources,
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
mod tests {
    use super::*;

    fn request() -> v1::CreateRequest {
        let container = v1::Container {
            name: "web".into(),
            image: "nginx".into(),
            ..v1::Container::default()
        };
        let spec = v1::SandboxSpec {
            containers: vec![container],
            ..v1::SandboxSpec::default()
        };
        v1::CreateRequest {
            id: "web".into(),
            spec: Some(spec),
            ..v1::CreateRequest::default()
        }
    }

    fn subnet() -> Ipv4Net {
        "10.87.0.0/16".parse().unwrap()
    }

    fn by_gateway(gateway: &str) -> Vec<v1::Route> {
        vec![v1::Route {
            destination: "10.0.0.0/8".into(),
            gateway: gateway.into(),
        }]
    }

    fn resources(cpu_millis: u32, memory_bytes: u64) -> Option<v1::Resources> {
        Some(v1::Resources {
            cpu_millis,
            memory_bytes,
            ..v1::Resources::default()
        })
    }

    /// The fields that are reported when `spoil` has changed a good request.
    fn refused(spoil: impl FnOnce(&mut v1::CreateRequest)) -> (Reason, Vec<String>) {
        let mut request = request();
        spoil(&mut request);
        let failure = create_from_proto(request, subnet()).unwrap_err();
        (
            failure.reason,
            failure.violations.into_iter().map(|it| it.field).collect(),
        )
    }

    fn spec(request: &mut v1::CreateRequest) -> &mut v1::SandboxSpec {
        request.spec.as_mut().unwrap()
    }

    fn web(request: &mut v1::CreateRequest) -> &mut v1::Container {
        &mut spec(request).containers[0]
    }

    fn port(number: u32) -> v1::Port {
        v1::Port {
            port: number,
            ..v1::Port::default()
        }
    }

    fn file(path: &str, mode: &str) -> v1::ConfigFile {
        v1::ConfigFile {
            path: path.into(),
            data: vec![],
            mode: mode.into(),
        }
    }

    #[test]
    fn the_least_request_has_the_documented_defaults() {
        let create = create_from_proto(request(), subnet()).unwrap();
        assert!(create.wait_for_running);
        let spec = create.spec;
        assert_eq!(spec.port_wait_timeout, Duration::from_secs(15));
        assert_eq!(spec.restart_policy, RestartPolicy::Always);
        assert_eq!(spec.resources, Resources::default());
        let web = &spec.containers[0];
        assert_eq!(web.shutdown_timeout, Duration::from_secs(10));
        assert_eq!(web.image.to_string(), "docker.io/library/nginx:latest");
        assert_eq!((web.args.as_ref(), web.oom_score), (None, 0));
    }

    #[test]
    fn every_broken_rule_is_reported_by_the_path_of_its_field() {
        type Spoil = fn(&mut v1::CreateRequest);
        let cases: &[(&str, Spoil)] = &[
            ("id", |it| it.id.clear()),
            ("id", |it| it.id = "x".repeat(41)),
            ("id", |it| it.id = "a--b".into()),
            ("id", |it| it.id = "a/../b".into()),
            ("id", |it| it.id = "A".into()),
            ("id", |it| it.id = "a\0".into()),
            ("id", |it| it.id = "a\n".into()),
            ("wait", |it| it.wait = 9),
            ("time_to_live", |it| {
                it.time_to_live = Some(prost_types::Duration::default());
            }),
            ("time_to_live", |it| {
                it.time_to_live = Some(prost_types::Duration {
                    seconds: i64::MAX,
                    nanos: 0,
                });
            }),
            ("spec", |it| it.spec = None),
            ("spec.labels[runtime.computer/x]", |it| {
                drop(
                    spec(it)
                        .labels
                        .insert("runtime.computer/x".into(), "y".into()),
                );
            }),
            ("spec.labels[a=b]", |it| {
                spec(it).labels = [("a=b".into(), "c".into())].into();
            }),
            ("spec.labels[a]", |it| {
                drop(spec(it).labels.insert("a".into(), "y".repeat(1025)))
            }),
            ("spec.labels", |it| {
                spec(it).labels = (0..65).map(|it| (it.to_string(), String::new())).collect();
            }),
            ("spec.port_wait_timeout", |it| {
                spec(it).port_wait_timeout = Some(prost_types::Duration {
                    seconds: -1,
                    nanos: 0,
                });
            }),
            ("spec.port_wait_timeout", |it| {
                spec(it).port_wait_timeout = Some(prost_types::Duration {
                    seconds: 3601,
                    nanos: 0,
                });
            }),
            ("spec.restart_policy", |it| spec(it).restart_policy = 7),
            ("spec.routes[0].destination", |it| {
                spec(it).routes = vec![v1::Route {
                    destination: "10.0.0.0/33".into(),
                    gateway: String::new(),
                }];
            }),
            ("spec.routes[0].destination", |it| {
                spec(it).routes = vec![v1::Route {
                    destination: "10.0.0.1/8".into(),
                    gateway: String::new(),
                }];
            }),
            ("spec.routes[0].gateway", |it| {
                spec(it).routes = by_gateway("x")
            }),
            ("spec.routes[0].gateway", |it| {
                spec(it).routes = by_gateway("10.88.0.1")
            }),
            ("spec.routes[0].gateway", |it| {
                spec(it).routes = by_gateway("10.87.0.2")
            }),
            ("spec.routes[0].gateway", |it| {
                spec(it).routes = by_gateway("10.87.255.255")
            }),
            ("spec.static_hosts[0].host", |it| {
                spec(it).static_hosts = vec![v1::StaticHost {
                    host: "a b".into(),
                    ip: "::1".into(),
                }];
            }),
            ("spec.static_hosts[0].ip", |it| {
                spec(it).static_hosts = vec![v1::StaticHost {
                    host: "a".into(),
                    ip: "1.2.3".into(),
                }];
            }),
            ("spec.containers", |it| spec(it).containers.clear()),
            ("spec.containers[1].name", |it| {
                let twin = web(it).clone();
                spec(it).containers.push(twin);
            }),
            ("spec.containers[0].name", |it| {
                web(it).name = "pause".into()
            }),
            ("spec.containers[0].image", |it| {
                web(it).image = "UPPER".into()
            }),
            ("spec.containers[0].args", |it| {
                web(it).command = "x".into();
                web(it).args = vec!["y".into()];
            }),
            ("spec.containers[0].args[0]", |it| {
                web(it).args = vec!["\0".into()]
            }),
            ("spec.containers[0].directory", |it| {
                web(it).directory = "etc".into()
            }),
            ("spec.containers[0].directory", |it| {
                web(it).directory = "/a/../b".into()
            }),
            ("spec.containers[0].env[1]", |it| {
                web(it).env = vec!["A=b".into(), "A".into()]
            }),
            ("spec.containers[0].env[0]", |it| {
                web(it).env = vec!["=b".into()]
            }),
            ("spec.containers[0].ports[0].port", |it| {
                web(it).ports = vec![port(0)]
            }),
            ("spec.containers[0].ports[0].port", |it| {
                web(it).ports = vec![port(65536)]
            }),
            ("spec.containers[0].ports[1].port", |it| {
                web(it).ports = vec![port(80), port(80)]
            }),
            ("spec.containers[0].ports[0].protocol", |it| {
                web(it).ports = vec![v1::Port {
                    protocol: 9,
                    ..port(80)
                }];
            }),
            ("spec.containers[0].ports[0].name", |it| {
                web(it).ports = vec![v1::Port {
                    name: "A".into(),
                    ..port(80)
                }];
            }),
            ("spec.containers[0].oom_score", |it| {
                web(it).oom_score = 1001
            }),
            ("spec.containers[0].config_files[0].mode", |it| {
                web(it).config_files = vec![file("/a", "0888")];
            }),
            ("spec.containers[0].config_files[0].mode", |it| {
                web(it).config_files = vec![file("/a", "+644")];
            }),
            ("spec.containers[0].config_files[0].path", |it| {
                web(it).config_files = vec![file("/", "")];
            }),
            ("spec.containers[0].config_files[1].path", |it| {
                web(it).config_files = vec![file("/a", ""), file("/a", "")];
            }),
            ("spec.containers[0].config_files[0].data", |it| {
                let data = vec![0; (64 << 10) + 1];
                web(it).config_files = vec![v1::ConfigFile {
                    data,
                    ..file("/a", "")
                }];
            }),
            ("spec.containers[0].shutdown_timeout", |it| {
                web(it).shutdown_timeout = Some(prost_types::Duration {
                    seconds: 3601,
                    nanos: 0,
                });
            }),
            ("spec.resources.cpu_millis", |it| {
                let resources = v1::Resources {
                    cpu_millis: 9,
                    ..v1::Resources::default()
                };
                spec(it).resources = Some(resources);
            }),
            ("spec.containers[0].resources.memory_bytes", |it| {
                let resources = v1::Resources {
                    memory_bytes: 1,
                    ..v1::Resources::default()
                };
                web(it).resources = Some(resources);
            }),
            ("spec.containers[0].resources.cpu_millis", |it| {
                spec(it).resources = resources(500, 0);
                web(it).resources = resources(501, 0);
            }),
            ("spec.containers[0].resources.memory_bytes", |it| {
                spec(it).resources = resources(0, 64 << 20);
                web(it).resources = resources(0, (64 << 20) + 1);
            }),
            ("spec.resources.memory_high_bytes", |it| {
                let resources = v1::Resources {
                    memory_bytes: 4 << 20,
                    memory_high_bytes: 8 << 20,
                    ..v1::Resources::default()
                };
                spec(it).resources = Some(resources);
            }),
            ("spec.resources.pids", |it| {
                spec(it).resources = Some(v1::Resources {
                    pids: u32::MAX,
                    ..v1::Resources::default()
                });
            }),
        ];
        for (place, (field, spoil)) in cases.iter().enumerate() {
            assert_eq!(
                refused(spoil),
                (Reason::InvalidField, vec![(*field).to_owned()]),
                "case {place}"
            );
        }
    }

    #[test]
    fn a_container_may_have_as_much_as_its_sandbox_and_a_route_any_host_of_the_subnet() {
        let limits = [
            (resources(500, 64 << 20), resources(500, 64 << 20)),
            (None, resources(501, 65 << 20)),
            (resources(500, 64 << 20), None),
        ];
        for (whole, own) in limits {
            let mut request = request();
            spec(&mut request).resources = whole;
            web(&mut request).resources = own;
            create_from_proto(request, subnet()).unwrap();
        }
        for gateway in ["", "10.87.0.1"] {
            let mut request = request();
            spec(&mut request).routes = by_gateway(gateway);
            create_from_proto(request, subnet()).unwrap();
        }
    }

    fn allowing(egress_rules: Vec<v1::EgressRule>) -> Option<v1::NetworkPolicy> {
        Some(v1::NetworkPolicy {
            egress: v1::EgressMode::Allow.into(),
            egress_rules,
            ..v1::NetworkPolicy::default()
        })
    }

    fn rule(cidr: &str, port: u32) -> v1::EgressRule {
        v1::EgressRule {
            cidr: cidr.into(),
            port,
            ..v1::EgressRule::default()
        }
    }

    fn by_name(name: &str, port: u32) -> v1::EgressRule {
        v1::EgressRule {
            dns_name: name.into(),
            port,
            ..v1::EgressRule::default()
        }
    }

    #[test]
    fn a_policy_of_the_network_is_read_like_this() {
        let mut request = request();
        let named = v1::EgressRule {
            protocol: v1::Protocol::Udp.into(),
            ..by_name("*.example.org", 123)
        };
        let rules = vec![
            rule("10.0.0.0/8", 0),
            named,
            rule("192.0.2.7/32", 443),
            rule("2001:db8::/32", 443),
        ];
        let mut policy = allowing(rules);
        policy.as_mut().unwrap().allow_from = vec!["app=web".into()];
        policy.as_mut().unwrap().subnet = "team".into();
        spec(&mut request).network = policy;
        web(&mut request).ports = vec![v1::Port {
            node_port: 8080,
            ..port(80)
        }];
        let read = create_from_proto(request, subnet()).unwrap().spec;
        let destination = |net: &str, port| Destination {
            net: net.parse().unwrap(),
            port,
        };
        assert_eq!(
            read.network,
            NetworkPolicy {
                egress: Egress::Allow(vec![
                    destination("10.0.0.0/8", None),
                    destination("192.0.2.7/32", Some((Protocol::Tcp, 443))),
                    destination("2001:db8::/32", Some((Protocol::Tcp, 443))),
                ]),
                egress_names: vec![NamedDestination {
                    name: NamePattern::parse("*.example.org").unwrap(),
                    port: Some((Protocol::Udp, 123)),
                }],
                allow_from: vec!["app=web".into()],
                subnet: Some("team".into()),
            }
        );
        let ports: Vec<_> = read.node_ports().collect();
        assert_eq!(ports, [(Protocol::Tcp, 8080, 80)]);
    }

    #[test]
    fn a_policy_that_breaks_a_rule_is_refused_by_the_field() {
        type Spoil = fn(&mut v1::CreateRequest);
        let cases: &[(&str, Spoil)] = &[
            ("spec.network.egress", |it| {
                spec(it).network = Some(v1::NetworkPolicy {
                    egress: 9,
                    ..v1::NetworkPolicy::default()
                });
            }),
            ("spec.network.egress_rules", |it| {
                spec(it).network = Some(v1::NetworkPolicy {
                    egress_rules: vec![rule("10.0.0.0/8", 0)],
                    ..v1::NetworkPolicy::default()
                });
            }),
            ("spec.network.egress_rules", |it| {
                spec(it).network = allowing(vec![rule("10.0.0.0/8", 0); 10_000]);
            }),
            ("spec.network.egress_rules", |it| {
                // Networks and names count together, and the limit is said.
                let mut rules = vec![by_name("api.example.org", 443); 9_900];
                rules.extend(vec![rule("10.0.0.0/8", 0); 100]);
                spec(it).network = allowing(rules);
            }),
            ("spec.network.egress_rules[1].dns_name", |it| {
                let rules = vec![rule("10.0.0.0/8", 0), by_name("API.example.org", 443)];
                spec(it).network = allowing(rules);
            }),
            ("spec.network.egress_rules[0].dns_name", |it| {
                spec(it).network = allowing(vec![by_name("a_b.example.org", 0)]);
            }),
            ("spec.network.egress_rules[0].dns_name", |it| {
                spec(it).network = allowing(vec![by_name("*", 0)]);
            }),
            ("spec.network.egress_rules[0].cidr", |it| {
                let both = v1::EgressRule {
                    dns_name: "api.example.org".into(),
                    ..rule("10.0.0.0/8", 0)
                };
                spec(it).network = allowing(vec![both]);
            }),
            ("spec.network.egress_rules[0].cidr", |it| {
                spec(it).network = allowing(vec![v1::EgressRule::default()]);
            }),
            ("spec.network.egress_rules[0].port", |it| {
                let rules = vec![rule("10.0.0.0/8", 53), by_name("api.example.org", 443)];
                spec(it).network = allowing(rules);
            }),
            ("spec.network.egress_rules[0].port", |it| {
                spec(it).network = allowing(vec![by_name("dns.example.org", 853)]);
            }),
            ("spec.network.egress_rules", |it| {
                spec(it).network = Some(v1::NetworkPolicy {
                    egress_rules: vec![by_name("api.example.org", 443)],
                    ..v1::NetworkPolicy::default()
                });
            }),
            ("spec.network.egress_rules[0].cidr", |it| {
                spec(it).network = allowing(vec![rule("10.0.0.1/8", 0)]);
            }),
            ("spec.network.egress_rules[0].cidr", |it| {
                spec(it).network = allowing(vec![rule("fd00::1/8", 0)]);
            }),
            ("spec.network.egress_rules[0].cidr", |it| {
                spec(it).network = allowing(vec![rule("fd00::/129", 0)]);
            }),
            ("spec.network.egress_rules[0].port", |it| {
                spec(it).network = allowing(vec![rule("10.0.0.0/8", 65_536)]);
            }),
            ("spec.network.egress_rules[0].port", |it| {
                let udp = v1::EgressRule {
                    protocol: v1::Protocol::Udp.into(),
                    ..rule("10.0.0.0/8", 0)
                };
                spec(it).network = allowing(vec![udp]);
            }),
            ("spec.network.allow_from", |it| {
                let allow_from = (0..5).map(|it| format!("a={it}")).collect();
                spec(it).network = Some(v1::NetworkPolicy {
                    allow_from,
                    ..v1::NetworkPolicy::default()
                });
            }),
            ("spec.network.allow_from[0]", |it| {
                spec(it).network = Some(v1::NetworkPolicy {
                    allow_from: vec!["web".into()],
                    ..v1::NetworkPolicy::default()
                });
            }),
            ("spec.network.subnet", |it| {
                spec(it).network = Some(v1::NetworkPolicy {
                    subnet: "x".repeat(129),
                    ..v1::NetworkPolicy::default()
                });
            }),
            ("spec.containers[0].ports[1].node_port", |it| {
                let port = |number| v1::Port {
                    node_port: 8080,
                    ..port(number)
                };
                web(it).ports = vec![port(80), port(81)];
            }),
            ("spec.containers[0].ports[0].node_port", |it| {
                web(it).ports = vec![v1::Port {
                    node_port: 65_536,
                    ..port(80)
                }];
            }),
        ];
        for (field, spoil) in cases {
            assert_eq!(
                refused(spoil),
                (Reason::InvalidField, vec![(*field).to_owned()])
            );
        }
    }

    #[test]
    fn a_list_that_is_too_long_is_refused_with_the_limit_and_one_of_networks_may_have_port_53() {
        let with = |rules| {
            let mut request = request();
            spec(&mut request).network = allowing(rules);
            create_from_proto(request, subnet())
        };
        let rules = |number| vec![by_name("api.example.org", 443); number];
        with(rules(EGRESS_RULES_MAX)).unwrap();
        let refused = with(rules(10_000)).unwrap_err();
        let said = refused.violations.iter().map(|it| it.problem.as_str());
        let said: Vec<_> = said.filter(|it| it.contains("256")).collect();
        assert_eq!(said.len(), 1, "{refused:?}");
        with(vec![rule("10.0.0.0/8", 53)]).unwrap();
    }

    #[test]
    fn what_only_a_network_of_its_own_has_is_refused_beside_that_of_the_node() {
        type Spoil = fn(&mut v1::CreateRequest);
        let cases: &[(&str, Spoil)] = &[
            ("spec.routes", |it| spec(it).routes = by_gateway("")),
            ("spec.network.egress", |it| {
                spec(it).network = allowing(vec![rule("10.0.0.0/8", 0)]);
            }),
            ("spec.network.egress", |it| {
                spec(it).network = Some(v1::NetworkPolicy {
                    egress: v1::EgressMode::Deny.into(),
                    ..v1::NetworkPolicy::default()
                });
            }),
            ("spec.network.allow_from", |it| {
                spec(it).network = Some(v1::NetworkPolicy {
                    allow_from: vec!["a=b".into()],
                    ..v1::NetworkPolicy::default()
                });
            }),
            ("spec.network.subnet", |it| {
                spec(it).network = Some(v1::NetworkPolicy {
                    subnet: "team".into(),
                    ..v1::NetworkPolicy::default()
                });
            }),
            ("spec.containers[0].ports[1].node_port", |it| {
                let published = v1::Port {
                    node_port: 8080,
                    ..port(81)
                };
                web(it).ports = vec![port(80), published];
            }),
        ];
        for (field, spoil) in cases {
            let shared = |it: &mut v1::CreateRequest| {
                spoil(it);
                spec(it).host_network = true;
            };
            let expected = (Reason::InvalidField, vec![(*field).to_owned()]);
            assert_eq!(refused(shared), expected);
            let mut own = request();
            spoil(&mut own);
            create_from_proto(own, subnet()).unwrap();
        }
        let mut request = request();
        spec(&mut request).host_network = true;
        web(&mut request).ports = vec![port(80)];
        let read = create_from_proto(request, subnet()).unwrap().spec;
        let claimed: Vec<_> = read.claimed_ports().collect();
        assert_eq!(claimed, [(Protocol::Tcp, 80)]);
        assert_eq!(read.node_ports().next(), None);
    }

    #[test]
    fn what_is_not_built_yet_is_refused_by_name_and_never_ignored() {
        type Spoil = fn(&mut v1::CreateRequest);
        let cases: &[(&str, Spoil)] = &[
            ("spec.volumes", |it| {
                spec(it).volumes.push(v1::Volume::default())
            }),
            ("spec.containers[0].privileged", |it| {
                web(it).privileged = true
            }),
            ("spec.containers[0].tty", |it| web(it).tty = true),
            ("spec.containers[0].stdin", |it| web(it).stdin = true),
            ("spec.containers[0].mounts", |it| {
                web(it).mounts.push(v1::Mount::default())
            }),
        ];
        for (field, spoil) in cases {
            assert_eq!(
                refused(spoil),
                (Reason::UnsupportedField, vec![(*field).to_owned()])
            );
        }
    }

    #[test]
    fn a_spec_over_the_limit_is_refused_with_the_limit() {
        let mut request = request();
        web(&mut request).args = vec!["x".repeat(100 << 10); 3];
        let failure = create_from_proto(request, subnet()).unwrap_err();
        assert_eq!(failure.reason, Reason::SpecTooLarge);
        assert_eq!(failure.metadata["limit_bytes"], "262144");
    }

    #[test]
    fn one_port_may_be_declared_for_both_transports() {
        let mut request = request();
        let udp = v1::Port {
            protocol: v1::Protocol::Udp.into(),
            ..port(53)
        };
        web(&mut request).ports = vec![port(53), udp];
        assert_eq!(
            create_from_proto(request, subnet())
                .unwrap()
                .spec
                .containers[0]
                .ports
                .len(),
            2
        );
    }
}

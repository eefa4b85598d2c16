//! What the manager can be told, with the defaults.

mod access;
mod cgroup;
mod pull;

use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow, bail, ensure};
use berth_daemon::{check_socket, key_value};
use berth_domain::{
    InstanceId,
    ipam::{self, Subnets},
    names,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub(crate) use self::access::Tls;
use self::{
    access::{Access, AuditLog},
    cgroup::Cgroup,
    pull::Pull,
};
use crate::{export, store_command::StoreCommand};

const FILE: &str = "/etc/berth/sandbox-manager.toml";
const ENV_PREFIX: &str = "BERTH_MANAGER_";
const BRIDGE_NAME_MAX: usize = 15;
/// Each holds a process of the OCI runtime; a node that can run more at a time does not exist.
const PARALLEL_CREATES_MAX: usize = 1024;
/// Each is a network namespace with a link, whether it will be wanted or not.
const SLOTS_MAX: usize = 256;
/// Each holds three pipes, and up to 400 KiB of what is on its way.
const EXECS_MAX: usize = 4096;
/// More than a node can run, and few enough for a look at all of them.
const SANDBOXES_MAX: u64 = 1 << 20;
/// Each is a task and its request, which can have 4 MiB.
const CALLS_MAX: usize = 65_536;
/// containerd's limit for its identifiers.
const IDENTIFIER_MAX: usize = 76;
/// The longest domain name, and the longest of its labels.
const DOMAIN_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// The sandbox runtime of a node.
#[derive(Debug, clap::Parser)]
#[command(name = "sandbox-manager", version = berth_version::LONG)]
pub struct Flags {
    /// Configuration file [default: /etc/berth/sandbox-manager.toml, which may be missing].
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Sets one key over file and environment, as in `--set network.subnet=10.9.0.0/16`.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value, global = true)]
    pub set: Vec<(String, String)>,
    /// Only reads the configuration: exit code 0 where it is good, 78 where it is refused.
    #[arg(long, global = true)]
    pub check: bool,
    /// Without one the manager runs.
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Looks at the store, writes it out as text, or makes it from text, while no manager runs.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Removes what the manager has made on the node for all sandboxes: its bridge, its nftables tables, its cgroups, and its
    /// images with its namespace of containerd. Refused while a manager runs, and while there are sandboxes.
    Uninstall,
}

/// Where the store is in the state directory.
pub(crate) const STORE_FILE: &str = "berth.redb";

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Empty: derived from `state_dir` and stored there.
    pub instance_id: String,
    /// Empty: the host name.
    pub node_id: String,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub log_dir: PathBuf,
    pub socket: PathBuf,
    /// Group that may use the socket, where it exists; then its mode is 0660, else 0600.
    pub socket_group: String,
    /// Empty: the one that the manager holds, which it puts into `state_dir`.
    pub log_writer: PathBuf,
    /// Output kept per container, in bytes.
    pub log_limit_bytes: u64,
    /// DNS search domain of the sandboxes.
    pub search_domain: String,
    /// Name servers of the sandboxes. Empty: the node's address on the bridge.
    pub name_servers: Vec<IpAddr>,
    /// Tasks that are created at the same time, two or more for each sandbox. 0: four per CPU.
    pub parallel_creates: usize,
    /// Sandboxes that the node has at most, with those that have ended and are not purged yet.
    pub sandboxes_max: u64,
    #[serde(with = "berth_daemon::duration")]
    pub end_timeout: Duration,
    #[serde(with = "berth_daemon::duration")]
    pub dead_horizon: Duration,
    #[serde(with = "berth_daemon::duration")]
    pub purge_interval: Duration,
    #[serde(with = "berth_daemon::duration")]
    pub shutdown_grace: Duration,
    pub containerd: Containerd,
    pub cgroup: Cgroup,
    pub network: Network,
    pub import: Import,
    pub pull: Pull,
    pub exec: Exec,
    pub calls: Calls,
    pub tls: Tls,
    pub access: Access,
    pub audit_log: AuditLog,
    pub telemetry: berth_telemetry::Config,
}

/// What callers may ask for at a time.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Calls {
    /// Calls under way that are no streams. Those above are refused.
    pub unary_max: usize,
    /// Streams under way, of all kinds together. Those above are refused.
    pub streams_max: usize,
    /// Of a call that is no stream, where its caller sets no deadline.
    #[serde(with = "berth_daemon::duration")]
    pub default_deadline: Duration,
}

/// Programs that callers run beside the containers' own.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// At a time, in one sandbox.
    pub per_sandbox: usize,
    /// At a time, in all of them.
    pub per_node: usize,
}

/// Archives on their way in. They are kept in `state_dir` meanwhile, beside the store.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// Of an archive, and once more of what a compressed one unpacks to.
    pub max_bytes: u64,
    /// Stays free on the file system of `state_dir`.
    pub reserve_bytes: u64,
    /// How long a caller may send nothing.
    #[serde(with = "berth_daemon::duration")]
    pub idle_timeout: Duration,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Containerd {
    pub address: PathBuf,
    pub namespace: String,
    /// Runtime of the containers.
    pub handler: String,
    /// OCI runtime that the handler executes. Empty: the handler's default.
    pub runtime_binary: String,
    pub snapshotter: String,
    /// Where the pause's root file system comes from: `shared`, one read-only folder for all, or `snapshot`.
    pub pause_rootfs: PauseRootfs,
    /// Keeps the kernel's lock over cgroup membership warm while tasks are created.
    pub warm_cgroup_lock: bool,
    /// Registries that speak plain http, `host:port` or `host:*`.
    pub plain_http_registries: Vec<String>,
    #[serde(with = "berth_daemon::duration")]
    pub call_timeout: Duration,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum PauseRootfs {
    Shared,
    Snapshot,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    pub bridge: String,
    pub subnet: Ipv4Net,
    /// `None`: sandboxes have no IPv6.
    pub subnet6: Option<Ipv6Net>,
    #[serde(with = "berth_daemon::duration")]
    pub cool_down: Duration,
    /// Who beyond the node may open connections to the addresses of sandboxes. Node ports are open to all.
    pub reachable_from: Vec<IpNet>,
    /// Namespaces and links that are made ahead of the sandboxes that will have them.
    pub slots: usize,
    /// Connections that one sandbox may have opened at a time, so that none takes all that the node can track; 0 for no limit.
    pub connections_max: u32,
    /// Whether sandboxes may have the node's network, where no rule of the node holds them.
    pub allow_host_network: bool,
    /// Places an accept in a firewall of somebody else that drops what is forwarded.
    pub foreign_accept: bool,
}

impl Network {
    pub fn subnets(&self) -> Subnets {
        Subnets {
            v4: self.subnet,
            v6: self.subnet6,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance_id: String::new(),
            node_id: String::new(),
            state_dir: "/var/lib/berth".into(),
            run_dir: "/run/berth".into(),
            log_dir: "/var/log/berth".into(),
            socket: "/run/berth/manager.sock".into(),
            socket_group: "berth".into(),
            log_writer: PathBuf::new(),
            log_limit_bytes: 16 << 20,
            search_domain: "app.berth".into(),
            name_servers: vec![],
            parallel_creates: 0,
            sandboxes_max: 16_384,
            end_timeout: Duration::from_secs(60),
            dead_horizon: Duration::from_secs(3600),
            purge_interval: Duration::from_secs(300),
            shutdown_grace: Duration::from_secs(10),
            containerd: Containerd {
                address: "/run/containerd/containerd.sock".into(),
                namespace: "berth".into(),
                handler: "io.containerd.runc.v2".into(),
                runtime_binary: String::new(),
                snapshotter: "overlayfs".into(),
                pause_rootfs: PauseRootfs::Shared,
                warm_cgroup_lock: true,
                plain_http_registries: vec![],
                call_timeout: Duration::from_secs(30),
            },
            cgroup: Cgroup::default(),
            network: Network {
                bridge: "berth0".into(),
                subnet: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 87, 0, 0), 16),
                subnet6: None,
                cool_down: ipam::COOL_DOWN_DEFAULT,
                reachable_from: vec![],
                slots: 4,
                connections_max: 16_384,
                allow_host_network: false,
                foreign_accept: true,
            },
            import: Import {
                max_bytes: 8 << 30,
                reserve_bytes: 256 << 20,
                idle_timeout: Duration::from_secs(60),
            },
            pull: Pull::default(),
            exec: Exec {
                per_sandbox: 64,
                per_node: 512,
            },
            calls: Calls {
                unary_max: 2048,
                streams_max: 4096,
                default_deadline: Duration::from_secs(1800),
            },
            tls: Tls::default(),
            access: Access::default(),
            audit_log: AuditLog::default(),
            telemetry: berth_telemetry::Config::default(),
        }
    }
}

/// Reads and checks the configuration; an error names the key.
pub fn load(flags: &Flags) -> anyhow::Result<Config> {
    let named = flags.config.as_deref();
    let config =
        berth_daemon::load_config(&Config::default(), named, FILE, ENV_PREFIX, &flags.set)?;
    check(&config)?;
    check_host(&config)?;
    Ok(config)
}

impl Config {
    /// Where the state directory keeps the instance id.
    pub(crate) fn instance_file(&self) -> PathBuf {
        self.state_dir.join("instance-id")
    }

    /// The instance id of the configuration, else the one that the state directory holds, else one derived from its
    /// path. It never changes: what carries the old one would be nobody's.
    pub(crate) fn instance(&self) -> anyhow::Result<InstanceId> {
        let file = self.instance_file();
        let stored = fs::read_to_string(&file).ok();
        // Empty is what a power cut leaves of its first start.
        let stored = stored.as_deref().map(str::trim).filter(|it| !it.is_empty());
        let wanted = match (stored, self.instance_id.as_str()) {
            (Some(stored), "") => stored.to_owned(),
            (Some(stored), wanted) if stored != wanted => bail!(
                "instance_id: `{wanted}` is configured, but {} belongs to instance `{stored}`",
                self.state_dir.display()
            ),
            (_, "") => names::derived_instance(&self.state_dir),
            (_, wanted) => wanted.to_owned(),
        };
        InstanceId::parse(&wanted)
            .with_context(|| format!("instance_id: `{wanted}` of {}", file.display()))
    }
}

/// What is wrong with a configuration on any host.
fn check(config: &Config) -> anyhow::Result<()> {
    for (key, path) in [
        ("state_dir", &config.state_dir),
        ("run_dir", &config.run_dir),
        ("log_dir", &config.log_dir),
    ] {
        ensure!(
            path.is_absolute(),
            "{key}: `{}` must be an absolute path",
            path.display()
        );
    }
    check_socket("socket", &config.socket)?;
    check_socket("containerd.address", &config.containerd.address)?;
    if !config.instance_id.is_empty() {
        InstanceId::parse(&config.instance_id)
            .with_context(|| format!("instance_id: `{}`", config.instance_id))?;
    }
    ensure!(
        config.parallel_creates <= PARALLEL_CREATES_MAX,
        "parallel_creates: must be at most {PARALLEL_CREATES_MAX}, or 0 for four per CPU"
    );
    ensure!(
        (1..=SANDBOXES_MAX).contains(&config.sandboxes_max),
        "sandboxes_max: must be 1 to {SANDBOXES_MAX}"
    );
    for (key, number) in [
        ("exec.per_sandbox", config.exec.per_sandbox),
        ("exec.per_node", config.exec.per_node),
    ] {
        ensure!(
            (1..=EXECS_MAX).contains(&number),
            "{key}: must be 1 to {EXECS_MAX}"
        );
    }
    for (key, number) in [
        ("calls.unary_max", config.calls.unary_max),
        ("calls.streams_max", config.calls.streams_max),
    ] {
        ensure!(
            (1..=CALLS_MAX).contains(&number),
            "{key}: must be 1 to {CALLS_MAX}"
        );
    }
    ensure!(
        !config.calls.default_deadline.is_zero(),
        "calls.default_deadline: must not be zero"
    );
    berth_telemetry::check_address(&config.telemetry.prometheus_address)
        .map_err(|it| anyhow!("telemetry.prometheus_address: {it}"))?;
    ensure!(
        is_domain(&config.search_domain),
        "search_domain: {:?} must be a domain like `app.berth`",
        config.search_domain
    );
    for (key, text) in [
        ("containerd.namespace", &config.containerd.namespace),
        ("containerd.snapshotter", &config.containerd.snapshotter),
    ] {
        ensure!(
            is_identifier(text),
            "{key}: {text:?} must be 1 to {IDENTIFIER_MAX} letters and digits, in parts joined by single `.`, `-`, `_`"
        );
    }
    let handler = &config.containerd.handler;
    ensure!(
        is_identifier(handler) || is_program(handler),
        "containerd.handler: {handler:?} must be a name like `io.containerd.runc.v2`, or the path of a shim"
    );
    config.cgroup.check(handler)?;
    let binary = &config.containerd.runtime_binary;
    ensure!(
        binary.is_empty() || is_identifier(binary) || is_program(binary),
        "containerd.runtime_binary: {binary:?} must be a name like `crun`, or the path of a program"
    );
    let bridge = &config.network.bridge;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    ensure!(
        (1..=BRIDGE_NAME_MAX).contains(&bridge.len())
            && bridge.bytes().all(plain)
            && !matches!(bridge.as_str(), "." | ".."),
        "network.bridge: `{bridge}` must be 1 to {BRIDGE_NAME_MAX} letters, digits, `-`, `_`, `.`"
    );
    let subnet = config.network.subnet;
    ensure!(
        subnet.trunc() == subnet,
        "network.subnet: {subnet} has bits behind its prefix; write {}",
        subnet.trunc()
    );
    ensure!(
        ipam::PREFIX_RANGE.contains(&subnet.prefix_len()),
        "network.subnet: the prefix of {subnet} must be /{} to /{}",
        ipam::PREFIX_RANGE.start(),
        ipam::PREFIX_RANGE.end()
    );
    if let Some(subnet6) = config.network.subnet6 {
        ipam::check_subnet6(subnet6).context("network.subnet6")?;
    }
    ensure!(
        config.network.slots <= SLOTS_MAX,
        "network.slots: must be at most {SLOTS_MAX}"
    );
    for registry in &config.containerd.plain_http_registries {
        let Some((host, port)) = registry.rsplit_once(':') else {
            bail!("containerd.plain_http_registries: `{registry}` must be `host:port` or `host:*`");
        };
        ensure!(
            !host.is_empty() && (port == "*" || port.parse::<u16>().is_ok()),
            "containerd.plain_http_registries: `{registry}` must be `host:port` or `host:*`"
        );
    }
    let not_zero = |key: &str, it: Duration| {
        ensure!(
            it >= Duration::from_millis(100),
            "{key}: must be at least 100ms"
        );
        Ok(())
    };
    not_zero("end_timeout", config.end_timeout)?;
    not_zero("dead_horizon", config.dead_horizon)?;
    not_zero("purge_interval", config.purge_interval)?;
    not_zero("shutdown_grace", config.shutdown_grace)?;
    not_zero("containerd.call_timeout", config.containerd.call_timeout)?;
    not_zero("import.idle_timeout", config.import.idle_timeout)?;
    config.pull.check()?;
    config.tls.check()?;
    config.access.check()?;
    config.audit_log.check()?;
    ensure!(
        config.import.max_bytes >= 1 << 20,
        "import.max_bytes: must be at least 1048576"
    );
    ensure!(
        config.log_limit_bytes >= 1 << 20,
        "log_limit_bytes: must be at least 1048576"
    );
    Ok(())
}

/// What is wrong with a configuration on this host. Changes nothing.
fn check_host(config: &Config) -> anyhow::Result<()> {
    let program = &config.log_writer;
    let executable = program.as_os_str().is_empty()
        || fs::metadata(program)
            .is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0);
    ensure!(
        executable,
        "log_writer: {} is not there, or is no program",
        program.display()
    );
    export::Settings::of_environment()?;
    config.pull.check_host()?;
    config.instance().map(drop)
}

/// As containerd wants the names of namespaces and snapshotters.
fn is_identifier(text: &str) -> bool {
    let plain = |it: &str| !it.is_empty() && it.bytes().all(|b| b.is_ascii_alphanumeric());
    text.len() <= IDENTIFIER_MAX && text.split(['.', '-', '_']).all(plain)
}

fn is_program(text: &str) -> bool {
    text.starts_with('/') && !text.ends_with('/') && !text.contains(char::is_control)
}

fn is_domain(text: &str) -> bool {
    let label = |it: &str| {
        (1..=LABEL_MAX).contains(&it.len())
            && it
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= DOMAIN_MAX && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_accepted() {
        check(&Config::default()).unwrap();
    }

    #[test]
    #[rustfmt::skip]
    fn each_bad_value_is_refused_by_its_key() {
        type Break = fn(&mut Config);
        let cases: &[(&str, Break)] = &[
            ("instance_id",                      |it| it.instance_id = "A b".into()),
            ("tls.listen",                       |it| it.tls.listen = "7443".into()),
            ("tls.key",                          |it| it.tls.key = "tls.key".into()),
            ("tls.trust_domain",                 |it| it.tls.trust_domain = "a/b".into()),
            ("tls.connections_max",              |it| it.tls.connections_max = 0),
            ("tls.idle_timeout",                 |it| it.tls.idle_timeout = Duration::ZERO),
            ("access.socket_roles",              |it| it.access.socket_roles = vec!["uid:x=gc".into()]),
            ("access.socket_default",            |it| it.access.socket_default = "everybody".into()),
            ("audit_log.file",                   |it| it.audit_log.file = "audit.log".into()),
            ("audit_log.max_bytes",              |it| it.audit_log.max_bytes = 1),
            ("audit_log.files",                  |it| it.audit_log.files = 101),
            ("state_dir",                        |it| it.state_dir = "state".into()),
            ("socket",                           |it| it.socket = format!("/{}", "x".repeat(120)).into()),
            ("network.bridge",                   |it| it.network.bridge = "a-bridge-too-long".into()),
            ("network.bridge",                   |it| it.network.bridge = "a/b".into()),
            ("network.subnet",                   |it| it.network.subnet = "10.0.0.1/16".parse().unwrap()),
            ("network.subnet",                   |it| it.network.subnet = "10.0.0.0/30".parse().unwrap()),
            ("network.subnet6",                  |it| it.network.subnet6 = Some("fd00::1/64".parse().unwrap())),
            ("network.subnet6",                  |it| it.network.subnet6 = Some("fd00::/97".parse().unwrap())),
            ("network.subnet6",                  |it| it.network.subnet6 = Some("fe80::/64".parse().unwrap())),
            ("network.subnet",                   |it| it.network.subnet = "10.0.0.0/7".parse().unwrap()),
            ("cgroup.parent",                    |it| it.cgroup.parent = "/a/../b".into()),
            ("cgroup.parent",                    |it| it.cgroup.parent = "/".into()),
            ("cgroup.driver",                    |it| { it.cgroup.driver = cgroup::Driver::Systemd; it.containerd.handler = "io.containerd.kata.v2".into() }),
            ("cgroup.parent",                    |it| it.cgroup = Cgroup { driver: cgroup::Driver::Systemd, parent: "/my-berth".into() }),
            ("containerd.plain_http_registries", |it| it.containerd.plain_http_registries = vec!["host".into()]),
            ("dead_horizon",                     |it| it.dead_horizon = Duration::ZERO),
            ("import.max_bytes",                 |it| it.import.max_bytes = 0),
            ("import.idle_timeout",              |it| it.import.idle_timeout = Duration::ZERO),
            ("parallel_creates",                 |it| it.parallel_creates = 1025),
            ("parallel_creates",                 |it| it.parallel_creates = usize::MAX),
            ("search_domain",                    |it| it.search_domain = "a\nnameserver 1.2.3.4".into()),
            ("search_domain",                    |it| it.search_domain = "a b".into()),
            ("search_domain",                    |it| it.search_domain = "".into()),
            ("search_domain",                    |it| it.search_domain = "a..b".into()),
            ("containerd.namespace",             |it| it.containerd.namespace = "".into()),
            ("containerd.namespace",             |it| it.containerd.namespace = "a\nb".into()),
            ("containerd.namespace",             |it| it.containerd.namespace = "a--b".into()),
            ("containerd.namespace",             |it| it.containerd.namespace = "x".repeat(77)),
            ("containerd.snapshotter",           |it| it.containerd.snapshotter = "".into()),
            ("containerd.handler",               |it| it.containerd.handler = "".into()),
            ("containerd.handler",               |it| it.containerd.handler = "a handler".into()),
            ("containerd.runtime_binary",        |it| it.containerd.runtime_binary = "a\nb".into()),
        ];
        for (key, break_it) in cases {
            let mut config = Config::default();
            break_it(&mut config);
            let error = check(&config).unwrap_err();
            assert!(format!("{error:#}").starts_with(key), "{key}: {error:#}");
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_accepted() {
        let mut config = Config {
            parallel_creates: PARALLEL_CREATES_MAX,
            search_domain: "berth".into(),
            ..Config::default()
        };
        config.containerd.namespace = "x".repeat(IDENTIFIER_MAX);
        config.containerd.handler = "/opt/shims/containerd-shim-runc-v2".into();
        config.containerd.runtime_binary = "/opt/a folder/crun".into();
        check(&config).unwrap();
    }

    #[test]
    fn a_log_writer_that_cannot_be_started_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log-writer");
        let refused = |path: &std::path::Path| {
            let config = Config {
                log_writer: path.into(),
                ..Config::default()
            };
            format!("{:#}", check_host(&config).unwrap_err())
        };
        assert!(refused(&file).starts_with("log_writer: "));
        fs::write(&file, "no program").unwrap();
        assert!(refused(&file).starts_with("log_writer: "));
        assert!(refused(dir.path()).starts_with("log_writer: "), "a folder");
    }

    #[test]
    fn an_instance_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let config = |id: &str| Config {
            instance_id: id.into(),
            state_dir: dir.path().into(),
            ..Config::default()
        };
        let derived = config("").instance().unwrap();
        assert_eq!(config("").instance().unwrap(), derived);
        assert_eq!(config("mine").instance().unwrap().as_str(), "mine");

        fs::write(config("").instance_file(), "first\n").unwrap();
        assert_eq!(config("").instance().unwrap().as_str(), "first");
        assert_eq!(config("first").instance().unwrap().as_str(), "first");
        let error = format!("{:#}", config("other").instance().unwrap_err());
        assert!(
            error.starts_with("instance_id: ") && error.contains("first"),
            "{error}"
        );
        fs::write(config("").instance_file(), "NOT AN ID").unwrap();
        let error = format!("{:#}", config("").instance().unwrap_err());
        assert!(error.starts_with("instance_id: "), "{error}");
    }

    #[test]
    fn a_flag_wins_and_an_unknown_key_is_refused() {
        let flags = |text: &str| Flags {
            config: None,
            set: ["log_writer=/bin/sh", text]
                .map(|it| key_value(it).unwrap())
                .into(),
            check: false,
            command: None,
        };
        let config = load(&flags("network.subnet=10.9.0.0/16")).unwrap();
        assert_eq!(config.network.subnet.to_string(), "10.9.0.0/16");
        let error = load(&flags("network.subnets=10.9.0.0/16")).unwrap_err();
        assert!(format!("{error:#}").contains("subnets"), "{error:#}");
    }

    #[test]
    #[rustfmt::skip]
    fn what_is_at_the_bound_of_a_setting_of_the_manager_is_taken_and_one_more_is_refused() {
        type Change = fn(&mut Config, u64);
        let size = |it: usize| u64::try_from(it).unwrap();
        let cases: &[(&str, u64, Change)] = &[
            ("parallel_creates", size(PARALLEL_CREATES_MAX), |it, n| it.parallel_creates = n.try_into().unwrap()),
            ("sandboxes_max", SANDBOXES_MAX, |it, n| it.sandboxes_max = n),
            ("exec.per_sandbox", size(EXECS_MAX), |it, n| it.exec.per_sandbox = n.try_into().unwrap()),
            ("exec.per_node", size(EXECS_MAX), |it, n| it.exec.per_node = n.try_into().unwrap()),
            ("calls.unary_max", size(CALLS_MAX), |it, n| it.calls.unary_max = n.try_into().unwrap()),
            ("calls.streams_max", size(CALLS_MAX), |it, n| it.calls.streams_max = n.try_into().unwrap()),
            ("network.slots", size(SLOTS_MAX), |it, n| it.network.slots = n.try_into().unwrap()),
            ("network.bridge", size(BRIDGE_NAME_MAX), |it, n| it.network.bridge = "a".repeat(n.try_into().unwrap())),
            ("instance_id", size(berth_domain::id::INSTANCE_ID_MAX), |it, n| it.instance_id = "a".repeat(n.try_into().unwrap())),
            ("containerd.namespace", size(IDENTIFIER_MAX), |it, n| it.containerd.namespace = "a".repeat(n.try_into().unwrap())),
            ("containerd.snapshotter", size(IDENTIFIER_MAX), |it, n| it.containerd.snapshotter = "a".repeat(n.try_into().unwrap())),
            ("tls.trust_domain", 253, |it, n| it.tls.trust_domain = "a".repeat(n.try_into().unwrap())),
            ("socket", size(berth_daemon::SOCKET_PATH_MAX), |it, n| it.socket = format!("/{}", "a".repeat(usize::try_from(n).unwrap() - 1)).into()),
            ("containerd.address", size(berth_daemon::SOCKET_PATH_MAX), |it, n| it.containerd.address = format!("/{}", "a".repeat(usize::try_from(n).unwrap() - 1)).into()),
            ("search_domain", size(LABEL_MAX), |it, n| it.search_domain = "a".repeat(n.try_into().unwrap())),
            ("search_domain", size(DOMAIN_MAX), |it, n| it.search_domain = format!("{}{}", "a.".repeat(100), "b".repeat(26) + "." + &"c".repeat(usize::try_from(n).unwrap() - 227))),
            ("pull.at_once", 64, |it, n| it.pull.at_once = n.try_into().unwrap()),
            ("pull.layers_at_once", 64, |it, n| it.pull.layers_at_once = n.try_into().unwrap()),
            ("pull.tries", 100, |it, n| it.pull.tries = n.try_into().unwrap()),
            ("pull.registries", 255, |it, n| it.pull.registries = [("a".repeat(n.try_into().unwrap()), pull::Registry::default())].into()),
        ];
        for (key, most, change) in cases {
            let of = |number| {
                let mut config = Config::default();
                change(&mut config, number);
                check(&config).map_err(|it| format!("{it:#}"))
            };
            assert_eq!(of(*most), Ok(()), "{key}");
            let refused = of(most + 1).unwrap_err();
            assert!(refused.starts_with(key), "{key}: {refused}");
        }
    }
}

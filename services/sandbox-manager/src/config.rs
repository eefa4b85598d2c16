//! What the manager can be told, with the defaults.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use berth_domain::{InstanceId, ipam};
use figment::value::Value;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::store_command::StoreCommand;

const FILE: &str = "/etc/berth/sandbox-manager.toml";
const ENV_PREFIX: &str = "BERTH_MANAGER_";
/// The kernel's limit for the path of a Unix socket, with its end mark.
const SOCKET_PATH_MAX: usize = 107;
const BRIDGE_NAME_MAX: usize = 15;

/// The sandbox runtime of a node.
#[derive(Debug, clap::Parser)]
#[command(name = "sandbox-manager", version)]
pub struct Flags {
    /// Configuration file [default: /etc/berth/sandbox-manager.toml, which may be missing].
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Sets one key over file and environment, as in `--set network.subnet=10.9.0.0/16`.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value, global = true)]
    pub set: Vec<(String, String)>,
    /// Without one the manager runs.
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Looks at the store, writes it out as text, or makes it from text, while no manager runs.
    #[command(subcommand)]
    Store(StoreCommand),
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
    /// Empty: `log-writer` beside the manager's own program.
    pub log_writer: PathBuf,
    /// Output kept per container, in bytes.
    pub log_limit_bytes: u64,
    /// DNS search domain of the sandboxes.
    pub search_domain: String,
    /// Name servers of the sandboxes. Empty: the node's address on the bridge.
    pub name_servers: Vec<IpAddr>,
    /// Creates that run at the same time. 0: two per CPU.
    pub parallel_creates: usize,
    #[serde(with = "berth_daemon::duration")]
    pub end_timeout: Duration,
    #[serde(with = "berth_daemon::duration")]
    pub dead_horizon: Duration,
    #[serde(with = "berth_daemon::duration")]
    pub shutdown_grace: Duration,
    pub containerd: Containerd,
    pub cgroup: Cgroup,
    pub network: Network,
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
pub struct Cgroup {
    /// Parent of all sandboxes. Empty: `/berth/<instance>`.
    pub parent: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    pub bridge: String,
    pub subnet: Ipv4Net,
    #[serde(with = "berth_daemon::duration")]
    pub cool_down: Duration,
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
            end_timeout: Duration::from_secs(60),
            dead_horizon: Duration::from_secs(3600),
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
            cgroup: Cgroup {
                parent: String::new(),
            },
            network: Network {
                bridge: "berth0".into(),
                subnet: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 87, 0, 0), 16),
                cool_down: ipam::COOL_DOWN_DEFAULT,
            },
        }
    }
}

/// Reads and checks the configuration; an error names the key.
pub fn load(flags: &Flags) -> anyhow::Result<Config> {
    let sets: Vec<(String, Value)> = flags
        .set
        .iter()
        .map(|(key, value)| (key.clone(), typed(value)))
        .collect();
    let file = flags.config.as_deref().unwrap_or(Path::new(FILE));
    let config = berth_daemon::load_config(
        &Config::default(),
        file,
        flags.config.is_some(),
        ENV_PREFIX,
        &sets,
    )?;
    check(&config)?;
    Ok(config)
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads a flag's value as the environment is read: a list, a number, a truth value, else a text.
fn typed(text: &str) -> Value {
    text.parse().unwrap_or_else(|_| Value::from(text))
}

fn check(config: &Config) -> anyhow::Result<()> {
    for (key, path) in [
        ("state_dir", &config.state_dir),
        ("run_dir", &config.run_dir),
        ("log_dir", &config.log_dir),
        ("socket", &config.socket),
        ("containerd.address", &config.containerd.address),
    ] {
        ensure!(
            path.is_absolute(),
            "{key}: `{}` must be an absolute path",
            path.display()
        );
    }
    for (key, path) in [
        ("socket", &config.socket),
        ("containerd.address", &config.containerd.address),
    ] {
        let length = path.as_os_str().len();
        ensure!(
            length <= SOCKET_PATH_MAX,
            "{key}: the path has {length} bytes, a socket's can have {SOCKET_PATH_MAX}"
        );
    }
    if !config.instance_id.is_empty() {
        InstanceId::parse(&config.instance_id)
            .with_context(|| format!("instance_id: `{}`", config.instance_id))?;
    }
    let parent = config.cgroup.parent.trim_matches('/');
    ensure!(
        config.cgroup.parent.is_empty()
            || parent
                .split('/')
                .all(|it| !it.is_empty() && it != "." && it != ".."),
        "cgroup.parent: `{}` must be a path like `/berth/a1`",
        config.cgroup.parent
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
    not_zero("shutdown_grace", config.shutdown_grace)?;
    not_zero("containerd.call_timeout", config.containerd.call_timeout)?;
    ensure!(
        config.log_limit_bytes >= 64 << 10,
        "log_limit_bytes: must be at least 65536"
    );
    Ok(())
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
            ("state_dir",                        |it| it.state_dir = "state".into()),
            ("socket",                           |it| it.socket = format!("/{}", "x".repeat(120)).into()),
            ("network.bridge",                   |it| it.network.bridge = "a-bridge-too-long".into()),
            ("network.bridge",                   |it| it.network.bridge = "a/b".into()),
            ("network.subnet",                   |it| it.network.subnet = "10.0.0.1/16".parse().unwrap()),
            ("network.subnet",                   |it| it.network.subnet = "10.0.0.0/30".parse().unwrap()),
            ("cgroup.parent",                    |it| it.cgroup.parent = "/a/../b".into()),
            ("containerd.plain_http_registries", |it| it.containerd.plain_http_registries = vec!["host".into()]),
            ("dead_horizon",                     |it| it.dead_horizon = Duration::ZERO),
        ];
        for (key, break_it) in cases {
            let mut config = Config::default();
            break_it(&mut config);
            let error = check(&config).unwrap_err();
            assert!(format!("{error:#}").starts_with(key), "{key}: {error:#}");
        }
    }

    #[test]
    fn a_flag_wins_and_an_unknown_key_is_refused() {
        let flags = |text: &str| Flags {
            config: None,
            set: vec![key_value(text).unwrap()],
            command: None,
        };
        let config = load(&flags("network.subnet=10.9.0.0/16")).unwrap();
        assert_eq!(config.network.subnet.to_string(), "10.9.0.0/16");
        let error = load(&flags("network.subnets=10.9.0.0/16")).unwrap_err();
        assert!(format!("{error:#}").contains("subnets"), "{error:#}");
    }
}

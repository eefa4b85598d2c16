//! What the dns can be told, with the defaults.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use berth_api::Target;
use berth_daemon::{check_socket, key_value};
use berth_domain::ipam::{self, Subnets};
use berth_plugin::{ManagerTls, Plugin};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

const FILE: &str = "/etc/berth/dns.toml";
const ENV_PREFIX: &str = "BERTH_DNS_";
const DOMAIN_MAX: usize = 253;
const LABEL_MAX: usize = 63;
/// Each is a socket.
const FORWARDS_MAX: usize = 10_000;
const CACHE_ENTRIES_MAX: usize = 100_000;
/// Shorter ones would be over before who has been told an address can connect to it.
const EGRESS_LIFE_LEAST: Duration = Duration::from_secs(2);
/// As long as records live that are kept by others.
const EGRESS_LIFE_MOST: Duration = Duration::from_secs(24 * 3600);

/// The resolver of a node's sandboxes.
#[derive(Debug, clap::Parser)]
#[command(name = "dns", version = berth_version::LONG)]
pub struct Flags {
    /// Configuration file [default: /etc/berth/dns.toml, which may be missing].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Sets one key over file and environment, as in `--set port=5353`.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Only reads the configuration: exit code 0 where it is good, 78 where it is refused.
    #[arg(long)]
    pub check: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the manager listens: `unix:/path`, `/path`, `http://host:port` or `https://host:port`.
    pub manager: String,
    /// For `https://`.
    pub manager_tls: ManagerTls,
    /// Where this process tells its health.
    pub socket: PathBuf,
    /// Where it keeps what it knows.
    pub state_dir: PathBuf,
    /// Subnet of the sandboxes; its first address is listened on. Empty: what the manager says.
    pub subnet: String,
    /// Their IPv6 subnet, beside a `subnet` that is said here. Empty: they have none.
    pub subnet6: String,
    pub port: u16,
    /// Domain of the services, as the manager's `search_domain`.
    pub domain: String,
    /// Who is asked about everything else. Empty: those of `resolv_conf`.
    pub upstreams: Vec<IpAddr>,
    pub upstream_port: u16,
    pub resolv_conf: PathBuf,
    /// How long one upstream may take.
    #[serde(with = "berth_daemon::duration")]
    pub upstream_timeout: Duration,
    /// Questions that are with upstreams at the same time.
    pub forwards_max: usize,
    /// Answers that are kept. 0: none.
    pub cache_entries: usize,
    /// How long one is kept at most.
    #[serde(with = "berth_daemon::duration")]
    pub cache_ttl_max: Duration,
    /// How long what a name stands for can be reached at least, when it was answered to who may reach it.
    #[serde(with = "berth_daemon::duration")]
    pub egress_life_min: Duration,
    /// And at most, however long its records live.
    #[serde(with = "berth_daemon::duration")]
    pub egress_life_max: Duration,
    pub telemetry: berth_telemetry::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            manager: "unix:/run/berth/manager.sock".into(),
            manager_tls: ManagerTls::default(),
            socket: "/run/berth/dns.sock".into(),
            state_dir: "/var/lib/berth/dns".into(),
            subnet: String::new(),
            subnet6: String::new(),
            port: 53,
            domain: "app.berth".into(),
            upstreams: vec![],
            upstream_port: 53,
            resolv_conf: "/etc/resolv.conf".into(),
            upstream_timeout: Duration::from_secs(2),
            forwards_max: 256,
            cache_entries: 1024,
            cache_ttl_max: Duration::from_secs(300),
            egress_life_min: Duration::from_secs(60),
            egress_life_max: Duration::from_secs(3600),
            telemetry: berth_telemetry::Config::default(),
        }
    }
}

/// Reads and checks the configuration; an error names the key.
pub fn load(flags: &Flags) -> anyhow::Result<Config> {
    let named = flags.config.as_deref();
    let mut config: Config =
        berth_daemon::load_config(&Config::default(), named, FILE, ENV_PREFIX, &flags.set)?;
    check(&config)?;
    config.domain.make_ascii_lowercase();
    Ok(config)
}

impl Config {
    /// What the manager is told of this process.
    pub fn plugin(&self) -> Plugin {
        Plugin {
            name: "dns",
            instance: String::new(),
            address: format!("unix:{}", self.socket.display()),
            version: berth_version::VERSION,
        }
    }

    /// Where the manager is, with what it is shown.
    pub fn target(&self) -> Target {
        self.manager_tls.target(&self.manager)
    }

    /// `None`: the manager says it. Checked when it was loaded.
    pub(crate) fn subnets(&self) -> Option<Subnets> {
        Some(Subnets {
            v4: self.subnet.parse().ok()?,
            v6: self.subnet6.parse().ok(),
        })
    }
}

fn check(config: &Config) -> anyhow::Result<()> {
    for (key, path) in [
        ("state_dir", &config.state_dir),
        ("resolv_conf", &config.resolv_conf),
    ] {
        ensure!(
            path.is_absolute(),
            "{key}: `{}` must be an absolute path",
            path.display()
        );
    }
    check_socket("socket", &config.socket)?;
    berth_telemetry::check_address(&config.telemetry.prometheus_address)
        .map_err(|it| anyhow::anyhow!("telemetry.prometheus_address: {it}"))?;
    config.manager_tls.check("manager", &config.manager)?;
    ensure!(
        config.subnet.is_empty() || config.subnet.parse().is_ok_and(|it| is_subnet(&it)),
        "subnet: `{}` must be like `10.87.0.0/16`, /{} to /{}",
        config.subnet,
        ipam::PREFIX_RANGE.start(),
        ipam::PREFIX_RANGE.end()
    );
    if !config.subnet6.is_empty() {
        ensure!(
            !config.subnet.is_empty(),
            "subnet6: is needed beside `subnet` only; without it the manager says both"
        );
        let subnet: Result<Ipv6Net, _> = config.subnet6.parse();
        let subnet = subnet.with_context(|| format!("subnet6: `{}`", config.subnet6))?;
        ipam::check_subnet6(subnet).context("subnet6")?;
    }
    for (key, port) in [
        ("port", config.port),
        ("upstream_port", config.upstream_port),
    ] {
        ensure!(port != 0, "{key}: must be 1 to 65535");
    }
    ensure!(
        is_domain(&config.domain),
        "domain: {:?} must be a domain like `app.berth`",
        config.domain
    );
    ensure!(
        !config.upstream_timeout.is_zero(),
        "upstream_timeout: must not be zero"
    );
    ensure!(
        (1..=FORWARDS_MAX).contains(&config.forwards_max),
        "forwards_max: must be 1 to {FORWARDS_MAX}"
    );
    ensure!(
        config.cache_entries <= CACHE_ENTRIES_MAX,
        "cache_entries: must be at most {CACHE_ENTRIES_MAX}"
    );
    ensure!(
        config.egress_life_min >= EGRESS_LIFE_LEAST,
        "egress_life_min: must be at least {}s",
        EGRESS_LIFE_LEAST.as_secs()
    );
    ensure!(
        (config.egress_life_min..=EGRESS_LIFE_MOST).contains(&config.egress_life_max),
        "egress_life_max: must be from egress_life_min to {}h",
        EGRESS_LIFE_MOST.as_secs() / 3600
    );
    Ok(())
}

fn is_subnet(it: &Ipv4Net) -> bool {
    it.addr() == it.network() && ipam::PREFIX_RANGE.contains(&it.prefix_len())
}

fn is_domain(text: &str) -> bool {
    let label = |it: &str| {
        (1..=LABEL_MAX).contains(&it.len())
            && !it.starts_with('-')
            && !it.ends_with('-')
            && it.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.len() <= DOMAIN_MAX && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn what_is_at_the_bound_of_a_setting_is_taken_and_one_more_is_refused_by_its_key() {
        type Change = fn(&mut Config, u64);
        let size = |it: usize| u64::try_from(it).unwrap();
        let cases: &[(&str, u64, Change)] = &[
            ("forwards_max", size(FORWARDS_MAX), |it, n| it.forwards_max = n.try_into().unwrap()),
            ("cache_entries", size(CACHE_ENTRIES_MAX), |it, n| it.cache_entries = n.try_into().unwrap()),
            ("egress_life_max", EGRESS_LIFE_MOST.as_secs(), |it, n| it.egress_life_max = Duration::from_secs(n)),
            ("domain", size(LABEL_MAX), |it, n| it.domain = "a".repeat(n.try_into().unwrap())),
            ("domain", size(DOMAIN_MAX), |it, n| it.domain = format!("{}{}", "a.".repeat(100), "b".repeat(26) + "." + &"c".repeat(usize::try_from(n).unwrap() - 227))),
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

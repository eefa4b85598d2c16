//! What the watchdog can be told, with the defaults.

use std::{path::PathBuf, time::Duration};

use anyhow::ensure;
use berth_api::Target;
use berth_daemon::{check_socket, key_value};
use berth_plugin::{ManagerTls, Plugin};
use serde::{Deserialize, Serialize};

const FILE: &str = "/etc/berth/watchdog.toml";
const ENV_PREFIX: &str = "BERTH_WATCHDOG_";
/// What is left of the name of a lease's holder.
const NAME_MAX: usize = 96;
const INTERVAL_LEAST: Duration = Duration::from_secs(1);
const INTERVAL_MOST: Duration = Duration::from_secs(24 * 3600);
const GRACE_MOST: Duration = Duration::from_secs(600);
/// What the contract allows.
const LEASE_TIME_LEAST: Duration = Duration::from_secs(1);
const LEASE_TIME_MOST: Duration = Duration::from_secs(600);
const OBJECT_TIMEOUT_LEAST: Duration = Duration::from_secs(1);
const OBJECT_TIMEOUT_MOST: Duration = Duration::from_secs(300);

/// Removes what no record of the manager explains.
#[derive(Debug, clap::Parser)]
#[command(name = "watchdog", version = berth_version::LONG)]
pub struct Flags {
    /// Configuration file [default: /etc/berth/watchdog.toml, which may be missing].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Sets one key over file and environment, as in `--set check_interval=1m`.
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
    pub manager_address: String,
    /// For `https://`.
    pub manager_tls: ManagerTls,
    /// Name of this watchdog, where a node has several. Empty: that of the host.
    pub name: String,
    /// Where this process answers.
    pub socket: PathBuf,
    /// From the end of a run to the next one; there is one at the start too.
    #[serde(with = "berth_daemon::duration")]
    pub check_interval: Duration,
    /// Between the two looks of a run.
    #[serde(with = "berth_daemon::duration")]
    pub grace_window: Duration,
    /// How long each object may take before it is told as failed.
    #[serde(with = "berth_daemon::duration")]
    pub object_timeout: Duration,
    /// After this time without a word of this one another watchdog may run.
    #[serde(with = "berth_daemon::duration")]
    pub lease_time: Duration,
    /// What others see of this process.
    pub telemetry: berth_telemetry::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            manager_address: "unix:/run/berth/manager.sock".into(),
            manager_tls: ManagerTls::default(),
            name: String::new(),
            socket: "/run/berth/watchdog.sock".into(),
            check_interval: Duration::from_secs(300),
            grace_window: Duration::from_secs(10),
            object_timeout: Duration::from_secs(60),
            lease_time: Duration::from_secs(3),
            telemetry: berth_telemetry::Config::default(),
        }
    }
}

impl Config {
    /// What the manager is told of this process.
    pub fn plugin(&self) -> Plugin {
        Plugin {
            name: "watchdog",
            instance: self.name.clone(),
            address: format!("unix:{}", self.socket.display()),
            version: berth_version::VERSION,
        }
    }
}

/// Reads and checks the configuration; an error names the key.
pub fn load(flags: &Flags) -> anyhow::Result<Config> {
    let named = flags.config.as_deref();
    let mut config: Config =
        berth_daemon::load_config(&Config::default(), named, FILE, ENV_PREFIX, &flags.set)?;
    check(&config)?;
    if config.name.is_empty() {
        config.name = host_name();
    }
    Ok(config)
}

impl Config {
    /// Where the manager is, with what it is shown.
    pub fn target(&self) -> Target {
        self.manager_tls.target(&self.manager_address)
    }
}

fn check(config: &Config) -> anyhow::Result<()> {
    check_socket("socket", &config.socket)?;
    berth_telemetry::check_address(&config.telemetry.prometheus_address)
        .map_err(|it| anyhow::anyhow!("telemetry.prometheus_address: {it}"))?;
    config
        .manager_tls
        .check("manager_address", &config.manager_address)?;
    ensure!(
        config.name.len() <= NAME_MAX && config.name.chars().all(is_of_name),
        "name: `{}` must have at most {NAME_MAX} of a to z, digits, `.`, `_` and `-`",
        config.name
    );
    ensure!(
        (INTERVAL_LEAST..=INTERVAL_MOST).contains(&config.check_interval),
        "check_interval: must be 1s to 24h"
    );
    ensure!(
        config.grace_window <= GRACE_MOST,
        "grace_window: must be at most 10m"
    );
    ensure!(
        (OBJECT_TIMEOUT_LEAST..=OBJECT_TIMEOUT_MOST).contains(&config.object_timeout),
        "object_timeout: must be 1s to 5m"
    );
    ensure!(
        (LEASE_TIME_LEAST..=LEASE_TIME_MOST).contains(&config.lease_time),
        "lease_time: must be 1s to 10m"
    );
    Ok(())
}

fn is_of_name(it: char) -> bool {
    it.is_ascii_lowercase() || it.is_ascii_digit() || ['.', '_', '-'].contains(&it)
}

fn host_name() -> String {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy().to_lowercase();
    host.chars().filter(|it| is_of_name(*it)).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn what_is_at_the_bound_of_a_setting_of_the_watchdog_is_taken_and_one_more_is_refused() {
        type Change = fn(&mut Config, u64);
        let size = |it: usize| u64::try_from(it).unwrap();
        let cases: &[(&str, u64, Change)] = &[
            ("name", size(NAME_MAX), |it, n| it.name = "a".repeat(n.try_into().unwrap())),
            ("check_interval", INTERVAL_MOST.as_secs(), |it, n| it.check_interval = Duration::from_secs(n)),
            ("grace_window", GRACE_MOST.as_secs(), |it, n| it.grace_window = Duration::from_secs(n)),
            ("object_timeout", OBJECT_TIMEOUT_MOST.as_secs(), |it, n| it.object_timeout = Duration::from_secs(n)),
            ("lease_time", LEASE_TIME_MOST.as_secs(), |it, n| it.lease_time = Duration::from_secs(n)),
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

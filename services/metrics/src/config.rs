//! What the metrics process can be told, with the defaults.

use std::{path::PathBuf, time::Duration};

use anyhow::ensure;
use berth_api::Target;
use berth_daemon::{check_socket, key_value};
use berth_plugin::{ManagerTls, Plugin};
use serde::{Deserialize, Serialize};

const FILE: &str = "/etc/berth/metrics.toml";
const ENV_PREFIX: &str = "BERTH_METRICS_";
/// Shorter ones would mostly measure the reading.
const INTERVAL_LEAST: Duration = Duration::from_millis(100);
const INTERVAL_MOST: Duration = Duration::from_secs(60);
const HISTORY_MOST: Duration = Duration::from_secs(24 * 3600);

/// What the sandboxes of a node use.
#[derive(Debug, clap::Parser)]
#[command(name = "metrics", version = berth_version::LONG)]
pub struct Flags {
    /// Configuration file [default: /etc/berth/metrics.toml, which may be missing].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Sets one key over file and environment, as in `--set interval=5s`.
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
    /// Where this process answers.
    pub socket: PathBuf,
    /// Time between two samples.
    #[serde(with = "berth_daemon::duration")]
    pub interval: Duration,
    /// How long samples are kept.
    #[serde(with = "berth_daemon::duration")]
    pub history: Duration,
    /// Files of cgroups that stay open between two samples, one of each: by them those are known that have not run.
    pub open_files_max: usize,
    pub telemetry: berth_telemetry::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            manager: "unix:/run/berth/manager.sock".into(),
            manager_tls: ManagerTls::default(),
            socket: "/run/berth/metrics.sock".into(),
            interval: Duration::from_secs(1),
            history: Duration::from_secs(15 * 60),
            open_files_max: 8192,
            telemetry: berth_telemetry::Config::default(),
        }
    }
}

impl Config {
    /// What the manager is told of this process.
    pub fn plugin(&self) -> Plugin {
        Plugin {
            name: "metrics",
            instance: String::new(),
            address: format!("unix:{}", self.socket.display()),
            version: berth_version::VERSION,
        }
    }
}

/// Reads and checks the configuration; an error names the key.
pub fn load(flags: &Flags) -> anyhow::Result<Config> {
    let named = flags.config.as_deref();
    let config =
        berth_daemon::load_config(&Config::default(), named, FILE, ENV_PREFIX, &flags.set)?;
    check(&config)?;
    Ok(config)
}

impl Config {
    /// Where the manager is, with what it is shown.
    pub fn target(&self) -> Target {
        self.manager_tls.target(&self.manager)
    }
}

fn check(config: &Config) -> anyhow::Result<()> {
    check_socket("socket", &config.socket)?;
    berth_telemetry::check_address(&config.telemetry.prometheus_address)
        .map_err(|it| anyhow::anyhow!("telemetry.prometheus_address: {it}"))?;
    config.manager_tls.check("manager", &config.manager)?;
    ensure!(
        (INTERVAL_LEAST..=INTERVAL_MOST).contains(&config.interval),
        "interval: must be {}ms to {}s",
        INTERVAL_LEAST.as_millis(),
        INTERVAL_MOST.as_secs()
    );
    ensure!(
        (config.interval..=HISTORY_MOST).contains(&config.history),
        "history: must be from `interval` to {}h",
        HISTORY_MOST.as_secs() / 3600
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn what_is_at_the_bound_of_a_setting_of_the_sampler_is_taken_and_one_more_is_refused() {
        type Change = fn(&mut Config, u64);
        let cases: &[(&str, u64, Change)] = &[
            ("interval", INTERVAL_MOST.as_secs(), |it, n| it.interval = Duration::from_secs(n)),
            ("history", HISTORY_MOST.as_secs(), |it, n| it.history = Duration::from_secs(n)),
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

//! What image-gc can be told, with the defaults.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::ensure;
use berth_api::Target;
use berth_collect::plan::Marks;
use berth_daemon::{check_socket, key_value};
use berth_plugin::{ManagerTls, Plugin};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const FILE: &str = "/etc/berth/image-gc.toml";
const ENV_PREFIX: &str = "BERTH_IMAGE_GC_";
/// What is left of the name of a lease.
const NAME_MAX: usize = 96;
/// What the contract allows.
const LEASE_TIME_LEAST: Duration = Duration::from_secs(1);
const LEASE_TIME_MOST: Duration = Duration::from_secs(600);

/// Collects the images and blobs that nothing needs.
#[derive(Debug, clap::Parser)]
#[command(name = "image-gc", version = berth_version::LONG)]
pub struct Flags {
    /// Configuration file [default: /etc/berth/image-gc.toml, which may be missing].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Sets one key over file and environment, as in `--set disk_pressure_threshold=90`.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Only reads the configuration: exit code 0 where it is good, 78 where it is refused.
    #[arg(long)]
    pub check: bool,
}

/// How blobs lie in their directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobLayout {
    /// Each file is a blob, and its name the digest.
    Flat,
    /// The tree of docker-registry: `blobs/sha256/ab/<digest>/data`, and links in `repositories`.
    Distribution,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the manager listens: `unix:/path`, `/path`, `http://host:port` or `https://host:port`. Empty: nowhere, and this worker idles.
    pub manager_address: String,
    /// For `https://`.
    pub manager_tls: ManagerTls,
    /// Name of this worker among all of them. Empty: made of the host's name and the socket's
    /// path, so that a worker that is started again is known by it.
    pub name: String,
    /// Where this process listens.
    pub socket: PathBuf,
    /// On the file system whose room is watched.
    pub data_path: PathBuf,
    /// Where the blobs are; it may be missing.
    pub blob_dir: PathBuf,
    pub blob_layout: BlobLayout,
    pub collect_images: bool,
    pub collect_blobs: bool,
    /// Between two runs that collect all that is of no use.
    #[serde(with = "berth_daemon::duration")]
    pub scheduled_gc_interval: Duration,
    /// Between two looks at how full the file system is; there is one at the start too.
    #[serde(with = "berth_daemon::duration")]
    pub pressure_check_interval: Duration,
    /// Where it is fuller, in percent, a run frees as much as is above the low mark.
    pub disk_pressure_threshold: u8,
    /// In percent.
    pub disk_low_mark: u8,
    /// How old an image is at least that the catalog does not know. Zero or less: 24 hours, never at once.
    #[serde(with = "grace")]
    pub orphan_grace: Duration,
    /// How old a blob is at least.
    #[serde(with = "berth_daemon::duration")]
    pub blob_age: Duration,
    /// How long the file of a blob stays after no path leads to it any more.
    #[serde(with = "berth_daemon::duration")]
    pub tombstone_grace: Duration,
    /// After this time without a word the others take this worker's part over.
    #[serde(with = "berth_daemon::duration")]
    pub lease_time: Duration,
    pub telemetry: berth_telemetry::Config,
}

impl Default for Config {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        Self {
            manager_address: "unix:/run/berth/manager.sock".into(),
            manager_tls: ManagerTls::default(),
            name: String::new(),
            socket: "/run/berth/image-gc.sock".into(),
            data_path: "/var/lib/berth".into(),
            blob_dir: "/var/lib/berth/registry/blobs".into(),
            blob_layout: BlobLayout::Flat,
            collect_images: true,
            collect_blobs: true,
            scheduled_gc_interval: 168 * HOUR,
            pressure_check_interval: HOUR,
            disk_pressure_threshold: 80,
            disk_low_mark: 70,
            orphan_grace: 24 * HOUR,
            blob_age: HOUR,
            tombstone_grace: Duration::from_secs(600),
            lease_time: Duration::from_secs(15),
            telemetry: berth_telemetry::Config::default(),
        }
    }
}

impl Config {
    /// What the manager is told of this process.
    pub fn plugin(&self) -> Plugin {
        Plugin {
            name: "image-gc",
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
        config.name = own_name(&config.socket);
    }
    Ok(config)
}

impl Config {
    /// Where the manager is, with what it is shown.
    pub(crate) fn target(&self) -> Target {
        self.manager_tls.target(&self.manager_address)
    }

    pub(crate) fn marks(&self) -> Marks {
        Marks {
            high: self.disk_pressure_threshold,
            low: self.disk_low_mark,
        }
    }
}

fn check(config: &Config) -> anyhow::Result<()> {
    for (key, path) in [
        ("data_path", &config.data_path),
        ("blob_dir", &config.blob_dir),
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
    if !config.manager_address.is_empty() {
        config
            .manager_tls
            .check("manager_address", &config.manager_address)?;
    }
    ensure!(
        config.name.len() <= NAME_MAX && config.name.chars().all(is_of_name),
        "name: `{}` must have at most {NAME_MAX} of a to z, digits, `.`, `_` and `-`",
        config.name
    );
    ensure!(
        config.collect_images || config.collect_blobs,
        "collect_blobs: must be true where collect_images is false"
    );
    for (key, it) in [
        ("scheduled_gc_interval", config.scheduled_gc_interval),
        ("pressure_check_interval", config.pressure_check_interval),
    ] {
        ensure!(
            it >= Duration::from_secs(1),
            "{key}: must be at least one second"
        );
    }
    ensure!(
        (1..=100).contains(&config.disk_pressure_threshold),
        "disk_pressure_threshold: must be 1 to 100"
    );
    ensure!(
        config.disk_low_mark <= config.disk_pressure_threshold,
        "disk_low_mark: must be at most disk_pressure_threshold"
    );
    ensure!(
        (LEASE_TIME_LEAST..=LEASE_TIME_MOST).contains(&config.lease_time),
        "lease_time: must be 1s to 10m"
    );
    Ok(())
}

/// A duration that may be negative, which is as zero.
mod grace {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        let read = text.parse::<jiff::SignedDuration>();
        let read = read.map_err(|_| {
            serde::de::Error::custom(format!("`{text}` is no duration like `10s` or `1h 30m`"))
        })?;
        Ok(Duration::try_from(read).unwrap_or_default())
    }

    pub(super) fn serialize<S: Serializer>(it: &Duration, to: S) -> Result<S::Ok, S::Error> {
        berth_daemon::duration::serialize(it, to)
    }
}

fn is_of_name(it: char) -> bool {
    it.is_ascii_lowercase() || it.is_ascii_digit() || ['.', '_', '-'].contains(&it)
}

fn own_name(socket: &Path) -> String {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy().to_lowercase();
    let host: String = host.chars().filter(|it| is_of_name(*it)).take(64).collect();
    let path = Sha256::digest(socket.as_os_str().as_encoded_bytes());
    let path: String = path.iter().take(4).map(|it| format!("{it:02x}")).collect();
    format!("{host}-{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_of_a_host_have_two_names_and_each_keeps_its_own() {
        let names = ["/run/a.sock", "/run/b.sock", "/run/a.sock"].map(|it| own_name(it.as_ref()));
        assert_eq!(names[0], names[2]);
        assert_ne!(names[0], names[1]);
        assert!(names[0].len() <= NAME_MAX && names[0].chars().all(is_of_name));
    }

    #[test]
    fn a_grace_may_be_negative_and_is_as_zero_then() {
        for (text, expected) in [("-1h", 0), ("0s", 0), ("2h", 7200)] {
            let set = vec![("orphan_grace".to_owned(), text.to_owned())];
            let file = tempfile::NamedTempFile::new().unwrap();
            let config = Some(file.path().to_owned());
            let flags = Flags {
                config,
                set,
                check: false,
            };
            let config = load(&flags).unwrap();
            assert_eq!(config.orphan_grace, Duration::from_secs(expected), "{text}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn what_is_at_the_bound_of_a_setting_of_a_worker_is_taken_and_one_more_is_refused() {
        type Change = fn(&mut Config, u64);
        let size = |it: usize| u64::try_from(it).unwrap();
        let cases: &[(&str, u64, Change)] = &[
            ("name", size(NAME_MAX), |it, n| it.name = "a".repeat(n.try_into().unwrap())),
            ("lease_time", LEASE_TIME_MOST.as_secs(), |it, n| it.lease_time = Duration::from_secs(n)),
            ("disk_pressure_threshold", 100, |it, n| it.disk_pressure_threshold = n.try_into().unwrap()),
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

//! What the manager is told about registries.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use berth_registry::Terms;
use serde::{Deserialize, Serialize};

/// More would wait for the disk.
const AT_ONCE_MAX: usize = 64;
/// With pauses of half a minute between them, more of them help nobody.
const TRIES_MAX: u32 = 100;
/// The settings are for registries by name; a name is no pattern.
const HOST_MAX: usize = 255;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    /// Images that are pulled at the same time.
    pub at_once: usize,
    /// Layers that are fetched at the same time, of each of them.
    pub layers_at_once: usize,
    /// How long a registry may send nothing, over all tries.
    #[serde(with = "berth_daemon::duration")]
    pub no_progress_timeout: Duration,
    /// Requests in a row that may fail without a byte more.
    pub tries: u32,
    /// Before the second try; twice as long before each further one.
    #[serde(with = "berth_daemon::duration")]
    pub backoff: Duration,
    /// The longest wait that a registry may ask for.
    #[serde(with = "berth_daemon::duration")]
    pub retry_after_max: Duration,
    /// Of docker's form. Empty: none.
    pub credentials_file: PathBuf,
    /// `host:port` of the registry that images call `cluster.local`. Empty: that name, port 5000.
    pub cluster_registry: String,
    /// By host, as the names of images have it.
    pub registries: BTreeMap<String, Registry>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Asked in this order before the registry itself.
    pub mirrors: Vec<String>,
    /// Certificates that are trusted for this host beside those of the node. Empty: none.
    pub ca_file: PathBuf,
}

impl Default for Pull {
    fn default() -> Self {
        let terms = Terms::default();
        Self {
            at_once: 4,
            layers_at_once: 3,
            no_progress_timeout: terms.no_progress,
            tries: terms.tries,
            backoff: terms.backoff,
            retry_after_max: terms.retry_after_max,
            credentials_file: PathBuf::new(),
            cluster_registry: String::new(),
            registries: BTreeMap::new(),
        }
    }
}

impl Pull {
    /// As whoever asks registries wants it.
    pub(crate) fn settings(&self, plain_http: &[String]) -> berth_registry::Settings {
        let hosts = self.registries.iter().map(|(host, it)| {
            let host_settings = berth_registry::Host {
                mirrors: it.mirrors.clone(),
                ca_file: some(&it.ca_file),
            };
            (host.clone(), host_settings)
        });
        berth_registry::Settings {
            hosts: hosts.collect(),
            plain_http: plain_http.to_vec(),
            cluster_registry: (!self.cluster_registry.is_empty())
                .then(|| self.cluster_registry.clone()),
            credentials_file: some(&self.credentials_file),
            terms: Terms {
                tries: self.tries,
                backoff: self.backoff,
                retry_after_max: self.retry_after_max,
                no_progress: self.no_progress_timeout,
            },
        }
    }

    /// What is wrong on any host.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        for (key, number) in [
            ("pull.at_once", self.at_once),
            ("pull.layers_at_once", self.layers_at_once),
        ] {
            ensure!(
                (1..=AT_ONCE_MAX).contains(&number),
                "{key}: must be 1 to {AT_ONCE_MAX}"
            );
        }
        ensure!(
            (1..=TRIES_MAX).contains(&self.tries),
            "pull.tries: must be 1 to {TRIES_MAX}"
        );
        for (key, duration) in [
            ("pull.no_progress_timeout", self.no_progress_timeout),
            ("pull.backoff", self.backoff),
        ] {
            ensure!(
                duration >= Duration::from_millis(100),
                "{key}: must be at least 100ms"
            );
        }
        let cluster = &self.cluster_registry;
        ensure!(
            cluster.is_empty() || is_host_and_port(cluster),
            "pull.cluster_registry: `{cluster}` must be `host:port`"
        );
        for (host, registry) in &self.registries {
            let plain = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'.' | b'-' | b':');
            ensure!(
                (1..=HOST_MAX).contains(&host.len()) && host.bytes().all(plain),
                "pull.registries: {host:?} must be a host, as the names of images have it"
            );
            for mirror in &registry.mirrors {
                berth_registry::check_mirror(mirror)
                    .map_err(|problem| anyhow!("pull.registries.{host:?}.mirrors: {problem}"))?;
            }
        }
        for (key, path) in self.files() {
            ensure!(
                path.is_absolute(),
                "{key}: `{}` must be an absolute path",
                path.display()
            );
        }
        Ok(())
    }

    /// What is wrong on this host.
    pub(super) fn check_host(&self) -> anyhow::Result<()> {
        if let Some(file) = some(&self.credentials_file) {
            berth_registry::check_credentials_file(&file)
                .with_context(|| format!("pull.credentials_file: {}", file.display()))?;
        }
        for (host, registry) in &self.registries {
            if let Some(file) = some(&registry.ca_file) {
                berth_registry::check_ca_file(&file).map_err(|problem| {
                    let file = file.display();
                    anyhow!("pull.registries.{host:?}.ca_file: {file}: {problem}")
                })?;
            }
        }
        Ok(())
    }

    fn files(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let credentials = ("pull.credentials_file".to_owned(), &self.credentials_file);
        let authorities = self.registries.iter().map(|(host, it)| {
            let key = format!("pull.registries.{host:?}.ca_file");
            (key, &it.ca_file)
        });
        let files = authorities.chain([credentials]);
        files.filter_map(|(key, path)| Some((key, some(path)?)))
    }
}

/// A path that is set.
fn some(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let plain = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'.' | b'-');
        !host.is_empty()
            && host.bytes().all(plain)
            && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(host: &str, change: impl FnOnce(&mut Registry)) -> BTreeMap<String, Registry> {
        let mut registry = Registry::default();
        change(&mut registry);
        [(host.to_owned(), registry)].into()
    }

    #[test]
    #[rustfmt::skip]
    fn each_bad_value_is_refused_by_its_key() {
        type Break = fn(&mut Pull);
        let cases: &[(&str, Break)] = &[
            ("pull.at_once",             |it| it.at_once = 0),
            ("pull.at_once",             |it| it.at_once = 65),
            ("pull.layers_at_once",      |it| it.layers_at_once = 0),
            ("pull.tries",               |it| it.tries = 0),
            ("pull.tries",               |it| it.tries = 101),
            ("pull.backoff",             |it| it.backoff = Duration::ZERO),
            ("pull.no_progress_timeout", |it| it.no_progress_timeout = Duration::ZERO),
            ("pull.credentials_file",    |it| it.credentials_file = "config.json".into()),
            ("pull.cluster_registry",    |it| it.cluster_registry = "10.0.0.1".into()),
            ("pull.cluster_registry",    |it| it.cluster_registry = "10.0.0.1:0".into()),
            ("pull.cluster_registry",    |it| it.cluster_registry = "http://a:5000".into()),
            ("pull.registries: ",        |it| it.registries = registry("", |_| {})),
            ("pull.registries: ",        |it| it.registries = registry("https://a", |_| {})),
            ("pull.registries.\"a\".mirrors", |it| it.registries = registry("a", |it| it.mirrors = vec!["b".into()])),
            ("pull.registries.\"a\".ca_file", |it| it.registries = registry("a", |it| it.ca_file = "ca.pem".into())),
        ];
        for (key, break_it) in cases {
            let mut pull = Pull::default();
            break_it(&mut pull);
            let error = format!("{:#}", pull.check().unwrap_err());
            assert!(error.starts_with(key), "{key}: {error}");
        }
        Pull::default().check().unwrap();
        let good = Pull {
            cluster_registry: "registry.cluster.local:30500".into(),
            registries: registry("docker.io", |it| it.mirrors = vec!["https://a.example/b".into()]),
            ..Pull::default()
        };
        good.check().unwrap();
    }

    #[test]
    fn files_that_cannot_be_used_are_refused_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let refused = |path: &Path| {
            let credentials = Pull {
                credentials_file: path.to_owned(),
                ..Pull::default()
            };
            let authority = Pull {
                registries: registry("a", |it| it.ca_file = path.to_owned()),
                ..Pull::default()
            };
            for (pull, key) in [
                (credentials, "pull.credentials_file"),
                (authority, "ca_file"),
            ] {
                let error = format!("{:#}", pull.check_host().unwrap_err());
                assert!(error.contains(key), "{key}: {error}");
            }
        };
        refused(&file);
        std::fs::write(&file, "neither").unwrap();
        refused(&file);
        std::fs::write(&file, r#"{"auths":{}}"#).unwrap();
        let good = Pull {
            credentials_file: file,
            ..Pull::default()
        };
        good.check_host().unwrap();
    }

    #[test]
    fn the_settings_of_a_file_reach_the_registries() {
        use figment::providers::Format as _;

        let text = r#"
            tries = 2
            cluster_registry = "10.0.0.9:5000"
            [registries."docker.io"]
            mirrors = ["http://10.0.0.2:5000"]
            [registries."private.example:5000"]
            ca_file = "/etc/berth/private.pem"
        "#;
        let pull: Pull =
            figment::Figment::from(figment::providers::Serialized::defaults(Pull::default()))
                .merge(figment::providers::Toml::string(text))
                .extract()
                .unwrap();
        let settings = pull.settings(&["near:5000".to_owned()]);
        assert_eq!(settings.terms.tries, 2);
        assert_eq!(settings.cluster_registry.as_deref(), Some("10.0.0.9:5000"));
        assert_eq!(settings.plain_http, ["near:5000"]);
        assert_eq!(
            settings.hosts["docker.io"].mirrors,
            ["http://10.0.0.2:5000"]
        );
        let authority = settings.hosts["private.example:5000"].ca_file.as_deref();
        assert_eq!(authority, Some(Path::new("/etc/berth/private.pem")));
        assert_eq!(settings.credentials_file, None);
    }
}

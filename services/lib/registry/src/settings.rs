//! What is known of registries beforehand.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// By the host as the names of images have it, with its port where they do; for `ca_file`, by any host that is asked.
    pub hosts: BTreeMap<String, Host>,
    /// `host:port`, or `host:*` for every port of a host: asked without TLS.
    pub plain_http: Vec<String>,
    /// `host:port` that `cluster.local` and `cluster.local:5000` stand for. `None`: that very name.
    pub cluster_registry: Option<String>,
    /// Of docker's form: `{"auths": {HOST: …}}`.
    pub credentials_file: Option<PathBuf>,
    pub terms: Terms,
}

#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Asked in this order before the host itself: `https://host[:port][/prefix]`, or with `http`.
    pub mirrors: Vec<String>,
    /// Certificates (PEM) that are trusted for this host beside those of the node.
    pub ca_file: Option<PathBuf>,
}

/// How long a registry is asked.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Requests in a row that may fail without a byte more.
    pub tries: u32,
    /// Before the second try; twice as long before each further one.
    pub backoff: Duration,
    /// The longest wait that a registry may ask for.
    pub retry_after_max: Duration,
    /// How long a registry may be waited for without a byte more, over all tries; the pauses between them do not count.
    pub no_progress: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            tries: 5,
            backoff: Duration::from_millis(500),
            retry_after_max: Duration::from_secs(60),
            no_progress: Duration::from_secs(60),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    #[error("the CA file {} of {host}", file.display())]
    CaFile {
        host: String,
        file: PathBuf,
        source: berth_platform::Source,
    },
    #[error("preparing to ask registries")]
    Http(#[source] berth_platform::Source),
}

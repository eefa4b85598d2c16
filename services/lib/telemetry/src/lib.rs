//! What a process lets others see of itself: its log lines, and, where that is asked for, traces, metrics and logs by OTLP and
//! an endpoint for Prometheus. One call at the start; what is recorded where nobody looks costs next to nothing.

mod document;
mod exporters;
mod http_client;
mod instrument;
pub mod instruments;
mod lines;
mod process;
mod prometheus;
mod settings;
pub mod spans;

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};

use crate::exporters::Exporters;
pub use crate::{
    document::document,
    http_client::HttpReceiver,
    instrument::{Attribute, Instrument, Kind, Observer},
    prometheus::check_address,
    settings::Variables,
};
pub use opentelemetry::KeyValue;

/// What a configuration file says of it; all else is said by the variables that OpenTelemetry has.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where Prometheus is answered: `127.0.0.1:9464` or `unix:/path`. Empty: nowhere.
    pub prometheus_address: String,
}

/// Who tells.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// As `sandbox-manager`.
    pub service: &'static str,
    /// Tells it from others of its kind on the same host, and stays over a restart.
    pub socket: &'a Path,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{variable}: {problem}")]
    Variable { variable: String, problem: String },
    #[error("the exporters cannot be made: {0}")]
    Exporter(String),
    #[error("telemetry.prometheus_address: `{address}`: {problem}")]
    Prometheus { address: String, problem: String },
}

impl StartError {
    /// Whether another start with the same configuration ends the same way.
    pub fn is_misconfigured(&self) -> bool {
        match self {
            Self::Variable { .. } | Self::Exporter(_) => true,
            Self::Prometheus { .. } => false,
        }
    }
}

static COUNTS: AtomicBool = AtomicBool::new(false);

/// Whether anybody sees metrics. Where not, what would only be gathered for them need not be.
pub fn counts() -> bool {
    COUNTS.load(Ordering::Relaxed)
}

/// What runs; `finish` sends what is left.
#[derive(Debug)]
#[must_use]
pub struct Telemetry {
    exporters: Exporters,
}

/// Begins with log lines on standard error, and with all that the environment and the configuration ask for. It is called
/// once, inside of the runtime.
pub fn start(identity: Identity<'_>, config: &Config) -> Result<Telemetry, StartError> {
    let settings = settings::Settings::of_environment()?;
    let exporters = Exporters::new(identity, &settings, !config.prometheus_address.is_empty())?;
    lines::install(&exporters);
    COUNTS.store(exporters.counts(), Ordering::Relaxed);
    if exporters.counts() {
        process::observe();
    }
    if let Some(registry) = exporters.registry() {
        prometheus::serve(&config.prometheus_address, registry.clone())?;
    }
    Ok(Telemetry { exporters })
}

impl Telemetry {
    /// Sends what was not sent yet, for two seconds at most.
    pub async fn finish(self) {
        self.exporters.finish().await;
    }
}

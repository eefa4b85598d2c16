//! The providers of the three signals. Each exports on a thread of its own from a queue with a bound: a receiver that is away,
//! or that hangs, costs what does not fit into the queue, and nobody waits for it.

use std::{sync::mpsc, time::Duration};

use opentelemetry::{KeyValue, global, trace::TracerProvider as _};
use opentelemetry_otlp::{
    LogExporter, MetricExporter, Protocol as OtlpProtocol, SpanExporter, WithExportConfig as _,
    WithHttpConfig as _, WithTonicConfig as _, tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::{
    Resource,
    logs::SdkLoggerProvider,
    metrics::{SdkMeterProvider, Stream},
    propagation::TraceContextPropagator,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{SdkTracer, SdkTracerProvider},
};

use crate::{
    Identity, StartError, Variables,
    http_client::Client,
    instruments,
    settings::{Protocol, Settings},
};

/// What is left when a process ends is sent within this time, or lost.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// As OpenTelemetry has it.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Exporters {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    logs: Option<SdkLoggerProvider>,
    registry: Option<prometheus::Registry>,
}

impl Exporters {
    pub(crate) fn new(
        identity: Identity<'_>,
        settings: &Settings,
        scraped: bool,
    ) -> Result<Self, StartError> {
        if *settings == Settings::default() && !scraped {
            return Ok(Self::default());
        }
        let resource = resource(identity);
        let traces = settings.traces.map(span_exporter).transpose()?.map(|it| {
            SdkTracerProvider::builder()
                .with_resource(resource.clone())
                .with_batch_exporter(it)
                .build()
        });
        let logs = settings.logs.map(log_exporter).transpose()?.map(|it| {
            SdkLoggerProvider::builder()
                .with_resource(resource.clone())
                .with_batch_exporter(it)
                .build()
        });
        let registry = scraped.then(prometheus::Registry::new);
        let sent = settings.metrics.map(metric_exporter).transpose()?;
        let metrics = match (sent, &registry) {
            (None, None) => None,
            (sent, registry) => Some(meters(resource, sent, registry.as_ref())?),
        };
        if let Some(metrics) = &metrics {
            global::set_meter_provider(metrics.clone());
        }
        if traces.is_some() {
            global::set_text_map_propagator(TraceContextPropagator::new());
        }
        Ok(Self {
            traces,
            metrics,
            logs,
            registry,
        })
    }

    pub(crate) fn tracer(&self) -> Option<SdkTracer> {
        self.traces.as_ref().map(|it| it.tracer("berth"))
    }

    pub(crate) fn logger(&self) -> Option<&SdkLoggerProvider> {
        self.logs.as_ref()
    }

    /// Whether anybody sees metrics.
    pub(crate) fn counts(&self) -> bool {
        self.metrics.is_some()
    }

    pub(crate) fn registry(&self) -> Option<&prometheus::Registry> {
        self.registry.as_ref()
    }

    pub(crate) async fn finish(self) {
        let (done, ended) = tokio::sync::oneshot::channel();
        let (begin, work) = mpsc::sync_channel::<Self>(1);
        // Not a thread of the runtime's, which would be waited for when that ends.
        let thread = std::thread::Builder::new().spawn(move || {
            if let Ok(exporters) = work.recv() {
                exporters.shut_down();
            }
            let _ = done.send(());
        });
        if thread.is_ok() && begin.send(self).is_ok() {
            let _ = tokio::time::timeout(LAST_WORDS, ended).await;
        }
    }

    fn shut_down(self) {
        let Self {
            traces,
            metrics,
            logs,
            registry: _,
        } = self;
        // What cannot be sent is lost, and nobody can be told.
        std::thread::scope(|scope| {
            scope.spawn(|| traces.map(|it| it.shutdown_with_timeout(LAST_WORDS)));
            scope.spawn(|| metrics.map(|it| it.shutdown_with_timeout(LAST_WORDS)));
            scope.spawn(|| logs.map(|it| it.shutdown_with_timeout(LAST_WORDS)));
        });
    }
}

/// What the environment says goes before what we know.
fn resource(identity: Identity<'_>) -> Resource {
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let service = std::env::var("OTEL_SERVICE_NAME").ok();
    let service = service.filter(|it| !it.is_empty());
    let named = service.clone().unwrap_or_else(|| identity.service.into());
    let instance = format!("{host}:{}", identity.socket.display());
    let resource = Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes([
            KeyValue::new("service.namespace", "berth"),
            KeyValue::new("service.name", named),
            KeyValue::new("service.version", berth_version::VERSION),
            KeyValue::new("service.instance.id", instance),
            KeyValue::new("host.name", host),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ])
        .with_attributes(release())
        .with_detector(Box::new(EnvResourceDetector::new()));
    // `service.name` among the attributes gives way to a variable of its own.
    let resource = match service {
        Some(service) => resource.with_service_name(service),
        None => resource,
    };
    resource.build()
}

/// What a build that is no release does not have.
fn release() -> impl IntoIterator<Item = KeyValue> {
    let known = [
        ("vcs.ref.head.revision", berth_version::COMMIT),
        ("berth.build.date", berth_version::BUILD_DATE),
    ];
    let known = known.into_iter().filter(|(_, value)| !value.is_empty());
    known.map(|(key, value)| KeyValue::new(key, value))
}

fn meters(
    resource: Resource,
    sent: Option<MetricExporter>,
    scraped: Option<&prometheus::Registry>,
) -> Result<SdkMeterProvider, StartError> {
    let mut meters = SdkMeterProvider::builder()
        .with_resource(resource)
        .with_view(|it: &opentelemetry_sdk::metrics::Instrument| {
            let known = instruments::ALL.iter().find(|of| of.name == it.name())?;
            Stream::builder()
                .with_cardinality_limit(known.most)
                .build()
                .ok()
        });
    if let Some(exporter) = sent {
        meters = meters.with_periodic_exporter(exporter);
    }
    if let Some(registry) = scraped {
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build();
        meters = meters.with_reader(exporter.map_err(|it| StartError::Exporter(it.to_string()))?);
    }
    Ok(meters.build())
}

fn span_exporter(protocol: Protocol) -> Result<SpanExporter, StartError> {
    let exporter = SpanExporter::builder();
    let made = match protocol {
        Protocol::Grpc => exporter.with_tonic().with_tls_config(tls()).build(),
        Protocol::Http => exporter
            .with_http()
            .with_protocol(OtlpProtocol::HttpBinary)
            .with_http_client(client("TRACES")?)
            .build(),
    };
    made.map_err(|it| StartError::Exporter(it.to_string()))
}

fn metric_exporter(protocol: Protocol) -> Result<MetricExporter, StartError> {
    let exporter = MetricExporter::builder();
    let made = match protocol {
        Protocol::Grpc => exporter.with_tonic().with_tls_config(tls()).build(),
        Protocol::Http => exporter
            .with_http()
            .with_protocol(OtlpProtocol::HttpBinary)
            .with_http_client(client("METRICS")?)
            .build(),
    };
    made.map_err(|it| StartError::Exporter(it.to_string()))
}

fn log_exporter(protocol: Protocol) -> Result<LogExporter, StartError> {
    let exporter = LogExporter::builder();
    let made = match protocol {
        Protocol::Grpc => exporter.with_tonic().with_tls_config(tls()).build(),
        Protocol::Http => exporter
            .with_http()
            .with_protocol(OtlpProtocol::HttpBinary)
            .with_http_client(client("LOGS")?)
            .build(),
    };
    made.map_err(|it| StartError::Exporter(it.to_string()))
}

/// For addresses that begin with `https`: what the host trusts.
fn tls() -> ClientTlsConfig {
    ClientTlsConfig::new().with_native_roots()
}

/// The library's own timeout does not end a request that has begun.
fn client(signal: &str) -> Result<Client, StartError> {
    let variables = Variables(|name: &str| std::env::var(name).ok());
    let timeout = variables
        .of_signal(signal, "TIMEOUT")
        .and_then(|(_, text)| Some(Duration::from_millis(text.parse().ok()?)))
        .unwrap_or(TIMEOUT);
    Client::new(timeout).map_err(|it| StartError::Exporter(it.to_string()))
}

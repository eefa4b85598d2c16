//! Log lines on standard error, and what else follows from events and spans: traces, and the lines again as records by OTLP.

use std::io::IsTerminal as _;

use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use tracing::Metadata;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::{exporters::Exporters, spans};

/// What exporting itself is made of: a line about it would be exported, and so on.
const EXPORT: [&str; 7] = [
    "h2",
    "hyper",
    "hyper_util",
    "opentelemetry",
    "reqwest",
    "tonic",
    "tower",
];

/// For people on a terminal, JSON elsewhere. `RUST_LOG` filters; default `info`. Spans are there where they are traced only.
pub(crate) fn install(exporters: &Exporters) {
    let traces = exporters.tracer();
    let with_spans = traces.is_some();
    let shown = filter().and(filter_fn(move |it| with_spans || !is_span(it)));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match std::io::stderr().is_terminal() {
        true => lines.boxed(),
        false => lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
    };
    let spans = traces.map(|it| {
        tracing_opentelemetry::layer()
            .with_tracer(it)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_filter(filter_fn(is_span))
    });
    let records = exporters.logger().map(|it| {
        let about_others = filter_fn(|it| {
            let root = it.target().split("::").next().unwrap_or_default();
            !EXPORT.contains(&root) && !root.starts_with("opentelemetry")
        });
        OpenTelemetryTracingBridge::new(it).with_filter(filter().and(about_others))
    });
    tracing_subscriber::registry()
        // Before the records, which take the trace from the span that is entered.
        .with(spans)
        .with(records)
        .with(lines.with_filter(shown))
        .init();
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"))
}

fn is_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == spans::TARGET
}

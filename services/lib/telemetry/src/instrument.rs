//! What is measured, declared once: an instrument is made when it is used first, and records nothing where nobody looks.

use std::sync::OnceLock;

use opentelemetry::{
    KeyValue, global,
    metrics::{AsyncInstrument, Counter, Histogram, UpDownCounter},
};

/// What an instrument is told, and what it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// How much there was in all; it never falls.
    Counter,
    /// How much there is.
    UpDownCounter,
    /// How values are spread.
    Histogram,
}

/// One that tells its series apart.
#[derive(Clone, Copy, Debug)]
pub struct Attribute {
    pub name: &'static str,
    /// What it can be, in words.
    pub values: &'static str,
}

/// A metric, by the conventions of OpenTelemetry.
#[derive(Debug)]
pub struct Instrument {
    pub name: &'static str,
    pub kind: Kind,
    /// In UCUM: `s`, `By`, or what is counted in braces.
    pub unit: &'static str,
    pub description: &'static str,
    pub attributes: &'static [Attribute],
    /// Which processes have it; none: all.
    pub of: &'static [&'static str],
    /// Series of one process at most. What is beyond is one series together, with `otel.metric.overflow`.
    pub most: usize,
    /// Upper ends of the buckets of a histogram.
    pub(crate) buckets: &'static [f64],
    pub(crate) made: OnceLock<Made>,
}

#[derive(Debug)]
pub(crate) enum Made {
    Counter(Counter<f64>),
    UpDownCounter(UpDownCounter<f64>),
    Histogram(Histogram<f64>),
}

/// Takes the values of one look.
pub struct Observer<'a>(&'a dyn AsyncInstrument<f64>);

impl std::fmt::Debug for Observer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

impl Observer<'_> {
    pub fn see(&self, value: f64, attributes: &[KeyValue]) {
        self.0.observe(value, attributes);
    }
}

impl Instrument {
    /// Adds to a counter of either kind, or takes a value into a histogram.
    pub fn record(&self, value: f64, attributes: &[KeyValue]) {
        match self.made.get_or_init(|| self.make()) {
            Made::Counter(it) => it.add(value, attributes),
            Made::UpDownCounter(it) => it.add(value, attributes),
            Made::Histogram(it) => it.record(value, attributes),
        }
    }

    /// Has `look` tell the values whenever somebody wants to know them. What it does not tell any more is gone.
    pub fn observe(&self, look: impl Fn(&Observer<'_>) + Send + Sync + 'static) {
        let meter = global::meter("berth");
        let look = move |it: &dyn AsyncInstrument<f64>| look(&Observer(it));
        // They live in the meter.
        match self.kind {
            Kind::Counter => drop(
                meter
                    .f64_observable_counter(self.name)
                    .with_unit(self.unit)
                    .with_description(self.description)
                    .with_callback(look)
                    .build(),
            ),
            // Those of a gauge would stay when their sandbox is gone.
            Kind::UpDownCounter | Kind::Histogram => drop(
                meter
                    .f64_observable_up_down_counter(self.name)
                    .with_unit(self.unit)
                    .with_description(self.description)
                    .with_callback(look)
                    .build(),
            ),
        }
    }

    fn make(&self) -> Made {
        let meter = global::meter("berth");
        match self.kind {
            Kind::Counter => Made::Counter(
                meter
                    .f64_counter(self.name)
                    .with_unit(self.unit)
                    .with_description(self.description)
                    .build(),
            ),
            Kind::UpDownCounter => Made::UpDownCounter(
                meter
                    .f64_up_down_counter(self.name)
                    .with_unit(self.unit)
                    .with_description(self.description)
                    .build(),
            ),
            Kind::Histogram => Made::Histogram(
                meter
                    .f64_histogram(self.name)
                    .with_unit(self.unit)
                    .with_description(self.description)
                    .with_boundaries(self.buckets.to_vec())
                    .build(),
            ),
        }
    }

    /// As Prometheus names it; of a histogram without `_bucket`, `_sum` and `_count`.
    pub fn prometheus_name(&self) -> String {
        let mut name = self.name.replace('.', "_");
        let unit = match self.unit {
            "s" => "_seconds",
            "By" => "_bytes",
            _ => "",
        };
        name.push_str(unit);
        if self.kind == Kind::Counter {
            name.push_str("_total");
        }
        name
    }
}

//! `docs/telemetry.md`: what people wrote, and the lists of all metrics and spans in it.

use std::fmt::Write as _;

use crate::{
    instrument::{Attribute, Kind},
    instruments, spans,
};

const BEGIN: &str = "<!-- from here on written by `make telemetry` -->\n";

/// `text` with its lists as the code has them.
pub fn document(text: &str) -> String {
    let written = text.split(BEGIN).next().unwrap_or_default();
    let mut all = format!("{written}{BEGIN}\n## Metrics\n");
    let mut of: Option<&[&str]> = None;
    for it in instruments::ALL {
        if of != Some(it.of) {
            of = Some(it.of);
            let whose = match it.of {
                [] => "every process".to_owned(),
                some => some.join(", "),
            };
            let _ = writeln!(
                all,
                "\n### Of {whose}\n\n| metric | kind | unit | series at most | what it is |\n|---|---|---|---|---|"
            );
        }
        let kind = match it.kind {
            Kind::Counter => "counter",
            Kind::UpDownCounter => "up-down counter",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(
            all,
            "| `{}`<br>`{}` | {kind} | `{}` | {} | {}{} |",
            it.name,
            it.prometheus_name(),
            it.unit,
            it.most,
            it.description,
            attributes(it.attributes)
        );
    }
    all.push_str("\n## Spans\n\n| span | kind | of | what it is |\n|---|---|---|---|\n");
    for it in spans::ALL {
        let _ = writeln!(
            all,
            "| `{}` | {} | {} | {}{} |",
            it.name,
            it.kind,
            it.of,
            it.description,
            attributes(it.attributes)
        );
    }
    all
}

fn attributes(all: &[Attribute]) -> String {
    let each = all
        .iter()
        .map(|it| format!("<br>`{}`: {}", it.name, it.values));
    each.collect()
}

//! The document, the dashboards and the rules name what the code declares.

use std::{collections::BTreeSet, fs, path::PathBuf};

use berth_telemetry::{Kind, document, instruments};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

#[test]
fn the_document_lists_what_the_code_declares() {
    let path = root().join("docs/telemetry.md");
    let text = fs::read_to_string(&path).unwrap();
    // `make telemetry`.
    if std::env::var_os("BERTH_WRITE_DOCUMENTS").is_some() {
        return fs::write(path, document(&text)).unwrap();
    }
    assert!(
        document(&text) == text,
        "docs/telemetry.md is stale: run `make telemetry`"
    );
}

/// What can stand in a query: metrics with what Prometheus makes of them, and labels.
fn known() -> BTreeSet<String> {
    let mut known: BTreeSet<_> = ["target_info".to_owned()].into();
    for it in instruments::ALL {
        let name = it.prometheus_name();
        match it.kind {
            Kind::Counter | Kind::UpDownCounter => drop(known.insert(name)),
            Kind::Histogram => {
                known.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
            }
        }
        known.extend(it.attributes.iter().map(|it| it.name.replace('.', "_")));
    }
    known
}

/// The words of a text that look like a metric or a label of ours.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|it: char| !it.is_ascii_alphanumeric() && it != '_');
    let ours = [
        "berth_",
        "rpc_",
        "process_",
        "container_",
        "dns_",
        "target_",
    ];
    words
        .filter(|word| ours.iter().any(|it| word.starts_with(it)))
        .collect()
}

#[test]
fn dashboards_and_rules_name_only_metrics_and_labels_that_there_are() {
    let folder = root().join("deploy/observability");
    let dashboards = fs::read_dir(folder.join("dashboards")).unwrap();
    let mut files: Vec<_> = dashboards.map(|it| it.unwrap().path()).collect();
    files.push(folder.join("rules.yaml"));
    assert_eq!(files.len(), 6, "{files:?}");
    let known = known();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let used = names(&text);
        assert!(!used.is_empty(), "{}", file.display());
        let unknown: Vec<_> = used.iter().filter(|it| !known.contains(**it)).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", file.display());
    }
}

#[test]
fn a_name_that_there_is_not_is_found() {
    let used = names("rate(berth_sandbox_creates_total{rpc_method=\"x\"}[5m])");
    let known = known();
    let unknown: Vec<_> = used.into_iter().filter(|it| !known.contains(*it)).collect();
    assert_eq!(unknown, ["berth_sandbox_creates_total"]);
}

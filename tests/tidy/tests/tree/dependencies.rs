//! Which package may use which: processes -> adapters -> platform -> domain, and one home for each foreign type.
//! What only tests use (`[dev-dependencies]`) is free.

use crate::none;
use crate::workspace::{Package, packages, read};

/// Each package with those of ours that it may use.
const MAY_USE: &[(&str, &[&str])] = &[
    // The vocabulary.
    ("berth-domain", &[]),
    // The seams.
    ("berth-platform", &["berth-domain"]),
    // Adapters and what processes share.
    ("berth-api", &["berth-domain"]),
    (
        "berth-calls",
        &["berth-api", "berth-domain", "berth-telemetry"],
    ),
    ("berth-cgroup", &["berth-domain"]),
    (
        "berth-containerd",
        &[
            "berth-cgroup",
            "berth-domain",
            "berth-platform",
            "berth-registry",
        ],
    ),
    ("berth-collect", &["berth-domain"]),
    ("berth-copy", &[]),
    ("berth-daemon", &["berth-telemetry"]),
    ("berth-logs", &[]),
    ("berth-netns", &["berth-domain", "berth-platform"]),
    ("berth-orphans", &["berth-domain"]),
    (
        "berth-plugin",
        &["berth-api", "berth-calls", "berth-daemon"],
    ),
    ("berth-registry", &["berth-domain", "berth-platform"]),
    ("berth-store", &["berth-domain"]),
    ("berth-telemetry", &["berth-version"]),
    (
        "berth-tls",
        &["berth-api", "berth-calls", "berth-telemetry"],
    ),
    ("berth-version", &[]),
    // Processes.
    ("berth", &["berth-api", "berth-copy", "berth-version"]),
    (
        "berth-dns",
        &[
            "berth-api",
            "berth-calls",
            "berth-daemon",
            "berth-domain",
            "berth-netns",
            "berth-plugin",
            "berth-telemetry",
            "berth-version",
        ],
    ),
    (
        "berth-image-gc",
        &[
            "berth-api",
            "berth-collect",
            "berth-calls",
            "berth-daemon",
            "berth-domain",
            "berth-plugin",
            "berth-telemetry",
            "berth-version",
        ],
    ),
    ("berth-log-writer", &[]),
    (
        "berth-metrics",
        &[
            "berth-api",
            "berth-cgroup",
            "berth-calls",
            "berth-daemon",
            "berth-domain",
            "berth-plugin",
            "berth-telemetry",
            "berth-version",
        ],
    ),
    ("berth-pause", &[]),
    (
        "berth-sandbox-manager",
        &[
            "berth-api",
            "berth-calls",
            "berth-cgroup",
            "berth-containerd",
            "berth-copy",
            "berth-daemon",
            "berth-domain",
            "berth-log-writer",
            "berth-logs",
            "berth-netns",
            "berth-orphans",
            "berth-pause",
            "berth-platform",
            "berth-registry",
            "berth-store",
            "berth-telemetry",
            "berth-tls",
            "berth-version",
        ],
    ),
    (
        "berth-watchdog",
        &[
            "berth-api",
            "berth-calls",
            "berth-daemon",
            "berth-domain",
            "berth-plugin",
            "berth-telemetry",
            "berth-version",
        ],
    ),
    // Tests.
    (
        "berth-bench",
        &[
            "berth-api",
            "berth-cgroup",
            "berth-domain",
            "berth-e2e",
            "berth-netns",
            "berth-platform",
            "berth-store",
        ],
    ),
    ("berth-crash", &["berth-api", "berth-e2e"]),
    (
        "berth-e2e",
        &[
            "berth-api",
            "berth-containerd",
            "berth-domain",
            "berth-logs",
            "berth-netns",
            "berth-platform",
        ],
    ),
    ("berth-soak", &["berth-api", "berth-e2e"]),
    ("berth-tidy", &[]),
];

/// All that `berth-domain` is built with: no runtime, no clock, no serialization, no wire type.
const DOMAIN_IS_BUILT_WITH: &[&str] = &["blake2", "bs58", "ipnet", "thiserror"];

const WIRE: &[&str] = &[
    "berth",
    "berth-api",
    "berth-bench",
    "berth-calls",
    "berth-containerd",
    "berth-crash",
    "berth-dns",
    "berth-e2e",
    "berth-image-gc",
    "berth-metrics",
    "berth-plugin",
    "berth-sandbox-manager",
    "berth-soak",
    "berth-tidy",
    "berth-tls",
    "berth-watchdog",
];

/// Foreign packages with the packages that may name their types.
const HOMES: &[(&str, &[&str])] = &[
    ("containerd-client", &["berth-containerd"]),
    ("hickory-proto", &["berth-dns", "berth-e2e"]),
    ("opentelemetry", &["berth-telemetry"]),
    ("opentelemetry_sdk", &["berth-telemetry"]),
    ("opentelemetry-proto", &["berth-sandbox-manager"]),
    ("prometheus", &["berth-telemetry"]),
    ("rtnetlink", &["berth-netns"]),
    ("redb", &["berth-store"]),
    ("prost", WIRE),
    ("prost-types", WIRE),
    ("tonic", WIRE),
    ("tonic-prost", WIRE),
    ("tonic-types", WIRE),
];

/// One version of each, or the types of one half of the tree do not fit the other.
const ONCE: &[&str] = &["hyper", "prost", "rustls", "tonic"];

fn wrong_directions(packages: &[Package]) -> Vec<String> {
    let mut complaints = Vec::new();
    for package in packages {
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == package.name) else {
            complaints.push(format!(
                "{} has no line in the table of directions",
                package.name
            ));
            continue;
        };
        for used in &package.dependencies {
            if used.starts_with("berth") && !allowed.contains(&used.as_str()) {
                complaints.push(format!("{} may not use {used}", package.name));
            }
        }
    }
    complaints
}

fn away_from_home(packages: &[Package]) -> Vec<String> {
    let mut complaints = Vec::new();
    for package in packages {
        for (foreign, homes) in HOMES {
            if package.dependencies.iter().any(|used| used == foreign)
                && !homes.contains(&package.name.as_str())
            {
                complaints.push(format!("{} may not use {foreign}", package.name));
            }
        }
    }
    complaints
}

fn locked_versions<'lock>(lock: &'lock str, package: &str) -> Vec<&'lock str> {
    let name = format!("name = \"{package}\"");
    lock.lines()
        .zip(lock.lines().skip(1))
        .filter(|(line, _)| *line == name)
        .map(|(_, version)| version)
        .collect()
}

fn made_up(name: &str, dependencies: &[&str]) -> Package {
    Package {
        name: name.to_owned(),
        dependencies: dependencies.iter().map(|&name| name.to_owned()).collect(),
        crate_roots: Vec::new(),
    }
}

#[test]
fn packages_use_only_what_lies_below_them() {
    none(wrong_directions(&packages()));
}

#[test]
fn a_dependency_that_points_up_is_found() {
    let packages = [
        made_up("berth-platform", &["berth-domain", "tokio", "berth-store"]),
        made_up("berth-newcomer", &[]),
    ];
    assert_eq!(
        wrong_directions(&packages),
        [
            "berth-platform may not use berth-store",
            "berth-newcomer has no line in the table of directions",
        ]
    );
}

#[test]
fn the_table_of_directions_names_only_packages_that_exist() {
    let packages = packages();
    let gone = MAY_USE
        .iter()
        .filter(|(name, _)| !packages.iter().any(|found| found.name == *name));
    none(
        gone.map(|(name, _)| format!("{name} does not exist"))
            .collect(),
    );
}

#[test]
fn foreign_types_stay_at_home() {
    none(away_from_home(&packages()));
}

#[test]
fn a_foreign_type_away_from_home_is_found() {
    let packages = [
        made_up("berth-containerd", &["containerd-client", "tonic"]),
        made_up("berth-store", &["redb", "prost"]),
    ];
    assert_eq!(away_from_home(&packages), ["berth-store may not use prost"]);
}

#[test]
fn the_domain_is_built_with_next_to_nothing() {
    let packages = packages();
    let domain = packages
        .iter()
        .find(|package| package.name == "berth-domain")
        .unwrap();
    let strange = domain
        .dependencies
        .iter()
        .filter(|used| !DOMAIN_IS_BUILT_WITH.contains(&used.as_str()));
    none(
        strange
            .map(|used| format!("berth-domain may not use {used}"))
            .collect(),
    );
}

#[test]
fn the_wire_is_in_the_tree_once() {
    let lock = read("Cargo.lock");
    for package in ONCE {
        assert_eq!(
            locked_versions(&lock, package).len(),
            1,
            "{package} in Cargo.lock"
        );
    }
}

#[test]
fn a_second_version_is_counted() {
    let lock = "name = \"tonic\"\nversion = \"1\"\n\nname = \"tonic\"\nversion = \"2\"\n\nname = \"tonic-build\"\nversion = \"3\"\n";
    assert_eq!(
        locked_versions(lock, "tonic"),
        ["version = \"1\"", "version = \"2\""]
    );
}

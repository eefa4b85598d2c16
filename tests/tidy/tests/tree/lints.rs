//! Every package is linted by the workspace's rules, and the few that differ repeat the rest.

use std::path::{Path, PathBuf};

use crate::none;
use crate::workspace::{files, read};

/// Packages that need `unsafe`, which the workspace forbids: they write out their lints. And a program without a library.
pub(crate) const UNSAFE: &[&str] = &[
    "services/lib/netns",
    "services/log-writer",
    "services/pause",
    "tests/bench/program",
];

fn unlinted(manifest: &Path, text: &str, workspace_lints: &[&str]) -> Vec<String> {
    let path = manifest.display();
    if text.contains("[lints]\nworkspace = true") {
        return Vec::new();
    }
    if !UNSAFE.iter().any(|folder| manifest.starts_with(folder)) {
        return vec![format!("{path} does not take the lints of the workspace")];
    }
    workspace_lints
        .iter()
        .filter(|lint| !text.lines().any(|line| line == **lint))
        .map(|lint| format!("{path} does not repeat `{lint}`"))
        .collect()
}

/// The lints of the workspace, a line each, without the one that its exceptions are for.
fn workspace_lints(root_manifest: &str) -> Vec<&str> {
    let mut inside = false;
    let mut lints = Vec::new();
    for line in root_manifest.lines() {
        if line.starts_with('[') {
            inside = line.starts_with("[workspace.lints.");
        } else if inside && !line.is_empty() && !line.starts_with("unsafe_code") {
            lints.push(line);
        }
    }
    lints
}

#[test]
fn every_package_is_linted() {
    let root = read("Cargo.toml");
    let lints = workspace_lints(&root);
    assert!(lints.contains(&"unwrap_used = \"warn\""), "{lints:?}");
    let manifests = files()
        .into_iter()
        .filter(|path| path.ends_with("Cargo.toml"));
    none(
        manifests
            .filter(|path| path != Path::new("Cargo.toml"))
            .flat_map(|path| unlinted(&path, &read(&path), &lints))
            .collect(),
    );
}

#[test]
fn a_package_without_lints_is_found() {
    let lints = ["todo = \"warn\"", "dbg_macro = \"warn\""];
    let plain = PathBuf::from("services/lib/store/Cargo.toml");
    let exception = PathBuf::from("services/pause/Cargo.toml");
    let inherited = "[dependencies]\n\n[lints]\nworkspace = true\n";
    let own = "[lints.clippy]\ntodo = \"warn\"\n";

    assert!(unlinted(&plain, inherited, &lints).is_empty());
    assert_eq!(
        unlinted(&plain, own, &lints),
        ["services/lib/store/Cargo.toml does not take the lints of the workspace"]
    );
    assert_eq!(
        unlinted(&exception, own, &lints),
        ["services/pause/Cargo.toml does not repeat `dbg_macro = \"warn\"`"]
    );
}

#[test]
fn the_clippy_settings_of_the_domain_repeat_those_of_the_root() {
    let domain = read("services/lib/domain/clippy.toml");
    let root = read("clippy.toml");
    none(
        root.lines()
            .filter(|line| !domain.lines().any(|repeated| repeated == *line))
            .map(|line| format!("services/lib/domain/clippy.toml does not repeat `{line}`"))
            .collect(),
    );
}

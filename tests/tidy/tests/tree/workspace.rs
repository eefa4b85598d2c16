//! Reads the tree for the rules: its packages as Cargo sees them, its files as they lie there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

pub(crate) struct Package {
    pub(crate) name: String,
    /// What it is built with; what only its tests use is left out.
    pub(crate) dependencies: Vec<String>,
    /// The first file of each of its targets, from the root of the repository.
    pub(crate) crate_roots: Vec<PathBuf>,
}

pub(crate) fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(berth_tidy::root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(package)
        .collect()
}

fn package(value: &Value) -> Package {
    let items = |key: &str| value[key].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Package {
        name: text(&value["name"]),
        dependencies: items("dependencies")
            .filter(|dependency| dependency["kind"] != "dev")
            .map(|dependency| text(&dependency["name"]))
            .collect(),
        crate_roots: items("targets")
            .map(|target| relative(Path::new(&text(&target["src_path"]))))
            .collect(),
    }
}

/// Every file of the tree that is not built or fetched, in a fixed order.
pub(crate) fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![berth_tidy::root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            if path.is_symlink()
                || ["target", ".git", "node_modules"]
                    .iter()
                    .any(|skip| name == *skip)
            {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(relative(&path));
            }
        }
    }
    files.sort();
    files
}

pub(crate) fn files_with_extension(extension: &str) -> Vec<PathBuf> {
    let mut files = files();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files
}

/// The text of a file that is named from the root.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = berth_tidy::root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix(berth_tidy::root()).unwrap().to_owned()
}

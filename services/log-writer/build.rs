//! Compiles `program/main.rs` to a static program.

use std::{env, path::Path, process::Command};

const SOURCES: [&str; 2] = ["program", "../lib/logs/src"];

fn main() {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let variable = |name: &str| env::var(name).expect("Cargo sets it");
    let output = Path::new(&variable("OUT_DIR")).join("log-writer");
    let flags = [
        "opt-level=s",
        "panic=abort",
        "strip=symbols",
        "target-feature=+crt-static",
        // Its pages are not touched by the loader.
        "relocation-model=static",
        "codegen-units=1",
        "lto=fat",
    ];
    let status = Command::new(variable("RUSTC"))
        .args(["--edition", "2024", "--crate-type", "bin"])
        .args(["--crate-name", "log_writer"])
        .args(["--target", &variable("TARGET")])
        .args(flags.iter().flat_map(|it| ["-C", it]))
        .arg("program/main.rs")
        .arg("-o")
        .arg(&output)
        .status();
    match status {
        Ok(status) if status.success() => {}
        other => {
            println!("cargo::error=the log-writer was not compiled: {other:?}");
        }
    }
}

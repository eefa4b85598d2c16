//! Compiles what tests run in containers to static programs.

use std::{env, path::Path, process::Command};

const SOURCE: &str = "programs/pacer.rs";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    let variable = |name: &str| env::var(name).expect("Cargo sets it");
    let output = Path::new(&variable("OUT_DIR")).join("pacer");
    let flags = [
        "opt-level=2",
        "panic=abort",
        "strip=symbols",
        "target-feature=+crt-static",
    ];
    let status = Command::new(variable("RUSTC"))
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "pacer",
            "--crate-type",
            "bin",
        ])
        .args(["--target", &variable("TARGET")])
        .args(flags.iter().flat_map(|it| ["-C", it]))
        .arg(SOURCE)
        .arg("-o")
        .arg(&output)
        .status();
    match status {
        Ok(status) if status.success() => {}
        other => println!("cargo::error=the pacer was not compiled: {other:?}"),
    }
}

//! Compiles `program/listener.rs` to a static program without a library, small enough for a config file of a sandbox.

use std::{env, path::Path, process::Command};

const SOURCE: &str = "program/listener.rs";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    let variable = |name: &str| env::var(name).expect("Cargo sets it");
    let output = Path::new(&variable("OUT_DIR")).join("listener");
    let status = Command::new(variable("RUSTC"))
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "listener",
            "--crate-type",
            "bin",
        ])
        .args(["--target", &variable("TARGET")])
        .args([
            "-C",
            "opt-level=z",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
        ])
        .args([
            "-C",
            "relocation-model=static",
            "-C",
            "default-linker-libraries=no",
        ])
        .args(["-C", "link-args=-nostartfiles -nostdlib -static -no-pie"])
        .args([
            "-C",
            "link-args=-Wl,--build-id=none,-z,norelro,-z,noseparate-code,-n",
        ])
        .arg(SOURCE)
        .arg("-o")
        .arg(&output)
        .status();
    match status {
        Ok(status) if status.success() => {}
        other => {
            println!("cargo::error=the listener was not compiled: {other:?}");
        }
    }
}

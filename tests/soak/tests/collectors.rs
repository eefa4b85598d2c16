//! A few of the interleavings of `make soak-gc`, in both layouts of a directory.

use std::process::Command;

/// Less than two minutes.
const INTERLEAVINGS: &str = "6";
const SEED: &str = "1";

#[test]
fn nothing_in_use_goes_and_nothing_else_stays_whatever_is_killed() {
    let soak = Command::new(env!("CARGO_BIN_EXE_berth-soak-gc"))
        .args(["--interleavings", INTERLEAVINGS, "--seed", SEED])
        .output();
    let soak = soak.expect("it is built with this test");
    let said = String::from_utf8_lossy(&soak.stdout);
    assert!(soak.status.success(), "{said}");
}

//! Takes what a release is made of from `BERTH_COMMIT` and `BERTH_BUILD_DATE`. Only `make dist` sets them: else each commit
//! would build everything again.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let given = |name: &str| {
        println!("cargo::rerun-if-env-changed={name}");
        env::var(name).unwrap_or_default()
    };
    let (commit, date) = (given("BERTH_COMMIT"), given("BERTH_BUILD_DATE"));
    let mut version = env::var("CARGO_PKG_VERSION").expect("Cargo sets it");
    if !commit.is_empty() {
        version.push('+');
        version.extend(commit.chars().take(12));
    }
    let long = match date.as_str() {
        "" => format!("{version} (no release)"),
        date => format!("{version} ({date})"),
    };
    println!("cargo::rustc-env=BERTH_VERSION={version}");
    println!("cargo::rustc-env=BERTH_VERSION_LONG={long}");
    println!("cargo::rustc-env=BERTH_COMMIT={commit}");
    println!("cargo::rustc-env=BERTH_BUILD_DATE={date}");
}

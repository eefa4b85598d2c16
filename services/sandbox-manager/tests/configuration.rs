//! The manager refuses a configuration that it does not understand, before it touches anything.

use std::{
    path::Path,
    process::{Command, Output},
};

/// From `sysexits.h`: starting again will not help.
const EX_CONFIG: i32 = 78;

fn start(file: &Path, environment: &[(&str, &str)], flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sandbox-manager"))
        .arg("--config")
        .arg(file)
        .args(flags)
        .envs(environment.iter().copied())
        .output()
        .expect("the program of this build is there")
}

#[test]
fn a_bad_key_or_value_is_named_with_its_reason_and_ends_with_78() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("manager.toml");
    let state = dir.path().join("state");
    let good = format!("state_dir = \"{}\"\n", state.display());
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
    #[rustfmt::skip]
    let cases: [Case<'_>; 9] = [
        ("colour = 1\n",                       &[],                                             &[], "colour"),
        ("[network]\ncolour = 1\n",            &[],                                             &[], "colour"),
        ("[network]\nsubnet = \"10.0.0.0\"\n", &[],                                             &[], "network.subnet"),
        ("[network]\nsubnet = \"10.0.0.1/24\"\n", &[],                                          &[], "network.subnet"),
        ("end_timeout = \"soon\"\n",           &[],                                             &[], "end_timeout"),
        ("log_dir = \"relative\"\n",           &[],                                             &[], "log_dir"),
        ("",                                   &[("BERTH_MANAGER_NETWORK__BRIDGE", "a/b")],     &[], "network.bridge"),
        ("",                                   &[("BERTH_MANAGER_COLOUR", "1")],                &[], "colour"),
        ("",                                   &[], &["--set", "containerd.call_timeout=never"], "containerd.call_timeout"),
    ];
    for (text, environment, flags, key) in cases {
        std::fs::write(&file, format!("{good}{text}")).unwrap();
        let output = start(&file, environment, flags);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(EX_CONFIG), "{key}: {said}");
        assert!(
            said.contains(key.rsplit('.').next().unwrap()),
            "{key}: {said}"
        );
    }
    assert!(!state.exists(), "nothing was touched");
}

#[test]
fn a_configuration_file_that_was_asked_for_has_to_be_there() {
    let output = start(Path::new("/no/such/file.toml"), &[], &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(EX_CONFIG), "{said}");
    assert!(said.contains("/no/such/file.toml"), "{said}");
}

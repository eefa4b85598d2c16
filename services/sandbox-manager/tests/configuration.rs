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
    let cases: &[Case<'_>] = &[
        ("colour = 1\n",                       &[],                                             &[], "colour"),
        ("[network]\ncolour = 1\n",            &[],                                             &[], "colour"),
        ("[network]\nsubnet = \"10.0.0.0\"\n", &[],                                             &[], "network.subnet"),
        ("[network]\nsubnet = \"10.0.0.1/24\"\n", &[],                                          &[], "network.subnet"),
        ("end_timeout = \"soon\"\n",           &[],                                             &[], "end_timeout"),
        ("log_dir = \"relative\"\n",           &[],                                             &[], "log_dir"),
        ("",                                   &[("BERTH_MANAGER_NETWORK__BRIDGE", "a/b")],     &[], "network.bridge"),
        ("",                                   &[("BERTH_MANAGER_COLOUR", "1")],                &[], "colour"),
        ("",                                   &[], &["--set", "containerd.call_timeout=never"], "containerd.call_timeout"),
        ("parallel_creates = 9223372036854775807\n", &[],                                      &[], "parallel_creates"),
        ("log_writer = \"/no/such/program\"\n", &[],                                           &[], "log_writer"),
        ("search_domain = \"a\\nb\"\n",       &[],                                             &[], "search_domain"),
        ("[containerd]\nnamespace = \"\"\n",   &[],                                             &[], "containerd.namespace"),
        ("[containerd]\nnamespace = \"a b\"\n", &[],                                            &[], "containerd.namespace"),
        ("[containerd]\nhandler = \"\"\n",     &[],                                             &[], "containerd.handler"),
        ("[containerd]\nsnapshotter = \"\"\n", &[],                                             &[], "containerd.snapshotter"),
    ];
    for &(text, environment, flags, key) in cases {
        std::fs::write(&file, format!("{good}{text}")).unwrap();
        let output = start(&file, environment, flags);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(EX_CONFIG), "{key}: {said}");
        assert!(
            said.contains(key.rsplit('.').next().unwrap()),
            "{key}: {said}"
        );
    }
    std::fs::write(&file, good).unwrap();
    let output = start(&file, &[], &["--check"]);
    assert_eq!(output.status.code(), Some(0), "a good one is only read");
    assert!(!state.exists(), "nothing was touched");
}

#[test]
fn a_state_directory_of_another_instance_is_left_alone_and_ends_with_78() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("manager.toml");
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("instance-id"), "first\n").unwrap();
    let text =
        format!("state_dir = {state:?}\ninstance_id = \"second\"\nlog_writer = \"/bin/sh\"\n");
    std::fs::write(&file, text).unwrap();
    let output = start(&file, &[], &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(EX_CONFIG), "{said}");
    assert!(
        said.contains("instance_id") && said.contains("first"),
        "{said}"
    );
    assert_eq!(
        std::fs::read_dir(&state).unwrap().count(),
        1,
        "nothing was touched"
    );
}

#[test]
fn a_configuration_file_that_was_asked_for_has_to_be_there() {
    let output = start(Path::new("/no/such/file.toml"), &[], &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(EX_CONFIG), "{said}");
    assert!(said.contains("/no/such/file.toml"), "{said}");
}

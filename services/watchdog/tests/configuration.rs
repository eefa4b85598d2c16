//! The watchdog refuses a configuration that it does not understand, before it touches anything.

use std::process::Command;

/// From `sysexits.h`: starting again will not help.
const EX_CONFIG: i32 = 78;

#[test]
fn a_bad_key_or_value_is_named_with_its_reason_and_ends_with_78() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("watchdog.toml");
    let socket = dir.path().join("run/watchdog.sock");
    let good = format!("socket = {socket:?}\n");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
    #[rustfmt::skip]
    let cases: &[Case<'_>] = &[
        ("colour = 1\n",                       &[],                                        &[],                    "colour"),
        ("check_interval = \"500ms\"\n",       &[],                                        &[],                    "check_interval"),
        ("check_interval = \"25h\"\n",         &[],                                        &[],                    "check_interval"),
        ("check_interval = \"often\"\n",       &[],                                        &[],                    "check_interval"),
        ("grace_window = \"11m\"\n",           &[],                                        &[],                    "grace_window"),
        ("object_timeout = \"500ms\"\n",       &[],                                        &[],                    "object_timeout"),
        ("object_timeout = \"6m\"\n",          &[],                                        &[],                    "object_timeout"),
        ("lease_time = \"500ms\"\n",           &[],                                        &[],                    "lease_time"),
        ("lease_time = \"11m\"\n",             &[],                                        &[],                    "lease_time"),
        ("name = \"A dog\"\n",                 &[],                                        &[],                    "name"),
        ("manager_address = \"somewhere\"\n",  &[],                                        &[],                    "manager_address"),
        ("",                                   &[("BERTH_WATCHDOG_GRACE_WINDOW", "no")],   &[],                    "grace_window"),
        ("",                                   &[],                                        &["--set", "socket=x"], "socket"),
        ("",                                   &[],                                        &["--set", "colour=1"], "colour"),
    ];
    for &(text, environment, flags, key) in cases {
        std::fs::write(&file, format!("{good}{text}")).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_watchdog"))
            .arg("--config")
            .arg(&file)
            .args(flags)
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(EX_CONFIG), "{key}: {said}");
        assert!(said.to_lowercase().contains(key), "{key}: {said}");
    }
    std::fs::write(&file, good).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_watchdog"));
    check.arg("--config").arg(&file).arg("--check");
    let output = check.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "a good one is only read");
    assert!(!socket.parent().unwrap().exists(), "nothing was touched");
}

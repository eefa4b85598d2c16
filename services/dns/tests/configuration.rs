//! The dns refuses a configuration that it does not understand, before it touches anything.

use std::process::Command;

/// From `sysexits.h`: starting again will not help.
const EX_CONFIG: i32 = 78;

#[test]
fn a_bad_key_or_value_is_named_with_its_reason_and_ends_with_78() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dns.toml");
    let state = dir.path().join("state");
    let good = format!("state_dir = {state:?}\n");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
    #[rustfmt::skip]
    let cases: &[Case<'_>] = &[
        ("colour = 1\n",                   &[],                           &[],                    "colour"),
        ("subnet = \"10.0.0.0\"\n",        &[],                           &[],                    "subnet"),
        ("subnet = \"10.0.0.1/24\"\n",     &[],                           &[],                    "subnet"),
        ("subnet = \"10.0.0.0/30\"\n",     &[],                           &[],                    "subnet"),
        ("subnet6 = \"fd00::/64\"\n",       &[],                           &[],                    "subnet6"),
        ("subnet = \"10.0.0.0/24\"\nsubnet6 = \"fe80::/64\"\n", &[],     &[],                    "subnet6"),
        ("port = 0\n",                     &[],                           &[],                    "port"),
        ("upstream_port = 70000\n",        &[],                           &[],                    "upstream_port"),
        ("domain = \"a b\"\n",             &[],                           &[],                    "domain"),
        ("domain = \"app.berth.\"\n",      &[],                           &[],                    "domain"),
        ("upstreams = [\"dns.example\"]\n", &[],                          &[],                    "upstreams"),
        ("upstream_timeout = \"0s\"\n",    &[],                           &[],                    "upstream_timeout"),
        ("cache_ttl_max = \"soon\"\n",     &[],                           &[],                    "cache_ttl_max"),
        ("forwards_max = 0\n",             &[],                           &[],                    "forwards_max"),
        ("cache_entries = 100001\n",       &[],                           &[],                    "cache_entries"),
        ("egress_life_min = \"1s\"\n",   &[],                           &[],                    "egress_life_min"),
        ("egress_life_max = \"59s\"\n",  &[],                           &[],                    "egress_life_max"),
        ("egress_life_max = \"25h\"\n",  &[],                           &[],                    "egress_life_max"),
        ("socket = \"relative\"\n",        &[],                           &[],                    "socket"),
        ("manager = \"somewhere\"\n",      &[],                           &[],                    "manager"),
        ("",                               &[("BERTH_DNS_PORT", "none")], &[],                    "port"),
        ("",                               &[],                           &["--set", "colour=1"], "colour"),
    ];
    for &(text, environment, flags, key) in cases {
        std::fs::write(&file, format!("{good}{text}")).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_dns"))
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
    let mut check = Command::new(env!("CARGO_BIN_EXE_dns"));
    check.arg("--config").arg(&file).arg("--check");
    let output = check.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "a good one is only read");
    assert!(!state.exists(), "nothing was touched");
}

//! image-gc refuses a configuration that it does not understand, before it touches anything.

use std::process::Command;

/// From `sysexits.h`: starting again will not help.
const EX_CONFIG: i32 = 78;

#[test]
fn a_bad_key_or_value_is_named_with_its_reason_and_ends_with_78() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image-gc.toml");
    let socket = dir.path().join("image-gc.sock");
    let good = format!("socket = {socket:?}\n");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
    #[rustfmt::skip]
    let cases: &[Case<'_>] = &[
        ("colour = 1\n",                          &[], &[], "colour"),
        ("manager_address = \"somewhere\"\n",     &[], &[], "manager_address"),
        ("name = \"A b\"\n",                      &[], &[], "name"),
        ("data_path = \"relative\"\n",            &[], &[], "data_path"),
        ("blob_dir = \"relative\"\n",             &[], &[], "blob_dir"),
        ("blob_layout = \"tree\"\n",              &[], &[], "blob_layout"),
        ("collect_images = false\ncollect_blobs = false\n", &[], &[], "collect_blobs"),
        ("scheduled_gc_interval = \"0s\"\n",      &[], &[], "scheduled_gc_interval"),
        ("scheduled_gc_interval = \"soon\"\n",    &[], &[], "scheduled_gc_interval"),
        ("pressure_check_interval = \"10ms\"\n",  &[], &[], "pressure_check_interval"),
        ("disk_pressure_threshold = 0\n",         &[], &[], "disk_pressure_threshold"),
        ("disk_pressure_threshold = 101\n",       &[], &[], "disk_pressure_threshold"),
        ("disk_low_mark = 81\n",                  &[], &[], "disk_low_mark"),
        ("orphan_grace = 24\n",                   &[], &[], "orphan_grace"),
        ("blob_age = \"-1h\"\n",                  &[], &[], "blob_age"),
        ("tombstone_grace = \"x\"\n",             &[], &[], "tombstone_grace"),
        ("lease_time = \"500ms\"\n",              &[], &[], "lease_time"),
        ("lease_time = \"11m\"\n",                &[], &[], "lease_time"),
        ("", &[("BERTH_IMAGE_GC_DISK_LOW_MARK", "none")], &[], "disk_low_mark"),
        ("", &[], &["--set", "colour=1"], "colour"),
        ("", &[], &["--set", "socket=relative"], "socket"),
    ];
    for &(text, environment, flags, key) in cases {
        std::fs::write(&file, format!("{good}{text}")).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_image-gc"))
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
    let mut check = Command::new(env!("CARGO_BIN_EXE_image-gc"));
    check.arg("--config").arg(&file).arg("--check");
    let output = check.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "a good one is only read");
    assert!(!socket.exists(), "nothing was touched");
}

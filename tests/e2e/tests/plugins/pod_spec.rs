//! The test's kubelet: a container gets what its pod says, and what is not simulated is refused.

use std::path::{Path, PathBuf};

use berth_e2e::pod::spec::{Place, runtime_spec};
use serde_json::{Value, json};

fn spec_of(container: &Value) -> anyhow::Result<Value> {
    let pod = json!({ "hostNetwork": true, "hostPID": true });
    let place = Place {
        volumes: &[("run".to_owned(), PathBuf::from("/run/b"))].into(),
        fields: &[("spec.nodeName", "n7".to_owned())].into(),
        image: &json!({ "Entrypoint": ["/usr/bin/dns"], "Env": ["PATH=/usr/bin"] }),
        rootfs: Path::new("/r"),
        cgroup: "/pods/dns",
        all_capabilities: &["SYS_ADMIN".to_owned(), "KILL".to_owned()],
        seccomp: &json!({ "defaultAction": "SCMP_ACT_ERRNO" }),
    };
    runtime_spec(&pod, container, &place)
}

#[test]
fn what_a_container_asks_for_is_what_it_gets_and_no_more() {
    let spec = spec_of(&json!({
        "args": ["--config", "x"],
        "env": [
            { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
            { "name": "TWICE", "value": "$(NODE)-$(NODE)" },
        ],
        "securityContext": {
            "runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "resources": { "requests": { "cpu": "50m" } },
        "volumeMounts": [{ "name": "run", "mountPath": "/run/b" }],
    }));
    let spec = spec.unwrap();
    let process = &spec["process"];
    assert_eq!(process["args"], json!(["/usr/bin/dns", "--config", "x"]));
    assert_eq!(
        process["env"],
        json!(["PATH=/usr/bin", "NODE=n7", "TWICE=n7-n7"])
    );
    assert_eq!(
        process["capabilities"]["effective"],
        json!(["CAP_NET_BIND_SERVICE"])
    );
    assert_eq!(process["noNewPrivileges"], true);
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(spec["linux"]["resources"]["cpu"]["shares"], 51);
    assert_eq!(spec["linux"]["rootfsPropagation"], "rprivate");
    let mounts = spec["mounts"].as_array().unwrap();
    let run = mounts.iter().find(|it| it["destination"] == "/run/b");
    assert_eq!(run.unwrap()["options"], json!(["rbind", "rprivate", "rw"]));
}

#[test]
fn the_privileged_have_all_and_mounts_of_theirs_reach_the_host() {
    let spec = spec_of(&json!({
        "securityContext": { "privileged": true, "runAsUser": 0 },
        "volumeMounts": [
            { "name": "run", "mountPath": "/sys/fs/cgroup", "mountPropagation": "HostToContainer" },
            { "name": "run", "mountPath": "/run/b", "mountPropagation": "Bidirectional" },
        ],
    }));
    let spec = spec.unwrap();
    assert_eq!(spec["linux"]["rootfsPropagation"], "rshared");
    assert_eq!(
        spec["process"]["capabilities"]["bounding"],
        json!(["CAP_SYS_ADMIN", "CAP_KILL"])
    );
    assert!(spec["linux"]["seccomp"].is_null() && spec["linux"]["maskedPaths"].is_null());
    let mounts = spec["mounts"].as_array().unwrap();
    let cgroup: Vec<_> = mounts
        .iter()
        .filter(|it| it["destination"] == "/sys/fs/cgroup")
        .collect();
    assert_eq!(
        cgroup.len(),
        1,
        "the pod's takes the place of the usual one"
    );
    assert_eq!(cgroup[0]["options"], json!(["rbind", "rslave", "rw"]));
}

#[test]
fn what_kubernetes_would_refuse_or_nobody_simulates_is_refused() {
    let security = |it: Value| json!({ "securityContext": it });
    #[rustfmt::skip]
    let cases = [
        (json!({ "lifecycle": {} }),                                      "lifecycle"),
        (security(json!({})),                                             "user"),
        (security(json!({ "runAsUser": 0, "procMount": "Unmasked" })),    "procMount"),
        (json!({ "securityContext": { "runAsUser": 0 },
                 "volumeMounts": [{ "name": "run", "mountPath": "/r", "mountPropagation": "Bidirectional" }] }), "privileged"),
        (json!({ "securityContext": { "runAsUser": 0 },
                 "volumeMounts": [{ "name": "other", "mountPath": "/r" }] }), "no volume other"),
    ];
    for (container, word) in cases {
        let error = spec_of(&container).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

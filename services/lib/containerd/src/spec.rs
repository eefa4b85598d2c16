//! The OCI specification of a container, as data. Pure: the same input gives the same specification.

use std::path::PathBuf;

use berth_domain::{
    Container, Resources, Sandbox, SandboxId,
    cgroups::{self, Driver},
    files as names_of_files,
};
use serde_json::{Value, json};

use crate::{
    files::{HOSTS, RESOLV_CONF},
    oci::Process,
    users::User,
};

/// Set first, so that whatever the image or the caller says wins.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const INSTANCE_LABEL: &str = "instance";
const INSTANCE_VARIABLE: &str = "BERTH_INSTANCE_NUM";
/// Ends after everything else when memory runs out.
const PAUSE_OOM_SCORE: i32 = -998;
const CPU_PERIOD: u64 = 100_000;

/// As container engines have them.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What a host allows and has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    pub(crate) cgroup_version: u32,
    pub(crate) cgroup_driver: Driver,
    /// Whether a process may be made less likely to be killed for memory.
    pub(crate) negative_oom_score: bool,
}

/// Where the parts of a sandbox lie.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) namespaces: PathBuf,
    pub(crate) files: PathBuf,
    /// Relative to the root of the hierarchy.
    pub(crate) cgroup: String,
}

/// The pause: one program on a read-only root.
pub(crate) fn pause(host: Host, places: &Places, root: &str) -> Value {
    let process = json!({
        "args": ["/pause"], "cwd": "/", "env": [], "user": { "uid": 0, "gid": 0 },
        "noNewPrivileges": true,
        "capabilities": { "bounding": [], "effective": [], "permitted": [] },
        "oomScoreAdj": oom_score(host, PAUSE_OOM_SCORE),
    });
    let mounts = json!([
        mount("proc", "/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "tmpfs",
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"]
        ),
        mount(
            "sysfs",
            "/sys",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"]
        ),
    ]);
    specification(
        host,
        places,
        &json!({ "path": root, "readonly": true }),
        &process,
        &mounts,
        &Resources::default(),
    )
}

/// An app container.
pub(crate) fn app(
    host: Host,
    places: &Places,
    sandbox: &Sandbox,
    container: &Container,
    image: &Process,
    user: &User,
) -> Result<Value, String> {
    let mut process = json!({
        "args": arguments(container, image)?,
        "cwd": directory(container, image),
        "env": environment(sandbox, container, image, user),
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
        "noNewPrivileges": true,
        "capabilities": {
            "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
        },
    });
    if container.tty {
        process["terminal"] = true.into();
        process["consoleSize"] = json!({ "width": 80, "height": 24 });
    }
    if container.oom_score != 0 {
        process["oomScoreAdj"] = oom_score(host, container.oom_score).into();
    }
    let bind = |source: PathBuf, target: &str| {
        mount(
            &source.display().to_string(),
            target,
            "bind",
            &["rbind", "rprivate", "rw"],
        )
    };
    let mut mounts = vec![
        mount("proc", "/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "tmpfs",
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "devpts",
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "shm",
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount(
            "mqueue",
            "/dev/mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "sysfs",
            "/sys",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "cgroup",
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
        bind(places.files.join(RESOLV_CONF), "/etc/resolv.conf"),
        bind(places.files.join(HOSTS), "/etc/hosts"),
    ];
    for (number, file) in container.config_files.iter().enumerate() {
        let path = names_of_files::config_file_path(&container.name, number, file);
        mounts.push(bind(places.files.join(path), &file.path));
    }
    let root = json!({ "path": "rootfs", "readonly": false });
    Ok(specification(
        host,
        places,
        &root,
        &process,
        &json!(mounts),
        &container.resources,
    ))
}

fn specification(
    host: Host,
    places: &Places,
    root: &Value,
    process: &Value,
    mounts: &Value,
    limits: &Resources,
) -> Value {
    let mut namespaces = vec![json!({ "type": "pid" }), json!({ "type": "mount" })];
    for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        namespaces.push(json!({ "type": kind, "path": places.namespaces.join(file) }));
    }
    if host.cgroup_version == 2 {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    let annotations = match host.cgroup_driver {
        // A scope that fails is forgotten, or it would bar the next one of its name.
        Driver::Systemd => {
            json!({ "org.systemd.property.CollectMode": "'inactive-or-failed'" })
        }
        Driver::Cgroupfs => json!({}),
    };
    json!({
        "ociVersion": "1.0.2",
        "annotations": annotations,
        "process": process,
        "root": root,
        "mounts": mounts,
        "linux": {
            "cgroupsPath": cgroups::in_specification(&places.cgroup),
            "namespaces": namespaces,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "resources": resources(host, limits),
        },
    })
}

fn resources(host: Host, limits: &Resources) -> Value {
    // The runtime itself allows null, zero, full, random, urandom, tty and the like.
    let mut it = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if let Some(millis) = limits.cpu_millis {
        let quota = u64::from(millis) * CPU_PERIOD / 1000;
        it["cpu"] = json!({ "quota": quota, "period": CPU_PERIOD });
    }
    if let Some(bytes) = limits.memory_bytes {
        it["memory"]["limit"] = bytes.into();
    }
    match (limits.memory_high_bytes, host.cgroup_version) {
        (Some(bytes), 2) => it["unified"] = json!({ "memory.high": bytes.to_string() }),
        (Some(bytes), _) => it["memory"]["reservation"] = bytes.into(),
        (None, _) => {}
    }
    match (limits.pids, host.cgroup_driver) {
        (Some(pids), _) => it["pids"] = json!({ "limit": pids }),
        // systemd would set one of its own.
        (None, Driver::Systemd) => it["pids"] = json!({ "limit": -1 }),
        (None, Driver::Cgroupfs) => {}
    }
    it
}

fn mount(source: &str, target: &str, kind: &str, options: &[&str]) -> Value {
    json!({ "source": source, "destination": target, "type": kind, "options": options })
}

fn oom_score(host: Host, wanted: i32) -> i32 {
    if host.negative_oom_score {
        wanted
    } else {
        wanted.max(0)
    }
}

/// `command` is a shell line in place of everything; `args` replace the image's command and keep its entrypoint.
fn arguments(container: &Container, image: &Process) -> Result<Vec<String>, String> {
    if !container.command.is_empty() {
        return Ok(vec![
            "/bin/sh".into(),
            "-c".into(),
            container.command.clone(),
        ]);
    }
    let mut all = image.entrypoint.clone().unwrap_or_default();
    all.extend(match &container.args {
        Some(args) => args.clone(),
        None => image.cmd.clone().unwrap_or_default(),
    });
    if all.is_empty() {
        return Err("the image has no command, and the container asks for none".to_owned());
    }
    Ok(all)
}

fn directory(container: &Container, image: &Process) -> String {
    let of_either = [&container.directory, &image.working_dir];
    of_either
        .into_iter()
        .find(|it| !it.is_empty())
        .map_or("/", String::as_str)
        .to_owned()
}

/// Later lines win over earlier ones with the same key: defaults, the instance number, the image, the caller.
fn environment(
    sandbox: &Sandbox,
    container: &Container,
    image: &Process,
    user: &User,
) -> Vec<String> {
    let home = user.home.as_deref().filter(|it| !it.is_empty());
    let home = format!("HOME={}", home.unwrap_or("/"));
    let number = sandbox.spec.labels.get(INSTANCE_LABEL);
    let number = number.map(|it| format!("{INSTANCE_VARIABLE}={it}"));
    let image = image.env.clone().unwrap_or_default();
    let lines = [PATH.to_owned(), home]
        .into_iter()
        .chain(number)
        .chain(image);
    merged(lines.chain(container.env.iter().cloned()))
}

/// Later lines win over earlier ones with the same key, and stand in their place.
pub(crate) fn merged(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<String> = vec![];
    for line in lines {
        let key = line.split_once('=').map_or(line.as_str(), |(key, _)| key);
        let same = |it: &String| it.split_once('=').is_some_and(|(it, _)| it == key);
        match all.iter().position(same) {
            Some(at) => all[at] = line,
            None => all.push(line),
        }
    }
    all
}

/// Where a container's output goes: the shim starts the program with the query as its arguments.
pub(crate) fn output(program: &str, dir: &str, limit: u64) -> String {
    format!(
        "binary://{}?dir={}&limit={limit}",
        escape(program),
        escape(dir)
    )
}

fn escape(text: &str) -> String {
    let plain = |it: u8| it.is_ascii_alphanumeric() || b"/-._~".contains(&it);
    text.bytes().fold(String::new(), |text, byte| {
        if plain(byte) {
            format!("{text}{}", char::from(byte))
        } else {
            format!("{text}%{byte:02X}")
        }
    })
}

/// Labels of a snapshot, by which it is found again without its container.
pub(crate) fn marks(instance: &str, id: &SandboxId) -> [(String, String); 2] {
    use berth_domain::names::{LABEL_ENTITY_ID, LABEL_INSTANCE, entity_id};
    [
        (LABEL_ENTITY_ID.to_owned(), entity_id(id)),
        (LABEL_INSTANCE.to_owned(), instance.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use berth_domain::{ContainerName, ImageRef, SandboxSpec};

    use super::*;

    const HOST: Host = Host {
        cgroup_version: 2,
        cgroup_driver: Driver::Cgroupfs,
        negative_oom_score: false,
    };

    fn places() -> Places {
        Places {
            namespaces: "/ns".into(),
            files: "/files".into(),
            cgroup: "berth/a/web/app".into(),
        }
    }

    fn container() -> Container {
        Container {
            name: ContainerName::parse("app").unwrap(),
            image: ImageRef::parse("x").unwrap(),
            command: String::new(),
            args: None,
            directory: String::new(),
            env: vec![],
            ports: vec![],
            oom_score: 0,
            tty: false,
            stdin: false,
            config_files: vec![],
            shutdown_timeout: Duration::ZERO,
            resources: Resources::default(),
            readiness_probe: None,
        }
    }

    fn sandbox() -> Sandbox {
        Sandbox::of_id(SandboxId::parse("web").unwrap())
    }

    fn list(text: &str) -> Option<Vec<String>> {
        Some(text.split(' ').map(str::to_owned).collect())
    }

    #[test]
    fn arguments_follow_what_was_asked_and_else_the_image() {
        let image = Process {
            entrypoint: list("/entry"),
            cmd: list("a b"),
            ..Process::default()
        };
        let mut it = container();
        assert_eq!(Some(arguments(&it, &image).unwrap()), list("/entry a b"));
        it.args = list("c");
        assert_eq!(Some(arguments(&it, &image).unwrap()), list("/entry c"));
        it.args = None;
        it.command = "echo hi".into();
        assert_eq!(
            arguments(&it, &image).unwrap(),
            ["/bin/sh", "-c", "echo hi"]
        );
        assert!(arguments(&container(), &Process::default()).is_err());
    }

    #[test]
    fn the_callers_variables_win_over_the_image_and_those_over_defaults() {
        let mut it = container();
        it.env = vec!["B=caller".into(), "BERTH_INSTANCE_NUM=9".into()];
        let image = Process {
            env: Some(vec!["A=image".into(), "B=image".into(), "PATH=/bin".into()]),
            ..Process::default()
        };
        let mut sandbox = sandbox();
        let labels = [("instance".to_owned(), "3".to_owned())].into();
        sandbox.spec = Arc::new(SandboxSpec {
            labels,
            ..SandboxSpec::default()
        });
        let environment = environment(&sandbox, &it, &image, &User::default());
        assert_eq!(
            environment,
            [
                "PATH=/bin",
                "HOME=/",
                "BERTH_INSTANCE_NUM=9",
                "A=image",
                "B=caller"
            ]
        );
    }

    #[test]
    fn containers_join_the_pinned_namespaces_and_never_those_of_the_host() {
        let image = Process {
            cmd: list("x"),
            ..Process::default()
        };
        let app = app(
            HOST,
            &places(),
            &sandbox(),
            &container(),
            &image,
            &User::default(),
        )
        .unwrap();
        let pause = pause(HOST, &places(), "/root");
        for spec in [app, pause] {
            let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
            let of = |kind: &str| namespaces.iter().find(|it| it["type"] == kind).unwrap();
            for (kind, path) in [
                ("network", "/ns/net"),
                ("ipc", "/ns/ipc"),
                ("uts", "/ns/uts"),
            ] {
                assert_eq!(of(kind)["path"], path);
            }
            for kind in ["pid", "mount", "cgroup"] {
                assert!(of(kind)["path"].is_null(), "a {kind} namespace of its own");
            }
        }
    }

    #[test]
    fn limits_are_said_in_the_words_of_each_cgroup_version() {
        let limits = Resources {
            cpu_millis: Some(500),
            memory_bytes: Some(100),
            memory_high_bytes: Some(50),
            pids: Some(7),
        };
        let v2 = resources(HOST, &limits);
        assert_eq!(v2["unified"]["memory.high"], "50");
        assert_eq!(
            (&v2["cpu"]["quota"], &v2["memory"]["limit"]),
            (&json!(50_000), &json!(100))
        );
        assert_eq!(v2["pids"]["limit"], 7);
        let v1 = resources(
            Host {
                cgroup_version: 1,
                ..HOST
            },
            &limits,
        );
        assert_eq!(
            (&v1["memory"]["reservation"], &v1["unified"]),
            (&json!(50), &Value::Null)
        );
        let none = resources(HOST, &Resources::default());
        assert_eq!(
            none.as_object().unwrap().len(),
            1,
            "no limit is not a limit of 0: {none}"
        );
        let host = Host {
            cgroup_driver: Driver::Systemd,
            ..HOST
        };
        let by_systemd = resources(host, &Resources::default());
        assert_eq!(by_systemd["pids"]["limit"], -1, "not systemd's default");
    }

    #[test]
    fn a_score_that_the_host_does_not_allow_is_left_at_zero() {
        assert_eq!(oom_score(HOST, -998), 0);
        assert_eq!(oom_score(HOST, 500), 500);
        assert_eq!(
            oom_score(
                Host {
                    negative_oom_score: true,
                    ..HOST
                },
                -998
            ),
            -998
        );
    }

    #[test]
    fn paths_with_odd_letters_survive_the_way_to_the_log_writer() {
        assert_eq!(
            output("/a/log-writer", "/b c&d", 7),
            "binary:///a/log-writer?dir=/b%20c%26d&limit=7"
        );
    }
}

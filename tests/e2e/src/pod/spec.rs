//! What a kubelet and containerd's CRI make of a container of a pod, as an OCI runtime spec. As far as our chart goes: what
//! it does not know it refuses, so that nothing of a pod is overlooked.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Map, Value, json};

/// The kernel's names, by their numbers.
#[rustfmt::skip]
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL",
    "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST",
    "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO",
    "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE",
    "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM",
    "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
];
/// What containerd's CRI gives a container that asks for nothing.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What the node knows and the pod does not.
#[derive(Debug)]
pub struct Place<'a> {
    /// Where each volume of the pod lies on the host.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    /// Values of `fieldRef`.
    pub fields: &'a BTreeMap<&'static str, String>,
    /// `config` of the image's document.
    pub image: &'a Value,
    pub rootfs: &'a Path,
    pub cgroup: &'a str,
    /// Every capability that the kernel and this process have, without `CAP_`.
    pub all_capabilities: &'a [String],
    /// The filter that the runtime gives by default.
    pub seccomp: &'a Value,
}

/// The spec of a container of `pod`, which is a `PodSpec`.
pub fn runtime_spec(pod: &Value, container: &Value, place: &Place<'_>) -> anyhow::Result<Value> {
    for key in ["hostNetwork", "hostPID"] {
        ensure!(pod[key] == true, "a pod without {key} is not simulated");
    }
    let known = [
        "name",
        "image",
        "imagePullPolicy",
        "args",
        "env",
        "securityContext",
        "ports",
        "startupProbe",
        "livenessProbe",
        "readinessProbe",
        "resources",
        "volumeMounts",
    ];
    only(container, &known)?;
    let security = &container["securityContext"];
    only(
        security,
        &[
            "privileged",
            "runAsUser",
            "allowPrivilegeEscalation",
            "readOnlyRootFilesystem",
            "capabilities",
            "seccompProfile",
        ],
    )?;
    let privileged = security["privileged"] == true;
    let user = security["runAsUser"].as_u64();
    let user = user.context("a container that does not say its user is not simulated")?;
    let capabilities = capabilities(security, place.all_capabilities)?;
    let (mounts, propagation) = mounts(container, privileged, place)?;
    let mut linux = json!({
        "cgroupsPath": place.cgroup,
        "rootfsPropagation": propagation,
        // The network, the processes and the host's name are the node's.
        "namespaces": [{ "type": "mount" }, { "type": "ipc" }],
        "resources": resources(&container["resources"], privileged)?,
    });
    if !privileged {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
        if security["seccompProfile"]["type"] == "RuntimeDefault" {
            linux["seccomp"] = place.seccomp.clone();
        }
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": { "path": place.rootfs, "readonly": security["readOnlyRootFilesystem"] == true },
        "process": {
            "user": { "uid": user, "gid": 0 },
            "cwd": "/",
            "args": arguments(container, place.image)?,
            "env": environment(container, place)?,
            "capabilities": {
                "bounding": capabilities, "permitted": capabilities, "effective": capabilities,
            },
            "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
        },
        "mounts": mounts,
        "linux": linux,
    }))
}

fn only(value: &Value, known: &[&str]) -> anyhow::Result<()> {
    for key in value.as_object().into_iter().flat_map(Map::keys) {
        ensure!(known.contains(&key.as_str()), "{key} is not simulated");
    }
    Ok(())
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|it| it.as_str().map(str::to_owned))
        .collect()
}

fn text<'a>(value: &'a Value, key: &str) -> anyhow::Result<&'a str> {
    value[key].as_str().with_context(|| format!("no {key}"))
}

fn arguments(container: &Value, image: &Value) -> anyhow::Result<Vec<String>> {
    let mut all = texts(&image["Entrypoint"]);
    all.extend(texts(&container["args"]));
    ensure!(!all.is_empty(), "nothing to execute");
    Ok(all)
}

fn environment(container: &Value, place: &Place<'_>) -> anyhow::Result<Vec<String>> {
    let mut known: Vec<(String, String)> = vec![];
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = text(variable, "name")?.to_owned();
        let field = variable.pointer("/valueFrom/fieldRef/fieldPath");
        let value = match (variable["value"].as_str(), field.and_then(Value::as_str)) {
            (Some(value), None) => expanded(value, &known),
            (None, Some(field)) => place.fields.get(field).context(field.to_owned())?.clone(),
            (_, _) => bail!("{name} has neither a value nor a field"),
        };
        known.push((name, value));
    }
    let own = known.iter().map(|(name, value)| format!("{name}={value}"));
    Ok(texts(&place.image["Env"]).into_iter().chain(own).collect())
}

/// A `$(NAME)` of a variable that came before is its value.
fn expanded(value: &str, known: &[(String, String)]) -> String {
    known.iter().fold(value.to_owned(), |text, (name, value)| {
        text.replace(&format!("$({name})"), value)
    })
}

fn capabilities(security: &Value, all: &[String]) -> anyhow::Result<Vec<String>> {
    let added = texts(&security["capabilities"]["add"]);
    let dropped = texts(&security["capabilities"]["drop"]);
    let mut held: Vec<String> = match security["privileged"] == true {
        true => all.to_vec(),
        false => DEFAULT_CAPABILITIES.map(str::to_owned).into(),
    };
    held.retain(|it| !dropped.contains(it) && !dropped.contains(&"ALL".to_owned()));
    held.extend(added);
    held.dedup();
    Ok(held.iter().map(|it| format!("CAP_{it}")).collect())
}

fn resources(asked: &Value, privileged: bool) -> anyhow::Result<Value> {
    let mut made = json!({ "devices": [{ "allow": privileged, "access": "rwm" }] });
    if let Some(cpu) = asked["requests"]["cpu"].as_str() {
        let millis = cpu.strip_suffix('m').context("CPU in thousandths")?;
        let millis: u64 = millis.parse()?;
        made["cpu"] = json!({ "shares": (millis * 1024 / 1000).max(2) });
    }
    ensure!(asked["limits"].is_null(), "limits are not simulated");
    Ok(made)
}

/// The mounts in order, and what the root's propagation has to be for them.
fn mounts(
    container: &Value,
    privileged: bool,
    place: &Place<'_>,
) -> anyhow::Result<(Vec<Value>, &'static str)> {
    let mut propagation = "rprivate";
    let mut own = vec![];
    for asked in container["volumeMounts"].as_array().into_iter().flatten() {
        only(
            asked,
            &["name", "mountPath", "readOnly", "mountPropagation"],
        )?;
        let name = text(asked, "name")?;
        let source = place.volumes.get(name);
        let source = source.with_context(|| format!("no volume {name}"))?;
        let mode = match asked["mountPropagation"].as_str() {
            None | Some("None") => "rprivate",
            Some("HostToContainer") => "rslave",
            Some("Bidirectional") => {
                ensure!(privileged, "{name}: Bidirectional is for the privileged");
                "rshared"
            }
            Some(other) => bail!("{name}: {other}"),
        };
        if mode == "rshared" || mode == "rslave" && propagation == "rprivate" {
            propagation = mode;
        }
        let access = match asked["readOnly"] == true {
            true => "ro",
            false => "rw",
        };
        own.push((
            text(asked, "mountPath")?.to_owned(),
            json!({
                "destination": asked["mountPath"], "type": "bind", "source": source,
                "options": ["rbind", mode, access],
            }),
        ));
    }
    let sys = match privileged {
        true => "rw",
        false => "ro",
    };
    #[rustfmt::skip]
    let usual = [
        ("/proc",          "proc",   "proc",   &["nosuid", "noexec", "nodev"][..]),
        ("/dev",           "tmpfs",  "tmpfs",  &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts",       "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        ("/dev/mqueue",    "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys",           "sysfs",  "sysfs",  &["nosuid", "noexec", "nodev", sys]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", sys]),
        ("/etc/resolv.conf", "bind", "/etc/resolv.conf", &["rbind", "rprivate", "ro"]),
        ("/etc/hosts",     "bind",   "/etc/hosts", &["rbind", "rprivate", "ro"]),
    ];
    let overridden = |path: &str| own.iter().any(|(it, _)| it == path);
    let mut all: Vec<(String, Value)> = usual
        .iter()
        .filter(|(path, ..)| !overridden(path))
        .map(|(path, kind, source, options)| {
            let mount =
                json!({ "destination": path, "type": kind, "source": source, "options": options });
            ((*path).to_owned(), mount)
        })
        .collect();
    all.extend(own);
    // As the CRI does it: what is above comes first.
    all.sort_by_key(|(path, _)| Path::new(path).components().count());
    Ok((all.into_iter().map(|(_, it)| it).collect(), propagation))
}

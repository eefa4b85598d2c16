//! The chart, carried out: what it renders is taken by the programs, and the pod of a node runs as Kubernetes would run it.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_e2e::{
    TestNode,
    node::{obtained, programs, root, succeed},
    pod::{Pod, capability_bits, images, rendered},
};
use serde_json::{Value, json};

/// Of the kernel.
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const PATIENCE: Duration = Duration::from_secs(20);

/// What `deploy/dev/chart render` makes of each file of values in `helm/berth/ci`.
fn every_rendering() -> anyhow::Result<BTreeMap<String, Vec<Value>>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(root().join("helm/berth/ci"))? {
        let path = entry?.path();
        let mut command = Command::new(root().join("target/tools/helm/bin/python"));
        command.arg(root().join("deploy/dev/chart"));
        let objects = succeed(command.arg("render").arg(&path))?;
        let name = path.file_name().context("a name")?.to_string_lossy();
        all.insert(name.into_owned(), serde_json::from_str(&objects)?);
    }
    Ok(all)
}

#[test]
fn each_program_takes_the_settings_that_the_chart_renders_for_it() {
    let dir = tempfile::tempdir().unwrap();
    // Files of Secrets and ConfigMaps, which have to be there.
    let credentials = dir.path().join("credentials.json");
    fs::write(&credentials, r#"{"auths":{}}"#).unwrap();
    let mut checked = 0;
    for (values, objects) in every_rendering().unwrap() {
        let maps = objects.iter().filter(|it| it["kind"] == "ConfigMap");
        for (file, text) in maps.flat_map(|it| it["data"].as_object().unwrap()) {
            let text = text
                .as_str()
                .unwrap()
                .replace(
                    "/etc/berth-registry/.dockerconfigjson",
                    credentials.to_str().unwrap(),
                )
                .replace(
                    "/etc/extra/mirror.pem",
                    "/etc/ssl/certs/ca-certificates.crt",
                );
            let config = dir.path().join(file);
            fs::write(&config, &text).unwrap();
            let program = programs().join(file.strip_suffix(".toml").unwrap());
            let mut command = Command::new(program);
            command.arg("--check").arg("--config").arg(&config);
            let said = succeed(command).with_context(|| format!("{values}, {file}: {text}"));
            said.unwrap();
            checked += 1;
        }
    }
    assert!(checked >= 20, "{checked} files");
}

/// Settings of the manager that tell this node from others on the host, and not where anything lies.
fn settings_of(node: &TestNode) -> anyhow::Result<Value> {
    let text = fs::read_to_string(node.home().join("sandbox-manager.toml"))?;
    let mut settings = json!({});
    for line in text.lines() {
        let (key, value) = line.split_once(" = ").context(line.to_owned())?;
        let own = ["instance_id", "containerd.namespace", "cgroup.parent"].contains(&key);
        if own || key.starts_with("network.") {
            let place = key.split('.').fold(&mut settings, |it, part| &mut it[part]);
            *place = serde_json::from_str(value)?;
        }
    }
    Ok(settings)
}

fn values_for(node: &TestNode) -> anyhow::Result<Value> {
    let home = node.home();
    let place = |name: &str| home.join(name).display().to_string();
    Ok(json!({
        "paths": { "run": place("run"), "state": place("state"), "log": place("log") },
        "containerd": {
            "socket": place("cri/containerd.sock"),
            "stateDirs": [place("containerd/state"), "/run/containerd"],
            "rootDir": place("containerd/root"),
        },
        "manager": { "config": settings_of(node)? },
        "watchdog": { "config": { "name": "dog", "check_interval": "1s", "grace_window": "100ms" } },
    }))
}

/// The page that a sandbox serves.
fn page(address: &str) -> anyhow::Result<String> {
    let address: SocketAddr = format!("{address}:8080").parse()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.contains("200 OK"), "{answer}");
    Ok(answer)
}

/// Makes what is mounted in `path` known to others, as systemd has it for the whole host.
fn share(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path)?;
    succeed(Command::new("mount").arg("--bind").arg(path).arg(path))?;
    succeed(Command::new("mount").arg("--make-shared").arg(path))?;
    Ok(())
}

#[tokio::test]
async fn the_pod_of_a_node_serves_is_replaced_and_leaves_nothing() -> anyhow::Result<()> {
    let home = TestNode::new_home()?;
    share(&home.path().join("run"))?;
    let node = TestNode::start_in(home, "network.slots = 1\n", &[]).await?;
    node.kill_dns()?;
    node.end_manager().await?;
    // In a folder without anything else, as the socket is on a node.
    fs::create_dir(node.home().join("cri"))?;
    let socket = "cri/containerd.sock";
    fs::hard_link(
        node.home().join("containerd.sock"),
        node.home().join(socket),
    )?;

    let objects = rendered(&values_for(&node)?)?;
    let out = node.home().join("images");
    let made = images(&[], &out)?;
    let again = images(&["watchdog"], &node.home().join("again"))?;
    assert!(
        made.contains(&again),
        "the same input: {again} is not in {made}"
    );

    let pod = Pod::prepare(&node, &objects, &out)?;
    let all = pod.containers();
    assert_eq!(
        all,
        ["sandbox-manager", "dns", "metrics", "watchdog", "image-gc"]
    );
    pod.start().await?;
    for name in &all[1..] {
        let held = capability_bits(pod.pid(name)?, "CapEff")?;
        let expected = if name == "dns" {
            NET_ADMIN | NET_BIND_SERVICE
        } else {
            0
        };
        assert_eq!(held, expected, "{name} has {held:x}");
    }

    let address = format!("unix:{}", node.home().join("run/manager.sock").display());
    let berth = |words: &[&str]| node.berth(&[&["--address", &address], words].concat());
    let busybox = "berth.local/busybox:1";
    let httpd = "hostname > /tmp/hostname; exec httpd -f -p 8080 -h /tmp";
    let run = [
        "run", "--id", "web", "--port", "8080", busybox, "--", "/bin/sh", "-c", httpd,
    ];
    let said = berth(&run)?;
    let ip = said
        .split_whitespace()
        .nth(1)
        .context(said.clone())?
        .to_owned();
    page(&ip)?;
    assert_eq!(
        berth(&["exec", "web", "--", "/bin/hostname"])?.trim(),
        "web"
    );
    assert!(
        berth(&["logs", "web"])?.contains("running"),
        "what the node says"
    );
    // As a person at the cluster asks.
    let status = ["/usr/bin/berth", "--address", &address, "node", "status"];
    let status = pod.exec("sandbox-manager", &status)?;
    for name in ["node-of-the-pod", "dns", "metrics", "watchdog", "image-gc"] {
        assert!(status.contains(name), "no {name} in {status}");
    }
    obtained("the metrics process has seen it", PATIENCE, || async {
        let metrics = format!("unix:{}", node.home().join("run/metrics.sock").display());
        let top = berth(&["top", "--once", "--metrics-address", &metrics])?;
        ensure!(top.contains("web"), "{top}");
        Ok(())
    })
    .await?;
    let name = berth(&["exec", "web", "--", "/bin/nslookup", "localhost"])?;
    assert!(name.contains("Server:"), "the dns answers: {name}");

    // What an update of the DaemonSet does: the old pod ends before the new one begins.
    let before = berth(&["get", "web", "-o", "json"])?;
    pod.stop().await?;
    page(&ip).context("while there is no manager")?;
    pod.start().await?;
    page(&ip)?;
    let after = berth(&["get", "web", "-o", "json"])?;
    let (before, after): (Value, Value) = (
        serde_json::from_str(&before)?,
        serde_json::from_str(&after)?,
    );
    assert_eq!(after["containers"], before["containers"], "it was adopted");
    assert_eq!(after["status"], "SANDBOX_STATUS_RUNNING");
    berth(&["audit"])?;

    berth(&["rm", "web"])?;
    berth(&["audit"])?;
    pod.stop().await?;
    node.finish()
}

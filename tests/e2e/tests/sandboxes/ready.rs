//! What an app listens on, and what is said of it: errors that a person understands, and other ports that are taken.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, Protocol, SandboxStatus, probe::Check};
use berth_e2e::{
    TestNode,
    exec::{pipes, processes},
    node::{eventually, obtained, succeed},
    specs::{millis, shell, spec},
};
use tonic_types::StatusExt as _;

const SOON: Duration = Duration::from_secs(20);

/// A sandbox that declares port 8080 and is missed there after a second.
fn declared(line: &str) -> v1::SandboxSpec {
    v1::SandboxSpec {
        port_wait_timeout: millis(1000),
        ..spec([shell("web", line, &[8080])])
    }
}

/// A line that serves the same page at each of these places.
fn serve(places: &[&str]) -> String {
    let servers: Vec<_> = places
        .iter()
        .map(|it| format!("httpd -f -p {it} -h /www"))
        .collect();
    let servers = servers.join(" & ");
    format!("mkdir -p /www && echo hello > /www/index.html; {servers} & wait")
}

struct Told {
    reason: String,
    message: String,
    metadata: HashMap<String, String>,
}

impl Told {
    fn of(refused: Result<v1::Sandbox, tonic::Status>) -> anyhow::Result<Self> {
        let status = refused.err().context("it is RUNNING")?;
        let details = status.get_error_details();
        let info = details.error_info().context("it has no details")?;
        Ok(Self {
            reason: info.reason.clone(),
            message: status.message().to_owned(),
            metadata: info.metadata.clone(),
        })
    }

    fn says(&self, key: &str) -> &str {
        self.metadata.get(key).map_or("", String::as_str)
    }
}

fn fetch(to: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(SOON)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some(body.trim().to_owned())
}

async fn until(
    node: &TestNode,
    id: &str,
    what: &str,
    state: impl Fn(&v1::Sandbox) -> bool,
) -> anyhow::Result<v1::Sandbox> {
    let state = &state;
    let reached = || async move {
        let found = node.get(id).await?;
        ensure!(state(&found), "{found:?}");
        Ok(found)
    };
    obtained(what, SOON, reached).await
}

fn inside(node: &TestNode, container: &str, line: &str) -> anyhow::Result<()> {
    let mut ctr = node.command("ctr");
    ctr.args(["t", "exec", "--exec-id", "test", container]);
    ctr.args(["/bin/busybox", "sh", "-c", line]);
    succeed(ctr)?;
    Ok(())
}

#[tokio::test]
async fn whoever_cannot_be_reached_is_told_why_by_an_error_of_its_own() -> anyhow::Result<()> {
    let node = TestNode::start().await?;

    let only_inside = declared(&serve(&["127.0.0.1:8080"]));
    let told = Told::of(node.create("inside", only_inside).await)?;
    ensure!(told.reason == "PORT_TIMEOUT", "{}", told.message);
    ensure!(told.says("finding") == "LOOPBACK_ONLY", "{}", told.message);
    ensure!(told.says("expected") == "8080 (web)");
    let listens = told.says("loopback");
    ensure!(
        listens.starts_with("127.0.0.1:8080 (httpd, process ") && listens.ends_with(" of web)"),
        "{listens}"
    );
    for part in [
        "port 8080 (web)",
        "1000 ms",
        "127.0.0.1:8080 (httpd",
        "loopback only",
        "bind 0.0.0.0",
    ] {
        ensure!(told.message.contains(part), "{part}: {}", told.message);
    }

    let elsewhere = declared(&serve(&["9000", "9001"]));
    let told = Told::of(node.create("elsewhere", elsewhere).await)?;
    ensure!(told.reason == "PORT_TIMEOUT", "{}", told.message);
    ensure!(told.says("finding") == "OTHER_PORTS", "{}", told.message);
    let waited: u64 = told.says("waited_ms").parse()?;
    ensure!(waited >= 1000, "{waited}");
    for part in [":9000 (httpd, process ", ":9001 (httpd, process "] {
        ensure!(told.message.contains(part), "{part}: {}", told.message);
        ensure!(told.says("routable").contains(part), "{part}");
    }
    ensure!(
        !told.message.contains("bind 0.0.0.0"),
        "that would not help: {}",
        told.message
    );

    let deaf = declared("exec sleep 3600");
    let told = Told::of(node.create("deaf", deaf).await)?;
    ensure!(told.reason == "PORT_TIMEOUT", "{}", told.message);
    ensure!(
        told.says("finding") == "NOTHING_LISTENS" && told.says("listening").is_empty(),
        "{}",
        told.message
    );
    ensure!(
        told.message.contains("nothing listens in the sandbox"),
        "{}",
        told.message
    );

    // It does not take the time that its port has.
    let mut short = declared("exit 3");
    short.port_wait_timeout = millis(60_000);
    let begun = Instant::now();
    let told = Told::of(node.create("short", short).await)?;
    ensure!(begun.elapsed() < SOON, "it waited {:?}", begun.elapsed());
    ensure!(told.reason == "CONTAINER_EXITED", "{}", told.message);
    ensure!(told.says("exit_code") == "3" && told.says("container") == "web");
    ensure!(
        told.message
            .contains("container web exited with code 3 before the sandbox was RUNNING; port 8080 (web) did not listen yet"),
        "{}",
        told.message
    );
    node.assert_clean().await?;
    node.finish()
}

#[tokio::test]
async fn exactly_one_other_port_is_taken_and_all_that_leads_to_the_declared_one_leads_there()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let node_port = std::net::TcpListener::bind("0.0.0.0:0")?
        .local_addr()?
        .port();
    let mut other = declared(&serve(&["9000", "127.0.0.1:9001"]));
    other.containers[0].ports[0].node_port = node_port.into();
    let running = node.create("web", other).await?;
    ensure!(running.status() == SandboxStatus::Running, "{running:?}");
    ensure!(running.reason == "PORT_DIVERGED", "{running:?}");
    ensure!(
        running.message == "9000 is listened on in the place of port 8080 (web)",
        "{}",
        running.message
    );
    let [port] = running.ports.as_slice() else {
        anyhow::bail!("one port, not {:?}", running.ports);
    };
    ensure!((port.port, port.bound_port) == (8080, 9000), "{port:?}");
    let page = node.berth(&["get", "web"])?;
    ensure!(
        page.contains("8080/tcp") && page.contains("9000 in its place"),
        "{page}"
    );

    let by_node = SocketAddr::from(([127, 0, 0, 1], node_port));
    let led = || async { fetch(by_node).as_deref() == Some("hello") };
    eventually("the port of the node leads there", SOON, led).await?;
    node.kill_manager()?;
    node.up().await?;
    eventually("with the next manager as well", SOON, led).await?;
    let after = node.get("web").await?;
    ensure!(after.reason == "PORT_DIVERGED", "{after:?}");
    ensure!(node.delete("web").await?);
    node.assert_clean().await?;
    node.finish()
}

#[tokio::test]
async fn ports_of_every_protocol_and_family_are_waited_for() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let udp = |line: &str| {
        let mut it = declared(line);
        it.containers[0].ports[0].port = 67;
        it.containers[0].ports[0].protocol = Protocol::Udp.into();
        it
    };
    let bind = "printf 'interface eth0\\nstart 10.0.0.2\\nend 10.0.0.3\\nlease_file /leases\\npidfile /pid\\n' > /conf; \
                touch /leases; exec udhcpd -f /conf";
    let told = Told::of(node.create("tcp", udp(&serve(&["67"]))).await)?;
    ensure!(told.says("expected") == "67/udp (web)", "{}", told.message);
    let bound = node.create("udp", udp(bind)).await?;
    let is_bound = |it: &v1::PortState| it.port == 67 && it.protocol() == Protocol::Udp;
    ensure!(bound.ports.iter().any(is_bound), "{bound:?}");
    let six = node.create("six", declared(&serve(&["[::]:8080"]))).await?;
    ensure!(six.ports.iter().any(|it| it.address == "::"), "{six:?}");
    let told = Told::of(node.create("one", declared(&serve(&["[::1]:8080"]))).await)?;
    ensure!(told.says("finding") == "LOOPBACK_ONLY", "{}", told.message);
    node.finish()
}

#[tokio::test]
async fn a_probe_decides_beside_the_ports_and_takes_running_back() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let probed = |path: &str| {
        let mut it = declared("mkdir -p /www; exec httpd -f -p 8080 -h /www");
        it.port_wait_timeout = millis(3000);
        it.containers[0].readiness_probe = Some(v1::Probe {
            check: Some(Check::HttpGet(v1::HttpGetProbe {
                port: 8080,
                path: path.to_owned(),
                host: String::new(),
            })),
            period: millis(200),
            failure_threshold: 2,
            ..v1::Probe::default()
        });
        it
    };
    let told = Told::of(node.create("never", probed("/healthz")).await)?;
    ensure!(told.reason == "PROBE_FAILED", "{}", told.message);
    for part in [
        "container web",
        "GET /healthz on port 8080",
        "it answered with status 404",
    ] {
        ensure!(told.message.contains(part), "{part}: {}", told.message);
    }

    let mut patient = probed("/healthz");
    patient.port_wait_timeout = millis(30_000);
    let pending = node.accept("web", patient).await?;
    ensure!(pending.status() == SandboxStatus::Pending, "{pending:?}");
    let touch = || async { inside(&node, "sandbox.web.web", "echo ok > /www/healthz") };
    obtained("the container runs", SOON, touch).await?;
    until(&node, "web", "it is ready", |it| {
        it.status() == SandboxStatus::Running && it.reason.is_empty()
    })
    .await?;

    inside(&node, "sandbox.web.web", "rm /www/healthz")?;
    let lost = until(&node, "web", "it is not ready", |it| {
        it.status() == SandboxStatus::NotReady
    })
    .await?;
    ensure!(lost.reason == "PROBE_FAILED", "{lost:?}");
    ensure!(lost.message.contains("status 404"), "{}", lost.message);
    inside(&node, "sandbox.web.web", "echo again > /www/healthz")?;
    until(&node, "web", "it is ready again", |it| {
        it.status() == SandboxStatus::Running
    })
    .await?;
    ensure!(node.delete("web").await?);
    node.assert_clean().await?;
    node.finish()
}

/// A sandbox whose probe is this line.
fn asked(line: &str) -> v1::SandboxSpec {
    let mut it = spec([shell("web", "exec sleep 3600", &[])]);
    it.containers[0].readiness_probe = Some(v1::Probe {
        check: Some(Check::Exec(v1::ExecProbe {
            command: ["sh", "-c", line].map(str::to_owned).into(),
        })),
        period: millis(200),
        timeout: millis(1000),
        failure_threshold: 2,
        ..v1::Probe::default()
    });
    it
}

#[tokio::test]
async fn a_program_decides_when_it_is_ready_and_takes_it_back() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let line = "echo tried >> /tmp/tries; test -e /tmp/ready || { echo no database; exit 9; }";
    let mut never = asked(line);
    never.port_wait_timeout = millis(1000);
    let told = Told::of(node.create("never", never).await)?;
    ensure!(told.reason == "PROBE_FAILED", "{}", told.message);
    for part in [
        "container web",
        "the program sh",
        "exit code 9: no database",
    ] {
        ensure!(told.message.contains(part), "{part}: {}", told.message);
    }

    let mut patient = asked(line);
    patient.port_wait_timeout = millis(30_000);
    node.accept("web", patient).await?;
    let web = "sandbox.web.web";
    let tried = || async { inside(&node, web, "test $(grep -c tried /tmp/tries) -ge 3") };
    obtained("it was asked three times", SOON, tried).await?;
    let pending = node.get("web").await?;
    ensure!(pending.status() == SandboxStatus::Pending, "{pending:?}");
    inside(&node, web, "touch /tmp/ready")?;
    until(&node, "web", "it is ready", |it| {
        it.status() == SandboxStatus::Running && it.reason.is_empty()
    })
    .await?;

    inside(&node, web, "rm /tmp/ready")?;
    let lost = until(&node, "web", "it is not ready", |it| {
        it.status() == SandboxStatus::NotReady
    })
    .await?;
    ensure!(lost.reason == "PROBE_FAILED", "{lost:?}");
    ensure!(
        lost.message.contains("exit code 9: no database"),
        "{lost:?}"
    );
    inside(&node, web, "touch /tmp/ready")?;
    until(&node, "web", "it is ready again", |it| {
        it.status() == SandboxStatus::Running
    })
    .await?;
    ensure!(node.delete("web").await?);
    node.assert_clean().await?;
    node.finish()
}

#[tokio::test]
async fn a_probe_that_hangs_is_ended_and_leaves_no_process_and_no_pipe() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    // SIGHUP does not end it.
    let line = "test -e /tmp/well && exit; trap '' HUP; sleep 7777 & exec sleep 7777";
    let mut spec = asked(line);
    spec.port_wait_timeout = millis(30_000);
    node.accept("web", spec).await?;
    let web = "sandbox.web.web";
    let hanging =
        || processes(&node, web).map(|it| it.iter().filter(|it| *it == "sleep 7777").count());
    let hangs = async || hanging().is_ok_and(|it| it == 2);
    eventually("the probe hangs", SOON, hangs).await?;
    inside(&node, web, "touch /tmp/well")?;
    // The next try begins when the one before it has left nothing.
    until(&node, "web", "it is ready", |it| {
        it.status() == SandboxStatus::Running
    })
    .await?;
    ensure!(hanging()? == 0, "{:?}", processes(&node, web)?);

    inside(&node, web, "rm /tmp/well")?;
    let lost = until(&node, "web", "it is not ready", |it| {
        it.status() == SandboxStatus::NotReady
    })
    .await?;
    ensure!(lost.message.contains("no end within 1000 ms"), "{lost:?}");

    // One that hangs holds up no Delete.
    eventually("the probe hangs", SOON, hangs).await?;
    ensure!(node.delete("web").await?);
    eventually("no pipes are left", SOON, async || pipes(&node).is_empty()).await?;
    node.assert_clean().await?;
    node.finish()
}

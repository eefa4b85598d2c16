//! Sandboxes in the network of the node: their ports are its ports, and nothing of it becomes theirs.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::v1;
use berth_e2e::{
    TestNode,
    node::{eventually, succeed},
    specs::{millis, shell, spec, web},
};
use tonic_types::StatusExt as _;

const ALLOWED: &str = "network.allow_host_network = true\n";
const SOON: Duration = Duration::from_secs(10);

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("0.0.0.0:0")?.local_addr()?.port())
}

fn shared(mut spec: v1::SandboxSpec) -> v1::SandboxSpec {
    spec.host_network = true;
    spec
}

/// A sandbox that serves what it sees of itself.
fn mirror(port: u16) -> v1::SandboxSpec {
    let line = format!(
        "mkdir -p /www && cd /www && cat /etc/resolv.conf > resolv && readlink /proc/self/ns/net > net && \
         readlink /proc/self/ns/ipc > ipc && hostname > name && exec httpd -f -p {port} -h /www"
    );
    shared(spec([shell("web", &line, &[port.into()])]))
}

fn fetch(port: u16, path: &str) -> anyhow::Result<String> {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&to, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET /{path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok(body.to_owned())
}

/// The reason and what is said of it.
fn told(refused: Result<v1::Sandbox, tonic::Status>) -> anyhow::Result<(String, String)> {
    let refused = refused.err().context("it is not refused")?;
    let details = refused.get_error_details();
    let info = details.error_info().context("it has no details")?;
    let owner = info.metadata.get("owner").or(info.metadata.get("setting"));
    Ok((info.reason.clone(), owner.cloned().unwrap_or_default()))
}

fn in_use(owner: &str) -> (String, String) {
    ("NODE_PORT_IN_USE".to_owned(), owner.to_owned())
}

#[tokio::test]
async fn a_sandbox_in_the_network_of_the_node_lives_there_and_leaves_nothing() -> anyhow::Result<()>
{
    let node = TestNode::start_with(ALLOWED, &[]).await?;
    let port = free_port()?;
    let made = node.create("host", mirror(port)).await?;
    ensure!(made.status() == v1::SandboxStatus::Running, "{made:?}");
    ensure!(made.addresses.is_empty(), "{made:?}");
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}"));
    let read = |path: &str| fetch(port, path).map(|it| it.trim().to_owned());
    ensure!(read("net")? == own("net")?.to_string_lossy(), "its network");
    ensure!(read("ipc")? != own("ipc")?.to_string_lossy(), "its ipc");
    ensure!(read("name")? == "host", "its name");
    let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    ensure!(fetch(port, "resolv")? == resolv, "its name servers");
    let leases: serde_json::Value =
        serde_json::from_str(&node.berth(&["net", "leases", "-o", "json"])?)?;
    ensure!(leases["leases"] == serde_json::json!([]), "{leases}");

    let mut published = web("published", 8080);
    published.containers[0].ports[0].node_port = port.into();
    let conflicts = async || {
        let same = told(node.create("same", mirror(port)).await)?;
        ensure!(same == in_use("host"), "{same:?}");
        let other = told(node.create("other", published.clone()).await)?;
        ensure!(other == in_use("host"), "{other:?}");
        Ok(())
    };
    conflicts().await?;
    node.assert_clean().await?;

    node.kill_manager()?;
    ensure!(read("name")? == "host", "it goes on without a manager");
    node.up().await?;
    let after = node.get("host").await?;
    ensure!(after.generation == made.generation, "{after:?}");
    ensure!(after.status() == v1::SandboxStatus::Running, "{after:?}");
    conflicts().await?;
    ensure!(
        node.create("host", mirror(port)).await? == after,
        "it is joined"
    );
    node.assert_clean().await?;

    ensure!(node.delete("host").await?, "it was there");
    TcpListener::bind(("0.0.0.0", port)).context("its port is free again")?;
    node.create("other", published).await?;
    let taken = told(node.create("same", mirror(port)).await)?;
    ensure!(taken == in_use("other"), "{taken:?}");
    node.delete("other").await?;
    node.assert_clean().await?;
    node.finish()
}

#[tokio::test]
async fn one_whose_namespaces_cannot_be_read_hides_nothing_of_others() -> anyhow::Result<()> {
    let node = TestNode::start_with(ALLOWED, &[]).await?;
    let (own, outside) = (free_port()?, free_port()?);
    node.create("host", mirror(own)).await?;
    let mut published = web("published", 8080);
    published.containers[0].ports[0].node_port = outside.into();
    node.create("published", published).await?;
    let of = |degraded: &[String], id: &str| {
        let whose = format!("that of sandbox {id}, and a program");
        degraded.iter().any(|it| it.contains(&whose))
    };
    let before = node.status().await?.degraded;
    ensure!(!of(&before, "published"), "{before:?}");
    let _program = TcpListener::bind((Ipv4Addr::LOCALHOST, outside))?;
    let told = node.status().await?.degraded;
    ensure!(of(&told, "published") && !of(&told, "host"), "{told:?}");
    let pin = node.home().join("run/ns/host/net");
    succeed(Command::new("umount").arg(pin))?;
    let told = node.status().await?.degraded;
    ensure!(of(&told, "published"), "{told:?}");
    for id in ["host", "published"] {
        ensure!(node.delete(id).await?, "{id} was there");
    }
    node.assert_clean().await?;
    node.finish()
}

#[tokio::test]
async fn only_what_its_own_processes_listen_on_makes_it_ready() -> anyhow::Result<()> {
    let node = TestNode::start_with(ALLOWED, &[]).await?;
    let program = TcpListener::bind("0.0.0.0:0")?;
    let port = program.local_addr()?.port();
    let taken = told(node.create("late", mirror(port)).await)?;
    ensure!(
        taken == in_use(""),
        "a program of the node has it: {taken:?}"
    );
    drop(program);

    let mut silent = shared(spec([shell("app", "exec sleep 3600", &[port.into()])]));
    silent.port_wait_timeout = millis(2000);
    let request = v1::CreateRequest {
        id: "silent".into(),
        spec: Some(silent),
        wait: v1::WaitFor::Accepted.into(),
        ..v1::CreateRequest::default()
    };
    node.sandboxes().create(request).await?;
    let _program = TcpListener::bind(("0.0.0.0", port))?;
    let ended = async || {
        let found = node.get("silent").await;
        found.is_ok_and(|it| it.status() != v1::SandboxStatus::Pending)
    };
    eventually("it is RUNNING or DEAD", SOON, ended).await?;
    let silent = node.get("silent").await?;
    ensure!(silent.status() == v1::SandboxStatus::Dead, "{silent:?}");
    ensure!(silent.reason == "PORT_TIMEOUT", "{silent:?}");
    node.assert_clean().await?;
    node.finish()
}

#[tokio::test]
async fn the_network_of_the_node_is_for_sandboxes_only_where_its_configuration_says_so()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let refused = told(node.create("host", mirror(free_port()?)).await)?;
    let expected = ("DISABLED_ON_NODE", "network.allow_host_network");
    ensure!(
        (refused.0.as_str(), refused.1.as_str()) == expected,
        "{refused:?}"
    );
    ensure!(node.get("host").await.is_err(), "nothing half made");
    node.assert_clean().await?;
    node.finish()
}

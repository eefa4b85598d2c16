//! What leads to a sandbox comes back when somebody on the node takes it away.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::v1;
use berth_e2e::{
    TestNode,
    node::{eventually, succeed},
    specs::{idle, web},
};

const SOON: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_millis(500);

fn answers(address: &str) -> bool {
    let fetch = || -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&address.parse().ok()?, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    fetch().is_some_and(|it| it.contains("hello"))
}

fn ip(line: &str) -> anyhow::Result<()> {
    succeed(Command::new("ip").args(line.split_whitespace())).map(drop)
}

fn link_of(node: &TestNode, id: &str) -> anyhow::Result<String> {
    let instance = std::fs::read_to_string(node.home().join("instance"))?;
    let alias = format!("berth {} {id}", instance.trim());
    let text = succeed(Command::new("ip").args(["-j", "link"]))?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let link = links
        .iter()
        .find(|it| it["ifalias"].as_str() == Some(&alias));
    let name = link.and_then(|it| it["ifname"].as_str());
    name.map(str::to_owned).context("the link of the sandbox")
}

#[tokio::test]
async fn what_is_sent_to_addresses_that_nobody_has_looks_for_no_neighbour() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let sandbox = node.create("scan", idle()).await?;
    let own = sandbox.addresses[0].address.split('/').next();
    let own: Ipv4Addr = own.context("an address")?.parse()?;
    let pause = node.task("sandbox.scan_pause")?.to_string();
    for host in 100..110 {
        let [a, b, c, _] = own.octets();
        let mut command = Command::new("nsenter");
        command.args(["--net", "-t", &pause, "busybox", "nc", "-w", "1"]);
        command.args([&Ipv4Addr::new(a, b, c, host).to_string(), "80"]);
        ensure!(!command.output()?.status.success());
    }
    let instance = std::fs::read_to_string(node.home().join("instance"))?;
    let bridge = format!("br-{}", instance.trim());
    let known = succeed(Command::new("ip").args(["neigh", "show", "dev", &bridge]))?;
    ensure!(known.trim().is_empty(), "{known}");
    let request = v1::SnapshotRequest { id: "scan".into() };
    let snapshot = node.sandboxes().snapshot(request).await?.into_inner();
    let denied = snapshot.denied.context("what was denied")?;
    ensure!(denied.packets >= 10, "{denied:?}");
    node.delete("scan").await?;
    node.finish()
}

#[tokio::test]
async fn a_sandbox_is_reached_again_after_others_have_changed_the_node() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let sandbox = node.create("web", web("hello", 8080)).await?;
    let own = sandbox.addresses[0].address.split('/').next();
    let own = own.context("an address")?.to_owned();
    let address = format!("{own}:8080");
    ensure!(answers(&address));
    let instance = std::fs::read_to_string(node.home().join("instance"))?;
    let bridge = format!("br-{}", instance.trim());
    let link = link_of(&node, "web")?;
    let back = || async { answers(&address) };
    for change in [
        format!("addr flush dev {bridge}"),
        format!("link del {bridge}"),
        format!("link set {link} down"),
        format!("route del {own}/32"),
    ] {
        ip(&change)?;
        ensure!(!answers(&address), "{change} takes something away");
        eventually(&format!("back after {change}"), SOON, back).await?;
    }
    // Nobody looks while there is no manager; the next one does before it serves.
    node.kill_manager()?;
    ip(&format!("addr flush dev {bridge}"))?;
    ensure!(!answers(&address));
    node.up().await?;
    ensure!(answers(&address), "a start leads to what was there");
    node.assert_clean().await?;
    node.delete("web").await?;
    node.finish()
}

//! The subnet of the node and its parts: who gets addresses where, and what a start refuses.

use std::{net::Ipv4Addr, process::Command};

use anyhow::{Context as _, ensure};
use berth_api::v1;
use berth_e2e::{TestNode, node::succeed, specs::web};
use ipnet::Ipv4Net;
use tonic_types::StatusExt as _;

#[tokio::test]
async fn a_sandbox_takes_its_address_from_the_subnet_that_it_names() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let reserve = || node.berth(&["net", "reserve", "team", "--prefix-length", "30"]);
    let reserved = reserve()?;
    ensure!(reserved.contains("/30 is reserved for team"), "{reserved}");
    let subnet: Ipv4Net = reserved.split(' ').next().context("a net")?.parse()?;
    let mut own = web("own", 8080);
    own.network = Some(v1::NetworkPolicy {
        subnet: "team".into(),
        ..v1::NetworkPolicy::default()
    });
    let address = |it: &v1::Sandbox| -> anyhow::Result<Ipv4Addr> {
        let first = it.addresses.first().context("an address")?;
        Ok(first.address.parse::<Ipv4Net>()?.addr())
    };
    let inside = node.create("own", own.clone()).await?;
    ensure!(subnet.contains(&address(&inside)?), "{inside:?}");
    let outside = node.create("other", web("other", 8080)).await?;
    ensure!(!subnet.contains(&address(&outside)?), "{outside:?}");
    let told_of = node.berth(&["get", "own", "-o", "json"])?;
    let told_of: serde_json::Value = serde_json::from_str(&told_of)?;
    ensure!(told_of["spec"]["network"]["subnet"] == "team", "{told_of}");

    node.kill_manager()?;
    node.up().await?;
    ensure!(reserve()? == reserved, "the same one, over a restart");
    ensure!(
        node.berth(&["net", "unreserve", "team"]).is_err(),
        "it is held"
    );
    let totals = node.berth(&["net", "ls"])?;
    ensure!(totals.contains("team"), "{totals}");
    node.delete("own").await?;
    node.delete("other").await?;
    node.berth(&["net", "release", "--all-resting"])?;
    node.berth(&["net", "unreserve", "team"])?;
    let gone = node.create("own", own).await;
    let details = gone.err().context("it is refused")?.get_error_details();
    let info = details.error_info().context("it has no details")?;
    ensure!(info.reason == "SUBNET_NOT_FOUND", "{info:?}");
    let counts = node.berth(&["net", "ls", "-o", "json"])?;
    let counts: serde_json::Value = serde_json::from_str(&counts)?;
    ensure!(counts["free"] == counts["capacity"], "{counts}");
    node.assert_clean().await?;
    node.finish()
}

/// A manager beside the node's, of an instance of its own, that ends before it serves; with its exit code and what it says.
fn refused_start(node: &TestNode, bridge: &str, subnet: &str) -> anyhow::Result<(i32, String)> {
    let home = tempfile::tempdir()?;
    let dir = |name: &str| home.path().join(name).display().to_string();
    let mut command = node.command("sandbox-manager");
    let config = home.path().join("empty.toml");
    std::fs::write(&config, "")?;
    command.arg("--config").arg(&config);
    let sets = [
        ("instance_id", "refused".to_owned()),
        ("state_dir", dir("state")),
        ("run_dir", dir("run")),
        ("log_dir", dir("log")),
        ("socket", dir("manager.sock")),
        ("network.bridge", bridge.to_owned()),
        ("network.subnet", subnet.to_owned()),
    ];
    for (key, value) in sets {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    let output = command.output()?;
    let said = [output.stdout, output.stderr].concat();
    let code = output.status.code().context("it was killed")?;
    ensure!(!home.path().join("manager.sock").exists(), "it served");
    Ok((code, String::from_utf8_lossy(&said).into_owned()))
}

/// A link of the host that is gone at the end.
struct Link(String);

impl Link {
    fn add(name: String, kind: &str, address: &str) -> anyhow::Result<Self> {
        ip(&format!("link add {name} type {kind}"))?;
        let link = Self(name);
        let name = &link.0;
        ip(&format!("addr add {address} dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        Ok(link)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {}", self.0));
    }
}

fn ip(line: &str) -> anyhow::Result<String> {
    let mut command = Command::new("ip");
    command.args(line.split(' '));
    succeed(command)
}

#[tokio::test]
async fn a_start_refuses_a_subnet_or_a_bridge_that_is_somebody_elses() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let counts = node.berth(&["net", "ls", "-o", "json"])?;
    let counts: serde_json::Value = serde_json::from_str(&counts)?;
    let taken: Ipv4Net = counts["subnet"].as_str().context("a subnet")?.parse()?;
    let bridge = counts["bridge"].as_str().context("a bridge")?;
    let instance = std::fs::read_to_string(node.home().join("instance"))?;
    let instance = instance.trim();
    // Addresses that are for documentation (RFC 5737): nobody has business there.
    let other = Link::add(format!("bo{instance}"), "bridge", "203.0.113.1/28")?;
    let other = &other.0;
    ip(&format!("route add 198.51.100.64/26 dev {other}"))?;
    let with_address = Link::add(format!("bx{instance}"), "bridge", "203.0.113.129/28")?;
    let with_address = &with_address.0;

    let around = Ipv4Net::new(taken.addr(), 20)?.trunc().to_string();
    let own = format!("bn{instance}");
    let within = Ipv4Net::new(taken.addr(), 28)?.to_string();
    let cases: &[(&str, &str, &[&str])] = &[
        (
            &own,
            "203.0.113.0/27",
            &["network.subnet", "203.0.113.1/28", other],
        ),
        (
            &own,
            "203.0.113.8/29",
            &["network.subnet", "203.0.113.1/28", other],
        ),
        (
            &own,
            "198.51.100.0/24",
            &["network.subnet", "198.51.100.64/26", other],
        ),
        (&own, &around, &["network.subnet", bridge]),
        (&own, &within, &["network.subnet", bridge]),
        (bridge, "203.0.113.64/28", &["network.bridge", bridge]),
        (
            with_address,
            "203.0.113.64/28",
            &["network.bridge", "203.0.113.129/28", with_address],
        ),
        (other, "203.0.113.64/28", &["network.bridge", other]),
    ];
    let addresses = || -> anyhow::Result<Vec<String>> {
        let of = |link: &str| ip(&format!("-o -4 addr show dev {link}"));
        [other.as_str(), with_address.as_str(), bridge]
            .into_iter()
            .map(of)
            .collect()
    };
    let before = addresses()?;
    for (bridge, subnet, parts) in cases {
        let (code, said) = refused_start(&node, bridge, subnet)?;
        ensure!(code == 78, "{bridge} {subnet}: {code}: {said}");
        for part in *parts {
            ensure!(said.contains(part), "{bridge} {subnet}: {part}: {said}");
        }
        ensure!(!ip("-o link")?.contains(&own), "nothing half made");
    }
    ensure!(addresses()? == before, "no address is added");
    let tables = succeed(Command::new("nft").args(["list", "tables"]))?;
    ensure!(!tables.contains("berth-refused"), "{tables}");
    node.create("web", web("web", 8080)).await?;
    node.assert_clean().await?;
    node.finish()
}

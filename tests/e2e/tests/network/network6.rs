//! What is IPv6's own: names that lead to it, nodes that have none of it, subnets that come and go. What reaches what over it
//! is with IPv4 in `network.rs`.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use berth_api::v1::{self, catalog_service_client::CatalogServiceClient, entry::Object};
use berth_e2e::{
    TestNode,
    hosts::{Apart, Host, Place, received},
    node::{eventually, programs},
    specs::{idle, web},
};
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};

const SOON: Duration = Duration::from_secs(20);
/// How long a packet that is dropped is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const WEB: u16 = 8080;
const DNS: u16 = 53;
const SUBNET6: &str = "fd00:8::/64";

/// Asks the node over UDP from the network of this file.
fn ask(
    place: &Place,
    server: Ipv6Addr,
    name: &str,
    kind: RecordType,
) -> anyhow::Result<(ResponseCode, Vec<String>)> {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name)?, kind));
    let packet = query.to_vec()?;
    let answer = place.within(move || {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect((server, DNS))?;
        socket.send(&packet)?;
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer)?;
        Ok(Message::from_vec(&buffer[..length])?)
    })?;
    let mut texts: Vec<_> = answer
        .answers
        .iter()
        .map(|it| it.data.to_string())
        .collect();
    texts.sort();
    Ok((answer.metadata.response_code, texts))
}

async fn put(node: &TestNode, object: Object) -> anyhow::Result<()> {
    let request = v1::PutEntryRequest {
        entry: Some(v1::Entry {
            revision: 0,
            object: Some(object),
        }),
        expected_revision: 0,
    };
    CatalogServiceClient::new(node.channel.clone())
        .put_entry(request)
        .await?;
    Ok(())
}

/// The app `a` with the version `a-1` and the service `web`.
async fn put_app(node: &TestNode) -> anyhow::Result<()> {
    let text = str::to_owned;
    let app = v1::App {
        id: text("a"),
        name: String::new(),
    };
    let version = v1::Version {
        id: text("a-1"),
        app: text("a"),
        ..v1::Version::default()
    };
    let service = v1::Service {
        id: text("a-web"),
        app: text("a"),
        name: text("web"),
        labels: [(text("app"), text("front"))].into(),
        ports: vec![],
    };
    put(node, Object::App(app)).await?;
    put(node, Object::Version(version)).await?;
    put(node, Object::Service(service)).await
}

#[tokio::test]
async fn names_lead_to_ipv6_addresses_and_are_asked_for_over_ipv6() -> anyhow::Result<()> {
    let apart = Apart::start(Host::new()?, &format!("network.subnet6 = \"{SUBNET6}\"\n")).await?;
    let node = &apart.node;
    put_app(node).await?;
    let mut front = web("front", WEB.into());
    front.labels = [("app".to_owned(), "front".to_owned())].into();
    front.version = "a-1".to_owned();
    node.create("front", front).await?;
    let back = v1::SandboxSpec {
        version: "a-1".to_owned(),
        ..idle()
    };
    node.create("back", back).await?;
    node.create("alien", idle()).await?;
    let [IpAddr::V4(first), IpAddr::V6(front)] = node.addresses("front").await?[..] else {
        return Err(anyhow!("an address of each family"));
    };
    let gateway =
        u128::from(front) & (u128::MAX << 32) | u128::from(u32::from(first) & 0xffff_ff00 | 1);
    let gateway = Ipv6Addr::from(gateway);
    let back = apart.inside("back");
    let found = || async {
        let answer = ask(&back, gateway, "web.app.berth.", RecordType::AAAA);
        answer.is_ok_and(|(_, texts)| texts == [front.to_string()])
    };
    eventually("the service is found", SOON, found).await?;
    let digits = format!("{:032x}", u128::from(front));
    let digits: Vec<_> = digits.chars().rev().map(String::from).collect();
    let reverse = format!("{}.ip6.arpa.", digits.join("."));
    let (code, names) = ask(&back, gateway, &reverse, RecordType::PTR)?;
    ensure!(
        code == ResponseCode::NoError && names == ["web.app.berth."],
        "{names:?}"
    );
    // Of another app, or of none: it is known by this address as by the other.
    let alien = apart.inside("alien");
    let (code, names) = ask(&alien, gateway, "web.app.berth.", RecordType::AAAA)?;
    ensure!(
        code == ResponseCode::NoError && names.is_empty(),
        "{names:?}"
    );
    let endpoints = node.berth(&["catalog", "endpoints", "--app", "a"])?;
    ensure!(endpoints.contains(&front.to_string()), "{endpoints}");
    apart.finish()
}

#[tokio::test]
async fn without_a_subnet_of_it_no_packet_of_ipv6_leaves_a_sandbox() -> anyhow::Result<()> {
    let host = Host::new()?;
    let (other, _, _) = host.neighbour(1)?;
    let (beyond, _) = host.neighbour6(1, &other)?;
    let apart = Apart::start(host, "").await?;
    let Apart { node, host } = &apart;
    node.create("web", web("web", WEB.into())).await?;
    ensure!(node.addresses("web").await?.len() == 1);
    let inside = apart.inside("web");
    // What the sandbox could do with the rights of the node: addresses and routes as they would be.
    let (own, end): (Ipv6Addr, Ipv6Addr) = ("fd00:8::2".parse()?, "fd00:8::1".parse()?);
    let links = host.run("ip -o link show type veth")?;
    let outside = links.lines().find_map(|it| {
        it.split(": ")
            .nth(1)?
            .split('@')
            .next()
            .filter(|it| it.starts_with("bt"))
    });
    let outside = outside.context("the node's end of the link")?;
    host.run(&format!("ip addr add {end}/64 dev {outside} nodad"))?;
    inside.run(&format!("ip addr add {own}/64 dev eth0 nodad"))?;
    // What it would have to ask the node for, it knows.
    let hardware = host.run(&format!("ip -o link show {outside}"))?;
    let hardware = hardware
        .split("link/ether ")
        .nth(1)
        .and_then(|it| it.split(' ').next());
    let hardware = hardware.context("a hardware address")?;
    inside.run(&format!("ip neigh add {end} lladdr {hardware} dev eth0"))?;
    inside.run(&format!("ip route add default via {end}"))?;
    // Somebody else has made the node a router.
    host.shell("echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")?;
    for (place, to) in [(&**host, end), (&*other, beyond)] {
        let receiver = place.udp_at(to.into(), 9000)?;
        let send = |from: &Place, own: Ipv6Addr, text: &'static str| {
            from.within(move || {
                UdpSocket::bind((own, 0))?.send_to(text.as_bytes(), (to, 9000))?;
                Ok(())
            })
        };
        send(&inside, own, "six")?;
        send(host, Ipv6Addr::UNSPECIFIED, "mark")?;
        let first = received(&receiver).map(|it| it.0);
        ensure!(first.as_deref() == Some("mark"), "{to}: {first:?} arrived");
    }
    apart.finish()
}

#[tokio::test]
async fn a_sandbox_keeps_the_addresses_it_was_admitted_with_and_a_subnet_in_use_stays()
-> anyhow::Result<()> {
    let apart = Apart::start(Host::new()?, "").await?;
    let Apart { node, host } = &apart;
    node.create("old", web("old", WEB.into())).await?;
    let before = node.addresses("old").await?;
    let configure = |text: &str| fs::write(node.home().join("extra.toml"), text);
    node.kill_manager()?;
    configure(&format!("network.subnet6 = \"{SUBNET6}\"\n"))?;
    node.up().await?;
    ensure!(
        node.addresses("old").await? == before,
        "it keeps what it has"
    );
    node.create("new", web("new", WEB.into())).await?;
    let new = node.addresses("new").await?;
    let (&[old @ IpAddr::V4(_)], &[_, new @ IpAddr::V6(_)]) = (&before[..], &new[..]) else {
        return Err(anyhow!("{before:?}, {new:?}"));
    };
    for (ip, text) in [(old, "old"), (new, "new")] {
        let got = host.fetch(SocketAddr::new(ip, WEB));
        ensure!(got.as_deref() == Some(text), "{ip} gives {got:?}");
    }
    node.assert_clean().await?;

    node.kill_manager()?;
    let config = node.home().join("sandbox-manager.toml");
    let text = fs::read_to_string(&config)?;
    let without: Vec<_> = text.lines().filter(|it| !it.contains("subnet6")).collect();
    let elsewhere = node.home().join("without.toml");
    fs::write(&elsewhere, without.join("\n"))?;
    let refused = || async {
        let mut manager = host.command(&programs().join("sandbox-manager").to_string_lossy());
        let output = manager.arg("--config").arg(&elsewhere).output();
        output.is_ok_and(|it| {
            let said = [it.stdout, it.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            !it.status.success() && said.contains(&new.to_string()) && said.contains("new")
        })
    };
    // The kernel closes the files of a killed process a moment after its end.
    eventually("it is refused", SOON, refused).await?;
    node.up().await?;
    ensure!(host.fetch(SocketAddr::new(new, WEB)).as_deref() == Some("new"));
    apart.finish()
}

#[tokio::test]
async fn what_leads_to_a_sandbox_over_ipv6_comes_back() -> anyhow::Result<()> {
    let apart = Apart::start(Host::new()?, &format!("network.subnet6 = \"{SUBNET6}\"\n")).await?;
    let Apart { node, host } = &apart;
    node.create("web", web("hello", WEB.into())).await?;
    let own = node
        .addresses("web")
        .await?
        .pop()
        .context("an IPv6 address")?;
    let ip = |line: &str| host.run(&format!("ip {line}"));
    let route = ip(&format!("-6 route show {own}"))?;
    let link = route
        .split_whitespace()
        .skip_while(|it| *it != "dev")
        .nth(1);
    let link = link.context("the link of the route")?.to_owned();
    let stands = || async {
        let route = ip(&format!("-6 route show {own}")).unwrap_or_default();
        let next_hop = ip(&format!("-6 addr show dev {link} to fe80::1")).unwrap_or_default();
        route.contains(&link) && next_hop.contains("fe80::1")
    };
    ensure!(stands().await);
    for change in [
        format!("-6 route del {own}/128 dev {link}"),
        format!("-6 addr flush dev {link}"),
    ] {
        ip(&change)?;
        ensure!(!stands().await, "{change} takes something away");
        let limit = Duration::from_secs(20);
        eventually(&format!("back after {change}"), limit, stands).await?;
    }
    node.delete("web").await?;
    apart.finish()
}

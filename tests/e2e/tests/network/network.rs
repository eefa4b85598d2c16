//! What reaches what, with real packets, over IPv4 and IPv6: another host, the node and its sandboxes, each in a network
//! namespace of its own.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use berth_api::v1::{self, EgressMode, EgressRule, NetworkPolicy, Protocol};
use berth_e2e::{
    hosts::{Apart, Host, Place, received, with_each},
    node::{eventually, obtained, programs, succeed},
    packets::Raw,
    specs::{idle, shell, spec, web},
};
use tonic_types::StatusExt as _;

const SOON: Duration = Duration::from_secs(20);
const WEB: u16 = 8080;
/// Of the other host.
const SERVED: u16 = 7001;
const ALSO_SERVED: u16 = 7002;
/// Over TCP and over UDP.
const NODE_PORT: u16 = 30080;
const DATAGRAMS: u16 = 8081;
/// On which a program of the node listens.
const PROGRAM: u16 = 7003;
/// Where every sandbox finds the node over IPv6.
const NEXT_HOP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const SUBNET6: &str = "fd00:8::/64";

struct Scene {
    apart: Apart,
    other: Host,
    /// IPv4 and IPv6.
    families: [Family; 2],
}

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
struct Family {
    other: IpAddr,
    /// The node's, as the other host knows it.
    node: IpAddr,
    gateway: IpAddr,
    front: IpAddr,
    back: IpAddr,
}

impl Scene {
    async fn start() -> anyhow::Result<Self> {
        let mut host = Host::new()?;
        let (mut other, own4, end4) = host.neighbour(1)?;
        let (own6, end6) = host.neighbour6(1, &other)?;
        for port in [SERVED, ALSO_SERVED] {
            other.serve(port, "other")?;
        }
        host.serve(PROGRAM, "node")?;
        let apart = Apart::start(host, &format!("network.subnet6 = \"{SUBNET6}\"\n")).await?;
        let node = &apart.node;
        let mut front = web("front", WEB.into());
        front.containers[0].ports[0].node_port = NODE_PORT.into();
        front.containers[0].ports.push(v1::Port {
            port: DATAGRAMS.into(),
            protocol: Protocol::Udp.into(),
            node_port: NODE_PORT.into(),
            ..v1::Port::default()
        });
        front.labels = [("app".to_owned(), "front".to_owned())].into();
        node.accept("front", front).await?;
        let inside = apart.inside("front");
        let bound = || async { inside.answer(DATAGRAMS, "front") };
        obtained("its network", SOON, bound).await?;
        let runs = || async {
            let found = node.get("front").await;
            found.is_ok_and(|it| it.status() == v1::SandboxStatus::Running)
        };
        eventually("its ports are bound", SOON, runs).await?;
        let lets_in_front = NetworkPolicy {
            allow_from: vec!["app=front".into()],
            ..NetworkPolicy::default()
        };
        node.create("back", with(lets_in_front, web("back", WEB.into())))
            .await?;
        let closed = NetworkPolicy {
            egress: EgressMode::Deny.into(),
            ..NetworkPolicy::default()
        };
        node.create("closed", with(closed, idle())).await?;
        // A length of IPv6 that is put as several networks.
        let wide = Ipv6Addr::from(u128::from(own6) & (u128::MAX << 3));
        let lists = [format!("{own4}/32"), format!("{wide}/125")];
        node.create("listed", with(listing(&lists, SERVED), idle()))
            .await?;
        let everything4 = ["0.0.0.0/0".to_owned()];
        node.create("only-four", with(listing(&everything4, 0), idle()))
            .await?;
        let of = async |id: &str| {
            let all = node.addresses(id).await?;
            <[IpAddr; 2]>::try_from(all).map_err(|it| anyhow!("{id} has {it:?}"))
        };
        let ([front4, front6], [back4, back6]) = (of("front").await?, of("back").await?);
        let IpAddr::V4(first) = front4 else {
            return Err(anyhow!("{front4} is first"));
        };
        let gateway = u32::from(first) & 0xffff_ff00 | 1;
        let prefix: Ipv6Addr = SUBNET6.trim_end_matches("/64").parse()?;
        let gateway6 = Ipv6Addr::from(u128::from(prefix) | u128::from(gateway));
        Ok(Self {
            families: [
                Family {
                    other: own4.into(),
                    node: end4.into(),
                    gateway: Ipv4Addr::from(gateway).into(),
                    front: front4,
                    back: back4,
                },
                Family {
                    other: own6.into(),
                    node: end6.into(),
                    gateway: gateway6.into(),
                    front: front6,
                    back: back6,
                },
            ],
            apart,
            other,
        })
    }

    /// Sends every kind of packet, and fails at the first that arrives where it must not, or does not where it must.
    fn probe(&self, when: &str) -> anyhow::Result<()> {
        let inside = |id| self.apart.inside(id);
        let (host, other) = (Place::clone(&self.apart.host), Place::clone(&self.other));
        let [front, back, closed, listed, four] =
            ["front", "back", "closed", "listed", "only-four"].map(inside);
        let at = |ip: IpAddr, port: u16| SocketAddr::new(ip, port);
        let of_family = |family: &Family| {
            let by_node = at(family.node, NODE_PORT);
            let (to_front, to_back) = (at(family.front, WEB), at(family.back, WEB));
            let (served, also) = (at(family.other, SERVED), at(family.other, ALSO_SERVED));
            let in_four = family.other.is_ipv4().then_some("other");
            #[rustfmt::skip]
            let cases = [
                ("a node port, from another host",     &other,  by_node,                       Some("front")),
                ("a node port, by the node's address", &host,   by_node,                       Some("front")),
                ("a node port, by the gateway",        &host,   at(family.gateway, NODE_PORT), Some("front")),
                ("a node port, from a sandbox",        &back,   by_node,                       Some("front")),
                ("a node port, from its own sandbox",  &front,  by_node,                       Some("front")),
                ("a sandbox, from the node",           &host,   to_front,                      Some("front")),
                ("a sandbox that lets in",             &front,  to_back,                       Some("back")),
                ("another host, from a sandbox",       &front,  served,                        Some("other")),
                ("another port of it",                 &front,  also,                          Some("other")),
                ("what the list allows",               &listed, served,                        Some("other")),
                ("a list of IPv4 alone",               &four,   served,                        in_four),
                ("a sandbox, from another host",       &other,  to_front,                      None),
                ("a sandbox, from another",            &back,   to_front,                      None),
                ("a sandbox, from a listed one",       &listed, to_back,                       None),
                ("another host, from a closed one",    &closed, served,                        None),
                ("a node port, from a closed one",     &closed, by_node,                       None),
                ("what the list does not have",        &listed, also,                          None),
                ("a program of the node",              &front,  at(family.node, PROGRAM),      None),
                ("a program of the node, by the gateway", &front, at(family.gateway, PROGRAM), None),
            ];
            cases
        };
        let by_own = SocketAddr::from((Ipv4Addr::LOCALHOST, NODE_PORT));
        let cases = self.families.iter().flat_map(of_family);
        let by_own = ("a node port, by 127.0.0.1", &host, by_own, Some("front"));
        let datagrams = |family: &Family| {
            let by_node = at(family.node, NODE_PORT);
            [
                ("from another host", &other, by_node, true),
                ("by the node's address", &host, by_node, true),
                ("by the gateway", &host, at(family.gateway, NODE_PORT), true),
                ("from a sandbox", &back, by_node, true),
                ("from its own sandbox", &front, by_node, true),
                ("from a closed one", &closed, by_node, false),
            ]
        };
        let asked = self.families.iter().flat_map(datagrams);
        let asked = asked.chain([("by 127.0.0.1", &host, by_own.2, true)]);
        with_each(&asked.collect::<Vec<_>>(), |(what, from, to, passes)| {
            let (got, expected) = (from.ask(*to)?, passes.then_some("front"));
            ensure!(
                got.as_deref() == expected,
                "{when}: a node port of UDP, {what}, {to}: {got:?}"
            );
            Ok(())
        })?;
        let judge = |(what, from, to, expected): &(&str, &Place, SocketAddr, Option<&str>)| {
            let got = from.fetch(*to);
            ensure!(got.as_deref() == *expected, "{when}: {what}, {to}: {got:?}");
            Ok(())
        };
        // By its link a sandbox finds the node, and nothing on it.
        let to = SocketAddrV6::new(NEXT_HOP, PROGRAM, 0, index_of_link(&front)?).into();
        let by_link = ("a program of the node, by its link", &front, to, None);
        let cases = cases.chain([by_own, by_link]);
        let (passing, blocked): (Vec<_>, Vec<_>) = cases.partition(|it| it.3.is_some());
        // One by one: a server answers few at a time.
        passing.iter().try_for_each(judge)?;
        with_each(&blocked, judge)?;
        for family in &self.families {
            let gateway = family.gateway;
            let ping = format!("busybox ping -c 1 -W 1 {gateway}");
            ensure!(front.run(&ping).is_ok(), "{when}: {gateway} answers");
        }
        Ok(())
    }

    async fn probe_eventually(&self, what: &str) -> anyhow::Result<()> {
        let mut last = None;
        let passes = || {
            last = self.probe(what).err();
            std::future::ready(last.is_none())
        };
        let passed = eventually(what, SOON, passes).await;
        passed.map_err(|it| it.context(format!("{last:?}")))
    }
}

fn with(policy: NetworkPolicy, spec: v1::SandboxSpec) -> v1::SandboxSpec {
    v1::SandboxSpec {
        network: Some(policy),
        ..spec
    }
}

fn listing(networks: &[String], port: u16) -> NetworkPolicy {
    let rules = networks.iter().map(|it| EgressRule {
        cidr: it.clone(),
        port: port.into(),
        ..EgressRule::default()
    });
    NetworkPolicy {
        egress: EgressMode::Allow.into(),
        egress_rules: rules.collect(),
        ..NetworkPolicy::default()
    }
}

/// The number of a sandbox's end.
fn index_of_link(place: &Place) -> anyhow::Result<u32> {
    place.within(|| {
        let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6")?;
        let own = addresses.lines().find(|it| it.ends_with("eth0"));
        let index = own.and_then(|it| it.split_whitespace().nth(1));
        Ok(u32::from_str_radix(
            index.context("eth0 has addresses")?,
            16,
        )?)
    })
}

fn reason(status: &tonic::Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().cloned();
    info.map(|it| it.reason).unwrap_or_default()
}

#[tokio::test]
async fn what_must_pass_passes_and_what_must_not_does_not_whatever_is_killed_or_flushed()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let Apart { node, host } = &scene.apart;
    scene.probe("at first")?;
    for id in ["closed", "listed", "only-four"] {
        let denied = node.denied(id).await?;
        ensure!(
            denied.packets > 0 && denied.spoofed_packets == 0,
            "{id}: {denied:?}"
        );
    }

    let before = node.denied("closed").await?;
    node.kill_manager()?;
    scene.probe("without a manager")?;
    node.up().await?;
    ensure!(node.denied("closed").await?.packets >= before.packets);
    scene.probe("behind a restart of the manager")?;

    let table = node.table()?;
    for spoil in [
        "flush ruleset".to_owned(),
        format!("delete table inet {table}"),
        format!("delete table arp {table}"),
        format!("flush table inet {table}"),
        format!("flush set inet {table} sources"),
        format!("flush set inet {table} sources6"),
        format!("flush map inet {table} node_ports"),
        format!("flush map inet {table} node_ports6"),
        format!("add table inet {table} {{ flags dormant; }}"),
        format!("replace rule inet {table} outward handle CLOSED ip saddr @closed accept"),
    ] {
        let rules = host.run(&format!("nft -a list chain inet {table} outward"))?;
        let closed = rules.lines().find(|it| it.contains("@closed"));
        let handle = closed.and_then(|it| it.rsplit(' ').next());
        let spoil = spoil.replace("CLOSED", handle.context("the rule")?);
        host.run(&format!("nft {spoil}"))?;
        scene.probe_eventually(&spoil).await?;
    }

    node.end_containerd().await?;
    node.up().await?;
    scene.probe("behind a restart of containerd")?;

    let front6 = scene.families[1].front.to_string();
    for told in [
        &["get", "front"][..],
        &["ls"],
        &["net", "leases", "-o", "json"],
    ] {
        ensure!(node.berth(told)?.contains(&front6), "{told:?}");
    }
    ensure!(node.berth(&["net", "ls"])?.contains(SUBNET6));
    node.assert_clean().await?;
    node.delete("front").await?;
    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, NODE_PORT));
    let gone = host.connect(own).err().map(|it| it.kind());
    ensure!(
        gone == Some(ErrorKind::ConnectionRefused),
        "gone when Delete returns"
    );
    for family in &scene.families {
        let by_node = SocketAddr::new(family.node, NODE_PORT);
        ensure!(scene.other.fetch(by_node).is_none(), "{by_node}");
        ensure!(
            scene.other.ask(by_node)?.is_none(),
            "{by_node}, with datagrams"
        );
    }
    scene.apart.finish()
}

/// Sends a text from an address of this place.
fn send(place: &Place, from: IpAddr, to: SocketAddr, text: &'static str) -> anyhow::Result<()> {
    place.within(move || {
        UdpSocket::bind((from, 0))?.send_to(text.as_bytes(), to)?;
        Ok(())
    })
}

#[tokio::test]
async fn nothing_is_sent_in_the_name_of_another() -> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let node = &scene.apart.node;
    let front = scene.apart.inside("front");
    for family in &scene.families {
        let receiver = scene.other.udp_at(unspecified(family.other), 9000)?;
        let to = SocketAddr::new(family.other, 9000);
        let before = node.denied("front").await?.spoofed_packets;
        send(&front, family.front, to, "own")?;
        // Private, or unique local: beyond the node nobody knows it.
        let (text, from) = received(&receiver).context("in its own name")?;
        ensure!(
            (text.as_str(), from.ip()) == ("own", family.node),
            "{text}, {from}"
        );
        let counted = node.denied("front").await?.spoofed_packets;
        ensure!(counted == before, "{counted}, {before}");

        let another = match family.back {
            IpAddr::V4(it) => format!("{it}/32 dev eth0"),
            IpAddr::V6(it) => format!("{it}/128 dev eth0 nodad"),
        };
        front.run(&format!("ip addr add {another}"))?;
        send(&front, family.back, to, "spoofed")?;
        send(&front, family.front, to, "mark")?;
        let first = received(&receiver).map(|it| it.0);
        ensure!(
            first.as_deref() == Some("mark"),
            "{first:?} is the first to arrive"
        );
        let counted = node.denied("front").await?.spoofed_packets;
        ensure!(counted == before + 1, "{counted}, {before}");
        let another = another.trim_end_matches(" nodad");
        front.run(&format!("ip addr del {another}"))?;
    }

    let [v4, _] = scene.families;
    let ping = |to: IpAddr| front.run(&format!("busybox ping -c 1 -W 1 {to}")).is_ok();
    let asks = || {
        let line = format!("busybox arping -q -c 1 -w 1 -I eth0 {}", v4.gateway);
        front.run(&line).is_ok()
    };
    ensure!(ping(v4.other) && asks(), "with its own hardware address");
    let IpAddr::V4(own) = v4.front else {
        return Err(anyhow!("{v4:?}"));
    };
    let [a, b, c, d] = own.octets();
    front.run("ip link set eth0 address 02:42:00:00:00:01")?;
    ensure!(!ping(v4.other), "with another's hardware address");
    ensure!(!asks(), "a question with another's hardware address");
    let own = format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    front.run(&format!("ip link set eth0 address {own}"))?;
    let again = || async { ping(v4.other) };
    eventually("in its own name again", SOON, again).await?;
    scene.apart.finish()
}

#[tokio::test]
async fn no_sandbox_is_a_router_or_reaches_what_clouds_answer_at() -> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let front = scene.apart.inside("front");
    let denied = async || anyhow::Ok(scene.apart.node.denied("front").await?.packets);
    let before = denied().await?;
    Raw::icmp6(&front)?.advertise_router(index_of_link(&front)?)?;
    let counted = denied().await?;
    ensure!(
        counted == before + 1,
        "a router's advertisement: {counted}, {before}"
    );
    for metadata in [
        "169.254.169.254",
        "fd00:ec2::254",
        "fd20:ce::254",
        "2002:7f00:1::1",
        "64:ff9b::a9fe:a9fe",
    ] {
        let before = denied().await?;
        let metadata: IpAddr = metadata.parse()?;
        send(
            &front,
            unspecified(metadata),
            SocketAddr::new(metadata, 80),
            "who",
        )?;
        let counted = denied().await?;
        ensure!(counted == before + 1, "{metadata}: {counted}, {before}");
    }
    scene.apart.finish()
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[tokio::test]
async fn a_flow_to_a_sandbox_that_is_gone_does_not_reach_the_next_owner_of_its_address()
-> anyhow::Result<()> {
    let host = Host::new()?;
    let (other, _, end4) = host.neighbour(1)?;
    let (own6, end6) = host.neighbour6(1, &other)?;
    let toml = format!(
        "network.subnet6 = \"{SUBNET6}\"\nnetwork.cool_down = \"0s\"\nnetwork.reachable_from = [\"{own6}/128\"]\n"
    );
    let apart = Apart::start(host, &toml).await?;
    let node = &apart.node;
    let listens = |node_port: u16| {
        let mut it = spec([shell("app", "exec sleep 3600", &[9000])]);
        it.containers[0].ports[0].protocol = Protocol::Udp.into();
        it.containers[0].ports[0].node_port = node_port.into();
        it
    };
    // The app of the sandbox is its receiver here, over both families.
    let create = async |id: &str, spec| {
        node.accept(id, spec).await?;
        let bound = || async { apart.inside(id).udp_at(Ipv6Addr::UNSPECIFIED.into(), 9000) };
        let receiver = obtained("its network", SOON, bound).await?;
        let runs = || async {
            let found = node.get(id).await;
            found.is_ok_and(|it| it.status() == v1::SandboxStatus::Running)
        };
        eventually("its port is bound", SOON, runs).await?;
        anyhow::Ok(receiver)
    };
    let receiver = create("former", listens(NODE_PORT)).await?;
    let former = node.addresses("former").await?;
    let mut flows = vec![];
    for end in [IpAddr::from(end4), end6.into()] {
        let flow = other.udp_at(unspecified(end), 0)?;
        flow.connect((end, NODE_PORT))?;
        let arrives = || async { flow.send(b"flow").is_ok() && received(&receiver).is_some() };
        eventually(&format!("the flow by {end} arrives"), SOON, arrives).await?;
        flows.push(flow);
    }
    drop(receiver);

    node.delete("former").await?;
    let receiver = create("next", listens(0)).await?;
    let next = node.addresses("next").await?;
    ensure!(next == former, "it has the addresses: {next:?}, {former:?}");
    for (flow, own) in flows.iter().zip(next.clone()) {
        flow.send(b"late").ok();
        // Behind a mark that is sent later, what was to come has come.
        send(
            &apart.host,
            unspecified(own),
            SocketAddr::new(own, 9000),
            "mark",
        )?;
        let first = received(&receiver).map(|it| it.0);
        ensure!(first.as_deref() == Some("mark"), "{own}: {first:?}");
    }
    // Who may come from beyond the node does so by the address itself.
    send(
        &other,
        own6.into(),
        SocketAddr::new(next[1], 9000),
        "direct",
    )?;
    let (text, from) = received(&receiver).context("what is direct")?;
    ensure!(
        (text.as_str(), from.ip()) == ("direct", own6.into()),
        "{text}, {from}"
    );
    apart.finish()
}

#[tokio::test]
async fn a_node_port_has_one_owner() -> anyhow::Result<()> {
    let apart = Apart::start(Host::new()?, "").await?;
    let Apart { node, host } = &apart;
    let port = NODE_PORT;
    let published = |text: &str, port: u16| {
        let mut spec = web(text, WEB.into());
        spec.containers[0].ports[0].node_port = port.into();
        spec
    };
    let listen = |port: u16| host.within(move || Ok(TcpListener::bind(("0.0.0.0", port))?));
    let first = published("first", port);
    node.create("first", first.clone()).await?;
    node.create("first", first.clone()).await?;
    let second = published("second", port);
    let refused = node.create("second", second.clone()).await;
    let refused = refused.err().context("it is taken")?;
    ensure!(reason(&refused) == "NODE_PORT_IN_USE", "{refused:?}");
    let details = refused.get_error_details();
    let info = details.error_info().context("details")?;
    ensure!(info.metadata["owner"] == "first", "{info:?}");
    ensure!(info.metadata["node_port"] == port.to_string(), "{info:?}");
    ensure!(node.get("second").await.is_err(), "nothing half made");
    // One that comes later is in nobody's way, and is told of.
    let told = async || {
        let degraded = node.status().await?.degraded;
        let named = format!("port {port}/tcp of the node is that of sandbox first");
        anyhow::Ok(degraded.iter().any(|it| it.contains(&named)))
    };
    ensure!(!told().await?);
    let later = listen(port)?;
    ensure!(told().await?);
    drop(later);
    ensure!(!told().await?);

    // The manager knows it also when it was away.
    node.kill_manager()?;
    node.up().await?;
    let refused = node.create("second", second.clone()).await;
    let refused = refused.err().context("it is taken")?;
    ensure!(reason(&refused) == "NODE_PORT_IN_USE", "{refused:?}");
    node.stop("first").await?;
    node.create("second", second).await?;
    let reached = host.fetch(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    ensure!(reached.as_deref() == Some("second"), "{reached:?}");

    let _program = listen(PROGRAM)?;
    let taken = published("third", PROGRAM);
    let refused = node.create("third", taken).await;
    let refused = refused.err().context("a program listens")?;
    ensure!(reason(&refused) == "NODE_PORT_IN_USE", "{refused:?}");
    let details = refused.get_error_details();
    let info = details.error_info().context("details")?;
    ensure!(!info.metadata.contains_key("owner"), "{info:?}");
    node.assert_clean().await?;
    apart.finish()
}

#[tokio::test]
async fn an_element_that_no_sandbox_explains_is_an_orphan_and_is_removed() -> anyhow::Result<()> {
    let apart = Apart::start(Host::new()?, "").await?;
    let Apart { node, host } = &apart;
    node.create("web", web("web", WEB.into())).await?;
    let table = node.table()?;
    host.run(&format!(
        "nft add element inet {table} closed {{ 192.0.2.7 }}"
    ))?;
    let audit = node.audit().await?;
    let mut elements = audit.objects.iter().filter(|it| it.kind == "nft-element");
    let orphan = elements.find(|it| it.verdict() == v1::AuditVerdict::Orphan);
    let orphan = orphan.context("it is found")?;
    ensure!(orphan.name == "inet closed c0000207", "{orphan:#?}");
    let mut own = audit.objects.iter().filter(|it| it.kind == "nft-element");
    ensure!(own.any(|it| it.sandbox == "web" && it.verdict() == v1::AuditVerdict::Explained));
    node.berth(&["audit", "--fix"])?;
    node.assert_clean().await?;
    let left = host.run(&format!("nft list set inet {table} closed"))?;
    ensure!(!left.contains("192.0.2.7"), "{left}");

    // With the last sandbox gone, all can go.
    let uninstall = || {
        let config = node.home().join("sandbox-manager.toml");
        let program = programs().join("sandbox-manager");
        host.run(&format!(
            "{} --config {} uninstall",
            program.display(),
            config.display()
        ))
    };
    ensure!(uninstall().is_err(), "a manager runs");
    node.kill_manager()?;
    // The kernel closes the files of a killed process a moment after its end.
    let refused = || async {
        let refused = uninstall().err().map(|it| it.to_string());
        refused.is_some_and(|it| it.contains("there are 1 sandboxes"))
    };
    eventually("there is a sandbox", SOON, refused).await?;
    node.up().await?;
    node.delete("web").await?;
    node.kill_manager()?;
    let done = || async { uninstall().is_ok() };
    eventually("it is uninstalled", SOON, done).await?;
    ensure!(host.run("nft list tables")?.is_empty());
    let bridges = host.run("ip -o link show type bridge")?;
    ensure!(bridges.is_empty(), "{bridges}");
    let namespaces = succeed(node.command("ctr").args(["namespaces", "ls", "-q"]))?;
    ensure!(namespaces.trim().is_empty(), "{namespaces}");
    apart.finish()
}

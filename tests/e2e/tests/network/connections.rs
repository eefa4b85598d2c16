//! What becomes of connections, with real packets: how many one sandbox opens, what is said to whom they are denied, and
//! those that were opened while nobody watched. The node is a host of its own, so that its rules can be flushed.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, EgressMode, NetworkPolicy};
use berth_e2e::{
    hosts::{Apart, Host, Place, comes_back, received},
    node::eventually,
    specs::{idle, web},
};

const SOON: Duration = Duration::from_secs(20);
const WEB: u16 = 8080;
const ECHO: u16 = 7001;
const MAX: usize = 8;

struct Scene {
    apart: Apart,
    /// Sends back what it gets. May not open connections to sandboxes.
    other: Host,
    /// Its addresses.
    v4: SocketAddr,
    v6: SocketAddr,
    /// The node's, on the way there.
    end6: Ipv6Addr,
    front: Ipv4Addr,
}

impl Scene {
    /// `front` and `back` reach everything, `closed` nothing.
    async fn start() -> anyhow::Result<Self> {
        let host = Host::new()?;
        let (other, own, _) = host.neighbour(1)?;
        let (own6, end6) = host.neighbour6(1, &other)?;
        other.echo(ECHO)?;
        let toml = format!("network.connections_max = {MAX}\nnetwork.subnet6 = \"fd00:8::/64\"\n");
        let apart = Apart::start(host, &toml).await?;
        let node = &apart.node;
        let front = node.create("front", web("front", WEB.into())).await?;
        node.create("back", idle()).await?;
        let closed = NetworkPolicy {
            egress: EgressMode::Deny.into(),
            ..NetworkPolicy::default()
        };
        let closed = v1::SandboxSpec {
            network: Some(closed),
            ..idle()
        };
        node.create("closed", closed).await?;
        let front = front.addresses.first().context("an address")?;
        let (front, _) = front.address.split_once('/').context("a prefix")?;
        Ok(Self {
            v4: (own, ECHO).into(),
            v6: (own6, ECHO).into(),
            end6,
            front: front.parse()?,
            other,
            apart,
        })
    }

    fn inside(&self, id: &str) -> Place {
        self.apart.inside(id)
    }

    /// Opens so many, alternately over IPv4 and IPv6, and returns those that came about.
    fn open(&self, id: &str, number: usize) -> Vec<TcpStream> {
        let inside = self.inside(id);
        let targets = [self.v4, self.v6].into_iter().cycle().take(number);
        targets.filter_map(|to| inside.connect(to).ok()).collect()
    }

    async fn denied(&self, id: &str) -> anyhow::Result<u64> {
        Ok(self.apart.node.denied(id).await?.packets)
    }
}

#[tokio::test]
async fn one_sandbox_opens_so_many_connections_and_takes_none_from_another() -> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let mut held = scene.open("front", MAX);
    ensure!(held.len() == MAX, "{} of {MAX}", held.len());
    let before = scene.denied("front").await?;
    ensure!(scene.open("front", 3).is_empty(), "more than {MAX}");
    ensure!(scene.denied("front").await? > before, "it is counted");
    ensure!(held.iter().all(|it| comes_back(it, "held")));
    // Nor does it ask the node more.
    let asks = scene.inside("front").udp(0)?;
    let gateway = Ipv4Addr::from(u32::from(scene.front) & 0xffff_ff00 | 1);
    let before = scene.denied("front").await?;
    asks.send_to(b"who", (gateway, 53))?;
    ensure!(
        scene.denied("front").await? > before,
        "a question to {gateway}"
    );

    let others = scene.open("back", MAX);
    ensure!(
        others.len() == MAX,
        "another one has {} of its own",
        others.len()
    );

    held.truncate(MAX - 2);
    let mut again = vec![];
    for number in 1..=2 {
        let next = async || scene.open("front", 1).pop();
        let opened = std::cell::RefCell::new(&mut again);
        let free = || async {
            let stream = next().await;
            let found = stream.is_some();
            opened.borrow_mut().extend(stream);
            found
        };
        eventually(&format!("place {number} is free"), SOON, free).await?;
    }
    ensure!(scene.open("front", 1).is_empty(), "no more than were free");
    scene.apart.finish()
}

#[tokio::test]
async fn who_is_denied_is_told_and_who_comes_from_beyond_is_not() -> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let (closed, front) = (scene.inside("closed"), scene.inside("front"));
    let refused = |from: &Place, to: SocketAddr| {
        let error = from.connect(to).err().map(|it| it.kind());
        ensure!(
            error == Some(ErrorKind::ConnectionRefused),
            "{to}: {error:?}"
        );
        Ok(())
    };
    let metadata = SocketAddr::from(([169, 254, 169, 254], 80));
    let metadata6 = SocketAddr::from(("fd00:ec2::254".parse::<IpAddr>()?, 80));
    let program = scene
        .apart
        .host
        .within(|| Ok(std::net::TcpListener::bind("[::]:0")?))?;
    let program = program.local_addr()?.port();
    let (host4, host6) = (Ipv4Addr::new(100, 64, 1, 1), scene.end6);
    let neighbour = SocketAddr::from((scene.front, WEB));
    let mut before = scene.denied("closed").await?;
    for to in [scene.v4, scene.v6, metadata, metadata6, neighbour] {
        refused(&closed, to)?;
        let counted = scene.denied("closed").await?;
        ensure!(counted == before + 1, "{to}: {counted}, {before}");
        before = counted;
    }
    for to in [
        metadata,
        metadata6,
        (host4, program).into(),
        (host6, program).into(),
    ] {
        refused(&front, to)?;
    }
    for (own, to) in [("0.0.0.0", scene.v4), ("::", scene.v6)] {
        let socket = closed.udp_at(own.parse()?, 0)?;
        socket.connect(to)?;
        socket.send(b"who")?;
        let told = socket.recv(&mut [0]).err().map(|it| it.kind());
        let expected = [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied];
        ensure!(
            told.is_some_and(|it| expected.contains(&it)),
            "{to}: {told:?}"
        );
    }
    let direct = scene.other.connect(neighbour).err().map(|it| it.kind());
    ensure!(direct == Some(ErrorKind::TimedOut), "{direct:?}");
    scene.apart.finish()
}

#[tokio::test]
async fn what_was_opened_without_rules_goes_on_only_where_they_would_have_admitted_it()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let (closed, front) = (scene.inside("closed"), scene.inside("front"));
    let held = front.connect(scene.v4)?;
    ensure!(comes_back(&held, "before"));
    let server = scene.other.udp(9000)?;

    scene.apart.lose_rules()?;
    // Nobody denies it now.
    let denied = [closed.connect(scene.v4)?, closed.connect(scene.v6)?];
    let allowed = [front.connect(scene.v4)?, front.connect(scene.v6)?];
    let direct = scene.other.connect((scene.front, WEB).into())?;
    for stream in denied.iter().chain(&allowed) {
        ensure!(comes_back(stream, "meanwhile"));
    }
    let asks = closed.udp(0)?;
    asks.connect((scene.v4.ip(), 9000))?;
    asks.send(b"who")?;
    let (_, asking) = received(&server).context("the question")?;
    server.send_to(b"soon", asking)?;
    ensure!(received(&asks).is_some());

    scene.apart.regain_rules().await?;
    ensure!(
        comes_back(&held, "behind"),
        "what was admitted before goes on"
    );
    for stream in &allowed {
        ensure!(
            comes_back(stream, "behind"),
            "what would be admitted goes on"
        );
    }
    for stream in &denied {
        ensure!(
            !comes_back(stream, "behind"),
            "what would be denied goes on"
        );
    }
    server.send_to(b"late", asking)?;
    ensure!(
        received(&asks).is_none(),
        "an answer to what would be denied"
    );
    let reads = hears_of(&direct);
    ensure!(!reads, "what comes from beyond goes on");

    scene.apart.lose_rules()?;
    scene.apart.regain_rules().await?;
    ensure!(comes_back(&held, "again"));
    ensure!(allowed.iter().all(|it| comes_back(it, "again")));
    scene.apart.finish()
}

#[tokio::test]
async fn a_node_that_was_no_router_says_that_it_is_one_and_uninstall_makes_nothing()
-> anyhow::Result<()> {
    const ROUTES: &str = "/proc/sys/net/ipv4/ip_forward";
    let host = Host::new()?;
    host.shell(&format!("echo 0 >{ROUTES}"))?;
    let apart = Apart::start(host, "").await?;
    let (node, host) = (&apart.node, &apart.host);
    let told = async || {
        let degraded = node.status().await?.degraded;
        let mut routers = degraded.iter().filter(|it| it.contains("a router"));
        let told = routers.next().is_some_and(|it| it.contains("IPv4"));
        anyhow::Ok(told)
    };
    ensure!(told().await?);
    node.kill_manager()?;
    node.up().await?;
    ensure!(told().await?, "behind a restart");

    node.kill_manager()?;
    host.shell(&format!("echo 0 >{ROUTES}"))?;
    let uninstalled = || async {
        let config = node.home().join("sandbox-manager.toml");
        let program = berth_e2e::node::programs().join("sandbox-manager");
        let mut uninstall = host.command(&program.to_string_lossy());
        uninstall.arg("--config").arg(config).arg("uninstall");
        uninstall.output().is_ok_and(|it| it.status.success())
    };
    // The kernel closes the files of a killed process a moment after its end.
    for round in ["it is uninstalled", "it is uninstalled again"] {
        eventually(round, SOON, uninstalled).await?;
        ensure!(host.run("nft list tables")?.is_empty());
        let links = host.run("ip -o link show type bridge")?;
        ensure!(links.is_empty(), "{links}");
    }
    let routes = host.shell(&format!("cat {ROUTES}"))?;
    ensure!(routes.trim() == "0", "{routes}");
    apart.finish()
}

/// Whether a web server answers on this connection.
fn hears_of(mut stream: &TcpStream) -> bool {
    use std::io::{Read as _, Write as _};
    let sent = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
    sent.is_ok() && stream.read(&mut [0]).is_ok_and(|it| it > 0)
}

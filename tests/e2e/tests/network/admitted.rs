//! What becomes of connections that were admitted, with real packets, and of those that nobody was asked about: over each way
//! that leads to a sandbox or from it, in both families. The node is a host of its own, so that its rules can be taken away.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use berth_api::v1::{self, EgressMode, EgressRule, NetworkPolicy, Protocol};
use berth_domain::Generation;
use berth_e2e::{
    hosts::{Apart, Host, Place, received, with_each},
    node::{eventually, obtained},
    packets::{Flow, Raw},
    specs::{idle, shell, spec},
};
use berth_netns::{NameSets, Opening, Owner};

const SOON: Duration = Duration::from_secs(20);
/// How long a packet that is dropped is waited for.
const PATIENCE: Duration = Duration::from_millis(600);
/// What servers listen on, in sandboxes and beyond.
const PORT: u16 = 7001;
const NODE_PORT: u16 = 30080;
/// Nobody listens there.
const SHUT: u16 = 9;
const SUBNET6: &str = "fd00:8::/64";

struct Scene {
    apart: Apart,
    /// May not open connections to sandboxes, and is reached by all but `closed`.
    far: Host,
    /// May, and is on no list.
    near: Host,
}

/// One family's addresses.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    far: IpAddr,
    near: IpAddr,
    /// The node's, as `far` knows it.
    node: IpAddr,
    /// The node's, as it knows itself.
    own: IpAddr,
    front: IpAddr,
    back: IpAddr,
}

/// A connection with both of its ends.
struct Held {
    what: String,
    opener: TcpStream,
    answerer: TcpStream,
}

/// A way on which rules admit connections: who opens them, to where, and who answers.
struct Way<'a> {
    what: &'static str,
    from: &'a Place,
    to: SocketAddr,
    server: &'a TcpListener,
    /// Whether an answer passes before its opener has been asked about.
    answers: bool,
}

/// Of each place.
struct Servers {
    far: TcpListener,
    near: TcpListener,
    front: TcpListener,
    back: TcpListener,
}

impl Scene {
    async fn start() -> anyhow::Result<(Self, TcpListener)> {
        let host = Host::new()?;
        let (beyond, far_ip, _) = host.neighbour(1)?;
        let (near, near_ip, _) = host.neighbour(2)?;
        let ((far6, _), (near6, _)) = (host.neighbour6(1, &beyond)?, host.neighbour6(2, &near)?);
        let toml = format!(
            "network.subnet6 = \"{SUBNET6}\"\nnetwork.reachable_from = [\"{near_ip}/32\", \"{near6}/128\"]\n"
        );
        let apart = Apart::start(host, &toml).await?;
        let node = &apart.node;
        let policy = |egress: EgressMode, rules: Vec<EgressRule>| NetworkPolicy {
            egress: egress.into(),
            egress_rules: rules,
            ..NetworkPolicy::default()
        };
        let to = |cidr: &str, protocol: Protocol, port: u16| EgressRule {
            cidr: cidr.to_owned(),
            protocol: protocol.into(),
            port: port.into(),
            ..EgressRule::default()
        };
        let name = EgressRule {
            dns_name: "api.example.org".to_owned(),
            ..EgressRule::default()
        };
        let far = [format!("{far_ip}/32"), format!("{far6}/128")];
        let lists = far.iter().flat_map(|it| {
            [(Protocol::Tcp, PORT), (Protocol::Udp, SHUT)]
                .map(|(protocol, port)| to(it, protocol, port))
        });
        let lists = lists.collect();
        let lets_in = NetworkPolicy {
            allow_from: vec!["app=front".to_owned()],
            ..NetworkPolicy::default()
        };
        for (id, policy) in [
            ("back", lets_in),
            ("listed", policy(EgressMode::Allow, lists)),
            ("plain", NetworkPolicy::default()),
            ("named", policy(EgressMode::Allow, vec![name])),
            ("closed", policy(EgressMode::Deny, vec![])),
        ] {
            let spec = v1::SandboxSpec {
                network: Some(policy),
                ..idle()
            };
            node.create(id, spec).await?;
        }
        let mut front = spec([shell("app", "exec sleep 3600", &[PORT.into(), PORT.into()])]);
        front.labels = [("app".to_owned(), "front".to_owned())].into();
        for (port, protocol) in front.containers[0]
            .ports
            .iter_mut()
            .zip([Protocol::Tcp, Protocol::Udp])
        {
            port.protocol = protocol.into();
            port.node_port = NODE_PORT.into();
        }
        node.accept("front", front).await?;
        // The app of the sandbox is this.
        let bound = || async {
            apart
                .inside("front")
                .udp_at(Ipv6Addr::UNSPECIFIED.into(), PORT)
        };
        let _udp = obtained("its network", SOON, bound).await?;
        let server = listen(&apart.inside("front"))?;
        let runs = || async {
            let found = node.get("front").await;
            found.is_ok_and(|it| it.status() == v1::SandboxStatus::Running)
        };
        eventually("front is RUNNING", SOON, runs).await?;
        Ok((
            Self {
                apart,
                far: beyond,
                near,
            },
            server,
        ))
    }

    async fn addresses(&self) -> anyhow::Result<[Addresses; 2]> {
        let of = async |id: &str| {
            let all = self.apart.node.addresses(id).await?;
            <[IpAddr; 2]>::try_from(all).map_err(|it| anyhow!("{id} has {it:?}"))
        };
        let ([front, front6], [back, back6]) = (of("front").await?, of("back").await?);
        let v4 = |number| Ipv4Addr::new(100, 64, number, 2).into();
        let node6 = "fd00:7:1::1".parse()?;
        Ok([
            Addresses {
                far: v4(1),
                near: v4(2),
                node: Ipv4Addr::new(100, 64, 1, 1).into(),
                own: Ipv4Addr::LOCALHOST.into(),
                front,
                back,
            },
            Addresses {
                far: "fd00:7:1::2".parse()?,
                near: "fd00:7:2::2".parse()?,
                node: node6,
                // The kernel leads nothing from ::1 to a link.
                own: node6,
                front: front6,
                back: back6,
            },
        ])
    }

    fn servers(&self, front: TcpListener) -> anyhow::Result<Servers> {
        Ok(Servers {
            far: listen(&self.far)?,
            near: listen(&self.near)?,
            front,
            back: listen(&self.apart.inside("back"))?,
        })
    }

    /// Lets `named` reach `far`, as its resolver would.
    async fn open_by_name(&self, addresses: &[Addresses; 2]) -> anyhow::Result<()> {
        let instance = std::fs::read_to_string(self.apart.node.home().join("instance"))?;
        let generation = self.apart.node.get("named").await?.generation;
        let openings = addresses.map(|it| {
            let opening = Opening {
                owner: Owner::of(Generation(generation)),
                address: it.far,
                port: None,
            };
            (opening, Duration::from_secs(600))
        });
        self.apart.host.within(move || {
            NameSets::open(instance.trim())?.place(&openings)?;
            Ok(())
        })
    }

    async fn denied(&self, id: &str) -> anyhow::Result<u64> {
        Ok(self.apart.node.denied(id).await?.packets)
    }
}

/// The places of a scene that connections are opened from.
struct Places {
    front: Place,
    back: Place,
    plain: Place,
    listed: Place,
    named: Place,
    closed: Place,
}

impl Places {
    fn of(scene: &Scene) -> Self {
        let inside = |id| scene.apart.inside(id);
        Self {
            front: inside("front"),
            back: inside("back"),
            plain: inside("plain"),
            listed: inside("listed"),
            named: inside("named"),
            closed: inside("closed"),
        }
    }

    /// All on which rules admit connections.
    #[rustfmt::skip]
    fn ways<'a>(&'a self, scene: &'a Scene, servers: &'a Servers, addresses: &[Addresses; 2]) -> Vec<Way<'a>> {
        let Servers { far, front, back, .. } = servers;
        addresses.iter().flat_map(|it| {
            let at = |ip: IpAddr, port: u16| SocketAddr::new(ip, port);
            let (by_node, by_own) = (at(it.node, NODE_PORT), at(it.own, NODE_PORT));
            [
                Way { what: "no policy",                 from: &self.front,       to: at(it.far, PORT),  server: far,   answers: true },
                Way { what: "a list",                    from: &self.listed,      to: at(it.far, PORT),  server: far,   answers: false },
                Way { what: "a name",                    from: &self.named,       to: at(it.far, PORT),  server: far,   answers: false },
                Way { what: "a node port, from beyond",  from: &scene.far,        to: by_node,           server: front, answers: true },
                Way { what: "a node port, by the node",  from: &scene.apart.host, to: by_own,            server: front, answers: true },
                Way { what: "a node port, of another",   from: &self.back,        to: by_node,           server: front, answers: true },
                Way { what: "reachable_from",            from: &scene.near,       to: at(it.back, PORT), server: back,  answers: true },
                Way { what: "the node itself",           from: &scene.apart.host, to: at(it.back, PORT), server: back,  answers: true },
                Way { what: "a label",                   from: &self.front,       to: at(it.back, PORT), server: back,  answers: false },
            ]
        }).collect()
    }
}

impl Way<'_> {
    fn open(&self) -> anyhow::Result<Held> {
        let what = format!("{} to {}", self.what, self.to);
        let opener = self.from.connect(self.to).with_context(|| what.clone())?;
        let answerer = accept(self.server).with_context(|| what.clone())?;
        for stream in [&opener, &answerer] {
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        let held = Held {
            what,
            opener,
            answerer,
        };
        ensure!(held.asks("first") && held.answers("first"), "{}", held.what);
        Ok(held)
    }
}

impl Held {
    fn asks(&self, text: &str) -> bool {
        says(&self.opener, text) && hears(&self.answerer, text)
    }

    fn answers(&self, text: &str) -> bool {
        says(&self.answerer, text) && hears(&self.opener, text)
    }

    /// What was dropped is sent again, later each time.
    fn hears_again(&self, text: &str) -> anyhow::Result<bool> {
        self.opener.set_read_timeout(Some(SOON))?;
        let heard = hears(&self.opener, text);
        self.opener.set_read_timeout(Some(PATIENCE))?;
        Ok(heard)
    }
}

fn says(mut from: &TcpStream, text: &str) -> bool {
    from.write_all(text.as_bytes()).is_ok()
}

fn hears(mut to: &TcpStream, text: &str) -> bool {
    let mut buffer = vec![0; text.len()];
    to.read_exact(&mut buffer).is_ok() && buffer == text.as_bytes()
}

/// Over both families.
fn listen(place: &Place) -> anyhow::Result<TcpListener> {
    let listener = place.within(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The other end of a connection that stands.
fn accept(listener: &TcpListener) -> anyhow::Result<TcpStream> {
    let deadline = Instant::now() + SOON;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::yield_now();
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[tokio::test]
async fn an_admitted_connection_goes_on_and_one_that_nobody_was_asked_about_is_judged()
-> anyhow::Result<()> {
    let (scene, front) = Scene::start().await?;
    let addresses = scene.addresses().await?;
    let (places, servers) = (Places::of(&scene), scene.servers(front)?);
    scene.open_by_name(&addresses).await?;
    let ways = places.ways(&scene, &servers, &addresses);
    let admitted = ways
        .iter()
        .map(Way::open)
        .collect::<anyhow::Result<Vec<_>>>()?;

    scene.apart.lose_rules()?;
    // There is nobody who denies it now: what it is, whether an answer passes before its opener has spoken, and then.
    #[rustfmt::skip]
    let unasked: Vec<_> = addresses.iter().flat_map(|it| {
        let at = |ip: IpAddr| SocketAddr::new(ip, PORT);
        let way = |what, from, to, server, answers| Way { what, from, to: at(to), server, answers };
        let Servers { far, near, front, back } = &servers;
        [
            (way("no policy",              &places.front,  it.far,   far,   true),  true),
            (way("a list",                 &places.listed, it.far,   far,   false), true),
            (way("what no list has",       &places.listed, it.near,  near,  false), false),
            // What it has opened has gone with the rules.
            (way("a name",                 &places.named,  it.far,   far,   false), false),
            (way("egress DENY",            &places.closed, it.far,   far,   false), false),
            (way("reachable_from",         &scene.near,    it.back,  back,  true),  true),
            (way("who may not from beyond", &scene.far,    it.back,  back,  false), false),
            (way("a label",                &places.front,  it.back,  back,  false), true),
            (way("another label",          &places.plain,  it.back,  back,  false), false),
            (way("no label",               &places.back,   it.front, front, false), false),
        ]
    }).collect();
    let opened = unasked
        .iter()
        .map(|(way, goes_on)| anyhow::Ok((way.open()?, way.answers, *goes_on)));
    let opened = opened.collect::<anyhow::Result<Vec<_>>>()?;
    // What a sandbox has opened to the node goes on as little as it would have come about.
    let program = scene
        .apart
        .host
        .within(|| Ok(TcpListener::bind(("::", PORT))?))?;
    program.set_nonblocking(true)?;
    let to_node: Vec<_> = addresses
        .iter()
        .map(|it| {
            let to = SocketAddr::new(it.node, PORT);
            let (from, server) = (&places.front, &program);
            Way {
                what: "the node",
                from,
                to,
                server,
                answers: false,
            }
            .open()
        })
        .collect::<anyhow::Result<_>>()?;
    scene.apart.regain_rules().await?;

    // Who answers speaks first, and nobody has to be asked.
    with_each(&admitted, |it| {
        ensure!(
            it.answers("behind") && it.asks("behind"),
            "{} goes on",
            it.what
        );
        Ok(())
    })?;
    with_each(&opened, |(it, answers, goes_on)| {
        let heard = it.answers("answer");
        ensure!(heard == *answers, "{}: an answer: {heard}", it.what);
        let asked = it.asks("question");
        ensure!(asked == *goes_on, "{} goes on: {asked}", it.what);
        ensure!(
            !asked || heard || it.hears_again("answer")?,
            "{}: the answer",
            it.what
        );
        ensure!(!asked || it.answers("more"), "{}: admitted", it.what);
        Ok(())
    })?;
    with_each(&to_node, |it| {
        ensure!(!it.asks("question"), "{} goes on", it.what);
        Ok(())
    })?;
    for way in &ways {
        let comes_about = way.open().is_ok();
        ensure!(
            comes_about == (way.what != "a name"),
            "{}: anew: {comes_about}",
            way.what
        );
    }

    // What was judged is known the next time.
    scene.apart.lose_rules()?;
    scene.apart.regain_rules().await?;
    let judged = opened.into_iter().filter(|it| it.2).map(|it| it.0);
    let all: Vec<_> = admitted.into_iter().chain(judged).collect();
    with_each(&all, |it| {
        ensure!(
            it.answers("again") && it.asks("again"),
            "{} goes on",
            it.what
        );
        Ok(())
    })?;
    scene.apart.finish()
}

/// As of versions before the mark: whoever belongs to a connection passes, and nobody takes note of who was admitted.
#[tokio::test]
async fn connections_go_on_when_their_node_gets_a_version_that_marks_them() -> anyhow::Result<()> {
    let (scene, front) = Scene::start().await?;
    let addresses = scene.addresses().await?;
    let (places, servers) = (Places::of(&scene), scene.servers(front)?);
    scene.open_by_name(&addresses).await?;
    let (node, host) = (&scene.apart.node, &scene.apart.host);
    node.kill_manager()?;
    let table = format!("inet {}", node.table()?);
    host.shell(&format!(
        "nft -f - <<'END'
        flush chain {table} admit
        add rule {table} admit accept
        insert rule {table} forward ct state established,related accept
        insert rule {table} to_node ct state established,related accept
END"
    ))?;
    let ways = places.ways(&scene, &servers, &addresses);
    let opened = ways.iter().map(|it| anyhow::Ok((it.open()?, it.answers)));
    let opened = opened.collect::<anyhow::Result<Vec<_>>>()?;
    node.up().await?;
    let rules = host.run(&format!("nft list chain {table} admit"))?;
    ensure!(rules.contains("ct mark set"), "the rules are ours: {rules}");
    with_each(&opened, |(it, answers)| {
        let heard = it.answers("answer");
        ensure!(heard == *answers, "{}: an answer: {heard}", it.what);
        ensure!(it.asks("question"), "{} goes on", it.what);
        ensure!(
            heard || it.hears_again("answer")?,
            "{}: the answer",
            it.what
        );
        Ok(())
    })?;
    scene.apart.finish()
}

/// A flow of datagrams, with a socket at each of its ends.
struct Datagrams {
    from: UdpSocket,
    to: UdpSocket,
    /// As the receiver sees it.
    flow: Flow,
}

impl Datagrams {
    fn open(from: &Place, to: &Place, at: IpAddr) -> anyhow::Result<Self> {
        let any: IpAddr = match at {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let (from, to) = (from.udp_at(any, 0)?, to.udp_at(any, 0)?);
        let at = SocketAddr::new(at, to.local_addr()?.port());
        from.connect(at)?;
        from.send(b"flow")?;
        let (_, sender) = received(&to).with_context(|| format!("a flow to {at}"))?;
        let flow = Flow {
            from: sender,
            to: at,
        };
        Ok(Self { from, to, flow })
    }

    /// Whether its opener is told that nobody is there, before a datagram that is sent behind.
    fn was_told(&self) -> anyhow::Result<bool> {
        self.to.send_to(b"mark", self.flow.from)?;
        match self.from.recv(&mut [0; 8]) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
            Err(error) => Err(error).context(format!("{:?}: the mark", self.flow)),
        }
    }
}

/// Whether who sends a datagram to where nobody listens is told.
fn is_told(from: &Place, to: SocketAddr) -> anyhow::Result<bool> {
    let socket = match to {
        SocketAddr::V4(_) => from.udp(0)?,
        SocketAddr::V6(_) => from.udp_at(Ipv6Addr::UNSPECIFIED.into(), 0)?,
    };
    socket.connect(to)?;
    socket.send(b"who")?;
    let told = socket.recv(&mut [0]).err().map(|it| it.kind());
    Ok(told == Some(ErrorKind::ConnectionRefused))
}

#[tokio::test]
async fn an_icmp_error_passes_about_a_connection_that_leads_to_its_sender_and_no_other()
-> anyhow::Result<()> {
    let (scene, server) = Scene::start().await?;
    drop(server);
    let addresses = scene.addresses().await?;
    let places = Places::of(&scene);
    let host = &scene.apart.host;
    for it in &addresses {
        let at = |ip: IpAddr, port: u16| SocketAddr::new(ip, port);
        for (what, from, to) in [
            ("from beyond", &places.front, at(it.far, SHUT)),
            (
                "from beyond, to one with a list",
                &places.listed,
                at(it.far, SHUT),
            ),
            ("of a node port", &scene.far, at(it.node, NODE_PORT)),
            ("to the node", host, at(it.back, SHUT)),
            (
                "to who may come from beyond",
                &scene.near,
                at(it.back, SHUT),
            ),
            (
                "to a sandbox that is let in",
                &places.front,
                at(it.back, SHUT),
            ),
        ] {
            ensure!(is_told(from, to)?, "{what}: {to}");
        }
    }

    // A way that gets narrower beyond the node.
    let longest = |from: &Place, to: IpAddr| from.run(&format!("ip route get {to}"));
    let v4 = addresses[0];
    let narrow = Datagrams::open(&places.front, &scene.far, v4.far)?;
    let IpAddr::V4(node) = narrow.flow.from.ip() else {
        return Err(anyhow!("{:?}", narrow.flow));
    };
    ensure!(IpAddr::V4(node) == v4.node, "it is masqueraded");
    Raw::icmp(&scene.far)?.say_too_big(node, narrow.flow, 1300)?;
    let known = || async { longest(&places.front, v4.far).is_ok_and(|it| it.contains("mtu 1300")) };
    eventually("the sandbox knows that the way is narrow", SOON, known).await?;

    // Who has no part in a connection says nothing about it.
    let lies = |it: &Addresses| -> anyhow::Result<Vec<(&'static str, Datagrams)>> {
        let raw = |place: &Place| match it.far {
            IpAddr::V4(_) => Raw::icmp(place),
            IpAddr::V6(_) => Raw::icmp6(place),
        };
        // Not as it is known beyond the node.
        let direct = Datagrams::open(&places.front, &scene.far, it.far)?;
        let own = SocketAddr::new(it.front, direct.from.local_addr()?.port());
        let flow = Flow {
            from: own,
            ..direct.flow
        };
        raw(&scene.far)?.say_port_unreachable(it.front, flow)?;
        let of_front = Datagrams::open(&scene.near, &places.front, it.front)?;
        raw(&places.back)?.say_port_unreachable(it.near, of_front.flow)?;
        let of_node = Datagrams::open(host, &scene.far, it.far)?;
        raw(&places.back)?.say_port_unreachable(it.node, of_node.flow)?;
        Ok(vec![
            ("from beyond, of an address that is not masqueraded", direct),
            ("of another sandbox", of_front),
            ("of the node", of_node),
        ])
    };
    for it in &addresses {
        let before = scene.denied("back").await?;
        for (what, flow) in lies(it)? {
            ensure!(!flow.was_told()?, "{what}: {:?}", flow.flow);
        }
        let denied = scene.denied("back").await? - before;
        ensure!(denied == 2, "{denied} are counted");
    }
    // What keeps them away are the rules alone.
    scene.apart.lose_rules()?;
    for it in &addresses {
        for (what, flow) in lies(it)? {
            ensure!(flow.was_told()?, "without rules, {what}: {:?}", flow.flow);
        }
    }
    scene.apart.regain_rules().await?;
    for it in &addresses {
        for (what, flow) in lies(it)? {
            ensure!(!flow.was_told()?, "behind, {what}: {:?}", flow.flow);
        }
    }
    scene.apart.finish()
}

#[tokio::test]
async fn a_segment_out_of_the_window_is_dropped_and_a_denied_node_port_says_no()
-> anyhow::Result<()> {
    let (scene, front) = Scene::start().await?;
    let addresses = scene.addresses().await?;
    let (places, servers) = (Places::of(&scene), scene.servers(front)?);
    for it in &addresses {
        let by_node = SocketAddr::new(it.node, NODE_PORT);
        let refused = places.closed.connect(by_node).err().map(|it| it.kind());
        ensure!(
            refused == Some(ErrorKind::ConnectionRefused),
            "{by_node}: {refused:?}"
        );
        let socket = match it.node {
            IpAddr::V4(_) => places.closed.udp(0)?,
            IpAddr::V6(_) => places.closed.udp_at(Ipv6Addr::UNSPECIFIED.into(), 0)?,
        };
        socket.connect(by_node)?;
        socket.send(b"who")?;
        let told = socket.recv(&mut [0]).err().map(|it| it.kind());
        let expected = [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied];
        ensure!(
            told.is_some_and(|it| expected.contains(&it)),
            "{by_node}: {told:?}"
        );
    }

    let sees = Raw::tcp(&scene.far)?;
    let to = SocketAddr::new(addresses[0].far, PORT);
    let (from, server) = (&places.front, &servers.far);
    let held = Way {
        what: "no policy",
        from,
        to,
        server,
        answers: true,
    }
    .open()?;
    ensure!(held.asks("where it is"));
    let next = sees.sequence_of("where it is").context("its own segment")?;
    let (SocketAddr::V4(own), SocketAddr::V4(to)) = (held.opener.local_addr()?, to) else {
        return Err(anyhow!("both are of IPv4"));
    };
    let sends = Raw::tcp(&places.front)?;
    let stray = |text: &str| sends.segment(own, to, next.wrapping_add(1 << 30), text);
    let before = scene.denied("front").await?;
    stray("stray one")?;
    ensure!(
        held.asks("behind it") && held.answers("behind it"),
        "it goes on"
    );
    ensure!(sees.sequence_of("stray one").is_none(), "it has arrived");
    ensure!(scene.denied("front").await? == before + 1, "it is counted");

    scene.apart.lose_rules()?;
    stray("stray two")?;
    ensure!(held.asks("behind it"), "it goes on");
    ensure!(
        sees.sequence_of("stray two").is_some(),
        "without rules it arrives"
    );
    scene.apart.regain_rules().await?;
    stray("stray three")?;
    ensure!(held.asks("behind it"), "it goes on");
    ensure!(
        sees.sequence_of("stray three").is_none(),
        "behind them it has arrived"
    );
    scene.apart.finish()
}

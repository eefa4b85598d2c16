//! IPv6 beside IPv4, with real packets: what reaches what where the node has a subnet of it, and that nothing does where it
//! has none.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use berth_api::v1::{
    self, EgressMode, EgressRule, NetworkPolicy, Protocol,
    catalog_service_client::CatalogServiceClient, entry::Object,
};
use berth_e2e::{
    TestNode,
    node::{eventually, obtained, succeed},
    specs::{idle, shell, spec, web},
};
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use rustix::{
    net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket, sockopt},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

const SOON: Duration = Duration::from_secs(20);
/// How long a packet that is dropped is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const WEB: u16 = 8080;
const DNS: u16 = 53;
/// Where every sandbox finds the node.
const NEXT_HOP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A prefix of unique local addresses that no other node of a test has: /64 with this number of the subnet.
fn prefix(home: &Path, subnet: u16) -> Ipv6Addr {
    let hash = home
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    let pair = |a, b| u16::from_be_bytes([a, b]);
    Ipv6Addr::new(pair(0xfd, a), pair(b, c), pair(d, e), subnet, 0, 0, 0, 0)
}

fn at_end(prefix: Ipv6Addr, last: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(prefix) | u128::from(last))
}

/// Does `work` on a thread that is in the network of this file, and ends there.
fn within<T: Send + 'static>(
    namespace: &Path,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let namespace = fs::File::open(namespace)?;
    let thread = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    });
    thread.join().map_err(|_| anyhow!("the thread panicked"))?
}

/// What a web server answers.
fn fetch(to: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some(body.trim().to_owned())
}

fn fetch_within(namespace: &Path, to: SocketAddr) -> Option<String> {
    within(namespace, move || Ok(fetch(to))).ok()?
}

fn udp_in(namespace: &Path, own: IpAddr, port: u16) -> anyhow::Result<UdpSocket> {
    let socket = within(namespace, move || Ok(UdpSocket::bind((own, port))?))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// What comes, and who it is from.
fn received(socket: &UdpSocket) -> Option<(String, IpAddr)> {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Some((text, from.ip()))
}

fn ip(line: &str) -> anyhow::Result<String> {
    succeed(Command::new("ip").args(line.split_whitespace()))
}

/// A host beside the node, with two web servers.
struct Client {
    name: String,
    own: Ipv6Addr,
    /// The node's end.
    node: Ipv6Addr,
    servers: Vec<Child>,
}

impl Client {
    const SERVED: u16 = 7001;
    const ALSO_SERVED: u16 = 7002;

    fn beside(node: &TestNode) -> anyhow::Result<Self> {
        let instance = fs::read_to_string(node.home().join("instance"))?;
        let instance = instance.trim();
        let prefix = prefix(node.home(), 1);
        let (end, own) = (at_end(prefix, 1), at_end(prefix, 2));
        let (name, outside) = (format!("berth-client-{instance}"), format!("bc{instance}"));
        let mut client = Self {
            name: name.clone(),
            own,
            node: end,
            servers: vec![],
        };
        for line in [
            format!("netns add {name}"),
            format!("link add {outside} type veth peer name client0 netns {name}"),
            format!("addr add {end}/64 dev {outside} nodad"),
            format!("link set {outside} up"),
            format!("-n {name} addr add {own}/64 dev client0 nodad"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link set client0 up"),
            format!("-n {name} route add default via {end}"),
        ] {
            ip(&line)?;
        }
        let home = node.home().join("client");
        fs::create_dir_all(&home)?;
        fs::write(home.join("index.html"), "client\n")?;
        for port in [Self::SERVED, Self::ALSO_SERVED] {
            let mut server = Command::new("ip");
            server.args(["netns", "exec", &name, "busybox", "httpd", "-f", "-p"]);
            server.arg(format!("[::]:{port}")).arg("-h").arg(&home);
            client.servers.push(server.stdin(Stdio::null()).spawn()?);
        }
        Ok(client)
    }

    fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = ip(&format!("netns delete {}", self.name));
    }
}

/// A port that nobody has at this moment.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("[::]:0")?.local_addr()?.port())
}

fn pin(node: &TestNode, id: &str) -> PathBuf {
    node.home().join("run/ns").join(id).join("net")
}

/// Its addresses without their prefix lengths.
async fn addresses(node: &TestNode, id: &str) -> anyhow::Result<Vec<IpAddr>> {
    let sandbox = node.get(id).await?;
    let bare = |it: &v1::NetworkAddress| it.address.split('/').next().map(str::to_owned);
    let bare = sandbox.addresses.iter().filter_map(bare);
    Ok(bare.map(|it| it.parse()).collect::<Result<_, _>>()?)
}

async fn address6(node: &TestNode, id: &str) -> anyhow::Result<Ipv6Addr> {
    match addresses(node, id).await?.as_slice() {
        [IpAddr::V4(_), IpAddr::V6(it)] => Ok(*it),
        other => Err(anyhow!("{id} has {other:?}")),
    }
}

async fn denied(node: &TestNode, id: &str) -> anyhow::Result<v1::DeniedTraffic> {
    let request = v1::SnapshotRequest { id: id.into() };
    let snapshot = node.sandboxes().snapshot(request).await?.into_inner();
    snapshot.denied.context("it counts")
}

fn listing(cidr: String, port: u16) -> NetworkPolicy {
    NetworkPolicy {
        egress: EgressMode::Allow.into(),
        egress_rules: vec![EgressRule {
            cidr,
            port: port.into(),
            ..EgressRule::default()
        }],
        ..NetworkPolicy::default()
    }
}

fn with(policy: NetworkPolicy, spec: v1::SandboxSpec) -> v1::SandboxSpec {
    v1::SandboxSpec {
        network: Some(policy),
        ..spec
    }
}

/// Asks the node over UDP from the network of this file.
fn ask(
    namespace: &Path,
    server: Ipv6Addr,
    name: &str,
    kind: RecordType,
) -> anyhow::Result<(ResponseCode, Vec<String>)> {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name)?, kind));
    let packet = query.to_vec()?;
    let answer = within(namespace, move || {
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

struct Scene {
    node: TestNode,
    client: Client,
    node_port: u16,
    /// A program of the node.
    program: TcpListener,
    front: Ipv6Addr,
    back: Ipv6Addr,
    gateway: Ipv6Addr,
}

impl Scene {
    async fn start() -> anyhow::Result<Self> {
        let home = TestNode::new_home()?;
        let subnet6 = format!("{}/64", prefix(home.path(), 0));
        let toml = format!("network.subnet6 = \"{subnet6}\"\n");
        let node = TestNode::start_in(home, &toml, &[]).await?;
        let client = Client::beside(&node)?;
        let node_port = free_port()?;
        put_app(&node).await?;

        let mut front = web("front", WEB.into());
        front.containers[0].ports[0].node_port = node_port.into();
        front.labels = [("app".to_owned(), "front".to_owned())].into();
        front.version = "a-1".to_owned();
        node.create("front", front).await?;
        let lets_in_front = NetworkPolicy {
            allow_from: vec!["app=front".into()],
            ..NetworkPolicy::default()
        };
        let mut back = with(lets_in_front, web("back", WEB.into()));
        back.version = "a-1".to_owned();
        node.create("back", back).await?;
        let closed = NetworkPolicy {
            egress: EgressMode::Deny.into(),
            ..NetworkPolicy::default()
        };
        node.create("closed", with(closed, idle())).await?;
        // A length that is put as several networks.
        let list = Ipv6Addr::from(u128::from(client.own) & (u128::MAX << 3));
        let listed = listing(format!("{list}/125"), Client::SERVED);
        node.create("listed", with(listed, idle())).await?;
        let only_four = listing("0.0.0.0/0".into(), 0);
        node.create("only-four", with(only_four, idle())).await?;
        let gateway = match addresses(&node, "front").await?[0] {
            IpAddr::V4(it) => u32::from(it) & 0xffff_ff00 | 1,
            IpAddr::V6(it) => return Err(anyhow!("{it} is first")),
        };
        Ok(Self {
            front: address6(&node, "front").await?,
            back: address6(&node, "back").await?,
            gateway: at_end(prefix(node.home(), 0), gateway),
            program: TcpListener::bind("[::]:0")?,
            node,
            client,
            node_port,
        })
    }

    /// Sends every kind of packet, and fails at the first that arrives where it must not, or does not where it must.
    fn probe(&self, when: &str) -> anyhow::Result<()> {
        let Self {
            node,
            client,
            node_port,
            program,
            front,
            back,
            gateway,
        } = self;
        let at = |ip: Ipv6Addr, port: u16| SocketAddr::from((ip, port));
        let from = |id: &str, to: SocketAddr| fetch_within(&pin(node, id), to);
        let from_client = |to: SocketAddr| fetch_within(&client.namespace(), to);
        let by_host = at(client.node, *node_port);
        let served = at(client.own, Client::SERVED);
        let other = at(client.own, Client::ALSO_SERVED);
        let program = program.local_addr()?.port();

        #[rustfmt::skip]
        let passes = [
            ("a node port, from another host",           from_client(by_host),             "front"),
            ("a node port, by the node's address",       fetch(by_host),                   "front"),
            ("a node port, by the gateway",              fetch(at(*gateway, *node_port)),  "front"),
            ("a node port, from a sandbox",              from("back", by_host),            "front"),
            ("a node port, from its own sandbox",        from("front", by_host),           "front"),
            ("a sandbox, from the node",                 fetch(at(*front, WEB)),           "front"),
            ("a sandbox that lets in",                   from("front", at(*back, WEB)),    "back"),
            ("another host, from a sandbox",             from("front", served),            "client"),
            ("another port of it",                       from("front", other),             "client"),
            ("what the list allows",                     from("listed", served),           "client"),
        ];
        for (what, got, expected) in passes {
            ensure!(
                got.as_deref() == Some(expected),
                "{when}: {what} gives {got:?}"
            );
        }
        let gateway = *gateway;
        let ping = format!("busybox ping6 -c 1 -W 1 {gateway}");
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", pin(node, "front").display()));
        let ping = nsenter.args(ping.split_whitespace()).output()?;
        ensure!(ping.status.success(), "{when}: the gateway answers");

        #[rustfmt::skip]
        let blocked = [
            ("a sandbox, from another host",    from_client(at(*front, WEB))),
            ("a sandbox, from another",         from("back", at(*front, WEB))),
            ("a sandbox, from a listed one",    from("listed", at(*back, WEB))),
            ("another host, from a closed one", from("closed", served)),
            ("a node port, from a closed one",  from("closed", by_host)),
            ("what the list does not have",     from("listed", other)),
            ("a list of IPv4 alone",            from("only-four", served)),
        ];
        for (what, got) in blocked {
            ensure!(got.is_none(), "{when}: {what} gives {got:?}");
        }
        for ip in [gateway, client.node] {
            let connects =
                move || Ok(TcpStream::connect_timeout(&at(ip, program), PATIENCE).is_ok());
            let connects = within(&pin(node, "front"), connects)?;
            ensure!(!connects, "{when}: a program of the node at {ip}");
        }
        // By its link a sandbox finds the node, and nothing on it.
        let connects = within(&pin(node, "front"), move || {
            let scope = fs::read_to_string("/proc/thread-self/net/if_inet6")?;
            let own = scope.lines().find(|it| it.ends_with("eth0"));
            let index = own.and_then(|it| it.split_whitespace().nth(1));
            let index = u32::from_str_radix(index.context("eth0 has addresses")?, 16)?;
            let to = SocketAddrV6::new(NEXT_HOP, program, 0, index);
            Ok(TcpStream::connect_timeout(&to.into(), PATIENCE).is_ok())
        })?;
        ensure!(!connects, "{when}: a program of the node, by its link");
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        drop(self.client);
        self.node.finish()
    }
}

#[tokio::test]
async fn what_must_pass_over_ipv6_passes_and_what_must_not_does_not_whatever_is_killed_or_flushed()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let Scene { node, .. } = &scene;
    scene.probe("at first")?;
    let before = denied(node, "closed").await?;
    ensure!(
        before.packets > 0 && before.spoofed_packets == 0,
        "{before:?}"
    );
    ensure!(denied(node, "listed").await?.packets > 0);
    ensure!(denied(node, "only-four").await?.packets > 0);

    scene.node.kill_manager()?;
    scene.probe("without a manager")?;
    scene.node.up().await?;
    ensure!(denied(node, "closed").await?.packets >= before.packets);
    scene.probe("behind a restart of the manager")?;

    // Only our own: others run tests on this host.
    let instance = fs::read_to_string(node.home().join("instance"))?;
    let table = format!("berth-{}", instance.trim());
    for spoil in [
        format!("flush table inet {table}"),
        format!("flush set inet {table} sources6"),
        format!("flush map inet {table} node_ports6"),
    ] {
        succeed(Command::new("nft").args(spoil.split_whitespace()))?;
        let whole = || async { scene.probe("soon").is_ok() };
        eventually(&spoil, SOON, whole).await?;
    }

    let front = scene.front.to_string();
    ensure!(node.berth(&["get", "front"])?.contains(&front));
    ensure!(node.berth(&["ls"])?.contains(&front));
    ensure!(
        node.berth(&["net", "ls"])?
            .contains(&format!("{}/64", prefix(node.home(), 0)))
    );
    let leases = node.berth(&["net", "leases", "-o", "json"])?;
    ensure!(leases.contains(&front), "{leases}");
    node.assert_clean().await?;
    node.delete("front").await?;
    let gone = SocketAddr::from((scene.client.node, scene.node_port));
    ensure!(fetch_within(&scene.client.namespace(), gone).is_none());
    scene.finish()
}

#[tokio::test]
async fn names_lead_to_ipv6_addresses_and_are_asked_for_over_ipv6() -> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let Scene { node, gateway, .. } = &scene;
    let front = scene.front.to_string();
    let back = pin(node, "back");
    let found = || async {
        let answer = ask(&back, *gateway, "web.app.berth.", RecordType::AAAA);
        answer.is_ok_and(|(_, texts)| texts == [front.clone()])
    };
    eventually("the service is found", SOON, found).await?;
    let digits = format!("{:032x}", u128::from(scene.front));
    let digits: Vec<_> = digits.chars().rev().map(String::from).collect();
    let reverse = format!("{}.ip6.arpa.", digits.join("."));
    let (code, names) = ask(&back, *gateway, &reverse, RecordType::PTR)?;
    ensure!(
        code == ResponseCode::NoError && names == ["web.app.berth."],
        "{names:?}"
    );
    // Of another app, or of none: it is known by this address as by the other.
    let (code, names) = ask(
        &pin(node, "listed"),
        *gateway,
        "web.app.berth.",
        RecordType::AAAA,
    )?;
    ensure!(
        code == ResponseCode::NoError && names.is_empty(),
        "{names:?}"
    );
    let endpoints = node.berth(&["catalog", "endpoints", "--app", "a"])?;
    ensure!(endpoints.contains(&front), "{endpoints}");
    scene.finish()
}

#[tokio::test]
async fn nothing_is_sent_over_ipv6_in_the_name_of_another() -> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let Scene { node, client, .. } = &scene;
    let (front, to) = (pin(node, "front"), (client.own, 9000));
    let receiver = udp_in(&client.namespace(), Ipv6Addr::UNSPECIFIED.into(), 9000)?;
    let sends = |from: Ipv6Addr, text: &'static str| {
        within(&front, move || {
            UdpSocket::bind((from, 0))?.send_to(text.as_bytes(), to)?;
            Ok(())
        })
    };
    sends(scene.front, "own")?;
    // Unique local: beyond the node nobody knows it.
    let own = received(&receiver).context("in its own name")?;
    ensure!(own == ("own".to_owned(), client.node.into()), "{own:?}");
    let before = denied(node, "front").await?;
    ensure!(before.spoofed_packets == 0, "{before:?}");

    let other = scene.back;
    let within_front = |line: &str| {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", front.display()));
        succeed(nsenter.args(line.split_whitespace()))
    };
    within_front(&format!("ip addr add {other}/128 dev eth0 nodad"))?;
    sends(other, "spoofed")?;
    sends(scene.front, "mark")?;
    let first = received(&receiver).map(|(text, _)| text);
    ensure!(
        first.as_deref() == Some("mark"),
        "{first:?} is the first to arrive"
    );
    let spoofed = denied(node, "front").await?;
    ensure!(spoofed.spoofed_packets == 1, "{spoofed:?}");
    within_front(&format!("ip addr del {other}/128 dev eth0"))?;

    // A router that is none, in the name of the sandbox's own link-local address, and metadata.
    let packets = denied(node, "front").await?.packets;
    within(&front, move || {
        let raw = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6))?;
        sockopt::set_ipv6_multicast_hops(&raw, 255)?;
        let advertisement = [134, 0, 0, 0, 64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let name = "/proc/thread-self/net/if_inet6";
        let own = fs::read_to_string(name)?;
        let own = own.lines().find(|it| it.ends_with("eth0"));
        let index = own.and_then(|it| it.split_whitespace().nth(1));
        let index = u32::from_str_radix(index.context("eth0 has addresses")?, 16)?;
        let to = SocketAddrV6::new(all_nodes, 0, 0, index);
        sendto(&raw, &advertisement, SendFlags::empty(), &to)?;
        Ok(())
    })?;
    let counted = denied(node, "front").await?.packets;
    ensure!(
        counted == packets + 1,
        "a router's advertisement: {counted}, {packets}"
    );
    for metadata in [
        "fd00:ec2::254",
        "fd20:ce::254",
        "2002:7f00:1::1",
        "64:ff9b::a9fe:a9fe",
    ] {
        let packets = denied(node, "front").await?.packets;
        let metadata: Ipv6Addr = metadata.parse()?;
        within(&front, move || {
            UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?.send_to(b"who", (metadata, 80))?;
            Ok(())
        })?;
        let counted = denied(node, "front").await?.packets;
        ensure!(counted == packets + 1, "{metadata}: {counted}, {packets}");
    }
    scene.finish()
}

#[tokio::test]
async fn a_flow_over_ipv6_to_a_sandbox_that_is_gone_does_not_reach_the_next_owner_of_its_address()
-> anyhow::Result<()> {
    let home = TestNode::new_home()?;
    let subnet6 = prefix(home.path(), 0);
    let client_net = prefix(home.path(), 1);
    let toml = format!(
        "network.subnet6 = \"{subnet6}/64\"\nnetwork.cool_down = \"0s\"\n\
         network.reachable_from = [\"{client_net}/64\"]\n"
    );
    let node = TestNode::start_in(home, &toml, &[]).await?;
    let client = Client::beside(&node)?;
    let node_port = UdpSocket::bind("[::]:0")?.local_addr()?.port();
    let listens = |node_port: u16| {
        let mut it = spec([shell("app", "exec sleep 3600", &[9000])]);
        it.containers[0].ports[0].protocol = Protocol::Udp.into();
        it.containers[0].ports[0].node_port = node_port.into();
        it
    };
    let any = Ipv6Addr::UNSPECIFIED.into();
    // The app of the sandbox is its receiver here.
    let create = async |id: &str, spec| {
        node.accept(id, spec).await?;
        let bound = || async { udp_in(&pin(&node, id), any, 9000) };
        let receiver = obtained("its network", SOON, bound).await?;
        let runs = || async {
            let found = node.get(id).await;
            found.is_ok_and(|it| it.status() == v1::SandboxStatus::Running)
        };
        eventually("its port is bound", SOON, runs).await?;
        anyhow::Ok(receiver)
    };
    let receiver = create("former", listens(node_port)).await?;
    let former = address6(&node, "former").await?;
    let flow = udp_in(&client.namespace(), any, 0)?;
    flow.connect((client.node, node_port))?;
    let arrives = || async { flow.send(b"flow").is_ok() && received(&receiver).is_some() };
    eventually("the flow arrives", SOON, arrives).await?;
    drop(receiver);

    node.delete("former").await?;
    let receiver = create("next", listens(0)).await?;
    let next = address6(&node, "next").await?;
    ensure!(next == former, "it has the address: {next}, {former}");
    flow.send(b"late").ok();
    // Behind a mark that is sent later, what was to come has come.
    let marks = UdpSocket::bind("[::]:0")?;
    marks.send_to(b"mark", (next, 9000))?;
    let first = received(&receiver).map(|(text, _)| text);
    ensure!(first.as_deref() == Some("mark"), "{first:?}");
    // Who may come from beyond the node does so by the address itself.
    let direct = udp_in(&client.namespace(), any, 0)?;
    direct.send_to(b"direct", (next, 9000))?;
    let got = received(&receiver);
    ensure!(
        got == Some(("direct".to_owned(), client.own.into())),
        "{got:?}"
    );
    drop(client);
    node.finish()
}

#[tokio::test]
async fn without_a_subnet_of_it_no_packet_of_ipv6_leaves_a_sandbox() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", web("web", WEB.into())).await?;
    ensure!(addresses(&node, "web").await?.len() == 1);
    let front = pin(&node, "web");
    // What the sandbox could do with the rights of the node: addresses and routes as they would be.
    let prefix = prefix(node.home(), 0);
    let (own, end) = (at_end(prefix, 2), at_end(prefix, 1));
    let links = ip("-o link show")?;
    let instance = fs::read_to_string(node.home().join("instance"))?;
    let alias = format!("berth {}", instance.trim());
    let outside = links
        .lines()
        .filter(|it| it.contains(&alias) && it.contains(": bt"))
        .find_map(|it| it.split(": ").nth(1)?.split('@').next())
        .context("the node's end of the link")?;
    ip(&format!("addr add {end}/64 dev {outside} nodad"))?;
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", front.display()));
    let add = format!("ip addr add {own}/64 dev eth0 nodad");
    succeed(nsenter.args(add.split_whitespace()))?;
    // What it would have to ask the node for, it knows.
    let hardware = fs::read_to_string(format!("/sys/class/net/{outside}/address"))?;
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", front.display()));
    let add = format!("ip neigh add {end} lladdr {} dev eth0", hardware.trim());
    succeed(nsenter.args(add.split_whitespace()))?;
    let receiver = UdpSocket::bind((end, 0))?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    let port = receiver.local_addr()?.port();
    let send = || {
        within(&front, move || {
            UdpSocket::bind((own, 0))?.send_to(b"six", (end, port))?;
            Ok(())
        })
    };
    send()?;
    let got = received(&receiver);
    ensure!(got.is_none(), "{got:?} arrived");

    // And beyond the node, which somebody else has made a router.
    let client = Client::beside(&node)?;
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", front.display()));
    let add = format!("ip route add default via {end}");
    succeed(nsenter.args(add.split_whitespace()))?;
    let any = Ipv6Addr::UNSPECIFIED.into();
    let receiver = udp_in(&client.namespace(), any, 9000)?;
    let to = (client.own, 9000);
    within(&front, move || {
        UdpSocket::bind((own, 0))?.send_to(b"six", to)?;
        Ok(())
    })?;
    UdpSocket::bind((client.node, 0))?.send_to(b"mark", to)?;
    let first = received(&receiver).map(|(text, _)| text);
    ensure!(first.as_deref() == Some("mark"), "{first:?} arrived");
    drop(client);
    node.finish()
}

#[tokio::test]
async fn a_sandbox_keeps_the_addresses_it_was_admitted_with_and_a_subnet_in_use_stays()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let subnet6 = prefix(node.home(), 0);
    node.create("old", web("old", WEB.into())).await?;
    let before = addresses(&node, "old").await?;
    let configure = |text: &str| fs::write(node.home().join("extra.toml"), text);
    node.kill_manager()?;
    configure(&format!("network.subnet6 = \"{subnet6}/64\"\n"))?;
    node.up().await?;
    ensure!(
        addresses(&node, "old").await? == before,
        "it keeps what it has"
    );
    node.create("new", web("new", WEB.into())).await?;
    let new = address6(&node, "new").await?;
    let [IpAddr::V4(old)] = before.as_slice() else {
        return Err(anyhow!("{before:?}"));
    };
    ensure!(fetch((*old, WEB).into()).as_deref() == Some("old"));
    ensure!(fetch((new, WEB).into()).as_deref() == Some("new"));
    node.assert_clean().await?;

    node.kill_manager()?;
    let config = node.home().join("sandbox-manager.toml");
    let text = fs::read_to_string(&config)?;
    let without: Vec<_> = text.lines().filter(|it| !it.contains("subnet6")).collect();
    let elsewhere = node.home().join("without.toml");
    fs::write(&elsewhere, without.join("\n"))?;
    let refused = || async {
        let mut manager = node.command("sandbox-manager");
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
    ensure!(fetch((new, WEB).into()).as_deref() == Some("new"));
    node.finish()
}

#[tokio::test]
async fn what_leads_to_a_sandbox_over_ipv6_comes_back() -> anyhow::Result<()> {
    let home = TestNode::new_home()?;
    let toml = format!("network.subnet6 = \"{}/64\"\n", prefix(home.path(), 0));
    let node = TestNode::start_in(home, &toml, &[]).await?;
    let sandbox = node.create("web", web("hello", WEB.into())).await?;
    let own = sandbox.addresses.get(1).context("an IPv6 address")?;
    let (own, _) = own.address.split_once('/').context("a prefix")?;
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
    node.finish()
}

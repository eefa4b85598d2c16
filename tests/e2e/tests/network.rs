//! What reaches what, with real packets: a client host, the node and its sandboxes, each in a network namespace of its own.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use berth_api::v1::{self, EgressMode, EgressRule, NetworkPolicy, Protocol};
use berth_e2e::{
    TestNode,
    node::{eventually, obtained, succeed},
    specs::{idle, shell, spec, web},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tonic_types::StatusExt as _;

const SOON: Duration = Duration::from_secs(10);
/// How long a packet that is dropped is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const WEB: u16 = 8080;

/// A host beside the node, with two web servers.
struct Client {
    name: String,
    /// Its address, and that of the node's end.
    own: Ipv4Addr,
    node: Ipv4Addr,
    servers: Vec<Child>,
}

impl Client {
    const SERVED: u16 = 7001;
    const ALSO_SERVED: u16 = 7002;

    fn beside(node: &TestNode) -> anyhow::Result<Self> {
        let instance = fs::read_to_string(node.home().join("instance"))?;
        let number = u32::from_str_radix(instance.trim(), 16).context("six hex digits")?;
        // Shared address space (RFC 6598): no host of a test has business there.
        let base = u32::from(Ipv4Addr::new(100, 64, 0, 0)) + (number % (1 << 20)) * 4;
        let (own, end) = (Ipv4Addr::from(base + 2), Ipv4Addr::from(base + 1));
        let name = format!("berth-client-{}", instance.trim());
        let (outside, inside) = (format!("bc{}", instance.trim()), "client0");
        let mut client = Self {
            name: name.clone(),
            own,
            node: end,
            servers: vec![],
        };
        ip(&format!("netns add {name}"))?;
        ip(&format!(
            "link add {outside} type veth peer name {inside} netns {name}"
        ))?;
        ip(&format!("addr add {end}/30 dev {outside}"))?;
        ip(&format!("link set {outside} up"))?;
        ip(&format!("-n {name} addr add {own}/30 dev {inside}"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} link set {inside} up"))?;
        ip(&format!("-n {name} route add default via {end}"))?;
        let home = node.home().join("client");
        fs::create_dir_all(&home)?;
        fs::write(home.join("index.html"), "client\n")?;
        for port in [Self::SERVED, Self::ALSO_SERVED] {
            let mut server = client.command("busybox httpd -f -p");
            server.arg(port.to_string()).arg("-h").arg(&home);
            client.servers.push(server.stdin(Stdio::null()).spawn()?);
        }
        Ok(client)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]);
        command.args(line.split_whitespace());
        command
    }

    fn fetch(&self, to: SocketAddr) -> Option<String> {
        answer(self.command(&connect(to)))
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

fn ip(line: &str) -> anyhow::Result<String> {
    succeed(Command::new("ip").args(line.split_whitespace()))
}

/// A line that connects: it waits a second for that, and three for all.
fn connect(to: SocketAddr) -> String {
    format!("timeout 3 busybox nc -w 1 {} {}", to.ip(), to.port())
}

const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// What a web server answers to whom this command connects.
fn answer(mut command: Command) -> Option<String> {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut nc = command.spawn().ok()?;
    // Nobody reads it where there is no connection.
    let _ = nc.stdin.take()?.write_all(REQUEST);
    let output = nc.wait_with_output().ok()?;
    body(&String::from_utf8_lossy(&output.stdout))
}

fn body(answer: &str) -> Option<String> {
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some(body.trim().to_owned())
}

/// What the node gets from a web server.
fn fetch(to: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(REQUEST).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    body(&answer)
}

/// A command in the network of a sandbox, with the rights of the node.
fn within(node: &TestNode, id: &str, line: &str) -> Command {
    let mut command = Command::new("nsenter");
    let pin = node.home().join("run/ns").join(id).join("net");
    command.arg(format!("--net={}", pin.display()));
    command.args(line.split_whitespace());
    command
}

fn fetch_within(node: &TestNode, id: &str, to: SocketAddr) -> Option<String> {
    answer(within(node, id, &connect(to)))
}

/// A socket in the network namespace of this file, for datagrams to `port`.
fn udp_in(namespace: &Path, port: u16) -> anyhow::Result<UdpSocket> {
    let namespace = fs::File::open(namespace)?;
    let thread = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
    });
    let socket = thread
        .join()
        .map_err(|_| anyhow!("the thread panicked"))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn received(socket: &UdpSocket) -> Option<String> {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

async fn address(node: &TestNode, id: &str) -> anyhow::Result<Ipv4Addr> {
    let sandbox = node.get(id).await?;
    let address = sandbox.addresses.first().context("an address")?;
    let (address, _) = address.address.split_once('/').context("a prefix")?;
    Ok(address.parse()?)
}

/// A port that nobody has at this moment.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("0.0.0.0:0")?.local_addr()?.port())
}

fn published(mut spec: v1::SandboxSpec, node_port: u16) -> v1::SandboxSpec {
    spec.containers[0].ports[0].node_port = node_port.into();
    spec
}

fn with(mut spec: v1::SandboxSpec, policy: NetworkPolicy) -> v1::SandboxSpec {
    spec.network = Some(policy);
    spec
}

fn reason(status: &tonic::Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().cloned();
    info.map(|it| it.reason).unwrap_or_default()
}

struct Scene {
    node: TestNode,
    client: Client,
    node_port: u16,
    /// A program of the node.
    program: TcpListener,
    front: Ipv4Addr,
    back: Ipv4Addr,
}

impl Scene {
    async fn start() -> anyhow::Result<Self> {
        let node = TestNode::start().await?;
        let client = Client::beside(&node)?;
        let node_port = free_port()?;
        let front = published(web("front", WEB.into()), node_port);
        let front = v1::SandboxSpec {
            labels: [("app".to_owned(), "front".to_owned())].into(),
            ..front
        };
        node.create("front", front).await?;
        let lets_in_front = NetworkPolicy {
            allow_from: vec!["app=front".into()],
            ..NetworkPolicy::default()
        };
        node.create("back", with(web("back", WEB.into()), lets_in_front))
            .await?;
        let closed = NetworkPolicy {
            egress: EgressMode::Deny.into(),
            ..NetworkPolicy::default()
        };
        node.create("closed", with(idle(), closed)).await?;
        let rule = EgressRule {
            cidr: format!("{}/32", client.own),
            port: Client::SERVED.into(),
            ..EgressRule::default()
        };
        let listed = NetworkPolicy {
            egress: EgressMode::Allow.into(),
            egress_rules: vec![rule],
            ..NetworkPolicy::default()
        };
        node.create("listed", with(idle(), listed)).await?;
        Ok(Self {
            front: address(&node, "front").await?,
            back: address(&node, "back").await?,
            program: TcpListener::bind("0.0.0.0:0")?,
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
        } = self;
        let (front, back) = (*front, *back);
        let gateway = Ipv4Addr::from(u32::from(front) & 0xffff_ff00 | 1);
        let program = program.local_addr()?.port();
        let at = |ip: Ipv4Addr, port: u16| SocketAddr::from((ip, port));

        let passes = |what: &str, got: Option<String>, expected: &str| {
            ensure!(
                got.as_deref() == Some(expected),
                "{when}: {what} gives {got:?}"
            );
            Ok(())
        };
        let by_host = at(client.node, *node_port);
        passes(
            "a node port, from another host",
            client.fetch(by_host),
            "front",
        )?;
        passes(
            "a node port, by 127.0.0.1",
            fetch(at(Ipv4Addr::LOCALHOST, *node_port)),
            "front",
        )?;
        passes(
            "a node port, by the node's address",
            fetch(by_host),
            "front",
        )?;
        passes(
            "a node port, by the gateway",
            fetch(at(gateway, *node_port)),
            "front",
        )?;
        passes(
            "a node port, from a sandbox",
            fetch_within(node, "back", by_host),
            "front",
        )?;
        passes(
            "a node port, from its own sandbox",
            fetch_within(node, "front", by_host),
            "front",
        )?;
        passes("a sandbox, from the node", fetch(at(front, WEB)), "front")?;
        passes(
            "a sandbox that lets in",
            fetch_within(node, "front", at(back, WEB)),
            "back",
        )?;
        for port in [Client::SERVED, Client::ALSO_SERVED] {
            let got = fetch_within(node, "front", at(client.own, port));
            passes("another host, from a sandbox", got, "client")?;
        }
        let got = fetch_within(node, "listed", at(client.own, Client::SERVED));
        passes("what the list allows", got, "client")?;
        let ping = format!("busybox ping -c 1 -W 1 {gateway}");
        let ping = within(node, "front", &ping).output()?;
        ensure!(ping.status.success(), "{when}: the gateway answers");

        let blocked = |what: &str, got: Option<String>| {
            ensure!(got.is_none(), "{when}: {what} gives {got:?}");
            Ok(())
        };
        let direct = at(front, WEB);
        blocked("a sandbox, from another host", client.fetch(direct))?;
        blocked(
            "a sandbox, from another",
            fetch_within(node, "back", direct),
        )?;
        blocked(
            "a sandbox, from a listed one",
            fetch_within(node, "listed", at(back, WEB)),
        )?;
        let served = at(client.own, Client::SERVED);
        blocked(
            "another host, from a closed one",
            fetch_within(node, "closed", served),
        )?;
        blocked(
            "a node port, from a closed one",
            fetch_within(node, "closed", by_host),
        )?;
        let other = at(client.own, Client::ALSO_SERVED);
        blocked(
            "what the list does not have",
            fetch_within(node, "listed", other),
        )?;
        for ip in [gateway, client.node] {
            let connects = within(node, "front", &connect(at(ip, program)))
                .stdin(Stdio::null())
                .output()?;
            ensure!(!connects.status.success(), "{when}: a program of the node");
        }
        Ok(())
    }

    async fn denied(&self, id: &str) -> anyhow::Result<v1::DeniedTraffic> {
        let request = v1::SnapshotRequest { id: id.into() };
        let snapshot = self.node.sandboxes().snapshot(request).await?.into_inner();
        snapshot.denied.context("it counts")
    }

    fn table(&self) -> anyhow::Result<String> {
        let instance = fs::read_to_string(self.node.home().join("instance"))?;
        Ok(format!("berth-{}", instance.trim()))
    }

    fn finish(self) -> anyhow::Result<()> {
        drop(self.client);
        self.node.finish()
    }
}

#[tokio::test]
async fn what_must_pass_passes_and_what_must_not_does_not_whatever_is_killed_or_flushed()
-> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let bridged = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    println!("bridge-nf-call-iptables: {:?}", fs::read_to_string(bridged));
    scene.probe("at first")?;
    ensure!(scene.denied("closed").await?.packets > 0);
    ensure!(scene.denied("listed").await?.packets > 0);

    let before = scene.denied("closed").await?;
    scene.node.kill_manager()?;
    scene.probe("without a manager")?;
    scene.node.up().await?;
    ensure!(scene.denied("closed").await?.packets >= before.packets);
    scene.probe("behind a restart of the manager")?;

    // Only our own: others run tests on this host.
    let table = scene.table()?;
    for spoil in [
        format!("delete table inet {table}"),
        format!("delete table arp {table}"),
        format!("flush table inet {table}"),
        format!("flush set inet {table} sources"),
        format!("flush map inet {table} node_ports"),
        format!("add table inet {table} {{ flags dormant; }}"),
        format!("replace rule inet {table} outward handle CLOSED ip saddr @closed accept"),
    ] {
        let nft = |line: &str| succeed(Command::new("nft").args(line.split_whitespace()));
        let rules = nft(&format!("-a list chain inet {table} outward"))?;
        let closed = rules.lines().find(|it| it.contains("@closed"));
        let handle = closed.and_then(|it| it.rsplit(' ').next());
        let spoil = spoil.replace("CLOSED", handle.context("the rule")?);
        nft(&spoil)?;
        let whole = || async { scene.probe("soon").is_ok() };
        eventually(&spoil, SOON, whole).await?;
    }

    scene.node.end_containerd().await?;
    scene.node.up().await?;
    scene.probe("behind a restart of containerd")?;

    scene.node.assert_clean().await?;
    scene.node.delete("front").await?;
    let gone = SocketAddr::from((Ipv4Addr::LOCALHOST, scene.node_port));
    ensure!(
        TcpStream::connect(gone).is_err(),
        "gone when Delete returns"
    );
    let by_host = SocketAddr::from((scene.client.node, scene.node_port));
    ensure!(scene.client.fetch(by_host).is_none());
    scene.finish()
}

#[tokio::test]
async fn nothing_is_sent_in_the_name_of_another() -> anyhow::Result<()> {
    let scene = Scene::start().await?;
    let (node, client) = (&scene.node, scene.client.own);
    let ping = |more: &str| {
        let line = format!("busybox ping -c 1 -W 1 {more} {client}");
        let output = within(node, "front", &line).output()?;
        anyhow::Ok(output.status.success())
    };
    let run = |line: &str| succeed(within(node, "front", line));
    ensure!(ping("")?, "in its own name");
    let before = scene.denied("front").await?;
    ensure!(before.spoofed_packets == 0, "{before:?}");

    let other = scene.back;
    let reached = || -> anyhow::Result<String> {
        let line = "cat /proc/net/snmp";
        succeed(&mut scene.client.command(line))
    };
    run(&format!("ip addr add {other}/32 dev eth0"))?;
    let received = pings(&reached()?)?;
    ensure!(!ping(&format!("-I {other}"))?, "in another's name");
    ensure!(pings(&reached()?)? == received, "it arrived");
    run(&format!("ip addr del {other}/32 dev eth0"))?;
    ensure!(scene.denied("front").await?.spoofed_packets > 0);

    let gateway = Ipv4Addr::from(u32::from(scene.front) & 0xffff_ff00 | 1);
    let asks = || {
        let line = format!("busybox arping -q -c 1 -w 1 -I eth0 {gateway}");
        anyhow::Ok(within(node, "front", &line).output()?.status.success())
    };
    ensure!(asks()?, "the gateway answers");
    let [a, b, c, d] = scene.front.octets();
    let own = format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    run("ip link set eth0 address 02:42:00:00:00:01")?;
    ensure!(!ping("")?, "with another's hardware address");
    ensure!(!asks()?, "a question with another's hardware address");
    run(&format!("ip link set eth0 address {own}"))?;
    let again = || async { ping("").is_ok_and(|it| it) };
    eventually("in its own name again", SOON, again).await?;
    scene.finish()
}

/// How many echo requests a host has received.
fn pings(snmp: &str) -> anyhow::Result<u64> {
    let mut lines = snmp.lines().filter(|it| it.starts_with("Icmp:"));
    let (names, values) = lines.next().zip(lines.next()).context("two lines")?;
    let place = names.split(' ').position(|it| it == "InEchos");
    let value = values.split(' ').nth(place.context("a column")?);
    Ok(value.context("a value")?.parse()?)
}

#[tokio::test]
async fn a_node_port_has_one_owner() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let port = free_port()?;
    let first = published(web("first", WEB.into()), port);
    node.create("first", first.clone()).await?;
    node.create("first", first.clone()).await?;
    let second = published(web("second", WEB.into()), port);
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
    let later = TcpListener::bind(("0.0.0.0", port))?;
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
    let reached = fetch(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    ensure!(reached.as_deref() == Some("second"), "{reached:?}");

    let program = TcpListener::bind("0.0.0.0:0")?;
    let taken = published(web("third", WEB.into()), program.local_addr()?.port());
    let refused = node.create("third", taken).await;
    let refused = refused.err().context("a program listens")?;
    ensure!(reason(&refused) == "NODE_PORT_IN_USE", "{refused:?}");
    let details = refused.get_error_details();
    let info = details.error_info().context("details")?;
    ensure!(!info.metadata.contains_key("owner"), "{info:?}");
    node.assert_clean().await?;
    node.finish()
}

#[tokio::test]
async fn a_flow_to_a_sandbox_that_is_gone_does_not_reach_the_next_owner_of_its_address()
-> anyhow::Result<()> {
    let node = TestNode::start_with("network.cool_down = \"0s\"", &[]).await?;
    let client = Client::beside(&node)?;
    let node_port = UdpSocket::bind("0.0.0.0:0")?.local_addr()?.port();
    let listens = || {
        let mut it = spec([shell("app", "exec sleep 3600", &[9000])]);
        it.containers[0].ports[0].protocol = Protocol::Udp.into();
        it
    };
    let pin = |id: &str| node.home().join("run/ns").join(id).join("net");
    // The app of the sandbox is its receiver here.
    let create = async |id: &str, spec| {
        node.accept(id, spec).await?;
        let bound = || async { udp_in(&pin(id), 9000) };
        let receiver = obtained("its network", SOON, bound).await?;
        let runs = || async {
            let found = node.get(id).await;
            found.is_ok_and(|it| it.status() == v1::SandboxStatus::Running)
        };
        eventually("its port is bound", SOON, runs).await?;
        anyhow::Ok(receiver)
    };
    let receiver = create("former", published(listens(), node_port)).await?;
    let former = address(&node, "former").await?;
    let flow = udp_in(&Path::new("/run/netns").join(&client.name), 0)?;
    flow.connect((client.node, node_port))?;
    let arrives = || async { flow.send(b"flow").is_ok() && received(&receiver).is_some() };
    eventually("the flow arrives", SOON, arrives).await?;
    drop(receiver);

    node.delete("former").await?;
    let receiver = create("next", listens()).await?;
    let next = address(&node, "next").await?;
    ensure!(next == former, "it has the address: {next}, {former}");
    flow.send(b"late").ok();
    // Behind a mark that is sent later, what was to come has come.
    let marks = UdpSocket::bind("0.0.0.0:0")?;
    marks.send_to(b"mark", (next, 9000))?;
    let first = received(&receiver);
    ensure!(first.as_deref() == Some("mark"), "{first:?}");
    drop(client);
    node.finish()
}

#[tokio::test]
async fn an_element_that_no_sandbox_explains_is_an_orphan_and_is_removed() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", web("web", WEB.into())).await?;
    let instance = fs::read_to_string(node.home().join("instance"))?;
    let table = format!("berth-{}", instance.trim());
    let nft = |line: String| succeed(Command::new("nft").args(line.split_whitespace()));
    nft(format!("add element inet {table} closed {{ 192.0.2.7 }}"))?;
    let audit = node.audit().await?;
    let mut elements = audit.objects.iter().filter(|it| it.kind == "nft-element");
    let orphan = elements.find(|it| it.verdict() == v1::AuditVerdict::Orphan);
    let orphan = orphan.context("it is found")?;
    ensure!(orphan.name == "inet closed c0000207", "{orphan:#?}");
    let mut own = audit.objects.iter().filter(|it| it.kind == "nft-element");
    ensure!(own.any(|it| it.sandbox == "web" && it.verdict() == v1::AuditVerdict::Explained));
    node.berth(&["audit", "--fix"])?;
    node.assert_clean().await?;
    let left = nft(format!("list set inet {table} closed"))?;
    ensure!(!left.contains("192.0.2.7"), "{left}");

    // With the last sandbox gone, all can go.
    let uninstall = || {
        let config = node.home().join("sandbox-manager.toml");
        let mut command = node.command("sandbox-manager");
        succeed(command.arg("--config").arg(config).arg("uninstall"))
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
    let tables = nft("list tables".to_owned())?;
    ensure!(!tables.contains(&table), "{tables}");
    ensure!(ip(&format!("link show br-{}", instance.trim())).is_err());
    node.finish()
}

//! Who may reach others by name, with real packets: a resolver and servers in a network namespace beside the node.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use berth_api::v1::{
    self, EgressMode, EgressRule, NetworkPolicy, catalog_service_client::CatalogServiceClient,
    entry::Object,
};
use berth_domain::{Generation, Protocol};
use berth_e2e::{
    TestNode,
    node::{eventually, succeed},
    specs::idle,
};
use berth_netns::{NameSets, Opening, Owner};
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME},
    },
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const SOON: Duration = Duration::from_secs(30);
/// How long a packet that is dropped is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Of both names, and the least that an address is let through for.
const SHORT: u32 = 6;
const LONG: u32 = 3600;

const API: &str = "api.example.org.";
const WILD: &str = "x.wild.example.org.";
const OTHER: &str = "other.example.org.";
/// What the servers listen on.
const PORT: u16 = 7001;
const ALSO_PORT: u16 = 7002;

/// What lies beyond the node: two servers that send back what they get, and a resolver that knows where they are.
struct Beyond {
    namespace: String,
    link: String,
    first: Ipv4Addr,
    second: Ipv4Addr,
    resolver: Ipv4Addr,
    /// The names that it was asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Beyond {
    /// Made before the node, whose resolver has to know where to ask. `home` has a name that no other has.
    fn of(home: &Path, ttl: u32) -> anyhow::Result<Self> {
        let name = home.file_name().context("a name")?.to_string_lossy();
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        // Shared address space (RFC 6598): no host of a test has business there.
        let base = u32::from(Ipv4Addr::new(100, 64, 0, 0)) + (hash % (1 << 19)) * 8;
        let address = |number| Ipv4Addr::from(base + number);
        let beyond = Self {
            namespace: format!("berth-beyond-{hash:08x}"),
            link: format!("bb{hash:08x}"),
            first: address(2),
            second: address(3),
            resolver: address(4),
            asked: Arc::default(),
        };
        let Self {
            namespace, link, ..
        } = &beyond;
        ip(&format!("netns add {namespace}"))?;
        ip(&format!(
            "link add {link} type veth peer name beyond0 netns {namespace}"
        ))?;
        ip(&format!("addr add {}/29 dev {link}", address(1)))?;
        ip(&format!("link set {link} up"))?;
        for own in [beyond.first, beyond.second, beyond.resolver] {
            ip(&format!("-n {namespace} addr add {own}/29 dev beyond0"))?;
        }
        ip(&format!("-n {namespace} link set lo up"))?;
        ip(&format!("-n {namespace} link set beyond0 up"))?;
        ip(&format!(
            "-n {namespace} route add default via {}",
            address(1)
        ))?;
        for port in [PORT, ALSO_PORT, 53, 853] {
            let listener = beyond.inside(move || TcpListener::bind(("0.0.0.0", port)))?;
            std::thread::spawn(move || send_back(&listener));
        }
        let own = beyond.resolver;
        let socket = beyond.inside(move || UdpSocket::bind((own, 53)))?;
        let names = [
            (API, beyond.first),
            (WILD, beyond.second),
            (OTHER, beyond.second),
        ];
        let asked = beyond.asked.clone();
        std::thread::spawn(move || resolve(&socket, &names.into(), ttl, &asked));
        Ok(beyond)
    }

    fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        inside(&Path::new("/run/netns").join(&self.namespace), work)
    }

    fn was_asked(&self, name: &str) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().any(|it| it == name)
    }

    fn first(&self, port: u16) -> SocketAddr {
        (self.first, port).into()
    }

    fn second(&self, port: u16) -> SocketAddr {
        (self.second, port).into()
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        let _ = ip(&format!("link delete {}", self.link));
        let _ = ip(&format!("netns delete {}", self.namespace));
    }
}

fn ip(line: &str) -> anyhow::Result<String> {
    succeed(Command::new("ip").args(line.split_whitespace()))
}

/// Does `work` on a thread that ends in the network namespace of this file.
fn inside<T: Send + 'static>(
    namespace: &Path,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let namespace = fs::File::open(namespace)?;
    let thread = std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    });
    let done = thread.join().map_err(|_| anyhow!("the thread panicked"))?;
    Ok(done?)
}

fn send_back(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        });
    }
}

/// Answers each name by way of an alias, and all others with nothing.
fn resolve(
    socket: &UdpSocket,
    names: &BTreeMap<&str, Ipv4Addr>,
    ttl: u32,
    asked: &Mutex<Vec<String>>,
) {
    let mut buffer = vec![0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let Ok(query) = Message::from_vec(&buffer[..length]) else {
            continue;
        };
        let Some(question) = query.queries.first() else {
            continue;
        };
        let (owner, name) = (question.name().clone(), question.name().to_ascii());
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.add_queries(query.queries.clone());
        let alias = Name::from_ascii("edge.example.net.");
        if let (Some(address), Ok(alias)) = (names.get(name.as_str()), alias) {
            let to_alias = RData::CNAME(CNAME(alias.clone()));
            answer.add_answer(Record::from_rdata(owner, ttl, to_alias));
            let data = RData::A(A(*address));
            answer.add_answer(Record::from_rdata(alias, ttl, data));
        }
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(name);
        drop(asked);
        if let Ok(packet) = answer.to_vec() {
            let _ = socket.send_to(&packet, from);
        }
    }
}

/// A node whose resolver asks the one beyond.
struct Scene {
    node: TestNode,
    beyond: Beyond,
    gateway: SocketAddr,
}

impl Scene {
    async fn start(ttl: u32, toml: &str) -> anyhow::Result<Self> {
        let home = TestNode::new_home()?;
        let beyond = Beyond::of(home.path(), ttl)?;
        let dns = format!(
            "upstreams = [\"{}\"]\negress_life_min = \"{SHORT}s\"\n",
            beyond.resolver
        );
        fs::write(home.path().join("dns.extra.toml"), dns)?;
        let node = TestNode::start_in(home, toml, &[]).await?;
        let network = node.status().await?.network.context("a network")?;
        let (subnet, _) = network.subnet.split_once('/').context("a subnet")?;
        let subnet: Ipv4Addr = subnet.parse()?;
        let gateway = Ipv4Addr::from(u32::from(subnet) + 1);
        Ok(Self {
            node,
            beyond,
            gateway: (gateway, 53).into(),
        })
    }

    async fn create(&self, id: &str, policy: NetworkPolicy) -> anyhow::Result<v1::Sandbox> {
        let spec = v1::SandboxSpec {
            network: Some(policy),
            ..idle()
        };
        Ok(self.node.create(id, spec).await?)
    }

    fn pin(&self, id: &str) -> PathBuf {
        self.node.home().join("run/ns").join(id).join("net")
    }

    /// A connection from a sandbox over which a word has come back.
    fn connect(&self, id: &str, to: SocketAddr) -> anyhow::Result<TcpStream> {
        self.connect_within(id, to, SOON)
    }

    fn connect_within(
        &self,
        id: &str,
        to: SocketAddr,
        limit: Duration,
    ) -> anyhow::Result<TcpStream> {
        let connected = inside(&self.pin(id), move || {
            TcpStream::connect_timeout(&to, PATIENCE)
        });
        let mut stream = connected?;
        stream.set_read_timeout(Some(limit))?;
        echo(&mut stream)?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(stream)
    }

    fn passes(&self, id: &str, to: SocketAddr) -> bool {
        self.connect(id, to).is_ok()
    }

    /// The same while rules are away and made anew: a connection that was opened without any may wait for a packet of this
    /// side, which has none to send.
    fn passes_now(&self, id: &str, to: SocketAddr) -> bool {
        self.connect_within(id, to, PATIENCE).is_ok()
    }

    /// Asks `server` from within a sandbox.
    fn ask_at(&self, server: SocketAddr, id: &str, name: &str) -> anyhow::Result<Message> {
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
        let packet = query.to_vec()?;
        let received = inside(&self.pin(id), move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(PATIENCE * 5))?;
            socket.send(&packet)?;
            let mut buffer = vec![0; 4096];
            let length = socket.recv(&mut buffer)?;
            buffer.truncate(length);
            Ok(buffer)
        });
        Ok(Message::from_vec(&received?)?)
    }

    fn ask(&self, id: &str, name: &str) -> anyhow::Result<Message> {
        self.ask_at(self.gateway, id, name)
    }

    /// The addresses that a sandbox is told.
    fn resolve(&self, id: &str, name: &str) -> anyhow::Result<Vec<IpAddr>> {
        let answer = self.ask(id, name)?;
        let code = answer.metadata.response_code;
        ensure!(code == ResponseCode::NoError, "{name} of {id}: {code}");
        let addresses = answer.answers.iter().filter_map(|it| it.data.ip_addr());
        Ok(addresses.collect())
    }

    fn instance(&self) -> anyhow::Result<String> {
        let instance = fs::read_to_string(self.node.home().join("instance"))?;
        Ok(instance.trim().to_owned())
    }

    fn nft(&self, line: &str) -> anyhow::Result<String> {
        let line = line.replace("TABLE", &format!("inet berth-{}", self.instance()?));
        succeed(Command::new("nft").args(line.split_whitespace()))
    }

    async fn finish(self) -> anyhow::Result<()> {
        self.node.assert_clean().await?;
        drop(self.beyond);
        self.node.finish()
    }
}

/// Sends a word to a server, and waits for it to come back.
fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"word")?;
    stream.read_exact(&mut [0; 4])
}

fn allow(egress_rules: Vec<EgressRule>) -> NetworkPolicy {
    NetworkPolicy {
        egress: EgressMode::Allow.into(),
        egress_rules,
        ..NetworkPolicy::default()
    }
}

fn named(name: &str, port: u16) -> EgressRule {
    EgressRule {
        dns_name: name.into(),
        port: port.into(),
        ..EgressRule::default()
    }
}

/// `api.example.org` on one port, and everything below `wild.example.org`.
fn by_name() -> NetworkPolicy {
    allow(vec![
        named("api.example.org", PORT),
        named("*.wild.example.org", 0),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_opens_its_addresses_for_as_long_as_they_live_and_no_other_name_is_asked_for()
-> anyhow::Result<()> {
    let scene = Scene::start(SHORT, "").await?;
    let beyond = &scene.beyond;
    scene.create("named", by_name()).await?;
    let closed = NetworkPolicy {
        egress: EgressMode::Deny.into(),
        ..NetworkPolicy::default()
    };
    scene.create("closed", closed).await?;
    scene.create("open", NetworkPolicy::default()).await?;

    let to = beyond.first(PORT);
    ensure!(scene.passes("open", to), "the server is there");
    ensure!(!scene.passes("named", to), "nobody has resolved it yet");
    // Whoever else asks opens nothing for this one.
    ensure!(scene.resolve("open", API)? == [beyond.first]);
    ensure!(!scene.passes("named", to), "another one has resolved it");
    ensure!(scene.resolve("named", API)? == [beyond.first]);
    let mut standing = scene.connect("named", to).context("it is resolved")?;
    ensure!(!scene.passes("named", beyond.first(ALSO_PORT)), "a port");
    ensure!(!scene.passes("named", beyond.second(PORT)), "an address");
    let denied = async || -> anyhow::Result<u64> {
        let request = v1::SnapshotRequest { id: "named".into() };
        let snapshot = scene.node.sandboxes().snapshot(request).await?.into_inner();
        Ok(snapshot.denied.context("it counts")?.packets)
    };
    ensure!(denied().await? > 0);

    ensure!(scene.resolve("named", WILD)? == [beyond.second]);
    ensure!(scene.passes("named", beyond.second(ALSO_PORT)), "any port");
    let over = || async {
        let [first, second] = [to, beyond.second(ALSO_PORT)].map(|it| scene.passes("named", it));
        !first && !second
    };
    eventually("their life is over", SOON, over).await?;
    echo(&mut standing).context("what stands goes on")?;
    ensure!(scene.resolve("named", API)? == [beyond.first]);
    ensure!(scene.passes("named", to), "it is resolved again");

    // Questions are no way out either.
    for (id, name) in [
        ("named", OTHER),
        ("named", "secret.api.example.org."),
        ("named", "wild.example.org."),
        ("closed", "secret.example.org."),
        ("closed", "secret.wild.example.org."),
    ] {
        ensure!(scene.resolve(id, name)?.is_empty(), "{id} asks for {name}");
        ensure!(!beyond.was_asked(name), "{name} was handed on for {id}");
    }
    ensure!(scene.resolve("open", OTHER)? == [beyond.second]);
    ensure!(beyond.was_asked(OTHER));
    let host = v1::Host {
        id: "db".into(),
        app: String::new(),
        name: "db.example.org".into(),
        addresses: vec!["192.0.2.1".into()],
    };
    let request = v1::PutEntryRequest {
        entry: Some(v1::Entry {
            revision: 0,
            object: Some(Object::Host(host)),
        }),
        expected_revision: 0,
    };
    let mut catalog = CatalogServiceClient::new(scene.node.channel.clone());
    catalog.put_entry(request).await?;
    let own: IpAddr = [192, 0, 2, 1].into();
    let told = || async {
        let told = |id| scene.resolve(id, "db.example.org.").ok();
        ["named", "closed"]
            .iter()
            .all(|id| told(id) == Some(vec![own]))
    };
    eventually("own names are for all", SOON, told).await?;
    drop(standing);
    scene.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_name_has_opened_stays_open_whatever_is_killed_or_flushed() -> anyhow::Result<()> {
    let scene = Scene::start(LONG, "").await?;
    let (node, beyond) = (&scene.node, &scene.beyond);
    let owner = scene.create("named", by_name()).await?.generation;
    let (to, wild) = (beyond.first(PORT), beyond.second(PORT));
    ensure!(scene.resolve("named", API)? == [beyond.first]);
    ensure!(scene.passes("named", to));

    node.kill_manager()?;
    ensure!(scene.passes("named", to), "without a manager");
    ensure!(!scene.passes("named", wild), "it was not resolved");
    ensure!(scene.resolve("named", WILD)? == [beyond.second]);
    let mut standing = scene.connect("named", wild).context("without a manager")?;
    // An address that the dns does not know of, so that nobody but the manager can carry it over.
    scene.nft(&format!(
        "add element TABLE named {{ {owner:#x} . 192.0.2.9 timeout 1h }}"
    ))?;
    node.up().await?;
    ensure!(scene.passes("named", to) && scene.passes("named", wild));
    let carried = scene.nft("list set TABLE named")?;
    ensure!(carried.contains("192.0.2.9"), "{carried}");
    ensure!(carried.contains("expires 59m"), "what is left: {carried}");

    scene.node.kill_dns()?;
    ensure!(scene.passes("named", to), "without a dns");
    ensure!(scene.ask("named", API).is_err(), "nobody answers");
    node.up().await?;
    ensure!(scene.passes("named", to) && scene.passes("named", wild));

    for spoil in [
        "flush set TABLE named_port",
        "flush table TABLE",
        "delete table TABLE",
    ] {
        scene.nft(spoil)?;
        // It is by the dns alone that these come back: the table was away.
        let sets = || scene.nft("list set TABLE named_port");
        let held = || async { sets().is_ok_and(|it| it.contains(&beyond.first.to_string())) };
        eventually("it is put back", SOON, held).await?;
        let elsewhere = SocketAddr::from((beyond.second, 53));
        let whole = || async {
            let open = scene.passes_now("named", to) && scene.passes_now("named", wild);
            open && !scene.passes("named", elsewhere)
        };
        eventually(spoil, SOON, whole).await?;
    }
    echo(&mut standing).context("what stands goes on")?;

    // With nobody to make the tables anew, an address that cannot be let through is not told.
    node.kill_manager()?;
    scene.nft("delete table TABLE")?;
    let told = scene.ask("named", WILD)?;
    let code = told.metadata.response_code;
    ensure!(
        code == ResponseCode::ServFail && told.answers.is_empty(),
        "{told:?}"
    );
    node.up().await?;
    let back = || async {
        let told = scene.resolve("named", WILD).unwrap_or_default();
        told == [beyond.second] && scene.passes_now("named", to) && scene.passes_now("named", wild)
    };
    eventually("all is back", SOON, back).await?;
    drop(standing);
    scene.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_owner_of_an_address_has_nothing_of_what_was_opened_for_the_former()
-> anyhow::Result<()> {
    let scene = Scene::start(LONG, "network.cool_down = \"0s\"\n").await?;
    let (node, beyond) = (&scene.node, &scene.beyond);
    let former = scene.create("former", by_name()).await?;
    let to = beyond.second(PORT);
    ensure!(scene.resolve("former", WILD)? == [beyond.second]);
    ensure!(scene.passes("former", to));
    let other = allow(vec![named("other.example.com", 0)]);
    scene.create("another", other.clone()).await?;
    ensure!(!scene.passes("another", to));

    let address = beyond.second.to_string();
    let held = || scene.nft("list set TABLE named");
    ensure!(held()?.contains(&address));
    node.delete("former").await?;
    ensure!(!held()?.contains(&address), "gone when Delete returns");
    // A word of the dns that was on its way while the sandbox ended.
    let owner = former.generation;
    scene.nft(&format!(
        "add element TABLE named {{ {owner:#x} . {address} timeout 1h }}"
    ))?;
    // The next one has its address, and then also its id.
    let next = scene.create("next", other.clone()).await?;
    ensure!(next.addresses == former.addresses, "{next:?}");
    ensure!(!scene.passes("next", to));
    node.delete("next").await?;
    let again = scene.create("former", other).await?;
    ensure!(again.addresses == former.addresses, "{again:?}");
    ensure!(!scene.passes("former", to));
    ensure!(held()?.contains(&address), "it is there for nobody");
    node.assert_clean().await?;
    // Nor does it go into tables that are made anew.
    node.kill_manager()?;
    node.up().await?;
    ensure!(!held()?.contains(&address));
    ensure!(!scene.passes("former", to));

    scene.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reaches_others_by_name_asks_no_other_name_server() -> anyhow::Result<()> {
    let scene = Scene::start(LONG, "").await?;
    let beyond = &scene.beyond;
    let everywhere = || EgressRule {
        cidr: "100.64.0.0/10".into(),
        ..EgressRule::default()
    };
    let both = allow(vec![everywhere(), named("api.example.org", 0)]);
    scene.create("named", both).await?;
    scene.create("listed", allow(vec![everywhere()])).await?;
    let resolver = SocketAddr::from((beyond.resolver, 53));
    ensure!(scene.resolve("named", API)? == [beyond.first]);
    for (id, expected) in [("listed", true), ("named", false)] {
        ensure!(
            scene.passes(id, beyond.second(PORT)),
            "{id}: by the network"
        );
        for port in [53, 853] {
            for server in [beyond.first, beyond.second] {
                let passes = scene.passes(id, (server, port).into());
                ensure!(passes == expected, "{id}: {server}:{port}: {passes}");
            }
        }
        let answer = scene.ask_at(resolver, id, OTHER);
        ensure!(answer.is_ok() == expected, "{id}: {answer:?}");
    }
    // A list of networks says nothing of what is asked for to find one of them.
    ensure!(scene.resolve("listed", OTHER)? == [beyond.second]);
    ensure!(scene.resolve("named", OTHER)?.is_empty());
    scene.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_takes_lives_that_are_longer_and_shorter_and_forgets_what_is_not_there()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let instance = fs::read_to_string(node.home().join("instance"))?;
    let mut sets = NameSets::open(instance.trim())?;
    let openings = ["192.0.2.7", "2001:db8::7"].map(|address| {
        [None, Some((Protocol::Udp, 443))].map(|port| Opening {
            owner: Owner::of(Generation(u64::MAX)),
            address: address.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            port,
        })
    });
    let openings = openings.concat();
    for seconds in [60, 600, 60, 3600] {
        let life = Duration::from_secs(seconds);
        let all: Vec<_> = openings.iter().map(|it| (*it, life)).collect();
        sets.place(&all)?;
        let held = sets.held()?;
        ensure!(held.len() == openings.len(), "{held:?}");
        let low = life.saturating_sub(SOON);
        ensure!(
            held.values().all(|left| *left <= life && *left > low),
            "{seconds}: {held:?}"
        );
    }
    let generation = sets.generation()?;
    for _ in 0..2 {
        sets.remove(&openings)?;
        ensure!(sets.held()?.is_empty());
    }
    ensure!(sets.generation()? != generation);
    // A life that is over takes the element with it.
    sets.place(&[(openings[0], Duration::from_millis(1))])?;
    let mut over = || {
        let held = sets.held().is_ok_and(|it| it.is_empty());
        async move { held }
    };
    eventually("it has ended", SOON, &mut over).await?;
    node.finish()
}

//! Names on a real node: asked from inside of sandboxes, with real packets.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{
    self, EntryKind, SandboxStatus, catalog_service_client::CatalogServiceClient, entry::Object,
    network_service_client::NetworkServiceClient,
};
use berth_e2e::{
    TestNode,
    node::eventually,
    specs::{idle, web},
};
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus as HealthStatus,
    health_client::HealthClient,
};
use tonic_types::StatusExt as _;

/// Of a state that has to come.
const SOON: Duration = Duration::from_secs(20);
/// A client's patience for one try.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Udp,
    Tcp,
}

/// From where a question comes.
#[derive(Clone, Debug)]
enum From {
    /// The pinned network namespace of a sandbox.
    Sandbox(PathBuf),
    /// The host, with this address.
    Host(Ipv4Addr),
}

fn catalog(node: &TestNode) -> CatalogServiceClient<Channel> {
    CatalogServiceClient::new(node.channel.clone())
}

fn network(node: &TestNode) -> NetworkServiceClient<Channel> {
    NetworkServiceClient::new(node.channel.clone())
}

fn inside(node: &TestNode, id: &str) -> From {
    From::Sandbox(node.home().join("run/ns").join(id).join("net"))
}

/// The address that the node listens on.
async fn server(node: &TestNode) -> anyhow::Result<SocketAddr> {
    let network = node.status().await?.network.context("a network")?;
    let (address, _) = network.subnet.split_once('/').context("a subnet")?;
    let address: Ipv4Addr = address.parse()?;
    Ok((Ipv4Addr::from(u32::from(address) + 1), 53).into())
}

/// Asks once, and returns what comes back in time.
fn ask(
    from: &From,
    server: SocketAddr,
    over: Over,
    name: &str,
    kind: RecordType,
) -> anyhow::Result<Message> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name)?, kind));
    let (from, packet) = (from.clone(), query.to_vec()?);
    // A thread of its own: the namespace that it moves into is its end.
    let asked = std::thread::spawn(move || -> anyhow::Result<Vec<u8>> {
        let own = match &from {
            From::Sandbox(path) => {
                let namespace = fs::File::open(path).context("the namespace")?;
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind)?;
                Ipv4Addr::UNSPECIFIED
            }
            From::Host(address) => *address,
        };
        match over {
            Over::Udp => {
                let socket = UdpSocket::bind((own, 0))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect(server)?;
                socket.send(&packet)?;
                let mut buffer = vec![0; 4096];
                let length = socket.recv(&mut buffer)?;
                buffer.truncate(length);
                Ok(buffer)
            }
            Over::Tcp => {
                let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let length = u16::try_from(packet.len())?;
                stream.write_all(&[&length.to_be_bytes()[..], &packet].concat())?;
                let mut length = [0; 2];
                stream.read_exact(&mut length)?;
                let mut buffer = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut buffer)?;
                Ok(buffer)
            }
        }
    });
    let packet = asked.join().ok().context("the thread")??;
    let answer = Message::from_vec(&packet)?;
    ensure!(answer.metadata.id == query.metadata.id, "another's answer");
    Ok(answer)
}

/// The records of an answer, in short and sorted.
fn texts(answer: &Message) -> Vec<String> {
    let text = |data: &RData| data.to_string();
    let mut all: Vec<_> = answer.answers.iter().map(|it| text(&it.data)).collect();
    all.sort();
    all
}

fn address(sandbox: &v1::Sandbox) -> String {
    let first = sandbox.addresses.first().map(|it| it.address.clone());
    let first = first.unwrap_or_default();
    first.split('/').next().unwrap_or_default().to_owned()
}

async fn put(node: &TestNode, object: Object) -> anyhow::Result<()> {
    let entry = Some(v1::Entry {
        revision: 0,
        object: Some(object),
    });
    let request = v1::PutEntryRequest {
        entry,
        expected_revision: 0,
    };
    catalog(node).put_entry(request).await?;
    Ok(())
}

/// An app with the version `<app>-1` and the service `web`, which listens on 8080.
async fn put_app(node: &TestNode, app: &str) -> anyhow::Result<()> {
    let id = app.to_owned();
    let name = String::new();
    put(node, Object::App(v1::App { id, name })).await?;
    let (id, app) = (format!("{app}-1"), app.to_owned());
    let version = v1::Version {
        id,
        app: app.clone(),
        ..v1::Version::default()
    };
    put(node, Object::Version(version)).await?;
    let port = v1::ServicePort {
        name: "http".into(),
        port: 80,
        target_port: 8080,
        protocol: v1::Protocol::Tcp.into(),
    };
    let service = v1::Service {
        id: format!("{app}-web"),
        app,
        name: "web".into(),
        labels: [("tier".to_owned(), "web".to_owned())].into(),
        ports: vec![port],
    };
    put(node, Object::Service(service)).await
}

fn of(app: &str, spec: v1::SandboxSpec) -> v1::SandboxSpec {
    v1::SandboxSpec {
        version: format!("{app}-1"),
        labels: [("tier".to_owned(), "web".to_owned())].into(),
        ..spec
    }
}

async fn until_health(
    node: &TestNode,
    service: &str,
    expected: HealthStatus,
) -> anyhow::Result<()> {
    let socket = node.home().join("dns.sock");
    let told = || async {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let channel = berth_api::connect(&format!("unix:{}", socket.display())).await;
        let Ok(channel) = channel else { return false };
        let answer = HealthClient::new(channel).check(request).await;
        answer.is_ok_and(|it| it.into_inner().status() == expected)
    };
    eventually(&format!("{service:?} is {expected:?}"), SOON, told).await
}

/// Waits until `web` is these addresses for the caller.
async fn until_web(from: &From, server: SocketAddr, expected: &[&str]) -> anyhow::Result<()> {
    let what = format!("{from:?} sees {expected:?}");
    let seen = || async {
        let answer = ask(from, server, Over::Udp, "web.app.berth.", RecordType::A);
        answer.is_ok_and(|it| texts(&it) == expected)
    };
    eventually(&what, SOON, seen).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_app_finds_its_own_by_every_kind_of_record_and_over_udp_and_tcp() -> anyhow::Result<()>
{
    let node = TestNode::start().await?;
    let server = server(&node).await?;
    for app in ["red", "blue"] {
        put_app(&node, app).await?;
    }
    let host = v1::Host {
        id: "db".into(),
        app: "red".into(),
        name: "db.example.org".into(),
        addresses: vec!["192.0.2.1".into()],
    };
    put(&node, Object::Host(host)).await?;
    let red = node.create("red", of("red", web("red", 8080))).await?;
    let blue = node.create("blue", of("blue", web("blue", 8080))).await?;
    node.create("none", idle()).await?;
    let (red, blue) = (address(&red), address(&blue));
    let callers = [
        inside(&node, "red"),
        inside(&node, "blue"),
        inside(&node, "none"),
    ];
    let [from_red, from_blue, from_none] = &callers;
    until_web(from_red, server, &[&red]).await?;
    until_web(from_blue, server, &[&blue]).await?;

    let reverse = |address: &str| {
        let mut parts: Vec<_> = address.split('.').collect();
        parts.reverse();
        format!("{}.in-addr.arpa.", parts.join("."))
    };
    let (red_reverse, blue_reverse) = (reverse(&red), reverse(&blue));
    for over in [Over::Udp, Over::Tcp] {
        let cases: [(&From, &str, RecordType, &[&str]); 12] = [
            (from_red, "web.app.berth.", RecordType::A, &[&red]),
            (from_red, "WEB.App.Berth.", RecordType::A, &[&red]),
            (from_blue, "web.app.berth.", RecordType::A, &[&blue]),
            (from_none, "web.app.berth.", RecordType::A, &[]),
            (from_red, "web.app.berth.", RecordType::AAAA, &[]),
            (from_red, "nothing.app.berth.", RecordType::A, &[]),
            (from_red, "app.berth.", RecordType::TXT, &["web"]),
            (
                from_red,
                "_http._tcp.web.app.berth.",
                RecordType::SRV,
                &["0 0 8080 web.app.berth."],
            ),
            (from_red, &red_reverse, RecordType::PTR, &["web.app.berth."]),
            (from_red, &blue_reverse, RecordType::PTR, &[]),
            (from_red, "db.example.org.", RecordType::A, &["192.0.2.1"]),
            (from_red, "db.example.org.", RecordType::AAAA, &[]),
        ];
        for (from, name, kind, expected) in cases {
            let answer = ask(from, server, over, name, kind)?;
            let found = texts(&answer);
            ensure!(
                found == expected,
                "{over:?} {name} {kind} {from:?}: {found:?}"
            );
            ensure!(
                answer.metadata.response_code == ResponseCode::NoError,
                "{name}"
            );
            ensure!(answer.metadata.authoritative, "{name} is our own");
            ensure!(answer.answers.iter().all(|it| it.ttl == 30), "{name}");
        }
        // Of the node, but of no sandbox's subnet.
        let outside = From::Host(Ipv4Addr::LOCALHOST);
        let refused = ask(&outside, server, Over::Udp, "example.org.", RecordType::A)?;
        ensure!(refused.metadata.response_code == ResponseCode::Refused);
        ensure!(refused.answers.is_empty());
    }

    let listed = node.berth(&["catalog", "endpoints", "--app", "red"])?;
    ensure!(listed.contains(&red) && !listed.contains(&blue), "{listed}");
    node.stop("red").await?;
    until_web(from_blue, server, &[&blue]).await?;
    let listed = node.berth(&["catalog", "endpoints", "--app", "red"])?;
    ensure!(!listed.contains(&red), "{listed}");
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reused_address_answers_for_its_new_owner_only() -> anyhow::Result<()> {
    let toml = "network.cool_down = \"0s\"\n";
    let node = TestNode::start_with(toml, &[]).await?;
    let server = server(&node).await?;
    for app in ["red", "blue"] {
        put_app(&node, app).await?;
    }
    let first = address(&node.create("red-1", of("red", idle())).await?);
    let second = address(&node.create("red-2", of("red", idle())).await?);
    let red = inside(&node, "red-2");
    let mut both = [first.as_str(), second.as_str()];
    both.sort_unstable();
    until_web(&red, server, &both).await?;
    node.delete("red-1").await?;
    let next = address(&node.create("blue-1", of("blue", idle())).await?);
    ensure!(next == first, "{next} is the one of before: {first}");
    let blue = inside(&node, "blue-1");
    until_web(&blue, server, &[&next]).await?;
    until_web(&red, server, &[&second]).await?;
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_answered_without_a_manager_and_by_a_dns_that_comes_back() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let server = server(&node).await?;
    put_app(&node, "red").await?;
    let first = address(&node.create("red-1", of("red", web("one", 8080))).await?);
    let red = inside(&node, "red-1");
    until_web(&red, server, &[&first]).await?;
    let serving = HealthStatus::Serving;
    until_health(&node, "manager", serving).await?;

    node.kill_manager()?;
    until_health(&node, "manager", HealthStatus::NotServing).await?;
    until_health(&node, "", serving).await?;
    let answer = ask(&red, server, Over::Udp, "web.app.berth.", RecordType::A)?;
    ensure!(texts(&answer) == [first.as_str()], "no manager is there");

    // The dns dies as well, and comes back to a node without a manager: it has only its file.
    node.kill_dns()?;
    let dns = berth_e2e::node::programs().join("dns");
    let config = node.home().join("dns.toml");
    let mut command = Command::new(dns);
    command
        .arg("--config")
        .arg(config)
        .stdin(std::process::Stdio::null());
    let log = fs::File::options()
        .append(true)
        .open(node.home().join("dns.log"))?;
    let mut child = command.stderr(log).spawn()?;
    let alone = until_web(&red, server, &[&first]).await;
    child.kill()?;
    child.wait()?;
    alone?;

    // With a manager it learns what came meanwhile.
    node.up().await?;
    until_health(&node, "manager", serving).await?;
    until_web(&red, server, &[&first]).await?;
    let second = address(&node.create("red-2", of("red", web("two", 8080))).await?);
    let mut both = [first.as_str(), second.as_str()];
    both.sort_unstable();
    until_web(&red, server, &both).await?;
    node.kill_manager()?;
    node.up().await?;
    node.delete("red-1").await?;
    until_web(&inside(&node, "red-2"), server, &[&second]).await?;
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_else_is_asked_of_the_upstreams() -> anyhow::Result<()> {
    // A resolver of the host's that knows one address for every name.
    let upstream = UdpSocket::bind("127.0.0.1:0")?;
    let port = upstream.local_addr()?.port();
    let answering = std::thread::spawn(move || -> anyhow::Result<()> {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, from) = upstream.recv_from(&mut buffer)?;
            let query = Message::from_vec(&buffer[..length])?;
            let name = query.queries.first().context("a question")?.name().clone();
            let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
            answer.add_queries(query.queries.clone());
            let data = RData::A(hickory_proto::rr::rdata::A([192, 0, 2, 9].into()));
            answer.add_answer(hickory_proto::rr::Record::from_rdata(
                name.clone(),
                60,
                data,
            ));
            upstream.send_to(&answer.to_vec()?, from)?;
            if name.to_ascii().starts_with("last.") {
                return Ok(());
            }
        }
    });
    let home = TestNode::new_home()?;
    let toml = format!("upstreams = [\"127.0.0.1\"]\nupstream_port = {port}\n");
    fs::write(home.path().join("dns.extra.toml"), toml)?;
    let node = TestNode::start_in(home, "", &[]).await?;
    let server = server(&node).await?;
    node.create("any", idle()).await?;
    let any = inside(&node, "any");
    for (over, name) in [
        (Over::Udp, "first.example.org."),
        (Over::Tcp, "last.example.org."),
    ] {
        let answer = ask(&any, server, over, name, RecordType::A)?;
        ensure!(texts(&answer) == ["192.0.2.9"], "{over:?}: {answer:?}");
        ensure!(answer.metadata.recursion_available && !answer.metadata.authoritative);
    }
    answering.join().ok().context("the upstream")??;
    let kept = ask(&any, server, Over::Udp, "last.example.org.", RecordType::A)?;
    ensure!(texts(&kept) == ["192.0.2.9"], "nobody is there to ask");
    let lost = ask(&any, server, Over::Udp, "more.example.org.", RecordType::A)?;
    ensure!(lost.metadata.response_code == ResponseCode::ServFail);
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subnet_that_is_used_up_says_so_and_is_free_again_after_delete_and_release()
-> anyhow::Result<()> {
    // A range for tests of network devices (RFC 2544): no host has business there.
    let base = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + (std::process::id() % 8192) * 16;
    let subnet = format!("{}/28", Ipv4Addr::from(base));
    let first = format!("{}/28", Ipv4Addr::from(base + 2));
    let home = TestNode::new_home()?;
    let toml = format!("network.subnet = \"{subnet}\"\nnetwork.cool_down = \"1h\"\n");
    let node = TestNode::start_in(home, &toml, &[]).await?;
    let accept = async |id: String| {
        let request = v1::CreateRequest {
            id,
            spec: Some(idle()),
            wait: v1::WaitFor::Accepted.into(),
            ..v1::CreateRequest::default()
        };
        node.sandboxes().create(request).await
    };
    for number in 0..13 {
        accept(format!("s-{number}")).await?;
    }
    let full = accept("more".into()).await.err().context("it is full")?;
    ensure!(full.code() == Code::ResourceExhausted, "{full:?}");
    let details = full.get_error_details();
    let reason = details.error_info().map(|it| it.reason.as_str());
    ensure!(reason == Some("ADDRESSES_EXHAUSTED"), "{reason:?}");
    let figures = details.quota_failure().context("figures")?;
    let figures = &figures.violations.first().context("figures")?.description;
    ensure!(figures.contains("13 of 13"), "{figures}");

    let held = node.berth(&["net", "leases", "--state", "held", "-o", "json"])?;
    let held: serde_json::Value = serde_json::from_str(&held)?;
    let address = held["leases"][0]["address"]
        .as_str()
        .context("an address")?;
    let refused = node.berth(&["net", "release", address]).err();
    let refused = refused.context("a record holds it")?.to_string();
    ensure!(refused.contains("is held by sandbox s-"), "{refused}");

    for number in 0..13 {
        node.delete(&format!("s-{number}")).await?;
    }
    let counts = async || -> anyhow::Result<_> {
        let answer = network(&node)
            .count_leases(v1::CountLeasesRequest {})
            .await?;
        let it = answer.into_inner();
        Ok((it.capacity, it.held, it.resting, it.free))
    };
    ensure!(counts().await? == (13, 0, 13, 0), "{:?}", counts().await);
    for line in node.berth(&["net", "leases"])?.lines().skip(1) {
        let address = line.split_whitespace().next().context("an address")?;
        address.parse::<IpAddr>()?;
        node.berth(&["net", "release", address])?;
    }
    ensure!(counts().await? == (13, 0, 0, 13), "{:?}", counts().await);
    ensure!(node.berth(&["net", "ls"])?.contains(&subnet));
    let next = node.create("next", idle()).await?;
    ensure!(next.status() == SandboxStatus::Running);
    ensure!(next.addresses[0].address == first, "{next:?}");
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_is_put_from_a_file_shown_and_taken_back() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let file = node.home().join("catalog.yaml");
    let text = "entries:\n- app: {id: red, name: Red}\n- version: {id: red-1, app: red}\n\
                - service: {id: red-web, app: red, name: web, ports: [{port: 80, targetPort: 8080}]}\n";
    fs::write(&file, text)?;
    let file = file.to_str().context("a path")?;
    node.berth(&["catalog", "put", "-f", file])?;
    let shown = node.berth(&["catalog", "ls", "-o", "yaml"])?;
    fs::write(file, &shown)?;
    node.berth(&["catalog", "put", "-f", file])?;
    ensure!(
        node.berth(&["catalog", "ls", "-o", "yaml"])? == shown,
        "{shown}"
    );
    node.kill_manager()?;
    node.up().await?;
    ensure!(
        node.berth(&["catalog", "ls", "-o", "yaml"])? == shown,
        "it outlives the manager"
    );
    node.berth(&["catalog", "rm", "service", "red-web"])?;
    let request = v1::ListEntriesRequest {
        kind: EntryKind::Service.into(),
        ..v1::ListEntriesRequest::default()
    };
    let left = catalog(&node).list_entries(request).await?.into_inner();
    ensure!(left.entries.is_empty(), "{left:?}");
    fs::write(file, "entries: [{thing: {}}]")?;
    let refused = node.berth(&["catalog", "put", "-f", file]).err();
    let refused = refused.context("it is no entry")?.to_string();
    ensure!(refused.contains("thing"), "{refused}");
    node.finish()
}

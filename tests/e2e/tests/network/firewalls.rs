//! A node among firewalls of others, with real packets. Node, clients and sandboxes are network namespaces, so that each test
//! has a whole ruleset of its own.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use berth_api::v1::{self, Protocol};
use berth_e2e::{
    TestNode,
    hosts::{Apart, Host, received},
    node::{eventually, obtained, succeed},
    specs::{idle, web},
};

const SOON: Duration = Duration::from_secs(10);
const WEB: u16 = 8080;
const ECHO: u16 = 9000;
const SERVED: u16 = 7001;
/// TCP leads to `WEB`, UDP to `ECHO`.
const NODE_PORT: u16 = 30080;

/// As docker leaves them.
const DOCKER: &str = "
    iptables-nft -P FORWARD DROP
    iptables-nft -N DOCKER-USER
    iptables-nft -A DOCKER-USER -j RETURN
    iptables-nft -I FORWARD -j DOCKER-USER
    iptables-nft -A FORWARD -i docker0 -j ACCEPT";
const PLAIN: &str = "
    iptables-nft -P FORWARD DROP";
const REJECT: &str = "
    iptables-nft -A FORWARD -i lo -j ACCEPT
    iptables-nft -A FORWARD -j REJECT";

struct Scene {
    apart: Apart,
    /// May open connections to sandboxes.
    near: Host,
    /// May not.
    far: Host,
    client: Ipv4Addr,
    node: Ipv4Addr,
    front: Ipv4Addr,
}

impl Scene {
    async fn start(firewall: &str, toml: &str) -> anyhow::Result<Self> {
        let host = Host::new()?;
        let (mut near, client, node) = host.neighbour(1)?;
        let (far, _, _) = host.neighbour(2)?;
        host.shell(firewall)?;
        let toml = format!("network.reachable_from = [\"{client}/32\"]\n{toml}");
        let apart = Apart::start(host, &toml).await?;
        near.serve(SERVED, "client")?;
        let front = make(&apart).await?;
        Ok(Self {
            apart,
            near,
            far,
            client,
            node,
            front,
        })
    }

    /// Sends every kind of packet that others may drop, and fails at the first that arrives where it must not, or does not
    /// where it must.
    fn probe(&self, when: &str) -> anyhow::Result<()> {
        let (host, near, far) = (&self.apart.host, &self.near, &self.far);
        let (front, back) = (self.apart.inside("front"), self.apart.inside("back"));
        let at = |ip: Ipv4Addr, port: u16| SocketAddr::from((ip, port));
        let by_host = at(self.node, NODE_PORT);
        let direct = at(self.front, WEB);
        let client = at(self.client, SERVED);
        #[rustfmt::skip]
        let cases = [
            ("a node port, from another host", near.fetch(by_host), Some("front")),
            ("a node port, from a host that is not listed", far.fetch(by_host), Some("front")),
            ("a node port, by 127.0.0.1", host.fetch(at(Ipv4Addr::LOCALHOST, NODE_PORT)), Some("front")),
            ("a node port, from a sandbox", back.fetch(by_host), Some("front")),
            ("another host, from a sandbox", back.fetch(client), Some("client")),
            ("a sandbox, from a host that is listed", near.fetch(direct), Some("front")),
            ("a sandbox, from a host that is not listed", far.fetch(direct), None),
            ("a sandbox, from another", back.fetch(direct), None),
        ];
        for (what, got, expected) in cases {
            ensure!(got.as_deref() == expected, "{when}: {what} gives {got:?}");
        }

        let (asks, answers) = (far.udp(0)?, front.udp(ECHO)?);
        asks.send_to(b"question", by_host)?;
        let (text, from) = received(&answers).context("a datagram to a node port")?;
        ensure!(text == "question", "{when}: {text}");
        answers.send_to(b"answer", from)?;
        let answer = received(&asks);
        let expected = Some(("answer".to_owned(), by_host));
        ensure!(
            answer == expected,
            "{when}: a node port by UDP gives {answer:?}"
        );
        Ok(())
    }

    /// As `probe`, whether frames between ports of a bridge pass the rules of iptables or not.
    fn probe_bridged(&self, when: &str) -> anyhow::Result<()> {
        for call in ["0", "1"] {
            let sysctl = format!("echo {call} >/proc/sys/net/bridge/bridge-nf-call-iptables");
            self.apart.host.shell(&sysctl)?;
            self.probe(&format!("{when}, bridge-nf-call-iptables {call}"))?;
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

    /// Our rules in the tables of iptables, as iptables itself reads them: each as the chain that it is in.
    fn accepts(&self) -> anyhow::Result<Vec<String>> {
        let instance = std::fs::read_to_string(self.apart.node.home().join("instance"))?;
        let mark = format!("\"Berth, instance {}: ", instance.trim());
        let listed = self.apart.host.run("iptables-nft -S")?;
        let own = listed.lines().filter(|it| it.contains(&mark));
        let chain = |it: &str| it.split(' ').nth(1).unwrap_or_default().to_owned();
        Ok(own.map(chain).collect())
    }

    /// As `berth` tells it, to people and to programs.
    fn ensure_told(&self, chain: &str) -> anyhow::Result<()> {
        let node = &self.apart.node;
        let rules: serde_json::Value =
            serde_json::from_str(&node.berth(&["net", "rules", "-o", "json"])?)?;
        let accepts = rules["foreignAccepts"].as_array().context("accepts")?;
        ensure!(
            accepts.iter().all(|it| it["chain"] == chain) && accepts.len() == 2,
            "{rules}"
        );
        ensure!(rules["table"]["stands"] == true, "{rules}");
        let front = &rules["sandboxes"][1];
        ensure!(front["sandbox"] == "front", "{rules}");
        ensure!(front["addresses"][0] == self.front.to_string(), "{rules}");
        let told = node.berth(&["net", "rules", "front"])?;
        for part in [
            format!("accept in chain {chain} of table ip filter"),
            format!("{NODE_PORT}/tcp->{WEB},{NODE_PORT}/udp->{ECHO}"),
        ] {
            ensure!(told.contains(&part), "{part}: {told}");
        }
        ensure!(!told.contains("back"), "{told}");
        let page = node.berth(&["get", "back"])?;
        ensure!(
            page.lines()
                .any(|it| it.starts_with("denied") && it.contains("packets")),
            "{page}"
        );
        let page = node.berth(&["get", "front"])?;
        let port = format!("{WEB}/tcp, port {NODE_PORT} of the node  BOUND");
        ensure!(page.contains(&port), "{page}");
        Ok(())
    }

    fn ensure_accepts_in(&self, chain: &str) -> anyhow::Result<()> {
        let accepts = self.accepts()?;
        ensure!(accepts == [chain, chain], "{accepts:?}");
        Ok(())
    }

    fn subnet(&self) -> String {
        let first = Ipv4Addr::from(u32::from(self.front) & 0xffff_ff00);
        format!("{first}/24")
    }

    async fn complaints(&self) -> anyhow::Result<Vec<String>> {
        let degraded = self.apart.node.status().await?.degraded.into_iter();
        Ok(degraded.filter(|it| it.contains("forwarded")).collect())
    }

    async fn restart_manager(&self) -> anyhow::Result<()> {
        self.apart.node.kill_manager()?;
        self.apart.node.up().await
    }
}

/// A sandbox with a node port by TCP and by UDP, and one that only asks. Whoever needs an app behind the port by UDP is that
/// himself; until it is RUNNING, this is.
async fn make(apart: &Apart) -> anyhow::Result<Ipv4Addr> {
    let node = &apart.node;
    node.create("back", idle()).await?;
    let mut front = web("front", WEB.into());
    let ports = &mut front.containers[0].ports;
    ports[0].node_port = NODE_PORT.into();
    ports.push(v1::Port {
        port: ECHO.into(),
        protocol: Protocol::Udp.into(),
        node_port: NODE_PORT.into(),
        ..v1::Port::default()
    });
    node.accept("front", front).await?;
    let bound = || async { apart.inside("front").udp(ECHO) };
    let _app = obtained("its network", SOON, bound).await?;
    let runs = || async {
        let found = node.get("front").await;
        found.is_ok_and(|it| it.status() == v1::SandboxStatus::Running)
    };
    eventually("front is RUNNING", SOON, runs).await?;
    address(node, "front").await
}

async fn address(node: &TestNode, id: &str) -> anyhow::Result<Ipv4Addr> {
    match node.addresses(id).await?.first() {
        Some(IpAddr::V4(it)) => Ok(*it),
        other => Err(anyhow!("{other:?}")),
    }
}

#[tokio::test]
async fn packets_pass_a_firewall_of_others_that_drops_what_is_forwarded() -> anyhow::Result<()> {
    for (firewall, chain) in [
        (DOCKER, "DOCKER-USER"),
        (PLAIN, "FORWARD"),
        (REJECT, "FORWARD"),
    ] {
        let scene = Scene::start(firewall, "").await?;
        let host = &scene.apart.host;
        scene.probe_bridged("at first")?;
        scene.ensure_accepts_in(chain)?;
        scene.ensure_told(chain)?;
        ensure!(scene.complaints().await?.is_empty());

        // As it is loaded again from its own files.
        host.run("iptables-nft -F")?;
        host.run("iptables-nft -X")?;
        host.shell(firewall)?;
        scene.probe_eventually("behind a reload").await?;
        // Between the flush and the load there may have been a look.
        let placed = || async { scene.ensure_accepts_in(chain).is_ok() };
        eventually("the accepts are where their owner wants them", SOON, placed).await?;

        // As it is saved and loaded again, our rules with it, in the words of iptables.
        let saved = scene.apart.node.home().join("saved");
        let saved = saved.display();
        host.shell(&format!(
            "iptables-nft-save >{saved}; iptables-nft-restore <{saved}"
        ))?;
        scene.restart_manager().await?;
        scene.ensure_accepts_in(chain)?;
        scene.probe("behind a restart")?;

        scene.apart.node.delete("front").await?;
        scene.apart.node.delete("back").await?;
        scene.apart.node.kill_manager()?;
        let uninstalled = || async {
            let config = scene.apart.node.home().join("sandbox-manager.toml");
            let program = berth_e2e::node::programs().join("sandbox-manager");
            let mut uninstall = host.command(&program.to_string_lossy());
            uninstall.arg("--config").arg(config).arg("uninstall");
            uninstall.output().is_ok_and(|it| it.status.success())
        };
        eventually("it is uninstalled", SOON, uninstalled).await?;
        ensure!(scene.accepts()?.is_empty());
        scene.apart.finish()?;
    }
    Ok(())
}

#[tokio::test]
async fn a_firewall_that_comes_later_is_met_within_seconds() -> anyhow::Result<()> {
    let scene = Scene::start("", "").await?;
    let host = &scene.apart.host;
    scene.probe_bridged("without a firewall")?;
    host.shell(PLAIN)?;
    scene.probe_eventually("behind FORWARD DROP").await?;
    scene.ensure_accepts_in("FORWARD")?;

    // Docker comes, and others belong into its chain from then on.
    host.shell(DOCKER)?;
    let moved = || async { scene.ensure_accepts_in("DOCKER-USER").is_ok() };
    eventually("they have moved", SOON, moved).await?;
    scene.probe_bridged("behind docker")?;

    // Of one that nobody has told us about, a person hears, while it drops.
    let table = "add table inet mine
        add chain inet mine forward { type filter hook forward priority 0; policy drop; }";
    host.shell(&format!("nft -f - <<'END'\n{table}\nEND"))?;
    let told = || async {
        let complaints = scene.complaints().await.unwrap_or_default();
        complaints
            .iter()
            .any(|it| it.contains("chain forward of table inet mine"))
    };
    eventually("it is told", SOON, told).await?;
    ensure!(scene.probe("behind a firewall that drops").is_err());
    let quiet = || async { scene.complaints().await.is_ok_and(|it| it.is_empty()) };
    let subnet = scene.subnet();
    let accepts = ["iifname \"bt*\" ip saddr", "oifname \"bt*\" ip daddr"];
    for rule in accepts {
        host.shell(&format!(
            "nft 'insert rule inet mine forward {rule} {subnet} accept'"
        ))?;
    }
    eventually("it is mended", SOON, quiet).await?;
    scene.probe("behind a firewall that accepts")?;
    host.run("nft delete table inet mine")?;

    // As firewalld has it: zones that are told by their sources.
    let firewalld = "table inet firewalld {
            chain filter_FORWARD {
                type filter hook forward priority 10; policy accept;
                ct state established,related accept
                ct status dnat accept
                jump filter_FORWARD_ZONES
                reject with icmpx admin-prohibited
            }
            chain filter_FORWARD_ZONES { }
            chain filter_FWD_trusted { accept; }
        }";
    host.shell(&format!("nft -f - <<'END'\n{firewalld}\nEND"))?;
    let told = || async { scene.complaints().await.is_ok_and(|it| it.len() == 1) };
    eventually("it is told", SOON, told).await?;
    host.run(&format!(
        "nft add rule inet firewalld filter_FORWARD_ZONES ip saddr {subnet} goto filter_FWD_trusted"
    ))?;
    eventually("the zone has its source", SOON, quiet).await?;
    host.run("nft delete table inet firewalld")?;
    scene.probe("without it")?;
    scene.apart.finish()
}

#[tokio::test]
async fn a_firewall_of_iptables_legacy_is_told_with_what_it_takes() -> anyhow::Result<()> {
    let scene = Scene::start("", "").await?;
    let host = &scene.apart.host;
    ensure!(scene.complaints().await?.is_empty());
    host.run("iptables-legacy -P FORWARD DROP")?;
    let told = || async { scene.complaints().await.is_ok_and(|it| it.len() == 1) };
    eventually("it is told", SOON, told).await?;
    ensure!(scene.probe("behind a firewall that drops").is_err());
    let complaints = scene.complaints().await?;
    let commands: Vec<_> = complaints[0].split('`').skip(1).step_by(2).collect();
    ensure!(commands.len() == 2, "{complaints:?}");
    for command in commands {
        host.run(command)?;
    }
    scene.probe("behind a firewall that accepts")?;
    let quiet = || async { scene.complaints().await.is_ok_and(|it| it.is_empty()) };
    eventually("nothing is left to be told", SOON, quiet).await?;
    scene.apart.finish()
}

#[tokio::test]
async fn a_firewall_of_others_is_left_alone_where_the_configuration_says_so() -> anyhow::Result<()>
{
    let scene = Scene::start(DOCKER, "network.foreign_accept = false").await?;
    let complaints = scene.complaints().await?;
    let named = complaints
        .iter()
        .any(|it| it.contains("chain DOCKER-USER of table ip filter"));
    ensure!(named, "{complaints:?}");
    ensure!(scene.accepts()?.is_empty());
    let by_host = SocketAddr::from((scene.node, NODE_PORT));
    ensure!(scene.near.fetch(by_host).is_none());

    // What it says helps.
    let subnet = scene.subnet();
    for rule in [
        format!("iifname \"bt*\" ip saddr {subnet}"),
        format!("oifname \"bt*\" ip daddr {subnet}"),
    ] {
        ensure!(
            !rule.starts_with('i') || complaints[0].contains(&rule),
            "{complaints:?}"
        );
        scene.apart.host.shell(&format!(
            "nft 'insert rule ip filter DOCKER-USER {rule} accept'"
        ))?;
    }
    scene.probe("by hand")?;
    let quiet = || async { scene.complaints().await.is_ok_and(|it| it.is_empty()) };
    eventually("nothing is left to be told", SOON, quiet).await?;
    scene.apart.finish()
}

#[tokio::test]
async fn a_ruleset_that_is_flushed_is_healed_whatever_was_killed_before() -> anyhow::Result<()> {
    let scene = Scene::start(DOCKER, "").await?;
    let host = &scene.apart.host;
    let flush = async |when: &str| {
        host.run("nft flush ruleset")?;
        let gone = host.run("nft list ruleset")?;
        ensure!(!gone.contains("DOCKER-USER"), "{gone}");
        scene.probe_eventually(when).await
    };
    flush("behind a flush").await?;
    host.shell(DOCKER)?;
    scene.probe_eventually("behind docker").await?;

    scene.apart.node.kill_manager()?;
    scene.probe("without a manager")?;
    scene.apart.node.up().await?;
    flush("behind a kill of the manager").await?;

    scene.apart.node.end_containerd().await?;
    scene.apart.node.up().await?;
    flush("behind a restart of containerd").await?;

    // Nobody is there to see it, and the next start does.
    scene.apart.node.kill_manager()?;
    host.run("nft flush ruleset")?;
    host.shell(DOCKER)?;
    scene.apart.node.up().await?;
    scene.probe_bridged("behind a flush without a manager")?;
    scene.ensure_accepts_in("DOCKER-USER")?;
    scene.apart.node.assert_clean().await?;
    scene.apart.finish()
}

#[tokio::test]
async fn the_metadata_service_and_ipv6_are_out_of_reach() -> anyhow::Result<()> {
    let scene = Scene::start("", "").await?;
    let (node, host) = (&scene.apart.node, &scene.apart.host);
    let back = scene.apart.inside("back");
    // A host on which such a service answers, and which would forward IPv6.
    host.run("ip addr add 169.254.169.254/32 dev lo")?;
    host.shell("echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")?;
    let denied = async || anyhow::Ok(node.denied("back").await?.packets);
    let before = denied().await?;
    let ping = |ip: &str| {
        let line = format!("busybox ping -c 1 -W 1 {ip}");
        anyhow::Ok(back.command(&line).output()?.status.success())
    };
    ensure!(!ping("169.254.169.254")?, "the metadata service");
    ensure!(denied().await? > before, "it is not counted");

    let links = host.run("ip -o link show type veth")?;
    let (_, name) = links
        .lines()
        .find(|it| it.contains(" back"))
        .and_then(|it| it.split_once(": "))
        .context("its link")?;
    let (name, _) = name.split_once('@').context("a name")?;
    let own = host.run(&format!("ip -6 -o addr show dev {name} scope link"))?;
    let (_, own) = own.split_once("inet6 ").context("an address")?;
    let (node_end, _) = own.split_once('/').context("a prefix")?;
    back.shell("echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6")?;
    let has_one = || async {
        let own = back.run("ip -6 -o addr show dev eth0 scope link");
        own.is_ok_and(|it| it.contains("fe80") && !it.contains("tentative"))
    };
    eventually("it has an address of its own", SOON, has_one).await?;
    ensure!(!ping(&format!("{node_end}%eth0"))?, "the node by IPv6");

    // What keeps them out of reach is the table alone.
    node.kill_manager()?;
    let instance = std::fs::read_to_string(node.home().join("instance"))?;
    host.run(&format!("nft delete table inet berth-{}", instance.trim()))?;
    for ip in ["169.254.169.254".to_owned(), format!("{node_end}%eth0")] {
        let answers = || async { ping(&ip).unwrap_or(false) };
        eventually(&format!("{ip} answers"), SOON, answers).await?;
    }
    node.up().await?;
    ensure!(!ping("169.254.169.254")?, "behind a restart");
    scene.apart.finish()
}

#[tokio::test]
async fn a_node_port_is_there_with_running_and_gone_with_delete() -> anyhow::Result<()> {
    let scene = Scene::start(DOCKER, "network.cool_down = \"0s\"").await?;
    let node = &scene.apart.node;
    let by_host = SocketAddr::from((scene.node, NODE_PORT));
    for round in 0..3 {
        let got = scene.far.fetch(by_host);
        ensure!(
            got.as_deref() == Some("front"),
            "round {round}: RUNNING, and {got:?}"
        );
        node.delete("front").await?;
        ensure!(scene.far.fetch(by_host).is_none(), "round {round}: deleted");
        node.delete("back").await?;
        make(&scene.apart).await?;
    }
    scene.apart.finish()
}

#[tokio::test]
async fn answers_to_a_sandbox_that_is_gone_do_not_reach_the_next_owner_of_its_address()
-> anyhow::Result<()> {
    let scene = Scene::start("", "network.cool_down = \"0s\"").await?;
    let node = &scene.apart.node;
    let server = scene.near.udp(SERVED)?;
    let asks = scene.apart.inside("front").udp(ECHO)?;
    asks.send_to(b"question", (scene.client, SERVED))?;
    let (_, masqueraded) = received(&server).context("the question")?;
    ensure!(masqueraded.ip() == scene.node, "{masqueraded}");
    server.send_to(b"answer", masqueraded)?;
    ensure!(received(&asks).context("the answer")?.0 == "answer");
    // A host that is listed speaks to the address itself.
    let direct = SocketAddr::from((scene.front, ECHO));
    let speaks = scene.near.udp(0)?;
    speaks.send_to(b"direct", direct)?;
    ensure!(received(&asks).context("what is direct")?.0 == "direct");
    drop(asks);

    node.delete("front").await?;
    node.create("next", idle()).await?;
    ensure!(address(node, "next").await? == scene.front);
    let receiver = scene.apart.inside("next").udp(ECHO)?;
    server.send_to(b"late", masqueraded)?;
    // Behind a mark that is sent later, what was to come has come.
    speaks.send_to(b"mark", direct)?;
    let first = received(&receiver).context("the mark")?;
    ensure!(first.0 == "mark", "{first:?}");
    scene.apart.finish()
}

/// `iptables-nft` is asked all over this file, and a missing one would look like a firewall that is not there.
#[test]
fn iptables_is_the_one_on_nftables() -> anyhow::Result<()> {
    let version = succeed(Command::new("iptables-nft").arg("--version"))?;
    ensure!(version.contains("nf_tables"), "{version}");
    Ok(())
}

//! What a packet of a sandbox costs where the rules know one sandbox, and where they know many: a datagram there and back in a
//! flow that stands, and a new TCP connection, to a host beyond the node. In turn with both, and with no rules at all. Hosts
//! and sandboxes are network namespaces of this program's own.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_domain::{
    Destination, Egress, Generation, InstanceId, Names, NetworkPolicy, Sandbox, SandboxId,
    SandboxSpec, ipam::Subnets,
};
use berth_e2e::hosts::{Host, Place, received};
use berth_netns::{NetnsNetwork, Settings};
use berth_platform::Network as _;
use ipnet::{IpNet, Ipv4Net};
use rustix::{
    net::sockopt,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use serde_json::json;

use crate::statistics::{Sample, rounded};

const INSTANCE: &str = "bench";
const SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 86, 0, 0), 16);
const PORT: u16 = 7001;
/// As many as a spec may have.
const DESTINATIONS: u8 = 255;
/// Of each measurement, before what is counted.
const WARM_UP: usize = 20;

/// Measures the rules of the network: a packet beside 1 and beside many sandboxes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// An empty folder for what names the sandboxes.
    #[arg(long)]
    dir: PathBuf,
    /// How many there are where there are many.
    #[arg(long, default_value_t = 200)]
    sandboxes: u8,
    /// How often each is measured, in turn.
    #[arg(long, default_value_t = 25)]
    rounds: usize,
    /// Datagrams, and connections, of each measurement.
    #[arg(long, default_value_t = 300)]
    operations: usize,
    /// Where the figures go as JSON.
    #[arg(long)]
    output: PathBuf,
}

/// What the tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rules {
    None,
    OfOne,
    OfMany,
}

/// Whether the sandbox has a list, in which what it reaches is found at the very end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Policy {
    Open,
    Listed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Datagram,
    Connection,
}

/// The samples of each round.
type Measured = BTreeMap<(Policy, Work, Rules), Vec<Sample>>;

pub(crate) fn measure(arguments: Arguments) -> anyhow::Result<()> {
    ensure!(
        arguments.rounds > 0 && arguments.sandboxes > 1,
        "there is nothing to compare"
    );
    let host = Host::new()?;
    let (beyond, far, _) = host.neighbour(1)?;
    answer(&beyond)?;
    let namespace = host.to_path_buf();
    let output = arguments.output.clone();
    let count = arguments.sandboxes;
    let measured = host.within(move || {
        let enter = move || {
            let file = std::fs::File::open(&namespace).expect("the host is there");
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&file),
                Some(LinkNameSpaceType::Network),
            )
            .expect("root may enter it");
        };
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime
            .worker_threads(2)
            .enable_all()
            .on_thread_start(enter)
            .build()?;
        runtime.block_on(run(&arguments, far))
    })?;
    let figures = say(count, &measured);
    if let Some(dir) = output.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(&output, format!("{figures:#}\n")).context("writing the figures")
}

async fn run(arguments: &Arguments, far: Ipv4Addr) -> anyhow::Result<Measured> {
    let settings = settings(&arguments.dir)?;
    let namespaces = settings.names.namespaces_dir();
    let network = NetnsNetwork::start(settings.clone()).await?;
    let open = sandbox(0, Policy::Open)?;
    let listed = sandbox(1, Policy::Listed)?;
    let others = (2..=arguments.sandboxes).map(|it| sandbox(it, Policy::Listed));
    let others = others.collect::<anyhow::Result<Vec<_>>>()?;
    let all: Vec<_> = [open.clone(), listed.clone()]
        .into_iter()
        .chain(others)
        .collect();
    for it in &all {
        network.open_namespaces(it).await?;
        network.attach_link(it).await?;
    }
    let measured = async {
        let mut measured = Measured::new();
        for _ in 0..arguments.rounds {
            for (policy, subject) in [(Policy::Open, &open), (Policy::Listed, &listed)] {
                let place = Place::at(namespaces.join(subject.id.as_str()).join("net"));
                for rules in [Rules::None, Rules::OfOne, Rules::OfMany] {
                    match rules {
                        Rules::None => remove_rules()?,
                        Rules::OfOne => network.restore(vec![subject.clone()]).await?,
                        Rules::OfMany => network.restore(all.clone()).await?,
                    }
                    let operations = arguments.operations;
                    let [datagrams, connections] =
                        place.within(move || probe(far.into(), operations))?;
                    for (work, sample) in
                        [(Work::Datagram, datagrams), (Work::Connection, connections)]
                    {
                        measured
                            .entry((policy, work, rules))
                            .or_default()
                            .push(sample);
                    }
                }
            }
        }
        anyhow::Ok(measured)
    };
    let measured = measured.await;
    for it in &all {
        network.detach_link(&it.id).await?;
        network.close_namespaces(&it.id).await?;
    }
    NetnsNetwork::uninstall(&settings).await?;
    measured
}

fn settings(dir: &Path) -> anyhow::Result<Settings> {
    Ok(Settings {
        names: Names {
            instance: InstanceId::parse(INSTANCE)?,
            cgroup_parent: format!("berth/{INSTANCE}"),
            run_dir: dir.join("run"),
            log_dir: dir.join("log"),
        },
        bridge: format!("br-{INSTANCE}"),
        subnets: Subnets {
            v4: SUBNET,
            v6: None,
        },
        reachable_from: vec![],
        connections_max: 16_384,
        foreign_accept: false,
    })
}

fn sandbox(number: u8, policy: Policy) -> anyhow::Result<Sandbox> {
    let host = |last| IpNet::from(IpAddr::from(Ipv4Addr::new(198, 51, 100, last)));
    let egress = match policy {
        Policy::Open => Egress::Open,
        Policy::Listed => {
            let hosts = (0..DESTINATIONS).map(|it| Destination {
                net: host(it),
                port: None,
            });
            // Looked up behind all longer ones.
            let net = IpNet::from(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
            Egress::Allow(hosts.chain([Destination { net, port: None }]).collect())
        }
    };
    let spec = SandboxSpec {
        network: NetworkPolicy {
            egress,
            ..NetworkPolicy::default()
        },
        ..SandboxSpec::default()
    };
    let address = Ipv4Addr::new(10, 86, 1, number);
    Ok(Sandbox {
        generation: Generation(u64::from(number) + 1),
        spec: Arc::new(spec),
        addresses: vec![Ipv4Net::new_assert(address, SUBNET.prefix_len()).into()],
        ..Sandbox::of_id(SandboxId::parse(&format!("bench-{number}"))?)
    })
}

fn remove_rules() -> anyhow::Result<()> {
    for family in ["inet", "arp"] {
        let mut nft = std::process::Command::new("nft");
        nft.args(["delete", "table", family, &format!("berth-{INSTANCE}")]);
        ensure!(nft.status()?.success(), "removing the rules");
    }
    Ok(())
}

/// Sends back every datagram, and takes every connection, until the program ends.
fn answer(beyond: &Place) -> anyhow::Result<()> {
    let socket = beyond.within(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    let listener = beyond.within(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?))?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"a");
        }
    });
    Ok(())
}

/// In the network of a sandbox.
fn probe(far: IpAddr, operations: usize) -> anyhow::Result<[Sample; 2]> {
    let to = SocketAddr::new(far, PORT);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(to)?;
    let datagrams = sampled(operations, || {
        socket.send(b"a")?;
        received(&socket).context("the answer")?;
        Ok(())
    })?;
    let connections = sampled(operations, || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
        // The other side keeps up.
        stream.read_exact(&mut [0])?;
        // It ends at once, and leaves nothing that the next ones are counted with.
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        Ok(())
    })?;
    Ok([datagrams, connections])
}

fn sampled(
    operations: usize,
    mut work: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Sample> {
    let mut sample = Sample::default();
    for number in 0..WARM_UP + operations {
        let begun = Instant::now();
        work()?;
        if number >= WARM_UP {
            sample.add(begun.elapsed());
        }
    }
    Ok(sample)
}

/// Prints the figures, and returns them as they are kept.
#[expect(clippy::print_stdout, reason = "it is what the program is for")]
fn say(count: u8, measured: &Measured) -> serde_json::Value {
    let mut figures = vec![];
    println!(
        "packets of a sandbox, microseconds; median of the rounds' medians (the middle half of them):"
    );
    for policy in [Policy::Open, Policy::Listed] {
        for work in [Work::Datagram, Work::Connection] {
            // Of each round, so that both sides of a ratio are of one moment.
            let medians = |rules| -> Vec<f64> {
                let samples = &measured[&(policy, work, rules)];
                samples.iter().map(|it| it.quantile(0.5) * 1e3).collect()
            };
            let [none, one, many] = [Rules::None, Rules::OfOne, Rules::OfMany].map(medians);
            let ratio = |of: &[f64], to: &[f64]| spread(of.iter().zip(to).map(|(a, b)| a / b));
            let (to_one, to_none) = (ratio(&many, &one), ratio(&one, &none));
            let n = measured[&(policy, work, Rules::OfOne)]
                .iter()
                .map(Sample::len)
                .sum::<usize>();
            println!("  {policy:?}, {work:?}, n = {n} of each:");
            let mut row = json!({
                "policy": format!("{policy:?}"), "work": format!("{work:?}"), "n": n, "rounds": one.len(),
                "sandboxes": count,
            });
            for (name, [middle, low, high]) in [
                ("no rules", spread(none.iter().copied())),
                ("one sandbox", spread(one.iter().copied())),
                ("many sandboxes", spread(many.iter().copied())),
                ("ratio, many to one", to_one),
                ("ratio, one to no rules", to_none),
            ] {
                println!("    {name:<24} {middle:8.3} ({low:.3}-{high:.3})");
                row[name] =
                    json!({ "p50": rounded(middle), "p25": rounded(low), "p75": rounded(high) });
            }
            figures.push(row);
        }
    }
    json!({ "packets": figures })
}

/// The median, and between what the middle half of the values lies: whatever else runs on the machine is in the rest.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let quarter = |number: usize| sorted.get(last * number / 4).copied().unwrap_or(f64::NAN);
    [quarter(2), quarter(1), quarter(3)]
}

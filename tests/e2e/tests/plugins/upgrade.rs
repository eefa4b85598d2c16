//! Every process of a node is replaced by another build, one after another, and then by the former one. No sandbox notices,
//! and nobody who speaks to one.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{self, RecvTimeoutError},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, anyhow, ensure};
use berth_api::v1::{
    self, EgressMode, NetworkPolicy, PluginState, SandboxSpec, SandboxStatus,
    metrics_service_client::MetricsServiceClient,
};
use berth_e2e::{
    TestNode,
    hosts::{Apart, Host, Place},
    logs::{entries, output},
    node::{obtained, programs, succeed},
    specs::{shell, spec, web},
};
use berth_logs::format::Kind;
use futures::{StreamExt as _, TryStreamExt as _, stream};

const SANDBOXES: u16 = 50;
const WEB: u16 = 8080;
/// The first of their node ports.
const PUBLISHED: u16 = 20_000;
/// The manager goes first, so that each of the others is for some time of an older build than it, and of a newer one on
/// the way back.
const PROCESSES: [&str; 5] = ["manager", "dns", "metrics", "watchdog", "image-gc-1"];
const SOON: Duration = Duration::from_secs(30);
/// Between the requests of one client, so that the machine has time for something else.
const PACE: Duration = Duration::from_millis(2);
/// What log-writers say, and as many other bytes, which make another one of the one that the manager holds.
const WORD_OF_WRITERS: &str = "processes died and was replaced";
const OTHER_WORD: &str = "processes died; it was replaced";
/// Serves the number of the line that it has written last.
const LINE: &str = "mkdir -p /www; \
    (n=0; while :; do for i in 1 2 3 4 5; do n=$((n+1)); echo line $n; done; echo $n > /www/new; mv /www/new /www/index.html; sleep 1; done) & \
    exec httpd -f -p 8080 -h /www";
/// Also asks the neighbour, which it may not.
const KNOCK: &str = "(while :; do nc -w 1 100.64.1.2 80 < /dev/null; sleep 1; done) 2>/dev/null & ";

/// A copy of the programs that says to be of another version, and is another log-writer too.
struct OtherBuild {
    folder: PathBuf,
    version: String,
}

impl OtherBuild {
    fn make(folder: PathBuf) -> anyhow::Result<Self> {
        let own = env!("CARGO_PKG_VERSION");
        let last = if own.ends_with('9') { '8' } else { '9' };
        let version = format!("{}{last}", &own[..own.len() - 1]);
        let change = format!(
            "s/{}/{version}/g; s/{WORD_OF_WRITERS}/{OTHER_WORD}/g",
            own.replace('.', "\\.")
        );
        fs::create_dir(&folder)?;
        for name in [
            "sandbox-manager",
            "dns",
            "metrics",
            "watchdog",
            "image-gc",
            "berth",
        ] {
            let (from, to) = (programs().join(name), folder.join(name));
            // Keeps the mode.
            fs::copy(&from, &to)?;
            succeed(
                Command::new("sed")
                    .env("LC_ALL", "C")
                    .args(["-i", &change])
                    .arg(&to),
            )?;
        }
        Ok(Self { folder, version })
    }
}

/// What a client has seen.
#[derive(Debug, Default)]
struct Tally {
    answered: u64,
    failed: Vec<String>,
    longest: Duration,
}

/// Asks one after another, from a thread of its own, until it is told to end.
struct Client {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<anyhow::Result<Tally>>,
}

impl Client {
    fn begin(at: Place, servers: Vec<SocketAddr>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let work = move || {
            let mut tally = Tally::default();
            for server in servers.iter().cycle() {
                let began = Instant::now();
                match number(*server) {
                    Ok(_) => tally.answered += 1,
                    Err(error) => tally.failed.push(format!("{server}: {error:#}")),
                }
                tally.longest = tally.longest.max(began.elapsed());
                if stopped.recv_timeout(PACE) == Err(RecvTimeoutError::Disconnected) {
                    break;
                }
            }
            Ok(tally)
        };
        let thread = std::thread::spawn(move || at.within(work));
        Self { stop, thread }
    }

    fn end(self) -> anyhow::Result<Tally> {
        drop(self.stop);
        self.thread.join().map_err(|_| anyhow!("it panicked"))?
    }
}

/// The line that a sandbox has written last.
fn number(server: SocketAddr) -> anyhow::Result<u64> {
    let patience = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&server, patience).context("connecting")?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page).context("reading")?;
    let (head, body) = page.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.contains(" 200 "), "{head}");
    Ok(body.trim().parse()?)
}

fn id(number: u16) -> String {
    format!("box-{number}")
}

fn writer(number: u16) -> SandboxSpec {
    let mut spec = match number {
        0 => spec([shell("web", &format!("{KNOCK}{LINE}"), &[WEB.into()])]),
        _ => spec([shell("web", LINE, &[WEB.into()])]),
    };
    if number == 0 {
        spec.network = Some(NetworkPolicy {
            egress: EgressMode::Deny.into(),
            ..NetworkPolicy::default()
        });
    }
    spec.containers[0].ports[0].node_port = (PUBLISHED + number).into();
    spec
}

/// What must not change of a sandbox.
async fn standing(node: &TestNode) -> anyhow::Result<Vec<String>> {
    let mut all: Vec<_> = node.list().await?;
    all.retain(|it| it.id.starts_with("box-"));
    all.sort_by(|a, b| a.id.cmp(&b.id));
    let figures = all.iter().map(|it| {
        let (status, since) = (it.status(), it.since);
        let (generation, restarts) = (it.generation, it.restarts);
        format!(
            "{} {status:?} since {since:?} {generation} {restarts}",
            it.id
        )
    });
    let tasks = node.tasks()?;
    let tasks = tasks.iter().filter(|(name, _)| name.contains(".box-"));
    let tasks = tasks.map(|(name, pid)| format!("{name} {pid}"));
    Ok(figures.chain(tasks).collect())
}

/// What only ever grows.
type Counters = BTreeMap<String, [u64; 7]>;

/// As the metrics process tells it, from samples taken after `since`.
async fn counters(node: &TestNode, since: SystemTime) -> anyhow::Result<Counters> {
    let socket = node.home().join("metrics.sock");
    let channel = berth_api::connect(&format!("unix:{}", socket.display())).await?;
    let request = v1::GatherRequest {
        since: Some(since.into()),
        ..v1::GatherRequest::default()
    };
    let answer = MetricsServiceClient::new(channel).gather(request).await?;
    let parts: Vec<_> = answer.into_inner().try_collect().await?;
    let mut all = Counters::new();
    for series in parts.into_iter().flat_map(|it| it.series) {
        let Some(last) = series.samples.last() else {
            continue;
        };
        let (usage, network) = (last.usage.unwrap_or_default(), last.network);
        let network = network.context("a sandbox has a link")?;
        let figures = [
            usage.total_cpu_time,
            usage.kernel_cpu_time,
            usage.oom_kills,
            network.received_bytes,
            network.sent_bytes,
            network.received_packets,
            network.sent_packets,
        ];
        all.insert(series.sandbox, figures);
    }
    let known = all.keys().filter(|it| it.starts_with("box-")).count();
    ensure!(known == usize::from(SANDBOXES), "{known} have a sample");
    Ok(all)
}

/// None has gone back.
fn none_was_reset(before: &Counters, after: &Counters) -> anyhow::Result<()> {
    for (id, was) in before {
        let is = after.get(id).with_context(|| format!("{id} is gone"))?;
        let grown = was.iter().zip(is).all(|(was, is)| was <= is);
        ensure!(grown, "{id}: {was:?}, then {is:?}");
    }
    Ok(())
}

/// Ends a process in order and starts that of another build.
async fn replace(node: &TestNode, process: &str, folder: &Path) -> anyhow::Result<()> {
    node.end(process, "-TERM", SOON)?;
    let folder = folder.to_str().context("a path is text")?;
    let environment = [
        ("BERTH_BIN", folder),
        ("BERTH_DEV_PROCESSES", "dns metrics watchdog"),
        // How full the disk of the machine is, is not the test's.
        ("BERTH_IMAGE_GC_DISK_PRESSURE_THRESHOLD", "100"),
    ];
    node.up_with(&environment).await
}

/// Waits until all that were replaced, and only those, have said that they are of `version`.
async fn are_of(node: &TestNode, replaced: &[&str], version: &str) -> anyhow::Result<()> {
    let all = || async {
        let status = node.status().await?;
        let mut own: Vec<_> = vec![("manager", status.version.as_str())];
        for it in &status.plugins {
            ensure!(it.state() == PluginState::Serving, "{it:?}");
            let name = match it.name.as_str() {
                "image-gc" => "image-gc-1",
                other => other,
            };
            own.push((name, &it.version));
        }
        ensure!(own.len() == PROCESSES.len(), "{own:?}");
        for (name, says) in &own {
            let expected = replaced.contains(name);
            ensure!((*says == version) == expected, "{own:?}");
        }
        Ok(())
    };
    obtained(&format!("{replaced:?} are of {version}"), SOON, all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_is_replaced_by_another_build_and_back_under_load_and_nobody_notices()
-> anyhow::Result<()> {
    let host = Host::new()?;
    let (far, _, reached) = host.neighbour(1)?;
    let apart = Apart::start(host, "").await?;
    let node = &apart.node;
    let own = programs();
    let other = OtherBuild::make(node.home().join("other"))?;
    fs::write(node.home().join("image-gc.workers"), "1")?;
    replace(node, "dns", &own).await?;
    let began = Instant::now();
    let made = stream::iter(0..SANDBOXES).map(|it| async move {
        let made = node.create(&id(it), writer(it)).await?;
        ensure!(made.status() == SandboxStatus::Running, "{made:?}");
        node.addresses(&id(it))
            .await?
            .first()
            .copied()
            .context("an address")
    });
    let addresses: Vec<IpAddr> = made.buffered(4).try_collect().await?;
    println!("{SANDBOXES} sandboxes stood after {:?}", began.elapsed());
    let before = standing(node).await?;
    ensure!(before.len() == 3 * usize::from(SANDBOXES), "{before:?}");

    let by_address: Vec<_> = addresses
        .iter()
        .map(|it| SocketAddr::from((*it, WEB)))
        .collect();
    let by_node_port = (0..SANDBOXES).map(|it| SocketAddr::from((reached, PUBLISHED + it)));
    let (near, beyond) = ((*apart.host).clone(), (*far).clone());
    let clients = [
        ("at its address", Client::begin(near, by_address.clone())),
        (
            "at its node port",
            Client::begin(beyond, by_node_port.collect()),
        ),
    ];
    are_of(node, &PROCESSES, env!("CARGO_PKG_VERSION")).await?;
    let began = Instant::now();
    let mut figures = obtained("all are measured", SOON, || counters(node, UNIX_EPOCH)).await?;
    let first = figures.clone();
    let mut denied = node.denied("box-0").await?.packets;
    let builds = [
        (other.folder.as_path(), other.version.as_str()),
        (own.as_path(), env!("CARGO_PKG_VERSION")),
    ];
    for (folder, version) in builds {
        for (place, process) in PROCESSES.iter().enumerate() {
            let since = SystemTime::now();
            replace(node, process, folder).await?;
            are_of(node, &PROCESSES[..=place], version).await?;
            let shown = node.berth(&["node", "status"])?;
            // Of a node that is of one build, nothing is marked.
            let mixed = place + 1 < PROCESSES.len();
            ensure!(
                shown.contains(&format!("* the manager is {version}")) == mixed,
                "{shown}"
            );
            if matches!(*process, "manager" | "metrics") {
                let fresh = || counters(node, since);
                let measured = obtained("all are measured", SOON, fresh).await?;
                none_was_reset(&figures, &measured)?;
                figures = measured;
            }
            let now = node.denied("box-0").await?.packets;
            ensure!(
                now >= denied,
                "{denied} packets were denied, and then {now}"
            );
            denied = now;
        }
        // What is new is of the new build, its log-writer too, and stays with the next one.
        let own = format!("of-{}", version.replace('.', "-"));
        node.create(&own, web("new", WEB.into())).await?;
        let writers = fs::read_dir(node.home().join("state"))?
            .filter_map(|it| it.ok()?.file_name().into_string().ok())
            .filter(|it| it.starts_with("log-writer-"));
        ensure!(writers.count() == 2, "that of each build runs");
    }
    println!("replaced twice within {:?}", began.elapsed());
    let grown = |it: &String| figures.get(it) > first.get(it);
    ensure!(first.keys().all(grown), "{first:?}, then {figures:?}");
    ensure!(denied > 0, "nothing was denied");
    for (how, client) in clients {
        let tally = client.end()?;
        println!(
            "{how}: {} requests, the longest took {:?}",
            tally.answered, tally.longest
        );
        ensure!(tally.failed.is_empty(), "{how}: {:#?}", tally.failed);
        ensure!(tally.answered > 1000, "{how}: {tally:?}");
    }
    assert_eq!(standing(node).await?, before);

    let asked = move || by_address.into_iter().map(number).collect();
    let told: Vec<u64> = apart.host.within(asked)?;
    for (number, told) in (0..SANDBOXES).zip(told) {
        let id = id(number);
        let gaps = entries(node, &id, "web")
            .iter()
            .filter(|it| it.kind == Kind::Gap)
            .count();
        ensure!(gaps == 0, "{id} has {gaps} gaps");
        let written = || async {
            let text = output(node, &id, "web");
            let lines = text.lines().filter_map(|it| it.strip_prefix("line "));
            let lines: Vec<u64> = lines.map(str::parse).collect::<Result<_, _>>()?;
            let expected: Vec<u64> = (1..=u64::try_from(lines.len())?).collect();
            ensure!(lines == expected, "{id}: {lines:?}");
            ensure!(lines.last() >= Some(&told), "{id} says {told}: {lines:?}");
            Ok(())
        };
        obtained("its lines", SOON, written).await?;
    }
    let ids = node.list().await?.into_iter().map(|it| it.id);
    let gone = stream::iter(ids).map(|it| async move { node.delete(&it).await });
    gone.buffer_unordered(8).try_collect::<Vec<_>>().await?;
    node.assert_clean().await?;
    apart.finish()
}

//! The processes beside the manager die and come back, and no sandbox notices; a foreign one in Python is as good as ours.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{
    self, PluginState, SandboxStatus, catalog_service_client::CatalogServiceClient, entry::Object,
    image_gc_service_client::ImageGcServiceClient, metrics_service_client::MetricsServiceClient,
};
use berth_e2e::{
    TestNode,
    node::{eventually, obtained, root, succeed},
    specs::{idle, shell, spec, web},
};
use tonic::transport::Channel;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const KILLS: usize = 20;
/// From its start until a process is back at work: 5 s are promised, and a machine that is busy with other tests may need
/// more.
const BACK: Duration = Duration::from_secs(30);
/// Of a state that has to come.
const SOON: Duration = Duration::from_secs(30);
/// Of the log of a process that did not come back.
const LAST_LINES: usize = 20;

/// A process beside the manager, which ends with the test.
struct Sidecar<'a> {
    node: &'a TestNode,
    name: &'static str,
    settings: Vec<String>,
    child: Option<Child>,
}

impl<'a> Sidecar<'a> {
    fn new(node: &'a TestNode, name: &'static str, settings: &[(&str, String)]) -> Self {
        let socket = node.home().join(format!("{name}.sock"));
        let settings = settings.iter().map(|(key, value)| format!("{key}={value}"));
        let own = [format!("socket={}", socket.display())];
        Self {
            node,
            name,
            settings: own.into_iter().chain(settings).collect(),
            child: None,
        }
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.node.home().join(format!("{}.log", self.name)))?;
        let mut command = self.node.command(self.name);
        command.args(self.settings.iter().flat_map(|it| ["--set", it]));
        let child = command.stderr(Stdio::from(log)).spawn();
        self.child = Some(child.with_context(|| format!("starting {}", self.name))?);
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("it runs")?;
        // SIGKILL.
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = self.node.home().join(format!("{}.log", self.name));
        let log = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    async fn channel(&self) -> anyhow::Result<Channel> {
        let socket = self.node.home().join(format!("{}.sock", self.name));
        Ok(berth_api::connect(&format!("unix:{}", socket.display())).await?)
    }

    /// Its health says that it works with the manager, and the manager has heard so from this very process.
    async fn is_well(&self, since: SystemTime) -> anyhow::Result<()> {
        let request = HealthCheckRequest {
            service: "manager".to_owned(),
        };
        let mut health = HealthClient::new(self.channel().await?);
        let status = health.check(request).await?.into_inner().status();
        ensure!(status == ServingStatus::Serving, "{status:?}");
        let plugins = self.node.status().await?.plugins;
        let own = plugins.iter().find(|it| {
            let started = it.started_at.and_then(|it| SystemTime::try_from(it).ok());
            it.name == self.name && started.is_some_and(|it| it >= since)
        });
        let own = own.with_context(|| format!("not heard of: {plugins:?}"))?;
        ensure!(own.state() == PluginState::Serving, "{own:?}");
        Ok(())
    }

    /// Kills it and starts it again, over and over; `work` fails until it has done its work since the time it is given.
    /// Returns the longest time that it took.
    async fn endure(
        &mut self,
        work: impl AsyncFn(&Self, SystemTime) -> anyhow::Result<()>,
    ) -> anyhow::Result<Duration> {
        let mut longest = Duration::ZERO;
        for _ in 0..KILLS {
            self.kill()?;
            let (since, began) = (SystemTime::now(), Instant::now());
            self.start()?;
            let own = &*self;
            let back = || async {
                own.is_well(since).await?;
                work(own, since).await
            };
            let what = format!("{} is back", own.name);
            let done = obtained(&what, BACK, back).await;
            done.with_context(|| format!("the end of its log:\n{}", own.last_words()))?;
            longest = longest.max(began.elapsed());
        }
        Ok(longest)
    }
}

impl Drop for Sidecar<'_> {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Asks a web server again and again, from a thread of its own; counts what was answered and what was not.
struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Traffic {
    fn begin(server: SocketAddr, expected: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (answered, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (ends, good, bad) = (stop.clone(), answered.clone(), failed.clone());
        let thread = std::thread::spawn(move || {
            while !ends.load(Relaxed) {
                match get(server) {
                    Ok(page) if page.contains(expected) => good.fetch_add(1, Relaxed),
                    Ok(_) | Err(_) => bad.fetch_add(1, Relaxed),
                };
            }
        });
        let thread = Some(thread);
        Self {
            stop,
            answered,
            failed,
            thread,
        }
    }

    fn end(&mut self) -> (u64, u64) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        (self.answered.load(Relaxed), self.failed.load(Relaxed))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

fn get(server: SocketAddr) -> std::io::Result<String> {
    let patience = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&server, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// An app whose sandboxes find `web.app.berth`.
async fn put_app(node: &TestNode) -> anyhow::Result<()> {
    let app = v1::App {
        id: "red".into(),
        ..v1::App::default()
    };
    let version = v1::Version {
        id: "red-1".into(),
        app: "red".into(),
        ..v1::Version::default()
    };
    let port = v1::ServicePort {
        name: "http".into(),
        port: 80,
        target_port: 8080,
        protocol: v1::Protocol::Tcp.into(),
    };
    let service = v1::Service {
        id: "red-web".into(),
        app: "red".into(),
        name: "web".into(),
        labels: [("tier".to_owned(), "web".to_owned())].into(),
        ports: vec![port],
    };
    let objects = [
        Object::App(app),
        Object::Version(version),
        Object::Service(service),
    ];
    for object in objects {
        let entry = Some(v1::Entry {
            revision: 0,
            object: Some(object),
        });
        let request = v1::PutEntryRequest {
            entry,
            expected_revision: 0,
        };
        let mut catalog = CatalogServiceClient::new(node.channel.clone());
        catalog.put_entry(request).await?;
    }
    Ok(())
}

/// What must not change of a sandbox.
async fn figures(node: &TestNode, ids: &[&str]) -> anyhow::Result<Vec<String>> {
    let tasks = node.tasks()?;
    let mut figures = vec![];
    for id in ids {
        let it = node.get(id).await?;
        let own: Vec<_> = tasks
            .iter()
            .filter(|(name, _)| name.starts_with(&format!("sandbox.{id}.")))
            .collect();
        let (status, generation, restarts) = (it.status(), it.generation, it.restarts);
        figures.push(format!("{id} {status:?} {generation} {restarts} {own:?}"));
    }
    Ok(figures)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sidecar_is_killed_again_and_again_under_load_and_no_sandbox_notices()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.kill_dns()?;
    put_app(&node).await?;
    let server = v1::SandboxSpec {
        version: "red-1".into(),
        labels: [("tier".to_owned(), "web".to_owned())].into(),
        ..web("hello", 8080)
    };
    node.create("web", server).await?;
    node.create("still", idle()).await?;
    let standing = ["web", "still"];
    let before = figures(&node, &standing).await?;
    let address = node.addresses("web").await?[0];
    let mut traffic = Traffic::begin((address, 8080).into(), "hello");

    let manager = node.variable("BERTH_ADDRESS").to_owned();
    let home = node.home();
    let path = |name: &str| home.join(name).display().to_string();
    let mut dns = Sidecar::new(
        &node,
        "dns",
        &[("manager", manager.clone()), ("state_dir", path("dns"))],
    );
    let mut metrics = Sidecar::new(&node, "metrics", &[("manager", manager.clone())]);
    let mut watchdog = Sidecar::new(
        &node,
        "watchdog",
        &[
            ("manager_address", manager.clone()),
            ("name", "dog".to_owned()),
            // What is left over is looked at again before.
            ("check_interval", "1h".to_owned()),
            ("grace_window", "100ms".to_owned()),
            // Whoever waits for its end is not back in time.
            ("lease_time", "10m".to_owned()),
        ],
    );
    let mut image_gc = Sidecar::new(
        &node,
        "image-gc",
        &[
            ("manager_address", manager.clone()),
            ("name", "gc".to_owned()),
            ("data_path", path("")),
            ("blob_dir", path("blobs")),
            ("collect_blobs", "false".to_owned()),
            ("disk_pressure_threshold", "100".to_owned()),
            // Whoever waits for its end is not back in time.
            ("lease_time", "10m".to_owned()),
        ],
    );
    for it in [&mut dns, &mut metrics, &mut watchdog, &mut image_gc] {
        it.start()?;
    }
    let ghost = home.join("run/sandboxes/ghost");
    let churn = AtomicBool::new(true);
    let churned = AtomicU64::new(0);
    let load = async {
        while churn.load(Relaxed) {
            node.create("brief", idle()).await?;
            node.delete("brief").await?;
            churned.fetch_add(1, Relaxed);
        }
        anyhow::Ok(())
    };
    let names = async |_: &Sidecar<'_>, _| {
        let mut command = node.command("berth");
        command.args(["exec", "web", "--", "nslookup", "web.app.berth"]);
        let said = tokio::task::spawn_blocking(move || succeed(command)).await??;
        ensure!(said.contains(&address.to_string()), "{said}");
        Ok(())
    };
    let samples = async |it: &Sidecar<'_>, since: SystemTime| {
        let mut client = MetricsServiceClient::new(it.channel().await?);
        let request = v1::GatherRequest {
            sandboxes: vec!["web".into()],
            ..v1::GatherRequest::default()
        };
        let answer = client.gather(request).await?.into_inner().message().await?;
        let series = answer.map(|it| it.series).unwrap_or_default();
        let mut samples = series.iter().flat_map(|it| &it.samples);
        let fresh = |it: &v1::UsageSample| {
            let at = it.measured_at.and_then(|it| SystemTime::try_from(it).ok());
            at.is_some_and(|it| it >= since)
        };
        ensure!(samples.any(fresh), "no sample yet");
        Ok(())
    };
    let removes = async |_: &Sidecar<'_>, _| {
        ensure!(!ghost.exists(), "the orphan is there yet");
        fs::create_dir_all(&ghost)?;
        Ok(())
    };
    let collects = async |it: &Sidecar<'_>, _| {
        let mut client = ImageGcServiceClient::new(it.channel().await?);
        let request = v1::GetImageGcStatusRequest {};
        let status = client.get_image_gc_status(request).await?.into_inner();
        ensure!(
            status.manager_reachable && status.leases.len() == 64,
            "{status:?}"
        );
        Ok(())
    };
    fs::create_dir_all(&ghost)?;
    let kills = async {
        let done = tokio::try_join!(
            dns.endure(names),
            metrics.endure(samples),
            watchdog.endure(removes),
            image_gc.endure(collects),
        );
        churn.store(false, Relaxed);
        done
    };
    let (longest, load) = tokio::join!(kills, load);
    let (dns_took, metrics_took, watchdog_took, gc_took) = longest?;
    load?;
    println!(
        "longest way back: dns {dns_took:?}, metrics {metrics_took:?}, watchdog {watchdog_took:?}, \
         image-gc {gc_took:?}; {} sandboxes came and went",
        churned.load(Relaxed)
    );
    ensure!(churned.load(Relaxed) > 0, "there was no load");
    let mut client = ImageGcServiceClient::new(image_gc.channel().await?);
    let run = client.run(v1::ImageGcServiceRunRequest::default()).await?;
    let mut run = run.into_inner();
    let mut last = None;
    while let Some(it) = run.message().await? {
        last = it.collection;
    }
    let last = last.context("a run")?;
    ensure!(
        last.ended_at.is_some() && last.aborted.is_empty(),
        "{last:?}"
    );

    let (answered, failed) = traffic.end();
    ensure!(
        failed == 0 && answered > 0,
        "{failed} of {answered} requests failed"
    );
    assert_eq!(figures(&node, &standing).await?, before);
    let clean = || async { node.audit().await.is_ok_and(|it| it.clean) };
    let _ = fs::remove_dir_all(&ghost);
    eventually("all is in order", SOON, clean).await?;
    drop((dns, metrics, watchdog, image_gc));
    for id in standing {
        node.delete(id).await?;
    }
    node.finish()
}

/// The example of docs/plugins.md, as it is.
struct Reporter(Child);

impl Reporter {
    fn start(node: &TestNode) -> anyhow::Result<Self> {
        let python = root().join("target/tools/python/bin/python");
        ensure!(python.exists(), "`make tools` installs gRPC for Python");
        let program = root().join("examples/plugins/port_reporter/port_reporter.py");
        let manager = node.variable("BERTH_ADDRESS").trim_start_matches("unix:");
        let log = fs::File::create(node.home().join("port-reporter.log"))?;
        let child = node
            .command(&python.to_string_lossy())
            .arg(program)
            .args(["--manager", manager, "--instance", "py"])
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("TMPDIR", node.home())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Ok(Self(child.context("starting the reporter")?))
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In the network of a sandbox, which must be there.
fn inside(node: &TestNode, id: &str, program: &[&str]) -> anyhow::Result<String> {
    let namespace: PathBuf = node.home().join("run/ns").join(id).join("net");
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display()));
    succeed(command.args(program))
}

#[tokio::test]
async fn a_plugin_in_python_makes_a_sandbox_running_by_what_it_reports_and_survives_the_manager()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let reporter = Reporter::start(&node)?;
    let seen = |state: PluginState| {
        let node = &node;
        move || async move {
            let plugins = node.status().await.map(|it| it.plugins).unwrap_or_default();
            let own = plugins.into_iter().find(|it| it.name == "port-reporter");
            own.is_some_and(|it| it.state() == state && it.instance == "py")
        }
    };
    eventually(
        "it is registered and follows",
        SOON,
        seen(PluginState::Serving),
    )
    .await?;

    // It accepts connections at a port at which no socket listens: the manager cannot see that by itself.
    let line = "mkdir -p /www && echo hello > /www/index.html && httpd -p 8081 -h /www && exec httpd -f -p 8080 -h /www";
    let mut behind = spec([shell("app", line, &[9000])]);
    behind.port_wait_timeout = Duration::from_secs(120).try_into().ok();
    node.accept("behind", behind.clone()).await?;
    let redirect = || async {
        let table = "add table ip t; add chain ip t c { type nat hook prerouting priority -100; }; \
                     add rule ip t c tcp dport 9000 redirect to :8080";
        inside(&node, "behind", &["nft", table]).is_ok()
    };
    eventually("the redirection stands", SOON, redirect).await?;
    let running = || async {
        let it = node.get("behind").await;
        it.is_ok_and(|it| it.status() == SandboxStatus::Running)
    };
    eventually("the report makes it RUNNING", SOON, running).await?;
    let sandbox = node.get("behind").await?;
    let port = sandbox.ports.first().context("a port")?;
    ensure!(
        port.port == 9000 && port.source == "port-reporter",
        "{port:?}"
    );
    let pid = node.task("sandbox.behind.app")?;

    // A manager that was started again hears of it within seconds; the watch is resumed.
    node.kill_manager()?;
    node.up().await?;
    eventually("it has registered again", SOON, seen(PluginState::Serving)).await?;
    ensure!(node.task("sandbox.behind.app")? == pid);
    let shown = node.berth(&["node", "status"])?;
    ensure!(shown.contains("port-reporter"), "{shown}");
    ensure!(shown.contains("ports accept"), "its last run: {shown}");

    // What it takes back counts too.
    inside(&node, "behind", &["nft", "delete table ip t"])?;
    let lost = || async {
        let it = node.get("behind").await;
        it.is_ok_and(|it| it.status() == SandboxStatus::NotReady)
    };
    eventually("nobody answers there any more", SOON, lost).await?;
    drop(reporter);
    eventually("it is away", SOON, seen(PluginState::Away)).await?;
    node.delete("behind").await?;
    node.finish()
}

//! What the processes tell, as receivers that are not ours hear it: a receiver of OpenTelemetry, and Prometheus.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_api::v1;
use berth_e2e::{
    TestNode,
    collectors::Worker,
    node::{eventually, root, succeed},
    specs::{idle, shell, spec, web},
};
use berth_telemetry::instruments;
use serde_json::Value;
use tonic::metadata::MetadataValue;

/// Of what has to come.
const SOON: Duration = Duration::from_secs(60);

/// A process beside the node, which ends with the test.
struct Beside(Child);

impl Beside {
    fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = fs::File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        Ok(Self(child))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ports that nobody listens on.
fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    let mut held = vec![];
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

fn asked(id: &str, spec: v1::SandboxSpec) -> v1::CreateRequest {
    v1::CreateRequest {
        id: id.into(),
        spec: Some(spec),
        ..v1::CreateRequest::default()
    }
}

async fn create(node: &TestNode, id: &str, spec: v1::SandboxSpec) -> anyhow::Result<()> {
    let mut client = node.sandboxes();
    let created = client.create(asked(id, spec));
    tokio::time::timeout(SOON, created).await??;
    Ok(())
}

fn get(port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(SOON))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure!(text.starts_with("HTTP/1.1 200"), "{path}: {text}");
    Ok(text)
}

/// A receiver of OpenTelemetry that writes down all that it is sent.
struct Receiver {
    _process: Beside,
    log: PathBuf,
    grpc: u16,
    http: u16,
}

impl Receiver {
    async fn start(folder: &Path) -> anyhow::Result<Self> {
        let [grpc, http] = free_ports()?;
        let log = folder.join("receiver.log");
        let mut command = Command::new(root().join("target/tools/receiver/rotel/rotel-agent"));
        command.arg("start");
        command.args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")]);
        command.args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")]);
        command.args([
            "--exporter",
            "blackhole",
            "--debug-log-verbosity",
            "detailed",
        ]);
        for signal in ["traces", "metrics", "logs"] {
            command.args(["--debug-log", signal]);
        }
        let process = Beside::start(&mut command, &log)?;
        let it = Self {
            _process: process,
            log,
            grpc,
            http,
        };
        let listens = || async { TcpStream::connect(("127.0.0.1", http)).is_ok() };
        eventually("the receiver listens", SOON, listens).await?;
        Ok(it)
    }

    fn heard(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn hears(&self, what: &str) -> anyhow::Result<()> {
        let heard = || async { self.heard().contains(what) };
        eventually(&format!("the receiver hears {what}"), SOON, heard).await
    }
}

/// Sends often, so that a test need not wait.
fn exporting(endpoint: &str, protocol: &'static str) -> Vec<(String, String)> {
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "200"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
        ("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=n7"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec()
}

async fn restart(node: &TestNode, environment: &[(String, String)]) -> anyhow::Result<()> {
    node.signal_manager("-TERM", SOON)?;
    let environment: Vec<_> = environment
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    node.up_with(&environment).await
}

#[tokio::test]
async fn all_three_signals_reach_a_receiver_over_grpc_and_over_http_and_none_is_waited_for()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let receiver = Receiver::start(node.home()).await?;
    let ways = [
        ("grpc", receiver.grpc, "11111111111111111111111111111111"),
        (
            "http/protobuf",
            receiver.http,
            "22222222222222222222222222222222",
        ),
    ];
    for (protocol, port, trace) in ways {
        let endpoint = format!("http://127.0.0.1:{port}");
        restart(&node, &exporting(&endpoint, protocol)).await?;
        let id = format!("traced-{}", &trace[..1]);
        let line = format!("echo said-by-{id}; exec sleep 3600");
        let says = spec([shell("app", &line, &[])]);
        let mut request = tonic::Request::new(asked(&id, says));
        let parent = format!("00-{trace}-3333333333333333-01");
        let parent: MetadataValue<_> = parent.parse()?;
        request.metadata_mut().insert("traceparent", parent);
        node.sandboxes().create(request).await?;
        // Its caller's trace goes from the call to the steps in the task of the sandbox.
        for what in [
            "berth.v1.SandboxService/Create",
            "plan create",
            "step create-task",
        ] {
            receiver.hears(what).await?;
        }
        receiver.hears(trace).await?;
        // Logs of sandboxes go the same way.
        receiver.hears(&format!("Str(said-by-{id})")).await?;
        receiver.hears("rpc.server.call.duration").await?;
        receiver.hears("berth.sandbox.step.duration").await?;
        for what in ["k8s.node.name", "service.instance.id", "sandbox-manager"] {
            receiver.hears(what).await?;
        }
        let failed = node.sandboxes().create(asked(&id, web("x", 80))).await;
        ensure!(failed.is_err(), "another spec under the same id");
        receiver.hears("SPEC_CONFLICT").await?;
        // A line of the process's own log.
        receiver.hears("serving").await?;
        fs::write(&receiver.log, "")?;
    }

    // One that takes connections and never answers, and one that is not there.
    let hanging = TcpListener::bind("127.0.0.1:0")?;
    let [gone] = free_ports()?;
    for (name, port) in [("hung", hanging.local_addr()?.port()), ("gone", gone)] {
        for (of, protocol) in [("g", "grpc"), ("h", "http/protobuf")] {
            let endpoint = format!("http://127.0.0.1:{port}");
            restart(&node, &exporting(&endpoint, protocol)).await?;
            let id = format!("{name}-{of}");
            create(&node, &id, idle()).await?;
            ensure!(node.delete(&id).await?);
        }
    }
    drop(receiver);
    node.finish()
}

struct Prometheus {
    _process: Beside,
    port: u16,
}

impl Prometheus {
    async fn start(folder: &Path, targets: &[u16]) -> anyhow::Result<Self> {
        let [port] = free_ports()?;
        let targets: Vec<_> = targets
            .iter()
            .map(|it| format!("'127.0.0.1:{it}'"))
            .collect();
        let config = folder.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: berth\n    static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        fs::write(&config, text)?;
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!(
            "--storage.tsdb.path={}",
            folder.join("tsdb").display()
        ));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let process = Beside::start(&mut command, &folder.join("prometheus.log"))?;
        let it = Self {
            _process: process,
            port,
        };
        let ready = || async { get(port, "/-/ready").is_ok() };
        eventually("Prometheus is ready", SOON, ready).await?;
        Ok(it)
    }

    /// How many series a query returns.
    fn ask(&self, query: &str) -> anyhow::Result<usize> {
        let encoded: String = query.bytes().map(|it| format!("%{it:02X}")).collect();
        let answer = get(self.port, &format!("/api/v1/query?query={encoded}"))?;
        let body = answer.split_once("\r\n\r\n").context("a body")?.1;
        let begin = body.find('{').context("a document")?;
        let end = body.rfind('}').context("its end")?;
        let answer: Value = serde_json::from_str(&body[begin..=end])?;
        let result = answer["data"]["result"].as_array();
        Ok(result.context("a result")?.len())
    }
}

/// What the panels of the dashboards ask, with their variables at "all".
fn queries_of_dashboards() -> anyhow::Result<BTreeSet<String>> {
    let mut queries = BTreeSet::new();
    for file in fs::read_dir(root().join("deploy/observability/dashboards"))? {
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(file?.path())?)?;
        let panels = dashboard["panels"].as_array().context("panels")?;
        for target in panels
            .iter()
            .flat_map(|it| it["targets"].as_array())
            .flatten()
        {
            let query = target["expr"].as_str().context("a query")?;
            let query = query.replace("$instance", ".*").replace("$sandbox", ".*");
            queries.insert(query.replace("[5m]", "[1m]").replace("[1h]", "[1m]"));
        }
    }
    Ok(queries)
}

/// What the rules ask, without the comparison at the end, which holds on no healthy node.
fn queries_of_rules() -> anyhow::Result<BTreeSet<String>> {
    let text = fs::read_to_string(root().join("deploy/observability/rules.yaml"))?;
    let queries = text
        .lines()
        .filter_map(|it| it.trim().strip_prefix("expr: "));
    let queries = queries.map(|it| {
        let before = it.rsplit_once(" > ").map_or(it, |it| it.0);
        ["[5m]", "[10m]", "[1h]"]
            .iter()
            .fold(before.to_owned(), |it, of| it.replace(of, "[1m]"))
    });
    Ok(queries.collect())
}

/// Waits for the answer of a pull from a registry that is not there.
async fn pull_in_vain(node: &TestNode) -> anyhow::Result<()> {
    let request = v1::PullImageRequest {
        image: "127.0.0.1:1/nothing:1".into(),
        ..v1::PullImageRequest::default()
    };
    let mut answers = node.images().pull_image(request).await?.into_inner();
    while let Ok(Some(_)) = answers.message().await {}
    Ok(())
}

#[tokio::test]
async fn every_query_of_dashboards_and_rules_returns_data_from_a_running_node() -> anyhow::Result<()>
{
    let rules = root().join("deploy/observability/rules.yaml");
    succeed(Command::new("promtool").args(["check", "rules"]).arg(rules))?;
    let [manager, dns, metrics, image_gc, watchdog] = free_ports()?;
    let at = |port: u16| format!("127.0.0.1:{port}");
    let toml = format!(
        "telemetry.prometheus_address = {:?}\npull.tries = 1\n",
        at(manager)
    );
    let node = TestNode::start_with(&toml, &[]).await?;
    node.kill_dns()?;
    node.up_with(&[("BERTH_DNS_TELEMETRY__PROMETHEUS_ADDRESS", &at(dns))])
        .await?;
    let sampler = {
        let mut command = node.command("metrics");
        command.args([
            "--set",
            &format!("manager={}", node.variable("BERTH_ADDRESS")),
        ]);
        let socket = node.home().join("metrics.sock");
        command.args(["--set", &format!("socket={}", socket.display())]);
        let address = format!("telemetry.prometheus_address={}", at(metrics));
        command.args(["--set", &address]);
        Beside::start(&mut command, &node.home().join("metrics.log"))?
    };
    let guard = {
        let mut command = node.command("watchdog");
        let socket = node.home().join("watchdog.sock");
        for setting in [
            format!("manager_address={}", node.variable("BERTH_ADDRESS")),
            format!("socket={}", socket.display()),
            format!("telemetry.prometheus_address={}", at(watchdog)),
            "check_interval=1s".to_owned(),
            "grace_window=0s".to_owned(),
        ] {
            command.args(["--set", &setting]);
        }
        Beside::start(&mut command, &node.home().join("watchdog.log"))?
    };
    let toml = format!("telemetry.prometheus_address = {:?}", at(image_gc));
    let worker = Worker::start(&node, "gc", &toml)?;
    let all = [manager, dns, metrics, image_gc, watchdog];
    let prometheus = Prometheus::start(node.home(), &all).await?;

    let mut missing = queries_of_dashboards()?;
    missing.extend(queries_of_rules()?);
    ensure!(missing.len() > 40, "{missing:#?}");
    let asks = "while true; do nslookup other.app.berth; nslookup x.invalid; sleep 1; done";
    create(&node, "stays", spec([shell("app", asks, &[])])).await?;
    // Something of each kind happens, again and again: a rise is seen between two looks.
    let mut round = 0;
    let deadline = Instant::now() + 2 * SOON;
    while !missing.is_empty() {
        ensure!(Instant::now() < deadline, "without data: {missing:#?}");
        round += 1;
        let (comes, exits) = (format!("comes-{round}"), format!("exits-{round}"));
        create(&node, &comes, idle()).await?;
        // What no record explains.
        fs::create_dir_all(node.home().join(format!("log/orphan-{round}")))?;
        create(&node, &exits, spec([shell("app", "sleep 2; exit 3", &[])])).await?;
        ensure!(node.delete(&comes).await?);
        pull_in_vain(&node).await?;
        // Before it knows its slices it has no run to begin.
        let _ = worker.run(true, 0).await;
        let _ = worker.run(false, 0).await;
        missing.retain(|it| !prometheus.ask(it).is_ok_and(|it| it > 0));
    }

    // Calls are told apart by what they were told, and what is shown is what the code declares.
    ensure!(node.get("nobody").await.is_err());
    let text = get(manager, "/metrics")?;
    let told = text.lines().any(|it| {
        let of = ["_count{", "berth.v1.SandboxService/Get\"", "\"NOT_FOUND\""];
        of.iter().all(|of| it.contains(of))
    });
    ensure!(told, "{text}");
    let mut known: BTreeSet<_> = ["target_info".to_owned()].into();
    known.extend(instruments::ALL.iter().map(|it| it.prometheus_name()));
    for port in all {
        let text = get(port, "/metrics")?;
        let types = text.lines().filter_map(|it| it.strip_prefix("# TYPE "));
        let shown: Vec<_> = types.filter_map(|it| it.split(' ').next()).collect();
        ensure!(shown.len() > 5, "{text}");
        let strange: Vec<_> = shown.iter().filter(|it| !known.contains(**it)).collect();
        ensure!(strange.is_empty(), "{strange:?}");
    }

    // What is gone is gone.
    let shown = |id: &'static str| {
        move || async move { get(metrics, "/metrics").is_ok_and(|it| it.contains(id)) }
    };
    ensure!(shown("berth_sandbox_id=\"stays\"")().await);
    ensure!(node.delete("stays").await?);
    let gone = || async { !shown("berth_sandbox_id=\"stays\"")().await };
    eventually("the series of a sandbox go with it", SOON, gone).await?;
    let clean = async || node.audit().await.is_ok_and(|it| it.clean);
    eventually("the watchdog has removed the last orphan", SOON, clean).await?;
    drop((prometheus, sampler, worker, guard));
    node.finish()
}

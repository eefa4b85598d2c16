//! The metrics process on a real node: what it says agrees with the kernel's files, and it lives and dies by itself.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, metrics_service_client::MetricsServiceClient};
use berth_e2e::{
    TestNode,
    node::eventually,
    specs::{idle, limits, shell, spec, web},
    terminal::Terminal,
};
use tonic::{Code, transport::Channel};

/// Of a state that has to come.
const SOON: Duration = Duration::from_secs(20);

/// The process, which ends with the test.
struct Metrics {
    child: Child,
    client: MetricsServiceClient<Channel>,
}

impl Metrics {
    async fn start(node: &TestNode) -> anyhow::Result<Self> {
        let socket = node.home().join("metrics.sock");
        let _ = fs::remove_file(&socket);
        let config = node.home().join("metrics.toml");
        let manager = node.variable("BERTH_ADDRESS");
        let text = format!(
            "manager = \"{manager}\"\nsocket = \"{}\"\n",
            socket.display()
        );
        fs::write(&config, text)?;
        let log = fs::File::create(node.home().join("metrics.log"))?;
        let mut command = node.command("metrics");
        command
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::from(log));
        let child = command.spawn().context("starting metrics")?;
        let address = format!("unix:{}", socket.display());
        let answers = || async { berth_api::connect(&address).await.is_ok() };
        eventually("metrics answers", SOON, answers).await?;
        let client = MetricsServiceClient::new(berth_api::connect(&address).await?);
        Ok(Self { child, client })
    }

    fn kill(&mut self) {
        // SIGKILL.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    async fn gather(
        &self,
        request: v1::GatherRequest,
    ) -> Result<Vec<v1::UsageSeries>, tonic::Status> {
        let mut stream = self.client.clone().gather(request).await?.into_inner();
        let mut all = vec![];
        while let Some(it) = stream.message().await? {
            all.extend(it.series);
        }
        Ok(all)
    }

    /// The latest sample of a sandbox; `None` where there is none.
    async fn latest(&self, id: &str) -> anyhow::Result<Option<v1::UsageSample>> {
        let request = v1::GatherRequest {
            sandboxes: vec![id.into()],
            ..v1::GatherRequest::default()
        };
        let series = self.gather(request).await?;
        Ok(series.into_iter().find_map(|it| it.samples.last().cloned()))
    }

    /// A sample of a sandbox that was read after this call began.
    async fn fresh(&self, id: &str) -> anyhow::Result<v1::UsageSample> {
        let asked_at = SystemTime::now();
        let read_at =
            |it: &v1::UsageSample| it.measured_at.and_then(|it| SystemTime::try_from(it).ok());
        let is_fresh = || async {
            let latest = self.latest(id).await.ok().flatten();
            latest
                .as_ref()
                .and_then(read_at)
                .is_some_and(|it| it > asked_at)
        };
        eventually("a sample", SOON, is_fresh).await?;
        self.latest(id).await?.context("the sample stays")
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The kernel's own figures of a cgroup.
struct Files(PathBuf, bool);

impl Files {
    async fn of(node: &TestNode, id: &str) -> anyhow::Result<Self> {
        let cgroup = node.get(id).await?.cgroup;
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        Ok(Self(cgroup.into(), unified))
    }

    fn read(&self, v1: (&str, &str), v2: &str) -> anyhow::Result<String> {
        let root = Path::new("/sys/fs/cgroup");
        let path = match self.1 {
            true => root.join(&self.0).join(v2),
            false => root.join(v1.0).join(&self.0).join(v1.1),
        };
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// In nanoseconds.
    fn cpu(&self) -> anyhow::Result<u64> {
        let text = self.read(("cpuacct", "cpuacct.usage"), "cpu.stat")?;
        let micros = text.lines().find_map(|it| it.strip_prefix("usage_usec "));
        Ok(match micros {
            Some(micros) => micros.parse::<u64>()? * 1000,
            None => text.trim().parse()?,
        })
    }

    fn throttled(&self) -> anyhow::Result<u64> {
        let text = self.read(("cpu", "cpu.stat"), "cpu.stat")?;
        let periods = text.lines().find_map(|it| it.strip_prefix("nr_throttled "));
        Ok(periods.unwrap_or_default().parse()?)
    }

    fn oom_kills(&self) -> anyhow::Result<u64> {
        // Version 1 counts where it happened.
        let text = self.read(("memory", "app/memory.oom_control"), "memory.events")?;
        let kills = text.lines().find_map(|it| it.strip_prefix("oom_kill "));
        Ok(kills.context("oom_kill")?.parse()?)
    }

    fn pids(&self) -> anyhow::Result<u64> {
        let text = self.read(("pids", "pids.current"), "pids.current")?;
        Ok(text.trim().parse()?)
    }
}

#[tokio::test]
async fn samples_agree_with_the_kernels_files_and_go_on_over_kills_of_either_process()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let mut busy = spec([shell("app", "while :; do :; done", &[])]);
    busy.resources = Some(limits(100, 64 << 20, 20));
    node.create("busy", busy).await?;
    let eats = shell("app", "while :; do tail /dev/zero; sleep 1; done", &[]);
    let mut hungry = spec([eats]);
    hungry.resources = Some(limits(1000, 16 << 20, 20));
    node.create("hungry", hungry).await?;
    let serving = node.create("web", web("hello", 8080)).await?;
    let mut metrics = Metrics::start(&node).await?;

    let files = Files::of(&node, "busy").await?;
    let before = (files.cpu()?, files.throttled()?);
    let sample = metrics.fresh("busy").await?;
    let after = (files.cpu()?, files.throttled()?);
    let usage = sample.usage.context("figures")?;
    let between = |before: u64, it: u64, after: u64| before <= it && it <= after;
    ensure!(
        between(before.0, usage.total_cpu_time, after.0),
        "{before:?} {usage:?} {after:?}"
    );
    ensure!(
        between(before.1, usage.throttled_periods, after.1),
        "{before:?} {usage:?} {after:?}"
    );
    ensure!(
        usage.throttled_periods > 0 && usage.throttled_time > 0,
        "{usage:?}"
    );
    ensure!(usage.pids == files.pids()?, "{usage:?}");
    ensure!(
        usage.total_cpu_time == usage.user_cpu_time + usage.kernel_cpu_time,
        "{usage:?}"
    );
    ensure!(
        usage.memory_usage >= usage.memory_working_set && usage.memory_working_set > 0,
        "{usage:?}"
    );
    // The child is killed for memory again and again, and the container lives.
    let files = Files::of(&node, "hungry").await?;
    eventually("a kill", SOON, async || {
        files.oom_kills().is_ok_and(|it| it > 0)
    })
    .await?;
    let before = files.oom_kills()?;
    let seen = metrics.fresh("hungry").await?.usage.context("figures")?;
    let after = files.oom_kills()?;
    ensure!(
        between(before, seen.oom_kills, after),
        "{before} {seen:?} {after}"
    );
    node.delete("hungry").await?;
    let request = v1::SnapshotRequest { id: "busy".into() };
    let snapshot = node
        .sandboxes()
        .snapshot(request)
        .await?
        .into_inner()
        .total
        .context("a sum")?;
    ensure!(
        snapshot.total_cpu_time >= usage.total_cpu_time,
        "{snapshot:?} {usage:?}"
    );

    let before = metrics.fresh("web").await?.network.context("a link")?;
    let address = serving
        .addresses
        .first()
        .context("an address")?
        .address
        .clone();
    let address = address.split('/').next().unwrap_or_default().to_owned();
    let mut stream = TcpStream::connect_timeout(&format!("{address}:8080").parse()?, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.ends_with("hello\n"), "{answer}");
    let after = metrics.fresh("web").await?.network.context("a link")?;
    let received = after.received_packets - before.received_packets;
    let sent = after.sent_bytes - before.sent_bytes;
    ensure!(received >= 4 && sent >= 6, "{before:?} {after:?}");

    metrics.kill();
    let mut metrics = Metrics::start(&node).await?;
    let again = metrics.fresh("busy").await?.usage.context("figures")?;
    ensure!(
        again.total_cpu_time >= usage.total_cpu_time,
        "counters go on"
    );
    node.kill_manager()?;
    let alone = metrics.fresh("busy").await?.usage.context("figures")?;
    ensure!(alone.total_cpu_time > again.total_cpu_time, "{alone:?}");
    node.up().await?;
    node.create("late", idle()).await?;
    metrics.fresh("late").await?;
    node.delete("busy").await?;
    let gone = || async { metrics.latest("busy").await.is_ok_and(|it| it.is_none()) };
    eventually("its series are gone", SOON, gone).await?;

    let request = v1::GatherRequest {
        since: Some(SystemTime::UNIX_EPOCH.into()),
        containers: true,
        ..v1::GatherRequest::default()
    };
    let all = metrics.gather(request).await?;
    let names: Vec<_> = all
        .iter()
        .map(|it| (it.sandbox.as_str(), it.container.as_str()))
        .collect();
    ensure!(
        names == [("late", ""), ("late", "app"), ("web", ""), ("web", "web")],
        "{names:?}"
    );
    ensure!(all.iter().all(|it| !it.samples.is_empty()), "{all:?}");
    let monitor = v1::MonitorRequest::default();
    let mut rounds = metrics.client.monitor(monitor).await?.into_inner();
    for _ in 0..2 {
        let round = rounds.message().await?.context("a round")?;
        ensure!(round.complete && round.series.len() == 2, "{round:?}");
    }
    drop(rounds);
    drop(metrics);
    node.finish()
}

#[tokio::test]
async fn what_is_asked_wrongly_is_refused_by_field() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let metrics = Metrics::start(&node).await?;
    let many = v1::GatherRequest {
        sandboxes: vec!["web".into(); 1001],
        ..v1::GatherRequest::default()
    };
    let strange = v1::GatherRequest {
        sandboxes: vec!["web".into(), "NO".into()],
        ..v1::GatherRequest::default()
    };
    let slow = v1::GatherRequest {
        step_seconds: 901,
        ..v1::GatherRequest::default()
    };
    for (request, field) in [
        (many, "sandboxes"),
        (strange, "sandboxes[1]"),
        (slow, "step_seconds"),
    ] {
        let refused = metrics
            .gather(request)
            .await
            .err()
            .context("it is refused")?;
        ensure!(refused.code() == Code::InvalidArgument, "{refused}");
        ensure!(refused.message().starts_with(field), "{refused}");
    }
    let unknown = v1::GatherRequest {
        sandboxes: vec!["nobody".into()],
        ..v1::GatherRequest::default()
    };
    ensure!(metrics.gather(unknown).await?.is_empty());
    let at_the_bounds = v1::GatherRequest {
        sandboxes: vec!["nobody".into(); 1000],
        step_seconds: 900,
        ..v1::GatherRequest::default()
    };
    ensure!(metrics.gather(at_the_bounds).await?.is_empty());
    drop(metrics);
    node.finish()
}

#[tokio::test]
async fn top_shows_who_is_busy_once_and_live_also_while_its_sources_come_and_go()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let mut busy = spec([shell("app", "while :; do :; done", &[])]);
    busy.resources = Some(limits(100, 64 << 20, 20));
    node.create("busy", busy).await?;
    node.create("calm", idle()).await?;
    let mut metrics = Metrics::start(&node).await?;
    let address = format!("unix:{}", node.home().join("metrics.sock").display());
    let top = |arguments: &[&'static str]| {
        let all = [&["top", "--metrics-address", &address], arguments].concat();
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };

    let once = top(&["--once", "--containers", "-o", "json"]);
    let text = node.berth(&once.iter().map(String::as_str).collect::<Vec<_>>())?;
    let shown: serde_json::Value = serde_json::from_str(&text)?;
    let rows = shown["rows"].as_array().context("rows")?;
    let name = |it: &serde_json::Value| format!("{}/{}", it["sandbox"], it["container"]);
    let names: Vec<_> = rows.iter().map(|it| name(it).replace('"', "")).collect();
    ensure!(
        names == ["busy/", "busy/app", "calm/", "calm/app"],
        "{text}"
    );
    let cpu = |row: usize| rows[row]["cpu"].as_f64().unwrap_or_default();
    // It may use a tenth of a CPU; how evenly the kernel hands that out, no test knows.
    ensure!(cpu(0) > 0.0 && cpu(0) > cpu(2), "{text}");
    ensure!(
        rows[0]["memory_limit"] == 64 << 20 && rows[0]["cpu_limit_millis"] == 100,
        "{text}"
    );

    let live = top(&[]);
    let live: Vec<_> = live.iter().map(String::as_str).collect();
    let mut terminal = Terminal::berth(&node, &live, (140, 24))?;
    // Only what changes is drawn, so each of these is drawn whole where nothing like it was.
    terminal.until("busy")?;
    terminal.until("calm")?;
    ensure!(
        terminal.modes()? != terminal.modes_before,
        "keys come one by one"
    );
    metrics.kill();
    terminal.until("the metrics process")?;
    let metrics = Metrics::start(&node).await?;
    node.kill_manager()?;
    // The line of the one may take the place of the other's, with which it shares its beginning.
    terminal.until("anager: ")?;
    node.up().await?;
    node.create("late", idle()).await?;
    terminal.until("late")?;
    terminal.press("q")?;
    let before = terminal.modes_before;
    let (code, _, after) = terminal.end()?;
    ensure!(code == 0 && after == before, "{code}");

    let gone = node.home().join("nobody.sock").display().to_string();
    let refused = node.berth(&["top", "--metrics-address", &gone]).err();
    let refused = format!("{:#}", refused.context("nobody answers")?);
    ensure!(
        refused.contains("the metrics process does not answer"),
        "{refused}"
    );
    drop(metrics);
    node.finish()
}

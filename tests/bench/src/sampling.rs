//! What it costs to sample many sandboxes every second: the real `metrics` process reads cgroups, as a stand-in for a manager
//! tells of them. In some a process wakes up twice a second, in the others nobody runs. Processes that keep files open between
//! two rounds and that do not, and so read all of them in full, take turns.

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{
    self, GetMetricsStatusRequest, metrics_service_client::MetricsServiceClient,
    watch_response::Event,
};
use berth_cgroup::{CgroupError, Hierarchy};
use berth_domain::Resources;
use futures::{StreamExt as _, future::BoxFuture, stream};
use serde_json::json;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Response, Status, codegen::http, server::NamedService, transport::Server};

use crate::statistics::{Sample, rounded};

/// Measures what the `metrics` process takes of a core for many sandboxes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The program.
    #[arg(long, default_value = "target/release/metrics")]
    program: PathBuf,
    /// Sandboxes, each with one container.
    #[arg(long, default_value_t = 1000)]
    sandboxes: usize,
    /// Of these, such in which a process runs.
    #[arg(long, default_value_t = 50)]
    busy: usize,
    /// Files that the one kind of process keeps open.
    #[arg(long, default_value_t = 8192)]
    open_files: usize,
    /// Turns of each kind.
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// How long a turn is measured, in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Where the figures go as JSON.
    #[arg(long)]
    output: PathBuf,
}

pub(crate) async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("berth-sampling-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let hierarchy = Hierarchy::detect()?;
    let parent = format!("berth-sampling-{}", std::process::id());
    let measured = measure_in(&arguments, &dir, &hierarchy, &parent).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = hierarchy.remove(&parent) {
        // Killed, and not gone yet.
        let waits = matches!(error, CgroupError::Busy { .. }) && Instant::now() < deadline;
        ensure!(waits, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fs::remove_dir_all(&dir)?;
    measured
}

async fn measure_in(
    arguments: &Arguments,
    dir: &Path,
    hierarchy: &Hierarchy,
    parent: &str,
) -> anyhow::Result<()> {
    let mut told = vec![];
    for number in 0..arguments.sandboxes {
        let (id, cgroup) = (format!("s{number}"), format!("{parent}/s{number}"));
        hierarchy.create(&format!("{cgroup}/app"), &Resources::default())?;
        told.push(v1::Sandbox {
            id,
            generation: 1,
            status: v1::SandboxStatus::Running.into(),
            cgroup,
            containers: vec![v1::ContainerStatus {
                name: "app".into(),
                ..v1::ContainerStatus::default()
            }],
            ..v1::Sandbox::default()
        });
    }
    let mut busy = vec![];
    for number in 0..arguments.busy.min(arguments.sandboxes) {
        let child = Command::new("sh")
            .args(["-c", "while sleep 0.5; do :; done"])
            .spawn();
        let process = Process(child.context("starting what is busy")?);
        for controller in ["", "cpu", "cpuacct", "memory", "pids", "blkio"] {
            let root = Path::new("/sys/fs/cgroup").join(controller);
            let members = root.join(format!("{parent}/s{number}/app/cgroup.procs"));
            if members.exists() {
                fs::write(members, process.0.id().to_string())?;
            }
        }
        busy.push(process);
    }
    let manager = dir.join("manager.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&manager)?);
    let server = Server::builder().add_service(Told(told));
    let turns = async {
        let (mut open, mut shut, mut memory) = (Sample::default(), Sample::default(), 0);
        for _ in 0..arguments.turns {
            for (kept, sample) in [(arguments.open_files, &mut open), (0, &mut shut)] {
                let (share, bytes) = turn(arguments, dir, &manager, kept).await?;
                sample.add(share);
                memory = memory.max(bytes);
            }
        }
        anyhow::Ok((open, shut, memory))
    };
    let (open, shut, memory) = tokio::select! {
        turns = turns => turns?,
        served = server.serve_with_incoming(incoming) => {
            served?;
            anyhow::bail!("the stand-in has ended")
        }
    };
    report(arguments, &open, &shut, memory)
}

/// CPU time per second of one process, and its memory.
async fn turn(
    arguments: &Arguments,
    dir: &Path,
    manager: &Path,
    open_files: usize,
) -> anyhow::Result<(Duration, u64)> {
    let socket = dir.join("metrics.sock");
    let config = dir.join("metrics.toml");
    let text = format!(
        "manager = \"unix:{}\"\nsocket = \"{}\"\nopen_files_max = {open_files}\n",
        manager.display(),
        socket.display()
    );
    fs::write(&config, text)?;
    let child = Command::new(&arguments.program)
        .arg("--config")
        .arg(&config)
        .env("RUST_LOG", "error")
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", arguments.program.display()))?;
    let mut process = Process(child);
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut client = loop {
        if let Ok(channel) = berth_api::connect(&format!("unix:{}", socket.display())).await {
            let mut client = MetricsServiceClient::new(channel);
            let status = client
                .get_metrics_status(GetMetricsStatusRequest {})
                .await?;
            if status.into_inner().sandboxes == arguments.sandboxes as u64 {
                break client;
            }
        }
        ensure!(Instant::now() < deadline, "it does not follow");
        ensure!(process.0.try_wait()?.is_none(), "it has ended");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    // The first rounds open what stays open.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (began, before) = (Instant::now(), process.cpu_time()?);
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    let (took, used) = (began.elapsed(), process.cpu_time()? - before);
    let status = client
        .get_metrics_status(GetMetricsStatusRequest {})
        .await?
        .into_inner();
    ensure!(
        status.rounds_missed == 0,
        "{} rounds were missed",
        status.rounds_missed
    );
    ensure!(
        status.series == 2 * arguments.sandboxes as u64,
        "{} series",
        status.series
    );
    Ok((used.div_f64(took.as_secs_f64()), status.memory_rss_bytes))
}

/// Ends with the turn.
struct Process(Child);

impl Process {
    /// Of all its threads.
    fn cpu_time(&self) -> anyhow::Result<Duration> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id()))?;
        let mut sum = Duration::ZERO;
        for task in tasks {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let nanos = text.split(' ').next().unwrap_or_default().parse()?;
            sum += Duration::from_nanos(nanos);
        }
        Ok(sum)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn report(arguments: &Arguments, open: &Sample, shut: &Sample, memory: u64) -> anyhow::Result<()> {
    if let Some(dir) = arguments.output.parent() {
        fs::create_dir_all(dir)?;
    }
    let ratio = rounded(open.quantile(0.5) / shut.quantile(0.5));
    let figures = json!({
        "sandboxes": arguments.sandboxes,
        "busy": arguments.busy,
        "per_second_with_open_files": open.to_json(),
        "per_second_without": shut.to_json(),
        "ratio": ratio,
        "memory_rss_bytes_max": memory,
    });
    let json = serde_json::to_string_pretty(&figures)?;
    fs::write(&arguments.output, json + "\n").context("writing the figures")?;
    #[expect(clippy::print_stdout, reason = "the result of the program")]
    {
        let (sandboxes, files) = (arguments.sandboxes, arguments.open_files);
        println!(
            "CPU time per second for {sandboxes} sandboxes, {} of them busy; n = {}; median (min-max)",
            arguments.busy,
            open.len()
        );
        println!("at most {files} files open   {}", open.in_words());
        println!(
            "none                     {}   ratio {ratio}",
            shut.in_words()
        );
        println!("memory at most {} MiB", memory >> 20);
    }
    Ok(())
}

/// Answers `Watch` with these sandboxes, and nothing else.
#[derive(Clone)]
struct Told(Vec<v1::Sandbox>);

impl NamedService for Told {
    const NAME: &'static str = "berth.v1.SandboxService";
}

impl tonic::codegen::Service<http::Request<tonic::body::Body>> for Told {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let watch = Watch(self.clone());
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::default();
            Ok(tonic::server::Grpc::new(codec)
                .server_streaming(watch, request)
                .await)
        })
    }
}

struct Watch(Told);

impl tonic::server::ServerStreamingService<v1::WatchRequest> for Watch {
    type Response = v1::WatchResponse;
    type ResponseStream = stream::BoxStream<'static, Result<v1::WatchResponse, Status>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: tonic::Request<v1::WatchRequest>) -> Self::Future {
        let sandboxes = std::mem::take(&mut self.0.0)
            .into_iter()
            .map(Event::Sandbox);
        let synced = Event::Synced(v1::WatchSynced {});
        let events = sandboxes.chain([synced]).zip(1..).map(|(event, revision)| {
            Ok(v1::WatchResponse {
                revision,
                event: Some(event),
            })
        });
        // The watch of a manager goes on.
        let all: Vec<_> = events.collect();
        let events = stream::iter(all).chain(stream::pending()).boxed();
        std::future::ready(Ok(Response::new(events)))
    }
}

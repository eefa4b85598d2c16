//! How long after an app called listen() its sandbox is RUNNING. The app itself notes the time before the call, by the same
//! clock; RUNNING is when a watcher is told of it.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{
    ConfigFile, Container, CreateRequest, DeleteRequest, Port, Sandbox, SandboxSpec, SandboxStatus,
    WaitFor, WatchRequest, sandbox_service_client::SandboxServiceClient, watch_response::Event,
};
use serde_json::json;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tonic::transport::Channel;

use crate::statistics::Sample;

const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/listener"));
const PATH: &str = "/listener";
/// As the program has it.
const PORT: u16 = 8080;
/// Rounds that are not counted: page cache, first connection, first cgroup.
const WARM_UP: usize = 3;

/// Measures how long after listen() in the container a sandbox is RUNNING.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The manager's address.
    #[arg(long, env = "BERTH_ADDRESS")]
    address: String,
    /// Any image: the program that listens is brought along.
    #[arg(long)]
    image: String,
    /// Rounds; each has one sandbox.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Where the figures go as JSON.
    #[arg(long)]
    output: PathBuf,
}

pub(crate) async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let channel = berth_api::connect(&arguments.address).await?;
    let mut berth = SandboxServiceClient::new(channel);
    let (mut seen, mut running) = (Sample::default(), Sample::default());
    for round in 0..WARM_UP + arguments.rounds {
        let id = format!("ready-{round}");
        let it = one_round(&mut berth, &arguments.image, &id).await;
        let it = it.with_context(|| format!("round {round}"))?;
        if round >= WARM_UP {
            seen.add(it.seen);
            running.add(it.running);
        }
    }
    if let Some(dir) = arguments.output.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let figures = json!({ "seen": seen.to_json(), "running": running.to_json() });
    let json = serde_json::to_string_pretty(&figures)?;
    std::fs::write(&arguments.output, json + "\n").context("writing the figures")?;
    let line = |what: &str, it: &Sample| {
        let p99 = it.quantile(0.99);
        format!("{what}  {}  p99 {p99:.1} ms", it.in_words())
    };
    #[expect(clippy::print_stdout, reason = "the result of the program")]
    {
        println!("n = {}; median (min-max), after listen()", running.len());
        println!("{}", line("the manager has seen the port   ", &seen));
        println!("{}", line("a watcher is told RUNNING       ", &running));
    }
    Ok(())
}

/// Counted from the call of listen().
struct Round {
    seen: Duration,
    running: Duration,
}

async fn one_round(
    berth: &mut SandboxServiceClient<Channel>,
    image: &str,
    id: &str,
) -> anyhow::Result<Round> {
    let request = CreateRequest {
        id: id.to_owned(),
        spec: Some(spec(image)),
        wait: WaitFor::Accepted.into(),
        ..CreateRequest::default()
    };
    berth.create(request).await.context("Create")?;
    let (sandbox, told_at) = until_running(berth, id).await?;
    let listens = listened_at(&sandbox).await?;
    let port = sandbox.ports.first().and_then(|it| it.at);
    let seen_at = SystemTime::try_from(port.context("the port was seen")?)?;
    let since = |at: SystemTime| at.duration_since(listens).context("the clock was set back");
    let round = Round {
        seen: since(seen_at)?,
        running: since(told_at)?,
    };
    let delete = DeleteRequest {
        id: id.to_owned(),
        expected_generation: 0,
    };
    berth.delete(delete).await.context("Delete")?;
    Ok(round)
}

fn spec(image: &str) -> SandboxSpec {
    let container = Container {
        name: "app".to_owned(),
        image: image.to_owned(),
        command: format!("exec {PATH}"),
        config_files: vec![ConfigFile {
            path: PATH.to_owned(),
            data: PROGRAM.to_vec(),
            mode: "0755".to_owned(),
        }],
        ports: vec![Port {
            port: PORT.into(),
            ..Port::default()
        }],
        shutdown_timeout: Some(prost_types::Duration::default()),
        ..Container::default()
    };
    SandboxSpec {
        containers: vec![container],
        ..SandboxSpec::default()
    }
}

/// The sandbox as it was when it was told to be RUNNING, and when that was.
async fn until_running(
    berth: &mut SandboxServiceClient<Channel>,
    id: &str,
) -> anyhow::Result<(Sandbox, SystemTime)> {
    let request = WatchRequest {
        id: id.to_owned(),
        ..WatchRequest::default()
    };
    let mut watch = berth.watch(request).await.context("Watch")?.into_inner();
    while let Some(message) = watch.message().await? {
        let told_at = SystemTime::now();
        if let Some(Event::Sandbox(it)) = message.event {
            let status = it.status();
            ensure!(status != SandboxStatus::Dead, "it failed: {}", it.message);
            if status == SandboxStatus::Running {
                return Ok((it, told_at));
            }
        }
    }
    anyhow::bail!("the watch has ended")
}

/// When the app called listen(), as it tells by itself.
async fn listened_at(sandbox: &Sandbox) -> anyhow::Result<SystemTime> {
    let address = sandbox.addresses.first().context("an address")?;
    let (ip, _) = address.address.split_once('/').context("a prefix")?;
    let to = SocketAddr::new(ip.parse()?, PORT);
    let mut app = TcpStream::connect(to).await.context("asking the app")?;
    let nanos = app.read_u64_le().await.context("hearing the app")?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos))
}

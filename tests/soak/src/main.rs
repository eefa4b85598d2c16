//! Random chaos on a node of its own: clients and faults drawn from a seed, a model that says what must be true, and accounts
//! that balance at the end. `docs/testing.md` tells what is held against the node.

mod accounts;
mod faults;
mod model;
mod plan;
mod stream;
mod weather;
mod worker;
mod world;

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use berth_e2e::{
    TestNode,
    node::{root, succeed},
    specs::idle,
};
use berth_soak::random;
use clap::Parser;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{plan::WORKERS, random::Random, worker::Worker, world::World};

/// A /28 without network, gateway and last address.
const CAPACITY: usize = 13;
/// Room for the store and an import, and little else.
const DISK: &str = "size=24m";

/// Does everything to a node that may happen to it, and fails when a promise is broken.
#[derive(Debug, Parser)]
struct Arguments {
    /// Seconds of chaos.
    #[arg(long, default_value_t = 60)]
    duration: u64,
    /// What is done, and in which order. Default: another one each time.
    #[arg(long)]
    seed: Option<u64>,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "it tells its user what it saw")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(1, |it| u64::from(it.subsec_nanos()))
    });
    println!("soak: seed {seed}, {} s", arguments.duration);
    match soak(seed, Duration::from_secs(arguments.duration)).await {
        Ok(summary) => {
            println!("{summary}\nsoak: seed {seed} is green");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("soak: seed {seed} FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn soak(seed: u64, duration: Duration) -> anyhow::Result<String> {
    let world = Arc::new(World::new(start(seed).await?, CAPACITY));
    let done = chaos(&world, seed, duration).await;
    let world = Arc::into_inner(world).context("everybody has ended")?;
    match done {
        Ok(changes) => {
            let mut summary: Vec<_> = world
                .counts()
                .into_iter()
                .map(|(what, count)| format!("{count:6}  {what}"))
                .collect();
            let faults = world.weather.count();
            summary.push(format!("{faults} faults, {changes} changes in the watch"));
            world.node.finish().context("taking the node down")?;
            Ok(summary.join("\n"))
        }
        Err(error) => {
            let kept = keep(&world, seed)?;
            let actions = world.last_actions().join("\n");
            Err(error.context(format!(
                "the last actions:\n{actions}\nlogs in {}\n",
                kept.display()
            )))
        }
    }
}

/// A node with a subnet that is soon full and a store on a disk that is small.
async fn start(seed: u64) -> anyhow::Result<TestNode> {
    let home = TestNode::new_home()?;
    let state = home.path().join("state");
    fs::create_dir(&state)?;
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(&state);
    succeed(mount)?;
    let toml = format!(
        "network.subnet = \"{}\"\ncontainerd.call_timeout = \"10s\"\nimport.reserve_bytes = 0\n",
        free_subnet(seed)?
    );
    TestNode::start_in(home, &toml, &[]).await
}

/// A /28 beside those that development nodes take, which nothing on the host uses.
fn free_subnet(seed: u64) -> anyhow::Result<String> {
    let routes = succeed(Command::new("ip").args(["-4", "route", "show", "table", "all"]))?;
    let mut random = Random::new(seed, u64::from(std::process::id()));
    for _ in 0..64 {
        let (third, last) = (random.below(256), 16 * random.below(16));
        if !routes.contains(&format!("10.191.{third}.")) {
            return Ok(format!("10.191.{third}.{last}/28"));
        }
    }
    anyhow::bail!("10.191.0.0/16 is in use")
}

/// Everything at once, then peace, then the accounts. Returns the number of changes that the watch told.
async fn chaos(world: &Arc<World>, seed: u64, duration: Duration) -> anyhow::Result<usize> {
    world.node.create("warm", idle()).await?;
    world.node.delete("warm").await?;
    let at_first = accounts::quiet_descriptors(&world.node).await?;

    let watched = CancellationToken::new();
    let following = tokio::spawn(stream::follow(world.clone(), watched.clone()));
    let mut all = JoinSet::new();
    all.spawn(faults::strike(world.clone(), seed));
    for number in 0..WORKERS {
        let worker = Worker::new(world.clone(), seed, number);
        all.spawn(worker.work());
    }
    let timer = world.over.clone();
    let clock = tokio::spawn(async move {
        tokio::time::sleep(duration).await;
        timer.cancel();
    });
    // What is broken first is told; the others come to their end.
    let mut broken = None;
    while let Some(done) = all.join_next().await {
        if let Err(error) = done.map_err(Into::into).flatten() {
            world.over.cancel();
            // What follows from the first violation explains nothing.
            all.abort_all();
            broken.get_or_insert(error);
        }
        if following.is_finished() {
            world.over.cancel();
        }
    }
    clock.abort();
    let _ = clock.await;
    watched.cancel();
    let changes = following.await?;
    if let Some(error) = broken {
        return Err(error);
    }
    let changes = changes.context("the watch")?;
    ensure!(changes > 0, "the watch told nothing");
    accounts::balance(&world.node, at_first).await?;
    Ok(changes)
}

/// Keeps what explains a failure, and returns where.
fn keep(world: &World, seed: u64) -> anyhow::Result<PathBuf> {
    let kept = root().join("target/soak").join(seed.to_string());
    fs::create_dir_all(&kept)?;
    for log in ["manager.log", "containerd.log", "sandbox-manager.toml"] {
        let _ = fs::copy(world.node.home().join(log), kept.join(log));
    }
    fs::write(kept.join("journal"), world.journal().join("\n"))?;
    Ok(kept)
}

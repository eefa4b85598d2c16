//! Random interleavings of creates, deletes, pulls, changes of the catalog, runs of three workers, and kills of workers and of
//! the manager, on a real node: nothing that is in use goes, and all that nothing needs is gone within two runs.

mod client;
mod ground;
mod plan;

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, CollectionKind};
use berth_e2e::node::root;
use clap::Parser;
use tokio::task::JoinSet;

use crate::{
    client::Client,
    ground::{Ground, REPOSITORY, insist},
    plan::{CLIENTS, Plan, Strike},
};

/// Does to images and blobs everything that may happen to them, and fails when one goes that is in use, or one stays that is not.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many; each has the seed after that of the one before.
    #[arg(long, default_value_t = 200)]
    interleavings: u64,
    /// Of the first one. Default: another one each time.
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
    let begun = Instant::now();
    let seeds = seed..seed + arguments.interleavings;
    // A directory has one layout, and with it its workers: the even seeds come before the odd ones.
    for tree in [false, true] {
        let seeds = seeds.clone().filter(|it| (it % 2 == 1) == tree);
        if let Err(error) = all(seeds.collect(), tree).await {
            println!("{error:#}");
            return ExitCode::FAILURE;
        }
    }
    println!(
        "soak-gc: {} interleavings from seed {seed} are green in {:.0} s",
        arguments.interleavings,
        begun.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

#[expect(clippy::print_stdout, reason = "it tells its user what it saw")]
async fn all(seeds: Vec<u64>, tree: bool) -> anyhow::Result<()> {
    if seeds.is_empty() {
        return Ok(());
    }
    let ground = Arc::new(Ground::start(tree).await?);
    let mut times = vec![];
    for seed in seeds {
        let begun = Instant::now();
        if let Err(error) = interleave(&ground, seed).await {
            let journal = ground.take_journal();
            let kept = keep(&ground, seed, &journal)?;
            return Err(error.context(format!(
                "soak-gc: seed {seed} FAILED; what was done and the logs are in {}",
                kept.display()
            )));
        }
        times.push(begun.elapsed());
        println!(
            "seed {seed}: green in {:.1} s",
            begun.elapsed().as_secs_f64()
        );
    }
    times.sort();
    println!("median {:.1} s", times[times.len() / 2].as_secs_f64());
    for (what, count) in ground.counts() {
        println!("{count:6}  {what}");
    }
    let ground = Arc::into_inner(ground).context("everybody has ended")?;
    ground.finish().await
}

async fn interleave(ground: &Arc<Ground>, seed: u64) -> anyhow::Result<()> {
    ground.take_journal();
    let plan = Plan::of(seed);
    let mut clients = JoinSet::new();
    for (number, (steps, contents)) in
        (0..CLIENTS).zip(plan.clients.into_iter().zip(&plan.contents))
    {
        let mut client = Client::new(ground.clone(), seed, number, contents);
        clients.spawn(async move {
            for step in steps {
                client.take(step).await?;
            }
            Ok::<_, anyhow::Error>(client)
        });
    }
    let striking = strike(ground, plan.strikes);
    let working = async {
        let mut done = vec![];
        while let Some(client) = clients.join_next().await {
            done.push(client??);
        }
        Ok::<_, anyhow::Error>(done)
    };
    let (mut clients, ()) = tokio::try_join!(working, striking)?;

    check(&mut clients).await.context("before the runs")?;
    ground.whole().await?;
    for kind in [
        CollectionKind::Images,
        CollectionKind::Images,
        CollectionKind::Blobs,
        CollectionKind::Blobs,
    ] {
        let run = ground.collect(kind).await?;
        let whole = run.aborted.is_empty() && run.failed_total == 0;
        ensure!(whole, "{run:?}");
    }
    let held = check(&mut clients).await.context("after the runs")?;
    nothing_else_is_left(ground, &clients, &held).await?;
    for client in &mut clients {
        client.clear().await?;
    }
    Ok(())
}

async fn check(clients: &mut [Client]) -> anyhow::Result<BTreeSet<String>> {
    let mut held = BTreeSet::new();
    for client in clients {
        held.extend(client.check().await?);
    }
    Ok(held)
}

/// All that is left has a holder that the clients know of.
async fn nothing_else_is_left(
    ground: &Ground,
    clients: &[Client],
    held: &BTreeSet<String>,
) -> anyhow::Result<()> {
    let images = ground.images().await?;
    let named = images.iter().filter(|(name, _)| held.contains(*name));
    let mut digests: BTreeSet<_> = named.map(|(_, digest)| digest).collect();
    digests.extend(held);
    for (name, digest) in images.iter().filter(|(it, _)| it.starts_with(REPOSITORY)) {
        ensure!(
            digests.contains(digest),
            "{name} ({digest}) is left: {held:?}"
        );
    }
    let mut needed: BTreeSet<PathBuf> = BTreeSet::new();
    for client in clients {
        let digests = client.needed().into_keys();
        needed.extend(digests.map(|it| ground.blobs.path(&it)));
    }
    let files = ground.blobs.files()?.into_iter();
    let is_link = |it: &PathBuf| it.ends_with("link");
    let left: Vec<_> = files.filter(|it| !needed.contains(it)).collect();
    let links = left.iter().filter(|it| is_link(it)).count();
    ensure!(
        left.len() == links && links <= needed.len(),
        "these are left: {left:?}"
    );
    Ok(())
}

async fn strike(ground: &Arc<Ground>, strikes: Vec<(Duration, Strike)>) -> anyhow::Result<()> {
    for (after, strike) in strikes {
        tokio::time::sleep(after).await;
        ground.note("strike", &strike);
        match strike {
            Strike::Collect { images } => {
                let kind = match images {
                    true => CollectionKind::Images,
                    false => CollectionKind::Blobs,
                };
                let start = || async {
                    let request = v1::StartCollectionRequest {
                        kind: kind.into(),
                        ..v1::StartCollectionRequest::default()
                    };
                    ground.node.collections().start_collection(request).await
                };
                insist("start a run", start).await?;
                ground.count("runs beside the clients");
            }
            Strike::KillWorker { number } => {
                ground.kill_worker(number)?;
                ground.count("kills of a worker");
            }
            Strike::KillManager => {
                ground.kill_manager().await?;
                ground.count("kills of the manager");
            }
        }
    }
    Ok(())
}

/// Keeps what explains a failure, and returns where.
fn keep(ground: &Ground, seed: u64, journal: &[String]) -> anyhow::Result<PathBuf> {
    let kept = root().join("target/soak").join(format!("gc-{seed}"));
    fs::create_dir_all(&kept)?;
    for entry in fs::read_dir(ground.node.home())?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|it| it == "log") {
            fs::copy(&path, kept.join(entry.file_name()))?;
        }
    }
    fs::write(kept.join("journal"), journal.join("\n"))?;
    Ok(kept)
}

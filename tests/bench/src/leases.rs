//! How long it takes to admit a sandbox with its address, and to remove it, through the real store; beside the bare write
//! of a row of about the same size that is synced, in turn, on the same disk.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::{Context as _, ensure};
use berth_domain::{SandboxId, SandboxRecord, ipam};
use berth_store::{Admitted, Arrival, Store};
use serde_json::json;

use crate::statistics::{Sample, rounded};

const SUBNET: &str = "10.87.0.0/16";
/// As long as the record of a sandbox with next to nothing in it.
const ROW: [u8; 512] = [7; 512];

/// Measures the store: an address taken and given back, beside a bare write.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// An empty folder on the disk that is measured.
    #[arg(long)]
    dir: PathBuf,
    /// Addresses that are taken and given back, each in a transaction of its own.
    #[arg(long, default_value_t = 1000)]
    rounds: usize,
    /// Addresses that are held meanwhile; the figures are also taken without.
    #[arg(long, default_value_t = 10_000)]
    held: usize,
    /// Where the figures go as JSON.
    #[arg(long)]
    output: PathBuf,
}

#[derive(Default)]
struct Samples {
    floor: Sample,
    admit: Sample,
    remove: Sample,
}

pub(crate) async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments {
        dir,
        rounds,
        held,
        output,
    } = arguments;
    ensure!(rounds > 0, "there is nothing to measure in no rounds");
    let subnet = SUBNET.parse().context("a subnet")?;
    let store = Store::open(&dir.join("store"), subnet, ipam::COOL_DOWN_DEFAULT)?;
    let mut bare = File::create(dir.join("bare"))?;
    let mut figures = vec![];
    let mut before = 0;
    for target in [0, held] {
        for number in before..target {
            begin(&store, &format!("held-{number}")).await?;
        }
        before = before.max(target);
        let samples = run(&store, &mut bare, &format!("r-{target}"), rounds).await?;
        say(target, &samples);
        figures.push(json!({
            "held": target,
            "bare_write": samples.floor.to_json(),
            "admit": samples.admit.to_json(),
            "remove": samples.remove.to_json(),
            "admit_ratio": rounded(ratio(&samples.admit, &samples.floor)),
            "remove_ratio": rounded(ratio(&samples.remove, &samples.floor)),
        }));
    }
    write(&output, &json!({ "leases": figures }))
}

async fn run(store: &Store, bare: &mut File, name: &str, rounds: usize) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    for round in 0..rounds {
        let begun = Instant::now();
        bare.write_all(&ROW)?;
        bare.sync_data()?;
        samples.floor.add(begun.elapsed());
        let begun = Instant::now();
        let record = begin(store, &format!("{name}-{round}")).await?;
        samples.admit.add(begun.elapsed());
        let begun = Instant::now();
        let removed = store.remove(&record.id, record.generation, SystemTime::now());
        ensure!(removed.await?, "it was there");
        samples.remove.add(begun.elapsed());
    }
    Ok(samples)
}

async fn begin(store: &Store, name: &str) -> anyhow::Result<SandboxRecord> {
    let (id, now) = (SandboxId::parse(name)?, SystemTime::now());
    let admitted = store.admit(&id, Arc::default(), Arrival::default(), now);
    match admitted.await? {
        Admitted::Begun(record) => Ok(record),
        Admitted::Joined(_) => anyhow::bail!("the folder was not empty"),
    }
}

fn ratio(of: &Sample, to: &Sample) -> f64 {
    of.quantile(0.5) / to.quantile(0.5)
}

#[expect(clippy::print_stdout, reason = "it is what the program is for")]
fn say(held: usize, samples: &Samples) {
    let Samples {
        floor,
        admit,
        remove,
    } = samples;
    println!("leases, {held} held, n = {}:", floor.len());
    println!("  a bare write, synced            {}", floor.in_words());
    for (what, sample) in [("admission with an address", admit), ("removal", remove)] {
        let times = ratio(sample, floor);
        println!("  {what:<30}  {}  {times:.2} times it", sample.in_words());
    }
}

fn write(output: &Path, figures: &serde_json::Value) -> anyhow::Result<()> {
    if let Some(dir) = output.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(output, format!("{figures:#}\n")).context("writing the figures")
}

//! Measures how long one worker of image-gc and three of them take for the same blobs, in turns, on one node.

use std::time::{Duration, Instant};

use anyhow::ensure;
use berth_e2e::{
    TestNode,
    collectors::{DEADLINE, Registry, Worker, latest, settled, shared_by},
    node::eventually,
};

const BLOBS: usize = 3000;
const ROUNDS: usize = 5;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the figures are its output")]
async fn main() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    for tree in [false, true] {
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            for (times, count) in times.iter_mut().zip([1, 3]) {
                times.push(collected(&node, tree, count, round).await?);
            }
        }
        let [one, three] = times.map(|mut times| {
            times.sort();
            times
        });
        let layout = if tree { "distribution" } else { "flat" };
        println!(
            "{layout}: {BLOBS} blobs, one worker {}, three {}, ratio {:.2} (medians and ranges, n={ROUNDS})",
            told(&one),
            told(&three),
            median(&one) / median(&three)
        );
    }
    node.finish()
}

/// From the beginning of a run to the removal of the last file.
async fn collected(
    node: &TestNode,
    tree: bool,
    count: usize,
    round: usize,
) -> anyhow::Result<Duration> {
    let name = format!("blobs-{tree}-{count}-{round}");
    let registry = Registry::new(node.home().join(&name), tree)?;
    let toml = format!(
        "blob_dir = {:?}\nblob_layout = {}",
        registry.root,
        registry.layout()
    );
    let workers = (0..count)
        .map(|it| Worker::start(node, &format!("gc-{it}"), &toml))
        .collect::<anyhow::Result<Vec<_>>>()?;
    shared_by(node, &workers.iter().collect::<Vec<_>>()).await?;
    settled(node).await?;
    for number in 0..BLOBS {
        registry.write(format!("{name} {number}").as_bytes())?;
    }
    let begin = Instant::now();
    // The first run takes the paths away, the second one the files; neither waits for the grace.
    let buried = workers[0].run(false, 0).await?;
    let removed = workers[0].run(false, 0).await?;
    let gone = || async {
        registry.files().is_ok_and(|it| it.is_empty())
            && latest(node)
                .await
                .is_ok_and(|it| it.iter().all(|it| it.ended_at.is_some()))
    };
    eventually("all are gone", DEADLINE, gone).await?;
    let took = begin.elapsed();
    ensure!(
        buried.failed_total + removed.failed_total == 0,
        "{buried:?} {removed:?}"
    );
    Ok(took)
}

/// The median and the range of what is sorted.
fn told(times: &[Duration]) -> String {
    let (least, most) = (times[0], times[times.len() - 1]);
    let (least, most) = (least.as_secs_f64(), most.as_secs_f64());
    format!("{:.2} s ({least:.2} to {most:.2})", median(times))
}

fn median(times: &[Duration]) -> f64 {
    times[times.len() / 2].as_secs_f64()
}

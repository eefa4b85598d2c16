//! A container writes numbered lines at a steady pace while the manager is killed and stays dead for half of the time. Then the
//! log is read back: no line may be missing or doubled. Also says how long the container's writes took, beside the same writes
//! to `/dev/null` at the same time.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::ensure;
use berth_e2e::{
    TestNode,
    pacer::{self, Pace},
};
use clap::Parser;

/// Holds the log of one container against what it has written.
#[derive(Debug, Parser)]
struct Arguments {
    /// Seconds of output.
    #[arg(long, default_value_t = 60)]
    duration: u64,
    #[arg(long, default_value_t = 5_000_000)]
    bytes_per_second: u64,
    #[arg(long, default_value_t = 200)]
    line_bytes: u64,
    /// Kill the process that writes that often, while the manager lives.
    #[arg(long, default_value_t = 0)]
    kills: u32,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "it tells its user what it saw")]
async fn main() -> ExitCode {
    match run(&Arguments::parse()).await {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<String> {
    let pace = Pace {
        seconds: arguments.duration,
        bytes_per_second: arguments.bytes_per_second,
        line_bytes: arguments.line_bytes,
    };
    // Each line with its header, and room.
    let limit = pace.lines() * (pace.line_bytes + 64) + (16 << 20);
    let node = TestNode::start_with(&format!("log_limit_bytes = {limit}\n"), &[]).await?;
    let begun = Instant::now();
    pacer::begin(&node, pace).await?;
    let quarter = Duration::from_secs(arguments.duration) / 4;
    let dead = if arguments.kills == 0 {
        pacer::until(begun, quarter).await;
        node.kill_manager()?;
        let died = Instant::now();
        pacer::until(died, quarter * 2).await;
        node.up().await?;
        died.elapsed()
    } else {
        for kill in 1..=arguments.kills {
            pacer::until(begun, quarter * 4 * kill / (arguments.kills + 2)).await;
            pacer::kill_writer(&node, "log-writer").await?;
        }
        Duration::ZERO
    };
    let told = pacer::told(&node, pace).await?;
    ensure!(told.lost == 0, "{} lines are only counted", told.lost);
    let summary = format!(
        "{} lines, each there once; the manager was dead for {:.1} s, the writer was replaced {} times\n{}",
        told.lines,
        dead.as_secs_f64(),
        told.replaced,
        told.stalls.join("\n")
    );
    node.delete(pacer::ID).await?;
    node.finish()?;
    Ok(summary)
}

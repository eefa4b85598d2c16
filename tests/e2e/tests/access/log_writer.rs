//! The output of containers on real containerd: nothing is lost while a manager is dead, or when what writes is killed.

use std::time::{Duration, Instant};

use anyhow::ensure;
use berth_e2e::{
    TestNode,
    logs::{Entry, entries, output},
    node::eventually,
    pacer::{self, Pace},
    specs::{shell, spec, web},
};
use berth_logs::format::Kind;

const DEADLINE: Duration = Duration::from_secs(20);
const PACE: Pace = Pace {
    seconds: 6,
    bytes_per_second: 5_000_000,
    line_bytes: 200,
};
const ROOM: &str = "log_limit_bytes = 134217728\n";

#[tokio::test]
async fn not_a_line_is_lost_or_doubled_while_the_manager_is_dead() -> anyhow::Result<()> {
    let node = TestNode::start_with(ROOM, &[]).await?;
    let begun = Instant::now();
    pacer::begin(&node, PACE).await?;
    node.kill_manager()?;
    pacer::until(begun, Duration::from_secs(3)).await;
    node.up().await?;
    let told = pacer::told(&node, PACE).await?;
    ensure!((told.lost, told.replaced) == (0, 0), "{told:?}");
    ensure!(told.stalls.len() == 2, "{told:?}");
    ensure!(node.delete(pacer::ID).await?);
    node.finish()
}

#[tokio::test]
async fn a_writer_that_is_killed_ten_times_costs_neither_a_process_nor_a_line() -> anyhow::Result<()>
{
    let node = TestNode::start_with(ROOM, &[]).await?;
    pacer::begin(&node, PACE).await?;
    for _ in 0..10 {
        pacer::kill_writer(&node, "log-writer").await?;
    }
    let told = pacer::told(&node, PACE).await?;
    ensure!(told.lost == 0 && told.replaced > 0, "{told:?}");
    ensure!(node.delete(pacer::ID).await?);
    node.finish()
}

#[tokio::test]
async fn a_guardian_that_is_killed_costs_no_process_and_leaves_nothing() -> anyhow::Result<()> {
    let node = TestNode::start_with(ROOM, &[]).await?;
    pacer::begin(&node, PACE).await?;
    for _ in 0..3 {
        pacer::kill_writer(&node, "log-guardian").await?;
    }
    let told = pacer::told(&node, PACE).await?;
    ensure!(told.replaced > 0, "{told:?}");
    ensure!(node.delete(pacer::ID).await?);
    let gone = || async {
        let left = ["log-guardian", "log-writer"].map(|it| pacer::writers(&node, it));
        left.into_iter().all(|it| it.is_ok_and(|it| it.is_empty()))
    };
    eventually("no writer is left", DEADLINE, gone).await?;
    node.finish()
}

#[tokio::test]
async fn the_last_words_of_a_container_are_kept_with_their_tags() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let line =
        "echo one; echo '!USER two'; echo '!ERROR three' >&2; sleep 0.3; echo -n 'the end' >&2";
    let request = spec([shell("app", line, &[])]);
    // It may be seen to run or not.
    let _ = node.create("short", request).await;
    let written = || async { output(&node, "short", "app").ends_with("the end\n") };
    eventually("its last words are kept", DEADLINE, written).await?;
    let of = |kind: Kind| {
        let entries = entries(&node, "short", "app");
        let texts = entries.into_iter().filter(|it| it.kind == kind);
        texts.map(|it| it.text).collect::<Vec<_>>()
    };
    ensure!(of(Kind::Stdout) == [b"one"], "{:?}", of(Kind::Stdout));
    ensure!(of(Kind::UserOob) == [b"two"]);
    ensure!(of(Kind::Error) == [b"three"]);
    node.delete("short").await?;
    node.finish()
}

fn system(node: &TestNode, id: &str) -> Vec<String> {
    let text = |it: Entry| String::from_utf8_lossy(&it.text).into_owned();
    entries(node, id, "@system").into_iter().map(text).collect()
}

#[tokio::test]
async fn what_happens_to_a_sandbox_is_in_a_log_of_its_own() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", web("hello", 8080)).await?;
    let told = || async { system(&node, "web") == ["being created: web", "running"] };
    eventually("it is told that it runs", DEADLINE, told).await?;
    node.stop("web").await?;
    let told = || async { system(&node, "web").len() == 4 };
    eventually("it is told that it ended", DEADLINE, told).await?;
    ensure!(system(&node, "web")[2] == "stopping: it was told to stop");

    let mut broken = web("hello", 8080);
    broken.containers[0].image = "berth.local/nobody/has-it:1".into();
    ensure!(node.create("broken", broken).await.is_err());
    let told = || async { system(&node, "broken").len() >= 3 };
    eventually("it is told why it failed", DEADLINE, told).await?;
    let lines = system(&node, "broken");
    ensure!(lines[1].starts_with("creating it failed: "), "{lines:?}");

    for id in ["web", "broken"] {
        node.delete(id).await?;
        ensure!(
            !node.home().join("log").join(id).exists(),
            "{id} has left its log"
        );
    }
    node.assert_clean().await?;
    node.finish()
}

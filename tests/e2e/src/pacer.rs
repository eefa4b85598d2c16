//! A container that writes numbered lines at a steady pace, and what must be true of its log.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_api::v1::SandboxSpec;
use berth_logs::format::{GapReason, Kind};
use serde_json::json;

use crate::{
    TestNode,
    faults::{processes, signal},
    images::{ImageParts, busybox_layer, program_layer},
    logs::{Entry, entries},
    node::eventually,
    specs::{shell, spec},
};

const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pacer"));
const IMAGE: &str = "berth.local/pacer:1";
pub const ID: &str = "paced";

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub seconds: u64,
    pub bytes_per_second: u64,
    pub line_bytes: u64,
}

impl Pace {
    pub fn lines(self) -> u64 {
        self.seconds * (self.bytes_per_second / self.line_bytes)
    }
}

/// What was read back, and what the container says of its writes.
#[derive(Debug)]
pub struct Told {
    pub lines: u64,
    pub lost: u64,
    pub replaced: usize,
    pub stalls: Vec<String>,
}

/// Begins to write: the program is a child of the container's first process, which outlives it.
pub async fn begin(node: &TestNode, pace: Pace) -> anyhow::Result<()> {
    let parts = ImageParts::plain(
        &[busybox_layer(), program_layer("bin/pacer", PROGRAM)],
        json!({ "Env": ["PATH=/bin"] }),
    );
    node.import(&parts.oci_archive(IMAGE), "").await?;
    node.create(ID, paced(pace)).await?;
    Ok(())
}

fn paced(pace: Pace) -> SandboxSpec {
    let Pace {
        seconds,
        bytes_per_second,
        line_bytes,
    } = pace;
    let line = format!(
        "pacer {seconds} {bytes_per_second} {line_bytes}; echo ended $? >&2; exec sleep 3600"
    );
    let mut container = shell("app", &line, &[]);
    container.image = IMAGE.into();
    spec([container])
}

/// Waits until the container has written all, and reads its log: each line once, or counted by a gap.
pub async fn told(node: &TestNode, pace: Pace) -> anyhow::Result<Told> {
    let limit = Duration::from_secs(pace.seconds * 3 + 60);
    let ended = || async { last_words(node).is_some() };
    eventually("the container has written all", limit, ended).await?;
    let status = last_words(node).context("its last words")?;
    ensure!(status == "ended 0", "the program that writes: {status}");
    account(&entries(node, ID, "app"), pace)
}

fn last_words(node: &TestNode) -> Option<String> {
    let entries = entries(node, ID, "app");
    let last = entries.iter().rfind(|it| it.kind == Kind::Stderr)?;
    let text = String::from_utf8_lossy(&last.text).into_owned();
    text.starts_with("ended").then_some(text)
}

fn account(entries: &[Entry], pace: Pace) -> anyhow::Result<Told> {
    let mut told = Told {
        lines: 0,
        lost: 0,
        replaced: 0,
        stalls: vec![],
    };
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    let mut sequence = 0;
    for entry in entries {
        ensure!(
            entry.sequence == sequence,
            "{} after {sequence}",
            entry.sequence
        );
        sequence += entry.gap().map_or(1, |it| it.lines.max(1));
        let text = String::from_utf8_lossy(&entry.text);
        match entry.kind {
            Kind::Gap => {
                let gap = entry.gap().context("a gap")?;
                ensure!(gap.reason == GapReason::Writer || gap.bytes > 0, "{gap:?}");
                told.lost += gap.lines;
            }
            Kind::System => told.replaced += 1,
            Kind::Stderr if text.starts_with("stalls") => told.stalls.push(text.into_owned()),
            Kind::Stdout => {
                let number = text.split(' ').nth(1).and_then(|it| it.parse().ok());
                *seen
                    .entry(number.with_context(|| text.into_owned())?)
                    .or_default() += 1;
            }
            Kind::Stderr | Kind::UserOob | Kind::Error => {}
        }
    }
    let doubled = seen.values().filter(|it| **it != 1).count();
    ensure!(doubled == 0, "{doubled} lines are doubled");
    told.lines = seen.len() as u64;
    ensure!(
        told.lines + told.lost == pace.lines(),
        "{} lines and {} in gaps, of {}",
        told.lines,
        told.lost,
        pace.lines()
    );
    Ok(told)
}

/// The processes of that name that write logs of this node.
pub fn writers(node: &TestNode, name: &str) -> anyhow::Result<Vec<u32>> {
    let dir = node.home().join("log").display().to_string();
    let mut found = vec![];
    for (pid, command) in processes()? {
        let called = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if called.trim() == name && command.contains(&dir) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Kills the process of that name that writes, and waits until another one has its place.
pub async fn kill_writer(node: &TestNode, name: &str) -> anyhow::Result<()> {
    let pair = || -> Option<[u32; 2]> {
        let one = |name| <[u32; 1]>::try_from(writers(node, name).ok()?).ok();
        let ([guardian], [worker]) = (one("log-guardian")?, one("log-writer")?);
        Some([guardian, worker])
    };
    let limit = Duration::from_secs(10);
    let complete = || async { pair().is_some() };
    eventually("there are a guardian and a worker", limit, complete).await?;
    let [before] = <[u32; 1]>::try_from(writers(node, name)?)
        .map_err(|it| anyhow::anyhow!("{} of {name}", it.len()))?;
    signal(before, "KILL")?;
    let replaced = || async { pair().is_some_and(|it| !it.contains(&before)) };
    eventually("it is replaced", limit, replaced).await
}

/// Waits until the container has written for that long.
pub async fn until(begun: Instant, after: Duration) {
    tokio::time::sleep_until((begun + after).into()).await;
}

//! Readers of logs at a real manager: many at once, and over its death. The log is written by hand, in the folder of a
//! container that writes nothing itself.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::PathBuf,
    process::{Child, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, log_entry::Content};
use berth_e2e::{
    TestNode,
    node::{eventually, succeed},
    specs::idle,
};
use berth_logs::format::{Kind, Record, SegmentHeader, segment_name};

const LIMIT: Duration = Duration::from_secs(60);
const FOLLOWERS: usize = 50;

/// A log that a test writes.
struct Log {
    folder: PathBuf,
    first: u64,
    next: u64,
}

impl Log {
    fn new(node: &TestNode, id: &str) -> anyhow::Result<Self> {
        let folder = node.home().join("log").join(id).join("app");
        fs::create_dir_all(&folder)?;
        let mut new = Self {
            folder,
            first: 0,
            next: 0,
        };
        new.rotate()?;
        Ok(new)
    }

    fn rotate(&mut self) -> anyhow::Result<()> {
        self.first = self.next;
        let header = SegmentHeader {
            log: 7,
            first: self.first,
        };
        Ok(fs::write(self.path(), header.encode())?)
    }

    fn path(&self) -> PathBuf {
        self.folder.join(segment_name(self.first))
    }

    fn lines(&mut self, count: u64) -> anyhow::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let mut bytes = vec![];
        for _ in 0..count {
            let body = format!("line {}", self.next);
            Record {
                sequence: self.next,
                time_ns: u64::try_from(now.as_nanos())?,
                kind: Kind::Stdout,
                flags: 0,
                body: body.as_bytes(),
            }
            .encode(&mut bytes);
            self.next += 1;
        }
        let mut file = OpenOptions::new().append(true).open(self.path())?;
        Ok(file.write_all(&bytes)?)
    }
}

/// A program that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // After its end this finds nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Follows a log to the end of its sandbox, and returns the numbers of its lines.
async fn follow(node: &TestNode, id: &str, mut seen: impl FnMut(u64)) -> anyhow::Result<Vec<u64>> {
    let request = v1::StreamLogsRequest {
        id: id.into(),
        containers: vec!["app".into()],
        follow: true,
        ..v1::StreamLogsRequest::default()
    };
    let mut responses = node.sandboxes().stream_logs(request).await?.into_inner();
    let mut numbers = vec![];
    while let Some(response) = responses.message().await? {
        for entry in response.entries {
            ensure!(matches!(entry.content, Some(Content::Line(_))), "{entry:?}");
            numbers.push(entry.sequence);
            seen(entry.sequence);
        }
    }
    Ok(numbers)
}

/// CPU time that the manager has used, in milliseconds.
fn cpu_millis(node: &TestNode) -> anyhow::Result<u64> {
    let pid = fs::read_to_string(node.home().join("manager.pid"))?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()))?;
    let (_, fields) = stat.rsplit_once(") ").context("a stat")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.collect::<Result<Vec<_>, _>>()?.iter().sum();
    Ok(ticks * 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_followers_of_one_log_each_get_every_line_once() -> anyhow::Result<()> {
    let node = Arc::new(TestNode::start().await?);
    node.create("web", idle()).await?;
    let mut log = Log::new(&node, "web")?;
    log.lines(100)?;
    let (sender, mut seen) = tokio::sync::watch::channel(0);
    let sender = Arc::new(sender);
    let followers: Vec<_> = (0..FOLLOWERS)
        .map(|_| {
            let (node, sender) = (node.clone(), sender.clone());
            tokio::spawn(async move {
                let told = |number: u64| {
                    if (number + 1).is_multiple_of(100) {
                        sender.send_modify(|count| *count += 1);
                    }
                };
                follow(&node, "web", told).await
            })
        })
        .collect();
    let mut until_for = async |hundreds: usize, limit| {
        let reached = seen.wait_for(|count| *count >= hundreds * FOLLOWERS);
        tokio::time::timeout(limit, reached).await.map(drop)
    };
    until_for(1, LIMIT).await.context("all follow")?;
    let quiet = cpu_millis(&node)?;
    ensure!(
        until_for(2, Duration::from_secs(3)).await.is_err(),
        "nothing was written"
    );
    let begun = cpu_millis(&node)?;
    for round in 2..=40_usize {
        log.lines(100)?;
        if round.is_multiple_of(10) {
            log.rotate()?;
        }
        until_for(round, LIMIT)
            .await
            .context("all have the lines")?;
    }
    let done = cpu_millis(&node)?;
    eprintln!(
        "{FOLLOWERS} followers: {} ms of CPU in 3 s without a line, {} ms for {} lines to each",
        begun - quiet,
        done - begun,
        log.next - 100
    );
    node.delete("web").await?;
    for follower in followers {
        let numbers = tokio::time::timeout(LIMIT, follower).await???;
        ensure!(numbers == (0..log.next).collect::<Vec<_>>(), "{numbers:?}");
    }
    let node = Arc::into_inner(node).context("nobody follows")?;
    node.finish()
}

#[tokio::test]
async fn a_follower_goes_on_over_restarts_of_the_manager_without_gap_or_repeat()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", idle()).await?;
    let mut log = Log::new(&node, "web")?;
    log.lines(10)?;
    let (out, err) = (node.home().join("followed"), node.home().join("complaints"));
    let mut command = node.command("berth");
    command
        .args(["logs", "-f", "web", "-c", "app"])
        .stdout(fs::File::create(&out)?)
        .stderr(fs::File::create(&err)?)
        .stdin(Stdio::null());
    let mut follower = Running(command.spawn()?);
    let expected = |log: &Log| {
        (0..log.next)
            .map(|it| format!("line {it}\n"))
            .collect::<String>()
    };
    let shown = async |log: &Log| {
        let expected = expected(log);
        let shown = || async { fs::read_to_string(&out).is_ok_and(|it| it == expected) };
        eventually("the follower has all lines", LIMIT, shown).await
    };
    shown(&log).await?;
    for signal in ["-KILL", "-TERM"] {
        node.signal_manager(signal, Duration::from_secs(20))?;
        log.lines(5)?;
        log.rotate()?;
        log.lines(5)?;
        node.up().await?;
        shown(&log).await?;
        log.lines(1)?;
        shown(&log).await?;
    }
    node.delete("web").await?;
    let ended = eventually("the follower ends", LIMIT, || {
        let ended = matches!(follower.0.try_wait(), Ok(Some(_)));
        async move { ended }
    });
    ended.await?;
    let code = follower.0.wait()?.code();
    let complaints = fs::read_to_string(&err)?;
    ensure!(code == Some(0), "{code:?}: {complaints}");
    ensure!(complaints.matches("is away").count() == 2, "{complaints}");
    ensure!(fs::read_to_string(&out)? == expected(&log));

    let mut gone = node.command("berth");
    gone.args(["logs", "web"]);
    ensure!(succeed(gone).is_err(), "it is gone");
    node.finish()
}

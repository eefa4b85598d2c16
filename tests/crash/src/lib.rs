//! Ends the manager by SIGKILL at each of its named points, starts it again, repeats the call, and looks whether anything
//! is lost, doubled or left. What a point is belongs to the manager; what must hold after it is said in `scenario`.

pub mod matrix;
mod scenario;

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use berth_api::v1::SandboxStatus;
use berth_e2e::{TestNode, node::eventually, specs::idle};

pub use scenario::Scenario;

const LONG: Duration = Duration::from_secs(30);
/// It stands beside whatever is tried, and must never notice.
const BYSTANDER: &str = "bystander";
const CONFIGURATION: &str = "purge_interval = \"200ms\"\n";

/// A point, and what became of a crash there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub scenario: Scenario,
    pub point: String,
    pub outcome: &'static str,
}

/// A node on which the manager is killed again and again.
#[derive(Debug)]
pub struct Ground {
    pub(crate) node: TestNode,
    bystander: String,
}

impl Ground {
    pub async fn start() -> anyhow::Result<Self> {
        let node = TestNode::start_with(CONFIGURATION, &[]).await?;
        node.create(BYSTANDER, idle()).await?;
        let bystander = pid(&node, BYSTANDER, "app")?;
        Ok(Self { node, bystander })
    }

    /// The points that `scenario` passes when nothing happens, in the order of a table.
    pub async fn points(&self, scenario: Scenario) -> anyhow::Result<Vec<String>> {
        let trace = self.trace();
        let trace = trace.to_string_lossy();
        scenario.arrange(self).await?;
        self.restart(scenario, &[("BERTH_CRASH_TRACE", &trace)])
            .await?;
        if scenario != Scenario::Start {
            fs::write(&*trace, "")?;
        }
        scenario.act(self).await?;
        scenario.settled(self).await?;
        // What nobody waits for goes on a little: a point before an effect has one behind it.
        let whole = || async {
            let passed = fs::read_to_string(&*trace).unwrap_or_default();
            let mut begun = passed.lines().filter_map(|it| it.strip_suffix("/before"));
            begun.all(|it| passed.lines().any(|point| point == format!("{it}/after")))
        };
        eventually("all that was begun is done", LONG, whole).await?;
        let passed = fs::read_to_string(&*trace)?;
        fs::remove_file(&*trace)?;
        scenario.clear(self).await?;
        let passed: BTreeSet<_> = passed.lines().filter(|it| scenario.owns(it)).collect();
        let mut points: Vec<String> = passed.into_iter().map(str::to_owned).collect();
        points.sort_by_key(|it| {
            let (name, when) = it.rsplit_once('/').unwrap_or((it, ""));
            (name.to_owned(), when != "before")
        });
        ensure!(!points.is_empty(), "{scenario} passes no point");
        Ok(points)
    }

    /// Crashes at `point` of `scenario`, and says what became of it.
    pub async fn crash(&self, scenario: Scenario, point: &str) -> anyhow::Result<Row> {
        let outcome = self.try_crash(scenario, point).await;
        let outcome = outcome.with_context(|| format!("{scenario}: a crash at {point}"))?;
        Ok(Row {
            scenario,
            point: point.to_owned(),
            outcome,
        })
    }

    async fn try_crash(&self, scenario: Scenario, point: &str) -> anyhow::Result<&'static str> {
        scenario.arrange(self).await?;
        let started = self.restart(scenario, &[("BERTH_CRASH_AT", point)]).await;
        if scenario == Scenario::Start {
            // It dies while it starts, or just after.
            drop(started);
        } else {
            started?;
            // Its answer may be lost.
            drop(scenario.act(self).await);
        }
        let dead = || async { !self.node.manager_runs() };
        eventually("the manager dies at the point", LONG, dead).await?;

        self.restart(scenario, &[]).await?;
        let before = scenario.look(self).await?;
        scenario.repeat(self).await?;
        scenario.settled(self).await?;
        self.node.assert_clean().await?;
        self.assert_one_owner().await?;
        scenario.clear(self).await?;
        let audit = self.node.audit().await?;
        let strangers: Vec<_> = audit
            .objects
            .iter()
            .filter(|it| it.sandbox != BYSTANDER)
            .collect();
        ensure!(
            audit.clean && strangers.is_empty(),
            "left behind: {strangers:#?}"
        );
        let bystander = pid(&self.node, BYSTANDER, "app")?;
        ensure!(
            bystander == self.bystander,
            "the bystander was started anew"
        );
        Ok(before)
    }

    /// As many addresses are held as there are sandboxes that are not DEAD, and no two hold the same.
    async fn assert_one_owner(&self) -> anyhow::Result<()> {
        let list = self.node.list().await?;
        let live = list.iter().filter(|it| it.status() != SandboxStatus::Dead);
        let addresses: Vec<_> = live
            .flat_map(|it| &it.addresses)
            .map(|it| &it.address)
            .collect();
        let distinct: BTreeSet<_> = addresses.iter().collect();
        ensure!(distinct.len() == addresses.len(), "{addresses:?}");
        let held = self.node.status().await?.network.unwrap_or_default().held;
        ensure!(
            held == addresses.len() as u64,
            "{held} addresses are held by {addresses:?}"
        );
        Ok(())
    }

    async fn restart(
        &self,
        scenario: Scenario,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        if self.node.manager_runs() {
            self.node.kill_manager()?;
        }
        let environment = [scenario.environment(), environment].concat();
        self.node.up_with(&environment).await
    }

    fn trace(&self) -> PathBuf {
        self.node.home().join("points")
    }

    /// Ends the node and proves that it left nothing.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.node.delete(BYSTANDER).await?;
        let audit = self.node.audit().await?;
        ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
        self.node.finish()
    }
}

/// The process of a container.
pub(crate) fn pid(node: &TestNode, id: &str, container: &str) -> anyhow::Result<String> {
    let list = node.command("ctr").args(["t", "ls"]).output()?;
    let list = String::from_utf8(list.stdout)?;
    let name = format!("sandbox.{id}.{container} ");
    let line = list.lines().find(|it| it.starts_with(&name));
    let pid = line.and_then(|it| it.split_whitespace().nth(1));
    Ok(pid
        .with_context(|| format!("{name} has no task"))?
        .to_owned())
}

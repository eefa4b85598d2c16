//! Ends the manager by SIGKILL at each of its named points, starts it again, repeats the call, and looks whether anything
//! is lost, doubled or left. What a point is belongs to the manager; what must hold after it is said in `verdict`.

mod collection;
pub mod matrix;
mod scenario;
mod stored;
mod verdict;

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use berth_api::v1::{ListImagesRequest, SandboxStatus};
use berth_e2e::{
    TestNode,
    images::{BUSYBOX, ImageParts, busybox_layer, layer},
    node::eventually,
    registry::Registry,
    specs::idle,
};

use scenario::ID;
pub use scenario::Scenario;
use stored::Stored;

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
    /// Process of the bystander.
    bystander: Mutex<String>,
    /// Of the image that the sandboxes are made of.
    pub(crate) digest: String,
    pub(crate) pulled: Pulled,
}

/// An image that only a registry has.
#[derive(Debug)]
pub(crate) struct Pulled {
    pub(crate) name: String,
    pub(crate) digest: String,
    _registry: Registry,
}

impl Pulled {
    async fn publish() -> anyhow::Result<Self> {
        let registry = Registry::start().await?;
        let layers = [busybox_layer(), layer(&[("etc/pulled", "")])];
        let image = ImageParts::plain(&layers, serde_json::json!({ "Env": ["PATH=/bin"] }));
        Ok(Self {
            name: registry.publish("pulled", "1", &image),
            digest: image.digest().to_owned(),
            _registry: registry,
        })
    }
}

impl Ground {
    pub async fn start() -> anyhow::Result<Self> {
        let node = TestNode::start_with(CONFIGURATION, &[]).await?;
        let request = ListImagesRequest::default();
        let images = node.images().list_images(request).await?;
        let images = images.into_inner().images;
        let own = images.into_iter().find(|it| it.name == BUSYBOX);
        let ground = Self {
            node,
            bystander: Mutex::default(),
            digest: own.context("the image of the tests")?.digest,
            pulled: Pulled::publish().await?,
        };
        ground.place_bystander().await?;
        Ok(ground)
    }

    pub(crate) async fn place_bystander(&self) -> anyhow::Result<()> {
        self.node.create(BYSTANDER, idle()).await?;
        let pid = pid(&self.node, BYSTANDER, "app")?;
        *self
            .bystander
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = pid;
        Ok(())
    }

    /// The points that `scenario` passes when nothing happens, in the order of a table.
    pub async fn points(&self, scenario: Scenario) -> anyhow::Result<Vec<String>> {
        let trace = self.trace();
        let trace = trace.to_string_lossy();
        scenario.arrange(self).await?;
        self.restart(scenario, &[("BERTH_CRASH_TRACE", &trace)])
            .await?;
        if !scenario.is_found_at_the_start() {
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
        let former = scenario.arrange(self).await?;
        let former = former.as_ref();
        let process = self.process("web");
        let started = self.restart(scenario, &[("BERTH_CRASH_AT", point)]).await;
        if scenario.is_found_at_the_start() {
            // It dies while it starts, or just after.
            drop(started);
        } else {
            started?;
            // Its answer may be lost.
            drop(scenario.act(self).await);
        }
        self.until_dead().await?;
        let stored = Stored::of(self, ID).await?;

        self.restart(scenario, &[]).await?;
        let seen = scenario.look(self, point, former, &stored).await?;
        if scenario.leaves_processes_alone() {
            let there = self.process("web");
            ensure!(there == process, "process {process} became {there}");
        }
        let answer = scenario.repeat(self).await?;
        scenario.compare(self, former, &seen, &answer)?;
        scenario.settled(self).await?;
        self.node.assert_clean().await?;
        self.assert_one_owner().await?;
        scenario.clear(self).await?;
        let alone = || async {
            let audit = self.node.audit().await;
            audit.is_ok_and(|it| it.clean && it.objects.iter().all(|it| it.sandbox == BYSTANDER))
        };
        if eventually("nothing is left", LONG, alone).await.is_err() {
            bail!("left behind: {:#?}", self.node.audit().await?);
        }
        let bystander = pid(&self.node, BYSTANDER, "app")?;
        let known = self.bystander.lock();
        ensure!(
            bystander == *known.unwrap_or_else(PoisonError::into_inner),
            "the bystander was started anew"
        );
        Ok(seen.outcome)
    }

    pub(crate) async fn until_dead(&self) -> anyhow::Result<()> {
        let dead = || async { !self.node.manager_runs() };
        eventually("the manager dies at the point", LONG, dead).await
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

    pub(crate) async fn restart(
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

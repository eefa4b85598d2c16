//! The node, its workers and the registry, and calls that go on until the manager answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use berth_api::v1::{self, CollectionKind};
use berth_e2e::{
    TestNode,
    collectors::{self, Registry as Blobs, Worker, shared_by},
    images::{ImageParts, busybox_layer, layer},
    node::succeed,
    registry::Registry,
};
use serde_json::json;
use tonic::{Code, Status};

use crate::plan::WORKERS;

/// A kill, and all that follows from it, is over within it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
pub(crate) const REPOSITORY: &str = "cluster.local:5000/soak";

pub(crate) struct Ground {
    pub(crate) node: TestNode,
    pub(crate) registry: Registry,
    pub(crate) blobs: Blobs,
    workers: Mutex<Vec<Worker>>,
    toml: String,
    journal: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    pub(crate) kills: AtomicU64,
}

impl Ground {
    /// A node whose cluster registry is in this process, with workers on a directory of one layout.
    pub(crate) async fn start(tree: bool) -> anyhow::Result<Self> {
        let registry = Registry::start().await?;
        let address = registry.name("", "");
        let address = address.split('/').next().unwrap_or_default();
        let node = format!("pull.cluster_registry = \"{address}\"\n");
        let node = TestNode::start_with(&node, &[]).await?;
        let blobs = Blobs::new(node.home().join("blobs"), tree)?;
        let toml = format!(
            "blob_layout = {}\norphan_grace = \"1ms\"\nlease_time = \"3s\"",
            blobs.layout()
        );
        let ground = Self {
            node,
            registry,
            blobs,
            workers: Mutex::default(),
            toml,
            journal: Mutex::default(),
            counts: Mutex::default(),
            kills: AtomicU64::new(0),
        };
        for number in 0..WORKERS {
            let worker = ground.worker(number)?;
            ground.lock_workers().push(worker);
        }
        ground.whole().await?;
        collectors::settled(&ground.node).await?;
        Ok(ground)
    }

    fn worker(&self, number: u64) -> anyhow::Result<Worker> {
        Worker::start(&self.node, &format!("gc-{number}"), &self.toml)
    }

    fn lock_workers(&self) -> std::sync::MutexGuard<'_, Vec<Worker>> {
        self.workers.lock().expect("no holder panics")
    }

    /// Waits until all workers have taken their part again.
    pub(crate) async fn whole(&self) -> anyhow::Result<()> {
        let workers = std::mem::take(&mut *self.lock_workers());
        let shared = shared_by(&self.node, &workers.iter().collect::<Vec<_>>()).await;
        *self.lock_workers() = workers;
        shared
    }

    pub(crate) fn kill_worker(&self, number: u64) -> anyhow::Result<()> {
        let at = usize::try_from(number)?;
        let mut workers = self.lock_workers();
        workers[at].kill()?;
        workers[at] = self.worker(number)?;
        Ok(())
    }

    pub(crate) async fn kill_manager(&self) -> anyhow::Result<()> {
        self.kills.fetch_add(1, Ordering::SeqCst);
        self.node.kill_manager()?;
        self.node.up().await?;
        self.kills.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    pub(crate) fn note(&self, who: &str, what: &impl std::fmt::Debug) {
        let mut journal = self.journal.lock().expect("no holder panics");
        journal.push(format!("{who}: {what:?}"));
    }

    pub(crate) fn count(&self, what: &'static str) {
        let mut counts = self.counts.lock().expect("no holder panics");
        *counts.entry(what).or_default() += 1;
    }

    pub(crate) fn take_journal(&self) -> Vec<String> {
        std::mem::take(&mut *self.journal.lock().expect("no holder panics"))
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().expect("no holder panics").clone()
    }

    /// Names of the images that the node has, each with its digest.
    pub(crate) async fn images(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let list = || async {
            let request = v1::ListImagesRequest {};
            self.node.images().list_images(request).await
        };
        let images = insist("list", list).await?.into_inner().images;
        Ok(images.into_iter().map(|it| (it.name, it.digest)).collect())
    }

    /// Digests of all that containerd's content store has.
    pub(crate) fn contents(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut command = self.node.command("ctr");
        command.args(["content", "ls", "--quiet"]);
        let listed = succeed(command)?;
        Ok(listed.lines().map(|it| it.trim().to_owned()).collect())
    }

    /// A run that begins after this was called, to its end.
    pub(crate) async fn collect(&self, kind: CollectionKind) -> anyhow::Result<v1::Collection> {
        loop {
            let start = || async {
                let request = v1::StartCollectionRequest {
                    kind: kind.into(),
                    ..v1::StartCollectionRequest::default()
                };
                self.node.collections().start_collection(request).await
            };
            let started = insist("start a run", start).await?.into_inner();
            let id = started.collection.context("a run")?.id;
            let ended = self.ended(id).await?;
            if !started.joined {
                return Ok(ended);
            }
        }
    }

    /// Ends the workers and the node, and proves that nothing is left.
    pub(crate) async fn finish(self) -> anyhow::Result<()> {
        self.lock_workers().clear();
        self.node.assert_clean().await?;
        self.node.finish()
    }

    async fn ended(&self, id: u64) -> anyhow::Result<v1::Collection> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let runs = collectors::latest(&self.node).await.unwrap_or_default();
            let run = runs.into_iter().find(|it| it.id == id);
            if let Some(run) = run.filter(|it| it.ended_at.is_some()) {
                return Ok(run);
            }
            ensure!(Instant::now() < deadline, "run {id} does not end");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// An image of one small file beside busybox.
pub(crate) fn image(seed: u64, content: u64) -> ImageParts {
    let own = format!("{seed} {content}");
    let layers = [busybox_layer(), layer(&[("srv/name", &own)])];
    ImageParts::plain(&layers, json!({ "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"] }))
}

/// Whether a call was lost, and not refused.
pub(crate) fn is_lost(status: &Status) -> bool {
    let lost = [Code::Unavailable, Code::Cancelled, Code::Unknown];
    lost.contains(&status.code())
}

/// Calls until there is an answer; each call can be repeated.
pub(crate) async fn insist<T, F: Future<Output = Result<T, Status>>>(
    what: &str,
    mut call: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = match call().await {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        if !is_lost(&status) || Instant::now() >= deadline {
            bail!("{what}: {status}");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

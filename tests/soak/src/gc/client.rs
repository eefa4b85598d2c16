//! One client of an interleaving: does its steps, and knows of its own sandboxes, tags and blobs what must be there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use berth_api::v1::{
    self, ArtifactStatus, EntryKind, SandboxStatus, catalog_service_client::CatalogServiceClient,
    entry::Object,
};
use berth_e2e::{
    collectors::put,
    images::digest,
    node::eventually,
    specs::{shell, spec},
};
use serde_json::json;

use crate::{
    ground::{Ground, PATIENCE, REPOSITORY, image, insist, is_lost},
    plan::{BLOBS, SLOTS, Step, TAGS},
};

pub(crate) struct Client {
    ground: Arc<Ground>,
    seed: u64,
    number: u64,
    /// What the registry's tags stand for.
    contents: BTreeMap<u64, u64>,
    /// The image that each sandbox asks for.
    sandboxes: BTreeMap<u64, String>,
    artifacts: BTreeMap<u64, ArtifactStatus>,
    /// The tag that the version runs.
    version: Option<u64>,
    pins: BTreeSet<u64>,
    /// Tags whose image came here when something held them, which has not ended since.
    here: BTreeSet<u64>,
}

impl Client {
    pub(crate) fn new(ground: Arc<Ground>, seed: u64, number: u64, contents: &[u64]) -> Self {
        let contents = (0..).zip(contents.iter().copied()).collect();
        let client = Self {
            ground,
            seed,
            number,
            contents,
            sandboxes: BTreeMap::new(),
            artifacts: BTreeMap::new(),
            version: None,
            pins: BTreeSet::new(),
            here: BTreeSet::new(),
        };
        (0..TAGS).for_each(|tag| client.publish(tag));
        client
    }

    fn tag(&self, tag: u64) -> String {
        format!("c{}t{tag}", self.number)
    }

    fn name(&self, tag: u64) -> String {
        format!("{REPOSITORY}:{}", self.tag(tag))
    }

    fn slot(&self, slot: u64) -> String {
        format!("c{}s{slot}", self.number)
    }

    fn publish(&self, tag: u64) {
        let parts = image(self.seed, self.contents[&tag]);
        let registry = &self.ground.registry;
        registry.publish("soak", &self.tag(tag), &parts);
    }

    /// The last blob is named by the first one, which is a manifest.
    fn blob(&self, blob: u64) -> Vec<u8> {
        let own = |blob| format!("{} {} {blob}", self.seed, self.number).into_bytes();
        if blob != 0 {
            return own(blob);
        }
        let child = own(BLOBS - 1);
        let child = json!({ "digest": digest(&child), "size": child.len() });
        let manifest = json!({ "schemaVersion": 2, "config": child, "layers": [] });
        manifest.to_string().into_bytes()
    }

    fn blobs_of(tag: u64) -> [u64; 2] {
        [tag, tag + 1]
    }

    /// All that the catalog's entries of this client need.
    pub(crate) fn needed(&self) -> BTreeMap<String, Vec<u8>> {
        let mut needed = BTreeSet::new();
        for (tag, status) in &self.artifacts {
            if *status != ArtifactStatus::Archived {
                needed.extend(Self::blobs_of(*tag));
            }
        }
        needed.extend(self.version.map(|_| 2));
        if needed.contains(&0) {
            needed.insert(BLOBS - 1);
        }
        let content = |it| {
            let content = self.blob(it);
            (digest(&content), content)
        };
        needed.into_iter().map(content).collect()
    }

    fn is_held(&self, tag: u64) -> bool {
        let artifact = self.artifacts.get(&tag).copied();
        let wanted = artifact.is_some_and(|it| it != ArtifactStatus::Archived);
        let name = self.name(tag);
        let used = self.sandboxes.values().any(|it| *it == name);
        wanted || used || self.version == Some(tag) || self.pins.contains(&tag)
    }

    /// What nothing holds may go from now on.
    fn settle(&mut self) {
        let mut here = std::mem::take(&mut self.here);
        here.retain(|tag| self.is_held(*tag));
        self.here = here;
    }

    pub(crate) async fn take(&mut self, step: Step) -> anyhow::Result<()> {
        self.ground.note(&format!("client {}", self.number), &step);
        let done = match step {
            Step::Create {
                slot,
                tag,
                by_digest,
                waits,
            } => self.create(slot, tag, by_digest, waits).await,
            Step::Delete { slot } => self.delete(slot).await,
            Step::Push { tag, content } => {
                self.contents.insert(tag, content);
                self.publish(tag);
                Ok(())
            }
            Step::Pull { tag } => self.pull(tag).await,
            Step::Pin { tag } => self.pin(tag).await,
            Step::Unpin { tag } => self.unpin(tag).await,
            Step::Artifact { tag, archived } => {
                let status = match archived {
                    true => ArtifactStatus::Archived,
                    false => ArtifactStatus::Active,
                };
                self.artifact(tag, status).await
            }
            Step::ForgetArtifact { tag } => {
                self.artifacts.remove(&tag);
                let id = format!("artifact/{}", self.tag(tag));
                self.forget(EntryKind::Artifact, id).await
            }
            Step::Version { tag } => self.put_version(tag).await,
            Step::ForgetVersion => {
                self.version = None;
                let id = format!("c{}", self.number);
                self.forget(EntryKind::Version, id).await
            }
            Step::Write { blob } => {
                self.ground.blobs.write(&self.blob(blob))?;
                Ok(())
            }
        };
        self.settle();
        self.ground.count(step.word());
        done.with_context(|| format!("client {}: {step:?}", self.number))
    }

    async fn create(
        &mut self,
        slot: u64,
        tag: u64,
        by_digest: bool,
        waits: bool,
    ) -> anyhow::Result<()> {
        if self.sandboxes.contains_key(&slot) {
            self.delete(slot).await?;
        }
        let name = match by_digest {
            true => {
                let parts = image(self.seed, self.contents[&tag]);
                format!("{REPOSITORY}@{}", parts.digest())
            }
            false => self.name(tag),
        };
        let mut app = shell("app", "exec sleep 3600", &[]);
        app.image.clone_from(&name);
        let (id, wanted) = (self.slot(slot), spec([app]));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let kills = self.ground.kills.load(Ordering::SeqCst);
            let created = match waits {
                true => self.ground.node.create(&id, wanted.clone()).await,
                false => self.ground.node.accept(&id, wanted.clone()).await,
            };
            let Err(status) = created else { break };
            let struck = kills % 2 == 1 || self.ground.kills.load(Ordering::SeqCst) != kills;
            ensure!(
                (is_lost(&status) || struck) && Instant::now() < deadline,
                "create: {status}"
            );
            // One that a kill has broken off is DEAD, and its id is taken.
            self.delete(slot).await?;
        }
        self.sandboxes.insert(slot, name);
        if waits && !by_digest {
            self.here.insert(tag);
        }
        Ok(())
    }

    async fn delete(&mut self, slot: u64) -> anyhow::Result<()> {
        if self.sandboxes.contains_key(&slot) {
            self.runs(slot).await?;
        }
        self.sandboxes.remove(&slot);
        let id = self.slot(slot);
        insist("delete", || self.ground.node.delete(&id)).await?;
        Ok(())
    }

    /// Waits until a sandbox is RUNNING, and returns the digest of its image.
    async fn runs(&mut self, slot: u64) -> anyhow::Result<String> {
        let (id, deadline) = (self.slot(slot), Instant::now() + PATIENCE);
        loop {
            let sandbox = insist("get", || self.ground.node.get(&id)).await?;
            match sandbox.status() {
                SandboxStatus::Running => {
                    let container = sandbox.containers.first().context("a container")?;
                    return Ok(container.image_digest.clone());
                }
                SandboxStatus::Pending if Instant::now() < deadline => {}
                // A Create that nobody waited for is broken off by a kill, and is begun anew.
                SandboxStatus::Dead if self.ground.kills.load(Ordering::SeqCst) > 0 => {
                    let broken = sandbox.reason.clone();
                    ensure!(Instant::now() < deadline, "{id} is DEAD: {broken}");
                    let name = self.sandboxes.remove(&slot).context("it is wanted")?;
                    self.ground.note("broken off", &(&id, broken));
                    insist("delete", || self.ground.node.delete(&id)).await?;
                    let mut app = shell("app", "exec sleep 3600", &[]);
                    app.image.clone_from(&name);
                    let wanted = spec([app]);
                    let again = || self.ground.node.accept(&id, wanted.clone());
                    insist("create anew", again).await?;
                    self.sandboxes.insert(slot, name);
                }
                SandboxStatus::Unspecified
                | SandboxStatus::Pending
                | SandboxStatus::NotReady
                | SandboxStatus::Stopped
                | SandboxStatus::Dead => bail!("{id} is not RUNNING: {sandbox:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn pull(&mut self, tag: u64) -> anyhow::Result<()> {
        let image = self.name(tag);
        let pull = || async {
            let request = v1::PullImageRequest {
                image: image.clone(),
                credentials: None,
            };
            let mut events = self.ground.node.images().pull_image(request).await?;
            while events.get_mut().message().await?.is_some() {}
            Ok(())
        };
        insist("pull", pull).await?;
        self.here.insert(tag);
        Ok(())
    }

    async fn pin(&mut self, tag: u64) -> anyhow::Result<()> {
        let image = self.name(tag);
        let pin = || async {
            let request = v1::PinImageRequest {
                image: image.clone(),
                time_to_live: None,
            };
            match self.ground.node.images().pin_image(request).await {
                Ok(_) => Ok(true),
                Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
                Err(status) => Err(status),
            }
        };
        if insist("pin", pin).await? {
            self.pins.insert(tag);
            self.here.insert(tag);
        }
        Ok(())
    }

    async fn unpin(&mut self, tag: u64) -> anyhow::Result<()> {
        let image = self.name(tag);
        let unpin = || async {
            let request = v1::UnpinImageRequest {
                image: image.clone(),
            };
            self.ground.node.images().unpin_image(request).await
        };
        insist("unpin", unpin).await?;
        self.pins.remove(&tag);
        Ok(())
    }

    async fn put(&self, object: Object) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Err(error) = put(&self.ground.node, object.clone()).await else {
                break;
            };
            let lost = error.downcast_ref().is_some_and(is_lost);
            ensure!(lost && Instant::now() < deadline, "put: {error:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn artifact(&mut self, tag: u64, status: ArtifactStatus) -> anyhow::Result<()> {
        let blobs = Self::blobs_of(tag).map(|it| digest(&self.blob(it)));
        let artifact = v1::Artifact {
            id: format!("artifact/{}", self.tag(tag)),
            status: status.into(),
            blobs: blobs.into(),
        };
        self.put(Object::Artifact(artifact)).await?;
        self.artifacts.insert(tag, status);
        self.upload()
    }

    async fn put_version(&mut self, tag: u64) -> anyhow::Result<()> {
        let version = v1::Version {
            id: format!("c{}", self.number),
            app: "soak".to_owned(),
            image: self.name(tag),
            static_artifact: digest(&self.blob(2)),
            ..v1::Version::default()
        };
        self.put(Object::Version(version)).await?;
        self.version = Some(tag);
        self.upload()
    }

    /// As who pushes does: what is missing is written. From now on it must be there.
    fn upload(&self) -> anyhow::Result<()> {
        for (digest, content) in self.needed() {
            if !self.ground.blobs.has(&digest) {
                self.ground.blobs.write(&content)?;
            }
        }
        Ok(())
    }

    async fn forget(&self, kind: EntryKind, id: String) -> anyhow::Result<()> {
        let forget = || async {
            let request = v1::DeleteEntryRequest {
                kind: kind.into(),
                id: id.clone(),
                expected_revision: 0,
            };
            let mut client = CatalogServiceClient::new(self.ground.node.channel.clone());
            client.delete_entry(request).await
        };
        insist("forget", forget).await?;
        Ok(())
    }

    /// Holds what there is against what must be there. Returns names and digests of images that something of this client holds.
    pub(crate) async fn check(&mut self) -> anyhow::Result<BTreeSet<String>> {
        let mut held = BTreeSet::new();
        for slot in self.sandboxes.keys().copied().collect::<Vec<_>>() {
            let digest = self.runs(slot).await?;
            let contents = self.ground.contents()?;
            let id = self.slot(slot);
            if !contents.contains(&digest) {
                let images = self.ground.images().await?;
                bail!("{id} runs {digest}, which is gone: {images:?}");
            }
            held.insert(digest);
        }
        let images = self.ground.images().await?;
        for name in self.sandboxes.values() {
            ensure!(images.contains_key(name), "{name} is used, and gone");
            held.insert(name.clone());
        }
        for tag in (0..TAGS).filter(|it| self.is_held(*it)) {
            let name = self.name(tag);
            let is_here = images.contains_key(&name);
            ensure!(
                is_here || !self.here.contains(&tag),
                "{name} is held, and gone"
            );
            held.insert(name);
        }
        for (digest, content) in self.needed() {
            let path = self.ground.blobs.path(&digest);
            // One that a worker took away too late is named back.
            let there = || async { std::fs::read(&path).is_ok_and(|it| it == content) };
            eventually(&format!("blob {digest} is there"), PATIENCE, there).await?;
        }
        Ok(held)
    }

    /// Lets go of everything.
    pub(crate) async fn clear(&mut self) -> anyhow::Result<()> {
        for slot in 0..SLOTS {
            self.take(Step::Delete { slot }).await?;
        }
        for tag in 0..TAGS {
            self.take(Step::Unpin { tag }).await?;
            self.take(Step::ForgetArtifact { tag }).await?;
        }
        self.take(Step::ForgetVersion).await
    }
}

impl Step {
    fn word(self) -> &'static str {
        match self {
            Self::Create { .. } => "creates",
            Self::Delete { .. } => "deletes",
            Self::Push { .. } => "pushes",
            Self::Pull { .. } => "pulls",
            Self::Pin { .. } | Self::Unpin { .. } => "changes of pins",
            Self::Artifact { .. } | Self::ForgetArtifact { .. } => "changes of artifacts",
            Self::Version { .. } | Self::ForgetVersion => "changes of versions",
            Self::Write { .. } => "writes of blobs",
        }
    }
}

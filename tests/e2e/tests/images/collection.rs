//! The right to delete images on a real containerd: claims, commits, holds and pins, and a manager that is killed between.

use anyhow::{Context as _, ensure};
use berth_api::v1::{
    self, CollectionKind, HolderKind, catalog_service_client::CatalogServiceClient,
};
use berth_e2e::{
    TestNode, images,
    specs::{shell, spec},
};
use tonic::Code;

const NAME: &str = "cluster.local:5000/app:web";
const ALIAS: &str = "berth.local/alias:1";

/// What a worker has: a run, and the lease of the slice of one image.
struct Worker {
    run: u64,
    lease: v1::WorkLeaseRef,
    object: v1::Deletable,
}

impl Worker {
    async fn start(node: &TestNode, digest: &str) -> anyhow::Result<Self> {
        Self::of(node, CollectionKind::Images, NAME, digest).await
    }

    async fn of(
        node: &TestNode,
        kind: CollectionKind,
        image: &str,
        digest: &str,
    ) -> anyhow::Result<Self> {
        let start = v1::StartCollectionRequest {
            kind: kind.into(),
            ..Default::default()
        };
        let started = node.collections().start_collection(start).await?;
        let run = started.into_inner().collection.context("a run")?.id;
        let (_, hex) = digest.split_once(':').context("a digest")?;
        let slice = u8::from_str_radix(hex.get(..2).context("a byte")?, 16)? / 4;
        let kind = match kind {
            CollectionKind::Blobs => "blobs",
            CollectionKind::Images | CollectionKind::Unspecified => "images",
        };
        let acquire = v1::AcquireWorkLeaseRequest {
            name: format!("image-gc/{kind}/{slice:02}"),
            holder: "worker".into(),
            ..Default::default()
        };
        let acquired = node.leases().acquire_work_lease(acquire).await?;
        let lease = acquired.into_inner().lease.context("a lease")?;
        Ok(Self {
            run,
            lease: v1::WorkLeaseRef {
                name: lease.name,
                token: lease.token,
            },
            object: v1::Deletable {
                image: image.into(),
                digest: digest.into(),
                size_bytes: 7,
            },
        })
    }

    async fn claim(&self, node: &TestNode) -> anyhow::Result<v1::DeletionClaim> {
        self.claim_by(node, 0).await
    }

    /// Claims by the catalog as it was at a revision.
    async fn claim_by(
        &self,
        node: &TestNode,
        catalog_revision: u64,
    ) -> anyhow::Result<v1::DeletionClaim> {
        let request = v1::ClaimDeletionsRequest {
            collection: self.run,
            lease: Some(self.lease.clone()),
            objects: vec![self.object.clone()],
            catalog_revision,
        };
        let claimed = node.collections().claim_deletions(request).await?;
        claimed.into_inner().claims.pop().context("a claim")
    }

    async fn commit(
        &self,
        node: &TestNode,
        token: u64,
    ) -> Result<v1::DeletionOutcome, tonic::Status> {
        let request = v1::CommitDeletionsRequest {
            lease: Some(self.lease.clone()),
            tokens: vec![token],
        };
        let committed = node.collections().commit_deletions(request).await?;
        let outcome = committed.into_inner().outcomes.pop();
        Ok(outcome.unwrap_or_default())
    }
}

fn kinds(holders: &[v1::Holder]) -> Vec<HolderKind> {
    holders.iter().map(v1::Holder::kind).collect()
}

async fn listed(node: &TestNode, name: &str) -> anyhow::Result<Option<v1::Image>> {
    let list = node.images().list_images(v1::ListImagesRequest {}).await?;
    let mut images = list.into_inner().images.into_iter();
    Ok(images.find(|it| it.name == name))
}

#[tokio::test]
async fn an_image_goes_only_when_nothing_holds_it_and_the_manager_lives_to_say_so()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    for name in [NAME, ALIAS] {
        node.import(&images::busybox(), name).await?;
    }
    let digest = listed(&node, NAME).await?.context("it is here")?.digest;

    // A Create under another name comes between the claim and its commit.
    let worker = Worker::start(&node, &digest).await?;
    let claim = worker.claim(&node).await?;
    ensure!(claim.token != 0, "{claim:?}");
    let mut app = shell("app", "exec sleep 3600", &[]);
    app.image = ALIAS.into();
    node.create("web", spec([app])).await?;
    let outcome = worker.commit(&node, claim.token).await?;
    ensure!(
        kinds(&outcome.holders) == [HolderKind::Sandbox],
        "{outcome:?}"
    );
    let held = listed(&node, NAME).await?.context("it is here")?;
    ensure!(kinds(&held.holders) == [HolderKind::Sandbox], "{held:?}");
    ensure!(held.last_used_at.is_some(), "{held:?}");
    node.delete("web").await?;

    // So does a pin, which ends when it is taken away.
    let claim = worker.claim(&node).await?;
    node.berth(&["images", "pin", "--for", "24h", NAME])?;
    let outcome = worker.commit(&node, claim.token).await?;
    ensure!(kinds(&outcome.holders) == [HolderKind::Pin], "{outcome:?}");
    let refused = worker.claim(&node).await?;
    ensure!(refused.token == 0 && refused.holders[0].until.is_some());
    node.berth(&["images", "unpin", NAME])?;

    // A manager that dies forgets the claim, and the run goes on under the next one.
    let claim = worker.claim(&node).await?;
    ensure!(claim.token != 0, "{claim:?}");
    node.kill_manager()?;
    node.up().await?;
    let late = worker.commit(&node, claim.token).await;
    let late = late.err().context("an old lease commits nothing")?;
    ensure!(late.code() == Code::Aborted, "{late}");
    ensure!(listed(&node, NAME).await?.is_some());
    let next = Worker::start(&node, &digest).await?;
    ensure!(next.run == worker.run && next.lease.token > worker.lease.token);
    let outcome = next.commit(&node, claim.token).await?;
    ensure!(!outcome.committed, "{outcome:?}");

    let claim = next.claim(&node).await?;
    let outcome = next.commit(&node, claim.token).await?;
    ensure!(outcome.committed, "{outcome:?}");
    ensure!(listed(&node, NAME).await?.is_none());
    ensure!(listed(&node, ALIAS).await?.is_some(), "another name");
    let list = v1::ListCollectionsRequest::default();
    let runs = node.collections().list_collections(list).await?;
    let run = runs.into_inner().collections.remove(0);
    ensure!(run.deleted == [NAME] && run.deleted_total == 1, "{run:?}");
    a_blob_goes_by_the_catalog_as_it_is(&node).await?;
    node.assert_clean().await?;
    node.finish()
}

/// Puts an artifact that names no blob, and returns the revision of the catalog.
async fn put(node: &TestNode, id: &str) -> anyhow::Result<u64> {
    let artifact = v1::Artifact {
        id: id.into(),
        ..v1::Artifact::default()
    };
    let request = v1::PutEntryRequest {
        entry: Some(v1::Entry {
            revision: 0,
            object: Some(v1::entry::Object::Artifact(artifact)),
        }),
        expected_revision: 0,
    };
    let mut catalog = CatalogServiceClient::new(node.channel.clone());
    let put = catalog.put_entry(request).await?.into_inner();
    Ok(put.entry.context("an entry")?.revision)
}

async fn a_blob_goes_by_the_catalog_as_it_is(node: &TestNode) -> anyhow::Result<()> {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let worker = Worker::of(node, CollectionKind::Blobs, "", &digest).await?;
    let old = put(node, "artifact/one").await?;
    let new = put(node, "artifact/two").await?;
    let refused = worker.claim_by(node, old).await?;
    ensure!(
        refused.token == 0 && refused.holders.is_empty(),
        "{refused:?}"
    );
    let late = worker.claim_by(node, new).await?;
    ensure!(late.token != 0, "{late:?}");
    let new = put(node, "artifact/three").await?;
    let outcome = worker.commit(node, late.token).await?;
    ensure!(
        !outcome.committed && outcome.problem == "the catalog has changed",
        "{outcome:?}"
    );
    let claim = worker.claim_by(node, new).await?;
    let outcome = worker.commit(node, claim.token).await?;
    ensure!(outcome.committed, "{outcome:?}");
    Ok(())
}

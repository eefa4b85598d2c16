//! The collection of one image, as a worker has it done: a run, the lease of a slice, a claim, its commit, a report.

use anyhow::Context as _;
use berth_api::v1::{self, CollectionKind};
use berth_e2e::{
    TestNode,
    images::{ImageParts, layer},
};

use crate::Ground;

const NAME: &str = "cluster.local:5000/crash:1";
const SLICES: u32 = 64;

/// On the node of a ground.
pub(crate) struct Collection<'a>(&'a TestNode);

impl Ground {
    pub(crate) fn collection(&self) -> Collection<'_> {
        Collection(&self.node)
    }
}

impl Collection<'_> {
    /// An image that nobody uses is here.
    pub(crate) async fn arrange(&self) -> anyhow::Result<()> {
        self.0.import(&image().oci_archive(NAME), NAME).await?;
        Ok(())
    }

    /// Has it deleted, or finds that it was, and reports its slice.
    pub(crate) async fn act(&self) -> anyhow::Result<v1::Collection> {
        let run = self.run().await?;
        let image = image();
        let slice = slice_of(image.digest())?;
        let lease = Some(self.lease(slice).await?);
        if self.is_there().await? {
            let object = v1::Deletable {
                image: NAME.to_owned(),
                digest: image.digest().to_owned(),
                size_bytes: 7,
            };
            let claim = v1::ClaimDeletionsRequest {
                collection: run,
                lease: lease.clone(),
                objects: vec![object],
                catalog_revision: 0,
            };
            let claimed = self.0.collections().claim_deletions(claim).await?;
            let claim = claimed.into_inner().claims.pop().context("a claim")?;
            let commit = v1::CommitDeletionsRequest {
                lease: lease.clone(),
                tokens: vec![claim.token],
            };
            let committed = self.0.collections().commit_deletions(commit).await?;
            let outcome = committed.into_inner().outcomes.pop();
            let outcome = outcome.context("an outcome")?;
            anyhow::ensure!(outcome.committed, "{outcome:?}");
        }
        self.report(run, slice, lease).await?;
        self.latest().await?.context("the run")
    }

    /// Ends the run, whatever is left of it.
    pub(crate) async fn end(&self) -> anyhow::Result<()> {
        let run = self.run().await?;
        for slice in 0..SLICES {
            let lease = Some(self.lease(slice).await?);
            self.report(run, slice, lease).await?;
        }
        Ok(())
    }

    /// What there is of the image and of its run.
    pub(crate) async fn look(&self) -> anyhow::Result<&'static str> {
        let run = self.latest().await?.filter(|it| it.ended_at.is_none());
        let counted = run.as_ref().map(|it| it.deleted_total);
        let reported = run.is_some_and(|it| !it.slices_done.is_empty());
        Ok(match (self.is_there().await?, counted, reported) {
            (true, None, _) => "nothing was begun",
            (true, Some(0), false) => "the image is there, and not counted",
            (true, Some(1), false) => "the image is there, and counted until it is claimed again",
            (false, Some(1), false) => "the image is gone, and counted",
            (false, Some(1), true) => "the image is gone and counted, its slice is done",
            found => anyhow::bail!("there, counted, reported: {found:?}"),
        })
    }

    pub(crate) async fn is_there(&self) -> anyhow::Result<bool> {
        let request = v1::ListImagesRequest {};
        let listed = self.0.images().list_images(request).await?.into_inner();
        Ok(listed.images.iter().any(|it| it.name == NAME))
    }

    async fn run(&self) -> anyhow::Result<u64> {
        let request = v1::StartCollectionRequest {
            kind: CollectionKind::Images.into(),
            ..v1::StartCollectionRequest::default()
        };
        let started = self.0.collections().start_collection(request).await?;
        Ok(started.into_inner().collection.context("a run")?.id)
    }

    async fn latest(&self) -> anyhow::Result<Option<v1::Collection>> {
        let request = v1::ListCollectionsRequest::default();
        let listed = self.0.collections().list_collections(request).await?;
        Ok(listed.into_inner().collections.into_iter().next())
    }

    async fn lease(&self, slice: u32) -> anyhow::Result<v1::WorkLeaseRef> {
        let request = v1::AcquireWorkLeaseRequest {
            name: format!("image-gc/images/{slice:02}"),
            holder: "worker".to_owned(),
            ..v1::AcquireWorkLeaseRequest::default()
        };
        let acquired = self.0.leases().acquire_work_lease(request).await?;
        let lease = acquired.into_inner().lease.context("a lease")?;
        Ok(v1::WorkLeaseRef {
            name: lease.name,
            token: lease.token,
        })
    }

    async fn report(
        &self,
        collection: u64,
        slice: u32,
        lease: Option<v1::WorkLeaseRef>,
    ) -> anyhow::Result<()> {
        let request = v1::ReportSliceRequest {
            collection,
            lease,
            slice,
            ..v1::ReportSliceRequest::default()
        };
        self.0.collections().report_slice(request).await?;
        Ok(())
    }
}

fn image() -> ImageParts {
    let layers = [layer(&[("srv/name", "collected")])];
    ImageParts::plain(&layers, serde_json::json!({}))
}

fn slice_of(digest: &str) -> anyhow::Result<u32> {
    let hex = digest.strip_prefix("sha256:").and_then(|it| it.get(..2));
    let byte = u32::from_str_radix(hex.context("a digest")?, 16)?;
    Ok(byte / (256 / SLICES))
}

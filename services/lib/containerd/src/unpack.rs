//! From a name to what can be run: the manifest for this machine, its configuration, and its layers as snapshots.

use std::collections::HashMap;

use berth_platform::ImageError;
use containerd_client::services::v1::{
    ApplyRequest,
    snapshots::{
        CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    },
};

use crate::{
    client::{CallError, Client, found, made},
    content::{self, unique},
    oci::{self, Config, Descriptor, Index, Manifest, Platform, corrupt, document},
    walk::Walk,
};

/// An image for this machine. Its content never changes: everything hangs on digests.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    /// Of the manifest for this machine.
    pub(crate) digest: String,
    pub(crate) manifest: Manifest,
    pub(crate) config: Config,
    /// Manifest, configuration and layers, compressed.
    pub(crate) size: u64,
}

impl Resolved {
    /// The snapshot that containers of the image are made over; empty for an image without layers.
    pub(crate) fn snapshot(&self) -> String {
        oci::chain_ids(&self.config.rootfs.diff_ids)
            .pop()
            .unwrap_or_default()
    }
}

/// What a target comes to. `None` where a document is not on the node.
pub(crate) async fn resolve(
    client: &Client,
    image: &str,
    target: &Descriptor,
) -> Result<Option<Resolved>, ImageError> {
    let mut walk = Walk::new(image, target);
    let (mut missing, mut foreign) = (false, false);
    while let Some(next) = walk.next() {
        let Some(bytes) = content::read(client, image, &next.digest).await? else {
            missing = true;
            continue;
        };
        if next.is_index() {
            let index: Index = document(image, &next, &bytes)?;
            walk.enter(&index.candidates())?;
            continue;
        }
        let manifest = oci::manifest(image, &next, &bytes)?;
        let Some(config_bytes) = content::read(client, image, &manifest.config.digest).await?
        else {
            missing = true;
            continue;
        };
        let config: Config = document(image, &manifest.config, &config_bytes)?;
        if !config.runs_here() {
            foreign = true;
            continue;
        }
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            let what = format!("{layers} layers, but {diff_ids} diff ids");
            return Err(corrupt(image, what));
        }
        let parts = manifest.layers.iter().chain([&manifest.config, &next]);
        let size = parts.fold(0, |sum: u64, it| sum.saturating_add(it.size));
        return Ok(Some(Resolved {
            digest: next.digest,
            manifest,
            config,
            size,
        }));
    }
    if missing && !foreign {
        return Ok(None);
    }
    Err(platform_missing(image))
}

pub(crate) fn platform_missing(image: &str) -> ImageError {
    ImageError::PlatformMissing {
        image: image.to_owned(),
        platform: Platform::own().to_string(),
    }
}

/// Labels by which containerd's collector sees that a manifest holds its configuration and layers.
pub(crate) fn manifest_labels(manifest: &Manifest) -> HashMap<String, String> {
    let config = (
        "containerd.io/gc.ref.content.config".to_owned(),
        manifest.config.digest.clone(),
    );
    let layers = manifest.layers.iter().enumerate();
    layers
        .map(|(at, it)| {
            (
                format!("containerd.io/gc.ref.content.l.{at}"),
                it.digest.clone(),
            )
        })
        .chain([config])
        .collect()
}

/// The same for an index and those of its manifests that are kept.
pub(crate) fn index_labels<'a>(
    kept: impl IntoIterator<Item = &'a Descriptor>,
) -> HashMap<String, String> {
    kept.into_iter()
        .enumerate()
        .map(|(at, it)| {
            (
                format!("containerd.io/gc.ref.content.m.{at}"),
                it.digest.clone(),
            )
        })
        .collect()
}

/// Makes a snapshot of each layer that has none, and ties the last one to the configuration. Calls under a lease, which
/// holds what is there already: the image that it came with may be removed meanwhile.
pub(crate) async fn unpack(
    client: &Client,
    snapshotter: &str,
    image: &str,
    resolved: &Resolved,
) -> Result<(), ImageError> {
    let diff_ids = &resolved.config.rootfs.diff_ids;
    let chain = oci::chain_ids(diff_ids);
    let Some(last) = chain.last() else {
        return Ok(());
    };
    let kind = format!("snapshots/{snapshotter}");
    content::hold(client, &kind, last).await?;
    if !has_snapshot(client, snapshotter, last).await? {
        let mut parent = String::new();
        for ((layer, diff_id), name) in resolved.manifest.layers.iter().zip(diff_ids).zip(&chain) {
            content::hold(client, &kind, name).await?;
            if !has_snapshot(client, snapshotter, name).await? {
                let key = format!("{} {name}", unique("extract"));
                let applied = apply(
                    client,
                    snapshotter,
                    image,
                    &key,
                    &parent,
                    (layer, diff_id, name),
                )
                .await;
                if let Err(error) = applied {
                    let _ = remove_snapshot(client, snapshotter, &key).await;
                    return Err(error);
                }
            }
            parent.clone_from(name);
        }
    }
    let labels = HashMap::from([(snapshot_label(snapshotter), last.clone())]);
    Ok(content::label(client, &resolved.manifest.config.digest, labels).await?)
}

/// The label by which a configuration holds the snapshot of its image.
fn snapshot_label(snapshotter: &str) -> String {
    format!("containerd.io/gc.ref.snapshot.{snapshotter}")
}

/// Whether the snapshot of the image is there, and held by the image's own configuration.
pub(crate) async fn is_unpacked(
    client: &Client,
    snapshotter: &str,
    resolved: &Resolved,
) -> Result<bool, CallError> {
    let snapshot = resolved.snapshot();
    if snapshot.is_empty() {
        // An image without layers has no snapshot, and needs none.
        return content::exists(client, &resolved.manifest.config.digest).await;
    }
    let (labels, there) = tokio::try_join!(
        content::labels(client, &resolved.manifest.config.digest),
        has_snapshot(client, snapshotter, &snapshot),
    )?;
    let held = labels
        .unwrap_or_default()
        .remove(&snapshot_label(snapshotter));
    Ok(there && held == Some(snapshot))
}

async fn apply(
    client: &Client,
    snapshotter: &str,
    image: &str,
    key: &str,
    parent: &str,
    (layer, diff_id, name): (&Descriptor, &str, &str),
) -> Result<(), ImageError> {
    let request = PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels: HashMap::new(),
    };
    let prepared = client
        .call("preparing a layer", client.snapshots().prepare(request))
        .await?;
    let request = ApplyRequest {
        diff: Some(layer.to_proto()),
        mounts: prepared.mounts,
        ..ApplyRequest::default()
    };
    let applied = client
        .long_call("unpacking a layer", client.diff().apply(request))
        .await;
    let applied = applied.map_err(|error| {
        let said = error.status.message().to_owned();
        let error = ImageError::from(error);
        // What the kernel or the disk refuses is the node's fault, the rest the layer's.
        if matches!(error, ImageError::Refused { .. }) && !says_disk(&said) {
            return corrupt(image, format!("layer {}: {said}", layer.digest));
        }
        error
    })?;
    let digest = applied.applied.unwrap_or_default().digest;
    if digest != diff_id {
        let what = format!(
            "layer {} unpacks to {digest}, not to {diff_id}",
            layer.digest
        );
        return Err(corrupt(image, what));
    }
    let request = CommitSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        name: name.to_owned(),
        key: key.to_owned(),
        ..CommitSnapshotRequest::default()
    };
    let committed = client
        .call("committing a layer", client.snapshots().commit(request))
        .await;
    if made(committed)?.is_none() {
        // Somebody else was faster.
        remove_snapshot(client, snapshotter, key).await?;
    }
    Ok(())
}

fn says_disk(text: &str) -> bool {
    [
        "no space left on device",
        "disk quota exceeded",
        "read-only file system",
    ]
    .iter()
    .any(|it| text.contains(it))
}

async fn has_snapshot(client: &Client, snapshotter: &str, key: &str) -> Result<bool, CallError> {
    let request = StatSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
    };
    let stat = client
        .call("looking for a snapshot", client.snapshots().stat(request))
        .await;
    Ok(found(stat)?.is_some())
}

/// Gone is a success.
pub(crate) async fn remove_snapshot(
    client: &Client,
    snapshotter: &str,
    key: &str,
) -> Result<(), CallError> {
    let request = RemoveSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
    };
    let removed = client
        .call("removing a snapshot", client.snapshots().remove(request))
        .await;
    found(removed).map(drop)
}

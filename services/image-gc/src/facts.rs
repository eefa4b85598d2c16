//! Gathers what a plan is made of, from the manager and the disk. All of it, or none: what cannot be read could keep anything.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use berth_api::v1::{self, entry::Object as Entry};
use berth_collect::{
    Digest, Holder, HolderKind, Object, Status as ArtifactStatus,
    blobs::{Ages, Blobs},
    images::{Image, Images},
};
use berth_domain::{collection::CollectionKind, holders::artifact_key};
use tonic::Status;

use crate::{
    config::Config,
    directory::{Authority, BlobDir, Links, Scan, Unread},
    manager::{Manager, within},
    wire,
};

/// With as many blobs as an entry may name a page has 8 MiB.
const PAGE_SIZE: u32 = 200;

/// Objects with their verdicts, in no order, and what is needed to act on blobs.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) objects: Vec<Object>,
    pub(crate) links: Arc<Links>,
    /// Of the first page of the catalog that blobs are judged by.
    pub(crate) catalog_revision: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Incomplete {
    #[error("{what} cannot be listed: {}", .status.message())]
    Call { what: &'static str, status: Status },
    #[error("the answer on {what} lacks what it is about")]
    Unknown { what: String },
    #[error("{entry} names `{digest}`, which is no digest")]
    Digest { entry: String, digest: String },
    #[error(
        "the catalog has neither an artifact nor a version, and there are {blobs} blobs: it may be a new one, or another's"
    )]
    BlankCatalog { blobs: usize },
    #[error(transparent)]
    Disk(#[from] Unread),
    #[error("the reading has ended early")]
    Ended,
}

pub(crate) async fn gather(
    manager: &Manager,
    config: &Config,
    kind: CollectionKind,
) -> Result<Facts, Incomplete> {
    match kind {
        CollectionKind::Images => images(manager, config).await,
        CollectionKind::Blobs => blobs(manager, config).await,
    }
}

async fn images(manager: &Manager, config: &Config) -> Result<Facts, Incomplete> {
    let call = |status| Incomplete::Call {
        what: "images with who holds them",
        status,
    };
    let mut client = manager.images();
    let answer = within(client.list_images(v1::ListImagesRequest {})).await;
    let listed = answer.map_err(call)?.images;
    let mut images = Images::new(listed.into_iter().map(image).collect());
    each_entry(manager, |entry| {
        match entry {
            Entry::Artifact(it) => images.artifact(&it.id, status_of(&it)),
            Entry::Version(it) => images.version(&it.id, said(&it.image), said(&it.artifact)),
            Entry::App(_) | Entry::Host(_) | Entry::Service(_) => {}
        }
        Ok(())
    })
    .await?;
    Ok(Facts {
        objects: images.judge(SystemTime::now(), config.orphan_grace),
        ..Facts::default()
    })
}

fn image(it: v1::Image) -> Image {
    // A name that came to stand for something else is as old as that. What has no time is new.
    let times = [wire::time(it.created_at), wire::time(it.updated_at)];
    let created = times.into_iter().flatten().max();
    Image {
        name: it.name,
        digest: it.digest,
        size_bytes: it.size_bytes,
        created: created.unwrap_or_else(SystemTime::now),
        last_used: wire::time(it.last_used_at),
        holders: it
            .holders
            .into_iter()
            .map(wire::holder_from_proto)
            .collect(),
    }
}

async fn blobs(manager: &Manager, config: &Config) -> Result<Facts, Incomplete> {
    let directory = BlobDir::new(config.blob_dir.clone(), config.blob_layout);
    let Some(scan) = blocking({
        let directory = directory.clone();
        move || directory.scan()
    })
    .await?
    else {
        return Ok(Facts::default());
    };
    let Scan {
        found,
        unreadable,
        links,
    } = scan;
    let own = authority(manager).await?;
    blocking({
        let (directory, own) = (directory.clone(), own.clone());
        move || directory.check(&own)
    })
    .await?;
    let here = found.len().saturating_add(unreadable.len());
    let mut blobs = Blobs::new(found, unreadable);
    let catalog = each_entry(manager, |entry| {
        match entry {
            Entry::Artifact(it) => hold_artifact(&mut blobs, &links, it)?,
            Entry::Version(it) => {
                let holder = Arc::new(Holder::new(HolderKind::Version, it.id.as_str()));
                let of_image = it.image.split_once('@').map(|(_, digest)| digest);
                for text in said(&it.static_artifact).into_iter().chain(of_image) {
                    let digest = read(text, || format!("version {}", it.id))?;
                    blobs.hold(&digest, &holder);
                }
            }
            Entry::App(_) | Entry::Host(_) | Entry::Service(_) => {}
        }
        Ok(())
    })
    .await?;
    if catalog.entries == 0 {
        // It says nothing of whose the directory is either.
        return match here {
            0 => Ok(Facts::default()),
            blobs => Err(Incomplete::BlankCatalog { blobs }),
        };
    }
    let blobs = blocking(move || {
        directory.bind(&own)?;
        follow_manifests(&directory, blobs)
    })
    .await?;
    let ages = Ages {
        blob: config.blob_age,
        tombstone: config.tombstone_grace,
    };
    Ok(Facts {
        objects: blobs.judge(SystemTime::now(), ages),
        links: Arc::new(links),
        catalog_revision: catalog.revision,
    })
}

async fn authority(manager: &Manager) -> Result<Authority, Incomplete> {
    let what = "the manager itself";
    let status = within(manager.node().get_status(v1::GetStatusRequest {})).await;
    let status = status.map_err(|status| Incomplete::Call { what, status })?;
    let own = Authority {
        instance: status.instance_id,
        node: status.node_id,
    };
    if own.instance.is_empty() || own.node.is_empty() {
        return Err(Incomplete::Unknown { what: what.into() });
    }
    Ok(own)
}

fn hold_artifact(blobs: &mut Blobs, links: &Links, it: v1::Artifact) -> Result<(), Incomplete> {
    if status_of(&it) == ArtifactStatus::Archived {
        return Ok(());
    }
    let holder = Arc::new(Holder::new(HolderKind::Artifact, it.id.as_str()));
    for text in &it.blobs {
        blobs.hold(&read(text, || it.id.clone())?, &holder);
    }
    let tag = artifact_key(&it.id);
    for digest in links.tags.get(tag).into_iter().flatten() {
        blobs.hold(digest, &holder);
    }
    Ok(())
}

/// Keeps all that what is kept covers.
fn follow_manifests(directory: &BlobDir, mut blobs: Blobs) -> Result<Blobs, Unread> {
    let mut next: BTreeSet<Digest> = blobs.held().map(|it| it.digest).collect();
    while let Some(digest) = next.pop_first() {
        let Some(copy) = blobs.copy(&digest) else {
            continue;
        };
        let children = directory.children(copy)?;
        next.extend(blobs.cover(&digest, children));
    }
    Ok(blobs)
}

/// What a reading of the catalog was of.
#[derive(Clone, Copy, Debug, Default)]
struct Read {
    /// Of its first page.
    revision: u64,
    /// Artifacts and versions.
    entries: u64,
}

/// Reads the artifacts and the versions of the catalog page by page; none is kept here.
async fn each_entry(
    manager: &Manager,
    mut take: impl FnMut(Entry) -> Result<(), Incomplete>,
) -> Result<Read, Incomplete> {
    let mut client = manager.catalog();
    let mut first = None;
    let mut entries = 0;
    for (kind, what) in [
        (v1::EntryKind::Artifact, "artifacts"),
        (v1::EntryKind::Version, "versions"),
    ] {
        let mut page_token = String::new();
        loop {
            let request = v1::ListEntriesRequest {
                kind: kind.into(),
                page_size: PAGE_SIZE,
                page_token,
            };
            let page = within(client.list_entries(request)).await;
            let page = page.map_err(|status| Incomplete::Call { what, status })?;
            first.get_or_insert(page.revision);
            for entry in page.entries {
                entries += 1;
                let unknown = || Incomplete::Unknown { what: what.into() };
                take(entry.object.ok_or_else(unknown)?)?;
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
    }
    let revision = first.unwrap_or_default();
    Ok(Read { revision, entries })
}

fn status_of(it: &v1::Artifact) -> ArtifactStatus {
    // A status that this program does not know is none that lets go.
    match v1::ArtifactStatus::try_from(it.status) {
        Ok(v1::ArtifactStatus::Archived) => ArtifactStatus::Archived,
        Ok(v1::ArtifactStatus::Empty) => ArtifactStatus::Empty,
        Ok(v1::ArtifactStatus::Unspecified | v1::ArtifactStatus::Active) | Err(_) => {
            ArtifactStatus::Active
        }
    }
}

fn said(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn read(text: &str, entry: impl FnOnce() -> String) -> Result<Digest, Incomplete> {
    text.parse().map_err(|_| Incomplete::Digest {
        entry: entry(),
        digest: text.to_owned(),
    })
}

/// Work on the disk, away from what answers others.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unread> + Send + 'static,
) -> Result<T, Incomplete> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|_| Incomplete::Ended)??)
}

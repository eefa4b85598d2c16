//! The images of the node: ensured, pulled, imported, listed, removed.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use berth_domain::{ImageRef, holders::NamedImage};
use berth_platform::{Credentials, ImageError, ImageInfo, Images, Progress};
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest,
    ListRequest as ListLeasesRequest, UpdateImageRequest,
};
use tokio::sync::mpsc;

use crate::{
    archive::Archive,
    client::{CallError, Client, found, made},
    connection::Containerd,
    content::{self, TemporaryLease, delete_lease, is_former_import},
    export,
    fetch::Fetch,
    oci::{self, Descriptor, Index, document},
    pulls::Question,
    unpack::{self, Resolved, index_labels, manifest_labels, platform_missing},
    walk::Walk,
};

/// As Kubernetes calls it: other collectors on the same containerd leave it alone too.
const LABEL_PINNED: &str = "io.cri-containerd.pinned";

/// What is known of images without reading it again: targets are digests, so it stays true. Whether they are still here,
/// only containerd knows: others remove images too.
#[derive(Debug, Default)]
pub(crate) struct Known {
    resolved: Mutex<BTreeMap<String, Arc<Resolved>>>,
    /// One pull or unpacking of a name at a time; the others wait for it.
    turns: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

const KNOWN_MAX: usize = 1024;

impl Known {
    fn get(&self, target: &str) -> Option<Arc<Resolved>> {
        self.resolved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(target)
            .cloned()
    }

    fn put(&self, target: &str, resolved: Resolved) -> Arc<Resolved> {
        let mut known = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        let resolved = Arc::new(resolved);
        known.insert(target.to_owned(), resolved.clone());
        resolved
    }

    fn forget(&self, target: &str) {
        self.resolved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(target);
    }

    async fn turn(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, it| Arc::strong_count(it) > 1);
            turns.entry(name.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }
}

impl Containerd {
    /// The image of this name for this machine; `None` where it is not here. Its content may have been removed since it
    /// was read: what is made of it fails then.
    pub(crate) async fn local_image(
        &self,
        image: &ImageRef,
    ) -> Result<Option<(Image, Arc<Resolved>)>, ImageError> {
        let Some(stored) = self.stored_image(image).await? else {
            return Ok(None);
        };
        let resolved = self.resolve(&stored).await?;
        Ok(resolved.map(|resolved| (stored, resolved)))
    }

    /// The stored image. One that is asked for by digest is also found under other names of its repository.
    async fn stored_image(&self, image: &ImageRef) -> Result<Option<Image>, CallError> {
        let client = self.client();
        let request = GetImageRequest {
            name: image.to_string(),
        };
        let got = client
            .call("looking for an image", client.images().get(request))
            .await;
        if let Some(stored) = found(got)?.and_then(|it| it.image) {
            return Ok(Some(stored));
        }
        let Some(digest) = image.digest() else {
            return Ok(None);
        };
        let filters = vec![format!("target.digest=={digest}")];
        let request = ListImagesRequest { filters };
        let list = client
            .call("listing images", client.images().list(request))
            .await?;
        let same = |it: &Image| {
            ImageRef::parse(&it.name).is_ok_and(|it| {
                (it.registry(), it.repository()) == (image.registry(), image.repository())
            })
        };
        let Some(other) = list.images.into_iter().find(same) else {
            return Ok(None);
        };
        let target = target_of(&other);
        self.name(client, &image.to_string(), &target, false)
            .await
            .map(Some)
    }

    /// The same, with its documents looked at.
    async fn whole_image(
        &self,
        image: &ImageRef,
    ) -> Result<Option<(Image, Arc<Resolved>)>, ImageError> {
        let Some(stored) = self.stored_image(image).await? else {
            return Ok(None);
        };
        self.known().forget(&target_of(&stored).digest);
        let resolved = self.resolve(&stored).await?;
        Ok(resolved.map(|resolved| (stored, resolved)))
    }

    async fn resolve(&self, stored: &Image) -> Result<Option<Arc<Resolved>>, ImageError> {
        let target = target_of(stored);
        if let Some(known) = self.known().get(&target.digest) {
            return Ok(Some(known));
        }
        let resolved = unpack::resolve(self.client(), &stored.name, &target).await?;
        Ok(resolved.map(|it| self.known().put(&target.digest, it)))
    }

    /// Gives a target a name, also where the name stood for something else.
    async fn name(
        &self,
        client: &Client,
        name: &str,
        target: &Descriptor,
        pin: bool,
    ) -> Result<Image, CallError> {
        let labels = if pin {
            HashMap::from([(LABEL_PINNED.to_owned(), LABEL_PINNED.to_owned())])
        } else {
            HashMap::new()
        };
        let image = Image {
            name: name.to_owned(),
            labels,
            target: Some(target.to_proto()),
            ..Image::default()
        };
        let request = CreateImageRequest {
            image: Some(image.clone()),
            ..CreateImageRequest::default()
        };
        let created = client
            .call("naming an image", client.images().create(request))
            .await;
        if let Some(created) = made(created)? {
            return Ok(created.image.unwrap_or_default());
        }
        let request = UpdateImageRequest {
            image: Some(image),
            ..UpdateImageRequest::default()
        };
        let updated = client
            .call("naming an image", client.images().update(request))
            .await?;
        Ok(updated.image.unwrap_or_default())
    }

    /// Has containerd collect what pulls and imports of a former process have left; returns when it is gone.
    pub async fn forget_former_imports(&self) -> Result<usize, ImageError> {
        let client = self.client();
        let request = ListLeasesRequest { filters: vec![] };
        let mut service = client.leases();
        let list = client.call("listing leases", service.list(request)).await?;
        let mut former = list.leases;
        former.retain(|it| is_former_import(self.names(), &it.id));
        let count = former.len();
        for (number, lease) in former.iter().enumerate() {
            delete_lease(client, &lease.id, number + 1 == count).await?;
        }
        Ok(count)
    }

    /// Joins the pull of an image, or begins it.
    async fn bring(
        &self,
        image: &ImageRef,
        credentials: Option<&Credentials>,
        always: bool,
        progress: &Progress,
    ) -> Result<ImageInfo, ImageError> {
        let (node, of, shown) = (self.clone(), image.clone(), credentials.cloned());
        let start = |question: Question, progress: Progress| async move {
            let _turn = node.known().turn(&of.to_string()).await;
            let here = if question.always() {
                None
            } else {
                node.whole(&of).await?
            };
            let asks = question.settle(here.is_some());
            match here {
                Some((stored, resolved)) if !asks => node.unpacked(stored, &resolved).await,
                _ => node.fetch(&of, shown.as_ref(), &progress).await,
            }
        };
        let name = image.to_string();
        let joined = self
            .pulls()
            .join(&name, credentials, always, progress, start);
        joined.await
    }

    /// The image where all of it is here. What is named but not unpacked may have lost layers to somebody else's cleaning.
    async fn whole(&self, image: &ImageRef) -> Result<Option<(Image, Arc<Resolved>)>, ImageError> {
        let Some((stored, resolved)) = self.whole_image(image).await? else {
            return Ok(None);
        };
        if unpack::is_unpacked(self.client(), self.snapshotter(), &resolved).await? {
            return Ok(Some((stored, resolved)));
        }
        for layer in &resolved.manifest.layers {
            if !content::exists(self.client(), &layer.digest).await? {
                return Ok(None);
            }
        }
        Ok(Some((stored, resolved)))
    }

    /// Unpacks an image that is whole.
    async fn unpacked(&self, stored: Image, resolved: &Resolved) -> Result<ImageInfo, ImageError> {
        let lease = TemporaryLease::create(self.client(), self.names()).await?;
        let unpacked =
            unpack::unpack(lease.client(), self.snapshotter(), &stored.name, resolved).await;
        finish(unpacked.map(|()| info(stored, Some(resolved))), lease).await
    }

    async fn fetch(
        &self,
        image: &ImageRef,
        credentials: Option<&Credentials>,
        progress: &Progress,
    ) -> Result<ImageInfo, ImageError> {
        // Never closed.
        let _lane = self.lanes().acquire().await;
        let repository = self.registries().repository(image, credentials)?;
        let lease = TemporaryLease::create(self.client(), self.names()).await?;
        let client = lease.client();
        let name = image.to_string();
        let fetched = async {
            let fetch = Fetch {
                client,
                repository: &repository,
                name: &name,
                layers_at_once: self.layers_at_once(),
                progress,
            };
            let target = fetch.run(image).await?;
            self.keep(client, &name, &target, false).await
        };
        finish(fetched.await, lease).await
    }

    /// Unpacks a target whose content is here, and names it.
    async fn keep(
        &self,
        client: &Client,
        name: &str,
        target: &Descriptor,
        pin: bool,
    ) -> Result<ImageInfo, ImageError> {
        let resolved = unpack::resolve(client, name, target).await?;
        let resolved = resolved.ok_or_else(|| platform_missing(name))?;
        unpack::unpack(client, self.snapshotter(), name, &resolved).await?;
        let resolved = self.known().put(&target.digest, resolved);
        let stored = self.name(client, name, target, pin).await?;
        Ok(info(stored, Some(&resolved)))
    }

    /// Stores what the archive has of one image for this machine.
    async fn store_archived(
        &self,
        client: &Client,
        archive: &Shared,
        image: &str,
        target: &Descriptor,
    ) -> Result<(), ImageError> {
        let mut walk = Walk::new(image, target);
        while let Some(next) = walk.next() {
            let bytes = archive.document(&next).await?;
            // Nothing is followed that is not what it was promised to be.
            oci::verify(image, &next, &bytes)?;
            let labels = if next.is_index() {
                let index: Index = document(image, &next, &bytes)?;
                let mut kept = index.candidates();
                kept.retain(|it| archive.has(&it.digest));
                walk.enter(&kept)?;
                index_labels(kept)
            } else {
                let manifest = oci::manifest(image, &next, &bytes)?;
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    archive.store(client, image, blob).await?;
                }
                manifest_labels(&manifest)
            };
            content::write_bytes(client, image, &next, labels, bytes).await?;
        }
        Ok(())
    }
}

impl Images for Containerd {
    async fn ensure(&self, image: &ImageRef, progress: &Progress) -> Result<ImageInfo, ImageError> {
        if let Some((stored, resolved)) = self.local_image(image).await?
            && unpack::is_unpacked(self.client(), self.snapshotter(), &resolved).await?
        {
            return Ok(info(stored, Some(&resolved)));
        }
        self.bring(image, None, false, progress).await
    }

    async fn pull(
        &self,
        image: &ImageRef,
        credentials: Option<&Credentials>,
        progress: &Progress,
    ) -> Result<ImageInfo, ImageError> {
        self.bring(image, credentials, true, progress).await
    }

    async fn export(
        &self,
        image: &ImageRef,
        archive: mpsc::Sender<Vec<u8>>,
    ) -> Result<(), ImageError> {
        let name = image.to_string();
        let Some(stored) = self.stored_image(image).await? else {
            return Err(ImageError::NotFound {
                image: name,
                source: None,
            });
        };
        let target = target_of(&stored);
        let lease = TemporaryLease::create(self.client(), self.names()).await?;
        let client = lease.client();
        let exported = async {
            let contents = export::contents(client, &name, &target).await?;
            export::send(client, &name, &target, contents, &archive).await
        };
        let exported = exported.await;
        if let Err(error) = lease.end(false).await {
            tracing::warn!(%error, "a lease is left to expire");
        }
        exported
    }

    async fn import(
        &self,
        archive: &Path,
        name: Option<&ImageRef>,
        pin: bool,
    ) -> Result<Vec<ImageInfo>, ImageError> {
        let path = archive.to_owned();
        let limits = self.archive_limits();
        let archive = blocking(move || Archive::open(&path, limits)).await?;
        let named = names(&archive, name)?;
        let archive = Shared(Arc::new(Mutex::new(archive)));
        let lease = TemporaryLease::create(self.client(), self.names()).await?;
        let client = lease.client();
        let imported = async {
            // All is here and unpacked before the first name is given.
            for (target, names) in &named {
                let image = names.first().map(ToString::to_string).unwrap_or_default();
                self.store_archived(client, &archive, &image, target)
                    .await?;
                let resolved = unpack::resolve(client, &image, target).await?;
                let resolved = resolved.ok_or_else(|| platform_missing(&image))?;
                unpack::unpack(client, self.snapshotter(), &image, &resolved).await?;
            }
            let mut infos = vec![];
            for (target, names) in &named {
                for name in names {
                    infos.push(self.keep(client, &name.to_string(), target, pin).await?);
                }
            }
            Ok(infos)
        };
        finish(imported.await, lease).await
    }

    async fn image_digest(&self, image: &ImageRef) -> Result<Option<String>, ImageError> {
        let client = self.client();
        let request = GetImageRequest {
            name: image.to_string(),
        };
        let got = client
            .call("looking for an image", client.images().get(request))
            .await;
        let stored = found(got)?.and_then(|it| it.image);
        Ok(stored.map(|it| target_of(&it).digest))
    }

    async fn image_names(&self) -> Result<BTreeMap<String, NamedImage>, ImageError> {
        let client = self.client();
        let request = ListImagesRequest { filters: vec![] };
        let list = client
            .call("listing images", client.images().list(request))
            .await?;
        let named = list.images.into_iter().map(|stored| {
            let image = NamedImage {
                digest: target_of(&stored).digest,
                pinned: stored.labels.contains_key(LABEL_PINNED),
            };
            (stored.name, image)
        });
        Ok(named.collect())
    }

    async fn list_images(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let client = self.client();
        let request = ListImagesRequest { filters: vec![] };
        let list = client
            .call("listing images", client.images().list(request))
            .await?;
        let mut infos = vec![];
        for stored in list.images {
            // One that cannot be run here is still an image of the node.
            let mut resolved = self.resolve(&stored).await.ok().flatten();
            if let Some(it) = &resolved
                && !content::exists(client, &it.manifest.config.digest).await?
            {
                self.known().forget(&target_of(&stored).digest);
                resolved = None;
            }
            infos.push(info(stored, resolved.as_deref()));
        }
        Ok(infos)
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<(), ImageError> {
        let client = self.client();
        let request = DeleteImageRequest {
            name: image.to_string(),
            ..DeleteImageRequest::default()
        };
        let deleted = client
            .call("removing an image", client.images().delete(request))
            .await;
        match found(deleted)? {
            Some(()) => Ok(()),
            None => Err(ImageError::NotFound {
                image: image.to_string(),
                source: None,
            }),
        }
    }

    async fn collect(&self) -> Result<(), ImageError> {
        // containerd collects, and says when it has, at the end of a lease.
        let lease = TemporaryLease::create(self.client(), self.names()).await?;
        Ok(lease.end(true).await?)
    }
}

/// Lets go of what an import made: collected at once where it failed.
async fn finish<T>(result: Result<T, ImageError>, lease: TemporaryLease) -> Result<T, ImageError> {
    if let Err(error) = lease.end(result.is_err()).await {
        tracing::warn!(%error, "a lease is left to expire");
    }
    result
}

/// The names that each image of an archive gets: the one that was asked for, else its own.
fn names(
    archive: &Archive,
    asked: Option<&ImageRef>,
) -> Result<Vec<(Descriptor, Vec<ImageRef>)>, ImageError> {
    let invalid = |what: String| ImageError::ArchiveInvalid { what };
    if let Some(name) = asked {
        return match archive.images.as_slice() {
            [image] => Ok(vec![(image.target.clone(), vec![name.clone()])]),
            many => Err(invalid(format!(
                "it has {} images, which one name cannot name",
                many.len()
            ))),
        };
    }
    let mut named = vec![];
    for image in &archive.images {
        if image.names.is_empty() {
            return Err(invalid(format!(
                "{} has no name: give one",
                image.target.digest
            )));
        }
        let names = image.names.iter().map(|text| {
            ImageRef::parse(text).map_err(|error| invalid(format!("the name `{text}` {error}")))
        });
        named.push((image.target.clone(), names.collect::<Result<_, _>>()?));
    }
    Ok(named)
}

pub(crate) fn target_of(image: &Image) -> Descriptor {
    let target = image.target.clone().unwrap_or_default();
    Descriptor {
        media_type: target.media_type,
        digest: target.digest,
        size: u64::try_from(target.size).unwrap_or_default(),
        ..Descriptor::default()
    }
}

fn info(stored: Image, resolved: Option<&Resolved>) -> ImageInfo {
    ImageInfo {
        digest: target_of(&stored).digest,
        size_bytes: resolved.map_or(0, |it| it.size),
        created_at: time(stored.created_at),
        updated_at: time(stored.updated_at),
        pinned: stored.labels.contains_key(LABEL_PINNED),
        name: stored.name,
    }
}

/// A time of containerd's; one before 1970 is what Go makes of "not set".
pub(crate) fn time(at: Option<prost_types::Timestamp>) -> SystemTime {
    at.filter(|it| it.seconds >= 0)
        .and_then(|it| it.try_into().ok())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// An archive that is read on blocking threads, one reader at a time.
#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<Archive>>);

impl Shared {
    fn has(&self, digest: &str) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .has(digest)
    }

    async fn document(&self, blob: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let (archive, blob) = (self.0.clone(), blob.clone());
        blocking(move || {
            archive
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .document(&blob)
        })
        .await
    }

    async fn store(
        &self,
        client: &Client,
        image: &str,
        blob: &Descriptor,
    ) -> Result<(), ImageError> {
        let (sender, chunks) = mpsc::channel(2);
        let (archive, digest) = (self.0.clone(), blob.digest.clone());
        let reading = blocking(move || {
            let mut archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
            let read = archive.stream(&digest, |part| sender.blocking_send(Ok(part)).is_ok());
            if let Err(error) = read {
                // A reader that has gone has its own reason.
                let _ = sender.blocking_send(Err(error));
            }
            Ok(())
        });
        let writing = content::write(client, image, blob, HashMap::new(), chunks, |_| {});
        let (read, written) = tokio::join!(reading, writing);
        read.and(written)
    }
}

pub(crate) async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away, and with it whoever waits here.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests;

//! From a registry into the content store: the documents and layers of an image for this machine. Bytes go straight there,
//! and nothing that a registry sends is taken in memory at any size.

use std::collections::HashMap;

use berth_domain::ImageRef;
use berth_platform::{ImageError, LayerProgress, Progress};
use berth_registry::Repository;
use futures::StreamExt as _;
use tokio::sync::mpsc;

use crate::{
    client::Client,
    content,
    oci::{self, Descriptor, Index, Manifest, corrupt, document},
    unpack::{index_labels, manifest_labels, platform_missing},
};

/// One image on its way.
pub(crate) struct Fetch<'a> {
    pub(crate) client: &'a Client,
    pub(crate) repository: &'a Repository,
    pub(crate) name: &'a str,
    pub(crate) layers_at_once: usize,
    pub(crate) progress: &'a Progress,
}

impl Fetch<'_> {
    /// Brings the documents and layers of the image for this machine into the content store; returns what the name
    /// stands for.
    pub(crate) async fn run(&self, image: &ImageRef) -> Result<Descriptor, ImageError> {
        let (target, bytes) = self.document(reference(image), image.digest()).await?;
        if !target.is_index() {
            let manifest = oci::manifest(self.name, &target, &bytes)?;
            self.manifest(&target, bytes, &manifest).await?;
            return Ok(target);
        }
        let index: Index = document(self.name, &target, &bytes)?;
        let own = index.candidates().into_iter().find(|it| it.is_manifest());
        let own = own.ok_or_else(|| platform_missing(self.name))?;
        if !oci::is_digest(&own.digest) {
            return Err(self.no_digest(own));
        }
        let (entry, manifest_bytes) = self.document(&own.digest, Some(&own.digest)).await?;
        let manifest = oci::manifest(self.name, &entry, &manifest_bytes)?;
        self.manifest(&entry, manifest_bytes, &manifest).await?;
        let labels = index_labels([own]);
        content::write_bytes(self.client, self.name, &target, labels, bytes).await?;
        Ok(target)
    }

    async fn document(
        &self,
        reference: &str,
        digest: Option<&str>,
    ) -> Result<(Descriptor, Vec<u8>), ImageError> {
        let got = self
            .repository
            .document(reference, digest, oci::DOCUMENT_MAX);
        let got = got.await?;
        let descriptor = Descriptor {
            media_type: media_type(&got.bytes),
            digest: got.digest,
            size: got.bytes.len() as u64,
            ..Descriptor::default()
        };
        Ok((descriptor, got.bytes))
    }

    /// Fetches configuration and layers, and stores the manifest behind them.
    async fn manifest(
        &self,
        target: &Descriptor,
        bytes: Vec<u8>,
        manifest: &Manifest,
    ) -> Result<(), ImageError> {
        let layers = manifest.layers.iter().map(|it| LayerProgress {
            digest: it.digest.clone(),
            current_bytes: 0,
            total_bytes: it.size,
        });
        self.progress.send_replace(layers.collect());
        self.blob(&manifest.config, |_| {}).await?;
        let mut fetches = vec![];
        for (at, layer) in manifest.layers.iter().enumerate() {
            let advance = move |bytes: u64| {
                self.progress.send_modify(|layers| {
                    if let Some(it) = layers.get_mut(at) {
                        it.current_bytes = bytes;
                    }
                });
            };
            fetches.push(self.blob(layer, advance));
        }
        all(fetches, self.layers_at_once).await?;
        content::write_bytes(
            self.client,
            self.name,
            target,
            manifest_labels(manifest),
            bytes,
        )
        .await
    }

    async fn blob(&self, blob: &Descriptor, advance: impl Fn(u64)) -> Result<(), ImageError> {
        if !oci::is_digest(&blob.digest) {
            return Err(self.no_digest(blob));
        }
        // Held from here on, whatever becomes of the image that brought it.
        content::hold(self.client, "content", &blob.digest).await?;
        if content::exists(self.client, &blob.digest).await? {
            advance(blob.size);
            return Ok(());
        }
        loop {
            let (sender, chunks) = mpsc::channel(2);
            let asking = self.repository.blob(&blob.digest, blob.size, sender);
            let labels = HashMap::new();
            let writing = content::write(self.client, self.name, blob, labels, chunks, &advance);
            let (giver, written) = tokio::join!(asking, writing);
            // Each round passes a mirror over, so there are not more of them than hosts.
            let again = matches!(written, Err(ImageError::Corrupt { .. }))
                && giver.is_some_and(|it| self.repository.distrust(it));
            if !again {
                return written;
            }
            advance(0);
        }
    }

    fn no_digest(&self, blob: &Descriptor) -> ImageError {
        corrupt(self.name, format!("`{}` is not a digest", blob.digest))
    }
}

/// Waits for all, so many at a time, or for the first that fails.
async fn all(
    fetches: Vec<impl Future<Output = Result<(), ImageError>>>,
    at_once: usize,
) -> Result<(), ImageError> {
    let mut fetched = futures::stream::iter(fetches).buffer_unordered(at_once);
    while let Some(result) = fetched.next().await {
        result?;
    }
    Ok(())
}

/// What a document says that it is; one that does not say is told by its fields.
fn media_type(bytes: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    match value["mediaType"].as_str() {
        Some(text) => text.to_owned(),
        None if value["manifests"].is_array() => oci::OCI_INDEX.to_owned(),
        None => oci::OCI_MANIFEST.to_owned(),
    }
}

fn reference(image: &ImageRef) -> &str {
    image.digest().or(image.tag()).unwrap_or("latest")
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, pin::pin};

    use futures::{channel::oneshot, poll};

    use super::*;

    #[tokio::test]
    async fn so_many_layers_come_at_once_and_the_next_begins_when_one_is_here() {
        let begun = RefCell::new(vec![]);
        let (ends, fetches): (Vec<_>, Vec<_>) = (0..4)
            .map(|layer| {
                let (end, ended) = oneshot::channel();
                let begun = &begun;
                let fetch = async move {
                    begun.borrow_mut().push(layer);
                    ended.await.unwrap_or(Ok(()))
                };
                (end, fetch)
            })
            .unzip();
        let mut ends: Vec<_> = ends.into_iter().map(Some).collect();
        let mut fetching = pin!(all(fetches, 2));
        for (ending, expected) in [
            (None, &[0, 1][..]),
            (Some(1), &[0, 1, 2]),
            (Some(0), &[0, 1, 2, 3]),
            (Some(2), &[0, 1, 2, 3]),
        ] {
            drop(ending.and_then(|it: usize| ends[it].take()));
            assert!(poll!(&mut fetching).is_pending());
            assert_eq!(*begun.borrow(), expected);
        }
        let failed = ends.pop().flatten().unwrap();
        failed.send(Err(corrupt("app", "it is"))).unwrap();
        assert!(matches!(fetching.await, Err(ImageError::Corrupt { .. })));
    }

    #[test]
    fn a_document_that_does_not_name_its_type_is_told_by_its_fields() {
        assert_eq!(media_type(br#"{"manifests":[]}"#), oci::OCI_INDEX);
        assert_eq!(media_type(br#"{"layers":[]}"#), oci::OCI_MANIFEST);
        assert_eq!(media_type(br#"{"mediaType":"x"}"#), "x");
    }
}

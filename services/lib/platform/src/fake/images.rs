//! The images of the fake node.

use std::{collections::BTreeMap, path::Path};

use berth_domain::{ImageRef, holders::NamedImage};
use tokio::sync::mpsc;

use super::{FakeNode, read_archive};
use crate::{Credentials, ImageError, ImageInfo, Images, Progress};

impl FakeNode {
    /// Gives a digest a name, as a tag that somebody moves.
    pub fn name_image(&self, image: &ImageRef, digest: &str) {
        let mut state = self.state();
        state.keep_image(image, false);
        if let Some(named) = state.images.get_mut(&image.to_string()) {
            digest.clone_into(&mut named.digest);
        }
    }
}

impl Images for FakeNode {
    async fn ensure(&self, image: &ImageRef, progress: &Progress) -> Result<ImageInfo, ImageError> {
        self.change("ensure", image, |state| {
            match state.images.get(&image.to_string()) {
                Some(info) => Ok(info.clone()),
                None => state.pull(image, progress),
            }
        })
        .await
    }

    /// The fake's registries show everybody all that they have.
    async fn pull(
        &self,
        image: &ImageRef,
        _credentials: Option<&Credentials>,
        progress: &Progress,
    ) -> Result<ImageInfo, ImageError> {
        self.change("pull", image, |state| state.pull(image, progress))
            .await
    }

    /// An archive is a text with the name of an image per line.
    async fn import(
        &self,
        archive: &Path,
        name: Option<&ImageRef>,
        pin: bool,
    ) -> Result<Vec<ImageInfo>, ImageError> {
        let bytes = tokio::fs::read(archive).await;
        self.change("import", archive.display(), |state| {
            let bytes = bytes.map_err(|source| ImageError::Node {
                operation: "import",
                source: source.into(),
            })?;
            let images = read_archive(&bytes, name)?;
            Ok(images
                .iter()
                .map(|image| state.keep_image(image, pin))
                .collect())
        })
        .await
    }

    async fn image_digest(&self, image: &ImageRef) -> Result<Option<String>, ImageError> {
        let name = image.to_string();
        self.call("image_digest", &name, |state| {
            let stored = state.images.get(&name);
            Ok(stored.map(|it| it.digest.clone()))
        })
        .await
    }

    async fn image_names(&self) -> Result<BTreeMap<String, NamedImage>, ImageError> {
        self.call("image_names", "", |state| {
            let named = state.images.values().map(|it| {
                let image = NamedImage {
                    digest: it.digest.clone(),
                    pinned: it.pinned,
                };
                (it.name.clone(), image)
            });
            Ok(named.collect())
        })
        .await
    }

    async fn export(
        &self,
        image: &ImageRef,
        archive: mpsc::Sender<Vec<u8>>,
    ) -> Result<(), ImageError> {
        let name = image.to_string();
        let here = self.call("export", &name, |state| {
            Ok(state.images.contains_key(&name))
        });
        if !here.await? {
            return Err(ImageError::NotFound {
                image: name,
                source: None,
            });
        }
        // Nobody has to read it.
        let _ = archive.send(name.into_bytes()).await;
        Ok(())
    }

    async fn list_images(&self) -> Result<Vec<ImageInfo>, ImageError> {
        self.call("list_images", "", |state| {
            Ok(state.images.values().cloned().collect())
        })
        .await
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<(), ImageError> {
        self.change("remove_image", image, |state| {
            let image = image.to_string();
            match state.images.remove(&image) {
                Some(_) => Ok(()),
                None => Err(ImageError::NotFound {
                    image,
                    source: None,
                }),
            }
        })
        .await
    }

    /// Nothing stays of a name that is removed.
    async fn collect(&self) -> Result<(), ImageError> {
        self.change("collect", "", |_| Ok(())).await
    }
}

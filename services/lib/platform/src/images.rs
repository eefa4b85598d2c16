//! The images of the node.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use berth_domain::{ImageRef, holders::NamedImage};
use tokio::sync::{mpsc, watch};

use crate::{Credentials, Source};

/// Layers of a running pull, for whoever wants to look.
pub type Progress = watch::Sender<Vec<LayerProgress>>;

pub trait Images: Send + Sync + 'static {
    /// Makes sure that the image is here and unpacked, pulling it where it is not. All who wait for one image, here and in
    /// [`Self::pull`], wait for one pull, which ends when the last of them has gone; its failure is everybody's.
    fn ensure(
        &self,
        image: &ImageRef,
        progress: &Progress,
    ) -> impl Future<Output = Result<ImageInfo, ImageError>> + Send;

    /// Asks the registry, also for an image that is here. Credentials go to the registry of the image and to nobody else;
    /// without them those of the node's settings are used.
    fn pull(
        &self,
        image: &ImageRef,
        credentials: Option<&Credentials>,
        progress: &Progress,
    ) -> impl Future<Output = Result<ImageInfo, ImageError>> + Send;

    /// Imports an OCI image layout or a `docker save` archive, plain or gzip, and unpacks its images. Nothing is kept of
    /// one that fails. `name` names the image of an archive that has one.
    fn import(
        &self,
        archive: &Path,
        name: Option<&ImageRef>,
        pin: bool,
    ) -> impl Future<Output = Result<Vec<ImageInfo>, ImageError>> + Send;

    /// Digest of what the name stands for; `None` where the image is not here.
    fn image_digest(
        &self,
        image: &ImageRef,
    ) -> impl Future<Output = Result<Option<String>, ImageError>> + Send;

    /// What each name of the node stands for, by name: `list_images` without what takes a look into the content.
    fn image_names(
        &self,
    ) -> impl Future<Output = Result<BTreeMap<String, NamedImage>, ImageError>> + Send;
    /// Sends an image as an OCI image layout archive, which [`Self::import`] takes back with the same digests. Ends early,
    /// as a success, when nobody reads.
    fn export(
        &self,
        image: &ImageRef,
        archive: mpsc::Sender<Vec<u8>>,
    ) -> impl Future<Output = Result<(), ImageError>> + Send;

    fn list_images(&self) -> impl Future<Output = Result<Vec<ImageInfo>, ImageError>> + Send;

    /// Removes one name; one that is not there is [`ImageError::NotFound`]. What nothing else holds goes when the node finds the
    /// time, or with [`Self::collect`].
    fn remove_image(&self, image: &ImageRef)
    -> impl Future<Output = Result<(), ImageError>> + Send;

    /// Returns when content and snapshots that nothing holds are gone.
    fn collect(&self) -> impl Future<Output = Result<(), ImageError>> + Send;
}

/// What an archive may take of the disk that it is kept on while it is imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Of the archive as it comes, and once more of what a compressed one unpacks to.
    pub max_bytes: u64,
    /// Stays free, for the store and whoever else writes there.
    pub reserve_bytes: u64,
}

impl ArchiveLimits {
    /// Whether a file of `size` bytes may grow by `more`, where its disk has `free` bytes.
    pub fn admit(&self, size: u64, more: u64, free: u64) -> Result<(), ImageError> {
        if size.saturating_add(more) > self.max_bytes {
            return Err(ImageError::ArchiveTooLarge {
                limit_bytes: self.max_bytes,
            });
        }
        if free < self.reserve_bytes.saturating_add(more) {
            return Err(ImageError::DiskLow {
                free_bytes: free,
                reserve_bytes: self.reserve_bytes,
            });
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    pub name: String,
    /// Of the manifest or index that the name stands for.
    pub digest: String,
    pub size_bytes: u64,
    pub created_at: SystemTime,
    pub updated_at: SystemTime,
    pub pinned: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerProgress {
    pub digest: String,
    pub current_bytes: u64,
    pub total_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("image {image} is not in its registry")]
    NotFound {
        image: String,
        source: Option<Source>,
    },
    #[error("the registry of {image} does not answer")]
    RegistryUnreachable { image: String, source: Source },
    #[error("the registry refuses access to {image}")]
    RegistryDenied { image: String, source: Source },
    /// It answered 429 until there was no try left, or wants more patience than a pull may have.
    #[error("the registry of {image} is busy")]
    RegistryBusy {
        image: String,
        /// As the registry said.
        retry_after: Option<Duration>,
        source: Source,
    },
    #[error("the registry of {image} answers as no registry should: {what}")]
    RegistryProtocol { image: String, what: String },
    #[error("the certificate of the registry of {image} is not trusted on this node")]
    RegistryUntrusted { image: String, source: Source },
    #[error("no byte came of {image} for {after:?}")]
    PullStalled { image: String, after: Duration },
    /// The file of the node's settings.
    #[error("the credentials for registries cannot be read from {}", file.display())]
    CredentialsUnreadable { file: PathBuf, source: Source },
    #[error("image {image} is not complete on this node: {digest} is missing")]
    Incomplete { image: String, digest: String },
    /// A digest or a form is not what was promised.
    #[error("image {image} is corrupt: {what}")]
    Corrupt { image: String, what: String },
    #[error("the archive is not an image: {what}")]
    ArchiveInvalid { what: String },
    #[error("the archive, or what it unpacks to, is larger than {limit_bytes} bytes")]
    ArchiveTooLarge { limit_bytes: u64 },
    #[error(
        "the disk for archives has {free_bytes} bytes left, and {reserve_bytes} are to stay free"
    )]
    DiskLow { free_bytes: u64, reserve_bytes: u64 },
    #[error("image {image} has no variant for {platform}")]
    PlatformMissing { image: String, platform: String },
    #[error("containerd does not answer: {operation}")]
    Unreachable {
        operation: &'static str,
        source: Source,
    },
    #[error("{operation} was refused: {message}")]
    Refused {
        operation: &'static str,
        message: String,
    },
    #[error("{operation} failed")]
    Node {
        operation: &'static str,
        source: Source,
    },
}

impl ImageError {
    /// The same once more, for another who waited for it; its causes become their text.
    pub fn again(&self) -> Self {
        let text = |source: &Source| -> Source {
            let mut text = source.to_string();
            let mut next = source.source();
            while let Some(cause) = next {
                text = format!("{text}: {cause}");
                next = cause.source();
            }
            text.into()
        };
        match self {
            Self::NotFound { image, source } => Self::NotFound {
                image: image.clone(),
                source: source.as_ref().map(text),
            },
            Self::RegistryUnreachable { image, source } => Self::RegistryUnreachable {
                image: image.clone(),
                source: text(source),
            },
            Self::RegistryDenied { image, source } => Self::RegistryDenied {
                image: image.clone(),
                source: text(source),
            },
            Self::RegistryBusy {
                image,
                retry_after,
                source,
            } => Self::RegistryBusy {
                image: image.clone(),
                retry_after: *retry_after,
                source: text(source),
            },
            Self::RegistryProtocol { image, what } => Self::RegistryProtocol {
                image: image.clone(),
                what: what.clone(),
            },
            Self::RegistryUntrusted { image, source } => Self::RegistryUntrusted {
                image: image.clone(),
                source: text(source),
            },
            Self::PullStalled { image, after } => Self::PullStalled {
                image: image.clone(),
                after: *after,
            },
            Self::CredentialsUnreadable { file, source } => Self::CredentialsUnreadable {
                file: file.clone(),
                source: text(source),
            },
            Self::Incomplete { image, digest } => Self::Incomplete {
                image: image.clone(),
                digest: digest.clone(),
            },
            Self::Corrupt { image, what } => Self::Corrupt {
                image: image.clone(),
                what: what.clone(),
            },
            Self::ArchiveInvalid { what } => Self::ArchiveInvalid { what: what.clone() },
            Self::ArchiveTooLarge { limit_bytes } => Self::ArchiveTooLarge {
                limit_bytes: *limit_bytes,
            },
            Self::DiskLow {
                free_bytes,
                reserve_bytes,
            } => Self::DiskLow {
                free_bytes: *free_bytes,
                reserve_bytes: *reserve_bytes,
            },
            Self::PlatformMissing { image, platform } => Self::PlatformMissing {
                image: image.clone(),
                platform: platform.clone(),
            },
            Self::Unreachable { operation, source } => Self::Unreachable {
                operation,
                source: text(source),
            },
            Self::Refused { operation, message } => Self::Refused {
                operation,
                message: message.clone(),
            },
            Self::Node { operation, source } => Self::Node {
                operation,
                source: text(source),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_grows_to_its_limit_and_only_into_room_that_may_be_used() {
        let limits = ArchiveLimits {
            max_bytes: 100,
            reserve_bytes: 50,
        };
        limits.admit(90, 10, 60).unwrap();
        let large = limits.admit(90, 11, 1000).unwrap_err();
        assert!(matches!(
            large,
            ImageError::ArchiveTooLarge { limit_bytes: 100 }
        ));
        let low = limits.admit(0, 10, 59).unwrap_err();
        assert!(matches!(low, ImageError::DiskLow { free_bytes: 59, .. }));
    }
}

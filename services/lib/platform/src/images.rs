//! The images of the node.

use std::{collections::BTreeMap, path::Path, time::SystemTime};

use berth_domain::{ImageRef, holders::NamedImage};
use tokio::sync::watch;

use crate::Source;

/// Layers of a running pull, for whoever wants to look.
pub type Progress = watch::Sender<Vec<LayerProgress>>;

pub trait Images: Send + Sync + 'static {
    /// Makes sure that the image is here and unpacked, pulling it where it is not.
    fn ensure(
        &self,
        image: &ImageRef,
        progress: &Progress,
    ) -> impl Future<Output = Result<ImageInfo, ImageError>> + Send;

    /// Asks the registry, also for an image that is here.
    fn pull(
        &self,
        image: &ImageRef,
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

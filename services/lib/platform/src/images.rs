//! The images of the node.

use std::{path::Path, time::SystemTime};

use berth_domain::ImageRef;
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

    fn list_images(&self) -> impl Future<Output = Result<Vec<ImageInfo>, ImageError>> + Send;

    /// Removes one name. One that is not there is [`ImageError::NotFound`]: nobody asks for it twice.
    fn remove_image(&self, image: &ImageRef)
    -> impl Future<Output = Result<(), ImageError>> + Send;
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

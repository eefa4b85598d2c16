//! Pulls from registries that do what none should, over real connections.

#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    reason = "a test may panic"
)]

mod authority;
mod breaks;
mod mirrors;
mod secrets;
mod server;
mod tokens;

use std::{sync::Arc, time::Duration};

use berth_domain::ImageRef;
use berth_platform::{Credentials, ImageError};
use berth_registry::{Registries, Repository, Settings, Terms};
use server::{Answer, Asked, Server};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

pub(crate) const DOCUMENT_MAX: u64 = 1 << 16;

/// An image of one layer, and what its registry says when nothing is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) layer: Vec<u8>,
}

impl Image {
    pub(crate) fn of(layer: Vec<u8>) -> Arc<Self> {
        let config = br#"{"os":"linux","rootfs":{"diff_ids":[]}}"#.to_vec();
        let manifest = format!(
            r#"{{"config":"{}","layers":["{}"]}}"#,
            digest(&config),
            digest(&layer)
        );
        Arc::new(Self {
            manifest: manifest.into(),
            config,
            layer,
        })
    }

    pub(crate) fn small() -> Arc<Self> {
        Self::of((0..200).collect())
    }

    pub(crate) fn path(bytes: &[u8]) -> String {
        format!("/v2/team/app/blobs/{}", digest(bytes))
    }

    pub(crate) fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.path.as_str();
        let by_digest = format!("/v2/team/app/manifests/{}", digest(&self.manifest));
        if path == "/v2/team/app/manifests/1" || path == by_digest {
            return Answer::ok(self.manifest.clone());
        }
        let blobs = [&self.config, &self.layer];
        let blob = blobs.into_iter().find(|it| path == Self::path(it));
        blob.map_or_else(|| Answer::status(404, ""), |it| Answer::ranged(asked, it))
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter()
        .fold("sha256:".to_owned(), |text, it| format!("{text}{it:02x}"))
}

/// Registries on loopback are asked without TLS, and again at once.
pub(crate) fn settings() -> Settings {
    Settings {
        plain_http: vec!["127.0.0.1:*".into()],
        terms: Terms {
            tries: 3,
            backoff: Duration::from_millis(1),
            retry_after_max: Duration::from_secs(2),
            no_progress: Duration::from_secs(20),
        },
        ..Settings::default()
    }
}

pub(crate) fn repository(
    settings: Settings,
    registry: &str,
    credentials: Option<&Credentials>,
) -> Result<Repository, ImageError> {
    let image = ImageRef::parse(&format!("{registry}/team/app:1")).unwrap();
    let registries = Registries::new(settings).unwrap();
    registries.repository(&image, credentials)
}

/// The image as it arrives.
pub(crate) async fn pull(repository: &Repository, image: &Image) -> Result<Image, ImageError> {
    let document = repository.document("1", None, DOCUMENT_MAX).await?;
    assert_eq!(document.digest, digest(&document.bytes));
    Ok(Image {
        manifest: document.bytes,
        config: blob(repository, &image.config).await?,
        layer: blob(repository, &image.layer).await?,
    })
}

pub(crate) async fn blob(repository: &Repository, bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    let (sender, mut chunks) = mpsc::channel(2);
    let digest = digest(bytes);
    let sending = repository.blob(&digest, bytes.len() as u64, sender);
    let receiving = async {
        let mut received = vec![];
        while let Some(chunk) = chunks.recv().await {
            received.extend(chunk?);
        }
        Ok(received)
    };
    tokio::join!(sending, receiving).1
}

/// What kind of failure it is, in a word.
pub(crate) fn kind(error: &ImageError) -> &'static str {
    match error {
        ImageError::NotFound { .. } => "not found",
        ImageError::RegistryUnreachable { .. } => "unreachable",
        ImageError::RegistryDenied { .. } => "denied",
        ImageError::RegistryBusy { .. } => "busy",
        ImageError::RegistryProtocol { .. } => "protocol",
        ImageError::RegistryUntrusted { .. } => "untrusted",
        ImageError::PullStalled { .. } => "stalled",
        ImageError::CredentialsUnreadable { .. } => "credentials",
        ImageError::Corrupt { .. } => "corrupt",
        ImageError::Incomplete { .. }
        | ImageError::ArchiveInvalid { .. }
        | ImageError::ArchiveTooLarge { .. }
        | ImageError::DiskLow { .. }
        | ImageError::PlatformMissing { .. }
        | ImageError::Unreachable { .. }
        | ImageError::Refused { .. }
        | ImageError::Node { .. } => "no failure of a registry",
    }
}

#[track_caller]
pub(crate) fn assert_same(pulled: &Image, image: &Image) {
    assert_eq!(pulled.manifest, image.manifest);
    assert_eq!(pulled.config, image.config);
    assert!(pulled.layer == image.layer, "the layers differ");
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_by_digest_and_who_asks_says_so() {
    let image = Image::small();
    let served = image.clone();
    let server = Server::start(move |asked| served.answer(asked)).await;
    let registry = server.address.to_string();
    let repository = repository(settings(), &registry, None).unwrap();
    assert_same(&pull(&repository, &image).await.unwrap(), &image);
    let wanted = digest(&image.manifest);
    let again = repository.document(&wanted, Some(&wanted), DOCUMENT_MAX);
    assert_eq!(again.await.unwrap().bytes, image.manifest);
    for asked in server.asked() {
        let agent = asked.header("user-agent").unwrap();
        assert!(agent.starts_with("berth/"), "{agent}");
        assert_eq!(asked.method, "GET");
        assert_eq!(asked.header("authorization"), None);
    }
}

#[tokio::test]
async fn the_registry_of_the_cluster_is_where_the_settings_say() {
    let image = Image::small();
    let served = image.clone();
    let server = Server::start(move |asked| served.answer(asked)).await;
    for name in ["cluster.local", "cluster.local:5000"] {
        let settings = Settings {
            cluster_registry: Some(server.address.to_string()),
            plain_http: vec![],
            ..settings()
        };
        let repository = repository(settings, name, None).unwrap();
        assert_same(&pull(&repository, &image).await.unwrap(), &image);
    }
}

//! Registries: anonymous pulls over https, or http where the settings say so. Bytes go straight into the content store.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use berth_domain::ImageRef;
use berth_platform::{ImageError, LayerProgress, Progress};
use futures::StreamExt as _;
use oci_client::{
    Reference,
    client::{Client as Registry, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use tokio::sync::mpsc;

use crate::{
    client::Client,
    content,
    oci::{self, Descriptor, Index, Manifest},
    unpack::{document, index_labels, manifest_labels, platform_missing},
};

const ACCEPTED: [&str; 4] = [
    oci::OCI_INDEX,
    oci::DOCKER_INDEX,
    oci::OCI_MANIFEST,
    oci::DOCKER_MANIFEST,
];
/// Layers that are fetched at the same time, as docker does it.
const PARALLEL: usize = 3;

pub(crate) struct Registries {
    plain_http: Vec<String>,
    http: Lazy,
    https: Lazy,
}

/// A client, made by the first pull that wants it: making one fails on a node without any CA certificate, which can still
/// import all that it runs.
struct Lazy {
    protocol: ClientProtocol,
    made: Mutex<Option<Registry>>,
}

impl Lazy {
    fn new(protocol: ClientProtocol) -> Self {
        Self {
            protocol,
            made: Mutex::new(None),
        }
    }

    fn get(&self) -> Result<Registry, ImageError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(registry) = made.as_ref() {
            return Ok(registry.clone());
        }
        let registry = Registry::try_from(ClientConfig {
            protocol: self.protocol.clone(),
            connect_timeout: Some(std::time::Duration::from_secs(10)),
            read_timeout: Some(std::time::Duration::from_secs(60)),
            ..ClientConfig::default()
        });
        let registry = registry.map_err(|error| ImageError::Node {
            operation: "preparing to ask registries",
            source: error.into(),
        })?;
        Ok(made.insert(registry).clone())
    }
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries")
            .field("plain_http", &self.plain_http)
            .finish_non_exhaustive()
    }
}

impl Registries {
    pub(crate) fn new(plain_http: Vec<String>) -> Self {
        // Another part of the process may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            plain_http,
            http: Lazy::new(ClientProtocol::Http),
            https: Lazy::new(ClientProtocol::Https),
        }
    }

    /// Brings the documents and layers of the image for this machine into the content store; returns what the name
    /// stands for.
    pub(crate) async fn fetch(
        &self,
        client: &Client,
        image: &ImageRef,
        progress: &Progress,
    ) -> Result<Descriptor, ImageError> {
        let name = image.to_string();
        let lazy = if speaks_http(&self.plain_http, image.registry()) {
            &self.http
        } else {
            &self.https
        };
        let source = Source {
            registry: &lazy.get()?,
            reference: reference(image),
            name: &name,
        };
        let (target, bytes) = source.document(image.digest()).await?;
        if !target.is_index() {
            let manifest: Manifest = document(&name, &target, &bytes)?;
            source
                .manifest(client, &target, bytes, &manifest, progress)
                .await?;
            return Ok(target);
        }
        let index: Index = document(&name, &target, &bytes)?;
        let own = index.candidates().into_iter().find(|it| it.is_manifest());
        let own = own.ok_or_else(|| platform_missing(&name))?;
        let (entry, manifest_bytes) = source.document(Some(&own.digest)).await?;
        let manifest: Manifest = document(&name, &entry, &manifest_bytes)?;
        source
            .manifest(client, &entry, manifest_bytes, &manifest, progress)
            .await?;
        content::write_bytes(client, &name, &target, index_labels([own]), bytes).await?;
        Ok(target)
    }
}

struct Source<'a> {
    registry: &'a Registry,
    reference: Reference,
    name: &'a str,
}

impl Source<'_> {
    /// Fetches a manifest or an index, checked against the digest where one is asked for.
    async fn document(&self, digest: Option<&str>) -> Result<(Descriptor, Vec<u8>), ImageError> {
        let reference = match digest {
            Some(digest) => self.reference.clone_with_digest(digest.to_owned()),
            None => self.reference.clone(),
        };
        let fetched = self
            .registry
            .pull_manifest_raw(&reference, &RegistryAuth::Anonymous, &ACCEPTED)
            .await;
        let (bytes, _) = fetched.map_err(|it| self.failed(it))?;
        let actual = oci::digest(&bytes);
        if digest.is_some_and(|it| it != actual) {
            let what = format!(
                "the registry gave {actual} for {}",
                digest.unwrap_or_default()
            );
            return Err(ImageError::Corrupt {
                image: self.name.to_owned(),
                what,
            });
        }
        let descriptor = Descriptor {
            media_type: media_type(&bytes),
            digest: actual,
            size: bytes.len() as u64,
            ..Descriptor::default()
        };
        Ok((descriptor, bytes.to_vec()))
    }

    /// Fetches configuration and layers, and stores the manifest behind them.
    async fn manifest(
        &self,
        client: &Client,
        target: &Descriptor,
        bytes: Vec<u8>,
        manifest: &Manifest,
        progress: &Progress,
    ) -> Result<(), ImageError> {
        let layers = manifest.layers.iter().map(|it| LayerProgress {
            digest: it.digest.clone(),
            current_bytes: 0,
            total_bytes: it.size,
        });
        progress.send_replace(layers.collect());
        self.blob(client, &manifest.config, |_| {}).await?;
        let mut fetches = vec![];
        for (at, layer) in manifest.layers.iter().enumerate() {
            let advance = move |bytes: u64| {
                progress.send_modify(|layers| {
                    if let Some(it) = layers.get_mut(at) {
                        it.current_bytes = bytes;
                    }
                });
            };
            fetches.push(self.blob(client, layer, advance));
        }
        let mut fetched = futures::stream::iter(fetches).buffer_unordered(PARALLEL);
        while let Some(result) = fetched.next().await {
            result?;
        }
        content::write_bytes(client, self.name, target, manifest_labels(manifest), bytes).await
    }

    async fn blob(
        &self,
        client: &Client,
        blob: &Descriptor,
        advance: impl Fn(u64),
    ) -> Result<(), ImageError> {
        if !oci::is_digest(&blob.digest) {
            let what = format!("`{}` is not a digest", blob.digest);
            return Err(ImageError::Corrupt {
                image: self.name.to_owned(),
                what,
            });
        }
        if content::exists(client, &blob.digest).await? {
            // Held by the lease from here on, whatever becomes of the image that brought it.
            content::label(client, &blob.digest, HashMap::new()).await?;
            advance(blob.size);
            return Ok(());
        }
        let opened = self
            .registry
            .pull_blob_stream(&self.reference, blob.digest.as_str())
            .await;
        let mut parts = opened.map_err(|it| self.failed(it))?.stream;
        let (sender, chunks) = mpsc::channel(2);
        let feeding = async move {
            while let Some(part) = parts.next().await {
                let part = part
                    .map(|it| it.to_vec())
                    .map_err(|source| self.broken(source));
                let over = part.is_err();
                if sender.send(part).await.is_err() || over {
                    return;
                }
            }
        };
        let writing = content::write(client, self.name, blob, HashMap::new(), chunks, advance);
        tokio::join!(feeding, writing).1
    }

    /// A stream that breaks off: what was wrong is the registry's affair or the network's.
    fn broken(&self, source: std::io::Error) -> ImageError {
        let image = self.name.to_owned();
        let text = source.to_string();
        if text.to_ascii_lowercase().contains("digest") {
            return ImageError::Corrupt { image, what: text };
        }
        ImageError::RegistryUnreachable {
            image,
            source: source.into(),
        }
    }

    fn failed(&self, error: OciDistributionError) -> ImageError {
        classify(self.name, error)
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library has thirty errors"
)]
fn classify(name: &str, error: OciDistributionError) -> ImageError {
    let image = name.to_owned();
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => ImageError::NotFound {
            image,
            source: Some(error.into()),
        },
        OciDistributionError::RegistryError { ref envelope, .. } => {
            let codes: Vec<&OciErrorCode> = envelope.errors.iter().map(|it| &it.code).collect();
            let has = |wanted: &[OciErrorCode]| codes.iter().any(|it| wanted.contains(it));
            if has(&[
                OciErrorCode::ManifestUnknown,
                OciErrorCode::NameUnknown,
                OciErrorCode::BlobUnknown,
                OciErrorCode::NotFound,
            ]) {
                ImageError::NotFound {
                    image,
                    source: Some(error.into()),
                }
            } else if has(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                ImageError::RegistryDenied {
                    image,
                    source: error.into(),
                }
            } else {
                ImageError::RegistryUnreachable {
                    image,
                    source: error.into(),
                }
            }
        }
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_) => ImageError::RegistryDenied {
            image,
            source: error.into(),
        },
        OciDistributionError::ServerError { code: 404, .. } => ImageError::NotFound {
            image,
            source: Some(error.into()),
        },
        OciDistributionError::ServerError {
            code: 401 | 403, ..
        } => ImageError::RegistryDenied {
            image,
            source: error.into(),
        },
        OciDistributionError::DigestError(_)
        | OciDistributionError::ManifestEncodingError(_)
        | OciDistributionError::ManifestParsingError(_)
        | OciDistributionError::VersionedParsingError(_)
        | OciDistributionError::UnsupportedMediaTypeError(_)
        | OciDistributionError::UnsupportedSchemaVersionError(_)
        | OciDistributionError::JsonError(_) => ImageError::Corrupt {
            image,
            what: error.to_string(),
        },
        _ => ImageError::RegistryUnreachable {
            image,
            source: error.into(),
        },
    }
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

fn reference(image: &ImageRef) -> Reference {
    let (registry, repository) = (image.registry().to_owned(), image.repository().to_owned());
    match (image.tag(), image.digest()) {
        (_, Some(digest)) => Reference::with_digest(registry, repository, digest.to_owned()),
        (tag, None) => {
            Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned())
        }
    }
}

/// Whether the settings name the registry, by `host:port` or `host:*`.
fn speaks_http(settings: &[String], registry: &str) -> bool {
    settings.iter().any(|it| match it.strip_suffix(":*") {
        Some(host) => registry.rsplit_once(':').map_or(registry, |(host, _)| host) == host,
        None => it == registry,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registries_of_the_settings_are_asked_without_tls() {
        let settings = ["127.0.0.1:*".to_owned(), "cluster.local:5000".to_owned()];
        for plain in ["127.0.0.1:5000", "127.0.0.1", "cluster.local:5000"] {
            assert!(speaks_http(&settings, plain), "{plain}");
        }
        for secure in [
            "docker.io",
            "cluster.local:5001",
            "cluster.local",
            "127.0.0.10:5000",
        ] {
            assert!(!speaks_http(&settings, secure), "{secure}");
        }
    }

    #[test]
    fn a_document_that_does_not_name_its_type_is_told_by_its_fields() {
        assert_eq!(media_type(br#"{"manifests":[]}"#), oci::OCI_INDEX);
        assert_eq!(media_type(br#"{"layers":[]}"#), oci::OCI_MANIFEST);
        assert_eq!(media_type(br#"{"mediaType":"x"}"#), "x");
    }
}

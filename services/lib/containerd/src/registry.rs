//! Registries: anonymous pulls over https, or http where the settings say so. Bytes go straight into the content store,
//! and nothing that a registry sends is taken in memory at any size.

use std::{collections::HashMap, time::Duration};

use berth_domain::ImageRef;
use berth_platform::{ImageError, LayerProgress, Progress, Source as Cause};
use futures::StreamExt as _;
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use tokio::sync::{Mutex, mpsc};

use crate::{
    client::Client,
    content,
    oci::{self, Descriptor, Index, Manifest, corrupt, document},
    settings::SetUpError,
    unpack::{index_labels, manifest_labels, platform_missing},
};

const ACCEPTED: [&str; 4] = [
    oci::OCI_INDEX,
    oci::DOCKER_INDEX,
    oci::OCI_MANIFEST,
    oci::DOCKER_MANIFEST,
];
/// Layers that are fetched at the same time, as docker does it.
const PARALLEL: usize = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a registry may be silent.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// As much of an error, or of the answer with a token, is read.
const ANSWER_MAX: u64 = 64 << 10;

#[derive(Debug)]
pub(crate) struct Registries {
    plain_http: Vec<String>,
    http: reqwest::Client,
}

impl Registries {
    pub(crate) fn new(plain_http: Vec<String>) -> Result<Self, SetUpError> {
        // Another part of the process may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        };
        let http = builder().build().or_else(|error| {
            tracing::warn!(%error, "registries over https cannot be trusted on this host");
            builder().tls_certs_only([]).build()
        });
        let http = http.map_err(|source| SetUpError::Registries {
            source: source.into(),
        })?;
        Ok(Self { plain_http, http })
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
        let source = self.source(image, &name)?;
        let (target, bytes) = source.document(image.digest(), reference(image)).await?;
        if !target.is_index() {
            let manifest = oci::manifest(&name, &target, &bytes)?;
            source
                .manifest(client, &target, bytes, &manifest, progress)
                .await?;
            return Ok(target);
        }
        let index: Index = document(&name, &target, &bytes)?;
        let own = index.candidates().into_iter().find(|it| it.is_manifest());
        let own = own.ok_or_else(|| platform_missing(&name))?;
        let (entry, manifest_bytes) = source.document(Some(&own.digest), &own.digest).await?;
        let manifest = oci::manifest(&name, &entry, &manifest_bytes)?;
        source
            .manifest(client, &entry, manifest_bytes, &manifest, progress)
            .await?;
        content::write_bytes(client, &name, &target, index_labels([own]), bytes).await?;
        Ok(target)
    }

    fn source<'a>(&'a self, image: &ImageRef, name: &'a str) -> Result<Source<'a>, ImageError> {
        let scheme = if speaks_http(&self.plain_http, image.registry()) {
            "http"
        } else {
            "https"
        };
        let host = match image.registry() {
            // The name that everybody writes is not that of the registry.
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let base = format!("{scheme}://{host}/v2/{}/", image.repository());
        let base = Url::parse(&base).map_err(|error| unreachable(name, error))?;
        Ok(Source {
            http: &self.http,
            base,
            repository: image.repository().to_owned(),
            name,
            token: Mutex::default(),
        })
    }
}

/// One repository, as long as one pull takes.
struct Source<'a> {
    http: &'a reqwest::Client,
    base: Url,
    repository: String,
    name: &'a str,
    /// What the registry gave us in place of credentials.
    token: Mutex<Option<String>>,
}

impl Source<'_> {
    /// Fetches a manifest or an index, checked against the digest where one is asked for.
    async fn document(
        &self,
        digest: Option<&str>,
        reference: &str,
    ) -> Result<(Descriptor, Vec<u8>), ImageError> {
        let mut response = self.get(&format!("manifests/{reference}")).await?;
        let read = read(&mut response, oci::DOCUMENT_MAX).await;
        let bytes = match read.map_err(|error| unreachable(self.name, error))? {
            Body::Whole(bytes) => bytes,
            Body::TooLarge(_) => {
                let what = format!(
                    "the registry gives more than the {} bytes of a manifest for {reference}",
                    oci::DOCUMENT_MAX
                );
                return Err(corrupt(self.name, what));
            }
        };
        let descriptor = Descriptor {
            media_type: media_type(&bytes),
            digest: digest.map_or_else(|| oci::digest(&bytes), str::to_owned),
            size: bytes.len() as u64,
            ..Descriptor::default()
        };
        oci::verify(self.name, &descriptor, &bytes)?;
        Ok((descriptor, bytes))
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
            return Err(corrupt(self.name, what));
        }
        // Held from here on, whatever becomes of the image that brought it.
        content::hold(client, "content", &blob.digest).await?;
        if content::exists(client, &blob.digest).await? {
            advance(blob.size);
            return Ok(());
        }
        let mut response = self.get(&format!("blobs/{}", blob.digest)).await?;
        let (sender, chunks) = mpsc::channel(2);
        let feeding = async move {
            loop {
                let part = match response.chunk().await {
                    Ok(Some(part)) => Ok(part.to_vec()),
                    Ok(None) => return,
                    Err(error) => Err(unreachable(self.name, error)),
                };
                let over = part.is_err();
                if sender.send(part).await.is_err() || over {
                    return;
                }
            }
        };
        let writing = content::write(client, self.name, blob, HashMap::new(), chunks, advance);
        tokio::join!(feeding, writing).1
    }

    /// Asks, once more with a token where the registry wants one, and returns an answer that is a success.
    async fn get(&self, path: &str) -> Result<Response, ImageError> {
        let url = self.base.join(path);
        let url = url.map_err(|error| unreachable(self.name, error))?;
        let token = self.token.lock().await.clone();
        let mut response = self.send(&url, token.as_deref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(challenge) = Challenge::of(&response)
        {
            let fresh = self.authorize(&challenge).await?;
            response = self.send(&url, Some(&fresh)).await?;
            *self.token.lock().await = Some(fresh);
        }
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        Err(self.refused(response).await)
    }

    async fn send(&self, url: &Url, token: Option<&str>) -> Result<Response, ImageError> {
        let mut request = self
            .http
            .get(url.clone())
            .header(ACCEPT, ACCEPTED.join(", "));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let sent = request.send().await;
        sent.map_err(|error| unreachable(self.name, error))
    }

    /// Gets a token for whoever asks.
    async fn authorize(&self, challenge: &Challenge) -> Result<String, ImageError> {
        /// Registries use either name.
        #[derive(Deserialize)]
        struct Token {
            #[serde(alias = "access_token")]
            token: String,
        }

        let mut url = Url::parse(&challenge.realm).map_err(|it| unreachable(self.name, it))?;
        let scope = match &challenge.scope {
            Some(scope) => scope.clone(),
            None => format!("repository:{}:pull", self.repository),
        };
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = &challenge.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut response = self.send(&url, None).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(response).await);
        }
        let answer = read(&mut response, ANSWER_MAX).await;
        let answer = answer.map_err(|error| unreachable(self.name, error))?;
        let token: Token = serde_json::from_slice(answer.bytes())
            .map_err(|error| unreachable(self.name, format!("no token in the answer: {error}")))?;
        Ok(token.token)
    }

    /// What an answer means that is no success.
    async fn refused(&self, mut response: Response) -> ImageError {
        let status = response.status();
        let text = match read(&mut response, ANSWER_MAX).await {
            Ok(body) => String::from_utf8_lossy(body.bytes()).into_owned(),
            // The status says enough.
            Err(_) => String::new(),
        };
        classify(self.name, response.url(), status, &text)
    }
}

enum Body {
    Whole(Vec<u8>),
    /// As much of it as may be read.
    TooLarge(Vec<u8>),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) | Self::TooLarge(bytes) => bytes,
        }
    }
}

async fn read(response: &mut Response, limit: u64) -> Result<Body, reqwest::Error> {
    let mut bytes = vec![];
    while let Some(part) = response.chunk().await? {
        let room = limit - bytes.len() as u64;
        if part.len() as u64 > room {
            bytes.extend(part.iter().take(usize::try_from(room).unwrap_or_default()));
            return Ok(Body::TooLarge(bytes));
        }
        bytes.extend(part);
    }
    Ok(Body::Whole(bytes))
}

/// Where a token is to be had.
#[derive(Debug, PartialEq)]
struct Challenge {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    fn of(response: &Response) -> Option<Self> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        headers
            .filter_map(|it| it.to_str().ok())
            .find_map(Self::parse)
    }

    fn parse(header: &str) -> Option<Self> {
        let challenges = http_auth::parse_challenges(header).ok()?;
        let bearer = challenges
            .iter()
            .find(|it| it.scheme.eq_ignore_ascii_case("bearer"))?;
        let param = |key: &str| {
            let mut params = bearer.params.iter();
            let found = params.find(|(name, _)| name.eq_ignore_ascii_case(key));
            found.map(|(_, value)| value.to_unescaped())
        };
        Some(Self {
            realm: param("realm")?,
            service: param("service"),
            scope: param("scope"),
        })
    }
}

fn unreachable(name: &str, error: impl Into<Cause>) -> ImageError {
    ImageError::RegistryUnreachable {
        image: name.to_owned(),
        source: error.into(),
    }
}

/// Tells a refusal by its status, and where that says little, by the code in its text.
fn classify(name: &str, url: &Url, status: StatusCode, text: &str) -> ImageError {
    let says = |codes: &[&str]| codes.iter().any(|it| text.contains(it));
    let source = Cause::from(format!("{url} answers {status}: {text}"));
    let image = name.to_owned();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ImageError::RegistryDenied { image, source }
        }
        StatusCode::NOT_FOUND => ImageError::NotFound {
            image,
            source: Some(source),
        },
        _ if status.is_client_error() && says(&["MANIFEST_UNKNOWN", "NAME_UNKNOWN"]) => {
            ImageError::NotFound {
                image,
                source: Some(source),
            }
        }
        _ if status.is_client_error() && says(&["UNAUTHORIZED", "DENIED"]) => {
            ImageError::RegistryDenied { image, source }
        }
        _ => ImageError::RegistryUnreachable { image, source },
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

fn reference(image: &ImageRef) -> &str {
    image.digest().or(image.tag()).unwrap_or("latest")
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
    fn a_challenge_is_read_as_registries_write_it() {
        let header = r#"Basic realm="x", Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull""#;
        let expected = Challenge {
            realm: "https://auth.example/token".into(),
            service: Some("registry.example".into()),
            scope: Some("repository:a/b:pull".into()),
        };
        assert_eq!(Challenge::parse(header), Some(expected));
        for other in ["Basic realm=\"x\"", "Bearer service=\"x\"", "\u{1}", ""] {
            assert_eq!(Challenge::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_refusal_is_told_by_its_status_and_then_by_its_code() {
        let url = Url::parse("https://registry.example/v2/a/manifests/1").unwrap();
        let told = |status: u16, text: &str| {
            let error = classify("a", &url, StatusCode::from_u16(status).unwrap(), text);
            let not_found = matches!(error, ImageError::NotFound { .. });
            let denied = matches!(error, ImageError::RegistryDenied { .. });
            let unreachable = matches!(error, ImageError::RegistryUnreachable { .. });
            match (not_found, denied, unreachable) {
                (true, false, false) => "not found",
                (false, true, false) => "denied",
                (false, false, true) => "unreachable",
                _ => panic!("{error}"),
            }
        };
        for (status, text, expected) in [
            (404, "<html>", "not found"),
            (
                400,
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#,
                "not found",
            ),
            (401, "", "denied"),
            (403, "", "denied"),
            (400, r#"{"errors":[{"code":"DENIED"}]}"#, "denied"),
            (400, "", "unreachable"),
            (429, "", "unreachable"),
            (500, "MANIFEST_UNKNOWN", "unreachable"),
            (204, "", "unreachable"),
        ] {
            assert_eq!(told(status, text), expected, "{status} {text}");
        }
    }

    #[test]
    fn a_document_that_does_not_name_its_type_is_told_by_its_fields() {
        assert_eq!(media_type(br#"{"manifests":[]}"#), oci::OCI_INDEX);
        assert_eq!(media_type(br#"{"layers":[]}"#), oci::OCI_MANIFEST);
        assert_eq!(media_type(br#"{"mediaType":"x"}"#), "x");
    }
}

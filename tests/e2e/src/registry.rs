//! A registry in the test's own process, which serves one image, or breaks it.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

use crate::images::ImageParts;

const REPOSITORY: &str = "team/app";
const TAG: &str = "1";
/// No request of a client comes near this.
const REQUEST_MAX: usize = 64 << 10;

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    serving: AbortHandle,
}

impl Registry {
    /// Serves the image over plain http on loopback.
    pub async fn serve(image: ImageParts) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let image = Arc::new(image);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let image = image.clone();
                tokio::spawn(async move { answer(stream, &image).await });
            }
        });
        Ok(Self {
            address,
            serving: serving.abort_handle(),
        })
    }

    /// The reference of the image.
    pub fn image(&self) -> String {
        format!("{}/{REPOSITORY}:{TAG}", self.address)
    }

    /// The reference of an image that it does not have.
    pub fn missing(&self) -> String {
        format!("{}/{REPOSITORY}:none", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Answers one request; clients make a connection for each.
async fn answer(mut stream: TcpStream, image: &ImageParts) -> anyhow::Result<()> {
    let mut request = vec![];
    while !request.ends_with(b"\r\n\r\n") {
        anyhow::ensure!(request.len() < REQUEST_MAX, "an endless request");
        let mut part = [0; 4096];
        let count = stream.read(&mut part).await?;
        anyhow::ensure!(count > 0, "half a request");
        request.extend_from_slice(&part[..count]);
    }
    let request = String::from_utf8(request)?;
    let mut words = request.split_whitespace();
    let (method, path) = (
        words.next().context("a method")?,
        words.next().context("a path")?,
    );
    let found = find(path, image);
    let (status, kind, body) = match &found {
        Some((kind, body)) => ("200 OK", *kind, body.as_slice()),
        None => (
            "404 Not Found",
            "application/json",
            &br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"it has none"}]}"#[..],
        ),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if method != "HEAD" {
        stream.write_all(body).await?;
    }
    Ok(stream.shutdown().await?)
}

/// Type and content of what a path names.
fn find<'a>(path: &str, image: &'a ImageParts) -> Option<(&'a str, Vec<u8>)> {
    if path == "/v2/" {
        return Some(("application/json", b"{}".to_vec()));
    }
    let rest = path.strip_prefix("/v2/")?.strip_prefix(REPOSITORY)?;
    let manifest = image.manifest["digest"].as_str()?;
    if let Some(reference) = rest.strip_prefix("/manifests/") {
        let kind = image.manifest["mediaType"].as_str()?;
        let asked = reference == TAG || reference == manifest;
        return asked.then(|| Some((kind, image.blobs.get(manifest)?.clone())))?;
    }
    let digest = rest.strip_prefix("/blobs/")?;
    Some(("application/octet-stream", image.blobs.get(digest)?.clone()))
}

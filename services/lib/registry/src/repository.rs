//! One repository of one registry, as long as one pull takes: its documents, and its blobs in order and to their end,
//! whatever breaks on the way.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use berth_domain::ImageRef;
use berth_platform::{Credentials, ImageError};
use reqwest::{
    Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, TRANSFER_ENCODING, WWW_AUTHENTICATE},
};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, mpsc};

use crate::{
    authorize::{Door, Secrets, read, retry_after, said},
    challenge::Challenge,
    hosts::Place,
    http::{Clients, Get},
    retry::{Patience, pause},
    settings::Terms,
    trouble::{Trouble, broken, refusal, shown},
};

/// Manifests and indexes of both kinds.
const DOCUMENTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

#[derive(Debug)]
pub(crate) struct Endpoint {
    place: Place,
    credentials: Option<Credentials>,
    /// What it was last content to be shown.
    shown: Mutex<Option<HeaderValue>>,
}

impl Endpoint {
    pub(crate) fn new(place: Place, credentials: Option<Credentials>) -> Self {
        Self {
            shown: Mutex::new(Door::at_first(credentials.as_ref())),
            place,
            credentials,
        }
    }
}

/// A manifest or an index, which has the digest that it was asked for by.
#[derive(Debug)]
pub struct Document {
    pub digest: String,
    pub bytes: Vec<u8>,
}

/// Which host began a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Giver(usize);

#[derive(Debug)]
pub struct Repository {
    image: String,
    name: String,
    /// Mirrors, and the registry itself as the last one.
    endpoints: Vec<Endpoint>,
    /// The first one that has not failed. A mirror that fails once is not asked again by this pull.
    first: AtomicUsize,
    clients: Arc<Clients>,
    terms: Terms,
}

/// How far a blob is.
#[derive(Debug)]
struct Arrival {
    /// Bytes that were handed on.
    at: u64,
    size: u64,
    /// Whether the registry is asked for the rest of it only.
    ranges: bool,
}

impl Repository {
    pub(crate) fn new(
        image: &ImageRef,
        endpoints: Vec<Endpoint>,
        clients: Arc<Clients>,
        terms: Terms,
    ) -> Self {
        Self {
            image: image.to_string(),
            name: image.repository().to_owned(),
            endpoints,
            first: AtomicUsize::new(0),
            clients,
            terms,
        }
    }

    /// Gets a manifest or an index by tag or digest, of at most `limit` bytes.
    pub async fn document(
        &self,
        reference: &str,
        digest: Option<&str>,
        limit: u64,
    ) -> Result<Document, ImageError> {
        let mut patience = Patience::new(self.terms.no_progress);
        let mut tries = 0;
        loop {
            let at = self.first.load(Ordering::Relaxed);
            let got = self.document_of(at, reference, digest, limit, &mut patience);
            let trouble = match got.await {
                Ok(document) => return Ok(document),
                Err(trouble) => trouble,
            };
            self.after(at, trouble, &mut tries, &mut patience).await?;
        }
    }

    /// Hands a blob on in order, and its failure at the end. Its digest is for the receiver to check. Ends when nobody
    /// receives. Returns whom its first byte came from, and nobody where none came.
    pub async fn blob(
        &self,
        digest: &str,
        size: u64,
        chunks: mpsc::Sender<Result<Vec<u8>, ImageError>>,
    ) -> Option<Giver> {
        let mut giver = None;
        let mut patience = Patience::new(self.terms.no_progress);
        let mut arrival = Arrival {
            at: 0,
            size,
            ranges: true,
        };
        let mut tries = 0;
        loop {
            let (at, begun) = (self.first.load(Ordering::Relaxed), arrival.at);
            let stretch = self.stretch(at, digest, &mut arrival, &chunks, &mut patience);
            let stretched = stretch.await;
            if arrival.at > begun {
                giver.get_or_insert(Giver(at));
            }
            let Err(trouble) = stretched else {
                return giver;
            };
            if arrival.at > begun {
                // Each such round brings a byte, so there are not more of them than bytes.
                tries = 0;
            }
            let failed = tokio::select! {
                failed = self.after(at, trouble, &mut tries, &mut patience) => failed,
                // A pause for nobody.
                () = chunks.closed() => return giver,
            };
            if let Err(error) = failed {
                // Who has gone has a reason of its own.
                let _ = chunks.send(Err(error)).await;
                return giver;
            }
        }
    }

    /// Takes up that a blob was not what its digest says. Returns whether it is worth asking for it anew: it was a mirror that gave
    /// it, which is passed over from now on.
    pub fn distrust(&self, giver: Giver) -> bool {
        let Giver(at) = giver;
        let Some(endpoint) = self.endpoints.get(at).filter(|it| it.place.is_mirror) else {
            return false;
        };
        let mirror = shown(&endpoint.place.base);
        tracing::warn!(
            image = self.image,
            mirror,
            "passing a mirror over that gives wrong content"
        );
        self.first.fetch_max(at + 1, Ordering::Relaxed);
        true
    }

    /// Pauses until the next try; an error where there is none.
    async fn after(
        &self,
        at: usize,
        trouble: Trouble,
        tries: &mut u32,
        patience: &mut Patience,
    ) -> Result<(), ImageError> {
        let host = shown(&self.endpoints[at].place.base);
        if self.endpoints[at].place.is_mirror {
            tracing::info!(image = self.image, mirror = host, why = ?trouble, "passing a mirror over");
            self.first.fetch_max(at + 1, Ordering::Relaxed);
            patience.renew();
            return Ok(());
        }
        *tries += 1;
        let jitter = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        let Some(pause) = pause(&trouble, *tries, &self.terms, jitter) else {
            return Err(trouble.into_error(&self.image, self.terms.no_progress));
        };
        tracing::info!(
            image = self.image,
            registry = host,
            why = ?trouble,
            failed = *tries,
            pause_ms = pause.as_millis(),
            "asking a registry again"
        );
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn document_of(
        &self,
        at: usize,
        reference: &str,
        digest: Option<&str>,
        limit: u64,
        patience: &mut Patience,
    ) -> Result<Document, Trouble> {
        let path = format!("manifests/{reference}");
        let response = self.ask(at, &path, Some(DOCUMENTS), 0, patience).await?;
        let (bytes, whole) = read(response, limit, patience).await?;
        if !whole {
            let what = format!("more than the {limit} bytes of a manifest come for {reference}");
            return Err(Trouble::Corrupt(what));
        }
        let found = digest_of(&bytes);
        match digest {
            Some(digest) if digest != found => {
                let what = format!("{digest} has the content of {found}");
                Err(Trouble::Corrupt(what))
            }
            _ => Ok(Document {
                digest: found,
                bytes,
            }),
        }
    }

    /// Hands on what one answer has of the rest of a blob.
    async fn stretch(
        &self,
        at: usize,
        digest: &str,
        arrival: &mut Arrival,
        chunks: &mpsc::Sender<Result<Vec<u8>, ImageError>>,
        patience: &mut Patience,
    ) -> Result<(), Trouble> {
        let path = format!("blobs/{digest}");
        let skip = if arrival.ranges { arrival.at } else { 0 };
        let asked = self.ask(at, &path, None, skip, patience);
        let mut response = match asked.await {
            Ok(response) => response,
            // One that does not know ranges; it is asked for all of it.
            Err(Trouble::Protocol(what)) if skip > 0 => {
                arrival.ranges = false;
                return Err(Trouble::Unreachable(what.into()));
            }
            Err(trouble) => return Err(trouble),
        };
        let url = response.url().clone();
        let mut position = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE);
                let start = range.and_then(|it| it.to_str().ok()).and_then(range_start);
                if start != Some(skip) {
                    let what = format!("{} gives another range than asked for", shown(&url));
                    return Err(Trouble::Protocol(what));
                }
                skip
            }
            _ => 0,
        };
        let has_end = [CONTENT_LENGTH, TRANSFER_ENCODING]
            .iter()
            .any(|it| response.headers().contains_key(it));
        loop {
            let part = tokio::select! {
                part = patience.wait(response.chunk()) => part?,
                () = chunks.closed() => return Ok(()),
            };
            let Some(part) = part.map_err(|error| broken(&url, error))? else {
                break;
            };
            let end = position + part.len() as u64;
            if end > arrival.size {
                let what = format!("{digest} is longer than its {} bytes", arrival.size);
                return Err(Trouble::Corrupt(what));
            }
            // What was here before is no progress.
            if end > arrival.at {
                patience.renew();
                let known = usize::try_from(arrival.at - position.min(arrival.at)).unwrap_or(0);
                let fresh = part.get(known..).unwrap_or_default().to_vec();
                if chunks.send(Ok(fresh)).await.is_err() {
                    return Ok(());
                }
                arrival.at = end;
            }
            position = end;
        }
        if position == arrival.size {
            return Ok(());
        }
        let what = format!("{digest} ends after {position} of {} bytes", arrival.size);
        if has_end {
            Err(Trouble::Corrupt(what))
        } else {
            // Nothing tells the end of such an answer from a connection that broke.
            Err(Trouble::Unreachable(what.into()))
        }
    }

    /// Asks, once more with what the registry wants to be shown, and returns an answer that is a success.
    async fn ask(
        &self,
        at: usize,
        path: &str,
        accept: Option<&str>,
        skip: u64,
        patience: &mut Patience,
    ) -> Result<Response, Trouble> {
        let endpoint = &self.endpoints[at];
        let joined = endpoint.place.base.join(path);
        let url = joined.map_err(|error| Trouble::Protocol(error.to_string()))?;
        let mut shown = endpoint.shown.lock().await.clone();
        let get = Get {
            url: &url,
            accept,
            authorization: None,
            skip,
        };
        let first = Get {
            authorization: shown.as_ref(),
            ..get
        };
        let mut response = self.clients.get(first, patience).await?;
        // Storage that the registry leads to may refuse too, and is shown nothing.
        if response.status() == StatusCode::UNAUTHORIZED
            && response.url().origin() == url.origin()
            && let Some(challenge) = challenge_of(&response)
        {
            let fresh = self.renew(endpoint, shown, &challenge, patience).await?;
            let second = Get {
                authorization: Some(&fresh),
                ..get
            };
            response = self.clients.get(second, patience).await?;
            shown = Some(fresh);
        }
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::PARTIAL_CONTENT if skip > 0 => Ok(response),
            status => {
                let (from, after) = (response.url().clone(), retry_after(&response));
                // The status says enough, where the rest does not come.
                let secrets = Secrets::of(endpoint.credentials.as_ref(), shown.as_ref());
                let said = said(response, &secrets, patience).await.unwrap_or_default();
                Err(refusal(&from, status, &said, after))
            }
        }
    }

    /// What is to be shown after this was refused. Of many who are refused together one asks.
    async fn renew(
        &self,
        endpoint: &Endpoint,
        refused: Option<HeaderValue>,
        challenge: &Challenge,
        patience: &mut Patience,
    ) -> Result<HeaderValue, Trouble> {
        let mut shown = endpoint.shown.lock().await;
        if *shown != refused
            && let Some(fresh) = &*shown
        {
            return Ok(fresh.clone());
        }
        let door = Door {
            clients: &self.clients,
            base: &endpoint.place.base,
            repository: &self.name,
            credentials: endpoint.credentials.as_ref(),
        };
        let fresh = door.answer(challenge, patience).await?;
        *shown = Some(fresh.clone());
        Ok(fresh)
    }
}

fn challenge_of(response: &Response) -> Option<Challenge> {
    let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
    Challenge::of(headers.filter_map(|it| it.to_str().ok()))
}

/// The first byte of `bytes 5-9/10`.
fn range_start(header: &str) -> Option<u64> {
    let (start, _) = header.strip_prefix("bytes ")?.split_once('-')?;
    start.trim().parse().ok()
}

fn digest_of(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold("sha256:".to_owned(), |text, byte| {
        format!("{text}{byte:02x}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_by_its_start() {
        for (header, start) in [
            ("bytes 5-9/10", Some(5)),
            ("bytes 0-0/*", Some(0)),
            ("bytes */10", None),
            ("5-9/10", None),
            ("", None),
        ] {
            assert_eq!(range_start(header), start, "{header}");
        }
    }
}

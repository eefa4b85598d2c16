//! `ImageService`.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use berth_api::{
    collection::holder_to_proto,
    time_to_live,
    v1::{self, image_service_server::ImageService, import_image_request::Part},
};
use berth_domain::{Failure, ImageRef, Reason, holders::Arriving};
use berth_platform::{ArchiveLimits, ImageInfo, Images, Network, Runtime};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    pulls::{self, Answers, Exports},
    refuse,
};
use crate::{
    failures::{image_failure, store_failure},
    image_users::Users,
    registry::Registry,
    spool::Spool,
};

/// The largest message of an archive.
pub(super) const CHUNK_MAX: usize = 1 << 20;

pub(crate) struct ImageRpc<R, N> {
    pub(crate) registry: Registry<R, N>,
    pub(crate) imports: Imports,
    pub(crate) exports: Exports,
}

/// How archives are taken in.
#[derive(Clone, Debug)]
pub(crate) struct Imports {
    /// Where they are kept while they arrive. Emptied at start.
    pub(crate) spool_dir: PathBuf,
    pub(crate) limits: ArchiveLimits,
    /// How long a caller may send nothing.
    pub(crate) idle_timeout: Duration,
}

#[tonic::async_trait]
impl<R: Runtime + Images, N: Network> ImageService for ImageRpc<R, N> {
    async fn list_images(
        &self,
        _request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let users = self.registry.image_users().await.map_err(refuse)?;
        let holders = self.registry.image_holders().await.map_err(refuse)?;
        let uses = self.registry.store().last_uses().await;
        let uses = uses.map_err(|it| refuse(store_failure(it)))?;
        let list = self.registry.node().runtime.list_images().await;
        let list = list.map_err(|it| refuse(image_failure(it)))?;
        let mut images: Vec<v1::Image> = list
            .into_iter()
            .map(|it| {
                let of_digest = holders.get(&it.digest).into_iter().flatten();
                let of_digest = of_digest.cloned().map(holder_to_proto).collect();
                v1::Image {
                    holders: of_digest,
                    last_used_at: uses.get(&it.digest).copied().map(Into::into),
                    ..render(it, &users)
                }
            })
            .collect();
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn import_image(
        &self,
        request: Request<Streaming<v1::ImportImageRequest>>,
    ) -> Result<Response<v1::ImportImageResponse>, Status> {
        let mut parts = request.into_inner();
        let idle_timeout = self.imports.idle_timeout;
        let header = match next(&mut parts, idle_timeout).await? {
            Some(Part::Header(header)) => header,
            Some(Part::Chunk(_)) | None => {
                return Err(refuse(Failure::invalid(
                    "header",
                    "must be the first message",
                )));
            }
        };
        let name = match header.name.as_str() {
            "" => None,
            text => Some(parse_image("header.name", text)?),
        };
        let spool = receive(&mut parts, &self.imports).await?;
        let runtime = &self.registry.node().runtime;
        let arrival = self.registry.begin_arrival(Arriving::Import).await;
        let images = runtime.import(spool.path(), name.as_ref(), false).await;
        let images = images.map_err(|it| refuse(image_failure(it)))?;
        arrival.has_brought(&images);
        drop(arrival);
        let users = self.registry.image_users().await.map_err(refuse)?;
        let images = images.into_iter().map(|it| render(it, &users)).collect();
        Ok(Response::new(v1::ImportImageResponse { images }))
    }

    type PullImageStream = Answers<v1::PullImageResponse>;

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        let request = request.into_inner();
        let image = parse_image("image", &request.image)?;
        let credentials = pulls::credentials(request.credentials).map_err(refuse)?;
        Ok(pulls::pull(&self.registry, image, credentials))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let image = parse_image("image", &request.into_inner().image)?;
        self.registry.remove_image(&image).await.map_err(refuse)?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn pin_image(
        &self,
        request: Request<v1::PinImageRequest>,
    ) -> Result<Response<v1::PinImageResponse>, Status> {
        let request = request.into_inner();
        let image = parse_image("image", &request.image)?;
        let time_to_live = time_to_live(request.time_to_live).map_err(refuse)?;
        let expires_at = self.registry.pin_image(&image, time_to_live).await;
        Ok(Response::new(v1::PinImageResponse {
            image: image.to_string(),
            expires_at: expires_at.map_err(refuse)?.map(Into::into),
        }))
    }

    async fn unpin_image(
        &self,
        request: Request<v1::UnpinImageRequest>,
    ) -> Result<Response<v1::UnpinImageResponse>, Status> {
        let image = parse_image("image", &request.into_inner().image)?;
        let (store, now) = (self.registry.store(), SystemTime::now());
        let existed = store.unpin_image(image.to_string(), now).await;
        let existed = existed.map_err(|it| refuse(store_failure(it)))?;
        Ok(Response::new(v1::UnpinImageResponse { existed }))
    }

    type ExportImageStream = Answers<v1::ExportImageResponse>;

    async fn export_image(
        &self,
        request: Request<v1::ExportImageRequest>,
    ) -> Result<Response<Self::ExportImageStream>, Status> {
        let image = parse_image("image", &request.into_inner().image)?;
        self.exports.start(&self.registry, image).map_err(refuse)
    }
}

fn parse_image(field: &str, text: &str) -> Result<ImageRef, Status> {
    ImageRef::parse(text).map_err(|error| refuse(Failure::invalid(field, error)))
}

pub(super) fn render(image: ImageInfo, users: &Users) -> v1::Image {
    let sandboxes = users.of(&image.name).map(ToString::to_string).collect();
    v1::Image {
        name: image.name,
        digest: image.digest,
        size_bytes: image.size_bytes,
        created_at: Some(image.created_at.into()),
        updated_at: Some(image.updated_at.into()),
        pinned: image.pinned,
        sandboxes,
        holders: vec![],
        last_used_at: None,
    }
}

/// Keeps the archive that comes after the header.
async fn receive<S>(parts: &mut S, imports: &Imports) -> Result<Spool, Status>
where
    S: Stream<Item = Result<v1::ImportImageRequest, Status>> + Unpin,
{
    let spool = Spool::create(&imports.spool_dir, imports.limits).await;
    let mut spool = spool.map_err(refuse)?;
    while let Some(part) = next(parts, imports.idle_timeout).await? {
        let problem = match part {
            Part::Chunk(bytes) if (1..=CHUNK_MAX).contains(&bytes.len()) => {
                spool.write(bytes).await.map_err(refuse)?;
                continue;
            }
            Part::Chunk(bytes) => chunk_length(bytes.len()),
            Part::Header(_) => "must have the next bytes of the archive".to_owned(),
        };
        return Err(refuse(Failure::invalid("chunk", problem)));
    }
    Ok(spool)
}

fn chunk_length(length: usize) -> String {
    format!("has {length} bytes, must have 1 to {CHUNK_MAX}")
}

/// The next part of an import; `None` after the last one.
async fn next<S>(parts: &mut S, idle_timeout: Duration) -> Result<Option<Part>, Status>
where
    S: Stream<Item = Result<v1::ImportImageRequest, Status>> + Unpin,
{
    let message = match tokio::time::timeout(idle_timeout, parts.next()).await {
        Ok(None) => return Ok(None),
        Ok(Some(Ok(message))) => message,
        // Larger than any message may be.
        Ok(Some(Err(status))) if status.code() == Code::OutOfRange => {
            let problem = format!("is too large, must have 1 to {CHUNK_MAX} bytes");
            return Err(refuse(Failure::invalid("chunk", problem)));
        }
        Ok(Some(Err(status))) => return Err(status),
        Err(_) => {
            let failure = Failure::new(
                Reason::ImportStalled,
                format!("nothing came of the archive for {idle_timeout:?}"),
            );
            return Err(refuse(failure.with("timeout_ms", idle_timeout.as_millis())));
        }
    };
    match message.part {
        Some(part) => Ok(Some(part)),
        None => Err(refuse(Failure::invalid("part", "must be set"))),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    type Message = Result<v1::ImportImageRequest, Status>;

    fn chunk(bytes: Vec<u8>) -> Message {
        Ok(v1::ImportImageRequest {
            part: Some(Part::Chunk(bytes)),
        })
    }

    fn imports(dir: &tempfile::TempDir) -> Imports {
        Imports {
            spool_dir: dir.path().to_owned(),
            limits: ArchiveLimits {
                max_bytes: 4 << 20,
                reserve_bytes: 0,
            },
            idle_timeout: Duration::from_millis(100),
        }
    }

    fn files(dir: &tempfile::TempDir) -> usize {
        std::fs::read_dir(dir.path()).unwrap().count()
    }

    /// What becomes of these messages; afterwards nothing is left of them.
    async fn refused(messages: impl Stream<Item = Message> + Unpin) -> Status {
        let dir = tempfile::tempdir().unwrap();
        let mut messages = messages;
        let status = receive(&mut messages, &imports(&dir)).await.unwrap_err();
        assert_eq!(files(&dir), 0, "{status}");
        status
    }

    fn reason(status: &Status) -> String {
        status
            .get_error_details()
            .error_info()
            .unwrap()
            .reason
            .clone()
    }

    #[tokio::test]
    async fn chunks_are_kept_in_order_until_the_import_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let whole = vec![b'a'; CHUNK_MAX];
        let mut messages = tokio_stream::iter([chunk(whole.clone()), chunk(b"b".to_vec())]);
        let spool = receive(&mut messages, &imports(&dir)).await.unwrap();
        let kept = std::fs::read(spool.path()).unwrap();
        assert!(kept == [&whole[..], b"b"].concat());
        drop(spool);
        assert_eq!(files(&dir), 0);
    }

    #[tokio::test]
    async fn messages_that_are_no_next_bytes_are_refused_by_field() {
        let header = Ok(v1::ImportImageRequest {
            part: Some(Part::Header(v1::ImportImageHeader::default())),
        });
        let beyond = Err(Status::out_of_range("decoded message length too large"));
        for (message, field) in [
            (chunk(vec![0; CHUNK_MAX + 1]), "chunk"),
            (chunk(vec![]), "chunk"),
            (header, "chunk"),
            (beyond, "chunk"),
            (Ok(v1::ImportImageRequest { part: None }), "part"),
        ] {
            let status = refused(tokio_stream::iter([chunk(b"a".to_vec()), message])).await;
            let details = status.get_error_details();
            let violations = &details.bad_request().unwrap().field_violations;
            assert_eq!(violations[0].field, field, "{status}");
        }
    }

    #[tokio::test]
    async fn a_caller_that_falls_silent_or_sends_too_much_leaves_nothing() {
        let begun = tokio_stream::iter([chunk(b"a".to_vec())]);
        let silent = begun.chain(tokio_stream::pending());
        assert_eq!(reason(&refused(silent).await), "IMPORT_STALLED");
        let endless = tokio_stream::iter(std::iter::repeat_with(|| chunk(vec![0; CHUNK_MAX])));
        assert_eq!(reason(&refused(endless).await), "ARCHIVE_TOO_LARGE");
        let gone = tokio_stream::iter([chunk(b"a".to_vec()), Err(Status::aborted("gone"))]);
        assert_eq!(refused(gone).await.code(), Code::Aborted);
    }
}

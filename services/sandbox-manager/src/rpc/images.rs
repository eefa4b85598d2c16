//! `ImageService`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use berth_api::v1::{
    self, image_service_server::ImageService, import_image_request::Part,
    pull_image_response::Event,
};
use berth_domain::{Failure, ImageRef, Reason, SandboxId, Status as SandboxStatus};
use berth_platform::{ImageInfo, Images, LayerProgress, Network, Runtime};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{mpsc, watch},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::refuse;
use crate::{
    failures::{image_failure, internal, store_failure},
    registry::Registry,
};

/// Progress that nobody can read faster is not sent.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

pub(crate) struct ImageRpc<R, N> {
    pub(crate) registry: Registry<R, N>,
    /// Where archives are kept while they arrive. Emptied at start.
    pub(crate) spool_dir: PathBuf,
}

impl<R: Runtime + Images, N: Network> ImageRpc<R, N> {
    /// Who uses which image, by the name that the spec asks for.
    async fn users(&self) -> Result<BTreeMap<String, Vec<SandboxId>>, Status> {
        let records = self
            .registry
            .store()
            .all()
            .await
            .map_err(|it| refuse(store_failure(it)))?;
        let mut users: BTreeMap<String, Vec<SandboxId>> = BTreeMap::new();
        for record in records.iter().filter(|it| it.status != SandboxStatus::Dead) {
            for image in record.spec.images() {
                users
                    .entry(image.to_string())
                    .or_default()
                    .push(record.id.clone());
            }
        }
        Ok(users)
    }
}

#[tonic::async_trait]
impl<R: Runtime + Images, N: Network> ImageService for ImageRpc<R, N> {
    async fn list_images(
        &self,
        _request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let users = self.users().await?;
        let list = self.registry.node().runtime.list_images().await;
        let mut images: Vec<v1::Image> = list
            .map_err(|it| refuse(image_failure(it)))?
            .into_iter()
            .map(|it| render(it, &users))
            .collect();
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn import_image(
        &self,
        request: Request<Streaming<v1::ImportImageRequest>>,
    ) -> Result<Response<v1::ImportImageResponse>, Status> {
        let mut parts = request.into_inner();
        let header = match parts.message().await?.and_then(|it| it.part) {
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
        let spool = Spool::create(&self.spool_dir)
            .await
            .map_err(|it| spool_status(&it))?;
        let mut file = tokio::fs::File::create(&spool.path)
            .await
            .map_err(|it| spool_status(&it))?;
        while let Some(message) = parts.message().await? {
            match message.part {
                Some(Part::Chunk(bytes)) => {
                    file.write_all(&bytes)
                        .await
                        .map_err(|it| spool_status(&it))?;
                }
                Some(Part::Header(_)) | None => {
                    let problem = "must have the next bytes of the archive";
                    return Err(refuse(Failure::invalid("chunk", problem)));
                }
            }
        }
        file.flush().await.map_err(|it| spool_status(&it))?;
        drop(file);
        let runtime = &self.registry.node().runtime;
        let images = runtime.import(&spool.path, name.as_ref(), false).await;
        let images = images.map_err(|it| refuse(image_failure(it)))?;
        let users = self.users().await?;
        let images = images.into_iter().map(|it| render(it, &users)).collect();
        Ok(Response::new(v1::ImportImageResponse { images }))
    }

    type PullImageStream =
        Pin<Box<dyn Stream<Item = Result<v1::PullImageResponse, Status>> + Send>>;

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        let image = parse_image("image", &request.into_inner().image)?;
        let users = self.users().await?;
        let runtime = self.registry.node().runtime.clone();
        let (sender, receiver) = mpsc::channel(4);
        self.registry.spawn(async move {
            let (progress, layers) = watch::channel(vec![]);
            let pulled = tokio::select! {
                pulled = runtime.pull(&image, &progress) => pulled,
                // The caller has gone; a pull that nobody waits for ends.
                () = report(layers, &sender) => return,
            };
            let answer = match pulled {
                Ok(info) => Ok(v1::PullImageResponse {
                    event: Some(Event::Image(render(info, &users))),
                }),
                Err(error) => Err(refuse(image_failure(error))),
            };
            let _ = sender.send(answer).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let image = parse_image("image", &request.into_inner().image)?;
        let users = self.users().await?;
        if let Some(holder) = users.get(&image.to_string()).and_then(|it| it.first()) {
            return Err(refuse(in_use(&image, &format!("sandbox {holder}"))));
        }
        let runtime = &self.registry.node().runtime;
        let list = runtime
            .list_images()
            .await
            .map_err(|it| refuse(image_failure(it)))?;
        if list
            .iter()
            .any(|it| it.pinned && it.name == image.to_string())
        {
            return Err(refuse(in_use(&image, "the manager itself")));
        }
        runtime
            .remove_image(&image)
            .await
            .map_err(|it| refuse(image_failure(it)))?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }
}

/// Sends progress until the reader has gone.
async fn report(
    mut layers: watch::Receiver<Vec<LayerProgress>>,
    sender: &mpsc::Sender<Result<v1::PullImageResponse, Status>>,
) {
    loop {
        tokio::select! {
            () = sender.closed() => return,
            changed = layers.changed() => if changed.is_err() {
                return sender.closed().await;
            },
        }
        let layers = layers.borrow_and_update().iter().map(of_layer).collect();
        let event = Event::Progress(v1::PullProgress { layers });
        // A full channel means a slow reader, who gets the next figures instead.
        let _ = sender.try_send(Ok(v1::PullImageResponse { event: Some(event) }));
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(PROGRESS_EVERY) => {}
        }
    }
}

fn of_layer(it: &LayerProgress) -> v1::LayerProgress {
    v1::LayerProgress {
        digest: it.digest.clone(),
        current_bytes: it.current_bytes,
        total_bytes: it.total_bytes,
    }
}

fn parse_image(field: &str, text: &str) -> Result<ImageRef, Status> {
    ImageRef::parse(text).map_err(|error| refuse(Failure::invalid(field, error)))
}

fn in_use(image: &ImageRef, holder: &str) -> Failure {
    Failure::new(
        Reason::ImageInUse,
        format!("image {image} is used by {holder}"),
    )
    .with("image", image)
    .with("holder", holder)
}

fn render(image: ImageInfo, users: &BTreeMap<String, Vec<SandboxId>>) -> v1::Image {
    let sandboxes = users
        .get(&image.name)
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect();
    v1::Image {
        name: image.name,
        digest: image.digest,
        size_bytes: image.size_bytes,
        created_at: Some(image.created_at.into()),
        updated_at: Some(image.updated_at.into()),
        pinned: image.pinned,
        sandboxes,
    }
}

fn spool_status(error: &std::io::Error) -> Status {
    tracing::warn!(%error, "an archive could not be kept while it arrived");
    let failure = if error.kind() == std::io::ErrorKind::StorageFull {
        Failure::new(Reason::StoreFull, "the disk of the state directory is full")
    } else {
        internal("the archive could not be kept while it arrived")
    };
    refuse(failure)
}

/// A file that goes when the import is over, however it ends.
struct Spool {
    path: PathBuf,
}

impl Spool {
    async fn create(dir: &Path) -> std::io::Result<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        tokio::fs::create_dir_all(dir).await?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            path: dir.join(format!("import-{}-{number}", std::process::id())),
        })
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

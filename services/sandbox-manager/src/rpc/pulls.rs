//! What of images comes and goes as a stream: pulls with how far they are, and archives on their way out.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_api::v1::{self, pull_image_response::Event};
use berth_domain::{Failure, ImageRef, Reason, holders::Arriving};
use berth_platform::{Credentials, Images, LayerProgress, Network, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Response, Status};

use super::{
    images::{CHUNK_MAX, render},
    refuse,
};
use crate::{execute::measure_pull, failures::image_failure, registry::Registry};

/// Progress that nobody can read faster is not sent.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Each holds a lease and a few MiB.
const EXPORTS_MAX: usize = 8;

const USERNAME_MAX: usize = 256;
const PASSWORD_MAX: usize = 8 << 10;
const TOKEN_MAX: usize = 16 << 10;

pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Pulls an image for one who waits for it.
pub(super) fn pull<R: Runtime + Images, N: Network>(
    registry: &Registry<R, N>,
    image: ImageRef,
    credentials: Option<Credentials>,
) -> Response<Answers<v1::PullImageResponse>> {
    let of_nodes = registry.clone();
    let (sender, receiver) = mpsc::channel(4);
    registry.spawn(async move {
        let runtime = &of_nodes.node().runtime;
        let arriving = Arriving::Pull(image.clone());
        let arrival = of_nodes.begin_arrival(arriving).await;
        let (progress, layers) = watch::channel(vec![]);
        let last = layers.clone();
        let began = Instant::now();
        let pulled = tokio::select! {
            pulled = runtime.pull(&image, credentials.as_ref(), &progress) => pulled,
            // The caller has gone; a pull that nobody waits for ends.
            () = report(layers, &sender) => return,
        };
        let pulled = pulled.map_err(image_failure);
        measure_pull(began, &pulled);
        let answer = match pulled {
            Ok(info) => {
                arrival.has_brought(std::slice::from_ref(&info));
                // However fast it was, it is told how much has come.
                let whole = progress_of(&last.borrow());
                let _ = sender.send(Ok(whole)).await;
                match of_nodes.image_users().await {
                    Ok(users) => Ok(v1::PullImageResponse {
                        event: Some(Event::Image(render(info, &users))),
                    }),
                    Err(failure) => Err(refuse(failure)),
                }
            }
            Err(failure) => Err(refuse(failure)),
        };
        let _ = sender.send(answer).await;
    });
    Response::new(Box::pin(ReceiverStream::new(receiver)))
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
        let progress = progress_of(&layers.borrow_and_update());
        // A full channel means a slow reader, who gets the next figures instead.
        let _ = sender.try_send(Ok(progress));
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(PROGRESS_EVERY) => {}
        }
    }
}

fn progress_of(layers: &[LayerProgress]) -> v1::PullImageResponse {
    let layers = layers.iter().map(of_layer).collect();
    v1::PullImageResponse {
        event: Some(Event::Progress(v1::PullProgress { layers })),
    }
}

fn of_layer(it: &LayerProgress) -> v1::LayerProgress {
    v1::LayerProgress {
        digest: it.digest.clone(),
        current_bytes: it.current_bytes,
        total_bytes: it.total_bytes,
    }
}

/// Reads credentials; no answer has a part of them.
pub(super) fn credentials(
    given: Option<v1::RegistryCredentials>,
) -> Result<Option<Credentials>, Failure> {
    let Some(given) = given else {
        return Ok(None);
    };
    let invalid = |field: &str, problem: &str| {
        let field = format!("credentials{field}");
        Err(Failure::invalid(field, problem))
    };
    let is_basic = !given.username.is_empty() || !given.password.is_empty();
    match (is_basic, given.token.is_empty()) {
        (true, false) => invalid("", "must be a user and a password, or a token"),
        (false, true) => invalid("", "must have a user and a password, or a token"),
        (false, false) if given.token.len() > TOKEN_MAX => {
            invalid(".token", "is longer than 16384 bytes")
        }
        (false, false) if !given.token.bytes().all(|it| it.is_ascii_graphic()) => {
            invalid(".token", "must be printable ASCII characters")
        }
        (false, false) => Ok(Some(Credentials::Token(given.token))),
        (true, true) if given.username.is_empty() => invalid(".username", "must not be empty"),
        (true, true) if given.username.len() > USERNAME_MAX => {
            invalid(".username", "is longer than 256 bytes")
        }
        (true, true) if given.username.contains(':') => invalid(".username", "must have no `:`"),
        (true, true) if given.password.len() > PASSWORD_MAX => {
            invalid(".password", "is longer than 8192 bytes")
        }
        (true, true) => Ok(Some(Credentials::Basic {
            username: given.username,
            password: given.password,
        })),
    }
}

/// Archives on their way out.
#[derive(Clone, Debug)]
pub(crate) struct Exports {
    places: Arc<Semaphore>,
    /// How long a caller may take nothing.
    idle_timeout: Duration,
}

impl Exports {
    pub(crate) fn new(idle_timeout: Duration) -> Self {
        Self {
            places: Arc::new(Semaphore::new(EXPORTS_MAX)),
            idle_timeout,
        }
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.places.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{EXPORTS_MAX} images are being exported");
            let failure = Failure::new(Reason::StreamsExhausted, message);
            failure.with("limit", EXPORTS_MAX).with("what", "exports")
        })
    }

    /// Sends an image to one who reads it.
    pub(super) fn start<R: Runtime + Images, N: Network>(
        &self,
        registry: &Registry<R, N>,
        image: ImageRef,
    ) -> Result<Response<Answers<v1::ExportImageResponse>>, Failure> {
        let place = self.place()?;
        let (runtime, idle_timeout) = (registry.node().runtime.clone(), self.idle_timeout);
        let (sender, receiver) = mpsc::channel(2);
        registry.spawn(async move {
            let _place = place;
            let (archive, parts) = mpsc::channel(2);
            let sending = forward(parts, &sender, idle_timeout);
            let (exported, ()) = tokio::join!(runtime.export(&image, archive), sending);
            if let Err(error) = exported {
                let failure = refuse(image_failure(error));
                let _ = tokio::time::timeout(idle_timeout, sender.send(Err(failure))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Hands an archive on, until the reader has gone or takes nothing any more: the export ends with its receiver.
async fn forward(
    mut parts: mpsc::Receiver<Vec<u8>>,
    sender: &mpsc::Sender<Result<v1::ExportImageResponse, Status>>,
    idle_timeout: Duration,
) {
    while let Some(part) = parts.recv().await {
        for chunk in part.chunks(CHUNK_MAX) {
            let chunk = chunk.to_vec();
            let sending = sender.send(Ok(v1::ExportImageResponse { chunk }));
            match tokio::time::timeout(idle_timeout, sending).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(username: &str, password: &str, token: &str) -> Option<v1::RegistryCredentials> {
        Some(v1::RegistryCredentials {
            username: username.into(),
            password: password.into(),
            token: token.into(),
        })
    }

    #[test]
    fn so_many_images_are_exported_at_a_time() {
        let exports = Exports::new(Duration::from_secs(1));
        let mut taken: Vec<_> = (0..EXPORTS_MAX).map(|_| exports.place().unwrap()).collect();
        let full = exports.place().unwrap_err();
        assert_eq!(full.reason, Reason::StreamsExhausted);
        assert_eq!(full.metadata["limit"], EXPORTS_MAX.to_string());
        drop(taken.pop());
        assert!(exports.place().is_ok());
    }

    #[test]
    fn credentials_are_a_user_with_a_password_or_a_token() {
        assert_eq!(credentials(None).unwrap(), None);
        let basic = credentials(given("me", "a:b c", "")).unwrap().unwrap();
        assert!(matches!(&basic, Credentials::Basic { username, password }
            if username == "me" && password == "a:b c"));
        let token = credentials(given("", "", "abc")).unwrap().unwrap();
        assert_eq!(token, Credentials::Token("abc".into()));
        let of = |length: usize| "s".repeat(length);
        credentials(given(&of(USERNAME_MAX), &of(PASSWORD_MAX), "")).unwrap();
        credentials(given("", "", &of(TOKEN_MAX))).unwrap();
        for (it, field) in [
            (
                given(&of(USERNAME_MAX + 1), "a", ""),
                "credentials.username",
            ),
            (
                given("a", &of(PASSWORD_MAX + 1), ""),
                "credentials.password",
            ),
            (given("", "", &of(TOKEN_MAX + 1)), "credentials.token"),
        ] {
            let failure = credentials(it).unwrap_err();
            assert_eq!(failure.violations[0].field, field);
        }
        let long = "sesame".repeat(4000);
        for (it, field) in [
            (given("", "", ""), "credentials"),
            (given("me", "sesame", "sesame"), "credentials"),
            (given("", "sesame", ""), "credentials.username"),
            (given("sesame:me", "sesame", ""), "credentials.username"),
            (given(&long, "sesame", ""), "credentials.username"),
            (given("me", &long, ""), "credentials.password"),
            (given("", "", &long), "credentials.token"),
            (given("", "", "sesame sesame"), "credentials.token"),
            (given("", "", "sesame\n"), "credentials.token"),
        ] {
            let failure = credentials(it).unwrap_err();
            assert_eq!(failure.violations[0].field, field);
            let said = format!("{failure:?}");
            assert!(!said.contains("sesame"), "{said}");
        }
    }

    #[tokio::test]
    async fn an_archive_is_handed_on_in_chunks_to_one_who_takes_them() {
        let (archive, parts) = mpsc::channel(2);
        let (sender, mut receiver) = mpsc::channel(8);
        let idle = Duration::from_millis(50);
        archive.send(vec![1; CHUNK_MAX + 1]).await.unwrap();
        archive.send(vec![2]).await.unwrap();
        drop(archive);
        forward(parts, &sender, idle).await;
        let mut lengths = vec![];
        while let Ok(part) = receiver.try_recv() {
            lengths.push(part.unwrap().chunk.len());
        }
        assert_eq!(lengths, [CHUNK_MAX, 1, 1]);

        // Nobody takes it: whoever makes the archive is not held up for ever.
        let (archive, parts) = mpsc::channel(1);
        let (sender, _receiver) = mpsc::channel(1);
        let making = async { while archive.send(vec![3]).await.is_ok() {} };
        let (_, ()) = tokio::join!(forward(parts, &sender, idle), making);
    }
}

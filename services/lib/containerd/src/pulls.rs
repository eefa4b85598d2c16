//! One pull per image, however many ask for it. Each who waits sees how far it is and shares its failure; with the last of
//! them it ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use berth_platform::{Credentials, ImageError, ImageInfo, LayerProgress, Progress};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

type Outcome = Option<Result<ImageInfo, Arc<ImageError>>>;

/// The pulls that go on. Those of one image by different credentials are different: one's password is not another's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pulls(Arc<Mutex<Vec<Weak<Pull>>>>);

#[derive(Debug)]
struct Pull {
    image: String,
    credentials: Option<Credentials>,
    question: Question,
    layers: watch::Receiver<Vec<LayerProgress>>,
    outcome: watch::Receiver<Outcome>,
    /// Ends with the last who waits.
    _task: AbortOnDropHandle<()>,
}

/// Whether a pull asks the registry, or is content with an image that is here.
#[derive(Clone, Debug)]
pub(crate) struct Question(Arc<Mutex<Asks>>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Asks {
    /// Only where the image is not here.
    IfMissing,
    /// In any case.
    Always,
    /// It did not, for the image is here.
    Never,
}

impl Question {
    fn new(always: bool) -> Self {
        let asks = if always {
            Asks::Always
        } else {
            Asks::IfMissing
        };
        Self(Arc::new(Mutex::new(asks)))
    }

    /// Whether it is known beforehand that the registry is asked.
    pub(crate) fn always(&self) -> bool {
        *self.asks() == Asks::Always
    }

    /// Decides, once, whether the registry is asked.
    pub(crate) fn settle(&self, here: bool) -> bool {
        let mut asks = self.asks();
        if *asks == Asks::IfMissing {
            *asks = if here { Asks::Never } else { Asks::Always };
        }
        *asks == Asks::Always
    }

    /// Whether one can join who wants the registry to be asked.
    fn require(&self) -> bool {
        let mut asks = self.asks();
        if *asks == Asks::IfMissing {
            *asks = Asks::Always;
        }
        *asks == Asks::Always
    }

    fn asks(&self) -> MutexGuard<'_, Asks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulls {
    /// Waits for the pull of an image that goes on, or for the one that `start` makes. With `always` the registry is asked.
    pub(crate) async fn join<F>(
        &self,
        image: &str,
        credentials: Option<&Credentials>,
        always: bool,
        progress: &Progress,
        start: impl FnOnce(Question, Progress) -> F,
    ) -> Result<ImageInfo, ImageError>
    where
        F: Future<Output = Result<ImageInfo, ImageError>> + Send + 'static,
    {
        let pull = self.find_or_start(image, credentials, always, start);
        let (mut layers, mut outcome) = (pull.layers.clone(), pull.outcome.clone());
        layers.mark_changed();
        let done = loop {
            tokio::select! {
                biased;
                Ok(()) = layers.changed() => {
                    let layers = layers.borrow_and_update().clone();
                    progress.send_replace(layers);
                }
                done = outcome.wait_for(Option::is_some) => break done.ok().and_then(|it| it.clone()),
            }
        };
        match done {
            Some(Ok(info)) => Ok(info),
            Some(Err(error)) => Err(error.again()),
            // It panicked, or the runtime goes away.
            None => Err(ImageError::Node {
                operation: "pulling an image",
                source: "it broke off".into(),
            }),
        }
    }

    fn find_or_start<F>(
        &self,
        image: &str,
        credentials: Option<&Credentials>,
        always: bool,
        start: impl FnOnce(Question, Progress) -> F,
    ) -> Arc<Pull>
    where
        F: Future<Output = Result<ImageInfo, ImageError>> + Send + 'static,
    {
        let mut pulls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.retain(|it| it.strong_count() > 0);
        let joined = pulls.iter().filter_map(Weak::upgrade).find(|it| {
            it.image == image
                && it.credentials.as_ref() == credentials
                && it.outcome.has_changed().is_ok()
                && it.outcome.borrow().is_none()
                && (!always || it.question.require())
        });
        if let Some(pull) = joined {
            return pull;
        }
        let question = Question::new(always);
        let (progress, layers) = watch::channel(vec![]);
        let (done, outcome) = watch::channel(None);
        let pulling = start(question.clone(), progress);
        let task = tokio::spawn(async move {
            let result = pulling.await.map_err(Arc::new);
            done.send_replace(Some(result));
        });
        let pull = Arc::new(Pull {
            image: image.to_owned(),
            credentials: credentials.cloned(),
            question,
            layers,
            outcome,
            _task: AbortOnDropHandle::new(task),
        });
        pulls.push(Arc::downgrade(&pull));
        pull
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::{Duration, SystemTime},
    };

    use tokio::sync::Notify;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn info() -> ImageInfo {
        ImageInfo {
            name: "app".into(),
            digest: "sha256:a".into(),
            size_bytes: 1,
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
            pinned: false,
        }
    }

    /// Pulls that end when they are told to.
    #[derive(Clone, Default)]
    struct Registry {
        pulls: Pulls,
        begun: Arc<AtomicUsize>,
        dropped: Arc<Notify>,
        release: Arc<Notify>,
    }

    struct Told(Arc<Notify>);

    impl Drop for Told {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    impl Registry {
        async fn join(
            &self,
            credentials: Option<&Credentials>,
            always: bool,
            progress: &Progress,
            fails: bool,
        ) -> Result<ImageInfo, ImageError> {
            let (begun, release) = (self.begun.clone(), self.release.clone());
            let dropped = self.dropped.clone();
            let start = |question: Question, progress: Progress| async move {
                // Made by the pull itself: who joins makes none.
                let _told = Told(dropped);
                begun.fetch_add(1, Ordering::Relaxed);
                question.settle(false);
                progress.send_replace(vec![LayerProgress::default()]);
                release.notified().await;
                if fails {
                    return Err(ImageError::RegistryDenied {
                        image: "app".into(),
                        source: "because".into(),
                    });
                }
                Ok(info())
            };
            let joined = self.pulls.join("app", credentials, always, progress, start);
            tokio::time::timeout(DEADLINE, joined).await.unwrap()
        }

        fn begun(&self) -> usize {
            self.begun.load(Ordering::Relaxed)
        }
    }

    fn progress() -> (Progress, watch::Receiver<Vec<LayerProgress>>) {
        watch::channel(vec![])
    }

    async fn shown(mut layers: watch::Receiver<Vec<LayerProgress>>) {
        let shown = layers.wait_for(|it| !it.is_empty());
        tokio::time::timeout(DEADLINE, shown)
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn all_who_ask_wait_for_one_pull_see_how_far_it_is_and_share_its_end() {
        for fails in [false, true] {
            let registry = Registry::default();
            let mut layers = vec![];
            let waiters = (0..20).map(|number| {
                let (progress, shown) = progress();
                layers.push(shown);
                let registry = registry.clone();
                async move { registry.join(None, number % 2 == 0, &progress, fails).await }
            });
            let waiters = futures::future::join_all(waiters.collect::<Vec<_>>());
            let releasing = async {
                for layers in layers.clone() {
                    shown(layers).await;
                }
                registry.release.notify_one();
            };
            let (ended, ()) = tokio::join!(waiters, releasing);
            assert_eq!(registry.begun(), 1);
            for outcome in ended {
                match outcome {
                    Ok(found) => assert!(!fails && found == info()),
                    Err(error) => {
                        assert!(fails && matches!(error, ImageError::RegistryDenied { .. }));
                    }
                }
            }
            // What has ended is not joined.
            registry.release.notify_one();
            let (progress, _) = progress();
            let _ = registry.join(None, false, &progress, fails).await;
            assert_eq!(registry.begun(), 2);
        }
    }

    #[tokio::test]
    async fn a_pull_ends_with_the_last_who_waits_and_not_before() {
        let registry = Registry::default();
        let (first, second) = (progress(), progress());
        let mut one = Box::pin(registry.join(None, false, &first.0, false));
        let mut other = Box::pin(registry.join(None, true, &second.0, false));
        tokio::select! {
            _ = &mut one => panic!("it goes on"),
            _ = &mut other => panic!("it goes on"),
            () = async { shown(first.1).await; shown(second.1).await; } => {}
        }
        drop(one);
        tokio::select! {
            _ = &mut other => panic!("it goes on"),
            () = registry.dropped.notified() => panic!("one still waits"),
            () = async { for _ in 0..100 { tokio::task::yield_now().await; } } => {}
        }
        drop(other);
        let ended = tokio::time::timeout(DEADLINE, registry.dropped.notified());
        ended.await.expect("nobody waits");
        assert_eq!(registry.begun(), 1);
    }

    #[tokio::test]
    async fn who_shows_other_credentials_has_a_pull_of_their_own() {
        let registry = Registry::default();
        let token = Credentials::Token("t".into());
        let other = Credentials::Token("u".into());
        let (progress, _) = progress();
        let all = [None, Some(&token), Some(&other), Some(&token)];
        let waiters = all.map(|it| registry.join(it, true, &progress, false));
        let releasing = async {
            while registry.begun() < 3 {
                tokio::task::yield_now().await;
            }
            registry.release.notify_waiters();
        };
        let (ended, ()) = tokio::join!(futures::future::join_all(waiters), releasing);
        assert!(ended.iter().all(Result::is_ok));
        assert_eq!(registry.begun(), 3);
    }

    #[tokio::test]
    async fn a_pull_that_panics_is_a_failure_of_those_who_wait() {
        let (progress, _) = progress();
        let pulls = Pulls::default();
        let start = |_: Question, _: Progress| async { panic!("told to") };
        let ended = pulls.join("app", None, false, &progress, start).await;
        assert!(matches!(ended, Err(ImageError::Node { .. })));
    }

    #[test]
    fn whether_the_registry_is_asked_is_decided_once() {
        // Who began it, whether the image is here, and whether another may still want the registry to be asked.
        for (always, here, asks, joins_after) in [
            (false, false, true, true),
            (false, true, false, false),
            (true, false, true, true),
            (true, true, true, true),
        ] {
            let question = Question::new(always);
            assert_eq!(question.settle(here), asks, "{always} {here}");
            assert_eq!(question.require(), joins_after, "{always} {here}");
            assert_eq!(question.settle(here), asks, "{always} {here}");
        }
        let question = Question::new(false);
        assert!(question.require() && question.settle(true) && question.always());
    }
}

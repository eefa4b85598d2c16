//! Which sandboxes use which images, and the removal of an image that none uses. A sandbox uses its images from its
//! admission until it is DEAD.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use berth_domain::{
    Failure, ImageRef, Reason, SandboxId, Status,
    holders::{NamedImage, Pin},
};
use berth_platform::{ImageError, ImageInfo, Images, Network, Runtime};

use crate::{
    failures::{image_failure, pin_failure, store_failure},
    registry::Registry,
};

/// Sandboxes by the image that their specs ask for.
#[derive(Debug, Default)]
pub(crate) struct Users(BTreeMap<ImageRef, Vec<SandboxId>>);

impl Users {
    /// The sandboxes that ask for the image by this name.
    pub(crate) fn of(&self, name: &str) -> impl Iterator<Item = &SandboxId> {
        let image = ImageRef::parse(name).ok();
        image.and_then(|it| self.0.get(&it)).into_iter().flatten()
    }

    /// A sandbox that needs the name to stay. One that asks by digest may find its image under this name only.
    fn holder(&self, image: &ImageRef, listed: &[ImageInfo]) -> Option<&SandboxId> {
        let name = image.to_string();
        if let Some(id) = self.of(&name).next() {
            return Some(id);
        }
        let digest = listed.iter().find(|it| it.name == name)?.digest.as_str();
        let needs = |asked: &ImageRef| {
            let same =
                (asked.registry(), asked.repository()) == (image.registry(), image.repository());
            let named = || {
                let asked = asked.to_string();
                listed.iter().any(|it| it.name == asked)
            };
            same && asked.digest() == Some(digest) && !named()
        };
        let (_, users) = self.0.iter().find(|(asked, _)| needs(asked))?;
        users.first()
    }
}

impl<R: Runtime + Images, N: Network> Registry<R, N> {
    pub(crate) async fn image_users(&self) -> Result<Users, Failure> {
        let records = self.store().all().await.map_err(store_failure)?;
        let mut users = Users::default();
        for record in records.iter().filter(|it| it.status != Status::Dead) {
            for image in record.spec.images() {
                let ids = users.0.entry(image.clone()).or_default();
                ids.push(record.id.clone());
            }
        }
        Ok(users)
    }

    /// Keeps an image that is here from collections; returns when its pin ends.
    pub(crate) async fn pin_image(
        &self,
        image: &ImageRef,
        time_to_live: Option<Duration>,
    ) -> Result<Option<SystemTime>, Failure> {
        let now = SystemTime::now();
        let pin = Pin {
            image: image.to_string(),
            expires_at: time_to_live.map(|it| now + it),
        };
        let expires_at = pin.expires_at;
        let (registry, image) = (self.clone(), image.clone());
        // A write whose caller has gone lands all the same: until then no deletion comes between.
        let pinned = async move { registry.pin(&image, pin, now).await };
        self.see_through(pinned).await?;
        Ok(expires_at)
    }

    async fn pin(&self, image: &ImageRef, pin: Pin, now: SystemTime) -> Result<(), Failure> {
        let _no_removal = self.image_lock().read().await;
        let named = self.node().runtime.image_names().await;
        let named = named.map_err(image_failure)?;
        let digest = |it: &NamedImage| Some(it.digest.as_str()) == image.digest();
        if !named.contains_key(&pin.image) && !named.values().any(digest) {
            let missing = ImageError::NotFound {
                image: pin.image,
                source: None,
            };
            return Err(image_failure(missing));
        }
        let pinned = self.store().pin_image(pin, now).await;
        pinned.map_err(pin_failure)
    }

    /// Removes a name that no sandbox uses, and what only it held.
    pub(crate) async fn remove_image(&self, image: &ImageRef) -> Result<(), Failure> {
        let (registry, image) = (self.clone(), image.clone());
        // A removal whose caller has gone goes on all the same: until its end nobody is admitted.
        let removed = async move { registry.remove_unused_image(&image).await };
        self.see_through(removed).await
    }

    async fn remove_unused_image(&self, image: &ImageRef) -> Result<(), Failure> {
        let runtime = &self.node().runtime;
        {
            // A sandbox that is admitted after this finds no image, rather than one that goes under its hands.
            let _no_admission = self.image_lock().write().await;
            let users = self.image_users().await?;
            let listed = runtime.list_images().await.map_err(image_failure)?;
            if let Some(holder) = users.holder(image, &listed) {
                return Err(in_use(image, &format!("sandbox {holder}")));
            }
            let name = image.to_string();
            if listed.iter().any(|it| it.pinned && it.name == name) {
                return Err(in_use(image, "the manager itself"));
            }
            runtime.remove_image(image).await.map_err(image_failure)?;
        }
        // The name is gone, and containerd collects by itself too.
        if let Err(error) = runtime.collect().await {
            let _ = image_failure(error);
        }
        Ok(())
    }
}

fn in_use(image: &ImageRef, holder: &str) -> Failure {
    Failure::new(
        Reason::ImageInUse,
        format!("image {image} is used by {holder}"),
    )
    .with("image", image)
    .with("holder", holder)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use berth_platform::{contract::Subject, fake::FakeNode};
    use berth_store::Store;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        node::Node,
        registry::{CreateTerms, Limits},
    };

    const DEADLINE: Duration = Duration::from_secs(10);

    struct Manager {
        node: FakeNode,
        registry: Registry<FakeNode, FakeNode>,
        _store: tempfile::TempDir,
    }

    impl Manager {
        fn new() -> Self {
            let node = FakeNode::default();
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(
                &dir.path().join("store"),
                "10.9.0.0/24".parse().unwrap(),
                Duration::ZERO,
            );
            let limits = Limits {
                sandboxes: 1000,
                task_creations: 2,
                purge_interval: Duration::from_secs(60),
                end_timeout: DEADLINE,
                dead_horizon: DEADLINE,
            };
            let seams = Node {
                runtime: Arc::new(node.clone()),
                network: Arc::new(node.clone()),
            };
            let stop = CancellationToken::new();
            Self {
                registry: Registry::new(seams, store.unwrap(), limits, String::new(), stop),
                node,
                _store: dir,
            }
        }

        async fn admit(&self, id: &SandboxId, image: &ImageRef) -> berth_domain::Generation {
            let subject = Subject {
                image: image.clone(),
                addresses: vec!["10.9.0.2/24".parse().unwrap()],
            };
            let spec = subject.sandbox(id.as_str()).spec;
            self.registry
                .admit(id, spec, CreateTerms::default())
                .await
                .unwrap()
                .generation
        }

        async fn runs(&self, id: &SandboxId, generation: berth_domain::Generation) {
            let running = self.registry.await_running(id, generation);
            let running = tokio::time::timeout(DEADLINE, running).await;
            running.expect("it settles").expect("it runs");
        }

        async fn called(&self, call: &str) {
            let called = async {
                while !self.node.calls().iter().any(|it| it == call) {
                    tokio::task::yield_now().await;
                }
            };
            let called = tokio::time::timeout(DEADLINE, called).await;
            assert!(called.is_ok(), "no `{call}` in {:?}", self.node.calls());
        }

        async fn names(&self) -> Vec<String> {
            let listed = self.node.list_images().await.unwrap();
            listed.into_iter().map(|it| it.name).collect()
        }
    }

    fn image(text: &str) -> ImageRef {
        ImageRef::parse(text).unwrap()
    }

    fn web() -> SandboxId {
        SandboxId::parse("web").unwrap()
    }

    #[tokio::test]
    async fn an_image_stays_from_the_admission_of_its_sandbox_to_its_end() {
        let (manager, app) = (Manager::new(), image("app"));
        manager.node.add_image(&app);
        manager.node.hang("ensure");
        let generation = manager.admit(&web(), &app).await;
        let refused = manager.registry.remove_image(&app).await.unwrap_err();
        assert_eq!(refused.reason, Reason::ImageInUse);
        assert_eq!(refused.metadata["holder"], "sandbox web");
        manager.node.release_hang();
        manager.runs(&web(), generation).await;
        assert!(manager.registry.remove_image(&app).await.is_err());
        manager.registry.delete(&web(), None, None).await.unwrap();
        manager.registry.remove_image(&app).await.unwrap();
        assert_eq!(manager.names().await, Vec::<String>::new());
        let again = manager.registry.remove_image(&app).await.unwrap_err();
        assert_eq!(again.reason, Reason::ImageNotFound);
    }

    #[tokio::test]
    async fn a_sandbox_is_admitted_before_or_after_the_removal_of_its_image_and_not_in_it() {
        let (manager, app) = (Manager::new(), image("app"));
        manager.node.add_image(&app);
        manager.node.publish(&app);
        let removal = format!("remove_image {app}");
        manager.node.hang("remove_image");
        let removing = manager.registry.remove_image(&app);
        let unadmitted = async {
            manager.called(&removal).await;
            for _ in 0..200 {
                let record = manager.registry.store().get(&web()).await.unwrap();
                assert_eq!(record, None, "admitted while its image went");
            }
            manager.node.release_hang();
        };
        let (removed, generation, ()) = tokio::join!(
            removing,
            async {
                manager.called(&removal).await;
                manager.admit(&web(), &app).await
            },
            unadmitted
        );
        removed.unwrap();
        manager.runs(&web(), generation).await;
        assert_eq!(manager.names().await, [app.to_string()], "pulled again");
    }

    #[tokio::test]
    async fn the_only_name_of_an_image_stays_for_a_sandbox_that_asks_by_digest() {
        let (manager, tagged) = (Manager::new(), image("app:1"));
        manager.node.add_image(&tagged);
        let digest = manager.node.list_images().await.unwrap()[0].digest.clone();
        let by_digest = image(&format!("app@{digest}"));
        manager.node.publish(&by_digest);
        manager.node.hang("ensure");
        let generation = manager.admit(&web(), &by_digest).await;
        let refused = manager.registry.remove_image(&tagged).await.unwrap_err();
        assert_eq!(refused.reason, Reason::ImageInUse);
        manager.node.release_hang();
        manager.runs(&web(), generation).await;
        manager.registry.remove_image(&tagged).await.unwrap();
        assert_eq!(manager.names().await, [by_digest.to_string()]);
    }

    #[tokio::test]
    async fn what_the_manager_pinned_stays() {
        let manager = Manager::new();
        let archive = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(archive.path(), "pause").unwrap();
        manager
            .node
            .import(archive.path(), None, true)
            .await
            .unwrap();
        let refused = manager.registry.remove_image(&image("pause")).await;
        assert_eq!(refused.unwrap_err().reason, Reason::ImageInUse);
    }
}

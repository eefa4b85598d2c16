//! From a step to its effect on the node. Nothing is chosen here.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use berth_domain::{
    ContainerName, Failure, ImageRef, PortSighting, Role, Sandbox, SandboxRecord, Step,
};
use berth_platform::{Images, LayerProgress, Network, Runtime};
use berth_store::UpdateError;
use berth_telemetry::{KeyValue, instruments::PULL_DURATION};
use tokio::sync::{Notify, SemaphorePermit, watch};

use crate::{
    crash,
    failures::{image_failure, network_failure, runtime_failure, store_failure},
    node::Node,
    ready::{ReadyError, await_ready},
    registry::Shared,
    run::Execute,
    view::{Doing, View},
};

/// What a plan found out on its way.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) images: BTreeMap<ContainerName, String>,
    pub(crate) ports: Vec<PortSighting>,
    pub(crate) exit: Option<berth_domain::ExitRecord>,
}

/// Carries out the steps of one sandbox.
pub(crate) struct Executor<'a, R, N> {
    /// What the steps are for, as `create`.
    verb: &'static str,
    shared: &'a Shared<R, N>,
    sandbox: &'a Sandbox,
    /// Rings when a task of the sandbox may have ended.
    exits: &'a Notify,
    view: &'a watch::Sender<View>,
    /// The record that is brought up, which holds its images.
    record: Option<&'a SandboxRecord>,
    found: Mutex<Found>,
}

impl<'a, R, N> Executor<'a, R, N> {
    pub(crate) fn new(
        verb: &'static str,
        shared: &'a Shared<R, N>,
        sandbox: &'a Sandbox,
        exits: &'a Notify,
        view: &'a watch::Sender<View>,
    ) -> Self {
        Self {
            verb,
            shared,
            sandbox,
            exits,
            view,
            record: None,
            found: Mutex::default(),
        }
    }

    /// Writes down in this record which images it holds.
    pub(crate) fn holding(self, record: &'a SandboxRecord) -> Self {
        Self {
            record: Some(record),
            ..self
        }
    }

    pub(crate) fn into_found(self) -> Found {
        self.found
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut Found)) {
        change(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Shows `doing` until the answer is dropped. Nobody who waits for news is woken by it.
    fn show(&self, doing: Doing) -> Shown<'_> {
        let step = doing.step.clone();
        self.view.send_if_modified(|view| {
            view.doing.push(doing);
            false
        });
        Shown {
            view: self.view,
            step,
        }
    }
}

struct Shown<'a> {
    view: &'a watch::Sender<View>,
    step: Step,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.view.send_if_modified(|view| {
            view.doing.retain(|it| it.step != self.step);
            false
        });
    }
}

impl<'a, R: Runtime + Images, N: Network> Execute for Executor<'a, R, N> {
    type Turn = Option<SemaphorePermit<'a>>;

    fn verb(&self) -> &'static str {
        self.verb
    }

    /// For the one step that costs the node real work.
    async fn turn(&self, step: &Step) -> Self::Turn {
        match step {
            Step::CreateTask(_) => self.shared.task_creations.acquire().await.ok(),
            Step::EnsureImage(_)
            | Step::Prepare
            | Step::OpenNamespaces
            | Step::AttachLink
            | Step::CreateContainer(_)
            | Step::StartTask(_)
            | Step::AwaitReady
            | Step::StopTask { .. }
            | Step::DeleteTask(_)
            | Step::RemoveContainer(_)
            | Step::DetachLink
            | Step::CloseNamespaces
            | Step::Release => None,
        }
    }

    async fn execute(&self, step: &Step) -> Result<(), Failure> {
        let (progress, followed) = watch::channel(vec![]);
        let pulls = matches!(step, Step::EnsureImage(_));
        let _shown = self.show(Doing {
            step: step.clone(),
            progress: pulls.then_some(followed),
        });
        let name = match step.role() {
            Some(role) => format!("{}/{} {role}", self.verb, step.name()),
            None => format!("{}/{}", self.verb, step.name()),
        };
        crash::around(&name, self.carry_out(step, &progress)).await
    }
}

/// How long an image took that was not there.
pub(crate) fn measure_pull<T>(began: Instant, outcome: &Result<T, Failure>) {
    let error = outcome.as_ref().err();
    let error = error.map(|it| KeyValue::new("error.type", it.reason.as_str()));
    PULL_DURATION.record(began.elapsed().as_secs_f64(), error.as_slice());
}

impl<R: Runtime + Images, N: Network> Executor<'_, R, N> {
    /// Writes down what a name of the spec stands for, where that was not known before.
    async fn hold(&self, image: &ImageRef, digest: String) -> Result<(), Failure> {
        let Some(record) = self.record else {
            return Ok(());
        };
        if record.held_images.get(image) == Some(&digest) {
            return Ok(());
        }
        let (image, now) = (image.clone(), SystemTime::now());
        let held = self
            .shared
            .store
            .update(&record.id, record.generation, now, move |record| {
                record.held_images.insert(image, digest);
            });
        match crash::around("create/hold", held).await {
            // Of a record that is gone, the plan is about to be interrupted.
            Ok(_) | Err(UpdateError::Gone | UpdateError::NotAllowed(_)) => Ok(()),
            Err(UpdateError::Store(error)) => Err(store_failure(error)),
        }
    }

    async fn carry_out(
        &self,
        step: &Step,
        progress: &watch::Sender<Vec<LayerProgress>>,
    ) -> Result<(), Failure> {
        let Node { runtime, network } = &self.shared.node;
        let (sandbox, id) = (self.sandbox, &self.sandbox.id);
        match step {
            Step::EnsureImage(image) => {
                let began = Instant::now();
                let ensured = runtime.ensure(image, progress).await;
                let ensured = ensured.map_err(image_failure);
                if !progress.borrow().is_empty() {
                    measure_pull(began, &ensured);
                }
                self.hold(image, ensured?.digest).await
            }
            Step::Prepare => runtime.prepare(sandbox).await.map_err(runtime_failure),
            Step::OpenNamespaces => network
                .open_namespaces(sandbox)
                .await
                .map_err(network_failure),
            Step::AttachLink => network.attach_link(sandbox).await.map_err(network_failure),
            Step::CreateContainer(role) => {
                let digest = runtime
                    .create_container(sandbox, role)
                    .await
                    .map_err(runtime_failure)?;
                if let Role::App(name) = role {
                    self.note(|found| drop(found.images.insert(name.clone(), digest)));
                }
                Ok(())
            }
            Step::CreateTask(role) => runtime
                .create_task(sandbox, role)
                .await
                .map_err(runtime_failure),
            Step::StartTask(role) => runtime.start_task(id, role).await.map_err(runtime_failure),
            Step::AwaitReady => {
                let view = self.view.subscribe();
                let (node, tracker) = (&self.shared.node, &self.shared.tracker);
                match await_ready(node, tracker, sandbox, self.exits, view).await {
                    Ok(ports) => {
                        self.note(|found| found.ports = ports);
                        Ok(())
                    }
                    Err(ReadyError { failure, exit }) => {
                        self.note(|found| found.exit = exit);
                        Err(*failure)
                    }
                }
            }
            Step::StopTask { role, grace } => runtime
                .stop_task(id, role, *grace)
                .await
                .map_err(runtime_failure),
            Step::DeleteTask(role) => runtime.delete_task(id, role).await.map_err(runtime_failure),
            Step::RemoveContainer(role) => runtime
                .remove_container(id, role)
                .await
                .map_err(runtime_failure),
            Step::DetachLink => network.detach_link(id).await.map_err(network_failure),
            Step::CloseNamespaces => network.close_namespaces(id).await.map_err(network_failure),
            Step::Release => runtime.release(id).await.map_err(runtime_failure),
        }
    }
}

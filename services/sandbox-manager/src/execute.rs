//! From a step to its effect on the node. Nothing is chosen here.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use berth_domain::{ContainerName, Failure, PortSighting, Role, Sandbox, Step};
use berth_platform::{Images, Network, Runtime};
use tokio::sync::{Notify, watch};

use crate::{
    failures::{image_failure, network_failure, runtime_failure},
    node::Node,
    ready::{ReadyError, await_ready},
    run::Execute,
    sandbox::View,
};

/// What a plan found out on its way.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) images: BTreeMap<ContainerName, String>,
    pub(crate) ports: Vec<PortSighting>,
    pub(crate) exit: Option<berth_domain::ExitRecord>,
}

/// Carries out the steps of one sandbox.
#[derive(Debug)]
pub(crate) struct Executor<'a, R, N> {
    pub(crate) node: &'a Node<R, N>,
    pub(crate) sandbox: &'a Sandbox,
    /// Rings when a task of the sandbox may have ended.
    pub(crate) exits: &'a Notify,
    pub(crate) view: watch::Receiver<View>,
    found: Mutex<Found>,
}

impl<'a, R, N> Executor<'a, R, N> {
    pub(crate) fn new(
        node: &'a Node<R, N>,
        sandbox: &'a Sandbox,
        exits: &'a Notify,
        view: watch::Receiver<View>,
    ) -> Self {
        Self {
            node,
            sandbox,
            exits,
            view,
            found: Mutex::default(),
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
}

impl<R: Runtime + Images, N: Network> Execute for Executor<'_, R, N> {
    async fn execute(&self, step: &Step) -> Result<(), Failure> {
        let Node { runtime, network } = self.node;
        let (sandbox, id) = (self.sandbox, &self.sandbox.id);
        match step {
            Step::EnsureImage(image) => {
                let (progress, _) = watch::channel(vec![]);
                runtime
                    .ensure(image, &progress)
                    .await
                    .map(drop)
                    .map_err(image_failure)
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
                match await_ready(self.node, sandbox, self.exits, self.view.clone()).await {
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

//! How a task ends: asked, killed, and where its shim does not answer, was lost, or left something in the way.

use std::time::{Duration, Instant};

use berth_domain::{Role, SandboxId, TaskSeen, names};
use berth_platform::RuntimeError;
use containerd_client::services::v1::{DeleteTaskRequest, KillRequest, WaitRequest};
use rustix::process::Signal;
use tonic::Code;

use crate::{
    Containerd,
    bundles::{Bundles, Remains},
    client::{CallError, found, within},
    errors::{node, of_cgroup, refused, silent},
    images::blocking,
    shims::Shims,
};

pub(crate) const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;
/// How long a killed process may take until the kernel has let it go.
pub(crate) const KILLED: Duration = Duration::from_secs(10);
/// How often the end of processes is looked for that nobody tells the end of.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Containerd {
    pub(crate) fn shims(&self) -> Shims {
        let settings = &self.0.settings;
        Shims {
            address: settings.address.clone(),
            namespace: settings.namespace.clone(),
            bundles: Bundles::below(&settings.names.cgroup_parent),
        }
    }

    /// Ends a shim of this name that containerd does not know of, so that it is not handed to the next task, nor left over.
    /// Returns whether there may have been one.
    pub(crate) async fn end_lost_shim(&self, container: &str) -> Result<bool, RuntimeError> {
        let (shims, of) = (self.shims(), container.to_owned());
        if !shims.may_listen(container) || self.task(container).await? != TaskSeen::Missing {
            return Ok(false);
        }
        let ended = blocking(move || shims.end_lost(&of)).await;
        let ended = ended.map_err(|it| node("ending a lost shim", it))?;
        if ended > 0 {
            tracing::warn!(container, ended, "ended a shim that containerd had lost");
        }
        Ok(true)
    }

    pub(crate) async fn kill(&self, container: &str, signal: u32) -> Result<(), CallError> {
        let client = self.client();
        let request = KillRequest {
            container_id: container.to_owned(),
            signal,
            // Of what shares the pid namespace only the first process has a parent that matters.
            all: signal == SIGKILL,
            ..KillRequest::default()
        };
        match client
            .call("signalling a task", client.tasks().kill(request))
            .await
        {
            // It has ended, or was never there.
            Err(error) if error.is(Code::NotFound) || error.is(Code::FailedPrecondition) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Ends a shim that has no task: one stays when the caller of a removal went away before its answer, and containerd
    /// neither tells of it nor gives its name to another.
    pub(crate) async fn dismiss_shim(&self, container: &str) -> Result<(), CallError> {
        let client = self.client();
        let request = DeleteTaskRequest {
            container_id: container.to_owned(),
        };
        let removed = client
            .call("dismissing a shim", client.tasks().delete(request))
            .await;
        found(removed).map(drop)
    }

    /// Waits until the task has ended; `false` when it has not within `limit`.
    pub(crate) async fn wait(&self, container: &str, limit: Duration) -> Result<bool, CallError> {
        let client = self.client();
        let request = WaitRequest {
            container_id: container.to_owned(),
            exec_id: String::new(),
        };
        let begun = Instant::now();
        let waited = within(
            limit,
            "waiting for the end of a task",
            client.tasks().wait(request),
        )
        .await;
        match waited {
            Ok(_) => Ok(true),
            Err(error) if error.is(Code::NotFound) => Ok(true),
            Err(_) if begun.elapsed() >= limit => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Kills the task and waits until it has ended.
    pub(crate) async fn finish(&self, container: &str) -> Result<(), RuntimeError> {
        self.kill(container, SIGKILL).await?;
        if self.wait(container, KILLED).await? {
            return Ok(());
        }
        Err(refused(
            "ending a task",
            format!("{container} was killed {KILLED:?} ago and still runs"),
        ))
    }

    /// Ends a task whose shim does not answer: its processes are reached through their cgroup, with their grace, and the
    /// shim by its pid. When a shim is gone, containerd removes what is left of its task.
    pub(crate) async fn end_without_shim(
        &self,
        id: &SandboxId,
        role: &Role,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let container = names::container_id(id, role);
        let cgroup = self.names().container_cgroup(id, role);
        let cgroups = &self.0.cgroups;
        if !grace.is_zero() {
            cgroups.signal(&cgroup, Signal::TERM).map_err(of_cgroup)?;
            let deadline = Instant::now() + grace;
            while cgroups.has_processes(&cgroup).map_err(of_cgroup)? && Instant::now() < deadline {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            if self.task(&container).await? != TaskSeen::Unknown {
                return self.finish(&container).await;
            }
        }
        tracing::warn!(container, "its shim does not answer and is killed");
        cgroups.signal(&cgroup, Signal::KILL).map_err(of_cgroup)?;
        let (shims, of) = (self.shims(), container.clone());
        let serving = blocking(move || shims.of(&of)).await;
        let serving = serving.map_err(|it| node("looking for a shim", it))?;
        if serving.is_empty() {
            return Err(silent("ending a task", &container));
        }
        self.kill_shims(serving).await?;
        let deadline = Instant::now() + KILLED;
        while self.task(&container).await? != TaskSeen::Missing {
            if Instant::now() >= deadline {
                let what = format!("the shim of {container} was killed {KILLED:?} ago");
                return Err(refused(
                    "ending a task",
                    format!("{what} and its task is there"),
                ));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Removes what a killed containerd has left of a bundle.
    pub(crate) async fn clear_bundle(&self, container: &str) -> Result<Remains, RuntimeError> {
        let (shims, of) = (self.shims(), container.to_owned());
        let remains = blocking(move || shims.clear_bundle(&of))
            .await
            .map_err(|it| node("removing a former bundle", it))?;
        if remains == Remains::Cleared {
            tracing::warn!(container, "removed the bundle that containerd had left");
        }
        Ok(remains)
    }

    /// Lets go of the root file system of a task that has ended; `false` when there is nothing to let go of.
    pub(crate) async fn detach_rootfs(&self, container: &str) -> Result<bool, RuntimeError> {
        let (shims, of) = (self.shims(), container.to_owned());
        blocking(move || shims.detach_rootfs(&of))
            .await
            .map_err(|it| node("letting go of a root file system", it))
    }
}

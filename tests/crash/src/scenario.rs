//! What the manager is killed in: how each is begun, how it is repeated, and what must be true in the end.

use std::{fmt, fs, time::Duration};

use anyhow::{Context as _, bail, ensure};
use berth_api::v1::{self, SandboxStatus};
use berth_e2e::{
    node::eventually,
    specs::{idle, shell, spec, web},
};
use tonic_types::StatusExt as _;

use crate::{Ground, LONG, pid};

const ID: &str = "tried";
const PORT: u32 = 8080;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    Create,
    /// A Create whose container ends at once.
    FailedCreate,
    Stop,
    Delete,
    /// Of an id that has no record, but something on the node.
    DeleteUnrecorded,
    /// A container is killed.
    Exit,
    Expire,
    Purge,
    Renew,
    Drain,
    /// The start of a manager over a sandbox that runs.
    Start,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "Create",
            Self::FailedCreate => "Create that fails",
            Self::Stop => "Stop",
            Self::Delete => "Delete",
            Self::DeleteUnrecorded => "Delete without a record",
            Self::Exit => "a container is killed",
            Self::Expire => "the time to live is over",
            Self::Purge => "the horizon of the dead is over",
            Self::Renew => "Renew",
            Self::Drain => "Drain",
            Self::Start => "start of the manager",
        })
    }
}

impl Scenario {
    pub const ALL: [Self; 11] = [
        Self::Create,
        Self::FailedCreate,
        Self::Stop,
        Self::Delete,
        Self::DeleteUnrecorded,
        Self::Exit,
        Self::Expire,
        Self::Purge,
        Self::Renew,
        Self::Drain,
        Self::Start,
    ];

    /// Whether a point is this scenario's to crash at.
    pub(crate) fn owns(self, point: &str) -> bool {
        let prefixes: &[&str] = match self {
            Self::Create => &["create/"],
            Self::FailedCreate => &["undo/", "create/bury/"],
            Self::Stop => &["stop/"],
            Self::Delete => &["delete/"],
            Self::DeleteUnrecorded => &["clear/"],
            Self::Exit => &["exit/"],
            Self::Expire => &["expire/", "sweep/expire/"],
            Self::Purge => &["sweep/purge/"],
            Self::Renew => &["renew/"],
            Self::Drain => &["drain/"],
            Self::Start => &["start/"],
        };
        prefixes.iter().any(|it| point.starts_with(it))
    }

    /// Brings about what has to be there before the manager is told where to die.
    pub(crate) async fn arrange(self, ground: &Ground) -> anyhow::Result<()> {
        let node = &ground.node;
        match self {
            Self::Create | Self::FailedCreate | Self::Expire | Self::Drain => {}
            Self::Stop | Self::Delete | Self::Exit | Self::Renew | Self::Start | Self::Purge => {
                node.create(ID, web("hello", PORT)).await?;
            }
            Self::DeleteUnrecorded => {
                // The store goes back to when it knew nothing of it, as on a disk that lost its last writes.
                let store = node.home().join("state/berth.redb");
                let former = node.home().join("former.redb");
                node.kill_manager()?;
                fs::copy(&store, &former)?;
                node.up().await?;
                node.create(ID, web("hello", PORT)).await?;
                node.kill_manager()?;
                fs::copy(&former, &store)?;
            }
        }
        Ok(())
    }

    /// What the manager is told beside its configuration.
    pub(crate) fn environment(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Purge => &[("BERTH_MANAGER_DEAD_HORIZON", "500ms")],
            Self::Create
            | Self::FailedCreate
            | Self::Stop
            | Self::Delete
            | Self::DeleteUnrecorded
            | Self::Exit
            | Self::Expire
            | Self::Renew
            | Self::Drain
            | Self::Start => &[],
        }
    }

    /// Does what makes the manager pass its points.
    pub(crate) async fn act(self, ground: &Ground) -> anyhow::Result<()> {
        let node = &ground.node;
        match self {
            Self::Create => drop(node.create(ID, web("hello", PORT)).await?),
            Self::FailedCreate => {
                let failed = node.create(ID, broken()).await.err();
                let failed = failed.context("its container ends")?;
                ensure!(reason(&failed) == "CONTAINER_EXITED", "{failed}");
            }
            Self::Stop => drop(node.stop(ID).await?),
            Self::Delete | Self::DeleteUnrecorded => drop(node.delete(ID).await?),
            Self::Exit => {
                let pid = pid(node, ID, "web")?;
                let killed = std::process::Command::new("kill")
                    .args(["-9", &pid])
                    .status()?;
                ensure!(killed.success());
            }
            Self::Expire => {
                let request = v1::CreateRequest {
                    id: ID.into(),
                    spec: Some(idle()),
                    time_to_live: Some(prost_types::Duration {
                        seconds: 1,
                        nanos: 0,
                    }),
                    ..v1::CreateRequest::default()
                };
                node.sandboxes().create(request).await?;
            }
            Self::Purge => drop(node.stop(ID).await?),
            Self::Renew => {
                let request = v1::RenewRequest {
                    id: ID.into(),
                    time_to_live: Some(prost_types::Duration {
                        seconds: 3600,
                        nanos: 0,
                    }),
                    ..v1::RenewRequest::default()
                };
                node.sandboxes().renew(request).await?;
            }
            Self::Drain => {
                let request = v1::DrainRequest {
                    drain: true,
                    message: "test".into(),
                };
                node.node().drain(request).await?;
            }
            Self::Start => {}
        }
        Ok(())
    }

    /// What the next start makes of it, before anybody asks again.
    pub(crate) async fn look(self, ground: &Ground) -> anyhow::Result<&'static str> {
        let node = &ground.node;
        let status = async || node.get(ID).await.ok().map(|it| it.status());
        match self {
            Self::Create => {
                // Promised is what has a record; the next start finishes it.
                let Some(_) = status().await else {
                    return Ok("nothing was promised");
                };
                ground.until(ID, SandboxStatus::Running).await?;
                Ok("finished by the next start")
            }
            Self::FailedCreate => {
                let Some(_) = status().await else {
                    bail!("the record of a Create that was begun is gone");
                };
                ground.until(ID, SandboxStatus::Dead).await?;
                Ok("undone by the next start, the reason kept")
            }
            Self::Stop => {
                let stands = node.get(ID).await?.status() == SandboxStatus::Running;
                if stands && !ground.ends(ID, SandboxStatus::Dead).await {
                    return Ok("nothing was promised");
                }
                ground.until(ID, SandboxStatus::Dead).await?;
                Ok("finished by the next start")
            }
            Self::Delete | Self::DeleteUnrecorded => {
                let gone = || async { node.get(ID).await.is_err() };
                match eventually("it is gone", Duration::from_secs(2), gone).await {
                    Ok(()) => Ok("finished by the next start, or by the repeat"),
                    Err(_) => Ok("nothing was promised"),
                }
            }
            Self::Exit => {
                ground.until(ID, SandboxStatus::Dead).await?;
                Ok("finished by the next start")
            }
            Self::Expire => {
                ground.until(ID, SandboxStatus::Dead).await?;
                Ok("finished by the next start")
            }
            Self::Purge => Ok("purged by the next start"),
            Self::Renew | Self::Drain => Ok("written, or not, as a whole"),
            Self::Start => {
                ground.until(ID, SandboxStatus::Running).await?;
                Ok("started as if for the first time")
            }
        }
    }

    /// The caller, who has no answer, asks again.
    pub(crate) async fn repeat(self, ground: &Ground) -> anyhow::Result<()> {
        match self {
            Self::Create
            | Self::FailedCreate
            | Self::Stop
            | Self::Delete
            | Self::DeleteUnrecorded
            | Self::Renew
            | Self::Drain => self.act(ground).await,
            // Nobody has called.
            Self::Exit | Self::Expire | Self::Purge | Self::Start => Ok(()),
        }
    }

    /// What must be true once it is over.
    pub(crate) async fn settled(self, ground: &Ground) -> anyhow::Result<()> {
        let node = &ground.node;
        match self {
            Self::Create | Self::Start => {
                let it = ground.until(ID, SandboxStatus::Running).await?;
                let address = it.addresses.first().map(|it| it.address.clone());
                ensure!(address.is_some() && it.reason.is_empty(), "{it:?}");
            }
            Self::FailedCreate => {
                let it = ground.until(ID, SandboxStatus::Dead).await?;
                ensure!(
                    it.reason == "CONTAINER_EXITED" && it.addresses.is_empty(),
                    "{it:?}"
                );
                let exit = it.exit.context("an exit record")?;
                ensure!(
                    (exit.exit_code, exit.container.as_str()) == (7, "app"),
                    "{exit:?}"
                );
            }
            Self::Stop => {
                let it = ground.until(ID, SandboxStatus::Dead).await?;
                ensure!(it.reason == "STOP_REQUESTED" && it.exit.is_none(), "{it:?}");
            }
            Self::Delete | Self::DeleteUnrecorded => {
                let gone = node.get(ID).await.err().context("it is gone")?;
                ensure!(reason(&gone) == "SANDBOX_NOT_FOUND", "{gone}");
            }
            Self::Exit => {
                let it = ground.until(ID, SandboxStatus::Dead).await?;
                let exit = it.exit.context("an exit record")?;
                ensure!((exit.exit_code, exit.signal) == (137, 9), "{exit:?}");
            }
            Self::Expire => {
                let it = ground.until(ID, SandboxStatus::Dead).await?;
                ensure!(it.reason == "EXPIRED", "{it:?}");
            }
            Self::Purge => {
                let gone = || async { node.get(ID).await.is_err() };
                eventually("it is purged", LONG, gone).await?;
            }
            Self::Renew => {
                let it = node.get(ID).await?;
                ensure!(it.expires_at.is_some(), "{it:?}");
            }
            Self::Drain => ensure!(node.status().await?.draining),
        }
        Ok(())
    }

    /// Takes away what was tried.
    pub(crate) async fn clear(self, ground: &Ground) -> anyhow::Result<()> {
        if self == Self::Drain {
            let open = v1::DrainRequest::default();
            ground.node.node().drain(open).await?;
        }
        ground.node.delete(ID).await?;
        Ok(())
    }
}

impl Ground {
    pub(crate) async fn until(
        &self,
        id: &str,
        status: SandboxStatus,
    ) -> anyhow::Result<v1::Sandbox> {
        let there = || async {
            self.node
                .get(id)
                .await
                .is_ok_and(|it| it.status() == status)
        };
        if eventually("the status", LONG, there).await.is_err() {
            bail!("{id} is not {status:?}: {:#?}", self.node.get(id).await);
        }
        Ok(self.node.get(id).await?)
    }

    /// Whether it gets there by itself, which it does at once where it was promised.
    async fn ends(&self, id: &str, status: SandboxStatus) -> bool {
        let there = || async {
            self.node
                .get(id)
                .await
                .is_ok_and(|it| it.status() == status)
        };
        eventually("the status", Duration::from_secs(1), there)
            .await
            .is_ok()
    }
}

/// Its container ends at once.
fn broken() -> v1::SandboxSpec {
    spec([shell("app", "exit 7", &[])])
}

fn reason(status: &tonic::Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().cloned();
    info.map(|it| it.reason).unwrap_or_default()
}

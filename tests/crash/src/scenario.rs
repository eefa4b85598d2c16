//! What the manager is killed in: what has to be there, what begins it, and how it is repeated. What must hold afterwards is
//! said in `verdict`.

use std::{fmt, fs, process::Command};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, SandboxStatus};
use berth_e2e::{
    node::{eventually, succeed},
    specs::{idle, shell, spec, web},
};
use tonic_types::StatusExt as _;

use crate::{BYSTANDER, Ground, LONG, pid};

pub(crate) const ID: &str = "tried";
/// Beside it, where two are needed.
pub(crate) const OTHER: &str = "once";
/// The orphans that no sandbox's task removes.
const ODD_FOLDER: &str = "Not_An_Id";
const PORT: u32 = 8080;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    Create,
    /// A Create whose image is not on the node.
    Pull,
    /// A Create whose container ends at once.
    FailedCreate,
    /// The start of a manager over a Create of which half is made.
    Resume,
    Stop,
    Delete,
    /// Of an id that has no record, but something on the node.
    DeleteUnrecorded,
    /// A container is killed.
    Exit,
    /// A part vanishes that nobody saw end.
    Lost,
    /// A port no longer listens.
    PortLost,
    /// The node loses what a reboot takes.
    Reboot,
    Expire,
    Purge,
    Renew,
    Drain,
    /// `audit --fix` over orphans.
    Fix,
    /// A worker has an image deleted.
    Collect,
    /// The start of a manager over a sandbox that runs.
    Start,
}

/// What a caller is told.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Nobody has called.
    Nobody,
    Sandbox(Box<v1::Sandbox>),
    Refused {
        reason: String,
        message: String,
    },
    /// Whether there was something to delete.
    Existed(bool),
    /// How many sandboxes the node has.
    Drained(u64),
    /// Whether the audit was clean in the end.
    Clean(bool),
    /// The run.
    Collected(Box<v1::Collection>),
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "Create",
            Self::Pull => "Create that pulls",
            Self::FailedCreate => "Create that fails",
            Self::Resume => "start of the manager over half a Create",
            Self::Stop => "Stop",
            Self::Delete => "Delete",
            Self::DeleteUnrecorded => "Delete without a record",
            Self::Exit => "a container is killed",
            Self::Lost => "the link is removed",
            Self::PortLost => "a port no longer listens",
            Self::Reboot => "the node reboots",
            Self::Expire => "the time to live is over",
            Self::Purge => "the horizon of the dead is over",
            Self::Renew => "Renew",
            Self::Drain => "Drain",
            Self::Fix => "audit --fix",
            Self::Collect => "an image is collected",
            Self::Start => "start of the manager",
        })
    }
}

impl Scenario {
    pub const ALL: [Self; 18] = [
        Self::Create,
        Self::Pull,
        Self::FailedCreate,
        Self::Resume,
        Self::Stop,
        Self::Delete,
        Self::DeleteUnrecorded,
        Self::Exit,
        Self::Lost,
        Self::PortLost,
        Self::Reboot,
        Self::Expire,
        Self::Purge,
        Self::Renew,
        Self::Drain,
        Self::Fix,
        Self::Collect,
        Self::Start,
    ];

    /// Whether a point is this scenario's to crash at.
    pub(crate) fn owns(self, point: &str) -> bool {
        let prefixes: &[&str] = match self {
            Self::Create => &["create/"],
            Self::Pull => &["create/ensure-image/", "create/hold/"],
            Self::FailedCreate => &["create/failed/", "undo/", "create/bury/"],
            Self::Resume => &["start/", "create/"],
            Self::Stop => &["stop/"],
            Self::Delete => &["delete/"],
            Self::DeleteUnrecorded => &["clear/"],
            Self::Exit => &["exit/"],
            Self::Lost => &["lost/"],
            Self::PortLost => &["ports/"],
            Self::Reboot => &["gone/"],
            Self::Expire => &["expire/", "sweep/expire/"],
            Self::Purge => &["sweep/purge/"],
            Self::Renew => &["renew/"],
            Self::Drain => &["drain/"],
            Self::Fix => &["fix/"],
            Self::Collect => &["collection/"],
            Self::Start => &["start/"],
        };
        prefixes.iter().any(|it| point.starts_with(it))
    }

    /// The point around the write that makes a call's promise durable: what dies before it has promised nothing.
    pub(crate) fn promise(self) -> Option<&'static str> {
        match self {
            Self::Create => Some("create/promise"),
            Self::Stop => Some("stop/promise"),
            Self::Delete => Some("delete/promise"),
            Self::Renew => Some("renew/write"),
            Self::Drain => Some("drain/write"),
            Self::Pull
            | Self::FailedCreate
            | Self::Resume
            | Self::DeleteUnrecorded
            | Self::Exit
            | Self::Lost
            | Self::PortLost
            | Self::Reboot
            | Self::Expire
            | Self::Purge
            | Self::Fix
            | Self::Collect
            | Self::Start => None,
        }
    }

    /// Whether the manager dies by what it finds when it starts, and not by a call.
    pub(crate) fn is_found_at_the_start(self) -> bool {
        match self {
            Self::Resume | Self::Lost | Self::PortLost | Self::Reboot | Self::Start => true,
            Self::Create
            | Self::Pull
            | Self::FailedCreate
            | Self::Stop
            | Self::Delete
            | Self::DeleteUnrecorded
            | Self::Exit
            | Self::Expire
            | Self::Purge
            | Self::Renew
            | Self::Drain
            | Self::Fix
            | Self::Collect => false,
        }
    }

    /// Whether what runs goes on as it is, whatever the manager does.
    pub(crate) fn leaves_processes_alone(self) -> bool {
        matches!(self, Self::Start | Self::Renew | Self::PortLost)
    }

    /// Brings about what has to be there before the manager is told where to die, and returns the sandbox as it stood.
    pub(crate) async fn arrange(self, ground: &Ground) -> anyhow::Result<Option<v1::Sandbox>> {
        let node = &ground.node;
        match self {
            Self::Create | Self::Pull | Self::FailedCreate | Self::Expire | Self::Drain => Ok(None),
            Self::Stop | Self::Delete | Self::Exit | Self::Renew | Self::Start | Self::Purge => {
                Ok(Some(node.create(ID, web("hello", PORT)).await?))
            }
            Self::Collect => {
                ground.collection().arrange().await?;
                Ok(None)
            }
            Self::DeleteUnrecorded => {
                ground.forget_the_record(polite()).await?;
                Ok(None)
            }
            Self::Resume => {
                // It has made everything when it dies, and the next one finds a part missing.
                let death = [("BERTH_CRASH_AT", "create/await-ready/before")];
                ground.restart(self, &death).await?;
                drop(node.create(ID, web("hello", PORT)).await);
                ground.until_dead().await?;
                let task = format!("sandbox.{ID}.web");
                succeed(node.command("ctr").args(["tasks", "rm", "--force", &task]))?;
                Ok(None)
            }
            Self::Lost => {
                let former = node.create(ID, web("hello", PORT)).await?;
                node.kill_manager()?;
                let link = ground.link(ID)?;
                succeed(Command::new("ip").args(["link", "del", &link]))?;
                Ok(Some(former))
            }
            Self::PortLost => {
                // The shell is the first process and lives on when its server ends.
                let line = format!("httpd -f -p {PORT} -h /etc & while :; do sleep 3600; done");
                let former = spec([shell("web", &line, &[PORT])]);
                let former = node.create(ID, former).await?;
                node.kill_manager()?;
                let inside = ["tasks", "exec", "--exec-id", "killer"];
                let kill = ["sh", "-c", "kill -9 $(pidof httpd)"];
                let container = format!("sandbox.{ID}.web");
                let mut command = node.command("ctr");
                succeed(command.args(inside).arg(&container).args(kill))?;
                Ok(Some(former))
            }
            Self::Reboot => {
                // It would be made again as well, at the same points.
                node.delete(BYSTANDER).await?;
                let former = node.create(ID, web("hello", PORT)).await?;
                let mut once = idle();
                once.restart_policy = v1::RestartPolicy::Never.into();
                node.create(OTHER, once).await?;
                node.kill_manager()?;
                node.power_off()?;
                Ok(Some(former))
            }
            Self::Fix => {
                ground.forget_the_record(polite()).await?;
                let lease = format!("berth.{}.{ODD_FOLDER}", ground.instance()?);
                succeed(
                    node.command("ctr")
                        .args(["leases", "create", "--id", &lease]),
                )?;
                fs::create_dir_all(node.home().join("run/sandboxes").join(ODD_FOLDER))?;
                Ok(None)
            }
        }
    }

    /// What the manager is told beside its configuration.
    pub(crate) fn environment(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Purge => &[("BERTH_MANAGER_DEAD_HORIZON", "500ms")],
            Self::Create
            | Self::Pull
            | Self::FailedCreate
            | Self::Resume
            | Self::Stop
            | Self::Delete
            | Self::DeleteUnrecorded
            | Self::Exit
            | Self::Lost
            | Self::PortLost
            | Self::Reboot
            | Self::Expire
            | Self::Renew
            | Self::Drain
            | Self::Fix
            | Self::Collect
            | Self::Start => &[],
        }
    }

    /// Does what makes the manager pass its points.
    pub(crate) async fn act(self, ground: &Ground) -> anyhow::Result<Answer> {
        let node = &ground.node;
        Ok(match self {
            Self::Create => Answer::sandbox(node.create(ID, web("hello", PORT)).await?),
            Self::Pull => {
                let mut pulled = idle();
                pulled.containers[0].image.clone_from(&ground.pulled.name);
                Answer::sandbox(node.create(ID, pulled).await?)
            }
            Self::FailedCreate => match node.create(ID, broken()).await {
                Ok(made) => anyhow::bail!("its container ends: {made:?}"),
                Err(status) => {
                    let reason = reason(&status);
                    // No answer is none.
                    ensure!(reason == "CONTAINER_EXITED", "{status}");
                    let message = status.message().to_owned();
                    Answer::Refused { reason, message }
                }
            },
            Self::Stop => Answer::sandbox(node.stop(ID).await?),
            Self::Delete | Self::DeleteUnrecorded => Answer::Existed(node.delete(ID).await?),
            Self::Exit => {
                let pid = pid(node, ID, "web")?;
                succeed(Command::new("kill").args(["-9", &pid]))?;
                Answer::Nobody
            }
            Self::Expire => {
                let request = v1::CreateRequest {
                    id: ID.into(),
                    spec: Some(idle()),
                    time_to_live: seconds(1),
                    ..v1::CreateRequest::default()
                };
                node.sandboxes().create(request).await?;
                Answer::Nobody
            }
            Self::Purge => {
                node.stop(ID).await?;
                Answer::Nobody
            }
            Self::Renew => {
                let request = v1::RenewRequest {
                    id: ID.into(),
                    time_to_live: seconds(3600),
                    ..v1::RenewRequest::default()
                };
                let renewed = node.sandboxes().renew(request).await?.into_inner();
                Answer::sandbox(renewed.sandbox.context("the sandbox that was renewed")?)
            }
            Self::Drain => {
                let request = v1::DrainRequest {
                    drain: true,
                    message: "test".into(),
                };
                Answer::Drained(node.node().drain(request).await?.into_inner().sandboxes)
            }
            Self::Fix => {
                let request = v1::AuditRequest {
                    fix: true,
                    settle: seconds(0),
                };
                Answer::Clean(node.node().audit(request).await?.into_inner().clean)
            }
            Self::Collect => Answer::Collected(Box::new(ground.collection().act().await?)),
            Self::Resume | Self::Lost | Self::PortLost | Self::Reboot | Self::Start => {
                Answer::Nobody
            }
        })
    }

    /// The caller, who has no answer, asks again.
    pub(crate) async fn repeat(self, ground: &Ground) -> anyhow::Result<Answer> {
        match self {
            Self::Create
            | Self::Pull
            | Self::FailedCreate
            | Self::Stop
            | Self::Delete
            | Self::DeleteUnrecorded
            | Self::Renew
            | Self::Drain
            | Self::Fix
            | Self::Collect => self.act(ground).await,
            Self::Resume
            | Self::Exit
            | Self::Lost
            | Self::PortLost
            | Self::Reboot
            | Self::Expire
            | Self::Purge
            | Self::Start => Ok(Answer::Nobody),
        }
    }

    /// Takes away what was tried.
    pub(crate) async fn clear(self, ground: &Ground) -> anyhow::Result<()> {
        let node = &ground.node;
        if self == Self::Drain {
            let open = v1::DrainRequest::default();
            node.node().drain(open).await?;
        }
        node.delete(ID).await?;
        if self == Self::Collect {
            ground.collection().end().await?;
        }
        if self == Self::Pull {
            let image = ground.pulled.name.clone();
            let request = v1::RemoveImageRequest { image };
            node.images().remove_image(request).await?;
        }
        if self == Self::Reboot {
            node.delete(OTHER).await?;
            ground.place_bystander().await?;
        }
        Ok(())
    }
}

impl Answer {
    fn sandbox(it: v1::Sandbox) -> Self {
        Self::Sandbox(Box::new(it))
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
            anyhow::bail!("{id} is not {status:?}: {:#?}", self.node.get(id).await);
        }
        Ok(self.node.get(id).await?)
    }

    /// Makes a sandbox, and takes the store back to when it knew nothing of it, as on a disk that lost its last writes.
    async fn forget_the_record(&self, spec: v1::SandboxSpec) -> anyhow::Result<()> {
        let node = &self.node;
        let store = node.home().join("state/berth.redb");
        let former = node.home().join("former.redb");
        node.kill_manager()?;
        fs::copy(&store, &former)?;
        node.up().await?;
        node.create(ID, spec).await?;
        node.kill_manager()?;
        fs::copy(&former, &store)?;
        Ok(())
    }

    /// The host's end of a sandbox's link.
    fn link(&self, id: &str) -> anyhow::Result<String> {
        let alias = format!("berth {} {id}", self.instance()?);
        let links = succeed(Command::new("ip").args(["-j", "link"]))?;
        let links: Vec<serde_json::Value> = serde_json::from_str(&links)?;
        let own = links.iter().find(|it| it["ifalias"] == alias.as_str());
        let name = own.and_then(|it| it["ifname"].as_str());
        Ok(name.context("its link")?.to_owned())
    }

    fn instance(&self) -> anyhow::Result<String> {
        let instance = fs::read_to_string(self.node.home().join("instance"))?;
        Ok(instance.trim().to_owned())
    }
}

/// Its container says that it ran, and ends.
fn broken() -> v1::SandboxSpec {
    spec([shell("app", "echo ran; exit 7", &[])])
}

/// It ends when it is asked to: without a record nobody knows a shorter grace than the default.
fn polite() -> v1::SandboxSpec {
    let line = format!("trap 'exit 0' TERM; httpd -f -p {PORT} -h /etc & wait");
    spec([shell("web", &line, &[PORT])])
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub(crate) fn reason(status: &tonic::Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().cloned();
    info.map(|it| it.reason).unwrap_or_default()
}

//! One containerd, and what is known about it before anything is asked.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use berth_cgroup::{Hierarchy, Systemd};
use berth_domain::{ContainerName, Role, SandboxId, cgroups::Driver, names};
use berth_platform::{ArchiveLimits, RuntimeError};
use berth_registry::Registries;
use containerd_client::services::v1::{
    CreateNamespaceRequest, GetNamespaceRequest, Namespace, UpdateNamespaceRequest,
};
use tokio::sync::Semaphore;

use crate::{
    client::{Client, made},
    errors::refused,
    files,
    heat::Heat,
    images::Known,
    pulls::Pulls,
    settings::{SetUpError, Settings},
    spec::{Host, Places},
};

/// Programs that are started at the same time, per CPU.
const STARTS_PER_CPU: usize = 4;

/// One containerd as runtime and image store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Containerd(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) settings: Settings,
    pub(crate) client: Client,
    pub(crate) cgroups: Hierarchy,
    pub(crate) systemd: Systemd,
    pub(crate) host: Host,
    pub(crate) pause_root: PathBuf,
    pub(crate) known: Known,
    pub(crate) registries: Registries,
    pub(crate) pulls: Pulls,
    /// Images that are pulled at the same time.
    pub(crate) lanes: Semaphore,
    pub(crate) heat: Heat,
    /// What was made before was made by a former manager.
    pub(crate) connected_at: SystemTime,
    /// Whether containerd has been told of our namespace.
    pub(crate) greeted: Mutex<bool>,
    /// Programs that are started at the same time.
    exec_starts: Semaphore,
    execs: AtomicU64,
}

impl Containerd {
    /// Gets ready for a containerd that may not run yet.
    pub fn connect(settings: Settings) -> Result<Self, SetUpError> {
        let client = Client::new(
            &settings.address,
            &settings.namespace,
            settings.call_timeout,
        )?;
        let cgroups = Hierarchy::detect()?;
        if settings.cgroup_driver == Driver::Systemd && cgroups.version() != 2 {
            return Err(SetUpError::CgroupDriver);
        }
        let pause_root = files::pause_root(&settings.state_dir, settings.pause_program);
        let pause_root = pause_root.map_err(|source| SetUpError::PauseRootfs {
            path: settings.state_dir.clone(),
            source,
        })?;
        let host = Host {
            cgroup_version: cgroups.version(),
            cgroup_driver: settings.cgroup_driver,
            negative_oom_score: may_lower_oom_score(),
        };
        Ok(Self(Arc::new(Inner {
            client,
            cgroups,
            systemd: Systemd::default(),
            host,
            pause_root,
            known: Known::default(),
            registries: Registries::new(settings.registries.clone())?,
            pulls: Pulls::default(),
            lanes: Semaphore::new(settings.pulls_at_once),
            heat: if settings.warm_cgroup_lock {
                Heat::start()
            } else {
                Heat::off()
            },
            connected_at: SystemTime::now(),
            greeted: Mutex::new(false),
            exec_starts: Semaphore::new(
                STARTS_PER_CPU * std::thread::available_parallelism().map_or(1, usize::from),
            ),
            execs: AtomicU64::new(0),
            settings,
        })))
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn known(&self) -> &Known {
        &self.0.known
    }

    pub(crate) fn registries(&self) -> &Registries {
        &self.0.registries
    }

    pub(crate) fn pulls(&self) -> &Pulls {
        &self.0.pulls
    }

    pub(crate) fn lanes(&self) -> &Semaphore {
        &self.0.lanes
    }

    pub(crate) fn layers_at_once(&self) -> usize {
        self.0.settings.layers_at_once
    }

    pub(crate) fn snapshotter(&self) -> &str {
        &self.0.settings.snapshotter
    }

    pub(crate) fn archive_limits(&self) -> ArchiveLimits {
        self.0.settings.archive_limits
    }

    pub(crate) fn cgroups(&self) -> &Hierarchy {
        &self.0.cgroups
    }

    pub(crate) fn names(&self) -> &berth_domain::Names {
        &self.0.settings.names
    }

    pub(crate) fn exec_starts(&self) -> &Semaphore {
        &self.0.exec_starts
    }

    /// What the ids of programs of this very process begin with.
    pub(crate) fn exec_id_prefix(&self) -> String {
        let since = self.0.connected_at.duration_since(SystemTime::UNIX_EPOCH);
        format!("berth-{:x}-", since.unwrap_or_default().as_nanos())
    }

    pub(crate) fn next_exec_id(&self) -> String {
        let number = self.0.execs.fetch_add(1, Ordering::Relaxed);
        format!("{}{number}", self.exec_id_prefix())
    }

    /// The pipe of a container's input. It goes with the sandbox's folder.
    pub(crate) fn stdin_of(&self, id: &SandboxId, container: &ContainerName) -> PathBuf {
        let folder = self.names().files(id).join("stdin");
        folder.join(container.as_str())
    }

    pub(crate) fn places(&self, id: &SandboxId, role: &Role) -> Places {
        let names = self.names();
        Places {
            namespaces: names.namespaces(id),
            files: names.files(id),
            cgroup: names.container_cgroup(id, role),
        }
    }

    /// Makes our namespace known and ours, once per process and before anything is changed in it: names of containers
    /// tell the sandbox and not the instance, so that two managers in one namespace would take each other's for theirs.
    pub(crate) async fn greet(&self) -> Result<(), RuntimeError> {
        if *self
            .0
            .greeted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
        {
            return Ok(());
        }
        let client = self.client();
        let name = self.0.settings.namespace.clone();
        let instance = self.names().instance.to_string();
        let own = Some(Namespace {
            name: name.clone(),
            labels: [(names::LABEL_INSTANCE.to_owned(), instance.clone())].into(),
        });
        let request = CreateNamespaceRequest {
            namespace: own.clone(),
        };
        let mut namespaces = client.namespaces();
        let created = client
            .call("making the namespace", namespaces.create(request))
            .await;
        if made(created)?.is_none() {
            let request = GetNamespaceRequest { name: name.clone() };
            let got = client
                .call("reading the namespace", namespaces.get(request))
                .await?;
            let labels = got.namespace.unwrap_or_default().labels;
            match labels.get(names::LABEL_INSTANCE) {
                Some(owner) if *owner == instance => {}
                Some(owner) => {
                    return Err(refused(
                        "taking the namespace",
                        format!(
                            "containerd's namespace {name} belongs to instance {owner}; \
                             give this one a namespace of its own (containerd.namespace)"
                        ),
                    ));
                }
                None => {
                    let request = UpdateNamespaceRequest {
                        namespace: own,
                        update_mask: Some(prost_types::FieldMask {
                            paths: vec![format!("labels.{}", names::LABEL_INSTANCE)],
                        }),
                    };
                    client
                        .call("marking the namespace", namespaces.update(request))
                        .await?;
                }
            }
        }
        *self
            .0
            .greeted
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        Ok(())
    }
}

/// Whether a process of this host may be made less likely to be killed for memory. The shims have the rights of
/// containerd, which are taken to be ours.
fn may_lower_oom_score() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|it| {
        it.effective
            .contains(rustix::thread::CapabilitySet::SYS_RESOURCE)
    })
}

//! What the adapter is told.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use berth_cgroup::CgroupError;
use berth_domain::{Names, cgroups::Driver};
use berth_platform::ArchiveLimits;
use berth_registry::Settings as RegistrySettings;

#[derive(Clone, Debug)]
pub struct Settings {
    pub names: Names,
    /// Who makes what `names` calls the cgroups.
    pub cgroup_driver: Driver,
    /// containerd's socket.
    pub address: PathBuf,
    pub namespace: String,
    /// Runtime of the containers, as `io.containerd.runc.v2`.
    pub handler: String,
    /// OCI runtime that the handler executes, where it is not its default.
    pub runtime_binary: Option<String>,
    pub snapshotter: String,
    /// Program that takes the output of containers. containerd's shims start it.
    pub log_writer: PathBuf,
    pub log_limit_bytes: u64,
    pub state_dir: PathBuf,
    /// Name under which the pause image is imported.
    pub pause_image: String,
    pub pause_program: &'static [u8],
    pub pause_rootfs: PauseRootfs,
    pub registries: RegistrySettings,
    /// Images that are pulled at the same time.
    pub pulls_at_once: usize,
    /// Layers that are fetched at the same time, of each of them.
    pub layers_at_once: usize,
    /// For what a compressed archive unpacks to, beside it.
    pub archive_limits: ArchiveLimits,
    pub search_domain: String,
    pub name_servers: Vec<IpAddr>,
    pub warm_cgroup_lock: bool,
    /// How long containerd may take to answer a call that has no reason to take long.
    pub call_timeout: Duration,
}

/// Where the root file system of the pause container comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseRootfs {
    /// One read-only folder for all: no snapshot and one mount less per sandbox.
    Shared,
    /// A snapshot of the pause image for each.
    Snapshot,
}

#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    #[error("`{address}` is no address of containerd")]
    Address { address: String },
    #[error("namespace `{namespace}` cannot be sent to containerd")]
    Namespace { namespace: String },
    #[error("finding the cgroups of this host")]
    Cgroups(#[from] CgroupError),
    #[error(
        "`cgroup.driver`: systemd makes cgroups of version 2 only, and this host has version 1"
    )]
    CgroupDriver,
    #[error("preparing to ask registries")]
    Registries(#[from] berth_registry::SetUpError),
    #[error("making the root file system of the pause in {}", path.display())]
    PauseRootfs {
        path: PathBuf,
        source: std::io::Error,
    },
}

#[cfg(test)]
impl Settings {
    /// Of a containerd that is not there, with all its files in `dir`.
    pub(crate) fn of_none(dir: &std::path::Path) -> Self {
        Self {
            names: Names {
                instance: berth_domain::InstanceId::parse("berth").unwrap(),
                cgroup_parent: "berth".into(),
                run_dir: dir.to_owned(),
                log_dir: dir.to_owned(),
            },
            cgroup_driver: Driver::Cgroupfs,
            address: dir.join("containerd.sock"),
            namespace: "berth".into(),
            handler: "io.containerd.runc.v2".into(),
            runtime_binary: None,
            snapshotter: "overlayfs".into(),
            log_writer: dir.join("log-writer"),
            log_limit_bytes: 1 << 20,
            state_dir: dir.to_owned(),
            pause_image: "berth/pause".into(),
            pause_program: b"",
            pause_rootfs: PauseRootfs::Shared,
            registries: RegistrySettings::default(),
            pulls_at_once: 1,
            layers_at_once: 1,
            archive_limits: ArchiveLimits {
                max_bytes: 0,
                reserve_bytes: 0,
            },
            search_domain: String::new(),
            name_servers: vec![],
            warm_cgroup_lock: false,
            call_timeout: Duration::from_secs(20),
        }
    }
}

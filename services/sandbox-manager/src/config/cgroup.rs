//! What the manager is told about cgroups.

use anyhow::ensure;
use berth_domain::cgroups;
use serde::{Deserialize, Serialize};

use super::is_program;

/// The runtime that is known to take the options of runc.
const OF_RUNC: &str = "io.containerd.runc.v2";

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cgroup {
    pub driver: Driver,
    /// The instance has a cgroup of its own below it.
    pub parent: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    Cgroupfs,
    Systemd,
}

impl Default for Cgroup {
    fn default() -> Self {
        Self {
            driver: Driver::Cgroupfs,
            parent: "/berth".to_owned(),
        }
    }
}

impl Cgroup {
    /// `handler` is the runtime of the containers.
    pub(super) fn check(&self, handler: &str) -> anyhow::Result<()> {
        let parent = self.parent.trim_matches('/');
        ensure!(
            parent
                .split('/')
                .all(|it| !it.is_empty() && it != "." && it != ".."),
            "cgroup.parent: `{}` must be a path like `/berth`",
            self.parent
        );
        if self.driver == Driver::Cgroupfs {
            return Ok(());
        }
        ensure!(
            handler == OF_RUNC || is_program(handler),
            "cgroup.driver: `systemd` needs the containerd.handler `{OF_RUNC}`, or the path of a shim that takes its options"
        );
        let of_units = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'/');
        ensure!(
            parent.bytes().all(of_units),
            "cgroup.parent: `{}` must be letters, digits, `_` where systemd makes the slices: a dash begins a level",
            self.parent
        );
        Ok(())
    }
}

impl From<Driver> for cgroups::Driver {
    fn from(it: Driver) -> Self {
        match it {
            Driver::Cgroupfs => Self::Cgroupfs,
            Driver::Systemd => Self::Systemd,
        }
    }
}

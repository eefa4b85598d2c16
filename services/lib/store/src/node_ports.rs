//! Which sandbox has which port of the node: what the records say, kept at hand, so that a Create need not read them all.

use std::collections::BTreeMap;

use berth_domain::{Protocol, SandboxId, SandboxRecord, SandboxSpec, Status};

use crate::watch::Change;

#[derive(Debug, Default)]
pub(crate) struct NodePorts {
    owners: BTreeMap<(Protocol, u16), SandboxId>,
}

impl NodePorts {
    pub(crate) fn of<'a>(records: impl IntoIterator<Item = &'a SandboxRecord>) -> Self {
        let mut ports = Self::default();
        for record in records {
            ports.hold(record);
        }
        ports
    }

    /// Follows a change that is durable.
    pub(crate) fn follow(&mut self, change: &Change) {
        match change {
            Change::Upserted(record) => {
                self.let_go(&record.id);
                self.hold(record);
            }
            Change::Removed { id, .. } => self.let_go(id),
            Change::EntryPut(_) | Change::EntryRemoved(_) => {}
        }
    }

    /// The first port of `spec` that a sandbox has, and which one.
    pub(crate) fn conflict(&self, spec: &SandboxSpec) -> Option<(Protocol, u16, &SandboxId)> {
        spec.claimed_ports().find_map(|(protocol, port)| {
            let owner = self.owners.get(&(protocol, port))?;
            Some((protocol, port, owner))
        })
    }

    /// A sandbox has its ports as long as its addresses, and without one of its own until nothing of it is left.
    fn hold(&mut self, record: &SandboxRecord) {
        let holds = match record.spec.host_network {
            true => record.status != Status::Dead,
            false => !record.addresses.is_empty(),
        };
        if holds {
            let ports = record.spec.claimed_ports();
            self.owners.extend(ports.map(|it| (it, record.id.clone())));
        }
    }

    fn let_go(&mut self, id: &SandboxId) {
        self.owners.retain(|_, owner| owner != id);
    }
}

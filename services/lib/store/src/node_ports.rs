//! Which sandbox has which port of the node: what the records say, kept at hand, so that a Create need not read them all.

use std::collections::BTreeMap;

use berth_domain::{Protocol, SandboxId, SandboxRecord, SandboxSpec};

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
        spec.node_ports().find_map(|(protocol, port, _)| {
            let owner = self.owners.get(&(protocol, port))?;
            Some((protocol, port, owner))
        })
    }

    /// A sandbox has its ports as long as its addresses.
    fn hold(&mut self, record: &SandboxRecord) {
        if !record.addresses.is_empty() {
            let ports = record.spec.node_ports();
            let owned = ports.map(|(protocol, port, _)| ((protocol, port), record.id.clone()));
            self.owners.extend(owned);
        }
    }

    fn let_go(&mut self, id: &SandboxId) {
        self.owners.retain(|_, owner| owner != id);
    }
}

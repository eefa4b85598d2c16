//! What a fake node is made of, as its two halves list it for an audit.

use berth_domain::{Role, TaskSeen, names::container_id};

use super::{State, Stored, node_names};
use crate::{NetworkObject, NetworkObjectKind, RuntimeObject, RuntimeObjectKind};

impl State {
    pub(super) fn runtime_objects(&self) -> Vec<RuntimeObject> {
        use RuntimeObjectKind::{Cgroup, Container, Directory, Lease, Logs, Shim, Snapshot, Task};
        let (names, mut objects) = (node_names(), self.strays.clone());
        for (id, held) in &self.sandboxes {
            let mut add = |kind, name, container: Option<(&Role, &Stored)>| {
                let role = container.map(|(role, _)| role.clone());
                let shim = role.clone().map(|role| (id.clone(), role));
                objects.push(RuntimeObject {
                    kind,
                    name,
                    sandbox: Some(id.clone()),
                    generation: container.map(|(_, stored)| stored.generation),
                    made_at: container.map(|(_, stored)| stored.made_at),
                    serial: container.map(|(_, stored)| stored.serial),
                    strange: false,
                    silent: kind == Task && shim.is_some_and(|it| self.silent.contains(&it)),
                    role,
                });
            };
            if held.lease {
                add(Lease, names.lease(id), None);
            }
            if held.files {
                add(Cgroup, names.cgroup(id), None);
                add(Directory, names.files(id).display().to_string(), None);
            }
            if held.logs {
                add(Logs, names.logs(id).display().to_string(), None);
            }
            for (role, stored) in &held.containers {
                add(Container, container_id(id, role), Some((role, stored)));
                add(Snapshot, container_id(id, role), Some((role, stored)));
                if stored.task != TaskSeen::Missing {
                    add(Task, container_id(id, role), Some((role, stored)));
                    add(Shim, container_id(id, role), Some((role, stored)));
                }
            }
        }
        objects.sort();
        objects
    }

    pub(super) fn network_objects(&self) -> Vec<NetworkObject> {
        let (names, mut objects) = (node_names(), self.network_strays.clone());
        for (id, held) in &self.sandboxes {
            let mut add = |kind, name| {
                objects.push(NetworkObject {
                    kind,
                    name,
                    sandbox: Some(id.clone()),
                    made_at: None,
                    serial: None,
                    strange: false,
                });
            };
            if held.namespaces {
                let folder = names.namespaces(id).display().to_string();
                add(NetworkObjectKind::Namespaces, folder);
            }
            if held.link {
                add(NetworkObjectKind::Link, names.link(id));
            }
            if held.fenced {
                add(NetworkObjectKind::Element, format!("sources {id}"));
            }
        }
        objects.sort();
        objects
    }
}

//! What a test does to the node, and asks of it.

use std::{collections::BTreeSet, net::SocketAddr, time::SystemTime};

use berth_domain::{ImageRef, Protocol, Role, SandboxId, TaskSeen};

use super::{FakeNode, Fault, KILLED};
use crate::{ListeningSocket, NetworkObject, RuntimeObject, RuntimeObjectKind};

impl FakeNode {
    /// Puts an image on the node.
    pub fn add_image(&self, image: &ImageRef) {
        self.state().keep_image(image, false);
    }

    /// Puts an image into the registry, where a pull finds it.
    pub fn publish(&self, image: &ImageRef) {
        self.state().registry.insert(image.to_string());
    }

    /// Sets the TCP sockets of every container of this name, in place of its declared ports. Takes effect at once.
    pub fn listen_on(&self, container: &str, sockets: &[SocketAddr]) {
        let tcp: Vec<_> = sockets.iter().map(|&it| (Protocol::Tcp, it)).collect();
        self.listen_with(container, &tcp);
    }

    /// As `listen_on`, with sockets of any protocol.
    pub fn listen_with(&self, container: &str, sockets: &[(Protocol, SocketAddr)]) {
        let mut state = self.state();
        state.listens.insert(container.to_owned(), sockets.to_vec());
    }

    /// Ends a task that runs. Panics where none does.
    pub fn exit(&self, id: &SandboxId, role: &Role, code: u32) {
        self.state().exit(id, role, code, 0, SystemTime::now());
    }

    /// As `exit`, at this time.
    pub fn exit_at(&self, id: &SandboxId, role: &Role, code: u32, at: SystemTime) {
        self.state().exit(id, role, code, 0, at);
    }

    /// Ends a task that runs as the kernel does it when memory is short. Panics where none does.
    pub fn exit_for_memory(&self, id: &SandboxId, role: &Role) {
        self.state().exit(id, role, KILLED, 1, SystemTime::now());
    }

    /// Has the kernel kill a process of a container for memory that is not its first: the task goes on.
    pub fn lose_worker_for_memory(&self, id: &SandboxId, role: &Role) {
        let mut state = self.state();
        let held = state.sandboxes.get_mut(id);
        let stored = held.and_then(|held| held.containers.get_mut(role));
        stored.expect("a container").oom_kills += 1;
    }

    /// Fails the next calls of `operation`; they change nothing.
    pub fn fail_next(&self, operation: &str, times: usize) {
        self.plan(operation, times, Fault::Failed);
    }

    /// Fails the next calls of `operation` after they have done what they were asked.
    pub fn fail_next_when_done(&self, operation: &str, times: usize) {
        self.plan(operation, times, Fault::AnswerLost);
    }

    /// Holds every call of `operation`, before it does anything, until [`Self::release_hang`].
    pub fn hang(&self, operation: &str) {
        self.hung.send_modify(|hung| {
            hung.insert(operation.to_owned());
        });
    }

    /// Lets everything that hangs get on.
    pub fn release_hang(&self) {
        self.hung.send_modify(BTreeSet::clear);
    }

    /// Whether containerd is away. The ends of tasks that it misses are hinted at, as one, when it is back.
    pub fn unreachable(&self, away: bool) {
        let mut state = self.state();
        state.unreachable = away;
        state.hint(None);
    }

    /// A reboot: nothing is left that only the kernel and `/run` held.
    pub fn forget(&self) {
        let mut state = self.state();
        for held in state.sandboxes.values_mut() {
            (held.files, held.namespaces) = (false, false);
            (held.link, held.fenced) = (false, false);
            for stored in held.containers.values_mut() {
                stored.task = TaskSeen::Missing;
            }
        }
        state.hint(None);
    }

    /// Takes away the lease of a sandbox.
    pub fn lose_lease(&self, id: &SandboxId) {
        if let Some(held) = self.state().sandboxes.get_mut(id) {
            held.lease = false;
        }
    }

    /// Puts an object on the node that no verb made.
    pub fn leave(&self, object: RuntimeObject) {
        self.state().strays.push(object);
    }

    /// Puts an object of the network on the node that no verb made.
    pub fn leave_in_network(&self, object: NetworkObject) {
        self.state().network_strays.push(object);
    }

    /// Whether the shim of this container keeps silent. What runs in it runs on.
    pub fn silence(&self, id: &SandboxId, role: &Role, silent: bool) {
        let shim = (id.clone(), role.clone());
        let mut state = self.state();
        if silent {
            state.silent.insert(shim);
        } else {
            state.silent.remove(&shim);
        }
    }

    /// Lets a program of the node listen.
    pub fn listen_on_node(&self, socket: ListeningSocket) {
        self.state().node_listens.push(socket);
    }

    /// Takes the link of a sandbox away, as a person can.
    pub fn lose_link(&self, id: &SandboxId) {
        if let Some(held) = self.state().sandboxes.get_mut(id) {
            held.link = false;
        }
    }

    /// Makes it a node whose kernel can have no rules.
    pub fn without_rules(&self) {
        self.state().fenceless = true;
    }

    /// Takes the table of the instance away, as a person can.
    pub fn lose_table(&self) {
        self.state().table_lost = true;
    }

    /// Every call of a verb that changes something, in the order of arrival, whatever became of it.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// Whether nothing of any sandbox is left, its output aside.
    pub fn is_empty(&self) -> bool {
        self.leftovers().is_empty()
    }

    /// What is left of sandboxes, their output aside.
    pub fn leftovers(&self) -> Vec<String> {
        let state = self.state();
        let runtime = state
            .runtime_objects()
            .into_iter()
            .filter(|it| it.kind != RuntimeObjectKind::Logs)
            .map(|it| format!("{:?} {}", it.kind, it.name));
        let network = state
            .network_objects()
            .into_iter()
            .map(|it| format!("{:?} {}", it.kind, it.name));
        runtime.chain(network).collect()
    }

    /// Whether the output of the sandbox is kept.
    pub fn has_logs(&self, id: &SandboxId) -> bool {
        self.state().sandboxes.get(id).is_some_and(|held| held.logs)
    }
}

//! How many programs may run beside the containers' own, in one sandbox and on the node.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_domain::{Failure, Reason, SandboxId};

/// The places for programs. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Execs {
    per_sandbox: usize,
    per_node: usize,
    running: Arc<Mutex<BTreeMap<SandboxId, usize>>>,
}

impl Execs {
    pub(crate) fn new(per_sandbox: usize, per_node: usize) -> Self {
        Self {
            per_sandbox,
            per_node,
            running: Arc::default(),
        }
    }

    /// A place for one more program, until it is dropped.
    pub(crate) fn take(&self, id: &SandboxId) -> Result<ExecPlace, Failure> {
        let mut running = self.running();
        let all: usize = running.values().sum();
        let of_sandbox = running.get(id).copied().unwrap_or_default();
        let full = |scope: &str, limit: usize| {
            let message = match scope {
                "sandbox" => format!("sandbox {id} runs {limit} programs, and may run no more"),
                _ => format!("this node runs {limit} programs, and may run no more"),
            };
            let failure = Failure::new(Reason::ExecLimit, message);
            Err(failure.with("scope", scope).with("limit", limit))
        };
        if of_sandbox >= self.per_sandbox {
            return full("sandbox", self.per_sandbox);
        }
        if all >= self.per_node {
            return full("node", self.per_node);
        }
        running.insert(id.clone(), of_sandbox + 1);
        Ok(ExecPlace {
            execs: self.clone(),
            id: id.clone(),
        })
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<SandboxId, usize>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct ExecPlace {
    execs: Execs,
    id: SandboxId,
}

impl Drop for ExecPlace {
    fn drop(&mut self) {
        let mut running = self.execs.running();
        if let Some(number) = running.get_mut(&self.id) {
            *number -= 1;
            if *number == 0 {
                running.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_sandbox_and_by_node_and_come_back() {
        let id = |text| SandboxId::parse(text).unwrap();
        let execs = Execs::new(2, 3);
        let scope =
            |outcome: Result<ExecPlace, Failure>| outcome.unwrap_err().metadata["scope"].clone();
        let (first, second) = (execs.take(&id("a")).unwrap(), execs.take(&id("a")).unwrap());
        assert_eq!(scope(execs.take(&id("a"))), "sandbox");
        let third = execs.take(&id("b")).unwrap();
        assert_eq!(scope(execs.take(&id("b"))), "node");
        drop(first);
        drop(execs.take(&id("b")).unwrap());
        drop((second, third));
        assert!(execs.running().is_empty());
    }
}

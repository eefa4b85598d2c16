//! How many of one kind may be at a time, for one sandbox and on the node: programs, copies, connections, readers of logs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_domain::SandboxId;

/// The places of one kind. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    per_sandbox: usize,
    per_node: usize,
    taken: Arc<Mutex<BTreeMap<SandboxId, usize>>>,
}

/// Where there is no place left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    /// `sandbox` or `node`.
    pub(crate) of: &'static str,
    pub(crate) limit: usize,
}

impl Places {
    pub(crate) fn new(per_sandbox: usize, per_node: usize) -> Self {
        Self {
            per_sandbox,
            per_node,
            taken: Arc::default(),
        }
    }

    /// A place for one more, until it is dropped.
    pub(crate) fn take(&self, id: &SandboxId) -> Result<Place, Full> {
        let mut taken = self.taken();
        let full = |of, limit| Err(Full { of, limit });
        let of_sandbox = taken.get(id).copied().unwrap_or_default();
        if of_sandbox >= self.per_sandbox {
            return full("sandbox", self.per_sandbox);
        }
        if taken.values().sum::<usize>() >= self.per_node {
            return full("node", self.per_node);
        }
        taken.insert(id.clone(), of_sandbox + 1);
        Ok(Place {
            places: self.clone(),
            id: id.clone(),
        })
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.taken().is_empty()
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<SandboxId, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    id: SandboxId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        match taken.get_mut(&self.id) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => drop(taken.remove(&self.id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_sandbox_and_by_node_and_come_back() {
        let id = |text| SandboxId::parse(text).unwrap();
        let places = Places::new(2, 3);
        let full = |id| places.take(&id).unwrap_err();
        let (first, second) = (
            places.take(&id("a")).unwrap(),
            places.take(&id("a")).unwrap(),
        );
        let of = |of, limit| Full { of, limit };
        assert_eq!(full(id("a")), of("sandbox", 2));
        let third = places.take(&id("b")).unwrap();
        assert_eq!(full(id("b")), of("node", 3));
        drop(first);
        drop(places.take(&id("b")).unwrap());
        drop((second, third));
        assert!(places.is_empty(), "nothing is kept of who has none");
    }
}

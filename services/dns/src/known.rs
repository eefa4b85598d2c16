//! What the manager has told. A word about a former sandbox of an id changes nothing about the one that stands.

use std::collections::BTreeMap;

use berth_domain::{
    Generation, SandboxId,
    catalog::{Catalog, Key, Object, Placed},
    ipam::Subnets,
};

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Known {
    /// `None`: never heard of.
    pub(crate) subnets: Option<Subnets>,
    /// Of the manager, which names the tables of the node; empty: never heard of.
    pub(crate) instance: String,
    pub(crate) sandboxes: BTreeMap<SandboxId, Placed>,
    pub(crate) entries: BTreeMap<Key, Object>,
    /// Where the watch of sandboxes resumes; 0: from the beginning.
    pub(crate) sandboxes_revision: u64,
    /// Where the watch of the catalog resumes; 0: from the beginning.
    pub(crate) catalog_revision: u64,
}

/// One word of the manager.
#[derive(Clone, Debug)]
pub(crate) enum Fact {
    Sandbox(Placed),
    SandboxGone(SandboxId, Generation),
    /// All that stands: what is not in it is gone.
    Sandboxes(Vec<Placed>),
    Entry(Object),
    EntryGone(Key),
    /// All that stands: what is not in it is gone.
    Entries(Vec<Object>),
}

impl Known {
    /// Takes a word that was said at `revision`.
    pub(crate) fn learn(&mut self, fact: Fact, revision: u64) {
        match &fact {
            Fact::Sandbox(_) | Fact::SandboxGone(..) | Fact::Sandboxes(_) => {
                self.sandboxes_revision = revision;
            }
            Fact::Entry(_) | Fact::EntryGone(_) | Fact::Entries(_) => {
                self.catalog_revision = revision;
            }
        }
        match fact {
            Fact::Sandbox(it) => {
                let former = self.sandboxes.get(&it.id).map(|it| it.generation);
                if former.is_none_or(|former| former <= it.generation) {
                    self.sandboxes.insert(it.id.clone(), it);
                }
            }
            Fact::SandboxGone(id, generation) => {
                if self.sandboxes.get(&id).map(|it| it.generation) == Some(generation) {
                    self.sandboxes.remove(&id);
                }
            }
            Fact::Sandboxes(all) => {
                self.sandboxes = all.into_iter().map(|it| (it.id.clone(), it)).collect();
            }
            Fact::Entry(it) => drop(self.entries.insert(it.key(), it)),
            Fact::EntryGone(key) => drop(self.entries.remove(&key)),
            Fact::Entries(all) => {
                self.entries = all.into_iter().map(|it| (it.key(), it)).collect();
            }
        }
    }

    pub(crate) fn catalog(&self) -> Catalog {
        let mut catalog = Catalog::default();
        for it in self.entries.values() {
            catalog.put(it.clone());
        }
        catalog
    }
}

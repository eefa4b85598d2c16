//! Network slots: namespaces and a link, made before it is known for whom, for the addresses that will be given next. Nothing
//! of a slot is durable or promised: who finds none makes its own, and what a former process left is removed at the start.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::ErrorKind,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use berth_domain::{Names, SandboxId};

use crate::{
    error::NetnsError,
    ipv6,
    links::{Link, Links},
    namespaces,
    network::{blocking, open_namespaces},
};

#[derive(Debug, Default)]
pub(crate) struct Slots {
    held: Mutex<Held>,
    /// Slots are made and removed by one at a time.
    preparing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Held {
    /// By the address that each is for. `None`: it is being made.
    slots: BTreeMap<Ipv4Addr, Option<Slot>>,
    /// Of sandboxes whose namespaces came from a slot, and whose link is not theirs yet.
    taken: BTreeMap<SandboxId, Slot>,
}

/// A slot that is ready, with the number of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    address: Ipv4Addr,
    link: u32,
}

/// Where slots are, and how they are marked.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) names: &'a Names,
    pub(crate) links: &'a Links,
    pub(crate) group: u32,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) has_ipv6: bool,
}

impl Slots {
    /// Has a slot ready for each of these addresses, and for no other.
    pub(crate) async fn prepare(
        &self,
        place: &Place<'_>,
        wanted: &BTreeSet<Ipv4Addr>,
    ) -> Result<(), NetnsError> {
        let _one = self.preparing.lock().await;
        let unwanted: Vec<_> = {
            let mut held = self.held();
            let slots = std::mem::take(&mut held.slots);
            let (kept, unwanted): (BTreeMap<_, _>, _) =
                slots.into_iter().partition(|(it, _)| wanted.contains(it));
            held.slots = kept;
            unwanted.into_keys().collect()
        };
        for address in unwanted {
            remove(place, address).await?;
        }
        for &address in wanted {
            if self.held().slots.contains_key(&address) {
                continue;
            }
            self.held().slots.insert(address, None);
            match make(place, address).await {
                Ok(link) => {
                    let slot = Slot { address, link };
                    self.held().slots.insert(address, Some(slot));
                }
                Err(error) => {
                    self.held().slots.remove(&address);
                    remove(place, address).await?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Gives the namespaces of a slot to a sandbox that has its address. Returns whether there was one. Blocks.
    pub(crate) fn take(
        &self,
        names: &Names,
        address: Ipv4Addr,
        id: &SandboxId,
    ) -> Result<bool, NetnsError> {
        let slot = {
            let mut held = self.held();
            let Some(&Some(slot)) = held.slots.get(&address) else {
                return Ok(false);
            };
            held.slots.remove(&address);
            held.taken.insert(id.clone(), slot);
            slot
        };
        let (from, to) = (names.slot(slot.address), names.namespaces(id));
        fs::rename(&from, &to).map_err(NetnsError::file("giving away", &from))?;
        namespaces::rename_host(&to, id.as_str())?;
        Ok(true)
    }

    /// The link that belongs to the namespaces which a sandbox was given; to be asked once.
    pub(crate) fn claim(&self, id: &SandboxId) -> Option<u32> {
        self.held().taken.remove(id).map(|it| it.link)
    }

    /// Whether these pinned namespaces are those of a slot.
    pub(crate) fn has_namespaces(&self, names: &Names, path: &Path) -> bool {
        let held = self.held();
        held.slots.keys().any(|it| names.slot(*it) == path)
    }

    /// Whether this link is that of a slot.
    pub(crate) fn has_link(&self, link: &Link) -> bool {
        let held = self.held();
        let taken = held.taken.values().map(|it| it.address);
        let mut addresses = held.slots.keys().copied().chain(taken);
        addresses.any(|it| Names::slot_link(it) == link.name)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// A link of ours has its name and its group before it has its alias.
    pub(crate) fn is_slot(&self, link: &Link) -> bool {
        let unnamed =
            link.alias.is_empty() && link.group == self.group && Names::is_slot_link(&link.name);
        unnamed || link.alias == self.names.slot_alias()
    }
}

/// Removes all slots that there are, whoever made them.
pub(crate) async fn clear(place: &Place<'_>) -> Result<(), NetnsError> {
    for link in place.links.all().await? {
        if place.is_slot(&link) {
            place.links.remove_index(link.index).await?;
        }
    }
    let dir = place.names.namespaces_dir();
    blocking(move || {
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(NetnsError::file("listing", &dir))?,
        };
        for entry in entries {
            let entry = entry.map_err(NetnsError::file("listing", &dir))?;
            if Names::is_slot(&entry.file_name().to_string_lossy()) {
                namespaces::close(&entry.path())?;
            }
        }
        Ok(())
    })
    .await
}

/// Returns the number of the link. Its end on the node is down until it is somebody's.
async fn make(place: &Place<'_>, address: Ipv4Addr) -> Result<u32, NetnsError> {
    let dir = place.names.slot(address);
    let name = Names::slot_link(address);
    open_namespaces(dir.clone(), name.clone()).await?;
    let pin = dir.join("net");
    let namespace = File::open(&pin).map_err(NetnsError::file("opening", &pin))?;
    let links = place.links;
    links
        .add_pair(
            &name,
            place.group,
            place.gateway,
            namespace.as_fd(),
            Some(address),
        )
        .await?;
    if place.has_ipv6 {
        ipv6::set_up_link(&name)?;
    }
    links.set_alias(&name, &place.names.slot_alias()).await?;
    let made = links.find(&name).await?;
    made.map(|it| it.index).ok_or_else(|| NetnsError::Foreign {
        what: format!("link {name} vanished while it was made"),
    })
}

/// Gone is a success.
async fn remove(place: &Place<'_>, address: Ipv4Addr) -> Result<(), NetnsError> {
    place.links.remove(&Names::slot_link(address)).await?;
    let dir = place.names.slot(address);
    blocking(move || namespaces::close(&dir)).await
}

//! Network slots: namespaces and a link, made before it is known for whom, for the addresses that will be given next. Nothing
//! of a slot is durable or promised: who finds none makes its own, and what a former process left is removed at the start.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::ErrorKind,
    net::Ipv4Addr,
    os::fd::AsFd as _,
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
    /// By the address that each is for. `None`: it is being made, or removed.
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
            let slots = held.slots.iter_mut();
            let unwanted = slots.filter(|(it, _)| !wanted.contains(it));
            // Nobody takes it any more, and it is known while it is there.
            let dismissed = unwanted.map(|(address, slot)| {
                *slot = None;
                *address
            });
            dismissed.collect()
        };
        for address in unwanted {
            self.dismiss(place, address).await?;
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
                    self.dismiss(place, address).await?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn dismiss(&self, place: &Place<'_>, address: Ipv4Addr) -> Result<(), NetnsError> {
        let removed = remove(place, address).await;
        self.held().slots.remove(&address);
        removed
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

    /// The addresses of slots that are there, or whose link is.
    pub(crate) fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        let held = self.held();
        let taken = held.taken.values().map(|it| it.address);
        held.slots.keys().copied().chain(taken).collect()
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

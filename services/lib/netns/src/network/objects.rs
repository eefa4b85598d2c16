//! What the network of this instance is made of, for an audit: listed as it stands, and removed where it is still the same.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use berth_domain::{Names, SandboxId};
use berth_platform::{NetworkObject, NetworkObjectKind};

use super::{NetnsNetwork, blocking};
use crate::{error::NetnsError, links::Link, namespaces};

impl NetnsNetwork {
    pub(super) async fn objects(&self) -> Result<Vec<NetworkObject>, NetnsError> {
        let names = self.settings.names.clone();
        // A slot is nobody's yet, and the process that made it knows it: one that was there before these looks, or is behind
        // them.
        let mut slots = self.slots.addresses();
        let links = self.links.all().await?;
        let pinned = blocking({
            let names = names.clone();
            move || pinned(&names)
        });
        let pinned = pinned.await?;
        slots.extend(self.slots.addresses());
        let is_slots = |link: &Link| slots.iter().any(|it| Names::slot_link(*it) == link.name);
        let links = links.into_iter().filter(|it| !is_slots(it));
        let mut objects: Vec<_> = links.filter_map(|link| self.of_link(link)).collect();
        let is_slot = |path: &str| slots.iter().any(|it| names.slot(*it) == Path::new(path));
        objects.extend(pinned.into_iter().filter(|it| !is_slot(&it.name)));
        let rules = self.fenced(|fence| {
            let table = fence.stands()?.then(|| fence.name().to_owned());
            Ok((table, fence.list()?))
        });
        let (table, elements) = rules.await?.unwrap_or_default();
        objects.extend(table.map(|it| of_instance(NetworkObjectKind::Table, it)));
        let elements = elements.into_iter().map(|(name, sandbox)| NetworkObject {
            sandbox,
            ..of_instance(NetworkObjectKind::Element, name)
        });
        objects.extend(elements);
        Ok(objects)
    }

    /// What a link is to this instance; `None` for one of others.
    fn of_link(&self, link: Link) -> Option<NetworkObject> {
        let names = &self.settings.names;
        if link.is_bridge && link.name == self.settings.bridge {
            return Some(of_instance(NetworkObjectKind::Bridge, link.name));
        }
        let sandbox = names.parse_link_alias(&link.alias);
        // A link of ours has its name and its group before it has its alias.
        let unnamed =
            link.alias.is_empty() && link.group == self.group && Names::is_link(&link.name);
        let unnamed = unnamed || self.place().is_slot(&link);
        (sandbox.is_some() || unnamed).then(|| NetworkObject {
            kind: NetworkObjectKind::Link,
            strange: sandbox
                .as_ref()
                .is_some_and(|id| names.link(id) != link.name),
            name: link.name,
            sandbox,
            made_at: None,
            serial: Some(link.index.into()),
        })
    }

    pub(super) async fn remove_listed(&self, object: &NetworkObject) -> Result<(), NetnsError> {
        let another = || NetnsError::Foreign {
            what: format!("{} is another one than was looked at", object.name),
        };
        match object.kind {
            NetworkObjectKind::Link => match self.links.find(&object.name).await? {
                None => Ok(()),
                Some(link) if Some(u64::from(link.index)) == object.serial => {
                    self.links.remove_index(link.index).await?;
                    match object.sandbox.clone().filter(|_| !object.strange) {
                        Some(id) => self.dismiss(id).await,
                        None => Ok(()),
                    }
                }
                Some(_) => Err(another()),
            },
            NetworkObjectKind::Namespaces => {
                let (names, name) = (self.settings.names.clone(), object.name.clone());
                let listed = blocking(move || {
                    let mut objects = pinned(&names)?.into_iter();
                    Ok(objects.find(|it| it.name == name))
                });
                match listed.await? {
                    None => Ok(()),
                    Some(it) if it.serial == object.serial => {
                        let path = PathBuf::from(it.name);
                        blocking(move || match path.is_dir() {
                            true => namespaces::close(&path),
                            false => {
                                fs::remove_file(&path).map_err(NetnsError::file("removing", &path))
                            }
                        })
                        .await
                    }
                    Some(_) => Err(another()),
                }
            }
            // Those of one sandbox stand and go together.
            NetworkObjectKind::Element => match object.sandbox.clone() {
                Some(id) => self.dismiss(id).await,
                None => {
                    let name = object.name.clone();
                    let removed = self.fenced(move |fence| fence.remove(&name));
                    removed.await.map(Option::unwrap_or_default)
                }
            },
            NetworkObjectKind::Table | NetworkObjectKind::Bridge => Err(NetnsError::Foreign {
                what: format!("{} is of the whole instance", object.name),
            }),
        }
    }
}

/// The folders of pinned namespaces.
fn pinned(names: &Names) -> Result<Vec<NetworkObject>, NetnsError> {
    let dir = names.namespaces_dir();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(NetnsError::file("listing", dir)(error)),
    };
    let mut objects = vec![];
    for entry in entries {
        let entry = entry.map_err(NetnsError::file("listing", &dir))?;
        // Others remove while it is listed.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        objects.push(NetworkObject {
            kind: NetworkObjectKind::Namespaces,
            sandbox: SandboxId::parse(&name).ok(),
            name: entry.path().display().to_string(),
            made_at: metadata.created().or_else(|_| metadata.modified()).ok(),
            serial: Some(metadata.ino()),
            strange: false,
        });
    }
    Ok(objects)
}

fn of_instance(kind: NetworkObjectKind, name: String) -> NetworkObject {
    NetworkObject {
        kind,
        name,
        sandbox: None,
        made_at: None,
        serial: None,
        strange: false,
    }
}

//! The verbs of the network, each found again by names from the sandbox id.

use std::{
    fs::{self, File},
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd as _,
    path::PathBuf,
    sync::Arc,
};

use berth_domain::{Extent, Names, Sandbox, SandboxId, ipam};
use berth_platform::{
    ListeningSocket, Network, NetworkError, NetworkObject, NetworkObjectKind, NetworkSeen,
};
use ipnet::Ipv4Net;

use crate::{
    error::NetnsError,
    links::{INSIDE, Link, Links},
    namespaces, sockets,
    table::{self, Masquerade},
};

const EVERYWHERE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);

#[derive(Clone, Debug)]
pub struct Settings {
    pub names: Names,
    pub bridge: String,
    pub subnet: Ipv4Net,
}

/// The network of one instance. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NetnsNetwork {
    settings: Arc<Settings>,
    links: Links,
    bridge: u32,
    masquerade: Masquerade,
}

impl NetnsNetwork {
    /// Makes what all sandboxes share, as far as it is not there: the bridge with its address, forwarding, the table.
    pub async fn start(settings: Settings) -> Result<Self, NetnsError> {
        let instance = settings.names.instance.as_str().to_owned();
        let dir = settings.names.namespaces_dir();
        fs::create_dir_all(&dir).map_err(NetnsError::file("making", &dir))?;
        let links = Links::here()?;
        let subnet = settings.subnet;
        let address = Ipv4Net::new_assert(ipam::gateway(subnet), subnet.prefix_len());
        let alias = format!("berth {instance} bridge");
        let bridge = links.add_bridge(&settings.bridge, &alias, address).await?;
        let forward = PathBuf::from("/proc/sys/net/ipv4/ip_forward");
        if fs::read_to_string(&forward).map_or(true, |it| it.trim() != "1") {
            fs::write(&forward, "1").map_err(NetnsError::file("writing", &forward))?;
        }
        let masquerade = blocking(move || table::install(&instance, subnet)).await?;
        Ok(Self {
            settings: Arc::new(settings),
            links,
            bridge: bridge.index,
            masquerade,
        })
    }

    /// What this host does not allow, a sentence each.
    pub fn degraded(&self) -> Vec<String> {
        match &self.masquerade {
            Masquerade::Installed => vec![],
            Masquerade::Unsupported { message } => vec![format!(
                "no nftables NAT in this kernel: sandboxes do not reach beyond the node ({message})"
            )],
        }
    }

    /// Removes what `start` made.
    pub async fn uninstall(&self) -> Result<(), NetnsError> {
        if self.masquerade == Masquerade::Installed {
            let instance = self.settings.names.instance.as_str().to_owned();
            blocking(move || table::remove(&instance)).await?;
        }
        self.links.remove(&self.settings.bridge).await
    }

    async fn attach(&self, sandbox: &Sandbox) -> Result<(), NetnsError> {
        let names = &self.settings.names;
        let link = names.link(&sandbox.id);
        let dir = names.namespaces(&sandbox.id);
        let pin = dir.join("net");
        let namespace = File::open(&pin).map_err(NetnsError::file("opening", &pin))?;
        let own = sandbox.addresses.iter().find_map(|it| match it.addr() {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        });
        // A former attempt may have ended anywhere.
        self.links.remove(&link).await?;
        self.links
            .add_pair(&link, self.bridge, namespace.as_fd(), own)
            .await?;
        self.links
            .set_alias(&link, &names.link_alias(&sandbox.id))
            .await?;

        let runtime = tokio::runtime::Handle::current();
        let inside = blocking(move || {
            namespaces::inside(&dir, || {
                let _runtime = runtime.enter();
                Links::here()
            })
        })
        .await?;
        let eth = inside
            .find(INSIDE)
            .await?
            .ok_or_else(|| NetnsError::Foreign {
                what: format!(
                    "{INSIDE} of sandbox {} vanished while it was made",
                    sandbox.id
                ),
            })?;
        for net in &sandbox.addresses {
            inside.add_address(eth.index, net).await?;
        }
        inside.set_up(eth.index).await?;
        let gateway = ipam::gateway(self.settings.subnet);
        inside.add_route(EVERYWHERE, gateway).await?;
        for route in &sandbox.spec.routes {
            inside
                .add_route(route.destination, route.gateway.unwrap_or(gateway))
                .await?;
        }
        Ok(())
    }

    async fn objects(&self) -> Result<Vec<NetworkObject>, NetnsError> {
        let names = self.settings.names.clone();
        let links = self.links.all().await?;
        let links = links.into_iter().filter_map(|link| self.of_link(link));
        let mut objects: Vec<_> = links.collect();
        let on_host = blocking(move || {
            let mut objects = pinned(&names)?;
            let table = table::name(names.instance.as_str());
            if table::exists(&table)? {
                objects.push(of_instance(NetworkObjectKind::Table, table));
            }
            Ok(objects)
        });
        objects.extend(on_host.await?);
        Ok(objects)
    }

    /// What a link is to this instance; `None` for one of others.
    fn of_link(&self, link: Link) -> Option<NetworkObject> {
        let names = &self.settings.names;
        if link.is_bridge && link.name == self.settings.bridge {
            return Some(of_instance(NetworkObjectKind::Bridge, link.name));
        }
        let sandbox = names.parse_link_alias(&link.alias);
        // A link of ours has its name and its bridge before it has its alias. What else is on the bridge, somebody put there.
        let unnamed = link.alias.is_empty()
            && link.controller == Some(self.bridge)
            && Names::is_link(&link.name);
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

    async fn remove_listed(&self, object: &NetworkObject) -> Result<(), NetnsError> {
        let another = || NetnsError::Foreign {
            what: format!("{} is another one than was looked at", object.name),
        };
        match object.kind {
            NetworkObjectKind::Link => match self.links.find(&object.name).await? {
                None => Ok(()),
                Some(link) if Some(u64::from(link.index)) == object.serial => {
                    self.links.remove_index(link.index).await
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
            NetworkObjectKind::Table | NetworkObjectKind::Bridge => Err(NetnsError::Foreign {
                what: format!("{} is of the whole instance", object.name),
            }),
        }
    }
}

impl Network for NetnsNetwork {
    async fn observe(&self, id: &SandboxId) -> Result<NetworkSeen, NetworkError> {
        let names = &self.settings.names;
        let link = self.links.find(&names.link(id)).await?;
        let dir = names.namespaces(id);
        Ok(NetworkSeen {
            namespaces: Extent::of(&[dir.exists(), namespaces::are_open(&dir)]),
            link: link.is_some(),
        })
    }

    async fn open_namespaces(&self, sandbox: &Sandbox) -> Result<(), NetworkError> {
        let dir = self.settings.names.namespaces(&sandbox.id);
        let id = sandbox.id.clone();
        let runtime = tokio::runtime::Handle::current();
        let inside = blocking(move || {
            if namespaces::are_open(&dir) {
                return Ok(None);
            }
            namespaces::close(&dir)?;
            namespaces::open(&dir, id.as_str(), || {
                // As container runtimes do: an app needs no rights to listen on port 80 of a network of its own.
                let ports = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
                fs::write(ports, "0").map_err(NetnsError::file("writing", ports))?;
                let _runtime = runtime.enter();
                Links::here().map(Some)
            })
        })
        .await?;
        let Some(inside) = inside else { return Ok(()) };
        if let Some(loopback) = inside.find("lo").await? {
            inside.set_up(loopback.index).await?;
        }
        Ok(())
    }

    async fn attach_link(&self, sandbox: &Sandbox) -> Result<(), NetworkError> {
        Ok(self.attach(sandbox).await?)
    }

    async fn detach_link(&self, id: &SandboxId) -> Result<(), NetworkError> {
        Ok(self.links.remove(&self.settings.names.link(id)).await?)
    }

    async fn close_namespaces(&self, id: &SandboxId) -> Result<(), NetworkError> {
        let dir = self.settings.names.namespaces(id);
        Ok(blocking(move || namespaces::close(&dir)).await?)
    }

    async fn listening(&self, id: &SandboxId) -> Result<Vec<ListeningSocket>, NetworkError> {
        let dir = self.settings.names.namespaces(id);
        Ok(blocking(move || namespaces::inside(&dir, sockets::listening)).await?)
    }

    async fn list(&self) -> Result<Vec<NetworkObject>, NetworkError> {
        Ok(self.objects().await?)
    }

    fn standing(&self) -> Vec<(NetworkObjectKind, String)> {
        let mut standing = vec![(NetworkObjectKind::Bridge, self.settings.bridge.clone())];
        if self.masquerade == Masquerade::Installed {
            let instance = self.settings.names.instance.as_str();
            standing.push((NetworkObjectKind::Table, table::name(instance)));
        }
        standing
    }

    async fn remove_object(&self, object: &NetworkObject) -> Result<(), NetworkError> {
        Ok(self.remove_listed(object).await?)
    }
}

/// The folders of pinned namespaces.
fn pinned(names: &Names) -> Result<Vec<NetworkObject>, NetnsError> {
    use std::os::unix::fs::MetadataExt as _;
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

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetnsError> + Send + 'static,
) -> Result<T, NetnsError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away, and with it whoever waits here.
            Err(_) => std::future::pending().await,
        },
    }
}

//! The verbs of the network, each found again by names from the sandbox id.

mod objects;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_domain::{
    Extent, Names, ProbeCheck, Sandbox, SandboxId,
    ipam::{self, Subnets},
};
use berth_platform::{
    ConnectError, Denied, FencingSeen, ListeningSocket, Network, NetworkError, NetworkObject,
    NetworkObjectKind, NetworkSeen, ProbeError,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::IpVersion;
use tokio::net::TcpStream;

use crate::{
    admit::Abilities,
    connect,
    error::NetnsError,
    fence::{self, Fence, Fencing},
    foreign::Passage,
    ipv6,
    links::{INSIDE, Link, Links},
    namespaces, others, owned, probes,
    rules::{self, Frame},
    rules6::{Frame6, NEXT_HOP, link_local},
    slots::{self, Slots},
    sockets,
    ways::{self, Way},
};

/// Rules that somebody took away are back after this.
const LOOK_AT_RULES: Duration = Duration::from_secs(1);
/// Each so many looks, also what else leads to sandboxes is looked at, and what may stand in the way without a word.
const LOOK_AT_WAYS: u64 = 5;
const EVERYWHERE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
/// Of an address that is good for one link.
pub(crate) const LINK_LOCAL_PREFIX: u8 = 64;

#[derive(Clone, Debug)]
pub struct Settings {
    pub names: Names,
    pub bridge: String,
    pub subnets: Subnets,
    /// Who beyond the node may open connections to the addresses of sandboxes.
    pub reachable_from: Vec<IpNet>,
    /// Connections that one sandbox may have opened at a time; 0 for no limit.
    pub connections_max: u32,
    /// Whether an accept of ours may stand in a firewall of others that drops what is forwarded.
    pub foreign_accept: bool,
}

/// The network of one instance. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NetnsNetwork {
    pub(crate) settings: Arc<Settings>,
    pub(crate) links: Links,
    /// That all links of this instance are in.
    group: u32,
    fencing: Arc<Fencing>,
    slots: Arc<Slots>,
    /// Of all sandboxes with a link.
    ways: Arc<Mutex<BTreeMap<SandboxId, Way>>>,
}

impl NetnsNetwork {
    /// Makes what all sandboxes share, as far as it is not there: the bridge with its address, forwarding, the table.
    pub async fn start(settings: Settings) -> Result<Self, NetnsError> {
        let instance = settings.names.instance.as_str().to_owned();
        let dir = settings.names.namespaces_dir();
        fs::create_dir_all(&dir).map_err(NetnsError::file("making", &dir))?;
        let links = Links::here()?;
        let Subnets {
            v4: subnet,
            v6: subnet6,
        } = settings.subnets;
        // Before anything is made.
        if let Some(subnet) = subnet6 {
            ipv6::check(subnet)?;
        }
        let v6 = subnet6.map(|subnet| Frame6 {
            subnet,
            gateway: ipam::address6(subnet, ipam::gateway(settings.subnets.v4)),
        });
        let group = rules::group(&instance);
        let own = |it: &Link| it.name == settings.bridge || it.group == group;
        // Where sandboxes live already, whoever came later is somebody else's to mend.
        if links.find(&settings.bridge).await?.is_none() {
            let families = match subnet6 {
                Some(_) => &[IpVersion::V4, IpVersion::V6][..],
                None => &[IpVersion::V4],
            };
            let claims = links.claims(families, own).await?;
            others::check("network.subnet", subnet.into(), &claims)?;
            if let Some(subnet6) = subnet6 {
                others::check("network.subnet6", subnet6.into(), &claims)?;
            }
        }
        ways::keep_bridge(&links, &settings).await?;
        let frame = Frame {
            instance,
            subnet,
            gateway: ipam::gateway(subnet),
            reachable_from: settings.reachable_from.clone(),
            v6,
            connections_max: settings.connections_max,
            abilities: Abilities::ALL,
        };
        let passage = passage(&settings);
        let fencing = blocking(move || Fence::start(frame, passage)).await?;
        let network = Self {
            settings: Arc::new(settings),
            links,
            group,
            fencing: Arc::new(fencing),
            slots: Arc::default(),
            ways: Arc::default(),
        };
        slots::clear(&network.place()).await?;
        Ok(network)
    }

    pub(crate) fn ways(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Way>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again and again whether the rules and the ways to all sandboxes stand, and makes them anew where somebody has
    /// taken them away. Ends never.
    pub async fn keep(&self) {
        for look in 0_u64.. {
            match self.fenced(Fence::look).await {
                Ok(Some(false)) => tracing::warn!("the rules were taken away, and are made anew"),
                Ok(Some(true) | None) => {}
                Err(error) => warn(error, "the rules cannot be kept"),
            }
            if let Err(error) = self.fenced(Fence::look_at_others).await {
                warn(error, "a firewall of others stays as it is");
            }
            if look.is_multiple_of(LOOK_AT_WAYS) {
                if let Err(error) = self.keep_ways().await {
                    warn(error, "the ways to sandboxes cannot be kept");
                }
                let looked = self.fenced(|fence| {
                    fence.look_at_legacy();
                    Ok(())
                });
                if let Err(error) = looked.await {
                    warn(error, "firewalls of iptables-legacy");
                }
            }
            tokio::time::sleep(LOOK_AT_RULES).await;
        }
    }

    /// Does `work` with the rules, where this kernel has any.
    async fn fenced<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Fence) -> Result<T, NetnsError> + Send + 'static,
    ) -> Result<Option<T>, NetnsError> {
        let fencing = self.fencing.clone();
        blocking(move || match &*fencing {
            Fencing::Stands(fence) => work(fence).map(Some),
            Fencing::Unsupported { .. } => Ok(None),
        })
        .await
    }

    /// Removes what there is of what `start` makes, and makes nothing.
    pub async fn uninstall(settings: &Settings) -> Result<(), NetnsError> {
        let links = Links::here()?;
        slots::clear(&place(settings, &links)).await?;
        ways::forget_switched(settings)?;
        let passage = passage(settings);
        blocking(move || fence::uninstall(&passage)).await?;
        match links.find(&settings.bridge).await? {
            Some(link) if link.is_bridge && link.alias == bridge_alias(&settings.names) => {
                links.remove_index(link.index).await
            }
            // A link of others, whose name our settings have.
            Some(_) | None => Ok(()),
        }
    }

    async fn attach(&self, sandbox: &Sandbox) -> Result<(), NetnsError> {
        let names = &self.settings.names;
        let link = names.link(&sandbox.id);
        let dir = names.namespaces(&sandbox.id);
        let pin = dir.join("net");
        let namespace = File::open(&pin).map_err(NetnsError::file("opening", &pin))?;
        let own = ipv4(sandbox).next();
        let own6 = ipv6(sandbox).next();
        // The rules are first, so that no packet of the link is ever without them.
        let (fenced, its_link) = (sandbox.clone(), link.clone());
        self.fenced(move |fence| fence.admit(&fenced, its_link))
            .await?;
        // A former attempt may have ended anywhere.
        self.links.remove(&link).await?;
        let index = self
            .outside(&sandbox.id, &link, namespace.as_fd(), own)
            .await?;
        let gateway = ipam::gateway(self.settings.subnets.v4);
        if let Some(ip) = own {
            let has_node_ports = sandbox.spec.node_ports().next().is_some();
            let way = Way {
                link,
                ip,
                ip6: own6,
                has_node_ports,
            };
            self.lead(&way, index).await?;
            self.ways().insert(sandbox.id.clone(), way);
        }

        let runtime = tokio::runtime::Handle::current();
        let inside = blocking(move || {
            namespaces::inside(&dir, || {
                if own6.is_some() {
                    ipv6::set_up_link(INSIDE)?;
                }
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
        for net in sandbox.addresses.iter().filter(|it| it.addr().is_ipv4()) {
            // Of one host: nobody is a neighbour but the node, so that all that it sends is routed and passes the rules,
            // and no search for neighbours fills the table that all of the node share.
            inside.add_address(eth.index, &net.addr().into()).await?;
        }
        inside.set_up(eth.index).await?;
        inside
            .add_neighbour(eth.index, gateway.into(), rules::hardware_address(gateway))
            .await?;
        inside.add_host_route(gateway, eth.index, None).await?;
        inside.add_route(EVERYWHERE, gateway).await?;
        if let (Some(ip), Some(ip6)) = (own, own6) {
            let own = Ipv6Net::new_assert(link_local(ip), LINK_LOCAL_PREFIX);
            inside.add_address6(eth.index, own).await?;
            inside.add_address6(eth.index, ip6.into()).await?;
            inside
                .add_neighbour(eth.index, NEXT_HOP.into(), rules::hardware_address(gateway))
                .await?;
            inside.add_default_route6(eth.index, NEXT_HOP).await?;
        }
        for route in &sandbox.spec.routes {
            // The node is the only neighbour.
            inside.add_route(route.destination, gateway).await?;
        }
        Ok(())
    }

    /// Makes the node's end of a sandbox's link, and returns its number.
    async fn outside(
        &self,
        id: &SandboxId,
        link: &str,
        namespace: BorrowedFd<'_>,
        own: Option<Ipv4Addr>,
    ) -> Result<u32, NetnsError> {
        let alias = self.settings.names.link_alias(id);
        if let Some(slot) = self.slots.claim(id) {
            match self.links.take_over(slot, link, &alias).await {
                Ok(()) => return Ok(slot),
                Err(error) => {
                    let error = NetworkError::from(error);
                    tracing::warn!(sandbox = %id, %error, cause = %error.source, "a network slot is of no use");
                    self.links.remove_index(slot).await?;
                }
            }
        }
        let gateway = ipam::gateway(self.settings.subnets.v4);
        self.links
            .add_pair(link, self.group, gateway, namespace, own)
            .await?;
        let made = self.links.find(link).await?;
        let made = made.ok_or_else(|| NetnsError::Foreign {
            what: format!("link {link} vanished while it was made"),
        })?;
        if self.settings.subnets.v6.is_some() {
            ipv6::set_up_link(link)?;
        }
        self.links.take_over(made.index, link, &alias).await?;
        Ok(made.index)
    }

    /// Has network slots ready for each of these addresses, and for no other.
    pub async fn prepare_slots(&self, addresses: BTreeSet<Ipv4Addr>) -> Result<(), NetworkError> {
        Ok(self.slots.prepare(&self.place(), &addresses).await?)
    }

    fn place(&self) -> slots::Place<'_> {
        place(&self.settings, &self.links)
    }

    /// The link of a slot that a sandbox was given and that never became its own.
    async fn drop_slot(&self, id: &SandboxId) -> Result<(), NetnsError> {
        match self.slots.claim(id) {
            Some(link) => self.links.remove_index(link).await,
            None => Ok(()),
        }
    }

    async fn open_in_own_network(&self, id: SandboxId) -> Result<(), NetnsError> {
        let dir = self.settings.names.namespaces(&id);
        blocking(move || {
            if namespaces::are_open(&dir) {
                return Ok(());
            }
            namespaces::close(&dir)?;
            namespaces::open_in_own_network(&dir, id.as_str())
        })
        .await
    }

    async fn dismiss(&self, id: SandboxId) -> Result<(), NetnsError> {
        self.ways().remove(&id);
        let dismissed = self.fenced(move |fence| fence.dismiss(&id));
        dismissed.await.map(Option::unwrap_or_default)
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
        if sandbox.spec.host_network {
            return Ok(self.open_in_own_network(sandbox.id.clone()).await?);
        }
        let dir = self.settings.names.namespaces(&sandbox.id);
        let id = sandbox.id.clone();
        let (names, slots) = (self.settings.names.clone(), self.slots.clone());
        let address = ipv4(sandbox).next();
        let open = blocking(move || {
            let dir = names.namespaces(&id);
            if namespaces::are_open(&dir) {
                return Ok(true);
            }
            namespaces::close(&dir)?;
            match address.map_or(Ok(false), |it| slots.take(&names, it, &id)) {
                Err(error) => {
                    let error = NetworkError::from(error);
                    tracing::warn!(sandbox = %id, %error, cause = %error.source, "a network slot is of no use");
                    namespaces::close(&dir)?;
                    Ok(false)
                }
                taken => taken,
            }
        });
        if !open.await? {
            self.drop_slot(&sandbox.id).await?;
            open_namespaces(dir, sandbox.id.to_string()).await?;
        }
        Ok(())
    }

    async fn attach_link(&self, sandbox: &Sandbox) -> Result<(), NetworkError> {
        Ok(self.attach(sandbox).await?)
    }

    async fn detach_link(&self, id: &SandboxId) -> Result<(), NetworkError> {
        self.drop_slot(id).await?;
        self.links.remove(&self.settings.names.link(id)).await?;
        Ok(self.dismiss(id.clone()).await?)
    }

    async fn forget_connections(&self, addresses: Vec<Ipv4Addr>) -> Result<(), NetworkError> {
        let subnets = self.settings.subnets;
        let both = addresses.into_iter().flat_map(|it| subnets.addresses(it));
        let both: Vec<_> = both.map(|it| it.addr()).collect();
        self.fenced(move |fence| fence.forget(&both)).await?;
        Ok(())
    }

    async fn restore(&self, sandboxes: Vec<Sandbox>) -> Result<(), NetworkError> {
        let links = self.links.all().await?.into_iter();
        let links: BTreeSet<_> = links.map(|it| it.name).collect();
        let with_link = |it: Sandbox| {
            let link = self.settings.names.link(&it.id);
            (it, link)
        };
        let sandboxes = sandboxes.into_iter().map(with_link);
        let (linked, others): (Vec<_>, Vec<_>) =
            sandboxes.partition(|(_, link)| links.contains(link));
        *self.ways() = linked
            .iter()
            .filter_map(|(it, link)| {
                let way = Way {
                    link: link.clone(),
                    ip: ipv4(it).next()?,
                    ip6: ipv6(it).next(),
                    has_node_ports: it.spec.node_ports().next().is_some(),
                };
                Some((it.id.clone(), way))
            })
            .collect();
        let addresses = others.iter().flat_map(|(it, _)| &it.addresses);
        let addresses: Vec<_> = addresses.map(IpNet::addr).collect();
        let restored = self.fenced(move |fence| {
            fence.restore(&linked)?;
            // The former process may have ended between the end of a link and this.
            fence.forget(&addresses)
        });
        restored.await?;
        Ok(self.keep_ways().await?)
    }

    async fn denied(&self, id: &SandboxId) -> Result<Option<Denied>, NetworkError> {
        let id = id.clone();
        let denied = self.fenced(move |fence| fence.denied(&id)).await?;
        Ok(denied.flatten())
    }

    async fn node_listens(&self) -> Result<Vec<ListeningSocket>, NetworkError> {
        Ok(blocking(sockets::listening).await?)
    }

    async fn close_namespaces(&self, id: &SandboxId) -> Result<(), NetworkError> {
        self.drop_slot(id).await?;
        // Its link may have been taken away by somebody else. First, so that what fails here is done again.
        self.dismiss(id.clone()).await?;
        let dir = self.settings.names.namespaces(id);
        Ok(blocking(move || namespaces::close(&dir)).await?)
    }

    async fn connect(&self, id: &SandboxId, port: u16) -> Result<TcpStream, ConnectError> {
        let dir = self.settings.names.namespaces(id);
        connect::connect(&dir, port).await
    }

    async fn listening(&self, id: &SandboxId) -> Result<Vec<ListeningSocket>, NetworkError> {
        let dir = self.settings.names.namespaces(id);
        let listening = blocking(move || match namespaces::is_own_network(&dir)? {
            true => owned::listening(&dir),
            false => namespaces::inside(&dir, sockets::listening),
        });
        Ok(listening.await?)
    }

    async fn lead_node_ports(&self, sandbox: &Sandbox) -> Result<(), NetworkError> {
        let link = self.settings.names.link(&sandbox.id);
        if self.links.find(&link).await?.is_none() {
            let what = format!("sandbox {} has no link", sandbox.id);
            return Err(NetnsError::Foreign { what }.into());
        }
        let sandbox = sandbox.clone();
        self.fenced(move |fence| fence.admit(&sandbox, link))
            .await?;
        Ok(())
    }

    async fn probe(&self, sandbox: &Sandbox, check: &ProbeCheck) -> Result<(), ProbeError> {
        let own = sandbox.addresses.first().map(IpNet::addr);
        let address = own.unwrap_or(Ipv4Addr::LOCALHOST.into());
        probes::ask(address, check).await
    }

    async fn list(&self) -> Result<Vec<NetworkObject>, NetworkError> {
        Ok(self.objects().await?)
    }

    fn degraded(&self) -> Vec<String> {
        let mut degraded = match &*self.fencing {
            Fencing::Stands(fence) => fence.degraded(),
            Fencing::Unsupported { message } => vec![format!(
                "no nftables NAT in this kernel: sandboxes do not reach beyond the node, have no node ports, and nothing \
                 keeps them from each other and from the node ({message})"
            )],
        };
        let routes = ways::switched_on(&self.settings);
        if !routes.is_empty() {
            let families = routes.join(" and ");
            degraded.push(format!(
                "Berth has made this node a router for {families}, which it was not: between links of others it routes as \
                 well, unless a firewall says no"
            ));
        }
        degraded
    }

    async fn fencing(&self) -> Result<Option<FencingSeen>, NetworkError> {
        let seen = self.fenced(|fence| {
            Ok(FencingSeen {
                table: fence.name().to_owned(),
                stands: fence.stands()?,
                accepts: fence.others().accepts,
            })
        });
        Ok(seen.await?)
    }

    fn link_name(&self, id: &SandboxId) -> String {
        self.settings.names.link(id)
    }

    fn standing(&self) -> Vec<(NetworkObjectKind, String)> {
        let table = match &*self.fencing {
            Fencing::Stands(fence) => Some((NetworkObjectKind::Table, fence.name().to_owned())),
            Fencing::Unsupported { .. } => None,
        };
        let bridge = (NetworkObjectKind::Bridge, self.settings.bridge.clone());
        table.into_iter().chain([bridge]).collect()
    }

    async fn remove_object(&self, object: &NetworkObject) -> Result<(), NetworkError> {
        Ok(self.remove_listed(object).await?)
    }
}

fn place<'a>(settings: &'a Settings, links: &'a Links) -> slots::Place<'a> {
    slots::Place {
        names: &settings.names,
        links,
        group: rules::group(settings.names.instance.as_str()),
        gateway: ipam::gateway(settings.subnets.v4),
        has_ipv6: settings.subnets.v6.is_some(),
    }
}

fn passage(settings: &Settings) -> Passage {
    let Subnets { v4, v6 } = settings.subnets;
    let instance = settings.names.instance.as_str().to_owned();
    Passage {
        table: rules::table(&instance),
        instance,
        subnets: std::iter::once(v4.into())
            .chain(v6.map(IpNet::from))
            .collect(),
        places: settings.foreign_accept,
    }
}

pub(crate) fn bridge_alias(names: &Names) -> String {
    format!("berth {} bridge", names.instance)
}

fn warn(error: NetnsError, what: &str) {
    let error = NetworkError::from(error);
    tracing::warn!(%error, cause = %error.source, "{what}");
}

fn ipv4(sandbox: &Sandbox) -> impl Iterator<Item = Ipv4Addr> {
    sandbox.addresses.iter().filter_map(|it| match it.addr() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    })
}

fn ipv6(sandbox: &Sandbox) -> impl Iterator<Item = Ipv6Addr> {
    sandbox.addresses.iter().filter_map(|it| match it.addr() {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    })
}

/// Makes namespaces in which the loopback is up, and pins them in `dir`.
pub(crate) async fn open_namespaces(dir: PathBuf, host_name: String) -> Result<(), NetnsError> {
    let runtime = tokio::runtime::Handle::current();
    let inside = blocking(move || {
        namespaces::open(&dir, &host_name, || {
            // As container runtimes do: an app needs no rights to listen on port 80 of a network of its own.
            let ports = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
            fs::write(ports, "0").map_err(NetnsError::file("writing", ports))?;
            let _runtime = runtime.enter();
            Links::here()
        })
    })
    .await?;
    match inside.find("lo").await? {
        Some(loopback) => inside.set_up(loopback.index).await,
        None => Ok(()),
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
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

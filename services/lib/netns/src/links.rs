//! Links, addresses and routes over netlink: requests by name, with "is gone" as an answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use futures::{TryStream, TryStreamExt as _};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::{
    Handle, IpVersion, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope},
    },
};
use rustix::io::Errno;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    error::NetnsError,
    others::{self, Claim, ClaimKind},
    rules::hardware_address,
};

/// The kernel tells the longest list in less time.
const BUSY: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(1);

/// The link inside every sandbox.
pub(crate) const INSIDE: &str = "eth0";

/// `RT_TABLE_LOCAL`: what the kernel itself writes down of each address.
const LOCAL_TABLE: u8 = 255;

#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) group: u32,
    pub(crate) is_bridge: bool,
    pub(crate) is_up: bool,
}

/// Netlink requests of one network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    handle: Handle,
    /// A socket lists one thing at a time: whoever asks meanwhile is refused by the kernel as busy.
    listing: Arc<Mutex<()>>,
}

impl Links {
    /// Opens a socket in the namespace of the calling thread, which has to be inside of a runtime.
    pub(crate) fn here() -> Result<Self, NetnsError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| NetnsError::Kernel {
                operation: "opening netlink",
                source,
            })?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            listing: Arc::default(),
        })
    }

    pub(crate) async fn find(&self, name: &str) -> Result<Option<Link>, NetnsError> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.map(read)),
            Err(error) if is(&error, Errno::NODEV) => Ok(None),
            Err(error) => Err(failed(format!("looking up link {name}"), error)),
        }
    }

    pub(crate) async fn all(&self) -> Result<Vec<Link>, NetnsError> {
        let ask = || self.handle.link().get().execute();
        let all = self.list("listing links", ask).await?;
        Ok(all.into_iter().map(read).collect())
    }

    /// Takes all that the kernel lists, in its turn. What somebody has asked for who is gone the kernel tells to its end all
    /// the same, and is busy meanwhile.
    async fn list<T, S>(
        &self,
        what: &'static str,
        ask: impl Fn() -> S,
    ) -> Result<Vec<T>, NetnsError>
    where
        S: TryStream<Ok = T, Error = rtnetlink::Error>,
    {
        let _turn = self.listing.lock().await;
        let deadline = Instant::now() + BUSY;
        loop {
            match ask().try_collect().await {
                Err(error) if is(&error, Errno::BUSY) && Instant::now() < deadline => {
                    tokio::time::sleep(AGAIN).await;
                }
                listed => return listed.map_err(|it| failed(what, it)),
            }
        }
    }

    pub(crate) async fn add_bridge(
        &self,
        name: &str,
        alias: &str,
        net: Ipv4Net,
    ) -> Result<Link, NetnsError> {
        let found = match self.find(name).await? {
            Some(link) => link,
            None => {
                // With an address of its own the bridge does not take that of each new link.
                let bridge = LinkBridge::new(name)
                    .address(hardware_address(net.addr()).into())
                    .build();
                self.request(
                    format!("adding bridge {name}"),
                    self.handle.link().add(bridge).execute(),
                )
                .await?;
                self.set_alias(name, alias).await?;
                self.find(name).await?.ok_or_else(|| NetnsError::Foreign {
                    what: format!("bridge {name} vanished while it was made"),
                })?
            }
        };
        if !found.is_bridge || !(found.alias.is_empty() || found.alias == alias) {
            return Err(NetnsError::Misconfigured {
                setting: "network.bridge",
                problem: format!("link {name} exists and is not the bridge of this instance"),
            });
        }
        let addresses = self.addresses().await?.into_iter();
        let own = addresses.filter(|(index, _)| *index == found.index);
        let four = |it| match it {
            IpNet::V4(it) => Some(it),
            IpNet::V6(_) => None,
        };
        let own: Vec<_> = own.filter_map(|(_, it)| four(it)).collect();
        others::check_bridge(name, net, own.iter().copied())?;
        if !own.contains(&net) {
            self.add_address(found.index, &net.into()).await?;
        }
        if !found.is_up {
            self.set_up(found.index).await?;
        }
        Ok(found)
    }

    /// The networks of these families that links lead to, other than those that `is_own` knows.
    pub(crate) async fn claims(
        &self,
        families: &[IpVersion],
        is_own: impl Fn(&Link) -> bool,
    ) -> Result<Vec<Claim>, NetnsError> {
        let links: BTreeMap<u32, Link> = self
            .all()
            .await?
            .into_iter()
            .map(|it| (it.index, it))
            .collect();
        let claim = |kind, index: u32, net| {
            let link = links.get(&index).filter(|it| !is_own(it))?;
            let link = link.name.clone();
            Some(Claim { kind, net, link })
        };
        let addresses = self.addresses().await?.into_iter();
        let mut claims: Vec<_> = addresses
            .filter_map(|(index, net)| claim(ClaimKind::Address, index, net))
            .collect();
        for family in families {
            let routes = self.routes(family.clone()).await?.into_iter();
            claims.extend(routes.filter_map(|(index, net)| claim(ClaimKind::Route, index, net)));
        }
        Ok(claims)
    }

    /// The addresses of all links that others can reach, by the numbers of these.
    async fn addresses(&self) -> Result<Vec<(u32, IpNet)>, NetnsError> {
        let ask = || self.handle.address().get().execute();
        let all = self.list("listing addresses", ask).await?;
        Ok(all.iter().filter_map(read_address).collect())
    }

    /// Makes a pair whose other end is [`INSIDE`] the namespace `inside`, with the hardware address that belongs to `ip`:
    /// what others remember of an address stays true when its sandbox is made again. This end has that of `outside`, and is
    /// down: many kernels rename no link that is up.
    pub(crate) async fn add_pair(
        &self,
        name: &str,
        group: u32,
        outside: Ipv4Addr,
        inside: BorrowedFd<'_>,
        ip: Option<Ipv4Addr>,
    ) -> Result<(), NetnsError> {
        let mut peer = LinkUnspec::new_with_name(INSIDE).setns_by_fd(inside.as_raw_fd());
        if let Some(ip) = ip {
            peer = peer.address(hardware_address(ip).into());
        }
        // Setting the peer up in this message is refused by the kernel.
        let pair = LinkVeth::new(name, INSIDE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .append_extra_attribute(LinkAttribute::Group(group))
            .address(hardware_address(outside).into())
            .build();
        self.request(
            format!("adding link {name}"),
            self.handle.link().add(pair).execute(),
        )
        .await
    }

    /// Gives the link with this number a name and an alias, and sets it up.
    pub(crate) async fn take_over(
        &self,
        index: u32,
        name: &str,
        alias: &str,
    ) -> Result<(), NetnsError> {
        let message = LinkUnspec::new_with_index(index).name(name).alias(alias);
        let taken = self.handle.link().set(message.up().build());
        self.request(format!("taking over link {name}"), taken.execute())
            .await
    }

    pub(crate) async fn set_alias(&self, name: &str, alias: &str) -> Result<(), NetnsError> {
        let message = LinkUnspec::new_with_name(name).alias(alias).build();
        self.request(
            format!("naming link {name}"),
            self.handle.link().set(message).execute(),
        )
        .await
    }

    pub(crate) async fn set_up(&self, index: u32) -> Result<(), NetnsError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.request(
            "setting a link up",
            self.handle.link().set(message).execute(),
        )
        .await
    }

    pub(crate) async fn add_address(&self, index: u32, net: &IpNet) -> Result<(), NetnsError> {
        let add = self
            .handle
            .address()
            .add(index, net.addr(), net.prefix_len())
            .replace();
        self.request(format!("adding address {net}"), add.execute())
            .await
    }

    /// Tells the hardware address of a neighbour, so that nobody is asked for it and nobody can say another one.
    pub(crate) async fn add_neighbour(
        &self,
        index: u32,
        address: IpAddr,
        hardware: [u8; 6],
    ) -> Result<(), NetnsError> {
        let add = self.handle.neighbours().add(index, address);
        let add = add.link_layer_address(&hardware).replace();
        self.request(format!("adding neighbour {address}"), add.execute())
            .await
    }

    pub(crate) async fn add_route(
        &self,
        destination: Ipv4Net,
        gateway: Ipv4Addr,
    ) -> Result<(), NetnsError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.network(), destination.prefix_len())
            .gateway(gateway)
            .build();
        let add = self.handle.route().add(route).replace();
        self.request(
            format!("adding the route to {destination} by {gateway}"),
            add.execute(),
        )
        .await
    }

    /// Adds an address that is ours alone, so that nobody is asked whether it is free: it can be used at once, also on a link
    /// that nothing is plugged into.
    pub(crate) async fn add_address6(&self, index: u32, net: Ipv6Net) -> Result<(), NetnsError> {
        let addresses = self.handle.address();
        let mut add = addresses.add(index, net.addr().into(), net.prefix_len());
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        add.message_mut().attributes.push(flags);
        self.request(format!("adding address {net}"), add.replace().execute())
            .await
    }

    /// Has a link have this one IPv6 address that others can reach, and no other.
    pub(crate) async fn keep_address6(
        &self,
        index: u32,
        kept: Option<Ipv6Net>,
    ) -> Result<(), NetnsError> {
        let ask = || {
            let of_link = self.handle.address().get().set_link_index_filter(index);
            of_link.execute()
        };
        let all = self.list("listing addresses", ask).await?;
        let mut has_it = false;
        for message in all {
            let length = message.header.prefix_len;
            let address = message.attributes.iter().find_map(|it| {
                if let AddressAttribute::Address(IpAddr::V6(ip)) = it {
                    return Some(Ipv6Net::new_assert(*ip, length));
                }
                None
            });
            has_it |= address.is_some() && address == kept;
            let Some(address) = address.filter(|it| Some(*it) != kept) else {
                continue;
            };
            if message.header.scope == AddressScope::Universe {
                let remove = self.handle.address().del(message).execute();
                self.request(format!("removing address {address}"), remove)
                    .await?;
            }
        }
        match kept {
            Some(address) if !has_it => self.add_address6(index, address).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Leads everywhere by a neighbour on a link.
    pub(crate) async fn add_default_route6(
        &self,
        link: u32,
        next_hop: Ipv6Addr,
    ) -> Result<(), NetnsError> {
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(next_hop)
            .output_interface(link)
            .build();
        let add = self.handle.route().add(route).replace();
        self.request("adding the IPv6 route to everywhere", add.execute())
            .await
    }

    /// As [`Links::add_host_route`].
    pub(crate) async fn add_host_route6(
        &self,
        address: Ipv6Addr,
        link: u32,
        from: Ipv6Addr,
    ) -> Result<(), NetnsError> {
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(address, 128)
            .output_interface(link)
            .pref_source(from)
            .build();
        let add = self.handle.route().add(route).replace();
        self.request(format!("adding the route to {address}"), add.execute())
            .await
    }

    /// Leads to one address by a link; who opens a connection there does so as `from`.
    pub(crate) async fn add_host_route(
        &self,
        address: Ipv4Addr,
        link: u32,
        from: Option<Ipv4Addr>,
    ) -> Result<(), NetnsError> {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(link)
            .scope(RouteScope::Link);
        if let Some(from) = from {
            route = route.pref_source(from);
        }
        let add = self.handle.route().add(route.build()).replace();
        self.request(format!("adding the route to {address}"), add.execute())
            .await
    }

    /// The single addresses of this family that a route by a link leads to, with the number of the link.
    pub(crate) async fn host_routes(
        &self,
        family: IpVersion,
    ) -> Result<BTreeSet<(IpAddr, u32)>, NetnsError> {
        let single = |it: &(u32, IpNet)| it.1.prefix_len() == it.1.max_prefix_len();
        let routes = self.routes(family).await?.into_iter().filter(single);
        Ok(routes.map(|(link, net)| (net.addr(), link)).collect())
    }

    /// The numbers of the links that have this IPv6 address.
    pub(crate) async fn with_address6(
        &self,
        address: Ipv6Addr,
    ) -> Result<BTreeSet<u32>, NetnsError> {
        let ask = || {
            let of_address = self.handle.address().get();
            of_address.set_address_filter(address.into()).execute()
        };
        let all = self.list("listing addresses", ask).await?;
        Ok(all.iter().map(|it| it.header.index).collect())
    }

    /// The networks of this family that routes by links lead to, by the numbers of these.
    async fn routes(&self, family: IpVersion) -> Result<Vec<(u32, IpNet)>, NetnsError> {
        let request = match family {
            IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let ask = || self.handle.route().get(request.clone()).execute();
        let all = self.list("listing routes", ask).await?;
        Ok(all.iter().filter_map(read_route).collect())
    }

    /// Gone is a success.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), NetnsError> {
        let message = LinkUnspec::new_with_name(name).build();
        match self.handle.link().del_with_message(message).execute().await {
            Err(error) if !is(&error, Errno::NODEV) => {
                Err(failed(format!("removing link {name}"), error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes the link with this number, whatever its name is. Gone is a success.
    pub(crate) async fn remove_index(&self, index: u32) -> Result<(), NetnsError> {
        match self.handle.link().del(index).execute().await {
            Err(error) if !is(&error, Errno::NODEV) => {
                Err(failed(format!("removing link {index}"), error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn request(
        &self,
        operation: impl Into<String>,
        answer: impl Future<Output = Result<(), rtnetlink::Error>>,
    ) -> Result<(), NetnsError> {
        answer.await.map_err(|it| failed(operation, it))
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "an address has a dozen attributes"
)]
fn read_address(message: &AddressMessage) -> Option<(u32, IpNet)> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    // What is called the address of IPv4 is the other end's where a link leads to one host.
    let own = message.attributes.iter().find_map(|it| match it {
        AddressAttribute::Local(IpAddr::V4(own)) => Some(IpAddr::V4(*own)),
        AddressAttribute::Address(IpAddr::V6(own)) => Some(IpAddr::V6(*own)),
        _ => None,
    });
    let net = IpNet::new(own?, message.header.prefix_len).ok()?;
    Some((message.header.index, net))
}

/// The link and the destination of a route, unless it leads everywhere or is the kernel's for an address of its own.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a route has thirty attributes"
)]
fn read_route(message: &RouteMessage) -> Option<(u32, IpNet)> {
    if message.header.table == LOCAL_TABLE {
        return None;
    }
    let (mut link, mut destination) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = Some(IpAddr::V4(*address));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = Some(IpAddr::V6(*address));
            }
            _ => {}
        }
    }
    let net = IpNet::new(destination?, message.header.destination_prefix_length).ok()?;
    Some((link?, net))
}

fn failed(operation: impl Into<String>, source: rtnetlink::Error) -> NetnsError {
    NetnsError::Netlink {
        operation: operation.into(),
        source,
    }
}

fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(it) if it.raw_code() == -errno.raw_os_error())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a link has a hundred attributes"
)]
fn read(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        alias: String::new(),
        group: 0,
        is_bridge: false,
        is_up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::LinkInfo(infos) => {
                link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;
    use crate::namespaces;

    /// Needs the right to make namespaces and links.
    #[tokio::test]
    async fn who_lists_while_others_do_or_have_given_up_waits_for_his_turn() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Handle::current();
        let links = namespaces::open(&dir.path().join("ns"), "test", || {
            let _runtime = runtime.enter();
            Links::here()
        });
        let links = links.unwrap();
        // More than the kernel tells at once.
        for number in 0..60 {
            let net = Ipv4Net::new([10, 0, number, 1].into(), 24).unwrap();
            links
                .add_bridge(&format!("br{number}"), "test", net)
                .await
                .unwrap();
        }
        for _ in 0..20 {
            let _ = tokio::time::timeout(Duration::from_micros(200), links.all()).await;
            // One after the other, and none waits for the one before.
            let listings = (0..8).map(|number| {
                let links = links.clone();
                tokio::spawn(async move {
                    for _ in 0..number {
                        tokio::task::yield_now().await;
                    }
                    (links.all().await, links.addresses().await)
                })
            });
            for listed in join_all(listings).await {
                let (all, addresses) = listed.unwrap();
                assert!(all.unwrap().len() > 60);
                assert_eq!(addresses.unwrap().len(), 60);
            }
        }
        namespaces::close(&dir.path().join("ns")).unwrap();
    }
}

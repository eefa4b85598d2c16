//! Links, addresses and routes over netlink: requests by name, with "is gone" as an answer.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use futures::TryStreamExt as _;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope},
    },
};
use rustix::io::Errno;

use crate::{error::NetnsError, rules::hardware_address};

/// The link inside every sandbox.
pub(crate) const INSIDE: &str = "eth0";

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
pub(crate) struct Links(Handle);

impl Links {
    /// Opens a socket in the namespace of the calling thread, which has to be inside of a runtime.
    pub(crate) fn here() -> Result<Self, NetnsError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| NetnsError::Kernel {
                operation: "opening netlink",
                source,
            })?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub(crate) async fn find(&self, name: &str) -> Result<Option<Link>, NetnsError> {
        let mut found = self.0.link().get().match_name(name).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.map(read)),
            Err(error) if is(&error, Errno::NODEV) => Ok(None),
            Err(error) => Err(failed(format!("looking up link {name}"), error)),
        }
    }

    pub(crate) async fn all(&self) -> Result<Vec<Link>, NetnsError> {
        let all: Vec<_> = self
            .0
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|it| failed("listing links", it))?;
        Ok(all.into_iter().map(read).collect())
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
                    self.0.link().add(bridge).execute(),
                )
                .await?;
                self.set_alias(name, alias).await?;
                self.find(name).await?.ok_or_else(|| NetnsError::Foreign {
                    what: format!("bridge {name} vanished while it was made"),
                })?
            }
        };
        if !found.is_bridge || !(found.alias.is_empty() || found.alias == alias) {
            let what = format!("link {name} exists and is not the bridge of this instance");
            return Err(NetnsError::Foreign { what });
        }
        if !self.has_address(found.index, net).await? {
            self.add_address(found.index, &net.into()).await?;
        }
        if !found.is_up {
            self.set_up(found.index).await?;
        }
        Ok(found)
    }

    async fn has_address(&self, index: u32, net: Ipv4Net) -> Result<bool, NetnsError> {
        let mut all = self
            .0
            .address()
            .get()
            .set_link_index_filter(index)
            .set_address_filter(net.addr().into())
            .execute();
        let found = all.try_next().await;
        let found = found.map_err(|it| failed("listing addresses", it))?;
        Ok(found.is_some_and(|it| it.header.prefix_len == net.prefix_len()))
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
            self.0.link().add(pair).execute(),
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
        let taken = self.0.link().set(message.up().build());
        self.request(format!("taking over link {name}"), taken.execute())
            .await
    }

    pub(crate) async fn set_alias(&self, name: &str, alias: &str) -> Result<(), NetnsError> {
        let message = LinkUnspec::new_with_name(name).alias(alias).build();
        self.request(
            format!("naming link {name}"),
            self.0.link().set(message).execute(),
        )
        .await
    }

    pub(crate) async fn set_up(&self, index: u32) -> Result<(), NetnsError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.request("setting a link up", self.0.link().set(message).execute())
            .await
    }

    pub(crate) async fn add_address(&self, index: u32, net: &IpNet) -> Result<(), NetnsError> {
        let add = self
            .0
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
        address: Ipv4Addr,
        hardware: [u8; 6],
    ) -> Result<(), NetnsError> {
        let add = self.0.neighbours().add(index, address.into());
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
        let add = self.0.route().add(route).replace();
        self.request(
            format!("adding the route to {destination} by {gateway}"),
            add.execute(),
        )
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
        let add = self.0.route().add(route.build()).replace();
        self.request(format!("adding the route to {address}"), add.execute())
            .await
    }

    /// The single addresses that a route by a link leads to, with the number of the link.
    pub(crate) async fn host_routes(&self) -> Result<BTreeSet<(Ipv4Addr, u32)>, NetnsError> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let all: Vec<_> = self
            .0
            .route()
            .get(all)
            .execute()
            .try_collect()
            .await
            .map_err(|it| failed("listing routes", it))?;
        Ok(all.iter().filter_map(host_route).collect())
    }

    /// Gone is a success.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), NetnsError> {
        let message = LinkUnspec::new_with_name(name).build();
        match self.0.link().del_with_message(message).execute().await {
            Err(error) if !is(&error, Errno::NODEV) => {
                Err(failed(format!("removing link {name}"), error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes the link with this number, whatever its name is. Gone is a success.
    pub(crate) async fn remove_index(&self, index: u32) -> Result<(), NetnsError> {
        match self.0.link().del(index).execute().await {
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
    reason = "a route has a dozen attributes"
)]
fn host_route(message: &RouteMessage) -> Option<(Ipv4Addr, u32)> {
    let (mut address, mut link) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(to)) => address = Some(*to),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let is_one = message.header.destination_prefix_length == 32
        && message.header.table == RouteHeader::RT_TABLE_MAIN;
    is_one.then_some((address?, link?))
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

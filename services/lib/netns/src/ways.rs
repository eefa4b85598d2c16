//! The way of a packet from the node to its sandboxes: bridge, forwarding, and what leads to each link. Others on a node change
//! such things without a thought of us, so it is looked at again and again.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use berth_domain::ipam::{self, Subnets};
use berth_platform::NetworkError;
use ipnet::{Ipv4Net, Ipv6Net};
use rtnetlink::IpVersion;

use crate::{
    error::NetnsError,
    ipv6,
    links::{Link, Links},
    network::{LINK_LOCAL_PREFIX, NetnsNetwork, Settings, blocking, bridge_alias},
    rules::hardware_address,
    rules6::NEXT_HOP,
};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// What leads to one sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) link: String,
    pub(crate) ip: Ipv4Addr,
    pub(crate) ip6: Option<Ipv6Addr>,
    pub(crate) has_node_ports: bool,
}

/// Makes the bridge and has the node forward, as far as it is not so.
pub(crate) async fn keep_bridge(links: &Links, settings: &Settings) -> Result<(), NetnsError> {
    let Subnets { v4: subnet, v6 } = settings.subnets;
    let alias = bridge_alias(&settings.names);
    let address = Ipv4Net::new_assert(ipam::gateway(subnet), subnet.prefix_len());
    let bridge = links.add_bridge(&settings.bridge, &alias, address).await?;
    let address6 = v6.map(|it| {
        let gateway = ipam::address6(it, address.addr());
        // Of one host: nobody is a neighbour on the bridge, and the rest of the subnet leads nowhere.
        Ipv6Net::from(gateway)
    });
    if address6.is_some() {
        ipv6::set_up_bridge(&settings.bridge)?;
        ipv6::forward(|| note_switched(settings, "IPv6"))?;
    }
    links.keep_address6(bridge.index, address6).await?;
    let noted = settings.clone();
    blocking(move || forward(Path::new(IP_FORWARD), || note_switched(&noted, "IPv4"))).await
}

/// Has the node hand on what is meant for others. `before` goes before that: a process that ends in between has said too much
/// and not too little.
fn forward(
    setting: &Path,
    before: impl FnOnce() -> Result<(), NetnsError>,
) -> Result<(), NetnsError> {
    if reads(setting, "1") {
        return Ok(());
    }
    before()?;
    set(setting, "1")
}

/// The families for which this instance has made the node a router, since its last boot.
pub(crate) fn switched_on(settings: &Settings) -> Vec<&'static str> {
    let families = ["IPv4", "IPv6"].into_iter();
    families
        .filter(|it| note_of(settings, it).exists())
        .collect()
}

/// What no later manager could tell from what the node's owner has set.
fn note_switched(settings: &Settings, family: &str) -> Result<(), NetnsError> {
    let path = note_of(settings, family);
    tracing::warn!(family, "the node does not route, and is made to");
    fs::write(&path, "").map_err(NetnsError::file("writing", path))
}

/// The node stays what it is: somebody may depend on it meanwhile.
pub(crate) fn forget_switched(settings: &Settings) -> Result<(), NetnsError> {
    for family in ["IPv4", "IPv6"] {
        let path = note_of(settings, family);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(NetnsError::file("removing", path)(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn note_of(settings: &Settings, family: &str) -> PathBuf {
    let name = format!("routes-{}", family.to_lowercase());
    settings.names.run_dir.join(name)
}

impl NetnsNetwork {
    /// Makes anew what has gone of the ways to all sandboxes that have a link.
    pub(crate) async fn keep_ways(&self) -> Result<(), NetnsError> {
        keep_bridge(&self.links, &self.settings).await?;
        let ways: Vec<_> = self.ways().values().cloned().collect();
        if ways.is_empty() {
            return Ok(());
        }
        let links = self.links.all().await?.into_iter();
        let links: BTreeMap<_, _> = links.map(|it| (it.name.clone(), it)).collect();
        let routes = self.links.host_routes(IpVersion::V4).await?;
        let has_ipv6 = ways.iter().any(|it| it.ip6.is_some());
        let (routes6, next_hops) = match has_ipv6 {
            true => (
                self.links.host_routes(IpVersion::V6).await?,
                self.links.with_address6(NEXT_HOP).await?,
            ),
            false => Default::default(),
        };
        for way in ways {
            // A sandbox without its link is somebody else's to mend.
            let Some(Link { index, is_up, .. }) = links.get(&way.link) else {
                continue;
            };
            let leads6 =
                |it| routes6.contains(&(IpAddr::V6(it), *index)) && next_hops.contains(index);
            let stands =
                *is_up && routes.contains(&(way.ip.into(), *index)) && way.ip6.is_none_or(leads6);
            if stands {
                continue;
            }
            tracing::warn!(
                link = way.link,
                "what leads to a sandbox was taken away, and is made anew"
            );
            // One that cannot be mended keeps nobody else waiting.
            let mended = async {
                if way.ip6.is_some() {
                    ipv6::set_up_link(&way.link)?;
                }
                self.links.set_up(*index).await?;
                self.lead(&way, *index).await
            };
            if let Err(error) = mended.await {
                let error = NetworkError::from(error);
                tracing::warn!(link = way.link, %error, cause = %error.source, "a way cannot be kept");
            }
        }
        Ok(())
    }

    /// Leads to a sandbox by its link, which is up.
    pub(crate) async fn lead(&self, way: &Way, index: u32) -> Result<(), NetnsError> {
        let gateway = ipam::gateway(self.settings.subnets.v4);
        self.links
            .add_host_route(way.ip, index, Some(gateway))
            .await?;
        if let (Some(ip6), Some(subnet)) = (way.ip6, self.settings.subnets.v6) {
            let next_hop = Ipv6Net::new_assert(NEXT_HOP, LINK_LOCAL_PREFIX);
            self.links.add_address6(index, next_hop).await?;
            let gateway = ipam::address6(subnet, gateway);
            self.links.add_host_route6(ip6, index, gateway).await?;
            self.links
                .add_neighbour(index, ip6.into(), hardware_address(way.ip))
                .await?;
        }
        // Neighbours that are told count nothing in the table that all of the node share.
        self.links
            .add_neighbour(index, way.ip.into(), hardware_address(way.ip))
            .await?;
        let Way {
            link,
            has_node_ports,
            ..
        } = way.clone();
        blocking(move || set_up_link(&link, has_node_ports)).await
    }
}

/// What the kernel must know of the node's end of a link, beside its rules.
fn set_up_link(link: &str, has_node_ports: bool) -> Result<(), NetnsError> {
    let dir = Path::new("/proc/sys/net/ipv4/conf").join(link);
    // Where it stands, what comes from here has the sandbox's address, also while there are no rules.
    set(dir.join("rp_filter"), "1")?;
    if has_node_ports {
        // Who opens a connection to 127.0.0.1 on the node is led here.
        set(dir.join("route_localnet"), "1")?;
    }
    Ok(())
}

fn set(path: impl AsRef<Path>, value: &str) -> Result<(), NetnsError> {
    let path = path.as_ref();
    match reads(path, value) {
        true => Ok(()),
        false => fs::write(path, value).map_err(NetnsError::file("writing", path)),
    }
}

fn reads(path: &Path, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|it| it.trim() == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_node_was_no_router_is_noted_before_it_is_one_and_only_then() {
        let dir = tempfile::tempdir().unwrap();
        let setting = dir.path().join("ip_forward");
        fs::write(&setting, "0\n").unwrap();
        let mut noted = false;
        forward(&setting, || {
            assert!(reads(&setting, "0"));
            noted = true;
            Ok(())
        })
        .unwrap();
        assert!(noted && reads(&setting, "1"));
        forward(&setting, || panic!("it is a router")).unwrap();

        fs::write(&setting, "0").unwrap();
        let full = NetnsError::Foreign {
            what: "full".into(),
        };
        forward(&setting, || Err(full)).unwrap_err();
        assert!(reads(&setting, "0"), "what cannot be noted is not done");
    }
}

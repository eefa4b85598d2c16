//! What other links of the node have of a subnet: an address in it, or a route that overlaps it. Compared as networks.

use std::fmt;

use ipnet::{IpNet, Ipv4Net};

use crate::error::NetnsError;

/// A network that a link of the node leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) kind: ClaimKind,
    /// As it was written: of an address with its host bits.
    pub(crate) net: IpNet,
    pub(crate) link: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClaimKind {
    Address,
    Route,
}

impl fmt::Display for ClaimKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "address",
            Self::Route => "route",
        })
    }
}

/// Refuses a subnet, as `setting` has it, of which another link has a part.
pub(crate) fn check(
    setting: &'static str,
    subnet: IpNet,
    claims: &[Claim],
) -> Result<(), NetnsError> {
    let overlaps = |it: &&Claim| {
        let net = it.net.trunc();
        // What leads to more than the subnet leads to the rest of it from now on.
        let is_wider = it.kind == ClaimKind::Route && net.prefix_len() < subnet.prefix_len();
        // Networks of different families contain nothing of each other.
        subnet.contains(&net) || net.contains(&subnet) && !is_wider
    };
    match claims.iter().find(overlaps) {
        None => Ok(()),
        Some(Claim { kind, net, link }) => Err(NetnsError::Misconfigured {
            setting,
            problem: format!("{subnet} overlaps the {kind} {net} of link {link}"),
        }),
    }
}

/// Refuses a bridge that has another address and not `own`: it is somebody else's, or left of a former subnet.
pub(crate) fn check_bridge(
    bridge: &str,
    own: Ipv4Net,
    addresses: impl IntoIterator<Item = Ipv4Net>,
) -> Result<(), NetnsError> {
    let addresses: Vec<_> = addresses.into_iter().collect();
    match addresses.iter().find(|it| **it != own) {
        // It is ours, and somebody has added to it.
        _ if addresses.contains(&own) => Ok(()),
        None => Ok(()),
        Some(other) => Err(NetnsError::Misconfigured {
            setting: "network.bridge",
            problem: format!(
                "{bridge} has the address {other}, where the subnet wants {own}: choose another name, or remove it with \
                 `ip link del {bridge}` where it is left of a former subnet"
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(net: &str) -> Claim {
        Claim {
            kind: ClaimKind::Route,
            net: net.parse().unwrap(),
            link: "eth1".to_owned(),
        }
    }

    #[test]
    #[rustfmt::skip]
    fn networks_overlap_when_one_has_an_address_of_the_other() {
        let cases = [
            ("10.1.0.0/16", true),
            ("10.1.2.0/24", true),
            // It leads to a network of which this is a part.
            ("10.0.0.0/8",  false),
            // As texts these two begin alike, and those above do not.
            ("10.10.0.0/16", false),
            ("10.1.255.9/32", true),
            ("10.2.0.0/16", false),
            ("10.0.255.0/24", false),
            ("10.1.7.9/20", true),
            ("fd00::/64", false),
        ];
        let subnet = "10.1.0.0/16".parse().unwrap();
        for (net, overlaps) in cases {
            let checked = check("network.subnet", subnet, &[claim("192.0.2.0/24"), claim(net)]);
            assert_eq!(checked.is_err(), overlaps, "{net}");
            if let Err(error) = checked {
                let said = error.to_string();
                for part in ["network.subnet", "10.1.0.0/16", net, "eth1"] {
                    assert!(said.contains(part), "{part}: {said}");
                }
            }
        }
    }

    #[test]
    fn a_bridge_has_the_address_that_the_subnet_wants_or_none() {
        let own: Ipv4Net = "10.1.0.1/16".parse().unwrap();
        check_bridge("b", own, []).unwrap();
        check_bridge("b", own, [own]).unwrap();
        let wide = Claim {
            kind: ClaimKind::Address,
            ..claim("10.0.0.7/8")
        };
        check("network.subnet", own.trunc().into(), &[wide]).unwrap_err();
        for other in ["10.1.0.1/24", "10.1.0.2/16", "10.2.0.1/16"] {
            check_bridge("b", own, [own, other.parse().unwrap()]).unwrap();
            let error = check_bridge("b", own, [other.parse().unwrap()]);
            let said = error.unwrap_err().to_string();
            assert!(
                said.starts_with("network.bridge: b ") && said.contains(other),
                "{said}"
            );
        }
    }
}

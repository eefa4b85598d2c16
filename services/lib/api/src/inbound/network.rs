//! What a request says of the network: whom a sandbox may reach and be reached by, its routes, and names of hosts.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use berth_domain::{
    Destination, Egress, NAME_SERVER_PORTS, NamePattern, NamedDestination, NetworkPolicy, Protocol,
    Route, SandboxSpec, StaticHost, ipam, subnets::check_identifier,
};
use ipnet::{IpNet, Ipv4Net};

use super::{
    Check, EGRESS_RULES_MAX, LABEL_KEY_MAX, LABEL_VALUE_MAX, is_host_name, protocol_from_proto,
};
use crate::v1;

impl Check {
    pub(super) fn network(&mut self, it: v1::NetworkPolicy) -> NetworkPolicy {
        let field = "spec.network.egress_rules";
        self.count(field, it.egress_rules.len(), EGRESS_RULES_MAX);
        let listed = !it.egress_rules.is_empty();
        let rules = it.egress_rules.iter().take(EGRESS_RULES_MAX).enumerate();
        let (mut nets, mut egress_names) = (vec![], vec![]);
        let by_name = it.egress_rules.iter().any(|it| !it.dns_name.is_empty());
        for (at, it) in rules {
            let field = format!("{field}[{at}]");
            if by_name && NAME_SERVER_PORTS.iter().any(|&port| it.port == port.into()) {
                let problem = "is that of name servers, which a policy with names does not allow";
                self.wrong(format!("{field}.port"), problem);
            }
            match it.dns_name.is_empty() {
                true => nets.extend(self.destination(&field, it)),
                false => egress_names.extend(self.named(&field, it)),
            }
        }
        let egress = match v1::EgressMode::try_from(it.egress) {
            Ok(v1::EgressMode::Allow) => Egress::Allow(nets),
            Ok(_) if listed => {
                self.wrong(field, "needs the egress ALLOW");
                Egress::Open
            }
            Ok(v1::EgressMode::Unspecified | v1::EgressMode::Open) => Egress::Open,
            Ok(v1::EgressMode::Deny) => Egress::Deny,
            Err(_) => {
                self.wrong("spec.network.egress", "must be OPEN, DENY or ALLOW");
                Egress::Open
            }
        };
        let field = "spec.network.allow_from";
        self.count(field, it.allow_from.len(), SandboxSpec::ALLOW_FROM_MAX);
        let mut seen = BTreeSet::new();
        for (at, label) in it.allow_from.iter().enumerate() {
            let field = format!("{field}[{at}]");
            self.text(&field, label, LABEL_KEY_MAX + 1 + LABEL_VALUE_MAX);
            if label.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
                self.wrong(&field, "must be `key=value`");
            }
            if !seen.insert(label) {
                self.wrong(field, "is there twice");
            }
        }
        let subnet = (!it.subnet.is_empty()).then_some(it.subnet);
        if let Some(identifier) = &subnet {
            self.take("spec.network.subnet", check_identifier(identifier));
        }
        NetworkPolicy {
            egress,
            egress_names,
            allow_from: it.allow_from,
            subnet,
        }
    }

    fn destination(&mut self, field: &str, it: &v1::EgressRule) -> Option<Destination> {
        let net = match it.cidr.parse::<IpNet>() {
            Ok(net) if net == net.trunc() => Some(net),
            Ok(_) | Err(_) => {
                let problem =
                    "must be an IPv4 or IPv6 network without host bits, like `10.1.0.0/16`";
                self.wrong(format!("{field}.cidr"), problem);
                None
            }
        };
        let port = self.rule_port(field, it)?;
        Some(Destination { net: net?, port })
    }

    fn named(&mut self, field: &str, it: &v1::EgressRule) -> Option<NamedDestination> {
        if !it.cidr.is_empty() {
            self.wrong(format!("{field}.cidr"), "is there beside a name");
        }
        let name = match NamePattern::parse(&it.dns_name) {
            Ok(name) => Some(name),
            Err(problem) => {
                self.wrong(format!("{field}.dns_name"), problem.to_string());
                None
            }
        };
        let port = self.rule_port(field, it)?;
        Some(NamedDestination { name: name?, port })
    }

    /// `None` where it is wrong.
    #[expect(clippy::option_option, reason = "a rule without a port is a rule")]
    fn rule_port(&mut self, field: &str, it: &v1::EgressRule) -> Option<Option<(Protocol, u16)>> {
        let protocol = protocol_from_proto(&format!("{field}.protocol"), it.protocol);
        let protocol = match protocol {
            Ok(it) => it,
            Err(failure) => {
                self.violations.extend(failure.violations);
                return None;
            }
        };
        match u16::try_from(it.port) {
            Ok(0) if it.protocol != 0 => {
                let problem = "is needed beside a protocol";
                self.wrong(format!("{field}.port"), problem);
                None
            }
            Ok(0) => Some(None),
            Ok(port) => Some(Some((protocol, port))),
            Err(_) => {
                self.wrong(format!("{field}.port"), "must be at most 65535");
                None
            }
        }
    }

    pub(super) fn route(&mut self, at: usize, it: &v1::Route) -> Option<Route> {
        let field = format!("spec.routes[{at}].destination");
        let destination = match it.destination.parse::<Ipv4Net>() {
            Ok(net) if net.trunc() == net => Some(net),
            Ok(net) => {
                let problem = format!("has bits behind its prefix; write {}", net.trunc());
                self.wrong(field, problem);
                None
            }
            Err(_) => {
                self.wrong(field, "must be an IPv4 network like `10.1.0.0/16`");
                None
            }
        };
        let field = format!("spec.routes[{at}].gateway");
        let gateway = match it.gateway.as_str() {
            "" => None,
            text => self.gateway(&field, text),
        };
        Some(Route {
            destination: destination?,
            gateway,
        })
    }

    /// The node is the only neighbour of a sandbox.
    fn gateway(&mut self, field: &str, text: &str) -> Option<Ipv4Addr> {
        let problem = "must be an IPv4 address";
        let gateway = self.take(field, text.parse::<Ipv4Addr>().map_err(|_| problem))?;
        let node = ipam::gateway(self.subnet);
        if gateway == node {
            return Some(gateway);
        }
        self.wrong(field, format!("must be the node's address {node}"));
        None
    }

    pub(super) fn static_host(&mut self, at: usize, it: v1::StaticHost) -> Option<StaticHost> {
        if !is_host_name(&it.host) {
            let problem = "must be a host name: labels of letters, digits and `-`, joined by `.`";
            self.wrong(format!("spec.static_hosts[{at}].host"), problem);
        }
        let ip = it
            .ip
            .parse::<IpAddr>()
            .map_err(|_| "must be an IPv4 or IPv6 address");
        let ip = self.take(format!("spec.static_hosts[{at}].ip"), ip)?;
        Some(StaticHost { host: it.host, ip })
    }
}

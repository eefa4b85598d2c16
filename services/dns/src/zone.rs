//! Who is told what: from what is known, the caller's address and a question to an answer. It knows no wire, no socket
//! and no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use berth_domain::{
    Generation, Lookup, Protocol, SandboxId, Status,
    catalog::{Placed, ServicePort, parse_reverse},
    ipam::Subnets,
};
use berth_netns::Owner;

use crate::{egress::Door, known::Known};

/// Of every own record, in seconds: how long a caller may go on with the addresses of a service.
pub(crate) const TTL_SECONDS: u32 = 30;
/// The longest string in a TXT record.
const TEXT_MAX: usize = 255;

/// What is asked, with the name in lower case and without the dot at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    A,
    Aaaa,
    Ptr,
    Srv,
    Txt,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The caller is none of the sandboxes' subnet.
    Refused,
    /// With authority; may be empty.
    Own {
        records: Vec<Data>,
        /// Addresses of what `records` name.
        beside: Vec<(String, Data)>,
    },
    /// The question is somebody else's to answer.
    Forward,
    /// It is, but whether the caller may ask is not known, or not yet.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Ptr(String),
    Srv { port: u16, target: String },
    Txt(Vec<String>),
}

/// The names of a node at a moment.
#[derive(Clone, Debug)]
pub(crate) struct Zone {
    domain: String,
    subnets: Subnets,
    /// The sandbox that holds an address, by address.
    holders: BTreeMap<IpAddr, Holder>,
    /// By app and name.
    services: BTreeMap<(String, String), Found>,
    /// By name.
    hosts: BTreeMap<String, Vec<Seen>>,
}

#[derive(Clone, Debug)]
struct Holder {
    id: SandboxId,
    generation: Generation,
    app: Option<String>,
    /// Names of the services that it answers for.
    services: BTreeSet<String>,
    lookup: Lookup,
    ipv6: bool,
}

#[derive(Clone, Debug, Default)]
struct Found {
    addresses: BTreeSet<IpAddr>,
    ports: Vec<ServicePort>,
}

/// A host outside and who sees it.
#[derive(Clone, Debug)]
struct Seen {
    app: Option<String>,
    addresses: Vec<IpAddr>,
}

impl Zone {
    pub(crate) fn new(known: &Known, domain: &str, subnets: Subnets) -> Self {
        let catalog = known.catalog();
        let mut holders: BTreeMap<IpAddr, Holder> = BTreeMap::new();
        for it in known
            .sandboxes
            .values()
            .filter(|it| it.status != Status::Dead)
        {
            for &address in &it.addresses {
                // Two can name one address while the word about the former one is on its way: the newer one has it.
                let newer = |held: &Holder| held.generation < it.generation;
                if holders.get(&address).is_none_or(newer) {
                    let holder = Holder {
                        id: it.id.clone(),
                        generation: it.generation,
                        app: catalog.app_of(&it.version).map(str::to_owned),
                        services: BTreeSet::new(),
                        lookup: it.lookup.clone(),
                        ipv6: it.addresses.iter().any(IpAddr::is_ipv6),
                    };
                    holders.insert(address, holder);
                }
            }
        }
        let mut services: BTreeMap<(String, String), Found> = BTreeMap::new();
        // Where its sandboxes listen, which need not be where they were meant to.
        let mut ports: BTreeMap<String, Vec<ServicePort>> = BTreeMap::new();
        for it in known.sandboxes.values() {
            for endpoint in catalog.endpoints_of(it) {
                let key = (endpoint.app, endpoint.name);
                let listed = ports.entry(endpoint.service).or_default();
                let others = endpoint.ports.into_iter().filter(|it| !listed.contains(it));
                let others: Vec<_> = others.collect();
                listed.extend(others);
                for address in
                    std::iter::once(endpoint.address).chain(endpoint.address6.map(IpAddr::from))
                {
                    let Some(holder) = holders.get_mut(&address).filter(|holder| holder.is(it))
                    else {
                        continue;
                    };
                    holder.services.insert(key.1.clone());
                    let found = services.entry(key.clone()).or_default();
                    found.addresses.insert(address);
                }
            }
        }
        for it in catalog.services() {
            let key = (it.app.clone(), it.name.clone());
            let listed = ports.remove(&it.id).unwrap_or_else(|| it.ports.clone());
            services.entry(key).or_default().ports.extend(listed);
        }
        let mut hosts: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
        for it in catalog.hosts() {
            hosts.entry(it.name.clone()).or_default().push(Seen {
                app: it.app.clone(),
                addresses: it.addresses.clone(),
            });
        }
        Self {
            domain: domain.to_owned(),
            subnets,
            holders,
            services,
            hosts,
        }
    }

    pub(crate) fn answer(&self, caller: IpAddr, question: Question<'_>) -> Answer {
        if !self.subnets.contain(caller) {
            return Answer::Refused;
        }
        let app = self.app_of(caller);
        let own = |records| Answer::Own {
            records,
            beside: vec![],
        };
        if let Some(below) = self.below_domain(question.name) {
            return match (app, below) {
                (Some(app), "") => own(self.service_names(app, question.kind)),
                (Some(app), below) => self.service(app, below, question),
                (None, _) => own(self.host(None, question).unwrap_or_default()),
            };
        }
        if let Some(records) = self.host(app, question) {
            return own(records);
        }
        match parse_reverse(question.name) {
            // Nobody above knows the addresses of this node.
            Some(target) if self.subnets.contain(target) => {
                own(self.reverse(app, target, question.kind))
            }
            Some(_) | None => self.of_others(caller, question.name),
        }
    }

    /// What becomes of a question that others would have to answer. One that the caller may not ask is empty like those
    /// below the domain: some clients wait in vain behind a refusal.
    fn of_others(&self, caller: IpAddr, name: &str) -> Answer {
        match self.holders.get(&caller) {
            None => Answer::Unknown,
            Some(it) if it.lookup.allows(name) => Answer::Forward,
            Some(_) => Answer::Own {
                records: vec![],
                beside: vec![],
            },
        }
    }

    /// What has to be opened for the caller before it is told the addresses of `name`.
    pub(crate) fn door(&self, caller: IpAddr, name: &str) -> Option<Door> {
        let holder = self.holders.get(&caller)?;
        let ports = holder.lookup.ports(name);
        (!ports.is_empty()).then(|| Door {
            owner: Owner::of(holder.generation),
            ipv6: holder.ipv6,
            ports,
        })
    }

    fn app_of(&self, caller: IpAddr) -> Option<&str> {
        self.holders.get(&caller)?.app.as_deref()
    }

    /// What stands before the domain: empty for the domain itself, `None` for a name that is not of it.
    fn below_domain<'a>(&self, name: &'a str) -> Option<&'a str> {
        match name.strip_suffix(self.domain.as_str())? {
            "" => Some(""),
            below => below.strip_suffix('.'),
        }
    }

    /// The names of the app's services, sorted, in one text; in more where it is longer than a text can be.
    fn service_names(&self, app: &str, kind: Kind) -> Vec<Data> {
        if kind != Kind::Txt {
            return vec![];
        }
        let mut texts = vec![String::new()];
        for (_, name) in self.services.keys().filter(|(owner, _)| owner == app) {
            let last = texts.last_mut().expect("it begins with one");
            if last.is_empty() {
                last.push_str(name);
            } else if last.len() + 1 + name.len() <= TEXT_MAX {
                last.push(' ');
                last.push_str(name);
            } else {
                texts.push(name.clone());
            }
        }
        texts.retain(|it| !it.is_empty());
        if texts.is_empty() {
            return vec![];
        }
        vec![Data::Txt(texts)]
    }

    fn service(&self, app: &str, below: &str, question: Question<'_>) -> Answer {
        let find = |name: &str| self.services.get(&(app.to_owned(), name.to_owned()));
        let records = match (
            below.split('.').collect::<Vec<_>>().as_slice(),
            question.kind,
        ) {
            ([name], Kind::A | Kind::Aaaa) => match find(name) {
                Some(found) => of_kind(found.addresses.iter(), question.kind),
                None => self.host(Some(app), question).unwrap_or_default(),
            },
            ([port, protocol, name], Kind::Srv) => {
                let target = format!("{name}.{}", self.domain);
                let found = find(name).filter(|it| !it.addresses.is_empty());
                let Some(found) = found else {
                    return Answer::Own {
                        records: vec![],
                        beside: vec![],
                    };
                };
                let asked = |it: &&ServicePort| {
                    port.strip_prefix('_') == Some(it.name.as_str())
                        && *protocol
                            == match it.protocol {
                                Protocol::Tcp => "_tcp",
                                Protocol::Udp => "_udp",
                            }
                };
                let records: Vec<_> = found
                    .ports
                    .iter()
                    .filter(asked)
                    .map(|it| Data::Srv {
                        port: it.target_port,
                        target: target.clone(),
                    })
                    .collect();
                let addresses = found.addresses.iter().map(|it| data(*it));
                let beside = addresses.map(|it| (target.clone(), it));
                return Answer::Own {
                    beside: if records.is_empty() {
                        vec![]
                    } else {
                        beside.collect()
                    },
                    records,
                };
            }
            _ => self.host(Some(app), question).unwrap_or_default(),
        };
        Answer::Own {
            records,
            beside: vec![],
        }
    }

    /// The addresses of a host of this name that a sandbox of `app` sees; `None` where it sees none of this name.
    fn host(&self, app: Option<&str>, question: Question<'_>) -> Option<Vec<Data>> {
        let seen = self.hosts.get(question.name)?.iter();
        let seen = seen.filter(|it| it.app.is_none() || it.app.as_deref() == app);
        let addresses: Vec<_> = seen.flat_map(|it| &it.addresses).collect();
        (!addresses.is_empty()).then(|| of_kind(addresses.into_iter(), question.kind))
    }

    fn reverse(&self, app: Option<&str>, target: IpAddr, kind: Kind) -> Vec<Data> {
        let holder = self.holders.get(&target);
        let holder = holder.filter(|it| it.app.is_some() && it.app.as_deref() == app);
        match (kind, holder) {
            (Kind::Ptr, Some(it)) => it
                .services
                .iter()
                .map(|name| Data::Ptr(format!("{name}.{}", self.domain)))
                .collect(),
            (_, _) => vec![],
        }
    }
}

impl Holder {
    fn is(&self, it: &Placed) -> bool {
        (&self.id, self.generation) == (&it.id, it.generation)
    }
}

fn data(address: IpAddr) -> Data {
    match address {
        IpAddr::V4(it) => Data::A(it),
        IpAddr::V6(it) => Data::Aaaa(it),
    }
}

fn of_kind<'a>(addresses: impl Iterator<Item = &'a IpAddr>, kind: Kind) -> Vec<Data> {
    addresses
        .map(|it| data(*it))
        .filter(|it| match it {
            Data::A(_) => kind == Kind::A,
            Data::Aaaa(_) => kind == Kind::Aaaa,
            Data::Ptr(_) | Data::Srv { .. } | Data::Txt(_) => false,
        })
        .collect()
}

#[cfg(test)]
mod tests;

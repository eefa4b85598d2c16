//! Firewalls of others that drop what our rules let through: a packet has to pass all of them. Decides where an accept of
//! ours goes, and what a person has to be told. Pure.

use std::{collections::BTreeMap, fmt::Write as _};

use berth_domain::Names;
use berth_platform::ForeignAccept;
use ipnet::IpNet;

use crate::{
    asked::{Packets, Side},
    chains::{Chain, Layer, Place, Rule, Verdict},
};

/// The table of iptables, and the chains in it that an accept can be in: docker leaves the first to others.
const TABLE: &str = "filter";
const DOCKER_USER: &str = "DOCKER-USER";
const FORWARD: &str = "FORWARD";
const FIREWALLD: &str = "firewalld";
/// Chains that lead to each other are followed so far: longer than any firewall is deep, and no longer where one is read
/// while it is changed.
const DEPTH_MAX: usize = 8;

/// What others have to let pass.
#[derive(Clone, Debug)]
pub(crate) struct Passage {
    pub(crate) instance: String,
    /// Of the instance: it is no obstacle.
    pub(crate) table: String,
    pub(crate) subnets: Vec<IpNet>,
    /// Whether accepts may be placed in tables of others.
    pub(crate) places: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// What a person has to do, a sentence each.
    pub(crate) obstacles: Vec<String>,
    /// The accepts that stand as they shall.
    pub(crate) accepts: Vec<ForeignAccept>,
    /// The text for `nft` that brings the others about; empty where all is well.
    pub(crate) changes: String,
}

/// Chains that are looked at although they are no base chains: docker's for others, and those of firewalld's zones.
pub(crate) fn is_looked_at((layer, table, chain): &Place) -> bool {
    let of_docker = *layer != Layer::Inet && table == TABLE && chain == DOCKER_USER;
    of_docker || table == FIREWALLD && chain.starts_with("filter_F")
}

pub(crate) fn judge(chains: &BTreeMap<Place, Chain>, passage: &Passage) -> Judgement {
    let mut judgement = Judgement::default();
    for layer in [Layer::V4, Layer::V6] {
        let place = passage.place(chains, layer);
        for name in [DOCKER_USER, FORWARD] {
            if let Some(chain) = chains.get(&(layer, TABLE.to_owned(), name.to_owned())) {
                let wanted = match passage.places && place == Some(name) {
                    true => passage.accepts(layer),
                    false => vec![],
                };
                judgement.settle(passage, layer, name, chain, &wanted);
            }
        }
    }
    for ((layer, table, name), chain) in chains {
        let concerns = passage.concerns(*layer) && *table != passage.table;
        if concerns && chain.forwards {
            let of_iptables = *layer != Layer::Inet && table == TABLE && name == FORWARD;
            let place = passage.place(chains, *layer).filter(|_| of_iptables);
            // What no rule decides is as it says `otherwise`.
            let passes = |sides: &[Side], otherwise: bool| {
                let mut packets = sides.iter().flat_map(|it| passage.packets(*layer, *it));
                packets
                    .all(|it| decides(chains, (*layer, table), chain, it, 0).unwrap_or(otherwise))
            };
            let both = [Side::From, Side::To];
            let sentence = match place {
                Some(_) if passage.places => None,
                Some(place) => {
                    (!passes(&both, false)).then(|| passage.sentence(*layer, table, place))
                }
                None if table == FIREWALLD => (!passes(&[Side::From], false)).then(|| {
                    let subnets = passage.subnets_of(*layer);
                    format!("firewalld filters what is forwarded: a zone that accepts has to have {subnets} as source")
                }),
                None => (!passes(&both, !chain.drops))
                    .then(|| passage.sentence(*layer, table, name)),
            };
            judgement.obstacles.extend(sentence);
        }
    }
    judgement
}

/// What no rule before has accepted does not pass: the first rule that asks for nothing says so, or else the policy.
fn drops(chain: &Chain) -> bool {
    let of_all = chain.rules.iter().filter(|it| it.asked.is_empty());
    let mut said = of_all.filter_map(|it| match it.verdict {
        Some(Verdict::Drop) => Some(true),
        Some(Verdict::Accept) => Some(false),
        Some(Verdict::Return | Verdict::Jump(_) | Verdict::Goto(_)) | None => None,
    });
    said.next().unwrap_or(chain.drops)
}

/// Whether a chain lets all of these packets pass, as far as it decides on all of them alike.
fn decides(
    chains: &BTreeMap<Place, Chain>,
    (layer, table): (Layer, &str),
    chain: &Chain,
    packets: Packets<'_>,
    depth: usize,
) -> Option<bool> {
    let chain_of = |name: &String| {
        let next = chains.get(&(layer, table.to_owned(), name.clone()));
        next.filter(|_| depth < DEPTH_MAX)
    };
    let leads = |it: &Chain| decides(chains, (layer, table), it, packets, depth + 1);
    let meant = |it: &&Rule| it.asked.iter().all(|asked| packets.are(asked));
    for rule in chain.rules.iter().filter(meant) {
        match &rule.verdict {
            Some(Verdict::Accept) => return Some(true),
            Some(Verdict::Drop) => return Some(false),
            Some(Verdict::Return) => return None,
            Some(Verdict::Jump(name)) => {
                let decided = chain_of(name).and_then(leads);
                if decided.is_some() {
                    return decided;
                }
            }
            // Nothing behind it can make good what is not known to let pass.
            Some(Verdict::Goto(name)) => return chain_of(name).map_or(Some(false), leads),
            None => {}
        }
    }
    None
}

impl Passage {
    /// The packets of sandboxes that come by chains of this family.
    fn packets(&self, layer: Layer, side: Side) -> impl Iterator<Item = Packets<'_>> {
        let own = self.subnets.iter().filter(move |it| is_of(it, layer));
        own.map(move |subnet| Packets {
            side,
            links: Names::LINK_PREFIX,
            subnet: *subnet,
        })
    }

    /// The chain in which the owner of iptables' table wants an accept; `None` where none is needed.
    fn place(&self, chains: &BTreeMap<Place, Chain>, layer: Layer) -> Option<&'static str> {
        let of = |name: &str| chains.get(&(layer, TABLE.to_owned(), name.to_owned()));
        let forward = of(FORWARD).filter(|it| it.forwards && self.concerns(layer))?;
        // Up to the first that says something of every packet: nothing comes by what is behind it.
        let of_all = forward.rules.iter().filter(|it| it.asked.is_empty());
        let mut verdicts = of_all.filter_map(|it| it.verdict.as_ref());
        let leads = verdicts.find_map(|it| match it {
            Verdict::Jump(name) => (name == DOCKER_USER).then_some(true),
            Verdict::Accept | Verdict::Drop | Verdict::Return | Verdict::Goto(_) => Some(false),
        });
        if of(DOCKER_USER).is_some() && leads == Some(true) {
            return Some(DOCKER_USER);
        }
        drops(forward).then_some(FORWARD)
    }

    /// Whether packets of sandboxes come by chains of this family.
    fn concerns(&self, layer: Layer) -> bool {
        self.subnets.iter().any(|it| is_of(it, layer))
    }

    fn subnets_of(&self, layer: Layer) -> String {
        let own = self.subnets.iter().filter(|it| is_of(it, layer));
        own.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn mark(&self) -> String {
        format!("Berth, instance {}: ", self.instance)
    }

    /// The comment and the text of each accept. Only what iptables can read: it gives up a whole table for one rule that it
    /// cannot.
    fn accepts(&self, layer: Layer) -> Vec<(String, String)> {
        let prefix = Names::LINK_PREFIX;
        let own = self.subnets.iter().filter(|it| is_of(it, layer));
        let each = own.flat_map(|subnet| {
            [("from", "iifname", "saddr"), ("to", "oifname", "daddr")].map(|(word, link, end)| {
                let comment = format!("{}{word} {subnet}", self.mark());
                let rule = format!(
                    "{link} \"{prefix}*\" {layer} {end} {subnet} counter accept comment \"{comment}\""
                );
                (comment, rule)
            })
        });
        each.collect()
    }

    fn sentence(&self, layer: Layer, table: &str, chain: &str) -> String {
        let subnets = self.subnets_of(layer);
        let own = self.subnets.iter().filter(|it| is_of(it, layer));
        let rules = own.map(|it| {
            let family = if it.addr().is_ipv4() { "ip" } else { "ip6" };
            let links = Names::LINK_PREFIX;
            format!(
                "`nft insert rule {layer} {table} {chain} iifname \"{links}*\" {family} saddr {it} accept`"
            )
        });
        format!(
            "chain {chain} of table {layer} {table} drops what is forwarded: it has to accept {subnets}, as with {}, and the \
             same with oifname and daddr",
            rules.collect::<Vec<_>>().join(" and ")
        )
    }
}

fn is_of(subnet: &IpNet, layer: Layer) -> bool {
    match layer {
        Layer::Inet => true,
        Layer::V4 => matches!(subnet, IpNet::V4(_)),
        Layer::V6 => matches!(subnet, IpNet::V6(_)),
    }
}

impl Judgement {
    /// Takes note of what stands in a chain as `wanted`, or of how it comes to stand.
    fn settle(
        &mut self,
        passage: &Passage,
        layer: Layer,
        name: &str,
        chain: &Chain,
        wanted: &[(String, String)],
    ) {
        let mark = passage.mark();
        let own = chain.rules.iter();
        let own: Vec<_> = own.filter(|it| it.comment.starts_with(&mark)).collect();
        let stands = |comment: &String| {
            let mut alike = own.iter().filter(|it| it.comment == *comment);
            alike
                .next()
                .is_some_and(|it| it.verdict == Some(Verdict::Accept))
        };
        if own.len() == wanted.len() && wanted.iter().all(|(comment, _)| stands(comment)) {
            self.accepts.extend(own.iter().map(|it| ForeignAccept {
                family: layer.to_string(),
                table: TABLE.to_owned(),
                chain: name.to_owned(),
                comment: it.comment.clone(),
                packets: it.counted.0,
                bytes: it.counted.1,
            }));
            return;
        }
        for rule in own {
            let handle = rule.handle;
            let _ = writeln!(
                self.changes,
                "delete rule {layer} {TABLE} {name} handle {handle}"
            );
        }
        // Each goes before the former.
        for (_, rule) in wanted.iter().rev() {
            let _ = writeln!(self.changes, "insert rule {layer} {TABLE} {name} {rule}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asked::Asked;

    fn passage() -> Passage {
        Passage {
            instance: "a1".into(),
            table: "berth-a1".into(),
            subnets: vec!["10.1.0.0/16".parse().unwrap()],
            places: true,
        }
    }

    fn base(drops: bool, rules: Vec<Rule>) -> Chain {
        Chain {
            forwards: true,
            drops,
            rules,
        }
    }

    fn always(verdict: Verdict) -> Rule {
        Rule {
            verdict: Some(verdict),
            ..Rule::default()
        }
    }

    fn ours(handle: u64, word: &str) -> Rule {
        Rule {
            handle,
            comment: format!("Berth, instance a1: {word} 10.1.0.0/16"),
            verdict: Some(Verdict::Accept),
            asked: vec![Asked::Else],
            counted: (3, 180),
        }
    }

    fn at(layer: Layer, table: &str, chain: &str) -> Place {
        (layer, table.into(), chain.into())
    }

    fn to_docker() -> Rule {
        always(Verdict::Jump(DOCKER_USER.into()))
    }

    const FROM: &str = "iifname \"bt*\" ip saddr 10.1.0.0/16 counter accept comment \"Berth, instance a1: from 10.1.0.0/16\"\n";
    const TO: &str = "oifname \"bt*\" ip daddr 10.1.0.0/16 counter accept comment \"Berth, instance a1: to 10.1.0.0/16\"\n";

    #[test]
    #[rustfmt::skip]
    fn an_accept_goes_where_the_owner_wants_it_and_only_where_it_is_needed() {
        let forward = || at(Layer::V4, TABLE, FORWARD);
        let docker = || at(Layer::V4, TABLE, DOCKER_USER);
        let in_chain = |name: &str| format!("insert rule ip filter {name} {TO}insert rule ip filter {name} {FROM}");
        let returns = || Chain { rules: vec![always(Verdict::Return)], ..Chain::default() };
        let at_times = || Rule { asked: vec![Asked::Else], ..to_docker() };
        let cases: [(Vec<(Place, Chain)>, String); 12] = [
            (vec![(forward(), base(true, vec![at_times()])), (docker(), returns())], in_chain(FORWARD)),
            (vec![(forward(), base(false, vec![always(Verdict::Drop), to_docker()])), (docker(), returns())], in_chain(FORWARD)),
            (vec![(forward(), base(false, vec![at_times()])), (docker(), returns())], String::new()),
            (vec![(forward(), base(false, vec![]))], String::new()),
            (vec![(forward(), base(true, vec![]))], in_chain(FORWARD)),
            (vec![(forward(), base(false, vec![always(Verdict::Drop)]))], in_chain(FORWARD)),
            (vec![(forward(), base(false, vec![always(Verdict::Drop), to_docker()]))], in_chain(FORWARD)),
            (vec![(forward(), base(true, vec![to_docker(), always(Verdict::Accept)]))], String::new()),
            (vec![(forward(), base(true, vec![to_docker()])), (docker(), returns())], in_chain(DOCKER_USER)),
            (vec![(forward(), base(false, vec![to_docker()])), (docker(), returns())], in_chain(DOCKER_USER)),
            // A docker that is gone has left its chain.
            (vec![(forward(), base(true, vec![])), (docker(), returns())], in_chain(FORWARD)),
            (vec![(at(Layer::V6, TABLE, FORWARD), base(true, vec![]))], String::new()),
        ];
        for (chains, expected) in cases {
            let judgement = judge(&chains.into_iter().collect(), &passage());
            assert_eq!(judgement.changes, expected);
            assert!(judgement.obstacles.is_empty(), "{judgement:?}");
        }
    }

    #[test]
    fn what_stands_is_left_and_what_stands_twice_or_elsewhere_is_moved() {
        let forward = at(Layer::V4, TABLE, FORWARD);
        let judged = |rules: &[Rule]| {
            let chain = base(true, rules.to_vec());
            judge(&[(forward.clone(), chain)].into(), &passage())
        };
        let (from, to) = (ours(7, "from"), ours(8, "to"));
        let whole = judged(&[from.clone(), to.clone()]);
        assert_eq!(whole.changes, "");
        let seen: Vec<_> = whole.accepts.iter().map(|it| it.comment.clone()).collect();
        assert_eq!(seen, [from.comment.clone(), to.comment.clone()]);
        assert_eq!(whole.accepts[0].packets, 3);

        let behind = judged(&[to_docker(), to.clone(), from.clone()]);
        assert_eq!(behind.changes, "", "where it stands is its owner's affair");
        let changed = Rule {
            verdict: Some(Verdict::Drop),
            ..to.clone()
        };
        for wrong in [
            vec![from.clone()],
            vec![from.clone(), from.clone()],
            vec![from.clone(), to.clone(), ours(9, "from")],
            vec![from.clone(), changed],
        ] {
            let judged = judged(&wrong);
            for rule in &wrong {
                let removed = format!("delete rule ip filter FORWARD handle {}\n", rule.handle);
                assert!(judged.changes.contains(&removed), "{judged:?}");
            }
            assert_eq!(judged.changes.matches("insert rule").count(), 2);
            assert!(judged.accepts.is_empty());
        }

        let moved = judge(
            &[
                (
                    forward.clone(),
                    base(true, vec![from.clone(), to.clone(), to_docker()]),
                ),
                (at(Layer::V4, TABLE, DOCKER_USER), Chain::default()),
            ]
            .into(),
            &passage(),
        );
        assert!(moved.changes.contains("FORWARD handle 8"), "{moved:?}");
        assert!(moved.changes.contains("insert rule ip filter DOCKER-USER"));

        // Another instance's has the same number at its beginning.
        let others = Rule {
            comment: "Berth, instance a12: from 10.1.0.0/16".into(),
            ..from.clone()
        };
        assert!(!judged(&[others]).changes.contains("delete"));
        let off = Passage {
            places: false,
            ..passage()
        };
        let off = judge(
            &[(forward.clone(), base(true, vec![from, to]))].into(),
            &off,
        );
        assert_eq!(off.changes.lines().count(), 2);
        assert!(!off.changes.contains("insert"), "{off:?}");
    }

    #[test]
    fn what_comes_by_both_families_is_accepted_in_both() {
        let passage = Passage {
            subnets: vec![
                "10.1.0.0/16".parse().unwrap(),
                "fd00:1::/64".parse().unwrap(),
            ],
            ..passage()
        };
        let chains = [Layer::V4, Layer::V6].map(|it| (at(it, TABLE, FORWARD), base(true, vec![])));
        let judgement = judge(&chains.into(), &passage);
        let lines: Vec<_> = judgement.changes.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines[2].starts_with(
                "insert rule ip6 filter FORWARD oifname \"bt*\" ip6 daddr fd00:1::/64 "
            )
        );
    }

    #[test]
    #[rustfmt::skip]
    fn who_drops_and_takes_no_accept_is_named() {
        let off = Passage { places: false, ..passage() };
        let docker = || vec![
            (at(Layer::V4, TABLE, FORWARD), base(false, vec![to_docker()])),
            (at(Layer::V4, TABLE, DOCKER_USER), Chain::default()),
        ];
        let one = |layer, table: &str, drops| vec![(at(layer, table, "forward"), base(drops, vec![]))];
        type Case<'a> = (&'a Passage, Vec<(Place, Chain)>, Option<&'a str>);
        let one_rule = |rule| vec![(at(Layer::Inet, "mine", "forward"), base(false, vec![rule]))];
        let itself = |kind: fn(String) -> Verdict| always(kind("forward".into()));
        let cases: [Case<'_>; 11] = [
            (&passage(), one_rule(always(Verdict::Drop)), Some("chain forward of table inet mine")),
            (&passage(), one_rule(itself(Verdict::Jump)), None),
            (&passage(), one_rule(itself(Verdict::Goto)), Some("chain forward of table inet mine")),
            (&passage(), one(Layer::Inet, "mine", true), Some("chain forward of table inet mine")),
            (&passage(), one(Layer::V4, "mine", true), Some("chain forward of table ip mine")),
            (&passage(), one(Layer::Inet, "mine", false), None),
            (&passage(), one(Layer::Inet, "firewalld", false), Some("a zone that accepts has to have 10.1.0.0/16")),
            (&passage(), one(Layer::Inet, "berth-a1", true), None),
            (&passage(), one(Layer::V6, "mine", true), None),
            (&off, docker(), Some("chain DOCKER-USER of table ip filter")),
            (&off, vec![(at(Layer::V4, TABLE, FORWARD), base(true, vec![]))], Some("chain FORWARD of table ip filter")),
        ];
        for (passage, chains, expected) in cases {
            let found = judge(&chains.into_iter().collect(), passage).obstacles;
            assert_eq!(found.len(), usize::from(expected.is_some()), "{found:?}");
            let named = found.iter().zip(expected).all(|(it, expected)| it.contains(expected));
            assert!(named, "{found:?}");
        }
    }

    fn accepting(side: Side, net: &str) -> Rule {
        let name = Names::LINK_PREFIX.as_bytes().to_vec();
        let net = net.parse().unwrap();
        Rule {
            asked: vec![Asked::Link { side, name }, Asked::Address { side, net }],
            ..always(Verdict::Accept)
        }
    }

    #[test]
    fn a_complaint_ends_with_what_it_was_about() {
        let both = Passage {
            subnets: vec![
                "10.1.0.0/16".parse().unwrap(),
                "fd00:1::/64".parse().unwrap(),
            ],
            ..passage()
        };
        let complaints = |rules: &[Rule]| {
            let place = at(Layer::Inet, "mine", "forward");
            judge(&[(place, base(true, rules.to_vec()))].into(), &both).obstacles
        };
        let told = complaints(&[]);
        for part in [
            "ip saddr 10.1.0.0/16 accept",
            "ip6 saddr fd00:1::/64 accept",
        ] {
            assert!(told[0].contains(part), "{told:?}");
        }
        let mut rules = vec![];
        for (side, net) in [
            (Side::From, "10.1.0.0/16"),
            (Side::To, "10.0.0.0/8"),
            (Side::From, "fd00:1::/64"),
        ] {
            rules.push(accepting(side, net));
            assert_eq!(complaints(&rules).len(), 1, "{rules:?}");
        }
        rules.push(accepting(Side::To, "fd00:1::/64"));
        assert_eq!(complaints(&rules), [""; 0]);
        rules.insert(0, always(Verdict::Drop));
        assert_eq!(
            complaints(&rules).len(),
            1,
            "behind a drop nothing is accepted"
        );
    }

    #[test]
    #[rustfmt::skip]
    fn a_chain_that_was_gone_to_gives_nothing_back_to_where_it_was_gone_from() {
        let decided = |rules: Vec<Rule>, zone: Option<Rule>| {
            let place = |name| at(Layer::Inet, FIREWALLD, name);
            let zone = zone.map(|it| (place("filter_FWD"), Chain { rules: vec![it], ..Chain::default() }));
            let of = Packets { side: Side::From, links: "bt", subnet: "10.1.0.0/16".parse().unwrap() };
            decides(&zone.into_iter().collect(), (Layer::Inet, FIREWALLD), &base(true, rules), of, 0)
        };
        let (jump, goto) = (Verdict::Jump("filter_FWD".into()), Verdict::Goto("filter_FWD".into()));
        let open = || Some(always(Verdict::Return));
        let behind = |first: &Verdict, second| vec![always(first.clone()), always(second)];
        let cases: [(&Verdict, Verdict, Option<Rule>, Option<bool>); 7] = [
            (&jump, Verdict::Drop, open(), Some(false)),
            (&jump, Verdict::Accept, None, Some(true)),
            (&goto, Verdict::Drop, open(), None),
            (&goto, Verdict::Accept, open(), None),
            (&goto, Verdict::Drop, Some(always(Verdict::Accept)), Some(true)),
            (&goto, Verdict::Accept, Some(always(Verdict::Drop)), Some(false)),
            // Nobody has read what is in it.
            (&goto, Verdict::Accept, None, Some(false)),
        ];
        for (first, second, zone, expected) in cases {
            let found = decided(behind(first, second.clone()), zone.clone());
            assert_eq!(found, expected, "{first:?}, then {second:?}, with {zone:?}");
        }
    }

    #[test]
    fn a_zone_of_firewalld_that_accepts_the_subnet_is_no_obstacle() {
        let zone = |net: &str, verdict| {
            let net = net.parse().unwrap();
            let source = Rule {
                asked: vec![Asked::Address {
                    side: Side::From,
                    net,
                }],
                ..always(Verdict::Jump("filter_FWD_inner".into()))
            };
            let to_zones = always(Verdict::Jump("filter_FORWARD_ZONES".into()));
            let chain = |rules| Chain {
                rules,
                ..Chain::default()
            };
            let place = |name| at(Layer::Inet, FIREWALLD, name);
            let chains = [
                (
                    place("filter_FORWARD"),
                    base(false, vec![to_zones, always(Verdict::Drop)]),
                ),
                (place("filter_FORWARD_ZONES"), chain(vec![source])),
                (place("filter_FWD_inner"), chain(vec![always(verdict)])),
            ];
            judge(&chains.into(), &passage()).obstacles.len()
        };
        assert_eq!(zone("10.1.0.0/16", Verdict::Accept), 0);
        assert_eq!(zone("10.1.0.0/16", Verdict::Drop), 1);
        assert_eq!(zone("10.2.0.0/16", Verdict::Accept), 1);
        assert!(is_looked_at(&at(
            Layer::Inet,
            FIREWALLD,
            "filter_FWD_inner"
        )));
        // One that leads to itself is left at some point.
        let circle = base(true, vec![always(Verdict::Jump("forward".into()))]);
        let place = at(Layer::Inet, "mine", "forward");
        assert_eq!(
            judge(&[(place, circle)].into(), &passage()).obstacles.len(),
            1
        );
    }
}

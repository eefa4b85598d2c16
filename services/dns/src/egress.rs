//! Lets sandboxes reach what the names that they may reach stand for: puts the addresses of an answer into the node's
//! rules before the answer leaves, and back where somebody has taken them away. What a name is, others know.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use berth_domain::{Lookup, Protocol, Status};
use berth_netns::{NameSets, Opening, Owner};
use hickory_proto::op::Message;
use tokio::task::spawn_blocking;

use crate::{
    config::Config,
    known::Known,
    message::{addresses, live_at_most},
    openings::{Change, Openings, TooMany},
};

/// What somebody took away is back after this.
const LOOK: Duration = Duration::from_secs(1);

/// What a sandbox may reach at the addresses of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Door {
    pub(crate) owner: Owner,
    /// Whether it has an IPv6 address to connect from.
    pub(crate) ipv6: bool,
    /// `None`: everything there.
    pub(crate) ports: Vec<Option<(Protocol, u16)>>,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Egress {
    life_min: Duration,
    life_max: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// That of the manager; empty: it was not heard of yet.
    instance: String,
    /// Opened when they are needed.
    sets: Option<NameSets>,
    openings: Openings,
    /// Of the change to the tables up to which what is noted is known to be in them.
    whole_at: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("no manager has said the name of its tables yet")]
    NoInstance,
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error("the rules cannot be changed")]
    Rules(#[from] io::Error),
}

impl Egress {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            life_min: config.egress_life_min,
            life_max: config.egress_life_max,
            state: Arc::default(),
        }
    }

    /// Opens the door to the addresses of `answer`. Where that fails, nobody shall be told them, and it returns false.
    pub(crate) async fn open(&self, door: Door, answer: &mut Message) -> bool {
        let longest = u32::try_from(self.life_max.as_secs()).unwrap_or(u32::MAX);
        // Nobody shall go on with an address that is not let through any more.
        live_at_most(answer, longest);
        let wanted = self.wanted(&door, answer);
        if wanted.is_empty() {
            return true;
        }
        let owner = door.owner;
        match self.with(move |it| it.open(owner, &wanted)).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "an address cannot be let through"
                );
                false
            }
        }
    }

    /// Takes note of what a manager has said: what is of nobody any more ends.
    pub(crate) async fn learn(&self, known: &Known) {
        let (instance, owners) = (known.instance.clone(), owners(known));
        // Before all that stands was read once, it is not known who is gone.
        let complete = known.sandboxes_revision != 0;
        let learned = self.with(move |it| {
            it.name(instance);
            if complete {
                it.close_all_but(&owners)
            } else {
                Ok(())
            }
        });
        if let Err(error) = learned.await {
            tracing::debug!(%error, "what is over is left to end by itself");
        }
    }

    /// Looks again and again whether what was put in is still there, and puts it back. Ends never.
    pub(crate) async fn keep(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let looked = self.with(|it| {
                it.openings.expire(Instant::now());
                it.look()
            });
            match looked.await {
                Ok(0) => {}
                Ok(number) => tracing::info!(number, "what names have opened is put back"),
                // The manager makes the tables anew, or there is none to make them.
                Err(error) => tracing::debug!(%error, "what names have opened is not looked at"),
            }
        }
    }

    fn wanted(&self, door: &Door, answer: &Message) -> BTreeMap<Opening, Duration> {
        let mut wanted = BTreeMap::new();
        for (address, ttl) in addresses(answer) {
            if address.is_ipv6() && !door.ipv6 {
                continue;
            }
            let life = Duration::from_secs(ttl.into());
            let life = life.max(self.life_min).min(self.life_max);
            for &port in &door.ports {
                let opening = Opening {
                    owner: door.owner,
                    address,
                    port,
                };
                let longest: &mut Duration = wanted.entry(opening).or_default();
                *longest = life.max(*longest);
            }
        }
        wanted
    }

    /// The kernel's answer may wait for others who change tables.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, Failed> {
        let state = self.state.clone();
        let done =
            spawn_blocking(move || work(&mut state.lock().unwrap_or_else(PoisonError::into_inner)));
        match done.await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going away, and with it whoever waits here.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

impl State {
    fn name(&mut self, instance: String) {
        if self.instance != instance {
            *self = Self {
                instance,
                ..Self::default()
            };
        }
    }

    fn open(&mut self, owner: Owner, wanted: &BTreeMap<Opening, Duration>) -> Result<(), Failed> {
        // What was put in before may have been taken away with the table.
        self.look()?;
        let now = Instant::now();
        let change = self.openings.plan(owner, wanted, now)?;
        self.carry_out(&change)?;
        self.openings.note(&change, now);
        Ok(())
    }

    fn close_all_but(&mut self, owners: &BTreeSet<Owner>) -> Result<(), Failed> {
        self.sets()?;
        let change = Change {
            place: vec![],
            remove: self.openings.of_others(owners),
        };
        // Nothing is put back for those who are gone, whatever becomes of this.
        self.openings.note(&change, Instant::now());
        self.carry_out(&change)
    }

    fn carry_out(&mut self, change: &Change) -> Result<(), Failed> {
        let whole_at = self.whole_at;
        let sets = self.sets()?;
        let mut changes = 0;
        if !change.remove.is_empty() {
            sets.remove(&change.remove)?;
            changes += 1;
        }
        if !change.place.is_empty() {
            sets.place(&change.place)?;
            changes += 1;
        }
        // Where nobody else has changed anything meanwhile, there is nothing to look for.
        let own = whole_at.map(|it| it.wrapping_add(changes));
        if changes > 0 && own == Some(sets.generation()?) {
            self.whole_at = own;
        }
        Ok(())
    }

    /// How many were missing and are there again.
    fn look(&mut self) -> Result<usize, Failed> {
        let generation = self.sets()?.generation()?;
        if self.whole_at == Some(generation) {
            return Ok(0);
        }
        let held = self.sets()?.held()?;
        let change = Change {
            place: self.openings.missing(&held, Instant::now()),
            remove: vec![],
        };
        self.carry_out(&change)?;
        // What comes after it, also by this, is looked at the next time.
        self.whole_at = Some(generation);
        Ok(change.place.len())
    }

    /// With what a former process has put in taken note of.
    fn sets(&mut self) -> Result<&mut NameSets, Failed> {
        if self.instance.is_empty() {
            return Err(Failed::NoInstance);
        }
        let sets = match self.sets.take() {
            Some(sets) => sets,
            None => {
                let mut sets = NameSets::open(&self.instance)?;
                self.openings.adopt(sets.held()?, Instant::now());
                sets
            }
        };
        Ok(self.sets.insert(sets))
    }
}

/// Those who reach others by name and are still there.
fn owners(known: &Known) -> BTreeSet<Owner> {
    let there = known.sandboxes.values();
    let there = there.filter(|it| it.status != Status::Dead);
    there
        .filter(|it| matches!(it.lookup, Lookup::Named(_)))
        .map(|it| Owner::of(it.generation))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use berth_domain::Generation;
    use hickory_proto::{
        op::Query,
        rr::{
            Name, RData, Record, RecordType,
            rdata::{A, AAAA, CNAME},
        },
    };

    use super::*;

    fn door(ipv6: bool, ports: &[Option<(Protocol, u16)>]) -> Door {
        Door {
            owner: Owner::of(Generation(7)),
            ipv6,
            ports: ports.to_vec(),
        }
    }

    fn egress() -> Egress {
        Egress::new(&Config {
            egress_life_min: Duration::from_secs(60),
            egress_life_max: Duration::from_secs(600),
            ..Config::default()
        })
    }

    /// An alias and what it leads to, with these lives.
    fn answer(records: &[(&str, u32)]) -> Message {
        let mut answer = Message::query();
        let name = |text| Name::from_ascii(text).unwrap();
        let (asked, target) = (name("api.example.org."), name("edge.example.net."));
        answer.add_query(Query::query(asked.clone(), RecordType::A));
        let alias = RData::CNAME(CNAME(target.clone()));
        answer.add_answer(Record::from_rdata(asked, 30, alias));
        for (address, ttl) in records {
            let data = match address.parse().unwrap() {
                IpAddr::V4(it) => RData::A(A(it)),
                IpAddr::V6(it) => RData::AAAA(AAAA(it)),
            };
            answer.add_answer(Record::from_rdata(target.clone(), *ttl, data));
        }
        answer
    }

    #[test]
    fn every_address_behind_an_alias_lives_as_long_as_its_record_within_bounds() {
        let egress = egress();
        let records = [
            ("192.0.2.1", 5),
            ("192.0.2.2", 300),
            ("192.0.2.3", 86_400),
            ("192.0.2.2", 100),
            ("2001:db8::1", 300),
        ];
        let lives = |ipv6| {
            let wanted = egress.wanted(&door(ipv6, &[None]), &answer(&records));
            let wanted = wanted.into_iter();
            let life = |(it, life): (Opening, Duration)| (it.address.to_string(), life.as_secs());
            wanted.map(life).collect::<Vec<_>>()
        };
        let text = |(it, life): (&str, u64)| (it.to_owned(), life);
        let ipv4 = [("192.0.2.1", 60), ("192.0.2.2", 300), ("192.0.2.3", 600)].map(text);
        assert_eq!(lives(false), ipv4, "nothing is opened that it cannot reach");
        let ipv6 = [text(("2001:db8::1", 300))];
        assert_eq!(lives(true), [&ipv4[..], &ipv6].concat());
        let ports = [Some((Protocol::Tcp, 80)), Some((Protocol::Udp, 443))];
        let wanted = egress.wanted(&door(false, &ports), &answer(&records));
        assert_eq!(wanted.len(), 6, "each port of each address");
    }

    #[test]
    fn what_lived_as_long_as_it_may_is_over_and_the_next_question_opens_it_anew() {
        let (egress, start) = (egress(), Instant::now());
        let door = door(false, &[None]);
        let wanted = egress.wanted(&door, &answer(&[("192.0.2.3", 86_400)]));
        let mut openings = Openings::default();
        let change = openings.plan(door.owner, &wanted, start).unwrap();
        let lives: Vec<_> = change.place.iter().map(|(_, life)| *life).collect();
        assert_eq!(lives, [egress.life_max], "then the kernel closes it");
        openings.note(&change, start);
        let left = |openings: &Openings, at| openings.missing(&BTreeMap::new(), at).len();
        let end = start + egress.life_max;
        assert_eq!(left(&openings, end - Duration::from_millis(1)), 1);
        assert_eq!(left(&openings, end), 0, "it is not put back");
        let anew = openings.plan(door.owner, &wanted, end).unwrap();
        assert_eq!(anew, change);
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_not_to_be_told_and_what_opens_nothing_is() {
        let egress = egress();
        let mut some = answer(&[("192.0.2.1", 5)]);
        assert!(!egress.open(door(false, &[None]), &mut some).await);
        let mut none = answer(&[("2001:db8::1", 86_400)]);
        assert!(egress.open(door(false, &[None]), &mut none).await);
        let lives: Vec<_> = none.answers.iter().map(|it| it.ttl).collect();
        assert_eq!(lives, [30, 600], "no longer than it may be let through");
    }
}

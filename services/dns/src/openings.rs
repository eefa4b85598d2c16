//! What names have opened for sandboxes, and until when: what is to be put in and what has to give way. It knows no kernel
//! and no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use berth_netns::{Opening, Owner};

/// Of one sandbox. An answer has a few dozen addresses at most, and a policy seldom more than a few ports for one name.
pub(crate) const EACH_MAX: usize = 1024;
/// Of all sandboxes together.
pub(crate) const ALL_MAX: usize = 65_536;
/// A life that is longer by less than this is as good as the one that is there.
const SLACK: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Openings {
    /// Sorted by owner.
    until: BTreeMap<Opening, Instant>,
}

/// What has to be done to the sets, and then [`Openings::note`]d.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) place: Vec<(Opening, Duration)>,
    /// Those that give way.
    pub(crate) remove: Vec<Opening>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an answer opens {0} places, and {EACH_MAX} is all that a sandbox can have")]
pub(crate) struct TooMany(usize);

impl Openings {
    /// What `owner` has to have now, for so long. The room for it is taken from its own, and where all together are too
    /// many, from whoever has most; those go first that would end first.
    pub(crate) fn plan(
        &self,
        owner: Owner,
        wanted: &BTreeMap<Opening, Duration>,
        now: Instant,
    ) -> Result<Change, TooMany> {
        if wanted.len() > EACH_MAX {
            return Err(TooMany(wanted.len()));
        }
        let stays_open = |it: &Opening, life: Duration| {
            let until = self.until.get(it);
            until.is_some_and(|&until| until > now && until + SLACK >= now + life)
        };
        let place = wanted.iter().map(|(it, life)| (*it, *life));
        let place = place.filter(|(it, life)| !stays_open(it, *life)).collect();
        let new = wanted.keys().filter(|it| !self.until.contains_key(it));
        let new = new.count();
        let excess = (self.of(owner).count() + new).saturating_sub(EACH_MAX);
        let mut remove = self.first_to_end(owner, wanted, excess);
        let excess = (self.until.len() + new).saturating_sub(remove.len() + ALL_MAX);
        if excess > 0 {
            let (richest, has) = self.richest();
            // Where that is the owner, what it has lost already counts.
            let from_it = excess + if richest == owner { remove.len() } else { 0 };
            remove.extend(self.first_to_end(richest, wanted, from_it.min(has)));
        }
        let remove = remove.into_iter().collect();
        Ok(Change { place, remove })
    }

    /// Takes note of what was done.
    pub(crate) fn note(&mut self, change: &Change, now: Instant) {
        for it in &change.remove {
            self.until.remove(it);
        }
        for (it, life) in &change.place {
            self.until.insert(*it, now + *life);
        }
    }

    /// Takes note of what a former process has put in.
    pub(crate) fn adopt(&mut self, held: BTreeMap<Opening, Duration>, now: Instant) {
        let held = held.into_iter().map(|(it, left)| (it, now + left));
        self.until.extend(held);
    }

    /// Forgets what has ended by itself.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.until.retain(|_, until| *until > now);
    }

    /// What should be in the sets and is not among `held`, with what is left of its life.
    pub(crate) fn missing(
        &self,
        held: &BTreeMap<Opening, Duration>,
        now: Instant,
    ) -> Vec<(Opening, Duration)> {
        let left = |until: &Instant| until.saturating_duration_since(now);
        let missing = self.until.iter().filter(|(it, _)| !held.contains_key(it));
        let missing = missing.map(|(it, until)| (*it, left(until)));
        missing.filter(|(_, left)| !left.is_zero()).collect()
    }

    /// What is of nobody who is still there.
    pub(crate) fn of_others(&self, owners: &BTreeSet<Owner>) -> Vec<Opening> {
        let all = self.until.keys().copied();
        all.filter(|it| !owners.contains(&it.owner)).collect()
    }

    fn of(&self, owner: Owner) -> impl Iterator<Item = (&Opening, &Instant)> {
        let first = Opening {
            owner,
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: None,
        };
        let behind = self.until.range(first..);
        behind.take_while(move |(it, _)| it.owner == owner)
    }

    fn first_to_end(
        &self,
        owner: Owner,
        but: &BTreeMap<Opening, Duration>,
        number: usize,
    ) -> BTreeSet<Opening> {
        let own = self.of(owner).filter(|(it, _)| !but.contains_key(it));
        let mut own: Vec<_> = own.collect();
        own.sort_unstable_by_key(|(_, until)| **until);
        own.into_iter().take(number).map(|(it, _)| *it).collect()
    }

    /// Who has the most, and how many.
    fn richest(&self) -> (Owner, usize) {
        let mut counts: BTreeMap<Owner, usize> = BTreeMap::new();
        for it in self.until.keys() {
            *counts.entry(it.owner).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        most.expect("nobody asks while there are none")
    }
}

#[cfg(test)]
mod tests {
    use berth_domain::{Generation, Protocol};

    use super::*;

    fn opening(generation: u64, number: usize) -> Opening {
        let number = u32::try_from(number).unwrap();
        Opening {
            owner: Owner::of(Generation(generation)),
            address: Ipv4Addr::from(number).into(),
            port: Some((Protocol::Tcp, 443)),
        }
    }

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    /// Opens `numbers` for a sandbox, and returns what that took.
    fn open(
        all: &mut Openings,
        generation: u64,
        numbers: impl IntoIterator<Item = usize>,
        life: Duration,
        now: Instant,
    ) -> Result<Change, TooMany> {
        let wanted = numbers
            .into_iter()
            .map(|it| (opening(generation, it), life));
        let wanted = wanted.collect();
        let change = all.plan(Owner::of(Generation(generation)), &wanted, now)?;
        all.note(&change, now);
        Ok(change)
    }

    #[test]
    fn a_life_is_lengthened_and_never_shortened() {
        let mut all = Openings::default();
        let start = Instant::now();
        let mut placed = |at, life| {
            let change = open(&mut all, 1, [1], seconds(life), start + seconds(at)).unwrap();
            change
                .place
                .iter()
                .map(|(_, life)| life.as_secs())
                .collect::<Vec<_>>()
        };
        let none: Vec<u64> = vec![];
        assert_eq!(placed(0, 60), [60]);
        assert_eq!(placed(10, 50), none, "it is as long");
        assert_eq!(placed(10, 20), none, "it is longer");
        assert_eq!(placed(10, 60), [60]);
        assert_eq!(placed(69, 2), none);
        assert_eq!(placed(70, 1), [1], "it has ended");
        all.expire(start + seconds(71));
        assert!(all.until.is_empty());
    }

    #[test]
    fn what_ends_first_gives_way_to_what_is_new_and_never_what_is_wanted() {
        let (mut all, now) = (Openings::default(), Instant::now());
        open(&mut all, 1, 0..EACH_MAX - 1, seconds(60), now).unwrap();
        let change = open(&mut all, 1, [5000], seconds(30), now).unwrap();
        assert_eq!((change.place.len(), change.remove.len()), (1, 0));
        let change = open(&mut all, 1, [5000, 5001], seconds(20), now).unwrap();
        assert_eq!(change.place, [(opening(1, 5001), seconds(20))]);
        assert_eq!(change.remove.len(), 1);
        assert_ne!(change.remove, [opening(1, 5000)], "it is wanted");
        let change = open(&mut all, 1, [5002], seconds(60), now).unwrap();
        assert_eq!(change.remove, [opening(1, 5001)], "it ends first");
        assert_eq!(all.until.len(), EACH_MAX);
        let refused = open(&mut all, 1, 0..=EACH_MAX, seconds(60), now);
        assert_eq!(refused, Err(TooMany(EACH_MAX + 1)));
        let other = open(&mut all, 2, [1], seconds(60), now).unwrap();
        assert_eq!(other.remove, [], "each has its own");
    }

    #[test]
    fn where_all_are_too_many_whoever_has_most_makes_room() {
        let (mut all, now) = (Openings::default(), Instant::now());
        open(&mut all, 1, [1], seconds(10), now).unwrap();
        let rich = u64::try_from(ALL_MAX / EACH_MAX).unwrap();
        for generation in 2..=rich {
            open(&mut all, generation, 0..EACH_MAX, seconds(60), now).unwrap();
        }
        open(&mut all, 100, 0..EACH_MAX - 1, seconds(60), now).unwrap();
        assert_eq!(all.until.len(), ALL_MAX);
        let change = open(&mut all, 101, 0..3, seconds(60), now).unwrap();
        assert_eq!(change.remove.len(), 3);
        let poor = [1, 100].map(|it| Owner::of(Generation(it)));
        assert!(change.remove.iter().all(|it| !poor.contains(&it.owner)));
        // Who has most and wants more makes the room itself, once.
        let change = open(&mut all, rich, 2000..2010, seconds(60), now).unwrap();
        assert_eq!((change.place.len(), change.remove.len()), (10, 10));
        assert_eq!(all.until.len(), ALL_MAX);
    }

    #[test]
    fn what_is_missing_is_put_back_for_the_rest_of_its_life_and_what_nobody_owns_is_not() {
        let (mut all, now) = (Openings::default(), Instant::now());
        open(&mut all, 1, [1, 2], seconds(60), now).unwrap();
        open(&mut all, 2, [1], seconds(5), now).unwrap();
        let held = [(opening(1, 1), seconds(50))].into();
        let missing = all.missing(&held, now + seconds(10));
        assert_eq!(missing, [(opening(1, 2), seconds(50))]);
        let owners = [Owner::of(Generation(2))].into();
        assert_eq!(all.of_others(&owners), [opening(1, 1), opening(1, 2)]);
        let mut later = Openings::default();
        later.adopt(held, now);
        assert_eq!(
            later.missing(&BTreeMap::new(), now),
            [(opening(1, 1), seconds(50))]
        );
    }
}

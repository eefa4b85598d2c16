//! Leases on pieces of work: at most one holder at a time, each with a fencing token, lost by whoever does not renew. Time is
//! what has passed since the process began; the tokens of one process are larger than those of every one before it.

use std::{collections::BTreeMap, time::Duration};

/// More pieces than work is ever cut into, and few enough to be listed at once.
pub const LEASES_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkLease {
    pub name: String,
    pub holder: String,
    pub token: u64,
    pub acquired_at: Duration,
    pub expires_at: Duration,
    pub time_to_live: Duration,
    pub attributes: BTreeMap<String, String>,
}

/// What a caller asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub name: String,
    pub holder: String,
    pub time_to_live: Duration,
    pub attributes: BTreeMap<String, String>,
}

/// One lease, as its holder names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseRef {
    pub name: String,
    pub token: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAcquired {
    /// With the lease of the other one.
    Held(Box<WorkLease>),
    /// There are as many as can be, or as many tokens were given out.
    Exhausted,
}

#[derive(Clone, Debug, Default)]
pub struct WorkLeases {
    leases: BTreeMap<String, WorkLease>,
    issued: u32,
}

/// The token of this number that a process of this epoch gives out.
pub fn fencing_token(epoch: u32, number: u32) -> u64 {
    u64::from(epoch) << 32 | u64::from(number)
}

impl WorkLeases {
    /// Takes the lease, or renews it where the same holder has it.
    pub fn acquire(
        &mut self,
        epoch: u32,
        asked: Asked,
        now: Duration,
    ) -> Result<WorkLease, NotAcquired> {
        self.leases.retain(|_, it| now < it.expires_at);
        let expires_at = now.saturating_add(asked.time_to_live);
        if let Some(lease) = self.leases.get_mut(&asked.name) {
            if lease.holder != asked.holder {
                return Err(NotAcquired::Held(Box::new(lease.clone())));
            }
            lease.expires_at = expires_at;
            lease.time_to_live = asked.time_to_live;
            lease.attributes = asked.attributes;
            return Ok(lease.clone());
        }
        if self.leases.len() >= LEASES_MAX {
            return Err(NotAcquired::Exhausted);
        }
        self.issued = self.issued.checked_add(1).ok_or(NotAcquired::Exhausted)?;
        let lease = WorkLease {
            name: asked.name.clone(),
            holder: asked.holder,
            token: fencing_token(epoch, self.issued),
            acquired_at: now,
            expires_at,
            time_to_live: asked.time_to_live,
            attributes: asked.attributes,
        };
        self.leases.insert(asked.name, lease.clone());
        Ok(lease)
    }

    /// Renews those that are held, and names the others.
    pub fn renew(&mut self, asked: &[LeaseRef], now: Duration) -> (Vec<WorkLease>, Vec<String>) {
        let (mut renewed, mut lost) = (vec![], vec![]);
        for it in asked {
            match self.leases.get_mut(&it.name) {
                Some(lease) if lease.token == it.token && now < lease.expires_at => {
                    lease.expires_at = now.saturating_add(lease.time_to_live);
                    renewed.push(lease.clone());
                }
                Some(_) | None => lost.push(it.name.clone()),
            }
        }
        (renewed, lost)
    }

    pub fn release(&mut self, asked: &[LeaseRef]) {
        for it in asked {
            if self.leases.get(&it.name).map(|it| it.token) == Some(it.token) {
                self.leases.remove(&it.name);
            }
        }
    }

    /// Those that are held and whose names begin so, by name.
    pub fn list(&self, prefix: &str, now: Duration) -> Vec<WorkLease> {
        self.leases
            .range(prefix.to_owned()..)
            .map(|(_, it)| it)
            .take_while(|it| it.name.starts_with(prefix))
            .filter(|it| now < it.expires_at)
            .cloned()
            .collect()
    }

    /// The lease, while whoever has this token holds it.
    pub fn held(&self, it: &LeaseRef, now: Duration) -> Option<&WorkLease> {
        let lease = self.leases.get(&it.name)?;
        (lease.token == it.token && now < lease.expires_at).then_some(lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: u32 = 3;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn asked(name: &str, holder: &str) -> Asked {
        Asked {
            name: name.into(),
            holder: holder.into(),
            time_to_live: seconds(10),
            attributes: BTreeMap::new(),
        }
    }

    fn lease_ref(it: &WorkLease) -> LeaseRef {
        LeaseRef {
            name: it.name.clone(),
            token: it.token,
        }
    }

    #[test]
    fn a_lease_is_of_one_holder_until_it_ends_and_its_next_token_is_larger() {
        let mut leases = WorkLeases::default();
        let first = leases.acquire(EPOCH, asked("a", "x"), seconds(0)).unwrap();
        assert_eq!(first.token, fencing_token(3, 1));
        let refused = leases.acquire(EPOCH, asked("a", "y"), seconds(9));
        assert_eq!(refused, Err(NotAcquired::Held(Box::new(first.clone()))));
        let second = leases.acquire(EPOCH, asked("a", "y"), seconds(10)).unwrap();
        assert!(second.token > first.token);
        assert_eq!(leases.held(&lease_ref(&first), seconds(10)), None);
        assert_eq!(leases.held(&lease_ref(&second), seconds(19)), Some(&second));
        assert_eq!(leases.held(&lease_ref(&second), seconds(20)), None);
    }

    #[test]
    fn the_same_holder_keeps_its_token_and_changes_the_rest() {
        let mut leases = WorkLeases::default();
        let first = leases.acquire(EPOCH, asked("a", "x"), seconds(0)).unwrap();
        let again = Asked {
            time_to_live: seconds(60),
            attributes: [("pid".to_owned(), "7".to_owned())].into(),
            ..asked("a", "x")
        };
        let renewed = leases.acquire(EPOCH, again.clone(), seconds(5)).unwrap();
        assert_eq!(
            (renewed.token, renewed.acquired_at),
            (first.token, seconds(0))
        );
        assert_eq!(renewed.expires_at, seconds(65));
        assert_eq!(renewed.attributes, again.attributes);
        let late = leases.acquire(EPOCH, again, seconds(65)).unwrap();
        assert!(late.token > first.token, "it was nobody's for a moment");
    }

    #[test]
    fn what_is_renewed_lasts_its_whole_time_and_what_is_lost_is_named() {
        let mut leases = WorkLeases::default();
        let a = leases.acquire(EPOCH, asked("a", "x"), seconds(0)).unwrap();
        let b = leases.acquire(EPOCH, asked("b", "x"), seconds(5)).unwrap();
        let wrong = LeaseRef {
            token: a.token,
            ..lease_ref(&b)
        };
        let unknown = LeaseRef {
            name: "c".into(),
            token: 1,
        };
        let all = [lease_ref(&a), lease_ref(&b), wrong, unknown];
        let (renewed, lost) = leases.renew(&all, seconds(10));
        let ends: Vec<_> = renewed
            .iter()
            .map(|it| (&*it.name, it.expires_at))
            .collect();
        assert_eq!(ends, [("b", seconds(20))], "a had ended in this moment");
        assert_eq!(lost, ["a", "b", "c"]);
    }

    #[test]
    fn a_lease_that_is_given_back_is_free_and_only_its_holder_gives_it_back() {
        let mut leases = WorkLeases::default();
        let first = leases.acquire(EPOCH, asked("a", "x"), seconds(0)).unwrap();
        let wrong = LeaseRef {
            token: first.token + 1,
            ..lease_ref(&first)
        };
        leases.release(&[wrong]);
        assert!(leases.acquire(EPOCH, asked("a", "y"), seconds(1)).is_err());
        leases.release(&[lease_ref(&first), lease_ref(&first)]);
        let second = leases.acquire(EPOCH, asked("a", "y"), seconds(1)).unwrap();
        leases.release(&[lease_ref(&first)]);
        assert!(leases.held(&lease_ref(&second), seconds(1)).is_some());
    }

    #[test]
    fn those_of_a_prefix_are_listed_by_name_while_they_last() {
        let mut leases = WorkLeases::default();
        for name in ["gc/b", "gc/a", "gd", "g"] {
            leases.acquire(EPOCH, asked(name, "x"), seconds(0)).unwrap();
        }
        let names = |prefix, now| {
            let listed = leases.list(prefix, now).into_iter();
            listed.map(|it| it.name).collect::<Vec<_>>()
        };
        assert_eq!(names("gc/", seconds(1)), ["gc/a", "gc/b"]);
        assert_eq!(names("", seconds(1)), ["g", "gc/a", "gc/b", "gd"]);
        assert_eq!(names("", seconds(10)), Vec::<String>::new());
    }

    #[test]
    fn there_are_so_many_and_the_room_of_what_has_ended_is_used_again() {
        let mut leases = WorkLeases::default();
        for number in 0..LEASES_MAX {
            let it = asked(&number.to_string(), "x");
            leases.acquire(EPOCH, it, seconds(0)).unwrap();
        }
        let more = leases.acquire(EPOCH, asked("more", "x"), seconds(9));
        assert_eq!(more, Err(NotAcquired::Exhausted));
        assert!(leases.acquire(EPOCH, asked("0", "x"), seconds(9)).is_ok());
        assert!(
            leases
                .acquire(EPOCH, asked("more", "x"), seconds(10))
                .is_ok()
        );
    }

    #[test]
    fn tokens_are_larger_than_those_of_an_epoch_before_and_are_never_given_out_twice() {
        let mut before = WorkLeases {
            issued: u32::MAX - 1,
            ..WorkLeases::default()
        };
        let last = before.acquire(1, asked("a", "x"), seconds(0)).unwrap();
        let none = before.acquire(1, asked("b", "x"), seconds(0));
        assert_eq!(none, Err(NotAcquired::Exhausted));
        let mut after = WorkLeases::default();
        let first = after.acquire(2, asked("a", "x"), seconds(0)).unwrap();
        assert!(first.token > last.token);
    }

    /// Every sequence of four operations of two holders on one lease, with a time that passes or does not.
    #[test]
    fn whatever_two_holders_do_only_one_of_them_holds_it_and_tokens_only_grow() {
        let steps = 2 * 3 * 2;
        for sequence in 0..usize::pow(steps, 4) {
            let (mut leases, mut now, mut largest) = (WorkLeases::default(), seconds(0), 0);
            let mut known: [Option<LeaseRef>; 2] = [None, None];
            for place in 0..4 {
                let step = sequence / steps.pow(place) % steps;
                let (who, verb, passes) = (step % 2, step / 2 % 3, step / 6 == 1);
                now += if passes { seconds(10) } else { seconds(1) };
                match verb {
                    0 => {
                        let it = asked("a", ["x", "y"][who]);
                        if let Ok(lease) = leases.acquire(EPOCH, it, now) {
                            assert!(lease.token >= largest, "{sequence}");
                            largest = lease.token;
                            known[who] = Some(lease_ref(&lease));
                        }
                    }
                    1 => drop(leases.renew(known[who].as_slice(), now)),
                    _ => leases.release(known[who].as_slice()),
                }
                let holds = |it: &&LeaseRef| leases.held(it, now).is_some();
                let holding: Vec<_> = known.iter().flatten().filter(holds).collect();
                assert!(holding.len() <= 1, "{sequence}: {holding:?}");
                let newest = holding.iter().all(|it| it.token == largest);
                assert!(newest, "{sequence}: an old token holds");
            }
        }
    }
}

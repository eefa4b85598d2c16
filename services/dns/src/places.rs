//! Places that callers share: so many in all, and for no caller more than its part, so that one keeps none from asking.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Of all places, what one caller can have: four of them can take all.
const PARTS: usize = 4;

#[derive(Debug)]
pub(crate) struct Places {
    all: usize,
    each: usize,
    /// How many, by caller; who has none is not in it.
    taken: Mutex<BTreeMap<IpAddr, usize>>,
}

/// A place that is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    caller: IpAddr,
}

impl Places {
    pub(crate) fn new(all: usize) -> Arc<Self> {
        Arc::new(Self {
            all,
            each: (all / PARTS).max(1),
            taken: Mutex::default(),
        })
    }

    /// `None` where the caller has its part, or all are taken.
    pub(crate) fn take(self: &Arc<Self>, caller: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&caller).copied().unwrap_or_default();
        if all >= self.all || own >= self.each {
            return None;
        }
        taken.insert(caller, own + 1);
        Some(Place {
            places: self.clone(),
            caller,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = &self.places.taken;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.caller) {
            Some(own) if *own > 1 => *own -= 1,
            Some(_) | None => drop(taken.remove(&self.caller)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_caller_has_more_than_its_part_and_all_together_no_more_than_all() {
        let places = Places::new(8);
        let caller = |number| IpAddr::from([10, 9, 0, number]);
        let mut held: Vec<_> = (0..5).filter_map(|_| places.take(caller(1))).collect();
        assert_eq!(held.len(), 2, "a quarter");
        for number in 2..=5 {
            held.extend(places.take(caller(number)));
            held.extend(places.take(caller(number)));
        }
        assert_eq!(held.len(), 8, "all");
        held.remove(0);
        assert!(places.take(caller(1)).is_some(), "one was given back");
        held.clear();
        assert_eq!(
            places.taken.lock().unwrap().len(),
            0,
            "and nobody is remembered"
        );
    }
}

//! Which faults the node was under at which time, so that an error can be told from an excuse.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The manager tries again what failed after at most five seconds, and until then tells what it knows.
const AFTERMATH: Duration = Duration::from_secs(7);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// The manager was away.
    pub(crate) manager: bool,
    /// containerd was away or did not get on.
    pub(crate) runtime: bool,
    /// The disk of the store was full.
    pub(crate) disk: bool,
}

impl Faults {
    pub(crate) fn any(self) -> bool {
        self.manager || self.runtime || self.disk
    }

    fn and(self, other: Self) -> Self {
        Self {
            manager: self.manager || other.manager,
            runtime: self.runtime || other.runtime,
            disk: self.disk || other.disk,
        }
    }
}

#[derive(Debug)]
struct Interval {
    faults: Faults,
    /// Absent while it lasts.
    to: Option<Instant>,
}

#[derive(Debug, Default)]
pub(crate) struct Weather(Mutex<Vec<Interval>>);

impl Weather {
    pub(crate) fn begin(&self, faults: Faults) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Interval { faults, to: None });
    }

    /// All faults are over.
    pub(crate) fn clear(&self) {
        let now = Instant::now();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for it in all.iter_mut().filter(|it| it.to.is_none()) {
            it.to = Some(now);
        }
    }

    /// What there was between `from` and now.
    pub(crate) fn since(&self, from: Instant) -> Faults {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .filter(|it| it.to.is_none_or(|to| to + AFTERMATH >= from))
            .fold(Faults::default(), |sum, it| sum.and(it.faults))
    }

    /// How many there were.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    #[cfg(test)]
    fn with(faults: Faults, to: Option<Instant>) -> Self {
        Self(Mutex::new(vec![Interval { faults, to }]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_excuses_what_it_meets_and_its_aftermath_and_nothing_later() {
        let disk = Faults {
            disk: true,
            ..Faults::default()
        };
        let begun = Instant::now();
        let second = Duration::from_secs(1);
        let open = Weather::with(disk, None);
        assert_eq!(open.since(begun + second), disk);
        let over = Weather::with(disk, Some(begun + second));
        assert_eq!(over.since(begun), disk);
        assert_eq!(over.since(begun + second + AFTERMATH), disk);
        assert_eq!(
            over.since(begun + second * 2 + AFTERMATH),
            Faults::default()
        );
    }
}

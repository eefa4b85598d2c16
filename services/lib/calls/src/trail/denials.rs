//! How many denied calls are written down: who may nothing must not be able to wash away what others have done.

use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(1);
const MOST: u64 = 10;

#[derive(Debug, Default)]
pub(super) struct Denials {
    began: Option<Instant>,
    taken: u64,
    left_out: u64,
}

impl Denials {
    /// Whether one more is written down; then how many before it were not.
    pub(super) fn admit(&mut self, now: Instant) -> Option<u64> {
        let fresh = self
            .began
            .is_none_or(|it| now.saturating_duration_since(it) >= WINDOW);
        if fresh {
            (self.began, self.taken) = (Some(now), 0);
        }
        if self.taken >= MOST {
            self.left_out += 1;
            return None;
        }
        self.taken += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_thinned_and_the_next_one_says_by_how_much() {
        let (mut denials, start) = (Denials::default(), Instant::now());
        let admitted = (0..100).filter(|_| denials.admit(start).is_some()).count();
        assert_eq!(admitted as u64, MOST);
        assert_eq!(denials.admit(start + WINDOW), Some(100 - MOST));
        assert_eq!(denials.admit(start + WINDOW), Some(0));
    }
}

//! Which of the kernel's kills for memory had nothing to do with the end of a container: it went on for a while after them.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use berth_domain::Role;

/// A container that loses a process to the kernel may end of that, and takes its time: a shell, say, waits for the rest.
const AFTERMATH: Duration = Duration::from_secs(5);

type Kills = BTreeMap<Role, u64>;

/// What was counted at the last two looks that lie as far apart as an aftermath lasts.
#[derive(Debug, Default)]
pub(crate) struct FormerKills {
    before: Option<(SystemTime, Kills)>,
    last: Option<(SystemTime, Kills)>,
}

impl FormerKills {
    pub(crate) fn note(&mut self, now: SystemTime, kills: Kills) {
        let apart = |(at, _): &(SystemTime, Kills)| now >= *at + AFTERMATH;
        match &self.last {
            Some(last) if !apart(last) => {}
            _ => self.before = self.last.replace((now, kills)),
        }
    }

    /// How many kills a container had outlived that ended at `end`.
    pub(crate) fn of(&self, role: &Role, end: SystemTime) -> u64 {
        let looks = [&self.last, &self.before].into_iter().flatten();
        let mut early_enough = looks.filter(|(at, _)| *at + AFTERMATH <= end);
        let counted = early_enough.next().and_then(|(_, kills)| kills.get(role));
        counted.copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn a_kill_is_former_that_was_counted_well_before_the_end() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        /// Looks with what they counted, the end, and what was outlived.
        type Case<'a> = (&'a [(u64, u64)], u64, u64);
        let cases: [Case; 7] = [
            (&[],                          100, 0),
            (&[(10, 1)],                   100, 1),
            (&[(96, 1)],                   100, 0),
            (&[(95, 1)],                   100, 1),
            (&[(10, 1), (97, 2)],          100, 1),
            (&[(10, 1), (40, 2)],          100, 2),
            (&[(90, 1), (96, 2), (97, 3)], 100, 1),
        ];
        for (looks, end, expected) in cases {
            let mut former = FormerKills::default();
            for (seconds, kills) in looks {
                former.note(at(*seconds), [(Role::Pause, *kills)].into());
            }
            assert_eq!(former.of(&Role::Pause, at(end)), expected, "{looks:?}");
        }
    }
}

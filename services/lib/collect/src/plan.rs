//! The order in which objects go, and how far: tombstones first, then the longest unused, then the larger.

use std::{cmp::Reverse, sync::Arc};

use crate::verdict::{Action, Holder, Object, Why};

/// As many of what is in use as a missed goal is explained by.
pub const LARGEST_MAX: usize = 10;

/// What a run does, and what it cannot.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they go; what stays is behind them.
    pub objects: Vec<Object>,
    /// What is missing to the goal, in bytes.
    pub missed_bytes: u64,
    /// The largest objects in use, where something is missing.
    pub largest: Vec<Held>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub name: String,
    pub size_bytes: u64,
    pub holders: Vec<Arc<Holder>>,
}

/// How much a run shall free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// All that is of no use.
    All,
    Bytes(u64),
}

impl Goal {
    /// Of a run that was begun with `bytes`, 0 for all, and has freed `freed` of them.
    pub fn left(bytes: u64, freed: u64) -> Self {
        match bytes {
            0 => Self::All,
            bytes => Self::Bytes(bytes.saturating_sub(freed)),
        }
    }
}

/// Puts objects in order, and spares what the goal is reached without. Tombstones were chosen by a run before this one: they
/// go when their grace is over, and count for the goal.
pub fn plan(mut objects: Vec<Object>, goal: Goal) -> Plan {
    let stays = |it: &Object| !matches!(it.action, Action::Delete | Action::Tombstone);
    // The last two make the order the same for all who plan.
    objects.sort_by(|a, b| {
        let key = |it: &Object| {
            let tombstone = Reverse(it.buried.map(|it| Reverse(it.at)));
            (stays(it), tombstone, it.last_used, Reverse(it.size_bytes))
        };
        (key(a), &a.name, a.buried).cmp(&(key(b), &b.name, b.buried))
    });
    let Goal::Bytes(goal) = goal else {
        return Plan {
            objects,
            ..Plan::default()
        };
    };
    let mut freed: u64 = 0;
    for object in objects.iter_mut().filter(|it| !stays(it)) {
        if freed < goal {
            freed = freed.saturating_add(object.frees_bytes);
        } else if object.buried.is_none() {
            object.action = Action::Later;
            object.why = Why::GoalReached;
        }
    }
    let missed_bytes = goal.saturating_sub(freed);
    let largest = match missed_bytes {
        0 => vec![],
        _ => largest_held(&objects),
    };
    Plan {
        objects,
        missed_bytes,
        largest,
    }
}

fn largest_held(objects: &[Object]) -> Vec<Held> {
    let mut held: Vec<_> = objects.iter().filter(|it| !it.holders.is_empty()).collect();
    held.sort_by_key(|it| (Reverse(it.size_bytes), &it.name));
    let held = held.into_iter().take(LARGEST_MAX).map(|it| Held {
        name: it.name.clone(),
        size_bytes: it.size_bytes,
        holders: it.holders.clone(),
    });
    held.collect()
}

/// How full a file system may get, in percent.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    pub high: u8,
    pub low: u8,
}

/// A file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub used: u64,
    /// Without what is reserved for root.
    pub capacity: u64,
}

impl Marks {
    /// What has to be freed to come down to the low mark, where the high one is passed.
    pub fn goal(&self, it: Usage) -> Option<u64> {
        (it.used > share(it.capacity, self.high)).then(|| self.above_low(it))
    }

    /// What has to be freed to come down to the low mark.
    pub fn above_low(&self, it: Usage) -> u64 {
        it.used.saturating_sub(share(it.capacity, self.low))
    }
}

impl Usage {
    /// How full it is, in thousandths.
    pub fn permille(self) -> u32 {
        let used = u128::from(self.used) * 1000;
        let permille = used.checked_div(u128::from(self.capacity)).unwrap_or(0);
        u32::try_from(permille).unwrap_or(u32::MAX)
    }
}

fn share(capacity: u64, percent: u8) -> u64 {
    let share = u128::from(capacity) * u128::from(percent) / 100;
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

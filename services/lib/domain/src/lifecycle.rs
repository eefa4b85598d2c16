//! The states of a sandbox and which may follow which. The store refuses what this table refuses.
//!
//! ```text
//!            Create                     ports gone / back
//!   (none) ────────▶ PENDING ──▶ RUNNING ◀────────────▶ NOT_READY
//!                     │  │  ▲       │  │                 │  │
//!        create undone│  │  └───────┼──┼─ lost, `always`─┘  │
//!                     │  └──────────┼──┼─── end ────────────┤
//!                     ▼             │  └────────▶ STOPPED ◀─┘
//!                    DEAD ◀─────────┼───────────────┘ torn down
//!                     │             │
//!                     └─ Create ────┘ a new record, a new generation
//! ```

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    Pending,
    NotReady,
    Running,
    Stopped,
    Dead,
}

use Status::{Dead, NotReady, Pending, Running, Stopped};

/// What may follow what. A status may always be written over itself.
#[rustfmt::skip]
const ALLOWED: &[(Status, Status)] = &[
    (Pending,  Running),
    (Pending,  Stopped),  // told to end while being created
    (Pending,  Dead),     // the Create failed and was undone
    (Running,  NotReady),
    (Running,  Pending),  // its objects are gone and the restart policy is `always`
    (Running,  Stopped),
    (NotReady, Running),
    (NotReady, Pending),
    (NotReady, Stopped),
    (Stopped,  Dead),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is {from} cannot become {to}")]
pub struct NotAllowed {
    pub from: Status,
    pub to: Status,
}

impl Status {
    pub const ALL: [Status; 5] = [Pending, NotReady, Running, Stopped, Dead];

    pub fn as_str(self) -> &'static str {
        match self {
            Pending => "PENDING",
            NotReady => "NOT_READY",
            Running => "RUNNING",
            Stopped => "STOPPED",
            Dead => "DEAD",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    pub fn check_move(self, to: Status) -> Result<(), NotAllowed> {
        if self == to || ALLOWED.contains(&(self, to)) {
            Ok(())
        } else {
            Err(NotAllowed { from: self, to })
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_follows_dead_and_only_dead_follows_stopped() {
        for to in Status::ALL {
            assert_eq!(Dead.check_move(to).is_ok(), to == Dead);
            assert_eq!(Stopped.check_move(to).is_ok(), matches!(to, Stopped | Dead));
        }
    }

    #[test]
    fn every_status_but_dead_has_a_way_to_dead() {
        for start in [Pending, NotReady, Running, Stopped] {
            let mut reached = vec![start];
            while let Some(next) = ALLOWED
                .iter()
                .find(|(from, to)| reached.contains(from) && !reached.contains(to))
                .map(|(_, to)| *to)
            {
                reached.push(next);
            }
            assert!(reached.contains(&Dead), "{start} is a trap");
        }
    }
}

//! What is done to a node, drawn from a seed: the sequence of each worker follows from the seed alone, whatever comes back.

use std::time::Duration;

use berth_api::v1;
use berth_e2e::specs::{shell, spec};

use crate::random::Random;

pub(crate) const WORKERS: u64 = 8;
/// Ids of one worker. All workers together have more than the subnet has addresses.
pub(crate) const SLOTS: u64 = 3;

/// What is asked for. Two of one kind are the same spec, two of different kinds are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Serves on its port.
    Web,
    /// Has no port and takes its SIGTERM.
    Idle,
    /// Exits by itself, with `BRIEF_CODE`.
    Brief,
    /// Its program is not there.
    Broken,
    /// Its image is not there, and neither is its registry.
    NoImage,
    /// Listens on another port than it declares.
    Deaf,
}

pub(crate) const BRIEF_CODE: u32 = 3;
/// Nobody listens on this port, so a pull fails at once.
const NO_REGISTRY: &str = "localhost:1/none:1";
/// How long a `Brief` one lives.
const BRIEF_SECONDS: u32 = 2;

impl Kind {
    pub(crate) fn spec(self) -> v1::SandboxSpec {
        let line = match self {
            Kind::Web => "trap 'exit 0' TERM; httpd -f -p 8080 -h /etc & wait".to_owned(),
            Kind::Idle => "trap 'exit 0' TERM; sleep 3600 & wait".to_owned(),
            Kind::Brief => format!("sleep {BRIEF_SECONDS}; exit {BRIEF_CODE}"),
            Kind::Deaf => "httpd -f -p 9090 -h /etc".to_owned(),
            Kind::Broken | Kind::NoImage => String::new(),
        };
        let ports: &[u32] = match self {
            Kind::Web | Kind::Deaf => &[8080],
            Kind::Idle | Kind::Brief | Kind::Broken | Kind::NoImage => &[],
        };
        let mut app = shell("app", &line, ports);
        app.shutdown_timeout = Some(duration(Duration::from_millis(500)));
        match self {
            Kind::Broken => app.args = vec!["/no/such/program".into()],
            Kind::NoImage => app.image = NO_REGISTRY.into(),
            Kind::Web | Kind::Idle | Kind::Brief | Kind::Deaf => {}
        }
        let mut spec = spec([app]);
        if self == Kind::Deaf {
            spec.port_wait_timeout = Some(duration(Duration::from_millis(500)));
        }
        spec
    }

    /// Why a Create of it fails, where it does.
    pub(crate) fn failure(self) -> Option<&'static str> {
        match self {
            Kind::Web | Kind::Idle | Kind::Brief => None,
            Kind::Broken => Some("RUNTIME_REFUSED"),
            Kind::NoImage => Some("REGISTRY_UNREACHABLE"),
            Kind::Deaf => Some("PORT_TIMEOUT"),
        }
    }
}

fn duration(it: Duration) -> prost_types::Duration {
    it.try_into().expect("some milliseconds fit")
}

/// What a worker does with one of its ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Create(Kind),
    /// The same Create by two callers at once.
    CreateTwice(Kind),
    Delete,
    Stop,
    /// Kills the app's first process.
    Kill,
    Look,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) slot: u64,
    pub(crate) action: Action,
    /// Whether a lost answer is got by the same call again, or by asking.
    pub(crate) repeats: bool,
}

pub(crate) fn next_move(random: &mut Random) -> Move {
    let kind = random.pick(&[
        (5, Kind::Web),
        (4, Kind::Idle),
        (2, Kind::Brief),
        (1, Kind::Broken),
        (1, Kind::NoImage),
        (1, Kind::Deaf),
    ]);
    Move {
        slot: random.below(SLOTS),
        action: random.pick(&[
            (8, Action::Create(kind)),
            (2, Action::CreateTwice(kind)),
            (5, Action::Delete),
            (2, Action::Stop),
            (2, Action::Kill),
            (5, Action::Look),
        ]),
        repeats: random.below(2) == 0,
    }
}

/// What happens to the node under all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    KillManager,
    KillContainerd,
    KillBoth,
    /// containerd does not get on for so long.
    Pause(Duration),
    /// The manager dies while containerd does not get on.
    PauseAndKillManager(Duration),
    /// The disk of the store is full for so long.
    FillDisk(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strike {
    /// Peace before it.
    pub(crate) after: Duration,
    pub(crate) fault: Fault,
}

pub(crate) fn next_strike(random: &mut Random) -> Strike {
    let millis =
        |random: &mut Random, from, to| Duration::from_millis(from + random.below(to - from));
    // Some outlast the manager's patience with one call, most do not.
    let pause = match random.below(4) {
        0 => millis(random, 11_000, 13_000),
        _ => millis(random, 500, 4000),
    };
    let full = millis(random, 500, 4000);
    Strike {
        after: millis(random, 500, 6000),
        fault: random.pick(&[
            (4, Fault::KillManager),
            (3, Fault::KillContainerd),
            (1, Fault::KillBoth),
            (2, Fault::Pause(pause)),
            (1, Fault::PauseAndKillManager(pause)),
            (3, Fault::FillDisk(full)),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moves_of_a_worker_follow_from_the_seed_alone() {
        let moves = |seed, worker| {
            let mut random = Random::new(seed, worker);
            [(); 50].map(|()| next_move(&mut random))
        };
        assert_eq!(moves(1, 1), moves(1, 1));
        assert_ne!(moves(1, 1), moves(1, 2));
        assert_ne!(moves(1, 1), moves(2, 1));
    }

    #[test]
    fn every_kind_of_fault_comes_in_the_end() {
        let mut random = Random::new(1, 1);
        let seen: std::collections::BTreeSet<_> = (0..200)
            .map(|_| std::mem::discriminant(&next_strike(&mut random).fault))
            .map(|it| format!("{it:?}"))
            .collect();
        assert_eq!(seen.len(), 6);
    }
}

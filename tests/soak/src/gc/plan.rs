//! What is done in one interleaving, drawn from its seed. Each client has sandboxes, tags and blobs of its own; contents are
//! everybody's.

use std::time::Duration;

use berth_soak::random::Random;

pub(crate) const CLIENTS: u64 = 2;
pub(crate) const SLOTS: u64 = 2;
pub(crate) const TAGS: u64 = 2;
pub(crate) const BLOBS: u64 = 4;
/// Fewer than there are tags: some tags stand for the same content.
pub(crate) const CONTENTS: u64 = 3;
pub(crate) const WORKERS: u64 = 3;
/// Of each client.
const STEPS: usize = 9;
const STRIKES: usize = 5;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Create {
        slot: u64,
        tag: u64,
        by_digest: bool,
        waits: bool,
    },
    Delete {
        slot: u64,
    },
    /// The registry's tag comes to stand for this content.
    Push {
        tag: u64,
        content: u64,
    },
    Pull {
        tag: u64,
    },
    Pin {
        tag: u64,
    },
    Unpin {
        tag: u64,
    },
    Artifact {
        tag: u64,
        archived: bool,
    },
    ForgetArtifact {
        tag: u64,
    },
    Version {
        tag: u64,
    },
    ForgetVersion,
    Write {
        blob: u64,
    },
}

/// What happens beside the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strike {
    Collect { images: bool },
    KillWorker { number: u64 },
    KillManager,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What each tag stands for at first, by client.
    pub(crate) contents: Vec<Vec<u64>>,
    pub(crate) clients: Vec<Vec<Step>>,
    pub(crate) strikes: Vec<(Duration, Strike)>,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut first = Random::new(seed, 0);
        let contents = |_| (0..TAGS).map(|_| first.below(CONTENTS)).collect();
        let contents = (0..CLIENTS).map(contents).collect();
        let client = |number| {
            let mut random = Random::new(seed, 1 + number);
            (0..STEPS).map(|_| step(&mut random)).collect()
        };
        let mut random = Random::new(seed, 1 + CLIENTS);
        Self {
            contents,
            clients: (0..CLIENTS).map(client).collect(),
            strikes: (0..STRIKES).map(|_| strike(&mut random)).collect(),
        }
    }
}

fn step(random: &mut Random) -> Step {
    let (slot, tag) = (random.below(SLOTS), random.below(TAGS));
    let (blob, content) = (random.below(BLOBS), random.below(CONTENTS));
    let (by_digest, waits, archived) = (
        random.below(4) == 0,
        random.below(3) > 0,
        random.below(2) == 0,
    );
    let create = Step::Create {
        slot,
        tag,
        by_digest,
        waits,
    };
    random.pick(&[
        (6, create),
        (3, Step::Delete { slot }),
        (2, Step::Push { tag, content }),
        (3, Step::Pull { tag }),
        (1, Step::Pin { tag }),
        (1, Step::Unpin { tag }),
        (5, Step::Artifact { tag, archived }),
        (1, Step::ForgetArtifact { tag }),
        (2, Step::Version { tag }),
        (1, Step::ForgetVersion),
        (3, Step::Write { blob }),
    ])
}

fn strike(random: &mut Random) -> (Duration, Strike) {
    let after = Duration::from_millis(random.below(500));
    let (images, number) = (random.below(2) == 0, random.below(WORKERS));
    let strike = random.pick(&[
        (8, Strike::Collect { images }),
        (3, Strike::KillWorker { number }),
        (1, Strike::KillManager),
    ]);
    (after, strike)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interleaving_follows_from_its_seed_alone() {
        assert_eq!(Plan::of(7), Plan::of(7));
        assert_ne!(Plan::of(7), Plan::of(8));
    }

    #[test]
    fn a_few_seeds_have_every_kind_of_step_and_strike() {
        let plans: Vec<_> = (0..20).map(Plan::of).collect();
        let steps = plans.iter().flat_map(|it| it.clients.iter().flatten());
        let steps: std::collections::HashSet<_> = steps.map(std::mem::discriminant).collect();
        assert_eq!(steps.len(), 11);
        let strikes = plans.iter().flat_map(|it| &it.strikes);
        let strikes: std::collections::HashSet<_> =
            strikes.map(|(_, it)| std::mem::discriminant(it)).collect();
        assert_eq!(strikes.len(), 3);
    }
}

//! Follows the watch through everything, and holds each change against the table of states: the store's own history is the
//! one place where the order of things is known.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{bail, ensure};
use berth_api::v1::{Sandbox, SandboxRemoved, SandboxStatus, WatchRequest, watch_response::Event};
use tokio_util::sync::CancellationToken;

use crate::world::World;

const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What the changes have told so far.
#[derive(Debug, Default)]
pub(crate) struct History {
    revision: u64,
    standing: BTreeMap<String, Sandbox>,
    /// The highest generation that an id ever had.
    generations: BTreeMap<String, u64>,
}

/// Follows until `over`; returns the number of changes.
pub(crate) async fn follow(world: Arc<World>, over: CancellationToken) -> anyhow::Result<usize> {
    let mut history = History::default();
    let mut changes = 0;
    while !over.is_cancelled() {
        let request = WatchRequest {
            from_revision: history.revision,
            id: String::new(),
        };
        let mut events = match world.node.sandboxes().watch(request).await {
            Ok(answer) => answer.into_inner(),
            // The manager is away.
            Err(_) => {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
        };
        loop {
            let event = tokio::select! {
                event = events.message() => event,
                () = over.cancelled() => break,
            };
            let Ok(Some(event)) = event else { break };
            ensure!(
                event.revision >= history.revision,
                "revision {} follows {}",
                event.revision,
                history.revision
            );
            history.revision = event.revision;
            changes += 1;
            match event.event {
                Some(Event::Sandbox(it)) => history.changed(it)?,
                Some(Event::Removed(it)) => history.removed(&it)?,
                Some(Event::Synced(_)) | None => {}
            }
        }
    }
    Ok(changes)
}

impl History {
    fn changed(&mut self, now: Sandbox) -> anyhow::Result<()> {
        let highest = self.generations.entry(now.id.clone()).or_default();
        ensure!(
            now.generation >= *highest,
            "generation {highest} came before {now:?}"
        );
        let fresh = now.generation > *highest;
        *highest = now.generation;
        match self.standing.get(&now.id) {
            Some(was) if was.generation == now.generation => {
                ensure!(
                    may_follow(was.status(), now.status()),
                    "{now:?} follows {was:?}"
                );
                let address = |it: &Sandbox| it.addresses.first().map(|it| it.address.clone());
                let kept = address(was) == address(&now) || now.status() == SandboxStatus::Dead;
                ensure!(kept, "the address of {was:?} changed: {now:?}");
            }
            Some(was) if was.status() != SandboxStatus::Dead => bail!("{now:?} replaces {was:?}"),
            Some(_) | None => ensure!(fresh, "{now:?} comes back"),
        }
        for address in &now.addresses {
            let holder = self
                .standing
                .values()
                .find(|it| it.id != now.id && it.addresses.contains(address));
            if let Some(holder) = holder {
                bail!("{now:?} has the address of {holder:?}");
            }
        }
        self.standing.insert(now.id.clone(), now);
        Ok(())
    }

    fn removed(&mut self, it: &SandboxRemoved) -> anyhow::Result<()> {
        match self.standing.remove(&it.id) {
            Some(was) if was.generation == it.generation => Ok(()),
            other => bail!("{it:?} removes {other:?}"),
        }
    }
}

/// The table of the node's states, but for what follows a reboot: there is none here.
fn may_follow(was: SandboxStatus, now: SandboxStatus) -> bool {
    use SandboxStatus::{Dead, NotReady, Pending, Running, Stopped};
    let allowed = [
        (Pending, Running),
        (Pending, Stopped),
        (Pending, Dead),
        (Running, NotReady),
        (Running, Stopped),
        (NotReady, Running),
        (NotReady, Stopped),
        (Stopped, Dead),
    ];
    was == now || allowed.contains(&(was, now))
}

#[cfg(test)]
mod tests {
    use berth_api::v1::NetworkAddress;

    use super::*;

    fn sandbox(id: &str, generation: u64, status: SandboxStatus, host: u8) -> Sandbox {
        let address = NetworkAddress {
            address: format!("10.0.0.{host}/28"),
            subnet: String::new(),
        };
        Sandbox {
            id: id.into(),
            generation,
            status: status.into(),
            addresses: if status == SandboxStatus::Dead {
                vec![]
            } else {
                vec![address]
            },
            ..Sandbox::default()
        }
    }

    #[test]
    #[rustfmt::skip]
    fn each_change_is_judged_by_what_stood_before_it() {
        use SandboxStatus::{Dead, Pending, Running, Stopped};
        let cases = [
            ("it goes on",                    sandbox("a", 5, Stopped, 2), true),
            ("it is over at once",            sandbox("a", 5, Dead,    2), false),
            ("it begins again",               sandbox("a", 5, Pending, 2), false),
            ("it has another address",        sandbox("a", 5, Stopped, 3), false),
            ("another takes its place",       sandbox("a", 6, Pending, 2), false),
            ("an older one comes back",       sandbox("a", 4, Stopped, 2), false),
            ("another with its own address",  sandbox("b", 6, Pending, 3), true),
            ("another with the same address", sandbox("b", 6, Pending, 2), false),
        ];
        for (case, next, expected) in cases {
            let mut history = History::default();
            history.changed(sandbox("a", 5, Running, 2)).unwrap();
            let judged = history.changed(next);
            assert_eq!(judged.is_ok(), expected, "{case}: {judged:?}");
        }
    }

    #[test]
    fn what_was_removed_comes_back_with_a_new_generation_only() {
        let mut history = History::default();
        history
            .changed(sandbox("a", 5, SandboxStatus::Running, 2))
            .unwrap();
        let removed = SandboxRemoved {
            id: "a".into(),
            generation: 5,
        };
        history.removed(&removed).unwrap();
        assert!(history.removed(&removed).is_err());
        assert!(
            history
                .changed(sandbox("a", 5, SandboxStatus::Pending, 2))
                .is_err()
        );
        assert!(
            history
                .changed(sandbox("a", 6, SandboxStatus::Pending, 2))
                .is_ok()
        );
    }
}

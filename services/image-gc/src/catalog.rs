//! Follows the catalog while there are tombstones: what an entry needs again is named back at once. What was missed, as where
//! another worker came too late, is found by looking again.

use std::{collections::BTreeSet, time::Duration};

use berth_api::v1;
use berth_collect::{Action, Digest};
use berth_domain::collection::{CollectionKind, Slice};
use berth_plugin::{chain, is_away};
use tokio::time::{Instant, sleep_until};

use crate::{
    config::Config,
    directory::BlobDir,
    facts::{blocking, gather},
    manager::{Broken, Manager, within},
    state::State,
};

/// The changes of a burst are taken together.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two looks, at most; where the grace of tombstones is shorter, there are two in it.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
const LOOK_AGAIN_LEAST: Duration = Duration::from_secs(1);

pub(crate) async fn follow(
    manager: &Manager,
    config: &Config,
    state: &State,
) -> Result<std::convert::Infallible, Broken> {
    if !config.collect_blobs {
        return std::future::pending().await;
    }
    let mut client = manager.catalog();
    // The watch begins where the catalog stands: what was before is looked at once, below.
    let first = v1::ListEntriesRequest {
        page_size: 1,
        ..v1::ListEntriesRequest::default()
    };
    let from_revision = within(client.list_entries(first)).await?.revision;
    let request = v1::WatchCatalogRequest { from_revision };
    let mut stream = client.watch_catalog(request).await?.into_inner();
    let mut membership = state.membership.subscribe();
    let mut own = BTreeSet::new();
    let mut due = Instant::now();
    loop {
        // Neither wait loses what it waits for when the other one ends.
        tokio::select! {
            message = stream.message() => {
                message?.ok_or(Broken::Ended)?;
                due = due.min(Instant::now() + PAUSE);
            }
            _ = membership.changed() => {
                let held = membership.borrow_and_update().held(CollectionKind::Blobs);
                let held: BTreeSet<Slice> = held.into_keys().collect();
                if held != own {
                    own = held;
                    due = due.min(Instant::now() + PAUSE);
                }
            }
            () = sleep_until(due) => {
                restore(manager, config, state, &own).await?;
                due = Instant::now() + between_looks(config.tombstone_grace);
            }
        }
    }
}

/// What is needed is named back before its grace is over, also where a look has failed.
fn between_looks(grace: Duration) -> Duration {
    (grace / 2).clamp(LOOK_AGAIN_LEAST, LOOK_AGAIN)
}

/// Names back what is needed, in the slices that are this worker's: the others do theirs.
async fn restore(
    manager: &Manager,
    config: &Config,
    state: &State,
    own: &BTreeSet<Slice>,
) -> Result<(), Broken> {
    let directory = BlobDir::new(config.blob_dir.clone(), config.blob_layout);
    let any = {
        let directory = directory.clone();
        blocking(move || directory.has_tombstones()).await
    };
    let facts = match any {
        Ok(false) => {
            state.alarm("tombstones", None);
            return Ok(());
        }
        Ok(true) => gather(manager, config, CollectionKind::Blobs).await,
        Err(error) => Err(error),
    };
    let facts = match facts {
        Ok(facts) => facts,
        Err(crate::facts::Incomplete::Call { status, .. }) if is_away(&status) => {
            return Err(status.into());
        }
        Err(error) => {
            let problem = format!("tombstones cannot be judged: {}", chain(&error));
            state.alarm("tombstones", Some(problem));
            return Ok(());
        }
    };
    let mut problem = None;
    for object in facts.objects {
        let slice = Slice::of(&object.digest);
        let is_own = slice.is_some_and(|it| own.contains(&it));
        let digest: Result<Digest, _> = object.digest.parse();
        let (Action::Restore, true, Ok(digest)) = (object.action, is_own, digest) else {
            continue;
        };
        let (directory, links) = (directory.clone(), facts.links.clone());
        let work = move || directory.restore(&links, &digest, object.buried);
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(())) => tracing::info!(%digest, why = %object.why, "named back"),
            Ok(Err(error)) => problem = Some(format!("{digest} cannot be named back: {error}")),
            Err(_) => problem = Some(format!("{digest} cannot be named back")),
        }
    }
    state.alarm("tombstones", problem);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_looked_for_twice_within_the_grace() {
        for (grace, expected) in [
            (0, 1),
            (2, 1),
            (60, 30),
            (600, 300),
            (1200, 600),
            (9999, 600),
        ] {
            let found = between_looks(Duration::from_secs(grace));
            assert_eq!(found, Duration::from_secs(expected), "{grace} s");
        }
    }
}

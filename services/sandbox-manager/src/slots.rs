//! Keeps network slots ready for the addresses that are given next.

use std::time::Duration;

use berth_domain::Status;
use berth_netns::NetnsNetwork;
use berth_platform::{Images, NetworkError, Runtime};
use berth_store::{Change, Store, StoreError, Watch, WatchEnded};

use crate::{crash, registry::Registry};

const RETRY: Duration = Duration::from_secs(5);

/// Until the manager stops; then there is none.
pub(crate) async fn keep<R: Runtime + Images>(registry: Registry<R, NetnsNetwork>, count: usize) {
    let network = registry.node().network.clone();
    while !registry.is_stopping() {
        let store = registry.store();
        if let Ok(watch) = changes_from_now(store).await {
            let name = "start/slots";
            let started = crash::around(name, refill(store, &network, count)).await;
            if started.is_ok() {
                tokio::select! {
                    () = follow(&registry, &network, count, watch) => {}
                    () = registry.stopping() => {}
                }
            }
        }
        registry.pause(RETRY).await;
    }
    if let Err(error) = network.prepare_slots([].into()).await {
        warn(&error);
    }
}

async fn changes_from_now(store: &Store) -> Result<Watch, StoreError> {
    loop {
        let now = store.revision().await?;
        // `None`: so much has changed since then that it is forgotten.
        if let Some(watch) = store.watch(now).await? {
            return Ok(watch);
        }
    }
}

/// Until a change was missed, or nothing could be made.
async fn follow<R: Runtime + Images>(
    registry: &Registry<R, NetnsNetwork>,
    network: &NetnsNetwork,
    count: usize,
    mut watch: Watch,
) {
    let store = registry.store();
    loop {
        // Neither loses anything where the other is first.
        let changed = tokio::select! {
            changed = watch.next() => changed,
            () = registry.until_addresses_change() => {
                if refilled(store, network, count).await.is_err() {
                    return;
                }
                continue;
            }
        };
        match changed {
            // Who is on the way up has no need of company.
            Ok((_, Change::Upserted(record))) if record.status == Status::Pending => {}
            Ok((_, Change::Upserted(_) | Change::Removed { .. })) => {
                if refilled(store, network, count).await.is_err() {
                    return;
                }
            }
            Ok((_, Change::EntryPut(_) | Change::EntryRemoved(_))) => {}
            Err(WatchEnded::Lagged | WatchEnded::Closed) => return,
        }
    }
}

async fn refilled(store: &Store, network: &NetnsNetwork, count: usize) -> Result<(), ()> {
    crash::around("slots/refill", refill(store, network, count)).await
}

async fn refill(store: &Store, network: &NetnsNetwork, count: usize) -> Result<(), ()> {
    let upcoming = store.upcoming_addresses(count).into_iter().collect();
    let filled = network.prepare_slots(upcoming).await;
    filled.map_err(|error| warn(&error))
}

fn warn(error: &NetworkError) {
    tracing::warn!(%error, cause = %error.source, "network slots could not be prepared");
}

//! The end of runs that nobody is there for.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use berth_domain::{
    Failure,
    collection::{CollectionKind, Waiting},
};
use berth_platform::{Images, Network, Runtime};

use crate::{crash, failures::store_failure, registry::Registry};

const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Gives runs up, as long as the manager lives.
pub(crate) async fn give_up<R: Runtime + Images, N: Network>(registry: Registry<R, N>) {
    let mut waiting = Waiting::default();
    while !registry.is_stopping() {
        // A store that fails is looked at again.
        let now = registry.collecting().now();
        let _ = registry.give_up_runs(&mut waiting, now).await;
        registry.pause(LOOK_AGAIN).await;
    }
}

impl<R: Runtime + Images, N: Network> Registry<R, N> {
    /// Ends the runs that have waited too long for a worker.
    pub(super) async fn give_up_runs(
        &self,
        waiting: &mut Waiting,
        now: Duration,
    ) -> Result<(), Failure> {
        let running = self.store().collections_under_way().await;
        let running = running.map_err(store_failure)?;
        let runs: Vec<_> = running.iter().map(|it| (it.id, it.kind)).collect();
        let worked = |kind: &CollectionKind| {
            let slices = format!("image-gc/{}/", kind.as_str());
            !self.collecting().leases(&slices).is_empty()
        };
        let worked: BTreeSet<_> = CollectionKind::ALL.into_iter().filter(worked).collect();
        for run in waiting.look(&runs, &worked, now) {
            let ended = self.store().abandon_collection(run, SystemTime::now());
            let ended = crash::around("collection/abandon", ended).await;
            let Some(view) = ended.map_err(store_failure)? else {
                continue;
            };
            tracing::warn!(run, why = view.collection.aborted, "a run is given up");
            self.collecting().tell(view);
            self.forget_index().await?;
        }
        Ok(())
    }
}

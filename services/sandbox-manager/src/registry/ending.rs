//! How a sandbox comes to its end by a request, or to another time for it: what is wanted is written down, its task is told, and
//! the caller watches as long as it has patience.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_domain::{Failure, Generation, Reason, SandboxId, SandboxRecord, Status, record::Ending};
use berth_platform::{Images, Network, Runtime};
use berth_store::{StoreError, UpdateError};

use super::{Registry, ending, generation_conflict, not_found};
use crate::{
    crash,
    failures::{internal, store_failure},
};

impl<R: Runtime + Images, N: Network> Registry<R, N> {
    /// Ends the sandbox and returns its record, DEAD. Without `patience` it waits as long as the configuration says.
    pub(crate) async fn stop(
        &self,
        id: &SandboxId,
        expected: Option<Generation>,
        patience: Option<Duration>,
    ) -> Result<Arc<SandboxRecord>, Failure> {
        let record = self.promise_end(id, expected, Ending::Stop).await?;
        let Some(record) = record else {
            return Err(not_found(id));
        };
        if record.status == Status::Dead {
            return Ok(Arc::new(record));
        }
        let generation = record.generation;
        let ended = self.watch(id, |ticket, view| match &view.record {
            // What was to be stopped is over when there is another in its place.
            Some(it) if it.generation > generation => {
                let mut over = record.clone();
                over.enter(
                    Status::Dead,
                    "STOP_REQUESTED",
                    "it was told to stop",
                    it.since,
                );
                Some(Ok(Arc::new(over)))
            }
            Some(it) if it.generation == generation && it.status == Status::Dead => {
                Some(Ok(it.clone()))
            }
            None if view.absent && view.ticket >= ticket => Some(Err(not_found(id))),
            Some(_) | None => None,
        });
        self.bounded(id, patience, ended).await
    }

    /// Removes the sandbox and its record; returns whether there was one. `patience` is as for `stop`.
    pub(crate) async fn delete(
        &self,
        id: &SandboxId,
        expected: Option<Generation>,
        patience: Option<Duration>,
    ) -> Result<bool, Failure> {
        let record = self.promise_end(id, expected, Ending::Delete).await?;
        let generation = record.as_ref().map(|it| it.generation);
        let gone = self.watch(id, |ticket, view| match &view.record {
            // Without a record when it was asked, one that is there is somebody's new Create.
            Some(it) => generation
                .is_none_or(|of| it.generation > of)
                .then_some(Ok(())),
            None => (view.absent && view.ticket >= ticket).then_some(Ok(())),
        });
        self.bounded(id, patience, gone).await?;
        Ok(record.is_some())
    }

    /// Writes down that the sandbox shall end, and tells its task. A Delete outranks a Stop; a DEAD record has nothing to
    /// stop.
    pub(crate) async fn promise_end(
        &self,
        id: &SandboxId,
        expected: Option<Generation>,
        ending: Ending,
    ) -> Result<Option<SandboxRecord>, Failure> {
        let (registry, id) = (self.clone(), id.clone());
        self.see_through(async move {
            let promised = registry.write_ending(&id, expected, ending).await?;
            registry.wake(&id);
            Ok(promised)
        })
        .await
    }

    async fn write_ending(
        &self,
        id: &SandboxId,
        expected: Option<Generation>,
        ending: Ending,
    ) -> Result<Option<SandboxRecord>, Failure> {
        let store = &self.0.store;
        // The record may be replaced between the look and the write, but not for ever.
        for _ in 0..8 {
            let found = match store.get(id).await {
                // Nobody knows the generation of a record that cannot be read, so none may be expected.
                Err(StoreError::Unreadable(_))
                    if ending == Ending::Delete && expected.is_none() =>
                {
                    let reclaimed = store.reclaim(id, SystemTime::now());
                    crash::around("delete/reclaim", reclaimed).await
                }
                found => found,
            };
            let Some(record) = found.map_err(store_failure)? else {
                return Ok(None);
            };
            if let Some(expected) = expected.filter(|it| *it != record.generation) {
                return Err(generation_conflict(id, expected, record.generation));
            }
            if ending == Ending::Stop && record.status == Status::Dead {
                return Ok(Some(record));
            }
            let wanted = store.update(id, record.generation, SystemTime::now(), move |record| {
                if record.ending != Some(Ending::Delete) {
                    record.ending = Some(ending);
                }
            });
            let verb = match ending {
                Ending::Stop | Ending::Expire => "stop",
                Ending::Delete => "delete",
            };
            match crash::around(&format!("{verb}/promise"), wanted).await {
                Ok(record) => return Ok(Some(record)),
                Err(UpdateError::Gone | UpdateError::NotAllowed(_)) => {}
                Err(UpdateError::Store(error)) => return Err(store_failure(error)),
            }
        }
        Err(internal("the record changes faster than it can be written"))
    }

    /// Sets when the sandbox ends by itself; `known` is what the caller takes its end to be.
    pub(crate) async fn renew(
        &self,
        id: &SandboxId,
        expected: Option<Generation>,
        known: Option<SystemTime>,
        time_to_live: Option<Duration>,
    ) -> Result<SandboxRecord, Failure> {
        let record = self.0.store.get(id).await.map_err(store_failure)?;
        let record = record.ok_or_else(|| not_found(id))?;
        if let Some(expected) = expected.filter(|it| *it != record.generation) {
            return Err(generation_conflict(id, expected, record.generation));
        }
        let now = SystemTime::now();
        let wanted = time_to_live.map(|it| now + it);
        let over = |record: &SandboxRecord| {
            record.ending.is_some() || matches!(record.status, Status::Stopped | Status::Dead)
        };
        let renewed = self
            .0
            .store
            .update(id, record.generation, now, move |record| {
                let meant = known.is_none() || known == record.expires_at;
                if meant && !over(record) {
                    record.expires_at = wanted;
                }
            });
        match crash::around("renew/write", renewed).await {
            Ok(record) if over(&record) => Err(ending(id)),
            Ok(record) if record.expires_at == wanted => Ok(record),
            Ok(record) => {
                let actual = record.expires_at.map(moment).unwrap_or_default();
                Err(Failure::new(
                    Reason::ExpiryConflict,
                    format!("sandbox {id} does not end when the caller thinks that it does"),
                )
                .with("actual", actual))
            }
            Err(UpdateError::Gone | UpdateError::NotAllowed(_)) => Err(not_found(id)),
            Err(UpdateError::Store(error)) => Err(store_failure(error)),
        }
    }

    /// What a caller is told whose patience ends before the sandbox does.
    pub(super) fn overdue(&self, id: &SandboxId) -> Failure {
        let trouble = self
            .0
            .tasks()
            .get(id)
            .and_then(|handle| handle.view.borrow().trouble.clone());
        let doing: Vec<_> = self
            .doing(id)
            .iter()
            .map(|it| it.step.to_string())
            .collect();
        let doing = if doing.is_empty() {
            "it is being looked at".to_owned()
        } else {
            doing.join(", ")
        };
        match trouble.map(|it| it.failure) {
            Some(it) if it.reason == Reason::RuntimeUnreachable => it,
            Some(it) => {
                let held = it.metadata.get("held").cloned().unwrap_or_default();
                Failure::new(
                    Reason::DeadlinePassed,
                    format!("sandbox {id} is not gone yet, the work goes on: {held}: {it}"),
                )
                .with("held", held)
            }
            None => Failure::new(
                Reason::DeadlinePassed,
                format!("sandbox {id} is not gone yet, the work goes on: {doing}"),
            )
            .with("held", doing),
        }
    }
}

fn moment(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at)
        .map(|it| it.to_string())
        .unwrap_or_default()
}

//! One reader of changes: first those that were asked for from the past, then each as it is made.

use std::collections::VecDeque;

use berth_domain::{
    Generation, SandboxId, SandboxRecord,
    catalog::{Entry, Key},
};
use tokio::sync::broadcast;

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Upserted(Box<SandboxRecord>),
    Removed {
        id: SandboxId,
        generation: Generation,
    },
    EntryPut(Box<Entry>),
    EntryRemoved(Key),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnded {
    #[error("the reader fell too far behind")]
    Lagged,
    #[error("the store was closed")]
    Closed,
}

#[derive(Debug)]
pub struct Watch {
    pub(crate) past: VecDeque<(u64, Change)>,
    pub(crate) changes: broadcast::Receiver<(u64, Change)>,
}

impl Watch {
    /// The next change that is made already.
    pub fn ready(&mut self) -> Result<Option<(u64, Change)>, WatchEnded> {
        if let Some(change) = self.past.pop_front() {
            return Ok(Some(change));
        }
        match self.changes.try_recv() {
            Ok(change) => Ok(Some(change)),
            Err(broadcast::error::TryRecvError::Empty) => Ok(None),
            Err(broadcast::error::TryRecvError::Lagged(_)) => Err(WatchEnded::Lagged),
            Err(broadcast::error::TryRecvError::Closed) => Err(WatchEnded::Closed),
        }
    }

    pub async fn next(&mut self) -> Result<(u64, Change), WatchEnded> {
        if let Some(change) = self.past.pop_front() {
            return Ok(change);
        }
        self.changes.recv().await.map_err(|error| match error {
            broadcast::error::RecvError::Lagged(_) => WatchEnded::Lagged,
            broadcast::error::RecvError::Closed => WatchEnded::Closed,
        })
    }
}

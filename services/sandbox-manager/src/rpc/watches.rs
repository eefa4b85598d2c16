//! What the streams of all services share: how a reader that cannot go on is told.

use berth_domain::{Failure, Reason};
use berth_store::{Store, Watch};
use tonic::Status;

use super::refuse;
use crate::failures::store_failure;

/// A watch that goes on behind a revision.
pub(crate) async fn resume(store: &Store, from: u64) -> Result<Watch, Status> {
    let watch = store.watch(from).await;
    let watch = watch.map_err(|it| refuse(store_failure(it)))?;
    watch.ok_or_else(|| {
        refuse(Failure::new(
            Reason::RevisionUnknown,
            format!("changes after revision {from} are not kept; watch again from 0"),
        ))
    })
}

/// The reader has fallen behind what is kept in memory for it.
pub(crate) fn too_slow() -> Status {
    refuse(Failure::new(
        Reason::RevisionUnknown,
        "the reader is too slow; watch again from its last revision",
    ))
}

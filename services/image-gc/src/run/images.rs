//! Images: the manager deletes them, in the commit.

use berth_api::v1;
use berth_collect::{Action, Object};

use super::{Outcome, Stop, Work, granted};

/// A deletion takes the runtime some time; the others of the slice are not held back by it for long.
const BATCH: usize = 32;

impl Work<'_> {
    pub(super) async fn images(
        &self,
        mut objects: Vec<Object>,
        outcome: &mut Outcome,
    ) -> Result<(), Stop> {
        objects.retain(|it| it.action == Action::Delete);
        for batch in objects.chunks(BATCH) {
            let claims = self.claim(batch.iter().map(deletable)).await?;
            let claimed = batch.iter().zip(&claims).filter(|(_, it)| granted(it));
            let claimed: Vec<_> = claimed.collect();
            berth_daemon::crash::point(|| "image-gc/image-claimed".to_owned());
            let tokens = claimed.iter().map(|(_, it)| it.token).collect();
            let outcomes = self.commit(tokens).await?;
            berth_daemon::crash::point(|| "image-gc/image-committed".to_owned());
            for ((object, _), it) in claimed.into_iter().zip(outcomes) {
                match (it.committed, it.problem) {
                    (true, _) => {
                        tracing::info!(image = object.name, why = %object.why, "deleted");
                        outcome.deleted += 1;
                    }
                    (false, problem) if !problem.is_empty() => {
                        outcome.failed.insert(object.name.clone(), problem);
                    }
                    // Somebody has come to hold it.
                    (false, _) => {}
                }
            }
        }
        Ok(())
    }
}

fn deletable(it: &Object) -> v1::Deletable {
    v1::Deletable {
        image: it.name.clone(),
        digest: it.digest.clone(),
        size_bytes: it.frees_bytes,
    }
}

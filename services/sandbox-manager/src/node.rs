//! The node as the manager holds it: its two seams, and one look at a sandbox through both.

use std::{sync::Arc, time::Duration};

use berth_domain::{Failure, Observed, Reason, SandboxId};
use berth_platform::{Images, Network, Runtime};

use crate::failures::{RETRY_RUNTIME, network_failure, runtime_failure};

/// One sandbox whose shim or record hangs is told of and tried again, and holds up nobody else.
const OBSERVE_LIMIT: Duration = Duration::from_secs(30);

/// The seams, shared by all tasks.
#[derive(Debug)]
pub(crate) struct Node<R, N> {
    pub(crate) runtime: Arc<R>,
    pub(crate) network: Arc<N>,
}

impl<R, N> Clone for Node<R, N> {
    fn clone(&self) -> Self {
        Self {
            runtime: self.runtime.clone(),
            network: self.network.clone(),
        }
    }
}

impl<R: Runtime + Images, N: Network> Node<R, N> {
    /// Asks both seams what they hold for `id`. It takes several calls, each with a limit of its own; this is the limit of
    /// all of them.
    pub(crate) async fn observe(&self, id: &SandboxId) -> Result<Observed, Failure> {
        self.observe_within(id, OBSERVE_LIMIT).await
    }

    async fn observe_within(&self, id: &SandboxId, limit: Duration) -> Result<Observed, Failure> {
        let look = async { tokio::join!(self.runtime.observe(id), self.network.observe(id)) };
        let Ok((runtime, network)) = tokio::time::timeout(limit, look).await else {
            let message = format!("no answer about sandbox {id} within {limit:?}");
            return Err(
                Failure::new(Reason::RuntimeUnreachable, message).retry_after(RETRY_RUNTIME)
            );
        };
        let runtime = runtime.map_err(runtime_failure)?;
        let network = network.map_err(network_failure)?;
        Ok(Observed {
            prepared: runtime.prepared,
            namespaces: network.namespaces,
            link: network.link,
            containers: runtime.containers,
        })
    }
}

#[cfg(test)]
mod tests {
    use berth_platform::fake::FakeNode;

    use super::*;

    #[tokio::test]
    async fn a_look_that_takes_too_long_is_told_of_and_tried_again() {
        let fake = FakeNode::default();
        let seams = Arc::new(fake.clone());
        let node = Node {
            runtime: seams.clone(),
            network: seams,
        };
        let id = SandboxId::parse("web").unwrap();
        fake.hang("observe web");
        let look = async |limit| {
            let look = node.observe_within(&id, limit);
            let look = tokio::time::timeout(Duration::from_secs(20), look).await;
            look.expect("it has its limit")
        };
        let failure = look(Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(failure.reason, Reason::RuntimeUnreachable);
        assert_eq!(failure.retry_after, Some(RETRY_RUNTIME));
        fake.release_hang();
        look(OBSERVE_LIMIT).await.unwrap();
    }
}

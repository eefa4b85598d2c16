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
        let look = async { tokio::join!(self.runtime.observe(id), self.network.observe(id)) };
        let Ok((runtime, network)) = tokio::time::timeout(OBSERVE_LIMIT, look).await else {
            let message = format!("no answer about sandbox {id} within {OBSERVE_LIMIT:?}");
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

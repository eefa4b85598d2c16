//! The node as the manager holds it: its two seams, and one look at a sandbox through both.

use std::sync::Arc;

use berth_domain::{Failure, Observed, SandboxId};
use berth_platform::{Images, Network, Runtime};

use crate::failures::{network_failure, runtime_failure};

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
    /// Asks both seams what they hold for `id`.
    pub(crate) async fn observe(&self, id: &SandboxId) -> Result<Observed, Failure> {
        let (runtime, network) = tokio::join!(self.runtime.observe(id), self.network.observe(id));
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

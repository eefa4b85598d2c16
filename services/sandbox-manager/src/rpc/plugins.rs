//! `PluginService`.

use std::sync::Arc;

use berth_api::{
    plugins::heartbeat_from_proto,
    v1::{self, plugin_service_server::PluginService},
};
use tonic::{Request, Response, Status};

use super::refuse;
use crate::plugins::PluginBook;

pub(crate) struct PluginRpc {
    pub(crate) plugins: Arc<PluginBook>,
}

#[tonic::async_trait]
impl PluginService for PluginRpc {
    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let said = heartbeat_from_proto(request.into_inner()).map_err(refuse)?;
        self.plugins.hear(said).map_err(refuse)?;
        Ok(Response::new(v1::HeartbeatResponse {}))
    }
}

//! The gRPC face: what a run would do, a run, and how the watchdog is.

use std::sync::Arc;

use berth_api::v1::{self, watchdog_service_server::WatchdogService};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Request, Response, Status};

use crate::{
    app::{Answer, Told},
    config::Config,
    manager::Manager,
};

#[derive(Debug)]
pub(crate) struct WatchdogRpc {
    pub(crate) config: Arc<Config>,
    pub(crate) asks: mpsc::Sender<oneshot::Sender<Answer>>,
    pub(crate) told: watch::Receiver<Told>,
    pub(crate) heard: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl WatchdogService for WatchdogRpc {
    async fn plan(
        &self,
        _request: Request<v1::WatchdogServicePlanRequest>,
    ) -> Result<Response<v1::WatchdogServicePlanResponse>, Status> {
        let manager = Manager::connect(&self.config).await?;
        let objects = manager.look().await?;
        Ok(Response::new(v1::WatchdogServicePlanResponse { objects }))
    }

    async fn run(
        &self,
        _request: Request<v1::WatchdogServiceRunRequest>,
    ) -> Result<Response<v1::WatchdogServiceRunResponse>, Status> {
        let (answer, answered) = oneshot::channel();
        let stopping = || Status::unavailable("the watchdog is stopping");
        self.asks.send(answer).await.map_err(|_| stopping())?;
        let run = answered.await.map_err(|_| stopping())??;
        Ok(Response::new(v1::WatchdogServiceRunResponse {
            run: Some(run),
        }))
    }

    async fn get_watchdog_status(
        &self,
        _request: Request<v1::GetWatchdogStatusRequest>,
    ) -> Result<Response<v1::GetWatchdogStatusResponse>, Status> {
        let told = self.told.borrow().clone();
        Ok(Response::new(v1::GetWatchdogStatusResponse {
            name: self.config.name.clone(),
            version: berth_version::VERSION.to_owned(),
            manager_reachable: *self.heard.borrow(),
            running: told.running,
            last_run: told.last,
            next_run_at: told.next.filter(|_| !told.running).map(Into::into),
            memory_rss_bytes: berth_daemon::resident_bytes(),
        }))
    }
}

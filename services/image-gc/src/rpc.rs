//! The gRPC face of a worker: what a run would do, runs, and how the worker is.

use std::{pin::Pin, sync::Arc};

use berth_api::v1::{self, CollectionCause, image_gc_service_server::ImageGcService};
use berth_collect::plan::{Goal, plan};
use berth_domain::{Failure, Reason, collection::CollectionKind};
use berth_plugin::{chain, is_away};
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    app::Shared,
    duties::usage,
    facts::{Incomplete, gather},
    manager::{Manager, within},
    state::Lease,
    wire,
};

/// Messages that are ahead of a caller.
const AHEAD: usize = 64;

#[derive(Clone, Debug)]
pub(crate) struct ImageGcRpc {
    pub(crate) shared: Arc<Shared>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ImageGcService for ImageGcRpc {
    type PlanStream = Answers<v1::ImageGcServicePlanResponse>;
    type RunStream = Answers<v1::ImageGcServiceRunResponse>;

    async fn plan(
        &self,
        request: Request<v1::ImageGcServicePlanRequest>,
    ) -> Result<Response<Self::PlanStream>, Status> {
        let request = request.into_inner();
        let kinds = self.kinds(request.images, request.blobs)?;
        let manager = self.manager()?;
        let mut answers = Vec::new();
        for kind in kinds {
            let facts = gather(&manager, &self.shared.config, kind).await;
            let facts = facts.map_err(|error| self.unplanned(&error))?;
            let planned = plan(facts.objects, Goal::left(request.goal_bytes, 0)).objects;
            let asked = |it: &v1::ImageGcServicePlanResponse| {
                let asked = request.object.as_str();
                asked.is_empty() || it.object == asked || it.digest == asked
            };
            let planned = planned.iter().map(|it| wire::planned_to_proto(kind, it));
            answers.extend(planned.filter(asked).map(Ok));
        }
        Ok(Response::new(stream::iter(answers).boxed()))
    }

    async fn run(
        &self,
        request: Request<v1::ImageGcServiceRunRequest>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let request = request.into_inner();
        let kinds = self.kinds(request.images, request.blobs)?;
        let manager = self.manager()?;
        let (to, answers) = mpsc::channel(AHEAD);
        let goal = request.goal_bytes;
        // A run goes on alone: what ends with its caller is the wait.
        let wait = async move {
            for kind in kinds {
                if let Err(status) = follow(&manager, kind, goal, &to).await {
                    let _ = to.send(Err(status)).await;
                    return;
                }
            }
        };
        let waited = stream::once(wait).filter_map(|()| async { None });
        Ok(Response::new(
            stream::select(ReceiverStream::new(answers), waited).boxed(),
        ))
    }

    async fn get_image_gc_status(
        &self,
        _request: Request<v1::GetImageGcStatusRequest>,
    ) -> Result<Response<v1::GetImageGcStatusResponse>, Status> {
        let Shared { config, state, .. } = &*self.shared;
        let membership = state.membership.borrow().clone();
        let said = state.said.borrow().clone();
        let slices = membership.slices.values();
        let disk = usage(&config.data_path);
        Ok(Response::new(v1::GetImageGcStatusResponse {
            worker: config.name.clone(),
            version: berth_version::VERSION.to_owned(),
            manager_reachable: membership.reachable,
            leases: slices.map(|Lease { name, .. }| name.clone()).collect(),
            memory_rss_bytes: resident_bytes(),
            disk_used_permille: disk.map_or(0, |it| it.permille()),
            next_scheduled_at: said.next_scheduled.map(Into::into),
            alarms: said.alarms.into_values().collect(),
        }))
    }
}

impl ImageGcRpc {
    fn kinds(&self, images: bool, blobs: bool) -> Result<Vec<CollectionKind>, Status> {
        let config = &self.shared.config;
        let (images, blobs) = match (images, blobs) {
            (false, false) => (config.collect_images, config.collect_blobs),
            asked => asked,
        };
        let off = |field, setting| {
            let problem = format!("is off: this worker's `{setting}` is false");
            Err(berth_api::status(Failure::invalid(field, problem)))
        };
        if images && !config.collect_images {
            return off("images", "collect_images");
        }
        if blobs && !config.collect_blobs {
            return off("blobs", "collect_blobs");
        }
        let images = images.then_some(CollectionKind::Images);
        let blobs = blobs.then_some(CollectionKind::Blobs);
        Ok(images.into_iter().chain(blobs).collect())
    }

    fn manager(&self) -> Result<Manager, Status> {
        let manager = self.shared.manager.borrow().clone();
        manager.ok_or_else(|| self.unreachable())
    }

    fn unreachable(&self) -> Status {
        let address = &self.shared.config.manager_address;
        let failure = Failure::new(Reason::ManagerUnreachable, "the manager is not reachable");
        berth_api::status(failure.with("manager", address))
    }

    fn unplanned(&self, error: &Incomplete) -> Status {
        if let Incomplete::Call { status, .. } = error
            && is_away(status)
        {
            return self.unreachable();
        }
        let what = chain(error);
        let failure = Failure::new(
            Reason::CollectionAborted,
            format!("nothing would go: {what}"),
        );
        berth_api::status(failure.with("what", what))
    }
}

/// Begins a run and sends how it stands until it has ended.
async fn follow(
    manager: &Manager,
    kind: CollectionKind,
    goal: u64,
    to: &mpsc::Sender<Result<v1::ImageGcServiceRunResponse, Status>>,
) -> Result<(), Status> {
    let kind = wire::kind_to_proto(kind);
    let mut client = manager.collections();
    // The watch first: the run may be over before it could begin.
    let request = v1::WatchCollectionsRequest { kind: kind.into() };
    let mut stream = within(client.watch_collections(request)).await?;
    let run = manager
        .start(kind, CollectionCause::Requested, goal)
        .await?;
    while let Some(message) = stream.message().await? {
        let Some(collection) = message.collection.filter(|it| it.id == run.id) else {
            continue;
        };
        let ended = collection.ended_at.is_some();
        let collection = Some(collection);
        let answer = v1::ImageGcServiceRunResponse { collection };
        if to.send(Ok(answer)).await.is_err() || ended {
            return Ok(());
        }
    }
    Err(Status::unavailable("the manager has ended the stream"))
}

/// What the process takes of the memory. 0 where the kernel does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
    let kib = line.and_then(|it| it.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

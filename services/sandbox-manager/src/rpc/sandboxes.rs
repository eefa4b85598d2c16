//! `SandboxService`.

use std::{net::IpAddr, pin::Pin, sync::Arc, time::SystemTime};

use berth_api::{
    Place,
    page::{PageFilter, PageToken},
    usage_to_proto,
    v1::{self, sandbox_service_server::SandboxService, watch_response::Event},
};
use berth_calls::patience;
use berth_domain::{
    Failure, PortSighting, Role, SandboxId, SandboxRecord, Status as SandboxStatus, names,
    usage::Usage,
};
use berth_platform::{Images, Network, Runtime};
use berth_store::{Change, Watch, WatchEnded};
use futures::StreamExt as _;
use prost::Message as _;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    PAGE_MAX,
    access::Streams,
    attach,
    copy::{copy_from, copy_to},
    denied_to_proto, exec, expected,
    forward::port_forward,
    logs::{self, LogStream},
    page_size, parse_id, refuse,
    watches::{resume, too_slow},
};
use crate::{
    failures::{host_network_disabled, network_failure, runtime_failure, store_failure},
    logs::LogReaders,
    places::Places,
    registry::{CreateTerms, Meant, Registry, Word, not_found},
    view::Doing,
};

/// Clients take 4 MiB of an answer unless told otherwise.
const PAGE_BYTES: usize = 3 << 20;
/// As `source` and `address` of SetPortStatus are kept in the record.
const SOURCE_MAX: usize = 63;

pub(crate) struct SandboxRpc<R, N> {
    pub(crate) registry: Registry<R, N>,
    pub(crate) place: Arc<Place>,
    /// Whether the configuration allows sandboxes in the network of the node.
    pub(crate) host_network: bool,
    pub(crate) logs: Arc<LogReaders>,
    pub(crate) copies: Streams,
    pub(crate) connections: Streams,
    pub(crate) execs: Places,
}

impl<R: Runtime + Images, N: Network> SandboxRpc<R, N> {
    fn render(&self, record: &SandboxRecord) -> v1::Sandbox {
        berth_api::sandbox_to_proto(record, &self.place)
    }

    pub(super) async fn record(&self, id: &SandboxId) -> Result<SandboxRecord, Status> {
        let record = self
            .registry
            .store()
            .get(id)
            .await
            .map_err(|it| refuse(store_failure(it)))?;
        record.ok_or_else(|| refuse(not_found(id)))
    }
}

#[tonic::async_trait]
impl<R: Runtime + Images, N: Network> SandboxService for SandboxRpc<R, N> {
    async fn create(
        &self,
        request: Request<v1::CreateRequest>,
    ) -> Result<Response<v1::CreateResponse>, Status> {
        let request = request.into_inner();
        let subnet = self.registry.store().subnet();
        let create = berth_api::create_from_proto(request, subnet).map_err(refuse)?;
        if create.spec.host_network && !self.host_network {
            return Err(refuse(host_network_disabled()));
        }
        let id = create.id;
        let terms = CreateTerms {
            expected: create.expected_generation,
            time_to_live: create.time_to_live,
        };
        let record = self
            .registry
            .admit(&id, Arc::new(create.spec), terms)
            .await
            .map_err(refuse)?;
        let was_ready = matches!(
            record.status,
            SandboxStatus::Running | SandboxStatus::NotReady
        );
        let ready = was_ready && record.ending.is_none();
        let sandbox = if ready || !create.wait_for_running {
            self.render(&record)
        } else {
            let running = self.registry.await_running(&id, record.generation).await;
            let running = running.map_err(refuse)?;
            self.render(&running)
        };
        Ok(Response::new(v1::CreateResponse {
            sandbox: Some(sandbox),
        }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let patience = patience(request.metadata());
        let request = request.into_inner();
        let id = parse_id("id", &request.id)?;
        let existed = self
            .registry
            .delete(&id, expected(request.expected_generation), patience)
            .await
            .map_err(refuse)?;
        Ok(Response::new(v1::DeleteResponse { existed }))
    }

    async fn stop(
        &self,
        request: Request<v1::StopRequest>,
    ) -> Result<Response<v1::StopResponse>, Status> {
        let patience = patience(request.metadata());
        let request = request.into_inner();
        let id = parse_id("id", &request.id)?;
        let record = self
            .registry
            .stop(&id, expected(request.expected_generation), patience)
            .await
            .map_err(refuse)?;
        Ok(Response::new(v1::StopResponse {
            sandbox: Some(self.render(&record)),
        }))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let id = parse_id("id", &request.into_inner().id)?;
        let record = self.record(&id).await?;
        let doing = self.registry.doing(&id);
        let sandbox = v1::Sandbox {
            running_steps: doing.iter().map(in_words).collect(),
            ..self.render(&record)
        };
        Ok(Response::new(v1::GetResponse {
            sandbox: Some(sandbox),
        }))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        let request = request.into_inner();
        let filter = PageFilter::parse(&request.statuses, &request.labels).map_err(refuse)?;
        let mut after = PageToken::parse(&request.page_token, &filter)
            .map_err(refuse)?
            .map(|it| it.after);
        let size = page_size(request.page_size);
        let store = self.registry.store();
        let (mut sandboxes, mut last, mut revision) = (vec![], None, None);
        let mut bytes = 0;
        // One more than asked tells whether there is a next page.
        'pages: loop {
            let (records, at) = store
                .list(after.clone(), PAGE_MAX)
                .await
                .map_err(|it| refuse(store_failure(it)))?;
            revision.get_or_insert(at);
            let Some(end) = records.last().map(|it| it.id.clone()) else {
                break;
            };
            for record in records.iter().filter(|it| filter.matches(it)) {
                let sandbox = self.render(record);
                bytes += sandbox.encoded_len();
                // A page has one sandbox at least: a spec has a limit of its own.
                if sandboxes.len() == size || (bytes > PAGE_BYTES && !sandboxes.is_empty()) {
                    let next_page_token = last
                        .map(|after| PageToken { after }.to_text(&filter))
                        .unwrap_or_default();
                    let revision = revision.unwrap_or_default();
                    return Ok(Response::new(v1::ListResponse {
                        sandboxes,
                        next_page_token,
                        revision,
                    }));
                }
                last = Some(record.id.clone());
                sandboxes.push(sandbox);
            }
            if records.len() < PAGE_MAX {
                break 'pages;
            }
            after = Some(end);
        }
        Ok(Response::new(v1::ListResponse {
            sandboxes,
            next_page_token: String::new(),
            revision: revision.unwrap_or_default(),
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let only = match request.id.as_str() {
            "" => None,
            id => Some(parse_id("id", id)?),
        };
        let store = self.registry.store();
        let (records, revision, watch) = match request.from_revision {
            0 => {
                let (records, revision, watch) = store
                    .snapshot_and_watch()
                    .await
                    .map_err(|it| refuse(store_failure(it)))?;
                (records, Some(revision), watch)
            }
            from => (vec![], None, resume(store, from).await?),
        };
        let place = self.place.clone();
        let wanted = move |id: &SandboxId| only.as_ref().is_none_or(|it| it == id);
        let first: Vec<_> = records
            .iter()
            .filter(|it| wanted(&it.id))
            .map(|record| v1::WatchResponse {
                // By id, not by revision: only the whole of it can be resumed from.
                revision: 0,
                event: Some(Event::Sandbox(berth_api::sandbox_to_proto(record, &place))),
            })
            .chain(revision.map(|revision| v1::WatchResponse {
                revision,
                event: Some(Event::Synced(v1::WatchSynced {})),
            }))
            .map(Ok)
            .collect();
        let changes = futures::stream::unfold(Some(watch), move |watch| {
            let (wanted, place) = (wanted.clone(), place.clone());
            async move { next_change(watch?, wanted, &place).await }
        });
        let stream = futures::stream::iter(first).chain(changes);
        // A watcher that stays must not hold up the end of the manager.
        let stream = stream.take_until(self.registry.stopping());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn snapshot(
        &self,
        request: Request<v1::SnapshotRequest>,
    ) -> Result<Response<v1::SnapshotResponse>, Status> {
        let id = parse_id("id", &request.into_inner().id)?;
        let record = self.record(&id).await?;
        let usage = self.registry.node().runtime.usage(&id).await;
        let mut readings = usage.map_err(|it| refuse(runtime_failure(it)))?;
        readings.sort_by(|a, b| a.role.cmp(&b.role));
        let containers: Vec<v1::ContainerUsage> = readings
            .iter()
            .map(|it| v1::ContainerUsage {
                name: it.role.to_string(),
                measured_at: Some(it.measured_at.into()),
                usage: Some(usage_to_proto(&it.usage)),
            })
            .collect();
        let denied = self.registry.node().network.denied(&id).await;
        let denied = denied.map_err(|it| refuse(network_failure(it)))?;
        let total = readings
            .iter()
            .fold(Usage::default(), |sum, it| sum.plus(&it.usage));
        let measured_at = readings.iter().map(|it| it.measured_at).min();
        Ok(Response::new(v1::SnapshotResponse {
            id: id.to_string(),
            generation: record.generation.0,
            measured_at: Some(measured_at.unwrap_or_else(SystemTime::now).into()),
            total: Some(usage_to_proto(&total)),
            containers,
            denied: denied.map(denied_to_proto),
        }))
    }

    async fn set_port_status(
        &self,
        request: Request<v1::SetPortStatusRequest>,
    ) -> Result<Response<v1::SetPortStatusResponse>, Status> {
        let request = request.into_inner();
        let invalid = |field: &str, problem: &str| refuse(Failure::invalid(field, problem));
        let Some((id, role)) = names::parse_container_id(&request.container_id) else {
            return Err(invalid(
                "container_id",
                "must be `sandbox.<id>.<container>`",
            ));
        };
        let Role::App(container) = role else {
            return Err(invalid(
                "container_id",
                "must be an app container: the pause has no ports",
            ));
        };
        let port = u16::try_from(request.port).ok().filter(|it| *it != 0);
        let port = port.ok_or_else(|| invalid("port", "must be 1 to 65535"))?;
        let protocol =
            berth_api::protocol_from_proto("protocol", request.protocol).map_err(refuse)?;
        let word = match v1::PortStatus::try_from(request.status) {
            Ok(v1::PortStatus::Bound) => Word::Bound,
            Ok(v1::PortStatus::Unbound) => Word::Unbound,
            Ok(v1::PortStatus::Active) => Word::Active,
            Ok(v1::PortStatus::Unspecified) | Err(_) => {
                return Err(invalid("status", "must be BOUND, UNBOUND or ACTIVE"));
            }
        };
        let address = match request.address.as_str() {
            "" => "0.0.0.0".to_owned(),
            text => match text.parse::<IpAddr>() {
                Ok(it) => it.to_string(),
                Err(_) => return Err(invalid("address", "must be an IP address without port")),
            },
        };
        let source = source(request.source).map_err(refuse)?;
        let at = SystemTime::now();
        let sighting = PortSighting {
            container,
            port,
            protocol,
            bound: word == Word::Bound,
            address,
            source,
            at,
            bound_port: None,
        };
        let restarts = request.expected_restarts;
        let meant = expected(request.expected_generation).map(|generation| Meant {
            generation,
            restarts,
        });
        let reported = self.registry.report_port(&id, meant, word, sighting);
        reported.await.map_err(refuse)?;
        Ok(Response::new(v1::SetPortStatusResponse {}))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        let request = request.into_inner();
        let id = parse_id("id", &request.id)?;
        let time_to_live = berth_api::time_to_live(request.time_to_live).map_err(refuse)?;
        let known = request.expected_expires_at.map(SystemTime::try_from);
        let known = known.transpose().map_err(|_| {
            let problem = "must be a time that this node can name";
            refuse(Failure::invalid("expected_expires_at", problem))
        })?;
        let generation = expected(request.expected_generation);
        let renewed = self.registry.renew(&id, generation, known, time_to_live);
        let record = renewed.await.map_err(refuse)?;
        Ok(Response::new(v1::RenewResponse {
            sandbox: Some(self.render(&record)),
        }))
    }

    type StreamLogsStream = LogStream;

    async fn stream_logs(
        &self,
        request: Request<v1::StreamLogsRequest>,
    ) -> Result<Response<LogStream>, Status> {
        let stream = logs::stream(&self.registry, &self.logs, request.into_inner());
        stream.await.map(Response::new)
    }

    async fn copy_to(
        &self,
        request: Request<Streaming<v1::CopyToRequest>>,
    ) -> Result<Response<v1::CopyToResponse>, Status> {
        let copied = copy_to(&self.registry, &self.copies, request.into_inner());
        Ok(Response::new(copied.await?))
    }

    type CopyFromStream = Pin<Box<dyn Stream<Item = Result<v1::CopyFromResponse, Status>> + Send>>;

    async fn copy_from(
        &self,
        request: Request<v1::CopyFromRequest>,
    ) -> Result<Response<Self::CopyFromStream>, Status> {
        let copied = copy_from(&self.registry, &self.copies, request.into_inner());
        Ok(Response::new(Box::pin(copied.await?)))
    }

    type PortForwardStream =
        Pin<Box<dyn Stream<Item = Result<v1::PortForwardResponse, Status>> + Send>>;

    async fn port_forward(
        &self,
        request: Request<Streaming<v1::PortForwardRequest>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        let messages = request.into_inner();
        let forwarded = port_forward(&self.registry, &self.connections, messages);
        Ok(Response::new(Box::pin(forwarded.await?)))
    }

    type ExecStream = exec::Answers;

    async fn exec(
        &self,
        request: Request<Streaming<v1::ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        exec::exec(self, request.into_inner()).await
    }

    type AttachStream = attach::Answers;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        attach::attach(self, request.into_inner()).await
    }
}

/// A step as people read it, with how far a pull is.
fn in_words(doing: &Doing) -> String {
    let layers = doing.progress.as_ref().map(|it| it.borrow().clone());
    let layers = layers.unwrap_or_default();
    let total: u64 = layers.iter().map(|it| it.total_bytes).sum();
    let current: u64 = layers.iter().map(|it| it.current_bytes).sum();
    match total >> 20 {
        0 => doing.step.to_string(),
        total => format!("{} {} of {total} MiB", doing.step, current >> 20),
    }
}

/// The next change that is wanted, with the watch to go on with; `None` when the watch has ended.
async fn next_change(
    mut watch: Watch,
    wanted: impl Fn(&SandboxId) -> bool,
    place: &Place,
) -> Option<(Result<v1::WatchResponse, Status>, Option<Watch>)> {
    loop {
        let (revision, event) = match watch.next().await {
            Ok((revision, Change::Upserted(record))) if wanted(&record.id) => (
                revision,
                Event::Sandbox(berth_api::sandbox_to_proto(&record, place)),
            ),
            Ok((revision, Change::Removed { id, generation })) if wanted(&id) => {
                let removed = v1::SandboxRemoved {
                    id: id.to_string(),
                    generation: generation.0,
                };
                (revision, Event::Removed(removed))
            }
            Ok((
                _,
                Change::Upserted(_)
                | Change::Removed { .. }
                | Change::EntryPut(_)
                | Change::EntryRemoved(_),
            )) => continue,
            Err(WatchEnded::Lagged) => return Some((Err(too_slow()), None)),
            Err(WatchEnded::Closed) => return None,
        };
        let response = v1::WatchResponse {
            revision,
            event: Some(event),
        };
        return Some((Ok(response), Some(watch)));
    }
}

/// Who says something of a port.
fn source(text: String) -> Result<String, Failure> {
    let invalid = |problem: String| Err(Failure::invalid("source", problem));
    match text {
        text if text.is_empty() => Ok("unknown".to_owned()),
        text if text.len() > SOURCE_MAX => invalid(format!("must have at most {SOURCE_MAX} bytes")),
        text if text == PortSighting::OWN => {
            invalid("must not be `manager`, which sees for itself".to_owned())
        }
        text => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_a_length_and_is_not_the_managers_own() {
        let of = |text: &str| source(text.to_owned());
        assert_eq!(of("").unwrap(), "unknown");
        assert!(of(&"x".repeat(SOURCE_MAX)).is_ok());
        for bad in [&"x".repeat(SOURCE_MAX + 1), PortSighting::OWN] {
            assert_eq!(of(bad).unwrap_err().violations[0].field, "source");
        }
    }
}

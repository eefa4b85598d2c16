//! `CatalogService`.

mod entries;

use std::pin::Pin;

use berth_api::{
    catalog::{
        endpoint_to_proto, entry_to_proto, key_from_proto, kind_from_proto, object_from_proto,
    },
    v1::{self, catalog_service_server::CatalogService, watch_endpoints_response},
};
use berth_domain::{
    Failure, SandboxId,
    catalog::{Endpoint, EndpointChange, EndpointKey, Endpoints, Key, Placed},
};
use berth_platform::{Images, Network, Runtime};
use berth_store::{Change, Placement, Watch, WatchEnded};
use futures::StreamExt as _;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use self::entries::Entries;
use super::{
    page_size, refuse,
    watches::{resume, too_slow},
};
use crate::{
    failures::{catalog_failure, store_failure},
    registry::Registry,
};

pub(crate) struct CatalogRpc<R, N> {
    pub(crate) registry: Registry<R, N>,
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<R: Runtime + Images, N: Network> CatalogService for CatalogRpc<R, N> {
    async fn put_entry(
        &self,
        request: Request<v1::PutEntryRequest>,
    ) -> Result<Response<v1::PutEntryResponse>, Status> {
        let request = request.into_inner();
        let object = object_from_proto(request.entry).map_err(refuse)?;
        let expected = revision(request.expected_revision);
        let registry = self.registry.clone();
        // A write whose caller has gone lands all the same: until then no deletion comes between.
        let put = self.registry.see_through(async move {
            let _no_deletion = registry.image_lock().read().await;
            let entry = registry.store().put_entry(object, expected).await;
            entry.map_err(catalog_failure)
        });
        let entry = put.await.map_err(refuse)?;
        Ok(Response::new(v1::PutEntryResponse {
            entry: Some(entry_to_proto(&entry)),
        }))
    }

    async fn delete_entry(
        &self,
        request: Request<v1::DeleteEntryRequest>,
    ) -> Result<Response<v1::DeleteEntryResponse>, Status> {
        let request = request.into_inner();
        let key = key_from_proto(request.kind, request.id).map_err(refuse)?;
        let expected = revision(request.expected_revision);
        let existed = self.registry.store().remove_entry(key, expected).await;
        let existed = existed.map_err(|it| refuse(catalog_failure(it)))?;
        Ok(Response::new(v1::DeleteEntryResponse { existed }))
    }

    async fn list_entries(
        &self,
        request: Request<v1::ListEntriesRequest>,
    ) -> Result<Response<v1::ListEntriesResponse>, Status> {
        let request = request.into_inner();
        let kind = kind_from_proto(request.kind).map_err(refuse)?;
        // The key of the last entry of the page before.
        let after = match request.page_token.as_str() {
            "" => None,
            text => match Key::parse(text).filter(|it| kind.is_none_or(|kind| it.kind == kind)) {
                Some(key) => Some(key),
                None => return Err(wrong_token()),
            },
        };
        let store = self.registry.store();
        let page = store.entries(kind, after, page_size(request.page_size));
        let page = page.await.map_err(|it| refuse(store_failure(it)))?;
        let last = page.entries.last().map(|it| it.object.key().to_text());
        Ok(Response::new(v1::ListEntriesResponse {
            entries: page.entries.iter().map(entry_to_proto).collect(),
            next_page_token: last.filter(|_| page.more).unwrap_or_default(),
            revision: page.revision,
        }))
    }

    type WatchCatalogStream = Events<v1::WatchCatalogResponse>;

    async fn watch_catalog(
        &self,
        request: Request<v1::WatchCatalogRequest>,
    ) -> Result<Response<Self::WatchCatalogStream>, Status> {
        let store = self.registry.store();
        let entries = match request.into_inner().from_revision {
            0 => Entries::from_here(store).await?,
            from => Entries::resumed(resume(store, from).await?),
        };
        let stream = entries.stream().take_until(self.registry.stopping());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn list_endpoints(
        &self,
        request: Request<v1::ListEndpointsRequest>,
    ) -> Result<Response<v1::ListEndpointsResponse>, Status> {
        let request = request.into_inner();
        let filter = Filter {
            app: request.app,
            service: request.service,
        };
        let after = match request.page_token.as_str() {
            "" => None,
            text => Some(endpoint_key(text).ok_or_else(wrong_token)?),
        };
        let placement = self.registry.store().placement().await;
        let placement = placement.map_err(|it| refuse(store_failure(it)))?;
        let revision = placement.revision;
        let all = derive(placement);
        let wanted = all.standing().iter().filter(|(key, it)| {
            filter.wants(it) && after.as_ref().is_none_or(|after| *key > after)
        });
        let (page, more) = cut(wanted, page_size(request.page_size));
        let last = page
            .last()
            .map(|((service, sandbox), _)| format!("{service}/{sandbox}"));
        Ok(Response::new(v1::ListEndpointsResponse {
            endpoints: page.iter().map(|(_, it)| endpoint_to_proto(it)).collect(),
            next_page_token: last.filter(|_| more).unwrap_or_default(),
            revision,
        }))
    }

    type WatchEndpointsStream = Events<v1::WatchEndpointsResponse>;

    async fn watch_endpoints(
        &self,
        request: Request<v1::WatchEndpointsRequest>,
    ) -> Result<Response<Self::WatchEndpointsStream>, Status> {
        use watch_endpoints_response::Event;
        let request = request.into_inner();
        let filter = Filter {
            app: request.app,
            service: request.service,
        };
        let begun = self.registry.store().placement_and_watch().await;
        let (placement, watch) = begun.map_err(|it| refuse(store_failure(it)))?;
        let revision = placement.revision;
        let all = derive(placement);
        let mut first: Vec<_> = all
            .standing()
            .values()
            .filter(|it| filter.wants(it))
            .map(|it| endpoint_event(0, Event::Endpoint(endpoint_to_proto(it))))
            .collect();
        let synced = Event::Synced(v1::CatalogSynced {});
        first.push(endpoint_event(revision, synced));
        let following = Following {
            all,
            revision,
            filter,
            watch,
        };
        let changes = futures::stream::unfold(Some(following), next_endpoints);
        let changes = changes.flat_map(futures::stream::iter);
        let stream = futures::stream::iter(first).chain(changes);
        let stream = stream.take_until(self.registry.stopping());
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Which endpoints a caller asks for; empty is any.
struct Filter {
    app: String,
    service: String,
}

impl Filter {
    fn wants(&self, it: &Endpoint) -> bool {
        (self.app.is_empty() || self.app == it.app)
            && (self.service.is_empty() || self.service == it.service)
    }
}

/// One reader of endpoints.
struct Following {
    all: Endpoints,
    /// Of all that led to them before the first change.
    revision: u64,
    filter: Filter,
    watch: Watch,
}

/// 0 means any revision.
fn revision(expected: u64) -> Option<u64> {
    (expected != 0).then_some(expected)
}

fn wrong_token() -> Status {
    refuse(Failure::invalid(
        "page_token",
        "is not a token of this list",
    ))
}

fn endpoint_key(text: &str) -> Option<EndpointKey> {
    let (service, sandbox) = text.split_once('/')?;
    Some((service.to_owned(), SandboxId::parse(sandbox).ok()?))
}

/// The first so many, and whether there are more.
fn cut<T>(all: impl Iterator<Item = T>, size: usize) -> (Vec<T>, bool) {
    let mut page: Vec<_> = all.take(size + 1).collect();
    let more = page.len() > size;
    page.truncate(size);
    (page, more)
}

fn derive(it: Placement) -> Endpoints {
    let objects = it.entries.into_iter().map(|it| it.object);
    Endpoints::new(objects, it.records.iter().map(Placed::of).collect())
}

fn endpoint_event(
    revision: u64,
    event: watch_endpoints_response::Event,
) -> Result<v1::WatchEndpointsResponse, Status> {
    Ok(v1::WatchEndpointsResponse {
        revision,
        event: Some(event),
    })
}

/// What follows from the next change; `None` when the watch has ended.
async fn next_endpoints(
    following: Option<Following>,
) -> Option<(
    Vec<Result<v1::WatchEndpointsResponse, Status>>,
    Option<Following>,
)> {
    use watch_endpoints_response::Event;
    let mut it = following?;
    let (revision, change) = match it.watch.next().await {
        Ok(change) => change,
        Err(WatchEnded::Lagged) => return Some((vec![Err(too_slow())], None)),
        Err(WatchEnded::Closed) => return None,
    };
    let changes = match change {
        _ if revision <= it.revision => vec![],
        Change::Upserted(record) => it.all.place(Placed::of(&record)),
        Change::Removed { id, generation } => it.all.forget(&id, generation),
        Change::EntryPut(entry) => it.all.put(entry.object),
        Change::EntryRemoved(key) => it.all.remove(&key),
    };
    let events = changes.into_iter().filter_map(|change| {
        let (endpoint, stands) = match change {
            EndpointChange::Stands(endpoint) => (endpoint, true),
            EndpointChange::Gone(endpoint) => (endpoint, false),
        };
        let event = if stands {
            Event::Endpoint(endpoint_to_proto(&endpoint))
        } else {
            Event::Removed(v1::EndpointRemoved {
                service: endpoint.service.clone(),
                sandbox: endpoint.sandbox.to_string(),
                generation: endpoint.generation.0,
            })
        };
        let wanted = it.filter.wants(&endpoint);
        wanted.then(|| endpoint_event(revision, event))
    });
    let events = events.collect();
    Some((events, Some(it)))
}

#[cfg(test)]
mod tests;

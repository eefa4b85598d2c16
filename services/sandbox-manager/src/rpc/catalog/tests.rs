//! The catalog's calls, with a real store and no sandbox that lives: records are put where they are needed.

use std::{sync::Arc, time::SystemTime};

use berth_domain::SandboxSpec;
use berth_platform::fake::FakeNode;
use berth_store::{Admitted, Arrival, Store};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::{node::Node, registry::Limits, rpc::network::NetworkRpc};

const LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

struct Ground {
    catalog: CatalogRpc<FakeNode, FakeNode>,
    network: NetworkRpc<FakeNode, FakeNode>,
    store: Store,
    _dir: TempDir,
}

fn ground() -> Ground {
    let dir = tempfile::tempdir().unwrap();
    let subnet = "10.9.0.0/28".parse().unwrap();
    let store = Store::open(&dir.path().join("s"), subnet, LIMIT).unwrap();
    let node = FakeNode::default();
    let seams = Node {
        runtime: Arc::new(node.clone()),
        network: Arc::new(node),
    };
    let limits = Limits {
        task_creations: 1,
        sandboxes: 1000,
        end_timeout: LIMIT,
        dead_horizon: LIMIT,
        purge_interval: LIMIT,
    };
    let stop = CancellationToken::new();
    let registry = Registry::new(seams, store.clone(), limits, String::new(), stop);
    Ground {
        catalog: CatalogRpc {
            registry: registry.clone(),
        },
        network: NetworkRpc {
            registry,
            bridge: "br".into(),
        },
        store,
        _dir: dir,
    }
}

impl Ground {
    async fn put(&self, object: v1::entry::Object, expected_revision: u64) -> Result<u64, Status> {
        let request = v1::PutEntryRequest {
            entry: Some(v1::Entry {
                revision: 0,
                object: Some(object),
            }),
            expected_revision,
        };
        let answer = self.catalog.put_entry(Request::new(request)).await?;
        Ok(answer.into_inner().entry.unwrap_or_default().revision)
    }

    /// An app with a version and a service of its name.
    async fn put_app(&self, name: &str) {
        use v1::entry::Object;
        let name = || name.to_owned();
        let app = v1::App {
            id: name(),
            name: name(),
        };
        let version = v1::Version {
            id: name(),
            app: name(),
            ..v1::Version::default()
        };
        let service = v1::Service {
            id: name(),
            app: name(),
            name: name(),
            ..v1::Service::default()
        };
        for object in [
            Object::App(app),
            Object::Version(version),
            Object::Service(service),
        ] {
            self.put(object, 0).await.unwrap();
        }
    }

    async fn begin(&self, id: &str, version: &str) -> berth_domain::SandboxRecord {
        let spec = Arc::new(SandboxSpec {
            version: version.into(),
            ..SandboxSpec::default()
        });
        let (id, now) = (SandboxId::parse(id).unwrap(), SystemTime::now());
        let admitted = self.store.admit(&id, spec, Arrival::default(), now).await;
        match admitted.unwrap() {
            Admitted::Begun(record) | Admitted::Joined(record) => record,
        }
    }

    async fn enter(&self, id: &str, status: berth_domain::Status) {
        let id = SandboxId::parse(id).unwrap();
        let record = self.store.get(&id).await.unwrap().unwrap();
        let now = SystemTime::now();
        let change = move |it: &mut berth_domain::SandboxRecord| it.enter(status, "", "", now);
        let changed = self.store.update(&id, record.generation, now, change).await;
        changed.unwrap();
    }

    async fn endpoints(&self, page_size: u32, page_token: &str) -> (Vec<String>, String) {
        let request = v1::ListEndpointsRequest {
            page_size,
            page_token: page_token.into(),
            ..v1::ListEndpointsRequest::default()
        };
        let answer = self.catalog.list_endpoints(Request::new(request)).await;
        let answer = answer.unwrap().into_inner();
        let name = |it: &v1::Endpoint| format!("{}/{}", it.service, it.sandbox);
        (
            answer.endpoints.iter().map(name).collect(),
            answer.next_page_token,
        )
    }
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().map(|it| it.reason.clone()).unwrap()
}

async fn next<T>(stream: &mut Events<T>) -> T {
    let next = tokio::time::timeout(LIMIT, stream.next()).await;
    next.expect("in time").expect("not over").expect("no error")
}

fn app(id: &str) -> v1::entry::Object {
    v1::entry::Object::App(v1::App {
        id: id.into(),
        name: String::new(),
    })
}

#[tokio::test]
async fn a_page_is_as_large_as_asked_for_up_to_its_bound_and_the_next_goes_on() {
    let ground = ground();
    for number in 0..=crate::rpc::PAGE_MAX {
        let id = format!("{number:04}");
        let app = v1::App {
            id,
            ..v1::App::default()
        };
        ground.put(v1::entry::Object::App(app), 0).await.unwrap();
    }
    let page = async |page_size, page_token: &str| {
        let request = v1::ListEntriesRequest {
            page_size,
            page_token: page_token.into(),
            ..v1::ListEntriesRequest::default()
        };
        let answer = ground.catalog.list_entries(Request::new(request)).await;
        let answer = answer.unwrap().into_inner();
        (answer.entries.len(), answer.next_page_token)
    };
    assert_eq!(page(0, "").await.0, 100);
    let (most, next) = page(u32::MAX, "").await;
    assert_eq!(most, 1000);
    assert_eq!(page(0, &next).await, (1, String::new()));
}

#[tokio::test]
async fn entries_are_listed_in_pages_by_kind_and_id() {
    let ground = ground();
    for name in ["b", "a"] {
        ground.put_app(name).await;
    }
    let (mut found, mut page_token) = (vec![], String::new());
    loop {
        let request = v1::ListEntriesRequest {
            kind: 0,
            page_size: 4,
            page_token,
        };
        let page = ground.catalog.list_entries(Request::new(request)).await;
        let page = page.unwrap().into_inner();
        assert!(page.entries.len() <= 4);
        let keys = page.entries.into_iter().map(|it| {
            let key = object_from_proto(Some(it)).unwrap().key();
            key.to_text()
        });
        found.extend(keys);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let expected = [
        "app/a",
        "app/b",
        "service/a",
        "service/b",
        "version/a",
        "version/b",
    ];
    assert_eq!(found, expected);
    for (kind, page_token) in [(0, "x"), (1, "service/a"), (9, "")] {
        let request = v1::ListEntriesRequest {
            kind,
            page_size: 0,
            page_token: page_token.into(),
        };
        let refused = ground.catalog.list_entries(Request::new(request)).await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn an_entry_that_somebody_changed_is_not_replaced() {
    let ground = ground();
    let first = ground.put(app("a"), 0).await.unwrap();
    let refused = ground.put(app("a"), first + 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(reason(&refused), "REVISION_CONFLICT");
    assert_eq!(ground.put(app("a"), first).await.unwrap(), first);
    let wrong = ground.put(app("no app"), 0).await.unwrap_err();
    assert_eq!(reason(&wrong), "INVALID_FIELD");
}

#[tokio::test]
async fn a_watch_of_the_catalog_begins_with_all_and_is_resumed_behind_a_revision() {
    use v1::watch_catalog_response::Event;
    let ground = ground();
    let first = ground.put(app("a"), 0).await.unwrap();
    let watch = async |from_revision| {
        let request = Request::new(v1::WatchCatalogRequest { from_revision });
        ground.catalog.watch_catalog(request).await
    };
    let mut stream = watch(0).await.unwrap().into_inner();
    let standing = next(&mut stream).await;
    assert!(matches!(standing.event, Some(Event::Entry(_))) && standing.revision == 0);
    let synced = next(&mut stream).await;
    assert!(matches!(synced.event, Some(Event::Synced(_))));
    assert_eq!(synced.revision, first);
    ground.begin("web", "").await;
    let key = v1::DeleteEntryRequest {
        kind: v1::EntryKind::App.into(),
        id: "a".into(),
        expected_revision: 0,
    };
    let deleted = ground.catalog.delete_entry(Request::new(key)).await;
    assert!(deleted.unwrap().into_inner().existed);
    let mut resumed = watch(first).await.unwrap().into_inner();
    for stream in [&mut stream, &mut resumed] {
        let removed = next(stream).await;
        let Some(Event::Removed(it)) = removed.event else {
            panic!("{removed:?}");
        };
        assert_eq!((it.kind(), it.id.as_str()), (v1::EntryKind::App, "a"));
        assert_eq!(removed.revision, first + 2);
    }
    let refused = watch(99).await.err().unwrap();
    assert_eq!(reason(&refused), "REVISION_UNKNOWN");
}

#[tokio::test]
async fn endpoints_are_those_of_running_sandboxes_and_are_watched() {
    use berth_domain::Status::{NotReady, Running};
    use watch_endpoints_response::Event;
    let ground = ground();
    for name in ["a", "b"] {
        ground.put_app(name).await;
    }
    for (id, version) in [("s1", "a"), ("s2", "a"), ("s3", "b"), ("s4", "none")] {
        ground.begin(id, version).await;
    }
    assert_eq!(ground.endpoints(0, "").await.0, [""; 0]);
    let request = v1::WatchEndpointsRequest {
        app: "a".into(),
        service: String::new(),
    };
    let stream = ground.catalog.watch_endpoints(Request::new(request)).await;
    let mut stream = stream.unwrap().into_inner();
    assert!(matches!(
        next(&mut stream).await.event,
        Some(Event::Synced(_))
    ));
    for id in ["s3", "s4", "s2", "s1"] {
        ground.enter(id, Running).await;
    }
    let (first, token) = ground.endpoints(2, "").await;
    let (second, end) = ground.endpoints(2, &token).await;
    assert_eq!(
        (first, second),
        (vec!["a/s1".into(), "a/s2".into()], vec!["b/s3".into()])
    );
    assert_eq!(end, "");
    for expected in ["s2", "s1"] {
        let Some(Event::Endpoint(it)) = next(&mut stream).await.event else {
            panic!("it runs");
        };
        assert_eq!((it.app.as_str(), it.sandbox.as_str()), ("a", expected));
        assert!(it.address.starts_with("10.9.0."), "{}", it.address);
    }
    ground.enter("s1", NotReady).await;
    let removed = next(&mut stream).await;
    let Some(Event::Removed(it)) = removed.event else {
        panic!("{removed:?}");
    };
    assert_eq!((it.service.as_str(), it.sandbox.as_str()), ("a", "s1"));
    let wrong = v1::ListEndpointsRequest {
        page_token: "x".into(),
        ..v1::ListEndpointsRequest::default()
    };
    let refused = ground.catalog.list_endpoints(Request::new(wrong)).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn leases_are_listed_counted_and_released_where_nobody_holds_them() {
    use v1::network_service_server::NetworkService as _;
    let ground = ground();
    let (held, gone) = (
        ground.begin("held", "").await,
        ground.begin("gone", "").await,
    );
    let removed = ground
        .store
        .remove(&gone.id, gone.generation, SystemTime::now());
    assert!(removed.await.unwrap());
    let list = async |state: v1::LeaseState| {
        let request = v1::ListLeasesRequest {
            state: state.into(),
            page_size: 1,
            page_token: String::new(),
        };
        let page = ground.network.list_leases(Request::new(request)).await;
        page.unwrap().into_inner()
    };
    let all = list(v1::LeaseState::Unspecified).await;
    assert_eq!(all.leases.len(), 1);
    assert_eq!(all.next_page_token, all.leases[0].address);
    let resting = list(v1::LeaseState::Resting).await;
    assert_eq!(
        (
            resting.leases[0].owner.as_str(),
            resting.next_page_token.as_str()
        ),
        ("gone", "")
    );
    assert!(resting.leases[0].free_at.is_some() && resting.leases[0].held_since.is_none());
    let count = async || {
        let request = Request::new(v1::CountLeasesRequest {});
        let it = ground.network.count_leases(request).await.unwrap();
        let it = it.into_inner();
        (it.capacity, it.held, it.resting, it.free)
    };
    assert_eq!(count().await, (13, 1, 1, 11));
    let release = async |lease: &v1::AddressLease, generation| {
        let request = v1::ReleaseLeaseRequest {
            address: lease.address.clone(),
            expected_owner: lease.owner.clone(),
            expected_generation: generation,
        };
        ground.network.release_lease(Request::new(request)).await
    };
    let lease = &list(v1::LeaseState::Held).await.leases[0];
    let refused = release(lease, held.generation.0).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused)),
        (Code::FailedPrecondition, "LEASE_HELD".into())
    );
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["owner"], "held");
    let other = release(&resting.leases[0], 99).await.unwrap_err();
    assert_eq!(reason(&other), "GENERATION_CONFLICT");
    let done = release(&resting.leases[0], gone.generation.0)
        .await
        .unwrap();
    assert_eq!(done.into_inner().former.as_ref(), resting.leases.first());
    let again = release(&resting.leases[0], gone.generation.0)
        .await
        .unwrap_err();
    assert_eq!(reason(&again), "LEASE_NOT_FOUND");
    assert_eq!(
        release(lease, 0).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(count().await, (13, 1, 0, 12));
}

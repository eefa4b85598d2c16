//! Follows the manager: each of its watches is resumed where it broke off, and begun anew where it cannot be.

use std::{sync::Arc, time::Duration};

use berth_api::{
    Target,
    catalog::{key_from_proto, object_from_proto, placed_from_proto},
    v1::{
        self, catalog_service_client::CatalogServiceClient, node_service_client::NodeServiceClient,
        sandbox_service_client::SandboxServiceClient, watch_catalog_response, watch_response,
    },
};
use berth_domain::{
    Generation, SandboxId,
    catalog::{Object, Placed},
    ipam::Subnets,
};
use berth_plugin::chain;
use tokio::sync::watch;
use tonic::{Code, Status, transport::Channel};

use crate::known::{Fact, Known};

/// A manager is back within seconds of its restart.
const RETRY: Duration = Duration::from_millis(500);

/// What is known, and who is told when it changes.
pub(crate) type Knowledge = Arc<watch::Sender<Known>>;

/// Whether what the manager says arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Streams {
    pub(crate) sandboxes: bool,
    pub(crate) catalog: bool,
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the manager is not reachable")]
    Connect(#[from] berth_api::ConnectError),
    #[error("{}", .0.message())]
    Call(#[from] Status),
    #[error("the manager has ended the stream")]
    Ended,
    #[error("the manager's subnet `{0}` with `{1}` cannot be read")]
    Subnet(String, String),
    #[error("the manager's subnet is {0}")]
    Moved(Subnets),
}

/// Follows for ever, or until the manager has another subnet than the one that it said before, and returns that.
pub(crate) async fn follow(
    manager: &Target,
    said: Option<Subnets>,
    knowledge: &Knowledge,
    streams: &watch::Sender<Streams>,
) -> Subnets {
    let sandboxes_follow = |follow| {
        streams.send_if_modified(|it| std::mem::replace(&mut it.sandboxes, follow) != follow);
    };
    let catalog_follows = |follows| {
        streams.send_if_modified(|it| std::mem::replace(&mut it.catalog, follows) != follows);
    };
    let sandboxes = again("sandboxes", sandboxes_follow, || async {
        // It changes with a restart of the manager only, and with that the stream breaks off.
        let status = current_status(manager).await?;
        if let Some(said) = said {
            let subnets = subnets_of(&status)?;
            if subnets != said {
                return Err(Broken::Moved(subnets));
            }
        }
        knowledge.send_if_modified(|known| {
            let changed = known.instance != status.instance_id;
            known.instance = status.instance_id;
            changed
        });
        sandboxes(manager, knowledge, sandboxes_follow).await
    });
    let catalog = again("catalog", catalog_follows, || {
        catalog(manager, knowledge, catalog_follows)
    });
    tokio::select! {
        moved = sandboxes => moved,
        moved = catalog => moved,
    }
}

/// Waits for a manager that says its subnet.
pub(crate) async fn await_subnets(manager: &Target) -> Subnets {
    let mut said = false;
    loop {
        let status = current_status(manager).await;
        match status.and_then(|it| subnets_of(&it)) {
            Ok(subnets) => return subnets,
            Err(error) if !said => {
                said = true;
                tracing::warn!(
                    error = chain(&error),
                    "waiting for a manager to say its subnet"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// `None` where they cannot be read. A manager that has never heard of IPv6 says nothing of it.
pub(crate) fn subnets_from_proto(it: &v1::NetworkStatus) -> Option<Subnets> {
    Some(Subnets {
        v4: it.subnet.parse().ok()?,
        v6: match it.subnet6.as_str() {
            "" => None,
            text => Some(text.parse().ok()?),
        },
    })
}

async fn current_status(manager: &Target) -> Result<v1::GetStatusResponse, Broken> {
    let mut client = NodeServiceClient::new(connect(manager).await?);
    let status = client.get_status(v1::GetStatusRequest {}).await?;
    Ok(status.into_inner())
}

fn subnets_of(status: &v1::GetStatusResponse) -> Result<Subnets, Broken> {
    let network = status.network.clone().unwrap_or_default();
    subnets_from_proto(&network).ok_or(Broken::Subnet(network.subnet, network.subnet6))
}

async fn connect(manager: &Target) -> Result<Channel, Broken> {
    Ok(manager.connect().await?)
}

async fn again<F: Future<Output = Result<(), Broken>>>(
    what: &str,
    follows: impl Fn(bool),
    mut stream: impl FnMut() -> F,
) -> Subnets {
    let mut last = String::new();
    loop {
        let error = match stream().await {
            Ok(()) => Broken::Ended,
            Err(Broken::Moved(subnets)) => return subnets,
            Err(error) => error,
        };
        follows(false);
        let error = chain(&error);
        // While the manager is away, once is enough.
        if error != last {
            tracing::warn!(what, error, "the watch broke off; it is resumed");
            last = error;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn sandboxes(
    manager: &Target,
    knowledge: &Knowledge,
    follows: impl Fn(bool),
) -> Result<(), Broken> {
    let mut client = SandboxServiceClient::new(connect(manager).await?);
    let from_revision = knowledge.borrow().sandboxes_revision;
    let request = v1::WatchRequest {
        from_revision,
        id: String::new(),
    };
    let stream = client.watch(request).await;
    let mut stream = anew(stream, knowledge, |it| it.sandboxes_revision = 0)?.into_inner();
    let mut standing = (from_revision == 0).then(Vec::new);
    loop {
        // Before all that stands is here, what is known is what was known.
        follows(standing.is_none());
        let message = anew(stream.message().await, knowledge, |it| {
            it.sandboxes_revision = 0;
        })?;
        let Some(v1::WatchResponse { revision, event }) = message else {
            return Ok(());
        };
        let fact = event.and_then(|it| of_sandboxes(it, &mut standing));
        learn(knowledge, fact, revision);
    }
}

/// What a word of the manager says. What stands comes one by one, and is known when it is whole: then there is no `standing`.
fn of_sandboxes(event: watch_response::Event, standing: &mut Option<Vec<Placed>>) -> Option<Fact> {
    match (event, standing) {
        (watch_response::Event::Synced(_), standing) => standing.take().map(Fact::Sandboxes),
        (watch_response::Event::Sandbox(it), Some(standing)) => {
            standing.extend(placed_from_proto(it));
            None
        }
        (watch_response::Event::Sandbox(it), None) => placed_from_proto(it).map(Fact::Sandbox),
        (watch_response::Event::Removed(it), _) => {
            let id = SandboxId::parse(&it.id).ok()?;
            Some(Fact::SandboxGone(id, Generation(it.generation)))
        }
    }
}

async fn catalog(
    manager: &Target,
    knowledge: &Knowledge,
    follows: impl Fn(bool),
) -> Result<(), Broken> {
    let mut client = CatalogServiceClient::new(connect(manager).await?);
    let from_revision = knowledge.borrow().catalog_revision;
    let request = v1::WatchCatalogRequest { from_revision };
    let stream = client.watch_catalog(request).await;
    let mut stream = anew(stream, knowledge, |it| it.catalog_revision = 0)?.into_inner();
    let mut standing: Option<Vec<Object>> = (from_revision == 0).then(Vec::new);
    loop {
        follows(standing.is_none());
        let message = anew(stream.message().await, knowledge, |it| {
            it.catalog_revision = 0;
        })?;
        let Some(v1::WatchCatalogResponse { revision, event }) = message else {
            return Ok(());
        };
        let fact = event.and_then(|it| of_catalog(it, &mut standing));
        learn(knowledge, fact, revision);
    }
}

fn of_catalog(
    event: watch_catalog_response::Event,
    standing: &mut Option<Vec<Object>>,
) -> Option<Fact> {
    match (event, standing) {
        (watch_catalog_response::Event::Synced(_), standing) => standing.take().map(Fact::Entries),
        (watch_catalog_response::Event::Entry(it), standing) => {
            let object = object_from_proto(Some(it)).ok().filter(names)?;
            match standing {
                Some(standing) => {
                    standing.push(object);
                    None
                }
                None => Some(Fact::Entry(object)),
            }
        }
        (watch_catalog_response::Event::Removed(it), _) => {
            key_from_proto(it.kind, it.id).ok().map(Fact::EntryGone)
        }
    }
}

/// Whether an entry has a part in who finds whom; the others may be large.
fn names(it: &Object) -> bool {
    !matches!(it, Object::Artifact(_))
}

fn learn(knowledge: &Knowledge, fact: Option<Fact>, revision: u64) {
    if let Some(fact) = fact {
        knowledge.send_modify(|known| known.learn(fact, revision));
    }
}

/// Where the manager does not know the revision to resume from, the next try begins with all that stands.
fn anew<T>(
    answer: Result<T, Status>,
    knowledge: &Knowledge,
    forget: impl FnOnce(&mut Known),
) -> Result<T, Status> {
    answer.inspect_err(|status| {
        if status.code() == Code::OutOfRange {
            knowledge.send_modify(forget);
        }
    })
}

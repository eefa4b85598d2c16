//! Wires the process: one thread reads, one task follows the manager, and a socket answers.

use std::{
    collections::BTreeSet,
    sync::{Arc, RwLock},
};

use anyhow::Context as _;
use berth_api::v1::metrics_service_server::MetricsServiceServer;
use berth_cgroup::{Hierarchy, Meter};
use berth_plugin::{Beat, LastRun, Plugin, follow_sandboxes, heartbeat, listen};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic_health::ServingStatus;

use crate::{
    config::Config,
    export,
    follow::learn,
    rpc::MetricsRpc,
    sampler::{Pace, Sampler},
    series::{Book, SharedBook},
};

/// The name of the health of what is known: NOT_SERVING while the manager is not followed.
const MANAGER: &str = "manager";

/// Callers, the manager, the runtime.
const OTHER_FILES: usize = 1024;

/// The reader of a node's sandboxes.
#[derive(Debug)]
pub struct App;

impl App {
    /// Reads and answers until it is dropped.
    pub async fn run(config: Config) -> anyhow::Result<()> {
        let hierarchy = Hierarchy::detect().context("looking for cgroups")?;
        let book: SharedBook = Arc::new(RwLock::new(Book::new(config.history)));
        let pace = Arc::new(Pace::default());
        let sampler = Sampler {
            meter: Meter::new(&hierarchy, open_files(config.open_files_max)),
            book: book.clone(),
            pace: pace.clone(),
            known: BTreeSet::new(),
            trouble: String::new(),
        };
        export::observe(&book, &pace);
        let listener = listen(&config.socket)?;
        // It ends with the process.
        std::thread::Builder::new()
            .name("sampler".into())
            .spawn(move || sampler.run(config.interval))
            .context("starting a thread")?;
        let (follows, following) = watch::channel(false);
        let (health, health_service) = tonic_health::server::health_reporter();
        let mut changes = following.clone();
        let tell = async {
            loop {
                let status = match *changes.borrow_and_update() {
                    true => ServingStatus::Serving,
                    false => ServingStatus::NotServing,
                };
                health.set_service_status(MANAGER, status).await;
                if changes.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        let plugin = Plugin {
            name: "metrics",
            instance: String::new(),
            address: format!("unix:{}", config.socket.display()),
            version: env!("CARGO_PKG_VERSION"),
        };
        let (rounds, followed) = (pace.clone(), following.clone());
        let beat = || Beat {
            problem: (!*followed.borrow())
                .then(|| "new sandboxes are not known: the manager is not followed".to_owned()),
            last_run: rounds.last().map(|(ended_at, sandboxes)| LastRun {
                ended_at,
                succeeded: true,
                result: format!("{sandboxes} sandboxes sampled"),
            }),
        };
        let rpc = MetricsRpc {
            book: book.clone(),
            pace,
            follows: following,
        };
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(berth_api::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let served = Server::builder()
            .layer(berth_calls::layers(berth_calls::Limits::default()))
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .add_service(MetricsServiceServer::new(rpc))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tracing::info!(socket = %config.socket.display(), interval = ?config.interval, "sampling");
        let follow = follow_sandboxes(
            &config.manager,
            |fact| learn(&book, fact),
            |it| {
                follows.send_replace(it);
            },
        );
        tokio::select! {
            served = served => served.context("serving"),
            never = follow => match never {},
            never = heartbeat(&config.manager, plugin, beat, |_| {}) => match never {},
            () = tell => Ok(()),
        }
    }
}

/// How many files may stay open, of those that are wished for: the process may open as many as it is allowed to be.
fn open_files(wished: usize) -> usize {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        ..limits
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limits.maximum,
        Err(_) => limits.current,
    };
    let limit = limit.and_then(|it| usize::try_from(it).ok());
    let most = limit.unwrap_or(usize::MAX).saturating_sub(OTHER_FILES);
    if wished > most {
        tracing::warn!(wished, most, "fewer files stay open than are configured");
    }
    wished.min(most)
}

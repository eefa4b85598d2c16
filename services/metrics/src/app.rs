//! Wires the process: one thread reads, one task follows the manager, and a socket answers.

use std::sync::{Arc, RwLock};

use anyhow::Context as _;
use berth_api::v1::metrics_service_server::MetricsServiceServer;
use berth_cgroup::{Hierarchy, Meter};
use berth_plugin::{Beat, LastRun, follow_sandboxes, heartbeat, serve, take_seat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tonic::{server::NamedService as _, service::Routes};

use crate::{
    config::Config,
    export,
    follow::learn,
    rpc::MetricsRpc,
    sampler::{Pace, Sampler},
    series::{Book, SharedBook},
};

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
            trouble: String::new(),
        };
        export::observe(&book, &pace);
        let (listener, _seat) = take_seat(&config.socket, "metrics").await?;
        // It ends with the process.
        std::thread::Builder::new()
            .name("sampler".into())
            .spawn(move || sampler.run(config.interval))
            .context("starting a thread")?;
        let (follows, following) = watch::channel(false);
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
        let rpc = MetricsServiceServer::new(MetricsRpc {
            book: book.clone(),
            pace,
            follows: following.clone(),
        });
        let name = <MetricsServiceServer<MetricsRpc>>::NAME;
        let served = serve(listener, Routes::new(rpc), Some(name), following, |it| *it);
        tracing::info!(socket = %config.socket.display(), interval = ?config.interval, "sampling");
        let manager = config.target();
        let follow = follow_sandboxes(
            &manager,
            |fact| learn(&book, fact),
            |it| {
                follows.send_replace(it);
            },
        );
        tokio::select! {
            served = served => Ok(served?),
            never = follow => match never {},
            never = heartbeat(&manager, config.plugin(), beat, |_| {}) => match never {},
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

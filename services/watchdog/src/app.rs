//! Wires the process: one loop runs, at the start, by the clock and when it is asked to; a socket answers; heartbeats tell.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use berth_api::v1::{self, WatchdogCause, watchdog_service_server::WatchdogServiceServer};
use berth_plugin::{Beat, LastRun, Seat, heartbeat, serve, take_seat};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Status, server::NamedService as _, service::Routes};

use crate::{
    config::Config,
    decide::{in_words, left, pause, unsettled},
    figures,
    rpc::WatchdogRpc,
    run::run,
};

/// Callers that wait for the next run.
const REQUESTS_MAX: usize = 64;

pub(crate) type Answer = Result<v1::WatchdogRun, Status>;

/// What is told about the watchdog.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) running: bool,
    pub(crate) last: Option<v1::WatchdogRun>,
    pub(crate) next: Option<SystemTime>,
}

/// The watchdog of a node.
#[derive(Debug)]
pub struct App;

impl App {
    /// Watches until it is dropped.
    pub async fn run(config: Config) -> anyhow::Result<()> {
        let (listener, seat) = take_seat(&config.socket, &config.name).await?;
        let (told, telling) = watch::channel(Told::default());
        figures::observe(telling.clone());
        let (asks, asked) = mpsc::channel(REQUESTS_MAX);
        let (heard, hearing) = watch::channel(false);
        let name = <WatchdogServiceServer<WatchdogRpc>>::NAME;
        let rpc = WatchdogServiceServer::new(WatchdogRpc {
            config: Arc::new(config.clone()),
            asks,
            told: telling.clone(),
            heard: hearing.clone(),
        });
        tracing::info!(
            socket = %config.socket.display(),
            manager = config.manager_address,
            interval = ?config.check_interval,
            "watching"
        );
        let manager = config.target();
        tokio::select! {
            served = serve(listener, Routes::new(rpc), Some(name), hearing, |it| *it) => Ok(served?),
            () = watch_over(&config, &seat, asked, &told) => Ok(()),
            never = heartbeat(&manager, config.plugin(), || beat(&telling.borrow()), |it| {
                heard.send_replace(it);
            }) => match never {},
        }
    }
}

fn beat(told: &Told) -> Beat {
    let last_run = told.last.as_ref().and_then(|it| {
        Some(LastRun {
            ended_at: SystemTime::try_from(it.ended_at?).ok()?,
            succeeded: it.problem.is_empty() && it.failed.is_empty(),
            result: in_words(it),
        })
    });
    let problem = told.last.as_ref().map(|it| it.problem.clone());
    Beat {
        problem: problem.filter(|it| !it.is_empty()),
        last_run,
    }
}

/// Runs for ever.
async fn watch_over(
    config: &Config,
    seat: &Seat,
    mut asked: mpsc::Receiver<oneshot::Sender<Answer>>,
    told: &watch::Sender<Told>,
) {
    let (mut next, mut cause) = (Instant::now(), WatchdogCause::Started);
    let mut so_often = 0;
    loop {
        let rest = next.saturating_duration_since(Instant::now());
        told.send_modify(|it| it.next = SystemTime::now().checked_add(rest));
        let mut callers = vec![];
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            Some(caller) = asked.recv() => callers.push(caller),
        }
        // Who asks after this may mean something that this run does not see.
        while let Ok(caller) = asked.try_recv() {
            callers.push(caller);
        }
        let own = match callers.is_empty() {
            true => cause,
            false => WatchdogCause::Requested,
        };
        told.send_modify(|it| it.running = true);
        let (run, done) = run(config, seat, own).await;
        figures::ended(&run);
        told.send_modify(|it| {
            it.running = false;
            it.last = Some(run.clone());
        });
        let left = left(&run, &done);
        so_often = unsettled(left, so_often);
        let pause = pause(left, so_often, config.lease_time, config.check_interval);
        next = Instant::now() + pause;
        if done.is_ok() {
            cause = WatchdogCause::Scheduled;
        }
        for caller in callers {
            // One that went away has ended its wait, not the run.
            let _ = caller.send(done.clone().map(|()| run.clone()));
        }
    }
}

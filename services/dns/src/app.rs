//! Wires the process: what is known becomes a zone and a file, and the sockets answer from the zone.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use berth_domain::ipam::Subnets;
use berth_plugin::{Beat, heartbeat, serve, take_seat};
use berth_telemetry::instruments::DNS_FOLLOWS;
use tokio::{sync::watch, task::JoinSet};
use tonic::service::Routes;

use crate::{
    config::Config,
    egress::Egress,
    follow::{Knowledge, Streams, await_subnets, follow},
    forward::Forwarder,
    known::Known,
    serve::{Answers, Sockets},
    state_file,
    zone::Zone,
};

/// The changes of a burst are taken together, so that a node on which much happens has other things to do as well.
const PAUSE: Duration = Duration::from_millis(20);

/// The resolver of a node.
#[derive(Debug)]
pub struct App;

impl App {
    /// Answers until it is dropped.
    pub async fn run(config: Config) -> anyhow::Result<()> {
        let dir = &config.state_dir;
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let file = state_file::path(dir);
        let mut known = state_file::load(&file);
        let manager = config.target();
        let subnets = match config.subnets().or(known.subnets) {
            Some(subnets) => subnets,
            None => await_subnets(&manager).await,
        };
        known.subnets = Some(subnets);
        let (zone, zones) = watch::channel(Arc::new(Zone::new(&known, &config.domain, subnets)));
        let gateways = subnets.gateways();
        let sockets = gateways.iter().map(|it| Sockets::bind(*it, config.port));
        let sockets = sockets.collect::<anyhow::Result<Vec<_>>>()?;
        let egress = Egress::new(&config);
        egress.learn(&known).await;
        let answers = Answers {
            zone: zones,
            forwarder: Arc::new(Forwarder::new(&config, gateways.clone())),
            egress: egress.clone(),
        };
        // Who looks for this socket finds it when questions are answered, and not before.
        let (listener, _seat) = take_seat(&config.socket, "dns").await?;
        tracing::info!(
            ?gateways,
            port = config.port,
            domain = config.domain,
            "answering"
        );

        let mut serving = JoinSet::new();
        for it in sockets {
            serving.spawn(it.serve(answers.clone()));
        }
        let (changed, changes) = watch::channel(known);
        let knowledge: Knowledge = Arc::new(changed);
        let (streams, following) = watch::channel(Streams::default());
        let follows = following.clone();
        DNS_FOLLOWS.observe(move |it| {
            let Streams { sandboxes, catalog } = *follows.borrow();
            it.see(f64::from(u8::from(sandboxes && catalog)), &[]);
        });
        // Where somebody said what it shall be, nobody else is asked.
        let said = config.subnets().is_none().then_some(subnets);
        let follows = following.clone();
        let beat = || {
            let Streams { sandboxes, catalog } = *follows.borrow();
            let behind = !(sandboxes && catalog);
            Beat {
                problem: behind
                    .then(|| "answers may be old: the manager is not followed".to_owned()),
                last_run: None,
            }
        };
        let follows_all = |it: &Streams| it.sandboxes && it.catalog;
        let served = serve(listener, Routes::default(), None, following, follows_all);
        tokio::select! {
            never = heartbeat(&manager, config.plugin(), beat, |_| {}) => match never {},
            Some(_) = serving.join_next() => Ok(()),
            () = publish(changes, &zone, &egress, &file, &config.domain, subnets) => Ok(()),
            () = egress.keep() => Ok(()),
            served = served => Ok(served?),
            subnets = follow(&manager, said, &knowledge, &streams) => {
                let known = Known { subnets: Some(subnets), ..Known::default() };
                state_file::save(&file, &known).context("writing what is known")?;
                bail!("the manager's subnet is {subnets} now; the next start listens there")
            }
        }
    }
}

/// Writes down what is known, and answers from it after that: what was answered once is known again after a kill.
async fn publish(
    mut changes: watch::Receiver<Known>,
    zone: &watch::Sender<Arc<Zone>>,
    egress: &Egress,
    file: &Path,
    domain: &str,
    subnets: Subnets,
) {
    // Where the subnet was learned just now, nobody has written it down.
    changes.mark_changed();
    while changes.changed().await.is_ok() {
        let known = changes.borrow_and_update().clone();
        let fresh = Zone::new(&known, domain, subnets);
        let (path, written) = (file.to_owned(), known.clone());
        let saved = tokio::task::spawn_blocking(move || state_file::save(&path, &written)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "what is known cannot be written");
        }
        egress.learn(&known).await;
        zone.send_replace(Arc::new(fresh));
        tokio::time::sleep(PAUSE).await;
    }
}

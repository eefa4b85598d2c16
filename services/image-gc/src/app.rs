//! Wires the process: while there is a manager, its parts work side by side; without one it idles and says so.

use std::{sync::Arc, time::Duration};

use berth_api::v1::image_gc_service_server::ImageGcServiceServer;
use berth_plugin::{Seat, chain, farewell, heartbeat, serve, take_seat};
use tokio::sync::watch;
use tonic::{server::NamedService as _, service::Routes};

use crate::{
    catalog,
    config::Config,
    duties, figures, follow,
    manager::{Broken, Manager},
    members,
    rpc::ImageGcRpc,
    run,
    state::{Membership, State},
};

/// A manager is back within seconds of its restart.
const RETRY: Duration = Duration::from_millis(500);
/// A manager that does not answer does not keep the process from its end.
const LEAVE: Duration = Duration::from_secs(2);

/// A worker.
#[derive(Debug)]
pub struct App {
    shared: Arc<Shared>,
}

/// What all parts see.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) state: State,
    /// The connection, while there is one.
    pub(crate) manager: watch::Sender<Option<Manager>>,
}

impl App {
    pub fn new(config: Config) -> anyhow::Result<Self> {
        let shared = Shared {
            config,
            state: State::default(),
            manager: watch::Sender::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Works until it is dropped.
    pub async fn run(&self) -> anyhow::Result<()> {
        let Shared { config, .. } = &*self.shared;
        let (listener, seat) = take_seat(&config.socket, &config.name).await?;
        figures::observe(&self.shared);
        tracing::info!(
            worker = config.name,
            socket = %config.socket.display(),
            manager = config.manager_address,
            "working"
        );
        let manager = config.target();
        let beat = async {
            match manager.address.as_str() {
                "" => std::future::pending().await,
                _ => {
                    heartbeat(
                        &manager,
                        config.plugin(),
                        || self.shared.state.beat(),
                        |_| {},
                    )
                    .await
                }
            }
        };
        let rpc = ImageGcServiceServer::new(ImageGcRpc {
            shared: self.shared.clone(),
        });
        let name = <ImageGcServiceServer<ImageGcRpc>>::NAME;
        let managers = self.shared.manager.subscribe();
        let served = serve(
            listener,
            Routes::new(rpc),
            Some(name),
            managers,
            Option::is_some,
        );
        tokio::select! {
            served = served => Ok(served?),
            () = work(&self.shared, &seat) => Ok(()),
            never = beat => match never {},
        }
    }

    /// Gives up what it holds.
    pub async fn leave(&self) {
        let manager = self.shared.manager.borrow().clone();
        let membership = self.shared.state.membership.borrow().clone();
        if let Some(manager) = manager {
            let left = members::leave(&manager, &membership);
            let _ = tokio::time::timeout(LEAVE, left).await;
            let config = &self.shared.config;
            farewell(&config.target(), &config.plugin()).await;
        }
    }
}

/// Works with the manager for ever; begins anew whenever it was away.
async fn work(shared: &Shared, seat: &Seat) {
    let Shared { config, state, .. } = shared;
    loop {
        let error = match Manager::connect(&config.target()).await {
            Ok(manager) => {
                shared.manager.send_replace(Some(manager.clone()));
                state.alarm("manager", None);
                with_manager(shared, seat, &manager).await
            }
            Err(error) => error,
        };
        // Its leases end by themselves, and a manager that was started anew knows none.
        shared.manager.send_replace(None);
        state.membership.send_replace(Membership::default());
        state.runs.send_replace(Default::default());
        let problem = format!("nothing is collected: {}", chain(&error));
        state.alarm("manager", Some(problem));
        tokio::time::sleep(RETRY).await;
    }
}

/// Returns when one part has lost the manager. What is dropped half-way is as after a crash, and that is provided for.
async fn with_manager(shared: &Shared, seat: &Seat, manager: &Manager) -> Broken {
    let Shared { config, state, .. } = shared;
    let ended = tokio::select! {
        it = members::keep(manager, config, seat, state) => it,
        it = follow::runs(manager, config, state) => it,
        it = catalog::follow(manager, config, state) => it,
        it = run::work(manager, config, state) => it,
        it = duties::attend(manager, config, state) => it,
    };
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

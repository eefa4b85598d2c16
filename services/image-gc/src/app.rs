//! Wires the process: while there is a manager, its parts work side by side; without one it idles and says so.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use berth_api::v1::image_gc_service_server::ImageGcServiceServer;
use berth_plugin::{Plugin, chain, heartbeat, listen};
use tokio::{net::UnixListener, sync::watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic_health::ServingStatus;

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
/// The name of the health of the connection: NOT_SERVING while the manager is away.
const MANAGER: &str = "manager";

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
        let listener = listen(&config.socket)?;
        figures::observe(&self.shared);
        tracing::info!(
            worker = config.name,
            socket = %config.socket.display(),
            manager = config.manager_address,
            "working"
        );
        let plugin = Plugin {
            name: "image-gc",
            instance: config.name.clone(),
            address: format!("unix:{}", config.socket.display()),
            version: env!("CARGO_PKG_VERSION"),
        };
        let beat = async {
            match config.manager_address.as_str() {
                "" => std::future::pending().await,
                manager => heartbeat(manager, plugin, || self.shared.state.beat(), |_| {}).await,
            }
        };
        tokio::select! {
            served = serve(listener, self.shared.clone()) => served,
            () = work(&self.shared) => Ok(()),
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
        }
    }
}

/// Works with the manager for ever; begins anew whenever it was away.
async fn work(shared: &Shared) {
    let Shared { config, state, .. } = shared;
    loop {
        let error = match Manager::connect(&config.manager_address).await {
            Ok(manager) => {
                shared.manager.send_replace(Some(manager.clone()));
                state.alarm("manager", None);
                with_manager(shared, &manager).await
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
async fn with_manager(shared: &Shared, manager: &Manager) -> Broken {
    let Shared { config, state, .. } = shared;
    let ended = tokio::select! {
        it = members::keep(manager, config, state) => it,
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

async fn serve(listener: UnixListener, shared: Arc<Shared>) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(berth_api::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    health
        .set_serving::<ImageGcServiceServer<ImageGcRpc>>()
        .await;
    let mut managers = shared.manager.subscribe();
    let tell = async {
        loop {
            let status = match managers.borrow_and_update().is_some() {
                true => ServingStatus::Serving,
                false => ServingStatus::NotServing,
            };
            health.set_service_status(MANAGER, status).await;
            if managers.changed().await.is_err() {
                // Who works is gone, and this process with it.
                return std::future::pending().await;
            }
        }
    };
    let served = Server::builder()
        .layer(berth_calls::layers(berth_calls::Limits::default()))
        .add_service(health_service)
        .add_service(reflection().build_v1().context("reflection")?)
        // Tools made with Python still ask for the older version.
        .add_service(reflection().build_v1alpha().context("reflection")?)
        .add_service(ImageGcServiceServer::new(ImageGcRpc {
            shared: shared.clone(),
        }))
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::select! {
        served = served => served.context("serving"),
        () = tell => Ok(()),
    }
}

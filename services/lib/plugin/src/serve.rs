//! What a process beside the manager answers on its socket: its own services, health and reflection.

use berth_calls::{Access, Limits, layers};
use tokio::{net::UnixListener, sync::watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{service::Routes, transport::Server};
use tonic_health::ServingStatus;

/// The name of the health of the connection.
const MANAGER: &str = "manager";

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("serving")]
    Transport(#[from] tonic::transport::Error),
}

/// Answers until it is dropped. The process (the empty name) and the services that are `named` serve from the beginning;
/// `manager` is NOT_SERVING while what is watched does not hear from it. Who is not root may look, whatever the manager lets
/// him do: what these processes have done is done in their own name.
pub async fn serve<T>(
    listener: UnixListener,
    services: Routes,
    named: Option<&str>,
    mut watched: watch::Receiver<T>,
    hears: impl Fn(&T) -> bool,
) -> Result<(), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    if let Some(named) = named {
        health
            .set_service_status(named, ServingStatus::Serving)
            .await;
    }
    let tell = async {
        loop {
            let status = match hears(&watched.borrow_and_update()) {
                true => ServingStatus::Serving,
                false => ServingStatus::NotServing,
            };
            health.set_service_status(MANAGER, status).await;
            if watched.changed().await.is_err() {
                // Who listens to the manager is gone, and this process with it.
                return std::future::pending().await;
            }
        }
    };
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(berth_api::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let services = services
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        // Tools made with Python still ask for the older version.
        .add_service(reflection().build_v1alpha()?);
    let served = Server::builder()
        .layer(layers(Limits::default(), Some(Access::for_looking())))
        .add_routes(services)
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::select! {
        served = served => Ok(served?),
        () = tell => Ok(()),
    }
}

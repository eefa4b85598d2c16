//! Where callers of other hosts are served, once they have shown a certificate.

use std::{convert::Infallible, time::Duration};

use anyhow::Context as _;
use berth_tls::{Held, Keeper, Settings, serve};
use http::{Request, Response};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;

use crate::config::Tls;

pub(crate) struct TlsPort {
    listener: TcpListener,
    settings: Settings,
    keeper: Keeper,
    reload_interval: Duration,
}

impl TlsPort {
    /// `None` where there is to be no such port. Its certificates may come later: no sandbox needs them.
    pub(crate) async fn bind(config: &Tls) -> anyhow::Result<Option<Self>> {
        let Some((settings, files)) = config.port()? else {
            return Ok(None);
        };
        let listener = TcpListener::bind(settings.listen).await;
        let listener = listener.with_context(|| format!("tls.listen: {}", settings.listen))?;
        tracing::info!(address = %settings.listen, "serving by TLS");
        Ok(Some(Self {
            listener,
            settings,
            keeper: Keeper::new(files),
            reload_interval: config.reload_interval,
        }))
    }

    /// What others may know of the certificates.
    pub(crate) fn held(&self) -> Held {
        self.keeper.held()
    }

    /// Serves until the stop token is cancelled.
    pub(crate) async fn serve<S>(self, service: S, stop: CancellationToken)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let held = self.held();
        tokio::select! {
            () = serve(self.listener, service, self.settings, held, stop) => {}
            () = self.keeper.keep(self.reload_interval) => {}
        }
    }
}

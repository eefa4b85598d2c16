//! From an address as people write it to a channel.

mod tls;

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

pub use self::tls::TlsFiles;

/// What a call may have sent that nobody has read yet, on each side. HTTP/2 counts small messages that wait as a flood, and
/// ends the whole connection for it, beyond a budget that follows from the window of the connection: one call, of whatever
/// messages, stays far below it.
pub const CALL_WINDOW_BYTES: u32 = 64 << 10;
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// A host that is gone without a word is noticed after both, while a call is under way.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

const FORMS: &str = "`unix:/path`, `/path`, `http://host:port` or `https://host:port`";
const HTTPS: &str = "https://";

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("address `{address}` must be {FORMS}")]
    Malformed { address: String },
    #[error("address `{address}` needs a CA, a certificate and its key")]
    FilesMissing { address: String },
    #[error("{address} does not answer")]
    Unreachable {
        address: String,
        source: tonic::transport::Error,
    },
}

/// Where a process answers, and what it is shown there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// `unix:/path`, `/path`, `http://host:port` or `https://host:port`.
    pub address: String,
    /// For `https://`.
    pub tls: Option<TlsFiles>,
}

impl From<&str> for Target {
    fn from(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            tls: None,
        }
    }
}

/// What a target comes to.
enum Way {
    Plain(String),
    Tls(tls::Peer),
}

impl Target {
    /// Refuses what is no address, or lacks what it needs.
    pub fn check(&self) -> Result<(), ConnectError> {
        self.way().map(drop)
    }

    fn way(&self) -> Result<Way, ConnectError> {
        let address = || self.address.clone();
        let malformed = || ConnectError::Malformed { address: address() };
        match self.address.as_str() {
            path if path.starts_with('/') => Ok(Way::Plain(format!("unix:{path}"))),
            it if it.starts_with("unix:/") => Ok(Way::Plain(it.to_owned())),
            it if it.starts_with("http://") => {
                Uri::try_from(it).map_err(|_| malformed())?;
                Ok(Way::Plain(it.to_owned()))
            }
            it if it.starts_with(HTTPS) => {
                let uri = Uri::try_from(it).map_err(|_| malformed())?;
                let files = self.tls.clone();
                let files =
                    files.ok_or_else(|| ConnectError::FilesMissing { address: address() })?;
                tls::Peer::new(&uri, files)
                    .map(Way::Tls)
                    .ok_or_else(malformed)
            }
            _ => Err(malformed()),
        }
    }

    /// Connects. By `https://` the files are read anew for each connection, also for those that the channel makes by itself
    /// when one has broken off.
    pub async fn connect(&self) -> Result<Channel, ConnectError> {
        let malformed = |_| ConnectError::Malformed {
            address: self.address.clone(),
        };
        let windows = |it: Endpoint| {
            it.initial_stream_window_size(CALL_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        };
        let connected = match self.way()? {
            Way::Plain(uri) => {
                let endpoint = windows(Endpoint::try_from(uri).map_err(malformed)?);
                endpoint.connect().await
            }
            Way::Tls(peer) => {
                // The library must not put TLS of its own below: the scheme is that of the origin alone.
                let below = self.address.replacen(HTTPS, "http://", 1);
                let origin = Uri::try_from(&self.address).map_err(|_| ConnectError::Malformed {
                    address: self.address.clone(),
                })?;
                let endpoint = Endpoint::try_from(below).map_err(malformed)?.origin(origin);
                let connector = service_fn(move |_: Uri| {
                    let peer = peer.clone();
                    async move { peer.connect().await.map(TokioIo::new) }
                });
                // A host that is gone says nothing, and whoever only listens would wait for it for ever.
                let endpoint = windows(endpoint)
                    .http2_keep_alive_interval(PING_EVERY)
                    .keep_alive_timeout(PING_TIMEOUT);
                endpoint.connect_with_connector(connector).await
            }
        };
        connected.map_err(|source| ConnectError::Unreachable {
            address: self.address.clone(),
            source,
        })
    }
}

/// Connects to a process that asks for no certificate, at `unix:/path`, `/path` or `http://host:port`.
pub async fn connect(address: &str) -> Result<Channel, ConnectError> {
    Target::from(address).connect().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn an_address_is_checked_before_anybody_is_asked() {
        let files = || Some(TlsFiles { ca: "ca".into(), certificate: "c".into(), key: "k".into() });
        let cases = [
            ("/run/m.sock",            None,    ""),
            ("unix:/run/m.sock",       None,    ""),
            ("http://node-1:50051",    None,    ""),
            ("https://node-1:7443",    files(), ""),
            ("https://[fd00::1]:7443", files(), ""),
            ("https://10.0.0.1:7443",  files(), ""),
            ("https://node-1:7443",    None,    "needs a CA"),
            ("https://node-1",         files(), "must be"),
            ("https://no de:7443",     files(), "must be"),
            ("node-1:7443",            files(), "must be"),
            ("",                       None,    "must be"),
        ];
        for (address, tls, expected) in cases {
            let said = Target { tls, ..Target::from(address) }.check();
            let said = said.err().map(|it| it.to_string()).unwrap_or_default();
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{address}: {said}");
        }
    }
}

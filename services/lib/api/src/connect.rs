//! From an address as people write it to a channel.

use tonic::transport::{Channel, Endpoint};

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("address `{address}` must be `unix:/path`, `/path` or `http://host:port`")]
    Malformed { address: String },
    #[error("{address} does not answer")]
    Unreachable {
        address: String,
        source: tonic::transport::Error,
    },
}

/// Connects to a manager at `unix:/path`, `/path` or `http://host:port`.
pub async fn connect(address: &str) -> Result<Channel, ConnectError> {
    let malformed = || ConnectError::Malformed {
        address: address.to_owned(),
    };
    let uri = match address {
        path if path.starts_with('/') => format!("unix:{path}"),
        it if it.starts_with("unix:/") || it.starts_with("http://") => it.to_owned(),
        _ => return Err(malformed()),
    };
    let endpoint = Endpoint::try_from(uri).map_err(|_| malformed())?;
    endpoint
        .connect()
        .await
        .map_err(|source| ConnectError::Unreachable {
            address: address.to_owned(),
            source,
        })
}

//! From an address as people write it to a channel.

use tonic::transport::{Channel, Endpoint};

/// What a call may have sent that nobody has read yet, on each side. HTTP/2 counts small messages that wait as a flood, and
/// ends the whole connection for it, beyond a budget that follows from the window of the connection: one call, of whatever
/// messages, stays far below it.
pub const CALL_WINDOW_BYTES: u32 = 64 << 10;
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

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
        .initial_stream_window_size(CALL_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect()
        .await
        .map_err(|source| ConnectError::Unreachable {
            address: address.to_owned(),
            source,
        })
}

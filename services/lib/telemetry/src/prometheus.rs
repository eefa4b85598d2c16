//! The endpoint that Prometheus asks: `GET /metrics` on a loopback address or a Unix socket. It shows nothing of a secret, and
//! has no keeper of its own: whoever may reach the address may read.

use std::{
    convert::Infallible,
    fs,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder as _, TEXT_FORMAT, TextEncoder};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};

use crate::StartError;

/// A server or two ask, each over one connection.
const CONNECTIONS_MAX: usize = 8;
/// Of one connection, after which who asks opens another.
const LIFE: Duration = Duration::from_secs(600);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);

enum Address<'a> {
    Tcp(SocketAddr),
    Unix(&'a Path),
}

fn parse(address: &str) -> Result<Address<'_>, String> {
    if let Some(path) = address.strip_prefix("unix:") {
        return match path.starts_with('/') {
            true => Ok(Address::Unix(Path::new(path))),
            false => Err("the path of a socket must be absolute".into()),
        };
    }
    match address.parse::<SocketAddr>() {
        Ok(it) if it.ip().is_loopback() => Ok(Address::Tcp(it)),
        Ok(_) => Err("must be a loopback address: whoever reaches it may read".into()),
        Err(_) => Err("must be like `127.0.0.1:9464` or `unix:/path`".into()),
    }
}

/// Refuses what cannot be listened on; empty is fine.
pub fn check_address(address: &str) -> Result<(), String> {
    match address {
        "" => Ok(()),
        some => parse(some).map(drop),
    }
}

/// Answers until the process ends.
pub(crate) fn serve(address: &str, registry: prometheus::Registry) -> Result<(), StartError> {
    let failed = |problem: String| StartError::Prometheus {
        address: address.to_owned(),
        problem,
    };
    match parse(address).map_err(failed)? {
        Address::Tcp(it) => {
            let listener = std::net::TcpListener::bind(it);
            let listener = listener.and_then(|it| {
                it.set_nonblocking(true)?;
                TcpListener::from_std(it)
            });
            let listener = listener.map_err(|it| failed(it.to_string()))?;
            tokio::spawn(accept(registry, async move || {
                listener.accept().await.map(|it| it.0)
            }));
        }
        Address::Unix(path) => {
            let listener = listen(path).map_err(|it| failed(it.to_string()))?;
            tokio::spawn(accept(registry, async move || {
                listener.accept().await.map(|it| it.0)
            }));
        }
    }
    Ok(())
}

/// Binds in place of a socket that a former process left; what is no socket stays.
fn listen(path: &Path) -> std::io::Result<UnixListener> {
    let former = fs::symlink_metadata(path);
    if former.is_ok_and(|it| it.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn accept<S>(registry: prometheus::Registry, next: impl AsyncFn() -> std::io::Result<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Who asks at the same time gets its answer after the other: each is a few MiB on a full node.
    let one = Arc::new(Semaphore::new(1));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let stream = match next().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "Prometheus is not answered");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let (registry, one) = (registry.clone(), one.clone());
        tokio::spawn(async move {
            let _place = place;
            let answer = service_fn(move |request: Request<Incoming>| {
                let (registry, one) = (registry.clone(), one.clone());
                async move { Ok::<_, Infallible>(answer(&request, registry, &one).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer);
            // Who goes away in between has its reasons.
            let _ = tokio::time::timeout(LIFE, connection).await;
        });
    }
}

async fn answer(
    request: &Request<Incoming>,
    registry: prometheus::Registry,
    one: &Semaphore,
) -> Response<Full<Bytes>> {
    let text = |status: StatusCode, text: Bytes| {
        let mut response = Response::new(Full::new(text));
        *response.status_mut() = status;
        let kind = http::HeaderValue::from_static(TEXT_FORMAT);
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    };
    if request.uri().path() != "/metrics" {
        return text(
            StatusCode::NOT_FOUND,
            Bytes::from_static(b"ask for /metrics\n"),
        );
    }
    if request.method() != Method::GET {
        return text(
            StatusCode::METHOD_NOT_ALLOWED,
            Bytes::from_static(b"ask with GET\n"),
        );
    }
    let _turn = one.acquire().await;
    let encoded = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        TextEncoder::new()
            .encode(&registry.gather(), &mut bytes)
            .map(|()| bytes)
    });
    match encoded.await {
        Ok(Ok(bytes)) => text(StatusCode::OK, bytes.into()),
        Ok(Err(_)) | Err(_) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            Bytes::from_static(b"the metrics cannot be written\n"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn only_what_the_host_alone_reaches_is_listened_on() {
        let cases = [
            ("",                  true),
            ("127.0.0.1:9464",    true),
            ("[::1]:9464",        true),
            ("unix:/run/m.sock",  true),
            ("0.0.0.0:9464",      false),
            ("10.0.0.1:9464",     false),
            ("127.0.0.1",         false),
            ("unix:m.sock",       false),
            ("/run/m.sock",       false),
        ];
        for (address, fine) in cases {
            assert_eq!(check_address(address).is_ok(), fine, "{address}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sock");
        fs::write(&path, "mine").unwrap();
        listen(&path).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        fs::remove_file(&path).unwrap();
        drop(listen(&path).unwrap());
        listen(&path).unwrap();
    }
}

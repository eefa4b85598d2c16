//! Takes connections, shakes hands, serves calls, and ends what has stayed too long. Each connection is one task, which ends
//! with the server.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use berth_api::{CALL_WINDOW_BYTES, CONNECTION_WINDOW_BYTES};
use berth_calls::{Caller, Certificate, Identity, Keeping, is_about_the_server};
use berth_telemetry::{
    KeyValue,
    instruments::{TLS_CONNECTIONS, TLS_REFUSED},
};
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use sha2::{Digest as _, Sha256};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;

use crate::{
    Held, Settings,
    activity::Activity,
    certificate::{Facts, facts},
    doors::{Admission, Doors, Id, Most},
    files::State,
};

/// Of all names and values of a request; the contract's callers send a few hundred bytes.
const HEADERS_MAX: u32 = 16 << 10;
const CALLS_MAX: u32 = 256;
/// A peer that is gone without a word is noticed after both.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long calls may go on when their connection is told to end.
const LAST_CALLS: Duration = Duration::from_secs(5);
/// How long it may stay without calls: whoever does not listen must not stay beside the one that has its place.
const LAST_WORD: Duration = Duration::from_millis(250);
/// When there is no file left for a connection, some will be given back soon.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Longer than any certificate holds, and a time that timers can have.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

struct Port {
    settings: Settings,
    held: Held,
    stop: CancellationToken,
    inside: Mutex<Inside>,
}

struct Inside {
    doors: Doors,
    connections: BTreeMap<Id, Connection>,
}

struct Connection {
    activity: Activity,
    evicted: CancellationToken,
}

/// Serves until `stop`, and then until the last call has ended or was given up.
pub async fn serve<S>(
    listener: TcpListener,
    service: S,
    settings: Settings,
    held: Held,
    stop: CancellationToken,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let doors = Doors::new(Most {
        handshakes: settings.handshakes_max,
        connections: settings.connections_max,
        per_certificate: settings.per_certificate_max,
    });
    let port = Arc::new(Port {
        settings,
        held,
        stop: stop.clone(),
        inside: Mutex::new(Inside {
            doors,
            connections: BTreeMap::new(),
        }),
    });
    let seen = Arc::downgrade(&port);
    TLS_CONNECTIONS.observe(move |it| {
        let Some(port) = seen.upgrade() else { return };
        let (handshakes, open) = port.inside().doors.counts();
        for (state, number) in [("handshake", handshakes), ("open", open)] {
            it.see(
                number as f64,
                &[KeyValue::new("berth.tls.connection.state", state)],
            );
        }
    });
    let (mut tasks, mut next) = (JoinSet::new(), 0);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tasks.join_next(), if !tasks.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    next += 1;
                    let place = port.arrive(next, address);
                    tasks.spawn(connection(place, stream, address, service.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be taken");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

impl Port {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrive(self: &Arc<Self>, id: Id, address: SocketAddr) -> Place {
        let (activity, evicted) = (Activity::new(), CancellationToken::new());
        let connection = Connection {
            activity: activity.clone(),
            evicted: evicted.clone(),
        };
        let mut inside = self.inside();
        inside.connections.insert(id, connection);
        if let Some(other) = inside.doors.arrive(id, address.ip()) {
            inside.evict(other);
        }
        Place {
            port: self.clone(),
            id,
            activity,
            evicted,
        }
    }
}

impl Inside {
    fn evict(&mut self, id: Id) {
        if let Some(it) = self.connections.get(&id) {
            it.evicted.cancel();
        }
    }
}

/// What a connection has of the port, until it is dropped.
struct Place {
    port: Arc<Port>,
    id: Id,
    activity: Activity,
    evicted: CancellationToken,
}

impl Place {
    fn admit(&self, certificate: &[u8]) -> Admission {
        let mark = Sha256::digest(certificate).into();
        let mut inside = self.port.inside();
        let Inside { doors, connections } = &mut *inside;
        let idle = |id| connections.get(&id)?.activity.idle_since();
        let admission = doors.admit(self.id, mark, idle);
        if let Admission::Admitted {
            evicted: Some(other),
        } = admission
        {
            inside.evict(other);
        }
        admission
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.port.inside();
        inside.doors.leave(self.id);
        inside.connections.remove(&self.id);
    }
}

/// Why a connection ends that its peer has not ended.
#[derive(Clone, Copy, Debug)]
enum Cause {
    Handshake,
    Timeout,
    Evicted,
    Full,
    NoCertificate,
    Idle,
    Expired,
    TrustChanged,
}

fn refused(cause: Cause) {
    let cause = match cause {
        Cause::Handshake => "handshake",
        Cause::Timeout => "timeout",
        Cause::Evicted => "evicted",
        Cause::Full => "full",
        Cause::NoCertificate => "no_certificate",
        Cause::Idle => "idle",
        Cause::Expired => "expired",
        Cause::TrustChanged => "trust_changed",
    };
    TLS_REFUSED.record(1.0, &[KeyValue::new("berth.tls.cause", cause)]);
}

async fn connection<S>(place: Place, stream: TcpStream, address: SocketAddr, service: S)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let shaken = tokio::select! {
        it = shake_hands(&place, stream) => it,
        () = place.evicted.cancelled() => Err((Cause::Evicted, None)),
        () = place.port.stop.cancelled() => return,
    };
    match shaken {
        Ok(it) => serve_calls(&place, it, address, service).await,
        Err((cause, error)) => {
            refused(cause);
            let error = error.map(|it| it.to_string()).unwrap_or_default();
            tracing::debug!(%address, ?cause, error, "a connection was refused");
        }
    }
}

struct Shaken {
    stream: TlsStream<TcpStream>,
    facts: Facts,
    /// What it was decided by whom to trust.
    trust: u64,
}

async fn shake_hands(
    place: &Place,
    stream: TcpStream,
) -> Result<Shaken, (Cause, Option<io::Error>)> {
    let usable = place.port.held.0.borrow().usable.clone();
    let usable = usable.ok_or((Cause::NoCertificate, None))?;
    let _ = stream.set_nodelay(true);
    let shaking = TlsAcceptor::from(usable.config).accept(stream);
    let shaken = tokio::time::timeout(place.port.settings.handshake_timeout, shaking).await;
    let stream = shaken
        .map_err(|_| (Cause::Timeout, None))?
        .map_err(|it| (Cause::Handshake, Some(it)))?;
    let chain = stream.get_ref().1.peer_certificates();
    let leaf = chain.and_then(<[_]>::first);
    let facts = leaf.and_then(|it| facts(it, &place.port.settings.trust_domain).ok());
    let (Some(leaf), Some(facts)) = (leaf, facts) else {
        return Err((Cause::Handshake, None));
    };
    match place.admit(leaf) {
        Admission::Admitted { .. } => Ok(Shaken {
            facts,
            trust: usable.trust,
            stream,
        }),
        Admission::Full => Err((Cause::Full, None)),
    }
}

async fn serve_calls<S>(place: &Place, shaken: Shaken, address: SocketAddr, service: S)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let Shaken {
        stream,
        facts,
        trust,
    } = shaken;
    let caller = Caller {
        roles: facts.roles,
        identity: Identity::Certificate(Arc::new(Certificate {
            subject: facts.subject,
            serial: facts.serial,
            address,
        })),
    };
    let activity = place.activity.clone();
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        // Who only asks for health is without a call.
        let call = (!is_about_the_server(request.uri().path())).then(|| activity.begin());
        request.extensions_mut().insert(caller.clone());
        let answer = service.clone().call(request.map(Body::new));
        async move {
            let answer = answer.await?;
            Ok::<_, Infallible>(answer.map(|body| Keeping::new(body, call)))
        }
    });
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .initial_stream_window_size(CALL_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(CALLS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    let mut serving = pin!(server.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        _ = serving.as_mut() => return,
        cause = end(place, facts.not_after, trust) => cause,
    };
    if let Some(cause) = ended {
        refused(cause);
    }
    serving.as_mut().graceful_shutdown();
    if ended.is_none() {
        // Whoever stops the port waits for its calls as long as for those of the Unix socket.
        let _ = serving.await;
        return;
    }
    // One may have begun before its caller heard of the end.
    let quiet = tokio::time::timeout(LAST_WORD, serving.as_mut()).await;
    if quiet.is_err() && place.activity.idle_since().is_none() {
        let _ = tokio::time::timeout(LAST_CALLS, serving).await;
    }
}

/// Waits for a reason to end a connection; `None` where the whole port ends.
async fn end(place: &Place, not_after: SystemTime, trust: u64) -> Option<Cause> {
    let Port {
        settings,
        held,
        stop,
        ..
    } = &*place.port;
    let left = not_after.duration_since(SystemTime::now());
    let mut held = held.0.clone();
    let other = |it: &State| it.usable.as_ref().is_some_and(|it| it.trust != trust);
    let trusts_others = async { drop(held.wait_for(other).await) };
    tokio::select! {
        () = stop.cancelled() => None,
        () = place.evicted.cancelled() => Some(Cause::Evicted),
        () = tokio::time::sleep(left.unwrap_or_default().min(FOR_EVER)) => Some(Cause::Expired),
        () = trusts_others => Some(Cause::TrustChanged),
        () = place.activity.idle_for(settings.idle_timeout) => Some(Cause::Idle),
    }
}

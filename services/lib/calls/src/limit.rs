//! Refuses calls at once while too many are under way, before they cost anything, and says when to come again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use berth_domain::{Failure, Reason};
use berth_telemetry::{KeyValue, instruments::CALLS_SHED};
use http::{Request, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tower::Service;

use crate::{
    caller::{Caller, Identity},
    each::{Answer, Keeping, Rule},
    methods::{Methods, Shape},
};

/// Most calls take less.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// One certificate has at most one part in so many.
const SHARE: usize = 4;

#[derive(Clone, Debug)]
pub struct LimitRule {
    methods: Arc<Methods>,
    unary: Places,
    streams: Places,
}

#[derive(Clone, Debug)]
struct Places {
    free: Arc<Semaphore>,
    most: usize,
    /// Those that each certificate has left, for certificates with calls under way.
    shares: Arc<Mutex<HashMap<Whose, Weak<Semaphore>>>>,
}

/// Subject and serial of a certificate.
type Whose = (String, String);

/// As long as it is kept, the call has its place.
type Place = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Places {
    fn new(most: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(most)),
            most,
            shares: Arc::default(),
        }
    }

    /// No certificate has more than a quarter: the others, and whoever is on this host, go on. The number is that of which
    /// there are no more.
    fn take(&self, caller: Option<&Caller>) -> Result<Place, usize> {
        let share = match caller.map(|it| &it.identity) {
            Some(Identity::Certificate(it)) => {
                let most = (self.most / SHARE).max(1);
                let left = self.share((it.subject.clone(), it.serial.clone()), most);
                Some(left.try_acquire_owned().map_err(|_| most)?)
            }
            Some(Identity::Process { .. } | Identity::Unknown) | None => None,
        };
        let place = self.free.clone().try_acquire_owned();
        Ok((place.map_err(|_| self.most)?, share))
    }

    fn share(&self, whose: Whose, most: usize) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = shares.get(&whose).and_then(Weak::upgrade) {
            return left;
        }
        shares.retain(|_, it| it.strong_count() > 0);
        let left = Arc::new(Semaphore::new(most));
        shares.insert(whose, Arc::downgrade(&left));
        left
    }
}

impl LimitRule {
    pub(crate) fn new(methods: Arc<Methods>, unary: usize, streams: usize) -> Self {
        Self {
            methods,
            unary: Places::new(unary),
            streams: Places::new(streams),
        }
    }
}

impl Rule for LimitRule {
    fn call<S>(&self, inner: &mut S, request: Request<Body>) -> Answer<S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
        S::Future: Send + 'static,
    {
        let LimitRule {
            methods,
            unary,
            streams,
        } = self;
        let Some((method, shape)) = methods.find(request.uri().path()) else {
            return Box::pin(inner.call(request));
        };
        let (places, kind) = match shape {
            Shape::Unary => (unary, "calls"),
            Shape::Stream => (streams, "streams"),
        };
        let place = match places.take(request.extensions().get()) {
            Ok(place) => place,
            Err(most) => {
                CALLS_SHED.record(1.0, &[KeyValue::new("rpc.method", method.to_owned())]);
                let failure = too_many(kind, most);
                return Box::pin(async move { Ok(berth_api::status(failure).into_http()) });
            }
        };
        let answer = inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            Ok(match shape {
                Shape::Unary => response,
                // Its place is taken until its last byte.
                Shape::Stream => response.map(|body| Body::new(Keeping::new(body, place))),
            })
        })
    }
}

fn too_many(kind: &str, most: usize) -> Failure {
    let message = format!("{most} {kind} are under way, which is all that are taken at a time");
    let failure = Failure::new(Reason::CallsExhausted, message).with("limit", most);
    Failure {
        retry_after: Some(RETRY_AFTER),
        ..failure
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use bytes::Bytes;
    use http_body::Frame;
    use tokio::sync::watch;
    use tonic::{Code, Status};
    use tonic_types::StatusExt as _;
    use tower::{Layer as _, service_fn};

    use super::*;
    use crate::{caller::Certificate, each::Each, roles::Roles};

    fn request(path: &str) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = path.parse().unwrap();
        request
    }

    fn status(response: &Response<Body>) -> Status {
        Status::from_header_map(response.headers()).unwrap_or_else(|| Status::new(Code::Ok, ""))
    }

    #[tokio::test]
    async fn what_is_too_much_is_refused_with_a_time_to_come_again_and_health_is_not() {
        let (free, held) = watch::channel(false);
        let layer = Each(LimitRule::new(Arc::new(Methods::of_contract()), 1, 1));
        let mut service = layer.layer(service_fn(move |_: Request<Body>| {
            let mut held = held.clone();
            async move {
                drop(held.wait_for(|it| *it).await);
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        }));
        const GET: &str = "/berth.v1.SandboxService/Get";
        let waits = service.call(request(GET));
        let refused = service.call(request(GET)).await.unwrap();
        let refused = status(&refused);
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let details = refused.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "CALLS_EXHAUSTED");
        let again = details.retry_info().unwrap().retry_delay;
        assert_eq!(again, Some(RETRY_AFTER));
        // They are taken, and wait for what they are about.
        let watches = service.call(request("/berth.v1.SandboxService/Watch"));
        let health = service.call(request("/grpc.health.v1.Health/Check"));
        free.send_replace(true);
        for call in [waits, watches, health] {
            assert_eq!(status(&call.await.unwrap()).code(), Code::Ok);
        }
        let after = service.call(request(GET)).await.unwrap();
        assert_eq!(status(&after).code(), Code::Ok, "its place is free again");
    }

    /// Says nothing, and does not end.
    struct Endless;

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_stream_has_its_place_until_its_last_byte_and_takes_none_from_other_calls() {
        let layer = Each(LimitRule::new(Arc::new(Methods::of_contract()), 1, 2));
        let mut service = layer.layer(service_fn(|_: Request<Body>| async {
            Ok::<_, Infallible>(Response::new(Body::new(Endless)))
        }));
        const WATCH: &str = "/berth.v1.SandboxService/Watch";
        let first = service.call(request(WATCH)).await.unwrap();
        let second = service.call(request(WATCH)).await.unwrap();
        assert_eq!(status(&second).code(), Code::Ok);
        let refused = status(&service.call(request(WATCH)).await.unwrap());
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let details = refused.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(info.reason, "CALLS_EXHAUSTED");
        assert_eq!(info.metadata["limit"], "2");
        let unary = service.call(request("/berth.v1.SandboxService/Get"));
        assert_eq!(status(&unary.await.unwrap()).code(), Code::Ok);
        drop(first);
        let after = service.call(request(WATCH)).await.unwrap();
        assert_eq!(status(&after).code(), Code::Ok, "its place is free again");
    }

    #[test]
    fn no_certificate_takes_more_than_a_quarter_of_the_places() {
        let caller = |serial: &str| Caller {
            roles: Roles::ALL,
            identity: Identity::Certificate(Arc::new(Certificate {
                subject: "CN=somebody".into(),
                serial: serial.into(),
                address: "10.0.0.1:7".parse().unwrap(),
            })),
        };
        let (greedy, other) = (caller("01"), caller("02"));
        let places = Places::new(8);
        let held = [(); 2].map(|()| places.take(Some(&greedy)).unwrap());
        assert_eq!(places.take(Some(&greedy)).unwrap_err(), 2);
        let theirs = [(); 2].map(|()| places.take(Some(&other)).unwrap());
        let near: Vec<_> = (0..4).map(|_| places.take(None).unwrap()).collect();
        assert_eq!(places.take(None).unwrap_err(), 8);
        drop((held, theirs, near));
        assert!(
            places.take(Some(&greedy)).is_ok(),
            "its places are free again"
        );
        assert!(Places::new(1).take(Some(&greedy)).is_ok());
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_gives_its_place_back() {
        let layer = Each(LimitRule::new(Arc::new(Methods::of_contract()), 1, 1));
        let mut service = layer.layer(service_fn(|it: Request<Body>| async move {
            if it.uri().path().ends_with("Delete") {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }));
        drop(service.call(request("/berth.v1.SandboxService/Delete")));
        let after = service.call(request("/berth.v1.SandboxService/Get"));
        assert_eq!(status(&after.await.unwrap()).code(), Code::Ok);
    }
}

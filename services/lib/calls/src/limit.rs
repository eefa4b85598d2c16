//! Refuses calls at once while too many are under way, before they cost anything, and says when to come again.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use berth_domain::{Failure, Reason};
use berth_telemetry::{KeyValue, instruments::CALLS_SHED};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::methods::{Methods, Shape};

/// Most calls take less.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct LimitLayer {
    methods: Arc<Methods>,
    unary: Places,
    streams: Places,
}

#[derive(Clone, Debug)]
struct Places {
    free: Arc<Semaphore>,
    most: usize,
}

impl Places {
    fn new(most: usize) -> Self {
        let free = Arc::new(Semaphore::new(most));
        Self { free, most }
    }
}

impl LimitLayer {
    pub(crate) fn new(methods: Arc<Methods>, unary: usize, streams: usize) -> Self {
        Self {
            methods,
            unary: Places::new(unary),
            streams: Places::new(streams),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Limit<S> {
    inner: S,
    layer: LimitLayer,
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit {
            inner,
            layer: self.clone(),
        }
    }
}

impl<S> Service<Request<Body>> for Limit<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let LimitLayer {
            methods,
            unary,
            streams,
        } = &self.layer;
        let Some((method, shape)) = methods.find(request.uri().path()) else {
            return Box::pin(self.inner.call(request));
        };
        let (places, kind) = match shape {
            Shape::Unary => (unary, "calls"),
            Shape::Stream => (streams, "streams"),
        };
        let Ok(place) = places.free.clone().try_acquire_owned() else {
            CALLS_SHED.record(1.0, &[KeyValue::new("rpc.method", method.to_owned())]);
            let failure = too_many(kind, places.most);
            return Box::pin(async move { Ok(berth_api::status(failure).into_http()) });
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            Ok(match shape {
                Shape::Unary => response,
                Shape::Stream => response.map(|body| {
                    Body::new(Placed {
                        body,
                        _place: place,
                    })
                }),
            })
        })
    }
}

/// What a stream tells; its place is taken until the end of it.
struct Placed {
    body: Body,
    _place: OwnedSemaphorePermit,
}

impl http_body::Body for Placed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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
    use std::convert::Infallible;

    use tokio::sync::watch;
    use tonic::Code;
    use tonic_types::StatusExt as _;
    use tower::service_fn;

    use super::*;

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
        let layer = LimitLayer::new(Arc::new(Methods::of_contract()), 1, 1);
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
        let layer = LimitLayer::new(Arc::new(Methods::of_contract()), 1, 2);
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

    #[tokio::test]
    async fn a_caller_that_goes_away_gives_its_place_back() {
        let layer = LimitLayer::new(Arc::new(Methods::of_contract()), 1, 1);
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

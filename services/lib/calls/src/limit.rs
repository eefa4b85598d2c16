//! Refuses calls at once while too many are under way, before they cost anything, and says when to come again.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use berth_domain::{Failure, Reason};
use berth_telemetry::{KeyValue, instruments::CALLS_SHED};
use http::{Request, Response};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::methods::{Methods, Shape};

/// Most calls take less.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct LimitLayer {
    methods: Arc<Methods>,
    places: Arc<Semaphore>,
    most: usize,
}

impl LimitLayer {
    pub(crate) fn new(methods: Arc<Methods>, most: usize) -> Self {
        Self {
            methods,
            places: Arc::new(Semaphore::new(most)),
            most,
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
            places,
            most,
        } = &self.layer;
        let Some((method, Shape::Unary)) = methods.find(request.uri().path()) else {
            return Box::pin(self.inner.call(request));
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            CALLS_SHED.record(1.0, &[KeyValue::new("rpc.method", method.to_owned())]);
            let failure = too_many(*most);
            return Box::pin(async move { Ok(berth_api::status(failure).into_http()) });
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let _place = place;
            answer.await
        })
    }
}

fn too_many(most: usize) -> Failure {
    let message = format!("{most} calls are under way, which is all that are taken at a time");
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
    use tonic::{Code, Status};
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
    async fn what_is_too_much_is_refused_with_a_time_to_come_again_and_streams_and_health_are_not()
    {
        let (free, held) = watch::channel(false);
        let layer = LimitLayer::new(Arc::new(Methods::of_contract()), 1);
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

    #[tokio::test]
    async fn a_caller_that_goes_away_gives_its_place_back() {
        let layer = LimitLayer::new(Arc::new(Methods::of_contract()), 1);
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

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

//! What the layers have in common: one rule that is asked about each call, and a body that keeps something until its end.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

pub(crate) type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

/// What is done with each call. `inner` is ready, and called once at most.
pub trait Rule: Clone {
    fn call<S>(&self, inner: &mut S, request: Request<Body>) -> Answer<S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
        S::Future: Send + 'static;
}

/// A rule as a layer.
#[derive(Clone, Debug)]
pub struct Each<R>(pub(crate) R);

/// A service under a rule.
#[derive(Clone, Debug)]
pub struct Ruled<S, R> {
    inner: S,
    rule: R,
}

impl<S, R: Clone> Layer<S> for Each<R> {
    type Service = Ruled<S, R>;

    fn layer(&self, inner: S) -> Ruled<S, R> {
        let rule = self.0.clone();
        Ruled { inner, rule }
    }
}

impl<S, R: Rule> Service<Request<Body>> for Ruled<S, R>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.rule.call(&mut self.inner, request)
    }
}

/// What a caller is told, and what lasts until it is.
#[derive(Debug)]
pub struct Keeping<T> {
    body: Body,
    _kept: T,
}

impl<T> Keeping<T> {
    pub fn new(body: Body, kept: T) -> Self {
        Self { body, _kept: kept }
    }
}

impl<T: Unpin> http_body::Body for Keeping<T> {
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

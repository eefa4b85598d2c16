//! A caller that cancels its call while it still sends: told as an error to whoever reads what it sends. The server library
//! would tell it as the end, and half of something would be taken for the whole.

use http::{Request, Response};
use http_body_util::BodyExt as _;
use tonic::{Code, Status, body::Body};
use tower::Service;

use crate::each::{Answer, Rule};

#[derive(Clone, Copy, Debug)]
pub struct CancelRule;

impl Rule for CancelRule {
    fn call<S>(&self, inner: &mut S, request: Request<Body>) -> Answer<S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
        S::Future: Send + 'static,
    {
        Box::pin(inner.call(request.map(|body| Body::new(body.map_err(told)))))
    }
}

/// Every code but this one is an error to the library.
fn told(status: Status) -> Status {
    match status.code() {
        Code::Cancelled => Status::aborted("the caller has cancelled the call"),
        _ => status,
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
    use tower::{Layer as _, service_fn};

    use super::*;
    use crate::each::Each;

    /// What a caller sends that breaks off with this code.
    struct Broken(Code);

    impl http_body::Body for Broken {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(Some(Err(Status::new(self.0, ""))))
        }
    }

    #[tokio::test]
    async fn what_a_caller_cancels_breaks_off_and_what_it_ends_ends() {
        let read = async |body| {
            let mut service = Each(CancelRule).layer(service_fn(async |it: Request<Body>| {
                let read = it.into_body().collect().await;
                let code = read.map_or_else(|it| it.code(), |_| Code::Ok);
                let mut answer = Response::new(Body::empty());
                answer.extensions_mut().insert(code);
                Ok::<_, Infallible>(answer)
            }));
            let answer = service.call(Request::new(body)).await.unwrap();
            answer.extensions().get::<Code>().copied()
        };
        let broken = |code| Body::new(Broken(code));
        assert_eq!(read(broken(Code::Cancelled)).await, Some(Code::Aborted));
        assert_eq!(read(broken(Code::Internal)).await, Some(Code::Internal));
        let whole = http_body_util::Full::new(Bytes::from_static(b"all of it"));
        assert_eq!(read(Body::new(whole)).await, Some(Code::Ok));
    }
}

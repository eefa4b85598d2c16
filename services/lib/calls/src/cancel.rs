//! A caller that goes away while it still sends: told as an error to whoever reads what it sends. The server library would
//! tell it as the end, and half of something would be taken for the whole.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tonic::{Code, Status, body::Body};
use tower::Service;

use crate::each::{Answer, Rule};

const GONE: &str = "the caller has gone";

#[derive(Clone, Copy, Debug)]
pub struct CancelRule;

impl Rule for CancelRule {
    fn call<S>(&self, inner: &mut S, request: Request<Body>) -> Answer<S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
        S::Future: Send + 'static,
    {
        let broken_off = Arc::<AtomicBool>::default();
        let request = request.map(|body| {
            let broken_off = broken_off.clone();
            Body::new(Sent { body, broken_off })
        });
        let answer = inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // Nobody hears it; it is what is written down of the call.
            Ok(match broken_off.load(Relaxed) {
                true => Status::cancelled(GONE).into_http(),
                false => answer,
            })
        })
    }
}

/// What a caller sends.
struct Sent {
    body: Body,
    broken_off: Arc<AtomicBool>,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        let is_gone = match &polled {
            Some(Ok(_)) => false,
            Some(Err(status)) => status.code() == Code::Cancelled,
            // Some cancel without a reason: the transport tells that as an end, and knows that none was sent.
            None => !self.body.is_end_stream(),
        };
        Poll::Ready(match is_gone {
            // Any code but CANCELLED is an error to the library.
            true => {
                self.broken_off.store(true, Relaxed);
                Some(Err(Status::aborted(GONE)))
            }
            false => polled,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Mutex};

    use http_body_util::{BodyExt as _, Full};
    use tower::{Layer as _, service_fn};

    use super::*;
    use crate::{Limits, layers};

    /// What a caller sends that breaks off: with this code, or without a word.
    struct Broken(Option<Code>);

    impl http_body::Body for Broken {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.map(|code| Err(Status::new(code, ""))))
        }
    }

    #[tokio::test]
    async fn what_a_caller_breaks_off_is_an_error_to_its_reader_and_a_cancelled_call() {
        let read = async |body| {
            let seen = Arc::<Mutex<Option<Code>>>::default();
            let sees = seen.clone();
            let read = move |it: Request<Body>| {
                let sees = sees.clone();
                async move {
                    let read = it.into_body().collect().await;
                    let code = read.map_or_else(|it| it.code(), |_| Code::Ok);
                    *sees.lock().unwrap() = Some(code);
                    Ok::<_, Infallible>(Status::new(code, "").into_http())
                }
            };
            let mut service = layers(Limits::default(), None).layer(service_fn(read));
            let answer = service.call(Request::new(body)).await.unwrap();
            let told = Status::from_header_map(answer.headers()).unwrap();
            let seen = seen.lock().unwrap().unwrap();
            (seen, told.code())
        };
        let gone = (Code::Aborted, Code::Cancelled);
        assert_eq!(read(Body::new(Broken(Some(Code::Cancelled)))).await, gone);
        assert_eq!(read(Body::new(Broken(None))).await, gone);
        let other = (Code::Internal, Code::Internal);
        assert_eq!(read(Body::new(Broken(Some(Code::Internal)))).await, other);
        let whole = Full::new(Bytes::from_static(b"all of it"));
        assert_eq!(read(Body::new(whole)).await, (Code::Ok, Code::Ok));
        assert_eq!(read(Body::empty()).await, (Code::Ok, Code::Ok));
    }
}

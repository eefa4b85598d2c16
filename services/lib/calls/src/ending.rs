//! How a call ends, told once: at the last byte of what its caller is told, or when the caller has gone.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use tonic::{Code, Status, body::Body};

/// Who wants to know how a call ended.
pub(crate) trait Listener: Send + Unpin + 'static {
    fn ended(&mut self, status: &Status);

    /// Where the answer is made, piece by piece.
    fn within<T>(&self, make: impl FnOnce() -> T) -> T {
        make()
    }
}

/// A call that is under way. Where it is dropped before its end, its caller has gone.
pub(crate) struct UnderWay<L: Listener> {
    listener: L,
    over: bool,
}

impl<L: Listener> UnderWay<L> {
    pub(crate) fn new(listener: L) -> Self {
        Self {
            listener,
            over: false,
        }
    }

    /// The answer, behind which the call ends.
    pub(crate) fn told_by(mut self, response: Response<Body>) -> Response<Body> {
        // One that has nothing but a status says it at once.
        if response.headers().contains_key(Status::GRPC_STATUS) {
            self.end_by(response.headers());
        }
        response.map(|body| Body::new(Told { body, call: self }))
    }

    fn end_by(&mut self, trailers: &HeaderMap) {
        let status = Status::from_header_map(trailers);
        self.end(&status.unwrap_or_else(|| Status::new(Code::Ok, "")));
    }

    fn end(&mut self, status: &Status) {
        if !std::mem::replace(&mut self.over, true) {
            self.listener.ended(status);
        }
    }
}

impl<L: Listener> Drop for UnderWay<L> {
    fn drop(&mut self) {
        self.end(&Status::cancelled("its caller has gone"));
    }
}

/// What a caller is told, with the call that ends behind it.
struct Told<L: Listener> {
    body: Body,
    call: UnderWay<L>,
}

impl<L: Listener> http_body::Body for Told<L> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, call } = &mut *self;
        let polled = call
            .listener
            .within(|| Pin::new(&mut *body).poll_frame(context));
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    call.end_by(trailers);
                }
            }
            Poll::Ready(Some(Err(status))) => call.end(status),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pub(crate) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

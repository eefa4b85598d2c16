//! Traces and measures calls, up to the last byte of what they are told.

use std::{sync::Arc, time::Instant};

use berth_telemetry::{
    KeyValue,
    instruments::{CALL_DURATION, CALLS_ACTIVE},
    spans,
};
use http::{Request, Response};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;
use tower::Service;
use tracing::{Instrument as _, Span};

use crate::{
    each::{Answer, Rule},
    ending::{Listener, UnderWay, name},
    methods::{Methods, OTHER, Shape, is_about_the_server},
};

#[derive(Clone, Debug)]
pub struct RecordRule {
    methods: Arc<Methods>,
}

impl RecordRule {
    pub(crate) fn new(methods: Arc<Methods>) -> Self {
        Self { methods }
    }
}

impl Rule for RecordRule {
    fn call<S>(&self, inner: &mut S, request: Request<Body>) -> Answer<S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
        S::Future: Send + 'static,
    {
        let path = request.uri().path();
        if is_about_the_server(path) {
            return Box::pin(inner.call(request));
        }
        let (method, shape) = self.methods.find(path).unwrap_or((OTHER, Shape::Unary));
        let call = Call::begin(method, shape, spans::call(method, request.headers()));
        let span = call.span.clone();
        let answer = span.in_scope(|| inner.call(request)).instrument(span);
        Box::pin(async move {
            let call = UnderWay::new(call);
            Ok(call.told_by(answer.await?))
        })
    }
}

/// One that is under way.
struct Call {
    method: String,
    shape: KeyValue,
    began: Instant,
    span: Span,
}

impl Call {
    fn begin(method: &str, shape: Shape, span: Span) -> Self {
        let shape = match shape {
            Shape::Unary => "unary",
            Shape::Stream => "stream",
        };
        let shape = KeyValue::new("berth.rpc.type", shape);
        CALLS_ACTIVE.record(1.0, std::slice::from_ref(&shape));
        Self {
            method: method.to_owned(),
            shape,
            began: Instant::now(),
            span,
        }
    }
}

impl Listener for Call {
    fn within<T>(&self, make: impl FnOnce() -> T) -> T {
        self.span.in_scope(make)
    }

    fn ended(&mut self, status: &Status) {
        CALLS_ACTIVE.record(-1.0, std::slice::from_ref(&self.shape));
        let code = name(status.code());
        let mut attributes = vec![
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", self.method.clone()),
            KeyValue::new("rpc.response.status_code", code),
        ];
        let fault = is_a_fault(status.code());
        if fault {
            attributes.push(KeyValue::new("error.type", code));
        }
        CALL_DURATION.record(self.began.elapsed().as_secs_f64(), &attributes);
        if self.span.is_disabled() {
            return;
        }
        self.span.record("rpc.response.status_code", code);
        if status.code() == Code::Ok {
            return;
        }
        let details = status.get_error_details();
        let reason = details.error_info().map(|it| it.reason.as_str());
        let reason = reason.unwrap_or(code);
        match fault {
            true => spans::fail(&self.span, reason, status.message()),
            // The caller's fault is no error of the server.
            false => {
                self.span.record("error.type", reason);
            }
        }
    }
}

/// As OpenTelemetry has it for servers.
fn is_a_fault(code: Code) -> bool {
    match code {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unauthenticated => false,
    }
}

//! Every span, and how one goes on in another task. They are there where they are traced only.

use http::HeaderMap;
use opentelemetry::{
    global,
    trace::{SpanContext, TraceContextExt as _},
};
use opentelemetry_http::HeaderExtractor;
use tracing::{Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::instrument::Attribute;

pub(crate) const TARGET: &str = "berth::span";

/// A kind of span, for the document.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    pub name: &'static str,
    pub kind: &'static str,
    pub description: &'static str,
    pub attributes: &'static [Attribute],
    pub of: &'static str,
}

const fn attribute(name: &'static str, values: &'static str) -> Attribute {
    Attribute { name, values }
}

/// All of them.
pub const ALL: &[Declared] = &[
    Declared {
        name: "<rpc.method>",
        kind: "server",
        of: "every process",
        description: "A call, named as `berth.v1.SandboxService/Create`, under the span of its caller where there is one \
                      (`traceparent`). A stream's lasts as long as the stream. Calls of health and reflection have none.",
        attributes: &[
            attribute("rpc.system.name", "`grpc`"),
            attribute("rpc.method", "as the name"),
            attribute("rpc.response.status_code", "a code of gRPC as `NOT_FOUND`"),
            attribute(
                "error.type",
                "the reason of the contract, or else the code, where it failed",
            ),
        ],
    },
    Declared {
        name: "plan <verb>",
        kind: "internal",
        of: "sandbox-manager",
        description: "What the task of a sandbox does for one reason. It is under the call that asked for it: the first one, \
                      which may be over by then. What time, a restart or the end of a container brings about has a trace of its own.",
        attributes: &[
            attribute("berth.sandbox.id", "id of the sandbox"),
            attribute("berth.sandbox.generation", "its generation"),
            attribute(
                "berth.sandbox.verb",
                "`create`, `undo`, `delete`, `stop`, `expire`, `exit`, `clear`",
            ),
            attribute("error.type", "the reason of the contract, where it failed"),
        ],
    },
    Declared {
        name: "step <step>",
        kind: "internal",
        of: "sandbox-manager",
        description: "One step of a plan, with its wait for a place.",
        attributes: &[
            attribute("berth.sandbox.step", "as `create-task`"),
            attribute(
                "container.name",
                "of a step about a container: its name in the spec, or `pause`",
            ),
            attribute("error.type", "the reason of the contract, where it failed"),
        ],
    },
    Declared {
        name: "collect <kind>",
        kind: "internal",
        of: "image-gc",
        description: "What a worker does for one run: its slices.",
        attributes: &[
            attribute("berth.collection.kind", "`images`, `blobs`"),
            attribute("berth.collection.id", "id of the run"),
        ],
    },
];

/// A call by its method, under the caller's span.
pub fn call(method: &str, headers: &HeaderMap) -> Span {
    let span = info_span!(
        target: TARGET,
        "call",
        otel.name = method,
        otel.kind = "server",
        rpc.system.name = "grpc",
        rpc.method = method,
        rpc.response.status_code = field::Empty,
        "error.type" = field::Empty,
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
        trace_id = field::Empty,
    );
    if !span.is_disabled() {
        let caller = global::get_text_map_propagator(|it| it.extract(&HeaderExtractor(headers)));
        // Fails only where the span has begun.
        let _ = span.set_parent(caller);
        note_trace(&span);
    }
    span
}

/// What a sandbox's task does for one reason.
pub fn plan(
    verb: &str,
    sandbox: &dyn std::fmt::Display,
    generation: u64,
    origin: Option<&Origin>,
) -> Span {
    let span = info_span!(
        target: TARGET,
        "plan",
        otel.name = format!("plan {verb}"),
        berth.sandbox.id = %sandbox,
        berth.sandbox.generation = generation,
        berth.sandbox.verb = verb,
        "error.type" = field::Empty,
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
        trace_id = field::Empty,
    );
    if let Some(Origin(caller)) = origin {
        let caller = opentelemetry::Context::new().with_remote_span_context(caller.clone());
        let _ = span.set_parent(caller);
    }
    note_trace(&span);
    span
}

/// One step; it is under the span that is entered.
pub fn step(name: &str, container: Option<&str>) -> Span {
    let span = info_span!(
        target: TARGET,
        "step",
        otel.name = format!("step {name}"),
        berth.sandbox.step = name,
        container.name = container,
        "error.type" = field::Empty,
        otel.status_code = field::Empty,
        otel.status_description = field::Empty,
        trace_id = field::Empty,
    );
    note_trace(&span);
    span
}

/// What a worker does for a run.
pub fn collect(kind: &str, run: u64) -> Span {
    let span = info_span!(
        target: TARGET,
        "collect",
        otel.name = format!("collect {kind}"),
        berth.collection.kind = kind,
        berth.collection.id = run,
        trace_id = field::Empty,
    );
    note_trace(&span);
    span
}

/// Notes a failure in a span of these.
pub fn fail(span: &Span, error_type: &str, message: &str) {
    span.record("error.type", error_type);
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", message);
}

/// So that a line on standard error says of which trace it is.
fn note_trace(span: &Span) {
    if let Some(context) = context_of(span) {
        span.record("trace_id", context.trace_id().to_string());
    }
}

fn context_of(span: &Span) -> Option<SpanContext> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then_some(context)
}

/// Where something came from that is done elsewhere and later.
#[derive(Clone, Debug)]
pub struct Origin(SpanContext);

impl Origin {
    /// The span that is entered.
    pub fn current() -> Option<Self> {
        context_of(&Span::current()).map(Self)
    }
}

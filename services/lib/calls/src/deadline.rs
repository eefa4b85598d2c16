//! A caller's deadline, told as DEADLINE_EXCEEDED: the server library would say CANCELLED. A unary call has one in any case.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use berth_domain::{Failure, Reason};
use http::{Request, Response};
use tonic::{body::Body, metadata::MetadataMap};
use tower::Service;

use crate::{
    each::{Answer, Rule},
    methods::{Methods, Shape},
};

/// The library's own timer begins a moment before ours and must not be the first to end.
const HEAD_START: Duration = Duration::from_millis(3);
/// An answer takes its time on the way, more so on a busy node: a twentieth of the deadline, within these.
const LAST_WORDS: RangeInclusive<Duration> = Duration::from_millis(25)..=Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct DeadlineRule {
    methods: Arc<Methods>,
    default: Duration,
}

impl DeadlineRule {
    pub(crate) fn new(methods: Arc<Methods>, default: Duration) -> Self {
        Self { methods, default }
    }

    fn of(&self, request: &Request<Body>) -> Option<Duration> {
        let header = request.headers().get("grpc-timeout");
        let asked = header.and_then(|it| it.to_str().ok()).and_then(parse);
        let unary = || match self.methods.find(request.uri().path()) {
            Some((_, Shape::Unary)) => Some(self.default),
            Some((_, Shape::Stream)) | None => None,
        };
        asked.or_else(unary)
    }
}

impl Rule for DeadlineRule {
    fn call<S>(&self, inner: &mut S, request: Request<Body>) -> Answer<S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
        S::Future: Send + 'static,
    {
        let deadline = self.of(&request);
        let answer = inner.call(request);
        Box::pin(async move {
            let Some(deadline) = deadline else {
                return answer.await;
            };
            match tokio::time::timeout(deadline.saturating_sub(HEAD_START), answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    let failure = Failure::new(
                        Reason::DeadlinePassed,
                        format!(
                            "the deadline of {} ms passed; the work goes on",
                            deadline.as_millis()
                        ),
                    );
                    Ok(berth_api::status(failure).into_http())
                }
            }
        })
    }
}

/// How long a call may wait that wants to say by itself what it waited for; `None` where its caller sets no deadline.
pub fn patience(metadata: &MetadataMap) -> Option<Duration> {
    let header = metadata.get("grpc-timeout")?.to_str().ok()?;
    let deadline = parse(header)?;
    let last_words = (deadline / 20).clamp(*LAST_WORDS.start(), *LAST_WORDS.end());
    Some(deadline.saturating_sub(last_words).max(deadline / 2))
}

/// Reads `grpc-timeout`: at most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|it| it.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tonic::{Code, Status};
    use tower::{Layer as _, service_fn};

    use super::*;
    use crate::each::Each;

    fn request(method: &str, timeout: Option<&str>) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        let path = format!("/berth.v1.SandboxService/{method}");
        *request.uri_mut() = path.parse().unwrap();
        if let Some(timeout) = timeout {
            let headers = request.headers_mut();
            headers.insert("grpc-timeout", timeout.parse().unwrap());
        }
        request
    }

    #[test]
    fn a_unary_call_has_a_deadline_in_any_case_and_a_stream_only_its_callers() {
        const DEFAULT: Duration = Duration::from_secs(1800);
        let layer = DeadlineRule::new(Arc::new(Methods::of_contract()), DEFAULT);
        let own = Some(Duration::from_secs(2));
        for (method, timeout, expected) in [
            ("Get", Some("2S"), own),
            ("Get", None, Some(DEFAULT)),
            ("Get", Some("soon"), Some(DEFAULT)),
            ("Watch", Some("2S"), own),
            ("Watch", None, None),
        ] {
            let found = layer.of(&request(method, timeout));
            assert_eq!(found, expected, "{method} {timeout:?}");
        }
    }

    #[tokio::test]
    async fn what_takes_longer_is_told_as_deadline_exceeded() {
        let default = Duration::from_millis(10);
        let layer = DeadlineRule::new(Arc::new(Methods::of_contract()), default);
        let mut service = Each(layer).layer(service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>()
        }));
        for timeout in [Some("20m"), None] {
            let answer = service.call(request("Get", timeout)).await.unwrap();
            let status = Status::from_header_map(answer.headers()).unwrap();
            assert_eq!(status.code(), Code::DeadlineExceeded, "{timeout:?}");
        }
    }

    #[test]
    fn a_call_ends_before_its_deadline_so_that_it_can_say_why() {
        let of = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            patience(&metadata)
        };
        assert_eq!(patience(&MetadataMap::new()), None);
        assert_eq!(of("5S"), Some(Duration::from_millis(4750)));
        assert_eq!(of("1H"), Some(Duration::from_secs(3599)));
        assert_eq!(of("100m"), Some(Duration::from_millis(75)));
        assert_eq!(of("10m"), Some(Duration::from_millis(5)));
    }

    #[test]
    #[rustfmt::skip]
    fn a_timeout_header_is_read_by_its_unit() {
        let cases = [
            ("5S",         Some(Duration::from_secs(5))),
            ("2H",         Some(Duration::from_secs(7200))),
            ("1M",         Some(Duration::from_secs(60))),
            ("250m",       Some(Duration::from_millis(250))),
            ("7u",         Some(Duration::from_micros(7))),
            ("9n",         Some(Duration::from_nanos(9))),
            ("",           None),
            ("S",          None),
            ("5",          None),
            ("5x",         None),
            ("-5S",        None),
            ("999999999S", None),
            ("5ü",         None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}

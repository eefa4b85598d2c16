//! What metrics say of questions and of what they were told.

use std::time::Instant;

use berth_telemetry::{
    KeyValue,
    instruments::{DNS_DURATION, DNS_QUERIES},
};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};

use crate::{message::Verdict, upstream::Transport};

/// Where an answer comes from; `None` of what is no question.
pub(crate) fn answered_by(verdict: &Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Ignore => None,
        Verdict::Reply(_) | Verdict::ReplyBehind(..) => Some("zone"),
        Verdict::Forward(..) => Some("upstream"),
    }
}

/// A question that was answered, or was not.
pub(crate) fn told(
    by: Option<&'static str>,
    transport: Transport,
    began: Instant,
    reply: Option<&Message>,
) {
    let (Some(by), true) = (by, berth_telemetry::counts()) else {
        return;
    };
    let transport = match transport {
        Transport::Udp => "udp",
        Transport::Tcp => "tcp",
    };
    let asked = reply.and_then(|it| it.queries.first());
    let by = KeyValue::new(
        "berth.dns.answered_by",
        if reply.is_some() { by } else { "nobody" },
    );
    let mut attributes = vec![
        KeyValue::new(
            "dns.question.type",
            asked.map_or("_OTHER", |it| kind(it.query_type())),
        ),
        by.clone(),
        KeyValue::new("network.transport", transport),
    ];
    if let Some(reply) = reply {
        let code = code(reply.metadata.response_code);
        attributes.push(KeyValue::new("dns.response.code", code));
        DNS_DURATION.record(began.elapsed().as_secs_f64(), &[by]);
    }
    DNS_QUERIES.record(1.0, &attributes);
}

/// Types beyond these are for callers to make up.
#[expect(clippy::wildcard_enum_match_arm, reason = "any number is a type")]
fn kind(of: RecordType) -> &'static str {
    match of {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::PTR => "PTR",
        RecordType::SRV => "SRV",
        RecordType::TXT => "TXT",
        _ => "_OTHER",
    }
}

/// What upstreams say beyond these is told apart by nobody.
#[expect(clippy::wildcard_enum_match_arm, reason = "any number is a code")]
fn code(of: ResponseCode) -> &'static str {
    match of {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        _ => "_OTHER",
    }
}

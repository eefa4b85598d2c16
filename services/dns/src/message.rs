//! The wire of DNS: questions read, answers written. The only place that names the codec's types, beside those that pass
//! messages on.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR, SRV, TXT},
    },
};

use crate::{
    egress::Door,
    zone::{Answer, Data, Kind, Question, TTL_SECONDS, Zone},
};

/// What passes every path without being cut into pieces, which get lost.
const UDP_PAYLOAD_MAX: u16 = 1232;

/// What becomes of a packet.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is no question at all: an answer would be sent to somebody who asked nothing.
    Ignore,
    Reply(Box<Message>),
    /// It is told after what it says has been opened.
    ReplyBehind(Box<Message>, Door),
    /// What comes back is told as it is, or after what it says has been opened.
    Forward(Box<Message>, Option<Door>),
}

/// Reads a packet and answers it, as far as that is for this node to do.
pub(crate) fn judge(zone: &Zone, caller: IpAddr, packet: &[u8]) -> Verdict {
    let Ok(query) = Message::from_vec(packet) else {
        return malformed(packet);
    };
    if query.metadata.message_type != MessageType::Query {
        return Verdict::Ignore;
    }
    let refused = |code| Verdict::Reply(Box::new(refusal(&query, code)));
    let [question] = query.queries.as_slice() else {
        return refused(ResponseCode::FormErr);
    };
    if query.metadata.op_code != OpCode::Query {
        return refused(ResponseCode::NotImp);
    }
    let name = plain(question.name());
    let asked = Question {
        name: &name,
        kind: kind(question.query_type()),
    };
    match zone.answer(caller, asked) {
        Answer::Refused => refused(ResponseCode::Refused),
        Answer::Unknown => refused(ResponseCode::ServFail),
        _ if question.query_class() != DNSClass::IN => refused(ResponseCode::Refused),
        Answer::Forward => Verdict::Forward(Box::new(query), zone.door(caller, &name)),
        Answer::Own { records, beside } => {
            let owner = question.name().clone();
            let mut reply = reply_to(&query);
            reply.metadata.authoritative = true;
            for it in records {
                reply.answers.extend(record(owner.clone(), it));
            }
            for (name, it) in beside {
                let name = Name::from_ascii(format!("{name}.")).ok();
                reply
                    .additionals
                    .extend(name.and_then(|name| record(name, it)));
            }
            match zone.door(caller, &name) {
                None => Verdict::Reply(Box::new(reply)),
                Some(door) => Verdict::ReplyBehind(Box::new(reply), door),
            }
        }
    }
}

/// The addresses that an answer says, also those behind aliases, each with the life of its record in seconds.
pub(crate) fn addresses(answer: &Message) -> impl Iterator<Item = (IpAddr, u32)> {
    let address = |it: &Record| it.data.ip_addr().map(|address| (address, it.ttl));
    answer.answers.iter().filter_map(address)
}

/// Lets no record live longer than so many seconds.
pub(crate) fn live_at_most(answer: &mut Message, seconds: u32) {
    let records = answer.answers.iter_mut().chain(&mut answer.authorities);
    for it in records.chain(&mut answer.additionals) {
        it.ttl = it.ttl.min(seconds);
    }
}

/// An answer without records.
pub(crate) fn refusal(query: &Message, code: ResponseCode) -> Message {
    let mut reply = reply_to(query);
    reply.metadata.response_code = code;
    reply
}

/// What is told in place of `reply`.
pub(crate) fn failure(reply: &Message) -> Message {
    refusal(reply, ResponseCode::ServFail)
}

/// As it goes over UDP to somebody who can take so much, or over TCP.
pub(crate) fn encode(reply: &Message, udp_limit: Option<u16>) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    match udp_limit {
        Some(limit) if bytes.len() > usize::from(limit) => reply.truncate().to_vec().ok(),
        Some(_) => Some(bytes),
        None => (bytes.len() <= usize::from(u16::MAX)).then_some(bytes),
    }
}

/// What its sender can take over UDP.
pub(crate) fn udp_limit(packet: &[u8]) -> u16 {
    Message::from_vec(packet).map_or(512, |it| it.max_payload().min(UDP_PAYLOAD_MAX))
}

/// A name in lower case, without the dot at its end.
pub(crate) fn plain(name: &Name) -> String {
    let text = name.to_ascii().to_ascii_lowercase();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

fn reply_to(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&query.metadata);
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD_MAX);
        reply.set_edns(edns);
    }
    reply
}

/// A packet with the head of a question and a body that nobody can read.
fn malformed(packet: &[u8]) -> Verdict {
    let (Some(&[high, low]), Some(flags)) = (packet.first_chunk::<2>(), packet.get(2)) else {
        return Verdict::Ignore;
    };
    if packet.len() < 12 || flags & 0x80 != 0 {
        return Verdict::Ignore;
    }
    let id = u16::from_be_bytes([high, low]);
    let reply = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    Verdict::Reply(Box::new(reply))
}

fn kind(it: RecordType) -> Kind {
    #[expect(clippy::wildcard_enum_match_arm, reason = "there are dozens")]
    match it {
        RecordType::A => Kind::A,
        RecordType::AAAA => Kind::Aaaa,
        RecordType::PTR => Kind::Ptr,
        RecordType::SRV => Kind::Srv,
        RecordType::TXT => Kind::Txt,
        _ => Kind::Other,
    }
}

fn record(owner: Name, it: Data) -> Option<Record> {
    let absolute = |name: String| Name::from_ascii(format!("{name}.")).ok();
    let data = match it {
        Data::A(it) => RData::A(A(it)),
        Data::Aaaa(it) => RData::AAAA(AAAA(it)),
        Data::Ptr(name) => RData::PTR(PTR(absolute(name)?)),
        Data::Srv { port, target } => RData::SRV(SRV::new(0, 0, port, absolute(target)?)),
        Data::Txt(texts) => RData::TXT(TXT::new(texts)),
    };
    Some(Record::from_rdata(owner, TTL_SECONDS, data))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use berth_domain::{
        Generation, Lookup, SandboxId, Status,
        catalog::{App, Object, Placed, Service, Version},
    };
    use hickory_proto::op::Query;

    use super::*;
    use crate::known::{Fact, Known};

    fn zone(sandboxes: u8) -> Zone {
        let mut known = Known::default();
        let (a, web) = ("a".to_owned(), "web".to_owned());
        let entries = vec![
            Object::App(App {
                id: a.clone(),
                name: a.clone(),
            }),
            Object::Version(Version {
                id: a.clone(),
                app: a.clone(),
                ..Version::default()
            }),
            Object::Service(Service {
                id: web.clone(),
                app: a.clone(),
                name: web,
                labels: BTreeMap::new(),
                ports: vec![],
            }),
        ];
        known.learn(Fact::Entries(entries), 1);
        for number in 2..2 + sandboxes {
            let it = Placed {
                id: SandboxId::parse(&format!("a-{number}")).unwrap(),
                generation: Generation(number.into()),
                version: a.clone(),
                labels: BTreeMap::new(),
                status: Status::Running,
                addresses: vec![[10, 9, 0, number].into()],
                lookup: Lookup::Any,
                bound_ports: BTreeMap::new(),
            };
            known.learn(Fact::Sandbox(it), 1);
        }
        let subnet: ipnet::Ipv4Net = "10.9.0.0/24".parse().unwrap();
        Zone::new(&known, "app.berth", subnet.into())
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        query
    }

    fn reply(zone: &Zone, query: &Message) -> Message {
        match judge(zone, [10, 9, 0, 2].into(), &query.to_vec().unwrap()) {
            Verdict::Reply(reply) => *reply,
            other @ (Verdict::Ignore | Verdict::ReplyBehind(..) | Verdict::Forward(..)) => {
                panic!("{other:?}")
            }
        }
    }

    #[test]
    fn an_own_answer_has_authority_a_short_life_and_the_name_as_it_was_asked() {
        let query = question("WEB.app.Berth.", RecordType::A);
        let reply = reply(&zone(2), &query);
        let head = reply.metadata;
        assert_eq!(head.id, query.metadata.id);
        assert!(head.authoritative && head.recursion_available && head.recursion_desired);
        assert_eq!(head.response_code, ResponseCode::NoError);
        assert_eq!(reply.queries, query.queries);
        let found: Vec<_> = reply.answers.iter().map(|it| (it.ttl, &it.data)).collect();
        let a = |last| RData::A(A([10, 9, 0, last].into()));
        assert_eq!(found, [(30, &a(2)), (30, &a(3))]);
        assert_eq!(reply.answers[0].name.to_ascii(), "WEB.app.Berth.");
    }

    #[test]
    fn a_name_without_such_records_is_empty_and_not_missing() {
        for (name, kind) in [
            ("web.app.berth.", RecordType::AAAA),
            ("web.app.berth.", RecordType::MX),
            ("no.app.berth.", RecordType::A),
        ] {
            let reply = reply(&zone(1), &question(name, kind));
            assert_eq!(
                reply.metadata.response_code,
                ResponseCode::NoError,
                "{name}"
            );
            assert!(reply.metadata.authoritative && reply.answers.is_empty());
        }
    }

    #[test]
    fn a_reply_that_is_too_long_for_udp_says_so_and_goes_whole_over_tcp() {
        let zone = zone(120);
        let mut query = question("web.app.berth.", RecordType::A);
        let plain = query.to_vec().unwrap();
        assert_eq!(udp_limit(&plain), 512);
        let whole = reply(&zone, &query);
        let cut = encode(&whole, Some(512)).unwrap();
        let cut = Message::from_vec(&cut).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let long = Message::from_vec(&encode(&whole, None).unwrap()).unwrap();
        assert_eq!(long.answers.len(), 120);
        for (asked, limit) in [(4096, UDP_PAYLOAD_MAX), (600, 600), (100, 512)] {
            let mut edns = Edns::new();
            edns.set_max_payload(asked);
            query.set_edns(edns);
            assert_eq!(udp_limit(&query.to_vec().unwrap()), limit);
        }
        assert!(reply(&zone, &query).edns.is_some());
    }

    #[test]
    fn a_reply_of_the_most_that_goes_over_udp_is_whole_and_one_more_byte_is_cut() {
        let mut query = question("web.app.berth.", RecordType::TXT);
        query.set_edns(Edns::new());
        let of = |filling: usize| {
            let mut texts = vec!["x".repeat(255); 4];
            texts.push("x".repeat(filling));
            let mut reply = reply_to(&query);
            let owner = query.queries[0].name().clone();
            reply.answers.extend(record(owner, Data::Txt(texts)));
            reply
        };
        let most = usize::from(UDP_PAYLOAD_MAX);
        let filling = most - of(0).to_vec().unwrap().len();
        let whole = encode(&of(filling), Some(UDP_PAYLOAD_MAX)).unwrap();
        assert_eq!(whole.len(), most);
        let whole = Message::from_vec(&whole).unwrap();
        assert!(!whole.metadata.truncation && whole.answers.len() == 1);
        let longer = of(filling + 1);
        let cut = encode(&longer, Some(UDP_PAYLOAD_MAX)).unwrap();
        let cut = Message::from_vec(&cut).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        assert_eq!(encode(&longer, None).unwrap().len(), most + 1);
    }

    #[test]
    fn what_is_no_question_is_refused_or_ignored() {
        let zone = zone(1);
        let code = |packet: &[u8], caller: [u8; 4]| match judge(&zone, caller.into(), packet) {
            Verdict::Reply(reply) => Some(reply.metadata.response_code),
            Verdict::Ignore => None,
            other @ (Verdict::ReplyBehind(..) | Verdict::Forward(..)) => panic!("{other:?}"),
        };
        let inside = [10, 9, 0, 2];
        let query = question("web.app.berth.", RecordType::A);
        let packet = query.to_vec().unwrap();
        assert_eq!(code(&packet, [10, 9, 1, 2]), Some(ResponseCode::Refused));
        assert_eq!(code(&packet[..20], inside), Some(ResponseCode::FormErr));
        assert_eq!(code(&packet[..11], inside), None);
        assert_eq!(code(&[], inside), None);
        let mut answer = query.clone();
        answer.metadata.message_type = MessageType::Response;
        assert_eq!(code(&answer.to_vec().unwrap(), inside), None);
        let mut update = query.clone();
        update.metadata.op_code = OpCode::Status;
        let update = update.to_vec().unwrap();
        assert_eq!(code(&update, inside), Some(ResponseCode::NotImp));
        let mut two = query.clone();
        two.add_query(query.queries[0].clone());
        assert_eq!(
            code(&two.to_vec().unwrap(), inside),
            Some(ResponseCode::FormErr)
        );
        let mut chaos = question("version.bind.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(
            code(&chaos.to_vec().unwrap(), inside),
            Some(ResponseCode::Refused)
        );
    }
}

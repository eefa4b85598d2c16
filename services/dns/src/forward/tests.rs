//! The forwarder against resolvers that are scripted here.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use hickory_proto::{
    op::Query,
    rr::{
        Name, RData, Record,
        rdata::{A, opt::EdnsOption},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

use super::*;

const CALLER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 2));
const TIMEOUT: Duration = Duration::from_millis(200);

fn query(name: &str) -> Message {
    let mut query = Message::query();
    let name = Name::from_ascii(name).unwrap();
    query.add_query(Query::query(name, RecordType::A));
    query
}

fn answer_to(query: &Message, ttl: u32) -> Message {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.add_queries(query.queries.iter().cloned());
    let owner = query.queries[0].name().clone();
    let data = RData::A(A([192, 0, 2, 7].into()));
    answer.add_answer(Record::from_rdata(owner, ttl, data));
    answer
}

/// A resolver on an address of its own, all on one port, that answers each question as `script` says.
struct Scripted {
    asked: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Scripted {
    async fn serve(
        address: [u8; 4],
        port: u16,
        script: impl Fn(Message) -> Vec<Message> + Send + 'static,
    ) -> (Self, u16) {
        let socket = UdpSocket::bind((IpAddr::from(address), port))
            .await
            .unwrap();
        let port = socket.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let mut serving = JoinSet::new();
        let count = asked.clone();
        serving.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                for answer in script(Message::from_vec(&buffer[..length]).unwrap()) {
                    socket
                        .send_to(&answer.to_vec().unwrap(), from)
                        .await
                        .unwrap();
                }
            }
        });
        let _serving = serving;
        (Self { asked, _serving }, port)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn forwarder(upstreams: &[[u8; 4]], port: u16, change: impl FnOnce(&mut Config)) -> Forwarder {
    let mut config = Config {
        upstreams: upstreams.iter().map(|it| IpAddr::from(*it)).collect(),
        upstream_port: port,
        upstream_timeout: TIMEOUT,
        ..Config::default()
    };
    change(&mut config);
    Forwarder::new(&config, vec![[10, 9, 0, 1].into()])
}

#[tokio::test]
async fn an_answer_comes_back_with_the_number_and_the_spelling_of_its_question_and_is_kept() {
    let (upstream, port) = Scripted::serve([127, 0, 0, 1], 0, |it| vec![answer_to(&it, 60)]).await;
    let forwarder = forwarder(&[[127, 0, 0, 1]], port, |_| ());
    for name in ["example.org.", "EXAMPLE.org."] {
        let query = query(name);
        let answer = forwarder.answer(CALLER, &query, Transport::Udp).await;
        assert_eq!(answer.metadata.id, query.metadata.id);
        assert!(answer.metadata.recursion_available && !answer.metadata.authoritative);
        assert_eq!(answer.queries, query.queries);
        assert_eq!(answer.answers.len(), 1);
    }
    assert_eq!(upstream.asked(), 1, "the second was kept");
}

#[tokio::test]
async fn nothing_goes_on_of_what_a_caller_adds_to_its_question() {
    let only_the_question = |it: Message| {
        let edns = it.edns.clone().unwrap();
        let is_plain = edns.options().as_ref().is_empty()
            && edns.max_payload() == UDP_PAYLOAD
            && edns.flags().dnssec_ok
            && it.answers.is_empty()
            && it.additionals.is_empty();
        let sent = answer_to(&it, 60);
        is_plain.then_some(sent).into_iter().collect()
    };
    let (_upstream, port) = Scripted::serve([127, 0, 0, 1], 0, only_the_question).await;
    let forwarder = forwarder(&[[127, 0, 0, 1]], port, |_| ());
    let mut query = query("example.org.");
    let mut edns = Edns::new();
    edns.set_max_payload(65_000);
    edns.set_dnssec_ok(true);
    let cookie = EdnsOption::Unknown(10, b"12345678".to_vec());
    edns.options_mut().insert(cookie);
    query.edns = Some(edns);
    query
        .additionals
        .push(answer_to(&query, 1).answers[0].clone());
    let answer = forwarder.answer(CALLER, &query, Transport::Udp).await;
    assert_eq!(answer.answers.len(), 1);
}

#[tokio::test]
async fn the_next_upstream_is_asked_when_one_is_silent_or_fails_and_none_is_servfail() {
    let silent = Scripted::serve([127, 0, 0, 1], 0, |_| vec![]).await;
    let port = silent.1;
    let failing = Scripted::serve([127, 0, 0, 2], port, |it| {
        vec![refusal(&it, ResponseCode::ServFail)]
    })
    .await;
    let good = Scripted::serve([127, 0, 0, 3], port, |it| vec![answer_to(&it, 0)]).await;
    let all = [[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3]];
    let answer = forwarder(&all, port, |_| ())
        .answer(CALLER, &query("a."), Transport::Udp)
        .await;
    assert_eq!(answer.answers.len(), 1);
    assert_eq!(silent.0.asked() + failing.0.asked() + good.0.asked(), 3);
    for upstreams in [&all[..2], &[]] {
        let answer = forwarder(upstreams, port, |it| {
            it.resolv_conf = "/no/such/file".into();
        })
        .answer(CALLER, &query("a."), Transport::Udp)
        .await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    }
}

#[tokio::test]
async fn an_answer_to_another_question_is_not_taken() {
    let (_upstream, port) = Scripted::serve([127, 0, 0, 1], 0, |it| {
        let mut number = answer_to(&it, 60);
        number.metadata.id = it.metadata.id.wrapping_add(1);
        let mut name = answer_to(&query("other."), 60);
        name.metadata.id = it.metadata.id;
        let mut right = answer_to(&it, 60);
        right.answers.clear();
        vec![number, name, right]
    })
    .await;
    let answer = forwarder(&[[127, 0, 0, 1]], port, |_| ())
        .answer(CALLER, &query("a."), Transport::Udp)
        .await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert!(answer.answers.is_empty(), "{answer:?}");
}

#[tokio::test]
async fn so_many_are_asked_at_a_time_and_one_more_is_told_at_once() {
    let (upstream, port) = Scripted::serve([127, 0, 0, 1], 0, |_| vec![]).await;
    let forwarder = forwarder(&[[127, 0, 0, 1]], port, |it| {
        it.forwards_max = 4;
        it.upstream_timeout = Duration::from_secs(60);
    });
    let (first, second) = (query("a."), query("b."));
    let ask = |caller, query| forwarder.answer(caller, query, Transport::Udp);
    let asked = async |number| {
        while upstream.asked() < number {
            tokio::task::yield_now().await;
        }
    };
    let caller = |number| IpAddr::from([10, 9, 1, number]);
    let of_one = ask(CALLER, &first);
    let of_others = async {
        asked(1).await;
        let [a, b, c] = [1, 2, 3].map(|it| ask(caller(it), &first));
        tokio::select! { _ = a => {}, _ = b => {}, _ = c => {} }
    };
    let told = async {
        asked(1).await;
        let of_one = ask(CALLER, &second).await;
        asked(4).await;
        [of_one, ask(caller(4), &second).await]
    };
    tokio::select! {
        biased;
        told = told => for (told, what) in told.iter().zip(["a quarter", "all"]) {
            assert_eq!(told.metadata.response_code, ResponseCode::ServFail, "{what}");
        },
        _ = of_one => panic!("its upstream is silent"),
        () = of_others => panic!("each has a part, and its upstream is silent"),
    }
    assert_eq!(upstream.asked(), 4);
}

#[tokio::test]
async fn what_is_too_long_for_udp_is_fetched_over_tcp_for_a_caller_over_tcp() {
    let (_upstream, port) =
        Scripted::serve([127, 0, 0, 1], 0, |it| vec![answer_to(&it, 60).truncate()]).await;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut packet = vec![0; length.into()];
        stream.read_exact(&mut packet).await.unwrap();
        let answer = answer_to(&Message::from_vec(&packet).unwrap(), 60);
        let answer = answer.to_vec().unwrap();
        let length = u16::try_from(answer.len()).unwrap();
        stream.write_u16(length).await.unwrap();
        stream.write_all(&answer).await.unwrap();
    });
    let forwarder = forwarder(&[[127, 0, 0, 1]], port, |_| ());
    let cut = forwarder.answer(CALLER, &query("a."), Transport::Udp).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = forwarder.answer(CALLER, &query("a."), Transport::Tcp).await;
    assert_eq!(whole.answers.len(), 1);
}

#[test]
fn the_cache_lets_records_age_and_has_a_last_place() {
    let mut cache = Cache::new(2, Duration::from_secs(100));
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let key = |name: &str| Key::of(&query(name)).unwrap();
    let put = |cache: &mut Cache, name: &str, ttl| {
        cache.put(key(name), &answer_to(&query(name), ttl), now);
    };
    let ttl = |cache: &Cache, name: &str, seconds| {
        let answer = cache.get(&key(name), at(seconds))?;
        answer.answers.first().map(|it| it.ttl)
    };
    put(&mut cache, "short.", 30);
    put(&mut cache, "long.", 5000);
    put(&mut cache, "none.", 0);
    assert_eq!(ttl(&cache, "short.", 10), Some(20));
    assert_eq!(ttl(&cache, "short.", 30), None);
    assert_eq!(
        ttl(&cache, "long.", 10),
        Some(90),
        "no longer than it is kept"
    );
    assert_eq!(ttl(&cache, "long.", 100), None);
    assert_eq!(ttl(&cache, "none.", 0), None);
    put(&mut cache, "third.", 30);
    assert_eq!(ttl(&cache, "short.", 0), None, "the oldest went");
    assert_eq!((cache.kept.len(), cache.order.len()), (2, 2));
    let failed = refusal(&query("failed."), ResponseCode::ServFail);
    cache.put(key("failed."), &failed, now);
    assert_eq!(cache.kept.len(), 2);
}

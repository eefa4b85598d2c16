//! StreamLogs with a real store and logs that are written by hand.

use berth_api::v1::{LogGapReason, StreamLogsRequest, StreamLogsResponse};
use berth_logs::cursor::TEXT_MAX;
use futures::StreamExt as _;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::logs::written::{Ground, id, within};

async fn ask(
    ground: &Ground,
    change: impl FnOnce(&mut StreamLogsRequest),
) -> Result<LogStream, Status> {
    let mut request = StreamLogsRequest {
        id: "web".into(),
        ..StreamLogsRequest::default()
    };
    change(&mut request);
    stream(&ground.registry, &ground.readers, request).await
}

/// What an entry says, in short.
fn told(entry: &v1::LogEntry) -> String {
    let name = match entry.container.as_str() {
        "" => "@",
        name => name,
    };
    match entry.content.as_ref().unwrap() {
        log_entry::Content::Line(line) => {
            format!("{name}:{}", String::from_utf8_lossy(&line.text))
        }
        log_entry::Content::Gap(gap) => {
            let reason = LogGapReason::try_from(gap.reason).unwrap().as_str_name();
            let reason = reason.trim_start_matches("LOG_GAP_REASON_");
            format!("{name}:{reason} {}", gap.lines)
        }
    }
}

fn all_told(responses: &[StreamLogsResponse]) -> Vec<String> {
    responses
        .iter()
        .flat_map(|it| it.entries.iter().map(told))
        .collect()
}

/// Everything up to the end of the stream.
async fn read(
    ground: &Ground,
    change: impl FnOnce(&mut StreamLogsRequest),
) -> Vec<StreamLogsResponse> {
    let stream = ask(ground, change).await.unwrap();
    let responses = within("the end of the stream", stream.collect::<Vec<_>>()).await;
    responses.into_iter().map(Result::unwrap).collect()
}

/// Responses up to the one that is at the end.
async fn until_end(stream: &mut LogStream) -> Vec<StreamLogsResponse> {
    let mut responses = vec![];
    loop {
        let next = within("a response", stream.next()).await;
        responses.push(next.expect("it goes on").unwrap());
        if responses.last().is_some_and(|it| it.at_end) {
            return responses;
        }
    }
}

fn numbered(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|it| format!("app:line {it}")).collect()
}

#[tokio::test]
async fn what_is_there_is_sent_with_its_streams_and_the_call_ends() {
    let ground = Ground::new();
    ground.admit(&id("web"), |_| {}).await;
    let mut app = ground.log(&id("web"), "app");
    let mut system = ground.log(&id("web"), SYSTEM);
    app.line(Kind::Stdout, "out trace_id=t1");
    app.line(Kind::Stderr, "err");
    app.line(Kind::UserOob, "oob");
    app.line(Kind::Error, "bad");
    system.line(Kind::System, "pulled");
    let responses = read(&ground, |_| {}).await;
    assert_eq!(responses.len(), 1);
    assert!(responses[0].at_end);
    let expected = [
        "app:out trace_id=t1",
        "@:pulled",
        "app:err",
        "app:oob",
        "app:bad",
    ];
    assert_eq!(all_told(&responses), expected);
    let Some(log_entry::Content::Line(line)) = &responses[0].entries[0].content else {
        panic!("a line")
    };
    assert_eq!(
        (line.trace_id.as_str(), line.stream()),
        ("t1", v1::LogStream::Stdout)
    );

    let only = |names: &[&str], streams: &[v1::LogStream]| {
        let names = names.iter().map(|it| (*it).to_owned()).collect();
        let streams = streams.iter().map(|it| i32::from(*it)).collect();
        read(&ground, move |it| {
            it.containers = names;
            it.streams = streams;
        })
    };
    let system = only(&[SYSTEM], &[]).await;
    assert_eq!(all_told(&system), ["@:pulled"]);
    let errors = only(&["app"], &[v1::LogStream::Stderr, v1::LogStream::Error]).await;
    assert_eq!(all_told(&errors), ["app:err", "app:bad"]);
}

#[tokio::test]
async fn a_sandbox_without_a_log_has_an_empty_one() {
    let ground = Ground::new();
    ground.admit(&id("web"), |_| {}).await;
    let responses = read(&ground, |_| {}).await;
    assert!(matches!(&responses[..], [it] if it.at_end && it.entries.is_empty()));
}

#[tokio::test]
async fn tail_and_since_begin_late() {
    let ground = Ground::new();
    ground.admit(&id("web"), |_| {}).await;
    let mut app = ground.log(&id("web"), "app");
    app.lines(50);
    app.rotate();
    app.lines(50);
    let tail = read(&ground, |it| it.tail_lines = Some(60)).await;
    assert_eq!(all_told(&tail), numbered(40..100));
    let nothing = read(&ground, |it| it.tail_lines = Some(0)).await;
    assert_eq!(all_told(&nothing), numbered(0..0));
    let since = |number: i32| prost_types::Timestamp {
        seconds: 1,
        nanos: number * 1000,
    };
    let late = read(&ground, |it| it.since = Some(since(70))).await;
    assert_eq!(all_told(&late), numbered(70..100));
    let both = read(&ground, |it| {
        it.since = Some(since(95));
        it.tail_lines = Some(60);
    });
    assert_eq!(all_told(&both.await), numbered(95..100));
}

#[tokio::test]
async fn a_response_is_bounded_and_each_cursor_goes_on_behind_it() {
    let ground = Ground::new();
    ground.admit(&id("web"), |_| {}).await;
    let mut app = ground.log(&id("web"), "app");
    app.lines(2500);
    let long = "x".repeat(300_000);
    for _ in 0..8 {
        app.line(Kind::Stdout, &long);
    }
    let responses = read(&ground, |_| {}).await;
    let all = all_told(&responses);
    assert_eq!(all.len(), 2508);
    for (place, response) in responses.iter().enumerate() {
        assert!(response.entries.len() <= ENTRIES_MAX);
        let texts = response.entries.iter().map(|it| match &it.content {
            Some(log_entry::Content::Line(line)) => line.text.len(),
            other => panic!("{other:?}"),
        });
        let texts: Vec<usize> = texts.collect();
        let (all, last) = (texts.iter().sum::<usize>(), texts.last().copied());
        assert!(all - last.unwrap_or(0) < TEXT_BYTES, "{all}");
        let full = texts.len() == ENTRIES_MAX || all >= TEXT_BYTES;
        assert!(full || place + 1 == responses.len(), "{all}");
        // Also by the next start of the manager.
        let cursor = response.cursor.clone();
        let rest = read(&ground.again(), |it| it.cursor = cursor).await;
        let expected = all_told(&responses[place + 1..]);
        assert_eq!(all_told(&rest), expected, "{place}");
    }
}

#[tokio::test]
async fn a_cursor_is_good_over_rotation_and_counts_what_is_dropped() {
    let ground = Ground::new();
    ground.admit(&id("web"), |_| {}).await;
    let mut app = ground.log(&id("web"), "app");
    app.lines(5);
    let cursor = read(&ground, |_| {}).await[0].cursor.clone();
    app.lines(2);
    app.rotate();
    app.lines(1);
    let resume = || {
        let cursor = cursor.clone();
        read(&ground, |it| it.cursor = cursor)
    };
    assert_eq!(all_told(&resume().await), numbered(5..8));
    app.drop_oldest();
    assert_eq!(all_told(&resume().await), ["app:DROPPED 2", "app:line 7"]);
}

#[tokio::test]
async fn a_follower_gets_each_line_until_the_sandbox_is_dead() {
    let ground = Ground::new();
    let generation = ground.admit(&id("web"), |_| {}).await;
    let mut app = ground.log(&id("web"), "app");
    app.lines(2);
    let mut stream = ask(&ground, |it| it.follow = true).await.unwrap();
    assert_eq!(all_told(&until_end(&mut stream).await), numbered(0..2));
    app.lines(1);
    app.rotate();
    app.lines(1);
    let mut got = vec![];
    while got.len() < 2 {
        got.extend(all_told(&until_end(&mut stream).await));
    }
    assert_eq!(got, numbered(2..4));
    // A log that begins later is read too.
    let mut system = ground.log(&id("web"), SYSTEM);
    system.line(Kind::System, "stopping");
    assert_eq!(all_told(&until_end(&mut stream).await), ["@:stopping"]);
    app.lines(1);
    app.half(9);
    ground.bury(&id("web"), generation).await;
    let rest = within("the end of the stream", stream.collect::<Vec<_>>()).await;
    let rest: Vec<_> = rest.into_iter().map(Result::unwrap).collect();
    assert_eq!(all_told(&rest), ["app:line 4", "app:DAMAGE 0"]);
    assert!(rest.last().unwrap().at_end);
}

#[tokio::test]
async fn a_follower_ends_when_the_sandbox_is_gone_or_another_one_has_its_id() {
    let ground = Ground::new();
    let web = id("web");
    for replaced in [false, true] {
        let generation = ground.admit(&web, |_| {}).await;
        ground.log(&web, "app").lines(1);
        let mut stream = ask(&ground, |it| it.follow = true).await.unwrap();
        until_end(&mut stream).await;
        let removed = ground.store.remove(&web, generation, SystemTime::now());
        assert!(removed.await.unwrap());
        if replaced {
            ground.admit(&web, |_| {}).await;
        }
        let rest = within("the end of the stream", stream.collect::<Vec<_>>()).await;
        assert!(rest.iter().all(Result::is_ok), "{rest:?}");
    }
}

#[tokio::test]
async fn a_follower_of_a_dead_sandbox_reads_its_log_and_ends() {
    let ground = Ground::new();
    let generation = ground.admit(&id("web"), |_| {}).await;
    ground.log(&id("web"), "app").lines(3);
    ground.bury(&id("web"), generation).await;
    let responses = read(&ground, |it| it.follow = true).await;
    assert_eq!(all_told(&responses), numbered(0..3));
}

#[tokio::test]
async fn a_manager_that_stops_tells_its_followers_and_waits_for_none() {
    let ground = Ground::new();
    ground.admit(&id("web"), |_| {}).await;
    ground.log(&id("web"), "app").lines(3);
    let mut stream = ask(&ground, |it| it.follow = true).await.unwrap();
    let cursor = until_end(&mut stream).await.pop().unwrap().cursor;
    ground.stop.cancel();
    let status = within("an answer", stream.next())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        status.get_error_details().error_info().unwrap().reason,
        "SHUTTING_DOWN"
    );
    within("the tasks to rest", ground.registry.finish()).await;
    let next = ground.again();
    ground.admit(&id("web"), |_| {}).await;
    let mut stream = ask(&next, |it| {
        it.follow = true;
        it.cursor = cursor;
    })
    .await
    .unwrap();
    assert_eq!(all_told(&until_end(&mut stream).await), numbered(0..0));
}

#[tokio::test]
async fn many_followers_share_one_look_and_leave_nothing_behind() {
    let ground = Ground::new();
    ground.admit(&id("web"), |_| {}).await;
    let mut app = ground.log(&id("web"), "app");
    let mut streams = vec![];
    for _ in 0..50 {
        let mut stream = ask(&ground, |it| it.follow = true).await.unwrap();
        until_end(&mut stream).await;
        streams.push(stream);
    }
    app.lines(20);
    for stream in &mut streams {
        let mut got = vec![];
        while got.len() < 20 {
            got.extend(all_told(&until_end(stream).await));
        }
        assert_eq!(got, numbered(0..20));
    }
    assert_eq!(ground.readers.beating(), 1);
    drop(streams);
    let quiet = async {
        while ground.readers.beating() > 0 {
            tokio::task::yield_now().await;
        }
    };
    within("the last look", quiet).await;
    let places = (0..100).map(|_| ground.readers.enter(&id("web")));
    assert!(places.collect::<Result<Vec<_>, _>>().is_ok());
}

#[tokio::test]
#[rustfmt::skip]
async fn each_bad_request_is_refused_by_its_field() {
    type Break = fn(&mut StreamLogsRequest);
    let ground = Ground::new();
    ground.admit(&id("web"), |_| {}).await;
    ground.admit(&id("other"), |_| {}).await;
    ground.log(&id("other"), "app").lines(1);
    let foreign = read(&ground, |it| it.id = "other".into()).await[0].cursor.clone();
    let cases: &[(&str, Break)] = &[
        ("id",         |it| it.id = "A b".into()),
        ("streams[1]", |it| it.streams = vec![1, 9]),
        ("streams[0]", |it| it.streams = vec![0]),
        ("tail_lines", |it| it.tail_lines = Some(100_001)),
        ("since",      |it| it.since = Some(prost_types::Timestamp { seconds: -1, nanos: 0 })),
        ("since",      |it| it.since = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 })),
        ("cursor",     |it| it.cursor = "zz".into()),
        ("cursor",     |it| { it.cursor = "00".into(); it.tail_lines = Some(1) }),
    ];
    let field = |status: Status| {
        assert_eq!(status.code(), Code::InvalidArgument);
        status.get_error_details().bad_request().unwrap().field_violations[0].field.clone()
    };
    for (expected, change) in cases {
        let refused = ask(&ground, change).await.err().unwrap();
        assert_eq!(field(refused), *expected);
    }
    drop(ask(&ground, |it| it.tail_lines = Some(TAIL_MAX)).await.unwrap());
    let refused = ask(&ground, |it| it.cursor = foreign).await.err().unwrap();
    assert_eq!(field(refused), "cursor", "of another sandbox");
    let cursor = |name: usize| {
        let position = Position { log: 1, next: 1 };
        Cursor([("x".repeat(name), position)].into()).to_text("web")
    };
    let longest = (TEXT_MAX - cursor(0).len()) / 2;
    assert_eq!(cursor(longest).len(), TEXT_MAX);
    drop(ask(&ground, |it| it.cursor = cursor(longest)).await.unwrap());
    let refused = ask(&ground, |it| it.cursor = cursor(longest + 1)).await.err().unwrap();
    assert_eq!(field(refused), "cursor", "of this sandbox, and too long");
    let reason = |status: Status| status.get_error_details().error_info().unwrap().reason.clone();
    let none = ask(&ground, |it| it.id = "none".into()).await.err().unwrap();
    assert_eq!(reason(none), "SANDBOX_NOT_FOUND");
    let none = ask(&ground, |it| it.containers = vec!["db".into()]).await.err().unwrap();
    assert_eq!(reason(none), "CONTAINER_NOT_FOUND");
}

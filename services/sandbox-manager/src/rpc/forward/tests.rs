//! Connections through channels, to the app of the fake node that says what it hears.

use futures::StreamExt as _;

use super::*;
use crate::rpc::access::ground::{Ground, app, reason, web, within};

type Message = Result<v1::PortForwardRequest, Status>;

fn message(part: Request) -> Message {
    Ok(v1::PortForwardRequest { part: Some(part) })
}

fn start(id: &str, port: u32) -> Request {
    Request::Start(v1::PortForwardStart {
        id: id.into(),
        port,
        expected_generation: 0,
    })
}

fn data(text: &str) -> Message {
    message(Request::Data(text.into()))
}

async fn open(
    ground: &Ground,
    first: Message,
) -> Result<(mpsc::Sender<Message>, ReceiverStream<Answer>), Status> {
    let (sender, messages) = mpsc::channel(4);
    sender.send(first).await.unwrap();
    let connections = Streams::connections();
    let messages = ReceiverStream::new(messages);
    let opened = port_forward(&ground.registry, &connections, messages);
    Ok((sender, within("an answer", opened).await?))
}

async fn part(answers: &mut ReceiverStream<Answer>) -> Result<Response, Status> {
    let answer = within("a message", answers.next()).await;
    answer.expect("it goes on").map(|it| it.part.unwrap())
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_side_ends_for_itself() {
    let ground = Ground::new().await;
    let (sender, mut answers) = open(&ground, message(start("web", 8080))).await.unwrap();
    let connected = Response::Connected(v1::PortForwardConnected {});
    assert_eq!(part(&mut answers).await.unwrap(), connected);
    for text in ["hello", "again"] {
        sender.send(data(text)).await.unwrap();
        assert_eq!(
            part(&mut answers).await.unwrap(),
            Response::Data(text.into())
        );
    }
    let end = message(Request::End(v1::EndOfData {}));
    sender.send(end).await.unwrap();
    // The app has heard the end, says so, and that is the end of the call.
    assert_eq!(
        part(&mut answers).await.unwrap(),
        Response::End(v1::EndOfData {})
    );
    assert!(within("the end", answers.next()).await.is_none());
}

#[tokio::test]
#[rustfmt::skip]
async fn what_leads_nowhere_is_refused_by_reason() {
    let ground = Ground::new().await;
    let other = Request::Start(v1::PortForwardStart { id: "web".into(), port: 8080, expected_generation: 99 });
    let cases = [
        (data("x"),                                          "INVALID_FIELD"),
        (message(Request::End(v1::EndOfData {})),            "INVALID_FIELD"),
        (Ok(v1::PortForwardRequest { part: None }),          "INVALID_FIELD"),
        (message(start("Web", 8080)),                        "INVALID_FIELD"),
        (message(start("web", 0)),                           "INVALID_FIELD"),
        (message(start("web", 65536)),                       "INVALID_FIELD"),
        (message(start("none", 8080)),                       "SANDBOX_NOT_FOUND"),
        (message(other),                                     "GENERATION_CONFLICT"),
        (message(start("web", 8081)),                        "PORT_UNREACHABLE"),
    ];
    for (first, expected) in cases {
        let case = format!("{first:?}");
        let status = open(&ground, first).await.unwrap_err();
        assert_eq!(reason(&status), expected, "{case}: {status}");
    }
    for (second, told) in [
        (message(start("web", 8080)), "start must come once"),
        (data(""), "data has 0 bytes"),
        (data(&"x".repeat((1 << 20) + 1)), "data has 1048577 bytes"),
        (Ok(v1::PortForwardRequest { part: None }), "part must be set"),
    ] {
        let (sender, mut answers) = open(&ground, message(start("web", 8080))).await.unwrap();
        part(&mut answers).await.unwrap();
        sender.send(second).await.unwrap();
        let status = part(&mut answers).await.unwrap_err();
        assert_eq!(reason(&status), "INVALID_FIELD");
        assert!(status.message().starts_with(told), "{status}");
    }
}

#[tokio::test]
async fn a_connection_ends_with_its_sandbox_and_holds_up_no_stop() {
    let ground = Ground::new().await;
    let (_sender, mut answers) = open(&ground, message(start("web", 8080))).await.unwrap();
    part(&mut answers).await.unwrap();
    ground.node.exit(&web(), &app(), 0);
    let status = part(&mut answers).await.unwrap_err();
    assert_eq!(reason(&status), "SANDBOX_ENDING");
    assert!(within("the end", answers.next()).await.is_none());
    let again = open(&ground, message(start("web", 8080)))
        .await
        .unwrap_err();
    assert_eq!(reason(&again), "SANDBOX_ENDING");

    let ground = Ground::new().await;
    let (_sender, mut answers) = open(&ground, message(start("web", 8080))).await.unwrap();
    part(&mut answers).await.unwrap();
    ground.stop.cancel();
    within("the end of all tasks", ground.registry.finish()).await;
    let status = part(&mut answers).await.unwrap_err();
    assert_eq!(reason(&status), "SHUTTING_DOWN");
}

#[tokio::test]
async fn a_caller_who_goes_away_makes_room() {
    let ground = Ground::new().await;
    let connections = Streams::connections();
    for _ in 0..300 {
        let opened = async {
            loop {
                let first = tokio_stream::iter([message(start("web", 8080))]);
                let messages = first.chain(tokio_stream::pending());
                match port_forward(&ground.registry, &connections, messages).await {
                    Err(status) => assert_eq!(reason(&status), "STREAMS_EXHAUSTED"),
                    opened => return opened,
                }
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        drop(within("room", opened).await.unwrap());
    }
}

//! Copies through a channel in place of a connection, onto the fake node.

use std::fs;
use std::io::Read as _;

use futures::StreamExt as _;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::rpc::access::{
    self,
    ground::{Ground, app, reason, web, within},
};

fn start(id: &str, path: &str) -> v1::CopyToStart {
    v1::CopyToStart {
        id: id.into(),
        path: path.into(),
        ..v1::CopyToStart::default()
    }
}

fn message(part: ToPart) -> Result<v1::CopyToRequest, Status> {
    Ok(v1::CopyToRequest { part: Some(part) })
}

fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(vec![]);
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

async fn send(
    ground: &Ground,
    messages: Vec<Result<v1::CopyToRequest, Status>>,
) -> Result<v1::CopyToResponse, Status> {
    let copies = Streams::copies();
    let copied = copy_to(&ground.registry, &copies, tokio_stream::iter(messages));
    within("an answer", copied).await
}

fn left(ground: &Ground) -> Vec<String> {
    let entries = fs::read_dir(ground.root.path()).unwrap();
    let names = entries.map(|it| it.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[tokio::test]
async fn a_file_goes_in_and_comes_out_again() {
    let ground = Ground::new().await;
    let content: Vec<u8> = (0..3_000_000_u32).map(|it| (it % 251) as u8).collect();
    let tar = archive("data", &content);
    let mut messages = vec![message(ToPart::Start(start("web", "/")))];
    messages.extend(
        tar.chunks(CHUNK_SENT)
            .map(|it| message(ToPart::Chunk(it.to_vec()))),
    );
    let copied = send(&ground, messages).await.unwrap();
    assert_eq!((copied.files, copied.bytes), (1, content.len() as u64));
    assert!(fs::read(ground.root.path().join("data")).unwrap() == content);

    let request = v1::CopyFromRequest {
        id: "web".into(),
        container: "app".into(),
        path: "/data".into(),
        ..v1::CopyFromRequest::default()
    };
    let copies = Streams::copies();
    let parts = copy_from(&ground.registry, &copies, request).await.unwrap();
    let parts: Vec<_> = within("the archive", parts.collect()).await;
    let (mut bytes, mut done) = (vec![], None);
    for part in parts {
        match part.unwrap().part.unwrap() {
            FromPart::Chunk(chunk) => {
                assert!(chunk.len() <= CHUNK_SENT && done.is_none());
                bytes.extend(chunk);
            }
            FromPart::Done(it) => done = Some(it),
        }
    }
    assert_eq!(done.unwrap().bytes, content.len() as u64);
    let mut entries = tar::Archive::new(bytes.as_slice());
    let mut entry = entries.entries().unwrap().next().unwrap().unwrap();
    let mut read = vec![];
    entry.read_to_end(&mut read).unwrap();
    assert!(read == content);
}

#[tokio::test]
#[rustfmt::skip]
async fn what_is_no_copy_is_refused_by_reason_and_leaves_nothing() {
    let ground = Ground::new().await;
    fs::create_dir(ground.root.path().join("dir")).unwrap();
    let tar = archive("file", &[7; 2000]);
    let chunk = |bytes: &[u8]| message(ToPart::Chunk(bytes.to_vec()));
    let begin = |start: v1::CopyToStart| message(ToPart::Start(start));
    let web = || begin(start("web", "/"));
    let with = |change: &dyn Fn(&mut v1::CopyToStart)| {
        let mut it = start("web", "/");
        change(&mut it);
        begin(it)
    };
    let cases: Vec<(Vec<Result<v1::CopyToRequest, Status>>, &str)> = vec![
        (vec![],                                                  "INVALID_FIELD"),
        (vec![chunk(&tar)],                                       "INVALID_FIELD"),
        (vec![Ok(v1::CopyToRequest { part: None })],              "INVALID_FIELD"),
        (vec![web(), web()],                                      "INVALID_FIELD"),
        (vec![web(), Ok(v1::CopyToRequest { part: None })],       "INVALID_FIELD"),
        (vec![web(), chunk(&tar[..700]), chunk(&[])],             "INVALID_FIELD"),
        (vec![web(), chunk(&vec![0; (1 << 20) + 1])],             "INVALID_FIELD"),
        (vec![web(), chunk(&tar[..700]), Err(Status::out_of_range("too large"))], "INVALID_FIELD"),
        (vec![begin(start("Web", "/"))],                          "INVALID_FIELD"),
        (vec![begin(start("web", ""))],                           "INVALID_FIELD"),
        (vec![begin(start("web", "a\0b"))],                       "INVALID_FIELD"),
        (vec![begin(start("web", &"x".repeat(4097)))],            "INVALID_FIELD"),
        (vec![with(&|it| it.target = 9)],                         "INVALID_FIELD"),
        (vec![begin(start("none", "/"))],                         "SANDBOX_NOT_FOUND"),
        (vec![with(&|it| it.container = "other".into())],         "CONTAINER_NOT_FOUND"),
        (vec![with(&|it| it.expected_generation = 99)],           "GENERATION_CONFLICT"),
        (vec![begin(start("web", "/nowhere")), chunk(&tar)],      "PATH_NOT_FOUND"),
        (vec![begin(start("web", "/dir/../dir/x/y")), chunk(&tar)], "PATH_NOT_FOUND"),
        (vec![web(), chunk(b"this is no archive of any kind")],   "TAR_INVALID"),
        (vec![web(), chunk(&tar[..1000])],                        "TAR_INVALID"),
        (vec![web(), chunk(&archive("dir", b"x"))],               "PATH_REFUSED"),
    ];
    for (number, (messages, expected)) in cases.into_iter().enumerate() {
        let status = send(&ground, messages).await.unwrap_err();
        assert_eq!(reason(&status), expected, "{number}: {status}");
        assert_eq!(left(&ground), ["dir"], "{number}");
    }
    let gone = vec![web(), chunk(&tar[..1000]), Err(Status::aborted("gone"))];
    assert_eq!(send(&ground, gone).await.unwrap_err().code(), Code::Aborted);
    assert_eq!(left(&ground), ["dir"]);
    // A header before it and two empty blocks behind it.
    let largest = archive("large", &vec![7; access::CHUNK_MAX - 3 * 512]);
    assert_eq!(largest.len(), access::CHUNK_MAX);
    send(&ground, vec![web(), chunk(&largest)]).await.unwrap();
    assert_eq!(left(&ground), ["dir", "large"]);
}

/// A copy that has begun and whose caller says no more.
async fn stalled(ground: &Ground) -> impl Future<Output = Result<v1::CopyToResponse, Status>> {
    let tar = archive("file", &[7; 2000]);
    let begun = vec![
        message(ToPart::Start(start("web", "/"))),
        message(ToPart::Chunk(tar[..1000].to_vec())),
    ];
    let messages = tokio_stream::iter(begun).chain(tokio_stream::pending());
    let registry = ground.registry.clone();
    let mut copy = Box::pin(async move { copy_to(&registry, &Streams::copies(), messages).await });
    let half_there = async {
        while !left(ground).iter().any(|it| it.starts_with(".berth-copy")) {
            let soon = Duration::from_millis(2);
            assert!(tokio::time::timeout(soon, &mut copy).await.is_err());
        }
    };
    within("the half of a file", half_there).await;
    copy
}

#[tokio::test]
async fn a_copy_ends_with_its_container_with_the_manager_and_with_its_caller() {
    let ground = Ground::new().await;
    let copy = stalled(&ground).await;
    ground.node.exit(&web(), &app(), 0);
    let status = within("the end", copy).await.unwrap_err();
    assert_eq!(reason(&status), "CONTAINER_NOT_RUNNING");
    assert_eq!(left(&ground), Vec::<String>::new());

    let ground = Ground::new().await;
    let copy = stalled(&ground).await;
    ground.stop.cancel();
    let status = within("the end", copy).await.unwrap_err();
    assert_eq!(reason(&status), "SHUTTING_DOWN");
    assert_eq!(left(&ground), Vec::<String>::new());

    let ground = Ground::new().await;
    drop(stalled(&ground).await);
    let tidy = async {
        while !left(&ground).is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    within("the end of the half of a file", tidy).await;
}

#[tokio::test]
async fn what_is_copied_out_ends_with_its_container_and_says_why_it_failed() {
    let ground = Ground::new().await;
    let big = fs::File::create(ground.root.path().join("big")).unwrap();
    big.set_len(64 << 20).unwrap();
    let request = |path: &str| v1::CopyFromRequest {
        id: "web".into(),
        path: path.into(),
        ..v1::CopyFromRequest::default()
    };
    let copies = Streams::copies();
    let parts = copy_from(&ground.registry, &copies, request("big")).await;
    let mut parts = Box::pin(parts.unwrap());
    within("a chunk", parts.next()).await.unwrap().unwrap();
    ground.node.exit(&web(), &app(), 0);
    let ended = async {
        loop {
            if let Err(status) = parts.next().await.expect("it is not whole") {
                return status;
            }
        }
    };
    let status = within("the end", ended).await;
    assert_eq!(reason(&status), "CONTAINER_NOT_RUNNING");
    assert!(parts.next().await.is_none());

    let ground = Ground::new().await;
    let parts = copy_from(&ground.registry, &copies, request("/none")).await;
    let parts: Vec<_> = within("an answer", parts.unwrap().collect()).await;
    assert_eq!(reason(parts[0].as_ref().unwrap_err()), "PATH_NOT_FOUND");
    // Whatever became of them, none is counted any more.
    drop(parts);
    let free = async {
        loop {
            let open: Vec<_> = (0..4).map(|_| copies.enter(&web())).collect();
            if open.iter().all(Result::is_ok) {
                return;
            }
            drop(open);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    within("room", free).await;
}

#[test]
fn a_path_of_a_copy_is_as_long_as_the_kernels() {
    assert!(path_of("start.path", &"x".repeat(PATH_MAX)).is_ok());
    let refused = path_of("start.path", &"x".repeat(PATH_MAX + 1)).unwrap_err();
    let details = refused.get_error_details();
    let violations = &details.bad_request().unwrap().field_violations;
    assert_eq!(violations[0].field, "start.path");
    assert_eq!(details.error_info().unwrap().reason, "INVALID_FIELD");
}

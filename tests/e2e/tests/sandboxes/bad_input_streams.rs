//! Streams that begin or go on wrong: told by field and by reason, at once, and the manager serves on.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_api::v1::{
    self, copy_to_request::Part as Copied, port_forward_request::Part as Forwarded,
    port_forward_response::Part as Answered,
};
use berth_e2e::{
    TestNode,
    specs::{idle, shell, spec},
};
use tonic::Status;
use tonic_types::StatusExt as _;

const AT_ONCE: Duration = Duration::from_secs(10);

fn reason_and_field(status: &Status) -> (String, String) {
    let details = status.get_error_details();
    let info = details.error_info();
    let reason = info.map(|it| it.reason.clone()).unwrap_or_default();
    let violations = details.bad_request().map(|it| it.field_violations.clone());
    let field = violations.unwrap_or_default().into_iter().next();
    (reason, field.map(|it| it.field).unwrap_or_default())
}

fn expect(case: &str, told: &Status, reason: &str, field: &str) -> anyhow::Result<()> {
    let seen = reason_and_field(told);
    ensure!(
        seen == (reason.to_owned(), field.to_owned()),
        "{case}: {seen:?} {told}"
    );
    Ok(())
}

#[tokio::test]
async fn copies_that_begin_or_go_on_wrong_are_refused_by_field() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("box", idle()).await?;
    let pair = spec([
        shell("a", "exec sleep 3600", &[]),
        shell("b", "exec sleep 3600", &[]),
    ]);
    node.create("pair", pair).await?;
    let start = |id: &str, path: &str| {
        Some(Copied::Start(v1::CopyToStart {
            id: id.into(),
            path: path.into(),
            ..v1::CopyToStart::default()
        }))
    };
    let chunk = |bytes: usize| Some(Copied::Chunk(vec![0x41; bytes]));
    let good = || start("box", "/");
    let cases: Vec<(Vec<Option<Copied>>, &str, &str)> = vec![
        (vec![], "INVALID_FIELD", "start"),
        (vec![None], "INVALID_FIELD", "start"),
        (vec![chunk(512)], "INVALID_FIELD", "start"),
        (vec![good(), good()], "INVALID_FIELD", "start"),
        (vec![good(), None], "INVALID_FIELD", "part"),
        (vec![good(), chunk(0)], "INVALID_FIELD", "chunk"),
        (vec![good(), chunk((1 << 20) + 1)], "INVALID_FIELD", "chunk"),
        // More than a message can have.
        (vec![good(), chunk(5 << 20)], "INVALID_FIELD", "chunk"),
        (vec![start("", "/")], "INVALID_FIELD", "start.id"),
        (vec![start("box", "")], "INVALID_FIELD", "start.path"),
        (vec![start("pair", "/")], "INVALID_FIELD", "start.container"),
        (vec![start("none", "/")], "SANDBOX_NOT_FOUND", ""),
        (vec![good(), chunk(512)], "TAR_INVALID", ""),
        (vec![good()], "TAR_INVALID", ""),
    ];
    for (number, (parts, reason, field)) in cases.into_iter().enumerate() {
        let messages: Vec<_> = parts
            .into_iter()
            .map(|part| v1::CopyToRequest { part })
            .collect();
        let mut client = node.sandboxes();
        let call = client.copy_to(tokio_stream::iter(messages));
        let told = tokio::time::timeout(AT_ONCE, call)
            .await
            .context(format!("case {number}"))?;
        let told = told
            .err()
            .context(format!("case {number} is not refused"))?;
        expect(&format!("case {number}"), &told, reason, field)?;
    }
    for (request, reason, field) in [
        (v1::CopyFromRequest::default(), "INVALID_FIELD", "id"),
        (
            v1::CopyFromRequest {
                id: "box".into(),
                ..Default::default()
            },
            "INVALID_FIELD",
            "path",
        ),
        (
            v1::CopyFromRequest {
                id: "none".into(),
                path: "/".into(),
                ..Default::default()
            },
            "SANDBOX_NOT_FOUND",
            "",
        ),
        (
            v1::CopyFromRequest {
                id: "pair".into(),
                path: "/".into(),
                ..Default::default()
            },
            "INVALID_FIELD",
            "container",
        ),
    ] {
        let case = format!("{request:?}");
        let told = node
            .sandboxes()
            .copy_from(request)
            .await
            .err()
            .context(case.clone())?;
        expect(&case, &told, reason, field)?;
    }
    node.berth(&[
        "cp",
        "box:/etc/passwd",
        &node.home().join("p").to_string_lossy(),
    ])?;
    node.assert_clean().await?;
    node.delete("box").await?;
    node.delete("pair").await?;
    node.finish()
}

#[tokio::test]
async fn connections_that_begin_or_go_on_wrong_are_refused_by_field() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create(
        "echo",
        spec([shell("app", "exec nc -ll -p 9000 -e cat", &[9000])]),
    )
    .await?;
    let start = |id: &str, port: u32| {
        Some(Forwarded::Start(v1::PortForwardStart {
            id: id.into(),
            port,
            expected_generation: 0,
        }))
    };
    let data = |bytes: usize| Some(Forwarded::Data(vec![7; bytes]));
    let good = || start("echo", 9000);
    let cases: Vec<(Vec<Option<Forwarded>>, &str, &str)> = vec![
        (vec![], "INVALID_FIELD", "start"),
        (vec![None], "INVALID_FIELD", "start"),
        (vec![data(1)], "INVALID_FIELD", "start"),
        (
            vec![Some(Forwarded::End(v1::EndOfData {}))],
            "INVALID_FIELD",
            "start",
        ),
        (vec![good(), good()], "INVALID_FIELD", "start"),
        (vec![good(), None], "INVALID_FIELD", "part"),
        (vec![good(), data(0)], "INVALID_FIELD", "data"),
        (vec![good(), data((1 << 20) + 1)], "INVALID_FIELD", "data"),
        (vec![good(), data(5 << 20)], "INVALID_FIELD", "data"),
        (vec![start("Echo", 9000)], "INVALID_FIELD", "start.id"),
        (vec![start("echo", 0)], "INVALID_FIELD", "start.port"),
        (vec![start("echo", 70_000)], "INVALID_FIELD", "start.port"),
        (vec![start("none", 9000)], "SANDBOX_NOT_FOUND", ""),
        (vec![start("echo", 9001)], "PORT_UNREACHABLE", ""),
    ];
    for (number, (parts, reason, field)) in cases.into_iter().enumerate() {
        let messages: Vec<_> = parts
            .into_iter()
            .map(|part| v1::PortForwardRequest { part })
            .collect();
        let mut client = node.sandboxes();
        let told = async {
            let mut answers = client
                .port_forward(tokio_stream::iter(messages))
                .await?
                .into_inner();
            while answers.message().await?.is_some() {}
            Ok::<_, Status>(())
        };
        let told = tokio::time::timeout(AT_ONCE, told)
            .await
            .context(format!("case {number}"))?;
        let told = told
            .err()
            .context(format!("case {number} is not refused"))?;
        expect(&format!("case {number}"), &told, reason, field)?;
    }
    let most = [
        good(),
        data(1 << 20),
        Some(Forwarded::End(v1::EndOfData {})),
    ];
    let most = most.map(|part| v1::PortForwardRequest { part });
    let echoed = async {
        let mut client = node.sandboxes();
        let call = client.port_forward(tokio_stream::iter(most)).await?;
        let (mut answers, mut bytes) = (call.into_inner(), 0);
        while let Some(answer) = answers.message().await? {
            if let Some(Answered::Data(data)) = answer.part {
                bytes += data.len();
            }
        }
        Ok::<_, Status>(bytes)
    };
    let echoed = tokio::time::timeout(AT_ONCE, echoed).await??;
    ensure!(echoed == 1 << 20, "{echoed} bytes came back");
    node.assert_clean().await?;
    node.delete("echo").await?;
    node.finish()
}

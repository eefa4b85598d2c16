//! What a caller gets wrong: told by field, and nothing is left of it.

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, ConfigFile, CreateRequest, Port, Route, SandboxSpec};
use berth_e2e::{
    TestNode,
    specs::{idle, limits, shell, spec},
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

fn with_web(change: impl FnOnce(&mut v1::Container)) -> SandboxSpec {
    let mut container = shell("web", "exec sleep 3600", &[]);
    change(&mut container);
    spec([container])
}

fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|it| it.field_violations.clone());
    violations
        .unwrap_or_default()
        .into_iter()
        .map(|it| it.field)
        .collect()
}

#[tokio::test]
async fn bad_requests_are_refused_by_field_and_leave_nothing() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let port = |port| Port {
        port,
        ..Port::default()
    };
    let long = "x".repeat(41);
    let ids = [
        "",
        long.as_str(),
        "a--b",
        "a/../b",
        "A",
        "a\0b",
        "a\nb",
        "sandbox/",
        "-a",
    ];
    let mut cases: Vec<(String, SandboxSpec, &str)> = ids
        .iter()
        .map(|id| ((*id).to_owned(), idle(), "id"))
        .collect();
    let specs: Vec<(SandboxSpec, &str)> = vec![
        (
            spec([shell("a", "true", &[]), shell("a", "true", &[])]),
            "spec.containers[1].name",
        ),
        (spec([]), "spec.containers"),
        (
            with_web(|it| it.env = vec!["NOVALUE".into()]),
            "spec.containers[0].env[0]",
        ),
        (
            with_web(|it| it.ports = vec![port(0)]),
            "spec.containers[0].ports[0].port",
        ),
        (
            with_web(|it| it.ports = vec![port(65536)]),
            "spec.containers[0].ports[0].port",
        ),
        (
            with_web(|it| it.ports = vec![port(80), port(80)]),
            "spec.containers[0].ports[1].port",
        ),
        (
            with_web(|it| {
                let mode = "0999".into();
                it.config_files = vec![ConfigFile {
                    path: "/a".into(),
                    data: vec![],
                    mode,
                }];
            }),
            "spec.containers[0].config_files[0].mode",
        ),
        (
            SandboxSpec {
                routes: vec![Route {
                    destination: "10.0.0.0/40".into(),
                    gateway: String::new(),
                }],
                ..idle()
            },
            "spec.routes[0].destination",
        ),
        (
            SandboxSpec {
                routes: vec![Route {
                    destination: "10.0.0.0/8".into(),
                    gateway: "192.0.2.1".into(),
                }],
                ..idle()
            },
            "spec.routes[0].gateway",
        ),
        (
            SandboxSpec {
                resources: Some(limits(500, 64 << 20, 0)),
                ..with_web(|it| it.resources = Some(limits(501, 64 << 20, 0)))
            },
            "spec.containers[0].resources.cpu_millis",
        ),
    ];
    cases.extend(
        specs
            .into_iter()
            .map(|(spec, field)| ("web".to_owned(), spec, field)),
    );
    for (id, spec, field) in cases {
        let request = CreateRequest {
            id: id.clone(),
            spec: Some(spec),
            ..CreateRequest::default()
        };
        let status = node.sandboxes().create(request).await.err();
        let status = status.with_context(|| format!("{id:?} must be refused for {field}"))?;
        ensure!(status.code() == Code::InvalidArgument, "{id:?}: {status}");
        ensure!(
            fields(&status) == [field],
            "{id:?}: {:?}, not {field}",
            fields(&status)
        );
    }

    let big = with_web(|it| it.args = vec!["x".repeat(100 << 10); 3]);
    let big = with_web(|it| {
        it.command.clear();
        it.args.clone_from(&big.containers[0].args);
    });
    let status = node
        .create("web", big)
        .await
        .err()
        .context("over the limit")?;
    ensure!(status.message().contains("262144"), "{status}");

    let list = v1::ListRequest {
        statuses: vec![99],
        ..v1::ListRequest::default()
    };
    let status = node
        .sandboxes()
        .list(list)
        .await
        .err()
        .context("no such status")?;
    ensure!(fields(&status) == ["statuses[0]"], "{status}");
    for token in ["nonsense", "0000000000000000.web"] {
        let list = v1::ListRequest {
            page_token: token.into(),
            ..v1::ListRequest::default()
        };
        let status = node
            .sandboxes()
            .list(list)
            .await
            .err()
            .context("a foreign token")?;
        ensure!(fields(&status) == ["page_token"], "{status}");
    }

    let all = v1::ListRequest {
        statuses: (1..=5).collect(),
        ..v1::ListRequest::default()
    };
    let listed = node.sandboxes().list(all).await?.into_inner();
    ensure!(listed.sandboxes.is_empty(), "no record was made");
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    node.finish()
}

#[tokio::test]
async fn a_manager_does_not_start_with_a_key_that_it_does_not_know() -> anyhow::Result<()> {
    let refused = TestNode::start_with("network.colour = \"blue\"\n", &[]).await;
    let error = format!("{:#}", refused.err().context("it must not start")?);
    ensure!(error.contains("colour"), "{error}");
    Ok(())
}

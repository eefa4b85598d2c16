//! The calls of the contract, one by one, against a real manager.

use std::{collections::HashMap, fmt::Debug, time::Duration};

use anyhow::{Context as _, ensure};
use berth_api::v1::{
    self, CreateRequest, DeleteRequest, ListRequest, PortStatus, SandboxStatus,
    SetPortStatusRequest, StopRequest, WaitFor, pull_image_response::Event,
};
use berth_e2e::{
    TestNode,
    images::{self, ImageParts},
    node::eventually,
    registry::Registry,
    specs::{idle, millis, shell, spec, web},
};
use serde_json::json;
use tonic::{Code, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

const SERVICES: [&str; 3] = [
    "berth.v1.ImageService",
    "berth.v1.NodeService",
    "berth.v1.SandboxService",
];

/// Fails unless the call was refused with this code and reason.
fn refused<T: Debug>(
    answer: Result<Response<T>, Status>,
    code: Code,
    reason: &str,
) -> anyhow::Result<HashMap<String, String>> {
    let status = match answer {
        Ok(it) => anyhow::bail!("it must be refused with {reason}: {:?}", it.get_ref()),
        Err(status) => status,
    };
    let details = status.get_error_details();
    let info = details.error_info().context("an error says why")?;
    ensure!(
        (status.code(), info.reason.as_str()) == (code, reason),
        "{status:?} is not {code:?} with {reason}"
    );
    Ok(info.metadata.clone())
}

async fn until_status(node: &TestNode, id: &str, status: SandboxStatus) -> anyhow::Result<()> {
    let reached = || async { node.get(id).await.is_ok_and(|it| it.status() == status) };
    let what = format!("{id} is {status:?}");
    eventually(&what, Duration::from_secs(20), reached).await
}

#[tokio::test]
async fn sandboxes_are_accepted_reported_listed_stopped_and_told_apart_by_generation()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    a_create_that_waits_for_acceptance_returns_before_it_runs(&node).await?;
    a_reported_port_makes_a_sandbox_running(&node).await?;
    a_stopped_sandbox_is_dead_and_only_its_record_is_left(&node).await?;
    another_generation_is_refused(&node).await?;
    a_list_shows_what_its_filter_asks_for(&node).await?;
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    node.finish()
}

async fn a_create_that_waits_for_acceptance_returns_before_it_runs(
    node: &TestNode,
) -> anyhow::Result<()> {
    // Nothing listens on its port until it is told to.
    let line = "mkdir -p /www; until test -e /www/go; do :; done; exec httpd -f -p 8080 -h /www";
    let request = CreateRequest {
        id: "slow".into(),
        spec: Some(spec([shell("app", line, &[8080])])),
        wait: WaitFor::Accepted.into(),
        ..CreateRequest::default()
    };
    let accepted = node.sandboxes().create(request.clone()).await?.into_inner();
    let accepted = accepted.sandbox.context("a sandbox")?;
    ensure!(accepted.status() == SandboxStatus::Pending, "{accepted:?}");
    ensure!(accepted.addresses.len() == 1, "its address is taken");
    let joined = node.sandboxes().create(request).await?.into_inner();
    let joined = joined.sandbox.context("a sandbox")?;
    ensure!(joined.generation == accepted.generation, "{joined:?}");

    let go = || async {
        let mut touch = node.command("ctr");
        touch.args(["tasks", "exec", "--exec-id", "go"]);
        touch.args(["sandbox.slow.app", "touch", "/www/go"]);
        touch.output().is_ok_and(|it| it.status.success())
    };
    eventually("the app is there", Duration::from_secs(20), go).await?;
    until_status(node, "slow", SandboxStatus::Running).await?;
    let running = node.get("slow").await?;
    ensure!(running.generation == accepted.generation, "{running:?}");
    ensure!(running.addresses == accepted.addresses, "{running:?}");
    ensure!(node.delete("slow").await?);
    Ok(())
}

async fn a_reported_port_makes_a_sandbox_running(node: &TestNode) -> anyhow::Result<()> {
    let request = CreateRequest {
        id: "told".into(),
        spec: Some(spec([shell("app", "exec sleep 3600", &[8080])])),
        wait: WaitFor::Accepted.into(),
        ..CreateRequest::default()
    };
    let accepted = node.sandboxes().create(request).await?.into_inner();
    let generation = accepted.sandbox.context("a sandbox")?.generation;
    let report = SetPortStatusRequest {
        container_id: "sandbox.told.app".into(),
        port: 8080,
        status: PortStatus::Bound.into(),
        address: "0.0.0.0".into(),
        source: "sidecar".into(),
        ..SetPortStatusRequest::default()
    };
    let set = async |report| node.sandboxes().set_port_status(report).await;
    let (gone, invalid) = (Code::NotFound, Code::InvalidArgument);
    let with = |change: fn(&mut SetPortStatusRequest)| {
        let mut changed = report.clone();
        change(&mut changed);
        changed
    };
    let unknown = with(|it| it.container_id = "sandbox.told.db".into());
    refused(set(unknown).await, gone, "CONTAINER_NOT_FOUND")?;
    let nobody = with(|it| it.container_id = "sandbox.nobody.app".into());
    refused(set(nobody).await, gone, "CONTAINER_NOT_FOUND")?;
    let foreign = with(|it| it.container_id = "told/app".into());
    refused(set(foreign).await, invalid, "INVALID_FIELD")?;
    let silent = with(|it| it.status = PortStatus::Unspecified.into());
    refused(set(silent).await, invalid, "INVALID_FIELD")?;
    let stale = with(|it| it.expected_generation = 1 << 40);
    refused(set(stale).await, Code::Aborted, "GENERATION_CONFLICT")?;
    // Being alive says nothing about the port.
    set(with(|it| it.status = PortStatus::Active.into())).await?;
    let pending = node.get("told").await?;
    ensure!(
        pending.status() == SandboxStatus::Pending && pending.ports.is_empty(),
        "{pending:?}"
    );

    let mut bound = report.clone();
    bound.expected_generation = generation;
    set(bound).await?;
    until_status(node, "told", SandboxStatus::Running).await?;
    let told = node.get("told").await?;
    let [port] = told.ports.as_slice() else {
        anyhow::bail!("one port, not {:?}", told.ports);
    };
    ensure!(
        (port.port, port.status(), port.source.as_str()) == (8080, PortStatus::Bound, "sidecar"),
        "{port:?}"
    );
    ensure!(node.delete("told").await?);
    Ok(())
}

async fn a_stopped_sandbox_is_dead_and_only_its_record_is_left(
    node: &TestNode,
) -> anyhow::Result<()> {
    let running = node.create("web", web("hello", 8080)).await?;
    let request = StopRequest {
        id: "web".into(),
        expected_generation: 0,
    };
    let stopped = node.sandboxes().stop(request.clone()).await?.into_inner();
    let dead = stopped.sandbox.context("a sandbox")?;
    ensure!(
        (dead.status(), dead.generation) == (SandboxStatus::Dead, running.generation),
        "{dead:?}"
    );
    ensure!(dead.reason == "STOP_REQUESTED", "{dead:?}");
    ensure!(dead.addresses.is_empty() && dead.exit.is_none(), "{dead:?}");
    ensure!(node.get("web").await? == dead, "the record stays");
    ensure!(
        node.home().join("log/web/web").exists(),
        "so does its output"
    );
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    let again = node.sandboxes().stop(request).await?.into_inner();
    ensure!(again.sandbox == Some(dead), "a Stop can be repeated");
    ensure!(node.delete("web").await?);
    let nobody = StopRequest {
        id: "web".into(),
        expected_generation: 0,
    };
    let answer = node.sandboxes().stop(nobody).await;
    refused(answer, Code::NotFound, "SANDBOX_NOT_FOUND")?;
    Ok(())
}

async fn another_generation_is_refused(node: &TestNode) -> anyhow::Result<()> {
    let own = node.create("web", web("hello", 8080)).await?.generation;
    let (id, other) = ("web".to_owned(), own + 1);
    let stop = StopRequest {
        id: id.clone(),
        expected_generation: other,
    };
    let delete = DeleteRequest {
        id: id.clone(),
        expected_generation: other,
    };
    let renew = v1::RenewRequest {
        id: id.clone(),
        time_to_live: millis(3_600_000),
        expected_generation: other,
        ..v1::RenewRequest::default()
    };
    let report = SetPortStatusRequest {
        container_id: "sandbox.web.web".to_owned(),
        port: 8080,
        status: PortStatus::Bound.into(),
        expected_generation: other,
        ..SetPortStatusRequest::default()
    };
    let create = CreateRequest {
        id: id.clone(),
        spec: Some(web("hello", 8080)),
        expected_generation: other,
        ..CreateRequest::default()
    };
    let stop = node.sandboxes().stop(stop).await;
    let delete = node.sandboxes().delete(delete).await;
    let renew = node.sandboxes().renew(renew).await;
    let report = node.sandboxes().set_port_status(report).await;
    let create = node.sandboxes().create(create).await;
    for metadata in [
        refused(create, Code::Aborted, "GENERATION_CONFLICT")?,
        refused(renew, Code::Aborted, "GENERATION_CONFLICT")?,
        refused(report, Code::Aborted, "GENERATION_CONFLICT")?,
        refused(stop, Code::Aborted, "GENERATION_CONFLICT")?,
        refused(delete, Code::Aborted, "GENERATION_CONFLICT")?,
    ] {
        let figure = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        ensure!(
            (figure("expected"), figure("actual")) == (other.to_string(), own.to_string()),
            "{metadata:?}"
        );
    }
    let standing = node.get("web").await?;
    ensure!(standing.status() == SandboxStatus::Running, "{standing:?}");
    ensure!(standing.expires_at.is_none(), "{standing:?}");
    let request = DeleteRequest {
        id,
        expected_generation: own,
    };
    ensure!(node.sandboxes().delete(request).await?.into_inner().existed);
    Ok(())
}

async fn a_list_shows_what_its_filter_asks_for(node: &TestNode) -> anyhow::Result<()> {
    let list = async |request: ListRequest| -> Result<(Vec<String>, String), Status> {
        let page = node.sandboxes().list(request).await?.into_inner();
        let ids = page.sandboxes.into_iter().map(|it| it.id).collect();
        Ok((ids, page.next_page_token))
    };
    let labelled = |team: &str, tier: &str| {
        let labels = [("team", team), ("tier", tier)];
        let mut spec = idle();
        spec.labels = labels.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
        spec
    };
    node.create("a", labelled("red", "1")).await?;
    node.create("b", labelled("red", "2")).await?;
    node.create("c", labelled("blue", "1")).await?;
    let request = StopRequest {
        id: "b".into(),
        expected_generation: 0,
    };
    node.sandboxes().stop(request).await?;

    let by = |statuses: &[SandboxStatus], labels: &[(&str, &str)]| ListRequest {
        statuses: statuses.iter().map(|&it| it.into()).collect(),
        labels: labels
            .iter()
            .map(|&(a, b)| (a.to_owned(), b.to_owned()))
            .collect(),
        ..ListRequest::default()
    };
    use SandboxStatus::{Dead, Pending, Running};
    let cases: [(ListRequest, &[&str]); 8] = [
        (by(&[], &[]), &["a", "c"]),
        (by(&[Dead], &[]), &["b"]),
        (by(&[Dead, Running], &[]), &["a", "b", "c"]),
        (by(&[Pending], &[]), &[]),
        (by(&[], &[("team", "red")]), &["a"]),
        (by(&[Dead, Running], &[("team", "red")]), &["a", "b"]),
        (by(&[], &[("team", "blue"), ("tier", "1")]), &["c"]),
        (by(&[], &[("team", "blue"), ("tier", "2")]), &[]),
    ];
    for (request, expected) in cases {
        let (ids, token) = list(request.clone()).await?;
        ensure!(ids == expected, "{request:?} shows {ids:?}");
        ensure!(token.is_empty(), "{request:?} is one page");
    }

    let first = ListRequest {
        page_size: 1,
        ..by(&[Dead, Running], &[("team", "red")])
    };
    let (ids, token) = list(first.clone()).await?;
    ensure!(ids == ["a"] && !token.is_empty(), "{ids:?}");
    let with_token = |request: ListRequest| ListRequest {
        page_token: token.clone(),
        ..request
    };
    let (ids, last) = list(with_token(first)).await?;
    ensure!(ids == ["b"] && last.is_empty(), "{ids:?}");
    for other in [
        by(&[Dead, Running], &[("team", "blue")]),
        by(&[Running], &[("team", "red")]),
        by(&[], &[]),
    ] {
        let answer = node.sandboxes().list(with_token(other)).await;
        let status = answer.as_ref().err().cloned().context("another list")?;
        refused(answer, Code::InvalidArgument, "INVALID_FIELD")?;
        let details = status.get_error_details();
        let violations = details.bad_request().map(|it| &it.field_violations);
        let field = violations.and_then(|it| it.first()).map(|it| &*it.field);
        ensure!(field == Some("page_token"), "{status:?}");
    }
    for id in ["a", "b", "c"] {
        ensure!(node.delete(id).await?, "{id}");
    }
    Ok(())
}

#[tokio::test]
async fn images_health_reflection_and_the_socket_are_as_they_are_promised() -> anyhow::Result<()> {
    let node = TestNode::start_with("socket_group = \"daemon\"\n", &[]).await?;
    the_socket_belongs_to_the_group_of_the_configuration(&node)?;
    health_and_reflection_answer_in_both_versions(&node).await?;
    images_are_pulled_with_progress_and_removed_unless_they_are_in_use(&node).await?;
    node.finish()
}

async fn images_are_pulled_with_progress_and_removed_unless_they_are_in_use(
    node: &TestNode,
) -> anyhow::Result<()> {
    let registry = Registry::start().await?;
    let image = registry.publish("team/app", "1", &images::busybox_parts());
    let pulled = pull(node, &image).await?;
    ensure!(pulled.name == image, "{pulled:?}");
    let manifest = images::busybox_parts().manifest;
    ensure!(pulled.digest == manifest["digest"].as_str().unwrap_or_default());
    ensure!(pulled.size_bytes > 0 && !pulled.pinned, "{pulled:?}");

    let absent = pull(node, &registry.name("team/app", "none")).await;
    refused(absent.map(Response::new), Code::NotFound, "IMAGE_NOT_FOUND")?;
    let silent = pull(node, "127.0.0.1:1/team/app:1").await;
    let (code, reason) = (Code::Unavailable, "REGISTRY_UNREACHABLE");
    refused(silent.map(Response::new), code, reason)?;
    let mut parts = ImageParts::plain(&[images::layer(&[("a", "b")])], json!({}));
    for bytes in parts.blobs.values_mut() {
        // The layer is the only part that is no document.
        if !bytes.starts_with(b"{") {
            bytes[0] ^= 1;
        }
    }
    let broken = registry.publish("team/broken", "1", &parts);
    let corrupt = pull(node, &broken).await;
    refused(corrupt.map(Response::new), Code::DataLoss, "IMAGE_CORRUPT")?;

    let mut container = shell("app", "exec sleep 3600", &[]);
    container.image.clone_from(&image);
    node.create("user", spec([container])).await?;
    let list = async || -> Result<Vec<v1::Image>, Status> {
        let answer = node.images().list_images(v1::ListImagesRequest {}).await?;
        Ok(answer.into_inner().images)
    };
    let listed = list().await?;
    let found = listed.iter().find(|it| it.name == image);
    ensure!(
        found.is_some_and(|it| it.sandboxes == ["user"]),
        "{listed:?}"
    );
    let remove = async |image: &str| {
        let image = image.to_owned();
        let request = v1::RemoveImageRequest { image };
        node.images().remove_image(request).await
    };
    let held = refused(
        remove(&image).await,
        Code::FailedPrecondition,
        "IMAGE_IN_USE",
    )?;
    ensure!(held.get("holder").is_some_and(|it| it.contains("user")));
    let pause = listed.iter().find(|it| it.pinned).context("the pause")?;
    let answer = remove(&pause.name).await;
    refused(answer, Code::FailedPrecondition, "IMAGE_IN_USE")?;

    node.delete("user").await?;
    remove(&image).await?;
    ensure!(list().await?.iter().all(|it| it.name != image));
    refused(remove(&image).await, Code::NotFound, "IMAGE_NOT_FOUND")?;
    refused(remove("A B").await, Code::InvalidArgument, "INVALID_FIELD")?;
    Ok(())
}

/// The image at the end of a pull, which has told how far it was.
async fn pull(node: &TestNode, image: &str) -> Result<v1::Image, Status> {
    let image = image.to_owned();
    let request = v1::PullImageRequest {
        image,
        credentials: None,
    };
    let mut events = node.images().pull_image(request).await?.into_inner();
    let mut layers = 0;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Progress(it)) => layers = layers.max(it.layers.len()),
            Some(Event::Image(it)) if layers > 0 => return Ok(it),
            Some(Event::Image(_)) | None => break,
        }
    }
    Err(Status::internal("a pull without progress and image"))
}

fn the_socket_belongs_to_the_group_of_the_configuration(node: &TestNode) -> anyhow::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    // A group that every Debian has.
    let groups = std::fs::read_to_string("/etc/group")?;
    let daemon = groups.lines().find_map(|it| it.strip_prefix("daemon:"));
    let gid = daemon.and_then(|it| it.split(':').nth(1));
    let gid: u32 = gid.context("the group `daemon`")?.parse()?;
    let socket = node.variable("BERTH_ADDRESS").trim_start_matches("unix:");
    let stat = std::fs::metadata(socket)?;
    ensure!(stat.permissions().mode() & 0o777 == 0o660, "{stat:?}");
    ensure!(stat.gid() == gid, "{stat:?}");
    Ok(())
}

async fn health_and_reflection_answer_in_both_versions(node: &TestNode) -> anyhow::Result<()> {
    let mut health = HealthClient::new(node.channel.clone());
    let mut check = async |service: &str| {
        let service = service.to_owned();
        health.check(HealthCheckRequest { service }).await
    };
    for service in ["", SERVICES[0], SERVICES[1], SERVICES[2]] {
        let status = check(service).await?.into_inner().status();
        ensure!(
            status == ServingStatus::Serving,
            "`{service}` is {status:?}"
        );
    }
    let unknown = check("berth.v1.NoService").await.err();
    ensure!(unknown.map(|it| it.code()) == Some(Code::NotFound));

    macro_rules! listed {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let mut client = ServerReflectionClient::new(node.channel.clone());
            let answers = client.server_reflection_info(tokio_stream::once(request));
            let answer = answers.await?.into_inner().message().await?;
            match answer.and_then(|it| it.message_response) {
                Some(MessageResponse::ListServicesResponse(it)) => {
                    it.service.into_iter().map(|it| it.name).collect::<Vec<_>>()
                }
                other => anyhow::bail!("{other:?} is no list of services"),
            }
        }};
    }
    for (version, listed) in [("v1", listed!(v1)), ("v1alpha", listed!(v1alpha))] {
        for service in SERVICES.iter().chain(&["grpc.health.v1.Health"]) {
            ensure!(
                listed.iter().any(|it| it == service),
                "{service} is not in {listed:?} of {version}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn two_nodes_on_one_containerd_hold_the_same_id_and_one_goes_without_the_other()
-> anyhow::Result<()> {
    let host = TestNode::start().await?;
    let socket = host.variable("CONTAINERD_ADDRESS").to_owned();
    let guest = TestNode::start_with("", &["--containerd", &socket]).await?;
    ensure!(guest.variable("CONTAINERD_ADDRESS") == socket);
    let before = host.create("web", web("host", 8080)).await?;
    let other = guest.create("web", web("guest", 8080)).await?;
    ensure!(before.addresses != other.addresses, "{other:?}");
    for node in [&host, &guest] {
        node.assert_clean().await?;
        let audit = node.audit().await?;
        let containers = audit.objects.iter().filter(|it| it.kind == "container");
        ensure!(
            containers.count() == 2,
            "its own and no other's: {audit:#?}"
        );
    }
    // Its sandbox is still there: down takes it along.
    guest.finish()?;
    let after = host.get("web").await?;
    ensure!(after == before, "{after:?}");
    host.assert_clean().await?;
    let request = v1::SnapshotRequest { id: "web".into() };
    let usage = host.sandboxes().snapshot(request).await?.into_inner();
    ensure!(usage.containers.len() == 2, "it runs: {usage:?}");
    host.delete("web").await?;
    let audit = host.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    host.finish()
}

#[tokio::test]
async fn a_caller_that_hangs_does_not_keep_the_manager_from_stopping() -> anyhow::Result<()> {
    let node = TestNode::start_with("shutdown_grace = \"10m\"\n", &[]).await?;
    // This thread is also that of the node's channel, which nobody serves while it waits here.
    node.signal_manager("-TERM", Duration::from_secs(60))?;
    node.finish()
}

#[tokio::test]
async fn a_node_has_as_many_sandboxes_as_it_is_told_and_one_more_is_refused() -> anyhow::Result<()>
{
    let node = TestNode::start_with("sandboxes_max = 1\n", &[]).await?;
    node.create("web", idle()).await?;
    let more = node.create("more", idle()).await.map(Response::new);
    let told = refused(more, Code::ResourceExhausted, "SANDBOXES_EXHAUSTED")?;
    ensure!(told["limit"] == "1", "{told:?}");
    node.assert_clean().await?;
    node.delete("web").await?;
    node.create("more", idle()).await?;
    node.delete("more").await?;
    node.finish()
}

//! One sandbox from its Create to its end, on real containerd.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{
    self, ConfigFile, PortStatus, SandboxStatus, StaticHost, watch_response::Event,
};
use berth_e2e::{
    TestNode,
    logs::output,
    node::{eventually, root},
    specs::{idle, limits, millis, shell, spec, web},
};
use tonic::Code;
use tonic_types::StatusExt as _;

/// The body of `http://address:port/`.
fn fetch(address: &str, port: u16) -> anyhow::Result<String> {
    let ip = address.split('/').next().unwrap_or_default();
    let mut stream = TcpStream::connect((ip, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").context("no answer")?;
    Ok(body.trim().to_owned())
}

fn address(sandbox: &v1::Sandbox) -> &str {
    sandbox
        .addresses
        .first()
        .map_or("", |it| it.address.as_str())
}

async fn written(node: &TestNode, id: &str, container: &str, end: &str) -> anyhow::Result<String> {
    let ended = || async { output(node, id, container).contains(end) };
    eventually(
        &format!("{container} writes `{end}`"),
        Duration::from_secs(20),
        ended,
    )
    .await?;
    Ok(output(node, id, container))
}

fn reason(status: &tonic::Status) -> String {
    status
        .get_error_details()
        .error_info()
        .map(|it| it.reason.clone())
        .unwrap_or_default()
}

#[tokio::test]
async fn a_sandbox_is_created_answers_is_measured_and_leaves_nothing() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let created = node.create("web", web("hello", 8080)).await?;
    ensure!(created.status() == SandboxStatus::Running, "{created:?}");
    ensure!(fetch(address(&created), 8080)? == "hello");
    let port = created.ports.first().context("the port was seen")?;
    ensure!(
        (port.port, port.status()) == (8080, PortStatus::Bound),
        "{port:?}"
    );
    let image = &created
        .containers
        .first()
        .context("a container")?
        .image_digest;
    ensure!(image.starts_with("sha256:"), "{image}");
    let phases: BTreeSet<_> = created.phases.iter().map(|it| it.name.as_str()).collect();
    for phase in [
        "admit",
        "open-namespaces",
        "create-task",
        "start-task",
        "await-ready",
    ] {
        ensure!(phases.contains(phase), "{phase} in {phases:?}");
    }

    let again = node.create("web", web("hello", 8080)).await?;
    ensure!(
        again.generation == created.generation,
        "the same Create returns what stands"
    );
    let other = node.create("web", web("other", 8080)).await;
    let conflict = other.err().context("another spec is refused")?;
    ensure!(conflict.code() == Code::AlreadyExists && reason(&conflict) == "SPEC_CONFLICT");
    let field = conflict
        .get_error_details()
        .error_info()
        .and_then(|it| it.metadata.get("field").cloned());
    ensure!(
        field.as_deref() == Some("spec.containers[0].command"),
        "{field:?}"
    );

    let request = v1::SnapshotRequest { id: "web".into() };
    let usage = node.sandboxes().snapshot(request).await?.into_inner();
    let names: Vec<_> = usage.containers.iter().map(|it| it.name.as_str()).collect();
    ensure!(names == ["pause", "web"], "{names:?}");
    let total = usage.total.unwrap_or_default();
    ensure!(
        total.memory_usage > 0 && total.total_cpu_time > 0 && total.pids >= 2,
        "{total:?}"
    );
    node.assert_clean().await?;

    ensure!(node.delete("web").await?, "there was a record");
    ensure!(!node.delete("web").await?, "and there is none");
    let gone = node.get("web").await.err().context("it is gone")?;
    ensure!(gone.code() == Code::NotFound && reason(&gone) == "SANDBOX_NOT_FOUND");
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:?}");
    ensure!(
        !node.home().join("log/web").exists(),
        "its output went with it"
    );
    node.finish()
}

#[tokio::test]
async fn containers_share_network_names_and_files_and_each_has_its_own_limits() -> anyhow::Result<()>
{
    let node = TestNode::start().await?;
    let serve = "mkdir -p /www && echo one > /www/index.html && exec httpd -f -p 8080 -h /www";
    let look = "until wget -q -O - http://127.0.0.1:8080/; do :; done; hostname; cat /etc/hosts; \
                cat /etc/resolv.conf; cat /srv/app.conf; stat -c %a /srv/app.conf; \
                echo \"number $BERTH_INSTANCE_NUM\"; ls /proc/self/ns; echo end; exec sleep 3600";
    let mut spec = spec([shell("one", serve, &[8080]), shell("two", look, &[])]);
    spec.static_hosts = vec![StaticHost {
        host: "db".into(),
        ip: "10.1.2.3".into(),
    }];
    spec.labels = [("instance".to_owned(), "7".to_owned())].into();
    spec.resources = Some(limits(500, 64 << 20, 32));
    let two = &mut spec.containers[1];
    two.resources = Some(limits(250, 32 << 20, 16));
    two.config_files = vec![ConfigFile {
        path: "/srv/app.conf".into(),
        data: b"key = value\n".to_vec(),
        mode: "0640".into(),
    }];
    let created = node.create("pair", spec).await?;
    let seen = written(&node, "pair", "two", "end\n").await?;
    let own = address(&created).split('/').next().unwrap_or_default();
    for expected in [
        "one\n",
        "pair\n",
        "10.1.2.3\tdb",
        "key = value\n640\n",
        "number 7\n",
        "nameserver ",
    ] {
        ensure!(seen.contains(expected), "`{expected}` in:\n{seen}");
    }
    ensure!(
        seen.contains(&format!("{own}\tpair")),
        "its own name in:\n{seen}"
    );

    // The limits as the kernel has them, on either version of cgroups.
    let instance = std::fs::read_to_string(node.home().join("instance"))?;
    let read = |controller: &str, below: &str, file: &str| {
        let v1 = format!(
            "/sys/fs/cgroup/{controller}/berth/{}/pair{below}/{file}",
            instance.trim()
        );
        std::fs::read_to_string(&v1)
            .with_context(|| v1.clone())
            .map(|it| it.trim().to_owned())
    };
    if std::path::Path::new("/sys/fs/cgroup/memory").exists() {
        ensure!(read("memory", "", "memory.limit_in_bytes")? == (64 << 20).to_string());
        ensure!(read("memory", "/two", "memory.limit_in_bytes")? == (32 << 20).to_string());
        ensure!(read("cpu", "", "cpu.cfs_quota_us")? == "50000");
        ensure!(read("cpu", "/two", "cpu.cfs_quota_us")? == "25000");
        ensure!(read("pids", "", "pids.max")? == "32");
        ensure!(read("pids", "/two", "pids.max")? == "16");
        ensure!(
            !read("pids", "/pause", "cgroup.procs")?.is_empty(),
            "the pause is inside"
        );
    } else {
        ensure!(read("", "", "memory.max")? == (64 << 20).to_string());
        ensure!(read("", "/two", "memory.max")? == (32 << 20).to_string());
        ensure!(read("", "", "cpu.max")? == "50000 100000");
        ensure!(read("", "/two", "pids.max")? == "16");
    }
    node.finish()
}

#[tokio::test]
async fn ids_that_a_prefix_could_confuse_never_touch_each_other() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let spec_of = |name: &str, port: u32| {
        let line = format!(
            "mkdir -p /www && echo {name} > /www/index.html && exec httpd -f -p {port} -h /www"
        );
        spec([shell(name, &line, &[port])])
    };
    let first = node.create("a", spec_of("b-c", 8080)).await?;
    let second = node.create("a-b", spec_of("c", 8080)).await?;
    ensure!(fetch(address(&first), 8080)? == "b-c");
    ensure!(fetch(address(&second), 8080)? == "c");
    node.delete("a").await?;
    ensure!(fetch(address(&second), 8080)? == "c", "a-b outlives a");
    node.assert_clean().await?;
    node.finish()
}

#[tokio::test]
async fn two_nodes_hold_the_same_id_side_by_side() -> anyhow::Result<()> {
    let (one, two) = (TestNode::start().await?, TestNode::start().await?);
    let (a, b) = (
        one.create("web", web("one", 8080)).await?,
        two.create("web", web("two", 8080)).await?,
    );
    ensure!(fetch(address(&a), 8080)? == "one" && fetch(address(&b), 8080)? == "two");
    one.assert_clean().await?;
    two.assert_clean().await?;
    one.delete("web").await?;
    ensure!(fetch(address(&b), 8080)? == "two");
    one.finish()?;
    ensure!(
        fetch(address(&b), 8080)? == "two",
        "a node that goes leaves its neighbour alone"
    );
    two.assert_clean().await?;
    two.finish()
}

#[tokio::test]
async fn a_create_that_cannot_become_running_says_why_and_leaves_nothing() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let mut deaf = spec([shell(
        "app",
        "exec httpd -f -p 127.0.0.1:8080 -h /etc",
        &[8080],
    )]);
    deaf.port_wait_timeout = millis(1000);
    let error = node
        .create("deaf", deaf)
        .await
        .err()
        .context("the port is on loopback only")?;
    ensure!(reason(&error) == "PORT_TIMEOUT", "{error}");
    ensure!(error.message().contains("loopback"), "{}", error.message());

    let short = spec([shell("app", "echo last words; exit 7", &[8080])]);
    let error = node
        .create("short", short)
        .await
        .err()
        .context("it exits")?;
    ensure!(reason(&error) == "CONTAINER_EXITED", "{error}");
    let details = error.get_error_details();
    let metadata = details
        .error_info()
        .map(|it| it.metadata.clone())
        .unwrap_or_default();
    ensure!(
        metadata.get("exit_code").is_some_and(|it| it == "7"),
        "{metadata:?}"
    );
    let dead = node.get("short").await?;
    ensure!(
        dead.status() == SandboxStatus::Dead && dead.addresses.is_empty(),
        "{dead:?}"
    );
    ensure!(
        dead.exit
            .is_some_and(|it| it.exit_code == 7 && it.container == "app")
    );
    ensure!(
        output(&node, "short", "app") == "last words\n",
        "its output is kept with the record"
    );

    let mut missing = spec([shell("app", "true", &[])]);
    missing.containers[0].command = String::new();
    missing.containers[0].args = vec!["/no/such/program".into()];
    let error = node
        .create("missing", missing)
        .await
        .err()
        .context("there is no such program")?;
    ensure!(reason(&error) == "RUNTIME_REFUSED", "{error}");
    ensure!(
        error.message().contains("/no/such/program"),
        "{}",
        error.message()
    );

    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    let retried = node.create("short", web("second life", 8080)).await?;
    ensure!(
        retried.generation > dead.generation,
        "a dead id is free for any spec"
    );
    ensure!(fetch(address(&retried), 8080)? == "second life");
    node.finish()
}

#[tokio::test]
async fn the_end_of_a_container_ends_its_sandbox_and_is_recorded() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let line = "mkdir -p /www; httpd -p 8080 -h /www; until test -e /www/end; do :; done; exit 3";
    let stopper = "until wget -q -O /dev/null http://127.0.0.1:8080/; do \
                   wget -q -O - http://127.0.0.1:8080/x; break; done; exec sleep 3600";
    node.create(
        "job",
        spec([shell("app", line, &[8080]), shell("idle", stopper, &[])]),
    )
    .await?;
    let pid = node.command("ctr").args(["t", "ls"]).output()?;
    let tasks = String::from_utf8_lossy(&pid.stdout).into_owned();
    let pid = tasks.lines().find(|it| it.starts_with("sandbox.job.app "));
    let pid = pid
        .and_then(|it| it.split_whitespace().nth(1))
        .context("the app's process")?;
    let killed = std::process::Command::new("kill")
        .args(["-9", pid])
        .status()?;
    ensure!(killed.success());
    let dead = || async {
        node.get("job")
            .await
            .is_ok_and(|it| it.status() == SandboxStatus::Dead)
    };
    eventually("the sandbox is DEAD", Duration::from_secs(20), dead).await?;
    let record = node.get("job").await?;
    let exit = record.exit.clone().context("an exit record")?;
    ensure!(
        (exit.container.as_str(), exit.exit_code, exit.signal) == ("app", 137, 9),
        "{exit:?}"
    );
    ensure!(record.reason == "CONTAINER_EXITED", "{record:?}");
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    node.finish()
}

#[tokio::test]
async fn what_is_killed_for_memory_is_told_from_what_is_killed() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let hungry = "until test -e /tmp/go; do :; done; tail /dev/zero";
    let mut spec = spec([shell("app", hungry, &[])]);
    spec.containers[0].resources = Some(limits(0, 16 << 20, 0));
    node.create("hungry", spec).await?;
    let root = node
        .command("ctr")
        .args([
            "t",
            "exec",
            "--exec-id",
            "go",
            "sandbox.hungry.app",
            "touch",
            "/tmp/go",
        ])
        .output()?;
    ensure!(root.status.success(), "{root:?}");
    let dead = || async {
        node.get("hungry")
            .await
            .is_ok_and(|it| it.status() == SandboxStatus::Dead)
    };
    eventually("the sandbox is DEAD", Duration::from_secs(30), dead).await?;
    let exit = node.get("hungry").await?.exit.context("an exit record")?;
    ensure!(
        exit.cause() == v1::ExitCause::Oom && exit.exit_code == 137,
        "{exit:?}"
    );
    node.finish()
}

#[tokio::test]
async fn a_watch_shows_what_stands_and_every_change_and_resumes() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("first", idle()).await?;
    let request = |from_revision| v1::WatchRequest {
        from_revision,
        id: String::new(),
    };
    let mut events = node.sandboxes().watch(request(0)).await?.into_inner();
    let mut next = async || -> anyhow::Result<v1::WatchResponse> {
        let event = tokio::time::timeout(Duration::from_secs(20), events.message()).await??;
        event.context("the watch has ended")
    };
    let standing = next().await?;
    let is = |event: &v1::WatchResponse, id: &str, status: SandboxStatus| matches!(&event.event, Some(Event::Sandbox(it)) if it.id == id && it.status() == status);
    ensure!(
        is(&standing, "first", SandboxStatus::Running),
        "{standing:?}"
    );
    let synced = next().await?;
    ensure!(matches!(synced.event, Some(Event::Synced(_))), "{synced:?}");

    node.create("second", idle()).await?;
    node.delete("second").await?;
    let (mut statuses, mut revision) = (vec![], synced.revision);
    loop {
        let event = next().await?;
        ensure!(event.revision > revision, "revisions grow: {event:?}");
        revision = event.revision;
        match event.event.context("an event")? {
            Event::Sandbox(it) => statuses.push(it.status()),
            Event::Removed(it) => {
                ensure!(it.id == "second");
                break;
            }
            Event::Synced(_) => anyhow::bail!("twice in sync"),
        }
    }
    statuses.dedup();
    let expected = [
        SandboxStatus::Pending,
        SandboxStatus::Running,
        SandboxStatus::Stopped,
    ];
    ensure!(statuses == expected, "{statuses:?}");

    let mut resumed = node
        .sandboxes()
        .watch(request(synced.revision))
        .await?
        .into_inner();
    let first = resumed.message().await?.context("the changes since")?;
    ensure!(is(&first, "second", SandboxStatus::Pending), "{first:?}");
    let unknown = node
        .sandboxes()
        .watch(request(1 << 40))
        .await
        .err()
        .context("not reached yet")?;
    ensure!(unknown.code() == Code::OutOfRange && reason(&unknown) == "REVISION_UNKNOWN");
    drop((events, resumed));
    node.finish()
}

#[tokio::test]
async fn a_hundred_sandboxes_come_and_go_eight_at_a_time() -> anyhow::Result<()> {
    use tokio_stream::StreamExt as _;
    let node = TestNode::start().await?;
    let all = |node: &TestNode, delete: bool| {
        let sandboxes = node.sandboxes();
        let work = (0..100).map(move |number| {
            let mut sandboxes = sandboxes.clone();
            async move {
                let id = format!("s-{number}");
                if delete {
                    let request = v1::DeleteRequest {
                        id,
                        expected_generation: 0,
                    };
                    return sandboxes.delete(request).await.map(|_| String::new());
                }
                let request = v1::CreateRequest {
                    id,
                    spec: Some(web("x", 8080)),
                    ..v1::CreateRequest::default()
                };
                let created = sandboxes.create(request).await?.into_inner();
                let created = created.sandbox.unwrap_or_default();
                Ok(address(&created).to_owned())
            }
        });
        async move {
            let mut done = futures::StreamExt::buffer_unordered(futures::stream::iter(work), 8);
            let mut results = vec![];
            while let Some(result) = done.next().await {
                results.push(result?);
            }
            Ok::<_, tonic::Status>(results)
        }
    };
    let idle = resident(&node).await?;
    let addresses: BTreeSet<_> = all(&node, false).await?.into_iter().collect();
    ensure!(addresses.len() == 100, "each has an address of its own");
    let request = v1::ListRequest {
        page_size: 30,
        ..v1::ListRequest::default()
    };
    let (mut pages, mut ids, mut token) = (0, vec![], String::new());
    loop {
        let request = v1::ListRequest {
            page_token: token,
            ..request.clone()
        };
        let page = node.sandboxes().list(request).await?.into_inner();
        pages += 1;
        ensure!(
            page.sandboxes
                .iter()
                .all(|it| it.status() == SandboxStatus::Running)
        );
        ids.extend(page.sandboxes.into_iter().map(|it| it.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let distinct: BTreeSet<_> = ids.iter().collect();
    ensure!((pages, ids.len(), distinct.len()) == (4, 100, 100));
    node.assert_clean().await?;
    let full = resident(&node).await?;
    all(&node, true).await?;
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    ensure!(full > 0, "the manager tells its memory");
    let report = serde_json::json!({
        "sandboxes": 100,
        "idle_rss_kib": idle >> 10,
        "full_rss_kib": full >> 10,
        "after_rss_kib": resident(&node).await? >> 10,
    });
    let dir = root().join("target/e2e");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("memory.json"), format!("{report:#}\n"))?;
    node.finish()
}

/// The manager's memory, in bytes.
async fn resident(node: &TestNode) -> anyhow::Result<u64> {
    let status = node.node().get_status(v1::GetStatusRequest {}).await?;
    Ok(status.into_inner().memory_rss_bytes)
}

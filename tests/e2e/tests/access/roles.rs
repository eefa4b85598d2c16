//! Callers of other hosts: what their certificates allow them, what is written down of it, and certificates that change.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::{
    Target,
    v1::{
        self, node_service_client::NodeServiceClient, plugin_service_client::PluginServiceClient,
        sandbox_service_client::SandboxServiceClient,
    },
};
use berth_e2e::{
    certificates::{Authority, TlsNode},
    collectors::Worker,
    node::{eventually, succeed},
    specs,
};
use hyper_util::rt::TokioIo;
use rustix::{process::Uid, thread::set_thread_uid};
use serde_json::Value;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;
use tower::service_fn;

/// The files are looked at five times a second here.
const SOON: Duration = Duration::from_secs(20);

async fn get(channel: &Channel, id: &str) -> Result<v1::Sandbox, Status> {
    let mut client = SandboxServiceClient::new(channel.clone());
    let answer = client.get(v1::GetRequest { id: id.into() }).await?;
    Ok(answer.into_inner().sandbox.unwrap_or_default())
}

async fn delete(channel: &Channel, id: &str) -> Result<bool, Status> {
    let request = v1::DeleteRequest {
        id: id.into(),
        expected_generation: 0,
    };
    let mut client = SandboxServiceClient::new(channel.clone());
    Ok(client.delete(request).await?.into_inner().existed)
}

async fn is_served(target: &Target) -> bool {
    let Ok(channel) = target.connect().await else {
        return false;
    };
    let mut client = NodeServiceClient::new(channel);
    client.get_status(v1::GetStatusRequest {}).await.is_ok()
}

/// A connection of another user of the node: the kernel notes who opens it.
async fn as_user(uid: u32, path: String) -> anyhow::Result<Channel> {
    let open = move || {
        set_thread_uid(Uid::from_raw(uid))?;
        UnixStream::connect(path)
    };
    // The thread ends, and its user with it.
    let opened = std::thread::spawn(open).join();
    let stream = opened.map_err(|_| anyhow::anyhow!("the thread has died"))??;
    stream.set_nonblocking(true)?;
    let mut stream = Some(tokio::net::UnixStream::from_std(stream)?);
    let once = service_fn(move |_: Uri| {
        let stream = stream.take().ok_or(std::io::ErrorKind::NotConnected);
        async move { Ok::<_, std::io::Error>(TokioIo::new(stream?)) }
    });
    let endpoint = Endpoint::from_static("http://node");
    Ok(endpoint.connect_with_connector(once).await?)
}

#[tokio::test]
async fn a_certificate_says_what_its_holder_may_and_what_it_changes_is_written_down()
-> anyhow::Result<()> {
    let tls = TlsNode::start(
        "access.socket_roles = [\"uid:4711=read-only\"]\naudit_log.max_bytes = 65536\naudit_log.files = 2\n",
    )
    .await?;
    let control = tls.of_roles("plane", &["control-plane"])?;
    let plane = control.connect().await?;
    let request = v1::CreateRequest {
        id: "web".into(),
        spec: Some(specs::idle()),
        ..v1::CreateRequest::default()
    };
    let mut sandboxes = SandboxServiceClient::new(plane.clone());
    sandboxes.create(request).await?;

    let looks = tls.of_roles("looks", &["read-only", "of-another-year"])?;
    let looks = looks.connect().await?;
    ensure!(get(&looks, "web").await?.id == "web");
    let denied = delete(&looks, "web").await.unwrap_err();
    ensure!(denied.code() == Code::PermissionDenied, "{denied:?}");
    let details = denied.get_error_details();
    let info = details.error_info().context("a reason")?;
    ensure!(
        info.reason == "ROLE_DENIED"
            && info.metadata["method"] == "berth.v1.SandboxService/Delete"
            && info.metadata["roles"] == "read-only"
            && info.metadata["allowed"] == "admin,control-plane",
        "{info:?}"
    );
    // It is believed who it is, and that is no role.
    let nobody = tls.of_roles("nobody", &[])?.connect().await?;
    let denied = get(&nobody, "web").await.unwrap_err();
    ensure!(denied.code() == Code::PermissionDenied, "{denied:?}");
    HealthClient::new(nobody)
        .check(HealthCheckRequest::default())
        .await?;
    let mut beats = PluginServiceClient::new(plane.clone());
    let denied = beats.heartbeat(v1::HeartbeatRequest::default()).await;
    ensure!(denied.unwrap_err().code() == Code::PermissionDenied);

    // The command line takes the same way.
    let mut berth = tls.node.command("berth");
    let files = control.tls.clone().context("files")?;
    berth
        .args(["rm", "web"])
        .env("BERTH_ADDRESS", &control.address);
    berth.env("BERTH_TLS_CA", &files.ca);
    berth.env("BERTH_TLS_CERTIFICATE", &files.certificate);
    berth.env("BERTH_TLS_KEY", &files.key);
    succeed(berth)?;
    // And so does a process beside the manager.
    let gc = tls.of_roles("gc", &["gc"])?;
    let files = gc.tls.clone().context("files")?;
    let toml = format!(
        "manager_address = {:?}\nmanager_tls.ca = {:?}\nmanager_tls.certificate = {:?}\nmanager_tls.key = {:?}",
        gc.address, files.ca, files.certificate, files.key
    );
    let worker = Worker::start(&tls.node, "far", &toml)?;
    let works = || async {
        let Ok(status) = tls.node.status().await else {
            return false;
        };
        let serving = v1::PluginState::Serving;
        let mut plugins = status.plugins.iter();
        plugins.any(|it| it.instance == "far" && it.state() == serving)
    };
    eventually("a worker beats by TLS", SOON, works).await?;
    drop(worker);

    // Whoever is on the node is told by the kernel.
    let socket = tls.node.variable("BERTH_ADDRESS").to_owned();
    let path = socket.trim_start_matches("unix:").to_owned();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    fs::set_permissions(tls.node.home(), fs::Permissions::from_mode(0o755))?;
    let user = as_user(4711, path).await?;
    let drain = v1::DrainRequest {
        drain: true,
        message: String::new(),
    };
    let drained = NodeServiceClient::new(user.clone()).drain(drain).await;
    let denied = drained.unwrap_err();
    ensure!(denied.code() == Code::PermissionDenied, "{denied:?}");
    let gone = get(&user, "web").await.unwrap_err();
    ensure!(gone.code() == Code::NotFound, "it may look: {gone:?}");
    ensure!(!tls.node.status().await?.draining);
    tls.node.delete("web").await?;

    let file = tls.node.home().join("state/audit/audit.log");
    // A call does not wait for its record.
    let written = || async {
        let text = fs::read_to_string(&file).unwrap_or_default();
        text.lines()
            .any(|it| it.contains("/Delete") && it.contains("\"uid\":0"))
    };
    eventually("the last call is written down", SOON, written).await?;
    let text = fs::read_to_string(&file)?;
    let lines: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let has = |method: &str, key: &str, value: &str, code: &str| {
        let mut lines = lines.iter();
        lines.any(|it| {
            let told = it["caller"].get(key).map(Value::to_string);
            it["method"] == format!("berth.v1.{method}")
                && told.is_some_and(|it| it.contains(value))
                && it["code"] == code
        })
    };
    for (method, key, value, code) in [
        ("SandboxService/Create", "subject", "CN=plane", "OK"),
        ("SandboxService/Delete", "subject", "CN=plane", "OK"),
        (
            "SandboxService/Delete",
            "subject",
            "CN=looks",
            "PERMISSION_DENIED",
        ),
        (
            "SandboxService/Get",
            "subject",
            "CN=nobody",
            "PERMISSION_DENIED",
        ),
        ("NodeService/Drain", "uid", "4711", "PERMISSION_DENIED"),
        ("SandboxService/Delete", "uid", "0", "OK"),
    ] {
        ensure!(
            has(method, key, value, code),
            "{method} by {value}:\n{text}"
        );
    }
    let beats = |it: &&serde_json::Value| {
        it["method"] == "berth.v1.PluginService/Heartbeat" && it["code"] == "OK"
    };
    ensure!(lines.iter().find(beats).is_none(), "{text}");
    let created = lines
        .iter()
        .find(|it| it["method"] == "berth.v1.SandboxService/Create");
    ensure!(created.context("it is there")?["object"] == "web", "{text}");
    tls.node.finish()
}

#[tokio::test]
async fn certificates_change_while_the_manager_runs() -> anyhow::Result<()> {
    let settings = "tls.reload_interval = \"200ms\"\n";
    let tls = TlsNode::start(settings).await?;
    let old = tls.of_roles("old", &["read-only"])?;
    let channel = old.connect().await?;
    let mut watch = SandboxServiceClient::new(channel.clone())
        .watch(v1::WatchRequest::default())
        .await?
        .into_inner();
    let file = |name: &str| tls.dir().join(name);
    let degraded = |word: &'static str| {
        let node = &tls.node;
        move || async move {
            let status = node.status().await;
            status.is_ok_and(|it| it.degraded.iter().any(|it| it.contains(word)))
        }
    };

    // Half a file is told, and changes nothing.
    let good = fs::read_to_string(file("server.crt"))?;
    fs::write(file("server.crt"), &good[..good.len() / 2])?;
    eventually("a broken file is told", SOON, degraded("server.crt")).await?;
    ensure!(is_served(&old).await);
    fs::write(file("server.crt"), &good)?;
    let fine = || async { !degraded("server.crt")().await };
    eventually("a good one is told no more", SOON, fine).await?;

    // Another CA: whom it did not sign is a stranger, also on the connections that stand.
    let authority = Authority::new("the CA of tomorrow")?;
    let server = authority.server(&tls.dir(), "tomorrow")?;
    fs::copy(&server.certificate, file("server.crt"))?;
    fs::copy(&server.key, file("server.key"))?;
    fs::copy(&server.ca, file("server.ca"))?;
    let new = authority.caller(&tls.dir(), "new", &["read-only"])?;
    let new = tls.target(new);
    eventually("the new one is served", SOON, || is_served(&new)).await?;
    // It knows the new server, and is not known any more.
    let mut stranger = old.clone();
    let known = stranger.tls.as_mut().context("files")?;
    known.ca = new.tls.clone().context("files")?.ca;
    ensure!(!is_served(&stranger).await);
    let ended = async { while let Ok(Some(_)) = watch.message().await {} };
    tokio::time::timeout(SOON, ended)
        .await
        .context("the old one's stream ends")?;

    // A client reads its own files again: the channel of the old one comes back with what lies there now.
    let files = new.tls.clone().context("files")?;
    for (kind, path) in [
        ("crt", &files.certificate),
        ("key", &files.key),
        ("ca", &files.ca),
    ] {
        fs::copy(path, file(&format!("old.{kind}")))?;
    }
    let back = || async {
        get(&channel, "nobody")
            .await
            .is_err_and(|it| it.code() == Code::NotFound)
    };
    eventually("the old channel is served again", SOON, back).await?;
    tls.node.finish()
}

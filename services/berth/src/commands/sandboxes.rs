//! Commands on sandboxes: create, run, ls, get, stop, rm, stats.
//! What a spec may hold is the manager's to say.

use std::{path::Path, time::Duration};

use berth_api::v1::{
    self, catalog_service_client::CatalogServiceClient,
    network_service_client::NetworkServiceClient, probe::Check,
    sandbox_service_client::SandboxServiceClient,
};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;
use tokio::io::AsyncReadExt as _;
use tonic::transport::Channel;

use super::{Session, stats::denied_line};
use crate::{
    args::{Create, Id, Ls, Pair, Renew, Rm, Run, Wait},
    errors::Failure,
    output::{age, duration, moment, page, precise_duration, table, word},
    progress::Waiting,
    proto_json::{self, ProtoJson},
};

/// Sandboxes that are removed side by side: enough to hide the wait for SIGTERM, few enough for a small node.
const REMOVALS_AT_ONCE: usize = 8;
/// How often a create that is waited for is looked at.
const LOOK_AT_STEPS: Duration = Duration::from_millis(250);
/// Name of the container of `berth run`.
const RUN_CONTAINER: &str = "app";
const ALL_STATUSES: [v1::SandboxStatus; 5] = [
    v1::SandboxStatus::Pending,
    v1::SandboxStatus::NotReady,
    v1::SandboxStatus::Running,
    v1::SandboxStatus::Stopped,
    v1::SandboxStatus::Dead,
];

async fn client(session: &Session) -> Result<SandboxServiceClient<Channel>, Failure> {
    Ok(SandboxServiceClient::new(session.connect().await?))
}

pub(super) async fn create(session: &Session, args: Create) -> Result<(), Failure> {
    let text = read_text(&args.file).await?;
    let mut request: v1::CreateRequest =
        proto_json::read(&text).map_err(|source| Failure::NotARequest {
            path: args.file,
            source,
        })?;
    match args.wait {
        None => (),
        Some(Wait::Accepted) => request.set_wait(v1::WaitFor::Accepted),
        Some(Wait::Running) => request.set_wait(v1::WaitFor::Running),
    }
    request.time_to_live = args.ttl.map(to_proto).or(request.time_to_live);
    send_create(session, request).await
}

pub(super) async fn run(session: &Session, args: Run) -> Result<(), Failure> {
    let id = match &args.id {
        Some(id) => id.clone(),
        None => random_id()?,
    };
    send_create(session, run_request(id, args)).await
}

async fn send_create(session: &Session, request: v1::CreateRequest) -> Result<(), Failure> {
    let mut client = client(session).await?;
    let id = request.id.clone();
    let waiting = Waiting::start(format!("waiting for {id}"));
    let mut watcher = client.clone();
    let created = tokio::select! {
        created = client.create(session.request(request)) => created,
        () = show_steps(&mut watcher, id, &waiting) => unreachable!("it goes on for ever"),
    };
    drop(waiting);
    let response = created?.into_inner();
    let sandbox = response.sandbox.ok_or(Failure::Incomplete("sandbox"))?;
    Ok(session
        .output
        .object(&ProtoJson(&sandbox), || created_line(&sandbox))?)
}

/// Shows what the manager does for a sandbox; whatever keeps it from knowing is not its to tell.
async fn show_steps(client: &mut SandboxServiceClient<Channel>, id: String, waiting: &Waiting) {
    loop {
        tokio::time::sleep(LOOK_AT_STEPS).await;
        let request = v1::GetRequest { id: id.clone() };
        if let Ok(response) = client.get(request).await {
            let steps = response.into_inner().sandbox.map(|it| it.running_steps);
            let steps = steps.unwrap_or_default();
            if !steps.is_empty() {
                waiting.say(format!("waiting for {id}: {}", steps.join(", ")));
            }
        }
    }
}

pub(super) fn to_proto(it: Duration) -> prost_types::Duration {
    // Nothing that can be typed is longer than the contract can say.
    it.try_into().unwrap_or_default()
}

pub(super) async fn renew(session: &Session, args: Renew) -> Result<(), Failure> {
    let request = v1::RenewRequest {
        id: args.id,
        time_to_live: args.ttl.map(to_proto),
        ..Default::default()
    };
    let mut client = client(session).await?;
    let response = client.renew(session.request(request)).await?.into_inner();
    let sandbox = response.sandbox.ok_or(Failure::Incomplete("sandbox"))?;
    Ok(session.output.object(&ProtoJson(&sandbox), || {
        let end = match sandbox.expires_at.as_ref() {
            Some(_) => moment(sandbox.expires_at.as_ref()),
            None => "never".to_owned(),
        };
        format!("{} ends {end}", sandbox.id)
    })?)
}

fn run_request(id: String, args: Run) -> v1::CreateRequest {
    let ports = args.ports.iter().map(|it| v1::Port {
        port: it.port.into(),
        protocol: it.protocol.into(),
        ..Default::default()
    });
    let container = v1::Container {
        name: RUN_CONTAINER.to_owned(),
        image: args.image,
        args: args.command,
        env: args
            .env
            .into_iter()
            .map(|Pair { key, value }| format!("{key}={value}"))
            .collect(),
        ports: ports.collect(),
        ..Default::default()
    };
    let limited = args.cpu.is_some() || args.memory.is_some();
    let resources = limited.then(|| v1::Resources {
        cpu_millis: args.cpu.unwrap_or_default(),
        memory_bytes: args.memory.unwrap_or_default(),
        ..Default::default()
    });
    let spec = v1::SandboxSpec {
        labels: args
            .labels
            .into_iter()
            .map(|Pair { key, value }| (key, value))
            .collect(),
        containers: vec![container],
        resources,
        ..Default::default()
    };
    v1::CreateRequest {
        id,
        spec: Some(spec),
        wait: v1::WaitFor::Running.into(),
        time_to_live: args.ttl.map(to_proto),
        ..Default::default()
    }
}

pub(super) async fn read_text(path: &Path) -> Result<String, Failure> {
    let read = if path == Path::new("-") {
        let mut text = String::new();
        tokio::io::stdin()
            .read_to_string(&mut text)
            .await
            .map(|_| text)
    } else {
        tokio::fs::read_to_string(path).await
    };
    read.map_err(|source| Failure::File {
        path: path.to_owned(),
        source,
    })
}

fn random_id() -> Result<String, Failure> {
    let path = Path::new("/proc/sys/kernel/random/uuid");
    let uuid = std::fs::read_to_string(path).map_err(|source| Failure::File {
        path: path.to_owned(),
        source,
    })?;
    Ok(format!("run-{}", uuid.chars().take(8).collect::<String>()))
}

/// `web 10.87.0.2`, and the status of a sandbox that is not RUNNING.
fn created_line(sandbox: &v1::Sandbox) -> String {
    let address = bare_addresses(sandbox);
    match sandbox.status() {
        v1::SandboxStatus::Running => format!("{} {address}", sandbox.id),
        v1::SandboxStatus::Unspecified
        | v1::SandboxStatus::Pending
        | v1::SandboxStatus::NotReady
        | v1::SandboxStatus::Stopped
        | v1::SandboxStatus::Dead => format!("{} {address} {}", sandbox.id, status_word(sandbox)),
    }
}

pub(super) async fn list(session: &Session, args: Ls) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Sandboxes<'a> {
        sandboxes: Vec<ProtoJson<'a, v1::Sandbox>>,
    }

    let statuses: Vec<v1::SandboxStatus> = if args.all {
        ALL_STATUSES.to_vec()
    } else {
        args.statuses.into_iter().map(Into::into).collect()
    };
    let mut request = v1::ListRequest {
        statuses: statuses.into_iter().map(Into::into).collect(),
        labels: args
            .labels
            .into_iter()
            .map(|Pair { key, value }| (key, value))
            .collect(),
        ..Default::default()
    };
    let mut client = client(session).await?;
    let mut sandboxes = Vec::new();
    loop {
        let page = client
            .list(session.request(request.clone()))
            .await?
            .into_inner();
        sandboxes.extend(page.sandboxes);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let object = Sandboxes {
        sandboxes: sandboxes.iter().map(ProtoJson).collect(),
    };
    Ok(session
        .output
        .object(&object, || sandbox_table(&sandboxes, Timestamp::now()))?)
}

fn sandbox_table(sandboxes: &[v1::Sandbox], now: Timestamp) -> String {
    let rows = sandboxes.iter().map(|it| {
        let images: Vec<_> = it.containers.iter().map(|it| it.image.as_str()).collect();
        let age = age(it.created_at.as_ref(), now);
        let (status, reason) = (status_word(it).to_owned(), it.reason.clone());
        [
            it.id.clone(),
            status,
            reason,
            bare_addresses(it),
            age,
            images.join(","),
        ]
    });
    table(
        ["ID", "STATUS", "REASON", "ADDRESS", "AGE", "IMAGES"],
        rows.collect(),
    )
}

pub(super) async fn get(session: &Session, args: Id) -> Result<(), Failure> {
    let request = v1::GetRequest { id: args.id };
    let channel = session.connect().await?;
    let response = SandboxServiceClient::new(channel.clone())
        .get(session.request(request))
        .await?
        .into_inner();
    let sandbox = response.sandbox.ok_or(Failure::Incomplete("sandbox"))?;
    let found = Found::of(session, channel, &sandbox).await;
    Ok(session.output.object(&ProtoJson(&sandbox), || {
        sandbox_page(&sandbox, &found, Timestamp::now())
    })?)
}

/// What other services know of a sandbox. Whatever keeps them from telling keeps no sandbox from being shown.
#[derive(Debug, Default)]
struct Found {
    /// The services that it answers for, by the names under which others find it.
    names: Vec<String>,
    denied: Option<v1::DeniedTraffic>,
}

impl Found {
    async fn of(session: &Session, channel: Channel, sandbox: &v1::Sandbox) -> Self {
        let rules = NetworkServiceClient::new(channel.clone())
            .list_rules(session.request(v1::ListRulesRequest {
                sandbox: sandbox.id.clone(),
                ..Default::default()
            }))
            .await;
        let rules = rules
            .map(|it| it.into_inner().sandboxes)
            .unwrap_or_default();
        let mut catalog = CatalogServiceClient::new(channel);
        let mut request = v1::ListEndpointsRequest {
            page_size: 1000,
            ..Default::default()
        };
        let mut names = vec![];
        while let Ok(page) = catalog
            .list_endpoints(session.request(request.clone()))
            .await
        {
            let page = page.into_inner();
            let own =
                |it: &v1::Endpoint| it.sandbox == sandbox.id && it.generation == sandbox.generation;
            let own = page.endpoints.into_iter().filter(own);
            names.extend(own.map(|it| format!("{} in app {}", it.name, it.app)));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        names.sort();
        names.dedup();
        Self {
            names,
            denied: rules.into_iter().find_map(|it| it.denied),
        }
    }
}

fn sandbox_page(sandbox: &v1::Sandbox, found: &Found, now: Timestamp) -> String {
    let mut lines = vec![
        ("id", sandbox.id.clone()),
        ("generation", sandbox.generation.to_string()),
        ("status", since(sandbox, now)),
    ];
    if !sandbox.reason.is_empty() || !sandbox.message.is_empty() {
        lines.push(("reason", in_one_line(&sandbox.reason, &sandbox.message)));
    }
    if let Some(exit) = &sandbox.exit {
        lines.push(("exit", exit_line(exit)));
    }
    lines.push(("doing", block(sandbox.running_steps.clone())));
    lines.push(("created", moment(sandbox.created_at.as_ref())));
    if sandbox.expires_at.is_some() {
        lines.push(("expires", moment(sandbox.expires_at.as_ref())));
    }
    lines.push(("node", sandbox.node_id.clone()));
    let addresses = sandbox
        .addresses
        .iter()
        .map(|it| format!("{} on {}", it.address, it.subnet));
    lines.push(("addresses", block(addresses)));
    if let Some(spec) = sandbox.spec.as_ref().filter(|it| !it.labels.is_empty()) {
        let mut labels: Vec<_> = spec
            .labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        labels.sort();
        lines.push(("labels", block(labels)));
    }
    let containers = sandbox.containers.iter().map(|it| {
        let digest = if it.image_digest.is_empty() {
            ""
        } else {
            " @ "
        };
        format!("{}  {}{digest}{}", it.name, it.image, it.image_digest)
    });
    lines.push(("containers", block(containers)));
    if !sandbox.ports.is_empty() {
        let line = |it| port_line(it, node_port(sandbox, it));
        lines.push(("ports", block(sandbox.ports.iter().map(line))));
    }
    let probes = sandbox.spec.iter().flat_map(|it| &it.containers);
    let probes = probes.filter_map(|it| Some(probe_line(&it.name, it.readiness_probe.as_ref()?)));
    let probes: Vec<_> = probes.collect();
    if !probes.is_empty() {
        lines.push(("probes", block(probes)));
    }
    if !found.names.is_empty() {
        lines.push(("names", block(found.names.clone())));
    }
    if found.denied.is_some() {
        let denied = denied_line(found.denied);
        let none = "\nnothing so far";
        let denied = if denied.is_empty() { none } else { &denied };
        lines.push(("denied", denied.trim_start().to_owned()));
    }
    if !sandbox.phases.is_empty() {
        lines.push(("phases", phase_block(&sandbox.phases)));
    }
    page(lines)
}

fn since(sandbox: &v1::Sandbox, now: Timestamp) -> String {
    match age(sandbox.since.as_ref(), now).as_str() {
        "" => status_word(sandbox).to_owned(),
        age => format!("{} for {age}", status_word(sandbox)),
    }
}

fn exit_line(exit: &v1::ExitRecord) -> String {
    let cause = match (exit.cause(), exit.oom_cgroup.as_str()) {
        (v1::ExitCause::Oom, "") => {
            ", the kernel killed it for memory: the node ran out of it".to_owned()
        }
        (v1::ExitCause::Oom, cgroup) => {
            format!(", the kernel killed it for memory: {cgroup} reached its limit")
        }
        (v1::ExitCause::RuntimeLost, _) => ", its runtime was lost".to_owned(),
        (v1::ExitCause::Unknown, _) => ", its runtime does not know how".to_owned(),
        (v1::ExitCause::Unspecified | v1::ExitCause::Exit | v1::ExitCause::Signal, _) => {
            String::new()
        }
    };
    let signal = match exit.signal {
        0 => String::new(),
        signal => format!(", signal {signal}"),
    };
    format!("{}: code {}{signal}{cause}", exit.container, exit.exit_code)
}

/// The port of the node that leads to one of a sandbox; 0 where none does.
fn node_port(sandbox: &v1::Sandbox, port: &v1::PortState) -> u32 {
    let containers = sandbox.spec.iter().flat_map(|it| &it.containers);
    let mut declared = containers.flat_map(|it| &it.ports);
    let udp = |it: v1::Protocol| it == v1::Protocol::Udp;
    let is = |it: &&v1::Port| it.port == port.port && udp(it.protocol()) == udp(port.protocol());
    declared.find(is).map(|it| it.node_port).unwrap_or_default()
}

fn port_line(port: &v1::PortState, node_port: u32) -> String {
    let protocol = match port.protocol() {
        v1::Protocol::Unspecified | v1::Protocol::Tcp => "tcp",
        v1::Protocol::Udp => "udp",
    };
    let status = word(port.status().as_str_name(), "PORT_STATUS_");
    let address = if port.address.is_empty() {
        "-"
    } else {
        port.address.as_str()
    };
    let (number, container, source) = (port.port, &port.container, &port.source);
    let by_node = match node_port {
        0 => String::new(),
        node_port => format!(", port {node_port} of the node"),
    };
    let elsewhere = match port.bound_port {
        0 => String::new(),
        bound => format!(", {bound} in its place"),
    };
    format!(
        "{number}/{protocol}{by_node}{elsewhere}  {status} on {address}  {container} (says {source})"
    )
}

/// What is asked of a container, and how often.
fn probe_line(container: &str, probe: &v1::Probe) -> String {
    let asked = match &probe.check {
        Some(Check::HttpGet(it)) => format!("GET {} on port {}", it.path, it.port),
        Some(Check::TcpConnect(it)) => format!("a connection to port {}", it.port),
        Some(Check::Exec(it)) => it.command.join(" "),
        None => "-".to_owned(),
    };
    let period = precise_duration(duration(probe.period.as_ref()));
    format!("{container}  {asked} every {period}")
}

fn phase_block(phases: &[v1::Phase]) -> String {
    let name = |it: &v1::Phase| match it.container.as_str() {
        "" => it.name.clone(),
        container => format!("{} {container}", it.name),
    };
    let width = phases
        .iter()
        .map(|it| name(it).chars().count())
        .max()
        .unwrap_or_default();
    block(phases.iter().map(|it| {
        let start = precise_duration(duration(it.start.as_ref()));
        let took = precise_duration(duration(it.took.as_ref()));
        format!("{:<width$}  at {start:>8}  took {took:>8}", name(it))
    }))
}

fn block(lines: impl IntoIterator<Item = String>) -> String {
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

/// `REASON: message`, or the one that there is.
pub(super) fn in_one_line(reason: &str, message: &str) -> String {
    match (reason, message) {
        ("", text) | (text, "") => text.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

/// The status as people know it.
pub(super) fn status_word(sandbox: &v1::Sandbox) -> &'static str {
    word(sandbox.status().as_str_name(), "SANDBOX_STATUS_")
}

/// The addresses without their prefix lengths, ready to be pasted.
pub(super) fn bare_addresses(sandbox: &v1::Sandbox) -> String {
    let addresses = sandbox.addresses.iter().map(|it| it.address.as_str());
    let bare: Vec<_> = addresses
        .map(|it| it.split_once('/').map_or(it, |(bare, _)| bare))
        .collect();
    bare.join(",")
}

pub(super) async fn stop(session: &Session, args: Id) -> Result<(), Failure> {
    let request = v1::StopRequest {
        id: args.id,
        ..Default::default()
    };
    let response = client(session)
        .await?
        .stop(session.request(request))
        .await?
        .into_inner();
    let sandbox = response.sandbox.ok_or(Failure::Incomplete("sandbox"))?;
    let line = || format!("{} {}", sandbox.id, status_word(&sandbox));
    Ok(session.output.object(&ProtoJson(&sandbox), line)?)
}

pub(super) async fn remove(session: &Session, args: Rm) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Removed {
        id: String,
        existed: bool,
    }
    #[derive(Serialize)]
    struct Removals {
        removed: Vec<Removed>,
    }

    let client = client(session).await?;
    let calls = args.ids.into_iter().map(|id| {
        let mut client = client.clone();
        async move {
            let request = v1::DeleteRequest {
                id: id.clone(),
                ..Default::default()
            };
            let response = client.delete(session.request(request)).await?.into_inner();
            Ok::<_, Failure>(Removed {
                id,
                existed: response.existed,
            })
        }
    });
    let ended: Vec<_> = stream::iter(calls)
        .buffered(REMOVALS_AT_ONCE)
        .collect()
        .await;
    let (mut removed, mut failures) = (Vec::new(), Vec::new());
    for result in ended {
        match result {
            Ok(removal) => removed.push(removal),
            Err(failure) => failures.push(failure),
        }
    }
    let object = Removals { removed };
    session.output.object(&object, || {
        block(object.removed.iter().map(|it| match it.existed {
            true => format!("{} removed", it.id),
            false => format!("{} was not there", it.id),
        }))
    })?;
    match failures.pop() {
        None => Ok(()),
        Some(failure) if failures.is_empty() => Err(failure),
        Some(failure) => {
            failures.push(failure);
            Err(Failure::Several(failures))
        }
    }
}

#[cfg(test)]
mod tests;

//! Commands on the node and its manager: node status, audit, version.

use std::time::Duration;

use berth_api::v1::{self, AuditAction, AuditVerdict, node_service_client::NodeServiceClient};
use jiff::Timestamp;
use serde::Serialize;
use tonic::transport::Channel;

use super::Session;
use crate::{
    args::{Audit, Node},
    errors::Failure,
    output::{self, age, duration, page, short_duration, size, table, word},
    proto_json::ProtoJson,
};

/// How long `version` waits for a manager, which it can do without.
const VERSION_TIMEOUT: Duration = Duration::from_secs(2);

/// Processes whose versions are the manager's when all are of one build.
const OWN: [&str; 4] = ["dns", "image-gc", "metrics", "watchdog"];

/// Of an audit, in bytes: that of a hundred thousand sandboxes.
const AUDIT_ANSWER_MAX: usize = 512 << 20;

pub(super) async fn run(session: &Session, command: Node) -> Result<(), Failure> {
    match command {
        Node::Status => status(session).await,
        Node::Drain { message } => drain(session, true, message).await,
        Node::Undrain => drain(session, false, String::new()).await,
    }
}

async fn client(session: &Session) -> Result<NodeServiceClient<Channel>, Failure> {
    let client = NodeServiceClient::new(session.connect().await?);
    Ok(client.max_decoding_message_size(AUDIT_ANSWER_MAX))
}

async fn fetch_status(session: &Session) -> Result<v1::GetStatusResponse, Failure> {
    let request = session.request(v1::GetStatusRequest {});
    Ok(client(session)
        .await?
        .get_status(request)
        .await?
        .into_inner())
}

async fn status(session: &Session) -> Result<(), Failure> {
    let status = fetch_status(session).await?;
    Ok(session.output.object(&ProtoJson(&status), || {
        let (page, now) = (status_page(&status), Timestamp::now());
        match status.plugins.is_empty() {
            true => page,
            false => format!("{page}\n\n{}", processes(&status, now)),
        }
    })?)
}

async fn drain(session: &Session, drain: bool, message: String) -> Result<(), Failure> {
    let request = session.request(v1::DrainRequest { drain, message });
    let answer = client(session).await?.drain(request).await?.into_inner();
    Ok(session.output.object(&ProtoJson(&answer), || {
        let state = if drain { "draining" } else { "open" };
        format!("{state}: {} sandboxes stand", answer.sandboxes)
    })?)
}

fn status_page(status: &v1::GetStatusResponse) -> String {
    let mut lines = vec![
        ("node", status.node_id.clone()),
        ("instance", status.instance_id.clone()),
        ("version", status.version.clone()),
        ("uptime", short_duration(duration(status.uptime.as_ref()))),
        ("memory", size(status.memory_rss_bytes)),
        ("revision", status.revision.to_string()),
    ];
    if let Some(runtime) = &status.runtime {
        let state = match runtime.reachable {
            true => format!("containerd {}", runtime.version),
            false => "containerd does not answer".to_owned(),
        };
        let (address, namespace) = (&runtime.address, &runtime.namespace);
        let (handler, version) = (&runtime.handler, runtime.cgroup_version);
        lines.push((
            "runtime",
            format!("{state} at {address}, namespace {namespace}"),
        ));
        lines.push((
            "containers",
            format!("started by {handler}, cgroup v{version}"),
        ));
    }
    if let Some(network) = &status.network {
        let v1::NetworkStatus {
            bridge,
            subnet,
            capacity,
            held,
            cooling,
            subnet6,
        } = network;
        let subnets = match subnet6.as_str() {
            "" => subnet.clone(),
            subnet6 => format!("{subnet} and {subnet6}"),
        };
        lines.push(("network", format!("{subnets} on {bridge}")));
        lines.push((
            "addresses",
            format!("{held} of {capacity} held, {cooling} at rest"),
        ));
    }
    let counts = status
        .sandboxes
        .iter()
        .map(|it| format!("{} {}", it.count, it.status));
    lines.push(("sandboxes", counts.collect::<Vec<_>>().join(", ")));
    if let Some(it) = &status.capacity {
        lines.push((
            "cpu",
            format!(
                "{} of {} thousandths promised",
                it.cpu_millis_promised, it.cpu_millis
            ),
        ));
        lines.push((
            "node memory",
            format!(
                "{} of {} promised, {} available",
                size(it.memory_bytes_promised),
                size(it.memory_bytes),
                size(it.memory_bytes_available)
            ),
        ));
    }
    if status.draining {
        lines.push(("draining", format!("yes: {}", status.drain_message)));
    }
    if status.not_looked_at > 0 {
        lines.push((
            "starting",
            format!("{} sandboxes were not looked at yet", status.not_looked_at),
        ));
    }
    lines.push(("degraded", status.degraded.join("\n")));
    let troubles = status.troubles.iter().map(|it| {
        let cause = super::sandboxes::in_one_line(&it.reason, &it.message);
        format!("{}: {cause} ({} tries)", it.sandbox, it.attempts)
    });
    lines.push(("troubles", troubles.collect::<Vec<_>>().join("\n")));
    page(lines)
}

/// The processes beside the manager. Those of Berth's own that are of another build than the manager are marked: what others
/// write has versions of its own.
fn processes(status: &v1::GetStatusResponse, now: Timestamp) -> String {
    let other = |it: &v1::Plugin| {
        let own = OWN.contains(&it.name.as_str()) && !it.version.is_empty();
        own && it.version != status.version
    };
    let rows = status.plugins.iter().map(|it| {
        let state = word(it.state().as_str_name(), "PLUGIN_STATE_");
        let (ran, result) = match &it.last_run {
            None => (String::new(), String::new()),
            Some(run) => {
                let result = match run.succeeded {
                    true => run.result.clone(),
                    false => format!("failed: {}", run.result),
                };
                (age(run.ended_at.as_ref(), now), result)
            }
        };
        [
            it.name.clone(),
            it.instance.clone(),
            match other(it) {
                true => format!("{} *", it.version),
                false => it.version.clone(),
            },
            state.to_owned(),
            age(it.heard_at.as_ref(), now),
            ran,
            result,
            it.reason.clone(),
        ]
    });
    let columns = [
        "PROCESS", "INSTANCE", "VERSION", "STATE", "HEARD", "LAST RUN", "RESULT", "REASON",
    ];
    let table = table(columns, rows.collect());
    match status.plugins.iter().any(other) {
        true => format!("{table}\n\n* the manager is {}", status.version),
        false => table,
    }
}

pub(super) async fn audit(session: &Session, args: Audit) -> Result<(), Failure> {
    let request = session.request(v1::AuditRequest {
        fix: args.fix,
        settle: args.settle.and_then(|it| it.try_into().ok()),
    });
    let audit = client(session).await?.audit(request).await?.into_inner();
    session
        .output
        .object(&ProtoJson(&audit), || audit_table(&audit))?;
    if audit.clean {
        Ok(())
    } else {
        Err(Failure::NotClean(unexplained(&audit)))
    }
}

fn audit_table(audit: &v1::AuditResponse) -> String {
    let verdict = if audit.clean { "clean" } else { "not clean" };
    let summary = format!("{verdict}: {} objects", audit.objects.len());
    if audit.objects.is_empty() {
        return summary;
    }
    let rows = audit.objects.iter().map(|it| {
        let verdict = word(it.verdict().as_str_name(), "AUDIT_VERDICT_").to_owned();
        let generation = match it.generation {
            0 => String::new(),
            number => number.to_string(),
        };
        let age = it.age.as_ref().map(|it| short_duration(duration(Some(it))));
        [
            it.kind.clone(),
            it.name.clone(),
            it.sandbox.clone(),
            generation,
            age.unwrap_or_default(),
            verdict,
            todo(it),
        ]
    });
    let columns = [
        "KIND",
        "NAME",
        "SANDBOX",
        "GENERATION",
        "AGE",
        "VERDICT",
        "WHAT TO DO",
    ];
    let objects = table(columns, rows.collect());
    format!("{objects}\n\n{summary}")
}

/// What is wrong and what to do about it, or what was done.
fn todo(object: &v1::AuditObject) -> String {
    let explanation = &object.explanation;
    match object.action() {
        AuditAction::Removed => format!("{explanation}: removed"),
        AuditAction::Left => format!("{explanation}: left, {}", object.action_message),
        AuditAction::Failed => format!("{explanation}: failed, {}", object.action_message),
        AuditAction::Unspecified if object.todo.is_empty() => String::new(),
        AuditAction::Unspecified => format!("{explanation}: {}", object.todo),
    }
}

/// How many objects are not in order, as far as they are still there.
fn unexplained(audit: &v1::AuditResponse) -> usize {
    let in_order = [AuditVerdict::Explained, AuditVerdict::InProgress];
    audit
        .objects
        .iter()
        .filter(|it| !in_order.contains(&it.verdict()) && it.action() != AuditAction::Removed)
        .count()
}

pub(super) async fn version(session: &Session) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Versions {
        client: &'static str,
        /// Of the client, as its build date; empty where it is no release.
        commit: &'static str,
        build_date: &'static str,
        server: Option<String>,
    }

    let limit = session.timeout.unwrap_or(VERSION_TIMEOUT);
    let server = match tokio::time::timeout(limit, fetch_status(session)).await {
        Ok(Ok(status)) => Some(status.version),
        Ok(Err(_)) | Err(_) => None,
    };
    let versions = Versions {
        client: berth_version::VERSION,
        commit: berth_version::COMMIT,
        build_date: berth_version::BUILD_DATE,
        server,
    };
    Ok(session.output.object(&versions, || {
        let server = versions.server.clone();
        output::page(vec![
            ("client", berth_version::LONG.to_owned()),
            (
                "server",
                server.unwrap_or_else(|| format!("not reachable at {}", session.address)),
            ),
        ])
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, verdict: AuditVerdict) -> v1::AuditObject {
        v1::AuditObject {
            kind: "netns".to_owned(),
            name: name.to_owned(),
            verdict: verdict.into(),
            explanation: "why".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn an_audit_lists_every_object_with_its_age_and_what_to_do() {
        let mut old = object("b", AuditVerdict::Orphan);
        old.sandbox = "web".to_owned();
        old.generation = 7;
        old.age = Some(prost_types::Duration {
            seconds: 150,
            nanos: 0,
        });
        old.todo = "--fix removes it".to_owned();
        let objects = vec![object("a", AuditVerdict::InProgress), old];
        let audit = v1::AuditResponse {
            objects,
            clean: false,
        };
        assert_eq!(
            audit_table(&audit),
            "KIND   NAME  SANDBOX  GENERATION  AGE    VERDICT      WHAT TO DO\n\
             netns  a     -        -           -      IN_PROGRESS  -\n\
             netns  b     web      7           2m30s  ORPHAN       why: --fix removes it\n\
             \n\
             not clean: 2 objects"
        );
        assert_eq!(unexplained(&audit), 1);
    }

    #[test]
    #[rustfmt::skip]
    fn what_was_done_stands_where_what_to_do_stood() {
        let cases = [
            (AuditAction::Unspecified, "",          "why: --fix removes it", 1),
            (AuditAction::Removed,     "",          "why: removed",          0),
            (AuditAction::Left,        "it is new", "why: left, it is new",  1),
            (AuditAction::Failed,      "no",        "why: failed, no",       1),
        ];
        for (action, message, expected, not_in_order) in cases {
            let object = v1::AuditObject {
                todo: "--fix removes it".to_owned(),
                action: action.into(),
                action_message: message.to_owned(),
                ..object("a", AuditVerdict::Orphan)
            };
            assert_eq!(todo(&object), expected);
            let objects = vec![object];
            assert_eq!(unexplained(&v1::AuditResponse { objects, clean: false }), not_in_order);
        }
    }

    #[test]
    fn an_empty_node_is_clean_in_one_line() {
        let audit = v1::AuditResponse {
            objects: vec![],
            clean: true,
        };
        assert_eq!(audit_table(&audit), "clean: 0 objects");
    }

    #[test]
    fn each_process_beside_the_manager_has_a_line_with_its_last_run() {
        let now = Timestamp::from_second(100).unwrap();
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let dns = v1::Plugin {
            name: "dns".to_owned(),
            version: "1".to_owned(),
            state: v1::PluginState::Away.into(),
            heard_at: at(40),
            reason: "old".to_owned(),
            ..v1::Plugin::default()
        };
        let run = v1::PluginRun {
            ended_at: at(90),
            succeeded: false,
            result: "no".to_owned(),
        };
        let watchdog = v1::Plugin {
            name: "watchdog".to_owned(),
            instance: "a".to_owned(),
            state: v1::PluginState::Serving.into(),
            heard_at: at(99),
            last_run: Some(run),
            ..v1::Plugin::default()
        };
        let status = v1::GetStatusResponse {
            version: "1".to_owned(),
            plugins: vec![dns, watchdog],
            ..v1::GetStatusResponse::default()
        };
        assert_eq!(
            processes(&status, now),
            "PROCESS   INSTANCE  VERSION  STATE    HEARD  LAST RUN  RESULT      REASON\n\
             dns       -         1        AWAY     1m     -         -           old\n\
             watchdog  a         -        SERVING  1s     10s       failed: no  -"
        );
    }

    #[test]
    fn a_process_of_another_build_than_the_manager_is_marked_and_one_of_others_is_not() {
        let of = |name: &str, version: &str| v1::Plugin {
            name: name.to_owned(),
            version: version.to_owned(),
            ..v1::Plugin::default()
        };
        let mut status = v1::GetStatusResponse {
            version: "0.2.1".to_owned(),
            plugins: vec![
                of("dns", "0.2.0"),
                of("metrics", "0.2.1"),
                of("port-reporter", "7"),
            ],
            ..v1::GetStatusResponse::default()
        };
        let text = processes(&status, Timestamp::UNIX_EPOCH);
        let marked: Vec<_> = text.lines().filter(|it| it.contains('*')).collect();
        assert_eq!(marked.len(), 2, "{text}");
        assert!(
            marked[0].starts_with("dns ") && marked[0].contains(" 0.2.0 * "),
            "{text}"
        );
        assert_eq!(marked[1], "* the manager is 0.2.1");
        status.plugins[0].version = "0.2.1".to_owned();
        assert!(!processes(&status, Timestamp::UNIX_EPOCH).contains('*'));
    }

    #[test]
    fn a_status_names_what_is_degraded() {
        let status = v1::GetStatusResponse {
            node_id: "n1".to_owned(),
            uptime: Some(prost_types::Duration {
                seconds: 150,
                nanos: 0,
            }),
            runtime: Some(v1::RuntimeStatus {
                reachable: false,
                ..Default::default()
            }),
            degraded: vec!["No memory.high here.".to_owned(), "No crun.".to_owned()],
            ..Default::default()
        };
        let text = status_page(&status);
        for part in [
            "2m30s",
            "does not answer",
            "No memory.high here.\n",
            "No crun.",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }
}

//! When a sandbox may be called RUNNING: its TCP ports listen, or, without one, its tasks live at a second look.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{
    ContainerName, ExitRecord, Failure, Health, PortSighting, Protocol, Reason, Role, Sandbox,
    SandboxId, SandboxRecord, SandboxSpec, assess,
};
use berth_platform::{Images, ListeningSocket, Network, Runtime};
use tokio::sync::{Notify, watch};

use crate::{
    failures::{exited, network_failure, runtime_failure, shim_silent},
    node::Node,
    sandbox::View,
};

/// An app that listens at once is seen at once.
const FIRST_PAUSE: Duration = Duration::from_micros(500);
/// One look costs well under a millisecond, so looking this often costs nothing that counts.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);
/// An app that cannot start has ended by then.
const SECOND_LOOK: Duration = Duration::from_millis(50);
/// A task that ended without an event is found this late at the most.
const EXIT_LOOK: Duration = Duration::from_secs(1);
/// The source of what the manager sees by itself.
pub(crate) const OWN_SIGHTING: &str = "manager";

#[derive(Debug)]
pub(crate) struct ReadyError {
    pub(crate) failure: Box<Failure>,
    /// The exit that made waiting pointless.
    pub(crate) exit: Option<ExitRecord>,
}

impl From<Failure> for ReadyError {
    fn from(failure: Failure) -> Self {
        Self {
            failure: Box::new(failure),
            exit: None,
        }
    }
}

/// Waits until `sandbox` is ready and returns what was seen of its ports.
pub(crate) async fn await_ready<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    sandbox: &Sandbox,
    exits: &Notify,
    view: watch::Receiver<View>,
) -> Result<Vec<PortSighting>, ReadyError> {
    if sandbox.spec.tcp_ports().next().is_none() {
        let mut second_look = pin!(tokio::time::sleep(SECOND_LOOK));
        loop {
            let over = tokio::select! {
                () = exits.notified() => false,
                () = &mut second_look => true,
            };
            check_tasks(node, sandbox).await?;
            if over {
                return Ok(vec![]);
            }
        }
    }
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut exit_look = begun + EXIT_LOOK;
    loop {
        let listening = node
            .network
            .listening(&sandbox.id)
            .await
            .map_err(network_failure)?;
        let reported = reported_ports(&view.borrow(), sandbox);
        let (seen, waiting) = sort_ports(&sandbox.spec, &listening, &reported);
        if waiting.is_empty() {
            return Ok(seen);
        }
        if begun.elapsed() >= sandbox.spec.port_wait_timeout {
            check_tasks(node, sandbox).await?;
            return Err(port_timeout(sandbox, &waiting, &listening, begun.elapsed()).into());
        }
        if Instant::now() >= exit_look {
            check_tasks(node, sandbox).await?;
            exit_look = Instant::now() + EXIT_LOOK;
        }
        tokio::select! {
            () = exits.notified() => check_tasks(node, sandbox).await?,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

/// Fails where a task of the sandbox has ended.
async fn check_tasks<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    sandbox: &Sandbox,
) -> Result<(), ReadyError> {
    let seen = node.observe(&sandbox.id).await?;
    match assess(&sandbox.spec, &seen, false) {
        Health::Stands | Health::Unprepared => Ok(()),
        Health::Exited { role, code, at } => {
            let exit = exit_record(node, sandbox, role, code, at, 0).await?;
            Err(ReadyError {
                failure: Box::new(exited(&exit, "before")),
                exit: Some(exit),
            })
        }
        Health::Lost { role, what } => {
            Err(Failure::new(Reason::RuntimeRefused, format!("container {role}: {what}")).into())
        }
        Health::Unknown { role } => Err(shim_silent(&role).into()),
        Health::Gone => {
            Err(Failure::new(Reason::RuntimeRefused, "the sandbox has vanished").into())
        }
    }
}

/// Completes an exit with its cause, while the cgroup that knows it is there. Of the kernel's kills for memory in it,
/// `former` were there before and did not end it.
pub(crate) async fn exit_record<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    sandbox: &Sandbox,
    role: Role,
    code: u32,
    at: SystemTime,
    former: u64,
) -> Result<ExitRecord, Failure> {
    let kills = oom_kills(node, &sandbox.id).await?;
    let oom = match kills.get(&role) {
        Some(kills) if *kills > former => {
            let culprit = node.runtime.oom_cgroup(&sandbox.id, &role).await;
            culprit.map_err(runtime_failure)?
        }
        Some(_) | None => None,
    };
    // A task that nobody waited for has no time.
    let at = (at != SystemTime::UNIX_EPOCH).then_some(at);
    let now = SystemTime::now();
    Ok(ExitRecord::from_status(role, code, at, oom, now))
}

/// How many processes the kernel has killed for memory in each container.
pub(crate) async fn oom_kills<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    id: &SandboxId,
) -> Result<BTreeMap<Role, u64>, Failure> {
    let readings = node.runtime.usage(id).await.map_err(runtime_failure)?;
    let kills = readings.into_iter().map(|it| (it.role, it.usage.oom_kills));
    Ok(kills.collect())
}

/// The declared TCP ports of a sandbox that runs on which nothing listens, in words; empty when all do.
pub(crate) async fn missing_ports<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    record: &SandboxRecord,
) -> Result<String, Failure> {
    if record.spec.tcp_ports().next().is_none() {
        return Ok(String::new());
    }
    let listening = node.network.listening(&record.id).await;
    let listening = listening.map_err(network_failure)?;
    let (_, waiting) = sort_ports(&record.spec, &listening, &reported_by_others(record));
    Ok(in_words(&waiting))
}

fn in_words(ports: &[(&ContainerName, u16)]) -> String {
    let words = ports.iter().map(|(name, port)| format!("{port} ({name})"));
    words.collect::<Vec<_>>().join(", ")
}

/// The declared TCP ports that somebody reported as bound.
fn reported_ports(view: &View, sandbox: &Sandbox) -> BTreeMap<u16, PortSighting> {
    let record = view
        .record
        .as_ref()
        .filter(|it| it.generation == sandbox.generation);
    record.map(|it| reported_by_others(it)).unwrap_or_default()
}

/// What the manager itself once saw is no report: it looks again.
fn reported_by_others(record: &SandboxRecord) -> BTreeMap<u16, PortSighting> {
    record
        .ports
        .iter()
        .filter(|it| it.bound && it.protocol == Protocol::Tcp && it.source != OWN_SIGHTING)
        .map(|it| (it.port, it.clone()))
        .collect()
}

/// Sorts the declared TCP ports into those that are there and those that are waited for.
fn sort_ports<'a>(
    spec: &'a SandboxSpec,
    listening: &[ListeningSocket],
    reported: &BTreeMap<u16, PortSighting>,
) -> (Vec<PortSighting>, Vec<(&'a ContainerName, u16)>) {
    let (mut seen, mut waiting) = (vec![], vec![]);
    for (container, port) in spec.tcp_ports() {
        let socket = listening.iter().find(|it| {
            it.protocol == Protocol::Tcp && it.port == port.number && !is_loopback(it.address)
        });
        match (socket, reported.get(&port.number)) {
            (Some(socket), _) => seen.push(PortSighting {
                container: container.clone(),
                port: port.number,
                protocol: Protocol::Tcp,
                bound: true,
                address: socket.address.to_string(),
                source: OWN_SIGHTING.to_owned(),
                at: SystemTime::now(),
            }),
            (None, Some(report)) => seen.push(report.clone()),
            (None, None) => waiting.push((container, port.number)),
        }
    }
    (seen, waiting)
}

/// Also of an IPv4 address that a socket of IPv6 is bound to.
fn is_loopback(address: std::net::IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Says what was expected, what listened in its place, and what to do.
fn port_timeout(
    sandbox: &Sandbox,
    waiting: &[(&ContainerName, u16)],
    listening: &[ListeningSocket],
    waited: Duration,
) -> Failure {
    let join = |it: &mut dyn Iterator<Item = String>| it.collect::<Vec<_>>().join(", ");
    let expected = in_words(waiting);
    let tcp: BTreeSet<_> = listening
        .iter()
        .filter(|it| it.protocol == Protocol::Tcp)
        .collect();
    let there = join(&mut tcp.iter().map(|it| match it.address {
        std::net::IpAddr::V4(ip) => format!("{ip}:{}", it.port),
        std::net::IpAddr::V6(ip) => format!("[{ip}]:{}", it.port),
    }));
    let loopback_only = waiting.iter().any(|(_, port)| {
        tcp.iter()
            .any(|it| it.port == *port && is_loopback(it.address))
    });
    let advice = if loopback_only {
        "it listens on loopback only, where nobody outside the sandbox reaches it: bind 0.0.0.0"
            .to_owned()
    } else if tcp.is_empty() {
        "nothing listens in the sandbox".to_owned()
    } else {
        format!("listening are {there}")
    };
    Failure::new(
        Reason::PortTimeout,
        format!(
            "sandbox {}: port {expected} did not listen within {} ms; {advice}",
            sandbox.id,
            sandbox.spec.port_wait_timeout.as_millis(),
        ),
    )
    .with("expected", expected)
    .with("listening", there)
    .with("waited_ms", waited.as_millis())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use berth_domain::{
        Container, Generation, ImageRef, Port, Resources, SandboxId, SandboxRecord,
    };

    use super::*;

    fn name(text: &str) -> ContainerName {
        ContainerName::parse(text).unwrap()
    }

    fn container(text: &str, ports: &[(u16, Protocol)]) -> Container {
        let port = |&(number, protocol): &(u16, Protocol)| Port {
            number,
            name: String::new(),
            protocol,
            kind: String::new(),
            node_port: None,
        };
        Container {
            name: name(text),
            image: ImageRef::parse(text).unwrap(),
            command: String::new(),
            args: None,
            directory: String::new(),
            env: vec![],
            ports: ports.iter().map(port).collect(),
            oom_score: 0,
            config_files: vec![],
            shutdown_timeout: Duration::ZERO,
            resources: Resources::default(),
        }
    }

    fn sandbox(containers: impl IntoIterator<Item = Container>) -> Sandbox {
        Sandbox {
            id: SandboxId::parse("s1").unwrap(),
            generation: Generation(2),
            spec: Arc::new(SandboxSpec {
                containers: containers.into_iter().collect(),
                port_wait_timeout: Duration::from_millis(1500),
                ..SandboxSpec::default()
            }),
            addresses: vec![],
        }
    }

    fn web() -> Sandbox {
        sandbox([container("web", &[(80, Protocol::Tcp)])])
    }

    fn socket(protocol: Protocol, address: &str, port: u16) -> ListeningSocket {
        ListeningSocket {
            protocol,
            address: address.parse().unwrap(),
            port,
        }
    }

    fn report(port: u16, protocol: Protocol, bound: bool) -> PortSighting {
        PortSighting {
            container: name("web"),
            port,
            protocol,
            bound,
            address: String::new(),
            source: "sidecar".to_owned(),
            at: SystemTime::UNIX_EPOCH,
        }
    }

    fn timeout(sandbox: &Sandbox, listening: &[ListeningSocket]) -> Failure {
        let (_, waiting) = sort_ports(&sandbox.spec, listening, &BTreeMap::new());
        port_timeout(sandbox, &waiting, listening, Duration::from_millis(1502))
    }

    #[test]
    #[rustfmt::skip]
    fn a_port_is_there_when_something_outside_reaches_listens_on_it() {
        use Protocol::{Tcp, Udp};
        let cases = [
            (Tcp, "0.0.0.0",   80, true),
            (Tcp, "10.1.0.2",  80, true),
            (Tcp, "::",        80, true),
            (Tcp, "fd00::2",   80, true),
            (Tcp, "127.0.0.1", 80, false),
            (Tcp, "127.3.2.1", 80, false),
            (Tcp, "::1",       80, false),
            (Tcp, "::ffff:127.0.0.1", 80, false),
            (Tcp, "::ffff:10.9.0.2",  80, true),
            (Tcp, "0.0.0.0",   81, false),
            (Udp, "0.0.0.0",   80, false),
        ];
        for (protocol, address, port, there) in cases {
            let sandbox = web();
            let listening = [socket(protocol, address, port)];
            let (seen, waiting) = sort_ports(&sandbox.spec, &listening, &BTreeMap::new());
            assert_eq!((seen.len(), waiting.is_empty()), (usize::from(there), there), "{listening:?}");
        }
    }

    #[test]
    fn a_sighting_says_where_the_port_was_seen_and_by_whom() {
        let sandbox = web();
        let listening = [
            socket(Protocol::Tcp, "127.0.0.1", 80),
            socket(Protocol::Tcp, "::", 80),
        ];
        let reported = BTreeMap::from([(80, report(80, Protocol::Tcp, true))]);
        let (seen, _) = sort_ports(&sandbox.spec, &listening, &reported);
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].port, seen[0].bound), (80, true));
        assert_eq!(seen[0].container, name("web"));
        assert_eq!(seen[0].address, "::");
        assert_eq!(
            seen[0].source, "manager",
            "what is seen comes before what is reported"
        );
    }

    #[test]
    fn a_reported_port_counts_where_nothing_is_seen() {
        let sandbox = web();
        let reported = BTreeMap::from([(80, report(80, Protocol::Tcp, true))]);
        let (seen, waiting) = sort_ports(&sandbox.spec, &[], &reported);
        assert_eq!(seen, [report(80, Protocol::Tcp, true)]);
        assert!(waiting.is_empty());
    }

    #[test]
    fn udp_ports_are_not_waited_for() {
        let ports = [(53, Protocol::Udp), (80, Protocol::Tcp)];
        let sandbox = sandbox([
            container("web", &ports),
            container("db", &[(5432, Protocol::Tcp)]),
        ]);
        let listening = [socket(Protocol::Tcp, "0.0.0.0", 80)];
        let (_, waiting) = sort_ports(&sandbox.spec, &listening, &BTreeMap::new());
        assert_eq!(waiting, [(&name("db"), 5432)]);
    }

    #[test]
    fn a_report_counts_for_its_generation_while_it_is_bound_and_tcp() {
        let sandbox = web();
        let reports = vec![
            report(80, Protocol::Tcp, true),
            report(81, Protocol::Tcp, false),
            report(82, Protocol::Udp, true),
            PortSighting {
                source: OWN_SIGHTING.to_owned(),
                ..report(83, Protocol::Tcp, true)
            },
        ];
        let view = |generation| {
            let now = SystemTime::UNIX_EPOCH;
            let spec = sandbox.spec.clone();
            let mut record = SandboxRecord::new(sandbox.id.clone(), generation, spec, vec![], now);
            record.ports = reports.clone();
            View {
                record: Some(Arc::new(record)),
                ..View::default()
            }
        };
        let counted = reported_ports(&view(sandbox.generation), &sandbox);
        assert_eq!(counted.into_keys().collect::<Vec<_>>(), [80]);
        assert!(reported_ports(&view(Generation(1)), &sandbox).is_empty());
        assert!(reported_ports(&View::default(), &sandbox).is_empty());
    }

    #[test]
    fn a_timeout_tells_what_was_expected_what_listened_and_how_long_it_waited() {
        let sandbox = web();
        let listening = [
            socket(Protocol::Tcp, "::", 8080),
            socket(Protocol::Tcp, "10.1.0.2", 9000),
            socket(Protocol::Udp, "0.0.0.0", 53),
        ];
        let failure = timeout(&sandbox, &listening);
        assert_eq!(failure.reason, Reason::PortTimeout);
        assert_eq!(failure.metadata["expected"], "80 (web)");
        assert_eq!(failure.metadata["listening"], "10.1.0.2:9000, [::]:8080");
        assert_eq!(failure.metadata["waited_ms"], "1502");
        for part in [
            "sandbox s1",
            "80 (web)",
            "1500 ms",
            "10.1.0.2:9000, [::]:8080",
        ] {
            assert!(failure.message.contains(part), "{part}: {failure}");
        }
    }

    #[test]
    fn who_listens_on_loopback_only_is_told_to_bind_everywhere() {
        for address in ["127.0.0.1", "::1"] {
            let failure = timeout(&web(), &[socket(Protocol::Tcp, address, 80)]);
            assert!(failure.message.contains("bind 0.0.0.0"), "{failure}");
        }
        // Another port on loopback is not what was expected.
        let failure = timeout(&web(), &[socket(Protocol::Tcp, "127.0.0.1", 81)]);
        assert!(!failure.message.contains("bind 0.0.0.0"), "{failure}");
        assert!(failure.message.contains("127.0.0.1:81"), "{failure}");
    }

    #[test]
    fn a_sandbox_in_which_nothing_listens_is_told_so() {
        let failure = timeout(&web(), &[socket(Protocol::Udp, "0.0.0.0", 80)]);
        assert!(failure.message.contains("nothing listens"), "{failure}");
        assert_eq!(failure.metadata["listening"], "");
    }

    #[test]
    fn only_the_ports_that_are_missing_are_expected() {
        let ports = [(80, Protocol::Tcp), (81, Protocol::Tcp)];
        let sandbox = sandbox([container("web", &ports)]);
        let failure = timeout(&sandbox, &[socket(Protocol::Tcp, "0.0.0.0", 80)]);
        assert_eq!(failure.metadata["expected"], "81 (web)");
    }
}

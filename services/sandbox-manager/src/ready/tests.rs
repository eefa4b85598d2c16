//! What is judged of ports and told about them; waiting itself is tried with the fake node in `registry/tests`.

use std::sync::Arc;

use berth_domain::{
    BoundPorts, Container, ContainerName, Generation, ImageRef, Port, ProbeCheck, Protocol,
    Resources, SandboxSpec, Status,
};
use berth_platform::{ListeningSocket, SocketHolder};

use super::*;

use Protocol::{Tcp, Udp};

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
        tty: false,
        stdin: false,
        shutdown_timeout: Duration::ZERO,
        resources: Resources::default(),
        readiness_probe: None,
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
        bound_ports: BoundPorts::new(),
    }
}

fn web() -> Sandbox {
    sandbox([container("web", &[(80, Tcp)])])
}

fn socket(protocol: Protocol, address: &str, port: u16) -> ListeningSocket {
    ListeningSocket {
        protocol,
        address: address.parse().unwrap(),
        port,
        inode: port.into(),
    }
}

fn report(port: u16, protocol: Protocol, bound: bool) -> PortSighting {
    PortSighting {
        container: name("web"),
        port,
        protocol,
        bound,
        address: "0.0.0.0".to_owned(),
        source: "sidecar".to_owned(),
        at: SystemTime::UNIX_EPOCH,
        bound_port: None,
    }
}

fn sorted<'a>(
    sandbox: &'a Sandbox,
    sockets: &[ListeningSocket],
    told: &[PortSighting],
) -> Sorted<'a> {
    sort(&sandbox.spec, sockets, told, SystemTime::now())
}

fn taken(sandbox: &Sandbox, sockets: &[ListeningSocket]) -> Option<PortSighting> {
    let missing = sorted(sandbox, sockets, &[]).missing;
    in_place_of(&sandbox.spec, sockets, &missing, SystemTime::now())
}

/// By a `httpd` in `web` that has every socket open.
fn timeout(sandbox: &Sandbox, sockets: &[ListeningSocket]) -> Failure {
    let missing = sorted(sandbox, sockets, &[]).missing;
    let holder = SocketHolder {
        role: Role::App(name("web")),
        command: "httpd".to_owned(),
        pid: 7,
    };
    let holders = sockets.iter().map(|it| (it.inode, holder.clone()));
    let holders = Some(holders.collect());
    let waited = Duration::from_millis(1502);
    port_timeout(sandbox, &missing, sockets, &holders, waited)
}

#[test]
#[rustfmt::skip]
fn a_port_is_there_when_something_that_others_reach_listens_on_it() {
    let cases = [
        (Tcp, "0.0.0.0",          80, true),
        (Tcp, "10.1.0.2",         80, true),
        (Tcp, "::",               80, true),
        (Tcp, "fd00::2",          80, true),
        (Tcp, "127.0.0.1",        80, false),
        (Tcp, "127.3.2.1",        80, false),
        (Tcp, "::1",              80, false),
        (Tcp, "::ffff:127.0.0.1", 80, false),
        (Tcp, "::ffff:10.9.0.2",  80, true),
        (Tcp, "0.0.0.0",          81, false),
        (Udp, "0.0.0.0",          80, false),
    ];
    for (protocol, address, port, there) in cases {
        let sandbox = web();
        let listening = [socket(protocol, address, port)];
        let Sorted { seen, missing } = sorted(&sandbox, &listening, &[]);
        assert_eq!((seen.len(), missing.is_empty()), (usize::from(there), there), "{listening:?}");
    }
}

#[test]
fn each_declared_port_is_waited_for_by_its_protocol() {
    let sandbox = sandbox([
        container("web", &[(53, Udp), (53, Tcp)]),
        container("db", &[(5432, Tcp)]),
    ]);
    let listening = [socket(Udp, "::", 53), socket(Udp, "0.0.0.0", 5432)];
    let Sorted { seen, missing } = sorted(&sandbox, &listening, &[]);
    let seen: Vec<_> = seen.iter().map(|it| (it.port, it.protocol)).collect();
    assert_eq!(seen, [(53, Udp)]);
    assert_eq!(words::expected(&missing), "53 (web), 5432 (db)");
}

#[test]
fn what_is_seen_comes_before_what_is_reported() {
    let sandbox = web();
    let listening = [socket(Tcp, "127.0.0.1", 80), socket(Tcp, "::", 80)];
    let reports = [report(80, Tcp, true)];
    let Sorted { seen, .. } = sorted(&sandbox, &listening, &reports);
    let [seen] = seen.as_slice() else {
        panic!("{seen:?}");
    };
    assert_eq!(
        (seen.port, seen.bound, &seen.container),
        (80, true, &name("web"))
    );
    assert_eq!(
        (seen.address.as_str(), seen.source.as_str()),
        ("::", "manager")
    );
}

#[test]
#[rustfmt::skip]
fn a_report_counts_where_nothing_is_seen_while_it_says_that_others_reach_the_port() {
    let at = |address: &str| PortSighting { address: address.into(), ..report(80, Tcp, true) };
    let own = PortSighting { source: PortSighting::OWN.to_owned(), ..report(80, Tcp, true) };
    let elsewhere = PortSighting { container: name("db"), ..report(80, Tcp, true) };
    let cases = [
        (vec![report(80, Tcp, true)],  true),
        (vec![report(80, Tcp, false)], false),
        (vec![report(80, Tcp, false), PortSighting { source: "other".into(), ..report(80, Tcp, true) }], true),
        (vec![report(81, Tcp, true)],  false),
        (vec![report(80, Udp, true)],  false),
        (vec![elsewhere],              false),
        (vec![own],                    false),
        (vec![at("fd00::2")],          true),
        (vec![at("127.0.0.1")],        false),
        (vec![at("::1")],              false),
    ];
    for (told, there) in cases {
        let sandbox = web();
        assert_eq!(sorted(&sandbox, &[], &told).missing.is_empty(), there, "{told:?}");
    }
}

#[test]
#[rustfmt::skip]
fn the_only_other_port_is_taken_in_the_place_of_the_only_one_that_is_missing() {
    let both = || sandbox([container("web", &[(80, Tcp), (81, Tcp)])]);
    let dns = || sandbox([container("web", &[(53, Udp)])]);
    let cases = [
        (web(),  vec![(Tcp, "0.0.0.0", 8080)],                          Some(8080)),
        (web(),  vec![(Tcp, "0.0.0.0", 8080), (Tcp, "::", 8080)],       Some(8080)),
        (web(),  vec![(Tcp, "::", 8080), (Tcp, "127.0.0.1", 9000)],     Some(8080)),
        (web(),  vec![(Tcp, "0.0.0.0", 8080), (Udp, "0.0.0.0", 9000)],  Some(8080)),
        (web(),  vec![(Tcp, "0.0.0.0", 8080), (Tcp, "0.0.0.0", 9000)],  None),
        (web(),  vec![(Tcp, "127.0.0.1", 8080)],                        None),
        (web(),  vec![(Udp, "0.0.0.0", 8080)],                          None),
        // It is there, where nobody reaches it: the other one is another.
        (web(),  vec![(Tcp, "127.0.0.1", 80), (Tcp, "0.0.0.0", 9000)],  None),
        (both(), vec![(Tcp, "0.0.0.0", 8080)],                          None),
        (both(), vec![(Tcp, "0.0.0.0", 80), (Tcp, "0.0.0.0", 8080)],    Some(8080)),
        // A declared port stands for itself alone.
        (both(), vec![(Tcp, "0.0.0.0", 80)],                            None),
        (dns(),  vec![(Udp, "0.0.0.0", 5353)],                          Some(5353)),
        // The socket of a client, which the kernel chose a port for.
        (dns(),  vec![(Udp, "0.0.0.0", 40000)],                         None),
        (dns(),  vec![(Udp, "0.0.0.0", 5353), (Udp, "::", 60999)],      Some(5353)),
    ];
    for (sandbox, sockets, expected) in cases {
        let sockets: Vec<_> = sockets.into_iter().map(|(a, b, c)| socket(a, b, c)).collect();
        let found = taken(&sandbox, &sockets);
        assert_eq!(found.as_ref().and_then(|it| it.bound_port), expected, "{sockets:?}");
        assert!(found.is_none_or(|it| it.bound && it.port != expected.unwrap()));
    }
}

#[test]
fn what_was_taken_stands_while_it_listens_and_the_port_itself_comes_first() {
    let sandbox = web();
    let elsewhere = socket(Tcp, "0.0.0.0", 8080);
    let told = [taken(&sandbox, &[elsewhere]).unwrap()];
    let bound = |sockets: &[ListeningSocket]| {
        let seen = sorted(&sandbox, sockets, &told).seen;
        seen.first().map(|it| it.bound_port)
    };
    assert_eq!(bound(&[elsewhere]), Some(Some(8080)));
    assert_eq!(bound(&[elsewhere, socket(Tcp, "::", 80)]), Some(None));
    assert_eq!(
        bound(&[socket(Tcp, "::", 9000)]),
        None,
        "another one is not taken"
    );
    assert_eq!(bound(&[socket(Tcp, "127.0.0.1", 8080)]), None);
}

#[test]
fn a_port_that_was_lost_is_taken_again_where_it_was_taken_before() {
    let sandbox = web();
    let elsewhere = [socket(Tcp, "0.0.0.0", 8080)];
    let spec = sandbox.spec.clone();
    let now = SystemTime::UNIX_EPOCH;
    let mut record = SandboxRecord::new(sandbox.id.clone(), Generation(2), spec, vec![], now);
    record.note_port(taken(&sandbox, &elsewhere).unwrap());
    let missing = sorted(&sandbox, &[], &record.ports).missing[0];
    record.note_port(lost(missing, &record, now));
    assert_eq!((record.ports.len(), record.ports[0].bound), (1, false));
    assert_eq!(sorted(&sandbox, &elsewhere, &record.ports).seen.len(), 1);
}

#[test]
#[rustfmt::skip]
fn each_finding_of_a_timeout_is_named_and_says_what_to_do() {
    let both = || sandbox([container("web", &[(80, Tcp), (81, Tcp)])]);
    let cases = [
        (web(),  vec![("127.0.0.1", 80)],                      "LOOPBACK_ONLY",   "127.0.0.1:80 (httpd, process 7 of web): bind 0.0.0.0"),
        (web(),  vec![("::1", 80), ("0.0.0.0", 9000)],         "LOOPBACK_ONLY",   "[::1]:80 (httpd, process 7 of web): bind 0.0.0.0"),
        (web(),  vec![("127.0.0.1", 3000)],                    "LOOPBACK_ONLY",   "127.0.0.1:3000 (httpd, process 7 of web): bind 0.0.0.0"),
        (web(),  vec![("0.0.0.0", 8080), ("::", 9000)],        "OTHER_PORTS",     "0.0.0.0:8080 (httpd, process 7 of web), [::]:9000 (httpd, process 7 of web), and what"),
        (both(), vec![("0.0.0.0", 8080), ("127.0.0.1", 9000)], "OTHER_PORTS",     "listens 0.0.0.0:8080 (httpd, process 7 of web), and what"),
        (web(),  vec![],                                       "NOTHING_LISTENS", "nothing listens in the sandbox"),
        (both(), vec![("0.0.0.0", 80)],                        "NOTHING_LISTENS", "nothing else listens in the sandbox"),
    ];
    for (sandbox, sockets, finding, part) in cases {
        let sockets: Vec<_> = sockets.into_iter().map(|(address, port)| socket(Tcp, address, port)).collect();
        let failure = timeout(&sandbox, &sockets);
        assert_eq!(failure.reason, Reason::PortTimeout);
        assert_eq!(failure.metadata["finding"], finding, "{failure}");
        assert!(failure.message.contains(part), "{part}: {failure}");
    }
}

#[test]
fn a_timeout_tells_what_was_expected_what_listened_and_how_long_it_waited() {
    let sandbox = web();
    let listening = [
        socket(Tcp, "::", 8080),
        socket(Tcp, "127.0.0.1", 8081),
        socket(Tcp, "10.1.0.2", 9000),
        // Bound by two processes at the same time.
        socket(Tcp, "10.1.0.2", 9000),
        socket(Udp, "0.0.0.0", 53),
    ];
    let failure = timeout(&sandbox, &listening);
    let told = |key: &str| failure.metadata[key].replace(" (httpd, process 7 of web)", "");
    assert_eq!(told("expected"), "80 (web)");
    assert_eq!(told("routable"), "10.1.0.2:9000, [::]:8080");
    assert_eq!(told("loopback"), "127.0.0.1:8081");
    assert_eq!(
        told("listening"),
        "10.1.0.2:9000, 127.0.0.1:8081, [::]:8080"
    );
    assert_eq!(told("waited_ms"), "1502");
    for part in ["sandbox s1", "80 (web)", "1500 ms"] {
        assert!(failure.message.contains(part), "{part}: {failure}");
    }
}

#[test]
fn a_timeout_is_told_without_who_listens_where_that_cannot_be_read() {
    let sandbox = web();
    let sockets: Vec<_> = (9000..9020).map(|it| socket(Tcp, "::", it)).collect();
    let missing = sorted(&sandbox, &sockets, &[]).missing;
    let failure = port_timeout(&sandbox, &missing, &sockets, &None, Duration::ZERO);
    let told = &failure.metadata["routable"];
    assert!(told.starts_with("[::]:9000, [::]:9001, "), "{told}");
    assert!(told.ends_with("[::]:9007, and 12 more"), "{told}");
}

#[test]
fn only_the_ports_that_are_missing_are_expected() {
    let sandbox = sandbox([container("web", &[(80, Tcp), (81, Tcp), (82, Udp)])]);
    let failure = timeout(&sandbox, &[socket(Tcp, "0.0.0.0", 80)]);
    assert_eq!(failure.metadata["expected"], "81 (web), 82/udp (web)");
}

#[test]
#[rustfmt::skip]
fn a_sandbox_that_runs_is_what_its_ports_and_probes_say() {
    let port = |bound: bool, bound_port| PortSighting { bound_port, ..report(80, Tcp, bound) };
    let failing = || vec![Failing { container: name("web"), check: ProbeCheck::TcpConnect { port: 80 }, answer: "refused".into() }];
    let cases = [
        (vec![],                         vec![],    Status::Running,  "",              ""),
        (vec![port(true, None)],         vec![],    Status::Running,  "",              ""),
        (vec![port(true, Some(8080))],   vec![],    Status::Running,  "PORT_DIVERGED", "8080 is listened on in the place of port 80 (web)"),
        (vec![port(false, Some(8080))],  vec![],    Status::NotReady, "PORT_LOST",     "port 80 (web) no longer listens"),
        (vec![port(true, None)],         failing(), Status::NotReady, "PROBE_FAILED",  "the readiness probe of container web fails, a connection to port 80: refused"),
        (vec![port(false, None)],        failing(), Status::NotReady, "PORT_LOST",     "port 80 (web) no longer listens; the readiness probe of container web fails, a connection to port 80: refused"),
    ];
    for (ports, failing, status, reason, message) in cases {
        assert_eq!(standing(&ports, &failing), (status, reason, message.to_owned()));
    }
}

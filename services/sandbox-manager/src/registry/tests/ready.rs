//! When a sandbox becomes RUNNING, and what takes that back: ports, what reporters say of them, probes.

use berth_domain::{PortSighting, Probe, ProbeCheck, Protocol};

use super::*;

const OTHER: u16 = 9000;

fn sockets(ports: &[u16]) -> Vec<SocketAddr> {
    let everywhere = |&port: &u16| SocketAddr::from(([0, 0, 0, 0], port));
    ports.iter().map(everywhere).collect()
}

fn said(word: Word) -> PortSighting {
    PortSighting {
        container: ContainerName::parse("app").unwrap(),
        port: PORT,
        protocol: Protocol::Tcp,
        bound: word == Word::Bound,
        address: "0.0.0.0".into(),
        source: "sidecar".into(),
        at: SystemTime::now(),
        bound_port: None,
    }
}

fn meant(record: &SandboxRecord) -> Option<Meant> {
    Some(Meant {
        generation: record.generation,
        restarts: record.restarts,
    })
}

/// A port of the node leads to its port, which does not take long to be missed.
fn impatient() -> Arc<SandboxSpec> {
    changed_spec(|it| {
        it.port_wait_timeout = Duration::from_millis(10);
        it.containers[0].ports[0].node_port = Some(80);
    })
}

fn probed(change: impl FnOnce(&mut Probe)) -> Arc<SandboxSpec> {
    changed_spec(|it| {
        let mut probe = Probe {
            check: ProbeCheck::TcpConnect { port: PORT },
            initial_delay: Duration::ZERO,
            period: Duration::from_millis(5),
            timeout: Duration::from_secs(5),
            success_threshold: 1,
            failure_threshold: 2,
        };
        change(&mut probe);
        it.containers[0].readiness_probe = Some(probe);
    })
}

impl Manager {
    async fn report(
        &self,
        meant: Option<Meant>,
        word: Word,
        container: &str,
    ) -> Result<(), Failure> {
        let sighting = PortSighting {
            container: ContainerName::parse(container).unwrap(),
            ..said(word)
        };
        let reported = self.registry.report_port(web(), meant, word, sighting);
        within("an answer to the report", reported).await
    }

    async fn admit_with(&self, spec: Arc<SandboxSpec>) -> SandboxRecord {
        let admitted = self.registry.admit(web(), spec, CreateTerms::default());
        admitted.await.unwrap()
    }

    async fn create_with(&self, spec: Arc<SandboxSpec>) -> Result<Arc<SandboxRecord>, Failure> {
        let record = self.admit_with(spec).await;
        self.await_running(&record).await
    }
}

#[tokio::test]
async fn a_udp_port_is_waited_for_as_well() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.listen_on("app", &sockets(&[PORT]));
    let udp = |timeout| {
        changed_spec(|it| {
            it.port_wait_timeout = timeout;
            it.containers[0].ports[0].protocol = Protocol::Udp;
        })
    };
    let failed = manager.create_with(udp(Duration::from_millis(10))).await;
    let failed = failed.unwrap_err();
    assert_eq!(failed.reason, Reason::PortTimeout);
    assert_eq!(failed.metadata["expected"], "8080/udp (app)");
    let bound = (Protocol::Udp, sockets(&[PORT])[0]);
    ground.node.listen_with("app", &[bound]);
    let running = manager.create_with(udp(PORT_WAIT)).await.unwrap();
    assert_eq!(running.ports[0].protocol, Protocol::Udp);
}

#[tokio::test]
async fn the_only_other_port_is_taken_and_the_port_of_the_node_leads_there() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.listen_on("app", &sockets(&[OTHER]));
    let running = manager.create_with(impatient()).await.unwrap();
    let told = (running.reason.as_str(), running.message.as_str());
    let expected = "9000 is listened on in the place of port 8080 (app)";
    assert_eq!(told, ("PORT_DIVERGED", expected));
    let [port] = running.ports.as_slice() else {
        panic!("{:?}", running.ports);
    };
    assert_eq!((port.port, port.bound_port), (PORT, Some(OTHER)));
    manager.until_called("lead_node_ports web 80=9000").await;

    // It moves to where it was meant to be.
    ground.node.listen_on("app", &sockets(&[OTHER, PORT]));
    manager.registry.wake(web());
    let back = |it: &SandboxRecord| it.ports[0].bound_port.is_none();
    let back = ground.until("it is back", web(), back).await;
    assert_eq!((back.status, back.reason.as_str()), (Status::Running, ""));
    manager.until_called("lead_node_ports web 80=8080").await;
}

#[tokio::test]
async fn a_manager_that_starts_again_leads_to_where_the_former_one_led() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.listen_on("app", &sockets(&[OTHER]));
    let running = manager.create_with(impatient()).await.unwrap();
    manager.shut_down().await;
    let manager = ground.manager().await;
    let looked = async || manager.registry.not_looked_at() == 0;
    until("it was looked at", looked).await;
    let after = ground.record(web()).await.unwrap();
    assert_eq!(
        (after.reason.as_str(), &after.ports),
        ("PORT_DIVERGED", &running.ports)
    );
    let ways: Vec<_> = after.sandbox().node_ports().collect();
    assert_eq!(ways, [(Protocol::Tcp, 80, OTHER)]);
}

#[tokio::test]
async fn another_port_that_goes_is_lost_and_comes_back_as_the_same() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.listen_on("app", &sockets(&[OTHER]));
    manager.create_with(impatient()).await.unwrap();
    // Where it would not be taken is none of its business.
    ground.node.listen_on("app", &sockets(&[OTHER + 1]));
    manager.registry.wake(web());
    let lost = ground.until_status(web(), Status::NotReady).await;
    assert_eq!(lost.reason, "PORT_LOST");
    assert!(!lost.ports[0].bound, "{:?}", lost.ports);
    ground.node.listen_on("app", &sockets(&[OTHER]));
    manager.registry.wake(web());
    let back = ground.until_status(web(), Status::Running).await;
    assert_eq!(back.reason, "PORT_DIVERGED");
}

#[tokio::test]
async fn a_timeout_says_who_listens_where_nobody_reaches_it() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground
        .node
        .listen_on("app", &[([127, 0, 0, 1], PORT).into()]);
    let failed = manager.create_with(impatient()).await.unwrap_err();
    assert_eq!(failed.metadata["finding"], "LOOPBACK_ONLY");
    assert_eq!(
        failed.metadata["loopback"],
        "127.0.0.1:8080 (appd, process 1 of app)"
    );
    ground.until_status(web(), Status::Dead).await;

    // That nobody can be named hides nothing else.
    ground.node.fail_next("socket_holders", 1);
    let failed = manager.create_with(impatient()).await.unwrap_err();
    assert_eq!(failed.metadata["loopback"], "127.0.0.1:8080");
}

#[tokio::test]
async fn a_port_that_is_reported_bound_counts_where_nothing_is_seen_until_it_is_taken_back() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.listen_on("app", &[]);
    let record = manager.admit(web()).await;
    let unknown = manager.report(meant(&record), Word::Bound, "db").await;
    assert_eq!(unknown.unwrap_err().reason, Reason::ContainerNotFound);
    let reported = async {
        manager.until_called("start_task web app").await;
        manager.report(meant(&record), Word::Bound, "app").await
    };
    let (running, reported) = tokio::join!(manager.await_running(&record), reported);
    reported.unwrap();
    let running = running.unwrap();
    let sources: Vec<_> = running.ports.iter().map(|it| it.source.as_str()).collect();
    assert_eq!(sources, ["sidecar"]);

    manager
        .report(meant(&record), Word::Unbound, "app")
        .await
        .unwrap();
    let lost = ground.until_status(web(), Status::NotReady).await;
    assert_eq!(lost.message, "port 8080 (app) no longer listens");
    manager
        .report(meant(&record), Word::Bound, "app")
        .await
        .unwrap();
    ground.until_status(web(), Status::Running).await;
}

#[tokio::test]
async fn a_word_about_a_former_sandbox_does_not_make_the_next_one_ready() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let former = manager.create(web()).await.unwrap();
    manager.stop_sandbox(web()).await.unwrap();
    ground.node.listen_on("app", &[]);
    let next = manager.admit(web()).await;
    let up = async || manager.stands(&next).await;
    until("the tasks run", up).await;
    let stale = manager.report(meant(&former), Word::Bound, "app").await;
    assert_eq!(stale.unwrap_err().reason, Reason::GenerationConflict);
    // One that does not say whom it means is no more than a reason to look.
    manager.report(None, Word::Bound, "app").await.unwrap();
    let pending = ground.record(web()).await.unwrap();
    assert_eq!((pending.status, pending.ports.len()), (Status::Pending, 0));
    ground.node.listen_on("app", &[everywhere()]);
    manager.await_running(&next).await.unwrap();
}

#[tokio::test]
async fn a_word_from_before_a_reboot_does_not_make_a_sandbox_ready_that_is_made_again() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let before = manager.create(web()).await.unwrap();
    manager
        .report(meant(&before), Word::Bound, "app")
        .await
        .unwrap();
    ground.node.listen_on("app", &[]);
    ground.node.forget();
    manager.registry.wake(web());
    let again = |it: &SandboxRecord| it.status == Status::Pending && it.restarts == 1;
    let again = ground.until("it is made again", web(), again).await;
    assert_eq!(
        (again.generation, again.ports.len()),
        (before.generation, 0)
    );
    let stale = manager.report(meant(&before), Word::Bound, "app").await;
    let stale = stale.unwrap_err();
    assert_eq!(stale.reason, Reason::GenerationConflict);
    assert_eq!(stale.metadata["actual_restarts"], "1");
    let up = async || manager.stands(&again).await;
    until("the tasks run", up).await;
    assert_eq!(ground.record(web()).await.unwrap().status, Status::Pending);
    manager
        .report(meant(&again), Word::Bound, "app")
        .await
        .unwrap();
    ground.until_status(web(), Status::Running).await;
}

#[tokio::test]
async fn whatever_a_reporter_says_has_a_sandbox_looked_at_at_once() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let running = manager.create(web()).await.unwrap();
    let said = [(meant(&running), Word::Active), (None, Word::Unbound)];
    for (whom, word) in said {
        ground.node.listen_on("app", &[]);
        manager.report(whom, word, "app").await.unwrap();
        ground.until_status(web(), Status::NotReady).await;
        ground.node.listen_on("app", &[everywhere()]);
        manager.report(whom, word, "app").await.unwrap();
        ground.until_status(web(), Status::Running).await;
    }
}

#[tokio::test]
async fn a_probe_that_fails_at_first_is_asked_until_it_succeeds() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.fail_next("probe web", 3);
    let running = manager
        .create_with(probed(|it| it.success_threshold = 2))
        .await;
    assert_eq!(running.unwrap().status, Status::Running);
    let refused = manager
        .node
        .probe(&running_sandbox(&ground).await, &check())
        .await;
    refused.expect("nothing that was planned is left");
}

async fn running_sandbox(ground: &Ground) -> Sandbox {
    ground.record(web()).await.unwrap().sandbox()
}

fn check() -> ProbeCheck {
    ProbeCheck::TcpConnect { port: PORT }
}

#[tokio::test]
async fn a_probe_that_never_succeeds_fails_the_create_with_its_answer() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let spec = probed(|it| it.check = ProbeCheck::TcpConnect { port: OTHER });
    let mut spec = SandboxSpec::clone(&spec);
    spec.port_wait_timeout = Duration::from_millis(30);
    let failed = manager.create_with(Arc::new(spec)).await.unwrap_err();
    assert_eq!(failed.reason, Reason::ProbeFailed);
    let told = ["container", "probe", "answer"].map(|it| failed.metadata[it].as_str());
    let expected = [
        "app",
        "a connection to port 9000",
        "the connection was refused",
    ];
    assert_eq!(told, expected);
    ground.until_status(web(), Status::Dead).await;
    ground.assert_nothing_left("a probe").await;
}

#[tokio::test]
async fn an_exit_while_a_probe_is_asked_fails_the_create_at_once() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    ground.node.hang("probe");
    let record = manager.admit_with(probed(|_| {})).await;
    let exits = async {
        let up = async || manager.stands(&record).await;
        until("the tasks run", up).await;
        ground.node.exit(web(), &app(), 7);
    };
    let (answer, ()) = tokio::join!(manager.await_running(&record), exits);
    assert_eq!(answer.unwrap_err().reason, Reason::ContainerExited);
    ground.node.release_hang();
}

#[tokio::test]
async fn a_probe_that_fails_later_takes_running_back_until_it_succeeds() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    let both = sockets(&[PORT, OTHER]);
    ground.node.listen_on("app", &both);
    let spec = probed(|it| it.check = ProbeCheck::TcpConnect { port: OTHER });
    manager.create_with(spec).await.unwrap();
    ground.node.listen_on("app", &sockets(&[PORT]));
    let lost = ground.until_status(web(), Status::NotReady).await;
    assert_eq!(lost.reason, "PROBE_FAILED");
    let told = "container app fails, a connection to port 9000: the connection was refused";
    assert!(lost.message.contains(told), "{}", lost.message);
    ground.node.listen_on("app", &both);
    let back = ground.until_status(web(), Status::Running).await;
    assert_eq!(back.reason, "");

    // With the next manager as with this one.
    ground.node.listen_on("app", &sockets(&[PORT]));
    ground.until_status(web(), Status::NotReady).await;
    manager.shut_down().await;
    let _manager = ground.manager().await;
    ground.node.listen_on("app", &both);
    ground.until_status(web(), Status::Running).await;
}

#[tokio::test]
async fn a_probe_that_hangs_keeps_nobody_from_an_end() {
    let ground = Ground::new();
    let manager = ground.manager().await;
    manager.create_with(probed(|_| {})).await.unwrap();
    ground.node.hang("probe");
    assert_eq!(manager.delete(web()).await, Ok(true));
    ground.assert_gone(web(), "a probe that hangs").await;
}

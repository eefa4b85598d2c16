//! What commands on sandboxes ask for, and what they print.

use super::*;
use crate::args::PortArg;

fn web() -> v1::Sandbox {
    v1::Sandbox {
        id: "web".to_owned(),
        generation: 3,
        status: v1::SandboxStatus::Running.into(),
        addresses: vec![v1::NetworkAddress {
            address: "10.87.0.2/16".to_owned(),
            subnet: "berth0".to_owned(),
        }],
        created_at: Some(prost_types::Timestamp {
            seconds: 1_000_000_000,
            nanos: 0,
        }),
        containers: vec![v1::ContainerStatus {
            name: "app".to_owned(),
            image: "nginx".to_owned(),
            ..Default::default()
        }],
        phases: vec![
            v1::Phase {
                name: "create-task".to_owned(),
                container: "app".to_owned(),
                start: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 5_000_000,
                }),
                took: Some(prost_types::Duration {
                    seconds: 0,
                    nanos: 12_000_000,
                }),
            },
            v1::Phase {
                name: "netns".to_owned(),
                ..Default::default()
            },
        ],
        ..Default::default()
    }
}

fn later(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000_000 + seconds).expect("it is in range")
}

#[test]
fn run_asks_for_one_container_and_limits_of_the_sandbox() {
    let pair = |key: &str, value: &str| Pair {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let args = Run {
        id: None,
        ports: vec![PortArg {
            port: 53,
            protocol: v1::Protocol::Udp,
        }],
        env: vec![pair("A", "b=c")],
        labels: vec![pair("team", "infra")],
        cpu: Some(500),
        ttl: Some(Duration::from_secs(90)),
        memory: None,
        image: "nginx".to_owned(),
        command: vec!["-g".to_owned(), "daemon off;".to_owned()],
    };
    let request = run_request("web".to_owned(), args);
    assert_eq!(
        (request.id.as_str(), request.wait()),
        ("web", v1::WaitFor::Running)
    );
    let spec = request.spec.expect("it is given");
    assert_eq!(spec.labels["team"], "infra");
    let resources = spec.resources.expect("it is given");
    assert_eq!((resources.cpu_millis, resources.memory_bytes), (500, 0));
    let [container] = spec.containers.as_slice() else {
        panic!("there is one")
    };
    assert_eq!(
        (container.name.as_str(), container.image.as_str()),
        ("app", "nginx")
    );
    assert_eq!(container.args, ["-g", "daemon off;"]);
    assert_eq!(container.env, ["A=b=c"]);
    assert_eq!(container.ports[0].protocol(), v1::Protocol::Udp);
}

#[test]
fn random_ids_differ_and_fit_the_grammar() {
    let (one, two) = (
        random_id().expect("a kernel"),
        random_id().expect("a kernel"),
    );
    assert_ne!(one, two);
    assert_eq!(one.len(), "run-".len() + 8);
    assert!(
        one.bytes()
            .all(|it| it.is_ascii_digit() || it.is_ascii_lowercase() || it == b'-')
    );
}

#[test]
fn a_running_sandbox_is_told_by_id_and_address_alone() {
    let mut sandbox = web();
    assert_eq!(created_line(&sandbox), "web 10.87.0.2");
    sandbox.set_status(v1::SandboxStatus::Pending);
    assert_eq!(created_line(&sandbox), "web 10.87.0.2 PENDING");
}

#[test]
fn a_list_has_one_line_per_sandbox() {
    assert_eq!(
        sandbox_table(&[web()], later(300)),
        "ID   STATUS   REASON  ADDRESS    AGE  IMAGES\n\
             web  RUNNING  -       10.87.0.2  5m   nginx"
    );
    assert_eq!(sandbox_table(&[], later(0)).lines().count(), 1);
}

#[test]
fn a_page_shows_what_there_is() {
    let text = sandbox_page(&web(), &Found::default(), later(0));
    for part in [
        "RUNNING",
        "10.87.0.2/16 on berth0",
        "app  nginx",
        "create-task app  at    5.0ms",
    ] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    for part in ["reason", "exit", "ports", "labels"] {
        assert!(!text.contains(part), "{part} is there:\n{text}");
    }
}

#[test]
fn a_page_shows_what_a_sandbox_is_ready_by() {
    let mut sandbox = web();
    sandbox.reason = "PORT_DIVERGED".to_owned();
    sandbox.message = "9000 is listened on".to_owned();
    sandbox.ports = vec![v1::PortState {
        container: "app".to_owned(),
        port: 8080,
        status: v1::PortStatus::Bound.into(),
        address: "0.0.0.0".to_owned(),
        source: "manager".to_owned(),
        bound_port: 9000,
        ..Default::default()
    }];
    let check = Check::HttpGet(v1::HttpGetProbe {
        port: 9000,
        path: "/healthz".to_owned(),
        host: String::new(),
    });
    let probe = v1::Probe {
        check: Some(check),
        period: Some(prost_types::Duration {
            seconds: 10,
            nanos: 0,
        }),
        ..Default::default()
    };
    sandbox.spec = Some(v1::SandboxSpec {
        containers: vec![v1::Container {
            name: "app".to_owned(),
            readiness_probe: Some(probe),
            ..Default::default()
        }],
        ..Default::default()
    });
    let text = sandbox_page(&sandbox, &Found::default(), later(0));
    for part in [
        "PORT_DIVERGED: 9000 is listened on",
        "8080/tcp, 9000 in its place  BOUND on 0.0.0.0  app (says manager)",
        "app  GET /healthz on port 9000 every 10.00s",
    ] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
}

#[test]
fn a_page_shows_how_a_sandbox_ended() {
    let mut sandbox = web();
    sandbox.set_status(v1::SandboxStatus::Dead);
    sandbox.reason = "CONTAINER_EXITED".to_owned();
    sandbox.message = "container app ended".to_owned();
    sandbox.exit = Some(v1::ExitRecord {
        container: "app".to_owned(),
        exit_code: 137,
        signal: 9,
        cause: v1::ExitCause::Oom.into(),
        oom_cgroup: "/berth/a1/web/app".to_owned(),
        at: None,
    });
    let text = sandbox_page(&sandbox, &Found::default(), later(0));
    for part in [
        "CONTAINER_EXITED: container app ended",
        "app: code 137, signal 9, the kernel killed it for memory: /berth/a1/web/app reached its limit",
    ] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
}

//! Records as they are stored: what was written is read again, and what others wrote is refused.

use berth_domain::{
    ConfigFile, Container, ContainerName, Destination, Egress, NamePattern, NamedDestination,
    NetworkPolicy, Port, Probe, ProbeCheck, Protocol, Resources, RestartPolicy, Route, SandboxSpec,
    StaticHost,
    catalog::{Entry, Object, Version},
};

use super::*;

#[test]
fn a_record_with_everything_in_it_is_read_back_as_it_was() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
    let text = |text: &str| text.to_owned();
    let resources = Resources {
        cpu_millis: Some(500),
        memory_bytes: Some(1 << 30),
        memory_high_bytes: Some(1 << 29),
        pids: Some(64),
    };
    let app = ContainerName::parse("app").unwrap();
    let spec = SandboxSpec {
        labels: [(text("a"), text("b"))].into(),
        version: text("v"),
        log_entity: text("l"),
        log_attributes: [(text("c"), text("d"))].into(),
        port_wait_timeout: Duration::from_millis(1500),
        restart_policy: RestartPolicy::Never,
        routes: vec![Route {
            destination: "10.1.0.0/16".parse().unwrap(),
            gateway: Some("10.87.0.9".parse().unwrap()),
        }],
        static_hosts: vec![StaticHost {
            host: text("db"),
            ip: "::1".parse().unwrap(),
        }],
        containers: vec![Container {
            name: app.clone(),
            image: ImageRef::parse("nginx:1").unwrap(),
            command: text("true"),
            args: Some(vec![text("x")]),
            directory: text("/srv"),
            env: vec![text("A=b")],
            ports: vec![Port {
                number: 80,
                name: text("web"),
                protocol: Protocol::Udp,
                kind: text("http"),
                node_port: Some(8080),
            }],
            oom_score: -5,
            tty: true,
            stdin: true,
            config_files: vec![
                ConfigFile {
                    path: text("/a"),
                    data: b"text".into(),
                    mode: 0o640,
                },
                ConfigFile {
                    path: text("/b"),
                    data: vec![0xff, 0, 1],
                    mode: 0o600,
                },
            ],
            shutdown_timeout: Duration::from_secs(3),
            resources,
            readiness_probe: Some(Probe {
                check: ProbeCheck::HttpGet {
                    port: 80,
                    path: text("/healthz"),
                    host: text("web"),
                },
                initial_delay: Duration::from_secs(1),
                period: Duration::from_secs(2),
                timeout: Duration::from_secs(3),
                success_threshold: 4,
                failure_threshold: 5,
            }),
        }],
        resources,
        host_network: true,
        network: NetworkPolicy {
            egress: Egress::Allow(vec![Destination {
                net: "10.0.0.0/8".parse().unwrap(),
                port: Some((Protocol::Udp, 123)),
            }]),
            egress_names: vec![NamedDestination {
                name: NamePattern::parse("*.example.org").unwrap(),
                port: Some((Protocol::Tcp, 443)),
            }],
            allow_from: vec![text("app=web")],
            subnet: Some(text("team")),
        },
    };
    let id = SandboxId::parse("web").unwrap();
    let mut record = SandboxRecord::new(id, Generation(7), Arc::new(spec), vec![], now);
    record.addresses = vec!["10.87.0.2/16".parse().unwrap()];
    record.enter(Status::Stopped, "WHY", "why", now);
    record.ending = Some(Ending::Delete);
    record.images = [(app.clone(), text("sha256:1"))].into();
    record.exit = Some(ExitRecord::from_status(
        Role::App(app.clone()),
        137,
        Some(now),
        Some(text("/berth/web/app")),
        now,
    ));
    record.expires_at = Some(now);
    record.boot_id = text("boot");
    record.restarts = 3;
    record.failure = Some(
        Failure::invalid("spec.x", "is wrong")
            .with("k", "v")
            .retry_after(Duration::from_secs(1)),
    );
    record.phases = vec![Phase {
        name: text("admit"),
        container: text("app"),
        start: Duration::from_micros(3),
        took: Duration::from_micros(4),
    }];
    record.ports = vec![PortSighting {
        container: app,
        port: 80,
        protocol: Protocol::Tcp,
        bound: true,
        address: text("0.0.0.0"),
        source: text("manager"),
        at: now,
        bound_port: Some(81),
    }];
    let bytes = serde_json::to_vec(&StoredRecord::from(&record)).unwrap();
    let stored: StoredRecord = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(SandboxRecord::try_from(stored), Ok(record));
}

#[test]
fn a_version_of_an_app_that_was_kept_before_versions_named_images_is_read() {
    let kept = r#"{"revision": 3, "object": {"Version": {"id": "shop/1", "app": "shop"}}}"#;
    let stored: StoredEntry = serde_json::from_str(kept).unwrap();
    let version = Version {
        id: "shop/1".into(),
        app: "shop".into(),
        ..Version::default()
    };
    let expected = Entry {
        revision: 3,
        object: Object::Version(version),
    };
    assert_eq!(Entry::try_from(stored), Ok(expected));
}

//! `berth health` against a process that tells its health.

use std::{path::Path, process::Stdio};

use tokio::{net::UnixListener, process::Command};
use tokio_stream::wrappers::UnixListenerStream;
use tonic_health::ServingStatus;

use super::{Ended, ended};

async fn health(socket: &Path, more: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command
        .args(["health", "--address"])
        .arg(socket)
        .args(more)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    ended(command.output()).await
}

#[tokio::test]
async fn health_ends_with_0_only_where_what_is_asked_serves() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("dns.sock");
    let none = health(&socket, &[]).await;
    assert_eq!(none.code, Some(1), "nobody listens: {}", none.stderr);
    assert!(none.stderr.contains("nothing answers"), "{}", none.stderr);

    let (reporter, service) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(UnixListenerStream::new(
            UnixListener::bind(&socket).expect("a socket"),
        ));
    tokio::spawn(server);
    for (name, status) in [
        ("manager", ServingStatus::NotServing),
        ("berth.v1.SandboxService", ServingStatus::Serving),
    ] {
        reporter.set_service_status(name, status).await;
    }
    let of = |name: &'static str| ["--service", name];
    #[rustfmt::skip]
    let cases: [(&[&str], i32, &str); 4] = [
        (&[],                              0, "SERVING\n"),
        (&of("berth.v1.SandboxService"),   0, "SERVING\n"),
        (&of("manager"),                   1, "NOT_SERVING\n"),
        (&of("other"),                     1, "SERVICE_UNKNOWN\n"),
    ];
    for (args, code, said) in cases {
        let it = health(&socket, args).await;
        assert_eq!(
            (it.code, it.stdout.as_str()),
            (Some(code), said),
            "{args:?}"
        );
    }
    let json = health(&socket, &["--service", "manager", "-o", "json"]).await;
    let expected = serde_json::json!({ "service": "manager", "status": "NOT_SERVING" });
    assert_eq!(json.json(), expected);
    assert!(
        json.stderr.contains("`manager` is NOT_SERVING"),
        "{}",
        json.stderr
    );
}

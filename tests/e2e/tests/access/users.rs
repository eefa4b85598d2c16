//! What a new user does: the tour of the README, a client of their own in Python, the demo.

use std::process::Command;

use anyhow::{Context as _, ensure};
use berth_e2e::{
    TestNode, images,
    node::{programs, root, succeed},
};
use serde_json::Value;

fn json(node: &TestNode, arguments: &[&str]) -> anyhow::Result<Value> {
    let text = node.berth(arguments)?;
    serde_json::from_str(&text).with_context(|| text)
}

#[tokio::test]
async fn the_tour_of_the_readme_works_from_the_command_line() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let archive = node.home().join("busybox.tar");
    std::fs::write(&archive, images::busybox())?;
    let imported = node.berth(&["images", "import", &archive.to_string_lossy()])?;
    ensure!(imported.contains(images::BUSYBOX), "{imported}");
    let serve = [
        "--",
        "/bin/busybox",
        "httpd",
        "-f",
        "-p",
        "8080",
        "-h",
        "/etc",
    ];
    let run = [
        &["run", "--id", "web", "--port", "8080", images::BUSYBOX][..],
        &serve,
    ]
    .concat();
    node.berth(&run)?;

    let web = json(&node, &["get", "web", "-o", "json"])?;
    ensure!(web["status"] == "SANDBOX_STATUS_RUNNING", "{web:#}");
    let address = web["addresses"][0]["address"]
        .as_str()
        .context("an address")?;
    let (ip, _) = address.split_once('/').context("in CIDR form")?;
    let fetched = succeed(Command::new("curl").args(["-sf", &format!("http://{ip}:8080/passwd")]))?;
    ensure!(fetched.contains("root:x:0:0"), "{fetched}");

    let stats = json(&node, &["stats", "web", "-o", "json"])?;
    ensure!(
        stats["total"]["memoryUsage"]
            .as_str()
            .is_some_and(|it| it != "0"),
        "{stats:#}"
    );
    let name = node.berth(&["exec", "web", "--", "/bin/busybox", "hostname"])?;
    ensure!(name == "web\n", "{name}");
    let hosts = node.berth(&["cp", "web:/etc/hosts", "-"])?;
    ensure!(
        hosts.starts_with("hosts\0") && hosts.contains("localhost"),
        "{hosts}"
    );
    let logs = node.berth(&["logs", "web"])?;
    ensure!(logs.contains("running"), "{logs}");
    let list = json(&node, &["ls", "-o", "json"])?;
    ensure!(
        list["sandboxes"].as_array().is_some_and(|it| it.len() == 1),
        "{list:#}"
    );
    let yaml = node.berth(&["get", "web", "-o", "yaml"])?;
    ensure!(yaml.contains("id: web"), "{yaml}");
    let status = json(&node, &["node", "status", "-o", "json"])?;
    ensure!(status["runtime"]["reachable"] == true, "{status:#}");
    let audit = json(&node, &["audit", "-o", "json"])?;
    ensure!(
        audit["clean"] == true && audit["objects"][0]["kind"].is_string(),
        "{audit:#}"
    );
    let events = node.berth(&["events"])?;
    ensure!(events.contains("web"), "{events}");

    let unknown = node.command("berth").args(["get", "nobody"]).output()?;
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    ensure!(
        unknown.status.code() == Some(1) && said.contains("no sandbox nobody"),
        "{said}"
    );

    // This httpd takes no notice of SIGTERM; the grace of ten seconds is not what is looked at here.
    let pid = node
        .command("ctr")
        .args(["t", "kill", "-s", "9", "sandbox.web.app"])
        .output()?;
    ensure!(pid.status.success(), "{pid:?}");
    node.berth(&["rm", "web"])?;
    let audit = json(&node, &["audit", "-o", "json"])?;
    ensure!(
        audit["clean"] == true && audit["objects"] == Value::Array(vec![]),
        "{audit:#}"
    );
    node.finish()
}

#[tokio::test]
async fn a_python_client_made_from_the_proto_alone_does_the_main_job() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let python = root().join("target/tools/python/bin/python");
    ensure!(python.exists(), "`make tools` installs gRPC for Python");
    let mut client = node.command(&python.to_string_lossy());
    client.arg(root().join("tests/e2e/python/client.py"));
    client
        .arg(root().join("proto"))
        .arg(node.home().join("generated"));
    let socket = node
        .variable("BERTH_ADDRESS")
        .trim_start_matches("unix:")
        .to_owned();
    client.arg(socket).arg(images::BUSYBOX);
    let said = succeed(client)?;
    ensure!(
        said.contains("created, watched, measured and deleted"),
        "{said}"
    );
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    node.finish()
}

/// Real nginx and redis from Debian's packages, pushed to a registry and pulled from there.
#[test]
fn the_demo_shows_the_main_job_with_unmodified_debian_software() -> anyhow::Result<()> {
    let said = succeed(Command::new(root().join("deploy/dev/demo")).env("BERTH_BIN", programs()))?;
    for expected in ["Welcome to nginx!", "All steps done"] {
        ensure!(said.contains(expected), "`{expected}` in:\n{said}");
    }
    Ok(())
}

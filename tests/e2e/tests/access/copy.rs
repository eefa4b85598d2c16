//! Files into containers and out of them, by the command that people use and by the API.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, copy_to_request::Part};
use berth_e2e::{
    TestNode, images,
    images::ImageParts,
    node::{eventually, succeed},
    specs::{idle, limits, shell, spec},
};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic_types::StatusExt as _;

const SOON: Duration = Duration::from_secs(20);

fn digest(path: &Path) -> anyhow::Result<String> {
    let digest = Sha256::digest(fs::read(path)?);
    Ok(digest.iter().map(|it| format!("{it:02x}")).collect())
}

/// Bytes that no compression and no hole makes easy.
fn noise(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let source = fs::File::open("/dev/urandom")?;
    std::io::copy(&mut source.take(bytes), &mut fs::File::create(path)?)?;
    Ok(())
}

/// What `berth` complains when it fails.
fn refused(node: &TestNode, arguments: &[&str]) -> anyhow::Result<String> {
    let output = node.command("berth").args(arguments).output()?;
    ensure!(!output.status.success(), "{arguments:?} succeeds");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn memory_kib(pid: &str, key: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()))?;
    let line = status.lines().find_map(|it| it.strip_prefix(key));
    let number = line.and_then(|it| it.split_whitespace().next());
    Ok(number.context("a figure")?.parse()?)
}

fn local(node: &TestNode, name: &str) -> (PathBuf, String) {
    let path = node.home().join(name);
    let text = path.display().to_string();
    (path, text)
}

#[tokio::test]
async fn files_and_trees_go_in_and_come_out_as_they_were() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let line = "mkdir /data && exec sleep 3600";
    node.create("box", spec([shell("app", line, &[])])).await?;
    let made = || async { node.berth(&["cp", "box:/data", "-"]).is_ok() };
    eventually("its folder", SOON, made).await?;

    let (big, big_text) = local(&node, "big");
    noise(&big, 5_000_000)?;
    node.berth(&["cp", &big_text, "box:/data"])?;
    node.berth(&["cp", &big_text, "box/app:/data/named"])?;
    let (back, back_text) = local(&node, "back");
    node.berth(&["cp", "-c", "app", "box:/data/named", &back_text])?;
    ensure!(digest(&back)? == digest(&big)?, "the same bytes");

    let (tree, tree_text) = local(&node, "tree");
    fs::create_dir_all(tree.join("a/b"))?;
    fs::write(tree.join("a/b/deep"), "deep")?;
    fs::write(tree.join("program"), "#!/bin/sh\n")?;
    succeed(node.command("chmod").arg("755").arg(tree.join("program")))?;
    fs::hard_link(tree.join("program"), tree.join("same"))?;
    std::os::unix::fs::symlink("program", tree.join("link"))?;
    node.berth(&["cp", &tree_text, "box:/data/"])?;
    node.berth(&["cp", &format!("{tree_text}/."), "box:/content"])?;
    for from in ["box:/data/tree", "box:/content"] {
        let (copy, copy_text) = local(&node, "copy");
        node.berth(&["cp", from, &copy_text])?;
        succeed(
            node.command("diff")
                .args(["-r", "--no-dereference"])
                .args([&tree, &copy]),
        )?;
        let mode = fs::metadata(copy.join("program"))?.permissions();
        ensure!(
            std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777 == 0o755,
            "{from}: {mode:?}"
        );
        fs::remove_dir_all(copy)?;
    }

    // As a stream, from another program and into one.
    let sending = format!(
        "tar -C {tree_text} -cf - . | berth cp - box:/data/tree && berth cp box:/data/tree - | tar -tf -"
    );
    let listed = succeed(node.command("sh").args(["-c", &sending]))?;
    ensure!(listed.lines().any(|it| it == "tree/a/b/deep"), "{listed}");

    for (arguments, told) in [
        (["cp", "box:/none", "."], "/none does not exist"),
        (["cp", &big_text, "box:/none/x"], "/none/ does not exist"),
        (["cp", &big_text, "box:/none/"], "/none does not exist"),
        (
            ["cp", &tree_text, "box:/data/big"],
            "/data/big is no directory",
        ),
        (["cp", "box:/etc/resolv.conf/x", "."], "is no directory"),
        (
            ["cp", &big_text, "box:/etc/resolv.conf"],
            "/etc/resolv.conf is mounted from elsewhere",
        ),
        (["cp", &big_text, "box:/proc/x"], "does not exist"),
        (
            ["cp", &big_text, "box/other:/x"],
            "has no container other: it has app",
        ),
        (["cp", &big_text, "nobody:/x"], "no sandbox nobody"),
        (["cp", "box:/a", "box:/b"], "one of SRC and DST"),
    ] {
        let complaint = refused(&node, &arguments)?;
        ensure!(complaint.contains(told), "{arguments:?}: {complaint}");
    }
    node.assert_clean().await?;
    node.delete("box").await?;
    node.finish()
}

#[tokio::test]
async fn no_link_of_a_container_leads_to_the_node() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let secret = tempfile::tempdir()?;
    fs::write(secret.path().join("secret"), "secret of the node")?;
    let outside = secret.path().display();
    let line = format!(
        "ln() {{ busybox ln \"$@\"; }}; mv() {{ busybox mv \"$@\"; }}; rm() {{ busybox rm \"$@\"; }}; \
         mkdir /in && ln -s {outside} /in/out && ln -s ../../../../../../../..{outside} /in/up && \
         ln -s /proc/1/root{outside} /in/magic && ln -s /proc/self/root /in/self && ln -s {outside}/secret /in/file && \
         mkdir /in/race && touch /in/done && \
         while true; do mv /in/race /in/was; ln -s {outside} /in/race; rm /in/race; mv /in/was /in/race; done"
    );
    node.create("box", spec([shell("app", &line, &[])])).await?;
    let made = || async { node.berth(&["cp", "box:/in/done", "-"]).is_ok() };
    eventually("its links", SOON, made).await?;
    let (_, file) = local(&node, "file");
    fs::write(&file, "from a person")?;
    for path in [
        "box:/in/out",
        "box:/in/up",
        "box:/in/magic",
        "box:/in/out/secret",
        "box:/in/magic/secret",
    ] {
        // Where it leads in the container there is nothing.
        let through = format!("{path}/x");
        refused(&node, &["cp", &file, &through])?;
        let read = format!("{path}/secret");
        refused(&node, &["cp", &read, "-"])?;
    }
    refused(&node, &["cp", "-L", "box:/in/file", "-"])?;
    let (_, tree) = local(&node, "race");
    fs::create_dir_all(&tree)?;
    for number in 0..300 {
        fs::write(format!("{tree}/{number}"), "from a person")?;
    }
    for _ in 0..20 {
        // It may get through, be refused, or find nothing: but only ever in the container.
        let _ = node
            .command("berth")
            .args(["cp", &tree, "box:/in"])
            .output()?;
        let _ = node
            .command("berth")
            .args(["cp", "box:/in/race/secret", "-"])
            .output()?;
    }
    let names: Vec<_> = fs::read_dir(secret.path())?
        .flatten()
        .map(|it| it.file_name())
        .collect();
    ensure!(names == ["secret"], "{names:?}");
    ensure!(
        fs::read_to_string(secret.path().join("secret"))? == "secret of the node",
        "as it was"
    );

    // And what comes out makes nothing outside of where it was meant to go.
    let (here, here_text) = local(&node, "here");
    fs::create_dir(&here)?;
    std::os::unix::fs::symlink(secret.path(), here.join("in"))?;
    let complaint = refused(&node, &["cp", "box:/in", &here_text])?;
    ensure!(complaint.contains("is no directory"), "{complaint}");
    node.delete("box").await?;
    node.finish()
}

#[tokio::test]
async fn a_full_disk_and_a_file_system_that_is_read_only_are_said() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("box", idle()).await?;
    let (big, text) = local(&node, "big");
    noise(&big, 2_000_000)?;
    let pid = first_process(&node, "box")?;
    let inside = |line: &str| {
        let mut command = node.command("nsenter");
        command.args(["-t", &pid, "-m", "sh", "-c", line]);
        succeed(command)
    };
    inside(
        "mkdir -p /small /frozen && busybox mount -t tmpfs -o size=1m none /small && busybox mount -t tmpfs -o ro none /frozen",
    )?;
    let complaint = refused(&node, &["cp", &text, "box:/small/big"])?;
    ensure!(
        complaint.contains("/small/big: no space is left for it"),
        "{complaint}"
    );
    let left = inside("ls -A /small")?;
    ensure!(left.is_empty(), "{left}");
    let complaint = refused(&node, &["cp", &text, "box:/frozen/big"])?;
    ensure!(
        complaint.contains("on a file system that is read-only"),
        "{complaint}"
    );
    node.delete("box").await?;
    node.finish()
}

/// The pid of the first process of the only app container.
fn first_process(node: &TestNode, id: &str) -> anyhow::Result<String> {
    let mut command = node.command("ctr");
    command.args(["tasks", "ls"]);
    let tasks = succeed(command)?;
    let name = format!("sandbox.{id}.app");
    let mut rows = tasks
        .lines()
        .map(|it| it.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|it| it.first() == Some(&name.as_str()));
    Ok((*row.context(tasks.clone())?.get(1).context("a pid")?).to_owned())
}

#[tokio::test]
async fn a_large_stream_needs_little_memory_of_the_manager() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let mut wanted = idle();
    wanted.resources = Some(limits(0, 64 << 20, 0));
    node.create("box", wanted).await?;
    let pid = fs::read_to_string(node.home().join("manager.pid"))?;
    let (big, text) = local(&node, "big");
    noise(&big, 200 << 20)?;
    // The highest mark begins anew.
    fs::write(format!("/proc/{}/clear_refs", pid.trim()), "5")?;
    let before = memory_kib(&pid, "VmHWM:")?;
    let begun = std::time::Instant::now();
    node.berth(&["cp", &text, "box:/big"])?;
    let (back, back_text) = local(&node, "back");
    let turned = begun.elapsed();
    node.berth(&["cp", "box:/big", &back_text])?;
    let after = memory_kib(&pid, "VmHWM:")?;
    eprintln!(
        "200 MiB in {turned:?}, out {:?}, memory {before} -> {after} KiB",
        begun.elapsed() - turned
    );
    ensure!(digest(&back)? == digest(&big)?, "the same bytes");
    ensure!(
        after < before + (24 << 10),
        "the manager's memory: {before} -> {after} KiB"
    );
    node.delete("box").await?;
    node.finish()
}

#[tokio::test]
async fn a_copy_ends_with_its_container_its_caller_and_the_manager() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("box", idle()).await?;
    let start = v1::CopyToStart {
        id: "box".into(),
        path: "/".into(),
        ..v1::CopyToStart::default()
    };
    let begin = async || {
        let (sender, messages) = mpsc::channel(4);
        let mut header = tar::Header::new_gnu();
        header.set_path("file")?;
        header.set_size(1 << 20);
        header.set_mode(0o644);
        header.set_cksum();
        let begun = [header.as_bytes().as_slice(), &[7; 4096]].concat();
        for part in [Part::Start(start.clone()), Part::Chunk(begun)] {
            sender.send(v1::CopyToRequest { part: Some(part) }).await?;
        }
        let mut client = node.sandboxes();
        let call = tokio::spawn(async move { client.copy_to(ReceiverStream::new(messages)).await });
        let half = || async {
            let inside = root_of(&node, "box").map(|it| names(&it));
            inside.is_ok_and(|it| it.iter().any(|it| it.starts_with(".berth-copy")))
        };
        eventually("the half of a file", SOON, half).await?;
        anyhow::Ok((sender, call))
    };
    // Its caller goes away.
    let (sender, call) = begin().await?;
    call.abort();
    drop(sender);
    let root = root_of(&node, "box")?;
    let tidy = || async {
        names(&root)
            .iter()
            .all(|it| !it.starts_with(".berth-copy") && it != "file")
    };
    eventually("nothing is left of it", SOON, tidy).await?;
    // Its container is killed.
    let (_sender, call) = begin().await?;
    let pid = first_process(&node, "box")?;
    succeed(node.command("kill").args(["-KILL", &pid]))?;
    let status = call.await?.err().context("it is over")?;
    let details = status.get_error_details();
    let info = details.error_info().context("it has details")?;
    ensure!(info.reason == "CONTAINER_NOT_RUNNING", "{status}");
    let refused = refused(&node, &["cp", "box:/etc", "-"])?;
    ensure!(
        refused.contains("CONTAINER_NOT_RUNNING") || refused.contains("does not run"),
        "{refused}"
    );
    node.delete("box").await?;
    // The manager stops.
    node.create("box", idle()).await?;
    let (_sender, call) = begin().await?;
    node.signal_manager("-TERM", Duration::from_secs(10))?;
    let status = call.await?.err().context("it is over")?;
    ensure!(
        status
            .get_error_details()
            .error_info()
            .is_some_and(|it| it.reason == "SHUTTING_DOWN"),
        "{status}"
    );
    node.up().await?;
    let left = names(&root_of(&node, "box")?);
    ensure!(
        left.iter().all(|it| !it.starts_with(".berth-copy")),
        "{left:?}"
    );
    node.delete("box").await?;
    node.finish()
}

fn root_of(node: &TestNode, id: &str) -> anyhow::Result<PathBuf> {
    Ok(Path::new("/proc")
        .join(first_process(node, id)?)
        .join("root"))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|it| it.file_name().to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn files_belong_to_whom_the_container_runs_as() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let config = serde_json::json!({ "User": "1234:5678" });
    let image = ImageParts::plain(&[images::busybox_layer()], config);
    node.import(&image.oci_archive("berth.local/user:1"), "")
        .await?;
    let app = v1::Container {
        image: "berth.local/user:1".into(),
        ..shell("app", "exec sleep 3600", &[])
    };
    node.create("box", spec([app])).await?;
    let (_, file) = local(&node, "file");
    fs::write(&file, "text")?;
    succeed(node.command("chown").args(["77:78", &file]))?;
    node.berth(&["cp", &file, "box:/given"])?;
    node.berth(&["cp", "-a", &file, "box:/kept"])?;
    let root = root_of(&node, "box")?;
    let owner = |name: &str| -> anyhow::Result<(u32, u32)> {
        use std::os::unix::fs::MetadataExt as _;
        let found = fs::metadata(root.join(name))?;
        Ok((found.uid(), found.gid()))
    };
    ensure!(owner("given")? == (1234, 5678), "{:?}", owner("given"));
    ensure!(owner("kept")? == (77, 78), "{:?}", owner("kept"));
    node.delete("box").await?;
    node.finish()
}

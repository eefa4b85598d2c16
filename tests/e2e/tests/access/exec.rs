//! Programs that are run beside a container's own, on a real node.

use std::{fs, process::Command, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, exec_request::Action, exec_response::Event};
use berth_e2e::{
    TestNode,
    exec::{Exec, Said, pipes, processes, run, shell},
    node::eventually,
    specs,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic_types::StatusExt as _;

const LIMIT: Duration = Duration::from_secs(20);
/// So many looks in a row see the same of what has come to rest. Each is a program of its own, beside which much more than a
/// MiB is written by one that does not rest.
const LOOKS_AT_REST: u32 = 10;
/// The container of the sandbox `web`.
const WEB: &str = "sandbox.web.app";

/// A node with an idle sandbox `web`.
async fn node() -> anyhow::Result<TestNode> {
    let node = TestNode::start().await?;
    node.create("web", specs::idle()).await?;
    Ok(node)
}

/// Proves that no program is left, neither in containerd nor in the run folder, and takes the node down.
async fn finish(node: TestNode) -> anyhow::Result<()> {
    nothing_runs(&node).await?;
    node.assert_clean().await?;
    node.delete("web").await?;
    node.finish()
}

async fn nothing_runs(node: &TestNode) -> anyhow::Result<()> {
    eventually("no pipes are left", LIMIT, async || pipes(node).is_empty()).await?;
    let processes = processes(node, WEB)?;
    ensure!(processes == ["sleep 3600"], "{processes:?}");
    Ok(())
}

fn manager_pid(node: &TestNode) -> anyhow::Result<String> {
    let pid = fs::read_to_string(node.home().join("manager.pid"))?;
    Ok(pid.trim().to_owned())
}

fn open_files(node: &TestNode) -> anyhow::Result<usize> {
    let dir = format!("/proc/{}/fd", manager_pid(node)?);
    Ok(fs::read_dir(dir)?.count())
}

fn reason(status: &tonic::Status) -> String {
    let details = status.get_error_details();
    details
        .error_info()
        .map(|it| it.reason.clone())
        .unwrap_or_default()
}

fn code(said: &Said) -> (u32, u32) {
    (said.ended.exit_code, said.ended.signal)
}

#[tokio::test]
async fn what_a_program_says_and_how_it_ends_comes_back() -> anyhow::Result<()> {
    let node = node().await?;
    let said = run(&node, shell("web", "echo out; echo err >&2; exit 7")).await?;
    ensure!(code(&said) == (7, 0) && !said.ended.output_cut, "{said:?}");
    ensure!(
        said.stdout == b"out\n" && said.stderr == b"err\n",
        "{said:?}"
    );
    let said = run(&node, shell("web", "kill -9 $$")).await?;
    ensure!(
        code(&said) == (137, 9) && !said.ended.container_ended,
        "{said:?}"
    );

    let start = v1::ExecStart {
        env: vec!["WHO=me".into()],
        directory: "/tmp".into(),
        user: "33:44".into(),
        ..shell("web", "echo $WHO $(pwd) $(id -u):$(id -g) $PATH")
    };
    let said = run(&node, start).await?;
    ensure!(said.text().starts_with("me /tmp 33:44 /"), "{said:?}");

    let refused = async |start| Exec::start(&node, start).await.err().context("it ran");
    let of = |argv: &[&str]| v1::ExecStart {
        argv: argv.iter().map(|it| (*it).to_owned()).collect(),
        ..shell("web", "")
    };
    let status = refused(of(&["nope"])).await?;
    ensure!(reason(&status) == "EXEC_NOT_STARTED", "{status:?}");
    ensure!(status.message().contains("nope"), "{status:?}");
    let status = refused(of(&["/etc/hosts"])).await?;
    let details = status.get_error_details();
    let why = details
        .error_info()
        .and_then(|it| it.metadata.get("why").cloned());
    ensure!(why.as_deref() == Some("not_executable"), "{status:?}");
    let start = v1::ExecStart {
        user: "stranger".into(),
        ..shell("web", "true")
    };
    let status = refused(start).await?;
    ensure!(reason(&status) == "INVALID_FIELD", "{status:?}");
    let status = refused(shell("nobody", "true")).await?;
    ensure!(reason(&status) == "SANDBOX_NOT_FOUND", "{status:?}");
    let start = v1::ExecStart {
        container: "db".into(),
        ..shell("web", "true")
    };
    let status = refused(start).await?;
    ensure!(reason(&status) == "CONTAINER_NOT_FOUND", "{status:?}");
    finish(node).await
}

#[tokio::test]
async fn megabytes_of_input_come_through_and_their_end_is_seen() -> anyhow::Result<()> {
    let node = node().await?;
    let data: Vec<u8> = (0..8_000_000_u32)
        .map(|it| it.wrapping_mul(2_654_435_761) as u8)
        .collect();
    let start = v1::ExecStart {
        stdin: true,
        ..shell("web", "busybox sha256sum; echo done")
    };
    let mut exec = Exec::start(&node, start.clone()).await?;
    for chunk in data.chunks(60_000) {
        exec.send(Action::Stdin(chunk.to_vec())).await?;
    }
    exec.send(Action::StdinEnd(v1::StdinEnd {})).await?;
    let said = exec.finish().await?;
    let digest = Sha256::digest(&data);
    let digest = digest
        .iter()
        .map(|it| format!("{it:02x}"))
        .collect::<String>();
    ensure!(said.text() == format!("{digest}  -\ndone\n"), "{said:?}");
    ensure!(exec.taken == data.len() as u64, "{}", exec.taken);

    let start = v1::ExecStart {
        argv: vec!["cat".into()],
        ..start
    };
    let mut exec = Exec::start(&node, start.clone()).await?;
    let sender = exec.sender().context("input is open")?;
    exec.end_input();
    let back = data.clone();
    let sending = tokio::spawn(async move {
        for chunk in back.chunks(60_000) {
            let action = Some(Action::Stdin(chunk.to_vec()));
            if sender.send(v1::ExecRequest { action }).await.is_err() {
                return;
            }
        }
    });
    let said = exec.finish().await?;
    sending.await?;
    ensure!(
        said.stdout == data && code(&said) == (0, 0),
        "{} bytes",
        said.stdout.len()
    );

    // Its input has ended before it could be opened.
    for _ in 0..20 {
        let mut exec = Exec::start(&node, start.clone()).await?;
        exec.end_input();
        let said = exec.finish().await?;
        ensure!(code(&said) == (0, 0) && said.stdout.is_empty(), "{said:?}");
    }
    let said = run(
        &node,
        v1::ExecStart {
            stdin: false,
            ..start
        },
    )
    .await?;
    ensure!(
        code(&said) == (0, 0),
        "input that nobody asked for is empty: {said:?}"
    );
    finish(node).await
}

#[tokio::test]
async fn small_pieces_of_input_that_nobody_reads_wait_and_arrive() -> anyhow::Result<()> {
    // What the kernel, containerd's shim and the windows of a call take in is a tenth of this.
    const PIECES_MOST: usize = 4_000_000;
    let node = node().await?;
    let line = "while ! test -e /tmp/go; do sleep 0.1; done; busybox wc -c";
    let start = v1::ExecStart {
        stdin: true,
        ..shell("web", line)
    };
    let mut exec = Exec::start(&node, start).await?;
    let sender = exec.sender().context("input is open")?;
    exec.end_input();
    let (sent, enough) = (Arc::new(Notify::new()), CancellationToken::new());
    let (telling, told) = (sent.clone(), enough.clone());
    let sending = tokio::spawn(async move {
        let mut pieces = 0;
        while pieces < PIECES_MOST && !told.is_cancelled() {
            let action = Some(Action::Stdin(vec![7]));
            if sender.send(v1::ExecRequest { action }).await.is_err() {
                break;
            }
            pieces += 1;
            telling.notify_one();
        }
        pieces
    });
    // Until no more of it goes anywhere.
    let quiet = Duration::from_millis(500);
    while tokio::time::timeout(quiet, sent.notified()).await.is_ok() {}
    ensure!(!sending.is_finished(), "all of it went somewhere");
    enough.cancel();
    run(&node, shell("web", "touch /tmp/go")).await?;
    let said = exec.finish().await?;
    let pieces = sending.await?;
    ensure!(said.text() == format!("{pieces}\n"), "{pieces}: {said:?}");
    finish(node).await
}

#[tokio::test]
async fn input_in_pieces_that_are_too_large_is_refused_and_never_taken_for_its_end()
-> anyhow::Result<()> {
    let node = node().await?;
    // One that is more than a piece may have, and one that is more than any message.
    for length in [(64 << 10) + 1, 5 << 20] {
        let start = v1::ExecStart {
            stdin: true,
            ..shell("web", "busybox wc -c; echo over >>/tmp/over")
        };
        let mut exec = Exec::start(&node, start).await?;
        exec.send(Action::Stdin(b"some".to_vec())).await?;
        exec.send(Action::Stdin(vec![7; length])).await?;
        let status = exec.finish().await.err().context("it ended well")?;
        let status = status.downcast::<tonic::Status>()?;
        ensure!(reason(&status) == "INVALID_FIELD", "{status:?}");
        let details = status.get_error_details();
        let violations = details.bad_request().context("violations")?;
        ensure!(
            violations.field_violations[0].field == "stdin",
            "{status:?}"
        );
    }
    let said = run(&node, shell("web", "busybox ls /tmp")).await?;
    ensure!(!said.text().contains("over"), "it saw the end: {said:?}");
    finish(node).await
}

#[tokio::test]
async fn a_signal_does_not_wait_behind_input_that_nobody_reads() -> anyhow::Result<()> {
    let node = node().await?;
    let line = "trap 'echo caught' INT; echo ready; while :; do sleep 1; done";
    let start = v1::ExecStart {
        stdin: true,
        ..shell("web", line)
    };
    let mut exec = Exec::start(&node, start).await?;
    exec.until("ready").await?;
    for _ in 0..4 {
        exec.send(Action::Stdin(vec![7; 64 << 10])).await?;
    }
    exec.send(Action::Signal(v1::ExecSignal { number: 2 }))
        .await?;
    exec.until("caught").await?;
    exec.send(Action::Signal(v1::ExecSignal { number: 15 }))
        .await?;
    let said = exec.finish().await?;
    ensure!(code(&said) == (143, 15), "{said:?}");
    finish(node).await
}

#[tokio::test]
async fn what_a_program_leaves_running_cannot_hold_up_its_end() -> anyhow::Result<()> {
    let node = node().await?;
    let said = run(&node, shell("web", "sleep 1000 & echo $!; exit 3")).await?;
    ensure!(code(&said) == (3, 0) && said.ended.output_cut, "{said:?}");
    let pid = said.text().trim().to_owned();
    // As with others of its kind it lives on; whoever wants it gone says so.
    let said = run(&node, shell("web", &format!("kill -9 {pid}"))).await?;
    ensure!(code(&said) == (0, 0) && !said.ended.output_cut, "{said:?}");
    finish(node).await
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_its_program_along_with_all_of_its_session()
-> anyhow::Result<()> {
    let node = node().await?;
    let line = "trap '' HUP; sleep 1000 & echo ready; sleep 1000; sleep 1000";
    let mut exec = Exec::start(&node, shell("web", line)).await?;
    exec.until("ready").await?;
    ensure!(
        processes(&node, WEB)?.len() == 4,
        "{:?}",
        processes(&node, WEB)?
    );
    drop(exec);
    let alone = async || processes(&node, WEB).is_ok_and(|it| it.len() == 1);
    eventually("its processes are gone", LIMIT, alone).await?;
    finish(node).await
}

#[tokio::test]
async fn a_slow_reader_makes_the_program_wait_and_grows_nothing() -> anyhow::Result<()> {
    let node = node().await?;
    let resident = || -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", manager_pid(&node)?))?;
        let line = status.lines().find(|it| it.starts_with("VmRSS:"));
        let kib = line
            .and_then(|it| it.split_whitespace().nth(1))
            .context("its size")?;
        Ok(kib.parse()?)
    };
    let written = "/tmp/written";
    let line = format!(
        "i=0; while [ $i -lt 256 ]; do busybox head -c 1048576 /dev/zero; i=$((i+1)); echo $i > {written}; done"
    );
    let before = resident()?;
    let mut exec = Exec::start(&node, shell("web", &line)).await?;
    // It comes to rest with what fits into the pipes and windows on its way.
    let progress = async || {
        let said = run(&node, shell("web", &format!("cat {written} || echo 0"))).await?;
        Ok::<_, anyhow::Error>(said.text().trim().parse::<u32>()?)
    };
    let (mut last, mut looks) = (progress().await?, 0);
    while looks < LOOKS_AT_REST {
        let now = progress().await?;
        looks = if now == last { looks + 1 } else { 0 };
        last = now;
    }
    let grown = resident()?.saturating_sub(before);
    println!("the program wrote {last} MiB that nobody read; the manager grew by {grown} KiB");
    ensure!(last < 32, "{last} MiB went somewhere");
    ensure!(grown < 32 << 10, "the manager grew by {grown} KiB");
    let mut bytes = 0;
    let ended = loop {
        match exec.next().await? {
            Event::Stdout(it) => bytes += it.len(),
            Event::Ended(ended) => break ended,
            Event::Started(_) | Event::Stderr(_) | Event::StdinTaken(_) => {}
        }
    };
    ensure!(
        bytes == 256 << 20 && ended.exit_code == 0,
        "{bytes} bytes, {ended:?}"
    );
    finish(node).await
}

#[tokio::test]
async fn a_terminal_has_the_size_that_it_is_told() -> anyhow::Result<()> {
    let node = node().await?;
    let size = |columns, rows| v1::TerminalSize { columns, rows };
    let start = v1::ExecStart {
        tty: true,
        stdin: true,
        terminal_size: Some(size(100, 40)),
        ..shell(
            "web",
            "busybox stty size; echo $TERM; read line; busybox stty size; read line",
        )
    };
    let mut exec = Exec::start(&node, start).await?;
    let first = exec.until("xterm").await?;
    ensure!(first.contains("40 100"), "{first:?}");
    exec.send(Action::Resize(size(33, 11))).await?;
    exec.send(Action::Stdin(b"\n".to_vec())).await?;
    exec.until("11 33").await?;
    // Ctrl-C is a key like any other.
    exec.send(Action::Stdin(vec![3])).await?;
    let said = exec.finish().await?;
    ensure!(code(&said) == (130, 2), "{said:?}");
    finish(node).await
}

#[tokio::test]
async fn a_program_ends_with_its_container_and_says_so() -> anyhow::Result<()> {
    let node = node().await?;
    let mut exec = Exec::start(&node, shell("web", "echo ready; sleep 1000")).await?;
    exec.until("ready").await?;
    let (stopped, said) = tokio::join!(node.stop("web"), exec.finish());
    stopped?;
    let said = said?;
    ensure!(
        said.ended.container_ended && code(&said) == (137, 9),
        "{said:?}"
    );
    let status = Exec::start(&node, shell("web", "true"))
        .await
        .err()
        .context("it ran")?;
    ensure!(reason(&status) == "SANDBOX_ENDING", "{status:?}");

    node.create(
        "short",
        specs::spec([specs::shell("app", "sleep 3; exit 4", &[])]),
    )
    .await?;
    let said = run(&node, shell("short", "sleep 1000")).await?;
    ensure!(said.ended.container_ended, "{said:?}");
    eventually("no pipes are left", LIMIT, async || pipes(&node).is_empty()).await?;
    node.delete("short").await?;
    node.delete("web").await?;
    node.assert_clean().await?;
    node.finish()
}

#[tokio::test]
async fn of_200_programs_at_once_none_is_lost_and_none_is_left() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let ids = ["web", "b", "c", "d"];
    for id in ids {
        node.create(id, specs::idle()).await?;
    }
    // The first one brings up what stays.
    run(&node, shell("web", "true")).await?;
    let before = open_files(&node)?;
    let begun = std::time::Instant::now();
    let runs = (0..200).map(|number| {
        let line = format!("cat; echo {number}; exit {}", number % 100);
        let start = v1::ExecStart {
            stdin: true,
            ..shell(ids[number % ids.len()], &line)
        };
        let node = &node;
        async move {
            let mut exec = Exec::start(node, start).await?;
            exec.send(Action::Stdin(b"in\n".to_vec())).await?;
            exec.end_input();
            let said = exec.finish().await?;
            let expected = format!("in\n{number}\n");
            ensure!(said.text() == expected, "{number}: {said:?}");
            ensure!(code(&said).0 as usize == number % 100, "{number}: {said:?}");
            ensure!(!said.ended.output_cut, "{number}: {said:?}");
            Ok(())
        }
    });
    futures::future::try_join_all(runs).await?;
    println!("200 programs took {:?}", begun.elapsed());
    nothing_runs(&node).await?;
    for id in ids {
        ensure!(
            processes(&node, &format!("sandbox.{id}.app"))?.len() == 1,
            "{:?}",
            processes(&node, &format!("sandbox.{id}.app"))?
        );
    }
    let closed = async || open_files(&node).is_ok_and(|it| it <= before + 2);
    eventually("the manager has closed what it opened", LIMIT, closed).await?;
    node.assert_clean().await?;
    for id in ids {
        node.delete(id).await?;
    }
    node.finish()
}

#[tokio::test]
async fn a_manager_that_is_killed_leaves_no_program_when_it_is_back() -> anyhow::Result<()> {
    let node = node().await?;
    let mut execs = vec![];
    for _ in 0..20 {
        let mut exec = Exec::start(&node, shell("web", "echo ready; sleep 1000; true")).await?;
        exec.until("ready").await?;
        execs.push(exec);
    }
    ensure!(
        processes(&node, WEB)?.len() == 41 && pipes(&node).len() == 20,
        "20 run"
    );
    node.kill_manager()?;
    for exec in &mut execs {
        ensure!(exec.finish().await.is_err(), "an end that nobody saw");
    }
    node.up().await?;
    nothing_runs_alone(&node).await?;
    let said = run(&node, shell("web", "exit 7")).await?;
    ensure!(code(&said) == (7, 0), "{said:?}");
    finish(node).await
}

async fn nothing_runs_alone(node: &TestNode) -> anyhow::Result<()> {
    let alone = async || processes(node, WEB).is_ok_and(|it| it.len() == 1);
    eventually("programs of before are gone", LIMIT, alone).await?;
    eventually("their pipes are gone", LIMIT, async || {
        pipes(node).is_empty()
    })
    .await
}

#[tokio::test]
async fn a_manager_that_stops_ends_what_runs_and_more_than_allowed_is_refused() -> anyhow::Result<()>
{
    let node = TestNode::start_with("[exec]\nper_sandbox = 2\nper_node = 3\n", &[]).await?;
    node.create("web", specs::idle()).await?;
    node.create("other", specs::idle()).await?;
    let refused = async |id: &str, of: &str| {
        let status = Exec::start(&node, shell(id, "true")).await.err();
        let status = status.context("it ran")?;
        let code = status.code();
        ensure!(code == tonic::Code::ResourceExhausted, "{status:?}");
        let details = status.get_error_details();
        let info = details.error_info().context("details")?;
        ensure!(info.reason == "EXEC_LIMIT", "{status:?}");
        ensure!(info.metadata["scope"] == of, "{info:?}");
        Ok(())
    };
    let mut first = Exec::start(&node, shell("web", "sleep 1000; true")).await?;
    let second = Exec::start(&node, shell("web", "sleep 1000; true")).await?;
    refused("web", "sandbox").await?;
    let third = Exec::start(&node, shell("other", "sleep 1000; true")).await?;
    refused("other", "node").await?;
    drop(second);
    drop(third);
    let again = async || run(&node, shell("web", "true")).await.is_ok();
    eventually("its place is free again", LIMIT, again).await?;
    node.signal_manager("-TERM", LIMIT)?;
    ensure!(first.finish().await.is_err(), "its end was not its own");
    ensure!(
        processes(&node, WEB)?.len() == 1,
        "{:?}",
        processes(&node, WEB)?
    );
    ensure!(pipes(&node).is_empty(), "{:?}", pipes(&node));
    node.up().await?;
    node.delete("other").await?;
    finish(node).await
}

#[tokio::test]
async fn the_command_line_ends_as_the_program_does() -> anyhow::Result<()> {
    let node = node().await?;
    let berth = |arguments: &[&str]| -> Command {
        let mut command = node.command("berth");
        command.arg("exec").args(arguments);
        command
    };
    let output = berth(&["web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).output()?;
    ensure!(output.status.code() == Some(7), "{output:?}");
    ensure!(
        output.stdout == b"out\n" && output.stderr == b"err\n",
        "{output:?}"
    );
    let output = berth(&[
        "-e",
        "A=1",
        "-w",
        "/tmp",
        "web",
        "--",
        "sh",
        "-c",
        "kill -15 $$",
    ])
    .output()?;
    ensure!(output.status.code() == Some(143), "{output:?}");
    let output = berth(&["web", "--", "nope"]).output()?;
    ensure!(output.status.code() == Some(127), "{output:?}");
    finish(node).await
}

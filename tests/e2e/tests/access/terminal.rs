//! `berth exec` and `berth attach` on a real terminal, with a real node: what a person at it does and sees.

use std::time::Duration;

use anyhow::ensure;
use berth_api::v1::{self, SandboxStatus};
use berth_e2e::{
    TestNode,
    exec::{pipes, processes},
    node::eventually,
    specs,
    terminal::Terminal,
};

const LIMIT: Duration = Duration::from_secs(20);
const SIZE: (u16, u16) = (100, 40);
const CTRL_C: &str = "\x03";
const ESCAPE: &str = "\x1b";

/// Whether a program with this command line runs in the container.
fn runs(node: &TestNode, line: &str) -> bool {
    let running = processes(node, "sandbox.web.app");
    running.is_ok_and(|it| it.iter().any(|it| it == line))
}

/// Interrupts a program that the shell has in the foreground, and looks that the shell lives on.
async fn interrupt(node: &TestNode, terminal: &mut Terminal) -> anyhow::Result<()> {
    terminal.press("sleep 1234\n")?;
    let running = async || runs(node, "sleep 1234");
    eventually("the program runs", LIMIT, running).await?;
    terminal.press(CTRL_C)?;
    terminal.until("ready> ")?;
    terminal.press("echo code $?\n")?;
    terminal.until("code 130\r\n")?;
    ensure!(!runs(node, "sleep 1234"), "it was not interrupted");
    Ok(())
}

/// Makes the window another one, and looks that the shell is told.
fn resize(terminal: &mut Terminal, (columns, rows): (u16, u16)) -> anyhow::Result<()> {
    terminal.resize((columns, rows))?;
    let told = format!("[ \"$(busybox stty size)\" = '{rows} {columns}' ]");
    terminal.press(&format!(
        "until {told}; do sleep 0.1; done; echo re'sized'\n"
    ))?;
    terminal.until("resized\r\n")
}

#[tokio::test]
async fn a_shell_a_screen_a_window_and_keys_are_as_at_home() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", specs::idle()).await?;
    let line = ["exec", "-it", "web", "--", "env", "PS1=ready> ", "sh"];
    let mut terminal = Terminal::berth(&node, &line, SIZE)?;
    terminal.until("ready> ")?;
    ensure!(terminal.modes()? != terminal.modes_before, "it is not raw");
    terminal.press("busybox stty size\n")?;
    terminal.until("40 100\r\n")?;
    resize(&mut terminal, (66, 22))?;
    interrupt(&node, &mut terminal).await?;

    terminal.press("busybox vi /tmp/note\n")?;
    terminal.until("- /tmp/note")?;
    terminal.press("i")?;
    terminal.until("I /tmp/note")?;
    terminal.press("hello from vi")?;
    terminal.until("hello from vi")?;
    terminal.press(ESCAPE)?;
    terminal.until("- /tmp/note")?;
    terminal.press(":wq\r")?;
    terminal.until("ready> ")?;
    terminal.press("tr a-z A-Z < /tmp/note\n")?;
    terminal.until("HELLO FROM VI\r\n")?;

    let before = terminal.modes_before;
    terminal.press("exit 7\n")?;
    let (code, seen, after) = terminal.end()?;
    ensure!(code == 7, "{code}: {seen:?}");
    ensure!(after == before, "{after:?}, and it was {before:?}");
    finish(node).await
}

#[tokio::test]
async fn a_terminal_is_as_before_whatever_ends_the_command() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    node.create("web", specs::idle()).await?;

    let mut terminal = Terminal::berth(&node, &["exec", "-it", "web", "--", "nope"], SIZE)?;
    terminal.until("nope")?;
    let before = terminal.modes_before;
    let (code, seen, after) = terminal.end()?;
    ensure!(code == 127 && after == before, "{code} {after:?} {seen:?}");

    let sleep = ["exec", "-it", "web", "--", "sleep", "4321"];
    let running = async || runs(&node, "sleep 4321");
    let terminal = Terminal::berth(&node, &sleep, SIZE)?;
    eventually("the program runs", LIMIT, running).await?;
    node.kill_manager()?;
    let (code, seen, after) = terminal.end()?;
    ensure!(code == 1 && after == before, "{code} {after:?} {seen:?}");
    node.up().await?;
    let gone = async || !runs(&node, "sleep 4321");
    eventually("the program is gone", LIMIT, gone).await?;

    // A window that is closed.
    let terminal = Terminal::berth(&node, &sleep, SIZE)?;
    eventually("the program runs", LIMIT, running).await?;
    let raw = async || terminal.modes().is_ok_and(|it| it != before);
    eventually("the command knows it", LIMIT, raw).await?;
    let code = terminal.close()?;
    ensure!(code == 129, "SIGHUP ends it, with {code}");
    eventually("the program is gone", LIMIT, gone).await?;

    // Without `-t` the terminal stays as it is, and Ctrl-C is a signal.
    let trap = "trap 'echo caught' INT; echo ready; while :; do sleep 0.1; done";
    let line = ["exec", "-i", "web", "--", "sh", "-c", trap];
    let mut terminal = Terminal::berth(&node, &line, SIZE)?;
    terminal.until("ready")?;
    ensure!(terminal.modes()? == before, "{:?}", terminal.modes()?);
    for _ in 0..2 {
        terminal.press(CTRL_C)?;
        terminal.until("caught")?;
    }
    terminal.press(CTRL_C)?;
    let (code, seen, _) = terminal.end()?;
    ensure!(code == 130, "{code}: {seen:?}");
    let gone = async || !runs(&node, &line[3..].join(" "));
    eventually("its program is gone", LIMIT, gone).await?;
    finish(node).await
}

#[tokio::test]
async fn who_attaches_to_a_shell_leaves_it_by_two_keys_and_finds_it_again() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let shell = v1::Container {
        tty: true,
        stdin: true,
        ..specs::shell("app", "exec env PS1='ready> ' sh", &[])
    };
    node.create("web", specs::spec([shell])).await?;
    let mut terminal = Terminal::berth(&node, &["attach", "web"], SIZE)?;
    terminal.until("ready> ")?;
    let before = terminal.modes_before;
    ensure!(terminal.modes()? != before, "it is not raw");
    terminal.press("busybox stty size\n")?;
    terminal.until("40 100\r\n")?;
    resize(&mut terminal, (66, 22))?;
    interrupt(&node, &mut terminal).await?;
    terminal.press("word=kept\n")?;
    terminal.until("ready> ")?;
    terminal.press("\x10\x11")?;
    let (code, seen, after) = terminal.end()?;
    ensure!(code == 0 && after == before, "{code} {after:?} {seen:?}");
    let sandbox = node.get("web").await?;
    ensure!(sandbox.status() == SandboxStatus::Running, "{sandbox:?}");

    let mut terminal = Terminal::berth(&node, &["attach", "web"], SIZE)?;
    terminal.until("word=kept\r\n")?;
    terminal.press("echo $word $((40+2))\n")?;
    terminal.until("kept 42\r\n")?;
    terminal.press("exit 7\n")?;
    let (code, seen, after) = terminal.end()?;
    ensure!(code == 7 && after == before, "{code} {after:?} {seen:?}");
    finish(node).await
}

async fn finish(node: TestNode) -> anyhow::Result<()> {
    eventually("no pipes are left", LIMIT, async || pipes(&node).is_empty()).await?;
    node.assert_clean().await?;
    node.delete("web").await?;
    node.assert_clean().await?;
    node.finish()
}

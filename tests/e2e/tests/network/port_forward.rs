//! Connections from here into the network of a sandbox, by the command that people use.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    process::{Child, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use berth_e2e::{
    TestNode,
    node::eventually,
    specs::{shell, spec},
};

const SOON: Duration = Duration::from_secs(20);

/// A `berth port-forward` that runs.
struct Forwarding {
    child: Child,
    /// The local port of each remote one.
    ports: BTreeMap<u16, u16>,
    complaints: mpsc::Receiver<String>,
}

impl Forwarding {
    fn start(node: &TestNode, id: &str, ports: &[u16]) -> anyhow::Result<Self> {
        let mut command = node.command("berth");
        command.args(["port-forward", id]);
        command.args(ports.iter().map(|it| format!(":{it}")));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("it is piped")?).lines();
        let errors = BufReader::new(child.stderr.take().context("it is piped")?).lines();
        let (sender, complaints) = mpsc::channel();
        std::thread::spawn(move || {
            for line in errors.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut found = BTreeMap::new();
        for port in ports {
            let line = lines.next().context("it says where it listens")??;
            let end = format!(" -> {id}:{port}");
            let here = line.strip_suffix(&end).context(line.clone())?;
            let here = here.strip_prefix("127.0.0.1:").context(line.clone())?;
            found.insert(*port, here.parse()?);
        }
        Ok(Self {
            child,
            ports: found,
            complaints,
        })
    }

    fn connect(&self, port: u16) -> anyhow::Result<TcpStream> {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports[&port]))?;
        socket.set_read_timeout(Some(SOON))?;
        Ok(socket)
    }

    /// Its next complaint that has this in it.
    fn complaint(&self, part: &str) -> anyhow::Result<String> {
        loop {
            let line = self
                .complaints
                .recv_timeout(SOON)
                .with_context(|| format!("`{part}`"))?;
            if line.contains(part) {
                return Ok(line);
            }
        }
    }

    /// How it ended by itself.
    fn ended(&mut self) -> anyhow::Result<Option<i32>> {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            ensure!(Instant::now() < deadline, "it goes on");
            std::thread::yield_now();
        }
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn page(mut socket: TcpStream) -> anyhow::Result<String> {
    socket.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("a page")?;
    Ok(body.trim().to_owned())
}

/// A page on the loopback only, and somebody on 9000 who says what they hear.
const APP: &str = "mkdir /www && echo loopback > /www/index.html && httpd -p 127.0.0.1:8080 -h /www && exec nc -ll -p 9000 -e cat";

async fn start(node: &TestNode) -> anyhow::Result<()> {
    node.create("web", spec([shell("app", APP, &[9000])]))
        .await?;
    Ok(())
}

#[tokio::test]
async fn an_app_on_its_loopback_is_reached_and_each_side_ends_for_itself() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    start(&node).await?;
    let forwarding = Forwarding::start(&node, "web", &[8080, 9000, 7777])?;
    ensure!(page(forwarding.connect(8080)?)? == "loopback");

    // The end of what is asked is not the end of what is answered.
    let mut echo = forwarding.connect(9000)?;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|it| (it % 251) as u8).collect();
    let mut writer = echo.try_clone()?;
    let bytes = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&bytes)?;
        writer.shutdown(Shutdown::Write)
    });
    let mut heard = vec![];
    echo.read_to_end(&mut heard)?;
    ensure!(writing.join().is_ok_and(|it| it.is_ok()), "it writes");
    ensure!(heard == sent, "{} of {} bytes", heard.len(), sent.len());

    // Nobody listens there: that connection ends, with a word, and the others go on.
    let mut nobody = forwarding.connect(7777)?;
    ensure!(
        nobody.read(&mut [0; 8]).unwrap_or_default() == 0,
        "it is over"
    );
    let told = forwarding.complaint("port 7777")?;
    ensure!(
        told.contains("nothing listens on port 7777 of sandbox web: connection refused"),
        "{told}"
    );
    ensure!(page(forwarding.connect(8080)?)? == "loopback");
    drop(forwarding);
    node.assert_clean().await?;
    node.delete("web").await?;
    node.finish()
}

#[tokio::test]
async fn fifty_connections_at_once_do_not_disturb_each_other() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    start(&node).await?;
    let pid = fs::read_to_string(node.home().join("manager.pid"))?;
    let open = || fs::read_dir(format!("/proc/{}/fd", pid.trim())).map_or(0, |it| it.count());
    let forwarding = Forwarding::start(&node, "web", &[9000])?;
    let before = open();
    let echoes = |socket: &mut TcpStream, word: &str| -> anyhow::Result<()> {
        socket.write_all(word.as_bytes())?;
        let mut heard = vec![0; word.len()];
        socket.read_exact(&mut heard)?;
        ensure!(heard == word.as_bytes(), "{word}");
        Ok(())
    };
    let mut sockets = vec![];
    for number in 0..50 {
        let mut socket = forwarding.connect(9000)?;
        let word = format!("word {number}\n");
        // One after another: this app lets two wait to be accepted, and whoever finds no place is back after seconds.
        echoes(&mut socket, &word)?;
        sockets.push((socket, word));
    }
    // The first one is written to and never read, which holds up nobody else.
    sockets[0].0.set_nonblocking(true)?;
    let mut filled = 0;
    while let Ok(written) = sockets[0].0.write(&[7; 65536]) {
        filled += written;
    }
    ensure!(filled > 65536, "{filled}");
    for (socket, word) in sockets.iter_mut().skip(1).rev() {
        echoes(socket, word)?;
    }
    ensure!(open() >= before + 50, "each has a connection");
    drop(sockets);
    let closed = || async { open() <= before + 2 };
    eventually("none is left", SOON, closed).await?;
    drop(forwarding);
    node.delete("web").await?;
    node.finish()
}

#[tokio::test]
async fn a_forward_ends_with_its_sandbox_and_holds_up_nothing() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    start(&node).await?;
    let mut forwarding = Forwarding::start(&node, "web", &[9000])?;
    let mut socket = forwarding.connect(9000)?;
    socket.write_all(b"here\n")?;
    socket.read_exact(&mut [0; 5])?;
    node.delete("web").await?;
    ensure!(
        socket.read(&mut [0; 8]).unwrap_or_default() == 0,
        "it is over"
    );
    ensure!(forwarding.ended()? == Some(1), "and so is the command");
    forwarding.complaint("sandbox web")?;

    // One that is made anew under the same id is another one.
    start(&node).await?;
    let mut forwarding = Forwarding::start(&node, "web", &[9000])?;
    node.delete("web").await?;
    start(&node).await?;
    let _socket = forwarding.connect(9000)?;
    ensure!(forwarding.ended()? == Some(1), "it does not lead there");
    forwarding.complaint("generation")?;

    // The manager stops at once with a connection open, and the next one serves.
    let forwarding = Forwarding::start(&node, "web", &[9000])?;
    let mut socket = forwarding.connect(9000)?;
    socket.write_all(b"here\n")?;
    socket.read_exact(&mut [0; 5])?;
    node.signal_manager("-TERM", Duration::from_secs(10))?;
    ensure!(
        socket.read(&mut [0; 8]).unwrap_or_default() == 0,
        "it is over"
    );
    node.up().await?;
    let mut socket = forwarding.connect(9000)?;
    socket.write_all(b"again")?;
    socket.read_exact(&mut [0; 5])?;
    drop(forwarding);
    node.delete("web").await?;
    node.finish()
}

#[tokio::test]
async fn on_the_network_of_the_node_only_ports_of_the_sandbox_are_reached() -> anyhow::Result<()> {
    let node = TestNode::start_with("network.allow_host_network = true\n", &[]).await?;
    let free = TcpListener::bind("127.0.0.1:0")?;
    let port = free.local_addr()?.port();
    drop(free);
    let line = format!(
        "mkdir /www && echo own > /www/index.html && exec httpd -f -p 127.0.0.1:{port} -h /www"
    );
    let mut wanted = spec([shell("app", &line, &[])]);
    wanted.host_network = true;
    node.create("host", wanted).await?;
    let program = TcpListener::bind("127.0.0.1:0")?;
    let foreign = program.local_addr()?.port();
    let forwarding = Forwarding::start(&node, "host", &[port, foreign])?;
    let served = || async {
        forwarding
            .connect(port)
            .and_then(page)
            .is_ok_and(|it| it == "own")
    };
    eventually("its page", SOON, served).await?;
    let mut socket = forwarding.connect(foreign)?;
    ensure!(
        socket.read(&mut [0; 8]).unwrap_or_default() == 0,
        "it is over"
    );
    forwarding.complaint(&format!(
        "nothing listens on port {foreign} of sandbox host"
    ))?;
    program.set_nonblocking(true)?;
    ensure!(
        program.accept().is_err(),
        "nobody came to the node's program"
    );
    drop(forwarding);
    node.delete("host").await?;
    node.finish()
}

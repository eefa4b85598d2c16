//! Hosts of a test, each a network namespace: a node in one of its own has a firewall, bridges and settings that are nobody
//! else's affair.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::{
    TestNode,
    node::{NAMESPACE_FILE, eventually, succeed, sweep},
};

const NAMESPACES: &str = "/run/netns";
/// Goes before the process id of the test.
const PREFIX: &str = "berth-e2e-";
/// How long a packet that is dropped is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(20);
static MADE: AtomicUsize = AtomicUsize::new(0);

/// Where programs can be run and sockets opened: a host, or the pinned namespace of a sandbox.
#[derive(Clone, Debug)]
pub struct Place(PathBuf);

/// A host; dropping it ends its programs and removes it.
#[derive(Debug)]
pub struct Host {
    place: Place,
    servers: Vec<(Child, TempDir)>,
}

/// A node in a host of its own. Dropping it takes the node down first.
#[derive(Debug)]
pub struct Apart {
    pub node: TestNode,
    pub host: Host,
}

impl Apart {
    /// Starts a node on a host that the caller has prepared.
    pub async fn start(host: Host, toml: &str) -> anyhow::Result<Self> {
        let home = TestNode::new_home()?;
        let path = host.0.to_str().context("a path is text")?;
        fs::write(home.path().join(NAMESPACE_FILE), path)?;
        let node = TestNode::start_in(home, toml, &[]).await?;
        Ok(Self { node, host })
    }

    /// The network of a sandbox, with the rights of the node.
    pub fn inside(&self, id: &str) -> Place {
        Place::at(self.node.home().join("run/ns").join(id).join("net"))
    }

    /// Takes all rules from a node that looks away: as when a firewall of others is loaded, away with all, and its own
    /// instead, which tracks and translates.
    pub fn lose_rules(&self) -> anyhow::Result<()> {
        const OTHERS: &str = "
            nft -f - <<'END'
            flush ruleset
            table inet others {
                chain forward { type filter hook forward priority 10; ct state established counter; }
                chain out { type nat hook postrouting priority srcnat; oifname \"cable*\" masquerade; }
            }
END";
        self.signal_manager("-STOP")?;
        self.host.shell(OTHERS)?;
        ensure!(!self.has_rules(), "they are gone");
        Ok(())
    }

    /// Has the node look again, and waits until its rules are back.
    pub async fn regain_rules(&self) -> anyhow::Result<()> {
        self.signal_manager("-CONT")?;
        let stand = || async { self.has_rules() };
        eventually("the rules are back", SOON, stand).await
    }

    fn signal_manager(&self, signal: &str) -> anyhow::Result<()> {
        let pid = self.node.manager_pid()?.to_string();
        succeed(Command::new("kill").args([signal, &pid]))?;
        Ok(())
    }

    fn has_rules(&self) -> bool {
        let tables = self.host.run("nft list tables");
        tables.is_ok_and(|it| it.contains("table inet berth-"))
    }

    pub fn finish(self) -> anyhow::Result<()> {
        self.node.finish()
    }
}

impl Host {
    pub fn new() -> anyhow::Result<Self> {
        forget_the_dead();
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let host = Self {
            place: Place(Path::new(NAMESPACES).join(name)),
            servers: vec![],
        };
        host.run("ip link set lo up")?;
        Ok(host)
    }

    /// A host with a cable to this one, as its way to everywhere. Returns it with its address and that of this one's end.
    pub fn neighbour(&self, number: u8) -> anyhow::Result<(Self, Ipv4Addr, Ipv4Addr)> {
        let other = Self::new()?;
        // Shared address space (RFC 6598).
        let (own, end) = (
            Ipv4Addr::new(100, 64, number, 2),
            Ipv4Addr::new(100, 64, number, 1),
        );
        let peer = other.0.to_str().context("a path is text")?;
        self.run(&format!(
            "ip link add cable{number} type veth peer name cable netns {peer}"
        ))?;
        self.run(&format!("ip addr add {end}/30 dev cable{number}"))?;
        self.run(&format!("ip link set cable{number} up"))?;
        other.run(&format!("ip addr add {own}/30 dev cable"))?;
        other.run("ip link set cable up")?;
        other.run(&format!("ip route add default via {end}"))?;
        Ok((other, own, end))
    }

    /// The addresses of IPv6 of a cable that stands: that of the other host, and that of this one's end.
    pub fn neighbour6(&self, number: u8, other: &Self) -> anyhow::Result<(Ipv6Addr, Ipv6Addr)> {
        let address = |last| Ipv6Addr::new(0xfd00, 7, number.into(), 0, 0, 0, 0, last);
        let (own, end) = (address(2), address(1));
        self.run(&format!("ip addr add {end}/64 dev cable{number} nodad"))?;
        other.run(&format!("ip addr add {own}/64 dev cable nodad"))?;
        other.run(&format!("ip route add default via {end}"))?;
        Ok((own, end))
    }

    /// Serves `text` at `/` until the host goes, over IPv4 and IPv6.
    pub fn serve(&mut self, port: u16, text: &str) -> anyhow::Result<()> {
        let dir = TempDir::new()?;
        fs::write(dir.path().join("index.html"), format!("{text}\n"))?;
        let mut server = self.command(&format!("busybox httpd -f -p [::]:{port}"));
        let server = server.arg("-h").arg(dir.path()).spawn()?;
        self.servers.push((server, dir));
        Ok(())
    }
}

impl std::ops::Deref for Host {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl std::ops::Deref for Place {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Place {
    /// Where this network namespace is pinned.
    pub fn at(namespace: PathBuf) -> Self {
        Self(namespace)
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.0.display()));
        command.args(line.split_whitespace());
        command.stdin(Stdio::null());
        command
    }

    /// Runs a line and returns what it prints.
    pub fn run(&self, line: &str) -> anyhow::Result<String> {
        succeed(self.command(line))
    }

    /// Runs several lines of shell.
    pub fn shell(&self, lines: &str) -> anyhow::Result<String> {
        succeed(self.command("sh -euc").arg(lines))
    }

    /// What a web server answers; `None` where no connection, or no answer, comes about within a second.
    pub fn fetch(&self, to: SocketAddr) -> Option<String> {
        let mut stream = self.connect(to).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        Some(body.trim().to_owned())
    }

    /// Does `work` on a thread that is in this network, and ends there.
    pub fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let namespace = fs::File::open(&self.0)?;
        let thread = std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        thread.join().map_err(|_| anyhow!("the thread panicked"))?
    }

    /// A socket for datagrams to `port`, of IPv4.
    pub fn udp(&self, port: u16) -> anyhow::Result<UdpSocket> {
        self.udp_at(Ipv4Addr::UNSPECIFIED.into(), port)
    }

    pub fn udp_at(&self, own: IpAddr, port: u16) -> anyhow::Result<UdpSocket> {
        let socket = self.within(move || Ok(UdpSocket::bind((own, port))?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    /// Answers each datagram to `port` with this text, over IPv4 and IPv6, until the test ends.
    pub fn answer(&self, port: u16, text: &'static str) -> anyhow::Result<()> {
        let socket = self.within(move || Ok(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?))?;
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(text.as_bytes(), from);
            }
        });
        Ok(())
    }

    /// What comes back, from where it was asked, for a datagram; `None` when nothing comes within a second.
    pub fn ask(&self, to: SocketAddr) -> anyhow::Result<Option<String>> {
        let own = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = self.udp_at(own, 0)?;
        socket.connect(to)?;
        // What is refused comes as an error of the next call.
        let sent = socket.send(b"hello");
        let answer = sent.ok().and_then(|_| received(&socket));
        Ok(answer.map(|it| it.0))
    }

    /// A connection, unless none comes about within a second.
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let connected = self.within(move || Ok(TcpStream::connect_timeout(&to, PATIENCE)));
        let stream = connected.map_err(std::io::Error::other)??;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Sends back whatever comes to `port` by TCP, over IPv4 and IPv6, until the test ends.
    pub fn echo(&self, port: u16) -> anyhow::Result<()> {
        let listener =
            self.within(move || Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        Ok(())
    }
}

/// Does the same with all at once, since each that is dropped is waited for.
pub fn with_each<T: Sync>(
    all: &[T],
    work: impl Fn(&T) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = all.iter().map(|it| scope.spawn(move || work(it))).collect();
        threads
            .into_iter()
            .try_for_each(|it| it.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

/// Whether `text` comes back on a connection to an echo.
pub fn comes_back(mut stream: &TcpStream, text: &str) -> bool {
    let mut buffer = vec![0; text.len()];
    let sent = stream.write_all(text.as_bytes());
    sent.and_then(|()| stream.read_exact(&mut buffer)).is_ok() && buffer == text.as_bytes()
}

/// The next datagram, with its sender; `None` when none comes within a second.
pub fn received(socket: &UdpSocket) -> Option<(String, SocketAddr)> {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Some((text, from))
}

impl Drop for Host {
    fn drop(&mut self) {
        for (server, _) in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        remove(&self.place.0);
    }
}

fn remove(namespace: &Path) {
    let name = namespace.file_name().unwrap_or_default().to_string_lossy();
    let _ = ip(&format!("netns delete {name}"));
}

/// Removes hosts of tests that were killed, behind the nodes that were on them.
fn forget_the_dead() {
    sweep();
    for entry in fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|it| it.split_once('-'));
        if pid.is_some_and(|(pid, _)| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}

fn ip(line: &str) -> anyhow::Result<String> {
    succeed(Command::new("ip").args(line.split_whitespace()))
}

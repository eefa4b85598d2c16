//! Who means no good at the TLS port: refused, in bounded memory, while others are served.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use berth_api::{
    Target, TlsFiles,
    v1::{
        self, node_service_client::NodeServiceClient, sandbox_service_client::SandboxServiceClient,
    },
};
use berth_e2e::{
    certificates::{Authority, TlsNode},
    node::eventually,
};
use futures::future::try_join_all;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::Code;

const SETTINGS: &str = "tls.handshake_timeout = \"5s\"\ntls.idle_timeout = \"5s\"\ntls.handshakes_max = 32\n\
    tls.connections_max = 24\ntls.per_certificate_max = 8\n";
/// Every bound of these settings has done its work long before.
const LIMIT: Duration = Duration::from_secs(60);
/// What 10,000 connections or a large request may add to the manager's memory, at most at any time.
const MEMORY_MAX: u64 = 64 << 20;
const IDLE: usize = 10_000;
/// Hostile callers have an address of their own, as they would.
const FROM: &str = "127.0.0.3:0";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS, and HEADERS of the first stream that say that more of them follow.
const UNFINISHED: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x03\x01\0\0\0\0\x01\x82\x86\x84";

async fn hostile(port: u16) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(FROM.parse()?)?;
    Ok(socket
        .connect(SocketAddr::from(([127, 0, 0, 1], port)))
        .await?)
}

/// A connection past the handshake, for what no proper client would say.
async fn shaken(port: u16, files: &TlsFiles) -> anyhow::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca)?)?;
    let chain = vec![CertificateDer::from_pem_file(&files.certificate)?];
    let key = PrivateKeyDer::from_pem_file(&files.key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("127.0.0.1")?;
    let connector = TlsConnector::from(Arc::new(config));
    Ok(connector.connect(name, hostile(port).await?).await?)
}

/// Returns when the other side has ended the connection.
async fn ended(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<()> {
    let mut bytes = [0; 4096];
    let reading = async { while stream.read(&mut bytes).await.is_ok_and(|it| it > 0) {} };
    tokio::time::timeout(LIMIT, reading)
        .await
        .context("it is not ended")
}

async fn refused(what: &str, target: Target) -> anyhow::Result<String> {
    let error = target
        .connect()
        .await
        .err()
        .with_context(|| format!("{what} is refused"))?;
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Ok(text)
}

fn memory(node: &TlsNode, figure: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", node.node.manager_pid()?))?;
    let line = status.lines().find_map(|it| it.strip_prefix(figure));
    let number = line.and_then(|it| it.split_whitespace().nth(1));
    Ok(number.context("a figure")?.parse::<u64>()? << 10)
}

/// Has the kernel forget the most memory that the manager had.
fn forget_peak(node: &TlsNode) -> anyhow::Result<u64> {
    fs::write(
        format!("/proc/{}/clear_refs", node.node.manager_pid()?),
        "5",
    )?;
    memory(node, "VmRSS")
}

#[tokio::test]
async fn whoever_means_no_good_is_refused_in_bounded_memory_while_others_are_served()
-> anyhow::Result<()> {
    let tls = TlsNode::start(SETTINGS).await?;
    let dir = tls.dir();
    let good = tls.of_roles("good", &["control-plane"])?;
    // Somebody who is served all the time, each time by a connection of its own.
    let served = AtomicU64::new(0);
    let others = async {
        loop {
            let mut client = NodeServiceClient::new(good.connect().await?);
            client.get_status(v1::GetStatusRequest {}).await?;
            served.fetch_add(1, Ordering::Relaxed);
        }
        #[expect(unreachable_code, reason = "it says of what kind the errors are")]
        anyhow::Ok(())
    };
    let attacks = async {
        wrong_certificates(&tls).await?;
        let grown = large_request(&tls, &good).await? >> 10;
        println!("100 MiB request: {grown} KiB more at most");
        requests_at_their_bounds(&good).await?;
        let grown = idle_connections(&tls).await? >> 10;
        println!("{IDLE} connections: {grown} KiB more at most");
        slow_ones(&tls).await?;
        // Whoever has a certificate has its share of the connections, and no more.
        let greedy = tls.authority.caller(&dir, "greedy", &["read-only"])?;
        let mut held = vec![];
        for _ in 0..40 {
            held.push(shaken(tls.port, &greedy).await?);
        }
        try_join_all(held.iter_mut().map(ended)).await?;
        anyhow::Ok(())
    };
    let before = served.load(Ordering::Relaxed);
    tokio::select! {
        done = attacks => done?,
        failed = others => failed.context("somebody else is served")?,
    }
    let meanwhile = served.load(Ordering::Relaxed) - before;
    ensure!(meanwhile > 10, "{meanwhile} calls of others");
    println!("{meanwhile} calls of others meanwhile");
    tls.node.finish()
}

async fn wrong_certificates(tls: &TlsNode) -> anyhow::Result<()> {
    let dir = tls.dir();
    let foreign = Authority::new("somebody else's CA")?;
    let foreign = TlsFiles {
        ca: dir.join("server.ca"),
        ..foreign.caller(&dir, "foreign", &["admin"])?
    };
    let said = refused("another CA's", tls.target(foreign.clone())).await?;
    ensure!(said.contains("alert"), "{said}");
    let expired = tls.authority.expired(&dir, "expired", "admin")?;
    let said = refused("an expired one", tls.target(expired)).await?;
    ensure!(said.contains("xpired"), "{said}");
    // And a client takes no server of another CA.
    let fooled = TlsFiles {
        ca: dir.join("foreign.ca"),
        ..tls.authority.caller(&dir, "fooled", &["admin"])?
    };
    refused("another server", tls.target(fooled)).await?;

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("server.ca"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = hostile(tls.port).await?;
    // The server says no behind the client's own handshake.
    let mut stream = connector
        .connect(ServerName::try_from("127.0.0.1")?, stream)
        .await?;
    let no = stream
        .read(&mut [0; 1])
        .await
        .err()
        .context("no certificate")?;
    ensure!(no.to_string().contains("CertificateRequired"), "{no}");

    let mut plain = hostile(tls.port).await?;
    plain.write_all(PREFACE).await?;
    ended(&mut plain).await?;
    let mut plain = hostile(tls.port).await?;
    plain
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await?;
    ended(&mut plain).await
}

/// Of 100 MiB.
async fn large_request(tls: &TlsNode, good: &Target) -> anyhow::Result<u64> {
    let before = forget_peak(tls)?;
    let request = v1::GetRequest {
        id: "x".repeat(100 << 20),
    };
    let mut client = SandboxServiceClient::new(good.connect().await?);
    let status = client.get(request).await.err().context("it is refused")?;
    ensure!(status.code() == Code::OutOfRange, "{status:?}");
    let peak = memory(tls, "VmHWM")?;
    ensure!(peak < before + MEMORY_MAX, "{before} became {peak}");
    Ok(peak.saturating_sub(before))
}

/// What is at a bound is taken, and what is beyond it is refused.
async fn requests_at_their_bounds(good: &Target) -> anyhow::Result<()> {
    const MESSAGE_MAX: usize = 4 << 20;
    /// Of the field in its message.
    const HEAD: usize = 5;
    let mut client = SandboxServiceClient::new(good.connect().await?);
    for (length, code) in [
        (MESSAGE_MAX, Code::InvalidArgument),
        (MESSAGE_MAX + 1, Code::OutOfRange),
    ] {
        let id = "x".repeat(length - HEAD);
        let status = client.get(v1::GetRequest { id }).await;
        let status = status.err().context("it is refused")?;
        ensure!(status.code() == code, "{length} bytes: {status:?}");
    }
    let mut client = NodeServiceClient::new(good.connect().await?);
    // Beside what each call has in its head. What is far beyond costs the connection.
    for (length, refused) in [
        (15 << 10, None),
        (16 << 10, Some("HTTP status code 431")),
        (64 << 10, Some("")),
    ] {
        let mut request = tonic::Request::new(v1::GetStatusRequest {});
        let value = "x".repeat(length).parse()?;
        request.metadata_mut().insert("x-long", value);
        let status = client.get_status(request).await.err();
        let as_told = match (&status, refused) {
            (None, None) => true,
            (Some(status), Some(words)) => status.message().contains(words),
            (Some(_), None) | (None, Some(_)) => false,
        };
        ensure!(as_told, "{length} bytes: {status:?}");
    }
    Ok(())
}

async fn idle_connections(tls: &TlsNode) -> anyhow::Result<u64> {
    let before = forget_peak(tls)?;
    let mut idle = Vec::with_capacity(IDLE);
    for _ in 0..IDLE {
        idle.push(hostile(tls.port).await?);
    }
    let peak = memory(tls, "VmHWM")?;
    ensure!(peak < before + MEMORY_MAX, "{before} became {peak}");
    // The last ones are out when their time is over.
    for stream in &mut idle {
        ended(stream).await?;
    }
    Ok(peak.saturating_sub(before))
}

/// Those that never come to an end: with a handshake, and with the head of a request, at once and byte by byte.
async fn slow_ones(tls: &TlsNode) -> anyhow::Result<()> {
    let files = tls.authority.caller(&tls.dir(), "slow", &["read-only"])?;
    let hello = async {
        let mut stream = hostile(tls.port).await?;
        // A record of a handshake, of which the rest never comes.
        dribble(&mut stream, &[0x16, 3, 1, 2, 0]).await
    };
    let preface = async {
        let mut stream = shaken(tls.port, &files).await?;
        dribble(&mut stream, PREFACE).await
    };
    let headers = async {
        let mut stream = shaken(tls.port, &files).await?;
        stream.write_all(&[PREFACE, UNFINISHED].concat()).await?;
        stream.flush().await?;
        ended(&mut stream).await
    };
    let request = async {
        let mut stream = shaken(tls.port, &files).await?;
        dribble(&mut stream, &[PREFACE, UNFINISHED].concat()).await
    };
    tokio::try_join!(hello, preface, headers, request).map(drop)
}

/// Says these bytes one at a time and then the last one for ever, until the other side has had enough.
async fn dribble<S>(stream: &mut S, bytes: &[u8]) -> anyhow::Result<()>
where
    S: AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut from, mut to) = tokio::io::split(stream);
    let saying = async {
        let last = bytes.last().copied().unwrap_or_default();
        let all = bytes.iter().copied().chain(std::iter::repeat(last));
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        for byte in all {
            pace.tick().await;
            if to.write_all(&[byte]).await.is_err() || to.flush().await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        it = ended(&mut from) => it,
        () = saying => Ok(()),
    }
}

#[tokio::test]
async fn a_port_without_certificates_serves_nobody_until_they_come() -> anyhow::Result<()> {
    let tls = TlsNode::start("tls.reload_interval = \"200ms\"\n").await?;
    tls.node.signal_manager("-TERM", LIMIT)?;
    let file = tls.dir().join("server.key");
    let key = fs::read_to_string(&file)?;
    fs::remove_file(&file)?;
    tls.node.up().await?;
    let status = tls.node.status().await?;
    ensure!(
        status.degraded.iter().any(|it| it.contains("server.key")),
        "{:?}",
        status.degraded
    );
    let looks = tls.of_roles("looks", &["read-only"])?;
    refused("everybody", looks.clone()).await?;
    fs::write(&file, key)?;
    eventually("they have come", LIMIT, || async {
        looks.connect().await.is_ok()
    })
    .await?;
    tls.node.finish()
}

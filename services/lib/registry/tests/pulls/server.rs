//! A registry that does what a test tells it to, over real connections, and remembers what it was asked.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};

/// The first byte of whoever begins with TLS.
const TLS_HANDSHAKE: u8 = 0x16;

#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    pub(crate) headers: String,
    pub(crate) body: String,
}

impl Asked {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.lines().filter_map(|it| it.split_once(": "));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }

    /// The first byte that a `Range` asks for.
    pub(crate) fn start(&self) -> usize {
        let range = self
            .header("range")
            .and_then(|it| it.strip_prefix("bytes="));
        let start = range.and_then(|it| it.strip_suffix('-'));
        start.map_or(0, |it| it.parse().expect("a number"))
    }
}

/// What comes back on a connection, which is closed after it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    Whole,
    /// Hangs up after so many bytes of head and body.
    CutAt(usize),
    /// Says nothing more after so many bytes of the body.
    SilentAt(usize),
    /// Sends a byte each so many milliseconds.
    Trickle(u64),
    /// Does not say how long it is, and hangs up after so many bytes of the body.
    Unmarked(usize),
}

impl Answer {
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200, body)
    }

    pub(crate) fn status(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: String::new(),
            body: body.into(),
            end: End::Whole,
        }
    }

    /// The rest of a body, for one who asks for it so.
    pub(crate) fn ranged(asked: &Asked, body: &[u8]) -> Self {
        match asked.start() {
            0 => Self::ok(body),
            start => Self::status(206, &body[start..]).with(&format!(
                "Content-Range: bytes {start}-{}/{}",
                body.len() - 1,
                body.len()
            )),
        }
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::status(307, "").with(&format!("Location: {to}"))
    }

    pub(crate) fn with(mut self, header: &str) -> Self {
        self.headers.push_str(header);
        self.headers.push_str("\r\n");
        self
    }

    pub(crate) fn ending(mut self, end: End) -> Self {
        self.end = end;
        self
    }
}

/// Listens on loopback until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    serving: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::listen(answer, None).await
    }

    pub(crate) async fn start_tls(
        tls: Arc<tokio_rustls::rustls::ServerConfig>,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::listen(answer, Some(tls.into())).await
    }

    async fn listen(
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
        tls: Option<tokio_rustls::TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (log, answer) = (asked.clone(), Arc::new(answer));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer, tls) = (log.clone(), answer.clone(), tls.clone());
                tokio::spawn(async move {
                    // A client that hangs up has its reasons.
                    let _ = match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &log, &*answer).await,
                            Err(error) => Err(error),
                        },
                        None => serve(stream, &log, &*answer).await,
                    };
                });
            }
        });
        Self {
            address,
            asked,
            serving,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        lock(&self.asked).clone()
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.asked().into_iter().map(|it| it.path).collect()
    }
}

fn lock(asked: &Mutex<Vec<Asked>>) -> std::sync::MutexGuard<'_, Vec<Asked>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    log: &Mutex<Vec<Asked>>,
    answer: &(impl Fn(&Asked) -> Answer + ?Sized),
) -> std::io::Result<()> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
        if head == [TLS_HANDSHAKE] {
            // As servers do that do not speak it.
            stream
                .write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                .await?;
            return stream.shutdown().await;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let (line, headers) = head.split_once("\r\n").unwrap_or_default();
    let mut words = line.split_whitespace().map(str::to_owned);
    let mut asked = Asked {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        headers: headers.to_owned(),
        body: String::new(),
    };
    if let Some(length) = asked.header("content-length") {
        let mut body = vec![0; length.parse().expect("a number")];
        stream.read_exact(&mut body).await?;
        asked.body = String::from_utf8_lossy(&body).into_owned();
    }
    let answer = answer(&asked);
    lock(log).push(asked);
    let length = if matches!(answer.end, End::Unmarked(_)) {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", answer.body.len())
    };
    let head = format!(
        "HTTP/1.1 {} Test\r\n{}{length}Connection: close\r\n\r\n",
        answer.status, answer.headers
    );
    let whole = [head.as_bytes(), &answer.body[..]].concat();
    match answer.end {
        End::Whole => stream.write_all(&whole).await?,
        End::CutAt(bytes) => stream.write_all(&whole[..bytes.min(whole.len())]).await?,
        End::Unmarked(bytes) => stream.write_all(&whole[..head.len() + bytes]).await?,
        End::SilentAt(bytes) => {
            stream.write_all(&whole[..head.len() + bytes]).await?;
            stream.flush().await?;
            // Until the client hangs up.
            stream.read_u8().await?;
        }
        End::Trickle(milliseconds) => {
            stream.write_all(head.as_bytes()).await?;
            for byte in &answer.body {
                tokio::time::sleep(std::time::Duration::from_millis(milliseconds)).await;
                stream.write_all(&[*byte]).await?;
                stream.flush().await?;
            }
        }
    }
    stream.shutdown().await
}

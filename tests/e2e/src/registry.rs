//! A registry in this process that answers what a test tells it to, also what no registry should.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::images::ImageParts;

/// Requests that one token is good for.
const TOKEN_USES: usize = 2;

#[derive(Clone, Debug)]
pub enum Answer {
    Bytes(Vec<u8>),
    Status(u16, &'static str),
    /// Promises as many bytes as these, and hangs up in the middle.
    Cut(Vec<u8>),
    /// Sends as long as somebody reads.
    Endless,
    /// Sends when the test lets it.
    Held(Vec<u8>),
}

/// Listens on loopback until it is dropped.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    released: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    answers: BTreeMap<String, Answer>,
    /// Whether requests need a token, and what the current one is still good for.
    tokens: Option<usize>,
    asked: Vec<String>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Registry {
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let (served, (released, held)) = (state.clone(), watch::channel(false));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, held) = (served.clone(), held.clone());
                tokio::spawn(async move {
                    // A client that hangs up has its reasons.
                    let _ = serve(stream, address, &state, held).await;
                });
            }
        });
        Ok(Self {
            address,
            state,
            released,
            serving,
        })
    }

    /// Nobody listens there when this returns.
    pub async fn stop(mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await;
    }

    /// Name of an image that this registry has.
    pub fn name(&self, repository: &str, reference: &str) -> String {
        let mark = if reference.contains(':') { '@' } else { ':' };
        format!("{}/{repository}{mark}{reference}", self.address)
    }

    /// Puts an image under a tag and its digests; returns its name.
    pub fn publish(&self, repository: &str, tag: &str, image: &ImageParts) -> String {
        for (digest, bytes) in &image.blobs {
            for kind in ["blobs", "manifests"] {
                let bytes = Answer::Bytes(bytes.clone());
                self.answer(&format!("{repository}/{kind}/{digest}"), bytes);
            }
        }
        let bytes = Answer::Bytes(image.blobs[image.digest()].clone());
        self.answer(&format!("{repository}/manifests/{tag}"), bytes);
        self.name(repository, tag)
    }

    /// Answers requests for a path below `/v2/`.
    pub fn answer(&self, path: &str, answer: Answer) {
        self.state().answers.insert(format!("/v2/{path}"), answer);
    }

    /// Lets all that is held go.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// Wants a token from now on, and a new one after each few requests.
    pub fn want_tokens(&self) {
        self.state().tokens = Some(0);
    }

    /// Paths that were asked for.
    pub fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request of one connection.
async fn serve(
    mut stream: TcpStream,
    address: SocketAddr,
    state: &Mutex<State>,
    mut held: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head
        .split_whitespace()
        .nth(1)
        .unwrap_or_default()
        .to_owned();
    let (answer, challenge) = {
        let mut state = lock(state);
        state.asked.push(path.clone());
        let has_token = head
            .to_ascii_lowercase()
            .contains("authorization: bearer it");
        // Who comes as to a proxy names the host too.
        let below = path
            .strip_prefix("http://")
            .and_then(|it| it.find('/').map(|at| &it[at..]));
        let answer = state.answers.get(below.unwrap_or(&path)).cloned();
        match &mut state.tokens {
            Some(uses) if path.starts_with("/token?scope=") => {
                *uses = TOKEN_USES;
                (Answer::Bytes(br#"{"token":"it"}"#.to_vec()), String::new())
            }
            Some(uses) if *uses == 0 || !has_token => {
                let challenge = format!(
                    "WWW-Authenticate: Bearer realm=\"http://{address}/token\",service=\"test\"\r\n"
                );
                (Answer::Status(401, ""), challenge)
            }
            Some(uses) => {
                *uses -= 1;
                (answer.unwrap_or(Answer::Status(404, "")), String::new())
            }
            None => (answer.unwrap_or(Answer::Status(404, "")), String::new()),
        }
    };
    let (status, length, body) = match &answer {
        Answer::Bytes(bytes) | Answer::Held(bytes) => (200, Some(bytes.len()), &bytes[..]),
        Answer::Status(status, text) => (*status, Some(text.len()), text.as_bytes()),
        Answer::Cut(bytes) => (200, Some(bytes.len()), &bytes[..bytes.len() / 2]),
        Answer::Endless => (200, None, &[][..]),
    };
    let length = length.map_or_else(
        || "Transfer-Encoding: chunked".to_owned(),
        |it| format!("Content-Length: {it}"),
    );
    let head =
        format!("HTTP/1.1 {status} Test\r\n{challenge}{length}\r\nConnection: close\r\n\r\n");
    if matches!(answer, Answer::Held(_)) {
        let _ = held.wait_for(|it| *it).await;
    }
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    if matches!(answer, Answer::Endless) {
        let chunk = [b"10000\r\n", &[b' '; 0x10000][..], b"\r\n"].concat();
        loop {
            stream.write_all(&chunk).await?;
        }
    }
    stream.shutdown().await
}

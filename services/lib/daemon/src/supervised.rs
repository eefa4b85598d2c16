//! What systemd is told of a process (`sd_notify`): that it serves, that it stops, and, as often as it wants, that it answers.

use std::{
    convert::Infallible,
    env, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::Path,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::Notify,
};

/// How often a process that begins is asked whether it serves.
const LOOK: Duration = Duration::from_millis(50);
/// How long one answer may take where systemd sets no time.
const PATIENCE: Duration = Duration::from_secs(5);
/// The beginning of HTTP/2, with settings that say nothing: a server answers it with its own.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

static BOUND: Notify = Notify::const_new();

/// Says that the socket is this process's own.
pub fn bound() {
    BOUND.notify_one();
}

/// Who wants to know.
#[derive(Clone, Debug)]
struct Supervisor {
    address: SocketAddr,
    /// Without a word for so long it ends the process.
    patience: Option<Duration>,
}

impl Supervisor {
    fn of_this_process() -> Option<Self> {
        Self::read(|name| env::var(name).ok(), std::process::id())
    }

    fn read(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Option<Self> {
        let path = variable("NOTIFY_SOCKET")?;
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&path),
        };
        let ours = variable("WATCHDOG_PID").is_none_or(|it| it == pid.to_string());
        let patience = variable("WATCHDOG_USEC").and_then(|it| it.parse().ok());
        Some(Self {
            address: address.ok()?,
            patience: patience.filter(|_| ours).map(Duration::from_micros),
        })
    }

    /// It is told as well as can be: a process goes on without one who listens.
    fn tell(&self, state: &str) {
        let told = UnixDatagram::unbound()
            .and_then(|socket| socket.send_to_addr(state.as_bytes(), &self.address));
        if let Err(error) = told {
            tracing::warn!(%error, state, "systemd was not told");
        }
    }
}

/// Tells systemd that this process serves, once its socket is answered, and then that it is still answered: not that it
/// runs, since a process may run and serve nobody. Without systemd it does nothing, for ever.
pub(crate) async fn keep_told(socket: &Path) -> Infallible {
    // Until it has the socket, another process may answer there.
    BOUND.notified().await;
    match Supervisor::of_this_process() {
        Some(supervisor) => keep(&supervisor, socket).await,
        None => std::future::pending().await,
    }
}

/// Tells systemd that this process stops.
pub(crate) fn tell_stopping() {
    if let Some(supervisor) = Supervisor::of_this_process() {
        supervisor.tell("STOPPING=1");
    }
}

async fn keep(supervisor: &Supervisor, socket: &Path) -> Infallible {
    let limit = supervisor.patience.map_or(PATIENCE, |it| it / 3);
    while !answers(socket, limit).await {
        tokio::time::sleep(LOOK).await;
    }
    supervisor.tell("READY=1");
    let Some(patience) = supervisor.patience else {
        return std::future::pending().await;
    };
    loop {
        if answers(socket, limit).await {
            supervisor.tell("WATCHDOG=1");
        } else {
            tracing::warn!("this process does not answer on its own socket");
        }
        tokio::time::sleep(patience / 3).await;
    }
}

async fn answers(socket: &Path, limit: Duration) -> bool {
    let asked = tokio::time::timeout(limit, ask(socket)).await;
    matches!(asked, Ok(Ok(())))
}

/// Connects, and waits for the head of the server's first frame.
async fn ask(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(HELLO).await?;
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Option<Supervisor> {
        let value = |name: &str| {
            let found = variables.iter().find(|(it, _)| *it == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Supervisor::read(value, 7)
    }

    #[test]
    fn the_environment_says_who_is_told_and_how_often() {
        assert!(read(&[("WATCHDOG_USEC", "30000000")]).is_none());
        let seconds = |variables: &[_]| read(variables).unwrap().patience.map(|it| it.as_secs());
        let socket = ("NOTIFY_SOCKET", "/run/systemd/notify");
        let usec = ("WATCHDOG_USEC", "30000000");
        assert_eq!(seconds(&[socket]), None);
        assert_eq!(seconds(&[socket, usec]), Some(30));
        assert_eq!(seconds(&[socket, usec, ("WATCHDOG_PID", "7")]), Some(30));
        assert_eq!(seconds(&[socket, usec, ("WATCHDOG_PID", "8")]), None);
        assert_eq!(seconds(&[socket, ("WATCHDOG_USEC", "often")]), None);
        let hidden = read(&[("NOTIFY_SOCKET", "@berth")]).unwrap();
        assert_eq!(hidden.address.as_abstract_name(), Some(&b"berth"[..]));
    }

    #[tokio::test]
    async fn who_answers_is_ready_and_alive_and_who_only_listens_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (notify, served) = (folder.path().join("notify"), folder.path().join("served"));
        let told = tokio::net::UnixDatagram::bind(&notify).unwrap();
        let supervisor = Supervisor {
            address: SocketAddr::from_pathname(&notify).unwrap(),
            patience: Some(Duration::from_millis(90)),
        };
        let listener = UnixListener::bind(&served).unwrap();
        let silent = Duration::from_millis(10);
        assert!(!answers(&served, silent).await, "it is bound, and no more");

        let serve = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                // Who had no patience is gone already.
                let _ = stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await;
            }
        };
        let hear = async {
            let mut heard = Vec::new();
            let mut buffer = [0; 64];
            while heard.len() < 3 {
                let length = told.recv(&mut buffer).await.unwrap();
                heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
            heard
        };
        tokio::select! {
            () = serve => {}
            never = keep(&supervisor, &served) => match never {},
            heard = hear => assert_eq!(heard, ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]),
        }
    }
}

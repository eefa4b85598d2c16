//! The socket of a process, and the proof that the process has it alone.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use berth_daemon::{bound, give_to_group};
use tokio::net::UnixListener;

/// One that is told to stop has stopped within this time.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);
/// Holders whose leases may not have been given back: each was killed before the manager heard of it. What one before them
/// held has run out meanwhile.
const FORMER_MAX: usize = 64;
/// More than the names of so many have.
const FORMER_BYTES_MAX: u64 = 64 << 10;
/// Who may look.
const GROUP: &str = "berth";

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("another process serves {}", .0.display())]
    Taken(PathBuf),
    #[error("{operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// The place of a process among all, which is the kernel's to give: whoever has it knows that the one before it is gone.
#[derive(Debug)]
pub struct Seat {
    /// The names of the processes that had it before, the last one last.
    pub former: Vec<String>,
    _lock: File,
}

/// A name that no process before has ever had, and none will have.
pub fn holder(name: &str) -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    format!("{name}/{:x}", since.unwrap_or_default().as_micros())
}

/// Takes the socket for its owner and the group `berth`, where there is one, in place of one that a former process left. `holder` is what [`holder`] gave.
pub async fn take_seat(socket: &Path, holder: &str) -> Result<(UnixListener, Seat), ListenError> {
    let failed = |operation| {
        move |source| ListenError::Io {
            operation,
            path: socket.to_owned(),
            source,
        }
    };
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).map_err(failed("making the folder of"))?;
    }
    let mut lock = lock(socket, PATIENCE).await?;
    let former = former(&lock);
    let names = former.iter().map(String::as_str).chain([holder]);
    let names: String = names.flat_map(|it| [it, "\n"]).collect();
    // One that is killed on the way has written over the oldest ones, and leaves the others.
    let written = lock
        .rewind()
        .and_then(|()| lock.write_all(names.as_bytes()))
        .and_then(|()| lock.set_len(names.len() as u64));
    written.map_err(failed("writing the lock of"))?;
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("removing")(error));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed("binding"))?;
    give_to_group(socket, GROUP).map_err(failed("giving away"))?;
    bound();
    let seat = Seat {
        former,
        _lock: lock,
    };
    Ok((listener, seat))
}

/// What cannot be read names nobody.
fn former(lock: &File) -> Vec<String> {
    let mut names = String::new();
    if lock
        .take(FORMER_BYTES_MAX)
        .read_to_string(&mut names)
        .is_err()
    {
        return vec![];
    }
    let names: Vec<&str> = names.lines().filter(|it| !it.is_empty()).collect();
    let last = names.len().saturating_sub(FORMER_MAX);
    names[last..].iter().map(|&it| it.to_owned()).collect()
}

async fn lock(socket: &Path, patience: Duration) -> Result<File, ListenError> {
    let failed = |source| ListenError::Io {
        operation: "locking",
        path: socket.to_owned(),
        source,
    };
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    let lock = options.mode(0o600).open(beside(socket)).map_err(failed)?;
    let deadline = Instant::now() + patience;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(ListenError::Taken(socket.to_owned()));
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(AGAIN).await,
        }
    }
}

fn beside(socket: &Path) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(".lock");
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_next_learns_who_was_there_before_and_not_only_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("new/it.sock");
        let former = async |holder: &str| take_seat(&socket, holder).await.unwrap().1.former;
        assert_eq!(former("first/1").await, [""; 0]);
        assert_eq!(former("a/2").await, ["first/1"]);
        assert_eq!(former("third/3").await, ["first/1", "a/2"]);
        for number in 4..100 {
            former(&format!("it/{number}")).await;
        }
        let last: Vec<String> = (36..100).map(|it| format!("it/{it}")).collect();
        assert_eq!(former("last/100").await, last);
    }

    #[tokio::test]
    async fn what_a_process_wrote_that_was_killed_on_the_way_or_wrote_otherwise_names_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("it.sock");
        let former = async |before: &[u8]| {
            fs::write(beside(&socket), before).unwrap();
            take_seat(&socket, "new/9").await.unwrap().1.former
        };
        assert_eq!(former(b"without/1").await, ["without/1"]);
        assert_eq!(
            former(b"a/2\nb/3\nalf/1\nc/4\n").await[1..],
            ["b/3", "alf/1", "c/4"]
        );
        assert_eq!(former(b"\xff\xfe").await, [""; 0]);
    }

    #[tokio::test]
    async fn nobody_takes_the_socket_of_one_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("it.sock");
        let (listener, seat) = take_seat(&socket, "first/1").await.unwrap();
        let refused = lock(&socket, Duration::ZERO).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("another process serves {}", socket.display())
        );
        tokio::net::UnixStream::connect(&socket).await.unwrap();
        drop((listener, seat));
        take_seat(&socket, "second/2").await.unwrap();
    }
}

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
/// As many hexadecimal digits tell a place from every other one, on all nodes.
const PLACE_DIGITS: usize = 16;
const RANDOM: &str = "/proc/sys/kernel/random/uuid";
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

/// The place of a process among all, which is the kernel's to give: whoever has it knows that those before it are gone.
#[derive(Debug)]
pub struct Seat {
    holder: String,
    place: String,
    _lock: File,
}

impl Seat {
    /// The name of this process, which none before has ever had, and none will have.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Whether this is the name of a process that had the place before this one.
    pub fn is_former(&self, holder: &str) -> bool {
        let process = holder.rsplit_once('/').map(|(_, process)| process);
        let place = process.and_then(|it| it.split_once('-'));
        place.is_some_and(|(place, _)| place == self.place) && holder != self.holder
    }
}

/// Takes the socket for its owner and the group `berth`, where there is one, in place of one that a former process left. A
/// holder is named by what it is called, its place, and the time of its start.
pub async fn take_seat(socket: &Path, name: &str) -> Result<(UnixListener, Seat), ListenError> {
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
    let lock = lock(socket, PATIENCE).await?;
    let place = place(&lock).map_err(failed("naming the place of"))?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default().as_micros();
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
        holder: format!("{name}/{place}-{since:x}"),
        place,
        _lock: lock,
    };
    Ok((listener, seat))
}

/// What the lock names the place; a new name where it has none, or half of one.
fn place(mut lock: &File) -> io::Result<String> {
    let mut named = vec![];
    lock.take(PLACE_DIGITS as u64 + 1).read_to_end(&mut named)?;
    let is_name = named.len() == PLACE_DIGITS && named.iter().all(u8::is_ascii_hexdigit);
    if let (true, Ok(place)) = (is_name, String::from_utf8(named)) {
        return Ok(place);
    }
    let random = fs::read_to_string(RANDOM)?;
    let digits = random.chars().filter(char::is_ascii_hexdigit);
    let place: String = digits.take(PLACE_DIGITS).collect();
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(place.as_bytes())?;
    Ok(place)
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
    async fn who_has_a_place_knows_whoever_had_it_before_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let take = async |socket: &str, name: &str| {
            let (_, seat) = take_seat(&dir.path().join(socket), name).await.unwrap();
            seat
        };
        let first = take("new/it.sock", "dog").await.holder;
        let second = take("new/it.sock", "renamed").await.holder;
        let elsewhere = take("other.sock", "dog").await.holder;
        let seat = take("new/it.sock", "dog").await;
        assert!(seat.is_former(&first) && seat.is_former(&second));
        let by_hand = format!("dog/{}", seat.place);
        for other in [seat.holder(), &elsewhere, "", "dog", "dog/64af-1", &by_hand] {
            assert!(!seat.is_former(other), "{other}");
        }
        assert!(seat.holder().starts_with("dog/"), "{}", seat.holder());
    }

    #[tokio::test]
    async fn a_place_keeps_its_name_and_gets_a_new_one_for_what_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("it.sock");
        let place = async |named: &[u8]| {
            fs::write(beside(&socket), named).unwrap();
            let place = take_seat(&socket, "dog").await.unwrap().1.place;
            assert_eq!(fs::read_to_string(beside(&socket)).unwrap(), place);
            place
        };
        assert_eq!(place(b"0123456789abcdef").await, "0123456789abcdef");
        // One that was killed in its first moment, one that is older than places, and what is no text.
        for named in ["", "0123", "dog/64af2c1b0e9d4", "0123456789abcdefg"] {
            let place = place(named.as_bytes()).await;
            assert!(place.len() == PLACE_DIGITS && place != named, "{place}");
        }
        assert_eq!(place(&[0xff; PLACE_DIGITS]).await.len(), PLACE_DIGITS);
    }

    #[tokio::test]
    async fn nobody_takes_the_socket_of_one_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("it.sock");
        let (listener, seat) = take_seat(&socket, "first").await.unwrap();
        let refused = lock(&socket, Duration::ZERO).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("another process serves {}", socket.display())
        );
        tokio::net::UnixStream::connect(&socket).await.unwrap();
        drop((listener, seat));
        take_seat(&socket, "second").await.unwrap();
    }
}

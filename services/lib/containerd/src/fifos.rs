//! The pipes with names between a shim and this process: a folder for each program, whose name tells container and program.

use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{CWD, FileType, Mode, OFlags, mknodat},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::pipe::{OpenOptions, Receiver, Sender},
};

/// Between the id of the container, which has none of it, and that of the program.
const SEPARATOR: char = '+';
/// How long a shim may take to open its end of the input, from when it says that the program runs.
const READER: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The folder of one program.
pub(crate) fn folder(all: &Path, container: &str, exec_id: &str) -> PathBuf {
    all.join(format!("{container}{SEPARATOR}{exec_id}"))
}

/// The container and the program that a folder of this name stands for.
pub(crate) fn parse(name: &str) -> Option<(&str, &str)> {
    name.split_once(SEPARATOR)
}

/// The names of all folders.
pub(crate) fn list(all: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(all) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let names = entries.map(|it| Ok(it?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// The ends that this process holds.
#[derive(Debug)]
pub(crate) struct Fifos {
    pub(crate) folder: PathBuf,
    pub(crate) stdin: Option<Stdin>,
    pub(crate) stdout: Receiver,
    /// With a terminal there is none.
    pub(crate) stderr: Option<Receiver>,
}

impl Fifos {
    /// Must be called within a runtime of tokio.
    pub(crate) fn make(folder: PathBuf, stdin: bool, terminal: bool) -> io::Result<Self> {
        let mut private = DirBuilder::new();
        private.mode(0o700).recursive(true);
        private.create(folder.parent().unwrap_or(&folder))?;
        private.recursive(false).create(&folder)?;
        let made = Self::open(folder.clone(), stdin, terminal);
        if made.is_err() {
            let _ = fs::remove_dir_all(&folder);
        }
        made
    }

    fn open(folder: PathBuf, stdin: bool, terminal: bool) -> io::Result<Self> {
        let make = |name: &str| {
            let path = folder.join(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            Ok::<_, io::Error>(path)
        };
        let receiver = |name: &str| OpenOptions::new().open_receiver(make(name)?);
        Ok(Self {
            stdout: receiver("stdout")?,
            stderr: (!terminal).then(|| receiver("stderr")).transpose()?,
            stdin: match stdin {
                true => Some(Stdin::open(&make("stdin")?)?),
                false => None,
            },
            folder,
        })
    }

    /// The path of one as containerd is told it; empty where there is none.
    pub(crate) fn path(&self, name: &str) -> String {
        let there = match name {
            "stdin" => self.stdin.is_some(),
            "stderr" => self.stderr.is_some(),
            _ => true,
        };
        match there {
            true => self.folder.join(name).display().to_string(),
            false => String::new(),
        }
    }
}

/// The end of the input that is written to.
#[derive(Debug)]
pub(crate) enum Stdin {
    /// Nobody reads yet. A runtime that looked at it now would take it for broken for ever.
    Unread(OwnedFd),
    Open(Sender),
    Closed,
}

/// Makes a pipe for input that outlives this process: the shim that reads it holds both of its ends. One that is there is
/// as good.
pub(crate) fn make_lasting(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    match mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        made => Ok(made?),
    }
}

impl Stdin {
    /// Opens a pipe that is there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        // To open the writing end alone is refused while nobody reads.
        let both = fs::File::options()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)?;
        let writer = fs::File::options()
            .write(true)
            .custom_flags(flags)
            .open(path)?;
        drop(both);
        Ok(Self::Unread(writer.into()))
    }

    /// Whether there is nothing to be written any more.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }

    /// Writes some of the bytes. May be dropped at any time.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.await_reader().await?;
        match self {
            Self::Open(sender) => sender.write(bytes).await,
            Self::Unread(_) | Self::Closed => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Closes it, once there is somebody to see its end. May be dropped at any time.
    pub(crate) async fn close(&mut self) {
        let _ = self.await_reader().await;
        *self = Self::Closed;
    }

    async fn await_reader(&mut self) -> io::Result<()> {
        let Self::Unread(fd) = self else {
            return Ok(());
        };
        let deadline = tokio::time::Instant::now() + READER;
        while !is_read(fd)? {
            if tokio::time::Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        *self = Self::Open(Sender::from_owned_fd(fd.try_clone()?)?);
        Ok(())
    }
}

fn is_read(fd: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(fd, PollFlags::OUT)];
    poll(&mut polled, Some(&rustix::event::Timespec::default()))?;
    Ok(!polled[0].revents().contains(PollFlags::ERR))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn a_folder_tells_its_container_and_program() {
        let path = folder(Path::new("/x"), "sandbox.web.app", "berth-1-2");
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(parse(name), Some(("sandbox.web.app", "berth-1-2")));
        assert_eq!(parse("web"), None);
    }

    #[tokio::test]
    async fn input_waits_for_its_reader_and_is_lost_on_neither_side() {
        let dir = tempfile::tempdir().unwrap();
        let fifos = Fifos::make(dir.path().join("a/b"), true, false).unwrap();
        let path = fifos.path("stdin");
        let mut stdin = fifos.stdin.unwrap();
        let writing = async {
            let mut rest = vec![7; 300_000].into_boxed_slice().into_vec();
            while !rest.is_empty() {
                let written = stdin.write(&rest).await.unwrap();
                rest.drain(..written);
            }
            stdin.close().await;
            assert!(stdin.is_closed());
        };
        let reading = async {
            let mut reader = OpenOptions::new().open_receiver(path).unwrap();
            let mut all = vec![];
            reader.read_to_end(&mut all).await.unwrap();
            all.len()
        };
        // It is written to before there is a reader.
        let ((), read) = tokio::join!(biased; writing, reading);
        assert_eq!(read, 300_000);
    }

    #[tokio::test]
    async fn what_is_written_to_a_reader_that_has_gone_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let fifos = Fifos::make(dir.path().join("a"), true, true).unwrap();
        assert!(fifos.stderr.is_none() && fifos.path("stderr").is_empty());
        let reader = OpenOptions::new().open_receiver(fifos.path("stdin"));
        let mut stdin = fifos.stdin.unwrap();
        let reader = reader.unwrap();
        assert_eq!(stdin.write(b"ab").await.unwrap(), 2);
        drop(reader);
        let error = stdin.write(b"ab").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}

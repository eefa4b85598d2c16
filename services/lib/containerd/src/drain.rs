//! Reads what a program says: all that it wrote itself, and of what it left running so much as is promised.

use std::{sync::OnceLock, time::Duration};

use berth_platform::{EXEC_CHUNK_BYTES, ExecOutput};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe::Receiver,
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// What may come after the end of the program is what others hold open: so long a silence, so long a time and so much of
/// it are waited for. What the program wrote itself is in a few pipes by then, and they are read at once.
const QUIET: Duration = Duration::from_secs(2);
const DRAIN: Duration = Duration::from_secs(10);
const DRAIN_BYTES: usize = 4 << 20;

/// What is waited for behind the end of a program.
#[derive(Debug)]
struct Patience {
    quiet: Duration,
    time: Duration,
    bytes: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            quiet: QUIET,
            time: DRAIN,
            bytes: DRAIN_BYTES,
        }
    }
}

/// When the program has ended.
#[derive(Debug, Default)]
pub(crate) struct End {
    token: CancellationToken,
    at: OnceLock<Instant>,
    patience: Patience,
}

impl End {
    pub(crate) fn has_come(&self) {
        let _ = self.at.set(Instant::now());
        self.token.cancel();
    }

    /// Sleeps from then on.
    async fn and_then(&self, time: Duration) {
        self.token.cancelled().await;
        sleep(time).await;
    }
}

/// Reads a pipe to its end, and returns whether it came to it.
pub(crate) async fn pump(
    mut pipe: Receiver,
    wrap: impl Fn(Vec<u8>) -> ExecOutput,
    output: &mpsc::Sender<ExecOutput>,
    end: &End,
) -> bool {
    let Patience { quiet, time, bytes } = end.patience;
    let (mut waited, mut late_bytes) = (Duration::ZERO, 0);
    loop {
        let mut chunk = Vec::with_capacity(EXEC_CHUNK_BYTES);
        let begun = Instant::now();
        let patience = quiet.min(time.saturating_sub(waited));
        let read = tokio::select! {
            biased;
            read = pipe.read_buf(&mut chunk) => read,
            () = end.and_then(patience) => return false,
        };
        if let Some(at) = end.at.get() {
            // The time in which the caller does not read is not the program's.
            waited += begun.max(*at).elapsed();
            late_bytes += chunk.len();
        }
        match read {
            Ok(1..) if late_bytes > bytes || waited >= time => return false,
            Ok(1..) if output.send(wrap(chunk)).await.is_ok() => {}
            Ok(0) => return true,
            Ok(_) | Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::{io::AsyncWriteExt as _, net::unix::pipe::Sender, task::yield_now, time::timeout};

    use super::*;
    use crate::fifos::Fifos;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(50);

    /// What a pipe says on which `write` has written, read to its end or as long as is waited for it. It is `held` open until
    /// then, and taken `late`: longer after the end than silence is waited for.
    async fn read(
        write: impl AsyncFnOnce(&mut Sender, &End),
        patience: Patience,
        held: bool,
        late: bool,
    ) -> (usize, bool) {
        let dir = tempfile::tempdir().unwrap();
        let fifos = Fifos::make(dir.path().join("a"), false, true).unwrap();
        let options = tokio::net::unix::pipe::OpenOptions::new();
        let mut writer = options.open_sender(fifos.path("stdout")).unwrap();
        fs::remove_dir_all(dir.path()).unwrap();
        let silence = patience.quiet;
        let end = End {
            patience,
            ..End::default()
        };
        let (output, mut taken) = mpsc::channel(1);
        let writing = async {
            write(&mut writer, &end).await;
            held.then_some(writer)
        };
        let reading = async {
            let output = output;
            pump(fifos.stdout, ExecOutput::Stdout, &output, &end).await
        };
        let taking = async {
            let mut bytes = 0;
            while let Some(word) = taken.recv().await {
                if late && bytes == 0 {
                    end.and_then(silence * 2).await;
                }
                if let ExecOutput::Stdout(it) = word {
                    bytes += it.len();
                }
            }
            bytes
        };
        let all = async { tokio::join!(writing, reading, taking) };
        let (_writer, whole, bytes) = timeout(LONG / 2, all).await.unwrap();
        (bytes, whole)
    }

    #[tokio::test]
    async fn what_was_written_before_the_end_is_read_however_slowly_it_is_taken() {
        // As much as the pipe and the way to whoever takes it have room for, and more than the way alone.
        const BYTES: usize = 100_000;
        let write = async |writer: &mut Sender, end: &End| {
            writer.write_all(&[7; BYTES]).await.unwrap();
            end.has_come();
        };
        let read = read(write, Patience::default(), false, true).await;
        assert_eq!(read, (BYTES, true));
    }

    #[tokio::test]
    async fn a_pipe_that_is_held_open_is_waited_for_only_as_long_as_it_is_told() {
        let write = async |writer: &mut Sender, end: &End| {
            writer.write_all(b"last words").await.unwrap();
            end.has_come();
        };
        let patience = Patience {
            quiet: SHORT,
            time: LONG,
            ..Patience::default()
        };
        assert_eq!(read(write, patience, true, false).await, (10, false));
    }

    #[tokio::test]
    async fn a_pipe_that_trickles_is_read_only_as_long_as_it_is_waited_for() {
        let write = async |writer: &mut Sender, end: &End| {
            end.has_come();
            while writer.write_all(b".").await.is_ok() {
                yield_now().await;
            }
        };
        let patience = Patience {
            quiet: LONG,
            time: SHORT,
            bytes: usize::MAX,
        };
        let (bytes, whole) = read(write, patience, true, false).await;
        assert!(!whole, "{bytes}");
    }

    #[tokio::test]
    async fn so_much_is_read_behind_the_end_and_one_byte_more_is_cut() {
        for (written, is_whole) in [(DRAIN_BYTES, true), (DRAIN_BYTES + 1, false)] {
            let write = async |writer: &mut Sender, end: &End| {
                end.has_come();
                writer.write_all(&vec![7; written]).await.unwrap();
            };
            let (bytes, whole) = read(write, Patience::default(), false, false).await;
            assert_eq!(whole, is_whole);
            // What reaches beyond is cut with what was read at once with it.
            let cut = written - bytes;
            assert!(cut <= EXEC_CHUNK_BYTES && (cut == 0) == whole, "{cut}");
        }
    }
}

//! Disk space that nobody uses, until a full disk would keep a sandbox from being ended: every change of the store needs
//! some pages before it frees others.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::database::beside;

/// Room for two changes of the largest record that is admitted, up to 1 MiB as JSON: in its place and as a change.
pub(crate) const RESERVE_BYTES: u64 = 4 << 20;

#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    whole: AtomicBool,
}

impl Reserve {
    pub(crate) fn of(store: &Path) -> Self {
        Self {
            path: beside(store, "reserve"),
            whole: AtomicBool::default(),
        }
    }

    /// Takes the space where it is not taken yet.
    pub(crate) fn fill(&self) -> io::Result<()> {
        if self.whole.load(Ordering::Relaxed) {
            return Ok(());
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.path)?;
        let taken = match allocate(&file) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => write_out(&file),
            allocated => allocated.map_err(io::Error::from),
        };
        match taken {
            Ok(()) => self.whole.store(true, Ordering::Relaxed),
            // What was got of it would only be missing elsewhere.
            Err(_) => file.set_len(0)?,
        }
        taken
    }

    /// Gives the space back to the file system.
    pub(crate) fn give_up(&self) {
        self.whole.store(false, Ordering::Relaxed);
        let emptied = File::options()
            .write(true)
            .open(&self.path)
            .and_then(|it| it.set_len(0));
        if let Err(error) = emptied {
            tracing::warn!(%error, "the reserve of the store cannot be given up");
        }
    }
}

fn allocate(file: &File) -> rustix::io::Result<()> {
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES)
}

/// For file systems that cannot allocate without writing.
fn write_out(mut file: &File) -> io::Result<()> {
    io::copy(
        &mut io::Read::take(io::repeat(0xff), RESERVE_BYTES),
        &mut file,
    )?;
    file.sync_data()
}

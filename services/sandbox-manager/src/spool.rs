//! Archives on their way in: files that are bounded, leave room on their disk, and go when the import is over, however it
//! ends.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use berth_domain::{Failure, Reason};
use berth_platform::ArchiveLimits;
use tokio::task::spawn_blocking;

use crate::failures::{image_failure, internal};

#[derive(Debug)]
pub(crate) struct Spool {
    path: PathBuf,
    file: Arc<File>,
    size: u64,
    limits: ArchiveLimits,
}

impl Spool {
    pub(crate) async fn create(dir: &Path, limits: ArchiveLimits) -> Result<Self, Failure> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("import-{}-{number}", std::process::id()));
        let (dir, file) = (dir.to_owned(), path.clone());
        let file = blocking(move || {
            std::fs::create_dir_all(&dir)?;
            File::create(&file)
        })
        .await?;
        Ok(Self {
            path,
            file: Arc::new(file),
            size: 0,
            limits,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) async fn write(&mut self, bytes: Vec<u8>) -> Result<(), Failure> {
        let file = self.file.clone();
        let disk = blocking(move || Ok(rustix::fs::fstatvfs(&*file)?)).await?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let more = bytes.len() as u64;
        self.limits
            .admit(self.size, more, free)
            .map_err(image_failure)?;
        let file = self.file.clone();
        blocking(move || (&*file).write_all(&bytes)).await?;
        self.size += more;
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let done = match spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(io::Error::other(error)),
    };
    done.map_err(|error| {
        tracing::warn!(%error, "an archive could not be kept while it arrived");
        // Somebody else was faster than our look at the disk.
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        if full.contains(&error.kind()) {
            Failure::new(Reason::DiskLow, "the disk of the state directory is full")
        } else {
            internal("the archive could not be kept while it arrived")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ArchiveLimits = ArchiveLimits {
        max_bytes: 8,
        reserve_bytes: 0,
    };

    #[tokio::test]
    async fn an_archive_is_kept_up_to_its_limit_and_goes_with_its_spool() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("spool");
        let mut spool = Spool::create(&dir, LIMITS).await.unwrap();
        let mut other = Spool::create(&dir, LIMITS).await.unwrap();
        spool.write(b"12345".to_vec()).await.unwrap();
        other.write(b"other".to_vec()).await.unwrap();
        let failure = spool.write(b"6789".to_vec()).await.unwrap_err();
        assert_eq!(failure.reason, Reason::ArchiveTooLarge);
        assert_eq!(failure.metadata["limit_bytes"], "8");
        spool.write(b"678".to_vec()).await.unwrap();
        assert_eq!(std::fs::read(spool.path()).unwrap(), b"12345678");
        drop((spool, other));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_is_kept_free_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let limits = ArchiveLimits {
            max_bytes: u64::MAX,
            reserve_bytes: u64::MAX,
        };
        let mut spool = Spool::create(dir.path(), limits).await.unwrap();
        let failure = spool.write(vec![0]).await.unwrap_err();
        assert_eq!(failure.reason, Reason::DiskLow);
        assert_eq!(std::fs::read(spool.path()).unwrap(), b"");
    }
}

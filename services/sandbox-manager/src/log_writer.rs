//! Puts the log-writer where containerd's shims find it. Each build has a name of its own, so that no program that runs is
//! written over, and stays as long as a container was started with it.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use berth_logs::format::crc32;

const PREFIX: &str = "log-writer-";

/// Where `program` is from here on. Other builds that no process runs are removed.
pub(crate) fn install(state_dir: &Path, program: &[u8]) -> io::Result<PathBuf> {
    let path = state_dir.join(format!("{PREFIX}{:08x}", crc32(program)));
    let is_there = fs::read(&path).is_ok_and(|it| it == program)
        && fs::metadata(&path).is_ok_and(|it| it.permissions().mode() & 0o111 == 0o111);
    if !is_there {
        let new = state_dir.join("log-writer.new");
        let _ = fs::remove_file(&new);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(&new)?;
        // Whatever the umask is.
        file.set_permissions(fs::Permissions::from_mode(0o755))?;
        file.write_all(program)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&new, &path)?;
    }
    if let Err(error) = remove_others(state_dir, &path) {
        tracing::warn!(%error, "looking for old log-writers");
    }
    Ok(path)
}

fn remove_others(state_dir: &Path, current: &Path) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in fs::read_dir(state_dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|it| it.to_str());
        if name.is_some_and(|it| it.starts_with(PREFIX)) && path != current {
            others.push(path);
        }
    }
    if others.is_empty() {
        return Ok(());
    }
    let running: Vec<_> = fs::read_dir("/proc")?
        .filter_map(|it| fs::read_link(it.ok()?.path().join("exe")).ok())
        .collect();
    for path in others {
        // The kernel says where a program is without links.
        let real = fs::canonicalize(&path)?;
        if !running.contains(&real) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    };

    use super::*;

    /// Another test may have begun a process while the program was written, which has it open until it becomes another.
    fn start(program: &Path, argument: &str) -> Child {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let mut command = Command::new(program);
            match command.arg(argument).stdin(Stdio::null()).spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    assert!(Instant::now() < deadline, "{error}");
                    std::thread::yield_now();
                }
                started => return started.unwrap(),
            }
        }
    }

    #[test]
    fn it_is_put_there_once_and_mended_where_it_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = install(dir.path(), b"#!/bin/sh\nexit 7\n").unwrap();
        let status = start(&path, "").wait().unwrap();
        assert_eq!(status.code(), Some(7));
        let made = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        let before = made(&path);
        assert_eq!(install(dir.path(), b"#!/bin/sh\nexit 7\n").unwrap(), path);
        assert_eq!(made(&path), before, "it is left alone");
        fs::write(&path, "half").unwrap();
        install(dir.path(), b"#!/bin/sh\nexit 7\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"#!/bin/sh\nexit 7\n");
    }

    #[test]
    fn an_old_one_stays_as_long_as_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let sleep = fs::read("/bin/sleep").unwrap();
        let old = install(dir.path(), &sleep).unwrap();
        let mut running = start(&old, "600");
        let new = install(dir.path(), b"new").unwrap();
        let kept = old.exists();
        running.kill().unwrap();
        running.wait().unwrap();
        assert!(kept && new.exists());
        install(dir.path(), b"new").unwrap();
        assert!(!old.exists() && new.exists());
    }
}

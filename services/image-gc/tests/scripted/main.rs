//! A real worker with a manager that does what a test says, and no more.

#![expect(clippy::unwrap_used, reason = "a test ends with what goes wrong")]

mod large_catalog;
mod lost_lease;
mod manager;
mod stale_plan;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use manager::{Script, Scripted};
use tokio::{net::UnixListener, task::JoinSet};

fn digest(number: usize) -> String {
    format!("sha256:{number:064x}")
}

/// A worker, with its manager and its blobs, until it is dropped.
struct Worker {
    process: Child,
    socket: PathBuf,
    _manager: JoinSet<Result<(), tonic::transport::Error>>,
}

impl Worker {
    /// Starts one over these files; each is larger than any manifest, so that nobody looks into it.
    fn start(home: &Path, files: &[String], script: impl Script, settings: &[&str]) -> Self {
        let (manager, socket) = (home.join("manager"), home.join("gc"));
        let blobs = home.join("blobs");
        fs::create_dir(&blobs).unwrap();
        for name in files {
            let file = fs::File::create(blobs.join(name)).unwrap();
            file.set_len(5 << 20).unwrap();
        }
        let mut serving = JoinSet::new();
        serving.spawn(Scripted::serve(
            script,
            UnixListener::bind(&manager).unwrap(),
        ));
        let own = [
            ("manager_address", &manager),
            ("socket", &socket),
            ("blob_dir", &blobs),
        ];
        let own = own.map(|(key, path)| format!("{key}={}", path.display()));
        let all = own.iter().map(String::as_str).chain(["blob_age=0s"]);
        let all = all.chain(settings.iter().copied());
        let process = Command::new(env!("CARGO_BIN_EXE_image-gc"))
            .args(all.flat_map(|it| ["--set", it]))
            .spawn();
        Self {
            process: process.unwrap(),
            socket,
            _manager: serving,
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

//! The socket of a process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use berth_daemon::give_to_group;
use tokio::net::UnixListener;

/// Who may use the manager's socket may use this one.
const GROUP: &str = "berth";

#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct ListenError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Binds the socket for its owner and the group `berth`, where there is one, in place of one that a former process left.
pub fn listen(socket: &Path) -> Result<UnixListener, ListenError> {
    let failed = |operation| {
        move |source| ListenError {
            operation,
            path: socket.to_owned(),
            source,
        }
    };
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).map_err(failed("making the folder of"))?;
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("removing")(error));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed("binding"))?;
    give_to_group(socket, GROUP).map_err(failed("giving away"))?;
    Ok(listener)
}

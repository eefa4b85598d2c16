//! The socket of a process.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct ListenError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Binds the socket for its owner alone, in place of one that a former process left.
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
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).map_err(failed("protecting"))?;
    Ok(listener)
}

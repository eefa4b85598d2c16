//! The folder of a sandbox: its `hosts`, `resolv.conf` and config files.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use berth_domain::{Sandbox, files};

use crate::{mounts, settings::Settings};

pub(crate) const HOSTS: &str = "hosts";
pub(crate) const RESOLV_CONF: &str = "resolv.conf";

const TEXT_MODE: u32 = 0o644;

/// Writes all files of the sandbox.
pub(crate) fn write(settings: &Settings, sandbox: &Sandbox) -> io::Result<()> {
    let dir = settings.names.files(&sandbox.id);
    fs::create_dir_all(&dir)?;
    let resolv_conf = match sandbox.spec.host_network {
        true => node_resolv_conf()?,
        false => files::resolv_conf(&settings.search_domain, &settings.name_servers),
    };
    put(
        &dir.join(HOSTS),
        files::hosts(sandbox).as_bytes(),
        TEXT_MODE,
    )?;
    put(&dir.join(RESOLV_CONF), resolv_conf.as_bytes(), TEXT_MODE)?;
    for container in &sandbox.spec.containers {
        for (number, file) in container.config_files.iter().enumerate() {
            let path = dir.join(files::config_file_path(&container.name, number, file));
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            put(&path, &file.data, file.mode)?;
        }
    }
    Ok(())
}

/// Of the node. Where it has none, programs ask the node itself, as they would there.
fn node_resolv_conf() -> io::Result<String> {
    match fs::read("/etc/resolv.conf") {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// The mode is set by name: the process's mask must not have a say.
fn put(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Gone is a success. What is mounted inside is somebody's, and keeps the folder.
pub(crate) fn remove(dir: &Path) -> io::Result<()> {
    if mounts::any_in(dir)? {
        let what = format!("something is mounted in {}", dir.display());
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, what));
    }
    let removed = match fs::symlink_metadata(dir) {
        Ok(it) if !it.is_dir() => fs::remove_file(dir),
        Ok(_) | Err(_) => fs::remove_dir_all(dir),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Something in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) inode: u64,
    pub(crate) made_at: Option<SystemTime>,
}

/// Every ext file system has one at its root, and a folder may be a file system of its own.
const LOST_AND_FOUND: &str = "lost+found";

/// What lies in `dir`, hidden files aside.
pub(crate) fn entries(dir: &Path) -> io::Result<Vec<Entry>> {
    let listed = match fs::read_dir(dir) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let mut entries = vec![];
    for entry in listed {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Others remove while it is listed.
        if let Ok(metadata) = entry.metadata()
            && !name.starts_with('.')
            && name != LOST_AND_FOUND
        {
            entries.push(Entry {
                name,
                inode: inode(&metadata),
                made_at: made_at(&metadata),
            });
        }
    }
    Ok(entries)
}

/// When a file was made or, where its file system does not keep that, changed.
pub(crate) fn made_at(metadata: &fs::Metadata) -> Option<SystemTime> {
    metadata.created().or_else(|_| metadata.modified()).ok()
}

pub(crate) fn inode(metadata: &fs::Metadata) -> u64 {
    metadata.ino()
}

/// Makes the read-only root of all pause containers, with the places that the runtime mounts to.
pub(crate) fn pause_root(state_dir: &Path, program: &[u8]) -> io::Result<PathBuf> {
    let root = state_dir.join("pause");
    for place in ["proc", "dev", "sys"] {
        fs::create_dir_all(root.join(place))?;
    }
    let path = root.join("pause");
    if fs::read(&path).is_ok_and(|it| it == program) {
        return Ok(root);
    }
    // Containers may run the old program: it is replaced, not overwritten.
    let new = root.join("pause.new");
    put(&new, program, 0o755)?;
    fs::rename(&new, &path)?;
    Ok(root)
}

//! The folder of a sandbox: its `hosts`, `resolv.conf` and config files.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use berth_domain::{Sandbox, files};

use crate::settings::Settings;

pub(crate) const HOSTS: &str = "hosts";
pub(crate) const RESOLV_CONF: &str = "resolv.conf";

const TEXT_MODE: u32 = 0o644;

/// Writes all files of the sandbox.
pub(crate) fn write(settings: &Settings, sandbox: &Sandbox) -> io::Result<()> {
    let dir = settings.names.files(&sandbox.id);
    fs::create_dir_all(&dir)?;
    let resolv_conf = files::resolv_conf(&settings.search_domain, &settings.name_servers);
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

/// The mode is set by name: the process's mask must not have a say.
fn put(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Gone is a success.
pub(crate) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Names of the folders below `dir`.
pub(crate) fn folders(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    entries
        .map(|it| Ok(it?.file_name().to_string_lossy().into_owned()))
        .collect()
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

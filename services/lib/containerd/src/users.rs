//! Who runs in a container: the image's `USER`, by the image's own `/etc/passwd` and `/etc/group`.
//!
//! Those files are read from the layers before anything is mounted, and never through a link that leads out of them.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use containerd_client::types::Mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// Larger files are no lists of users.
const FILE_MAX: u64 = 1 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Option<String>,
}

/// Resolves `USER`: empty, a name or number, and `:` with a group's name or number.
pub(crate) fn resolve(user: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user, asked_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = *fields else {
            return None;
        };
        let found = name == user || uid == user;
        found.then(|| Some((name, uid.parse().ok()?, gid.parse().ok()?, home)))?
    });
    let (uid, own_group, name, home) = match (entry, user.parse::<u32>()) {
        (Some((name, uid, gid, home)), _) => (uid, gid, Some(name), Some(home.to_owned())),
        (None, Ok(uid)) => (uid, 0, None, None),
        (None, Err(_)) => return Err(format!("user `{user}` is not in the image's /etc/passwd")),
    };
    let groups = || {
        group.lines().filter_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            let [name, _, gid, members, ..] = *fields else {
                return None;
            };
            Some((name, gid.parse::<u32>().ok()?, members))
        })
    };
    let gid = match asked_group {
        None => own_group,
        Some(text) => match (
            groups().find(|(name, ..)| *name == text),
            text.parse::<u32>(),
        ) {
            (Some((_, gid, _)), _) | (None, Ok(gid)) => gid,
            (None, Err(_)) => {
                return Err(format!("group `{text}` is not in the image's /etc/group"));
            }
        },
    };
    // A group that was asked for is the only one, as docker has it.
    let further = match (asked_group, name) {
        (None, Some(user)) => groups()
            .filter(|(_, gid_of, members)| {
                *gid_of != gid && members.split(',').any(|it| it == user)
            })
            .map(|(_, gid, _)| gid)
            .collect(),
        _ => vec![],
    };
    Ok(User {
        uid,
        gid,
        groups: further,
        home,
    })
}

/// The layers of a snapshot, uppermost first.
pub(crate) fn layers(mounts: &[Mount]) -> Vec<PathBuf> {
    let Some(mount) = mounts.first() else {
        return vec![];
    };
    if mount.r#type == "bind" {
        return vec![PathBuf::from(&mount.source)];
    }
    let option = |key: &str| mount.options.iter().find_map(|it| it.strip_prefix(key));
    let upper = option("upperdir=").into_iter();
    let lower = option("lowerdir=").into_iter().flat_map(|it| it.split(':'));
    upper.chain(lower).map(PathBuf::from).collect()
}

/// The text of a file of the image, empty where it has none.
pub(crate) fn read_from(layers: &[PathBuf], path: &str) -> String {
    for layer in layers {
        match open_within(layer, path) {
            Ok(file) => {
                // A character device in a layer says that the file was removed.
                let is_file = file
                    .metadata()
                    .is_ok_and(|it| it.is_file() && !it.file_type().is_char_device());
                let mut text = String::new();
                if is_file && file.take(FILE_MAX).read_to_string(&mut text).is_ok() {
                    return text;
                }
                return String::new();
            }
            Err(rustix::io::Errno::NOENT) => {}
            Err(_) => return String::new(),
        }
    }
    String::new()
}

fn open_within(root: &Path, path: &str) -> Result<File, rustix::io::Errno> {
    let dir = openat(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat2(&dir, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    Ok(file?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:web:/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nstaff:x:50:www,other\nadm:x:51:other\n";

    #[test]
    #[rustfmt::skip]
    fn a_user_is_resolved_as_images_mean_it() {
        let cases: [(&str, u32, u32, &[u32]); 8] = [
            ("",          0,    0,  &[]),
            ("root",      0,    0,  &[]),
            ("www",       33,   34, &[50]),
            ("33",        33,   34, &[50]),
            ("www:staff", 33,   50, &[]),
            ("www:77",    33,   77, &[]),
            ("1234",      1234, 0,  &[]),
            ("1234:50",   1234, 50, &[]),
        ];
        for (text, uid, gid, groups) in cases {
            let user = resolve(text, PASSWD, GROUP).unwrap();
            assert_eq!((user.uid, user.gid, user.groups.as_slice()), (uid, gid, groups), "{text}");
        }
        assert_eq!(resolve("www", PASSWD, GROUP).unwrap().home.as_deref(), Some("/var/www"));
    }

    #[test]
    fn a_name_that_the_image_does_not_know_is_an_error() {
        assert!(resolve("nobody", PASSWD, GROUP).is_err());
        assert!(resolve("www:nobody", PASSWD, GROUP).is_err());
        assert!(resolve("nobody", "torn:line\n::::::\n", "").is_err());
    }

    #[test]
    fn files_are_read_from_the_uppermost_layer_and_never_from_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str| dir.path().join(name);
        for name in ["upper", "middle", "lower"] {
            std::fs::create_dir_all(layer(name).join("etc")).unwrap();
        }
        std::fs::write(layer("middle").join("etc/passwd"), "middle").unwrap();
        std::fs::write(layer("lower").join("etc/passwd"), "lower").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", layer("upper").join("etc/group")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../../secret", layer("upper").join("etc/shadow")).unwrap();
        let mounts = [Mount {
            r#type: "overlay".into(),
            options: vec![
                format!("upperdir={}", layer("upper").display()),
                "workdir=/w".into(),
                format!(
                    "lowerdir={}:{}",
                    layer("middle").display(),
                    layer("lower").display()
                ),
            ],
            ..Mount::default()
        }];
        let layers = layers(&mounts);
        assert_eq!(read_from(&layers, "etc/passwd"), "middle");
        assert_eq!(
            read_from(&layers, "etc/group"),
            "",
            "a link is followed inside the layer only"
        );
        assert_eq!(read_from(&layers, "etc/shadow"), "");
    }
}

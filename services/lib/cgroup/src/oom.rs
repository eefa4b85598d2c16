//! Whose memory limit was the end of a process.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use crate::{
    hierarchy::{CgroupError, Hierarchy, Kind},
    meter::entry,
};

impl Hierarchy {
    /// Whose limit the kernel enforced when it killed in the cgroup `inner` for memory: that of `inner`, else that of
    /// `outer`, each with a slash before it; empty where it was neither. `None` where it killed no more than `former`.
    ///
    /// systemd removes a scope with its last process: what `outer` counts beyond the cgroups that are there was in `inner` then.
    pub fn oom_culprit(
        &self,
        inner: &str,
        outer: &str,
        former: u64,
    ) -> Result<Option<String>, CgroupError> {
        let reached = |path: &str| -> Result<bool, CgroupError> {
            Ok(match &self.kind {
                Kind::V1 { controllers, .. } => {
                    let failures = v1_file(controllers, "memory", path, "memory.failcnt")?;
                    number(&failures) > 0
                }
                // That of the cgroup alone: in `memory.events` it would be that of those below as well.
                Kind::V2 { root } => {
                    entry(&read(&root.join(path).join("memory.events.local"))?, "oom") > 0
                }
            })
        };
        let own = self.usage(inner)?.map(|it| it.oom_kills);
        let kills = match own {
            Some(kills) => kills,
            None => self.kills_of_gone(outer)?,
        };
        if kills <= former {
            return Ok(None);
        }
        for path in [inner, outer] {
            if reached(path)? {
                return Ok(Some(format!("/{path}")));
            }
        }
        // A cgroup that is gone says nothing of its limit, and the one above it has not reached its own.
        Ok(Some(own.map_or(format!("/{inner}"), |_| String::new())))
    }

    fn kills_of_gone(&self, outer: &str) -> Result<u64, CgroupError> {
        let Some(all) = self.usage(outer)?.map(|it| it.oom_kills) else {
            return Ok(0);
        };
        let mut there = 0;
        for name in self.children(outer)? {
            let usage = self.usage(&format!("{outer}/{name}"))?;
            there += usage.map_or(0, |it| it.oom_kills);
        }
        Ok(all.saturating_sub(there))
    }
}

fn v1_file(
    controllers: &[(String, PathBuf)],
    controller: &str,
    path: &str,
    name: &str,
) -> Result<String, CgroupError> {
    let root = controllers.iter().find(|(it, _)| it == controller);
    root.map_or(Ok(String::new()), |(_, root)| {
        read(&root.join(path).join(name))
    })
}

/// A file that this kernel does not have, or no longer, is empty.
fn read(path: &Path) -> Result<String, CgroupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        // The cgroup went away between opening and reading.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
            Ok(String::new())
        }
        Err(error) => Err(CgroupError::failed("reading", path, error)),
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hierarchy::tests::v2_like;

    #[test]
    #[rustfmt::skip]
    fn the_cgroup_whose_limit_was_reached_is_told_from_the_one_in_which_the_kernel_killed() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = v2_like(dir.path());
        let app = dir.path().join("berth/web/app");
        fs::create_dir_all(&app).unwrap();
        let cases = [
            ("nobody was killed",        0, 0, 0, None),
            ("others were at the limit", 0, 1, 1, None),
            ("its own limit",            1, 1, 0, Some("/berth/web/app")),
            ("that of the sandbox",      1, 0, 1, Some("/berth/web")),
            ("that of the node",         1, 0, 0, Some("")),
        ];
        for (case, kills, own, outer, expected) in cases {
            fs::write(app.join("memory.events"), format!("oom 7\noom_kill {kills}\n")).unwrap();
            fs::write(app.join("memory.events.local"), format!("oom {own}\n")).unwrap();
            fs::write(dir.path().join("berth/web/memory.events.local"), format!("oom {outer}\n")).unwrap();
            let culprit = hierarchy.oom_culprit("berth/web/app", "berth/web", 0).unwrap();
            assert_eq!(culprit.as_deref(), expected, "{case}");
            let outlived = hierarchy.oom_culprit("berth/web/app", "berth/web", kills).unwrap();
            assert_eq!(outlived, None, "{case}, long before");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn what_was_killed_in_a_scope_that_is_gone_is_known_from_the_slice() {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = v2_like(dir.path());
        let (slice, other) = (dir.path().join("berth/web"), dir.path().join("berth/web/other"));
        fs::create_dir_all(&other).unwrap();
        let cases = [
            ("nobody was killed",             0, 0, 0, 0, None),
            ("in another one",                1, 1, 0, 0, None),
            ("in it, at its own limit",       2, 1, 0, 0, Some("/berth/web/app")),
            ("in it, at that of the sandbox", 1, 0, 1, 0, Some("/berth/web")),
            ("in it, and it outlived that",   1, 0, 1, 1, None),
        ];
        for (case, all, there, outer, former, expected) in cases {
            fs::write(slice.join("memory.events"), format!("oom_kill {all}\n")).unwrap();
            fs::write(slice.join("memory.events.local"), format!("oom {outer}\n")).unwrap();
            fs::write(other.join("memory.events"), format!("oom_kill {there}\n")).unwrap();
            let culprit = hierarchy.oom_culprit("berth/web/app", "berth/web", former).unwrap();
            assert_eq!(culprit.as_deref(), expected, "{case}");
        }
    }
}

//! Names of cgroups: folders one below the other where Berth makes them, units where systemd does. A path tells which it is:
//! that of a unit ends in `.slice` or `.scope`.
//!
//! | | `cgroupfs` | `systemd` |
//! |---|---|---|
//! | instance | `berth/a1` | `berth.slice/berth-a1.slice` |
//! | sandbox | `berth/a1/my-web` | `berth.slice/berth-a1.slice/berth-a1-my_web.slice` |
//! | container | `berth/a1/my-web/app` | `.../berth-a1-my_web.slice/berth-a1-my_web.app.scope` |

use crate::id::{InstanceId, SandboxId};

const SLICE: &str = ".slice";
const SCOPE: &str = ".scope";

/// Who makes the cgroups of sandboxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// The manager and the OCI runtime, in the file system of the cgroups.
    #[default]
    Cgroupfs,
    /// systemd: a sandbox is a slice, a container a scope in it.
    Systemd,
}

impl Driver {
    pub fn other(self) -> Self {
        match self {
            Self::Cgroupfs => Self::Systemd,
            Self::Systemd => Self::Cgroupfs,
        }
    }
}

/// Parent cgroup of the sandboxes of an instance, below a path like `/berth`; without slashes at its ends.
///
/// The instance is in it: what lies below is judged, and removed, by its name alone.
pub fn parent(driver: Driver, below: &str, instance: &InstanceId) -> String {
    let parts = below
        .trim_matches('/')
        .split('/')
        .chain([instance.as_str()]);
    match driver {
        Driver::Cgroupfs => parts.collect::<Vec<_>>().join("/"),
        Driver::Systemd => {
            let (mut unit, mut path) = (String::new(), String::new());
            for part in parts {
                if !unit.is_empty() {
                    unit.push('-');
                    path.push('/');
                }
                unit.push_str(&undashed(part));
                path.push_str(&format!("{unit}{SLICE}"));
            }
            path
        }
    }
}

pub(crate) fn of_sandbox(parent: &str, id: &SandboxId) -> String {
    match slice(parent) {
        Some(unit) => format!("{parent}/{unit}-{}{SLICE}", undashed(id.as_str())),
        None => format!("{parent}/{id}"),
    }
}

/// What the id is of the sandbox whose cgroup below `parent` has this name.
pub(crate) fn parse_sandbox(parent: &str, name: &str) -> Option<String> {
    let Some(unit) = slice(parent) else {
        return Some(name.to_owned());
    };
    let own = name.strip_suffix(SLICE)?.strip_prefix(unit)?;
    let id = own.strip_prefix('-')?;
    // One that has a dash is a level further down.
    (!id.contains('-')).then(|| id.replace('_', "-"))
}

/// The cgroup of a container of the sandbox that has this one.
pub fn of_container(sandbox: &str, container: &str) -> String {
    match slice(sandbox) {
        Some(unit) => format!("{sandbox}/{unit}.{container}{SCOPE}"),
        None => format!("{sandbox}/{container}"),
    }
}

/// The container whose cgroup below that of its sandbox has this name; `None` for a foreign one.
pub fn parse_container<'a>(sandbox: &str, name: &'a str) -> Option<&'a str> {
    match slice(sandbox) {
        Some(unit) => {
            let own = name.strip_suffix(SCOPE)?.strip_prefix(unit)?;
            own.strip_prefix('.')
        }
        None => Some(name),
    }
}

/// What a container's cgroup is called in its OCI specification: a path, or `slice:prefix:name`.
pub fn in_specification(container: &str) -> String {
    let unit = container.rsplit_once('/').and_then(|(sandbox, name)| {
        let slice = sandbox.rsplit('/').next()?;
        let (prefix, name) = name.strip_suffix(SCOPE)?.split_once('-')?;
        Some(format!("{slice}:{prefix}:{name}"))
    });
    unit.unwrap_or_else(|| format!("/{container}"))
}

/// Whether a cgroup is below this parent, as the kernel names it or a specification does.
pub fn is_below(parent: &str, cgroup: &str) -> bool {
    let path = cgroup.trim_start_matches('/').strip_prefix(parent);
    let unit = slice(parent).and_then(|it| cgroup.strip_prefix(it));
    path.is_some_and(|it| it.starts_with('/'))
        || unit.is_some_and(|it| it.starts_with('-') && it.contains(':'))
}

/// The unit that a path is of, when it is a slice.
pub fn unit(path: &str) -> Option<&str> {
    path.rsplit('/').next().filter(|it| it.ends_with(SLICE))
}

fn slice(path: &str) -> Option<&str> {
    unit(path)?.strip_suffix(SLICE)
}

/// A dash in the name of a slice begins a level. Neither ids nor names of instances have a `_` of their own.
fn undashed(text: &str) -> String {
    text.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SandboxId {
        SandboxId::parse(text).unwrap()
    }

    fn parent_of(driver: Driver, instance: &str) -> String {
        parent(driver, "/berth/", &InstanceId::parse(instance).unwrap())
    }

    #[test]
    fn what_each_driver_calls_them() {
        for (driver, instance, sandbox, container, specified) in [
            (
                Driver::Cgroupfs,
                "berth/a-1",
                "berth/a-1/my-web",
                "berth/a-1/my-web/app-1",
                "/berth/a-1/my-web/app-1",
            ),
            (
                Driver::Systemd,
                "berth.slice/berth-a_1.slice",
                "berth.slice/berth-a_1.slice/berth-a_1-my_web.slice",
                "berth.slice/berth-a_1.slice/berth-a_1-my_web.slice/berth-a_1-my_web.app-1.scope",
                "berth-a_1-my_web.slice:berth:a_1-my_web.app-1",
            ),
        ] {
            let parent = parent_of(driver, "a-1");
            assert_eq!(parent, instance);
            assert_eq!(of_sandbox(&parent, &id("my-web")), sandbox);
            assert_eq!(of_container(sandbox, "app-1"), container);
            assert_eq!(in_specification(container), specified);
            assert!(is_below(&parent, specified));
        }
    }

    #[test]
    fn a_longer_path_is_a_slice_in_a_slice() {
        let instance = InstanceId::parse("x").unwrap();
        assert_eq!(
            parent(Driver::Systemd, "/machine/berth", &instance),
            "machine.slice/machine-berth.slice/machine-berth-x.slice"
        );
    }

    #[test]
    fn names_are_read_back_and_foreign_ones_are_not_ours() {
        for driver in [Driver::Cgroupfs, Driver::Systemd] {
            let parent = parent_of(driver, "a");
            for text in ["web", "my-web", "a-b-c"] {
                let cgroup = of_sandbox(&parent, &id(text));
                let name = cgroup.rsplit('/').next().unwrap();
                assert_eq!(parse_sandbox(&parent, name).as_deref(), Some(text));
                let container = of_container(&cgroup, "app-1");
                let name = container.rsplit('/').next().unwrap();
                assert_eq!(parse_container(&cgroup, name), Some("app-1"));
            }
        }
        let parent = parent_of(Driver::Systemd, "a");
        for foreign in [
            "web",
            "berth-b-web.slice",
            "berth-a-web-x.slice",
            "berth-a.slice",
            "berth-ab.slice",
        ] {
            assert_eq!(parse_sandbox(&parent, foreign), None, "{foreign}");
        }
        let sandbox = of_sandbox(&parent, &id("web"));
        for foreign in [
            "app",
            "berth-a-web.scope",
            "berth-a-webx.app.scope",
            "run-1.scope",
        ] {
            assert_eq!(parse_container(&sandbox, foreign), None, "{foreign}");
        }
    }

    #[test]
    fn only_what_is_below_the_parent_is_ours() {
        for (parent, cgroup, ours) in [
            ("berth/a", "/berth/a/web/app", true),
            ("berth/a", "berth/a/web", true),
            ("berth/a", "/berth/a", false),
            ("berth/a", "/berth/ab/web/app", false),
            ("berth/a", "/other/berth/a/web", false),
            ("berth/a", "/", false),
            (
                "berth.slice/berth-a.slice",
                "berth-a-web.slice:berth:a-web.app",
                true,
            ),
            (
                "berth.slice/berth-a.slice",
                "berth-ab-web.slice:berth:ab-web.app",
                false,
            ),
            ("berth.slice/berth-a.slice", "berth-a.slice:berth:x", false),
            ("berth.slice/berth-a.slice", "/berth/a/web/app", false),
            (
                "berth.slice/berth-a.slice",
                "/berth.slice/berth-a.slice/berth-a-web.slice",
                true,
            ),
            (
                "berth.slice/berth-a.slice",
                "/berth.slice/berth-a.slice",
                false,
            ),
        ] {
            assert_eq!(is_below(parent, cgroup), ours, "{parent}: {cgroup}");
        }
    }

    #[test]
    fn sandboxes_that_differ_have_cgroups_that_differ() {
        let parents = ["a", "a-b", "a-b-c"].map(|it| parent_of(Driver::Systemd, it));
        let ids = ["c", "b-c", "b", "a-b-c"].map(id);
        let all: Vec<_> = parents
            .iter()
            .flat_map(|parent| ids.iter().map(move |id| of_sandbox(parent, id)))
            .map(|it| it.rsplit('/').next().unwrap().to_owned())
            .collect();
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
    }
}

//! What became of a sandbox that was RUNNING.

use std::time::SystemTime;

use crate::{
    decide::{roles, stands},
    spec::SandboxSpec,
    step::{Extent, Observed, Role, TaskSeen},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Stands,
    /// It runs, and of its lease, cgroup and files something is gone that can be made again.
    Unprepared,
    /// A task has ended: the earliest one.
    Exited {
        role: Role,
        code: u32,
        at: SystemTime,
    },
    /// A part is missing that nobody saw end.
    Lost {
        role: Role,
        what: &'static str,
    },
    /// A task does not say how it is, and nothing that is seen is an end.
    Unknown {
        role: Role,
    },
    /// No task and no namespace is left: the node itself went away under it.
    Gone,
}

/// Judges what is seen of a sandbox that should run. After a reboot whatever is left is a remnant: what the kernel held
/// is gone.
pub fn assess(spec: &SandboxSpec, seen: &Observed, rebooted: bool) -> Health {
    // What somebody else put under its id is the audit's business: it harms no sandbox that runs.
    let own: Vec<_> = roles(spec).collect();
    let mut seen = seen.clone();
    seen.containers.retain(|role, _| own.contains(role));
    let prepared = std::mem::replace(&mut seen.prepared, Extent::Whole);
    let seen = &seen;
    if stands(spec, seen) {
        return match prepared {
            Extent::Whole => Health::Stands,
            Extent::Nothing | Extent::Part => Health::Unprepared,
        };
    }
    if rebooted {
        return Health::Gone;
    }
    let exits = seen
        .containers
        .iter()
        .filter_map(|(role, it)| match it.task {
            TaskSeen::Exited { code, at } => Some((at, role, code)),
            TaskSeen::Missing | TaskSeen::Created | TaskSeen::Running | TaskSeen::Unknown => None,
        });
    if let Some((at, role, code)) = exits.min() {
        return Health::Exited {
            role: role.clone(),
            code,
            at,
        };
    }
    let task = |role: &Role| {
        seen.containers
            .get(role)
            .map_or(TaskSeen::Missing, |it| it.task)
    };
    if let Some(role) = unknown(seen) {
        return Health::Unknown { role: role.clone() };
    }
    if seen.namespaces == Extent::Nothing
        && roles(spec).all(|role| task(&role) == TaskSeen::Missing)
    {
        return Health::Gone;
    }
    match roles(spec).find(|role| task(role) != TaskSeen::Running) {
        Some(role) => Health::Lost {
            role,
            what: "its task is gone",
        },
        None if !seen.link && !spec.host_network => Health::Lost {
            role: Role::Pause,
            what: "its network link is gone",
        },
        None => Health::Lost {
            role: Role::Pause,
            what: "its namespaces are no longer pinned",
        },
    }
}

/// A container whose task does not say how it is.
pub fn unknown(seen: &Observed) -> Option<&Role> {
    let mut all = seen.containers.iter();
    all.find_map(|(role, it)| (it.task == TaskSeen::Unknown).then_some(role))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        id::ContainerName,
        spec::tests::{container, spec},
        step::ContainerSeen,
    };

    fn seen(namespaces: bool, link: bool, pause: TaskSeen, web: TaskSeen) -> Observed {
        let stored = |task| ContainerSeen { stored: true, task };
        let app = Role::App(ContainerName::parse("web").unwrap());
        Observed {
            prepared: Extent::Whole,
            namespaces: if namespaces {
                Extent::Whole
            } else {
                Extent::Nothing
            },
            link,
            containers: [(Role::Pause, stored(pause)), (app, stored(web))].into(),
        }
    }

    #[test]
    #[rustfmt::skip]
    fn each_sight_means_this() {
        use TaskSeen::{Missing, Running, Unknown};
        let spec = spec([container("web", &[80])]);
        let web = || Role::App(ContainerName::parse("web").unwrap());
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let with = |name: &str, task| {
            let mut all = seen(true, true, Running, Running);
            let role = Role::App(ContainerName::parse(name).unwrap());
            all.containers.insert(role, ContainerSeen { stored: true, task });
            all
        };
        let exited = |seconds| TaskSeen::Exited { code: 3, at: at(seconds) };
        let cases = [
            ("all there",             seen(true,  true,  Running,   Running),   Health::Stands),
            ("the app has ended",     seen(true,  true,  Running,   exited(5)), Health::Exited { role: web(), code: 3, at: at(5) }),
            ("the first of two ends", seen(true,  true,  exited(4), exited(5)), Health::Exited { role: Role::Pause, code: 3, at: at(4) }),
            ("after a reboot",        seen(false, false, Missing,   Missing),   Health::Gone),
            ("a task has vanished",   seen(true,  true,  Running,   Missing),   Health::Lost { role: web(), what: "its task is gone" }),
            ("one does not say",      seen(true,  true,  Running,   Unknown),   Health::Unknown { role: web() }),
            ("and another is gone",   seen(false, true,  Missing,   Unknown),   Health::Unknown { role: web() }),
            ("and another has ended", seen(true,  true,  exited(4), Unknown),   Health::Exited { role: Role::Pause, code: 3, at: at(4) }),
            ("somebody else's is there", with("old", Running),                  Health::Stands),
            ("and has ended",         with("old", exited(1)),                   Health::Stands),
            ("its cgroup is gone",    Observed { prepared: Extent::Part, ..seen(true, true, Running, Running) }, Health::Unprepared),
            ("its pins are gone",     Observed { namespaces: Extent::Part, ..seen(true, true, Running, Running) }, Health::Lost { role: Role::Pause, what: "its namespaces are no longer pinned" }),
            ("the link was removed",  seen(true,  false, Running,   Running),   Health::Lost { role: Role::Pause, what: "its network link is gone" }),
        ];
        for (case, seen, expected) in cases {
            assert_eq!(assess(&spec, &seen, false), expected.clone(), "{case}");
            let runs = matches!(expected, Health::Stands | Health::Unprepared);
            let rebooted = if runs { expected } else { Health::Gone };
            assert_eq!(assess(&spec, &seen, true), rebooted, "{case}, after a reboot");
        }
    }
}

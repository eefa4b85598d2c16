//! Which objects on the node no record explains, and which a record misses. Decided once, for every caller.

use std::collections::{BTreeMap, BTreeSet};

use berth_domain::{Generation, Role, SandboxId, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Container,
    Task,
    Snapshot,
    Lease,
    Namespaces,
    Link,
    Address,
    Cgroup,
    Directory,
    Record,
}

/// One object as it was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub kind: Kind,
    pub name: String,
    pub sandbox: Option<SandboxId>,
    /// `None` where the object does not tell.
    pub generation: Option<Generation>,
    /// The container that it is of, where it is of one.
    pub role: Option<Role>,
}

/// What a record promises.
#[derive(Clone, Debug)]
pub struct Promise {
    pub id: SandboxId,
    pub generation: Generation,
    pub status: Status,
    /// Whether a plan may be running for it.
    pub busy: bool,
    pub roles: Vec<Role>,
    pub addresses: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Explained,
    Orphan,
    Missing,
    InProgress,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub object: Object,
    pub verdict: Verdict,
    pub explanation: String,
}

/// Judges every object by the records, and every record by the objects. Sorted by kind and name.
pub fn judge(promises: &[Promise], objects: &[Object]) -> Vec<Finding> {
    let by_id: BTreeMap<_, _> = promises.iter().map(|it| (&it.id, it)).collect();
    let mut findings: Vec<Finding> = objects
        .iter()
        .map(|object| {
            let promise = object
                .sandbox
                .as_ref()
                .and_then(|id| by_id.get(id).copied());
            let (verdict, explanation) = judge_object(promise, object);
            Finding {
                object: object.clone(),
                verdict,
                explanation,
            }
        })
        .collect();
    for promise in promises {
        findings.extend(missing(promise, objects));
    }
    findings.sort_by(|a, b| a.object.cmp(&b.object));
    findings
}

/// Whether nothing is an orphan and nothing is missing.
pub fn is_clean(findings: &[Finding]) -> bool {
    findings
        .iter()
        .all(|it| matches!(it.verdict, Verdict::Explained | Verdict::InProgress))
}

fn judge_object(promise: Option<&Promise>, object: &Object) -> (Verdict, String) {
    let Some(sandbox) = &object.sandbox else {
        return (Verdict::Orphan, "it names no sandbox".to_owned());
    };
    let Some(promise) = promise else {
        return (Verdict::Orphan, format!("no record of a sandbox {sandbox}"));
    };
    if promise.busy {
        return (
            Verdict::InProgress,
            format!("a plan for sandbox {sandbox} is running"),
        );
    }
    if object.generation.is_some_and(|it| it != promise.generation) {
        return (
            Verdict::Orphan,
            format!("of a former generation of sandbox {sandbox}"),
        );
    }
    if promise.status == Status::Dead {
        return (
            Verdict::Orphan,
            format!("sandbox {sandbox} is DEAD and holds nothing"),
        );
    }
    if object
        .role
        .as_ref()
        .is_some_and(|role| !promise.roles.contains(role))
    {
        return (
            Verdict::Orphan,
            format!("sandbox {sandbox} has no such container"),
        );
    }
    if object.kind == Kind::Address && !promise.addresses.contains(&object.name) {
        return (
            Verdict::Orphan,
            format!("sandbox {sandbox} has another address"),
        );
    }
    (
        Verdict::Explained,
        format!("of sandbox {sandbox}, {}", promise.status),
    )
}

/// What a sandbox that runs must have and has not.
fn missing(promise: &Promise, objects: &[Object]) -> Vec<Finding> {
    if promise.busy || !matches!(promise.status, Status::Running | Status::NotReady) {
        return vec![];
    }
    let have: BTreeSet<(Kind, Option<&Role>)> = objects
        .iter()
        .filter(|it| it.sandbox.as_ref() == Some(&promise.id))
        .map(|it| (it.kind, it.role.as_ref()))
        .collect();
    let addresses: BTreeSet<&str> = objects
        .iter()
        .filter(|it| it.kind == Kind::Address && it.sandbox.as_ref() == Some(&promise.id))
        .map(|it| it.name.as_str())
        .collect();
    let whole = [
        Kind::Lease,
        Kind::Namespaces,
        Kind::Link,
        Kind::Cgroup,
        Kind::Directory,
    ];
    let of_sandbox = whole.into_iter().map(|kind| (kind, None));
    let of_containers = promise
        .roles
        .iter()
        .flat_map(|role| [Kind::Container, Kind::Task].map(|kind| (kind, Some(role))));
    let mut findings: Vec<Finding> = of_sandbox
        .chain(of_containers)
        .filter(|wanted| !have.contains(wanted))
        .map(|(kind, role)| {
            let name = role.map_or_else(
                || promise.id.to_string(),
                |it| format!("{}/{it}", promise.id),
            );
            finding_missing(promise, kind, name, role.cloned())
        })
        .collect();
    findings.extend(
        promise
            .addresses
            .iter()
            .filter(|it| !addresses.contains(it.as_str()))
            .map(|it| finding_missing(promise, Kind::Address, it.clone(), None)),
    );
    findings
}

fn finding_missing(promise: &Promise, kind: Kind, name: String, role: Option<Role>) -> Finding {
    Finding {
        object: Object {
            kind,
            name,
            sandbox: Some(promise.id.clone()),
            generation: Some(promise.generation),
            role,
        },
        verdict: Verdict::Missing,
        explanation: format!("sandbox {} is {} and needs it", promise.id, promise.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SandboxId {
        SandboxId::parse(text).unwrap()
    }

    fn promise(status: Status, busy: bool) -> Promise {
        Promise {
            id: id("web"),
            generation: Generation(7),
            status,
            busy,
            roles: vec![Role::Pause],
            addresses: vec!["10.0.0.2".to_owned()],
        }
    }

    fn object(kind: Kind, sandbox: Option<&str>, generation: Option<u64>) -> Object {
        Object {
            kind,
            name: "10.0.0.2".to_owned(),
            sandbox: sandbox.map(id),
            generation: generation.map(Generation),
            role: matches!(kind, Kind::Container | Kind::Task).then_some(Role::Pause),
        }
    }

    fn all_of_web() -> Vec<Object> {
        [
            Kind::Container,
            Kind::Task,
            Kind::Lease,
            Kind::Namespaces,
            Kind::Link,
            Kind::Address,
            Kind::Cgroup,
            Kind::Directory,
        ]
        .map(|kind| object(kind, Some("web"), Some(7)))
        .to_vec()
    }

    #[test]
    #[rustfmt::skip]
    fn each_object_is_judged_like_this() {
        use Status::{Dead, Running, Stopped};
        let other = Role::App(berth_domain::ContainerName::parse("x").unwrap());
        let stray = Object { role: Some(other), ..object(Kind::Task, Some("web"), Some(7)) };
        let address = Object { name: "10.0.0.9".into(), ..object(Kind::Address, Some("web"), None) };
        let cases = [
            ("of a sandbox that runs",   promise(Running, false), object(Kind::Link, Some("web"), None),      Verdict::Explained),
            ("being torn down",          promise(Stopped, true),  object(Kind::Link, Some("web"), None),      Verdict::InProgress),
            ("of a dead one",            promise(Dead, false),    object(Kind::Link, Some("web"), None),      Verdict::Orphan),
            ("of an older generation",   promise(Running, false), object(Kind::Task, Some("web"), Some(6)),   Verdict::Orphan),
            ("of no known sandbox",      promise(Running, false), object(Kind::Link, Some("db"), None),       Verdict::Orphan),
            ("of no sandbox at all",     promise(Running, false), object(Kind::Directory, None, None),        Verdict::Orphan),
            ("a container too many",     promise(Running, false), stray,                                      Verdict::Orphan),
            ("an address too many",      promise(Running, false), address,                                    Verdict::Orphan),
        ];
        for (case, promise, object, expected) in cases {
            assert_eq!(judge_object((object.sandbox == Some(id("web"))).then_some(&promise), &object).0, expected, "{case}");
        }
    }

    #[test]
    fn a_sandbox_that_runs_with_all_it_needs_is_clean() {
        assert!(is_clean(&judge(
            &[promise(Status::Running, false)],
            &all_of_web()
        )));
        assert!(is_clean(&judge(&[], &[])));
    }

    #[test]
    fn each_thing_that_a_running_sandbox_lacks_is_missing() {
        let all = all_of_web();
        for left_out in 0..all.len() {
            let mut objects = all.clone();
            let gone = objects.remove(left_out);
            let findings = judge(&[promise(Status::Running, false)], &objects);
            let missing: Vec<_> = findings
                .iter()
                .filter(|it| it.verdict == Verdict::Missing)
                .collect();
            assert_eq!(missing.len(), 1, "without {gone:?}");
            assert_eq!(missing[0].object.kind, gone.kind);
            assert!(!is_clean(&findings));
        }
    }

    #[test]
    fn a_dead_record_misses_nothing() {
        assert!(is_clean(&judge(&[promise(Status::Dead, false)], &[])));
    }
}

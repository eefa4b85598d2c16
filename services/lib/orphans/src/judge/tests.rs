//! Each kind of object under each state of its sandbox, and what it is judged as.

use berth_domain::{ContainerName, Generation};

use super::*;

pub(crate) fn id(text: &str) -> SandboxId {
    SandboxId::parse(text).unwrap()
}

fn app(name: &str) -> Role {
    Role::App(ContainerName::parse(name).unwrap())
}

pub(crate) fn promise(status: Status, busy: bool) -> Promise {
    Promise {
        id: id("web"),
        generation: Generation(7),
        status,
        busy,
        roles: vec![Role::Pause, app("app")],
        has_link: true,
        addresses: vec!["10.0.0.2".to_owned()],
    }
}

pub(crate) fn object(kind: Kind, sandbox: &str, generation: Option<u64>) -> Object {
    Object {
        sandbox: (!sandbox.is_empty()).then(|| id(sandbox)),
        generation: generation.map(Generation),
        role: matches!(
            kind,
            Kind::Container | Kind::Task | Kind::Shim | Kind::Snapshot | Kind::Mount
        )
        .then(|| app("app")),
        ..nothing(kind, "10.0.0.2".to_owned())
    }
}

/// Everything that a sandbox which runs needs.
fn all_of_web() -> Vec<Object> {
    let of_sandbox = [
        Kind::Lease,
        Kind::Namespaces,
        Kind::Link,
        Kind::Address,
        Kind::Cgroup,
        Kind::Directory,
    ]
    .map(|kind| object(kind, "web", None));
    let of_app =
        [Kind::Container, Kind::Task, Kind::Snapshot].map(|kind| object(kind, "web", Some(7)));
    let of_pause = [Kind::Container, Kind::Task].map(|kind| Object {
        role: Some(Role::Pause),
        ..object(kind, "web", Some(7))
    });
    of_sandbox
        .into_iter()
        .chain(of_app)
        .chain(of_pause)
        .collect()
}

fn look(promises: &[Promise], objects: &[Object]) -> Look {
    Look {
        promises: promises.to_vec(),
        objects: objects.to_vec(),
        ..Look::default()
    }
}

/// The finding on `object`, judged beside nothing but `promise`.
fn verdict(promise: &Promise, object: &Object) -> Option<Finding> {
    let findings = judge(&look(
        std::slice::from_ref(promise),
        std::slice::from_ref(object),
    ));
    let mut own = findings.into_iter().filter(|it| it.object == *object);
    own.find(|it| it.verdict != Verdict::Missing)
}

/// Kinds of which a node has one object per sandbox or container.
fn held() -> impl Iterator<Item = Kind> {
    let other = [Kind::Table, Kind::Bridge, Kind::Record];
    Kind::ALL.into_iter().filter(move |it| !other.contains(it))
}

#[test]
fn every_kind_of_a_sandbox_that_runs_is_explained_and_its_output_goes_without_saying() {
    for kind in held() {
        let found = verdict(
            &promise(Status::Running, false),
            &object(kind, "web", Some(7)),
        );
        if kind == Kind::Logs {
            assert_eq!(found, None);
        } else {
            let found = found.unwrap();
            assert_eq!(
                (found.verdict, found.fix),
                (Verdict::Explained, Fix::Nothing),
                "{kind}"
            );
        }
    }
}

#[test]
fn a_sandbox_in_the_network_of_the_node_has_no_link_and_misses_none() {
    let promise = Promise {
        has_link: false,
        ..promise(Status::Running, false)
    };
    for kind in [Kind::Link, Kind::Element] {
        let found = verdict(&promise, &object(kind, "web", None)).unwrap();
        let judged = (found.verdict, found.fix);
        assert_eq!(judged, (Verdict::Orphan, Fix::Remove), "{kind}");
    }
    let namespaces = object(Kind::Namespaces, "web", None);
    let missing = judge(&look(&[promise], &[namespaces])).into_iter();
    let missing: BTreeSet<_> = missing
        .filter(|it| it.verdict == Verdict::Missing)
        .map(|it| it.object.kind)
        .collect();
    assert!(!missing.contains(&Kind::Link), "{missing:?}");
    assert!(missing.contains(&Kind::Cgroup), "{missing:?}");
}

#[test]
fn every_kind_is_in_progress_while_a_plan_runs() {
    for kind in held() {
        let found = verdict(
            &promise(Status::Stopped, true),
            &object(kind, "web", Some(6)),
        )
        .unwrap();
        assert_eq!(
            (found.verdict, found.fix),
            (Verdict::InProgress, Fix::Nothing),
            "{kind}"
        );
    }
}

#[test]
fn every_kind_without_a_record_is_an_orphan_that_its_sandbox_or_the_caller_removes() {
    for kind in held() {
        let found = verdict(
            &promise(Status::Running, false),
            &object(kind, "db", Some(7)),
        )
        .unwrap();
        let alone = matches!(
            kind,
            Kind::Shim | Kind::Element | Kind::Mount | Kind::Address
        );
        let fix = if alone {
            Fix::Remove
        } else {
            Fix::Clear(id("db"))
        };
        assert_eq!((found.verdict, found.fix), (Verdict::Orphan, fix), "{kind}");
    }
}

#[test]
fn every_kind_of_a_dead_sandbox_is_an_orphan_but_its_output() {
    for kind in held() {
        let found = verdict(&promise(Status::Dead, false), &object(kind, "web", Some(7)));
        if kind == Kind::Logs {
            assert_eq!(found, None);
        } else {
            assert_eq!(found.unwrap().verdict, Verdict::Orphan, "{kind}");
        }
    }
}

#[test]
fn every_kind_that_names_no_sandbox_is_an_orphan_of_its_own() {
    for kind in held() {
        // A lease that is not strange is of a pull.
        let object = Object {
            strange: kind == Kind::Lease,
            ..object(kind, "", None)
        };
        let found = verdict(&promise(Status::Running, false), &object).unwrap();
        assert_eq!(
            (found.verdict, found.fix),
            (Verdict::Orphan, Fix::Remove),
            "{kind}"
        );
    }
}

#[test]
fn a_lease_without_a_sandbox_is_in_progress_until_it_outlives_its_pull() {
    let lease = object(Kind::Lease, "", None);
    let found = verdict(&promise(Status::Running, false), &lease).unwrap();
    assert_eq!(
        (found.verdict, found.fix),
        (Verdict::InProgress, Fix::Nothing)
    );
    let old = Object {
        strange: true,
        ..lease
    };
    let found = verdict(&promise(Status::Running, false), &old).unwrap();
    assert_eq!((found.verdict, found.fix), (Verdict::Orphan, Fix::Remove));
}

#[test]
#[rustfmt::skip]
fn what_does_not_fit_its_record_is_judged_like_this() {
    use Status::{NotReady, Running, Stopped};
    let of = |kind, generation| object(kind, "web", generation);
    let too_many = Object { role: Some(app("x")), ..of(Kind::Task, Some(7)) };
    let address = Object { name: "10.0.0.9".into(), ..of(Kind::Address, None) };
    let strange = Object { strange: true, ..of(Kind::Link, None) };
    let silent = Object { silent: true, ..of(Kind::Task, Some(7)) };
    let old_and_silent = Object { silent: true, ..of(Kind::Task, Some(6)) };
    let web = || id("web");
    let cases = [
        ("not reachable",           promise(NotReady, false), of(Kind::Link, None),         Verdict::Explained,  Fix::Nothing),
        ("an older generation",     promise(Running, false),  of(Kind::Task, Some(6)),      Verdict::Orphan,     Fix::Remove),
        ("a newer generation",      promise(Running, false),  of(Kind::Container, Some(8)), Verdict::Orphan,     Fix::Remove),
        ("an older one of a DEAD",  promise(Status::Dead, false), of(Kind::Task, Some(6)),  Verdict::Orphan,     Fix::Clear(web())),
        ("a container too many",    promise(Running, false),  too_many,                     Verdict::Orphan,     Fix::Remove),
        ("an address too many",     promise(Running, false),  address,                      Verdict::Orphan,     Fix::Remove),
        ("under a wrong name",      promise(Running, false),  strange.clone(),              Verdict::Orphan,     Fix::Remove),
        ("the same, with a plan",   promise(Stopped, true),   strange.clone(),              Verdict::Orphan,     Fix::Remove),
        ("the same, of a DEAD",     promise(Status::Dead, false), strange,                  Verdict::Orphan,     Fix::Remove),
        ("its shim is silent",      promise(Running, false),  silent.clone(),               Verdict::Unknown,    Fix::AskAgain),
        ("silent, and it is DEAD",  promise(Status::Dead, false), silent.clone(),           Verdict::Unknown,    Fix::AskAgain),
        ("silent and former",       promise(Running, false),  old_and_silent,               Verdict::Unknown,    Fix::AskAgain),
        ("silent, with a plan",     promise(Stopped, true),   silent,                       Verdict::InProgress, Fix::Nothing),
    ];
    for (case, promise, object, expected, fix) in cases {
        let found = verdict(&promise, &object).unwrap();
        assert_eq!((found.verdict, found.fix), (expected, fix), "{case}");
    }
}

#[test]
fn nothing_of_a_sandbox_whose_record_cannot_be_read_is_an_orphan() {
    let objects: Vec<_> = held().map(|kind| object(kind, "db", None)).collect();
    let torn = Look {
        unreadable: [id("db")].into(),
        ..look(&[], &objects)
    };
    let findings = judge(&torn);
    assert_eq!(findings.len(), objects.len());
    assert!(findings.iter().all(|it| it.verdict == Verdict::Unknown));
    assert!(!is_clean(&findings));
}

#[test]
fn nothing_of_a_sandbox_without_a_record_is_an_orphan_while_one_of_its_tasks_is_silent() {
    let mut objects: Vec<_> = held().map(|kind| object(kind, "db", None)).collect();
    let quiet = judge(&look(&[], &objects));
    assert!(quiet.iter().all(|it| it.verdict == Verdict::Orphan));
    objects.push(Object {
        silent: true,
        role: Some(Role::Pause),
        ..object(Kind::Task, "db", None)
    });
    objects.push(object(Kind::Link, "other", None));
    for found in judge(&look(&[], &objects)) {
        let other = found.object.sandbox == Some(id("other"));
        let expected = if other {
            Verdict::Orphan
        } else {
            Verdict::Unknown
        };
        assert_eq!(found.verdict, expected, "{found:?}");
    }
    assert!(!is_clean(&judge(&look(
        &[],
        &objects[objects.len() - 2..][..1]
    ))));
}

#[test]
fn a_silent_task_casts_doubt_on_its_container_and_shim_and_on_nothing_else() {
    let mut objects = all_of_web();
    objects.push(object(Kind::Shim, "web", None));
    let task = objects
        .iter_mut()
        .find(|it| it.kind == Kind::Task && it.role == Some(app("app")));
    task.unwrap().silent = true;
    for found in judge(&look(&[promise(Status::Running, false)], &objects)) {
        let doubtful = matches!(found.object.kind, Kind::Task | Kind::Container | Kind::Shim)
            && found.object.role == Some(app("app"));
        let expected = if doubtful {
            Verdict::Unknown
        } else {
            Verdict::Explained
        };
        assert_eq!(found.verdict, expected, "{found:?}");
    }
}

#[test]
fn a_link_without_a_name_is_in_progress_while_any_plan_runs() {
    let link = object(Kind::Link, "", None);
    let found = verdict(&promise(Status::Pending, true), &link).unwrap();
    assert_eq!(found.verdict, Verdict::InProgress);
    let folder = object(Kind::Directory, "", None);
    let found = verdict(&promise(Status::Pending, true), &folder).unwrap();
    assert_eq!(found.verdict, Verdict::Orphan);
}

#[test]
fn a_sandbox_that_runs_with_all_it_needs_is_clean() {
    let all = look(&[promise(Status::Running, false)], &all_of_web());
    assert!(is_clean(&judge(&all)));
    assert!(is_clean(&judge(&Look::default())));
}

#[test]
fn each_thing_that_a_running_sandbox_lacks_is_missing() {
    let all = all_of_web();
    for left_out in 0..all.len() {
        let mut objects = all.clone();
        let gone = objects.remove(left_out);
        let findings = judge(&look(&[promise(Status::Running, false)], &objects));
        let missing: Vec<_> = findings
            .iter()
            .filter(|it| it.verdict == Verdict::Missing)
            .collect();
        assert_eq!(missing.len(), 1, "without {gone:?}");
        assert_eq!(
            (missing[0].object.kind, &missing[0].object.role),
            (gone.kind, &gone.role)
        );
        let bears = [Kind::Container, Kind::Snapshot, Kind::Address].contains(&gone.kind);
        let expected = if bears {
            Fix::Nothing
        } else {
            Fix::Wake(id("web"))
        };
        assert_eq!(missing[0].fix, expected, "without {gone:?}");
        assert!(!is_clean(&findings));
    }
}

#[test]
fn a_strange_object_is_no_substitute_for_what_is_missing() {
    let mut objects = all_of_web();
    let link = objects.iter_mut().find(|it| it.kind == Kind::Link).unwrap();
    link.strange = true;
    let findings = judge(&look(&[promise(Status::Running, false)], &objects));
    let links: Vec<_> = findings
        .iter()
        .filter(|it| it.object.kind == Kind::Link)
        .collect();
    let verdicts: BTreeSet<_> = links.iter().map(|it| it.verdict).collect();
    assert_eq!(
        verdicts,
        BTreeSet::from([Verdict::Orphan, Verdict::Missing])
    );
}

#[test]
fn a_record_that_lost_everything_is_said_in_one_line() {
    let address = object(Kind::Address, "web", None);
    let findings = judge(&look(&[promise(Status::Running, false)], &[address]));
    let missing: Vec<_> = findings
        .iter()
        .filter(|it| it.verdict == Verdict::Missing)
        .collect();
    assert_eq!(missing.len(), 1, "{missing:#?}");
    assert_eq!(
        (missing[0].object.kind, missing[0].object.name.as_str()),
        (Kind::Record, "web")
    );
}

#[test]
fn a_dead_record_and_one_with_a_plan_miss_nothing() {
    for promise in [promise(Status::Dead, false), promise(Status::Pending, true)] {
        assert!(is_clean(&judge(&look(&[promise], &[]))));
    }
}

#[test]
fn what_the_instance_as_a_whole_lacks_is_missing_and_what_it_has_goes_without_saying() {
    let table = Object {
        name: "berth-a".into(),
        ..object(Kind::Table, "", None)
    };
    let standing = vec![(Kind::Table, "berth-a".to_owned())];
    let look = |objects| Look {
        objects,
        standing: standing.clone(),
        ..Look::default()
    };
    assert_eq!(judge(&look(vec![table])), []);
    let findings = judge(&look(vec![]));
    assert_eq!(
        (findings[0].verdict, &findings[0].fix),
        (Verdict::Missing, &Fix::Restart)
    );
    assert!(!is_clean(&findings));
}

#[test]
fn findings_come_in_the_order_of_removal() {
    let objects: Vec<_> = Kind::ALL
        .into_iter()
        .rev()
        .map(|it| object(it, "db", None))
        .collect();
    let kinds: Vec<_> = judge(&look(&[], &objects))
        .iter()
        .map(|it| it.object.kind)
        .collect();
    assert!(kinds.is_sorted());
    let place = |kind| kinds.iter().position(|it| *it == kind).unwrap();
    assert!(place(Kind::Task) < place(Kind::Container));
    assert!(place(Kind::Link) < place(Kind::Namespaces));
    assert!(
        place(Kind::Lease) < place(Kind::Address),
        "an address goes last"
    );
}

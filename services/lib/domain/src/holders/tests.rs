//! Who holds what, case by case.

use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    catalog::{App, Artifact, Version},
    id::{ContainerName, Generation},
    spec::{Container, SandboxSpec},
};

fn digest(number: u8) -> String {
    format!("sha256:{}", format!("{number:02x}").repeat(32))
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn container(name: &str, image: &str) -> Container {
    Container {
        name: ContainerName::parse(name).unwrap(),
        image: ImageRef::parse(image).unwrap(),
        command: String::new(),
        args: None,
        directory: String::new(),
        env: vec![],
        ports: vec![],
        oom_score: 0,
        config_files: vec![],
        shutdown_timeout: Duration::ZERO,
        resources: crate::Resources::default(),
        readiness_probe: None,
        tty: false,
        stdin: false,
    }
}

fn record(id: &str, image: &str, status: Status) -> SandboxRecord {
    let spec = SandboxSpec {
        containers: vec![container("app", image)],
        ..SandboxSpec::default()
    };
    let id = SandboxId::parse(id).unwrap();
    let mut record = SandboxRecord::new(id, Generation(1), Arc::new(spec), vec![], at(0));
    record.status = status;
    record
}

fn version(image: &str, artifact: &str, blob: &str) -> Object {
    let text = |it: &str| (!it.is_empty()).then(|| it.to_owned());
    Object::Version(Version {
        id: "v".into(),
        app: "a".into(),
        image: text(image).map(|it| ImageRef::parse(&it).unwrap()),
        artifact: text(artifact),
        static_artifact: text(blob),
    })
}

fn artifact(id: &str, status: ArtifactStatus, blobs: &[String]) -> Object {
    Object::Artifact(Artifact {
        id: id.into(),
        status,
        blobs: blobs.to_vec(),
    })
}

/// The node has these names.
fn node(names: &[(&str, u8)]) -> Standing {
    let image = |(name, number): &(&str, u8)| {
        let image = NamedImage {
            digest: digest(*number),
            pinned: false,
        };
        ((*name).to_owned(), image)
    };
    Standing {
        images: names.iter().map(image).collect(),
        ..Standing::default()
    }
}

const ONE: &str = "docker.io/library/one:latest";
const ALIAS: &str = "registry.test/other:1";
const TWO: &str = "docker.io/library/two:latest";
const WEB: &str = "cluster.local:5000/app:web";

fn standing() -> Standing {
    node(&[(ONE, 1), (ALIAS, 1), (TWO, 2), (WEB, 3)])
}

/// Who holds the image of this number.
fn of(holders: &Holders, standing: &Standing, number: u8) -> Vec<(HolderKind, String)> {
    let found = holders.of_digest(&digest(number), standing, at(100));
    found.into_iter().map(|it| (it.kind, it.id)).collect()
}

#[test]
#[rustfmt::skip]
fn the_artifact_of_an_image_is_behind_the_first_colon_of_a_managed_name() {
    let by_digest = format!("cluster.local:5000/app@{}", digest(1));
    let both = format!("cluster.local:5000/app:web@{}", digest(1));
    let cases = [
        ("cluster.local:5000/app:web",   Some("web")),
        ("cluster.local:5000/a/b:web",   Some("web")),
        ("cluster.local:5000/app:a:b",   Some("a:b")),
        (&both,                          Some("web")),
        (&by_digest,                     None),
        ("cluster.local:5000/app",       None),
        ("cluster.local:5000/app:",      None),
        ("cluster.local:5000/:web",      Some("web")),
        ("cluster.local/app:web",        None),
        ("docker.io/library/nginx:1",    None),
        ("x/cluster.local:5000/app:web", None),
        ("",                             None),
    ];
    for (image, expected) in cases {
        assert_eq!(parse_artifact_id(image), expected, "{image}");
    }
}

#[test]
#[rustfmt::skip]
fn a_sandbox_holds_the_digests_of_its_images_under_all_names_until_it_is_dead() {
    use Status::{Dead, NotReady, Pending, Running, Stopped};
    let by_digest = format!("registry.test/elsewhere@{}", digest(1));
    let cases = [
        ("one",      Pending,  true),
        ("one",      Running,  true),
        ("one",      NotReady, true),
        ("one",      Stopped,  true),
        ("one",      Dead,     false),
        (ALIAS,      Running,  true),
        (&by_digest, Running,  true),
        ("two",      Running,  false),
        ("absent",   Running,  false),
    ];
    for (image, status, holds) in cases {
        let mut holders = Holders::default();
        holders.place(&record("web", image, status));
        let expected = if holds { vec![(HolderKind::Sandbox, "web".to_owned())] } else { vec![] };
        assert_eq!(of(&holders, &standing(), 1), expected, "{image} {status}");
    }
}

#[test]
fn a_sandbox_holds_what_its_name_stood_for_and_what_it_stands_for() {
    let mut it = record("web", "one", Status::Running);
    let image = ImageRef::parse("one").unwrap();
    it.held_images.insert(image, digest(7));
    let app = ContainerName::parse("app").unwrap();
    it.images.insert(app, digest(8));
    let mut holders = Holders::default();
    holders.place(&it);
    for number in [1, 7, 8] {
        assert_eq!(of(&holders, &standing(), number).len(), 1, "{number}");
    }
    assert_eq!(of(&holders, &standing(), 2), []);
    holders.forget(&it.id);
    assert_eq!(of(&holders, &standing(), 7), []);
}

#[test]
#[rustfmt::skip]
fn a_version_and_an_artifact_hold_images() {
    use ArtifactStatus::{Active, Archived, Empty};
    let of_version = (HolderKind::Version, "v".to_owned());
    let of_artifact = (HolderKind::Artifact, "web".to_owned());
    let by_digest = format!("other@{}", digest(1));
    let cases = [
        (version("one", "", ""),             1, vec![of_version.clone()]),
        (version(ALIAS, "", ""),             1, vec![of_version.clone()]),
        (version(&by_digest, "", ""),        1, vec![of_version.clone()]),
        (version("two", "", ""),             1, vec![]),
        (version("", "web", ""),             3, vec![of_version.clone()]),
        (version("", "artifact/web", ""),    3, vec![of_version]),
        (version("", "web", ""),             1, vec![]),
        (artifact("web", Active, &[]),       3, vec![of_artifact.clone()]),
        (artifact("web", Empty, &[]),        3, vec![of_artifact]),
        (artifact("artifact/web", Empty, &[]), 3, vec![(HolderKind::Artifact, "artifact/web".to_owned())]),
        (artifact("web", Archived, &[]),     3, vec![]),
        (artifact("one", Active, &[]),       1, vec![]),
    ];
    for (object, number, expected) in cases {
        let mut holders = Holders::default();
        holders.put(&object);
        assert_eq!(of(&holders, &standing(), number), expected, "{object:?}");
        holders.remove(&object.key());
        assert_eq!(of(&holders, &standing(), number), [], "{object:?} is removed");
    }
}

#[test]
fn an_artifact_that_is_archived_lets_go_of_all_it_held() {
    let mut holders = Holders::default();
    holders.put(&artifact("web", ArtifactStatus::Active, &[digest(9)]));
    assert_eq!(holders.of_blob(&digest(9)).len(), 1);
    holders.put(&artifact("web", ArtifactStatus::Archived, &[digest(9)]));
    assert_eq!(holders.of_blob(&digest(9)), []);
    assert_eq!(of(&holders, &standing(), 3), []);
}

#[test]
#[rustfmt::skip]
fn blobs_are_held_by_artifacts_that_are_not_archived_and_by_versions() {
    use ArtifactStatus::{Active, Archived, Empty};
    let (held, other) = (digest(9), digest(8));
    let cases = [
        (artifact("web", Active, std::slice::from_ref(&held)),   1),
        (artifact("web", Empty, &[other.clone(), held.clone()]), 1),
        (artifact("web", Archived, std::slice::from_ref(&held)), 0),
        (artifact("web", Active, std::slice::from_ref(&other)),  0),
        (version("", "", &held),                                 1),
        (version("", "", &other),                                0),
        (version(&format!("app@{held}"), "", ""),                1),
        (version(&format!("app@{other}"), "", ""),               0),
    ];
    for (object, count) in cases {
        let mut holders = Holders::default();
        holders.put(&object);
        assert_eq!(holders.of_blob(&held).len(), count, "{object:?}");
        holders.remove(&object.key());
        assert_eq!(holders.of_blob(&held), [], "{object:?} is removed");
    }
}

#[test]
fn who_decided_by_a_catalog_before_the_last_put_of_what_leads_to_blobs_is_told_so() {
    let entry = |revision, object| Entry { revision, object };
    let app = Object::App(App {
        id: "a".into(),
        name: "a".into(),
    });
    let mut holders = Holders::default();
    assert!(holders.is_as_at(0));
    holders.put_entry(&entry(5, artifact("web", ArtifactStatus::Active, &[])));
    holders.put_entry(&entry(7, app));
    assert!(!holders.is_as_at(4));
    assert!(holders.is_as_at(5), "an app leads to no blob");
    holders.put_entry(&entry(9, version("", "", "")));
    holders.put_entry(&entry(6, artifact("db", ArtifactStatus::Archived, &[])));
    assert!(!holders.is_as_at(8));
    assert!(holders.is_as_at(9));
}

#[test]
fn a_pin_holds_what_its_name_stands_for_until_it_ends() {
    for (image, expires_at, holds) in [
        (ONE, None, true),
        (ALIAS, Some(at(101)), true),
        (ONE, Some(at(100)), false),
        (TWO, None, false),
    ] {
        let pin = Pin {
            image: image.to_owned(),
            expires_at,
        };
        let standing = Standing {
            pins: vec![pin],
            ..standing()
        };
        let found = Holders::default().of_digest(&digest(1), &standing, at(100));
        let ends: Vec<_> = found.iter().map(|it| (it.kind, it.until)).collect();
        let expected = if holds {
            vec![(HolderKind::Pin, expires_at)]
        } else {
            vec![]
        };
        assert_eq!(ends, expected, "{image} {expires_at:?}");
    }
}

#[test]
fn what_arrives_and_what_the_manager_needs_is_held() {
    let pull = |image: &str| Standing {
        arriving: vec![Arriving::Pull(ImageRef::parse(image).unwrap())],
        ..standing()
    };
    let by_digest = format!("one@{}", digest(2));
    let (none, pulled) = (Holders::default(), |it: &str| {
        (HolderKind::Pull, it.to_owned())
    });
    assert_eq!(of(&none, &pull("one"), 1), [pulled(ONE)]);
    assert_eq!(of(&none, &pull("two"), 1), []);
    let name = format!("docker.io/library/one@{}", digest(2));
    assert_eq!(of(&none, &pull(&by_digest), 2), [pulled(&name)]);
    let import = Standing {
        arriving: vec![Arriving::Import],
        ..standing()
    };
    assert_eq!(of(&none, &import, 2), [pulled("")]);
    let mut pinned = standing();
    pinned.images.get_mut(ALIAS).unwrap().pinned = true;
    let own = (HolderKind::Manager, String::new());
    assert_eq!(of(&none, &pinned, 1), [own]);
    assert_eq!(of(&none, &pinned, 2), []);
}

#[test]
#[rustfmt::skip]
fn what_cannot_be_read_holds_all_that_it_could_name_until_it_is_replaced() {
    let key = |kind, id: &str| Key { kind, id: id.to_owned() };
    let entry = |kind| UnreadEntry::Catalog(key(kind, "web"));
    //  entry                                 image 1  image 3  blob
    let cases = [
        (UnreadEntry::Record("web".into()),   true,    true,    false),
        (entry(Kind::Version),                true,    true,    true),
        (entry(Kind::Artifact),               false,   true,    true),
        (entry(Kind::Service),                false,   false,   false),
    ];
    for (entry, one, three, blob) in cases {
        let mut holders = Holders::default();
        holders.note_unread(entry.clone());
        let seen = |holders: &Holders| {
            let image = |number| !of(holders, &standing(), number).is_empty();
            (image(1), image(3), !holders.of_blob(&digest(9)).is_empty())
        };
        assert_eq!(seen(&holders), (one, three, blob), "{entry:?}");
        match entry {
            UnreadEntry::Record(_) => holders.place(&record("web", "absent", Status::Dead)),
            UnreadEntry::Catalog(key) => holders.remove(&key),
        }
        assert_eq!(seen(&holders), (false, false, false));
    }
}

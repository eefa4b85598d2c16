//! The verdict of each image, rule by rule.

use super::*;
use proptest::prelude::*;

const HOUR: u64 = 3600;
const NOW: u64 = 1000 * HOUR;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn image(name: &str, digest: &str, age_hours: u64) -> Image {
    Image {
        name: name.to_owned(),
        digest: digest.to_owned(),
        size_bytes: 10,
        created: at(NOW - age_hours * HOUR),
        last_used: None,
        holders: vec![],
    }
}

fn held(image: Image) -> Image {
    Image {
        holders: vec![Holder::new(HolderKind::Sandbox, "web")],
        ..image
    }
}

fn judged(images: Images, grace: Duration) -> BTreeMap<String, (Action, String)> {
    let objects = images.judge(at(NOW), grace);
    let told = |it: Object| (it.name, (it.action, it.why.to_string()));
    objects.into_iter().map(told).collect()
}

const SHOP: &str = "cluster.local:5000/shop:a";

#[test]
#[rustfmt::skip]
fn each_rule_comes_before_the_ones_behind_it() {
    use Action::{Delete, Keep, Later};
    let by_digest = format!("cluster.local:5000/shop@sha256:{}", "ab".repeat(32));
    let foreign = format!("docker.io/library/shop@sha256:{}", "ab".repeat(32));
    let (none, archived, active, empty) = (None, Some(Status::Archived), Some(Status::Active), Some(Status::Empty));
    // The name, whether a sandbox holds it, whether a version names it, what the catalog says of its artifact, its age in hours.
    let cases = [
        (SHOP,          true,  false, archived, 99, Keep,   "sandbox web holds it"),
        (SHOP,          true,  false, none,     99, Keep,   "sandbox web holds it"),
        ("nginx:1",     true,  false, none,     99, Keep,   "sandbox web holds it"),
        ("nginx:1",     false, false, none,     99, Keep,   "it is no artifact of the cluster"),
        (&foreign,      false, false, none,     99, Keep,   "it is no artifact of the cluster"),
        (&by_digest,    true,  false, none,     99, Keep,   "sandbox web holds it"),
        (&by_digest,    false, false, none,     25, Delete, "no artifact that is wanted has its digest"),
        (&by_digest,    false, false, none,     24, Later,  "no artifact that is wanted has its digest, but the image is young"),
        (SHOP,          false, true,  archived, 99, Keep,   "version shop-1 holds it"),
        (SHOP,          false, true,  none,     99, Keep,   "version shop-1 holds it"),
        (SHOP,          false, false, none,     25, Delete, "the catalog has no artifact/a"),
        (SHOP,          false, false, none,     24, Later,  "the catalog has no artifact/a, but the image is young"),
        (SHOP,          false, false, none,      0, Later,  "the catalog has no artifact/a, but the image is young"),
        (SHOP,          false, false, archived,  0, Delete, "artifact/a is archived"),
        (SHOP,          false, false, active,   99, Keep,   "artifact/a is active"),
        (SHOP,          false, false, empty,    99, Keep,   "artifact/a is empty"),
    ];
    for (name, sandbox, version, status, age, action, why) in cases {
        let it = image(name, "sha256:1", age);
        let mut images = Images::new(vec![if sandbox { held(it) } else { it }]);
        if let Some(status) = status { images.artifact("artifact/a", status) }
        if version { images.version("shop-1", None, Some("artifact/a")) }
        let found = judged(images, Duration::from_secs(24 * HOUR));
        assert_eq!(found[name], (action, why.to_owned()), "{name} {sandbox} {version} {status:?} {age}");
    }
}

#[test]
fn a_version_holds_the_image_that_it_names_by_tag_by_digest_or_by_artifact() {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let by_digest = format!("docker.io/other@{digest}");
    for (image_of_version, artifact) in [
        (Some(SHOP), None),
        (Some(by_digest.as_str()), None),
        (None, Some("artifact/a")),
    ] {
        let mut images = Images::new(vec![image(SHOP, &digest, 99)]);
        images.artifact("artifact/a", Status::Archived);
        images.version("v", image_of_version, artifact);
        let (action, _) = judged(images, Duration::ZERO)[SHOP].clone();
        assert_eq!(action, Action::Keep, "{image_of_version:?} {artifact:?}");
    }
}

#[test]
fn what_holds_one_name_of_a_content_holds_all() {
    let other = "docker.io/library/shop:1";
    let wanted = "cluster.local:5000/shop:b";
    for holder in [other, wanted] {
        let mut one = image(holder, "sha256:1", 99);
        if holder == other {
            one = held(one);
        }
        let mut images = Images::new(vec![image(SHOP, "sha256:1", 99), one]);
        images.artifact("artifact/a", Status::Archived);
        images.artifact("artifact/b", Status::Active);
        let found = judged(images, Duration::ZERO);
        let (action, why) = &found[SHOP];
        assert_eq!(*action, Action::Keep);
        assert!(
            why.ends_with(&format!("holds its content, as {holder}")),
            "{why}"
        );
    }
}

#[test]
fn a_name_by_digest_goes_with_the_artifacts_of_its_content_and_not_before() {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let alias = format!("cluster.local:5000/shop@{digest}");
    for (status, version, age, expected) in [
        (Some(Status::Archived), None, 0, "artifact/a is archived"),
        (
            Some(Status::Active),
            None,
            99,
            "artifact/a holds its content, as cluster.local:5000/shop:a",
        ),
        (
            Some(Status::Archived),
            Some(alias.as_str()),
            99,
            "version v holds its content, as {alias}",
        ),
        (None, None, 99, "no artifact that is wanted has its digest"),
    ] {
        let all = vec![image(SHOP, &digest, age), image(&alias, &digest, age)];
        let mut images = Images::new(all);
        if let Some(status) = status {
            images.artifact("a", status);
        }
        images.version("v", version, None);
        let found = judged(images, Duration::ZERO);
        let expected = expected.replace("{alias}", &alias);
        assert_eq!(found[&alias].1, expected, "{status:?} {version:?}");
        let actions = [found[SHOP].0, found[&alias].0];
        assert_eq!(actions[0], actions[1], "{status:?} {version:?}");
    }
}

#[test]
fn a_grace_of_zero_is_a_day() {
    for (age, action) in [(23, Action::Later), (25, Action::Delete)] {
        let images = Images::new(vec![image(SHOP, "sha256:1", age)]);
        assert_eq!(judged(images, Duration::ZERO)[SHOP].0, action, "{age}");
    }
    let images = Images::new(vec![image(SHOP, "sha256:1", 2)]);
    assert_eq!(
        judged(images, Duration::from_secs(HOUR))[SHOP].0,
        Action::Delete
    );
}

#[test]
fn content_is_freed_with_its_last_name() {
    let names = ["cluster.local:5000/shop:a", "cluster.local:5000/shop:c"];
    let stays = image("docker.io/library/kept:1", "sha256:2", 99);
    let mut images = Images::new(vec![
        image(names[0], "sha256:1", 99),
        image(names[1], "sha256:1", 99),
        image("cluster.local:5000/shop:d", "sha256:2", 99),
        stays,
    ]);
    for id in ["a", "c", "d"] {
        images.artifact(&format!("artifact/{id}"), Status::Archived);
    }
    let objects = images.judge(at(NOW), Duration::ZERO);
    let goes = objects.iter().filter(|it| it.action == Action::Delete);
    assert_eq!(goes.clone().count(), 3);
    assert_eq!(
        goes.map(|it| it.frees_bytes).sum::<u64>(),
        10,
        "once, and nothing for what another name keeps"
    );
}

proptest! {
    #[test]
    fn nothing_that_is_held_under_any_name_goes(
        images in proptest::collection::vec((0..6_u8, 0..4_u8, any::<bool>(), 0..60_u64), 0..12),
        archived in proptest::collection::vec(0..6_u8, 0..6),
        active in proptest::collection::vec(0..6_u8, 0..3),
        named in proptest::collection::vec(0..6_u8, 0..3),
    ) {
        let name = |it: u8| format!("cluster.local:5000/app:{it}");
        let mut by_name = BTreeMap::new();
        for (tag, digest, in_use, age) in images {
            let it = image(&name(tag), &format!("sha256:{digest}"), age);
            by_name.insert(name(tag), if in_use { held(it) } else { it });
        }
        let all: Vec<_> = by_name.into_values().collect();
        let mut facts = Images::new(all.clone());
        for it in &archived { facts.artifact(&format!("artifact/{it}"), Status::Archived) }
        for it in &active { facts.artifact(&format!("artifact/{it}"), Status::Active) }
        for it in &named { facts.version("v", Some(&name(*it)), None) }
        let wanted = |it: &Image| {
            let tag: u8 = it.name.rsplit(':').next().unwrap().parse().unwrap();
            !it.holders.is_empty() || active.contains(&tag) || named.contains(&tag)
        };
        let kept: BTreeSet<_> = all.iter().filter(|it| wanted(it)).map(|it| &it.digest).collect();
        for object in facts.judge(at(NOW), Duration::ZERO) {
            if kept.contains(&object.digest) {
                prop_assert_eq!(object.action, Action::Keep, "{}", object.name);
            } else {
                // What is not wanted goes, unless it is young and the catalog does not know it.
                let tag: u8 = object.name.rsplit(':').next().unwrap().parse().unwrap();
                let young = all.iter().any(|it| it.name == object.name && it.created >= at(NOW - 24 * HOUR));
                let later = young && !archived.contains(&tag);
                prop_assert_eq!(object.action, if later { Action::Later } else { Action::Delete });
            }
        }
    }
}

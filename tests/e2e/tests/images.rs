//! Images on their way to the node: every kind that must work, and every way in which one can be broken.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, import_image_request::Part, pull_image_response::Event};
use berth_e2e::{
    TestNode,
    images::{
        INDEX, ImageParts, LAYER, architecture, busybox_layer, digest, gzip, indexed, layer,
        multi_arch, nested, zstd,
    },
    logs,
    node::{eventually, succeed},
    registry::{Answer, Registry},
    specs::{shell, spec},
};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What is wrong, the archive, the name that is asked for, and what is told.
type Breakage = (&'static str, Vec<u8>, &'static str, (Code, &'static str));

const NAME: &str = "berth.local/app:1";
const DEADLINE: Duration = Duration::from_secs(20);

fn config() -> Value {
    json!({ "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"] })
}

/// Busybox with a file that names the image.
fn parts(text: &str) -> ImageParts {
    ImageParts::plain(&[busybox_layer(), layer(&[("srv/name", text)])], config())
}

/// The same with its layers stored in another form.
fn packed(text: &str, suffix: &str, pack: fn(&[u8]) -> Vec<u8>) -> ImageParts {
    let kind = format!("{LAYER}{suffix}");
    let tars = [busybox_layer(), layer(&[("srv/name", text)])];
    let layers = tars.map(|tar| (pack(&tar), kind.as_str(), tar));
    ImageParts::of(&layers, config(), architecture())
}

fn foreign(text: &str) -> ImageParts {
    let tar = layer(&[("srv/name", text)]);
    ImageParts::of(&[(tar.clone(), LAYER, tar)], config(), "vax")
}

fn layers_of(image: &ImageParts) -> Vec<String> {
    let manifest = image.manifest();
    let layers = manifest["layers"].as_array().expect("a list").iter();
    layers
        .map(|it| it["digest"].as_str().expect("a text").to_owned())
        .collect()
}

/// Runs the image and returns what it has in `/srv`: paths, and what is in them.
async fn content(node: &TestNode, id: &str, image: &str) -> anyhow::Result<String> {
    let line = "cd /srv; for it in * */*; do test -f $it && echo $it: $(cat $it); done; \
                echo end; exec sleep 3600";
    let mut app = shell("app", line, &[]);
    app.image = image.into();
    node.create(id, spec([app])).await?;
    let output = || logs::output(node, id, "app");
    let ended = || async { output().ends_with("end\n") };
    eventually("the files are told", DEADLINE, ended).await?;
    let told = output();
    node.delete(id).await?;
    Ok(told.trim_end_matches("end\n").to_owned())
}

/// What an import or a pull that fails must leave as it was.
#[derive(Debug, PartialEq)]
struct Kept {
    /// Name, digest and size of each.
    images: BTreeSet<String>,
    content: BTreeSet<String>,
    snapshots: BTreeSet<String>,
    leases: BTreeSet<String>,
    spooled: usize,
}

impl Kept {
    fn of(node: &TestNode) -> anyhow::Result<Self> {
        let lines = |arguments: &[&str]| -> anyhow::Result<BTreeSet<String>> {
            let text = succeed(node.command("ctr").args(arguments))?;
            Ok(text.lines().map(str::to_owned).collect())
        };
        let listed: Value = serde_json::from_str(&node.berth(&["images", "ls", "-o", "json"])?)?;
        let listed = listed["images"].as_array().context("a list")?.iter();
        Ok(Self {
            images: listed
                .map(|it| format!("{} {} {}", it["name"], it["digest"], it["sizeBytes"]))
                .collect(),
            content: lines(&["content", "ls", "-q"])?,
            snapshots: lines(&["snapshots", "ls"])?,
            leases: lines(&["leases", "ls"])?,
            spooled: std::fs::read_dir(node.home().join("state/spool")).map_or(0, |it| it.count()),
        })
    }
}

/// What a node has that has just started, when the manager has brought its own image.
async fn settled(node: &TestNode) -> anyhow::Result<Kept> {
    let rests =
        || async { Kept::of(node).is_ok_and(|it| it.images.len() == 2 && it.leases.len() == 1) };
    eventually("the pause image is here", DEADLINE, rests).await?;
    Kept::of(node)
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details
        .error_info()
        .map(|it| it.reason.clone())
        .unwrap_or_default()
}

fn ensure_refused(
    what: &str,
    outcome: Result<(), Status>,
    expected: (Code, &str),
) -> anyhow::Result<()> {
    let status = outcome
        .err()
        .with_context(|| format!("{what}: it must be refused"))?;
    let told = (status.code(), reason(&status));
    ensure!(
        (told.0, told.1.as_str()) == expected,
        "{what}: {told:?}, not {expected:?}: {status}"
    );
    Ok(())
}

async fn pull(node: &TestNode, image: &str) -> Result<v1::Image, Status> {
    let request = v1::PullImageRequest {
        image: image.to_owned(),
        credentials: None,
    };
    let mut events = node.images().pull_image(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        if let Some(Event::Image(image)) = event.event {
            return Ok(image);
        }
    }
    Err(Status::internal("the stream ended without an image"))
}

async fn remove(node: &TestNode, image: &str) -> Result<(), Status> {
    let request = v1::RemoveImageRequest {
        image: image.to_owned(),
    };
    node.images().remove_image(request).await.map(drop)
}

#[tokio::test]
async fn every_kind_of_archive_is_imported_and_its_files_are_those_of_the_image()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let before = settled(&node).await?;
    let whiteouts = |above: Vec<u8>| {
        let below = layer(&[
            ("srv/", ""),
            ("srv/name", "below"),
            ("srv/gone", "below"),
            ("srv/dir/", ""),
            ("srv/dir/old", "below"),
        ]);
        ImageParts::plain(&[busybox_layer(), below, above], config())
    };
    let file_whiteout = whiteouts(layer(&[("srv/.wh.gone", "")]));
    let opaque = whiteouts(layer(&[
        ("srv/dir/", ""),
        ("srv/dir/.wh..wh..opq", ""),
        ("srv/dir/new", "above"),
    ]));
    let own = parts("own");
    let both = multi_arch(&[("vax", &foreign("vax")), (architecture(), &own)]);
    let repeated = indexed(own.blobs.clone(), &vec![own.manifest.clone(); 10_000]);
    let tag = "app:saved";
    let saved = "docker.io/library/app:saved";
    let archives: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        (
            "an OCI layout",
            parts("plain").oci_archive(NAME),
            NAME,
            "name: plain\n",
        ),
        (
            "one in gzip",
            gzip(&parts("packed").oci_archive(NAME)),
            NAME,
            "name: packed\n",
        ),
        (
            "what docker saves",
            parts("saved").docker_archive(tag),
            saved,
            "name: saved\n",
        ),
        (
            "that in gzip",
            gzip(&parts("saved too").docker_archive(tag)),
            saved,
            "name: saved too\n",
        ),
        (
            "gzip layers",
            packed("gzip", "+gzip", gzip).oci_archive(NAME),
            NAME,
            "name: gzip\n",
        ),
        (
            "zstd layers",
            packed("zstd", "+zstd", zstd).oci_archive(NAME),
            NAME,
            "name: zstd\n",
        ),
        (
            "saved gzip layers",
            packed("a", "+gzip", gzip).docker_archive(tag),
            saved,
            "name: a\n",
        ),
        (
            "saved zstd layers",
            packed("b", "+zstd", zstd).docker_archive(tag),
            saved,
            "name: b\n",
        ),
        ("two platforms", both.oci_archive(NAME), NAME, "name: own\n"),
        (
            "4 nested indexes",
            nested(&parts("deep"), 4).oci_archive(NAME),
            NAME,
            "name: deep\n",
        ),
        (
            "10,000 times the same",
            repeated.oci_archive(NAME),
            NAME,
            "name: own\n",
        ),
        (
            "a removed file",
            file_whiteout.oci_archive(NAME),
            NAME,
            "name: below\ndir/old: below\n",
        ),
        (
            "an emptied folder",
            opaque.oci_archive(NAME),
            NAME,
            "gone: below\nname: below\ndir/new: above\n",
        ),
    ];
    for (what, archive, name, expected) in archives {
        let imported = node
            .import(&archive, "")
            .await
            .with_context(|| what.to_owned())?;
        let names: Vec<_> = imported.iter().map(|it| it.name.as_str()).collect();
        ensure!(names == [name], "{what}: {names:?}");
        let told = content(&node, "app", name)
            .await
            .with_context(|| what.to_owned())?;
        ensure!(told == expected, "{what}: {told}");
        remove(&node, name).await?;
        let after = Kept::of(&node)?;
        ensure!(after == before, "{what}: {after:#?}\nis not {before:#?}");
    }

    let image = parts("nameless");
    let nameless = image.oci_archive_with(&json!({ "manifests": [image.manifest] }));
    let imported = node.import(&nameless, "berth.local/named:2").await?;
    ensure!(imported[0].name == "berth.local/named:2" && imported[0].digest == image.digest());
    ensure!(content(&node, "app", "berth.local/named:2").await? == "name: nameless\n");
    // By digest it is found under any name of its repository.
    let by_digest = format!("berth.local/named@{}", image.digest());
    ensure!(content(&node, "app", &by_digest).await? == "name: nameless\n");
    for name in ["berth.local/named:2", by_digest.as_str()] {
        remove(&node, name).await?;
    }
    ensure!(Kept::of(&node)? == before, "all is gone with the last name");
    node.finish()
}

#[tokio::test]
async fn a_broken_archive_is_told_by_what_is_wrong_with_it_and_nothing_of_it_is_kept()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let before = settled(&node).await?;
    let own = parts("own");
    let layer_digest = layers_of(&own)[1].clone();
    let pair = |a: &ImageParts, b: &ImageParts| {
        let mut blobs = a.blobs.clone();
        blobs.extend(b.blobs.clone());
        indexed(blobs, &[]).oci_archive_with(&json!({ "manifests": [a.manifest, b.manifest] }))
    };

    let own_digest = digest(b"nobody can make an index that has its own digest in it");
    let entry = json!({ "mediaType": INDEX, "digest": own_digest, "size": 1 });
    let circle = json!({ "schemaVersion": 2, "manifests": [entry, entry] });
    let circle = ImageParts {
        blobs: [(own_digest, circle.to_string().into_bytes())].into(),
        manifest: entry,
    };
    let huge = " ".repeat(4 << 20);
    let huge_manifest = own
        .clone()
        .with_manifest(&format!("{}{huge}", own.manifest()));
    let huge_config = ImageParts::plain(&[layer(&[])], json!({ "Labels": { "x": huge } }));

    let (corrupt, invalid) = (
        (Code::DataLoss, "IMAGE_CORRUPT"),
        (Code::InvalidArgument, "ARCHIVE_INVALID"),
    );
    let garbage = packed("x", "+gzip", |_| b"this is no gzip".to_vec());
    let cut_layer = packed("x", "+gzip", |tar| gzip(tar)[..64].to_vec());
    let diff_ids = ImageParts::of(
        &[(layer(&[("a", "a")]), LAYER, layer(&[("b", "b")]))],
        config(),
        architecture(),
    );
    let mut no_layer = own.clone();
    no_layer.blobs.remove(&layer_digest);
    let flip = |bytes: &mut Vec<u8>| bytes[0] ^= 1;
    let manifest_digest = own.digest().to_owned();
    let whole = own.oci_archive(NAME);
    let saved = own.docker_archive("app:1");
    let packed_whole = gzip(&whole);
    let breakages: Vec<Breakage> = vec![
        (
            "an index that names itself",
            circle.oci_archive(NAME),
            "",
            corrupt,
        ),
        (
            "5 nested indexes",
            nested(&own, 5).oci_archive(NAME),
            "",
            corrupt,
        ),
        (
            "a huge manifest",
            huge_manifest.oci_archive(NAME),
            "",
            invalid,
        ),
        (
            "a huge configuration",
            huge_config.oci_archive(NAME),
            "",
            corrupt,
        ),
        (
            "a layer that is no gzip",
            garbage.oci_archive(NAME),
            "",
            corrupt,
        ),
        (
            "a layer that was cut",
            cut_layer.oci_archive(NAME),
            "",
            corrupt,
        ),
        (
            "a layer that is not its digest",
            own.clone().with_blob(&layer_digest, flip).oci_archive(NAME),
            "",
            corrupt,
        ),
        (
            "a manifest that is not its digest",
            own.clone()
                .with_blob(&manifest_digest, flip)
                .oci_archive(NAME),
            "",
            corrupt,
        ),
        (
            "a manifest that is none",
            own.clone().with_manifest("[1]").oci_archive(NAME),
            "",
            corrupt,
        ),
        (
            "a layer that is not its diff id",
            diff_ids.oci_archive(NAME),
            "",
            corrupt,
        ),
        (
            "a layer that is missing",
            no_layer.oci_archive(NAME),
            "",
            invalid,
        ),
        (
            "a platform that this is not",
            foreign("x").oci_archive(NAME),
            "",
            (Code::FailedPrecondition, "PLATFORM_MISSING"),
        ),
        (
            "half an archive",
            whole[..whole.len() / 2].to_vec(),
            "",
            invalid,
        ),
        (
            "half of what docker saves",
            saved[..saved.len() / 2].to_vec(),
            "",
            invalid,
        ),
        (
            "half an archive in gzip",
            packed_whole[..packed_whole.len() / 2].to_vec(),
            "",
            invalid,
        ),
        ("a text", b"this is no archive".to_vec(), "", invalid),
        ("a text in gzip", gzip(b"this is no archive"), "", invalid),
        (
            "a tar of something else",
            layer(&[("etc/passwd", "root")]),
            "",
            invalid,
        ),
        ("nothing", vec![], "", invalid),
        (
            "an image without a name",
            own.oci_archive_with(&json!({ "manifests": [own.manifest] })),
            "",
            invalid,
        ),
        (
            "a name that is none",
            own.oci_archive("NOT A NAME"),
            "",
            invalid,
        ),
        (
            "two images for one name",
            pair(&own, &parts("other")),
            NAME,
            invalid,
        ),
        (
            "a name that is none, asked for",
            whole.clone(),
            "NOT A NAME",
            (Code::InvalidArgument, "INVALID_FIELD"),
        ),
    ];
    for (what, archive, name, expected) in breakages {
        let outcome = node.import(&archive, name).await.map(drop);
        ensure_refused(what, outcome, expected)?;
        let after = Kept::of(&node)?;
        ensure!(after == before, "{what}: {after:#?}\nis not {before:#?}");
    }
    node.import(&whole, "").await?;
    ensure!(content(&node, "app", NAME).await? == "name: own\n");
    node.finish()
}

#[tokio::test]
async fn an_import_is_bounded_in_size_in_room_and_in_time() -> anyhow::Result<()> {
    let limits = "import.max_bytes = 8388608\nimport.idle_timeout = \"500ms\"\n";
    let node = TestNode::start_with(limits, &[]).await?;
    let before = settled(&node).await?;
    let zeros = vec![0; 16 << 20];
    let too_large = (Code::InvalidArgument, "ARCHIVE_TOO_LARGE");
    for (what, archive) in [
        ("the archive", zeros.clone()),
        ("what it unpacks to", gzip(&zeros)),
    ] {
        ensure_refused(what, node.import(&archive, "").await.map(drop), too_large)?;
        ensure!(Kept::of(&node)? == before, "{what}");
    }

    let part = |part| v1::ImportImageRequest { part: Some(part) };
    let header = part(Part::Header(v1::ImportImageHeader::default()));
    let send = async |parts: Vec<v1::ImportImageRequest>| {
        let stalled = futures::StreamExt::chain(tokio_stream::iter(parts), tokio_stream::pending());
        node.images().import_image(stalled).await.map(drop)
    };
    let begun = vec![header.clone(), part(Part::Chunk(b"begun".to_vec()))];
    let stalled = (Code::Aborted, "IMPORT_STALLED");
    ensure_refused("a silent caller", send(begun).await, stalled)?;
    ensure_refused("one that never begins", send(vec![]).await, stalled)?;
    for length in [0, (1 << 20) + 1, 5 << 20] {
        let parts = vec![header.clone(), part(Part::Chunk(vec![0; length]))];
        let invalid = (Code::InvalidArgument, "INVALID_FIELD");
        ensure_refused(&format!("a chunk of {length}"), send(parts).await, invalid)?;
    }
    ensure!(Kept::of(&node)? == before, "nothing is left of any of them");

    std::fs::write(
        node.home().join("extra.toml"),
        "import.reserve_bytes = 4611686018427387904\n",
    )?;
    node.kill_manager()?;
    node.up().await?;
    let outcome = node.import(&parts("app").oci_archive(NAME), "").await;
    let low = (Code::ResourceExhausted, "DISK_LOW");
    ensure_refused("no room but the reserve", outcome.map(drop), low)?;
    ensure!(settled(&node).await? == before, "nothing is left of it");
    node.finish()
}

#[tokio::test]
async fn images_come_from_a_registry_by_tag_and_by_digest_and_for_this_platform()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let registry = Registry::start().await?;
    let before = settled(&node).await?;
    let gzipped = packed("gzip", "+gzip", gzip);
    let both = multi_arch(&[("vax", &foreign("vax")), (architecture(), &gzipped)]);
    let by_digest = registry.name("team/plain", parts("plain").digest());
    registry.publish("team/plain", "1", &parts("plain"));
    for (name, expected) in [
        (registry.publish("app", "1", &parts("app")), "name: app\n"),
        (registry.publish("both", "1", &both), "name: gzip\n"),
        (by_digest, "name: plain\n"),
    ] {
        // Create pulls what the node does not have.
        ensure!(content(&node, "app", &name).await? == expected, "{name}");
        remove(&node, &name).await?;
        ensure!(Kept::of(&node)? == before, "{name}");
    }
    registry.want_tokens();
    let private = registry.publish("team/private", "1", &parts("private"));
    let pulled = pull(&node, &private).await?;
    ensure!(pulled.name == private && pulled.digest == parts("private").digest());
    ensure!(content(&node, "app", &private).await? == "name: private\n");
    let asked = registry.asked();
    let tokens = asked
        .iter()
        .filter(|it| it.starts_with("/token"))
        .collect::<Vec<_>>();
    ensure!(
        tokens.len() > 1,
        "a token that is used up is asked for again: {asked:?}"
    );
    let scope = "/token?scope=repository%3Ateam%2Fprivate%3Apull&service=test";
    ensure!(tokens.iter().all(|it| *it == scope), "{tokens:?}");
    node.finish()
}

#[tokio::test]
async fn a_registry_that_is_bad_is_told_from_an_image_that_is_and_nothing_is_kept()
-> anyhow::Result<()> {
    let node = TestNode::start_with("pull.tries = 2\npull.backoff = \"100ms\"\n", &[]).await?;
    let registry = Registry::start().await?;
    let before = settled(&node).await?;
    let image = parts("app");
    let own_digest = image.digest().to_owned();
    let manifest = image.blobs[&own_digest].clone();
    let huge = [&manifest[..], &vec![b' '; 4 << 20]].concat();
    let other = parts("other");
    let layer_digest = layers_of(&image)[1].clone();
    let layer_bytes = image.blobs[&layer_digest].clone();
    let mut flipped = layer_bytes.clone();
    flipped[0] ^= 1;
    let not_found = (Code::NotFound, "IMAGE_NOT_FOUND");
    let unreachable = (Code::Unavailable, "REGISTRY_UNREACHABLE");
    let busy = (Code::Unavailable, "REGISTRY_BUSY");
    let denied = (Code::PermissionDenied, "REGISTRY_DENIED");
    let corrupt = (Code::DataLoss, "IMAGE_CORRUPT");
    // What the registry gives for the manifest, in a repository each.
    let manifests = [
        (
            "unknown",
            Answer::Status(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
            not_found,
        ),
        ("unauthorized", Answer::Status(401, ""), denied),
        ("forbidden", Answer::Status(403, "go away"), denied),
        ("failing", Answer::Status(500, "oops"), unreachable),
        ("busy", Answer::Status(429, ""), busy),
        ("cut", Answer::Cut(manifest), unreachable),
        ("web-page", Answer::Bytes(b"<html>".to_vec()), corrupt),
        ("huge", Answer::Bytes(huge), corrupt),
        ("endless", Answer::Endless, corrupt),
    ];
    // What it gives for a layer.
    let layers = [
        ("layer-unknown", Answer::Status(404, ""), not_found),
        ("layer-failing", Answer::Status(503, ""), unreachable),
        ("layer-cut", Answer::Cut(layer_bytes.clone()), unreachable),
        (
            "layer-short",
            Answer::Bytes(layer_bytes[1..].to_vec()),
            corrupt,
        ),
        ("layer-changed", Answer::Bytes(flipped), corrupt),
        ("layer-endless", Answer::Endless, corrupt),
    ];
    let mut cases = vec![];
    for (repository, answer, expected) in manifests {
        let name = registry.publish(repository, "1", &image);
        registry.answer(&format!("{repository}/manifests/1"), answer);
        cases.push((name, expected));
    }
    for (repository, answer, expected) in layers {
        let name = registry.publish(repository, "1", &image);
        registry.answer(&format!("{repository}/blobs/{layer_digest}"), answer);
        cases.push((name, expected));
    }
    registry.publish("wrong-digest", "1", &image);
    let exchanged = Answer::Bytes(other.blobs[other.digest()].clone());
    registry.answer(&format!("wrong-digest/manifests/{own_digest}"), exchanged);
    cases.push((registry.name("wrong-digest", &own_digest), corrupt));
    let vax = registry.publish("vax", "1", &multi_arch(&[("vax", &foreign("vax"))]));
    cases.push((vax, (Code::FailedPrecondition, "PLATFORM_MISSING")));
    let down = Registry::start().await?;
    let name = down.publish("app", "1", &image);
    down.stop().await;
    cases.push((name, unreachable));
    for (name, expected) in cases {
        ensure_refused(&name, pull(&node, &name).await.map(drop), expected)?;
        ensure!(Kept::of(&node)? == before, "{name}");
    }

    // A Create tells the same, and is undone.
    let mut missing = shell("app", "true", &[]);
    missing.image = registry.name("app", "missing");
    let created = node.create("app", spec([missing])).await.map(drop);
    ensure_refused("a Create", created, not_found)?;
    ensure!(Kept::of(&node)? == before, "nothing is left of the Create");
    node.finish()
}

#[tokio::test]
async fn an_image_in_use_stays_and_one_that_others_removed_is_pulled_again() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let registry = Registry::start().await?;
    let before = settled(&node).await?;
    let name = registry.publish("app", "1", &parts("app"));
    let mut app = shell("app", "exec sleep 3600", &[]);
    app.image.clone_from(&name);
    let asked_for = spec([app]);
    node.create("app", asked_for.clone()).await?;
    let in_use = (Code::FailedPrecondition, "IMAGE_IN_USE");
    ensure_refused("an image in use", remove(&node, &name).await, in_use)?;
    node.delete("app").await?;

    // By hand, behind the manager's back: the name, and then the content under a name that stays.
    succeed(node.command("ctr").args(["images", "rm", "--sync", &name]))?;
    ensure!(
        Kept::of(&node)? == before,
        "it is gone, and the manager says so"
    );
    node.create("app", asked_for.clone()).await?;
    node.delete("app").await?;
    let whole = Kept::of(&node)?;
    let config = parts("app").manifest()["config"]["digest"].clone();
    let config = config.as_str().context("a digest")?;
    succeed(node.command("ctr").args(["content", "rm", config]))?;
    let images: Value = serde_json::from_str(&node.berth(&["images", "ls", "-o", "json"])?)?;
    let images = images["images"].as_array().context("a list")?;
    let torn = images.iter().find(|it| it["name"] == name.as_str());
    let size = &torn.context("it has its name")?["sizeBytes"];
    ensure!(size.is_null() || size == "0", "it is not complete: {size}");
    node.create("app", asked_for.clone()).await?;
    node.delete("app").await?;
    ensure!(
        Kept::of(&node)?.content == whole.content,
        "it is complete again"
    );

    // Whichever comes first: a sandbox that was told to be RUNNING has its image, and none fails for want of it.
    for _ in 0..10 {
        let (created, removed) =
            tokio::join!(node.create("app", asked_for.clone()), remove(&node, &name));
        created.context("the registry has the image")?;
        match removed {
            Ok(()) => {}
            Err(status) => ensure!(
                matches!(reason(&status).as_str(), "IMAGE_IN_USE" | "IMAGE_NOT_FOUND"),
                "{status}"
            ),
        }
        let listed = node.berth(&["images", "ls", "-o", "json"])?;
        ensure!(
            listed.contains(&name),
            "{name} is used, and not in {listed}"
        );
        node.delete("app").await?;
    }

    // A name that comes to stand for something else takes nothing from whom it was used by.
    node.create("app", asked_for.clone()).await?;
    registry.publish("app", "1", &parts("other"));
    let pulled = pull(&node, &name).await?;
    ensure!(pulled.digest == parts("other").digest(), "{pulled:?}");
    let own: BTreeSet<_> = parts("app").blobs.into_keys().collect();
    let collected = || -> anyhow::Result<BTreeSet<String>> {
        succeed(node.command("ctr").args(["leases", "create", "--id", "gc"]))?;
        succeed(node.command("ctr").args(["leases", "rm", "--sync", "gc"]))?;
        Ok(Kept::of(&node)?.content)
    };
    ensure!(collected()?.is_superset(&own), "it is used, and whole");
    node.delete("app").await?;
    let others: BTreeSet<_> = parts("other").blobs.into_keys().collect();
    let left = collected()?;
    ensure!(
        own.difference(&others).all(|it| !left.contains(it)),
        "nobody uses it: {left:?}"
    );
    remove(&node, &name).await?;
    ensure!(Kept::of(&node)? == before, "nothing is left");
    node.finish()
}

#[tokio::test]
async fn what_a_pull_found_on_the_node_stays_when_the_image_that_brought_it_goes()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let registry = Registry::start().await?;
    let shared = layer(&[("srv/name", "shared")]);
    let first = ImageParts::plain(&[busybox_layer(), shared.clone()], config());
    let first = registry.publish("first", "1", &first);
    let own = layer(&[("srv/own", "own")]);
    let second = ImageParts::plain(&[busybox_layer(), shared.clone(), own.clone()], config());
    let name = registry.publish("second", "1", &second);
    let slow = format!("second/blobs/{}", digest(&own));
    registry.answer(&slow, Answer::Held(own));
    pull(&node, &first).await?;

    let request = v1::PullImageRequest {
        image: name.clone(),
        credentials: None,
    };
    let mut events = node.images().pull_image(request).await?.into_inner();
    let mut found = false;
    while !found {
        let event = events.message().await?.context("the pull goes on")?;
        if let Some(Event::Progress(progress)) = event.event {
            let here = |it: &v1::LayerProgress| {
                it.digest == digest(&shared) && it.current_bytes == it.total_bytes
            };
            found = progress.layers.iter().any(here);
        }
    }
    remove(&node, &first).await?;
    registry.release();
    let mut pulled = None;
    while let Some(event) = events.message().await? {
        if let Some(Event::Image(image)) = event.event {
            pulled = Some(image.name);
        }
    }
    ensure!(pulled.as_ref() == Some(&name), "{pulled:?}");
    ensure!(content(&node, "app", &name).await? == "name: shared\nown: own\n");
    node.finish()
}

#[tokio::test]
async fn a_pull_that_a_kill_cuts_off_is_in_the_audit_and_gone_after_the_next_start()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let registry = Registry::start().await?;
    let before = settled(&node).await?;
    let image = parts("app");
    let name = registry.publish("app", "1", &image);
    let slow = layers_of(&image)[1].clone();
    let bytes = image.blobs[&slow].clone();
    registry.answer(&format!("app/blobs/{slow}"), Answer::Held(bytes));

    let request = v1::PullImageRequest {
        image: name.clone(),
        credentials: None,
    };
    let mut events = node.images().pull_image(request).await?.into_inner();
    let mut busybox_is_here = false;
    while !busybox_is_here {
        let event = events.message().await?.context("the pull goes on")?;
        if let Some(Event::Progress(progress)) = event.event {
            let here = |it: &v1::LayerProgress| {
                it.digest == layers_of(&image)[0] && it.current_bytes == it.total_bytes
            };
            busybox_is_here = progress.layers.iter().any(here);
        }
    }
    let instance = std::fs::read_to_string(node.home().join("instance"))?;
    let prefix = format!("berth-import.{}.", instance.trim());
    let audit = node.audit().await?;
    let leases: Vec<_> = audit.objects.iter().map(|it| &it.name).collect();
    ensure!(
        audit.clean && leases.len() == 1 && leases[0].starts_with(&prefix),
        "{audit:#?}"
    );
    let lease = &audit.objects[0];
    ensure!(
        lease.kind == "lease" && lease.verdict() == v1::AuditVerdict::InProgress,
        "{lease:?}"
    );
    let lease = lease.name.clone();
    node.kill_manager()?;
    let cut = succeed(node.command("ctr").args(["leases", "ls"]))?;
    ensure!(cut.contains(&lease), "{cut}");

    node.up().await?;
    let gone = || async { Kept::of(&node).is_ok_and(|it| it == before) };
    if eventually("what was cut off is gone", DEADLINE, gone)
        .await
        .is_err()
    {
        anyhow::bail!("{before:#?} became {:#?}", Kept::of(&node)?);
    }
    let active = succeed(node.command("ctr").args(["content", "active"]))?;
    ensure!(active.lines().count() <= 1, "{active}");
    let audit = node.audit().await?;
    ensure!(audit.clean && audit.objects.is_empty(), "{audit:#?}");
    registry.release();
    ensure!(content(&node, "app", &name).await? == "name: app\n");
    node.finish()
}

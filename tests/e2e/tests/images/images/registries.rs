//! Images from a registry, a good one and a bad one.

use super::*;

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

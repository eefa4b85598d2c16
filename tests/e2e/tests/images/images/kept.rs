//! What stays on the node, and what goes with what nobody wants any more.

use super::*;

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

//! Pulls that several wait for, credentials, proxies and mirrors on a real node, and images as archives.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, pull_image_response::Event};
use berth_e2e::{
    TestNode,
    images::{ImageParts, architecture, busybox_layer, digest, layer, multi_arch},
    node::{eventually, succeed},
    private_registry::{PASSWORD, PrivateRegistry, USER},
    registry::{Answer, Registry},
    specs::{shell, spec},
};
use serde_json::{Value, json};
use tonic::Status;
use tonic_types::StatusExt as _;

const DEADLINE: Duration = Duration::from_secs(30);

fn parts(text: &str) -> ImageParts {
    let config = json!({ "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"] });
    ImageParts::plain(&[busybox_layer(), layer(&[("srv/name", text)])], config)
}

fn layers_of(image: &ImageParts) -> Vec<String> {
    let manifest = image.manifest();
    let layers = manifest["layers"].as_array().expect("a list").iter();
    layers
        .map(|it| it["digest"].as_str().expect("a text").to_owned())
        .collect()
}

fn sleeper(image: &str) -> v1::SandboxSpec {
    let mut app = shell("app", "exec sleep 3600", &[]);
    app.image = image.into();
    spec([app])
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details
        .error_info()
        .map(|it| it.reason.clone())
        .unwrap_or_default()
}

async fn pull(
    node: &TestNode,
    image: &str,
    credentials: Option<v1::RegistryCredentials>,
) -> Result<v1::Image, Status> {
    let request = v1::PullImageRequest {
        image: image.to_owned(),
        credentials,
    };
    let mut events = node.images().pull_image(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        if let Some(Event::Image(image)) = event.event {
            return Ok(image);
        }
    }
    Err(Status::internal("the stream ended without an image"))
}

fn password(password: &str) -> Option<v1::RegistryCredentials> {
    Some(v1::RegistryCredentials {
        username: USER.into(),
        password: password.into(),
        token: String::new(),
    })
}

async fn remove(node: &TestNode, image: &str) -> Result<(), Status> {
    let image = image.to_owned();
    let request = v1::RemoveImageRequest { image };
    node.images().remove_image(request).await.map(drop)
}

/// All that containerd has of images.
fn kept(node: &TestNode) -> anyhow::Result<BTreeSet<String>> {
    let mut kept = BTreeSet::new();
    for arguments in [
        &["images", "ls", "-q"][..],
        &["content", "ls", "-q"],
        &["content", "active"],
        &["snapshots", "ls"],
        &["leases", "ls"],
    ] {
        let text = succeed(node.command("ctr").args(arguments))?;
        kept.extend(text.lines().map(|it| format!("{}: {it}", arguments[0])));
    }
    Ok(kept)
}

/// What a node has that has just started, when the manager has brought its own image.
async fn settled(node: &TestNode) -> anyhow::Result<BTreeSet<String>> {
    let rests = || async {
        let count = |kind| kept(node).map(|it| it.iter().filter(|it| it.starts_with(kind)).count());
        // The pause image and busybox, and no lease but the heading.
        count("images: ").is_ok_and(|it| it == 2) && count("leases: ").is_ok_and(|it| it == 1)
    };
    eventually("the pause image is here", DEADLINE, rests).await?;
    kept(node)
}

async fn ensure_kept(node: &TestNode, before: &BTreeSet<String>, what: &str) -> anyhow::Result<()> {
    let same = || async { kept(node).is_ok_and(|it| it == *before) };
    if eventually(what, DEADLINE, same).await.is_err() {
        let left: Vec<_> = kept(node)?.difference(before).cloned().collect();
        anyhow::bail!("{what}: {left:#?} is left");
    }
    Ok(())
}

/// Files below a folder with a text in them.
fn files_with(folder: &Path, text: &str) -> anyhow::Result<String> {
    let mut grep = std::process::Command::new("grep");
    grep.args([
        "-rlaF",
        "--devices=skip",
        "--exclude=credentials.json",
        text,
    ])
    .arg(folder);
    Ok(String::from_utf8_lossy(&grep.output()?.stdout).into_owned())
}

#[tokio::test]
async fn many_who_ask_for_one_private_image_get_it_by_one_download_and_nobody_writes_the_password_down()
-> anyhow::Result<()> {
    let registry = PrivateRegistry::start().await?;
    let image = parts("private");
    let name = registry.push(&image.oci_archive("private:1"), "team/private")?;
    let home = TestNode::new_home()?;
    let file = home.path().join("credentials.json");
    fs::write(&file, "{}")?;
    let settings = format!("pull.credentials_file = \"{}\"\n", file.display());
    let node = TestNode::start_in(home, &settings, &[]).await?;
    let before = settled(&node).await?;

    for credentials in [None, password("rice")] {
        let told = pull(&node, &name, credentials).await.err();
        let told = told.context("it is private")?;
        ensure!(reason(&told) == "REGISTRY_DENIED", "{told:?}");
        ensure!(!format!("{told:?}").contains("rice"), "{told:?}");
        ensure_kept(&node, &before, "what was denied").await?;
    }
    let pulled = pull(&node, &name, password(PASSWORD)).await?;
    ensure!(pulled.digest == image.digest(), "{pulled:?}");
    remove(&node, &name).await?;
    ensure_kept(&node, &before, "what was removed").await?;
    let told = pull(&node, &name, None).await.err();
    ensure!(told.is_some(), "the password of a request is not kept");

    fs::write(&file, "{ mended later")?;
    let told = pull(&node, &name, None).await.err().context("no file")?;
    ensure!(reason(&told) == "CREDENTIALS_UNREADABLE", "{told:?}");
    registry.credentials(&file)?;
    let given = |digest: &str| registry.given(&format!("/v2/team/private/blobs/{digest}"));
    let config = image.manifest()["config"]["digest"].clone();
    let config = config.as_str().context("a digest")?.to_owned();
    // The layer below is on the node already.
    let blobs = [layers_of(&image)[1].clone(), config];
    let earlier: Vec<usize> = blobs.iter().map(|it| given(it)).collect::<Result<_, _>>()?;
    let creates = (0..20).map(|number| {
        let (node, name) = (&node, &name);
        async move { node.create(&format!("app-{number}"), sleeper(name)).await }
    });
    let (created, pulled) =
        tokio::join!(futures::future::join_all(creates), pull(&node, &name, None));
    pulled?;
    for created in created {
        created?;
    }
    for (blob, earlier) in blobs.iter().zip(earlier) {
        let times = given(blob)? - earlier;
        ensure!(times == 1, "{blob} was given {times} times");
    }
    for number in 0..20 {
        node.delete(&format!("app-{number}")).await?;
    }
    remove(&node, &name).await?;
    ensure_kept(&node, &before, "all of it").await?;
    for secret in [PASSWORD, "bWU6b3BlbiBzZXNhbWU", "rice"] {
        let files = files_with(node.home(), secret)?;
        ensure!(files.is_empty(), "{secret} is in {files}");
    }
    node.finish()
}

#[tokio::test]
async fn a_download_ends_with_the_last_who_waits_for_it_and_is_no_failure() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let registry = Registry::start().await?;
    let before = settled(&node).await?;
    let image = parts("app");
    let name = registry.publish("app", "1", &image);
    let slow = layers_of(&image)[1].clone();
    let path = format!("app/blobs/{slow}");
    registry.answer(&path, Answer::Held(image.blobs[&slow].clone()));

    let request = v1::PullImageRequest {
        image: name.clone(),
        credentials: None,
    };
    let mut events = node.images().pull_image(request).await?.into_inner();
    node.accept("app", sleeper(&name)).await?;
    let asked = || async { registry.asked().iter().any(|it| it.ends_with(&path)) };
    eventually("the layer is asked for", DEADLINE, asked).await?;
    let shows = || async {
        let sandbox = node.get("app").await.unwrap_or_default();
        sandbox.running_steps.iter().any(|it| it.ends_with(" MiB"))
    };
    eventually("the Create shows how far it is", DEADLINE, shows).await?;
    let first = events.message().await?.context("so does the pull")?;
    ensure!(matches!(first.event, Some(Event::Progress(_))), "{first:?}");
    drop(events);
    let goes_on =
        |it: &BTreeSet<String>| it.iter().any(|it| it.starts_with("leases: berth-import"));
    ensure!(goes_on(&kept(&node)?), "the Create still waits");
    node.stop("app").await?;
    let ended = || async { kept(&node).is_ok_and(|it| !goes_on(&it)) };
    eventually("nobody waits", DEADLINE, ended).await?;
    let told = node.berth(&["logs", "app"])?;
    ensure!(told.contains("being created"), "{told}");
    ensure!(
        !told.contains("hint") && !told.contains("registry"),
        "{told}"
    );
    node.delete("app").await?;
    ensure_kept(&node, &before, "a pull that ended").await?;
    let layers = registry
        .asked()
        .iter()
        .filter(|it| it.ends_with(&path))
        .count();
    ensure!(layers == 1, "{layers} asked for it");
    node.finish()
}

#[tokio::test]
async fn an_image_goes_out_and_comes_back_under_the_same_digests() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let registry = Registry::start().await?;
    let before = settled(&node).await?;
    let foreign = ImageParts::of(
        &[(
            layer(&[("a", "b")]),
            "application/vnd.oci.image.layer.v1.tar",
            layer(&[("a", "b")]),
        )],
        json!({}),
        "vax",
    );
    let plain = parts("plain");
    let both = multi_arch(&[("vax", &foreign), (architecture(), &plain)]);
    for (repository, image) in [("plain", &plain), ("both", &both)] {
        let name = registry.publish(repository, "1", image);
        let pulled = pull(&node, &name, None).await?;
        let with = kept(&node)?;
        let file = node.home().join("exported.tar");
        let file = file.to_str().context("a text")?;
        let told = node.berth(&["images", "export", &name, "-f", file, "-o", "json"])?;
        let told: Value = serde_json::from_str(&told)?;
        ensure!(told["bytes"] == fs::metadata(file)?.len(), "{told}");
        remove(&node, &name).await?;
        ensure_kept(&node, &before, "an image that was exported").await?;
        node.berth(&["images", "import", file])?;
        ensure_kept(&node, &with, "what came back").await?;
        let listed = node.berth(&["images", "ls", "-o", "json"])?;
        ensure!(listed.contains(&pulled.digest), "{listed}");
        node.create("app", sleeper(&name)).await?;
        node.delete("app").await?;
        // Others read it too.
        let mut skopeo = std::process::Command::new("skopeo");
        skopeo
            .arg("inspect")
            .arg("--raw")
            .arg(format!("oci-archive:{file}"));
        let raw = succeed(skopeo)?;
        ensure!(digest(raw.as_bytes()) == pulled.digest, "{raw}");

        let lost = &layers_of(&plain)[1];
        succeed(node.command("ctr").args(["content", "rm", lost]))?;
        let request = v1::ExportImageRequest {
            image: name.clone(),
        };
        let mut archive = node.images().export_image(request).await?.into_inner();
        let told = archive.message().await.err().context("it is torn")?;
        ensure!(reason(&told) == "IMAGE_INCOMPLETE", "{told:?}");
        remove(&node, &name).await?;
        ensure_kept(&node, &before, "a torn image").await?;
    }
    node.finish()
}

#[tokio::test]
async fn the_registry_of_the_cluster_is_hinted_at_and_found_by_a_setting_a_mirror_or_a_proxy()
-> anyhow::Result<()> {
    let node = TestNode::start_with("pull.tries = 1\n", &[]).await?;
    let registry = Registry::start().await?;
    let image = parts("app");
    let local = registry.publish("team/app", "1", &image);
    let address = local.split_once('/').context("a name")?.0;
    let name = "cluster.local/team/app:1";
    let none = [
        ("HTTP_PROXY", ""),
        ("http_proxy", ""),
        ("NO_PROXY", ""),
        ("no_proxy", ""),
    ];
    let restart = async |settings: &str, environment: &[(&str, &str)]| {
        fs::write(node.home().join("extra.toml"), settings)?;
        node.kill_manager()?;
        node.up_with(environment).await
    };
    restart(
        "pull.tries = 1\npull.cluster_registry = \"127.0.0.1:1\"\n",
        &none,
    )
    .await?;
    let told = node.create("app", sleeper(name)).await.err();
    let told = told.context("nobody is there")?;
    ensure!(reason(&told) == "REGISTRY_UNREACHABLE", "{told:?}");
    let logs = node.berth(&["logs", "app"])?;
    ensure!(
        logs.contains("hint: cluster.local is the registry of the cluster"),
        "{logs}"
    );

    let by_setting = format!("pull.cluster_registry = \"{address}\"\n");
    // It has the image, but for a layer of the right size.
    let liar = Registry::start().await?;
    let lies = liar.publish("team/app", "1", &image);
    let lies = lies.split_once('/').context("a name")?.0;
    let own = layers_of(&image).pop().context("a layer")?;
    let wrong = vec![0; image.blobs[&own].len()];
    let own = format!("team/app/blobs/{own}");
    liar.answer(&own, Answer::Bytes(wrong));
    let by_mirror = format!(
        "pull.registries.\"cluster.local:5000\".mirrors = [\"http://127.0.0.1:1\", \"http://{lies}\", \"http://{address}\"]\n"
    );
    let proxy = format!("http://{address}");
    let proxied = [
        ("HTTP_PROXY", proxy.as_str()),
        ("http_proxy", ""),
        ("NO_PROXY", ""),
        ("no_proxy", ""),
    ];
    for (settings, environment) in [
        (&by_setting, &none),
        (&by_mirror, &none),
        (&String::new(), &proxied),
    ] {
        restart(settings, environment).await?;
        let pulled = pull(&node, name, None).await?;
        ensure!(
            pulled.name == name && pulled.digest == image.digest(),
            "{pulled:?}"
        );
        remove(&node, name).await?;
    }
    ensure!(
        liar.asked().contains(&format!("/v2/{own}")),
        "{:?}",
        liar.asked()
    );
    let asked = registry.asked();
    let by_proxy = "http://cluster.local:5000/v2/team/app/manifests/1";
    ensure!(asked.iter().any(|it| it == by_proxy), "{asked:?}");
    node.finish()
}

//! Collection of images and blobs by real workers, against a real manager and a real containerd.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use berth_api::v1::{
    self,
    ArtifactStatus::{Active, Archived},
    GcVerdict,
    entry::Object,
};
use berth_e2e::{
    TestNode,
    collectors::{
        DEADLINE, Registry, Worker, latest, put, put_artifact, settled, shared_by, slices,
    },
    images::{ImageParts, busybox_layer, layer},
    node::{eventually, obtained, succeed},
    specs::{shell, spec},
};
use serde_json::json;

const SHOP: &str = "cluster.local:5000/shop";

fn archive(text: &str) -> Vec<u8> {
    let layers = [busybox_layer(), layer(&[("srv/name", text)])];
    ImageParts::plain(&layers, json!({ "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"] })).oci_archive("")
}

async fn names(node: &TestNode) -> anyhow::Result<BTreeSet<String>> {
    let listed = node.images().list_images(v1::ListImagesRequest {}).await?;
    let images = listed.into_inner().images;
    Ok(images.into_iter().map(|it| it.name).collect())
}

async fn running(node: &TestNode, id: &str, image: &str) -> anyhow::Result<()> {
    let mut app = shell("app", "exec sleep 3600", &[]);
    app.image = image.into();
    node.create(id, spec([app])).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_images_go_and_what_is_used_under_any_name_stays() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let worker = Worker::start(&node, "gc-1", "")?;
    settled(&node).await?;
    for (text, tag) in [
        ("a", "a"),
        ("b", "b"),
        ("c", "c"),
        ("c", "c2"),
        ("d", "d"),
        ("e", "e"),
        ("v", "v"),
    ] {
        node.import(&archive(text), &format!("{SHOP}:{tag}"))
            .await?;
    }
    node.import(&archive("f"), "docker.io/library/foreign:1")
        .await?;
    // The same content as `c` under a foreign name.
    node.import(&archive("c"), "docker.io/library/other:1")
        .await?;
    for tag in ["a", "b", "c", "c2", "v"] {
        put_artifact(&node, &format!("artifact/{tag}"), Archived, vec![]).await?;
    }
    put_artifact(&node, "artifact/d", Active, vec![]).await?;
    let version = v1::Version {
        id: "shop-9".into(),
        app: "shop".into(),
        artifact: "artifact/v".into(),
        ..v1::Version::default()
    };
    put(&node, Object::Version(version)).await?;
    running(&node, "by-tag", &format!("{SHOP}:b")).await?;
    running(&node, "by-other", "docker.io/library/other:1").await?;
    let before = names(&node).await?;

    let told = node.berth(&["gc", "plan", "--images", "--gc-address", &worker.address])?;
    ensure!(told.contains("artifact/a is archived"), "{told}");
    ensure!(told.contains("1 would go"), "{told}");
    let words = node.berth(&[
        "explain",
        "image",
        &format!("{SHOP}:a"),
        "--gc-address",
        &worker.address,
    ])?;
    ensure!(words.contains("goes with the next run"), "{words}");
    // Without an address the worker is found by what the manager knows.
    let words = node.berth(&["explain", "image", &format!("{SHOP}:c")])?;
    ensure!(
        words.contains("It stays: sandbox by-other holds it."),
        "{words}"
    );
    let young = node.berth(&["explain", "image", &format!("{SHOP}:e")])?;
    ensure!(young.contains("can go from"), "{young}");

    let ran = node.berth(&["gc", "run", "--images", "-o", "json"])?;
    let ran: serde_json::Value = serde_json::from_str(&ran)?;
    let run = &ran["collections"][0];
    assert_eq!(run["deleted"], json!([format!("{SHOP}:a")]));
    assert_eq!(run["failedTotal"], "0", "{run}");
    let gone = before
        .difference(&names(&node).await?)
        .cloned()
        .collect::<Vec<_>>();
    assert_eq!(gone, [format!("{SHOP}:a")]);

    // What was let go goes in the next run, with all its names.
    node.delete("by-other").await?;
    let run = worker.run(true, 0).await?;
    assert_eq!(run.deleted, [format!("{SHOP}:c"), format!("{SHOP}:c2")]);
    running(&node, "once-more", "docker.io/library/other:1").await?;
    let workers = node.berth(&["gc", "workers"])?;
    ensure!(workers.contains("gc-1"), "{workers}");
    let runs = node.berth(&["gc", "ls"])?;
    ensure!(runs.contains("requested"), "{runs}");
    drop(worker);
    let words = node.berth(&["explain", "image", &format!("{SHOP}:e")])?;
    ensure!(words.contains("no worker of image-gc answers"), "{words}");
    for id in ["by-tag", "once-more"] {
        node.delete(id).await?;
    }
    node.finish()
}

/// How many of the blobs are in the slices of each worker.
async fn shares(
    node: &TestNode,
    workers: &[&Worker],
    digests: &[String],
) -> anyhow::Result<Vec<usize>> {
    let count = |slices: &BTreeSet<String>| {
        let of_it = |it: &&String| {
            let byte = u8::from_str_radix(&it[7..9], 16).unwrap_or(0);
            slices.contains(&format!("image-gc/blobs/{:02}", byte / 4))
        };
        digests.iter().filter(of_it).count()
    };
    Ok(slices(node, workers).await?.iter().map(count).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_workers_share_3000_blobs_and_one_that_is_killed_leaves_nothing() -> anyhow::Result<()>
{
    const BLOBS: usize = 3000;
    let node = TestNode::start().await?;
    for tree in [false, true] {
        let registry = Registry::new(node.home().join(format!("blobs-{tree}")), tree)?;
        // Long enough that no run but those of the test takes the tombstones.
        let toml = format!(
            "blob_dir = {:?}\nblob_layout = {}\ntombstone_grace = \"3s\"\nlease_time = \"5s\"",
            registry.root,
            registry.layout()
        );
        let one = Worker::start(&node, "gc-1", &toml)?;
        let mut two = Worker::start(&node, "gc-2", &toml)?;
        let three = Worker::start(&node, "gc-3", &toml)?;
        shared_by(&node, &[&one, &two, &three]).await?;
        settled(&node).await?;
        let first = latest(&node).await?.first().map_or(0, |it| it.id);
        let digests = (0..BLOBS)
            .map(|it| registry.write(format!("blob {tree} {it}").as_bytes()))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let kept = registry.write(b"kept")?;
        put_artifact(&node, "artifact/kept", Active, vec![kept.clone()]).await?;
        let workers = [&one, &two, &three];
        // One that a busy disk held up has lost its slices for a moment.
        let shares = || shares(&node, &workers, &digests);
        let shares = obtained("each has its slices", DEADLINE, shares).await?;
        ensure!(
            shares.iter().all(|it| (800..=1200).contains(it)),
            "{shares:?} of {BLOBS}"
        );
        let run = one.run(false, 0).await?;
        assert_eq!(
            (run.objects_total, run.retained_total),
            (3001, 3001),
            "{run:?}"
        );
        ensure!(digests.iter().all(|it| !registry.has(it)), "a path is left");

        // The run for the tombstones begins by itself; one is killed when a part of it is done.
        let reaping = || async {
            latest(&node).await.is_ok_and(|runs| {
                runs.iter()
                    .any(|it| it.id > run.id && !it.slices_done.is_empty())
            })
        };
        eventually("the tombstones are taken", DEADLINE, reaping).await?;
        two.kill()?;
        let all = || async {
            let (runs, files) = (latest(&node).await?, registry.files()?.len());
            ensure!(runs.iter().all(|it| it.ended_at.is_some()), "{runs:?}");
            ensure!(files == 1 + usize::from(tree), "{files} files, {runs:?}");
            Ok(())
        };
        // Each is claimed, committed and removed durably, and other tests use the disk.
        obtained("all are gone", DEADLINE * 5, all).await?;
        let runs = latest(&node).await?;
        let runs = runs.iter().filter(|it| it.id > first);
        let deleted: u64 = runs.clone().map(|it| it.deleted_total).sum();
        assert_eq!(deleted, BLOBS as u64, "each once");
        let failed: u64 = runs.map(|it| it.failed_total).sum();
        assert_eq!(failed, 0);
        ensure!(registry.has(&kept), "what is needed stays");
        shared_by(&node, &[&one, &three]).await?;
        drop((one, three));
    }
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_loses_its_slices_and_comes_back_anew() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let one = Worker::start(&node, "gc-1", "")?;
    let two = Worker::start(&node, "gc-2", "")?;
    shared_by(&node, &[&one, &two]).await?;
    settled(&node).await?;
    two.signal("-STOP")?;
    shared_by(&node, &[&one]).await?;
    let registry = Registry::new(node.home().join("blobs"), false)?;
    let digests = (0..100)
        .map(|it| registry.write(format!("blob {it}").as_bytes()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let run = one.run(false, 0).await?;
    assert_eq!(run.slices_done.len(), 64);
    two.signal("-CONT")?;
    shared_by(&node, &[&one, &two]).await?;
    let gone = || async { registry.files().is_ok_and(|it| it.is_empty()) };
    eventually("all are gone", DEADLINE, gone).await?;
    let deleted: u64 = latest(&node).await?.iter().map(|it| it.deleted_total).sum();
    assert_eq!(deleted, digests.len() as u64);
    drop((one, two));
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_needed_again_is_named_back_at_once() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    for tree in [false, true] {
        let registry = Registry::new(node.home().join(format!("blobs-{tree}")), tree)?;
        let toml = format!(
            "blob_dir = {:?}\nblob_layout = {}\ntombstone_grace = \"1h\"",
            registry.root,
            registry.layout()
        );
        let worker = Worker::start(&node, "gc-1", &toml)?;
        shared_by(&node, &[&worker]).await?;
        settled(&node).await?;
        // Of its own, so that the entries of one directory hold nothing of the other.
        let layer = registry.write(format!("layer {tree}").as_bytes())?;
        let manifest = registry.write(
            json!({ "layers": [{ "digest": layer }] })
                .to_string()
                .as_bytes(),
        )?;
        let index = registry.write(
            json!({ "manifests": [{ "digest": manifest }] })
                .to_string()
                .as_bytes(),
        )?;
        let other = registry.write(format!("other {tree}").as_bytes())?;
        let all = [&layer, &manifest, &index, &other];
        worker.run(false, 0).await?;
        ensure!(all.iter().all(|it| !registry.has(it)), "a path is left");
        let plan = worker
            .plan(v1::ImageGcServicePlanRequest {
                blobs: true,
                ..Default::default()
            })
            .await?;
        ensure!(
            plan.iter().all(|it| it.verdict() == GcVerdict::Tombstone),
            "{plan:?}"
        );
        // The catalog names the index alone: what it covers comes back with it.
        put_artifact(
            &node,
            &format!("artifact/{tree}"),
            Active,
            vec![index.clone()],
        )
        .await?;
        let back = || async {
            [&layer, &manifest, &index]
                .iter()
                .all(|it| registry.has(it))
        };
        eventually("they are back", DEADLINE, back).await?;
        ensure!(!registry.has(&other), "nothing needs the other one");
        drop(worker);
    }
    node.finish()
}

/// Waits until a worker tells of something wrong.
async fn alarmed(worker: &Worker, what: &str) -> anyhow::Result<()> {
    let told = || async {
        let status = worker.status().await;
        status.is_ok_and(|it| it.alarms.iter().any(|it| it.contains(what)))
    };
    eventually(&format!("an alarm on {what}"), DEADLINE, told).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_cannot_be_read_nothing_is_deleted_and_the_reason_is_told() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let registry = Registry::new(node.home().join("blobs"), false)?;
    let worker = Worker::start(&node, "gc-1", "")?;
    shared_by(&node, &[&worker]).await?;
    settled(&node).await?;
    let unneeded = registry.write(b"unneeded")?;
    let manifest = registry.write(b"{\"layers\":[]}")?;
    put_artifact(&node, "artifact/a", Active, vec![manifest.clone()]).await?;
    std::fs::write(registry.path(&manifest), "cut")?;
    let run = worker.run(false, 0).await?;
    ensure!(run.aborted.contains(&manifest), "{}", run.aborted);
    assert_eq!((run.deleted_total, registry.has(&unneeded)), (0, true));
    alarmed(&worker, &manifest).await?;
    let refused = worker.plan(v1::ImageGcServicePlanRequest::default()).await;
    let refused = refused.err().context("it is refused")?.to_string();
    ensure!(refused.contains(&manifest), "{refused}");

    // A directory that is none.
    std::fs::rename(&registry.root, node.home().join("aside"))?;
    std::fs::write(&registry.root, "")?;
    let run = worker.run(false, 0).await?;
    ensure!(
        run.aborted.contains("blobs cannot be read"),
        "{}",
        run.aborted
    );
    std::fs::remove_file(&registry.root)?;
    let run = worker.run(false, 0).await?;
    assert_eq!(
        (run.aborted.as_str(), run.objects_total),
        ("", 0),
        "what is missing is empty"
    );
    std::fs::rename(node.home().join("aside"), &registry.root)?;

    node.kill_manager()?;
    let away = || async { worker.status().await.is_ok_and(|it| !it.manager_reachable) };
    eventually("the worker says that it is alone", DEADLINE, away).await?;
    alarmed(&worker, "nothing is collected").await?;
    let refused = worker.run(false, 0).await.err().context("it is refused")?;
    ensure!(
        refused.to_string().contains("the manager is not reachable"),
        "{refused}"
    );
    node.up().await?;
    shared_by(&node, &[&worker]).await?;
    registry.write(b"{\"layers\":[]}")?;
    worker.run(false, 0).await?;
    let gone = || async { registry.files().is_ok_and(|it| it.len() == 1) };
    eventually("what is unneeded is gone", DEADLINE, gone).await?;
    ensure!(registry.has(&manifest), "what is needed stays");
    drop(worker);
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_another_managers_or_of_a_blank_catalog_is_left_alone()
-> anyhow::Result<()> {
    let node = TestNode::start().await?;
    for tree in [false, true] {
        let registry = Registry::new(node.home().join(format!("blobs-{tree}")), tree)?;
        let toml = format!(
            "blob_dir = {:?}\nblob_layout = {}\ntombstone_grace = \"1h\"",
            registry.root,
            registry.layout()
        );
        let unneeded = registry.write(b"unneeded")?;
        let worker = Worker::start(&node, "gc-1", &toml)?;
        shared_by(&node, &[&worker]).await?;
        if !tree {
            let run = worker.run(false, 0).await?;
            ensure!(
                run.aborted.contains("neither an artifact nor a version"),
                "{run:?}"
            );
            alarmed(&worker, "neither an artifact nor a version").await?;
            ensure!(!registry.authority().exists(), "it is nobody's yet");
        }
        std::fs::write(registry.authority(), "instance i of node other\n")?;
        settled(&node).await?;
        let run = worker.run(false, 0).await?;
        ensure!(run.aborted.contains("instance i of node other"), "{run:?}");
        alarmed(&worker, "instance i of node other").await?;
        let refused = worker.plan(v1::ImageGcServicePlanRequest::default()).await;
        let refused = refused.err().context("it is refused")?.to_string();
        ensure!(refused.contains("instance i of node other"), "{refused}");
        ensure!(registry.has(&unneeded), "it was not this manager's");

        std::fs::remove_file(registry.authority())?;
        let run = worker.run(false, 0).await?;
        assert_eq!(run.aborted, "");
        ensure!(!registry.has(&unneeded), "it goes");
        let owner = std::fs::read_to_string(registry.authority())?;
        ensure!(owner.starts_with("instance "), "{owner}");
        // The directory stays this manager's when it has been started anew.
        node.kill_manager()?;
        node.up().await?;
        shared_by(&node, &[&worker]).await?;
        assert_eq!(worker.run(false, 0).await?.aborted, "");
    }
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_late_worker_has_buried_is_named_back_though_the_catalog_rests() -> anyhow::Result<()>
{
    let node = TestNode::start().await?;
    let registry = Registry::new(node.home().join("blobs"), false)?;
    let worker = Worker::start(&node, "gc-1", "tombstone_grace = \"2s\"")?;
    shared_by(&node, &[&worker]).await?;
    settled(&node).await?;
    let needed = registry.write(b"needed")?;
    put_artifact(&node, "artifact/a", Active, vec![needed.clone()]).await?;
    worker.run(false, 0).await?;
    ensure!(registry.has(&needed), "what is needed stays");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let tombstone = format!(".gc-tombstone.{needed}.1.{}", now.as_secs());
    std::fs::rename(registry.path(&needed), registry.root.join(tombstone))?;
    let back = || async { registry.has(&needed) };
    eventually("it is back", DEADLINE, back).await?;
    drop(worker);
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_anywhere_leaves_what_the_next_run_ends() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let registry = Registry::new(node.home().join("blobs"), true)?;
    let toml = "blob_layout = \"distribution\"";
    for point in [
        "blob-claimed",
        "links-buried",
        "blob-buried",
        "tombstone-claimed",
        "blob-committed",
        "report",
        "image-claimed",
        "image-committed",
    ] {
        let image = format!("{SHOP}:{point}");
        {
            let mut worker = Worker::start_with(
                &node,
                "gc-1",
                toml,
                &[("BERTH_CRASH_AT", &format!("image-gc/{point}"))],
            )?;
            if point != "report" {
                shared_by(&node, &[&worker]).await?;
                // The first of all begins with runs of the schedule, that find nothing.
                settled(&node).await?;
            }
            registry.write(format!("blob {point}").as_bytes())?;
            node.import(&archive(point), &image).await?;
            put_artifact(&node, &format!("artifact/{point}"), Archived, vec![]).await?;
            let asked = worker.run(point.starts_with("image"), 0).await;
            let ended = || {
                let ended = worker.has_ended();
                async move { ended }
            };
            eventually(&format!("it dies at {point}: {asked:?}"), DEADLINE, ended).await?;
        }
        let worker = Worker::start(&node, "gc-1", toml)?;
        shared_by(&node, &[&worker]).await?;
        worker.run(true, 0).await?;
        worker.run(false, 0).await?;
        let ended = || async {
            registry.files().is_ok_and(|it| it.is_empty())
                && names(&node).await.is_ok_and(|it| !it.contains(&image))
                && latest(&node)
                    .await
                    .is_ok_and(|it| it.iter().all(|it| it.ended_at.is_some()))
        };
        eventually(&format!("all ends well after {point}"), DEADLINE, ended).await?;
        let runs = latest(&node).await?;
        ensure!(
            runs.iter().all(|it| it.failed.is_empty()),
            "{point}: {runs:?}"
        );
    }
    node.finish()
}

/// A file system of its own, in a file.
struct Disk<'a> {
    node: &'a TestNode,
}

impl<'a> Disk<'a> {
    fn mounted(node: &'a TestNode) -> anyhow::Result<Self> {
        let (file, path) = (node.home().join("disk.img"), node.home().join("disk"));
        std::fs::create_dir_all(&path)?;
        std::fs::File::create(&file)?.set_len(2 << 30)?;
        let mut format = Command::new("mkfs.ext4");
        succeed(
            format
                .args(["-q", "-m", "0", "-E", "lazy_itable_init=1"])
                .arg(&file),
        )?;
        succeed(
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(&file)
                .arg(&path),
        )?;
        Ok(Self { node })
    }

    fn path(&self) -> PathBuf {
        self.node.home().join("disk")
    }

    /// In bytes: what is used, and all.
    fn usage(&self) -> anyhow::Result<(u64, u64)> {
        let it = rustix::fs::statvfs(self.path())?;
        let used = it.f_blocks - it.f_bfree;
        Ok((used * it.f_frsize, (used + it.f_bavail) * it.f_frsize))
    }

    /// Makes blobs of 16 MiB until the disk is filled to `percent`, each younger than the one before.
    fn fill(&self, registry: &Registry, percent: u64) -> anyhow::Result<Vec<String>> {
        let mut digests = Vec::new();
        let begin = SystemTime::now() - Duration::from_secs(100_000);
        loop {
            let (used, all) = self.usage()?;
            if used * 100 > all * percent {
                return Ok(digests);
            }
            let number = digests.len() as u64;
            let digest = registry.write(number.to_string().as_bytes())?;
            let file = std::fs::File::options()
                .append(true)
                .open(registry.path(&digest))?;
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, BLOB)?;
            registry.made(&digest, begin + Duration::from_secs(number))?;
            digests.push(digest);
        }
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .output();
    }
}

const BLOB: u64 = 16 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_freed_down_to_the_low_mark_oldest_first() -> anyhow::Result<()> {
    let node = TestNode::start().await?;
    let disk = Disk::mounted(&node)?;
    let registry = Registry::new(disk.path().join("blobs"), false)?;
    let toml = format!(
        "data_path = {:?}\nblob_dir = {:?}\ndisk_pressure_threshold = 80\ndisk_low_mark = 70\n\
         pressure_check_interval = \"1s\"",
        disk.path(),
        registry.root
    );
    let worker = Worker::start(&node, "gc-1", &toml)?;
    shared_by(&node, &[&worker]).await?;
    settled(&node).await?;
    let digests = disk.fill(&registry, 85)?;
    let (_, all) = disk.usage()?;
    let low = all * 70 / 100;
    let freed = || async { disk.usage().is_ok_and(|(used, _)| used <= low) };
    eventually("the disk is freed", DEADLINE, freed).await?;
    let over = || async {
        latest(&node)
            .await
            .is_ok_and(|it| it.iter().all(|it| it.ended_at.is_some()))
    };
    eventually("the run is over", DEADLINE, over).await?;
    let (used, _) = disk.usage()?;
    ensure!(used + BLOB > low, "{used} is further than {low}");
    let stay = digests
        .iter()
        .position(|it| registry.has(it))
        .context("some stay")?;
    ensure!(
        stay > 0 && digests[stay..].iter().all(|it| registry.has(it)),
        "the oldest go first"
    );
    let runs = latest(&node).await?;
    let pressure = runs
        .iter()
        .find(|it| it.cause() == v1::CollectionCause::Pressure);
    ensure!(pressure.is_some_and(|it| it.goal_bytes > 0), "{runs:?}");

    // Everything in use: nothing goes, and that is told with what holds the room.
    let more = disk.fill(&registry, 85)?;
    let held: Vec<_> = digests[stay..].iter().chain(&more).cloned().collect();
    for (number, blobs) in held.chunks(512).enumerate() {
        put_artifact(&node, &format!("artifact/{number}"), Active, blobs.to_vec()).await?;
    }
    drop(worker);
    let worker = Worker::start(&node, "gc-1", &toml)?;
    let alarmed = || async {
        let status = worker.status().await;
        status.is_ok_and(|it| it.alarms.iter().any(|it| it.contains("of its goal")))
    };
    eventually("the alarm is raised", DEADLINE, alarmed).await?;
    let runs = latest(&node).await?;
    let missed = runs
        .iter()
        .find(|it| it.goal_missed_bytes > 0)
        .context("a missed goal")?;
    ensure!(
        missed.deleted_total == 0 && missed.largest_held.len() == 10,
        "{missed:?}"
    );
    ensure!(
        held.iter().all(|it| registry.has(it)),
        "something in use is gone"
    );
    drop(worker);
    drop(disk);
    node.finish()
}

//! Archives: every kind that must work, and every way in which one can be broken.

use super::*;

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

    let mut largest = parts("app").oci_archive(NAME);
    largest.resize(8 << 20, 0);
    node.import(&largest, "").await?;
    node.berth(&["images", "rm", NAME])?;
    ensure!(settled(&node).await? == before, "nothing is left of it");
    largest.push(0);
    let refused = node.import(&largest, "").await.map(drop);
    ensure_refused("one byte more", refused, too_large)?;

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

/// Whoever else uses containerd may have brought in what an import of Berth refuses.
#[tokio::test]
async fn a_manifest_of_others_has_at_most_the_bytes_of_a_document() -> anyhow::Result<()> {
    const MOST: usize = 4 << 20;
    let node = TestNode::start().await?;
    let before = settled(&node).await?;
    let own = parts("own");
    let bare = own.manifest().to_string();
    let bring_in = |name: &str, length: usize| {
        let padding = " ".repeat(length - bare.len());
        let image = own.clone().with_manifest(&format!("{bare}{padding}"));
        let archive = node.home().join("archive.tar");
        std::fs::write(&archive, image.oci_archive(name))?;
        succeed(node.command("ctr").args(["images", "import"]).arg(&archive))
    };
    bring_in("berth.local/edge:1", MOST)?;
    bring_in("berth.local/beyond:1", MOST + 1)?;
    ensure!(content(&node, "app", "berth.local/edge:1").await? == "name: own\n");
    let mut app = shell("app", "exec sleep 3600", &[]);
    app.image = "berth.local/beyond:1".into();
    let refused = node.create("beyond", spec([app])).await.map(drop);
    ensure_refused("beyond", refused, (Code::DataLoss, "IMAGE_CORRUPT"))?;
    for name in ["berth.local/edge:1", "berth.local/beyond:1"] {
        remove(&node, name).await?;
    }
    ensure!(settled(&node).await? == before, "nothing is left of them");
    node.finish()
}

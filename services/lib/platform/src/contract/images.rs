//! Images as archives.

use std::path::{Path, PathBuf};

use berth_domain::ImageRef;
use tokio::sync::{mpsc, watch};

use super::{Subject, missing_image};
use crate::{ImageError, Images};

pub async fn an_image_that_is_exported_is_imported_as_it_was<R: Images>(
    runtime: &R,
    subject: &Subject,
) {
    let (progress, _) = watch::channel(vec![]);
    let ensured = runtime.ensure(&subject.image, &progress).await.unwrap();
    let file = archive_file();
    export(runtime, &subject.image, &file).await.unwrap();
    let own_name = runtime.import(&file, None, false).await.unwrap();
    let names: Vec<_> = own_name.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, [ensured.name.as_str()], "under the name that it had");
    assert_eq!(own_name[0].digest, ensured.digest);

    let other = ImageRef::parse("berth.test/contract/exported:1").unwrap();
    let imported = runtime.import(&file, Some(&other), false).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(imported[0].name, other.to_string());
    runtime.remove_image(&other).await.unwrap();

    // A reader that goes away ends it.
    let (archive, parts) = mpsc::channel(1);
    drop(parts);
    runtime.export(&subject.image, archive).await.unwrap();
}

pub async fn an_image_that_is_not_there_is_not_exported<R: Images>(runtime: &R) {
    let image = missing_image();
    let outcome = export(runtime, &image, &archive_file()).await;
    match outcome {
        Err(ImageError::NotFound { image: named, .. }) => assert_eq!(named, image.to_string()),
        other => panic!("exporting an image that is missing gives {other:?}"),
    }
}

async fn export<R: Images>(runtime: &R, image: &ImageRef, file: &Path) -> Result<(), ImageError> {
    let (archive, mut parts) = mpsc::channel::<Vec<u8>>(1);
    let writing = async {
        let mut bytes = vec![];
        while let Some(part) = parts.recv().await {
            bytes.extend(part);
        }
        bytes
    };
    let (exported, bytes) = tokio::join!(runtime.export(image, archive), writing);
    exported?;
    std::fs::write(file, bytes).unwrap();
    Ok(())
}

fn archive_file() -> PathBuf {
    std::env::temp_dir().join(format!("berth-contract-export-{}", std::process::id()))
}

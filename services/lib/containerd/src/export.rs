//! An image as an archive: an OCI image layout with all that this node has of it, blob by blob, under the same digests.

use std::collections::BTreeMap;

use berth_platform::ImageError;
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    client::{CallError, Client},
    content,
    oci::{self, Descriptor, Index, corrupt, document},
    unpack::platform_missing,
    walk::Walk,
};

const BLOCK: usize = 512;

/// Everything of an image, in the order in which the archive has it.
#[derive(Debug)]
pub(crate) struct Contents {
    documents: Vec<(Descriptor, Vec<u8>)>,
    /// By digest, each once, however many layers have it.
    blobs: BTreeMap<String, u64>,
}

/// Looks for all that an image has on this node, and holds it. Refused where something is missing that an image for this
/// machine needs; of an index, what is for other machines is left out.
pub(crate) async fn contents(
    client: &Client,
    image: &str,
    target: &Descriptor,
) -> Result<Contents, ImageError> {
    let mut found = Contents {
        documents: vec![],
        blobs: BTreeMap::new(),
    };
    let missing = |digest: &str| ImageError::Incomplete {
        image: image.to_owned(),
        digest: digest.to_owned(),
    };
    let mut walk = Walk::new(image, target);
    let (mut first_missing, mut has_manifest) = (None, false);
    while let Some(next) = walk.next() {
        content::hold(client, "content", &next.digest).await?;
        let Some(bytes) = content::read(client, image, &next.digest).await? else {
            first_missing.get_or_insert(next.digest);
            continue;
        };
        if next.is_index() {
            let index: Index = document(image, &next, &bytes)?;
            walk.enter(&index.candidates())?;
        } else {
            let manifest = oci::manifest(image, &next, &bytes)?;
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                content::hold(client, "content", &blob.digest).await?;
                let size = content::size(client, &blob.digest).await?;
                let size = size.ok_or_else(|| missing(&blob.digest))?;
                found.blobs.insert(blob.digest.clone(), size);
            }
            has_manifest = true;
        }
        found.documents.push((next, bytes));
    }
    match first_missing {
        _ if has_manifest => Ok(found),
        Some(digest) => Err(missing(&digest)),
        None => Err(platform_missing(image)),
    }
}

/// Sends the archive; ends early, as a success, when nobody reads.
pub(crate) async fn send(
    client: &Client,
    image: &str,
    target: &Descriptor,
    contents: Contents,
    archive: &mpsc::Sender<Vec<u8>>,
) -> Result<(), ImageError> {
    let mut top = target.clone();
    top.annotations = [("io.containerd.image.name".to_owned(), image.to_owned())].into();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": oci::OCI_INDEX,
        "manifests": [top],
    });
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
    let mut files = vec![
        ("oci-layout".to_owned(), layout),
        ("index.json".to_owned(), index.to_string().into_bytes()),
    ];
    for (descriptor, bytes) in contents.documents {
        files.push((path(&descriptor.digest), bytes));
    }
    for (name, bytes) in files {
        let mut entry = header(image, &name, bytes.len() as u64)?;
        let padding = padding(bytes.len() as u64);
        entry.extend(bytes);
        entry.resize(entry.len() + padding, 0);
        if archive.send(entry).await.is_err() {
            return Ok(());
        }
    }
    for (digest, size) in contents.blobs {
        if !send_blob(client, image, &digest, size, archive).await? {
            return Ok(());
        }
    }
    // Two empty blocks end an archive. Who has gone does not miss them.
    let _ = archive.send(vec![0; 2 * BLOCK]).await;
    Ok(())
}

/// Whether somebody still reads.
async fn send_blob(
    client: &Client,
    image: &str,
    digest: &str,
    size: u64,
    archive: &mpsc::Sender<Vec<u8>>,
) -> Result<bool, ImageError> {
    if archive
        .send(header(image, &path(digest), size)?)
        .await
        .is_err()
    {
        return Ok(false);
    }
    let failed = |status| CallError {
        operation: "reading content",
        status,
    };
    let mut parts = content::open(client, digest).await.map_err(failed)?;
    let mut left = size;
    while let Some(part) = parts.message().await.map_err(failed)? {
        let length = part.data.len() as u64;
        if length > left {
            break;
        }
        left -= length;
        if archive.send(part.data).await.is_err() {
            return Ok(false);
        }
    }
    if left > 0 {
        let what = format!("{digest} does not have its {size} bytes");
        return Err(corrupt(image, what));
    }
    let padding = vec![0; padding(size)];
    Ok(padding.is_empty() || archive.send(padding).await.is_ok())
}

fn path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn header(image: &str, name: &str, size: u64) -> Result<Vec<u8>, ImageError> {
    let mut header = tar::Header::new_ustar();
    // A digest is short enough for any header.
    let set = header.set_path(name);
    set.map_err(|error| corrupt(image, format!("{name}: {error}")))?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(header.as_bytes().to_vec())
}

/// Bytes that fill the last block.
fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    (BLOCK - over) % BLOCK
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn entries_of_any_length_are_read_as_tar_reads_them() {
        let mut archive = vec![];
        let sizes = [0, 1, 511, 512, 513, 1024];
        let digest = |size: usize| oci::digest(&vec![7; size]);
        for size in sizes {
            archive.extend(header("app", &path(&digest(size)), size as u64).unwrap());
            archive.extend(vec![7; size]);
            archive.extend(vec![0; padding(size as u64)]);
        }
        archive.extend([0; 2 * BLOCK]);
        let mut read = tar::Archive::new(&archive[..]);
        let mut seen = vec![];
        for entry in read.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = vec![];
            entry.read_to_end(&mut bytes).unwrap();
            assert_eq!(name, path(&digest(bytes.len())));
            seen.push(bytes.len());
        }
        assert_eq!(seen, sizes);
    }
}

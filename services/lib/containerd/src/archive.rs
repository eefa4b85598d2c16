//! Image archives: an OCI image layout or what `docker save` writes, as one tar, plain or gzip. Everything comes out as
//! blobs by digest and the images that stand on them; a broken archive is told by what is wrong with it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use berth_platform::{ArchiveLimits, ImageError};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::oci::{self, Descriptor, Index, Manifest};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Links to links lead nowhere useful.
const LINKS_MAX: usize = 8;
/// Files in an archive. An image has a few per layer.
const ENTRIES_MAX: usize = 1 << 16;
/// The largest header that only tells of the next entry, as a long name. Such headers are read into memory.
const EXTENSION_MAX: u64 = 64 << 10;

/// An archive whose content is known by place.
#[derive(Debug)]
pub(crate) struct Archive {
    file: File,
    entries: BTreeMap<String, Entry>,
    /// Manifests that the archive does not have as files.
    made: BTreeMap<String, Vec<u8>>,
    /// Where blobs lie that are not under `blobs/`.
    places: BTreeMap<String, String>,
    /// What lies at a path, for paths that are named more than once.
    digested: BTreeMap<String, Descriptor>,
    pub(crate) images: Vec<ArchiveImage>,
    /// A plain copy of a compressed archive, which goes with this.
    _plain: Option<Scratch>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ArchiveImage {
    /// As the archive says.
    pub(crate) names: Vec<String>,
    pub(crate) target: Descriptor,
}

#[derive(Clone, Debug)]
enum Entry {
    File { start: u64, size: u64 },
    Link(String),
}

#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

fn invalid(what: impl Into<String>) -> ImageError {
    ImageError::ArchiveInvalid { what: what.into() }
}

fn node(operation: &'static str) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Node {
        operation,
        source: source.into(),
    }
}

impl Archive {
    /// Opens and indexes an archive. A compressed one is unpacked beside it, within `limits`. Blocks.
    pub(crate) fn open(path: &Path, limits: ArchiveLimits) -> Result<Self, ImageError> {
        let mut file = File::open(path).map_err(node("opening the archive"))?;
        let mut magic = [0; 2];
        let compressed = file.read_exact(&mut magic).is_ok() && magic == GZIP;
        file.rewind().map_err(node("reading the archive"))?;
        let mut plain = None;
        if compressed {
            let copy = path.with_extension("plain");
            let scratch = Scratch(copy.clone());
            let mut out = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&copy)
                .map_err(node("unpacking the archive"))?;
            decompress(file, &mut out, limits)?;
            file = out;
            plain = Some(scratch);
        }
        let entries = index(&mut file)?;
        let mut archive = Self {
            file,
            entries,
            made: BTreeMap::new(),
            places: BTreeMap::new(),
            digested: BTreeMap::new(),
            images: vec![],
            _plain: plain,
        };
        archive.images = if archive.entries.contains_key("index.json") {
            archive.layout_images()?
        } else if archive.entries.contains_key("manifest.json") {
            archive.saved_images()?
        } else {
            return Err(invalid("it has neither index.json nor manifest.json"));
        };
        if archive.images.is_empty() {
            return Err(invalid("it has no image"));
        }
        Ok(archive)
    }

    fn layout_images(&mut self) -> Result<Vec<ArchiveImage>, ImageError> {
        let index: Index = self.json("index.json")?;
        let named = index
            .manifests
            .into_iter()
            .filter(|it| it.is_index() || it.is_manifest());
        let mut images: Vec<ArchiveImage> = vec![];
        for mut target in named {
            let name = [
                "io.containerd.image.name",
                "org.opencontainers.image.ref.name",
            ]
            .iter()
            .find_map(|key| target.annotations.get(*key))
            .cloned();
            target.annotations.clear();
            target.platform = None;
            match images
                .iter_mut()
                .find(|it| it.target.digest == target.digest)
            {
                Some(image) => image.names.extend(name),
                None => images.push(ArchiveImage {
                    names: name.into_iter().collect(),
                    target,
                }),
            }
        }
        // A `docker save` of today is both, and only the older part has the tags.
        if images.iter().all(|it| it.names.is_empty()) && self.entries.contains_key("manifest.json")
        {
            return self.saved_images();
        }
        Ok(images)
    }

    fn saved_images(&mut self) -> Result<Vec<ArchiveImage>, ImageError> {
        let saved: Vec<Saved> = self.json("manifest.json")?;
        let mut images = vec![];
        for it in saved {
            if it.layers.len() > oci::LAYERS_MAX {
                let layers = it.layers.len();
                return Err(invalid(format!(
                    "an image has {layers} layers, the limit is {}",
                    oci::LAYERS_MAX
                )));
            }
            let config = self.digested(&it.config, oci::OCI_CONFIG)?;
            let mut layers = vec![];
            for path in &it.layers {
                layers.push(self.digested(path, oci::OCI_LAYER)?);
            }
            let manifest = Manifest {
                schema_version: 2,
                media_type: oci::OCI_MANIFEST.into(),
                config,
                layers,
            };
            let bytes = serde_json::to_vec(&manifest).map_err(|it| invalid(it.to_string()))?;
            let target = Descriptor {
                media_type: oci::OCI_MANIFEST.into(),
                digest: oci::digest(&bytes),
                size: bytes.len() as u64,
                ..Descriptor::default()
            };
            self.made.insert(target.digest.clone(), bytes);
            images.push(ArchiveImage {
                names: it.repo_tags.unwrap_or_default(),
                target,
            });
        }
        Ok(images)
    }

    /// Describes a file that the archive names by path. Its compression is read from its first bytes.
    fn digested(&mut self, path: &str, media_type: &str) -> Result<Descriptor, ImageError> {
        if let Some(known) = self.digested.get(path) {
            return Ok(known.clone());
        }
        let (start, size) = self.place(path)?;
        let mut reader = self.reader(start, size)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut magic = None;
        loop {
            let length = reader
                .read(&mut buffer)
                .map_err(node("reading the archive"))?;
            if length == 0 {
                break;
            }
            magic.get_or_insert_with(|| buffer[..length.min(4)].to_vec());
            hash.update(&buffer[..length]);
        }
        let magic = magic.unwrap_or_default();
        let suffix = match media_type {
            oci::OCI_LAYER if magic.starts_with(&GZIP) => "+gzip",
            oci::OCI_LAYER if magic.starts_with(&ZSTD) => "+zstd",
            _ => "",
        };
        let digest = oci::digest_text(hash);
        self.places.insert(digest.clone(), path.to_owned());
        let descriptor = Descriptor {
            media_type: format!("{media_type}{suffix}"),
            digest,
            size,
            ..Descriptor::default()
        };
        self.digested.insert(path.to_owned(), descriptor.clone());
        Ok(descriptor)
    }

    /// Whether the archive has this blob.
    pub(crate) fn has(&self, digest: &str) -> bool {
        self.made.contains_key(digest) || self.blob_place(digest).is_ok()
    }

    /// Reads a document. Blocks.
    pub(crate) fn document(&mut self, blob: &Descriptor) -> Result<Vec<u8>, ImageError> {
        if let Some(bytes) = self.made.get(&blob.digest) {
            return Ok(bytes.clone());
        }
        let (start, size) = self.blob_place(&blob.digest)?;
        if size > oci::DOCUMENT_MAX {
            return Err(invalid(format!(
                "{} is too large for a document",
                blob.digest
            )));
        }
        let mut bytes = Vec::new();
        self.reader(start, size)?
            .read_to_end(&mut bytes)
            .map_err(node("reading the archive"))?;
        Ok(bytes)
    }

    /// Hands over a blob in parts until `take` has enough. Blocks.
    pub(crate) fn stream(
        &mut self,
        digest: &str,
        mut take: impl FnMut(Vec<u8>) -> bool,
    ) -> Result<(), ImageError> {
        let (start, size) = self.blob_place(digest)?;
        let mut reader = self.reader(start, size)?;
        loop {
            let mut part = vec![0; 512 << 10];
            let length = reader
                .read(&mut part)
                .map_err(node("reading the archive"))?;
            part.truncate(length);
            if length == 0 || !take(part) {
                return Ok(());
            }
        }
    }

    fn json<T: serde::de::DeserializeOwned>(&mut self, path: &str) -> Result<T, ImageError> {
        let (start, size) = self.place(path)?;
        if size > oci::DOCUMENT_MAX {
            return Err(invalid(format!("{path} is too large")));
        }
        let reader = self.reader(start, size)?;
        serde_json::from_reader(reader).map_err(|error| invalid(format!("{path}: {error}")))
    }

    fn reader(&mut self, start: u64, size: u64) -> Result<io::Take<&mut File>, ImageError> {
        self.file
            .seek(SeekFrom::Start(start))
            .map_err(node("reading the archive"))?;
        Ok((&mut self.file).take(size))
    }

    fn blob_place(&self, digest: &str) -> Result<(u64, u64), ImageError> {
        if let Some(path) = self.places.get(digest) {
            return self.place(path);
        }
        if !oci::is_digest(digest) {
            return Err(invalid(format!("`{digest}` is not a digest")));
        }
        self.place(&format!("blobs/{}", digest.replacen(':', "/", 1)))
            .map_err(|_| invalid(format!("it does not have {digest}")))
    }

    fn place(&self, path: &str) -> Result<(u64, u64), ImageError> {
        let mut path = normalize(path);
        for _ in 0..LINKS_MAX {
            match self.entries.get(&path) {
                Some(Entry::File { start, size }) => return Ok((*start, *size)),
                Some(Entry::Link(target)) => {
                    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
                    path = normalize(&format!("{dir}/{target}"));
                }
                None => break,
            }
        }
        Err(invalid(format!("it does not have {path}")))
    }
}

/// Where each file lies. Reads to the end, so that an archive that was cut is found out before anything is kept of it.
fn index(file: &mut File) -> Result<BTreeMap<String, Entry>, ImageError> {
    let length = file
        .seek(SeekFrom::End(0))
        .map_err(node("reading the archive"))?;
    file.rewind().map_err(node("reading the archive"))?;
    let torn = |error: io::Error| invalid(format!("it is not a whole tar: {error}"));
    check_headers(file)?;
    file.rewind().map_err(node("reading the archive"))?;
    let mut entries = BTreeMap::new();
    let mut tar = tar::Archive::new(file);
    for entry in tar.entries_with_seek().map_err(torn)? {
        let entry = entry.map_err(torn)?;
        let path = normalize(&String::from_utf8_lossy(&entry.path_bytes()));
        let (start, size) = (entry.raw_file_position(), entry.size());
        let kind = entry.header().entry_type();
        if kind.is_symlink() {
            let target = entry.link_name_bytes().unwrap_or_default();
            entries.insert(
                path,
                Entry::Link(String::from_utf8_lossy(&target).into_owned()),
            );
        } else if kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default();
            let target = format!("/{}", String::from_utf8_lossy(&target));
            entries.insert(path, Entry::Link(target));
        } else if kind.is_file() || kind.is_contiguous() {
            if start.checked_add(size).is_none_or(|end| end > length) {
                return Err(invalid(format!("it ends in the middle of {path}")));
            }
            entries.insert(path, Entry::File { start, size });
        }
    }
    Ok(entries)
}

/// Refuses what could not be indexed in memory.
fn check_headers(file: &mut File) -> Result<(), ImageError> {
    let torn = |error: io::Error| invalid(format!("it is not a whole tar: {error}"));
    let mut tar = tar::Archive::new(file);
    for (number, entry) in tar.entries_with_seek().map_err(torn)?.raw(true).enumerate() {
        let entry = entry.map_err(torn)?;
        let kind = entry.header().entry_type();
        let extends = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if number >= ENTRIES_MAX {
            return Err(invalid(format!("it has more than {ENTRIES_MAX} files")));
        }
        if extends && entry.size() > EXTENSION_MAX {
            return Err(invalid(format!(
                "the name or the attributes of a file have {} bytes, the limit is {EXTENSION_MAX}",
                entry.size()
            )));
        }
    }
    Ok(())
}

/// Without `.`, `..` and leading slashes; a link that begins with a slash begins at the root of the archive.
fn normalize(path: &str) -> String {
    let path = path.rfind("//").map_or(path, |at| &path[at + 1..]);
    let mut parts: Vec<&str> = vec![];
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn decompress(from: File, to: &mut File, limits: ArchiveLimits) -> Result<(), ImageError> {
    let mut reader = flate2::read::MultiGzDecoder::new(from);
    let mut buffer = vec![0; 1 << 20];
    let mut written = 0;
    loop {
        let length = match reader.read(&mut buffer) {
            Ok(length) => length,
            Err(error) => return Err(invalid(format!("it is not whole gzip: {error}"))),
        };
        if length == 0 {
            break;
        }
        let disk = rustix::fs::fstatvfs(&*to).map_err(io::Error::from);
        let disk = disk.map_err(node("looking at the disk of the archive"))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        limits.admit(written, length as u64, free)?;
        io::Write::write_all(to, &buffer[..length]).map_err(node("unpacking the archive"))?;
        written += length as u64;
    }
    to.rewind().map_err(node("unpacking the archive"))
}

#[cfg(test)]
#[expect(clippy::unwrap_in_result, reason = "a test may panic")]
mod tests {
    use super::*;

    fn tar(files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(vec![]);
        for (path, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, *bytes).unwrap();
        }
        for (path, target) in links {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, path, target).unwrap();
        }
        tar.into_inner().unwrap()
    }

    const LIMITS: ArchiveLimits = ArchiveLimits {
        max_bytes: 1 << 20,
        reserve_bytes: 0,
    };

    fn open(bytes: &[u8]) -> Result<Archive, ImageError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        std::fs::write(&path, bytes).unwrap();
        Archive::open(&path, LIMITS)
    }

    fn assert_invalid<T: std::fmt::Debug>(result: Result<T, ImageError>, why: &str) {
        let error = result.unwrap_err();
        let is = matches!(&error, ImageError::ArchiveInvalid { what } if what.contains(why));
        assert!(is, "{error}");
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        io::Write::write_all(&mut gzip, bytes).unwrap();
        gzip.finish().unwrap()
    }

    fn saved() -> Vec<u8> {
        let manifest =
            br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l1/layer.tar","l2/layer.tar"]}]"#;
        tar(
            &[
                ("manifest.json", manifest),
                ("c.json", b"{}"),
                ("l1/layer.tar", b"layer"),
            ],
            &[("l2/layer.tar", "../l1/layer.tar")],
        )
    }

    #[test]
    fn a_docker_archive_becomes_a_manifest_over_its_files() {
        let mut archive = open(&saved()).unwrap();
        let image = archive.images[0].clone();
        assert_eq!(image.names, ["a:1"]);
        let manifest = archive.document(&image.target).unwrap();
        let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
        let layer = oci::digest(b"layer");
        assert_eq!(manifest.config.digest, oci::digest(b"{}"));
        let digests: Vec<_> = manifest
            .layers
            .iter()
            .map(|it| it.digest.as_str())
            .collect();
        assert_eq!(
            digests,
            [&layer, &layer],
            "the second layer is a link to the first"
        );
        let mut read = vec![];
        archive
            .stream(&layer, |part| {
                read.extend(part);
                true
            })
            .unwrap();
        assert_eq!(read, b"layer");
    }

    #[test]
    fn a_compressed_archive_is_read_and_its_copy_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        std::fs::write(&path, gzip(&saved())).unwrap();
        let archive = Archive::open(&path, LIMITS).unwrap();
        assert_eq!(archive.images.len(), 1);
        drop(archive);
        assert_eq!(files(dir.path()), [path]);
    }

    #[test]
    fn what_a_compressed_archive_unpacks_to_is_bounded_and_goes_when_it_is_too_much() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        std::fs::write(&path, gzip(&vec![0; 2 << 20])).unwrap();
        let error = Archive::open(&path, LIMITS).unwrap_err();
        assert!(
            matches!(error, ImageError::ArchiveTooLarge { .. }),
            "{error}"
        );
        let full = ArchiveLimits {
            max_bytes: u64::MAX,
            reserve_bytes: u64::MAX,
        };
        let error = Archive::open(&path, full).unwrap_err();
        assert!(matches!(error, ImageError::DiskLow { .. }), "{error}");
        assert_eq!(files(dir.path()), [path]);
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|it| it.unwrap().path()).collect()
    }

    #[test]
    fn a_name_as_large_as_an_archive_is_not_read() {
        for kind in [
            tar::EntryType::GNULongName,
            tar::EntryType::GNULongLink,
            tar::EntryType::XHeader,
            tar::EntryType::XGlobalHeader,
        ] {
            let of = |length: u64| {
                let mut tar = tar::Builder::new(vec![]);
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(kind);
                let mut name = vec![b'x'; length as usize];
                if matches!(
                    kind,
                    tar::EntryType::XHeader | tar::EntryType::XGlobalHeader
                ) {
                    name =
                        format!("{length} comment={}\n", "x".repeat(length as usize - 15)).into();
                }
                assert_eq!(name.len() as u64, length);
                header.set_size(length);
                tar.append_data(&mut header, "long", &name[..]).unwrap();
                // It is about the file behind it.
                let mut header = tar::Header::new_gnu();
                header.set_size(0);
                tar.append_data(&mut header, "file", io::empty()).unwrap();
                let tar = tar.into_inner().unwrap();
                [&tar[..tar.len() - 1024], &saved()].concat()
            };
            open(&of(EXTENSION_MAX)).unwrap();
            assert_invalid(open(&of(EXTENSION_MAX + 1)), "attributes");
        }
    }

    #[test]
    fn an_archive_of_more_files_than_can_be_indexed_is_refused() {
        let mut header = tar::Header::new_ustar();
        header.set_path("x").unwrap();
        header.set_size(0);
        header.set_cksum();
        let image = saved();
        let own = ENTRIES_MAX - 4;
        let of = |others: usize| [&header.as_bytes().repeat(others), &image[..]].concat();
        open(&of(own)).unwrap();
        assert_invalid(open(&of(own + 1)), "files");
    }

    #[test]
    fn a_docker_archive_has_as_many_layers_as_a_node_can_carry() {
        let of = |layers: usize| {
            let layers = vec![r#""l""#; layers].join(",");
            let manifest = format!(r#"[{{"Config":"c","Layers":[{layers}]}}]"#);
            open(&tar(
                &[
                    ("manifest.json", manifest.as_bytes()),
                    ("c", b"{}"),
                    ("l", b"l"),
                ],
                &[],
            ))
        };
        assert_eq!(of(oci::LAYERS_MAX).unwrap().images.len(), 1);
        assert_invalid(of(oci::LAYERS_MAX + 1), "layers");
    }

    #[test]
    fn a_document_that_is_too_large_is_refused_before_it_is_read() {
        let index = |digest: &str| {
            let manifest = oci::OCI_MANIFEST;
            format!(
                r#"{{"manifests":[{{"mediaType":"{manifest}","digest":"{digest}","size":1}}]}}"#
            )
        };
        for excess in [0, 1] {
            let length = oci::DOCUMENT_MAX as usize + excess;
            let bytes = vec![b' '; length];
            let digest = oci::digest(&bytes);
            let path = format!("blobs/{}", digest.replace(':', "/"));
            let named = index(&digest);
            let files = [("index.json", named.as_bytes()), (path.as_str(), &bytes)];
            let mut archive = open(&tar(&files, &[])).unwrap();
            let target = archive.images[0].target.clone();
            let document = archive.document(&target);
            let padded = [named.as_bytes(), &bytes[named.len()..]].concat();
            let own = open(&tar(&[("index.json", &padded)], &[]));
            if excess == 0 {
                assert_eq!(document.unwrap().len(), length);
                own.unwrap();
            } else {
                assert_invalid(document, "too large");
                assert_invalid(own, "too large");
            }
        }
    }

    #[test]
    fn an_archive_cut_anywhere_is_an_error_and_never_an_image() {
        let whole = saved();
        let content_end = whole.len() - 1024;
        for length in (0..content_end).step_by(97) {
            let error = open(&whole[..length]).unwrap_err();
            assert!(
                matches!(error, ImageError::ArchiveInvalid { .. }),
                "{length}: {error}"
            );
        }
    }

    #[test]
    fn what_is_no_archive_is_told_so() {
        let escape = tar(&[("index.json", br#"{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../etc/passwd","size":1}]}"#)], &[]);
        let mut archive = open(&escape).unwrap();
        let target = archive.images[0].target.clone();
        assert!(archive.document(&target).is_err());
        let circle = tar(
            &[("manifest.json", br#"[{"Config":"a","Layers":[]}]"#)],
            &[("a", "b"), ("b", "a")],
        );
        for bytes in [
            &b"hello"[..],
            &tar(&[("x", b"")], &[]),
            &tar(&[("index.json", b"[")], &[]),
            &circle,
        ] {
            assert!(matches!(
                open(bytes),
                Err(ImageError::ArchiveInvalid { .. })
            ));
        }
    }
}

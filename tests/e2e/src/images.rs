//! Image archives made in memory, well-formed and broken.

use std::{collections::BTreeMap, fs, io::Write as _};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub const BUSYBOX: &str = "berth.local/busybox:1";

pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold("sha256:".to_owned(), |it, byte| format!("{it}{byte:02x}"))
}

/// A layer: regular files with their content, and links as `-> target`.
pub fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    for (path, content) in files {
        add(&mut tar, path, content);
    }
    tar.into_inner().expect("writing to memory cannot fail")
}

fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, content: &str) {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o755);
    if let Some(target) = content.strip_prefix("-> ") {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, path, target)
            .expect("a link fits a header");
    } else if path.ends_with('/') {
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        tar.append_data(&mut header, path, &[][..])
            .expect("a folder fits a header");
    } else {
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content.as_bytes())
            .expect("a file fits a header");
    }
}

/// Debian's static busybox with the applets that tests use.
pub fn busybox_layer() -> Vec<u8> {
    let program = fs::read("/bin/busybox").expect("`make tools` installs busybox-static");
    let mut tar = tar::Builder::new(vec![]);
    for dir in ["bin/", "tmp/", "etc/"] {
        add(&mut tar, dir, "");
    }
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    tar.append_data(&mut header, "bin/busybox", &program[..])
        .expect("it fits");
    for applet in [
        "sh", "sleep", "httpd", "wget", "nc", "echo", "cat", "mkdir", "id", "env", "hostname",
        "ls", "true", "kill", "dd", "seq", "tr", "stat", "ip", "grep", "test", "touch", "tail",
        "nslookup",
    ] {
        add(&mut tar, &format!("bin/{applet}"), "-> busybox");
    }
    add(
        &mut tar,
        "etc/passwd",
        "root:x:0:0:root:/:/bin/sh\nanna:x:1001:2002:Anna:/home:/bin/sh\n",
    );
    add(
        &mut tar,
        "etc/group",
        "root:x:0:\nanna:x:2002:\nstaff:x:50:anna\n",
    );
    tar.into_inner().expect("writing to memory cannot fail")
}

/// A layer with one program.
pub fn program_layer(path: &str, program: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    tar.append_data(&mut header, path, program)
        .expect("writing to memory cannot fail");
    tar.into_inner().expect("writing to memory cannot fail")
}

/// An image in parts, so that a test can break one.
#[derive(Clone, Debug)]
pub struct ImageParts {
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// Descriptor of the manifest.
    pub manifest: Value,
}

impl ImageParts {
    /// An image of layers given as stored bytes, their media type, and their tar form.
    pub fn of(layers: &[(Vec<u8>, &str, Vec<u8>)], config: Value, architecture: &str) -> Self {
        let mut blobs = BTreeMap::new();
        let mut store = |bytes: Vec<u8>, kind: &str| {
            let descriptor =
                json!({ "mediaType": kind, "digest": digest(&bytes), "size": bytes.len() });
            blobs.insert(digest(&bytes), bytes);
            descriptor
        };
        let diff_ids: Vec<_> = layers.iter().map(|(_, _, tar)| digest(tar)).collect();
        let image = json!({
            "architecture": architecture, "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let layers: Vec<_> = layers
            .iter()
            .map(|(bytes, kind, _)| store(bytes.clone(), kind))
            .collect();
        let config = store(image.to_string().into_bytes(), CONFIG);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        let manifest = store(manifest.to_string().into_bytes(), MANIFEST);
        Self { blobs, manifest }
    }

    pub fn plain(layers: &[Vec<u8>], config: Value) -> Self {
        let layers: Vec<_> = layers
            .iter()
            .map(|tar| (tar.clone(), LAYER, tar.clone()))
            .collect();
        Self::of(&layers, config, architecture())
    }

    /// An OCI image layout as one tar.
    pub fn oci_archive(&self, name: &str) -> Vec<u8> {
        let mut manifest = self.manifest.clone();
        manifest["annotations"] = json!({ "io.containerd.image.name": name });
        self.oci_archive_with(&json!({ "schemaVersion": 2, "manifests": [manifest] }))
    }

    pub fn oci_archive_with(&self, index: &Value) -> Vec<u8> {
        let mut tar = tar::Builder::new(vec![]);
        add(&mut tar, "oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        for (digest, bytes) in &self.blobs {
            add_bytes(
                &mut tar,
                &format!("blobs/{}", digest.replace(':', "/")),
                bytes,
            );
        }
        add_bytes(&mut tar, "index.json", index.to_string().as_bytes());
        tar.into_inner().expect("writing to memory cannot fail")
    }

    /// As `docker save` writes it: layers by path and a manifest.json.
    pub fn docker_archive(&self, tag: &str) -> Vec<u8> {
        let manifest = self.manifest();
        let config = manifest["config"]["digest"].as_str().expect("it has one");
        let config_name = format!("{}.json", &config["sha256:".len()..]);
        let mut tar = tar::Builder::new(vec![]);
        let mut layers = vec![];
        for (number, layer) in manifest["layers"]
            .as_array()
            .expect("a list")
            .iter()
            .enumerate()
        {
            let name = format!("layer{number}/layer.tar");
            add_bytes(
                &mut tar,
                &name,
                &self.blobs[layer["digest"].as_str().expect("it has one")],
            );
            layers.push(name);
        }
        add_bytes(&mut tar, &config_name, &self.blobs[config]);
        let manifest = json!([{ "Config": config_name, "RepoTags": [tag], "Layers": layers }]);
        add_bytes(&mut tar, "manifest.json", manifest.to_string().as_bytes());
        tar.into_inner().expect("writing to memory cannot fail")
    }

    /// Digest of the manifest or index.
    pub fn digest(&self) -> &str {
        self.manifest["digest"].as_str().expect("it has one")
    }

    /// The manifest itself, of an image that is no index.
    pub fn manifest(&self) -> Value {
        self.json(self.digest())
    }

    /// Puts another text in place of the manifest, which gets a digest of its own.
    pub fn with_manifest(mut self, text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        self.manifest["digest"] = digest(&bytes).into();
        self.manifest["size"] = bytes.len().into();
        self.blobs.insert(digest(&bytes), bytes);
        self
    }

    /// Changes a blob without telling anybody.
    pub fn with_blob(mut self, digest: &str, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        change(self.blobs.get_mut(digest).expect("it has this blob"));
        self
    }

    fn json(&self, digest: &str) -> Value {
        serde_json::from_slice(&self.blobs[digest]).expect("made here")
    }
}

/// An index over images for several platforms, as one image.
pub fn multi_arch(images: &[(&str, &ImageParts)]) -> ImageParts {
    let mut blobs = BTreeMap::new();
    let mut manifests = vec![];
    for (architecture, image) in images {
        blobs.extend(image.blobs.clone());
        let mut manifest = image.manifest.clone();
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
        manifests.push(manifest);
    }
    indexed(blobs, &manifests)
}

/// The image within so many indexes.
pub fn nested(image: &ImageParts, depth: usize) -> ImageParts {
    (0..depth).fold(image.clone(), |it, _| indexed(it.blobs, &[it.manifest]))
}

/// An index with these entries.
pub fn indexed(mut blobs: BTreeMap<String, Vec<u8>>, entries: &[Value]) -> ImageParts {
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    let index = index.to_string().into_bytes();
    let manifest = json!({ "mediaType": INDEX, "digest": digest(&index), "size": index.len() });
    blobs.insert(digest(&index), index);
    ImageParts { blobs, manifest }
}

fn add_bytes(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
        .expect("a file fits a header");
}

/// The busybox image as an OCI archive.
pub fn busybox() -> Vec<u8> {
    busybox_parts().oci_archive(BUSYBOX)
}

pub fn busybox_parts() -> ImageParts {
    ImageParts::plain(
        &[busybox_layer()],
        json!({ "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"] }),
    )
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder
        .write_all(bytes)
        .expect("writing to memory cannot fail");
    encoder.finish().expect("writing to memory cannot fail")
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

//! The pause program and the image that holds it. What a pause container is for, the manager knows.

use sha2::{Digest as _, Sha256};

/// The program, for this machine.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// What the image is called on every node.
pub const IMAGE_NAME: &str = "berth.local/pause:1";

/// Path of the program in the image.
pub const PROGRAM_PATH: &str = "/pause";

/// The image as an OCI layout in a tar. The same program gives the same bytes.
pub fn image_archive() -> Vec<u8> {
    let blobs = Blobs::make();
    let mut entry = descriptor(
        "application/vnd.oci.image.manifest.v1+json",
        &blobs.manifest,
    );
    entry["annotations"] = serde_json::json!({ "io.containerd.image.name": IMAGE_NAME });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
    let place = |bytes: &[u8]| format!("blobs/{}", digest(bytes).replace(':', "/"));
    archive(&[
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644),
        ("index.json", index.to_string().as_bytes(), 0o644),
        (&place(&blobs.layer), &blobs.layer, 0o644),
        (&place(&blobs.config), &blobs.config, 0o644),
        (&place(&blobs.manifest), &blobs.manifest, 0o644),
    ])
}

/// What tells the image from that of another version.
pub fn image_digest() -> String {
    digest(&Blobs::make().manifest)
}

struct Blobs {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Blobs {
    fn make() -> Self {
        let layer = archive(&[("pause", PROGRAM, 0o755)]);
        let config = serde_json::json!({
            "architecture": architecture(), "os": "linux",
            "config": { "Entrypoint": [PROGRAM_PATH] },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        Self {
            manifest: manifest.to_string().into_bytes(),
            config,
            layer,
        }
    }
}

fn archive(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes, mode) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(*mode);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, *bytes)
            .expect("short names and writing to memory");
    }
    tar.into_inner().expect("writing to memory cannot fail")
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold("sha256:".to_owned(), |it, byte| format!("{it}{byte:02x}"))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
        process::Command,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn the_program_is_static_and_of_a_few_kib() {
        assert!(PROGRAM.starts_with(b"\x7fELF"));
        assert!(PROGRAM.len() < 8 << 10, "{} bytes", PROGRAM.len());
        let names_an_interpreter = PROGRAM.windows(7).any(|it| it == b"/ld-lin");
        assert!(!names_an_interpreter);
    }

    #[test]
    fn the_digest_is_that_of_the_manifest_in_the_archive() {
        let place = format!("blobs/{}", image_digest().replace(':', "/"));
        let bytes = image_archive();
        let mut tar = tar::Archive::new(bytes.as_slice());
        let mut entries = tar.entries().unwrap().map(Result::unwrap);
        let mut manifest = entries
            .find(|it| it.path().unwrap().to_str() == Some(&place))
            .unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut manifest, &mut text).unwrap();
        assert!(text.contains("\"layers\""), "{text}");
    }

    #[test]
    fn it_stays_until_it_is_told_to_end_and_then_ends_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        std::fs::write(&path, PROGRAM).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Running(Command::new(&path).spawn().unwrap());
        let pid = rustix::process::Pid::from_child(&child.0);
        // It sleeps nowhere but where it waits for signals.
        let status = format!("/proc/{}/status", child.0.id());
        let deadline = Instant::now() + Duration::from_secs(10);
        while !std::fs::read_to_string(&status)
            .unwrap()
            .contains("State:\tS")
        {
            assert!(Instant::now() < deadline, "it does not wait for signals");
            std::thread::yield_now();
        }
        assert_eq!(child.0.try_wait().unwrap(), None);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = child.0.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }

    struct Running(std::process::Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
        }
    }

    #[test]
    fn the_image_is_the_same_each_time_it_is_made() {
        assert_eq!(image_archive(), image_archive());
    }
}

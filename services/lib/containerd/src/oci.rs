//! What is read of image documents, tolerantly: only what is needed has to be there.

use std::collections::BTreeSet;

use berth_platform::ImageError;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// The largest manifest, index or configuration that is read: registries refuse larger ones.
pub(crate) const DOCUMENT_MAX: u64 = 4 << 20;
/// More layers than an overlay mount can name.
pub(crate) const LAYERS_MAX: usize = 512;

#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) config: Option<Process>,
    pub(crate) rootfs: RootFs,
}

/// How a container of the image runs when nothing else is asked for. Empty lists are often written as `null`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Process {
    pub(crate) user: String,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) working_dir: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Vec<String>,
}

impl Descriptor {
    pub(crate) fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_INDEX)
    }

    pub(crate) fn is_manifest(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST)
    }

    pub(crate) fn to_proto(&self) -> containerd_client::types::Descriptor {
        containerd_client::types::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
            annotations: std::collections::HashMap::new(),
        }
    }
}

impl Platform {
    /// Of this machine.
    pub(crate) fn own() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
        }
    }

    fn runs(&self) -> bool {
        *self == Self::own()
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl Config {
    /// Whether this machine runs the image. One that does not say is taken at its word.
    pub(crate) fn runs_here(&self) -> bool {
        let Platform { os, architecture } = Platform::own();
        (self.os.is_empty() || self.os == os)
            && (self.architecture.is_empty() || self.architecture == architecture)
    }
}

impl Index {
    /// The manifests to try, each once, best first: those for this machine, then those that do not say.
    pub(crate) fn candidates(&self) -> Vec<&Descriptor> {
        let manifests = || {
            self.manifests
                .iter()
                .filter(|it| it.is_manifest() || it.is_index())
        };
        let own = manifests().filter(|it| it.platform.as_ref().is_some_and(Platform::runs));
        let mut seen = BTreeSet::new();
        own.chain(manifests().filter(|it| it.platform.is_none()))
            .filter(|it| seen.insert(it.digest.as_str()))
            .collect()
    }
}

/// Reads a manifest, an index or a configuration.
pub(crate) fn document<T: serde::de::DeserializeOwned>(
    image: &str,
    descriptor: &Descriptor,
    bytes: &[u8],
) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let what = format!("{} is not what it should be: {error}", descriptor.digest);
        corrupt(image, what)
    })
}

/// Reads a manifest whose number of layers a node can carry.
pub(crate) fn manifest(
    image: &str,
    descriptor: &Descriptor,
    bytes: &[u8],
) -> Result<Manifest, ImageError> {
    let manifest: Manifest = document(image, descriptor, bytes)?;
    let layers = manifest.layers.len();
    if layers > LAYERS_MAX {
        let what = format!("it has {layers} layers, the limit is {LAYERS_MAX}");
        return Err(corrupt(image, what));
    }
    Ok(manifest)
}

/// Refuses bytes that are not what the descriptor promises.
pub(crate) fn verify(image: &str, descriptor: &Descriptor, bytes: &[u8]) -> Result<(), ImageError> {
    let actual = digest(bytes);
    if actual == descriptor.digest {
        return Ok(());
    }
    let what = format!("{} has the content of {actual}", descriptor.digest);
    Err(corrupt(image, what))
}

pub(crate) fn corrupt(image: &str, what: impl Into<String>) -> ImageError {
    ImageError::Corrupt {
        image: image.to_owned(),
        what: what.into(),
    }
}

/// The name of the snapshot that holds the first layer, the first two, and so on.
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => digest(format!("{parent} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    digest_text(Sha256::new_with_prefix(bytes))
}

pub(crate) fn digest_text(hash: Sha256) -> String {
    hash.finalize()
        .iter()
        .fold("sha256:".to_owned(), |text, byte| {
            format!("{text}{byte:02x}")
        })
}

/// Whether a text is `sha256:` and 64 hex digits.
pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_id_is_the_digest_of_its_parent_and_the_layer() {
        let ids = ["sha256:a".to_owned(), "sha256:b".to_owned()];
        let chain = chain_ids(&ids);
        assert_eq!(chain[0], "sha256:a");
        assert_eq!(chain[1], digest(b"sha256:a sha256:b"));
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn a_manifest_for_this_machine_goes_before_one_that_does_not_say() {
        let entry = |digest: &str, platform: Option<Platform>| Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: digest.into(),
            platform,
            ..Descriptor::default()
        };
        let other = Platform {
            os: "linux".into(),
            architecture: "vax".into(),
        };
        let index = Index {
            manifests: vec![
                entry("other", Some(other)),
                entry("silent", None),
                entry("own", Some(Platform::own())),
            ],
        };
        let order: Vec<_> = index
            .candidates()
            .iter()
            .map(|it| it.digest.as_str())
            .collect();
        assert_eq!(order, ["own", "silent"]);
    }

    #[test]
    fn an_entry_that_is_repeated_ten_thousand_times_is_one_candidate() {
        let entry = Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: "own".into(),
            ..Descriptor::default()
        };
        let manifests = vec![entry.clone(); 10_000];
        assert_eq!(Index { manifests }.candidates(), [&entry]);
    }

    #[test]
    fn bytes_that_are_not_what_was_promised_are_corrupt() {
        let descriptor = |bytes: &[u8]| Descriptor {
            digest: digest(bytes),
            ..Descriptor::default()
        };
        verify("app", &descriptor(b"a"), b"a").unwrap();
        let error = verify("app", &descriptor(b"a"), b"b").unwrap_err();
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    }

    #[test]
    fn more_layers_than_a_node_can_carry_are_corrupt() {
        let of = |layers: usize| {
            let layer = r#"{"digest":"sha256:a","size":1}"#;
            let layers = vec![layer; layers].join(",");
            let text = format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layers}]}}"#);
            manifest("app", &Descriptor::default(), text.as_bytes())
        };
        assert_eq!(of(LAYERS_MAX).unwrap().layers.len(), LAYERS_MAX);
        let error = of(LAYERS_MAX + 1).unwrap_err();
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    }

    #[test]
    fn a_config_with_nulls_in_it_is_read() {
        let text = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},
            "config":{"Cmd":null,"Entrypoint":["/a"],"Env":null,"User":"1000:50","WorkingDir":""}}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        let process = config.config.unwrap();
        assert_eq!((process.cmd, process.user.as_str()), (None, "1000:50"));
    }
}

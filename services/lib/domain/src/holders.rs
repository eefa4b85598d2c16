//! Who holds an image or a blob: an index of what sandboxes and the catalog refer to, and the answer for objects of a node as
//! it stands. Images are compared by digest, whatever names they have. What cannot be read holds all that it could refer
//! to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use crate::{
    catalog::{ArtifactStatus, Entry, Key, Kind, Object},
    id::SandboxId,
    image_ref::{ImageRef, is_digest},
    lifecycle::Status,
    record::SandboxRecord,
};

/// Images of this registry are artifacts of apps.
pub const MANAGED_PREFIX: &str = "cluster.local:5000/";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HolderKind {
    Sandbox,
    Version,
    Artifact,
    Pin,
    Pull,
    Manager,
    /// Told by workers only.
    Manifest,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub kind: HolderKind,
    pub id: String,
    pub until: Option<SystemTime>,
}

/// An image that the node has under some name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedImage {
    pub digest: String,
    /// By the manager itself.
    pub pinned: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// In full.
    pub image: String,
    pub expires_at: Option<SystemTime>,
}

/// What brings images at this moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arriving {
    Pull(ImageRef),
    /// Nobody knows yet what is in it.
    Import,
}

/// What holds images and is in no index: it is small, and another at each moment.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// By name.
    pub images: BTreeMap<String, NamedImage>,
    pub pins: Vec<Pin>,
    pub arriving: Vec<Arriving>,
}

/// An entry of the store that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnreadEntry {
    Record(String),
    Catalog(Key),
}

/// How a sandbox or a version names an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Held {
    Name(String),
    Digest(String),
}

#[derive(Clone, Debug, Default)]
struct VersionHold {
    image: Option<Held>,
    artifact: Option<Arc<str>>,
    /// What it serves as it is, and the manifest that it runs.
    blobs: Vec<Blob>,
}

/// 32 bytes of a digest: half of what its text takes.
type Blob = [u8; 32];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum BlobHolder {
    Artifact(Arc<str>),
    Version(Arc<str>),
}

/// What refers to images and blobs. A blob that an artifact names takes about 130 bytes here.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    sandboxes: BTreeMap<SandboxId, BTreeSet<Held>>,
    versions: BTreeMap<Arc<str>, VersionHold>,
    /// What they name, with the version: there may be far more of them than images.
    named_images: BTreeSet<(Held, Arc<str>)>,
    named_artifacts: BTreeSet<(Arc<str>, Arc<str>)>,
    /// Those that are not archived.
    artifacts: BTreeMap<Arc<str>, Box<[Blob]>>,
    blobs: BTreeSet<(Blob, BlobHolder)>,
    unread: BTreeSet<UnreadEntry>,
    /// Revision at which an artifact or a version was put last.
    put_at: u64,
}

/// The id of the artifact that an image of the managed registry is: what follows the first colon behind the prefix. A
/// digest is no tag, so a name that has only a digest is of none.
pub fn parse_artifact_id(image: &str) -> Option<&str> {
    let rest = image.strip_prefix(MANAGED_PREFIX)?;
    let named = rest.split_once('@').map_or(rest, |(named, _)| named);
    let (_, name) = named.split_once(':')?;
    (!name.is_empty()).then_some(name)
}

/// Whether a name of the managed registry has only a digest: it stands for content, whatever artifact that is.
pub fn is_only_by_digest(image: &str) -> bool {
    image.starts_with(MANAGED_PREFIX) && image.contains('@') && parse_artifact_id(image).is_none()
}

/// An id of an artifact as it is compared: `artifact/web` is `web`.
pub fn artifact_key(id: &str) -> &str {
    id.strip_prefix("artifact/").unwrap_or(id)
}

impl Holder {
    pub fn new(kind: HolderKind, id: impl Into<String>) -> Self {
        Self {
            kind,
            id: id.into(),
            until: None,
        }
    }
}

impl UnreadEntry {
    fn holder(&self) -> Holder {
        match self {
            Self::Record(id) => Holder::new(HolderKind::Sandbox, id.as_str()),
            Self::Catalog(key) => match key.kind {
                Kind::Version => Holder::new(HolderKind::Version, key.id.as_str()),
                Kind::Artifact => Holder::new(HolderKind::Artifact, key.id.as_str()),
                Kind::App | Kind::Host | Kind::Service => {
                    Holder::new(HolderKind::Manager, key.to_text())
                }
            },
        }
    }

    fn may_name_images(&self) -> bool {
        match self {
            Self::Record(_) => true,
            Self::Catalog(key) => key.kind == Kind::Version,
        }
    }

    fn may_name_blobs(&self) -> bool {
        match self {
            Self::Record(_) => false,
            Self::Catalog(key) => matches!(key.kind, Kind::Version | Kind::Artifact),
        }
    }
}

impl Held {
    fn of(image: &ImageRef) -> Self {
        match image.digest() {
            Some(digest) => Self::Digest(digest.to_owned()),
            None => Self::Name(image.to_string()),
        }
    }
}

impl Standing {
    fn digest<'a>(&'a self, held: &'a Held) -> Option<&'a str> {
        match held {
            Held::Digest(digest) => Some(digest),
            Held::Name(name) => self.images.get(name).map(|it| it.digest.as_str()),
        }
    }
}

impl Holders {
    /// Follows a record, in whatever status it is.
    pub fn place(&mut self, record: &SandboxRecord) {
        self.forget(&record.id);
        if record.status == Status::Dead {
            return;
        }
        let named = record.spec.images().into_iter().map(Held::of);
        let kept = record.held_images.values().chain(record.images.values());
        let kept = kept.map(|it| Held::Digest(it.clone()));
        let holds = named.chain(kept).collect();
        self.sandboxes.insert(record.id.clone(), holds);
    }

    pub fn forget(&mut self, id: &SandboxId) {
        self.sandboxes.remove(id);
        self.unread.remove(&UnreadEntry::Record(id.to_string()));
    }

    /// Follows an entry of the catalog as it is kept.
    pub fn put_entry(&mut self, entry: &Entry) {
        if matches!(entry.object, Object::Artifact(_) | Object::Version(_)) {
            self.put_at = self.put_at.max(entry.revision);
        }
        self.put(&entry.object);
    }

    /// Whether all that may lead to blobs stands as it did at this revision, or less of it.
    pub fn is_as_at(&self, revision: u64) -> bool {
        self.put_at <= revision
    }

    /// Follows an object of the catalog.
    pub fn put(&mut self, object: &Object) {
        self.remove(&object.key());
        match object {
            Object::Version(it) => {
                let id: Arc<str> = it.id.as_str().into();
                let manifest = it.image.as_ref().and_then(ImageRef::digest);
                let named = it.static_artifact.as_deref().into_iter().chain(manifest);
                let blobs: Vec<Blob> = named.filter_map(blob).collect();
                for blob in &blobs {
                    self.blobs.insert((*blob, BlobHolder::Version(id.clone())));
                }
                let hold = VersionHold {
                    image: it.image.as_ref().map(Held::of),
                    artifact: it.artifact.as_deref().map(|it| artifact_key(it).into()),
                    blobs,
                };
                let image = hold.image.clone().map(|it| (it, id.clone()));
                self.named_images.extend(image);
                let artifact = hold.artifact.clone().map(|it| (it, id.clone()));
                self.named_artifacts.extend(artifact);
                self.versions.insert(id, hold);
            }
            Object::Artifact(it) if it.status != ArtifactStatus::Archived => {
                let id: Arc<str> = it.id.as_str().into();
                let blobs: Box<[Blob]> = it.blobs.iter().filter_map(|it| blob(it)).collect();
                for blob in &blobs {
                    self.blobs.insert((*blob, BlobHolder::Artifact(id.clone())));
                }
                self.artifacts.insert(id, blobs);
            }
            Object::Artifact(_) | Object::App(_) | Object::Host(_) | Object::Service(_) => {}
        }
    }

    pub fn remove(&mut self, key: &Key) {
        self.unread.remove(&UnreadEntry::Catalog(key.clone()));
        match key.kind {
            Kind::Version => {
                if let Some((id, hold)) = self.versions.remove_entry(key.id.as_str()) {
                    for blob in hold.blobs {
                        self.blobs.remove(&(blob, BlobHolder::Version(id.clone())));
                    }
                    if let Some(image) = hold.image {
                        self.named_images.remove(&(image, id.clone()));
                    }
                    if let Some(artifact) = hold.artifact {
                        self.named_artifacts.remove(&(artifact, id));
                    }
                }
            }
            Kind::Artifact => {
                if let Some((id, blobs)) = self.artifacts.remove_entry(key.id.as_str()) {
                    for blob in blobs {
                        self.blobs.remove(&(blob, BlobHolder::Artifact(id.clone())));
                    }
                }
            }
            Kind::App | Kind::Host | Kind::Service => {}
        }
    }

    pub fn note_unread(&mut self, entry: UnreadEntry) {
        self.unread.insert(entry);
    }

    /// Who holds the blob.
    pub fn of_blob(&self, digest: &str) -> Vec<Holder> {
        let mut holders: Vec<_> = self
            .unread
            .iter()
            .filter(|it| it.may_name_blobs())
            .map(UnreadEntry::holder)
            .collect();
        let Some(blob) = blob(digest) else {
            return holders;
        };
        let first = (blob, BlobHolder::Artifact("".into()));
        let named = self.blobs.range(first..).take_while(|it| it.0 == blob);
        holders.extend(named.map(|(_, holder)| match holder {
            BlobHolder::Artifact(id) => Holder::new(HolderKind::Artifact, &**id),
            BlobHolder::Version(id) => Holder::new(HolderKind::Version, &**id),
        }));
        holders
    }

    /// Who holds each of these digests, whatever names they have.
    pub fn of_digests(
        &self,
        digests: &BTreeSet<&str>,
        standing: &Standing,
        now: SystemTime,
    ) -> BTreeMap<String, BTreeSet<Holder>> {
        let mut found: BTreeMap<&str, BTreeSet<Holder>> =
            digests.iter().map(|it| (*it, BTreeSet::new())).collect();
        let mut hold = |digest: Option<&str>, holder: &dyn Fn() -> Holder| {
            if let Some(holders) = digest.and_then(|it| found.get_mut(it)) {
                holders.insert(holder());
            }
        };
        for (id, holds) in &self.sandboxes {
            for held in holds {
                let holder = || Holder::new(HolderKind::Sandbox, id.as_str());
                hold(standing.digest(held), &holder);
            }
        }
        for digest in digests {
            for id in named_by(&self.named_images, Held::Digest((*digest).to_owned())) {
                hold(Some(digest), &|| Holder::new(HolderKind::Version, &**id));
            }
        }
        for (name, image) in &standing.images {
            if image.pinned {
                hold(Some(&image.digest), &|| {
                    Holder::new(HolderKind::Manager, "")
                });
            }
            for id in named_by(&self.named_images, Held::Name(name.clone())) {
                let holder = || Holder::new(HolderKind::Version, &**id);
                hold(Some(&image.digest), &holder);
            }
            let Some(id) = parse_artifact_id(name) else {
                continue;
            };
            for version in named_by(&self.named_artifacts, id.into()) {
                let holder = || Holder::new(HolderKind::Version, &**version);
                hold(Some(&image.digest), &holder);
            }
            for id in [id.to_owned(), format!("artifact/{id}")] {
                let key = Key {
                    kind: Kind::Artifact,
                    id,
                };
                let holds = self.artifacts.contains_key(key.id.as_str());
                let entry = UnreadEntry::Catalog(key);
                if holds || self.unread.contains(&entry) {
                    hold(Some(&image.digest), &|| entry.holder());
                }
            }
        }
        for pin in standing.pins.iter().filter(|it| it.holds_at(now)) {
            let holder = || Holder {
                until: pin.expires_at,
                ..Holder::new(HolderKind::Pin, pin.image.as_str())
            };
            hold(standing.digest(&held_name(&pin.image)), &holder);
        }
        for arriving in &standing.arriving {
            if let Arriving::Pull(image) = arriving {
                let holder = || Holder::new(HolderKind::Pull, image.to_string());
                hold(standing.digest(&Held::of(image)), &holder);
                hold(standing.digest(&Held::Name(image.to_string())), &holder);
            }
        }
        let unread = self.unread.iter().filter(|it| it.may_name_images());
        let mut of_all: BTreeSet<_> = unread.map(UnreadEntry::holder).collect();
        if standing.arriving.contains(&Arriving::Import) {
            of_all.insert(Holder::new(HolderKind::Pull, ""));
        }
        let found = found.into_iter();
        found
            .map(|(digest, mut holders)| {
                holders.extend(of_all.iter().cloned());
                (digest.to_owned(), holders)
            })
            .collect()
    }

    /// Who holds one digest.
    pub fn of_digest(&self, digest: &str, standing: &Standing, now: SystemTime) -> Vec<Holder> {
        let mut found = self.of_digests(&[digest].into(), standing, now);
        found
            .remove(digest)
            .unwrap_or_default()
            .into_iter()
            .collect()
    }
}

/// The versions that name this.
fn named_by<T: Ord + Clone>(
    all: &BTreeSet<(T, Arc<str>)>,
    named: T,
) -> impl Iterator<Item = &Arc<str>> {
    let first = (named.clone(), "".into());
    let of_it = all.range(first..).take_while(move |(it, _)| *it == named);
    of_it.map(|(_, version)| version)
}

impl Pin {
    pub fn holds_at(&self, now: SystemTime) -> bool {
        self.expires_at.is_none_or(|it| now < it)
    }
}

fn held_name(image: &str) -> Held {
    match ImageRef::parse(image) {
        Ok(image) => Held::of(&image),
        Err(_) => Held::Name(image.to_owned()),
    }
}

fn blob(digest: &str) -> Option<Blob> {
    if !is_digest(digest) {
        return None;
    }
    let (_, hex) = digest.split_once(':')?;
    let mut bytes = Blob::default();
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;

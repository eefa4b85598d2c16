//! What becomes of each image. Names are compared by what they stand for: what holds one name of a content holds all.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_domain::holders::is_only_by_digest;

use crate::{
    artifact::{Status, in_full, parse_artifact_id},
    verdict::{Action, Holder, HolderKind, Object, Why},
};

/// In the place of a grace that is zero: an image that was pulled just now is nobody's yet.
pub const ORPHAN_GRACE: Duration = Duration::from_secs(24 * 3600);

/// An image by one of its names.
#[derive(Clone, Debug)]
pub struct Image {
    pub name: String,
    pub digest: String,
    pub size_bytes: u64,
    pub created: SystemTime,
    pub last_used: Option<SystemTime>,
    /// As the manager tells them with the image, in one reading.
    pub holders: Vec<Holder>,
}

/// Images, and what of the catalog concerns them: no more is kept, however large it is.
#[derive(Debug)]
pub struct Images {
    images: Vec<Image>,
    /// Of the ids that images stand for.
    artifacts: BTreeMap<String, Option<Status>>,
    versions: BTreeMap<String, Arc<Holder>>,
    /// Digest and name by name.
    names: BTreeMap<String, String>,
    /// By digest, with the name that is held.
    held: BTreeMap<String, (Arc<Holder>, String)>,
    /// By digest, an artifact that is.
    archived: BTreeMap<String, String>,
}

impl Images {
    pub fn new(images: Vec<Image>) -> Self {
        let ids = images.iter().filter_map(|it| parse_artifact_id(&it.name));
        let artifacts = ids.map(|id| (id, None)).collect();
        let names = images.iter().map(|it| (it.name.clone(), it.digest.clone()));
        let names = names.collect();
        let mut held = BTreeMap::new();
        for image in &images {
            if let Some(holder) = image.holders.first() {
                held.entry(image.digest.clone())
                    .or_insert_with(|| (Arc::new(holder.clone()), image.name.clone()));
            }
        }
        Self {
            images,
            artifacts,
            versions: BTreeMap::new(),
            names,
            held,
            archived: BTreeMap::new(),
        }
    }

    /// Takes an artifact of the catalog in.
    pub fn artifact(&mut self, id: &str, status: Status) {
        if let Some(known) = self.artifacts.get_mut(&in_full(id)) {
            *known = Some(status);
        }
    }

    /// Takes a version of the catalog in: it holds the image that it names, and the artifact.
    pub fn version(&mut self, id: &str, image: Option<&str>, artifact: Option<&str>) {
        let holder = || Arc::new(Holder::new(HolderKind::Version, id));
        let named = artifact.map(in_full).into_iter();
        for artifact in named.chain(image.and_then(parse_artifact_id)) {
            if self.artifacts.contains_key(&artifact) {
                self.versions.entry(artifact).or_insert_with(holder);
            }
        }
        let Some(image) = image else { return };
        let by_digest = image.split_once('@').map(|(_, digest)| digest.to_owned());
        if let Some(digest) = by_digest.or_else(|| self.names.get(image).cloned()) {
            self.held
                .entry(digest)
                .or_insert_with(|| (holder(), image.to_owned()));
        }
    }

    /// What becomes of each, in no order.
    pub fn judge(mut self, now: SystemTime, orphan_grace: Duration) -> Vec<Object> {
        let grace = if orphan_grace.is_zero() {
            ORPHAN_GRACE
        } else {
            orphan_grace
        };
        self.hold_what_is_wanted();
        let images = std::mem::take(&mut self.images);
        let mut objects: Vec<_> = images
            .into_iter()
            .map(|image| self.object(image, now, grace))
            .collect();
        // Content goes with its last name.
        let mut counted = BTreeSet::new();
        let stay: BTreeSet<_> = objects
            .iter()
            .filter(|it| it.action != Action::Delete)
            .map(|it| it.digest.clone())
            .collect();
        for object in &mut objects {
            if stay.contains(&object.digest) || !counted.insert(object.digest.clone()) {
                object.frees_bytes = 0;
            }
        }
        objects
    }

    /// A name whose artifact is wanted holds its content, also under other names.
    fn hold_what_is_wanted(&mut self) {
        for image in &self.images {
            let Some(id) = parse_artifact_id(&image.name) else {
                continue;
            };
            let holder = match (self.versions.get(&id), self.artifacts.get(&id)) {
                (Some(version), _) => version.clone(),
                (None, Some(Some(Status::Archived))) => {
                    self.archived.insert(image.digest.clone(), id);
                    continue;
                }
                (None, Some(Some(Status::Active | Status::Empty))) => {
                    Arc::new(Holder::new(HolderKind::Artifact, id))
                }
                (None, _) => continue,
            };
            self.held
                .entry(image.digest.clone())
                .or_insert_with(|| (holder, image.name.clone()));
        }
    }

    fn object(&self, image: Image, now: SystemTime, grace: Duration) -> Object {
        let (action, why, deletable_at) = self.verdict(&image, now, grace);
        let mut holders: Vec<_> = image.holders.into_iter().map(Arc::new).collect();
        if let Why::Held(holder) | Why::HeldAs { holder, .. } = &why
            && !holders.contains(holder)
        {
            holders.push(holder.clone());
        }
        Object {
            name: image.name,
            digest: image.digest,
            size_bytes: image.size_bytes,
            frees_bytes: image.size_bytes,
            last_used: image.last_used.unwrap_or(image.created),
            holders,
            action,
            why,
            deletable_at,
            buried: None,
        }
    }

    fn verdict(
        &self,
        image: &Image,
        now: SystemTime,
        grace: Duration,
    ) -> (Action, Why, Option<SystemTime>) {
        if let Some(holder) = image.holders.first() {
            return (
                Action::Keep,
                Why::Held(Arc::new(holder.clone())),
                holder.until,
            );
        }
        let Some(artifact) = parse_artifact_id(&image.name) else {
            return match is_only_by_digest(&image.name) {
                true => self.by_digest(image, now, grace),
                false => (Action::Keep, Why::NotOurs, None),
            };
        };
        if let Some(version) = self.versions.get(&artifact) {
            return (Action::Keep, Why::Held(version.clone()), None);
        }
        let status = self.artifacts.get(&artifact).copied().flatten();
        if let Some(Status::Active | Status::Empty) = status {
            let empty = status == Some(Status::Empty);
            return (Action::Keep, Why::Wanted { artifact, empty }, None);
        }
        if let Some((holder, name)) = self.held.get(&image.digest) {
            let (holder, name) = (holder.clone(), name.clone());
            return (Action::Keep, Why::HeldAs { holder, name }, None);
        }
        match status {
            Some(_) => (Action::Delete, Why::Archived { artifact }, Some(now)),
            None => match young_until(image, now, grace) {
                None => (Action::Delete, Why::Orphan { artifact }, Some(now)),
                Some(until) => (Action::Later, Why::YoungOrphan { artifact }, until),
            },
        }
    }

    /// A name that says what content it stands for and not which artifact: what nothing holds goes with the names that say so,
    /// or as nobody's.
    fn by_digest(
        &self,
        image: &Image,
        now: SystemTime,
        grace: Duration,
    ) -> (Action, Why, Option<SystemTime>) {
        if let Some((holder, name)) = self.held.get(&image.digest) {
            let (holder, name) = (holder.clone(), name.clone());
            return (Action::Keep, Why::HeldAs { holder, name }, None);
        }
        if let Some(artifact) = self.archived.get(&image.digest) {
            let artifact = artifact.clone();
            return (Action::Delete, Why::Archived { artifact }, Some(now));
        }
        match young_until(image, now, grace) {
            None => (Action::Delete, Why::Unnamed, Some(now)),
            Some(until) => (Action::Later, Why::YoungUnnamed, until),
        }
    }
}

/// Until when nobody's image is too young to go; the inner `None` is the end of time.
fn young_until(image: &Image, now: SystemTime, grace: Duration) -> Option<Option<SystemTime>> {
    let until = image.created.checked_add(grace);
    // An image from the future is young, whatever the clock did.
    until.is_none_or(|it| it >= now).then_some(until)
}

#[cfg(test)]
mod tests;

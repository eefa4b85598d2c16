//! What becomes of each blob of a directory. What holds blobs is taken in piece by piece; only what concerns blobs that
//! are there is kept.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    digest::Digest,
    verdict::{Action, Holder, HolderKind, Object, Tombstone, Why},
};

/// A file of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub digest: Digest,
    pub size_bytes: u64,
    pub modified: SystemTime,
    /// `None`: a path leads to the blob.
    pub buried: Option<Tombstone>,
    /// Of a blob that a path leads to: links to it are buried, which a crash leaves.
    pub links_buried: bool,
}

/// How long what is not needed stays.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// A blob may be older than the first entry of the catalog that names it.
    pub blob: Duration,
    pub tombstone: Duration,
}

/// The files of a directory, and who needs them.
#[derive(Debug, Default)]
pub struct Blobs {
    files: BTreeMap<Digest, Copies>,
    unreadable: Vec<(Digest, String)>,
}

#[derive(Debug, Default)]
struct Copies {
    live: Option<Found>,
    buried: Vec<Found>,
    holder: Option<Arc<Holder>>,
}

impl Blobs {
    pub fn new(found: Vec<Found>, unreadable: Vec<(Digest, String)>) -> Self {
        let mut files: BTreeMap<Digest, Copies> = BTreeMap::new();
        for it in found {
            let copies = files.entry(it.digest).or_default();
            match it.buried {
                None => copies.live = Some(it),
                Some(_) => copies.buried.push(it),
            }
        }
        Self { files, unreadable }
    }

    pub fn is_here(&self, digest: &Digest) -> bool {
        self.files.contains_key(digest)
    }

    /// Keeps a blob for a holder. Whether it is here and nobody needed it before.
    pub fn hold(&mut self, digest: &Digest, holder: &Arc<Holder>) -> bool {
        match self.files.get_mut(digest) {
            Some(copies) if copies.holder.is_none() => {
                copies.holder = Some(holder.clone());
                true
            }
            Some(_) | None => false,
        }
    }

    /// A copy of each blob that is needed, to be looked at for what it covers.
    pub fn held(&self) -> impl Iterator<Item = &Found> {
        self.files.values().filter_map(|it| {
            it.holder.as_ref()?;
            it.live.as_ref().or(it.buried.first())
        })
    }

    /// A copy of one blob.
    pub fn copy(&self, digest: &Digest) -> Option<&Found> {
        let copies = self.files.get(digest)?;
        copies.live.as_ref().or(copies.buried.first())
    }

    /// Keeps what a manifest or an index covers; returns what of it nobody needed before.
    pub fn cover(&mut self, manifest: &Digest, children: Vec<Digest>) -> Vec<Digest> {
        let holder = Arc::new(Holder::new(HolderKind::Manifest, manifest.to_string()));
        let fresh = children.into_iter().filter(|it| self.hold(it, &holder));
        fresh.collect()
    }

    /// What becomes of each, in no order.
    pub fn judge(self, now: SystemTime, ages: Ages) -> Vec<Object> {
        let mut objects = Vec::new();
        for (_, mut copies) in self.files {
            let holder = copies.holder;
            if let Some(live) = copies.live {
                let verdict = live_verdict(&live, holder.as_ref(), now, ages.blob);
                for it in copies.buried {
                    let (verdict, of) = match &holder {
                        _ if replaces(&live, &it, now, ages.blob) => {
                            ((Action::Delete, Why::Superseded, Some(now)), None)
                        }
                        Some(_) => (beside_verdict(&live, &it, ages.blob), holder.as_ref()),
                        None => (buried_verdict(&it, now, ages.tombstone), None),
                    };
                    objects.push(object(it, of, verdict));
                }
                objects.push(object(live, holder.as_ref(), verdict));
                continue;
            }
            // One copy comes back; the others are the same content.
            copies.buried.sort_by_key(|it| it.buried);
            for (place, it) in copies.buried.into_iter().enumerate() {
                let verdict = match &holder {
                    Some(holder) if place == 0 => {
                        (Action::Restore, Why::Held(holder.clone()), None)
                    }
                    Some(_) => (Action::Tombstone, Why::Superseded, None),
                    None => buried_verdict(&it, now, ages.tombstone),
                };
                objects.push(object(it, holder.as_ref(), verdict));
            }
        }
        for (digest, problem) in self.unreadable {
            let digest = digest.to_string();
            objects.push(Object {
                name: digest.clone(),
                digest,
                size_bytes: 0,
                frees_bytes: 0,
                last_used: now,
                holders: vec![],
                action: Action::Keep,
                why: Why::Unreadable { problem },
                deletable_at: None,
                buried: None,
            });
        }
        objects
    }
}

type Verdict = (Action, Why, Option<SystemTime>);

fn live_verdict(
    live: &Found,
    holder: Option<&Arc<Holder>>,
    now: SystemTime,
    age: Duration,
) -> Verdict {
    if let Some(holder) = holder {
        let action = if live.links_buried {
            Action::Restore
        } else {
            Action::Keep
        };
        return (action, Why::Held(holder.clone()), None);
    }
    match live.modified.checked_add(age) {
        Some(until) if until <= now => (Action::Delete, Why::Unreferenced, Some(now)),
        until => (Action::Later, Why::YoungBlob, until),
    }
}

/// Whether a file may be taken for another copy of what is buried. Of a name alone nothing follows: an upload may be under way.
fn replaces(live: &Found, buried: &Found, now: SystemTime, age: Duration) -> bool {
    let settled = live.modified.checked_add(age).is_some_and(|it| it <= now);
    settled && live.size_bytes == buried.size_bytes
}

/// Of what is needed and buried, beside a file that may be no whole copy.
fn beside_verdict(live: &Found, buried: &Found, age: Duration) -> Verdict {
    let same_size = live.size_bytes == buried.size_bytes;
    let until = same_size.then(|| live.modified.checked_add(age)).flatten();
    (Action::Tombstone, Why::BesideAnother, until)
}

fn buried_verdict(it: &Found, now: SystemTime, grace: Duration) -> Verdict {
    let at = it.buried.map_or(now, |it| it.at);
    match at.checked_add(grace) {
        Some(until) if until <= now => (Action::Delete, Why::GraceOver, Some(now)),
        until => (Action::Tombstone, Why::Grace, until),
    }
}

fn object(it: Found, holder: Option<&Arc<Holder>>, (action, why, at): Verdict) -> Object {
    let digest = it.digest.to_string();
    Object {
        name: digest.clone(),
        digest,
        size_bytes: it.size_bytes,
        frees_bytes: it.size_bytes,
        last_used: it.modified,
        holders: holder.cloned().into_iter().collect(),
        action,
        why,
        deletable_at: at,
        buried: it.buried,
    }
}

#[cfg(test)]
mod tests;

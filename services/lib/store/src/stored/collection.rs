//! How a run of a collection lies on disk.

use std::{collections::BTreeMap, time::SystemTime};

use berth_domain::{
    collection::{Collection, CollectionCause, CollectionKind, HeldObject, Slice},
    holders::{Holder, HolderKind},
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredCollection {
    id: u64,
    kind: String,
    cause: String,
    goal_bytes: u64,
    started_at: SystemTime,
    ended_at: Option<SystemTime>,
    slices_done: Vec<u32>,
    deleted_total: u64,
    deleted_bytes: u64,
    failed: BTreeMap<String, String>,
    failed_total: u64,
    objects_total: u64,
    retained_total: u64,
    aborted: String,
    #[serde(default)]
    abandoned: bool,
    goal_missed_bytes: u64,
    largest_held: Vec<StoredHeldObject>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredHeldObject {
    object: String,
    size_bytes: u64,
    holders: Vec<StoredHolder>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredHolder {
    kind: StoredHolderKind,
    id: String,
    until: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum StoredHolderKind {
    Sandbox,
    Version,
    Artifact,
    Pin,
    Pull,
    Manager,
    Manifest,
}

impl From<&Collection> for StoredCollection {
    fn from(it: &Collection) -> Self {
        Self {
            id: it.id,
            kind: it.kind.as_str().to_owned(),
            cause: it.cause.as_str().to_owned(),
            goal_bytes: it.goal_bytes,
            started_at: it.started_at,
            ended_at: it.ended_at,
            slices_done: it.slices_done.iter().map(|it| it.number()).collect(),
            deleted_total: it.deleted_total,
            deleted_bytes: it.deleted_bytes,
            failed: it.failed.clone(),
            failed_total: it.failed_total,
            objects_total: it.objects_total,
            retained_total: it.retained_total,
            aborted: it.aborted.clone(),
            abandoned: it.abandoned,
            goal_missed_bytes: it.goal_missed_bytes,
            largest_held: it.largest_held.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<StoredCollection> for Collection {
    type Error = String;

    fn try_from(it: StoredCollection) -> Result<Self, String> {
        let kind = CollectionKind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == it.kind);
        let cause = CollectionCause::ALL
            .into_iter()
            .find(|cause| cause.as_str() == it.cause);
        let slice = |number| Slice::new(number).ok_or_else(|| format!("slice {number}"));
        Ok(Self {
            id: it.id,
            kind: kind.ok_or_else(|| format!("kind `{}`", it.kind))?,
            cause: cause.ok_or_else(|| format!("cause `{}`", it.cause))?,
            goal_bytes: it.goal_bytes,
            started_at: it.started_at,
            ended_at: it.ended_at,
            slices_done: it
                .slices_done
                .into_iter()
                .map(slice)
                .collect::<Result<_, _>>()?,
            deleted_total: it.deleted_total,
            deleted_bytes: it.deleted_bytes,
            failed: it.failed,
            failed_total: it.failed_total,
            objects_total: it.objects_total,
            retained_total: it.retained_total,
            aborted: it.aborted,
            abandoned: it.abandoned,
            goal_missed_bytes: it.goal_missed_bytes,
            largest_held: it.largest_held.into_iter().map(Into::into).collect(),
        })
    }
}

impl From<&HeldObject> for StoredHeldObject {
    fn from(it: &HeldObject) -> Self {
        let holder = |it: &Holder| StoredHolder {
            kind: match it.kind {
                HolderKind::Sandbox => StoredHolderKind::Sandbox,
                HolderKind::Version => StoredHolderKind::Version,
                HolderKind::Artifact => StoredHolderKind::Artifact,
                HolderKind::Pin => StoredHolderKind::Pin,
                HolderKind::Pull => StoredHolderKind::Pull,
                HolderKind::Manager => StoredHolderKind::Manager,
                HolderKind::Manifest => StoredHolderKind::Manifest,
            },
            id: it.id.clone(),
            until: it.until,
        };
        Self {
            object: it.object.clone(),
            size_bytes: it.size_bytes,
            holders: it.holders.iter().map(holder).collect(),
        }
    }
}

impl From<StoredHeldObject> for HeldObject {
    fn from(it: StoredHeldObject) -> Self {
        let holder = |it: StoredHolder| Holder {
            kind: match it.kind {
                StoredHolderKind::Sandbox => HolderKind::Sandbox,
                StoredHolderKind::Version => HolderKind::Version,
                StoredHolderKind::Artifact => HolderKind::Artifact,
                StoredHolderKind::Pin => HolderKind::Pin,
                StoredHolderKind::Pull => HolderKind::Pull,
                StoredHolderKind::Manager => HolderKind::Manager,
                StoredHolderKind::Manifest => HolderKind::Manifest,
            },
            id: it.id,
            until: it.until,
        };
        Self {
            object: it.object,
            size_bytes: it.size_bytes,
            holders: it.holders.into_iter().map(holder).collect(),
        }
    }
}

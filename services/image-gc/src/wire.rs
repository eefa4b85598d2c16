//! Between the contract's words and those of a plan.

use std::{sync::Arc, time::SystemTime};

use berth_api::v1;
use berth_collect::{Action, Holder, HolderKind, Object, plan::Held};
use berth_domain::collection::CollectionKind;
use prost_types::Timestamp;

pub(crate) fn kind_to_proto(kind: CollectionKind) -> v1::CollectionKind {
    match kind {
        CollectionKind::Images => v1::CollectionKind::Images,
        CollectionKind::Blobs => v1::CollectionKind::Blobs,
    }
}

/// `None` for one that this program does not know.
pub(crate) fn kind_from_proto(kind: v1::CollectionKind) -> Option<CollectionKind> {
    match kind {
        v1::CollectionKind::Images => Some(CollectionKind::Images),
        v1::CollectionKind::Blobs => Some(CollectionKind::Blobs),
        v1::CollectionKind::Unspecified => None,
    }
}

pub(crate) fn time(it: Option<Timestamp>) -> Option<SystemTime> {
    SystemTime::try_from(it?).ok()
}

pub(crate) fn holder_from_proto(it: v1::Holder) -> Holder {
    let kind = match it.kind() {
        v1::HolderKind::Sandbox => HolderKind::Sandbox,
        v1::HolderKind::Version => HolderKind::Version,
        v1::HolderKind::Artifact => HolderKind::Artifact,
        v1::HolderKind::Pin => HolderKind::Pin,
        v1::HolderKind::Pull => HolderKind::Pull,
        v1::HolderKind::Manager => HolderKind::Manager,
        v1::HolderKind::Manifest => HolderKind::Manifest,
        v1::HolderKind::Unspecified => HolderKind::Other,
    };
    Holder {
        kind,
        id: it.id,
        until: time(it.until),
    }
}

pub(crate) fn holder_to_proto(it: &Arc<Holder>) -> v1::Holder {
    let kind = match it.kind {
        HolderKind::Sandbox => v1::HolderKind::Sandbox,
        HolderKind::Version => v1::HolderKind::Version,
        HolderKind::Artifact => v1::HolderKind::Artifact,
        HolderKind::Pin => v1::HolderKind::Pin,
        HolderKind::Pull => v1::HolderKind::Pull,
        HolderKind::Manager => v1::HolderKind::Manager,
        HolderKind::Manifest => v1::HolderKind::Manifest,
        HolderKind::Other => v1::HolderKind::Unspecified,
    };
    v1::Holder {
        kind: kind.into(),
        id: it.id.clone(),
        until: it.until.map(Timestamp::from),
    }
}

pub(crate) fn held_to_proto(it: &Held) -> v1::HeldObject {
    v1::HeldObject {
        object: it.name.clone(),
        size_bytes: it.size_bytes,
        holders: it.holders.iter().map(holder_to_proto).collect(),
    }
}

pub(crate) fn planned_to_proto(
    kind: CollectionKind,
    it: &Object,
) -> v1::ImageGcServicePlanResponse {
    let verdict = match it.action {
        Action::Keep => v1::GcVerdict::Keep,
        Action::Later => v1::GcVerdict::Later,
        Action::Delete => v1::GcVerdict::Delete,
        Action::Tombstone => v1::GcVerdict::Tombstone,
        Action::Restore => v1::GcVerdict::Restore,
    };
    v1::ImageGcServicePlanResponse {
        kind: kind_to_proto(kind).into(),
        object: it.name.clone(),
        digest: it.digest.clone(),
        size_bytes: it.size_bytes,
        last_used_at: Some(it.last_used.into()),
        verdict: verdict.into(),
        reason: it.why.to_string(),
        holders: it.holders.iter().map(holder_to_proto).collect(),
        deletable_at: it.deletable_at.map(Timestamp::from),
    }
}

//! Leases on work, collections and holders on the wire.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use berth_domain::{
    Failure, ImageRef,
    claims::Claimed,
    collection::{
        Collection, CollectionCause, CollectionKind, HeldObject, LARGEST_MAX, NAMED_MAX, Slice,
        SliceReport,
    },
    holders::{Holder, HolderKind},
    image_ref::is_digest,
    work_leases::{Asked, LeaseRef, WorkLease},
};

use crate::v1;

const LEASE_NAME_MAX: usize = 128;
const LEASES_PER_CALL: usize = 256;
const TIME_TO_LIVE: Duration = Duration::from_secs(15);
const TIME_TO_LIVE_MIN: Duration = Duration::from_secs(1);
const TIME_TO_LIVE_MAX: Duration = Duration::from_secs(600);
const ATTRIBUTES_MAX: usize = 16;
const ATTRIBUTE_KEY_MAX: usize = 64;
const ATTRIBUTE_VALUE_MAX: usize = 256;
const BATCH_MAX: usize = 256;
const WORDS_MAX: usize = 1024;

type Parsed<T> = Result<T, Failure>;

fn invalid<T>(field: impl Into<String>, problem: impl std::fmt::Display) -> Parsed<T> {
    Err(Failure::invalid(field, problem))
}

pub fn acquire_from_proto(it: v1::AcquireWorkLeaseRequest) -> Parsed<Asked> {
    lease_name("name", &it.name)?;
    let word = |b: u8| b.is_ascii_alphanumeric() || b"._/-".contains(&b);
    if !(1..=LEASE_NAME_MAX).contains(&it.holder.len()) || !it.holder.bytes().all(word) {
        let problem = format!("must be 1 to {LEASE_NAME_MAX} bytes of `[A-Za-z0-9._/-]`");
        return invalid("holder", problem);
    }
    let time_to_live = match it.time_to_live {
        None => TIME_TO_LIVE,
        Some(it) => match Duration::try_from(it) {
            Ok(it) if (TIME_TO_LIVE_MIN..=TIME_TO_LIVE_MAX).contains(&it) => it,
            Ok(_) | Err(_) => return invalid("time_to_live", "must be 1 s to 10 min"),
        },
    };
    if it.attributes.len() > ATTRIBUTES_MAX {
        return invalid("attributes", format!("must be at most {ATTRIBUTES_MAX}"));
    }
    for (key, value) in &it.attributes {
        if !(1..=ATTRIBUTE_KEY_MAX).contains(&key.len()) || value.len() > ATTRIBUTE_VALUE_MAX {
            let problem = format!(
                "must have keys of 1 to {ATTRIBUTE_KEY_MAX} bytes and values of at most {ATTRIBUTE_VALUE_MAX}"
            );
            return invalid("attributes", problem);
        }
    }
    Ok(Asked {
        name: it.name,
        holder: it.holder,
        time_to_live,
        attributes: it.attributes.into_iter().collect(),
    })
}

fn lease_name(field: &str, text: &str) -> Parsed<()> {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._/-".contains(&b);
    if !(1..=LEASE_NAME_MAX).contains(&text.len()) || !text.bytes().all(word) {
        let problem = format!("must be 1 to {LEASE_NAME_MAX} bytes of `[a-z0-9._/-]`");
        return invalid(field, problem);
    }
    Ok(())
}

/// At most so many as a call may have.
pub fn lease_refs_from_proto(leases: Vec<v1::WorkLeaseRef>) -> Parsed<Vec<LeaseRef>> {
    if leases.len() > LEASES_PER_CALL {
        return invalid("leases", format!("must be at most {LEASES_PER_CALL}"));
    }
    let leases = leases.into_iter().enumerate();
    leases
        .map(|(place, it)| lease_ref(&format!("leases[{place}]"), it))
        .collect()
}

pub fn lease_ref_from_proto(lease: Option<v1::WorkLeaseRef>) -> Parsed<LeaseRef> {
    match lease {
        Some(it) => lease_ref("lease", it),
        None => invalid("lease", "must be set"),
    }
}

fn lease_ref(field: &str, it: v1::WorkLeaseRef) -> Parsed<LeaseRef> {
    lease_name(&format!("{field}.name"), &it.name)?;
    if it.token == 0 {
        return invalid(format!("{field}.token"), "must be set");
    }
    Ok(LeaseRef {
        name: it.name,
        token: it.token,
    })
}

/// `at` says what a time of the lease is on the clock.
pub fn lease_to_proto(it: WorkLease, at: impl Fn(Duration) -> SystemTime) -> v1::WorkLease {
    v1::WorkLease {
        name: it.name,
        holder: it.holder,
        token: it.token,
        acquired_at: Some(at(it.acquired_at).into()),
        expires_at: Some(at(it.expires_at).into()),
        attributes: it.attributes.into_iter().collect(),
    }
}

pub fn collection_kind_from_proto(kind: i32) -> Parsed<CollectionKind> {
    match optional_kind_from_proto(kind)? {
        Some(kind) => Ok(kind),
        None => invalid("kind", "must be set"),
    }
}

pub fn optional_kind_from_proto(kind: i32) -> Parsed<Option<CollectionKind>> {
    match v1::CollectionKind::try_from(kind) {
        Ok(v1::CollectionKind::Unspecified) => Ok(None),
        Ok(v1::CollectionKind::Images) => Ok(Some(CollectionKind::Images)),
        Ok(v1::CollectionKind::Blobs) => Ok(Some(CollectionKind::Blobs)),
        Err(_) => invalid("kind", "is not known"),
    }
}

fn kind_to_proto(kind: CollectionKind) -> v1::CollectionKind {
    match kind {
        CollectionKind::Images => v1::CollectionKind::Images,
        CollectionKind::Blobs => v1::CollectionKind::Blobs,
    }
}

pub fn collection_cause_from_proto(cause: i32) -> Parsed<CollectionCause> {
    match v1::CollectionCause::try_from(cause) {
        Ok(v1::CollectionCause::Unspecified | v1::CollectionCause::Requested) => {
            Ok(CollectionCause::Requested)
        }
        Ok(v1::CollectionCause::Scheduled) => Ok(CollectionCause::Scheduled),
        Ok(v1::CollectionCause::Pressure) => Ok(CollectionCause::Pressure),
        Err(_) => invalid("cause", "is not known"),
    }
}

/// `deleted` names the first of what it has deleted.
pub fn collection_to_proto(it: Collection, deleted: Vec<String>) -> v1::Collection {
    let cause = match it.cause {
        CollectionCause::Requested => v1::CollectionCause::Requested,
        CollectionCause::Scheduled => v1::CollectionCause::Scheduled,
        CollectionCause::Pressure => v1::CollectionCause::Pressure,
    };
    let end = match (it.ended_at, it.abandoned) {
        (None, _) => v1::CollectionEnd::Unspecified,
        (Some(_), false) => v1::CollectionEnd::Complete,
        (Some(_), true) => v1::CollectionEnd::Abandoned,
    };
    v1::Collection {
        end: end.into(),
        id: it.id,
        kind: kind_to_proto(it.kind).into(),
        cause: cause.into(),
        goal_bytes: it.goal_bytes,
        started_at: Some(it.started_at.into()),
        ended_at: it.ended_at.map(Into::into),
        slices_done: it.slices_done.into_iter().map(Slice::number).collect(),
        deleted,
        deleted_total: it.deleted_total,
        deleted_bytes: it.deleted_bytes,
        failed: it.failed.into_iter().collect(),
        failed_total: it.failed_total,
        objects_total: it.objects_total,
        retained_total: it.retained_total,
        aborted: it.aborted,
        goal_missed_bytes: it.goal_missed_bytes,
        largest_held: it.largest_held.into_iter().map(held_to_proto).collect(),
    }
}

fn held_to_proto(it: HeldObject) -> v1::HeldObject {
    v1::HeldObject {
        object: it.object,
        size_bytes: it.size_bytes,
        holders: it.holders.into_iter().map(holder_to_proto).collect(),
    }
}

pub fn holder_to_proto(it: Holder) -> v1::Holder {
    let kind = match it.kind {
        HolderKind::Sandbox => v1::HolderKind::Sandbox,
        HolderKind::Version => v1::HolderKind::Version,
        HolderKind::Artifact => v1::HolderKind::Artifact,
        HolderKind::Pin => v1::HolderKind::Pin,
        HolderKind::Pull => v1::HolderKind::Pull,
        HolderKind::Manager => v1::HolderKind::Manager,
        HolderKind::Manifest => v1::HolderKind::Manifest,
    };
    v1::Holder {
        kind: kind.into(),
        id: it.id,
        until: it.until.map(Into::into),
    }
}

fn holder_from_proto(field: &str, it: v1::Holder) -> Parsed<Holder> {
    let kind = match v1::HolderKind::try_from(it.kind) {
        Ok(v1::HolderKind::Sandbox) => HolderKind::Sandbox,
        Ok(v1::HolderKind::Version) => HolderKind::Version,
        Ok(v1::HolderKind::Artifact) => HolderKind::Artifact,
        Ok(v1::HolderKind::Pin) => HolderKind::Pin,
        Ok(v1::HolderKind::Pull) => HolderKind::Pull,
        Ok(v1::HolderKind::Manager) => HolderKind::Manager,
        Ok(v1::HolderKind::Manifest) => HolderKind::Manifest,
        Ok(v1::HolderKind::Unspecified) | Err(_) => {
            return invalid(format!("{field}.kind"), "is not known");
        }
    };
    if it.id.len() > WORDS_MAX {
        let problem = format!("must have at most {WORDS_MAX} bytes");
        return invalid(format!("{field}.id"), problem);
    }
    let until = it.until.map(SystemTime::try_from).transpose();
    Ok(Holder {
        kind,
        id: it.id,
        until: until.or_else(|_| invalid(format!("{field}.until"), "is no time"))?,
    })
}

/// The objects of a batch, each with its size.
pub fn deletables_from_proto(objects: Vec<v1::Deletable>) -> Parsed<Vec<(Claimed, u64)>> {
    if !(1..=BATCH_MAX).contains(&objects.len()) {
        return invalid("objects", format!("must be 1 to {BATCH_MAX}"));
    }
    let deletable = |(place, it): (usize, v1::Deletable)| {
        let digest = it.digest;
        if !is_digest(&digest) {
            let problem = "must be `sha256:` and 64 hexadecimal digits in lower case";
            return invalid(format!("objects[{place}].digest"), problem);
        }
        let claimed = match it.image.as_str() {
            "" => Claimed::Blob { digest },
            text => match ImageRef::parse(text) {
                Ok(image) => Claimed::Image {
                    name: image.to_string(),
                    digest,
                },
                Err(problem) => return invalid(format!("objects[{place}].image"), problem),
            },
        };
        Ok((claimed, it.size_bytes))
    };
    objects.into_iter().enumerate().map(deletable).collect()
}

pub fn claim_tokens_from_proto(tokens: Vec<u64>) -> Parsed<Vec<u64>> {
    if tokens.len() > BATCH_MAX {
        return invalid("tokens", format!("must be at most {BATCH_MAX}"));
    }
    Ok(tokens)
}

pub fn slice_from_proto(slice: u32) -> Parsed<Slice> {
    match Slice::new(slice) {
        Some(slice) => Ok(slice),
        None => invalid("slice", "must be 0 to 63"),
    }
}

pub fn slice_report_from_proto(it: v1::ReportSliceRequest) -> Parsed<SliceReport> {
    if it.failed.len() > NAMED_MAX {
        return invalid("failed", format!("must be at most {NAMED_MAX}"));
    }
    let long = |(object, reason): (&String, &String)| object.len().max(reason.len()) > WORDS_MAX;
    if it.failed.iter().any(long) {
        let problem = format!("must have keys and values of at most {WORDS_MAX} bytes");
        return invalid("failed", problem);
    }
    if it.aborted.len() > WORDS_MAX {
        return invalid("aborted", format!("must have at most {WORDS_MAX} bytes"));
    }
    if it.largest_held.len() > LARGEST_MAX {
        return invalid("largest_held", format!("must be at most {LARGEST_MAX}"));
    }
    let mut largest_held = vec![];
    for (place, held) in it.largest_held.into_iter().enumerate() {
        let field = format!("largest_held[{place}]");
        if held.object.len() > WORDS_MAX {
            let problem = format!("must have at most {WORDS_MAX} bytes");
            return invalid(format!("{field}.object"), problem);
        }
        // An object may have more holders than anybody reads.
        let holders = held.holders.into_iter().take(NAMED_MAX).enumerate();
        let holders = holders
            .map(|(at, it)| holder_from_proto(&format!("{field}.holders[{at}]"), it))
            .collect::<Parsed<_>>()?;
        largest_held.push(HeldObject {
            object: held.object,
            size_bytes: held.size_bytes,
            holders,
        });
    }
    Ok(SliceReport {
        objects_total: it.objects_total,
        retained_total: it.retained_total,
        failed: it.failed.into_iter().collect::<BTreeMap<_, _>>(),
        aborted: it.aborted,
        goal_missed_bytes: it.goal_missed_bytes,
        largest_held,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquire() -> v1::AcquireWorkLeaseRequest {
        v1::AcquireWorkLeaseRequest {
            name: "image-gc/images/07".into(),
            holder: "image-gc-7f3a".into(),
            ..Default::default()
        }
    }

    fn field<T: std::fmt::Debug>(parsed: Parsed<T>) -> String {
        parsed.unwrap_err().violations[0].field.clone()
    }

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    #[rustfmt::skip]
    fn a_lease_that_cannot_be_asked_for_names_its_field() {
        type Change = fn(&mut v1::AcquireWorkLeaseRequest);
        let cases: [(Change, &str); 10] = [
            (|it| it.name = String::new(),                                    "name"),
            (|it| it.name = "a".repeat(129),                                  "name"),
            (|it| it.name = "A".into(),                                       "name"),
            (|it| it.holder = String::new(),                                  "holder"),
            (|it| it.holder = "a b".into(),                                   "holder"),
            (|it| it.holder = "a".repeat(129),                                "holder"),
            (|it| it.time_to_live = seconds(0),                               "time_to_live"),
            (|it| it.time_to_live = seconds(601),                             "time_to_live"),
            (|it| it.attributes = (0..17).map(|n| (n.to_string(), String::new())).collect(), "attributes"),
            (|it| it.attributes = [("a".into(), "b".repeat(257))].into(),     "attributes"),
        ];
        for (change, expected) in cases {
            let mut request = acquire();
            change(&mut request);
            assert_eq!(field(acquire_from_proto(request)), expected);
        }
        assert_eq!(acquire_from_proto(acquire()).unwrap().time_to_live, TIME_TO_LIVE);
        let long_key = [("a".repeat(ATTRIBUTE_KEY_MAX + 1), String::new())].into();
        let long_key = v1::AcquireWorkLeaseRequest { attributes: long_key, ..acquire() };
        assert_eq!(field(acquire_from_proto(long_key)), "attributes");
        let attribute = |n: usize| (format!("{n:0>ATTRIBUTE_KEY_MAX$}"), "b".repeat(ATTRIBUTE_VALUE_MAX));
        let at_every_bound = v1::AcquireWorkLeaseRequest {
            name: "a".repeat(LEASE_NAME_MAX), holder: "a".repeat(LEASE_NAME_MAX), time_to_live: seconds(600),
            attributes: (0..ATTRIBUTES_MAX).map(attribute).collect(),
        };
        acquire_from_proto(at_every_bound).unwrap();
        let refs = |count| vec![v1::WorkLeaseRef { name: "a".into(), token: 1 }; count];
        lease_refs_from_proto(refs(LEASES_PER_CALL)).unwrap();
        assert_eq!(field(lease_refs_from_proto(refs(LEASES_PER_CALL + 1))), "leases");
    }

    #[test]
    fn a_batch_has_images_and_blobs_by_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let object = |image: &str, digest: &str| v1::Deletable {
            image: image.into(),
            digest: digest.into(),
            size_bytes: 7,
        };
        let parsed = deletables_from_proto(vec![object("nginx", &digest), object("", &digest)]);
        let image = Claimed::Image {
            name: "docker.io/library/nginx:latest".into(),
            digest: digest.clone(),
        };
        let blob = Claimed::Blob {
            digest: digest.clone(),
        };
        assert_eq!(parsed.unwrap(), [(image, 7), (blob, 7)]);
        let short = vec![object("", &digest), object("", "sha256:ab")];
        assert_eq!(field(deletables_from_proto(short)), "objects[1].digest");
        let unnamed = vec![object("A b", &digest)];
        assert_eq!(field(deletables_from_proto(unnamed)), "objects[0].image");
        assert_eq!(field(deletables_from_proto(vec![])), "objects");
        let many = vec![object("", &digest); BATCH_MAX + 1];
        assert_eq!(field(deletables_from_proto(many)), "objects");
        deletables_from_proto(vec![object("", &digest); BATCH_MAX]).unwrap();
    }

    #[test]
    fn a_report_that_is_too_long_names_its_field() {
        type Change = fn(&mut v1::ReportSliceRequest);
        let long = || "a".repeat(1025);
        fn held(object: usize, holder: usize) -> Vec<v1::HeldObject> {
            vec![v1::HeldObject {
                object: "a".repeat(object),
                holders: vec![v1::Holder {
                    kind: v1::HolderKind::Sandbox.into(),
                    id: "a".repeat(holder),
                    ..v1::Holder::default()
                }],
                ..v1::HeldObject::default()
            }]
        }
        let cases: [(Change, &str); 7] = [
            (|it| it.aborted = "a".repeat(1025), "aborted"),
            (
                |it| it.failed = [("a".to_owned(), "a".repeat(1025))].into(),
                "failed",
            ),
            (
                |it| it.largest_held = held(1025, 1),
                "largest_held[0].object",
            ),
            (
                |it| it.largest_held = held(1, 1025),
                "largest_held[0].holders[0].id",
            ),
            (
                |it| {
                    let failed = (0..1001).map(|n| (n.to_string(), String::new()));
                    it.failed = failed.collect();
                },
                "failed",
            ),
            (
                |it| it.largest_held = vec![v1::HeldObject::default(); 11],
                "largest_held",
            ),
            (
                |it| {
                    it.largest_held = vec![v1::HeldObject {
                        holders: vec![v1::Holder::default()],
                        ..Default::default()
                    }];
                },
                "largest_held[0].holders[0].kind",
            ),
        ];
        for (change, expected) in cases {
            let mut request = v1::ReportSliceRequest::default();
            change(&mut request);
            assert_eq!(field(slice_report_from_proto(request)), expected);
        }
        let mut request = v1::ReportSliceRequest::default();
        request.failed.insert(long(), String::new());
        assert_eq!(field(slice_report_from_proto(request)), "failed");
        let words = "a".repeat(WORDS_MAX);
        let failed = (1..NAMED_MAX).map(|n| (n.to_string(), String::new()));
        let at_every_bound = v1::ReportSliceRequest {
            aborted: words.clone(),
            failed: failed.chain([(words.clone(), words)]).collect(),
            largest_held: vec![held(WORDS_MAX, WORDS_MAX).remove(0); LARGEST_MAX],
            ..v1::ReportSliceRequest::default()
        };
        slice_report_from_proto(at_every_bound).unwrap();
    }
}

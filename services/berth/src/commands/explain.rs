//! `berth explain`: who holds an image, as the manager says it, or when it goes, as a worker of image-gc plans it.

use berth_api::v1::{self, GcVerdict, collection_service_client::CollectionServiceClient};
use serde::Serialize;

use super::{Session, gc};
use crate::{
    args::{Explain, Worker},
    errors::Failure,
    output::{moment, size},
    proto_json::ProtoJson,
};

pub(super) async fn run(session: &Session, command: Explain) -> Result<(), Failure> {
    match command {
        Explain::Image { image, worker } => explain(session, image, &worker).await,
    }
}

async fn explain(session: &Session, image: String, worker: &Worker) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Explained<'a> {
        image: &'a str,
        holders: ProtoJson<'a, v1::ListHoldersResponse>,
        /// Absent where no worker answers.
        plan: Option<Vec<ProtoJson<'a, v1::ImageGcServicePlanResponse>>>,
        words: &'a str,
    }

    let request = session.request(v1::ListHoldersRequest {
        image: image.clone(),
        digest: String::new(),
    });
    let mut client = CollectionServiceClient::new(session.connect().await?);
    let held = client.list_holders(request).await?.into_inner();
    let plan = match held.digest.is_empty() {
        // Nothing is planned for what is not here.
        true => Ok((vec![], None)),
        false => planned(session, worker, &held.digest).await,
    };
    let words = in_words(&image, &held, plan.as_ref().map_err(ToString::to_string));
    let object = Explained {
        image: &image,
        holders: ProtoJson(&held),
        plan: plan
            .as_ref()
            .ok()
            .map(|(plan, _)| plan.iter().map(ProtoJson).collect()),
        words: &words,
    };
    Ok(session.output.object(&object, || words.clone())?)
}

/// What is planned for all names of a content, and when the schedule's next run is due.
type Planned = (
    Vec<v1::ImageGcServicePlanResponse>,
    Option<prost_types::Timestamp>,
);

async fn planned(session: &Session, worker: &Worker, digest: &str) -> Result<Planned, Failure> {
    let request = v1::ImageGcServicePlanRequest {
        images: true,
        object: digest.to_owned(),
        ..v1::ImageGcServicePlanRequest::default()
    };
    let objects = gc::planned(session, worker, request).await?;
    let mut client = gc::worker(session, worker).await?;
    let request = session.request(v1::GetImageGcStatusRequest {});
    let status = client.get_image_gc_status(request).await?.into_inner();
    Ok((objects, status.next_scheduled_at))
}

fn in_words(image: &str, held: &v1::ListHoldersResponse, plan: Result<&Planned, String>) -> String {
    if held.digest.is_empty() && held.holders.is_empty() {
        return format!("{image} is not on this node, and nothing asks for it.");
    }
    let mut lines = Vec::new();
    let digest = match held.digest.as_str() {
        "" => "not on this node".to_owned(),
        digest => digest.to_owned(),
    };
    lines.push(format!("{image}, {digest}"));
    lines.extend(
        held.holders
            .iter()
            .map(|it| format!("It stays: {} holds it.", gc::holder(it))),
    );
    match plan {
        Ok((objects, next)) => {
            lines.extend(objects.iter().map(|it| object_in_words(it, next.as_ref())));
        }
        Err(problem) if held.holders.is_empty() => lines.push(format!(
            "Nothing holds it. When it goes is not known: {problem}."
        )),
        Err(problem) => lines.push(format!(
            "What would become of it without them is not known: {problem}."
        )),
    }
    lines.join("\n")
}

fn object_in_words(
    it: &v1::ImageGcServicePlanResponse,
    next: Option<&prost_types::Timestamp>,
) -> String {
    let v1::ImageGcServicePlanResponse { object, reason, .. } = it;
    let bytes = size(it.size_bytes);
    let next = match next {
        Some(next) => format!(", due at {} at the latest", moment(Some(next))),
        None => String::new(),
    };
    match it.verdict() {
        GcVerdict::Keep => format!("{object} ({bytes}) stays: {reason}."),
        GcVerdict::Later => match moment(it.deletable_at.as_ref()).as_str() {
            "" => format!("{object} ({bytes}) stays for now: {reason}."),
            from => format!("{object} ({bytes}) can go from {from} on: {reason}."),
        },
        GcVerdict::Delete | GcVerdict::Tombstone | GcVerdict::Restore | GcVerdict::Unspecified => {
            format!("{object} ({bytes}) goes with the next run{next}: {reason}.")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "cluster.local:5000/shop:a";

    fn held(digest: &str, holders: &[(v1::HolderKind, &str)]) -> v1::ListHoldersResponse {
        let holders = holders.iter().map(|(kind, id)| v1::Holder {
            kind: (*kind).into(),
            id: (*id).to_owned(),
            until: None,
        });
        v1::ListHoldersResponse {
            digest: digest.to_owned(),
            holders: holders.collect(),
        }
    }

    fn object(verdict: GcVerdict, reason: &str) -> v1::ImageGcServicePlanResponse {
        v1::ImageGcServicePlanResponse {
            object: IMAGE.to_owned(),
            size_bytes: 1 << 20,
            verdict: verdict.into(),
            reason: reason.to_owned(),
            ..v1::ImageGcServicePlanResponse::default()
        }
    }

    #[test]
    fn who_holds_an_image_is_said_in_words() {
        let held = held("sha256:1", &[(v1::HolderKind::Sandbox, "web")]);
        let planned = (vec![object(GcVerdict::Keep, "sandbox web holds it")], None);
        assert_eq!(
            in_words(IMAGE, &held, Ok(&planned)),
            format!(
                "{IMAGE}, sha256:1\nIt stays: sandbox web holds it.\n\
                 {IMAGE} (1.0 MiB) stays: sandbox web holds it."
            )
        );
    }

    #[test]
    fn when_an_image_goes_is_said_in_words() {
        let next = Some(prost_types::Timestamp::default());
        let planned = (
            vec![object(GcVerdict::Delete, "artifact/a is archived")],
            next,
        );
        assert_eq!(
            in_words(IMAGE, &held("sha256:1", &[]), Ok(&planned)),
            format!(
                "{IMAGE}, sha256:1\n{IMAGE} (1.0 MiB) goes with the next run, due at \
                 1970-01-01T00:00:00Z at the latest: artifact/a is archived."
            )
        );
        let from = prost_types::Timestamp {
            seconds: 3600,
            nanos: 0,
        };
        let mut young = object(GcVerdict::Later, "it is young");
        young.deletable_at = Some(from);
        let text = in_words(IMAGE, &held("sha256:1", &[]), Ok(&(vec![young], None)));
        assert!(
            text.ends_with("can go from 1970-01-01T01:00:00Z on: it is young."),
            "{text}"
        );
    }

    #[test]
    fn a_worker_that_does_not_answer_is_said_too() {
        let text = in_words(
            IMAGE,
            &held("sha256:1", &[]),
            Err("no worker answers".into()),
        );
        assert_eq!(
            text,
            format!(
                "{IMAGE}, sha256:1\nNothing holds it. When it goes is not known: no worker answers."
            )
        );
        let gone = in_words(IMAGE, &held("", &[]), Ok(&(vec![], None)));
        assert_eq!(
            gone,
            format!("{IMAGE} is not on this node, and nothing asks for it.")
        );
    }
}

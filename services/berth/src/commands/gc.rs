//! Commands on the collection of images and blobs: plan, run, workers, latest runs.

use std::collections::BTreeMap;

use berth_api::v1::{
    self, collection_service_client::CollectionServiceClient,
    image_gc_service_client::ImageGcServiceClient, lease_service_client::LeaseServiceClient,
};
use jiff::Timestamp;
use serde::Serialize;
use tonic::transport::Channel;

use super::Session;
use crate::{
    args::{Collected, Gc, Worker},
    errors::Failure,
    output::{age, moment, size, table, word},
    proto_json::ProtoJson,
};

const WORKERS: &str = "image-gc/worker/";
const SLICES: [&str; 2] = ["image-gc/images/", "image-gc/blobs/"];

pub(super) async fn run(session: &Session, command: Gc) -> Result<(), Failure> {
    match command {
        Gc::Plan { what, worker } => plan(session, &what, &worker).await,
        Gc::Run { what, worker } => collect(session, &what, &worker).await,
        Gc::Workers => workers(session).await,
        Gc::Ls => list(session).await,
    }
}

pub(super) async fn worker(
    session: &Session,
    worker: &Worker,
) -> Result<ImageGcServiceClient<Channel>, Failure> {
    let named = worker.gc_address.as_ref();
    match session.connect_beside("image-gc", named).await {
        Ok((_, channel)) => Ok(ImageGcServiceClient::new(channel)),
        Err(Failure::Unreachable { address, source }) => Err(Failure::NoWorker { address, source }),
        Err(failure) => Err(failure),
    }
}

async fn leases(session: &Session, prefix: &str) -> Result<Vec<v1::WorkLease>, Failure> {
    let request = session.request(v1::ListWorkLeasesRequest {
        prefix: prefix.to_owned(),
    });
    let mut client = LeaseServiceClient::new(session.connect().await?);
    Ok(client.list_work_leases(request).await?.into_inner().leases)
}

async fn plan(session: &Session, what: &Collected, at: &Worker) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Objects<'a> {
        objects: Vec<ProtoJson<'a, v1::ImageGcServicePlanResponse>>,
    }

    let request = v1::ImageGcServicePlanRequest {
        images: what.images,
        blobs: what.blobs,
        goal_bytes: what.goal.unwrap_or_default(),
        object: String::new(),
    };
    let objects = planned(session, at, request).await?;
    let printed = Objects {
        objects: objects.iter().map(ProtoJson).collect(),
    };
    Ok(session
        .output
        .object(&printed, || plan_table(&objects, Timestamp::now()))?)
}

/// What a worker says that a run would do.
pub(super) async fn planned(
    session: &Session,
    at: &Worker,
    request: v1::ImageGcServicePlanRequest,
) -> Result<Vec<v1::ImageGcServicePlanResponse>, Failure> {
    let mut client = worker(session, at).await?;
    let answers = client.plan(session.request(request)).await?;
    let mut answers = answers.into_inner();
    let mut objects = Vec::new();
    while let Some(object) = answers.message().await? {
        objects.push(object);
    }
    Ok(objects)
}

fn plan_table(objects: &[v1::ImageGcServicePlanResponse], now: Timestamp) -> String {
    let rows = objects.iter().map(|it| {
        [
            word(it.verdict().as_str_name(), "GC_VERDICT_").to_owned(),
            it.object.clone(),
            size(it.size_bytes),
            age(it.last_used_at.as_ref(), now),
            moment(it.deletable_at.as_ref()),
            it.reason.clone(),
        ]
    });
    let columns = ["VERDICT", "OBJECT", "SIZE", "UNUSED FOR", "FROM", "WHY"];
    let freed = objects
        .iter()
        .filter(|it| it.verdict() == v1::GcVerdict::Delete);
    let (count, bytes) = freed.fold((0, 0_u64), |(count, bytes), it| {
        (count + 1, bytes.saturating_add(it.size_bytes))
    });
    let rows = table(columns, rows.collect());
    format!("{rows}\n\n{count} would go, {}", size(bytes))
}

async fn collect(session: &Session, what: &Collected, at: &Worker) -> Result<(), Failure> {
    let request = v1::ImageGcServiceRunRequest {
        images: what.images,
        blobs: what.blobs,
        goal_bytes: what.goal.unwrap_or_default(),
    };
    let mut client = worker(session, at).await?;
    let answers = client.run(session.request(request)).await?;
    let mut answers = answers.into_inner();
    let mut last = BTreeMap::new();
    while let Some(answer) = answers.message().await? {
        let run = answer.collection.ok_or(Failure::Incomplete("collection"))?;
        last.insert(run.id, run);
    }
    let runs: Vec<_> = last.into_values().collect();
    print(session, &runs)?;
    let wrong = runs.iter().filter(|it| !went_well(it)).count();
    match wrong {
        0 => Ok(()),
        wrong => Err(Failure::NotCollected(wrong)),
    }
}

fn went_well(run: &v1::Collection) -> bool {
    run.ended_at.is_some() && run.aborted.is_empty() && run.failed_total == 0
}

async fn list(session: &Session) -> Result<(), Failure> {
    let request = session.request(v1::ListCollectionsRequest::default());
    let mut client = CollectionServiceClient::new(session.connect().await?);
    let answer = client.list_collections(request).await?.into_inner();
    print(session, &answer.collections)
}

fn print(session: &Session, runs: &[v1::Collection]) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Collections<'a> {
        collections: Vec<ProtoJson<'a, v1::Collection>>,
    }

    let object = Collections {
        collections: runs.iter().map(ProtoJson).collect(),
    };
    Ok(session
        .output
        .object(&object, || run_pages(runs, Timestamp::now()))?)
}

fn run_pages(runs: &[v1::Collection], now: Timestamp) -> String {
    let rows = runs.iter().map(|it| {
        let state = match (it.ended_at.is_some(), it.aborted.is_empty()) {
            _ if it.end() == v1::CollectionEnd::Abandoned => "abandoned".to_owned(),
            (false, _) => format!("{} of 64 slices", it.slices_done.len()),
            (true, true) => "ended".to_owned(),
            (true, false) => "aborted".to_owned(),
        };
        [
            it.id.to_string(),
            word(it.kind().as_str_name(), "COLLECTION_KIND_").to_lowercase(),
            word(it.cause().as_str_name(), "COLLECTION_CAUSE_").to_lowercase(),
            age(it.started_at.as_ref(), now),
            state,
            it.deleted_total.to_string(),
            size(it.deleted_bytes),
            it.failed_total.to_string(),
            it.retained_total.to_string(),
        ]
    });
    let columns = [
        "RUN", "KIND", "CAUSE", "AGE", "STATE", "DELETED", "FREED", "FAILED", "RETAINED",
    ];
    let mut text = table(columns, rows.collect());
    for run in runs {
        if !run.aborted.is_empty() {
            text = format!("{text}\nrun {}: {}", run.id, run.aborted);
        }
        let mut failed: Vec<_> = run.failed.iter().collect();
        failed.sort();
        for (object, problem) in failed {
            text = format!("{text}\nrun {}: {object}: {problem}", run.id);
        }
        if run.goal_missed_bytes > 0 {
            let missed = size(run.goal_missed_bytes);
            text = format!(
                "{text}\nrun {}: {missed} of the goal cannot be freed; the largest in use:",
                run.id
            );
            for it in &run.largest_held {
                let holders: Vec<_> = it.holders.iter().map(holder).collect();
                let (object, bytes) = (&it.object, size(it.size_bytes));
                text = format!("{text}\n  {object}, {bytes}: {}", holders.join(", "));
            }
        }
    }
    text
}

/// Who holds something, in words.
pub(super) fn holder(it: &v1::Holder) -> String {
    let id = &it.id;
    let until = match it.until {
        Some(_) => format!(" until {}", moment(it.until.as_ref())),
        None => String::new(),
    };
    let words = match it.kind() {
        v1::HolderKind::Sandbox => format!("sandbox {id}"),
        v1::HolderKind::Version => format!("version {id}"),
        v1::HolderKind::Artifact => format!("artifact {}", id.trim_start_matches("artifact/")),
        v1::HolderKind::Pin => "a pin".to_owned(),
        v1::HolderKind::Pull => "a pull that is under way".to_owned(),
        v1::HolderKind::Manager => "the manager itself".to_owned(),
        v1::HolderKind::Manifest => format!("manifest {id}"),
        v1::HolderKind::Unspecified => format!("something named `{id}`"),
    };
    format!("{words}{until}")
}

async fn workers(session: &Session) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Workers<'a> {
        workers: Vec<Member<'a>>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Member<'a> {
        lease: ProtoJson<'a, v1::WorkLease>,
        image_slices: usize,
        blob_slices: usize,
    }

    let leases = leases(session, "image-gc/").await?;
    let count = |holder: &str, prefix: &str| {
        let of_it = |it: &&v1::WorkLease| it.holder == holder && it.name.starts_with(prefix);
        leases.iter().filter(of_it).count()
    };
    let workers = leases.iter().filter(|it| it.name.starts_with(WORKERS));
    let object = Workers {
        workers: workers
            .clone()
            .map(|it| Member {
                lease: ProtoJson(it),
                image_slices: count(&it.holder, SLICES[0]),
                blob_slices: count(&it.holder, SLICES[1]),
            })
            .collect(),
    };
    let now = Timestamp::now();
    Ok(session.output.object(&object, || {
        let rows = workers.map(|it| {
            let attribute = |key: &str| it.attributes.get(key).cloned().unwrap_or_default();
            [
                it.name.strip_prefix(WORKERS).unwrap_or(&it.name).to_owned(),
                attribute("version"),
                count(&it.holder, SLICES[0]).to_string(),
                count(&it.holder, SLICES[1]).to_string(),
                age(it.acquired_at.as_ref(), now),
                attribute("socket"),
            ]
        });
        let columns = [
            "WORKER",
            "VERSION",
            "IMAGE SLICES",
            "BLOB SLICES",
            "AGE",
            "SOCKET",
        ];
        table(columns, rows.collect())
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_missed_its_goal_names_the_largest_in_use() {
        let holder = v1::Holder {
            kind: v1::HolderKind::Artifact.into(),
            id: "artifact/shop-1".to_owned(),
            until: None,
        };
        let run = v1::Collection {
            id: 7,
            kind: v1::CollectionKind::Blobs.into(),
            cause: v1::CollectionCause::Pressure.into(),
            started_at: Some(prost_types::Timestamp::default()),
            ended_at: Some(prost_types::Timestamp::default()),
            goal_missed_bytes: 2 << 20,
            largest_held: vec![v1::HeldObject {
                object: "sha256:12".to_owned(),
                size_bytes: 1 << 20,
                holders: vec![holder],
            }],
            ..v1::Collection::default()
        };
        let text = run_pages(&[run], Timestamp::UNIX_EPOCH);
        let (_, told) = text.split_once('\n').unwrap();
        assert_eq!(
            told,
            "7    blobs  pressure  0s   ended  0        0 B    0       0\n\
             run 7: 2.0 MiB of the goal cannot be freed; the largest in use:\n  \
             sha256:12, 1.0 MiB: artifact shop-1"
        );
    }

    #[test]
    fn a_run_went_well_when_all_was_read_and_nothing_failed() {
        let ended = v1::Collection {
            ended_at: Some(prost_types::Timestamp::default()),
            ..v1::Collection::default()
        };
        let failed = v1::Collection {
            failed_total: 1,
            ..ended.clone()
        };
        let aborted = v1::Collection {
            aborted: "a directory".to_owned(),
            ..ended.clone()
        };
        assert!(went_well(&ended));
        for it in [v1::Collection::default(), failed, aborted] {
            assert!(!went_well(&it), "{it:?}");
        }
    }
}

//! A catalog that is far larger than what a worker may keep of it.

use std::time::Duration;

use berth_api::v1::{self, entry::Object, image_gc_service_client::ImageGcServiceClient};

use crate::{Worker, digest, manager::Script};

const ARTIFACTS: usize = 100_000;
const BLOBS_EACH: usize = 10;
/// Blobs that are there; every second one is needed by an artifact.
const HERE: usize = 1000;
/// The names of the blobs alone are 70 MiB in the catalog.
const GROWTH_MAX: u64 = 32 << 20;

/// A manager with a catalog that is made up page by page, and nothing else.
#[derive(Clone, Copy, Debug)]
struct Librarian;

fn artifact(number: usize) -> v1::Entry {
    // The needed ones are spread over the catalog.
    let first = number * BLOBS_EACH;
    let mut blobs: Vec<_> = (first..first + BLOBS_EACH)
        .map(|it| digest(HERE + it))
        .collect();
    let step = ARTIFACTS / HERE;
    if number.is_multiple_of(step) && (number / step).is_multiple_of(2) {
        blobs[0] = digest(number / step);
    }
    let artifact = v1::Artifact {
        id: format!("artifact/{number}"),
        blobs,
        ..v1::Artifact::default()
    };
    v1::Entry {
        revision: 1,
        object: Some(Object::Artifact(artifact)),
    }
}

impl Script for Librarian {
    fn entries(&self, request: v1::ListEntriesRequest) -> v1::ListEntriesResponse {
        let first: usize = request.page_token.parse().unwrap_or(0);
        let artifacts = request.kind() == v1::EntryKind::Artifact;
        let all = if artifacts { ARTIFACTS } else { 0 };
        let end = all.min(first + request.page_size as usize);
        v1::ListEntriesResponse {
            entries: (first..end).map(artifact).collect(),
            next_page_token: match end < all {
                true => end.to_string(),
                false => String::new(),
            },
            revision: 1,
        }
    }

    fn images(&self) -> Vec<v1::Image> {
        let image = |name: &str| v1::Image {
            name: name.to_owned(),
            digest: digest(0),
            ..v1::Image::default()
        };
        vec![image("cluster.local:5000/shop:7"), image("docker.io/x:1")]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_catalog_of_100000_artifacts_only_what_is_here_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let here: Vec<_> = (0..HERE).map(digest).collect();
    let worker = Worker::start(dir.path(), &here, Librarian, &[]);

    let address = format!("unix:{}", worker.socket.display());
    let ready = async {
        loop {
            if let Ok(channel) = berth_api::connect(&address).await {
                let mut client = ImageGcServiceClient::new(channel);
                let status = client.get_image_gc_status(v1::GetImageGcStatusRequest {});
                let status = status.await.unwrap().into_inner();
                if status.leases.is_empty() && status.manager_reachable {
                    return (client, status.memory_rss_bytes);
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ready = tokio::time::timeout(Duration::from_secs(20), ready).await;
    let (mut client, before) = ready.expect("the worker is there");
    let request = v1::ImageGcServicePlanRequest::default();
    let mut answers = client.plan(request).await.unwrap().into_inner();
    let (mut stay, mut go, mut images) = (0, 0, 0);
    while let Some(it) = answers.message().await.unwrap() {
        match (it.kind(), it.verdict()) {
            (v1::CollectionKind::Images, v1::GcVerdict::Keep) => images += 1,
            (v1::CollectionKind::Blobs, v1::GcVerdict::Keep) => stay += 1,
            (v1::CollectionKind::Blobs, v1::GcVerdict::Delete) => go += 1,
            _ => panic!("{it:?}"),
        }
    }
    assert_eq!((stay, go, images), (HERE / 2, HERE / 2, 2));
    let status = client.get_image_gc_status(v1::GetImageGcStatusRequest {});
    let after = status.await.unwrap().into_inner().memory_rss_bytes;
    let growth = after.saturating_sub(before);
    assert!(growth < GROWTH_MAX, "{before} bytes, then {after}");
}

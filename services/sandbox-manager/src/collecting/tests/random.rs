//! Calls of sandboxes, pulls, pins, the catalog and three workers in random order, on a real store and a manager that starts
//! anew now and then.

use super::*;

const INTERLEAVINGS: u64 = 200;
const CALLS: usize = 40;
const NAMES: [&str; 4] = [
    "cluster.local:5000/app:a",
    "one",
    "two",
    "registry.test/three",
];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % bound as u64).unwrap()
    }
}

/// What the images of sandboxes that are not DEAD have to be: here, unless one of them waits for its pull.
async fn assert_in_use_is_here(ground: &Ground, case: &str) {
    // In this order: a Create that goes on pulls between the two.
    let records = ground.store.all().await.unwrap();
    let here = ground.node.image_names().await.unwrap();
    for record in records {
        if record.status == Status::Dead {
            continue;
        }
        for (image, digest) in &record.held_images {
            let found = here.values().any(|it| it.digest == *digest);
            assert!(found, "{case}: {image} of {} {}", record.id, record.status);
        }
    }
}

async fn interleave(seed: u64) -> u64 {
    let (ground, mut random) = (Ground::new(), Random(seed));
    NAMES.iter().for_each(|it| ground.node.publish(&image(it)));
    let mut manager = ground.manager().await;
    let mut workers: [Option<(Worker, Vec<u64>)>; 3] = [None, None, None];
    for call in 0..CALLS {
        let app = image(NAMES[random.below(NAMES.len())]);
        let id = SandboxId::parse(&format!("s{}", random.below(3))).unwrap();
        match random.below(16) {
            0 | 1 => {
                let subject = Subject {
                    image: app,
                    addresses: vec!["10.9.0.2/24".parse().unwrap()],
                };
                let spec = subject.sandbox(id.as_str()).spec;
                let terms = CreateTerms::default();
                if let Ok(record) = manager.registry.admit(&id, spec, terms).await
                    && random.below(2) == 0
                {
                    let running = manager.registry.await_running(&id, record.generation);
                    running.await.unwrap();
                }
            }
            2 => drop(manager.registry.stop(&id, None, None).await),
            3 => drop(manager.registry.delete(&id, None, None).await.unwrap()),
            4 => {
                let arrival = manager.registry.begin_arrival(Arriving::Pull(app.clone()));
                let arrival = arrival.await;
                let (progress, _) = tokio::sync::watch::channel(vec![]);
                let pulled = ground.node.pull(&app, None, &progress).await.unwrap();
                arrival.has_brought(&[pulled]);
            }
            5 => {
                let time = Duration::from_millis(random.below(20) as u64);
                drop(manager.registry.pin_image(&app, Some(time)).await);
            }
            6 => {
                let status = [ArtifactStatus::Active, ArtifactStatus::Archived][random.below(2)];
                manager
                    .put(Object::Artifact(Artifact {
                        id: "a".into(),
                        status,
                        blobs: vec![],
                    }))
                    .await;
            }
            7 if random.below(4) == 0 => manager = ground.manager().await,
            _ => {
                let which = random.below(workers.len());
                match workers[which].take() {
                    None => workers[which] = claim_all(&manager, which, &mut random).await,
                    Some((worker, tokens)) => {
                        let lease = worker.lease.clone();
                        // Its lease may be lost, and its claims with it.
                        drop(manager.registry.commit_deletions(lease, tokens).await);
                        manager.registry.collecting().release(&[worker.lease]);
                    }
                }
            }
        }
        assert_in_use_is_here(&ground, &format!("seed {seed}, call {call}")).await;
    }
    // Nobody does anything any more.
    for id in ["s0", "s1", "s2"] {
        let id = SandboxId::parse(id).unwrap();
        manager.registry.delete(&id, None, None).await.unwrap();
    }
    manager = ground.manager().await;
    let mut free = vec![];
    for (name, named) in ground.node.image_names().await.unwrap() {
        let (name, digest) = (image(&name), named.digest);
        let (_, holders) = manager.registry.holders_of_image(&name).await.unwrap();
        if holders.is_empty() {
            free.push((name, digest));
        }
    }
    for (name, digest) in free {
        let worker = manager.worker(IMAGES, &digest).await;
        let token = manager.token(&worker, claimed(&name, &digest)).await;
        assert_eq!(
            manager.commit(&worker, token).await,
            Outcome::Committed,
            "seed {seed}"
        );
    }
    let runs = ground.store.collections().await.unwrap();
    runs.iter().map(|it| it.collection.deleted_total).sum()
}

/// Claims all images of a slice, as a worker that knows nothing of holders.
async fn claim_all(
    manager: &Manager,
    which: usize,
    random: &mut Random,
) -> Option<(Worker, Vec<u64>)> {
    let names = manager.node.image_names().await.unwrap();
    let digests: Vec<_> = names.values().map(|it| it.digest.clone()).collect();
    let digest = digests.get(random.below(digests.len().max(1)))?;
    let holder = format!("w{which}");
    let worker = manager
        .worker_for(IMAGES, digest, &holder, DEADLINE)
        .await
        .ok()?;
    let slice = Slice::of(digest);
    let objects = names
        .iter()
        .filter(|(_, it)| Slice::of(&it.digest) == slice);
    let objects = objects.map(|(name, it)| (claimed(&image(name), &it.digest), 1));
    let objects: Vec<_> = objects.collect();
    let lease = worker.lease.clone();
    let answers = manager
        .registry
        .claim_deletions(worker.run, lease, objects, u64::MAX)
        .await
        .ok()?;
    let tokens = answers.into_iter().filter_map(|it| match it {
        Answer::Granted { token, .. } => Some(token),
        Answer::Held(_) => None,
    });
    Some((worker, tokens.collect()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_called_in_whatever_order_no_image_in_use_is_deleted() {
    let mut deletions = 0;
    for seed in 0..INTERLEAVINGS {
        let interleaved = tokio::time::timeout(DEADLINE, interleave(seed)).await;
        deletions += interleaved.unwrap_or_else(|_| panic!("seed {seed} does not end"));
    }
    assert!(deletions > INTERLEAVINGS, "{deletions} deletions");
}

//! Creates, pulls, pins, entries, restarts and several collectors in random order, step by step, on the decisions of the
//! manager alone. An oracle of its own says what is in use: whatever a collector deletes is not, each deletion is counted once,
//! and what is of no use is gone after two runs.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_domain::{
    Container, ContainerName, Generation, ImageRef, Resources, SandboxId, SandboxRecord,
    SandboxSpec, Status,
    catalog::{Artifact, ArtifactStatus, Object, Version},
    claims::{Claim, Claimed, Claims, Verdict, judge_image},
    collection::{Collection, CollectionCause, CollectionKind, Slice, SliceReport},
    holders::{Arriving, Holder, Holders, NamedImage, Pin, Standing, parse_artifact_id},
    work_leases::{Asked, LeaseRef, WorkLeases},
};

const INTERLEAVINGS: u64 = 12_000;
const STEPS: usize = 80;
const COLLECTORS: usize = 3;
const TIME_TO_LIVE: Duration = Duration::from_secs(12);
const IMAGES: CollectionKind = CollectionKind::Images;

const NAMES: [&str; 6] = [
    "cluster.local:5000/app:a",
    "cluster.local:5000/app:b",
    "cluster.local:5000/other:c",
    "docker.io/library/one:latest",
    "docker.io/library/two:latest",
    "registry.test/three:1",
];
const DIGESTS: usize = 4;

/// Enough for a test: the same seed gives the same steps.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// All digests are in two slices, so that collectors meet.
fn digest(number: usize) -> String {
    format!(
        "sha256:{:02x}{}",
        number % 2 * 4,
        format!("{number:02x}").repeat(31)
    )
}

fn record(number: usize, image: &ImageRef, now: SystemTime) -> SandboxRecord {
    let container = Container {
        name: ContainerName::parse("app").unwrap(),
        image: image.clone(),
        command: String::new(),
        args: None,
        directory: String::new(),
        env: vec![],
        ports: vec![],
        oom_score: 0,
        config_files: vec![],
        shutdown_timeout: Duration::ZERO,
        resources: Resources::default(),
        readiness_probe: None,
        tty: false,
        stdin: false,
    };
    let spec = SandboxSpec {
        containers: vec![container],
        ..SandboxSpec::default()
    };
    let id = SandboxId::parse(&format!("s{number}")).unwrap();
    SandboxRecord::new(id, Generation(1), Arc::new(spec), vec![], now)
}

/// What a collector is about to do next.
#[derive(Debug)]
enum Doing {
    Lease,
    List(LeaseRef),
    /// Claims that are begun and not looked at.
    Look(LeaseRef, Vec<u64>),
    Commit(LeaseRef, Vec<u64>),
    Report(LeaseRef),
}

#[derive(Debug)]
struct World {
    clock: Duration,
    // The node.
    images: BTreeMap<String, NamedImage>,
    // The store.
    records: BTreeMap<SandboxId, SandboxRecord>,
    objects: BTreeMap<String, Object>,
    pins: Vec<Pin>,
    runs: Vec<Collection>,
    counted: BTreeSet<(u64, String)>,
    epoch: u32,
    // The memory of the manager.
    leases: WorkLeases,
    claims: Claims,
    holders: Holders,
    arriving: Vec<(ImageRef, Option<SandboxId>)>,
    // What is checked.
    collectors: Vec<Doing>,
    deleted: Vec<(u64, String)>,
    begun: usize,
}

impl World {
    fn new() -> Self {
        Self {
            clock: Duration::ZERO,
            images: BTreeMap::new(),
            records: BTreeMap::new(),
            objects: BTreeMap::new(),
            pins: vec![],
            runs: vec![],
            counted: BTreeSet::new(),
            epoch: 1,
            leases: WorkLeases::default(),
            claims: Claims::default(),
            holders: Holders::default(),
            arriving: vec![],
            collectors: (0..COLLECTORS).map(|_| Doing::Lease).collect(),
            deleted: vec![],
            begun: 0,
        }
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.clock
    }

    fn standing(&self) -> Standing {
        let arriving = self.arriving.iter();
        Standing {
            images: self.images.clone(),
            pins: self.pins.clone(),
            arriving: arriving.map(|(it, _)| Arriving::Pull(it.clone())).collect(),
        }
    }

    /// Said once more, and in another way than `Holders` does.
    fn in_use(&self, digest: &str) -> bool {
        let stands = |name: &str| self.images.get(name).is_some_and(|it| it.digest == digest);
        let refers =
            |image: &ImageRef| image.digest() == Some(digest) || stands(&image.to_string());
        let sandbox = self.records.values().any(|it| {
            let live = it.status != Status::Dead;
            let kept = it.held_images.values().any(|it| it == digest);
            live && (kept || it.spec.images().into_iter().any(refers))
        });
        let names: Vec<_> = self.images.keys().filter(|it| stands(it)).collect();
        let artifact = |id: &str| names.iter().any(|it| parse_artifact_id(it) == Some(id));
        let catalog = self.objects.values().any(|it| match it {
            Object::Artifact(it) => it.status != ArtifactStatus::Archived && artifact(&it.id),
            Object::Version(it) => {
                it.image.as_ref().is_some_and(refers)
                    || it.artifact.as_deref().is_some_and(artifact)
            }
            Object::App(_) | Object::Host(_) | Object::Service(_) => false,
        });
        let pinned = self
            .pins
            .iter()
            .any(|it| it.holds_at(self.now()) && stands(&it.image));
        sandbox || catalog || pinned || self.arriving.iter().any(|(it, _)| refers(it))
    }

    fn store(&mut self, record: SandboxRecord) {
        self.holders.place(&record);
        self.records.insert(record.id.clone(), record);
    }

    fn put(&mut self, key: &str, object: Object) {
        self.holders.put(&object);
        self.objects.insert(key.to_owned(), object);
    }

    fn admit(&mut self, random: &mut Random) {
        let name = random.pick(&NAMES);
        let image = match random.below(4) {
            0 => format!("registry.test/elsewhere@{}", digest(random.below(DIGESTS))),
            _ => name.to_owned(),
        };
        let image = ImageRef::parse(&image).unwrap();
        self.begun += 1;
        let mut record = record(self.begun, &image, self.now());
        if let Some(it) = self.images.get(&image.to_string()) {
            record.held_images.insert(image, it.digest.clone());
        }
        self.store(record);
    }

    /// A sandbox goes on: it pulls what is not here, runs, is lost, dies, goes.
    fn go_on(&mut self, random: &mut Random) {
        let ids: Vec<_> = self.records.keys().cloned().collect();
        if ids.is_empty() {
            return;
        }
        let mut record = self.records[&ids[random.below(ids.len())]].clone();
        let image = (*record.spec.images().first().unwrap()).clone();
        match (record.status, random.below(4)) {
            (Status::Dead, _) => {
                self.holders.forget(&record.id);
                self.records.remove(&record.id);
                return;
            }
            (_, 0 | 1) => record.status = Status::Dead,
            (Status::Running, _) => record.status = Status::NotReady,
            _ => match self.images.get(&image.to_string()) {
                Some(it) => {
                    record.held_images.insert(image, it.digest.clone());
                    record.status = Status::Running;
                }
                None => {
                    self.arriving.push((image, Some(record.id)));
                    return;
                }
            },
        }
        self.store(record);
    }

    fn arrive(&mut self, random: &mut Random) {
        if self.arriving.is_empty() {
            return;
        }
        let (image, _) = self.arriving.remove(random.below(self.arriving.len()));
        let digest = match image.digest() {
            Some(digest) => digest.to_owned(),
            None => digest(random.below(DIGESTS)),
        };
        let name = image.to_string();
        self.claims.break_image(&name, Some(&digest));
        let image = NamedImage {
            digest,
            pinned: false,
        };
        self.images.insert(name, image);
    }

    fn change_catalog(&mut self, random: &mut Random) {
        let id = random.pick(&["a", "b", "c"]);
        match random.below(4) {
            0 => {
                let object = Object::Version(Version {
                    id: id.into(),
                    app: "app".into(),
                    image: (random.below(2) == 0)
                        .then(|| ImageRef::parse(random.pick(&NAMES)).unwrap()),
                    artifact: (random.below(2) == 0).then(|| id.to_owned()),
                    static_artifact: None,
                });
                self.put(&format!("version/{id}"), object);
            }
            1 => {
                let key = random.pick(&["version", "artifact"]);
                if let Some(it) = self.objects.remove(&format!("{key}/{id}")) {
                    self.holders.remove(&it.key());
                }
            }
            _ => {
                let status = random.pick(&[
                    ArtifactStatus::Active,
                    ArtifactStatus::Archived,
                    ArtifactStatus::Archived,
                ]);
                let object = Object::Artifact(Artifact {
                    id: id.into(),
                    status,
                    blobs: vec![],
                });
                self.put(&format!("artifact/{id}"), object);
            }
        }
    }

    fn pin(&mut self, random: &mut Random) {
        let image = random.pick(&NAMES);
        if self.images.contains_key(image) {
            let time = Duration::from_secs(random.below(20) as u64);
            self.pins.retain(|it| it.image != image);
            self.pins.push(Pin {
                image: image.to_owned(),
                expires_at: Some(self.now() + time),
            });
        }
    }

    fn begin_pull(&mut self, random: &mut Random) {
        let image = ImageRef::parse(random.pick(&NAMES)).unwrap();
        self.claims.break_image(&image.to_string(), None);
        self.arriving.push((image, None));
    }

    /// The manager dies and starts: its memory is gone, and pulls with it.
    fn restart(&mut self) {
        self.epoch += 1;
        self.leases = WorkLeases::default();
        self.claims = Claims::default();
        self.arriving.clear();
        self.holders = Holders::default();
        self.records.values().for_each(|it| self.holders.place(it));
        self.objects.values().for_each(|it| self.holders.put(it));
    }

    fn run(&mut self) -> u64 {
        if let Some(run) = self.runs.iter().find(|it| it.ended_at.is_none()) {
            return run.id;
        }
        let id = self.runs.len() as u64 + 1;
        let cause = CollectionCause::Requested;
        let mut run = Collection::new(id, IMAGES, cause, 0, self.now());
        // Where no image is.
        run.slices_done = Slice::all().filter(|it| it.number() > 1).collect();
        self.runs.push(run);
        id
    }

    fn count(&mut self, run: u64, name: &str, by: bool) {
        let key = (run, name.to_owned());
        let changed = match by {
            true => self.counted.insert(key),
            false => self.counted.remove(&key),
        };
        let run = &mut self.runs[usize::try_from(run - 1).unwrap()];
        match (changed, by) {
            (true, true) => run.deleted_total += 1,
            (true, false) => run.deleted_total -= 1,
            (false, _) => {}
        }
    }

    /// One step of a collector. `dies` cuts a commit off between its count and its deletion.
    fn collect(&mut self, which: usize, dies: bool, random: &mut Random) {
        let run = self.run();
        let doing = std::mem::replace(&mut self.collectors[which], Doing::Lease);
        let held = |world: &Self, it: &LeaseRef| world.leases.held(it, world.clock).is_some();
        let next = match doing {
            Doing::Lease => {
                let done = &self.runs.last().unwrap().slices_done;
                let open: Vec<_> = Slice::all().filter(|it| !done.contains(it)).collect();
                let asked = Asked {
                    name: IMAGES.lease(open[random.below(open.len())]),
                    holder: format!("c{which}"),
                    time_to_live: TIME_TO_LIVE,
                    attributes: BTreeMap::new(),
                };
                match self.leases.acquire(self.epoch, asked, self.clock) {
                    Ok(it) => Doing::List(LeaseRef {
                        name: it.name,
                        token: it.token,
                    }),
                    Err(_) => Doing::Lease,
                }
            }
            Doing::List(lease) if held(self, &lease) => {
                let (_, slice) = CollectionKind::of_lease(&lease.name).unwrap();
                let mut tokens = vec![];
                for (name, image) in &self.images {
                    if Slice::of(&image.digest) == Some(slice) {
                        let claim = Claim {
                            lease: lease.clone(),
                            collection: run,
                            object: Claimed::Image {
                                name: name.clone(),
                                digest: image.digest.clone(),
                            },
                            size_bytes: 1,
                            catalog_revision: 0,
                        };
                        tokens.push(self.claims.begin(self.epoch, claim).unwrap());
                    }
                }
                Doing::Look(lease, tokens)
            }
            Doing::Look(lease, tokens) if held(self, &lease) => {
                let (standing, now) = (self.standing(), self.now());
                let mut granted = vec![];
                for token in tokens {
                    let Some(claim) = self.claims.get(token).cloned() else {
                        continue;
                    };
                    if self.images.contains_key(claim.object.name()) {
                        self.count(run, claim.object.name(), false);
                    }
                    let digest = claim.object.digest();
                    match self.holders.of_digest(digest, &standing, now).is_empty() {
                        true => granted.push(token),
                        false => drop(self.claims.take(token)),
                    }
                }
                Doing::Commit(lease, granted)
            }
            Doing::Commit(lease, mut tokens) if held(self, &lease) => match tokens.pop() {
                Some(token) => {
                    self.commit(token, dies);
                    Doing::Commit(lease, tokens)
                }
                None => Doing::Report(lease),
            },
            Doing::Report(lease) if held(self, &lease) => {
                let (_, slice) = CollectionKind::of_lease(&lease.name).unwrap();
                let now = self.now();
                let report = SliceReport::default();
                self.runs.last_mut().unwrap().report(slice, report, now);
                self.leases.release(&[lease]);
                Doing::Lease
            }
            Doing::List(_) | Doing::Look(..) | Doing::Commit(..) | Doing::Report(_) => Doing::Lease,
        };
        self.collectors[which] = next;
        if dies {
            self.restart();
        }
    }

    /// What the manager does in one go, alone.
    fn commit(&mut self, token: u64, dies: bool) {
        let Some(claim) = self.claims.take(token) else {
            return;
        };
        let Claimed::Image { name, digest } = &claim.object else {
            return;
        };
        let holders: Vec<Holder> = self.holders.of_digest(digest, &self.standing(), self.now());
        if judge_image(digest, self.images.get(name), holders) != Verdict::Delete {
            return;
        }
        self.count(claim.collection, name, true);
        if dies {
            return;
        }
        assert!(!self.in_use(digest), "{name} {digest} is in use: {self:#?}");
        assert_eq!(&self.images.remove(name).unwrap().digest, digest);
        self.deleted.push((claim.collection, name.clone()));
    }

    fn step(&mut self, random: &mut Random) {
        self.clock += Duration::from_secs(1);
        match random.below(20) {
            0 => self.admit(random),
            1..=3 => self.go_on(random),
            4 | 5 => self.arrive(random),
            6 => self.change_catalog(random),
            7 => self.pin(random),
            8 | 9 => self.begin_pull(random),
            10 if random.below(8) == 0 => self.restart(),
            // A collector hangs.
            10 => self.clock += TIME_TO_LIVE,
            _ => {
                let which = random.below(COLLECTORS);
                let dies = random.below(40) == 0;
                self.collect(which, dies, random);
            }
        }
    }

    /// Runs to the end of the run that is under way, and of one more; nobody else does anything.
    fn two_runs(&mut self, random: &mut Random) {
        self.arriving.clear();
        // Pins end.
        self.clock += Duration::from_secs(20);
        let last = self.run() + 1;
        for _ in 0..10_000 {
            self.clock += Duration::from_secs(1);
            self.collect(random.below(COLLECTORS), false, random);
            let ended = |it: &Collection| it.id >= last && it.ended_at.is_some();
            if self.runs.last().is_some_and(ended) {
                return;
            }
        }
        panic!("two runs do not end: {self:#?}");
    }
}

#[test]
fn whatever_is_done_in_whatever_order_nothing_in_use_goes_and_the_rest_goes_in_two_runs() {
    let (mut deletions, mut kept) = (0, 0);
    for seed in 0..INTERLEAVINGS {
        let (mut world, mut random) = (World::new(), Random(seed));
        let run = std::panic::AssertUnwindSafe(|| {
            for _ in 0..STEPS {
                world.step(&mut random);
            }
            world.two_runs(&mut random);
            for (name, image) in &world.images {
                assert!(
                    world.in_use(&image.digest),
                    "{name} is of no use: {world:#?}"
                );
            }
            // Counted once in its run, however often it came and went.
            let distinct: BTreeSet<_> = world.deleted.iter().cloned().collect();
            for run in &world.runs {
                let of_run = |(id, _): &&(u64, String)| *id == run.id;
                let deleted = distinct.iter().filter(of_run).count() as u64;
                let counted = world.counted.iter().filter(of_run).count() as u64;
                assert_eq!(run.deleted_total, counted, "{world:#?}");
                assert!(counted <= deleted + 1, "{world:#?}");
            }
            deletions += world.deleted.len();
            kept += world.images.len();
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
    // The steps lead to something.
    assert!(deletions > 20_000 && kept > 5_000, "{deletions} {kept}");
}

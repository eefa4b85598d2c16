//! One client with some ids of its own: does what its stream of moves says, and holds the model of each id against it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use berth_api::v1::{self, Sandbox, SandboxStatus};
use berth_e2e::faults::{is_alive, signal};

use crate::{
    model::{self, Belief, Reason, Verdict},
    plan::{Action, Kind, Move, SLOTS, next_move},
    random::Random,
    world::{World, answer, started},
};

/// How long a fault and what follows from it may keep a state from coming.
const SETTLED: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub(crate) struct Worker {
    world: Arc<World>,
    name: String,
    random: Random,
    ids: Vec<Id>,
}

/// One id, with what is believed of it.
struct Id {
    name: String,
    belief: Belief,
    /// Counted as a holder of an address.
    holds: bool,
    process: Option<Process>,
    /// CPU time at the last look.
    cpu: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    started: u64,
}

impl Worker {
    pub(crate) fn new(world: Arc<World>, seed: u64, number: u64) -> Self {
        let id = |slot| Id {
            name: format!("w{number}-{slot}"),
            belief: Belief::Absent,
            holds: false,
            process: None,
            cpu: 0,
        };
        Self {
            world,
            name: format!("worker{number}"),
            random: Random::new(seed, number),
            ids: (0..SLOTS).map(id).collect(),
        }
    }

    /// Works until it is over, then deletes what it has.
    pub(crate) async fn work(mut self) -> anyhow::Result<()> {
        while !self.world.over.is_cancelled() {
            let Move {
                slot,
                action,
                repeats,
            } = next_move(&mut self.random);
            let world = self.world.clone();
            let slot = usize::try_from(slot).unwrap_or_default();
            let Self { name, ids, .. } = &mut self;
            let id = &mut ids[slot];
            let done = match action {
                Action::Create(kind) => id.create(&world, kind, false, repeats).await,
                Action::CreateTwice(kind) => id.create(&world, kind, true, repeats).await,
                Action::Delete => id.delete(&world).await,
                Action::Stop => id.stop(&world).await,
                Action::Kill => id.kill(&world).await,
                Action::Look => id.look(&world).await,
            };
            let believed = id.belief.clone();
            match done {
                Ok(outcome) => {
                    world.remark(
                        name,
                        &format!("{} {action:?}: {outcome}, {believed:?}", id.name),
                    );
                }
                Err(error) => {
                    let record = answer(world.node.get(&id.name)).await.map(brief);
                    bail!(
                        "{name}, {action:?} of {}: {error:#}\nbelieved: {believed:?}\nthe record: {record:?}",
                        id.name
                    );
                }
            }
        }
        self.clear().await
    }

    async fn clear(&mut self) -> anyhow::Result<()> {
        let world = self.world.clone();
        for id in &mut self.ids {
            id.look(&world).await?;
            id.delete(&world).await?;
        }
        Ok(())
    }
}

impl Id {
    async fn create(
        &mut self,
        world: &World,
        kind: Kind,
        twice: bool,
        repeats: bool,
    ) -> anyhow::Result<String> {
        let born = Instant::now();
        self.hold(world, true);
        let name = self.name.clone();
        let call = async || answer(world.node.create(&name, kind.spec())).await;
        let (mut answers, mut lost) = (vec![], false);
        if twice {
            let other = answer(world.node.create(&name, kind.spec()));
            let (one, two) = futures::join!(call(), other);
            answers.extend([one, two]);
        } else {
            answers.push(call().await);
        }
        loop {
            let outcome = told(&answers[0]);
            world.note(&self.name, &format!("Create {kind:?}"), &outcome);
            let around = world.around(born);
            let mut verdicts = answers
                .iter()
                .map(|it| model::created(&self.belief, kind, born, it, around));
            let (first, last) = (verdicts.next(), verdicts.next());
            if let (Some(Verdict::Is(one)), Some(Verdict::Is(two))) = (&first, &last) {
                let both_fresh = answers.iter().all(Result::is_ok) && kind != Kind::Brief;
                ensure!(
                    !both_fresh || one == two,
                    "two callers were told {one:?} and {two:?}"
                );
            }
            let violation = [&first, &last].into_iter().flatten();
            for it in violation {
                if let Verdict::Violation(what) = it {
                    bail!("{what}");
                }
            }
            // Of two, the one that stands tells more than the one that did not come to.
            let known = [first, last].into_iter().flatten();
            let known: Vec<_> = known
                .filter_map(|it| match it {
                    Verdict::Is(belief) => Some(belief),
                    Verdict::Lost | Verdict::Violation(_) => None,
                })
                .collect();
            // Refused behind a lost answer, it may have a record all the same: that of the Create that was lost.
            let all_known = known.len() == answers.len();
            if all_known && lost && answers.iter().all(Result::is_err) {
                return self.ask(world, kind, born).await;
            }
            if all_known {
                let live = known.iter().find(|it| matches!(it, Belief::Live(_)));
                let changed = known.iter().find(|it| **it != self.belief);
                let belief = live.or(changed).or(known.last());
                let belief = belief.cloned().unwrap_or(Belief::Absent);
                self.believe(world, belief);
                return Ok(outcome);
            }
            ensure!(
                born.elapsed() < SETTLED,
                "no answer within {SETTLED:?}: {outcome}"
            );
            if !repeats {
                return self.ask(world, kind, born).await;
            }
            lost = true;
            tokio::time::sleep(LOOK_AGAIN).await;
            answers = vec![call().await];
        }
    }

    /// Gets a lost answer of a Create by looking at what has become of it.
    async fn ask(&mut self, world: &World, kind: Kind, born: Instant) -> anyhow::Result<String> {
        let seen = self.settled(world).await?;
        let around = world.around(born);
        let belief = match seen {
            Err(reason) => {
                ensure!(reason == "SANDBOX_NOT_FOUND", "asking: {reason}");
                ensure!(
                    self.belief == Belief::Absent,
                    "{:?} is gone after a Create",
                    self.belief
                );
                Belief::Absent
            }
            Ok(it) if it.status() == SandboxStatus::Running => {
                let verdict = model::created(&self.belief, kind, born, &Ok(it.clone()), around);
                // One of another kind stays what it is, and only the refusal was lost.
                let verdict = match (&self.belief, verdict) {
                    (Belief::Live(live), Verdict::Violation(_)) if live.kind != kind => {
                        model::looked(&self.belief, &Ok(it), around)
                    }
                    (_, verdict) => verdict,
                };
                match verdict {
                    Verdict::Is(belief) => belief,
                    Verdict::Lost => bail!("a look is no lost answer"),
                    Verdict::Violation(what) => bail!("asked after a lost answer: {what}"),
                }
            }
            Ok(it) => {
                let least = match &self.belief {
                    Belief::Absent => 1,
                    Belief::Dead { generation } => *generation,
                    Belief::Live(live) => {
                        ensure!(live.kind == Kind::Brief, "{live:?} is {it:?}");
                        live.generation
                    }
                };
                ensure!(it.generation >= least, "{:?} is {it:?}", self.belief);
                Belief::Dead {
                    generation: it.generation,
                }
            }
        };
        let outcome = format!("asked: {}", word(&belief));
        world.note(&self.name, &format!("Create {kind:?}"), &outcome);
        self.believe(world, belief);
        Ok(outcome)
    }

    async fn delete(&mut self, world: &World) -> anyhow::Result<String> {
        let begun = Instant::now();
        let mut again = false;
        loop {
            let deleted = answer(world.node.delete(&self.name)).await;
            let outcome = deleted
                .as_ref()
                .map_or_else(Clone::clone, |it| format!("existed: {it}"));
            world.note(&self.name, "Delete", &outcome);
            match model::deleted(&self.belief, again, &deleted, world.around(begun)) {
                Verdict::Is(belief) => {
                    self.nothing_is_left(world)?;
                    self.believe(world, belief);
                    return Ok(outcome);
                }
                Verdict::Violation(what) => bail!("{what}"),
                Verdict::Lost => again = true,
            }
            ensure!(
                begun.elapsed() < SETTLED,
                "no end within {SETTLED:?}: {outcome}"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// An answered Delete has left nothing: looked for without asking Berth.
    fn nothing_is_left(&self, world: &World) -> anyhow::Result<()> {
        if let Some(it) = self.process {
            ensure!(
                !self.lives(it),
                "process {} of a deleted sandbox runs",
                it.pid
            );
        }
        ensure!(
            world.first_process(&self.name).is_none(),
            "a process of a deleted sandbox runs"
        );
        let home = world.node.home();
        for folder in ["run/ns", "run/sandboxes", "log"] {
            let path = home.join(folder).join(&self.name);
            ensure!(!path.exists(), "a deleted sandbox left {}", path.display());
        }
        Ok(())
    }

    async fn stop(&mut self, world: &World) -> anyhow::Result<String> {
        let begun = Instant::now();
        loop {
            let stopped = answer(self.stop_call(world)).await;
            let outcome = told(&stopped);
            world.note(&self.name, "Stop", &outcome);
            match model::stopped(&self.belief, &stopped, self.around(world, begun)) {
                Verdict::Is(belief) => {
                    if belief != Belief::Absent
                        && let Some(it) = self.process
                    {
                        ensure!(
                            !self.lives(it),
                            "process {} of a stopped sandbox runs",
                            it.pid
                        );
                    }
                    self.believe(world, belief);
                    return Ok(outcome);
                }
                Verdict::Violation(what) => bail!("{what}"),
                Verdict::Lost => {}
            }
            ensure!(
                begun.elapsed() < SETTLED,
                "no end within {SETTLED:?}: {outcome}"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn stop_call(&self, world: &World) -> Result<Sandbox, tonic::Status> {
        let request = v1::StopRequest {
            id: self.name.clone(),
            expected_generation: 0,
        };
        let answer = world.node.sandboxes().stop(request).await?.into_inner();
        Ok(answer.sandbox.unwrap_or_default())
    }

    /// Kills the app by hand, and waits until the record says so.
    async fn kill(&mut self, world: &World) -> anyhow::Result<String> {
        let (Belief::Live(live), Some(process)) = (self.belief.clone(), self.process) else {
            return Ok("nothing to kill".to_owned());
        };
        if live.kind == Kind::Brief {
            return Ok("it ends by itself".to_owned());
        }
        ensure!(
            self.lives(process),
            "the app of {live:?} was dead already: {process:?}"
        );
        let begun = Instant::now();
        signal(process.pid, "KILL")?;
        let seen = loop {
            match self.settled(world).await? {
                Ok(it) if it.status() == SandboxStatus::Dead => break it,
                Ok(it) => ensure!(
                    it.generation == live.generation,
                    "{live:?} was killed: {it:?}"
                ),
                Err(reason) => bail!("{live:?} was killed, and a Get says {reason}"),
            }
            ensure!(
                begun.elapsed() < SETTLED,
                "a kill is not noticed within {SETTLED:?}"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        let around = world.around(begun);
        model::killed(&live, &seen, around.faults).map_err(anyhow::Error::msg)?;
        let cause = seen.exit.map(|it| it.cause().as_str_name());
        let outcome = cause.unwrap_or_default().to_owned();
        world.note(&self.name, "kill by hand", &outcome);
        if !around.faults.any() {
            let took = if begun.elapsed() < Duration::from_secs(1) {
                "within"
            } else {
                "after"
            };
            world.note(
                &self.name,
                "a kill in peace is in the record",
                &format!("{took} a second"),
            );
        }
        let generation = seen.generation;
        self.believe(world, Belief::Dead { generation });
        Ok(outcome)
    }

    async fn look(&mut self, world: &World) -> anyhow::Result<String> {
        let begun = Instant::now();
        let seen = answer(world.node.get(&self.name)).await;
        let outcome = told(&seen);
        world.note(&self.name, "Get", &outcome);
        match model::looked(&self.belief, &seen, self.around(world, begun)) {
            Verdict::Is(belief) => self.believe(world, belief),
            Verdict::Lost => return Ok(outcome),
            Verdict::Violation(what) => bail!("{what}"),
        }
        if let (Belief::Live(live), Some(process)) = (&self.belief, self.process)
            && live.kind != Kind::Brief
        {
            ensure!(
                self.lives(process),
                "the app of {live:?} is not {process:?} any more"
            );
            let first = world.first_process(&self.name);
            ensure!(
                first == Some(process.pid),
                "{first:?} took the place of {process:?}"
            );
            self.measure(world).await?;
        }
        Ok(outcome)
    }

    /// Counters of a sandbox that runs grow.
    async fn measure(&mut self, world: &World) -> anyhow::Result<()> {
        let begun = Instant::now();
        let request = v1::SnapshotRequest {
            id: self.name.clone(),
        };
        let read = answer(async { world.node.sandboxes().snapshot(request).await }).await;
        match read {
            Ok(it) => {
                let total = it.into_inner().total.unwrap_or_default().total_cpu_time;
                ensure!(
                    total >= self.cpu,
                    "CPU time went from {} to {total}",
                    self.cpu
                );
                self.cpu = total;
                Ok(())
            }
            Err(reason) if reason == model::TRANSPORT && world.around(begun).faults.manager => {
                Ok(())
            }
            Err(reason) => bail!("a Snapshot was refused with {reason}"),
        }
    }

    /// What there is once nothing is under way.
    async fn settled(&self, world: &World) -> anyhow::Result<Result<Sandbox, Reason>> {
        let begun = Instant::now();
        loop {
            let seen = answer(world.node.get(&self.name)).await;
            match &seen {
                Ok(it) => match it.status() {
                    SandboxStatus::Running | SandboxStatus::Dead => return Ok(seen),
                    SandboxStatus::Pending
                    | SandboxStatus::Stopped
                    | SandboxStatus::NotReady
                    | SandboxStatus::Unspecified => {}
                },
                Err(reason) if reason == "SANDBOX_NOT_FOUND" => return Ok(seen),
                Err(reason) => {
                    let excused = world.around(begun).faults.any();
                    ensure!(excused, "a Get was refused with {reason}");
                }
            }
            ensure!(
                begun.elapsed() < SETTLED,
                "not settled within {SETTLED:?}: {seen:?}"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What there was since `begun`; for one that exits by itself, since it was born.
    fn around(&self, world: &World, begun: Instant) -> model::Circumstances {
        match &self.belief {
            Belief::Live(live) if live.kind == Kind::Brief => world.around(live.born),
            Belief::Live(_) | Belief::Absent | Belief::Dead { .. } => world.around(begun),
        }
    }

    fn lives(&self, process: Process) -> bool {
        is_alive(process.pid) && started(process.pid) == Some(process.started)
    }

    fn believe(&mut self, world: &World, belief: Belief) {
        let same = |a: &Belief, b: &Belief| match (a, b) {
            (Belief::Live(a), Belief::Live(b)) => a.generation == b.generation,
            _ => false,
        };
        if !same(&self.belief, &belief) {
            self.cpu = 0;
            self.process = match &belief {
                Belief::Live(_) => world.first_process(&self.name).and_then(|pid| {
                    let started = started(pid)?;
                    Some(Process { pid, started })
                }),
                Belief::Absent | Belief::Dead { .. } => None,
            };
        }
        self.hold(world, matches!(belief, Belief::Live(_)));
        self.belief = belief;
    }

    fn hold(&mut self, world: &World, holds: bool) {
        if self.holds != holds {
            self.holds = holds;
            world.holds(holds);
        }
    }
}

/// Without what says nothing about its state.
fn brief(record: Sandbox) -> Sandbox {
    Sandbox {
        spec: None,
        phases: vec![],
        containers: vec![],
        ..record
    }
}

fn told(answer: &Result<Sandbox, Reason>) -> String {
    match answer {
        Ok(it) => it
            .status()
            .as_str_name()
            .trim_start_matches("SANDBOX_STATUS_")
            .to_owned(),
        Err(reason) => reason.clone(),
    }
}

fn word(belief: &Belief) -> &'static str {
    match belief {
        Belief::Absent => "absent",
        Belief::Live(_) => "live",
        Belief::Dead { .. } => "dead",
    }
}

//! Which steps lead from what is seen to what is wanted. Pure, total, deterministic; running them is somebody else's.
//!
//! A bring-up, where what stands side by side runs side by side:
//!
//! ```text
//! ensure-image ──────────────┐
//! prepare ──┬── create-container app ──┐
//!           └── create-container pause ┼─ create-task pause ── start-task pause ─┐
//! open-namespaces ──┬──────────────────┴─ create-task app ──┬─ start-task app ───┴─ await-ready
//!                   └─ attach-link ─────────────────────────┘
//! ```
//!
//! In the network of the node there is no link to attach; else it is the same.

use std::time::Duration;

use crate::{
    spec::{STOP_GRACE_DEFAULT, SandboxSpec},
    step::{ContainerSeen, Extent, Observed, Plan, Role, Step, TaskSeen},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    Present,
    Absent,
}

/// How tasks are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// With the grace that each container asked for.
    Graceful,
    /// At once: a failed Create has nothing to save.
    AtOnce,
}

/// Returns the plan that leads from `seen` to `goal`.
pub fn decide(goal: Goal, spec: &SandboxSpec, seen: &Observed) -> Plan {
    match goal {
        Goal::Absent => tear_down(Some(spec), seen, Manner::Graceful),
        Goal::Present if *seen == Observed::default() => bring_up(spec),
        Goal::Present if stands(spec, seen) => await_ready(),
        // What is half there cannot be trusted to be what the spec asks for.
        Goal::Present => tear_down(Some(spec), seen, Manner::AtOnce).then(bring_up(spec)),
    }
}

/// Whether everything that the spec asks for is there and runs, and nothing else.
pub fn stands(spec: &SandboxSpec, seen: &Observed) -> bool {
    let runs = |role: &Role| {
        seen.containers
            .get(role)
            .is_some_and(|it| it.task == TaskSeen::Running)
    };
    seen.prepared == Extent::Whole
        && seen.namespaces == Extent::Whole
        && (seen.link || spec.host_network)
        && seen.containers.len() == spec.containers.len() + 1
        && roles(spec).all(|role| runs(&role))
}

/// The pause, then the app containers in the order of the spec.
pub fn roles(spec: &SandboxSpec) -> impl Iterator<Item = Role> {
    std::iter::once(Role::Pause).chain(
        spec.containers
            .iter()
            .map(|container| Role::App(container.name.clone())),
    )
}

fn await_ready() -> Plan {
    let mut plan = Plan::default();
    plan.add(Step::AwaitReady, []);
    plan
}

fn bring_up(spec: &SandboxSpec) -> Plan {
    let mut plan = Plan::default();
    let namespaces = plan.add(Step::OpenNamespaces, []);
    let prepare = plan.add(Step::Prepare, []);
    let images: Vec<_> = spec
        .images()
        .into_iter()
        .map(|image| (image, plan.add(Step::EnsureImage(image.clone()), [])))
        .collect();
    let link = (!spec.host_network).then(|| plan.add(Step::AttachLink, [namespaces]));
    let mut started = Vec::new();
    for role in roles(spec) {
        let image = match &role {
            Role::Pause => None,
            Role::App(name) => spec.container(name).and_then(|container| {
                images
                    .iter()
                    .find(|(image, _)| *image == &container.image)
                    .map(|(_, at)| *at)
            }),
        };
        let stored = plan.add(
            Step::CreateContainer(role.clone()),
            image.into_iter().chain([prepare]),
        );
        let created = plan.add(Step::CreateTask(role.clone()), [stored, namespaces]);
        let needs_link = link.filter(|_| matches!(role, Role::App(_)));
        started.push(plan.add(
            Step::StartTask(role),
            needs_link.into_iter().chain([created]),
        ));
    }
    plan.add(Step::AwaitReady, started.into_iter().chain(link));
    plan
}

/// Returns the plan that removes all that is seen. Without a spec, graces are the default.
pub fn tear_down(spec: Option<&SandboxSpec>, seen: &Observed, manner: Manner) -> Plan {
    let mut plan = Plan::default();
    let (mut app_ends, mut ends, mut removals) = (vec![], vec![], vec![]);
    let apps_first = seen.containers.iter().rev();
    for (role, ContainerSeen { stored, task }) in apps_first {
        let mut last = None;
        // Of one that is unknown all that is sure is that it may run.
        if matches!(task, TaskSeen::Running | TaskSeen::Unknown) {
            let grace = match manner {
                Manner::AtOnce => Duration::ZERO,
                Manner::Graceful => grace_of(spec, role),
            };
            // The pause goes last: until then it reaps what the apps leave.
            let after = if *role == Role::Pause {
                app_ends.clone()
            } else {
                vec![]
            };
            let stop = plan.add(
                Step::StopTask {
                    role: role.clone(),
                    grace,
                },
                after,
            );
            if *role != Role::Pause {
                app_ends.push(stop);
            }
            last = Some(stop);
        }
        if *task != TaskSeen::Missing {
            last = Some(plan.add(Step::DeleteTask(role.clone()), last));
        }
        ends.extend(last);
        if *stored {
            last = Some(plan.add(Step::RemoveContainer(role.clone()), last));
        }
        removals.extend(last);
    }
    let mut network = ends;
    if seen.link {
        network = vec![plan.add(Step::DetachLink, network)];
    }
    if seen.namespaces != Extent::Nothing {
        plan.add(Step::CloseNamespaces, network);
    }
    if seen.prepared != Extent::Nothing {
        plan.add(Step::Release, removals);
    }
    plan
}

/// Returns the plan that takes back whatever part of `plan` has run, the failed step included.
pub fn undo(plan: &Plan) -> Plan {
    tear_down(None, &plan.traces(), Manner::AtOnce)
}

fn grace_of(spec: Option<&SandboxSpec>, role: &Role) -> Duration {
    match role {
        // It ends at SIGTERM and has nothing to save.
        Role::Pause => Duration::from_secs(1),
        Role::App(name) => spec
            .and_then(|spec| spec.container(name))
            .map_or(STOP_GRACE_DEFAULT, |container| container.shutdown_timeout),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        id::ContainerName,
        spec::tests::{container, spec},
    };

    /// Holds state and refuses what a node refuses.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Node {
        seen: Observed,
        /// The sandbox has the node's network.
        host_network: bool,
    }

    impl Node {
        fn apply(&mut self, step: &Step) -> Result<bool, String> {
            let host_network = self.host_network;
            let before = self.seen.clone();
            let seen = &mut self.seen;
            let task = |seen: &Observed, role: &Role| {
                seen.containers.get(role).copied().unwrap_or_default()
            };
            let no_tasks = seen
                .containers
                .values()
                .all(|it| it.task == TaskSeen::Missing);
            let allowed = match step {
                Step::EnsureImage(_) => true,
                Step::Prepare | Step::OpenNamespaces => true,
                Step::AttachLink => seen.namespaces == Extent::Whole && !host_network,
                Step::CreateContainer(role) => {
                    seen.prepared == Extent::Whole && !task(seen, role).stored
                }
                Step::CreateTask(role) => {
                    seen.namespaces == Extent::Whole
                        && task(seen, role).stored
                        && task(seen, role).task == TaskSeen::Missing
                }
                Step::StartTask(role) => {
                    task(seen, role).task == TaskSeen::Created
                        && (*role == Role::Pause || seen.link || host_network)
                }
                Step::AwaitReady => seen
                    .containers
                    .values()
                    .all(|it| it.task == TaskSeen::Running),
                Step::StopTask { .. } => true,
                Step::DeleteTask(role) => {
                    !matches!(task(seen, role).task, TaskSeen::Running | TaskSeen::Unknown)
                }
                Step::RemoveContainer(role) => task(seen, role).task == TaskSeen::Missing,
                Step::DetachLink => no_tasks,
                Step::CloseNamespaces => no_tasks && !seen.link,
                Step::Release => seen.containers.is_empty(),
            };
            if !allowed {
                return Err(format!("{step} is refused by {before:?}"));
            }
            match step {
                Step::EnsureImage(_) | Step::AwaitReady => {}
                Step::Prepare => seen.prepared = Extent::Whole,
                Step::Release => seen.prepared = Extent::Nothing,
                Step::OpenNamespaces => seen.namespaces = Extent::Whole,
                Step::CloseNamespaces => seen.namespaces = Extent::Nothing,
                Step::AttachLink => seen.link = true,
                Step::DetachLink => seen.link = false,
                Step::CreateContainer(role) => {
                    seen.containers.entry(role.clone()).or_default().stored = true;
                }
                Step::CreateTask(role) => {
                    seen.containers.entry(role.clone()).or_default().task = TaskSeen::Created;
                }
                Step::StartTask(role) => {
                    seen.containers.entry(role.clone()).or_default().task = TaskSeen::Running;
                }
                Step::StopTask { role, .. } => {
                    if let Some(it) = seen.containers.get_mut(role)
                        && matches!(it.task, TaskSeen::Running | TaskSeen::Unknown)
                    {
                        it.task = exited();
                    }
                }
                Step::DeleteTask(role) => {
                    if let Some(it) = seen.containers.get_mut(role) {
                        it.task = TaskSeen::Missing;
                    }
                }
                Step::RemoveContainer(role) => {
                    if let Some(it) = seen.containers.get_mut(role) {
                        it.stored = false;
                    }
                }
            }
            seen.containers
                .retain(|_, it| *it != ContainerSeen::default());
            Ok(*seen != before)
        }
    }

    fn exited() -> TaskSeen {
        TaskSeen::Exited {
            code: 0,
            at: SystemTime::UNIX_EPOCH,
        }
    }

    fn app(name: &str) -> Role {
        Role::App(ContainerName::parse(name).unwrap())
    }

    fn every_observation() -> Vec<Observed> {
        let mut all = vec![];
        let containers: Vec<ContainerSeen> = [false, true]
            .into_iter()
            .flat_map(|stored| {
                [
                    TaskSeen::Missing,
                    TaskSeen::Created,
                    TaskSeen::Running,
                    exited(),
                    TaskSeen::Unknown,
                ]
                .map(|task| ContainerSeen { stored, task })
            })
            .collect();
        let extents = [Extent::Nothing, Extent::Part, Extent::Whole];
        for bits in 0..18 {
            for pause in &containers {
                for web in &containers {
                    let mut seen = Observed {
                        prepared: extents[bits % 3],
                        namespaces: extents[bits / 3 % 3],
                        link: bits / 9 != 0,
                        containers: [(Role::Pause, *pause), (app("web"), *web)].into(),
                    };
                    seen.containers
                        .retain(|_, it| *it != ContainerSeen::default());
                    all.push(seen);
                }
            }
        }
        all
    }

    /// Every order that a plan allows for its steps would be too many; these two are the extremes.
    fn orders(plan: &Plan) -> [Vec<usize>; 2] {
        let order = |pick: fn(&[usize]) -> usize| {
            let mut done: Vec<usize> = vec![];
            while done.len() < plan.steps().len() {
                let ready: Vec<usize> = (0..plan.steps().len())
                    .filter(|it| !done.contains(it))
                    .filter(|&it| plan.steps()[it].after.iter().all(|a| done.contains(a)))
                    .collect();
                done.push(pick(&ready));
            }
            done
        };
        [
            order(|ready| ready[0]),
            order(|ready| ready[ready.len() - 1]),
        ]
    }

    #[test]
    fn every_plan_is_allowed_in_every_order_and_reaches_its_goal() {
        let own = spec([container("web", &[80])]);
        let shared = SandboxSpec {
            host_network: true,
            ..own.clone()
        };
        for (spec, goal) in [
            (&own, Goal::Present),
            (&own, Goal::Absent),
            (&shared, Goal::Present),
            (&shared, Goal::Absent),
        ] {
            for seen in every_observation() {
                let plan = decide(goal, spec, &seen);
                for order in orders(&plan) {
                    let mut node = Node {
                        seen: seen.clone(),
                        host_network: spec.host_network,
                    };
                    for at in order {
                        let step = &plan.steps()[at].step;
                        let changed = node.apply(step).expect("a plan never asks the impossible");
                        let waits = matches!(step, Step::EnsureImage(_) | Step::AwaitReady);
                        assert!(changed || waits, "{step} is wasted from {seen:?}");
                    }
                    match goal {
                        Goal::Present => assert!(stands(spec, &node.seen), "{:?}", node.seen),
                        Goal::Absent => assert_eq!(node.seen, Observed::default()),
                    }
                }
            }
        }
    }

    #[test]
    fn undo_takes_back_every_part_of_a_plan_that_may_have_run() {
        let spec = spec([container("web", &[80]), container("db", &[])]);
        let plan = decide(Goal::Present, &spec, &Observed::default());
        for order in orders(&plan) {
            for done in 0..=order.len() {
                let mut node = Node::default();
                for &at in &order[..done] {
                    node.apply(&plan.steps()[at].step).unwrap();
                }
                let undo = undo(&plan);
                for order in orders(&undo) {
                    let mut node = node.clone();
                    for at in order {
                        node.apply(&undo.steps()[at].step).unwrap();
                    }
                    assert_eq!(node.seen, Observed::default(), "after {done} steps");
                }
            }
        }
    }

    #[test]
    fn a_sandbox_in_the_network_of_the_node_gets_no_link_and_misses_none() {
        let spec = SandboxSpec {
            host_network: true,
            ..spec([container("web", &[80])])
        };
        let plan = decide(Goal::Present, &spec, &Observed::default());
        assert!(!plan.traces().link);
        let mut node = Node {
            host_network: true,
            ..Node::default()
        };
        for planned in plan.steps() {
            node.apply(&planned.step).unwrap();
        }
        assert_eq!(decide(Goal::Present, &spec, &node.seen), await_ready());
    }

    #[test]
    fn pause_and_app_never_wait_for_each_others_creation() {
        let spec = spec([container("web", &[80])]);
        let plan = decide(Goal::Present, &spec, &Observed::default());
        let place = |step: Step| plan.steps().iter().position(|it| it.step == step).unwrap();
        let waits_for = |start: usize| {
            let (mut all, mut open) = (vec![], vec![start]);
            while let Some(at) = open.pop() {
                all.extend(&plan.steps()[at].after);
                open.extend(&plan.steps()[at].after);
            }
            all
        };
        let (pause, web) = (Step::CreateTask(Role::Pause), Step::CreateTask(app("web")));
        let (pause, web) = (place(pause), place(web));
        assert!(!waits_for(pause).contains(&web) && !waits_for(web).contains(&pause));
        assert!(waits_for(web).contains(&place(Step::OpenNamespaces)));
        assert!(
            !waits_for(web).contains(&place(Step::AttachLink)),
            "the link is in no hurry"
        );
    }

    #[test]
    fn the_pause_is_stopped_after_the_apps_and_an_app_gets_its_own_grace() {
        let mut web = container("web", &[]);
        web.shutdown_timeout = Duration::from_secs(3);
        let spec = spec([web]);
        let mut node = Node::default();
        for planned in decide(Goal::Present, &spec, &Observed::default()).steps() {
            node.apply(&planned.step).unwrap();
        }
        let plan = decide(Goal::Absent, &spec, &node.seen);
        let stops: Vec<_> = plan
            .steps()
            .iter()
            .filter(|it| matches!(it.step, Step::StopTask { .. }))
            .cloned()
            .collect();
        let grace = Duration::from_secs(3);
        assert_eq!(
            stops[0].step,
            Step::StopTask {
                role: app("web"),
                grace
            }
        );
        assert_eq!(stops[1].after, [0], "the pause waits for the app's end");
    }
}

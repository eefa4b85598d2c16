//! What is seen of a sandbox on the node, and the steps that change it. A step is complete: nothing is chosen while it runs.

use std::{collections::BTreeMap, fmt, time::Duration, time::SystemTime};

use crate::{id::ContainerName, image_ref::ImageRef};

/// A container of a sandbox. The pause sorts first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Pause,
    App(ContainerName),
}

/// `pause`, or the name of the app container.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Pause => f.write_str("pause"),
            Role::App(name) => name.fmt(f),
        }
    }
}

/// What the node holds for one sandbox. May already be out of date.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The containerd lease, the parent cgroup and the folder of files.
    pub prepared: Extent,
    /// The pinned namespaces, and the folder for them.
    pub namespaces: Extent,
    pub link: bool,
    /// Only those of which anything is there.
    pub containers: BTreeMap<Role, ContainerSeen>,
}

/// How much there is of what one step makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    #[default]
    Nothing,
    Part,
    Whole,
}

impl Extent {
    /// By which of its parts are there.
    pub fn of(parts: &[bool]) -> Self {
        match parts.iter().filter(|it| **it).count() {
            0 => Self::Nothing,
            all if all == parts.len() => Self::Whole,
            _ => Self::Part,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerSeen {
    /// The container's record in containerd, or its snapshot.
    pub stored: bool,
    pub task: TaskSeen,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TaskSeen {
    #[default]
    Missing,
    Created,
    /// Running, or paused.
    Running,
    Exited {
        code: u32,
        at: SystemTime,
    },
    /// It is there, and what watches over it does not say how it is. That is no end.
    Unknown,
}

/// One effect on one sandbox. Each can be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes sure that the image is on the node, unpacked.
    EnsureImage(ImageRef),
    /// Makes the lease, the parent cgroup with its limits, and the files.
    Prepare,
    OpenNamespaces,
    AttachLink,
    CreateContainer(Role),
    CreateTask(Role),
    StartTask(Role),
    /// Waits until every declared port listens, without one until all tasks are alive at a second look; then until every
    /// readiness probe has succeeded.
    AwaitReady,
    /// SIGTERM, then SIGKILL when `grace` is over.
    StopTask {
        role: Role,
        grace: Duration,
    },
    DeleteTask(Role),
    RemoveContainer(Role),
    DetachLink,
    CloseNamespaces,
    /// Takes back what `Prepare` made.
    Release,
}

impl Step {
    /// The name of the phase that callers see.
    pub fn name(&self) -> &'static str {
        match self {
            Step::EnsureImage(_) => "ensure-image",
            Step::Prepare => "prepare",
            Step::OpenNamespaces => "open-namespaces",
            Step::AttachLink => "attach-link",
            Step::CreateContainer(_) => "create-container",
            Step::CreateTask(_) => "create-task",
            Step::StartTask(_) => "start-task",
            Step::AwaitReady => "await-ready",
            Step::StopTask { .. } => "stop-task",
            Step::DeleteTask(_) => "delete-task",
            Step::RemoveContainer(_) => "remove-container",
            Step::DetachLink => "detach-link",
            Step::CloseNamespaces => "close-namespaces",
            Step::Release => "release",
        }
    }

    /// The container that the step is for.
    pub fn role(&self) -> Option<&Role> {
        match self {
            Step::CreateContainer(role)
            | Step::CreateTask(role)
            | Step::StartTask(role)
            | Step::StopTask { role, .. }
            | Step::DeleteTask(role)
            | Step::RemoveContainer(role) => Some(role),
            Step::EnsureImage(_)
            | Step::Prepare
            | Step::OpenNamespaces
            | Step::AttachLink
            | Step::AwaitReady
            | Step::DetachLink
            | Step::CloseNamespaces
            | Step::Release => None,
        }
    }

    /// Whether the step only waits, so that it can be dropped half-way without a trace.
    pub fn only_waits(&self) -> bool {
        matches!(self, Step::EnsureImage(_) | Step::AwaitReady)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match (self.role(), self) {
            (Some(role), _) => write!(f, " {role}"),
            (None, Step::EnsureImage(image)) => write!(f, " {image}"),
            (None, _) => Ok(()),
        }
    }
}

/// Steps and what each waits for. Steps that wait for nothing in common run at the same time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Planned>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub step: Step,
    /// Places of earlier steps of the plan.
    pub after: Vec<usize>,
}

impl Plan {
    /// Adds a step behind the steps at `after` and returns its place.
    pub fn add(&mut self, step: Step, after: impl IntoIterator<Item = usize>) -> usize {
        let after: Vec<usize> = after.into_iter().collect();
        assert!(
            after.iter().all(|&it| it < self.steps.len()),
            "a step waits for earlier ones"
        );
        self.steps.push(Planned { step, after });
        self.steps.len() - 1
    }

    pub fn steps(&self) -> &[Planned] {
        &self.steps
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Appends `next`; all of it waits for all of `self`.
    pub fn then(mut self, next: Plan) -> Plan {
        let offset = self.steps.len();
        let last: Vec<usize> = (0..offset)
            .filter(|place| !self.steps.iter().any(|it| it.after.contains(place)))
            .collect();
        for Planned { step, after } in next.steps {
            let mut after: Vec<usize> = after.into_iter().map(|it| it + offset).collect();
            if after.is_empty() {
                after.clone_from(&last);
            }
            self.steps.push(Planned { step, after });
        }
        self
    }

    /// What the node may hold when any part of the plan has run on an empty one.
    pub fn traces(&self) -> Observed {
        let mut seen = Observed::default();
        for Planned { step, .. } in &self.steps {
            match step {
                Step::Prepare => seen.prepared = Extent::Whole,
                Step::OpenNamespaces => seen.namespaces = Extent::Whole,
                Step::AttachLink => seen.link = true,
                Step::CreateContainer(role) => {
                    seen.containers.entry(role.clone()).or_default().stored = true;
                }
                Step::CreateTask(role) | Step::StartTask(role) => {
                    seen.containers.entry(role.clone()).or_default().task = TaskSeen::Running;
                }
                Step::EnsureImage(_)
                | Step::AwaitReady
                | Step::StopTask { .. }
                | Step::DeleteTask(_)
                | Step::RemoveContainer(_)
                | Step::DetachLink
                | Step::CloseNamespaces
                | Step::Release => {}
            }
        }
        seen
    }
}

//! When a sandbox may be called RUNNING: its ports listen, or, without one, its tasks live at a second look; and its probes
//! succeed. What is seen is judged in `ports`, and told in `words`.

mod ports;
mod words;

use std::{
    collections::BTreeMap,
    pin::pin,
    time::{Duration, Instant, SystemTime},
};

use berth_domain::{
    ExitRecord, Failure, Health, PortSighting, Reason, Role, Sandbox, SandboxId, SandboxRecord,
    assess,
};
use berth_platform::{Images, Network, Runtime};
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

pub(crate) use self::words::{Failing, standing};
use self::{
    ports::{Declared, Sorted, in_place_of, sort, unseen},
    words::{Holders, expected, port_timeout, probe_timeout},
};
use crate::{
    failures::{exited, network_failure, runtime_failure, shim_silent},
    node::Node,
    probing::Probing,
    view::View,
};

/// An app that listens at once is seen at once.
const SHORTEST_PAUSE: Duration = Duration::from_micros(500);
/// One look costs well under a millisecond, so looking this often costs nothing that counts.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);
/// Between these two, an app is seen this part of the time late that it took to listen.
const SHARE_OF_THE_WAIT: u32 = 8;
/// An app that cannot start has ended by then.
const SECOND_LOOK: Duration = Duration::from_millis(50);
/// A task that ended without an event is found this late at the most.
const EXIT_LOOK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct ReadyError {
    pub(crate) failure: Box<Failure>,
    /// The exit that made waiting pointless.
    pub(crate) exit: Option<ExitRecord>,
}

impl From<Failure> for ReadyError {
    fn from(failure: Failure) -> Self {
        Self {
            failure: Box::new(failure),
            exit: None,
        }
    }
}

/// Waits until `sandbox` is ready and returns what was seen of its ports.
pub(crate) async fn await_ready<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    tracker: &TaskTracker,
    sandbox: &Sandbox,
    exits: &Notify,
    view: watch::Receiver<View>,
) -> Result<Vec<PortSighting>, ReadyError> {
    let begun = Instant::now();
    let seen = match sandbox.spec.ports().next() {
        Some(_) => await_ports(node, sandbox, exits, view).await?,
        None => {
            await_second_look(node, sandbox, exits).await?;
            vec![]
        }
    };
    await_probes(node, tracker, sandbox, exits, begun).await?;
    Ok(seen)
}

async fn await_second_look<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    sandbox: &Sandbox,
    exits: &Notify,
) -> Result<(), ReadyError> {
    let mut second_look = pin!(tokio::time::sleep(SECOND_LOOK));
    loop {
        let over = tokio::select! {
            () = exits.notified() => false,
            () = &mut second_look => true,
        };
        check_tasks(node, sandbox).await?;
        if over {
            return Ok(());
        }
    }
}

/// All ports are waited for at the same time, so each has the whole of its time.
async fn await_ports<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    sandbox: &Sandbox,
    exits: &Notify,
    mut view: watch::Receiver<View>,
) -> Result<Vec<PortSighting>, ReadyError> {
    let begun = Instant::now();
    let mut exit_look = begun + EXIT_LOOK;
    loop {
        let sockets = node.network.listening(&sandbox.id).await;
        let sockets = sockets.map_err(network_failure)?;
        let told = told(&view.borrow_and_update(), sandbox);
        let now = SystemTime::now();
        let Sorted { mut seen, missing } = sort(&sandbox.spec, &sockets, &told, now);
        if missing.is_empty() {
            return Ok(seen);
        }
        let check = async || {
            let checked = check_tasks(node, sandbox).await;
            checked.map_err(|it| before_listening(it, &missing))
        };
        if begun.elapsed() >= sandbox.spec.port_wait_timeout {
            check().await?;
            if let Some(other) = in_place_of(&sandbox.spec, &sockets, &missing, now) {
                tracing::info!(sandbox = %sandbox.id, port = other.port, bound_port = ?other.bound_port, "another port is taken in the place of a declared one");
                seen.push(other);
                return Ok(seen);
            }
            let holders = holders(node, &sandbox.id).await;
            let waited = begun.elapsed();
            return Err(port_timeout(sandbox, &missing, &sockets, &holders, waited).into());
        }
        if Instant::now() >= exit_look {
            check().await?;
            exit_look = Instant::now() + EXIT_LOOK;
        }
        let pause = begun.elapsed() / SHARE_OF_THE_WAIT;
        let pause = pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        tokio::select! {
            () = exits.notified() => check().await?,
            // Somebody may have reported a port.
            Ok(()) = view.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What the record of this generation has of ports.
fn told(view: &View, sandbox: &Sandbox) -> Vec<PortSighting> {
    let record = view.record.as_ref();
    let record = record.filter(|it| it.generation == sandbox.generation);
    record.map(|it| it.ports.clone()).unwrap_or_default()
}

/// An exit that came before ports listened says which.
fn before_listening(mut error: ReadyError, missing: &[Declared<'_>]) -> ReadyError {
    if error.exit.is_some() {
        let expected = expected(missing);
        let failure = &mut error.failure;
        failure.message += &format!("; port {expected} did not listen yet");
        failure.metadata.insert("expected".to_owned(), expected);
    }
    error
}

/// Who listens is asked for people: that it cannot be told hides nothing else.
async fn holders<R: Runtime + Images, N: Network>(node: &Node<R, N>, id: &SandboxId) -> Holders {
    let holders = node.runtime.socket_holders(id).await;
    holders.map_err(runtime_failure).ok()
}

async fn await_probes<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    tracker: &TaskTracker,
    sandbox: &Sandbox,
    exits: &Notify,
    begun: Instant,
) -> Result<(), ReadyError> {
    let delays = sandbox.spec.probes().map(|(_, it)| it.initial_delay);
    let Some(longest) = delays.max() else {
        return Ok(());
    };
    let passed = begun.elapsed();
    let mut probing = Probing::new(node, tracker, sandbox, false, |it| {
        it.initial_delay.saturating_sub(passed)
    });
    let begun = Instant::now();
    let patience = longest.saturating_sub(passed) + sandbox.spec.port_wait_timeout;
    let mut late = pin!(tokio::time::sleep(patience));
    let first = tokio::time::Instant::now() + EXIT_LOOK;
    let mut exit_look = tokio::time::interval_at(first, EXIT_LOOK);
    while let Some(failing) = probing.failing().into_iter().next() {
        tokio::select! {
            () = probing.changed() => {}
            () = exits.notified() => check_tasks(node, sandbox).await?,
            _ = exit_look.tick() => check_tasks(node, sandbox).await?,
            () = &mut late => {
                check_tasks(node, sandbox).await?;
                let failing = probing.failing().into_iter().next().unwrap_or(failing);
                return Err(probe_timeout(sandbox, &failing, begun.elapsed()).into());
            }
        }
    }
    Ok(())
}

/// Fails where a task of the sandbox has ended.
async fn check_tasks<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    sandbox: &Sandbox,
) -> Result<(), ReadyError> {
    let seen = node.observe(&sandbox.id).await?;
    match assess(&sandbox.spec, &seen, false) {
        Health::Stands | Health::Unprepared => Ok(()),
        Health::Exited { role, code, at } => {
            let exit = exit_record(node, sandbox, role, code, at, 0).await?;
            Err(ReadyError {
                failure: Box::new(exited(&exit, "before")),
                exit: Some(exit),
            })
        }
        Health::Lost { role, what } => {
            Err(Failure::new(Reason::RuntimeRefused, format!("container {role}: {what}")).into())
        }
        Health::Unknown { role } => Err(shim_silent(&role).into()),
        Health::Gone => {
            Err(Failure::new(Reason::RuntimeRefused, "the sandbox has vanished").into())
        }
    }
}

/// Completes an exit with its cause, while the cgroup that knows it is there. Of the kernel's kills for memory in it,
/// `former` were there before and did not end it.
pub(crate) async fn exit_record<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    sandbox: &Sandbox,
    role: Role,
    code: u32,
    at: SystemTime,
    former: u64,
) -> Result<ExitRecord, Failure> {
    let oom = node.runtime.oom_cgroup(&sandbox.id, &role, former).await;
    let oom = oom.map_err(runtime_failure)?;
    // A task that nobody waited for has no time.
    let at = (at != SystemTime::UNIX_EPOCH).then_some(at);
    let now = SystemTime::now();
    Ok(ExitRecord::from_status(role, code, at, oom, now))
}

/// How many processes the kernel has killed for memory in each container.
pub(crate) async fn oom_kills<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    id: &SandboxId,
) -> Result<BTreeMap<Role, u64>, Failure> {
    let readings = node.runtime.usage(id).await.map_err(runtime_failure)?;
    let kills = readings.into_iter().map(|it| (it.role, it.usage.oom_kills));
    Ok(kills.collect())
}

/// What is seen of the declared ports of a sandbox that runs. That one is missing is looked at twice: a list that is read
/// while it changes may lack something.
pub(crate) async fn look_at_ports<R: Runtime + Images, N: Network>(
    node: &Node<R, N>,
    record: &SandboxRecord,
) -> Result<Vec<PortSighting>, Failure> {
    if record.spec.ports().next().is_none() {
        return Ok(vec![]);
    }
    let mut looks = 0;
    loop {
        let sockets = node.network.listening(&record.id).await;
        let sockets = sockets.map_err(network_failure)?;
        let now = SystemTime::now();
        let Sorted { mut seen, missing } = sort(&record.spec, &sockets, &record.ports, now);
        looks += 1;
        if missing.is_empty() || looks == 2 {
            seen.extend(missing.into_iter().map(|it| lost(it, record, now)));
            return Ok(seen);
        }
    }
}

/// That a port is gone; what was taken in its place is still taken when it comes back.
fn lost(declared: Declared<'_>, record: &SandboxRecord, now: SystemTime) -> PortSighting {
    let it = unseen(declared, now);
    let before = record.ports.iter().find(|was| was.is_about_the_same(&it));
    PortSighting {
        bound_port: before.and_then(|it| it.bound_port),
        ..it
    }
}

#[cfg(test)]
mod tests;

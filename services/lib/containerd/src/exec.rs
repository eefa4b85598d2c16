//! A program beside a container's own, from its start to its removal. Its input and output are pipes of ours that the shim
//! copies; who does not read makes the program wait. Nothing here waits for a shim without a limit.

use std::{convert::Infallible, io, path::PathBuf, time::Duration};

use berth_domain::{Role, SandboxId, TaskSeen, names};
use berth_platform::{
    EXEC_WINDOW_BYTES, ExecCommand, ExecError, ExecExit, ExecInput, ExecIo, ExecOutput,
    RuntimeError, TerminalSize,
};
use bytes::{Buf as _, BytesMut};
use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, GetRequest, KillRequest,
    ResizePtyRequest, StartRequest, WaitRequest,
};
use prost_types::Any;
use rustix::process::Signal;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tonic::Code;

use crate::{
    Containerd,
    client::{CallError, found},
    drain::{End, pump},
    ending::KILLED,
    errors::{node, of_cgroup, refused},
    fifos::{self, Fifos, Stdin},
    files,
    images::blocking,
    process,
    sessions::{self, Reach},
    users,
};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Between SIGHUP and SIGKILL, for a program whose caller has gone.
const HANG_UP_GRACE: Duration = Duration::from_secs(2);
/// How long the end of a container may take to be seen when a program in it was killed.
const CONTAINER_END: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_millis(500);
/// How long the removal of a program is tried. After that it is left to the next start of the manager.
const REMOVAL: Duration = Duration::from_secs(60);
const SIGKILL: u32 = 9;
const KILLED_STATUS: u32 = 128 + SIGKILL;

/// A program that was asked for.
#[derive(Debug)]
struct Exec {
    container: String,
    cgroup: String,
    exec_id: String,
    folder: PathBuf,
}

/// How a program was seen to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProgramEnd {
    /// With this status.
    Seen(u32),
    /// With its container, whose own program ended with this status as far as its task still says so.
    Container(Option<u32>),
}

/// How many bytes of its input a program has taken, and how many of them its caller knows of.
#[derive(Default)]
struct Taking {
    taken: u64,
    told: u64,
}

impl Taking {
    fn untold(&self) -> Option<u64> {
        (self.told < self.taken).then_some(self.taken)
    }

    /// What an end came before.
    async fn tell_rest(&self, output: &mpsc::Sender<ExecOutput>) {
        if let Some(bytes) = self.untold() {
            // A caller that has gone has no need of it.
            let _ = output.send(ExecOutput::Taken(bytes)).await;
        }
    }
}

impl Containerd {
    pub(crate) async fn run_exec(
        &self,
        id: &SandboxId,
        role: &Role,
        command: &ExecCommand,
        io: ExecIo,
    ) -> Result<ExecExit, ExecError> {
        let container = names::container_id(id, role);
        let exec_id = self.next_exec_id();
        let exec = Exec {
            cgroup: self.names().container_cgroup(id, role),
            folder: fifos::folder(&self.names().execs_dir(), &container, &exec_id),
            container,
            exec_id,
        };
        // Each start is a process of the OCI runtime; more of them at a time only wait for the CPU.
        let turn = self.exec_starts().acquire().await;
        let spec = self.process_of(&exec, command).await?;
        let fifos = Fifos::make(
            exec.folder.clone(),
            command.stdin,
            command.terminal.is_some(),
        );
        let fifos = fifos.map_err(|it| node("making pipes", it))?;
        let started = self.start_exec(&exec, &fifos, command, spec).await;
        drop(turn);
        let (output, mut taking) = (io.output.clone(), Taking::default());
        let outcome = match started {
            Ok(leader) => {
                if let Some(size) = command.terminal {
                    self.resize_exec(&exec, size).await;
                }
                self.attend(&exec, leader, fifos, io, &mut taking).await
            }
            Err(error) => Err(error),
        };
        self.remove_exec(&exec).await;
        let exit = outcome?;
        let container_ended = exit.container_ended || self.has_ended(&exec, exit.code).await;
        taking.tell_rest(&output).await;
        Ok(ExecExit {
            container_ended,
            ..exit
        })
    }

    pub(crate) async fn run_attach(
        &self,
        id: &SandboxId,
        role: &Role,
        io: ExecIo,
    ) -> Result<Option<u32>, ExecError> {
        let container = names::container_id(id, role);
        if self.task(&container).await? != TaskSeen::Running {
            return Err(ExecError::NotRunning { container });
        }
        let stdin = match role {
            Role::App(name) => {
                let path = self.stdin_of(id, name);
                blocking(move || Stdin::open(&path)).await
            }
            Role::Pause => Err(io::ErrorKind::NotFound.into()),
        };
        let stdin = match stdin {
            Ok(stdin) => stdin,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Stdin::Closed,
            Err(error) => return Err(node("opening a container's input", error).into()),
        };
        // Without an id it is the container's own program.
        let exec = Exec {
            cgroup: self.names().container_cgroup(id, role),
            folder: PathBuf::new(),
            exec_id: String::new(),
            container,
        };
        let ExecIo { input, output } = io;
        let mut taking = Taking::default();
        let feeding = async {
            self.feed(&exec, None, stdin, input, &output, &mut taking)
                .await;
            std::future::pending::<Infallible>().await
        };
        let end = tokio::select! {
            end = self.wait_for_exec(&exec) => match end {
                ProgramEnd::Seen(status) | ProgramEnd::Container(Some(status)) => Ok(Some(status)),
                ProgramEnd::Container(None) => Err(ExecError::Gone {
                    container: exec.container.clone(),
                }),
            },
            never = feeding => match never {},
            () = output.closed() => Ok(None),
        };
        taking.tell_rest(&output).await;
        end
    }

    /// Ends what former processes of this instance have left running.
    pub(crate) async fn end_former(&self) -> Result<usize, RuntimeError> {
        let all = self.names().execs_dir();
        let own = self.exec_id_prefix();
        let listed = blocking({
            let all = all.clone();
            move || fifos::list(&all)
        });
        let listed = listed.await.map_err(|it| node("listing programs", it))?;
        let (mut ended, mut failed) = (0, None);
        for name in listed {
            let Some((container, exec_id)) = fifos::parse(&name) else {
                continue;
            };
            let Some((id, role)) = names::parse_container_id(container) else {
                continue;
            };
            if exec_id.starts_with(&own) {
                continue;
            }
            let exec = Exec {
                container: container.to_owned(),
                cgroup: self.names().container_cgroup(&id, &role),
                exec_id: exec_id.to_owned(),
                folder: all.join(&name),
            };
            // One whose shim hangs keeps no other alive.
            match self.end_one(&exec).await {
                Ok(()) => ended += 1,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(ended), Err)
    }

    async fn end_one(&self, exec: &Exec) -> Result<(), RuntimeError> {
        if let Some(leader) = self.pid_of(exec).await? {
            self.signal_session(exec, leader, Signal::KILL).await?;
        }
        self.try_remove(exec).await?;
        Ok(())
    }

    /// The process as the OCI runtime is told it.
    async fn process_of(
        &self,
        exec: &Exec,
        command: &ExecCommand,
    ) -> Result<serde_json::Value, ExecError> {
        let not_running = || ExecError::NotRunning {
            container: exec.container.clone(),
        };
        let client = self.client();
        let request = GetRequest {
            container_id: exec.container.clone(),
            exec_id: String::new(),
        };
        if self.task(&exec.container).await? != TaskSeen::Running {
            return Err(not_running());
        }
        let (mut tasks, container) = (client.tasks(), self.container(&exec.container));
        let (task, container) = tokio::join!(
            client.call("looking for a task", tasks.get(request)),
            container
        );
        let task = found(task).map_err(RuntimeError::from)?;
        let (Some(task), Some(container)) = (task.and_then(|it| it.process), container?) else {
            return Err(not_running());
        };
        let spec = container.spec.unwrap_or_default();
        let spec: serde_json::Value = serde_json::from_slice(&spec.value)
            .map_err(|it| refused("reading the container's specification", it))?;
        let user = match command.user.as_str() {
            "" => None,
            text => {
                let (text, root) = (text.to_owned(), format!("/proc/{}/root", task.pid));
                let resolved = blocking(move || {
                    let root = [PathBuf::from(root)];
                    let read = |path| users::read_from(&root, path);
                    users::resolve(&text, &read("etc/passwd"), &read("etc/group"))
                });
                Some(
                    resolved
                        .await
                        .map_err(|problem| ExecError::User { problem })?,
                )
            }
        };
        Ok(process::of(&spec["process"], command, user.as_ref()))
    }

    /// Returns the process id of the program.
    async fn start_exec(
        &self,
        exec: &Exec,
        fifos: &Fifos,
        command: &ExecCommand,
        spec: serde_json::Value,
    ) -> Result<u32, ExecError> {
        let client = self.client();
        let request = ExecProcessRequest {
            container_id: exec.container.clone(),
            stdin: fifos.path("stdin"),
            stdout: fifos.path("stdout"),
            stderr: fifos.path("stderr"),
            terminal: command.terminal.is_some(),
            spec: Some(Any {
                type_url: PROCESS_TYPE.to_owned(),
                value: spec.to_string().into_bytes(),
            }),
            exec_id: exec.exec_id.clone(),
        };
        let mut tasks = client.tasks();
        let made = client.call("making a program", tasks.exec(request));
        if let Err(error) = made.await {
            return Err(self.not_started(exec, error).await);
        }
        let request = StartRequest {
            container_id: exec.container.clone(),
            exec_id: exec.exec_id.clone(),
        };
        let mut tasks = client.tasks();
        let started = client.call("starting a program", tasks.start(request));
        match started.await {
            Ok(it) => Ok(it.pid),
            Err(error) => Err(self.not_started(exec, error).await),
        }
    }

    async fn not_started(&self, exec: &Exec, error: CallError) -> ExecError {
        if error.is_unreachable() {
            return RuntimeError::from(error).into();
        }
        match self.task(&exec.container).await {
            Ok(TaskSeen::Missing | TaskSeen::Exited { .. } | TaskSeen::Created) => {
                ExecError::NotRunning {
                    container: exec.container.clone(),
                }
            }
            Ok(TaskSeen::Running | TaskSeen::Unknown) | Err(_) => {
                let message = error.status.message();
                ExecError::NotStarted {
                    why: process::why_not_started(message),
                    message: process::plain(message),
                }
            }
        }
    }

    /// Carries input and output until the program has ended and its output is read.
    async fn attend(
        &self,
        exec: &Exec,
        leader: u32,
        fifos: Fifos,
        io: ExecIo,
        taking: &mut Taking,
    ) -> Result<ExecExit, ExecError> {
        let ExecIo { input, output } = io;
        let started = ExecOutput::Started {
            exec_id: exec.exec_id.clone(),
        };
        // One that has gone is noticed below.
        let _ = output.send(started).await;
        let end = End::default();
        let ending = async {
            let mut exit = std::pin::pin!(self.wait_for_exec(exec));
            let status = tokio::select! {
                status = &mut exit => Ok(status),
                () = output.closed() => self.hang_up(exec, leader, exit).await,
            };
            end.has_come();
            status
        };
        let (stdout, stderr) = (fifos.stdout, fifos.stderr);
        let reading = async {
            let stdout = pump(stdout, ExecOutput::Stdout, &output, &end);
            let stderr = async {
                match stderr {
                    Some(it) => pump(it, ExecOutput::Stderr, &output, &end).await,
                    None => true,
                }
            };
            let (stdout, stderr) = tokio::join!(stdout, stderr);
            stdout && stderr
        };
        let ended = async { tokio::join!(ending, reading) };
        let feeding = async {
            let stdin = fifos.stdin.unwrap_or(Stdin::Closed);
            self.feed(exec, Some(leader), stdin, input, &output, taking)
                .await;
            std::future::pending::<Infallible>().await
        };
        let (end, whole) = tokio::select! {
            ended = ended => ended,
            never = feeding => match never {},
        };
        let (code, container_ended) = match end? {
            ProgramEnd::Seen(status) => (status, false),
            ProgramEnd::Container(_) => (KILLED_STATUS, true),
        };
        Ok(ExecExit {
            code,
            output_cut: !whole,
            container_ended,
        })
    }

    /// Brings the program what its caller sends, until there is nothing more to come. Without a leader it is the container's
    /// own program, whose input outlives its callers.
    async fn feed(
        &self,
        exec: &Exec,
        leader: Option<u32>,
        mut stdin: Stdin,
        mut input: mpsc::Receiver<ExecInput>,
        output: &mpsc::Sender<ExecOutput>,
        taking: &mut Taking,
    ) {
        let mut queue = BytesMut::new();
        let (mut over, mut complete) = (false, false);
        loop {
            tokio::select! {
                word = input.recv(), if !over && queue.len() < EXEC_WINDOW_BYTES => match word {
                    Some(ExecInput::Bytes(bytes)) if complete || stdin.is_closed() => {
                        taking.taken += count(bytes.len());
                    }
                    Some(ExecInput::Bytes(bytes)) => queue.extend_from_slice(&bytes),
                    Some(ExecInput::End) => complete = true,
                    Some(ExecInput::Resize(size)) => self.resize_exec(exec, size).await,
                    Some(ExecInput::Signal(number)) => {
                        if let Some(leader) = leader {
                            self.signal_exec(exec, leader, number).await;
                        }
                    }
                    None => (over, complete) = (true, true),
                },
                written = stdin.write(&queue), if !queue.is_empty() => {
                    let written = written.unwrap_or_else(|error| {
                        // The program reads no more; neither shall anybody wait for it to.
                        tracing::debug!(exec_id = exec.exec_id, %error, "input is dropped");
                        stdin = Stdin::Closed;
                        queue.len()
                    });
                    queue.advance(written);
                    taking.taken += count(written);
                }
                place = output.reserve(), if taking.untold().is_some() => match place {
                    Ok(place) => {
                        place.send(ExecOutput::Taken(taking.taken));
                        taking.told = taking.taken;
                    }
                    Err(_) => return,
                },
                else => return,
            }
            if complete && queue.is_empty() && !stdin.is_closed() && leader.is_some() {
                self.end_input(exec, &mut stdin).await;
            }
        }
    }

    /// The shim holds an end of its own, so that input outlives whoever writes it.
    async fn end_input(&self, exec: &Exec, stdin: &mut Stdin) {
        stdin.close().await;
        let client = self.client();
        let request = CloseIoRequest {
            container_id: exec.container.clone(),
            exec_id: exec.exec_id.clone(),
            stdin: true,
        };
        let mut tasks = client.tasks();
        let closed = client.call("ending input", tasks.close_io(request));
        self.note(exec, closed.await.map(drop));
    }

    async fn resize_exec(&self, exec: &Exec, size: TerminalSize) {
        let client = self.client();
        let request = ResizePtyRequest {
            container_id: exec.container.clone(),
            exec_id: exec.exec_id.clone(),
            width: size.columns.into(),
            height: size.rows.into(),
        };
        let mut tasks = client.tasks();
        let resized = client.call("resizing a terminal", tasks.resize_pty(request));
        self.note(exec, resized.await.map(drop));
    }

    /// What fails because the program has ended meanwhile says so by its end.
    fn note(&self, exec: &Exec, outcome: Result<(), CallError>) {
        if let Err(error) = outcome {
            let CallError { operation, status } = error;
            tracing::debug!(exec_id = exec.exec_id, operation, %status, "not done");
        }
    }

    /// Signals the program with its process group, as a key on a terminal would.
    async fn signal_exec(&self, exec: &Exec, leader: u32, number: u32) {
        let named = i32::try_from(number).ok().and_then(Signal::from_named_raw);
        let reached = match named {
            Some(signal) => {
                self.signal_processes(exec, leader, Reach::Group, signal)
                    .await
            }
            None => Ok(0),
        };
        // Where its processes are not this kernel's, and for signals without a name, its runtime reaches it.
        if !matches!(reached, Ok(1..)) {
            let killed = self.kill_exec(exec, number).await;
            self.note(exec, killed.map(drop));
        }
    }

    async fn signal_session(
        &self,
        exec: &Exec,
        leader: u32,
        signal: Signal,
    ) -> Result<usize, RuntimeError> {
        self.signal_processes(exec, leader, Reach::Session, signal)
            .await
    }

    async fn signal_processes(
        &self,
        exec: &Exec,
        leader: u32,
        reach: Reach,
        signal: Signal,
    ) -> Result<usize, RuntimeError> {
        let (cgroups, cgroup) = (self.cgroups().clone(), exec.cgroup.clone());
        blocking(move || sessions::signal(&cgroups, &cgroup, leader, reach, signal))
            .await
            .map_err(of_cgroup)
    }

    /// Returns whether there is such a program.
    async fn kill_exec(&self, exec: &Exec, signal: u32) -> Result<bool, CallError> {
        let client = self.client();
        let request = KillRequest {
            container_id: exec.container.clone(),
            exec_id: exec.exec_id.clone(),
            signal,
            all: false,
        };
        let mut tasks = client.tasks();
        let killed = client.call("signalling a program", tasks.kill(request));
        found(killed.await).map(|it| it.is_some())
    }

    /// Ends the program and its session, as the end of a terminal does it and then by force.
    async fn hang_up(
        &self,
        exec: &Exec,
        leader: u32,
        mut exit: std::pin::Pin<&mut impl Future<Output = ProgramEnd>>,
    ) -> Result<ProgramEnd, ExecError> {
        let hung_up = self.signal_session(exec, leader, Signal::HUP).await;
        if !matches!(hung_up, Ok(1..)) {
            let killed = self.kill_exec(exec, Signal::HUP.as_raw().unsigned_abs());
            self.note(exec, killed.await.map(drop));
        }
        let status = timeout(HANG_UP_GRACE, &mut exit).await;
        // Of the session, more may be left than the program.
        let _ = self.signal_session(exec, leader, Signal::KILL).await;
        if let Ok(status) = status {
            return Ok(status);
        }
        let killed = self.kill_exec(exec, SIGKILL).await;
        self.note(exec, killed.map(drop));
        let status = timeout(KILLED, exit).await;
        let overdue = |_| {
            let what = format!("{} was killed {KILLED:?} ago", exec.exec_id);
            refused("ending a program", what)
        };
        Ok(status.map_err(overdue)?)
    }

    async fn wait_for_exec(&self, exec: &Exec) -> ProgramEnd {
        loop {
            let request = WaitRequest {
                container_id: exec.container.clone(),
                exec_id: exec.exec_id.clone(),
            };
            // It takes as long as the program runs.
            match self.client().tasks().wait(request).await {
                Ok(it) => return ProgramEnd::Seen(it.into_inner().exit_status),
                Err(status) if status.code() == Code::NotFound => {
                    return ProgramEnd::Container(None);
                }
                Err(status) => tracing::debug!(exec_id = exec.exec_id, %status, "waiting again"),
            }
            match self.task(&exec.container).await {
                Ok(TaskSeen::Missing) => return ProgramEnd::Container(None),
                Ok(TaskSeen::Exited { code, .. }) => return ProgramEnd::Container(Some(code)),
                Ok(TaskSeen::Created | TaskSeen::Running | TaskSeen::Unknown) | Err(_) => {
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Whether the container has ended. A program in it is seen to be killed a moment before.
    async fn has_ended(&self, exec: &Exec, status: u32) -> bool {
        if status == KILLED_STATUS {
            return self
                .wait(&exec.container, CONTAINER_END)
                .await
                .unwrap_or(false);
        }
        matches!(
            self.task(&exec.container).await,
            Ok(TaskSeen::Missing | TaskSeen::Exited { .. })
        )
    }

    async fn pid_of(&self, exec: &Exec) -> Result<Option<u32>, CallError> {
        let client = self.client();
        let request = GetRequest {
            container_id: exec.container.clone(),
            exec_id: exec.exec_id.clone(),
        };
        let mut tasks = client.tasks();
        let got = client.call("looking for a program", tasks.get(request));
        let process = found(got.await)?.and_then(|it| it.process);
        Ok(process.map(|it| it.pid).filter(|it| *it != 0))
    }

    async fn remove_exec(&self, exec: &Exec) {
        let deadline = Instant::now() + REMOVAL;
        while let Err(error) = self.try_remove(exec).await {
            if Instant::now() >= deadline {
                tracing::warn!(exec_id = exec.exec_id, %error, "left to the next start");
                return;
            }
            sleep(RETRY).await;
        }
    }

    /// Kills what runs, and removes the program and its pipes. Gone is a success.
    async fn try_remove(&self, exec: &Exec) -> Result<(), RuntimeError> {
        let client = self.client();
        let deadline = Instant::now() + KILLED;
        loop {
            let request = DeleteProcessRequest {
                container_id: exec.container.clone(),
                exec_id: exec.exec_id.clone(),
            };
            let mut tasks = client.tasks();
            let removed = client.call("removing a program", tasks.delete_process(request));
            let Err(error) = found(removed.await) else {
                break;
            };
            // The code of one that still runs depends on the shim.
            if error.is_unreachable() || Instant::now() >= deadline {
                return Err(error.into());
            }
            if !self.kill_exec(exec, SIGKILL).await? {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        let folder = exec.folder.clone();
        let removed = blocking(move || files::remove(&folder)).await;
        removed.map_err(|it| node("removing pipes", it))
    }
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

//! Programs in the containers of the fake node. It knows `sh -c` with one of the lines `exit N`, `echo TEXT`, `exec cat` and
//! `exec sleep N`; any other program is not found. A program sees the end of its container.

use std::time::Duration;

use berth_domain::{Role, SandboxId, TaskSeen};

use super::{FakeNode, KILLED};
use crate::{ExecCommand, ExecError, ExecExit, ExecInput, ExecIo, ExecOutput, NotStarted};

const LOOK_AGAIN: Duration = Duration::from_millis(2);
const SIGHUP: u32 = 1;

impl FakeNode {
    /// How many programs run.
    pub fn execs(&self) -> usize {
        self.state().execs
    }

    /// Leaves programs running as a process does that is killed.
    pub fn leave_execs(&self, number: usize) {
        self.state().former_execs = number;
    }

    pub(super) async fn run_exec(
        &self,
        id: &SandboxId,
        role: &Role,
        command: &ExecCommand,
        io: ExecIo,
    ) -> Result<ExecExit, ExecError> {
        if !self.runs(id, role) {
            return Err(ExecError::NotRunning {
                container: role.to_string(),
            });
        }
        if command.user == "nobody-knows" {
            let problem = "user `nobody-knows` is not in the image's /etc/passwd".to_owned();
            return Err(ExecError::User { problem });
        }
        let Some(line) = line(&command.argv) else {
            return Err(ExecError::NotStarted {
                why: NotStarted::NotFound,
                message: format!("{:?} is not there", command.argv),
            });
        };
        self.state().execs += 1;
        let exit = self.attend(id, role, line, io).await;
        self.state().execs -= 1;
        Ok(exit)
    }

    async fn attend(&self, id: &SandboxId, role: &Role, line: Line, mut io: ExecIo) -> ExecExit {
        let exit = |code| ExecExit {
            code,
            output_cut: false,
            container_ended: false,
        };
        let started = ExecOutput::Started {
            exec_id: format!("fake-{id}"),
        };
        let _ = io.output.send(started).await;
        match line {
            Line::Exit(code) => return exit(code),
            Line::Echo(text) => {
                let _ = io.output.send(ExecOutput::Stdout(text)).await;
                return exit(0);
            }
            Line::Cat | Line::Sleep => {}
        }
        let (mut over, mut taken) = (false, 0);
        loop {
            tokio::select! {
                word = io.input.recv(), if !over => match word {
                    Some(ExecInput::Bytes(bytes)) => {
                        taken += u64::try_from(bytes.len()).unwrap_or_default();
                        if line == Line::Cat {
                            let _ = io.output.send(ExecOutput::Stdout(bytes)).await;
                        }
                        let _ = io.output.send(ExecOutput::Taken(taken)).await;
                    }
                    Some(ExecInput::Signal(number)) => return exit(128 + number),
                    Some(ExecInput::Resize(_)) => {}
                    Some(ExecInput::End) if line == Line::Cat => return exit(0),
                    Some(ExecInput::End) => {}
                    None if line == Line::Cat => return exit(0),
                    None => over = true,
                },
                () = io.output.closed() => return exit(128 + SIGHUP),
                () = tokio::time::sleep(LOOK_AGAIN) => if !self.runs(id, role) {
                    return ExecExit { container_ended: true, ..exit(KILLED) };
                },
            }
        }
    }

    pub(super) async fn run_attach(
        &self,
        id: &SandboxId,
        role: &Role,
        mut io: ExecIo,
    ) -> Result<Option<u32>, ExecError> {
        if !self.runs(id, role) {
            return Err(ExecError::NotRunning {
                container: role.to_string(),
            });
        }
        let (mut over, mut taken) = (false, 0);
        loop {
            tokio::select! {
                word = io.input.recv(), if !over => match word {
                    Some(ExecInput::Bytes(bytes)) => {
                        taken += u64::try_from(bytes.len()).unwrap_or_default();
                        let _ = io.output.send(ExecOutput::Taken(taken)).await;
                    }
                    Some(ExecInput::Signal(_) | ExecInput::Resize(_) | ExecInput::End) => {}
                    None => over = true,
                },
                () = io.output.closed() => return Ok(None),
                () = tokio::time::sleep(LOOK_AGAIN) => {
                    let task = self.state().task(id, role).map(|it| *it);
                    match task {
                        Some(TaskSeen::Exited { code, .. }) => return Ok(Some(code)),
                        Some(TaskSeen::Running) => {}
                        None | Some(TaskSeen::Missing | TaskSeen::Created | TaskSeen::Unknown) => {
                            return Err(ExecError::Gone {
                                container: role.to_string(),
                            });
                        }
                    }
                },
            }
        }
    }

    fn runs(&self, id: &SandboxId, role: &Role) -> bool {
        self.state().task(id, role).map(|it| *it) == Some(TaskSeen::Running)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Exit(u32),
    Echo(Vec<u8>),
    Cat,
    Sleep,
}

fn line(argv: &[String]) -> Option<Line> {
    let [shell, flag, line] = argv else {
        return None;
    };
    if !shell.ends_with("sh") || flag != "-c" {
        return None;
    }
    match line.split_once(' ')? {
        ("exit", code) => code.parse().ok().map(Line::Exit),
        ("echo", text) => Some(Line::Echo(format!("{text}\n").into_bytes())),
        ("exec", "cat") => Some(Line::Cat),
        ("exec", rest) => rest.starts_with("sleep").then_some(Line::Sleep),
        _ => None,
    }
}

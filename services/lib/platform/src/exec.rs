//! A program that is run beside a container's own: what is run, what goes in and out meanwhile, and how it ended.

use tokio::sync::mpsc;

use crate::RuntimeError;

/// Most of the output that one [`ExecOutput`] carries, in bytes.
pub const EXEC_CHUNK_BYTES: usize = 16 << 10;
/// Input that is taken in while the program does not read, in bytes. What follows it waits.
pub const EXEC_WINDOW_BYTES: usize = 256 << 10;

/// What to run. Nothing of it goes through a shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecCommand {
    pub argv: Vec<String>,
    /// Lines that win over the container's own.
    pub env: Vec<String>,
    /// Empty: that of the container.
    pub directory: String,
    /// As the `USER` of an image, by the container's own lists. Empty: that of the container.
    pub user: String,
    /// Its first size, where it has a terminal.
    pub terminal: Option<TerminalSize>,
    /// Whether input is open until [`ExecInput::End`].
    pub stdin: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// What a program is told while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecInput {
    Bytes(Vec<u8>),
    End,
    Resize(TerminalSize),
    Signal(u32),
}

/// What a program says. The first word is `Started`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    Started {
        exec_id: String,
    },
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// All input that was written or dropped so far, in bytes.
    Taken(u64),
}

/// The ways to a program that runs. Both are bounded: who reads slowly makes the program wait.
#[derive(Debug)]
pub struct ExecIo {
    /// Its end is as good as [`ExecInput::End`].
    pub input: mpsc::Receiver<ExecInput>,
    /// When nobody takes it any more, the program is ended.
    pub output: mpsc::Sender<ExecOutput>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecExit {
    /// 128 + signal where a signal ended it.
    pub code: u32,
    /// Something that it left running holds its output, and was not waited for any longer.
    pub output_cut: bool,
    /// The container has ended, and the program with it.
    pub container_ended: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("container {container} does not run")]
    NotRunning { container: String },
    #[error("container {container} has ended and is gone, and nobody saw how it ended")]
    Gone { container: String },
    /// The container's lists of users do not have it.
    #[error("{problem}")]
    User { problem: String },
    #[error("the program was not started: {message}")]
    NotStarted { why: NotStarted, message: String },
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// Why a program was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStarted {
    NotFound,
    NotExecutable,
    Other,
}

impl NotStarted {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::NotExecutable => "not_executable",
            Self::Other => "other",
        }
    }
}

//! A terminal of this host with a program on it, as a person has one: keys go in, and what is to be seen comes out.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{
        ControlModes, InputModes, LocalModes, OutputModes, Winsize, tcgetattr, tcsetwinsize,
    },
};

use crate::TestNode;

const LIMIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a terminal makes of keys and of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    input: InputModes,
    output: OutputModes,
    control: ControlModes,
    local: LocalModes,
}

impl Modes {
    fn of(terminal: &File) -> anyhow::Result<Self> {
        let found = tcgetattr(terminal)?;
        Ok(Self {
            input: found.input_modes,
            output: found.output_modes,
            control: found.control_modes,
            local: found.local_modes,
        })
    }
}

#[derive(Debug)]
pub struct Terminal {
    /// The end of the person.
    keyboard: File,
    /// The end of the program. Held here, so that what was set on it outlives the program.
    line: File,
    program: Child,
    seen: String,
    /// Before the program was started.
    pub modes_before: Modes,
}

impl Terminal {
    /// Starts `berth`, of which it is the controlling terminal.
    pub fn berth(node: &TestNode, arguments: &[&str], size: (u16, u16)) -> anyhow::Result<Self> {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&keyboard)?;
        unlockpt(&keyboard)?;
        let path = ptsname(&keyboard, vec![])?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = File::from(open(path, flags, Mode::empty())?);
        tcsetwinsize(&line, winsize(size))?;
        let modes_before = Modes::of(&line)?;
        let mut command: Command = node.command("setsid");
        command.args(["--ctty", "berth"]).args(arguments);
        command.stdin(line.try_clone()?);
        command.stdout(line.try_clone()?).stderr(line.try_clone()?);
        Ok(Self {
            program: command.spawn().context("setsid")?,
            keyboard: keyboard.into(),
            line,
            seen: String::new(),
            modes_before,
        })
    }

    pub fn press(&mut self, keys: &str) -> anyhow::Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    /// Another size, as of a window that was drawn larger or smaller.
    pub fn resize(&self, size: (u16, u16)) -> anyhow::Result<()> {
        Ok(tcsetwinsize(&self.keyboard, winsize(size))?)
    }

    pub fn modes(&self) -> anyhow::Result<Modes> {
        Modes::of(&self.line)
    }

    /// Waits until this is seen, behind what was waited for before.
    pub fn until(&mut self, text: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            let late = Instant::now() >= deadline;
            ensure!(!late, "{text:?} is not to be seen, but {:?}", self.seen);
            self.look()?;
            if let Some(status) = self.program.try_wait()? {
                self.look()?;
                ensure!(
                    self.seen.contains(text),
                    "{status} without {text:?}: {:?}",
                    self.seen
                );
            }
        }
    }

    /// Waits for the end of the program, and returns its exit code and what was still to be seen.
    pub fn end(mut self) -> anyhow::Result<(i32, String, Modes)> {
        let code = self.await_end()?;
        let modes = self.modes()?;
        Ok((code, std::mem::take(&mut self.seen), modes))
    }

    /// Closes the window, and returns the exit code of the program that was in it.
    pub fn close(mut self) -> anyhow::Result<i32> {
        let null = || File::options().read(true).write(true).open("/dev/null");
        drop(std::mem::replace(&mut self.line, null()?));
        drop(std::mem::replace(&mut self.keyboard, null()?));
        self.await_end()
    }

    fn await_end(&mut self) -> anyhow::Result<i32> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let ended = self.program.try_wait()?;
            self.look()?;
            if let Some(status) = ended {
                return status.code().context("a signal ended it");
            }
            if Instant::now() >= deadline {
                bail!("it does not end: {:?}", self.seen);
            }
        }
    }

    /// Takes what there is to be seen, or waits a moment for it.
    fn look(&mut self) -> anyhow::Result<()> {
        let patience = Timespec::try_from(LOOK_AGAIN)?;
        let mut polled = [PollFd::new(&self.keyboard, PollFlags::IN)];
        if poll(&mut polled, Some(&patience))? == 0 || !polled[0].revents().contains(PollFlags::IN)
        {
            return Ok(());
        }
        let mut bytes = [0; 4096];
        let length = self.keyboard.read(&mut bytes)?;
        let read = bytes.get(..length).unwrap_or_default();
        self.seen.push_str(&String::from_utf8_lossy(read));
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // After `end` it finds nothing to do.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn winsize((columns, rows): (u16, u16)) -> Winsize {
    Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

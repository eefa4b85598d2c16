//! The terminal of whoever called: its size, and its raw mode, which ends with the value that stands for it.

use std::io::{self, IsTerminal as _};

use berth_api::v1;
use ratatui::{DefaultTerminal, Frame};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal that hands every key on as it is. Dropping it makes it as it was.
#[derive(Debug)]
pub(crate) struct Raw {
    former: Termios,
}

impl Raw {
    /// Of standard input.
    pub(crate) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let former = tcgetattr(&stdin)?;
        let mut raw = former.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self { former })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.former);
    }
}

/// The whole terminal, to draw on. Dropping it, or a panic, gives it back as it was.
#[derive(Debug)]
pub(crate) struct Screen(DefaultTerminal);

impl Screen {
    pub(crate) fn take() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }

    pub(crate) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.0.draw(draw).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = ratatui::try_restore();
    }
}

/// Whether standard input is a terminal.
pub(crate) fn is_there() -> bool {
    io::stdin().is_terminal()
}

/// Its size, where it tells one.
pub(crate) fn size() -> Option<v1::TerminalSize> {
    let size = tcgetwinsize(io::stdin())
        .or_else(|_| tcgetwinsize(io::stdout()))
        .ok()?;
    let told = size.ws_col > 0 && size.ws_row > 0;
    told.then(|| v1::TerminalSize {
        columns: size.ws_col.into(),
        rows: size.ws_row.into(),
    })
}

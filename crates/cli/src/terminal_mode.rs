//! Changes the mode of the terminal on standard input for a while.

use std::io;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::interrupt::{self, SavedTerminal};

/// While this value exists, the terminal on standard input lacks some modes. Dropping the value restores the
/// modes, and so does a signal that ends the process.
#[must_use]
#[derive(Debug)]
pub struct TerminalMode {
    before: Termios,
    when: OptionalActions,
    _saved: SavedTerminal,
}

impl TerminalMode {
    /// Switches `modes` off. `when` is `Flush` to discard input that was typed before the change, or `Now` to
    /// keep it.
    ///
    /// # Errors
    /// If standard input is no terminal.
    pub fn without(modes: LocalModes, when: OptionalActions) -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let saved = interrupt::save_terminal(before.clone());
        let mut changed = before.clone();
        changed.local_modes.remove(modes);
        tcsetattr(&stdin, when, &changed)?;
        Ok(Self { before, when, _saved: saved })
    }
}

impl Drop for TerminalMode {
    fn drop(&mut self) {
        // If the terminal is gone, there is nothing to restore.
        let _ = tcsetattr(io::stdin(), self.when, &self.before);
    }
}

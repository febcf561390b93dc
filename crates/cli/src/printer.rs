//! Where text goes: data to stdout, talk to stderr, one live line at the bottom.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};

use crate::lang::Lang;
use crate::text;

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The few looks we use; each also reads without colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Headings, figures that matter.
    Bold,
    /// What may be skipped.
    Dim,
    /// Trained text, success.
    Green,
    /// What to type, the first series of a chart.
    Cyan,
    /// Warnings, the second series of a chart.
    Yellow,
    /// Errors.
    Red,
}

impl Look {
    fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "32",
            Self::Cyan => "36",
            Self::Yellow => "33",
            Self::Red => "1;31",
        }
    }
}

/// `text` in a look, or as it is.
pub fn paint(color: bool, look: Look, text: &str) -> String {
    if !color || text.is_empty() {
        return text.to_owned();
    }
    // Line by line: pagers forget a colour at the end of a line.
    let paint = |line: &str| {
        if line.is_empty() { String::new() } else { format!("\x1b[{}m{line}\x1b[0m", look.code()) }
    };
    text.split('\n').map(paint).collect::<Vec<_>>().join("\n")
}

/// Everything a command needs to talk.
pub struct Printer {
    /// The language of talk.
    pub lang: Lang,
    /// Whether to say more: `-v`.
    pub verbose: bool,
    out_color: bool,
    err_color: bool,
    live: bool,
    width: usize,
    /// Whether the live line is on the screen, and must go before anything else is printed.
    shown: RefCell<bool>,
}

impl Printer {
    /// A printer for this process's stdout and stderr.
    pub fn new(lang: Lang, color: Color, verbose: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        let colored = |terminal: bool| match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !no_color && !dumb,
        };
        let err_terminal = io::stderr().is_terminal();
        Self {
            lang,
            verbose,
            out_color: colored(io::stdout().is_terminal()),
            err_color: colored(err_terminal),
            live: err_terminal && !dumb,
            width: terminal_width(),
            shown: RefCell::new(false),
        }
    }

    /// One of two wordings.
    pub fn pick<T>(&self, zh: T, en: T) -> T {
        self.lang.pick(zh, en)
    }

    /// Cells of a line.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether stdout is coloured.
    pub fn out_color(&self) -> bool {
        self.out_color
    }

    /// Whether stderr is coloured.
    pub fn err_color(&self) -> bool {
        self.err_color
    }

    /// Whether a line that rewrites itself makes sense.
    pub fn has_live_line(&self) -> bool {
        self.live
    }

    /// A line of data.
    pub fn out(&self, line: &str) {
        self.out_raw(line);
        self.out_raw("\n");
    }

    /// Data as it is, at once: streamed replies.
    pub fn out_raw(&self, data: &str) {
        self.clear_live();
        let mut stdout = io::stdout().lock();
        if let Err(error) = stdout.write_all(data.as_bytes()).and_then(|()| stdout.flush()) {
            // `danlu ... | head` closes the pipe when it has seen enough: that is no error.
            let code = if error.kind() == io::ErrorKind::BrokenPipe { 0 } else { 2 };
            std::process::exit(code);
        }
    }

    /// A line of talk.
    pub fn say(&self, line: &str) {
        self.clear_live();
        // Nobody is left to tell where stderr is closed.
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// A line of talk in one of two wordings.
    pub fn tell(&self, zh: &str, en: &str) {
        self.say(self.pick(zh, en));
    }

    /// A line of talk that something deserves attention.
    pub fn warn(&self, line: &str) {
        self.say(&format!("{} {line}", self.err(Look::Yellow, self.pick("注意：", "warning:"))));
    }

    /// Rewrites the live line; nothing happens where there is no terminal.
    pub fn live(&self, line: &str) {
        if self.live {
            let _ = write!(io::stderr(), "\r{}\x1b[K", text::clip(line, self.width.saturating_sub(1)));
            let _ = io::stderr().flush();
            *self.shown.borrow_mut() = true;
        }
    }

    /// Removes the live line.
    pub fn clear_live(&self) {
        if self.shown.replace(false) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    /// `text` in a look, for stdout.
    pub fn data(&self, look: Look, text: &str) -> String {
        paint(self.out_color, look, text)
    }

    /// `text` in a look, for stderr.
    pub fn err(&self, look: Look, text: &str) -> String {
        paint(self.err_color, look, text)
    }
}

/// Columns of the terminal, from `COLUMNS` or the terminal itself; 80 where neither knows.
fn terminal_width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|v| v.parse().ok());
    let asked = || {
        let size = rustix::termios::tcgetwinsize(io::stderr())
            .or_else(|_| rustix::termios::tcgetwinsize(io::stdout()));
        size.ok().map(|size| size.ws_col as usize)
    };
    columns.or_else(asked).filter(|&w| w > 0).unwrap_or(80).clamp(40, 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paint_closes_its_colour_on_every_line() {
        assert_eq!(paint(true, Look::Green, "a\n\nb"), "\x1b[32ma\x1b[0m\n\n\x1b[32mb\x1b[0m");
        assert_eq!(paint(false, Look::Green, "a\nb"), "a\nb");
    }
}

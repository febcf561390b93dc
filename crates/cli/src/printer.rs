//! Where text goes: data to stdout, talk to stderr, one live line at the bottom.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use danlu_model::FileError;

use crate::diagnostic::{Diagnostic, Origin};
use crate::lang::Lang;
use crate::style::{Color, Style, paint};
use crate::{temp_dirs, terminal_text};

/// Everything a command needs to talk.
pub struct Printer {
    /// The language of talk.
    pub lang: Lang,
    /// Whether to say more: `-v`.
    pub verbose: bool,
    data_color: bool,
    status_color: bool,
    live: bool,
    width: usize,
    out_wraps: bool,
    err_wraps: bool,
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
            data_color: colored(io::stdout().is_terminal()),
            status_color: colored(err_terminal),
            live: err_terminal && !dumb,
            width: terminal_width(),
            out_wraps: io::stdout().is_terminal(),
            err_wraps: err_terminal,
            shown: RefCell::new(false),
        }
    }

    /// One of two wordings.
    pub fn pick<T>(&self, zh: T, en: T) -> T {
        self.lang.pick(zh, en)
    }

    /// A back end's name for itself, in the language of the talk.
    pub fn backend(&self, name: &str) -> String {
        let zh = name.replace(" threads,", " 线程,").replace(" thread,", " 线程,");
        self.pick(zh, name.to_owned())
    }

    /// Cells of a line.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether stdout is coloured.
    pub fn data_color(&self) -> bool {
        self.data_color
    }

    /// Whether stderr is coloured.
    pub fn status_color(&self) -> bool {
        self.status_color
    }

    /// Whether a line that rewrites itself makes sense.
    pub fn has_live_line(&self) -> bool {
        self.live
    }

    /// A line of data.
    pub fn data(&self, line: &str) {
        self.data_raw(line);
        self.data_raw("\n");
    }

    /// A line of data behind `label`, which takes as many cells as it has characters. On a terminal a long one
    /// goes on under itself; elsewhere it stays one line, for `grep`.
    pub fn data_labeled(&self, label: &str, line: &str) {
        self.data(&format!("{label}{}", hung(self.out_wraps, label, line, self.width)));
    }

    /// Data as it is, at once: streamed replies.
    pub fn data_raw(&self, data: &str) {
        self.clear_live();
        let mut stdout = io::stdout().lock();
        if let Err(error) = stdout.write_all(data.as_bytes()).and_then(|()| stdout.flush()) {
            self.give_up_stdout(error);
        }
    }

    /// Ends the process: nobody takes what it has to say.
    pub fn give_up_stdout(&self, error: io::Error) -> ! {
        temp_dirs::remove_all();
        // `danlu ... | head` closes the pipe when it has seen enough: that is no error.
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        let error = FileError::new("write to", Path::new("standard output"), error);
        let diagnostic = Diagnostic::input(error.to_string().replace('`', ""));
        self.status(diagnostic.render(self.status_color).trim_end());
        std::process::exit(Origin::Input as i32);
    }

    /// A line of talk.
    pub fn status(&self, line: &str) {
        self.clear_live();
        // Nobody is left to tell where stderr is closed.
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// A line of talk in one of two wordings.
    pub fn status_bilingual(&self, zh: &str, en: &str) {
        self.status(self.pick(zh, en));
    }

    /// A line of talk behind `label`, as [`Printer::data_labeled`] does for data.
    pub fn status_labeled(&self, label: &str, line: &str) {
        self.status(&format!("{label}{}", hung(self.err_wraps, label, line, self.width)));
    }

    /// A line of talk that something deserves attention.
    pub fn warn(&self, line: &str) {
        self.status_labeled(&self.paint_status(Style::Yellow, self.pick("注意：", "warning: ")), line);
    }

    /// Rewrites the live line; nothing happens where there is no terminal.
    pub fn live(&self, line: &str) {
        if self.live {
            let _ =
                write!(io::stderr(), "\r{}\x1b[K", terminal_text::clip(line, self.width.saturating_sub(1)));
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

    /// `text` in a style, for stdout.
    pub fn paint_data(&self, style: Style, text: &str) -> String {
        paint(self.data_color, style, text)
    }

    /// `text` in a style, for stderr.
    pub fn paint_status(&self, style: Style, text: &str) -> String {
        paint(self.status_color, style, text)
    }
}

/// `line` broken so that it goes on under itself behind `label`, if it is to be broken.
fn hung(wraps: bool, label: &str, line: &str, width: usize) -> String {
    // Colours take no cells.
    let plain: String =
        label.split('\x1b').map(|part| part.split_once('m').map_or(part, |(_, rest)| rest)).collect();
    let plain = if label.contains('\x1b') { &plain } else { label };
    if wraps { terminal_text::hang(line, terminal_text::width(plain), width) } else { line.to_owned() }
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
    fn a_long_line_goes_on_behind_its_label() {
        let label = paint(true, Style::Yellow, "注意：");
        assert_eq!(hung(true, &label, "一二三四五六七八", 14), "一二三四\n      五六七八");
        assert_eq!(hung(true, "names: ", "map and time", 14), "map and\n       time");
        assert_eq!(hung(false, "  ", "a long line", 4), "a long line");
    }
}

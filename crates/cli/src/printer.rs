//! Prints data to stdout, status to stderr, and one live line at the bottom of the terminal.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use danlu_model::FileError;

use crate::diagnostic::{Diagnostic, Origin};
use crate::lang::Lang;
use crate::lesson::Lesson;
use crate::message_zh;
use crate::style::{Color, Style, paint};
use crate::{temp_dirs, terminal_text};

/// Prints data, status lines and the live line.
pub struct Printer {
    /// The language of status lines and tables.
    pub lang: Lang,
    pub verbose: bool,
    /// Whether only results, warnings and errors are printed.
    quiet: bool,
    /// Whether stdout is reserved for JSON. If so, tables are printed to stderr.
    json: bool,
    /// Whether every question is answered with yes.
    pub yes: bool,
    /// Whether lessons are printed.
    teaches: bool,
    /// Lessons that were printed. Each lesson is printed once.
    taught: RefCell<Vec<Lesson>>,
    data_color: bool,
    status_color: bool,
    live: bool,
    width: usize,
    out_wraps: bool,
    err_wraps: bool,
    /// Whether the live line is visible. The live line must be cleared before other output.
    shown: RefCell<bool>,
}

impl Printer {
    /// Creates a printer for stdout and stderr of this process.
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
            quiet: false,
            json: false,
            yes: false,
            teaches: false,
            taught: RefCell::new(Vec::new()),
            data_color: colored(io::stdout().is_terminal()),
            status_color: colored(err_terminal),
            live: err_terminal && !dumb,
            width: terminal_width(),
            out_wraps: io::stdout().is_terminal(),
            err_wraps: err_terminal,
            shown: RefCell::new(false),
        }
    }

    /// Sets `--quiet` and `--yes`.
    pub fn with_answers(self, quiet: bool, yes: bool) -> Self {
        Self { quiet, yes, live: self.live && !quiet, ..self }
    }

    /// Sets `--teach`.
    pub fn with_lessons(self, teaches: bool) -> Self {
        Self { teaches, ..self }
    }

    /// Reserves stdout for JSON, if `json` is set.
    pub fn with_json(self, json: bool) -> Self {
        Self { json, ..self }
    }

    /// Prints an event as one line of JSON, if `--json` is given. `fields` returns an object.
    pub fn event(&self, name: &str, fields: impl FnOnce() -> serde_json::Value) {
        if self.json {
            let mut object = serde_json::Map::new();
            object.insert("event".to_owned(), name.into());
            if let serde_json::Value::Object(fields) = fields() {
                object.extend(fields);
            }
            self.clear_live();
            self.data_raw(&format!("{}\n", serde_json::Value::Object(object)));
        }
    }

    pub fn pick<T>(&self, zh: T, en: T) -> T {
        self.lang.pick(zh, en)
    }

    /// Returns a line of an error, such as the fault of a record, in the current language.
    pub fn detail(&self, line: &str) -> String {
        let chinese = self.pick(message_zh::detail(line), None);
        chinese.unwrap_or_else(|| line.to_owned())
    }

    pub fn backend(&self, name: &str) -> String {
        let zh = name.replace(" threads,", " 线程,").replace(" thread,", " 线程,");
        self.pick(zh, name.to_owned())
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn data_color(&self) -> bool {
        self.data_color
    }

    pub fn status_color(&self) -> bool {
        self.status_color
    }

    /// Returns whether stderr is a terminal that can rewrite a line.
    pub fn has_live_line(&self) -> bool {
        self.live
    }

    /// Prints a line of data. If stdout is reserved for JSON, prints the line to stderr as a status line.
    pub fn data(&self, line: &str) {
        if self.json {
            return self.status(line);
        }
        self.data_raw(line);
        self.data_raw("\n");
    }

    /// Prints a line of data after `label`. In a terminal, a long line is wrapped and indented. If stdout is
    /// not a terminal, the line is not wrapped, so that `grep` finds the whole line.
    pub fn data_labeled(&self, label: &str, line: &str) {
        self.data(&format!("{label}{}", hung(self.out_wraps, label, line, self.width)));
    }

    /// Prints data without a line end, and flushes stdout. Streamed replies use this method.
    pub fn data_raw(&self, data: &str) {
        self.clear_live();
        let mut stdout = io::stdout().lock();
        if let Err(error) = stdout.write_all(data.as_bytes()).and_then(|()| stdout.flush()) {
            self.give_up_stdout(error);
        }
    }

    /// Exits after a failed write to stdout, with code 0 if the reader closed the pipe.
    pub fn give_up_stdout(&self, error: io::Error) -> ! {
        temp_dirs::remove_all();
        // A closed pipe, as in `danlu ... | head`, is not an error.
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        let error = FileError::new("write to", Path::new("standard output"), error);
        let diagnostic = Diagnostic::input(error.to_string().replace('`', ""));
        self.error(diagnostic.render(self.status_color).trim_end());
        std::process::exit(Origin::Input as i32);
    }

    /// Prints a status line, unless `--quiet` is given.
    pub fn status(&self, line: &str) {
        if !self.quiet {
            self.error(line);
        }
    }

    /// Prints an error, in the language of the printer.
    pub fn diagnostic(&self, diagnostic: &Diagnostic) {
        self.error(diagnostic.render_in(self.lang, self.status_color).trim_end());
    }

    /// Prints a line to stderr, even with `--quiet`.
    pub fn error(&self, line: &str) {
        self.clear_live();
        // A failed write is ignored, because nothing can be reported if stderr is closed.
        let _ = writeln!(io::stderr(), "{line}");
    }

    pub fn status_bilingual(&self, zh: &str, en: &str) {
        self.status(self.pick(zh, en));
    }

    /// Prints a lesson under the line before it, if `--teach` is given. Prints each lesson once.
    pub fn teach(&self, lesson: Lesson) {
        if self.teaches && !self.taught.borrow().contains(&lesson) {
            self.taught.borrow_mut().push(lesson);
            let label = self.paint_status(Style::Dim, "  ↳ ");
            let text = self.paint_status(Style::Dim, lesson.text(self.lang));
            self.status_labeled(&label, &text);
        }
    }

    /// Prints a status line after `label`, wrapped as in [`Printer::data_labeled`].
    pub fn status_labeled(&self, label: &str, line: &str) {
        self.status(&format!("{label}{}", hung(self.err_wraps, label, line, self.width)));
    }

    pub fn warn(&self, line: &str) {
        let label = self.paint_status(Style::Yellow, self.pick("注意：", "warning: "));
        self.error(&format!("{label}{}", hung(self.err_wraps, &label, line, self.width)));
    }

    /// Rewrites the live line. Does nothing unless stderr is a terminal that can rewrite a line.
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

    pub fn paint_data(&self, style: Style, text: &str) -> String {
        paint(self.data_color, style, text)
    }

    pub fn paint_status(&self, style: Style, text: &str) -> String {
        paint(self.status_color, style, text)
    }
}

/// Wraps `line` for printing after `label`, and indents the later lines. Returns `line` unchanged if `wraps`
/// is false.
fn hung(wraps: bool, label: &str, line: &str, width: usize) -> String {
    // Colour codes have no width, so they are removed before the width is measured.
    let plain: String =
        label.split('\x1b').map(|part| part.split_once('m').map_or(part, |(_, rest)| rest)).collect();
    let plain = if label.contains('\x1b') { &plain } else { label };
    if wraps { terminal_text::hang(line, terminal_text::width(plain), width) } else { line.to_owned() }
}

/// Returns the number of columns, from `COLUMNS`, else from the terminal, else 80.
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

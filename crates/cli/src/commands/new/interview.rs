//! Asks questions and reads answers, one line each.

use std::cell::Cell;
use std::io::{self, IsTerminal as _, Write as _};

use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;
use crate::style::Style;

/// Number of questions.
const QUESTIONS: usize = 5;

/// Asks on stderr and reads from stdin.
pub struct Interview<'a> {
    pub printer: &'a Printer,
    asked: Cell<usize>,
}

impl<'a> Interview<'a> {
    pub fn new(printer: &'a Printer) -> Self {
        Self { printer, asked: Cell::new(0) }
    }

    /// Returns the parsed answer. The answer comes from the flag or from the user. With `--yes`, or after an
    /// empty line, the default is parsed.
    ///
    /// At a terminal, the question is repeated after an invalid answer.
    ///
    /// # Errors
    /// If the answer is invalid, or stdin cannot be read.
    pub fn ask<T>(
        &self,
        flag: Option<&str>,
        question: (&str, &[String]),
        default: &str,
        parse: impl Fn(&str) -> Result<T>,
    ) -> Result<T> {
        self.asked.set(self.asked.get() + 1);
        if let Some(given) = flag {
            return parse(given);
        }
        if self.printer.yes {
            return parse(default);
        }
        let (title, lines) = question;
        let title = format!("[{}/{QUESTIONS}] {title}", self.asked.get());
        self.printer.status(&self.printer.paint_status(Style::Bold, &title));
        lines.iter().for_each(|line| self.printer.status(&format!("  {line}")));
        loop {
            let answer = self.line(default)?;
            match parse(if answer.is_empty() { default } else { &answer }) {
                Err(invalid) if io::stdin().is_terminal() => self.printer.diagnostic(&invalid),
                parsed => return parsed,
            }
        }
    }

    /// Asks a question whose default is no.
    ///
    /// # Errors
    /// If stdin cannot be read.
    pub fn confirms(&self, question: &str) -> Result<bool> {
        let answer = self.prompted(&format!("{question} [y/N] "))?;
        Ok(matches!(answer.to_lowercase().as_str(), "y" | "yes" | "是"))
    }

    fn line(&self, default: &str) -> Result<String> {
        match default {
            "" => self.prompted("> "),
            default => self.prompted(&format!("[{default}] > ")),
        }
    }

    /// Prints the prompt, and returns a line without its line end. The end of the input counts as an empty
    /// line.
    fn prompted(&self, prompt: &str) -> Result<String> {
        self.printer.clear_live();
        let mut line = String::new();
        let asked = write!(io::stderr(), "{prompt}").and_then(|()| io::stdin().read_line(&mut line));
        let read = asked.map_err(|error| Diagnostic::input(format!("cannot read the answer: {error}")))?;
        if read == 0 || !io::stdin().is_terminal() {
            self.printer.status("");
        }
        Ok(line.trim().to_owned())
    }
}

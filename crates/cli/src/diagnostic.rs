//! The format of an error: the message, a position in a file, and a hint.
//!
//! ```text
//! error: unknown key `lerning-rate`
//!     ╭─[run.toml:3:1]
//!   3 │ lerning-rate = 1e-4
//!     · ────────────
//!
//! hint: did you mean `learning-rate`?
//! ```

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use danlu_model::FileError;

use crate::lang::Lang;
use crate::message_zh;
use crate::style::{Style, paint};
use crate::terminal_text;

/// The origin of an error, which determines the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The cause is a flag, a file or the machine, so the user can fix the error.
    Input = 1,
    /// A bug in danlu.
    Bug = 2,
}

/// A range of a text file.
#[derive(Clone, Debug)]
pub struct Snippet {
    name: String,
    source: String,
    span: Range<usize>,
}

impl Snippet {
    /// Creates a snippet for the bytes `span` of the text `source`, which was read from the file `name`.
    pub fn new(name: impl Into<String>, source: impl Into<String>, span: Range<usize>) -> Self {
        Self { name: name.into(), source: source.into(), span }
    }

    /// Draws the line that contains the range, with its number, and underlines the range.
    fn render(&self, color: bool) -> String {
        let start = floor_boundary(&self.source, self.span.start);
        let end = floor_boundary(&self.source, self.span.end.max(start));
        let line_start = self.source[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.source[start..].find('\n').map_or(self.source.len(), |at| start + at);
        let number = self.source[..line_start].matches('\n').count() + 1;
        let column = self.source[line_start..start].chars().count() + 1;

        // The width of a tab is unknown, so tabs become blanks to align the underline.
        let shown = |range: Range<usize>| terminal_text::printable(&self.source[range]).replace('\t', "    ");
        let line = shown(line_start..line_end);
        let before = " ".repeat(terminal_text::width(&shown(line_start..start)));
        let under = "─".repeat(terminal_text::width(&shown(start..end.min(line_end))).max(1));
        let gutter = number.to_string().len().max(3);
        let dim = |s: &str| paint(color, Style::Dim, s);
        let (blank, name) = (" ".repeat(gutter), terminal_text::printable(&self.name));
        format!(
            "{blank} {}\n{} {line}\n{blank} {} {before}{}",
            dim(&format!("╭─[{name}:{number}:{column}]")),
            dim(&format!("{number:>gutter$} │")),
            dim("·"),
            paint(color, Style::Red, &under),
        )
    }
}

fn floor_boundary(source: &str, at: usize) -> usize {
    let mut at = at.min(source.len());
    while !source.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// An error, with everything that is printed about it.
#[derive(Debug)]
pub struct Diagnostic {
    message: String,
    snippet: Option<Box<Snippet>>,
    details: Vec<String>,
    hint: Option<String>,
    origin: Origin,
}

/// The result of a command.
pub type Result<T, E = Diagnostic> = std::result::Result<T, E>;

impl Diagnostic {
    /// Creates an error that the user can fix.
    pub fn input(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            snippet: None,
            details: Vec::new(),
            hint: None,
            origin: Origin::Input,
        }
    }

    /// Creates an error for a bug in danlu.
    pub fn bug(message: impl Into<String>) -> Self {
        Self { origin: Origin::Bug, ..Self::input(message) }
    }

    /// Converts an error of a library. The message includes the error's causes.
    pub fn from_error(error: &dyn Error, hint: Option<String>) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // An I/O error is skipped, because the outer error already describes it.
            if !cause.is::<std::io::Error>() && !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = cause.source();
        }
        Self { hint, ..Self::input(without_os_code(&message)) }
    }

    /// Creates an I/O error of a file or folder. `action` is a verb, such as `create`.
    pub fn io(action: &'static str, path: &Path, error: std::io::Error) -> Self {
        FileError::new(action, path, error).into()
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Appends a hint to an existing one, after `; `.
    pub fn and_hint(mut self, hint: impl Into<String>) -> Self {
        let more = hint.into();
        self.hint = Some(match self.hint {
            Some(first) => format!("{first}; {more}"),
            None => more,
        });
        self
    }

    pub fn or_hint(mut self, hint: &str) -> Self {
        self.hint.get_or_insert_with(|| hint.to_owned());
        self
    }

    pub fn with_snippet(mut self, snippet: Option<Snippet>) -> Self {
        self.snippet = snippet.map(Box::new);
        self
    }

    pub fn with_details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }

    /// Returns the exit code of the process.
    pub fn exit_code(&self) -> u8 {
        self.origin as u8
    }

    /// Formats the diagnostic in English.
    pub fn render(&self, color: bool) -> String {
        self.render_in(Lang::En, color)
    }

    /// Formats the diagnostic for the terminal, either in English, or in Chinese with the English text below.
    pub fn render_in(&self, lang: Lang, color: bool) -> String {
        let line = |label: &str, style, text: &str| {
            format!("{}{}\n", paint(color, style, label), terminal_text::printable(text))
        };
        let chinese = |text: Option<String>| text.filter(|_| lang == Lang::Zh);
        let mut out = String::new();
        if let Some(message) = chinese(message_zh::message(&self.message)) {
            out += &line("错误：", Style::Red, &message);
        }
        out += &line("error: ", Style::Red, &self.message);
        if let Some(snippet) = &self.snippet {
            out += &snippet.render(color);
            out.push('\n');
        }
        for detail in &self.details {
            let detail = chinese(message_zh::detail(detail)).unwrap_or_else(|| detail.clone());
            out += &format!("  {}\n", terminal_text::printable(&detail));
        }
        if let Some(hint) = &self.hint {
            out.push('\n');
            let is_command = hint.starts_with("danlu ");
            if let Some(hint) = chinese(message_zh::hint(hint).or_else(|| is_command.then(|| hint.clone()))) {
                out += &line("提示：", Style::Cyan, &hint);
            }
            if !is_command || lang == Lang::En {
                out += &line("hint: ", Style::Cyan, &sentences(hint));
            }
        }
        out
    }
}

/// Starts a new sentence after a question in a hint.
fn sentences(hint: &str) -> String {
    let mut parts = hint.split("?; ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut chars = part.chars();
        let first = chars.next().map(|c| c.to_ascii_uppercase()).into_iter();
        out = out + "? " + &first.chain(chars).collect::<String>();
    }
    out
}

/// Returns the message without Rust's suffix, such as ` (os error 2)`.
fn without_os_code(message: &str) -> String {
    let Some((before, rest)) = message.split_once(" (os error ") else { return message.to_owned() };
    let after = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
    after.strip_prefix(')').map_or_else(|| message.to_owned(), |after| format!("{before}{after}"))
}

impl From<FileError> for Diagnostic {
    fn from(error: FileError) -> Self {
        Self::from_error(&error, error.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chinese_error_keeps_its_english_text() {
        let diagnostic = Diagnostic::input("`x` does not exist").with_hint("check the path");
        assert_eq!(
            diagnostic.render_in(Lang::Zh, false),
            "错误：`x` 不存在\nerror: `x` does not exist\n\n提示：检查路径\nhint: check the path\n"
        );
        assert_eq!(diagnostic.render(false), "error: `x` does not exist\n\nhint: check the path\n");
    }

    #[test]
    fn a_question_in_a_hint_ends_its_sentence() {
        let hint = Diagnostic::input("x").with_hint("did you mean `a`?").and_hint("check the path");
        assert!(hint.render(false).ends_with("hint: did you mean `a`? Check the path\n"));
        assert!(hint.render_in(Lang::Zh, false).contains("提示：是不是 `a`？检查路径\n"));
    }

    #[test]
    fn a_diagnostic_underlines_its_place_and_ends_with_the_hint() {
        let source = "base = \"b\"\nlerning-rate = 1e-4\n";
        let diagnostic = Diagnostic::input("unknown key `lerning-rate`")
            .with_snippet(Some(Snippet::new("run.toml", source, 11..23)))
            .with_hint("did you mean `learning-rate`?");
        let expected = "\
error: unknown key `lerning-rate`
    ╭─[run.toml:2:1]
  2 │ lerning-rate = 1e-4
    · ────────────

hint: did you mean `learning-rate`?
";
        assert_eq!(diagnostic.render(false), expected);
        assert_eq!(diagnostic.exit_code(), 1);
    }

    #[test]
    fn underlines_stand_under_wide_characters_too() {
        let source = "文件 = \"错\"";
        let at = source.find("错").unwrap();
        let diagnostic = Diagnostic::input("x").with_snippet(Some(Snippet::new("a", source, at..at + 3)));
        assert!(
            diagnostic.render(false).ends_with("  1 │ 文件 = \"错\"\n    ·         ──\n"),
            "{}",
            diagnostic.render(false)
        );
    }

    #[test]
    fn spans_outside_the_file_never_panic() {
        for span in [0..0, 2..900, 900..901, 1..2] {
            Diagnostic::input("x").with_snippet(Some(Snippet::new("a", "文", span))).render(true);
        }
    }
}

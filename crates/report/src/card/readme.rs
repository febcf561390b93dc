//! Splits a `README.md` into danlu's part and the author's part.
//!
//! danlu owns the lines between [`BEGIN`] and [`END`], and its own keys in the front matter. An update
//! replaces these lines and keys, and copies all other bytes.

use std::fmt;
use std::ops::Range;

use super::author_notes;
use super::front_matter::{self, Entry};

/// The line above danlu's part.
pub const BEGIN: &str = "<!-- danlu:begin -->";

/// The line below danlu's part.
pub const END: &str = "<!-- danlu:end -->";

/// The reason that a `README.md` cannot be updated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadmeFault {
    /// One of danlu's two markers is missing or appears more than once, or the end marker is above the begin
    /// marker.
    Marks(String),
    /// The front matter has no end, or one of danlu's keys appears twice.
    FrontMatter(String),
    /// The file is not UTF-8.
    NotUtf8 {
        /// Byte offset of the first invalid byte.
        at: usize,
    },
}

impl fmt::Display for ReadmeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Marks(reason) | Self::FrontMatter(reason) => f.write_str(reason),
            Self::NotUtf8 { at } => write!(f, "byte {at} is not UTF-8"),
        }
    }
}

impl ReadmeFault {
    /// Returns the next step for the user.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Marks(_) => {
                "restore the two marks as one pair, or delete them all: `danlu card` then adds its part below your text"
            }
            Self::FrontMatter(_) => "mend the lines between the two `---` at the top of the file",
            Self::NotUtf8 { .. } => "save the file as UTF-8",
        }
    }
}

/// A parsed `README.md`.
#[derive(Clone, Debug)]
pub struct Readme<'a> {
    text: &'a str,
    /// Byte offset of the text after an optional byte order mark.
    start: usize,
    /// Byte range of the lines between the two `---` lines of the front matter.
    front: Option<Range<usize>>,
    /// Byte offset of the body, which follows the front matter.
    body: usize,
    /// Byte range of the lines between danlu's markers.
    block: Option<Range<usize>>,
}

impl<'a> Readme<'a> {
    /// Parses the text of a `README.md`.
    ///
    /// # Errors
    /// If there are markers, but not exactly one begin marker above one end marker. Also if the front matter
    /// has no end.
    pub fn parse(text: &'a str) -> Result<Self, ReadmeFault> {
        let start = text.len() - text.trim_start_matches('\u{feff}').len();
        let (front, body) = find_front_matter(text, start)?;
        let block = find_block(text, body)?;
        Ok(Self { text, start, front, body, block })
    }

    /// Returns whether the file contains danlu's markers.
    pub fn has_block(&self) -> bool {
        self.block.is_some()
    }

    /// Returns whether there is no text below the front matter.
    pub fn is_blank(&self) -> bool {
        self.text[self.body..].trim().is_empty()
    }

    /// Returns the text without danlu's part.
    pub(super) fn without_block(&self) -> String {
        match &self.block {
            Some(block) => format!("{}{}", &self.text[..block.start], &self.text[block.end..]),
            None => self.text.to_owned(),
        }
    }

    /// Returns the line numbers of danlu's part. Line numbers start at 0.
    pub(super) fn block_lines(&self) -> Option<Range<usize>> {
        let line = |at: usize| self.text[..at].matches('\n').count();
        self.block.as_ref().map(|block| line(block.start)..line(block.end))
    }

    /// Returns the lines that the author wrote. Blank lines, danlu's part, danlu's keys, and the lines that
    /// danlu writes around the notes are excluded.
    pub fn author_lines(&self) -> Vec<&'a str> {
        let front = self.front.clone().map_or("", |front| &self.text[front]);
        let (above, below) = match &self.block {
            Some(block) => (&self.text[self.body..block.start], &self.text[block.end..]),
            None => (&self.text[self.body..], ""),
        };
        let body = above.lines().chain(below.lines()).map(str::trim);
        let body = body.filter(|line| !matches!(*line, BEGIN | END) && !author_notes::is_frame(line));
        front_matter::foreign_lines(front).into_iter().chain(body).filter(|line| !line.is_empty()).collect()
    }

    /// Returns the file with the entries `own` in the front matter, and with `block` as danlu's part.
    ///
    /// If the file has no markers, danlu's part is added at the end.
    ///
    /// # Errors
    /// If the front matter contains one of danlu's keys twice.
    pub(super) fn updated(&self, own: &[Entry], block: &str) -> Result<String, ReadmeFault> {
        let line_end = if self.text.contains("\r\n") { "\r\n" } else { "\n" };
        let ours = |text: &str| text.replace('\n', line_end);
        let mut out = self.text[..self.start].to_owned();
        match &self.front {
            Some(front) => {
                out += &self.text[self.start..front.start];
                out += &front_matter::updated(&self.text[front.clone()], own, line_end)?;
                out += &self.text[front.end..self.body];
            }
            None => {
                out += &ours(&front_matter::render(own));
                if !self.is_blank() {
                    out += line_end;
                }
            }
        }
        match &self.block {
            Some(range) => {
                out += &self.text[self.body..range.start];
                out += &ours(block);
                out += &self.text[range.end..];
            }
            None => {
                let above = &self.text[self.body..];
                out += above;
                if !above.trim().is_empty() && !above.ends_with('\n') {
                    out += line_end;
                }
                let gap = if above.trim().is_empty() && !above.is_empty() { "" } else { "\n" };
                out += &ours(&format!("{gap}{BEGIN}\n{block}{END}\n"));
            }
        }
        Ok(out)
    }
}

/// Returns whether `here` contains every line of `there`, in the same order.
pub fn keeps_every_line(there: &[&str], here: &[&str]) -> bool {
    let mut here = here.iter();
    there.iter().all(|line| here.any(|other| other == line))
}

/// Returns the byte range of the lines between the two `---` lines, and the start of the body.
fn find_front_matter(text: &str, start: usize) -> Result<(Option<Range<usize>>, usize), ReadmeFault> {
    let mut lines = text[start..].split_inclusive('\n');
    let Some(first) = lines.next().filter(|line| line.trim_end() == "---") else { return Ok((None, start)) };
    let begin = start + first.len();
    let mut at = begin;
    for line in lines {
        if line.trim_end() == "---" {
            return Ok((Some(begin..at), at + line.len()));
        }
        at += line.len();
    }
    Err(ReadmeFault::FrontMatter("the front matter that line 1 opens has no closing `---`".to_owned()))
}

/// Returns the byte range of the lines between the markers in the body, if there are markers.
fn find_block(text: &str, body: usize) -> Result<Option<Range<usize>>, ReadmeFault> {
    let (mut begins, mut ends) = (Vec::new(), Vec::new());
    let (mut at, first) = (body, text[..body].matches('\n').count() + 1);
    for (number, line) in (first..).zip(text[body..].split_inclusive('\n')) {
        match line.trim() {
            BEGIN => begins.push((number, at + line.len())),
            END => ends.push((number, at)),
            _ => {}
        }
        at += line.len();
    }
    let numbers = |found: &[(usize, usize)]| {
        found.iter().map(|(number, _)| number.to_string()).collect::<Vec<_>>().join(", ")
    };
    let fault = |reason: String| Err(ReadmeFault::Marks(reason));
    match (&begins[..], &ends[..]) {
        ([], []) => Ok(None),
        ([(_, begin)], [(_, end)]) if begin <= end => Ok(Some(*begin..*end)),
        ([(begin, _)], [(end, _)]) => {
            fault(format!("`{END}` on line {end} stands above `{BEGIN}` on line {begin}"))
        }
        (begins, []) => fault(format!("`{BEGIN}` on line {} has no `{END}` below it", numbers(begins))),
        ([], ends) => fault(format!("`{END}` on line {} has no `{BEGIN}` above it", numbers(ends))),
        (begins, ends) => fault(format!(
            "`{BEGIN}` stands on line {} and `{END}` on line {}, expected one of each",
            numbers(begins),
            numbers(ends)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> String {
        Readme::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn damaged_and_doubled_marks_are_named_with_their_lines() {
        assert_eq!(
            reason("a\n<!-- danlu:begin -->\nb\n"),
            format!("`{BEGIN}` on line 2 has no `{END}` below it")
        );
        assert_eq!(
            reason("---\nx: 1\n---\n<!-- danlu:end -->\n"),
            format!("`{END}` on line 4 has no `{BEGIN}` above it")
        );
        assert_eq!(
            reason("<!-- danlu:end -->\n<!-- danlu:begin -->\n"),
            format!("`{END}` on line 1 stands above `{BEGIN}` on line 2")
        );
        let twice = "<!-- danlu:begin -->\n<!-- danlu:end -->\n".repeat(2);
        assert_eq!(
            reason(&twice),
            format!("`{BEGIN}` stands on line 1, 3 and `{END}` on line 2, 4, expected one of each")
        );
        assert_eq!(
            reason("---\nlicense: mit\n# mine\n"),
            "the front matter that line 1 opens has no closing `---`"
        );
        assert!(Readme::parse("see `<!-- danlu:begin -->`\n").is_ok_and(|readme| !readme.has_block()));
    }

    #[test]
    fn every_byte_but_danlus_stays() {
        let text = "\u{feff}---\r\nmine: 1\r\n---\r\nabove \r\n<!-- danlu:begin -->\r\nold\r\n<!-- danlu:end -->\r\n\tbelow";
        let updated = Readme::parse(text).unwrap().updated(&[], "new\n").unwrap();
        assert_eq!(updated, text.replace("old", "new"));
        assert_eq!(Readme::parse(text).unwrap().author_lines(), ["mine: 1", "above", "below"]);
    }

    #[test]
    fn a_text_without_marks_stays_above_danlus_part() {
        let updated = |text: &str| Readme::parse(text).unwrap().updated(&[], "new\n").unwrap();
        let block = "<!-- danlu:begin -->\nnew\n<!-- danlu:end -->\n";
        assert_eq!(updated(""), format!("---\n---\n\n{block}"));
        assert_eq!(updated("# mine"), format!("---\n---\n\n# mine\n\n{block}"));
        assert_eq!(updated(&updated("# mine")), updated("# mine"));
    }

    #[test]
    fn a_text_keeps_another_where_it_has_all_its_lines_in_order() {
        assert!(keeps_every_line(&["a", "c"], &["a", "b", "c"]) && keeps_every_line(&[], &[]));
        assert!(!keeps_every_line(&["c", "a"], &["a", "b", "c"]) && !keeps_every_line(&["a", "a"], &["a"]));
    }
}

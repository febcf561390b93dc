//! Splits a JSON array or JSON lines into records without parsing the records.
//!
//! Only one record is in memory at a time, with at most [`MAX_RECORD_BYTES`]. The splitter counts brackets
//! instead of using recursion. A hostile file can therefore exhaust neither the stack nor the memory.
//!
//! After a damaged record in an array, reading resumes at the next record. [`RecordStart`] finds the next
//! record.

use std::io::{self, BufRead};

use crate::{
    json_layout::{self, LOOK_AHEAD, Shape},
    json_nesting::JsonNesting,
    next_record::{NextRecord, RecordStart, first_key},
    scanner::{Position, Scanner},
};

/// Maximum size of a record in bytes. A conversation of a million tokens has about 4 MiB, and the longest
/// novels have 90 MiB.
pub(crate) const MAX_RECORD_BYTES: usize = 128 << 20;

/// The bytes of one record.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    pub at: Position,
    pub bytes: Vec<u8>,
}

/// A part of the file that is not a valid record: a damaged record, or a part between two records.
#[derive(Debug, PartialEq)]
pub(crate) struct Flaw {
    pub at: Position,
    pub found: String,
    pub expected: String,
    /// Whether this part is a damaged record. If false, this part is between two records.
    pub is_record: bool,
    /// Whether the rest of the file is skipped, because no other record was found.
    pub fatal: bool,
}

/// The layout of the records in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Array,
    Lines,
}

/// The token that may follow in an array.
#[derive(Clone, Copy, PartialEq)]
enum Expect {
    FirstRecord,
    Record,
    Separator,
    Nothing,
}

/// Iterates over the records of a stream.
pub(crate) struct Splitter<R> {
    scanner: Scanner<R>,
    layout: Layout,
    expect: Expect,
    /// The start of the record that was read last.
    last: Option<RecordStart>,
    /// The first key of the file's first record, including its quotes.
    usual_key: Option<Vec<u8>>,
    /// Whether the array is the value of a key in an object.
    wrapped: bool,
    /// Keys of the other lists in the object that contains the array.
    unread_lists: Vec<String>,
}

impl<R: BufRead> Splitter<R> {
    /// Skips a byte order mark and white space, and detects the layout. Returns `None` for an empty file.
    pub fn new(input: R) -> io::Result<Option<Self>> {
        let mut scanner = Scanner::new(input)?;
        scanner.skip_blanks()?;
        if scanner.peek()?.is_none() {
            return Ok(None);
        }
        let shape = json_layout::shape(scanner.ahead(LOOK_AHEAD)?);
        let (layout, skip, wrapped) = match shape {
            Shape::Lines => (Layout::Lines, 0, false),
            Shape::Array => (Layout::Array, 1, false),
            Shape::Wrapped { skip, .. } => (Layout::Array, skip, true),
        };
        for _ in 0..skip {
            scanner.bump()?;
        }
        Ok(Some(Self {
            scanner,
            layout,
            expect: Expect::FirstRecord,
            last: None,
            usual_key: None,
            wrapped,
            unread_lists: Vec::new(),
        }))
    }

    /// Returns the keys of the lists that were not read, such as `test`.
    pub fn unread_lists(&self) -> &[String] {
        &self.unread_lists
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the next record or flaw. Returns `None` at the end of the file and after a fatal flaw.
    pub fn next(&mut self) -> io::Result<Option<Result<Piece, Flaw>>> {
        match self.layout {
            Layout::Array => self.next_element(),
            Layout::Lines => self.next_line(),
        }
    }

    fn next_line(&mut self) -> io::Result<Option<Result<Piece, Flaw>>> {
        self.scanner.skip_blanks()?;
        let at = self.scanner.at();
        let mut bytes = Vec::new();
        let mut too_large = false;
        while let Some(byte) = self.scanner.bump()? {
            if byte == b'\n' {
                break;
            }
            too_large |= bytes.len() == MAX_RECORD_BYTES;
            if !too_large {
                bytes.push(byte);
            }
        }
        if too_large {
            return Ok(Some(Err(oversized(at))));
        }
        bytes.truncate(bytes.trim_ascii_end().len());
        Ok((!bytes.is_empty()).then_some(Ok(Piece { at, bytes })))
    }

    fn next_element(&mut self) -> io::Result<Option<Result<Piece, Flaw>>> {
        self.scanner.skip_blanks()?;
        let at = self.scanner.at();
        let first = self.scanner.peek()?;
        match (self.expect, first) {
            (Expect::Nothing, _) => Ok(None),
            (Expect::FirstRecord, Some(b']')) => self.close(),
            (Expect::FirstRecord | Expect::Record, Some(b',' | b']')) => {
                self.expect = Expect::Separator;
                let (found, expected) = ("nothing".into(), "a record between the commas of the array".into());
                Ok(Some(Err(Flaw { at, found, expected, is_record: true, fatal: false })))
            }
            (Expect::FirstRecord | Expect::Record, Some(_)) => {
                self.expect = Expect::Separator;
                self.element().map(Some)
            }
            (Expect::Separator, Some(b',')) => {
                self.scanner.bump()?;
                self.expect = Expect::Record;
                self.next_element()
            }
            (Expect::Separator, Some(b']')) => self.close(),
            (_, found) => Ok(Some(Err(self.stray(found, "`,` or `]` after a record")?))),
        }
    }

    /// Handles the end of the array. Only white space may follow, or the rest of the object around the array.
    fn close(&mut self) -> io::Result<Option<Result<Piece, Flaw>>> {
        self.expect = Expect::Nothing;
        self.scanner.bump()?;
        let mut end = "nothing after the `]` that ends the array";
        if self.wrapped {
            self.wrapped = false;
            end = "nothing after the `}` that ends the file";
            if !self.skip_wrapper()? {
                return Ok(Some(Err(self.stray(None, "`}` after the list of records")?)));
            }
        }
        self.scanner.skip_blanks()?;
        match self.scanner.peek()? {
            None => Ok(None),
            found => Ok(Some(Err(self.stray(found, end)?))),
        }
    }

    /// Skips to the end of the object around the array, and collects the keys of other lists. Returns `false`
    /// if the end is missing.
    fn skip_wrapper(&mut self) -> io::Result<bool> {
        let mut nesting = JsonNesting::default();
        nesting.take(b'{');
        let (mut key, mut value) = (Vec::new(), false);
        while let Some(byte) = self.scanner.bump()? {
            let outer = nesting.depth() == 1;
            match byte {
                b'[' if outer && value && !nesting.in_string() => {
                    self.unread_lists.push(String::from_utf8_lossy(&key).into_owned())
                }
                b'"' if outer && !nesting.in_string() && !value => key.clear(),
                b':' if outer && !nesting.in_string() => value = true,
                b',' if outer && !nesting.in_string() => value = false,
                _ if outer && !value && nesting.in_string() && byte != b'"' && key.len() < 64 => {
                    key.push(byte)
                }
                _ => {}
            }
            nesting.take(byte);
            if nesting.is_closed() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the flaw for an unexpected byte between two records.
    fn stray(&mut self, found: Option<u8>, expected: &str) -> io::Result<Flaw> {
        let at = self.scanner.at();
        let resumed = match (found, self.last) {
            // A `{` after a complete record must be the start of the next record.
            (Some(b'{'), Some(_)) => true,
            (Some(_), Some(last)) => {
                last.find_next(&mut self.scanner, self.usual_key.as_deref(), None)?.is_some()
            }
            _ => false,
        };
        self.expect = if resumed { Expect::Record } else { Expect::Nothing };
        let fatal = !resumed && found.is_some();
        Ok(Flaw { at, found: describe(found), expected: expected.into(), is_record: false, fatal })
    }

    /// Reads one element of the array, up to its closing bracket or the next separator.
    fn element(&mut self) -> io::Result<Result<Piece, Flaw>> {
        let start = RecordStart::of(&self.scanner);
        self.last = Some(start);
        let mut bytes = Vec::new();
        let mut too_large = false;
        let mut open = JsonNesting::default();
        loop {
            let Some(byte) = self.scanner.peek()? else {
                return self.broken(start, bytes, too_large, None, open).map(Err);
            };
            if let Some(fault) = open.fault(byte) {
                return self.broken(start, bytes, too_large, Some(fault), open).map(Err);
            }
            if open.is_closed() && matches!(byte, b',' | b']') {
                break;
            }
            if bytes.len() == MAX_RECORD_BYTES && !too_large {
                if let Some(flaw) = self.swallowed(start, &bytes)? {
                    return Ok(Err(flaw));
                }
                too_large = true;
                bytes = Vec::new();
            }
            self.scanner.bump()?;
            if !too_large {
                bytes.push(byte);
            }
            open.take(byte);
            if open.is_closed() && matches!(byte, b'}' | b']') {
                break;
            }
        }
        if too_large {
            return Ok(Err(oversized(start.at)));
        }
        bytes.truncate(bytes.trim_ascii_end().len());
        if self.usual_key.is_none() {
            self.usual_key = first_key(&bytes);
        }
        Ok(Ok(Piece { at: start.at, bytes }))
    }

    /// Returns the flaw for a damaged record, with the `fault` if it is known. Reading resumes at the next
    /// record, which may start before the fault.
    fn broken(
        &mut self,
        start: RecordStart,
        bytes: Vec<u8>,
        too_large: bool,
        fault: Option<(String, String)>,
        open: JsonNesting,
    ) -> io::Result<Flaw> {
        let (here, at_end) = (self.scanner.at(), self.scanner.peek()?.is_none());
        let key = self.usual_key.clone().or_else(|| first_key(&bytes));
        if !too_large {
            start.go_back(&mut self.scanner, &bytes);
        }
        let next = start.find_next(&mut self.scanner, key.as_deref(), None)?;
        self.expect = if next.is_some() { Expect::Record } else { Expect::Nothing };
        let fatal = next.is_none() && !at_end;
        Ok(match (next, fault) {
            (Some(next), _) if next.at <= here => unclosed(start.at, &next),
            (_, Some((found, expected))) => Flaw { at: here, found, expected, is_record: true, fatal },
            (_, None) => {
                let found =
                    format!("no end of this record before the end of the file, on line {}", here.line);
                Flaw { at: start.at, found, expected: open.missing_closers(), is_record: true, fatal }
            }
        })
    }

    /// If another record starts inside an oversized record, returns the flaw that the oversized record is not
    /// closed. Reading resumes at the other record.
    fn swallowed(&mut self, start: RecordStart, bytes: &[u8]) -> io::Result<Option<Flaw>> {
        let here = self.scanner.at();
        let key = self.usual_key.clone().or_else(|| first_key(bytes));
        start.go_back(&mut self.scanner, bytes);
        let next = start.find_next(&mut self.scanner, key.as_deref(), Some(here))?;
        Ok(next.map(|next| {
            self.expect = Expect::Record;
            unclosed(start.at, &next)
        }))
    }
}

/// Returns the flaw for a record that is not closed before the next record starts.
fn unclosed(at: Position, next: &NextRecord) -> Flaw {
    let place = match next.at.line == at.line {
        true => format!("in column {}", next.at.column),
        false => format!("on line {}", next.at.line),
    };
    let found = format!("no end of this record before the next one, {place}");
    Flaw { at, found, expected: next.open.missing_closers(), is_record: true, fatal: false }
}

fn oversized(at: Position) -> Flaw {
    Flaw { at, found: too_long(), expected: "a smaller one".into(), is_record: true, fatal: false }
}

/// Returns the description of a record that is larger than [`MAX_RECORD_BYTES`].
pub(crate) fn too_long() -> String {
    format!("a record of more than {} MiB", MAX_RECORD_BYTES >> 20)
}

fn describe(byte: Option<u8>) -> String {
    match byte {
        None => "the end of the file".into(),
        Some(byte @ 0x21..=0x7e) => format!("`{}`", char::from(byte)),
        Some(byte) => format!("the byte 0x{byte:02x}"),
    }
}

#[cfg(test)]
#[path = "splitter_tests.rs"]
mod tests;

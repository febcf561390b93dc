//! Finds the start of the next record after a broken one in an array.

use std::io::{self, BufRead};

use crate::{
    json_nesting::JsonNesting,
    scanner::{Position, Scanner},
};

/// Most white space accepted between a `{` and a key that identifies a record.
const MAX_BLANKS: usize = 256;

/// Where a record starts, used to find the next record if this one is broken.
///
/// - If records start a line, the next one is a `{` that starts a line in the same column.
/// - In column 1, nested objects may start a line too. Then the `{` must be illegal inside the broken record,
///   or its first key must be the usual one.
/// - If records do not start a line, those two tests alone decide.
///
/// A string is never taken for a record, because its quotes and line breaks are escaped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordStart {
    pub at: Position,
    begins_line: bool,
}

/// Where the next record starts, and the brackets that the broken one left open.
pub(crate) struct NextRecord {
    pub at: Position,
    pub open: JsonNesting,
}

impl RecordStart {
    /// The start of the record whose first byte the scanner reads next.
    pub fn of<R: BufRead>(scanner: &Scanner<R>) -> Self {
        Self { at: scanner.at(), begins_line: scanner.begins_line() }
    }

    /// Rewinds the scanner to the second of the record's `bytes`.
    pub fn go_back<R: BufRead>(self, scanner: &mut Scanner<R>, bytes: &[u8]) {
        if let Some(rest) = bytes.get(1..) {
            let Position { line, column } = self.at;
            scanner.push_back(rest, Position { line, column: column + 1 });
        }
    }

    /// Advances to the start of the next record, if it lies before `limit`. `key` is the usual first key.
    pub fn find_next<R: BufRead>(
        self,
        scanner: &mut Scanner<R>,
        key: Option<&[u8]>,
        limit: Option<Position>,
    ) -> io::Result<Option<NextRecord>> {
        let mut open = JsonNesting::default();
        open.take(b'{');
        loop {
            let at = scanner.at();
            let byte = scanner.peek()?.filter(|_| limit.is_none_or(|limit| at < limit));
            let Some(byte) = byte else { return Ok(None) };
            if byte == b'{' {
                let in_column = scanner.begins_line() && at.column == self.at.column;
                let may_begin = in_column || !self.begins_line;
                let is_told_by_column = self.begins_line && at.column > 1;
                let is_next = may_begin
                    && (is_told_by_column
                        || open.record_may_start()
                        || key.map_or(Ok(self.begins_line), |key| opens_with(scanner, key))?);
                if is_next {
                    return Ok(Some(NextRecord { at, open }));
                }
            }
            scanner.bump()?;
            open.take(byte);
        }
    }
}

/// Whether an object with the first key `key` starts here.
fn opens_with<R: BufRead>(scanner: &mut Scanner<R>, key: &[u8]) -> io::Result<bool> {
    let ahead = scanner.ahead(key.len() + MAX_BLANKS)?;
    Ok(ahead[1..].trim_ascii_start().starts_with(key))
}

/// Returns the first key of an object, with its quotes.
pub(crate) fn first_key(bytes: &[u8]) -> Option<Vec<u8>> {
    let inside = bytes.strip_prefix(b"{")?.trim_ascii_start();
    let text = inside.strip_prefix(b"\"")?;
    let end = text.iter().position(|byte| matches!(byte, b'"' | b'\\' | b'\n'))?;
    (text[end] == b'"' && end <= MAX_BLANKS).then(|| inside[..end + 2].to_vec())
}

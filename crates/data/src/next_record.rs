//! Finds the start of the next record after a broken one in an array.

use std::io::{self, BufRead};

use crate::{
    json_nesting::JsonNesting,
    scanner::{Position, Scanner},
};

/// Maximum white space between a `{` and the first key of a record.
const MAX_BLANKS: usize = 256;

/// The start of a record, used to find the next record if this one is broken.
///
/// - If records start on their own lines, the next record is a `{` in the same column that starts a line.
/// - In column 1, a nested object may start a line too. The `{` then counts only if it is illegal inside the
///   broken record, or if the first key is the same as in the file's first record.
/// - If records do not start on their own lines, those two conditions alone decide.
///
/// A JSON string never matches, because it contains no unescaped quotes or line breaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordStart {
    pub at: Position,
    begins_line: bool,
}

/// The start of the next record, and the brackets that the broken record left open.
pub(crate) struct NextRecord {
    pub at: Position,
    pub open: JsonNesting,
}

impl RecordStart {
    /// Returns the start of a record at the scanner's position.
    pub fn of<R: BufRead>(scanner: &Scanner<R>) -> Self {
        Self { at: scanner.at(), begins_line: scanner.begins_line() }
    }

    /// Rewinds the scanner to the record's second byte. `bytes` are the record's bytes up to the scanner's
    /// position.
    pub fn go_back<R: BufRead>(self, scanner: &mut Scanner<R>, bytes: &[u8]) {
        if let Some(rest) = bytes.get(1..) {
            let Position { line, column } = self.at;
            scanner.push_back(rest, Position { line, column: column + 1 });
        }
    }

    /// Advances to the next record, if it starts before `limit`. `key` is the first key of the file's first
    /// record.
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

/// Whether an object with the first key `key` starts at the scanner's position.
fn opens_with<R: BufRead>(scanner: &mut Scanner<R>, key: &[u8]) -> io::Result<bool> {
    let ahead = scanner.ahead(key.len() + MAX_BLANKS)?;
    Ok(ahead[1..].trim_ascii_start().starts_with(key))
}

/// Returns the first key of an object, including its quotes.
pub(crate) fn first_key(bytes: &[u8]) -> Option<Vec<u8>> {
    let inside = bytes.strip_prefix(b"{")?.trim_ascii_start();
    let text = inside.strip_prefix(b"\"")?;
    let end = text.iter().position(|byte| matches!(byte, b'"' | b'\\' | b'\n'))?;
    (text[end] == b'"' && end <= MAX_BLANKS).then(|| inside[..end + 2].to_vec())
}

//! Finds the start of the next record after a damaged record in an array.

use std::io::{self, BufRead};

use crate::{
    json_nesting::JsonNesting,
    scanner::{Position, Scanner},
};

/// Maximum number of white space characters between a `{` and the first key of a record.
const MAX_BLANKS: usize = 256;

/// The start of a record. If the record is damaged, [`Self::find_next`] finds the start of the next record.
///
/// A `{` may also start an object inside the damaged record. A `{` is *plausible* as the start of a record in
/// two cases:
///
/// - The `{` would be invalid at its position in the damaged record.
/// - The first key after the `{` is the first key of the file's first record. If that key is unknown, every
///   `{` in column 1 is plausible.
///
/// The position of the damaged record determines where the next record may start:
///
/// - If the damaged record is indented on its own line: at a `{` on its own line with the same indentation.
/// - If the damaged record starts in column 1: at a plausible `{` in column 1.
/// - If other text precedes the damaged record on its line, as in `[{…}, {…}]`: at any plausible `{`.
///
/// A key inside a JSON string never matches, because a JSON string contains no unescaped quotes or line
/// breaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordStart {
    pub at: Position,
    begins_line: bool,
}

/// The start of the next record, and the brackets that are still open in the damaged record.
pub(crate) struct NextRecord {
    pub at: Position,
    pub open: JsonNesting,
}

impl RecordStart {
    pub fn of<R: BufRead>(scanner: &Scanner<R>) -> Self {
        Self { at: scanner.at(), begins_line: scanner.begins_line() }
    }

    /// Rewinds the scanner to the second byte of the record. `bytes` are the bytes of the record up to the
    /// scanner's position.
    pub fn go_back<R: BufRead>(self, scanner: &mut Scanner<R>, bytes: &[u8]) {
        if let Some(rest) = bytes.get(1..) {
            let Position { line, column } = self.at;
            scanner.push_back(rest, Position { line, column: column + 1 });
        }
    }

    /// Advances to the start of the next record before `limit`. `key` is the first key of the file's first
    /// record. Returns `None` if there is no next record.
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

/// Returns whether an object whose first key is `key` starts at the scanner's position.
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

//! Where the next record of an array begins, when one is broken.

use std::io::{self, BufRead};

use crate::{
    json_nesting::JsonNesting,
    scanner::{Position, Scanner},
};

/// Blanks between a `{` and its first key, at most, where the key is to be recognised.
const MAX_BLANKS: usize = 256;

/// Where and how a record begins, by which the next is found when it is broken.
///
/// Where records begin a line, the next is the `{` that begins a line in the same column. Where nothing is
/// indented, objects inside a record begin a line in that column too, so that either no object may stand there
/// inside the broken record, or its first key must be the usual one. Elsewhere these two alone decide. No text is
/// taken for a record: in a text a quote is escaped, and so is a line break.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordStart {
    pub at: Position,
    begins_line: bool,
}

/// Where the next record begins, and what the one before has left open.
pub(crate) struct NextRecord {
    pub at: Position,
    pub open: JsonNesting,
}

impl RecordStart {
    /// Of a record whose first byte is the scanner's next.
    pub fn of<R: BufRead>(scanner: &Scanner<R>) -> Self {
        Self { at: scanner.at(), begins_line: scanner.begins_line() }
    }

    /// Returns to behind the first of a record's `bytes`, the last of which is behind the scanner.
    pub fn go_back<R: BufRead>(self, scanner: &mut Scanner<R>, bytes: &[u8]) {
        if let Some(rest) = bytes.get(1..) {
            let Position { line, column } = self.at;
            scanner.push_back(rest, Position { line, column: column + 1 });
        }
    }

    /// Moves to where the record after this one begins, if that is before `limit`; `key` is the usual first one.
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

/// Whether an object begins here whose first key is `key`.
fn opens_with<R: BufRead>(scanner: &mut Scanner<R>, key: &[u8]) -> io::Result<bool> {
    let ahead = scanner.ahead(key.len() + MAX_BLANKS)?;
    Ok(ahead[1..].trim_ascii_start().starts_with(key))
}

/// An object's first key, with its quotes.
pub(crate) fn first_key(bytes: &[u8]) -> Option<Vec<u8>> {
    let inside = bytes.strip_prefix(b"{")?.trim_ascii_start();
    let text = inside.strip_prefix(b"\"")?;
    let end = text.iter().position(|byte| matches!(byte, b'"' | b'\\' | b'\n'))?;
    (text[end] == b'"' && end <= MAX_BLANKS).then(|| inside[..end + 2].to_vec())
}

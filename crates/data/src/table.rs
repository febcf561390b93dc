//! Reads CSV and TSV. The names in the header become the keys of the records.

use std::io::{self, Read};

use serde_json::Value;

use crate::{
    fields::{self, Object},
    record::{Mismatch, RecordFault},
    table_rows::{Cells, RowReader},
};

const MAX_HEADER_BYTES: usize = 1 << 12;

/// Delimiters in order of preference.
const DELIMITERS: [u8; 3] = *b"\t,;";

/// Keys that may be the only column of a table.
const SINGLE_COLUMNS: [&str; 3] = ["text", "messages", "conversations"];

/// Returns the delimiter if the first line of `head` is a table header: at least two names without JSON
/// punctuation, or one of [`SINGLE_COLUMNS`].
pub(crate) fn delimiter(head: &[u8]) -> Option<u8> {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let end = head.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(head.len());
    let line = &head[..end];
    if line.len() > MAX_HEADER_BYTES || line.iter().any(|byte| b"{}[]:".contains(byte)) {
        return None;
    }
    let columns = |delimiter: &u8| {
        let row = RowReader::new(line, *delimiter).next_row().ok().flatten().unwrap_or_default();
        let named = row.iter().all(|name| !name.trim_ascii().is_empty());
        if named { row.count } else { 0 }
    };
    let best = DELIMITERS.into_iter().rev().max_by_key(columns)?;
    let single = || {
        let name = line.trim_ascii();
        let name = name.strip_prefix(b"\"").and_then(|name| name.strip_suffix(b"\"")).unwrap_or(name);
        SINGLE_COLUMNS.iter().any(|known| known.as_bytes() == name)
    };
    match columns(&best) {
        0 => None,
        1 => single().then_some(b','),
        _ => Some(best),
    }
}

/// Iterates over the rows of a table.
pub(crate) struct Table<R> {
    rows: RowReader<R>,
    /// Column names in order.
    names: Vec<String>,
}

pub(crate) struct Row {
    /// Number of the row's first line, starting at 1.
    pub line: u64,
    /// The row's cells, one per line. These bytes are used to guess the encoding.
    pub bytes: Vec<u8>,
    /// The record, or the reason why the row is invalid.
    pub object: Result<Object, Mismatch>,
}

impl<R: Read> Table<R> {
    /// Reads the header. In a name that is not UTF-8, invalid bytes become the replacement character.
    pub fn new(input: R, delimiter: u8) -> io::Result<Self> {
        let mut rows = RowReader::new(input, delimiter);
        let header = rows.next_row()?.unwrap_or_default();
        let name = |bytes: &[u8]| {
            let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            String::from_utf8_lossy(bytes).trim().trim_matches('"').to_owned()
        };
        let names = header.iter().map(name).collect();
        Ok(Self { rows, names })
    }

    /// Returns the next row, or `None` at the end of the table.
    pub fn next_row(&mut self) -> io::Result<Option<Row>> {
        loop {
            let Some(row) = self.rows.next_row()? else { return Ok(None) };
            if !row.is_blank() {
                let bytes = row.iter().flat_map(|cell| cell.iter().chain(b"\n")).copied().collect();
                return Ok(Some(Row { line: row.line, bytes, object: self.object(&row) }));
            }
        }
    }

    fn object(&self, row: &Cells) -> Result<Object, Mismatch> {
        let mut object = Object::new();
        for (name, cell) in self.names.iter().zip(row.iter()) {
            let text = std::str::from_utf8(cell).map_err(|error| {
                let name = fields::clipped(name, 40);
                let found = format!("the byte 0x{:02x} in `{name}`", cell[error.valid_up_to()]);
                Mismatch::new(RecordFault::Charset, found, "UTF-8")
            })?;
            object.insert(name.clone(), Value::String(text.to_owned()));
        }
        if row.count != self.names.len() {
            let found = format!("a row of {}", cells(row.count));
            let expected =
                format!("{} as in the header; a cell with the delimiter needs `\"`", cells(self.names.len()));
            return Err(Mismatch::new(RecordFault::Shape, found, expected));
        }
        Ok(object)
    }
}

fn cells(count: usize) -> String {
    format!("{count} cell{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_recognised_with_its_delimiter() {
        assert_eq!(delimiter(b"\xef\xbb\xbfinstruction,input,output\r\na,b,c"), Some(b','));
        assert_eq!(delimiter(b"instruction\toutput, maybe\tid\n"), Some(b'\t'));
        assert_eq!(delimiter(b"a;b\n"), Some(b';'));
        assert_eq!(delimiter(b"\"text\"\nabc"), Some(b','));
        for text in [
            &b"{\"a\": 1}"[..],
            b"[1, 2]",
            b"plain words",
            b"\"instruction\": \"a\", \"output\": \"b\"",
            b"",
            b"a,,b\n",
        ] {
            assert_eq!(delimiter(text), None, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a_cell_that_never_ends_is_refused() {
        let endless = b"q,a\nb,\"".chain(io::repeat(b'x'));
        let mut table = Table::new(endless, b',').unwrap();
        let fault = table.next_row().err().unwrap().to_string();
        assert_eq!(fault, "it has a record of more than 128 MiB");
    }

    #[test]
    fn rows_keep_quoted_line_breaks_and_name_their_line() {
        let text = &b"q,a\r\n\"one\r\ntwo\",\"say \"\"hi\"\"\"\r\nx,y,z\r\nlast,\r\n"[..];
        let mut table = Table::new(text, b',').unwrap();
        let mut seen = Vec::new();
        while let Some(row) = table.next_row().unwrap() {
            seen.push((row.line, row.object.map(|o| Value::Object(o).to_string()).map_err(|m| m.found)));
        }
        assert_eq!(
            seen,
            [
                (2, Ok(r#"{"q":"one\r\ntwo","a":"say \"hi\""}"#.into())),
                (4, Err("a row of 3 cells".into())),
                (5, Ok(r#"{"q":"last","a":""}"#.into())),
            ]
        );
    }
}

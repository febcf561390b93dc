//! Splits CSV and TSV into rows, with bounded memory for each row.

use std::io::{self, BufRead, BufReader, Read};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder, Terminator};

use crate::record_splitter::{MAX_RECORD_BYTES, too_long};

/// Maximum number of cells in a row that are stored. Further cells are only counted, because a file of commas
/// would otherwise need eight times its size in memory.
const MAX_CELLS: usize = 1 << 13;

#[derive(Debug, Default)]
pub(crate) struct Cells {
    /// Number of the row's first line, starting at 1.
    pub line: u64,
    /// Number of cells, including those that are not stored.
    pub count: usize,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Cells {
    /// Iterates over the stored cells.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }

    /// Returns whether the row is an empty line.
    pub fn is_blank(&self) -> bool {
        self.count == 0 || self.count == 1 && self.bytes.is_empty()
    }

    /// Removes a `\r` at the end of the row.
    fn remove_return(&mut self) {
        if self.count == self.ends.len() && self.iter().last().is_some_and(|cell| cell.ends_with(b"\r")) {
            self.bytes.pop();
            self.ends.iter_mut().last().into_iter().for_each(|end| *end -= 1);
        }
    }
}

/// Iterates over the rows of a stream.
pub(crate) struct RowReader<R> {
    input: BufReader<R>,
    core: Reader,
    is_at_end: bool,
}

impl<R: Read> RowReader<R> {
    /// Creates a reader in which a row ends with `\n`. If a row could end with `\r\n`, the csv-core crate
    /// would count lines incorrectly. [`Cells::remove_return`] removes the `\r`.
    pub fn new(input: R, delimiter: u8) -> Self {
        let core = ReaderBuilder::new().delimiter(delimiter).terminator(Terminator::Any(b'\n')).build();
        Self { input: BufReader::with_capacity(1 << 16, input), core, is_at_end: false }
    }

    /// Returns the next row, or `None` at the end.
    ///
    /// # Errors
    /// If the stream fails, or if the row is too long, for example because the `"` of a cell is never closed.
    pub fn next_row(&mut self) -> io::Result<Option<Cells>> {
        let mut row =
            Cells { line: self.core.line(), bytes: vec![0; 1 << 8], ends: vec![0; 1 << 4], count: 0 };
        let (mut length, mut read_bytes) = (0, 0);
        while !self.is_at_end {
            let input = self.input.fill_buf()?;
            let (mut other_bytes, mut other_ends) = ([0; 1 << 12], [0; 1 << 9]);
            let is_stored = row.count < MAX_CELLS;
            let (result, read, written, ended) = match is_stored {
                true => self.core.read_record(input, &mut row.bytes[length..], &mut row.ends[row.count..]),
                false => self.core.read_record(input, &mut other_bytes, &mut other_ends),
            };
            self.input.consume(read);
            row.count += ended;
            length += if is_stored { written } else { 0 };
            read_bytes += read;
            if read_bytes > MAX_RECORD_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has {}", too_long())));
            }
            match result {
                ReadRecordResult::OutputFull if is_stored => row.bytes.resize(2 * length, 0),
                ReadRecordResult::OutputEndsFull if is_stored => {
                    row.ends.resize((2 * row.count).min(MAX_CELLS), 0);
                }
                ReadRecordResult::End => self.is_at_end = true,
                ReadRecordResult::Record => {
                    row.ends.truncate(row.count);
                    row.bytes.truncate(row.ends.last().copied().unwrap_or(0));
                    row.remove_return();
                    return Ok(Some(row));
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the cells of all rows.
    fn rows(text: &[u8]) -> Vec<(u64, Vec<String>)> {
        let mut reader = RowReader::new(text, b',');
        let mut rows = Vec::new();
        while let Some(row) = reader.next_row().unwrap() {
            let cells: Vec<String> =
                row.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect();
            assert_eq!(row.count, cells.len());
            rows.push((row.line, cells));
        }
        rows
    }

    #[test]
    fn cells_of_any_length_are_whole() {
        let long = "嬛".repeat(100_000);
        let text = format!("a,\"{long}\"\"\n,\"\r\n,\n{long},b");
        let expected = [
            (1, vec!["a".to_owned(), format!("{long}\"\n,")]),
            (3, vec![String::new(); 2]),
            (4, vec![long, "b".to_owned()]),
        ];
        assert!(rows(text.as_bytes()) == expected);
    }

    #[test]
    fn cells_beyond_the_limit_are_counted_and_not_stored() {
        for count in [MAX_CELLS, MAX_CELLS + 1, 3_000_000] {
            let line = [b"x,".repeat(count - 1), b"y\nz".to_vec()].concat();
            let mut reader = RowReader::new(&line[..], b',');
            let row = reader.next_row().unwrap().unwrap();
            assert_eq!((row.count, row.iter().count()), (count, count.min(MAX_CELLS)));
            assert!(row.iter().take(MAX_CELLS - 1).all(|cell| cell == b"x"));
            assert!(row.bytes.capacity() + 8 * row.ends.capacity() < 1 << 18);
            let next = reader.next_row().unwrap().unwrap();
            assert_eq!((next.line, next.iter().collect::<Vec<_>>()), (2, vec![&b"z"[..]]));
        }
    }
}

//! Parquet: rows to JSON objects.

use std::io;

use bytes::Bytes;
use parquet::{errors::ParquetError, file::reader::SerializedFileReader, record::reader::RowIter};
use serde_json::Value;

use crate::fields::Object;

/// The rows of a Parquet file.
pub(crate) struct Rows {
    rows: RowIter<'static>,
}

impl Rows {
    /// Opens a file whose bytes are in memory: its index stands at its end.
    pub fn new(bytes: Vec<u8>) -> io::Result<Self> {
        let reader = SerializedFileReader::new(Bytes::from(bytes)).map_err(invalid)?;
        Ok(Self { rows: RowIter::from_file_into(Box::new(reader)) })
    }

    /// Returns the next row as an object, or `None` at the end.
    pub fn next_row(&mut self) -> io::Result<Option<Object>> {
        let Some(row) = self.rows.next() else { return Ok(None) };
        match row.map_err(invalid)?.to_json_value() {
            Value::Object(object) => Ok(Some(object)),
            other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("a row is {other}"))),
        }
    }
}

fn invalid(error: ParquetError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it is no valid Parquet file: {error}"))
}

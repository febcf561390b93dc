//! Reads Parquet rows as JSON objects.

use std::{
    cell::Cell,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use bytes::Bytes;
use parquet::{errors::ParquetError, file::reader::SerializedFileReader, record::reader::RowIter};
use serde_json::Value;

use crate::fields::Object;

thread_local! {
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether the current thread runs the Parquet decoder. [`read`](crate::read()) converts a panic of
/// the decoder into an error, so a panic hook should not print such a panic.
pub fn is_decoding_parquet() -> bool {
    DECODING.get()
}

/// Runs the decoder and converts a panic into an error.
fn guarded<T>(decode: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    DECODING.set(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(false);
    result.unwrap_or_else(|_| {
        let message = "it is no valid Parquet file: its values do not fit their encoding";
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    })
}

pub(crate) struct Rows {
    rows: RowIter<'static>,
}

impl Rows {
    /// Opens a Parquet file from its bytes. The whole file must be in memory, because the index of a Parquet
    /// file is at the end.
    pub fn new(bytes: Vec<u8>) -> io::Result<Self> {
        guarded(|| {
            let reader = SerializedFileReader::new(Bytes::from(bytes)).map_err(invalid)?;
            Ok(Self { rows: RowIter::from_file_into(Box::new(reader)) })
        })
    }

    /// Returns the next row as an object, or `None` at the end.
    pub fn next_row(&mut self) -> io::Result<Option<Object>> {
        guarded(|| {
            let Some(row) = self.rows.next() else { return Ok(None) };
            match row.map_err(invalid)?.to_json_value() {
                Value::Object(object) => Ok(Some(object)),
                other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("a row is {other}"))),
            }
        })
    }
}

fn invalid(error: ParquetError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it is no valid Parquet file: {error}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::OutputKind;

    #[test]
    fn a_damaged_file_is_an_error_and_no_panic() {
        let record = serde_json::from_str(r#"{"prompt": "a", "completion": "b"}"#).unwrap();
        let sound = OutputKind::of(Path::new("a.parquet")).unwrap().bytes([record].into_iter()).unwrap();
        let mut faults = 0;
        for at in 4..sound.len() - 8 {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x55;
            let rows = Rows::new(damaged).and_then(|mut rows| {
                while rows.next_row()?.is_some() {}
                Ok(())
            });
            faults += usize::from(rows.is_err());
        }
        assert!(faults > sound.len() / 8, "{faults} of {}", sound.len());
        assert!(!is_decoding_parquet());
    }
}

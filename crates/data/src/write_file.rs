//! Writes records to a file in JSON, JSON lines, CSV, TSV or Parquet, optionally compressed.

use std::{
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use flate2::write::GzEncoder;
use parquet::{
    basic::{Compression as Codec, LogicalType, Repetition, Type as PhysicalType},
    data_type::{ByteArray, ByteArrayType},
    errors::ParquetError,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::types::Type,
};
use serde_json::Value;

use crate::{fields::Object, unsupported_file::Compression};

/// Zstandard's default level.
const ZSTD_LEVEL: i32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Json,
    JsonLines,
    Table { delimiter: u8 },
    Parquet,
}

/// Layout and compression of an output file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputKind {
    layout: Layout,
    compression: Option<Compression>,
}

impl OutputKind {
    /// Recognizes `.json`, `.jsonl`, `.csv`, `.tsv` and `.parquet`, optionally followed by `.gz` or `.zst`.
    /// Returns `None` for other names.
    pub fn of(file: &Path) -> Option<Self> {
        let name = file.file_name()?.to_str()?.to_lowercase();
        let (name, compression) = match name.rsplit_once('.')? {
            (name, "gz") => (name, Some(Compression::Gzip)),
            (name, "zst") => (name, Some(Compression::Zstd)),
            _ => (name.as_str(), None),
        };
        let layout = match name.rsplit_once('.')?.1 {
            "json" => Layout::Json,
            "jsonl" | "ndjson" => Layout::JsonLines,
            "csv" => Layout::Table { delimiter: b',' },
            "tsv" => Layout::Table { delimiter: b'\t' },
            "parquet" => Layout::Parquet,
            _ => return None,
        };
        Some(Self { layout, compression })
    }

    /// Returns the contents of a file that contains `records`. In tables, a list is written as JSON text.
    ///
    /// `records` is iterated several times and not collected, because all objects together need many times
    /// the memory of their text.
    ///
    /// # Errors
    /// If a table cannot represent the records.
    pub fn bytes(self, records: impl Iterator<Item = Object> + Clone) -> io::Result<Vec<u8>> {
        let plain = match self.layout {
            Layout::Json => json(records, ["[\n", ",\n", "\n]\n"])?,
            Layout::JsonLines => json(records, ["", "\n", "\n"])?,
            Layout::Table { delimiter } => table(records, delimiter)?,
            Layout::Parquet => parquet_bytes(records)?,
        };
        match self.compression {
            None => Ok(plain),
            Some(Compression::Gzip) => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(&plain)?;
                encoder.finish()
            }
            Some(Compression::Zstd) => zstd::encode_all(&plain[..], ZSTD_LEVEL),
        }
    }
}

fn json(records: impl Iterator<Item = Object>, [start, separator, end]: [&str; 3]) -> io::Result<Vec<u8>> {
    let mut text = start.as_bytes().to_vec();
    for (index, record) in records.enumerate() {
        if index > 0 {
            text.extend_from_slice(separator.as_bytes());
        }
        serde_json::to_writer(&mut text, &record)?;
    }
    text.extend_from_slice(end.as_bytes());
    Ok(text)
}

/// Returns the keys of all records, in the order of first use.
fn columns(records: impl Iterator<Item = Object>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for record in records {
        for (key, _) in record {
            if !names.contains(&key) {
                names.push(key);
            }
        }
    }
    names
}

/// Returns the text of one cell. A string is unchanged, and any other value is written as JSON. The cell is
/// empty if the key is missing.
fn cell(record: &Object, name: &str) -> io::Result<String> {
    match record.get(name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        // A reader of the table would read the JSON text as one message, not as a list of messages.
        Some(_) if name == "prompt" || name == "completion" => {
            let message =
                format!("`{name}` is a list of messages, which a table cannot hold; write `--to messages`");
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
        Some(other) => Ok(other.to_string()),
    }
}

fn table(records: impl Iterator<Item = Object> + Clone, delimiter: u8) -> io::Result<Vec<u8>> {
    let names = columns(records.clone());
    let mut writer = csv::WriterBuilder::new().delimiter(delimiter).from_writer(Vec::new());
    writer.write_record(&names)?;
    for record in records {
        let row = names.iter().map(|name| cell(&record, name)).collect::<io::Result<Vec<String>>>()?;
        writer.write_record(&row)?;
    }
    writer.into_inner().map_err(|error| io::Error::other(error.to_string()))
}

fn parquet_bytes(records: impl Iterator<Item = Object> + Clone) -> io::Result<Vec<u8>> {
    let names = columns(records.clone());
    let failed = |error: ParquetError| io::Error::other(error.to_string());
    let field = |name: &String| {
        Type::primitive_type_builder(name, PhysicalType::BYTE_ARRAY)
            .with_repetition(Repetition::REQUIRED)
            .with_logical_type(Some(LogicalType::String))
            .build()
            .map(Arc::new)
    };
    let fields = names.iter().map(field).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let schema = Type::group_type_builder("records").with_fields(fields).build().map_err(failed)?;
    let properties = Arc::new(WriterProperties::builder().set_compression(Codec::SNAPPY).build());
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), properties).map_err(failed)?;
    let mut group = writer.next_row_group().map_err(failed)?;
    for name in &names {
        let value = |record: Object| Ok(ByteArray::from(cell(&record, name)?.into_bytes()));
        let values = records.clone().map(value).collect::<io::Result<Vec<ByteArray>>>()?;
        if let Some(mut column) = group.next_column().map_err(failed)? {
            column.typed::<ByteArrayType>().write_batch(&values, None, None).map_err(failed)?;
            column.close().map_err(failed)?;
        }
    }
    group.close().map_err(failed)?;
    writer.into_inner().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, ReadOptions, Record, read_from, to_json};

    fn read(bytes: &[u8]) -> Vec<Record> {
        let dataset = read_from(bytes, Path::new("a"), &ReadOptions::default()).unwrap();
        assert_eq!(dataset.bad, []);
        dataset.records
    }

    #[test]
    fn every_layout_reads_back_equal() {
        let records = read(
            br#"{"instruction": "a, \"b\"", "input": "", "output": "c\nd", "history": [["e", "f"]]}
{"instruction": "g", "output": "h", "system": "s"}"#,
        );
        for name in
            ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.zst", "a.parquet.gz"]
        {
            let kind = OutputKind::of(Path::new(name)).unwrap();
            for format in [Format::Alpaca, Format::Messages, Format::ShareGpt] {
                let objects: Vec<Object> =
                    records.iter().map(|record| to_json(record, format).unwrap()).collect();
                let again = read(&kind.bytes(objects.iter().cloned()).unwrap());
                let contents =
                    |records: &[Record]| records.iter().map(|r| r.content.clone()).collect::<Vec<_>>();
                assert_eq!(contents(&again), contents(&records), "{name} {format}");
            }
        }
        assert_eq!(OutputKind::of(Path::new("a.xlsx")), None);
    }

    #[test]
    fn a_table_rejects_a_prompt_of_messages() {
        let object = serde_json::from_str(r#"{"prompt": [], "completion": "a"}"#).unwrap();
        let error = OutputKind::of(Path::new("a.csv")).unwrap().bytes([object].into_iter()).unwrap_err();
        assert!(error.to_string().contains("`prompt` is a list of messages"));
    }
}

//! Reads a file into records. Every fault names its line.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
    sync::Arc,
};

use danlu_model::FileError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    DataError, Format, JsonFault,
    encoding::{Encoding, EncodingEvidence},
    fields::{self, Object},
    formats,
    record::{BadRecord, Record, RecordFault, RecordSource},
    scanner::Position,
    splitter::{Flaw, Layout, Piece, Splitter},
    unknown_keys::{self, UnknownKey},
};

/// Number of bad records at which reading stops.
const MAX_BAD: usize = 100_000;

/// The records of a data file.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Format of the records.
    pub format: Format,
    /// Records to train on, in file order.
    pub records: Vec<Record>,
    /// Bad records, in file order.
    pub bad: Vec<BadRecord>,
    /// Keys of good records that danlu does not read, in file order.
    pub unknown_keys: Vec<UnknownKey>,
    /// Likely encoding of a file that is not all UTF-8.
    pub encoding: Option<Encoding>,
    /// Identity of the file.
    pub fingerprint: DataFingerprint,
}

/// Identifies a data file in a model card without its path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFingerprint {
    /// File name without folders.
    pub name: String,
    /// SHA-256 of the bytes, in hexadecimal.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Format of the records.
    pub format: Format,
    /// Number of records to train on.
    pub records: usize,
    /// Number of bad records.
    pub bad_records: usize,
}

/// Reads a data file: a JSON array or JSON lines, in `format` or in the one its first record shows.
///
/// # Errors
/// If the file cannot be read, is empty, or has no known format. Bad records are not errors: [`Dataset::bad`]
/// lists them.
pub fn read(file: &Path, format: Option<Format>) -> Result<Dataset, DataError> {
    let failed = |source| FileError::new("read", file, source);
    let input = File::open(file).map_err(failed)?;
    read_from(input, file, format)
}

/// [`read`] from any stream; `name` is what messages call it.
///
/// # Errors
/// As [`read`].
pub fn read_from(mut input: impl Read, name: &Path, format: Option<Format>) -> Result<Dataset, DataError> {
    let failed = |source| FileError::new("read", name, source);
    // A pipe may return one byte at a time.
    let mut start = Vec::new();
    input.by_ref().take(2).read_to_end(&mut start).map_err(failed)?;
    if let Some(encoding) = Encoding::of_start(&start) {
        return Err(DataError::Utf16 { file: name.to_owned(), encoding });
    }
    let input = BufReader::with_capacity(1 << 16, Hashing::new(start.as_slice().chain(input)));
    let empty = || DataError::Empty { file: name.to_owned() };
    let mut splitter = Splitter::new(input).map_err(failed)?.ok_or_else(empty)?;
    let mut reading = Reading::new(name, format);
    while let Some(next) = splitter.next().map_err(failed)? {
        reading.take(next, splitter.layout())?;
    }
    let mut rest = splitter.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(failed)?;
    reading.finish(rest.into_inner())
}

/// State of a read.
struct Reading {
    file: Arc<Path>,
    format: Option<Format>,
    records: Vec<Record>,
    bad: Vec<BadRecord>,
    unknown_keys: Vec<UnknownKey>,
    evidence: EncodingEvidence,
    index: usize,
}

impl Reading {
    fn new(file: &Path, format: Option<Format>) -> Self {
        Self {
            file: file.into(),
            format,
            records: Vec::new(),
            bad: Vec::new(),
            unknown_keys: Vec::new(),
            evidence: EncodingEvidence::default(),
            index: 0,
        }
    }

    /// Adds the next piece of the file.
    fn take(&mut self, next: Result<Piece, Flaw>, layout: Layout) -> Result<(), DataError> {
        match next {
            Err(Flaw { at, found, expected, is_record, fatal }) => {
                self.bad.push(BadRecord {
                    source: self.source(at.line),
                    column: Some(at.column),
                    fault: if is_record { RecordFault::Json } else { RecordFault::Array },
                    found,
                    expected,
                    rest_unread: fatal,
                });
                self.index += usize::from(is_record);
            }
            Ok(piece) => {
                match std::str::from_utf8(&piece.bytes) {
                    Ok(text) => self.evidence.utf8(text),
                    Err(_) => self.evidence.other(&piece.bytes),
                }
                match self.parse(&piece, layout)? {
                    Err(bad) => self.bad.push(bad),
                    Ok(record) => self.records.push(record),
                }
                self.index += 1;
            }
        }
        self.give_up_when_hopeless()
    }

    /// The outer error ends the file, the inner one the record.
    fn parse(&mut self, piece: &Piece, layout: Layout) -> Result<Result<Record, BadRecord>, DataError> {
        let source = self.source(piece.at.line);
        let object = match object(piece, source.clone()) {
            Ok(object) => object,
            Err(_) if layout == Layout::Lines && self.index == 0 && piece.bytes == b"{" => {
                return Err(DataError::ObjectOverLines {
                    file: self.file.to_path_buf(),
                    line: piece.at.line,
                });
            }
            Err(bad) => return Ok(Err(*bad)),
        };
        let format = match self.format {
            Some(format) => format,
            None => *self.format.insert(recognise(&object, &source)?),
        };
        Ok(match formats::convert(format, &object) {
            Ok(content) => {
                let void = &formats::UNSUPPORTED;
                unknown_keys::count_unknown(&mut self.unknown_keys, format, &object, void, &source);
                Ok(Record { content, source })
            }
            Err(mismatch) => Err(mismatch.at(source)),
        })
    }

    fn source(&self, line: u64) -> RecordSource {
        RecordSource { file: self.file.clone(), line, index: self.index }
    }

    fn give_up_when_hopeless(&self) -> Result<(), DataError> {
        if self.bad.len() < MAX_BAD {
            return Ok(());
        }
        let first = Box::new(self.bad[0].clone());
        Err(DataError::TooManyBad { file: self.file.to_path_buf(), count: self.bad.len(), first })
    }

    fn finish<R>(self, hashing: Hashing<R>) -> Result<Dataset, DataError> {
        let file = self.file.to_path_buf();
        let format = match (self.format, self.bad.first()) {
            (_, None) if self.records.is_empty() => return Err(DataError::Empty { file }),
            (Some(format), _) => format,
            (None, Some(first)) => {
                let (first, encoding) = (Box::new(first.clone()), self.evidence.encoding());
                return Err(DataError::NoReadableRecord { file, first, encoding });
            }
            (None, None) => unreachable!("a good record has a format"),
        };
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let fingerprint = DataFingerprint {
            name,
            sha256: hashing.sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            bytes: hashing.bytes,
            format,
            records: self.records.len(),
            bad_records: self.bad.len(),
        };
        let encoded_badly = self.bad.iter().any(|bad| bad.fault == RecordFault::Encoding);
        Ok(Dataset {
            format,
            records: self.records,
            bad: self.bad,
            unknown_keys: self.unknown_keys,
            encoding: self.evidence.encoding().filter(|_| encoded_badly),
            fingerprint,
        })
    }
}

/// Recognises the format from the first record.
fn recognise(object: &Object, source: &RecordSource) -> Result<Format, DataError> {
    let candidates = Format::candidates(object);
    let (place, keys) = (source.clone(), fields::keys(object));
    match candidates[..] {
        [format] => Ok(format),
        [] => {
            let meant = Format::ALL.iter().find_map(|format| unknown_keys::misspelt(object, *format));
            Err(DataError::UnknownFormat { place, keys, meant })
        }
        _ => Err(DataError::AmbiguousFormat { place, keys, candidates }),
    }
}

/// Parses a piece as a JSON object.
fn object(piece: &Piece, source: RecordSource) -> Result<Object, Box<BadRecord>> {
    let bad = |at: Option<Position>, fault, found: String, expected: &str| {
        let mut source = source.clone();
        let column = at.map(|at| at.column);
        source.line = at.map_or(source.line, |at| at.line);
        let expected = expected.to_owned();
        Box::new(BadRecord { source, column, fault, found, expected, rest_unread: false })
    };
    let text = std::str::from_utf8(&piece.bytes).map_err(|error| {
        let at = place(piece, error.valid_up_to());
        let found = format!("the byte 0x{:02x}", piece.bytes[error.valid_up_to()]);
        bad(Some(at), RecordFault::Encoding, found, "UTF-8")
    })?;
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            Err(bad(None, RecordFault::Shape, fields::describe(&other), "a record, which is a JSON object"))
        }
        Err(error) => {
            // serde_json's line and column are those inside the piece, the column in bytes.
            let line_start = match error.line() {
                0 | 1 => 0,
                line => text.match_indices('\n').nth(line - 2).map_or(0, |(at, _)| at + 1),
            };
            let offset = line_start + error.column().saturating_sub(1);
            let offset =
                (0..=offset.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            // At an early end the parser stands on the last character, not behind it.
            let stumbled = text[offset..].chars().next().filter(|_| !error.is_eof());
            let JsonFault { found, expected } = JsonFault::new(&error, stumbled);
            Err(bad(Some(place(piece, offset)), RecordFault::Json, found, expected))
        }
    }
}

/// The file position of byte `offset` of a piece.
fn place(piece: &Piece, offset: usize) -> Position {
    let before = &piece.bytes[..offset.min(piece.bytes.len())];
    let lines = before.iter().filter(|byte| **byte == b'\n').count() as u64;
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let characters = before[line_start..].iter().filter(|byte| !(0x80..=0xbf).contains(*byte)).count() as u64;
    let first = if lines == 0 { piece.at.column } else { 1 };
    Position { line: piece.at.line + lines, column: first + characters }
}

/// A reader that hashes the bytes it returns.
struct Hashing<R> {
    inner: R,
    sha256: Sha256,
    bytes: u64,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Self {
        Self { inner, sha256: Sha256::new(), bytes: 0 }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sha256.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

//! Reads a file into records. Each fault has a line number, or a row number in Parquet.

use std::{
    cell::Cell,
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
    rc::Rc,
    sync::Arc,
};

use danlu_model::{FileError, files};
use serde::{Deserialize, Serialize};

use crate::{
    Columns, DataError, Format, ReadOptions,
    charset::{Charset, CharsetEvidence},
    column_object, dataset_info,
    fields::{self, Object},
    formats::{self, turns::TurnReader},
    json_record, parquet_file,
    record::{BadRecord, Record, RecordFault, RecordSource},
    record_memory,
    record_splitter::{Flaw, Layout, Piece, Splitter},
    stream::{self, Hashing},
    table::{self, Table},
    unknown_keys::{self, UnknownKey},
    unsupported_file::{self, UnsupportedFile},
};

/// Maximum number of bad records. Reading stops after this number.
const MAX_BAD: usize = 100_000;

/// Maximum memory of records per byte of their file, in addition to [`FREE_GROWTH`]. A record in memory is
/// larger than in the file, and compression adds to that. The ratio is about 10 for compressed conversations.
pub(crate) const MAX_GROWTH: u64 = 64;

/// Number of bytes that the records may use in memory even if their file is tiny.
const FREE_GROWTH: u64 = 128 << 20;

/// The records of a data file.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Format of the records.
    pub format: Format,
    /// Records to train on, in file order.
    pub records: Vec<Record>,
    /// Memory of the records in bytes, roughly.
    pub memory: u64,
    /// Bad records, in file order.
    pub bad: Vec<BadRecord>,
    /// Keys of good records that danlu does not read, in file order.
    pub unknown_keys: Vec<UnknownKey>,
    /// Keys that were read instead of the format's keys, such as `question` instead of `instruction`.
    pub aliases: Columns,
    /// Keys of other lists in the file that were not read, such as `test` if `train` was read.
    pub unread_lists: Vec<String>,
    /// The likely encoding of a file that is not valid UTF-8.
    pub encoding: Option<Charset>,
    /// Name, checksum and counts of the file.
    pub fingerprint: DataFileFingerprint,
}

/// Identifies a data file in a model card. This fingerprint contains no path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFileFingerprint {
    /// File name without folders.
    pub name: String,
    /// SHA-256 of the file, in hexadecimal.
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

/// Reads a data file: JSON in any layout, CSV, TSV or Parquet, optionally compressed with gzip or Zstandard.
/// If the file is a `dataset_info.json` of LLaMA-Factory, reads the data file that `dataset_info.json` names.
///
/// # Errors
/// If the file cannot be read, is empty, or has no known format. A bad record is not an error, but is listed
/// in [`Dataset::bad`].
pub fn read(file: &Path, options: &ReadOptions) -> Result<Dataset, DataError> {
    let named = dataset_info::resolve(file, options)?;
    let (file, options) = named.as_ref().map_or((file, options), |(file, options)| (file.as_path(), options));
    if file.is_dir() {
        return Err(DataError::Folder { folder: file.to_owned(), files: files::names_in(file)? });
    }
    read_from(open(file)?, file, options)
}

/// Opens a data file. A file below `/dev` or `/proc` may be a pipe of the shell, such as `<(zcat a.gz)`. Any
/// other file must be a regular file.
fn open(file: &Path) -> Result<File, FileError> {
    match file.starts_with("/dev") || file.starts_with("/proc") {
        true => File::open(file).map_err(|source| FileError::new("read", file, source)),
        false => files::open_regular(file),
    }
}

/// Reads data from a stream. Messages use `name` as the name of the file.
///
/// # Errors
/// The same errors as [`read`].
pub fn read_from(input: impl Read, name: &Path, options: &ReadOptions) -> Result<Dataset, DataError> {
    let failed = |source| DataError::from(FileError::new("read", name, source));
    let mut raw = Hashing::new(input);
    let mut reading = Reading::new(name, options, raw.byte_count());
    reading.read_stream(&mut raw)?;
    // The checksum includes the bytes after the last record.
    io::copy(&mut raw, &mut io::sink()).map_err(failed)?;
    reading.finish(raw.sha256())
}

/// State of [`read_from`].
struct Reading<'a> {
    file: Arc<Path>,
    options: &'a ReadOptions,
    /// Number of bytes of the file that were read, before decompression.
    bytes: Rc<Cell<u64>>,
    format: Option<Format>,
    /// The keys of `--columns` and, if the first record matches an alias set, the keys of that set.
    columns: Columns,
    aliases: Columns,
    records: Vec<Record>,
    /// Memory of the records in bytes, roughly.
    memory: u64,
    bad: Vec<BadRecord>,
    unknown_keys: Vec<UnknownKey>,
    unread_lists: Vec<String>,
    evidence: CharsetEvidence,
    index: usize,
    is_table: bool,
}

impl<'a> Reading<'a> {
    fn new(file: &Path, options: &'a ReadOptions, bytes: Rc<Cell<u64>>) -> Self {
        Self {
            file: file.into(),
            options,
            bytes,
            format: options.format,
            columns: options.columns.clone(),
            aliases: Columns::default(),
            records: Vec::new(),
            memory: 0,
            bad: Vec::new(),
            unknown_keys: Vec::new(),
            unread_lists: Vec::new(),
            evidence: CharsetEvidence::default(),
            index: 0,
            is_table: false,
        }
    }

    /// Detects the file type from the first bytes and reads all records.
    fn read_stream(&mut self, raw: &mut impl Read) -> Result<(), DataError> {
        let opened = stream::open(raw).map_err(|source| self.failed(source))?;
        let file = || self.file.to_path_buf();
        if let Some(kind) = UnsupportedFile::of(&opened.head) {
            return Err(DataError::Unsupported { file: file(), kind });
        }
        if unsupported_file::is_parquet(&opened.head) {
            return self.read_parquet(opened.stream);
        }
        if let Some(encoding) = Charset::of_start(&opened.head) {
            return Err(DataError::Utf16 { file: file(), encoding });
        }
        match table::delimiter(&opened.head) {
            Some(delimiter) => self.read_table(opened.stream, delimiter),
            None => self.read_json(opened.stream),
        }
    }

    fn failed(&self, source: io::Error) -> DataError {
        FileError::new("read", &self.file, source).into()
    }

    fn read_json(&mut self, stream: impl Read) -> Result<(), DataError> {
        let file = self.file.clone();
        let failed = |source| DataError::from(FileError::new("read", &file, source));
        let input = BufReader::with_capacity(1 << 16, stream);
        let Some(mut splitter) = Splitter::new(input).map_err(failed)? else { return Ok(()) };
        while let Some(next) = splitter.next().map_err(failed)? {
            self.take(next, splitter.layout())?;
        }
        self.unread_lists = splitter.unread_lists().to_vec();
        Ok(())
    }

    fn read_table(&mut self, stream: impl Read, delimiter: u8) -> Result<(), DataError> {
        let mut table = Table::new(stream, delimiter).map_err(|source| self.failed(source))?;
        self.is_table = true;
        while let Some(row) = table.next_row().map_err(|source| self.failed(source))? {
            self.add_evidence(&row.bytes);
            let source = self.source(row.line);
            match row.object {
                Ok(object) => self.take_object(object, source)?,
                Err(mismatch) => self.bad.push(mismatch.at(source)),
            }
            self.index += 1;
            self.check_bad_count()?;
        }
        Ok(())
    }

    /// Reads Parquet. Messages contain row numbers instead of line numbers.
    fn read_parquet(&mut self, mut stream: impl Read) -> Result<(), DataError> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).map_err(|source| self.failed(source))?;
        let mut rows = parquet_file::Rows::new(bytes).map_err(|source| self.failed(source))?;
        while let Some(row) = rows.next_row().map_err(|source| self.failed(source))? {
            let source = self.source(self.index as u64 + 1);
            self.take_object(row, source)?;
            self.index += 1;
            self.check_bad_count()?;
        }
        Ok(())
    }

    fn add_evidence(&mut self, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.evidence.utf8(text),
            Err(_) => self.evidence.other(bytes),
        }
    }

    /// Adds the next record of a JSON file to the result, or the flaw that was found instead of a record.
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
                self.add_evidence(&piece.bytes);
                let source = self.source(piece.at.line);
                match json_record::object(&piece, source.clone()) {
                    Ok(object) if self.index == 0 => self.take_first(object, &source)?,
                    Ok(object) => self.take_object(object, source)?,
                    Err(_) if layout == Layout::Lines && self.index == 0 && piece.bytes == b"{" => {
                        let (file, line) = (self.file.to_path_buf(), piece.at.line);
                        return Err(DataError::ObjectOverLines { file, line });
                    }
                    Err(bad) => self.bad.push(*bad),
                }
                self.index += 1;
            }
        }
        self.check_bad_count()
    }

    /// Adds the first object of a file. The object is a record, or a whole table as pandas writes it.
    fn take_first(&mut self, object: Object, source: &RecordSource) -> Result<(), DataError> {
        let Some(rows) = column_object::rows(&object) else {
            return self.take_object(object, source.clone());
        };
        let count = rows.len();
        for (i, row) in rows.into_iter().enumerate() {
            self.index = i;
            let source = RecordSource { index: i, ..source.clone() };
            self.take_object(row, source)?;
            self.check_bad_count()?;
        }
        self.index = count.saturating_sub(1);
        Ok(())
    }

    /// Adds a record to the good or the bad records.
    fn take_object(&mut self, mut object: Object, source: RecordSource) -> Result<(), DataError> {
        self.columns.rename(&mut object);
        let format = match self.format {
            Some(format) => format,
            None => self.recognise(&mut object, &source)?,
        };
        let mut turns = TurnReader::new(self.options);
        match formats::convert(format, &object, &mut turns) {
            Ok(content) => {
                let keys = &turns.unknown_keys;
                unknown_keys::count_unknown(&mut self.unknown_keys, format, &object, keys, &source);
                self.add_record(Record { content, source })?;
            }
            Err(mismatch) => self.bad.push(mismatch.at(source)),
        }
        Ok(())
    }

    fn add_record(&mut self, record: Record) -> Result<(), DataError> {
        self.memory += record_memory::of_record(&record);
        if let Some(limit) = self.options.max_memory.filter(|limit| self.memory > *limit) {
            return Err(DataError::Memory { place: record.source, needed: self.memory, limit });
        }
        let (needed, bytes) = (self.memory, self.bytes.get());
        if needed.saturating_sub(FREE_GROWTH) / MAX_GROWTH > bytes {
            return Err(DataError::RecordGrowth { place: record.source, needed, bytes });
        }
        self.records.push(record);
        Ok(())
    }

    /// Detects the format from the first record. If no format matches, tries the known aliases of its keys.
    fn recognise(&mut self, object: &mut Object, source: &RecordSource) -> Result<Format, DataError> {
        if Format::candidates(object).is_empty()
            && let Some(aliases) = Columns::alias(object)
        {
            self.columns.extend(aliases.clone());
            self.aliases = aliases;
            self.columns.rename(object);
        }
        let format = recognise(object, source).map_err(|error| match error {
            DataError::UnknownFormat { place, keys, meant: None } if self.is_table => {
                DataError::UnknownFormat { place, keys, meant: Some(HEADER.to_owned()) }
            }
            error => error,
        })?;
        self.format = Some(format);
        Ok(format)
    }

    fn source(&self, line: u64) -> RecordSource {
        RecordSource { file: self.file.clone(), line, index: self.index }
    }

    fn check_bad_count(&self) -> Result<(), DataError> {
        if self.bad.len() < MAX_BAD {
            return Ok(());
        }
        let first = Box::new(self.bad[0].clone());
        Err(DataError::TooManyBad { file: self.file.to_path_buf(), count: self.bad.len(), first })
    }

    fn finish(self, sha256: String) -> Result<Dataset, DataError> {
        let bytes = self.bytes.get();
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
        let fingerprint = DataFileFingerprint {
            name: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            sha256,
            bytes,
            format,
            records: self.records.len(),
            bad_records: self.bad.len(),
        };
        let encoded_badly = self.bad.iter().any(|bad| bad.fault == RecordFault::Charset);
        Ok(Dataset {
            format,
            records: self.records,
            memory: self.memory,
            bad: self.bad,
            unknown_keys: self.unknown_keys,
            aliases: self.aliases,
            unread_lists: self.unread_lists,
            encoding: self.evidence.encoding().filter(|_| encoded_badly),
            fingerprint,
        })
    }
}

/// Detects the format from the keys of the first record.
fn recognise(object: &Object, source: &RecordSource) -> Result<Format, DataError> {
    let candidates = Format::candidates(object);
    let (place, keys) = (source.clone(), fields::keys(object));
    match candidates[..] {
        [format] => Ok(format),
        [] => {
            let preference = ["chosen", "rejected"].iter().all(|key| object.contains_key(*key));
            let preference = preference.then(|| PREFERENCE.to_owned());
            let meant = preference
                .or_else(|| message_hint(object))
                .or_else(|| layout_hint(object))
                .or_else(|| Format::ALL.iter().find_map(|format| unknown_keys::misspelt(object, *format)));
            Err(DataError::UnknownFormat { place, keys, meant })
        }
        _ => Err(DataError::AmbiguousFormat { place, keys, candidates }),
    }
}

const HEADER: &str = "write the names of the columns into the first line, such as `instruction,output`, or name them \
    with `--columns instruction=NAME,output=NAME`";

const PREFERENCE: &str = "this is preference data (DPO), which danlu does not train on; to train on the chosen answers \
    alone, keep only `prompt` and `chosen` and pass `--columns completion=chosen`";

/// Returns the hint for a file that has one message per record instead of one conversation per record.
fn message_hint(object: &Object) -> Option<String> {
    let is_message = ["role", "from"].iter().any(|key| object.contains_key(*key))
        && ["content", "value"].iter().any(|key| object.contains_key(*key));
    is_message.then(|| "put the messages of each conversation in one list: `{\"messages\": […]}`".to_owned())
}

/// Returns the hint for records that another program tokenized or rendered, or that have an unsupported
/// layout.
fn layout_hint(object: &Object) -> Option<String> {
    let has = |key: &str| object.contains_key(key);
    let body_has_messages = || object.get("body").and_then(|body| body.get("messages")).is_some();
    Some(match () {
        () if has("input_ids") => {
            "give the text that these ids were made from: danlu encodes text itself, with the template and the mask of the base"
        }
        () if has("body") && body_has_messages() => {
            "these are requests of OpenAI's batch interface: keep the `messages` of each `body`, with the reply as the last message"
        }
        () => return None,
    }
    .to_owned())
}

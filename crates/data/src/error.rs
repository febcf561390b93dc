//! Errors that concern a whole data file. A single bad record is reported as a [`crate::BadRecord`].

use std::path::{Path, PathBuf};

use danlu_model::FileError;

use crate::{BadRecord, Charset, Format, RecordFault, RecordSource, UnsupportedFile};

/// A data file that cannot be read as training data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// The path is a folder.
    #[error("cannot read `{}`: it is a folder", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Names of the files in the folder.
        files: Vec<String>,
    },
    /// The file is UTF-16.
    #[error("cannot read `{}`: it is UTF-16, expected UTF-8", file.display())]
    Utf16 {
        /// The file.
        file: PathBuf,
        /// The encoding, including the byte order.
        encoding: Charset,
    },
    /// The file has a type that contains no readable records.
    #[error("cannot read `{}`: it is {}", file.display(), kind.name())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The file type.
        kind: UnsupportedFile,
    },
    /// An entry of a `dataset_info.json` is invalid.
    #[error("cannot read {} of `{}`: {reason}", entry(name), file.display())]
    DatasetInfo {
        /// The file.
        file: PathBuf,
        /// Name of the entry, if one was selected.
        name: Option<String>,
        /// The reason why the entry is invalid.
        reason: String,
        /// The names of all entries.
        names: Vec<String>,
    },
    /// The file has no records.
    #[error("cannot read `{}`: it contains no records", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// The file is one JSON object over several lines. Such a file is neither an array nor JSON lines.
    #[error(
        "cannot read `{}`: found one JSON object over several lines from line {line}, expected a JSON array or one record per line",
        file.display()
    )]
    ObjectOverLines {
        /// The file.
        file: PathBuf,
        /// Number of the object's first line.
        line: u64,
    },
    /// No record could be parsed, so the format is unknown.
    #[error("cannot read `{}`: every record is invalid; the first: {first}", file.display())]
    NoReadableRecord {
        /// The file.
        file: PathBuf,
        /// The first bad record.
        first: Box<BadRecord>,
        /// The likely encoding, if the file is not UTF-8.
        encoding: Option<Charset>,
    },
    /// Reading stopped because there were too many bad records. The format is probably wrong.
    #[error("cannot read `{}`: stopped after {count} invalid records; the first: {first}", file.display())]
    TooManyBad {
        /// The file.
        file: PathBuf,
        /// Number of bad records that were read.
        count: usize,
        /// The first bad record.
        first: Box<BadRecord>,
    },
    /// The records need too much memory.
    #[error(
        "cannot read {}: the records up to it need {} MiB of memory, and at most {} MiB are free for records",
        quoted(place),
        needed.div_ceil(1 << 20),
        limit >> 20
    )]
    Memory {
        /// Position of the record that exceeds the limit.
        place: RecordSource,
        /// Memory of the records up to this position, in bytes.
        needed: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The records need far more memory than their file has bytes.
    #[error(
        "cannot read {}: the records up to it need {} MiB of memory, over {} times the {bytes} bytes of the file so far",
        quoted(place),
        needed.div_ceil(1 << 20),
        crate::read::MAX_GROWTH
    )]
    RecordGrowth {
        /// Position of the record that exceeds the limit.
        place: RecordSource,
        /// Memory of the records up to this position, in bytes.
        needed: u64,
        /// Number of bytes of the file up to this position.
        bytes: u64,
    },
    /// The first record matches no format.
    #[error("cannot read {}: a record with {keys} matches no known format", quoted(place))]
    UnknownFormat {
        /// Position of the record.
        place: RecordSource,
        /// The record's keys, formatted for the message.
        keys: String,
        /// A question about misspelt keys, if some keys are similar to keys of a format.
        meant: Option<String>,
    },
    /// The first record matches several formats.
    #[error(
        "cannot read {}: a record with {keys} matches several formats: {}",
        quoted(place),
        names(candidates)
    )]
    AmbiguousFormat {
        /// Position of the record.
        place: RecordSource,
        /// The record's keys, formatted for the message.
        keys: String,
        /// The matching formats.
        candidates: Vec<Format>,
    },
    /// The files of one data set have different formats.
    #[error("cannot read `{}`: its format is {format}, and `{}` has {expected}", file.display(), first.display())]
    MixedFormats {
        /// The file.
        file: PathBuf,
        /// The format of `file`.
        format: Format,
        /// The first file of the data set.
        first: PathBuf,
        /// The format of the first file.
        expected: Format,
    },
    /// A format name that does not exist.
    #[error("cannot use the data format `{name}`: it is unknown")]
    UnknownFormatName {
        /// The unknown name.
        name: String,
    },
}

impl DataError {
    /// Returns the next step for the user, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read(error) => error.hint(),
            Self::Folder { folder, files } => Some(folder_hint(folder, files)),
            Self::Unsupported { file, kind } => Some(kind.hint(file)),
            Self::DatasetInfo { names, .. } => {
                let names: Vec<String> = names.iter().take(20).map(|name| format!("`{name}`")).collect();
                Some(format!("choose an entry with `--dataset NAME`: {}", names.join(", ")))
            }
            Self::Utf16 { file, encoding } => {
                Some(format!("convert the file with {}", encoding.conversion(file)))
            }
            Self::NoReadableRecord { file, encoding: Some(encoding), .. } => Some(encoding.hint(file)),
            Self::NoReadableRecord { first, .. } if first.fault == RecordFault::Json => {
                Some(json_hint(first))
            }
            Self::NoReadableRecord { first, .. } if first.found.starts_with(LIST_FOUND) => {
                Some(PANDAS.into())
            }
            Self::NoReadableRecord { first, .. } if first.fault != RecordFault::Shape => Some(LAYOUTS.into()),
            Self::ObjectOverLines { .. } => Some(format!("{LAYOUTS}; {PANDAS}")),
            Self::Empty { .. } => Some(LAYOUTS.into()),
            Self::UnknownFormat { meant: Some(meant), .. } => Some(meant.clone()),
            Self::NoReadableRecord { .. } | Self::UnknownFormat { .. } => {
                Some(format!("use the keys of a known format:\n{}", Format::table()))
            }
            Self::Memory { .. } => Some("split the file, or use a machine with more memory".into()),
            Self::RecordGrowth { .. } => {
                Some("decompress the file first; join very short records into longer ones".into())
            }
            Self::TooManyBad { .. } => Some("check that `--format` names the format of the file".into()),
            Self::AmbiguousFormat { candidates, .. } => candidates
                .first()
                .map(|format| format!("choose one with `--format`, such as `--format {format}`")),
            Self::MixedFormats { .. } => Some("pass the files one by one".into()),
            Self::UnknownFormatName { .. } => {
                let known: Vec<String> = Format::ALL.iter().map(|format| format!("`{format}`")).collect();
                Some(format!("use one of {}", known.join(", ")))
            }
        }
    }
}

const LAYOUTS: &str =
    "write the records as a JSON array, as JSON lines (one record per line), as CSV or as TSV";

/// Start of [`BadRecord::found`] if a record is a list and not an object.
const LIST_FOUND: &str = "a list of";

/// Part of [`BadRecord::expected`] if a key has no double quotes.
const KEY_EXPECTED: &str = "a key in double quotes";

/// Hint for files that pandas wrote in a layout that danlu does not read.
const PANDAS: &str = "with pandas, write `df.to_json(FILE, orient=\"records\")`";

/// Returns the hint for a file in a notation that resembles JSON, such as JSON5 or Python.
fn json_hint(first: &BadRecord) -> String {
    match first.found.as_str() {
        "`/`" | "`#`" if !has_extension(first, &["md", "txt", "yaml", "yml"]) => "remove the comments, which JSON does not have; `npx json5 FILE` converts JSON5 to JSON",
        "`'`" => {
            "write it with `json.dumps`: it looks like Python's text of a dictionary, and JSON has double quotes only"
        }
        _ if has_extension(first, &["yaml", "yml"]) => {
            "write the records as JSON: `yq -o=json . FILE` converts YAML"
        }
        _ if has_extension(first, &["txt", "md"]) => {
            "write each document as one line of JSON, such as `{\"text\": \"…\"}`, or conversations in another format"
        }
        _ if first.expected.contains(KEY_EXPECTED) => {
            "put the keys in double quotes; `npx json5 FILE` converts JSON5 to JSON"
        }
        _ => LAYOUTS,
    }
    .to_owned()
}

fn has_extension(first: &BadRecord, extensions: &[&str]) -> bool {
    first
        .source
        .file
        .extension()
        .is_some_and(|found| extensions.iter().any(|one| found.eq_ignore_ascii_case(one)))
}

/// Returns the hint for a folder: the data files in it, with training files first.
fn folder_hint(folder: &Path, files: &[String]) -> String {
    const MAX_SHOWN: usize = 4;
    let endings = [".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".zst"];
    let is_data = |name: &&String| endings.iter().any(|ending| name.ends_with(ending));
    if files.iter().any(|name| name.ends_with(".arrow")) {
        return "write the saved data set as Parquet first, with `Dataset.to_parquet` of Python's datasets"
            .to_owned();
    }
    let mut found: Vec<&String> = files.iter().filter(is_data).collect();
    found.sort_by_key(|name| (!name.starts_with("train"), name.as_str()));
    let shown = |name: &&String| format!("`{}`", folder.join(name).display());
    match found.is_empty() {
        true => "name a file of records".to_owned(),
        false => format!(
            "name a file in it: {}",
            found.iter().take(MAX_SHOWN).map(shown).collect::<Vec<_>>().join(", ")
        ),
    }
}

fn entry(name: &Option<String>) -> String {
    name.as_ref().map_or_else(|| "an entry".to_owned(), |name| format!("the entry `{name}`"))
}

fn quoted(place: &RecordSource) -> String {
    format!("`{}:{}` (record {})", place.file.display(), place.line, place.index + 1)
}

fn names(formats: &[Format]) -> String {
    let names: Vec<String> = formats.iter().map(|format| format!("`{format}`")).collect();
    names.join(", ")
}

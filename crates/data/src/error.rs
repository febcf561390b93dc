//! Errors that concern a whole data file. A bad record is a [`crate::BadRecord`].

use std::path::PathBuf;

use danlu_model::FileError;

use crate::{BadRecord, Charset, Format, RecordFault, RecordSource, UnsupportedFile};

/// A data file that cannot be read as training data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// The file is UTF-16.
    #[error("`{}` is UTF-16, expected UTF-8", file.display())]
    Utf16 {
        /// The file.
        file: PathBuf,
        /// The byte order.
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
        /// The entry's name, if one was chosen.
        name: Option<String>,
        /// The reason.
        reason: String,
        /// The names of all entries.
        names: Vec<String>,
    },
    /// The file has no records.
    #[error("`{}` holds no records", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// The file is one JSON object over several lines: neither an array nor JSON lines.
    #[error("`{}:{line}`: one JSON object over several lines, expected a JSON array or one record per line", file.display())]
    ObjectOverLines {
        /// The file.
        file: PathBuf,
        /// First line of the object.
        line: u64,
    },
    /// No record could be parsed, so the format is unknown.
    #[error("`{}` holds no readable record; the first: {first}", file.display())]
    NoReadableRecord {
        /// The file.
        file: PathBuf,
        /// The first bad record.
        first: Box<BadRecord>,
        /// The likely encoding, if the file is not UTF-8.
        encoding: Option<Charset>,
    },
    /// Reading stopped at a limit of bad records. The format is probably wrong.
    #[error("`{}`: {count} bad records, reading stopped; the first: {first}", file.display())]
    TooManyBad {
        /// The file.
        file: PathBuf,
        /// Number of bad records read.
        count: usize,
        /// The first bad record.
        first: Box<BadRecord>,
    },
    /// The first record matches no format.
    #[error("{}: a record with {keys} is of no known format", quoted(place))]
    UnknownFormat {
        /// Position of the record.
        place: RecordSource,
        /// The record's keys, formatted for the message.
        keys: String,
        /// A question about misspelt keys, if some keys resemble those of a format.
        meant: Option<String>,
    },
    /// The first record matches several formats.
    #[error("{}: a record with {keys} could be {}", quoted(place), names(candidates))]
    AmbiguousFormat {
        /// Position of the record.
        place: RecordSource,
        /// The record's keys, formatted for the message.
        keys: String,
        /// The matching formats.
        candidates: Vec<Format>,
    },
    /// A format name that does not exist.
    #[error("unknown data format `{name}`")]
    UnknownFormatName {
        /// The given name.
        name: String,
    },
}

impl DataError {
    /// Returns an imperative hint, if one exists.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read(error) => error.hint(),
            Self::Unsupported { file, kind } => Some(kind.hint(file)),
            Self::DatasetInfo { names, .. } => {
                let names: Vec<String> = names.iter().take(20).map(|name| format!("`{name}`")).collect();
                Some(format!("name one with `--dataset`: {}", names.join(", ")))
            }
            Self::Utf16 { file, encoding } => Some(format!("convert it: {}", encoding.conversion(file))),
            Self::NoReadableRecord { file, encoding: Some(encoding), .. } => Some(encoding.hint(file)),
            Self::NoReadableRecord { first, .. } if first.fault != RecordFault::Shape => Some(LAYOUTS.into()),
            Self::Empty { .. } | Self::ObjectOverLines { .. } => Some(LAYOUTS.into()),
            Self::UnknownFormat { meant: Some(meant), .. } => Some(meant.clone()),
            Self::NoReadableRecord { .. } | Self::UnknownFormat { .. } => {
                Some(format!("the known formats are\n{}", Format::table()))
            }
            Self::TooManyBad { .. } => Some("see whether `--format` names the format the file is in".into()),
            Self::AmbiguousFormat { candidates, .. } => candidates
                .first()
                .map(|format| format!("name the one that is meant, as in `--format {format}`")),
            Self::UnknownFormatName { .. } => {
                let known: Vec<String> = Format::ALL.iter().map(|format| format!("`{format}`")).collect();
                Some(format!("the known formats are {}", known.join(", ")))
            }
        }
    }
}

const LAYOUTS: &str =
    "write the records as a JSON array, as JSON lines (one record per line), as CSV or as TSV";

fn entry(name: &Option<String>) -> String {
    name.as_ref().map_or_else(|| "an entry".to_owned(), |name| format!("the entry `{name}`"))
}

fn quoted(place: &RecordSource) -> String {
    format!("`{}:{}` (record {})", place.file.display(), place.line, place.index + 1)
}

fn names(formats: &[Format]) -> String {
    let names: Vec<String> = formats.iter().map(|format| format!("`{format}`")).collect();
    names.join(" or ")
}

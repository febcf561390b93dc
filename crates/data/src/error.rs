//! What can go wrong with a whole data file; single records are [`crate::BadRecord`]s.

use std::path::PathBuf;

use crate::{BadRecord, Format};

/// A data file that cannot be read as training data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file starts with the byte order mark of UTF-16.
    #[error("{} is UTF-16, expected UTF-8", file.display())]
    Utf16 {
        /// The file.
        file: PathBuf,
    },
    /// Nothing but blanks, or an empty array.
    #[error("{} holds no records", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// One JSON object spread over several lines: neither an array nor JSON lines.
    #[error("{}:{line}: one JSON object over several lines, expected a JSON array or one record per line", file.display())]
    ObjectOverLines {
        /// The file.
        file: PathBuf,
        /// Where the object begins.
        line: u64,
    },
    /// No record could be parsed, so there is nothing to recognise the format by.
    #[error("{} holds no readable record; the first: {first}", file.display())]
    NoReadableRecord {
        /// The file.
        file: PathBuf,
        /// The first one that failed.
        first: Box<BadRecord>,
    },
    /// So many bad records that the file is hardly what it was taken for.
    #[error("{}: {count} bad records, reading stopped; the first: {first}", file.display())]
    TooManyBad {
        /// The file.
        file: PathBuf,
        /// How many were met.
        count: usize,
        /// The first of them.
        first: Box<BadRecord>,
    },
    /// The first record has the keys of none of the formats.
    #[error("{}:{line}: a record with {keys} is of no known format", file.display())]
    UnknownFormat {
        /// The file.
        file: PathBuf,
        /// The record's line.
        line: u64,
        /// Its keys, as text.
        keys: String,
    },
    /// The first record has the keys of several formats.
    #[error("{}:{line}: a record with {keys} could be {}", file.display(), names(candidates))]
    AmbiguousFormat {
        /// The file.
        file: PathBuf,
        /// The record's line.
        line: u64,
        /// Its keys, as text.
        keys: String,
        /// The formats it could be.
        candidates: Vec<Format>,
    },
    /// A format name that is none of ours.
    #[error("unknown data format `{name}`")]
    UnknownFormatName {
        /// What was given.
        name: String,
    },
}

impl DataError {
    /// The next move, where it is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => None,
            Self::Utf16 { file } => {
                Some(format!("convert it: iconv -f UTF-16 -t UTF-8 {0} > {0}.utf8", file.display()))
            }
            Self::Empty { .. } | Self::ObjectOverLines { .. } => {
                Some("a data file is a JSON array of records, or JSON lines: one record on each line".into())
            }
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

fn names(formats: &[Format]) -> String {
    let names: Vec<String> = formats.iter().map(|format| format!("`{format}`")).collect();
    names.join(" or ")
}

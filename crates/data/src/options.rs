//! Options of [`read`](crate::read()).

use crate::{Columns, Format, Roles};

/// Options of [`read`](crate::read()). With the default options, every property is detected from the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadOptions {
    /// The format of every record; `None` detects the format from the first record.
    pub format: Option<Format>,
    /// The keys that the file uses in place of the format's keys.
    pub columns: Columns,
    /// The role names that the file uses.
    pub roles: Roles,
    /// The entry to read from a LLaMA-Factory `dataset_info.json`.
    pub dataset: Option<String>,
}

impl From<Option<Format>> for ReadOptions {
    fn from(format: Option<Format>) -> Self {
        Self { format, ..Self::default() }
    }
}

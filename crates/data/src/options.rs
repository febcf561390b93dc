//! Options of [`read`](crate::read()): the format, and the user's names for columns and roles.

use crate::{Columns, Format, Roles};

/// How to read a data file. The default recognises everything from the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadOptions {
    /// The format of every record; `None` recognises it from the first one.
    pub format: Option<Format>,
    /// The file's names for the keys of a format.
    pub columns: Columns,
    /// The file's names for roles.
    pub roles: Roles,
    /// The entry of a LLaMA-Factory `dataset_info.json`.
    pub dataset: Option<String>,
}

impl From<Option<Format>> for ReadOptions {
    fn from(format: Option<Format>) -> Self {
        Self { format, ..Self::default() }
    }
}

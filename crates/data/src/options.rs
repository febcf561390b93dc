//! Options of [`read`](crate::read()).

use crate::{Columns, Dataset, Format, Roles};

/// Options of [`read`](crate::read()). By default, all properties are detected from the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadOptions {
    /// Format of all records. With `None`, the format is detected from the first record.
    pub format: Option<Format>,
    /// Keys in the file that replace the keys of the format.
    pub columns: Columns,
    /// Role names in the file.
    pub roles: Roles,
    /// The entry to read from a LLaMA-Factory `dataset_info.json`.
    pub dataset: Option<String>,
    /// Maximum memory of the records in bytes, roughly. With `None`, there is no limit.
    pub max_memory: Option<u64>,
}

impl ReadOptions {
    /// Lowers the maximum memory by that of the records in `dataset`. Files that are read one after the other
    /// thus share one maximum.
    pub fn reserve(&mut self, dataset: &Dataset) {
        self.max_memory = self.max_memory.map(|left| left.saturating_sub(dataset.memory));
    }
}

impl From<Option<Format>> for ReadOptions {
    fn from(format: Option<Format>) -> Self {
        Self { format, ..Self::default() }
    }
}
